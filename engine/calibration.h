// What --calib FILE holds: a saved calibrator state, or captured activations (safetensors, tensors
// named "<module>.input", tokens x channels). Nothing is read before it is asked for.
#ifndef NIBBLE_ENGINE_CALIBRATION_H_
#define NIBBLE_ENGINE_CALIBRATION_H_

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "policies/recipe.h"

namespace nibble {

class Calibration {
 public:
  virtual ~Calibration() = default;

  // DataLoss for a file that is neither of the two.
  static absl::StatusOr<std::unique_ptr<Calibration>> Open(const std::string& path);

  // Of a module's input, by `spec`; nullopt where the file has nothing on the module. Several
  // threads may call these two at once, each with its own backend.
  virtual absl::StatusOr<std::optional<float>> InputAmax(const std::string& module,
                                                         const ActivationSpec& spec,
                                                         Backend& backend) const = 0;
  // Of `columns` channels; FailedPrecondition where the file has another number.
  virtual absl::StatusOr<std::optional<std::vector<float>>> Hessians(const std::string& module,
                                                                     int64_t columns,
                                                                     Backend& backend) const = 0;
  // A hash of what was read, for --resume.
  virtual std::string Fingerprint() const = 0;
};

}  // namespace nibble

#endif  // NIBBLE_ENGINE_CALIBRATION_H_
