// Error feedback on the device: a thread is a block of 16, a thread block's threads go down the
// rows of one slice and share what that slice needs. The definition's own operations, in its order.
#ifndef NIBBLE_KERNELS_CUDA_HESSIAN_FEEDBACK_KERNEL_CUH_
#define NIBBLE_KERNELS_CUDA_HESSIAN_FEEDBACK_KERNEL_CUH_

#include <cstdint>

#include "kernels/cuda/block_load.cuh"
#include "kernels/cuda/hessian_feedback_launch.h"

namespace nibble {

// By all threads of a thread block.
template <int kThreads, typename T>
__device__ __forceinline__ void CopyToShared(const T& from, T& to) {
  static_assert(sizeof(T) % sizeof(uint32_t) == 0);
  for (int i = threadIdx.x; i < static_cast<int>(sizeof(T) / sizeof(uint32_t)); i += kThreads) {
    reinterpret_cast<uint32_t*>(&to)[i] = reinterpret_cast<const uint32_t*>(&from)[i];
  }
}

template <typename T, int kWarps>
__global__ void __launch_bounds__(kWarps * 32) HessianFeedbackKernel(HessianFeedbackArgs args) {
  constexpr int kThreads = kWarps * 32;
  __shared__ SweepTable table;
  __shared__ HessianFactor factor;
  __shared__ HessianFeedback feedback;
  const int64_t slice = blockIdx.x % args.slices;
  CopyToShared<kThreads>(*args.table, table);
  CopyToShared<kThreads>(args.factors[slice], factor);
  CopyToShared<kThreads>(args.feedback[slice], feedback);
  __syncthreads();
  const int64_t row = blockIdx.x / args.slices * kThreads + threadIdx.x;
  if (row >= args.rows) return;
  const int64_t b = row * args.slices + slice;
  float w[kBlockSize];
  LoadBlock<T>(args.x, b, w);
  const FeedbackWinner winner = HessianFeedbackSearch(w, args.code[b], args.loss[b],
                                                      args.packed + 8 * b, table, factor, feedback);
  if (winner.code == 0) return;
  args.code[b] = static_cast<uint8_t>(winner.code);
  args.loss[b] = winner.loss;
  uint2 words = {0, 0};
#pragma unroll
  for (int i = 0; i < kBlockSize / 2; ++i) {
    words.x |= uint32_t{winner.codes[i]} << (4 * i);
    words.y |= uint32_t{winner.codes[i + kBlockSize / 2]} << (4 * i);
  }
  reinterpret_cast<uint2*>(args.packed)[b] = words;
}

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CUDA_HESSIAN_FEEDBACK_KERNEL_CUH_
