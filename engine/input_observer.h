// Collects what linear layers read while a model runs.
#ifndef NIBBLE_ENGINE_INPUT_OBSERVER_H_
#define NIBBLE_ENGINE_INPUT_OBSERVER_H_

#include <map>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "calib/input_collector.h"
#include "engine/calibration.h"
#include "kernels/backend.h"
#include "kernels/input_sums.h"
#include "model/linear_hook.h"

namespace nibble {

// Of one layer. With a GPU's backend, of a decoder on that GPU: inputs are summed there, and NaN or
// infinity in them is told by States.
class InputObserver final : public LinearHook {
 public:
  // wanted: modules, and whether with Hessians. The backend, and on a GPU the decoder, outlive
  // this.
  InputObserver(std::map<std::string, bool> wanted, Backend& backend)
      : wanted_(std::move(wanted)), backend_(backend) {}

  bool ReadsDeviceMemory() const override { return backend_.cuda_device().has_value(); }
  absl::Status Observe(const LinearInput& input) override;

  // Of every module that is wanted, seen or not. What was observed is gone afterwards.
  absl::StatusOr<CalibrationStates> States();

 private:
  // What modules that read one input share.
  struct Inputs {
    explicit Inputs(bool with_hessians) : hessians(with_hessians), collector(with_hessians) {}
    const bool hessians;
    InputCollector collector;
    std::unique_ptr<InputSums> sums;  // on a GPU; the collector is of what came back from there
    int64_t columns = 0;
  };

  // What a GPU summed becomes the collectors' own.
  absl::Status FetchSums();
  // Null where none of the modules is wanted.
  std::shared_ptr<Inputs> InputsOf(std::span<const std::string> modules);

  const std::map<std::string, bool> wanted_;
  Backend& backend_;
  std::map<std::string, std::shared_ptr<Inputs>> shared_;
};

}  // namespace nibble

#endif  // NIBBLE_ENGINE_INPUT_OBSERVER_H_
