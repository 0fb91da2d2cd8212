// A W4A4 product from packed operands, D = A * W^T: a tool to check kernels and checkpoints with,
// not one to serve models with.
//
// The products of codes and block scales are multiplied as they are, with float32 accumulation by
// cuBLASLt, and the outer scales are applied to the sums by PostScale. cuBLASLt is opened when a
// plan is made: half a gigabyte that no program of ours should need in order to start.
#ifndef NIBBLE_KERNELS_CUDA_CHECK_GEMM_H_
#define NIBBLE_KERNELS_CUDA_CHECK_GEMM_H_

#include <cuda_runtime_api.h>

#include <array>
#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/enum_names.h"
#include "kernels/cuda/packed_args.h"
#include "quant/packed_tensor.h"

namespace nibble {

enum class CheckGemmPath : uint8_t {
  kDequantize,  // as bf16, which holds code times block scale exactly; on any GPU
  // By the FP4 tensor cores, from compute capability 10.0 on. Written after cuBLASLt's
  // documentation and never run: we have no such device.
  kBlockScaled,
};
template <>
inline constexpr std::array<std::string_view, 2> kEnumNames<CheckGemmPath> = {"dequantize",
                                                                              "block_scaled"};

// Everything that one shape needs, chosen and allocated once, on the device that was current.
class CheckGemmPlan {
 public:
  // A has `rows` rows, W `cols`, both `depth` columns, a positive multiple of 16. Unavailable where
  // there is no cuBLASLt, or the path is none of this device's; Unimplemented where cuBLASLt has
  // no algorithm for the shape, or the build does not know cuBLASLt.
  static absl::StatusOr<std::unique_ptr<CheckGemmPlan>> Make(CheckGemmPath path, int64_t rows,
                                                             int64_t cols, int64_t depth);
  virtual ~CheckGemmPlan() = default;

  // d: rows x cols, row-major, on the device as are the operands, each with one outer scale or one
  // a row: those of A scale the rows of d, those of W its columns. kBlockScaled reads swizzled
  // block scales, kDequantize either order.
  virtual absl::Status Launch(const PackedArgs& activations, const PackedArgs& weights, float* d,
                              cudaStream_t stream) = 0;
};

// The same from host memory to host memory, of any scheme, block scales in either order.
absl::StatusOr<std::vector<float>> CheckGemm(int device, CheckGemmPath path,
                                             const PackedView& activations,
                                             const PackedView& weights);

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CUDA_CHECK_GEMM_H_
