#include <algorithm>

#include "kernels/cuda/amax_launch.h"
#include "kernels/cuda/block_load.cuh"

namespace nibble {
namespace {

constexpr int kThreads = 256;

// Magnitudes compare as integers, NaN above infinity.
template <typename T>
__global__ void __launch_bounds__(kThreads) AmaxKernel(const void* x, int64_t blocks, float* amax) {
  unsigned largest = 0;
  for (int64_t b = blockIdx.x * int64_t{kThreads} + threadIdx.x; b < blocks;
       b += int64_t{gridDim.x} * kThreads) {
    float a[kBlockSize];
    LoadBlock<T>(x, b, a);
#pragma unroll
    for (int i = 0; i < kBlockSize; ++i) largest = max(largest, FloatBits(a[i]) & 0x7FFFFFFFu);
  }
  largest = __reduce_max_sync(0xFFFFFFFFu, largest);
  if (threadIdx.x % 32 == 0) atomicMax(reinterpret_cast<unsigned*>(amax), largest);
}

// A thread block is a row.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    RowAmaxKernel(const void* x, int64_t blocks_per_row, float* amax) {
  __shared__ unsigned warps[kThreads / 32];
  const int64_t first = static_cast<int64_t>(blockIdx.x) * blocks_per_row;
  unsigned largest = 0;
  for (int64_t b = threadIdx.x; b < blocks_per_row; b += kThreads) {
    float a[kBlockSize];
    LoadBlock<T>(x, first + b, a);
#pragma unroll
    for (int i = 0; i < kBlockSize; ++i) largest = max(largest, FloatBits(a[i]) & 0x7FFFFFFFu);
  }
  largest = __reduce_max_sync(0xFFFFFFFFu, largest);
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = largest;
  __syncthreads();
  if (threadIdx.x >= 32) return;
  largest = threadIdx.x < kThreads / 32 ? warps[threadIdx.x] : 0;
  largest = __reduce_max_sync(0xFFFFFFFFu, largest);
  if (threadIdx.x == 0) amax[blockIdx.x] = FloatFromBits(largest);
}

}  // namespace

cudaError_t LaunchRowAmax(DType dtype, const void* x, int64_t rows, int64_t cols, float* amax,
                          cudaStream_t stream) {
  if (rows == 0) return cudaSuccess;
  return DispatchInput(dtype, [&](auto type) {
    RowAmaxKernel<decltype(type)>
        <<<static_cast<unsigned>(rows), kThreads, 0, stream>>>(x, cols / kBlockSize, amax);
  });
}

cudaError_t LaunchAmax(DType dtype, const void* x, int64_t blocks, float* amax,
                       cudaStream_t stream) {
  if (cudaError_t error = cudaMemsetAsync(amax, 0, sizeof(*amax), stream)) return error;
  if (blocks == 0) return cudaSuccess;
  constexpr int64_t kMostThreadBlocks = 4096;
  const int64_t grid = std::min((blocks + kThreads - 1) / kThreads, kMostThreadBlocks);
  return DispatchInput(dtype, [&](auto type) {
    AmaxKernel<decltype(type)>
        <<<static_cast<unsigned>(grid), kThreads, 0, stream>>>(x, blocks, amax);
  });
}

}  // namespace nibble
