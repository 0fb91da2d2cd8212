#include "base/status.h"
#include "kernels/cuda/cuda_backend.h"

namespace nibble {

absl::StatusOr<std::unique_ptr<Backend>> MakeCudaBackend(std::string_view name) {
  return absl::UnavailableError(
      absl::StrCat("backend: expected one of this build (auto, cpu, cpu-scalar), got ",
                   ToAbsl(name), ": this build has no CUDA kernels"));
}

}  // namespace nibble
