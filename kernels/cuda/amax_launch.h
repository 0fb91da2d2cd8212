// Host side of Amax: raw device pointers and a stream. No allocation, no synchronisation; may be
// captured in a graph.
#ifndef NIBBLE_KERNELS_CUDA_AMAX_LAUNCH_H_
#define NIBBLE_KERNELS_CUDA_AMAX_LAUNCH_H_

#include <cuda_runtime_api.h>

#include <cstdint>

#include "base/dtype.h"
#include "kernels/cuda/amax_config.h"

namespace nibble {

// *amax = the largest magnitude of x's `blocks` blocks of 16; infinity or NaN where one is infinite
// or NaN. x is aligned to 16 bytes.
cudaError_t LaunchAmax(DType dtype, const void* x, int64_t blocks, float* amax, int config,
                       cudaStream_t stream);

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CUDA_AMAX_LAUNCH_H_
