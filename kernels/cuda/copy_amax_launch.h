// Host side of CopyAmax: the maxima that the quantized copies of a matrix need, in one read. Raw
// device pointers, a config, a stream. No allocation, no synchronisation; may be captured in a
// graph.
#ifndef NIBBLE_KERNELS_CUDA_COPY_AMAX_LAUNCH_H_
#define NIBBLE_KERNELS_CUDA_COPY_AMAX_LAUNCH_H_

#include <cuda_runtime_api.h>

#include <cstdint>

#include "base/dtype.h"
#include "kernels/cuda/copy_amax_config.h"
#include "kernels/cuda/row_groups_launch.h"
#include "quant/numerics/hadamard.h"

namespace nibble {

// Maxima of a copy's magnitudes: infinity or NaN where one is infinite or NaN.
struct CopyAmaxArgs {
  const void* x = nullptr;           // aligned to 16 bytes
  int64_t rows = 0;                  // with groups: at least as many as they have
  int64_t cols = 0;                  // a multiple of 16
  const RowGroup* groups = nullptr;  // group_count + 1 of them; null where the matrix is one
  int group_count = 1;

  // Of x as it is, one a group.
  float* source = nullptr;
  // Of the row-wise copy, one a row or one a group. May be null.
  float* row = nullptr;
  bool per_row = false;
  Rht row_rht = Rht::kNone;
  // Of the column-wise copy, one for each of a group's columns or one a group. May be null;
  // otherwise the groups' rows are multiples of 16.
  float* column = nullptr;
  bool per_column = false;
  Rht column_rht = Rht::kNone;
};

// Zeros where LaunchCopyAmax writes, which begins with this.
cudaError_t LaunchClearMaxima(const CopyAmaxArgs& args, cudaStream_t stream);

// `config` indexes kCopyAmaxConfigs. cudaErrorInvalidValue for an unknown type or config.
cudaError_t LaunchCopyAmax(DType dtype, const CopyAmaxArgs& args, int config, cudaStream_t stream);

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CUDA_COPY_AMAX_LAUNCH_H_
