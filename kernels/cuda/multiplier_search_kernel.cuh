// ModelOpt's multiplier grid on the device: a thread is a block of 16, its magnitudes stay in
// registers.
//
// The pruning argument of scale_sweep.h holds for any set of codes: one that has the code of half
// its scale in the set, not saturated, cannot win; and below the first unsaturated code, going down
// may stop where the largest element's own error exceeds the best loss. So the search goes up from
// the first unsaturated multiplier, then down from there; loops end for a whole warp at once.
#ifndef NIBBLE_KERNELS_CUDA_MULTIPLIER_SEARCH_KERNEL_CUH_
#define NIBBLE_KERNELS_CUDA_MULTIPLIER_SEARCH_KERNEL_CUH_

#include <cstdint>

#include "kernels/cuda/block_load.cuh"
#include "kernels/cuda/multiplier_search_launch.h"

namespace nibble {

inline constexpr int kMultiplierTableThreads = 128;

static __global__ void MakeMultiplierTables(const float* global_amax, float bound,
                                            MultiplierGrid grid, int count,
                                            MultiplierSearchTables* tables) {
  const float g = *global_amax;
  float* multipliers = reinterpret_cast<float*>(tables + 1);
  bool rising = true;
  for (int i = threadIdx.x; i < count; i += kMultiplierTableThreads) {
    multipliers[i] = MultiplierAt(grid, count, i);
    rising = rising && (i == 0 || multipliers[i] >= MultiplierAt(grid, count, i - 1));
  }
  rising = __syncthreads_and(rising);
  const int k = static_cast<int>(threadIdx.x);
  if (k > kE4m3Codes) return;
  const float s = k == 0 ? 0.0f : SweepDecodeScale(k, g, bound);
  tables->table.decode_scale[k] = s;
  tables->reciprocal[k] = k == 0 ? 0.0f : DivRn(1.0f, s);
  if (k == 0) {
    tables->table.prunable = SweepIsPrunable(g) && rising;
    tables->global_decode_scale = CheckpointGlobalDecodeScale(g, bound);
  }
}

// SweepLoss where the scale and its reciprocal are normal: the quotient is corrected twice by its
// remainder, which makes it the correctly rounded one, and rounded to E2M1 by adding and
// subtracting a number whose last place is the grid's step there. Without kSaturates no element may
// exceed 6 by more than rounding.
template <bool kSaturates>
__device__ __forceinline__ float MultiplierLoss(const float (&a)[kBlockSize], float decode_scale,
                                                float reciprocal) {
  float sum[2] = {0.0f, 0.0f};
#pragma unroll
  for (int i = 0; i < kBlockSize; ++i) {
    float v = MulRn(a[i], reciprocal);
    v = FmaRn(FmaRn(-v, decode_scale, a[i]), reciprocal, v);
    v = FmaRn(FmaRn(-v, decode_scale, a[i]), reciprocal, v);
    if (kSaturates) v = fminf(v, kE2m1Max);
    const uint32_t exponent = max(FloatBits(v) & 0x7F800000u, 0x3F800000u);
    const float step = FloatFromBits(exponent + ((22u << 23) | 0x400000u));
    const float q = SubRn(AddRn(v, step), step);
    const float d = FmaRn(-q, decode_scale, a[i]);
    sum[i % 2] = FmaRn(d, d, sum[i % 2]);
  }
  return AddRn(sum[0], sum[1]);
}

// Out of line: blocks that the pruned search is not made for.
__device__ __noinline__ MultiplierWinner SearchByDefinition(const float* a, float amax,
                                                            const MultiplierSearchTables& t,
                                                            const float* multipliers, int count) {
  return MultiplierSearch(a, amax, t.table, t.global_decode_scale, multipliers, count);
}

// All 32 threads call it. t.table.prunable.
__device__ __forceinline__ MultiplierWinner SearchMultipliers(const float (&a)[kBlockSize],
                                                              float amax,
                                                              const MultiplierSearchTables& t,
                                                              const float* multipliers, int count) {
  constexpr unsigned kWholeWarp = 0xFFFFFFFFu;
  const float* scale = t.table.decode_scale;
  MultiplierWinner best = {0.0f, 0, FloatFromBits(0x7F800000u), 0};
  int last_code = 0, saturated = 0;
  uint32_t seen = 0;  // bit j: code last_code - j was there, unsaturated
  for (int i = 0; i < count; ++i) {
    const float candidate = MulRn(amax, multipliers[i]);
    const int code = CheckpointBlockScale(candidate, t.global_decode_scale);
    const bool reaches = MulRn(kE2m1Max, scale[code]) >= amax;
    if (!reaches) saturated = i + 1;
    const bool fresh = reaches && code != last_code;
    if (fresh) {
      seen = last_code == 0 ? 1u : seen << min(code - last_code, 31) | 1u;
      last_code = code;
    }
    // E4M3 is linear below 8: there, half a scale is another distance away.
    const bool active = fresh && !(code >= 16 && (seen >> 8 & 1u) != 0);
    if (!__any_sync(kWholeWarp, active)) continue;
    const float loss = MultiplierLoss<false>(a, scale[code], t.reciprocal[code]);
    best.evaluations += active;
    if (active && loss < best.loss) best = {candidate, code, loss, best.evaluations};
  }
  last_code = 0;
  bool active = true;
  for (int i = saturated - 1; __any_sync(kWholeWarp, active && i >= 0); --i) {
    const float candidate = MulRn(amax, multipliers[max(i, 0)]);
    const int code = CheckpointBlockScale(candidate, t.global_decode_scale);
    active = active && i >= 0 && !(SweepSaturationBound(amax, scale[code]) > best.loss);
    if (active && code == best.code) best.block_amax = candidate;  // the smallest that gives it
    const bool fresh = active && code != last_code;
    last_code = code;
    if (!__any_sync(kWholeWarp, fresh)) continue;
    const float loss = MultiplierLoss<true>(a, scale[code], t.reciprocal[code]);
    best.evaluations += fresh;
    if (fresh && loss <= best.loss) best = {candidate, code, loss, best.evaluations};
  }
  // Squares that overflow leave nothing to compare; a ratio of scales that underflows stands for 1,
  // which is out of order.
  const float smallest = MulRn(amax, multipliers[0]);
  const bool in_order =
      amax == 0.0f || DivRn(smallest, MulRn(kE2m1Max, t.global_decode_scale)) != 0.0f;
  if (best.code == 0 || !in_order) {
    best = SearchByDefinition(a, amax, t, multipliers, count);
  }
  return best;
}

template <typename T, int kWarps, int kBlocksPerThread>
__global__ void __launch_bounds__(kWarps * 32)
    MultiplierSearchKernel(MultiplierSearchArgs args, int count) {
  constexpr int kThreads = kWarps * 32;
  const auto* tables = static_cast<const MultiplierSearchTables*>(args.workspace);
  const float* multipliers = reinterpret_cast<const float*>(tables + 1);
  __shared__ MultiplierSearchTables t;
  for (int k = threadIdx.x; k <= kE4m3Codes; k += kThreads) {
    t.table.decode_scale[k] = tables->table.decode_scale[k];
    t.reciprocal[k] = tables->reciprocal[k];
  }
  if (threadIdx.x == 0) {
    t.table.prunable = tables->table.prunable;
    t.global_decode_scale = tables->global_decode_scale;
  }
  __syncthreads();
  const int64_t base = int64_t{blockIdx.x} * (kThreads * kBlocksPerThread);
  unsigned evaluations = 0;
  for (int i = 0; i < kBlocksPerThread; ++i) {
    const int64_t own = base + i * kThreads + threadIdx.x;
    const bool valid = own < args.blocks;
    const int64_t b = valid ? own : args.blocks - 1;
    float a[kBlockSize];
    LoadBlock<T>(args.x, b, a);
    float amax = 0.0f;
#pragma unroll
    for (int j = 0; j < kBlockSize; ++j) {
      a[j] = Abs(a[j]);
      amax = fmaxf(amax, a[j]);
    }
    const MultiplierWinner winner = t.table.prunable
                                        ? SearchMultipliers(a, amax, t, multipliers, count)
                                        : SearchByDefinition(a, amax, t, multipliers, count);
    if (valid) {
      args.code[b] = static_cast<uint8_t>(winner.code);
      args.best_amax[b] = winner.block_amax;
      args.loss[b] = winner.loss;
      evaluations += static_cast<unsigned>(winner.evaluations);
    }
  }
  if (args.evaluations != nullptr) {
    const unsigned sum = __reduce_add_sync(0xFFFFFFFFu, evaluations);
    if (threadIdx.x % 32 == 0) {
      atomicAdd(reinterpret_cast<unsigned long long*>(args.evaluations),
                static_cast<unsigned long long>(sum));
    }
  }
}

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CUDA_MULTIPLIER_SEARCH_KERNEL_CUH_
