// Dense products on a device by cuBLASLt, for the forward pass.
#ifndef NIBBLE_KERNELS_CUDA_MATRIX_PRODUCTS_H_
#define NIBBLE_KERNELS_CUDA_MATRIX_PRODUCTS_H_

#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/dtype.h"

namespace nibble {

class MatrixProducts {
 public:
  // For the device that is current, and work in the order of `stream`. Unavailable where there is
  // no cuBLASLt.
  static absl::StatusOr<std::unique_ptr<MatrixProducts>> Make(cudaStream_t stream);
  virtual ~MatrixProducts() = default;

  // y = x w^T, or y += x w^T: x rows x depth, w cols x depth, y rows x cols, row-major and on the
  // device, aligned to 256 bytes. dtype: of x and w, bf16 or fp32; products and sums are float32
  // (never TF32), and so is y. Unimplemented where cuBLASLt has no algorithm for the shape.
  virtual absl::Status Multiply(DType dtype, const void* x, const void* w, float* y, int64_t rows,
                                int64_t cols, int64_t depth, bool add) = 0;
};

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CUDA_MATRIX_PRODUCTS_H_
