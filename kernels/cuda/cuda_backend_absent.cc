#include "base/status.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/tuning_device.h"

namespace nibble {
namespace {

absl::Status NoCuda(int device) {
  return absl::UnavailableError(
      absl::StrCat("backend: expected one of this build (auto, cpu, cpu-scalar), got cuda:", device,
                   ": this build has no CUDA kernels"));
}

}  // namespace

absl::StatusOr<std::unique_ptr<Backend>> MakeCudaBackend(int device, const TuningStore&) {
  return NoCuda(device);
}

absl::StatusOr<std::unique_ptr<TuningDevice>> MakeCudaTuningDevice(int device) {
  return NoCuda(device);
}

}  // namespace nibble
