// Host side of Amax: raw device pointers and a stream. No allocation, no synchronisation; may be
// captured in a graph.
#ifndef NIBBLE_KERNELS_CUDA_AMAX_LAUNCH_H_
#define NIBBLE_KERNELS_CUDA_AMAX_LAUNCH_H_

#include <cuda_runtime_api.h>

#include <cstdint>

#include "base/dtype.h"

namespace nibble {

// *amax = the largest magnitude of x's `blocks` blocks of 16; infinity or NaN where one is infinite
// or NaN. x is aligned to 16 bytes.
cudaError_t LaunchAmax(DType dtype, const void* x, int64_t blocks, float* amax,
                       cudaStream_t stream);

// amax[r] = the same of row r, for each of rows x cols; cols is a multiple of 16.
cudaError_t LaunchRowAmax(DType dtype, const void* x, int64_t rows, int64_t cols, float* amax,
                          cudaStream_t stream);

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CUDA_AMAX_LAUNCH_H_
