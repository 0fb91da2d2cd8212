// The largest magnitude on the device: one wave of thread blocks strides over the tensor.
#ifndef NIBBLE_KERNELS_CUDA_AMAX_KERNEL_CUH_
#define NIBBLE_KERNELS_CUDA_AMAX_KERNEL_CUH_

#include <cstdint>

#include "kernels/cuda/magnitude.cuh"
#include "kernels/cuda/warp.cuh"

namespace nibble {

// vectors: of 16 bytes. *amax is 0 before.
template <typename T, int kWarps, int kLoads, int kThreadBlocks>
__global__ void __launch_bounds__(kWarps * 32, kThreadBlocks)
    AmaxKernel(const uint4* x, int64_t vectors, float* amax) {
  using M = Magnitude<T>;
  constexpr int kThreads = kWarps * 32;
  constexpr int kTile = kThreads * kLoads;
  uint32_t largest = 0;
  const auto consider = [&](const uint4& v) {
    for (uint32_t word : {v.x, v.y, v.z, v.w}) largest = M::Max(largest, M::Of(word));
  };
  int64_t tile = int64_t{blockIdx.x} * kTile;
  for (; tile + kTile <= vectors; tile += int64_t{gridDim.x} * kTile) {
    const uint4* p = x + tile + threadIdx.x;
    uint4 v[kLoads];
#pragma unroll
    for (int i = 0; i < kLoads; ++i) v[i] = __ldg(p + i * kThreads);
#pragma unroll
    for (int i = 0; i < kLoads; ++i) consider(v[i]);
  }
  for (int64_t i = tile + threadIdx.x; i < vectors; i += kThreads) consider(__ldg(x + i));
  __shared__ uint32_t of_warp[kWarps];
  largest = __reduce_max_sync(kWholeWarp, M::Largest(largest));
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = largest;
  __syncthreads();
  if (threadIdx.x != 0) return;
#pragma unroll
  for (int w = 1; w < kWarps; ++w) largest = max(largest, of_warp[w]);
  AtomicMaxMagnitude(amax, M::ToFloat(largest));
}

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CUDA_AMAX_KERNEL_CUH_
