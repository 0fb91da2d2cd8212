// Host side of PostScale: raw device pointers, a config, a stream. No allocation, no
// synchronisation; may be captured in a graph.
#ifndef NIBBLE_KERNELS_CUDA_POST_SCALE_LAUNCH_H_
#define NIBBLE_KERNELS_CUDA_POST_SCALE_LAUNCH_H_

#include <cuda_runtime_api.h>

#include <cstdint>

#include "base/dtype.h"
#include "kernels/cuda/post_scale_config.h"

namespace nibble {

struct PostScaleArgs {
  void* d = nullptr;  // row-major, aligned to 16 bytes
  int64_t rows = 0;
  int64_t cols = 0;
  const float* row_decode_scale = nullptr;  // a: one a row, or one
  const float* col_decode_scale = nullptr;  // b: one a column, or one; aligned to 16 bytes
  bool per_row = true;
  bool per_col = true;
};

// `config` indexes kPostScaleConfigs. cudaErrorInvalidValue for an unknown type or config.
cudaError_t LaunchPostScale(DType dtype, const PostScaleArgs& args, int config,
                            cudaStream_t stream);

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CUDA_POST_SCALE_LAUNCH_H_
