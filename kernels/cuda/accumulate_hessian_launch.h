// Host side of AccumulateHessian: raw device pointers, a config, a stream. No allocation, no
// synchronisation; may be captured in a graph.
#ifndef NIBBLE_KERNELS_CUDA_ACCUMULATE_HESSIAN_LAUNCH_H_
#define NIBBLE_KERNELS_CUDA_ACCUMULATE_HESSIAN_LAUNCH_H_

#include <cuda_runtime_api.h>

#include <cstdint>

#include "base/dtype.h"
#include "kernels/cuda/accumulate_hessian_config.h"
#include "quant/numerics/hessian_sum.h"

namespace nibble {

inline constexpr int kHessianEntries = kBlockSize * (kBlockSize + 1) / 2;  // i <= j

struct AccumulateHessianArgs {
  const void* x = nullptr;  // tokens x channels, aligned to 16 bytes
  int64_t tokens = 0;
  int64_t channels = 0;          // a multiple of 16
  float* workspace = nullptr;    // AccumulateHessianWorkspace floats
  float* hessians = nullptr;     // channels / 16 slices of 16 x 16, added to
  int64_t* bad_slice = nullptr;  // set: the first slice that is no longer finite, or -1
};

// Floats of workspace: one sum a group and slice.
constexpr int64_t AccumulateHessianWorkspace(int64_t tokens, int64_t channels) {
  const int64_t slices = channels / kBlockSize;
  return HessianGroups(tokens, slices) * slices * kHessianEntries;
}

// hessians += X^T X, summed as quant/numerics/hessian_sum.h says. A NaN or an infinity of x makes
// its slice bad, as does an overflow. `config` indexes kAccumulateHessianConfigs.
// cudaErrorInvalidValue for an unknown type or config.
cudaError_t LaunchAccumulateHessian(DType dtype, const AccumulateHessianArgs& args, int config,
                                    cudaStream_t stream);

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CUDA_ACCUMULATE_HESSIAN_LAUNCH_H_
