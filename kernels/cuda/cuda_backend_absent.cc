#include "base/status.h"
#include "kernels/cuda/cuda_backend.h"

namespace nibble {

absl::StatusOr<std::unique_ptr<Backend>> MakeCudaBackend(int device) {
  return absl::UnavailableError(
      absl::StrCat("backend: expected one of this build (auto, cpu, cpu-scalar), got cuda:", device,
                   ": this build has no CUDA kernels"));
}

}  // namespace nibble
