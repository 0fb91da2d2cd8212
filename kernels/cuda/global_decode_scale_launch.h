// The outer decode scales of a packed tensor as numbers, for PostScale. No allocation, no
// synchronisation; may be captured in a graph.
#ifndef NIBBLE_KERNELS_CUDA_GLOBAL_DECODE_SCALE_LAUNCH_H_
#define NIBBLE_KERNELS_CUDA_GLOBAL_DECODE_SCALE_LAUNCH_H_

#include <cuda_runtime_api.h>

#include "kernels/cuda/packed_args.h"

namespace nibble {

// decode_scale: one a row where `in` has one amax a row, else one.
cudaError_t LaunchGlobalDecodeScale(const PackedArgs& in, float* decode_scale, cudaStream_t stream);

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CUDA_GLOBAL_DECODE_SCALE_LAUNCH_H_
