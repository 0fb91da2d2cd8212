#include "base/status.h"
#include "model/cuda/cuda_ops.h"

namespace nibble {

absl::StatusOr<std::unique_ptr<LayerOps>> MakeCudaOps(int device, ThreadPool&, DType) {
  return absl::UnavailableError(absl::StrCat("forward pass: expected a build with CUDA for cuda:",
                                             device, ", got one without; run it on the CPU"));
}

}  // namespace nibble
