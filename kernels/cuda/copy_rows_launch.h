// Host side of CopyRows: the row-wise copy under per_token and the maxima of the column-wise one,
// in one read. Raw device pointers, a config, a stream. No allocation, no synchronisation; may be
// captured in a graph.
#ifndef NIBBLE_KERNELS_CUDA_COPY_ROWS_LAUNCH_H_
#define NIBBLE_KERNELS_CUDA_COPY_ROWS_LAUNCH_H_

#include <cuda_runtime_api.h>

#include "base/dtype.h"
#include "kernels/cuda/copy_amax_launch.h"
#include "kernels/cuda/copy_encode_launch.h"
#include "kernels/cuda/copy_rows_config.h"

namespace nibble {

// Whether the current device does this in one read: bf16 and fp16, the plain runtime rule, rows not
// rotated, of no more than 16384 elements, and encoded under the maxima that are made here;
// compute capability 9.0 and up with shared memory for it.
bool CopyRowsFits(DType dtype, const CopyAmaxArgs& maxima, const EncodedCopy& row);

// What LaunchCopyAmax(maxima) and LaunchCopyEncode of `row` alone write; calls them for what does
// not fit. `config` indexes kCopyRowsConfigs. cudaErrorInvalidValue for an unknown type or config.
cudaError_t LaunchCopyRows(DType dtype, const CopyAmaxArgs& maxima, const EncodedCopy& row,
                           int config, cudaStream_t stream);

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CUDA_COPY_ROWS_LAUNCH_H_
