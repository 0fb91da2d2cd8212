// ModelOpt's multiplier grid on the device: a thread is a block of 16, its magnitudes stay in
// registers.
//
// The pruning argument of scale_sweep.h holds for any set of codes: one that has the code of half
// its scale in the set, not saturated, cannot win; and below the first unsaturated code, going down
// may stop where the largest element's own error exceeds the best loss. So the search goes up from
// the first unsaturated multiplier until nothing more can win, then down from there; loops end for
// a whole warp at once. Losses are approximate to kSweepFilterTolerance; where that cannot tell the
// winner, the definition decides.
#ifndef NIBBLE_KERNELS_CUDA_MULTIPLIER_SEARCH_KERNEL_CUH_
#define NIBBLE_KERNELS_CUDA_MULTIPLIER_SEARCH_KERNEL_CUH_

#include <cstdint>

#include "kernels/cuda/block_load.cuh"
#include "kernels/cuda/multiplier_search_launch.h"
#include "kernels/cuda/warp.cuh"
#include "quant/numerics/block_encode.h"

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

// CheckpointBlockScale where `divisor`, 6 times the global decode scale, and its reciprocal are
// normal and the quotient is not 0: the quotient is corrected twice by its remainder, which makes
// it the correctly rounded one.
__device__ __forceinline__ int MultiplierCode(float block_amax, float divisor, float reciprocal) {
  const float a = fminf(block_amax, MulRn(512.0f, divisor));  // beyond, the scale saturates
  float v = MulRn(a, reciprocal);
  v = FmaRn(FmaRn(-v, divisor, a), reciprocal, v);
  v = FmaRn(FmaRn(-v, divisor, a), reciprocal, v);
  v = fmaxf(v, kE4m3SmallestSubnormal);
  return static_cast<int>(E4m3EncodeMagnitude(v));
}

// SweepLoss, approximate to kSweepFilterTolerance; see there. Without kSaturates no element may
// exceed 6 by more than rounding.
template <bool kSaturates>
__device__ __forceinline__ float MultiplierFilterLoss(const float (&a)[kBlockSize],
                                                      float decode_scale, float reciprocal) {
  float sum[2] = {0.0f, 0.0f};
#pragma unroll
  for (int i = 0; i < kBlockSize; ++i) {
    const float v = MulRn(a[i], reciprocal);
    const float q = kSaturates ? RoundE2m1(v) : RoundE2m1Unsaturated(v, 1.0f);
    const float d = FmaRn(-q, decode_scale, a[i]);
    sum[i % 2] = FmaRn(d, d, sum[i % 2]);
  }
  return AddRn(sum[0], sum[1]);
}

// SweepLoss where the table is prunable.
__device__ __forceinline__ float SweepLossByReciprocal(const float (&a)[kBlockSize],
                                                       float decode_scale, float reciprocal) {
  float sum[2] = {0.0f, 0.0f};
#pragma unroll
  for (int i = 0; i < kBlockSize; ++i) {
    const float d = E2m1Difference(a[i], decode_scale, reciprocal);
    sum[i % 2] = FmaRn(d, d, sum[i % 2]);
  }
  return AddRn(sum[0], sum[1]);
}

// Out of line: blocks that the pruned search does not decide.
__device__ __noinline__ MultiplierWinner SearchByDefinition(const float* a, float amax,
                                                            const MultiplierSearchTables& t,
                                                            const float* multipliers, int count) {
  return MultiplierSearch(a, amax, t.table, t.global_decode_scale, multipliers, count);
}

struct MultiplierCandidate {
  float block_amax = 0.0f;
  int code = 0;
  float loss = FloatFromBits(0x7F800000u);
};

// The two best candidates so far, and the loss of the third. Ties of two are common: a block that
// saturates a little under one scale often comes out the same under twice that scale.
struct MultiplierContest {
  MultiplierCandidate best, second;
  float third = FloatFromBits(0x7F800000u);

  __device__ __forceinline__ void Enter(bool active, const MultiplierCandidate& c) {
    const bool first = active && c.loss < best.loss;
    const bool ahead = active && c.loss < second.loss;
    third = ahead ? second.loss : active ? fminf(third, c.loss) : third;
    second = first ? best : ahead ? c : second;
    best = first ? c : best;
  }
};

