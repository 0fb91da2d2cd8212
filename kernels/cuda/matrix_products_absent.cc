#include "base/status.h"
#include "kernels/cuda/matrix_products.h"

namespace nibble {

absl::StatusOr<std::unique_ptr<MatrixProducts>> MatrixProducts::Make(cudaStream_t) {
  return absl::UnavailableError(
      "matrix product: expected a build with cuBLASLt, got one whose toolkit had none; build with "
      "a "
      "CUDA toolkit that has cublasLt.h, or run the model on the CPU");
}

}  // namespace nibble
