// What --calib FILE holds: a saved calibrator state, or captured activations (safetensors, tensors
// named "<module>.input", tokens x channels). Nothing is read before it is asked for.
#ifndef NIBBLE_ENGINE_CALIBRATION_H_
#define NIBBLE_ENGINE_CALIBRATION_H_

#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "calib/input_collector.h"
#include "kernels/backend.h"
#include "policies/recipe.h"

namespace nibble {

// The format of saved states, in the metadata under kFormatKey (engine/tensor_ops.h): safetensors
// with the arrays of InputCollector::Save, named "<module>.input.<array>".
inline constexpr char kCalibrationFormat[] = "nibble.calibration.1";

class Calibration {
 public:
  virtual ~Calibration() = default;

  // DataLoss for a file that is neither of the two, or a state of a newer version.
  static absl::StatusOr<std::unique_ptr<Calibration>> Open(const std::string& path);

  // Of a module's input of `columns` channels, by `spec`; FailedPrecondition where the file has
  // another number; nullopt where the file has no token of the module, unless
  // `spec` needs none (constant). FailedPrecondition for captures that are no activations (NaN,
  // another type, channels that are no multiple of 16), DataLoss for a state that nobody saved.
  // Several threads may call these two at once, each with its own backend.
  virtual absl::StatusOr<std::optional<float>> InputAmax(const std::string& module,
                                                         const ActivationSpec& spec,
                                                         int64_t columns,
                                                         Backend& backend) const = 0;
  // Of `columns` channels, means over the tokens; FailedPrecondition where the file has another
  // number. nullopt where it has no token of the module, or a state without Hessians.
  virtual absl::StatusOr<std::optional<std::vector<float>>> Hessians(const std::string& module,
                                                                     int64_t columns,
                                                                     Backend& backend) const = 0;
  // Of a module: how many tokens its input was seen with; 0 where the file has nothing of it.
  virtual absl::StatusOr<int64_t> Tokens(const std::string& module) const = 0;
  // A hash of all that the file holds, for --resume. Reads the file at the first call; a file that
  // cannot be read has a fingerprint that no other has.
  virtual std::string Fingerprint() const = 0;
};

// What is known of each module's input.
using CalibrationStates = std::map<std::string, InputCollector>;

// From captures, read in chunks of rows; `hessians` as in InputCollector. The states give the same
// answers as the captures.
absl::StatusOr<CalibrationStates> CollectCalibration(const std::string& captures, bool hessians,
                                                     Backend& backend);

// Through AtomicFile, which has the rules for `path`. InvalidArgument for a module without a name.
absl::Status SaveCalibration(const std::string& path, const CalibrationStates& states);
// DataLoss for a file that SaveCalibration did not write.
absl::StatusOr<CalibrationStates> LoadCalibration(const std::string& path);

// The states of several files, no module in two of them, in one: the bytes that SaveCalibration
// would write, but one tensor in memory at a time.
absl::Status JoinCalibrations(const std::string& path, std::span<const std::string> parts);

// InvalidArgument where `path` is something that is never replaced by a calibration: neither free
// nor one itself.
absl::Status CheckCalibrationOutput(const std::string& path);

// Of several files of states, in any order; a module may be in some of them only. InvalidArgument
// where a file is named twice, or some have Hessians of a module and others have not.
absl::StatusOr<CalibrationStates> MergeCalibrations(std::span<const std::string> paths);

}  // namespace nibble

#endif  // NIBBLE_ENGINE_CALIBRATION_H_
