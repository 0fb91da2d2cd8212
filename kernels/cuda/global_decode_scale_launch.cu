#include "kernels/cuda/global_decode_scale_launch.h"
#include "kernels/cuda/packed_decode.cuh"

namespace nibble {
namespace {

constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads)
    GlobalDecodeScaleKernel(PackedArgs in, int64_t count, float* decode_scale) {
  const int64_t row = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (row < count) decode_scale[row] = GlobalDecodeScale(in, row);
}

}  // namespace

cudaError_t LaunchGlobalDecodeScale(const PackedArgs& in, float* decode_scale,
                                    cudaStream_t stream) {
  const int64_t count = in.amax_per_row ? in.rows : 1;
  if (count == 0) return cudaSuccess;
  GlobalDecodeScaleKernel<<<static_cast<unsigned>((count + kThreads - 1) / kThreads), kThreads, 0,
                            stream>>>(in, count, decode_scale);
  return cudaGetLastError();
}

}  // namespace nibble