// All 32 threads call it. t.table.prunable.
__device__ __forceinline__ MultiplierWinner SearchMultipliers(const float (&a)[kBlockSize],
                                                              float amax,
                                                              const MultiplierSearchTables& t,
                                                              const float* multipliers, int count) {
  constexpr float kSlack = 1.0f + kSweepFilterTolerance;
  const float* scale = t.table.decode_scale;
  const float divisor = MulRn(kE2m1Max, t.global_decode_scale);
  const float reciprocal = DivRn(1.0f, divisor);
  const auto candidate = [&](int i) {
    MultiplierCandidate c;
    c.block_amax = MulRn(amax, multipliers[min(max(i, 0), count - 1)]);
    c.code = MultiplierCode(c.block_amax, divisor, reciprocal);
    return c;
  };
  int saturated = 0;  // so many multipliers' scales do not reach the largest element
  for (bool below = true; __any_sync(kWholeWarp, below);) {
    below = saturated < count && MulRn(kE2m1Max, scale[candidate(saturated).code]) < amax;
    saturated += below;
  }
  MultiplierContest contest;
  int evaluations = 0, last_code = 0;
  uint32_t seen = 0;  // bit j: code last_code - j was there
  bool more = true;
  for (int i = saturated;; ++i) {
    more = more && i < count;
    if (!__any_sync(kWholeWarp, more)) break;
    MultiplierCandidate c = candidate(i);
    const bool fresh = more && c.code != last_code;
    if (fresh) {
      seen = last_code == 0 ? 1u : seen << min(c.code - last_code, 31) | 1u;
      last_code = c.code;
    }
    // E4M3 is linear below 8: there, half a scale is another distance away.
    const bool active = fresh && !(c.code >= 16 && (seen >> 8 & 1u) != 0);
    // Eight codes in a row have half the scale of everything that follows.
    more = more && !((seen & 0xFFu) == 0xFFu && last_code >= 15);
    if (!__any_sync(kWholeWarp, active)) continue;
    c.loss = MultiplierFilterLoss<false>(a, scale[c.code], t.reciprocal[c.code]);
    contest.Enter(active, c);
    evaluations += active;
  }
  MultiplierCandidate &best = contest.best, &second = contest.second;
  last_code = 0;
  bool possible = true;
  for (int i = saturated - 1;; --i) {
    MultiplierCandidate c = candidate(i);
    possible = possible && i >= 0 &&
               !(SweepSaturationBound(amax, scale[c.code]) > MulRn(best.loss, kSlack));
    if (!__any_sync(kWholeWarp, possible)) break;
    const bool fresh = possible && c.code != last_code;
    if (possible && !fresh) {  // the smallest multiplier of a code stands for it
      if (c.code == best.code) best.block_amax = c.block_amax;
      if (c.code == second.code) second.block_amax = c.block_amax;
    }
    last_code = c.code;
    if (!__any_sync(kWholeWarp, fresh)) continue;
    c.loss = MultiplierFilterLoss<true>(a, scale[c.code], t.reciprocal[c.code]);
    contest.Enter(fresh, c);
    evaluations += fresh;
  }
  if (amax == 0.0f) return {0.0f, CheckpointBlockScale(0.0f, t.global_decode_scale), 0.0f, 1};
  // A ratio of scales that underflows stands for 1, which is out of order.
  const bool in_order = MulRn(amax, multipliers[0]) > MulRn(divisor, 0x1p-100f);
  const float near = MulRn(best.loss, kSlack);
  if (!in_order || !(contest.third > near) || best.loss < kSweepFilterFloor) {
    return SearchByDefinition(a, amax, t, multipliers, count);
  }
  best.loss = SweepLossByReciprocal(a, scale[best.code], t.reciprocal[best.code]);
  if (second.loss <= near) {
    second.loss = SweepLossByReciprocal(a, scale[second.code], t.reciprocal[second.code]);
    const bool tie = second.loss == best.loss && second.code < best.code;
    if (second.loss < best.loss || tie) best = second;
  }
  return {best.block_amax, best.code, best.loss, evaluations};
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
  if (args.counts != nullptr) {
    const unsigned sum = __reduce_add_sync(kWholeWarp, evaluations);
    if (threadIdx.x % 32 == 0) {
      atomicAdd(reinterpret_cast<unsigned long long*>(&args.counts->evaluations),
                static_cast<unsigned long long>(sum));
    }
  }
}

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CUDA_MULTIPLIER_SEARCH_KERNEL_CUH_
