// Host side of Dequantize: raw device pointers, a config, a stream. No allocation, no
// synchronisation; may be captured in a graph.
#ifndef NIBBLE_KERNELS_CUDA_DEQUANTIZE_LAUNCH_H_
#define NIBBLE_KERNELS_CUDA_DEQUANTIZE_LAUNCH_H_

#include <cuda_runtime_api.h>

#include "base/dtype.h"
#include "kernels/cuda/dequantize_config.h"
#include "kernels/cuda/packed_args.h"

namespace nibble {

struct DequantizeArgs {
  PackedArgs in;
  void* out = nullptr;  // row-major, aligned to 16 bytes
};

// dtype: bf16 or fp32, of the output. `config` indexes kDequantizeConfigs. cudaErrorInvalidValue
// for an unknown type or config.
cudaError_t LaunchDequantize(DType dtype, const DequantizeArgs& args, int config,
                             cudaStream_t stream);

// The outer decode scales as numbers, for PostScale: one a row where `in` has one amax a row, else
// one.
cudaError_t LaunchGlobalDecodeScale(const PackedArgs& in, float* decode_scale, cudaStream_t stream);

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CUDA_DEQUANTIZE_LAUNCH_H_
