// The scale sweep on the device: a thread is a block of 16, its magnitudes stay in registers.
//
// A candidate costs six operations an element: the quotient by a reciprocal, its rounding to E2M1
// by two fused operations, the difference and its square. That is approximate to
// kSweepFilterTolerance, so the search keeps a mask of the candidates that may be the winner and
// decides among them by the definition's own arithmetic. Loops end for a whole warp at once:
// threads that leave one early would make the warp run what follows once for each of them.
#ifndef NIBBLE_KERNELS_CUDA_SCALE_SWEEP_KERNEL_CUH_
#define NIBBLE_KERNELS_CUDA_SCALE_SWEEP_KERNEL_CUH_

#include <cstdint>

#include "kernels/cuda/block_load.cuh"
#include "kernels/cuda/scale_sweep_launch.h"
#include "quant/numerics/scale_sweep.h"

namespace nibble {

inline constexpr unsigned kWholeWarp = 0xFFFFFFFFu;

// One thread a code.
__global__ void MakeScaleSweepTables(const float* global_amax, float bound,
                                     ScaleSweepTables* tables) {
  const int k = static_cast<int>(threadIdx.x);
  if (k > kE4m3Codes) return;
  const float g = *global_amax;
  const float s = k == 0 ? 0.0f : SweepDecodeScale(k, g, bound);
  tables->table.decode_scale[k] = s;
  tables->reciprocal[k] = k == 0 ? 0.0f : DivRn(1.0f, s);
  tables->block_amax[k] = SweepBlockAmax(k, g, bound);
  if (k == 0) tables->table.prunable = SweepIsPrunable(g);
}

// The E2M1 magnitude nearest to v, ties to either side: 2^22 * max(v, 1) has its last place at the
// grid's step at v. (Just above 1, since below 2^22 the last place would be half a step.)
__device__ __forceinline__ float RoundE2m1EitherWay(float v) {
  const float m = fmaxf(v, 1.0f + 0x1p-22f);
  return FmaRn(m, 0x1p22f, FmaRn(m, -0x1p22f, v));
}

// Approximate to kSweepFilterTolerance. Without kClamp no element may saturate by more than
// rounding.
template <bool kClamp>
__device__ __forceinline__ float FilterLoss(const float (&a)[kBlockSize], float decode_scale,
                                            float reciprocal) {
  float sum[2] = {0.0f, 0.0f};
#pragma unroll
  for (int i = 0; i < kBlockSize; ++i) {
    float v = MulRn(a[i], reciprocal);
    if (kClamp) v = fminf(v, kE2m1Max);
    const float d = FmaRn(-RoundE2m1EitherWay(v), decode_scale, a[i]);
    sum[i % 2] = FmaRn(d, d, sum[i % 2]);
  }
  return AddRn(sum[0], sum[1]);
}

// SweepLoss, the quotient corrected twice by its remainder: with the correctly rounded reciprocal
// the first correction makes it faithful and the second correctly rounded.
__device__ __forceinline__ float DefinitionLoss(const float (&a)[kBlockSize], float decode_scale,
                                                float reciprocal) {
  float sum[2] = {0.0f, 0.0f};
#pragma unroll
  for (int i = 0; i < kBlockSize; ++i) {
    float v = MulRn(a[i], reciprocal);
    v = FmaRn(FmaRn(-v, decode_scale, a[i]), reciprocal, v);
    v = FmaRn(FmaRn(-v, decode_scale, a[i]), reciprocal, v);
    v = fminf(v, kE2m1Max);
    const uint32_t exponent = max(FloatBits(v) & 0x7F800000u, 0x3F800000u);
    const float magic = FloatFromBits(exponent + ((22u << 23) | 0x400000u));
    const float q = SubRn(AddRn(v, magic), magic);
    const float d = FmaRn(-q, decode_scale, a[i]);
    sum[i % 2] = FmaRn(d, d, sum[i % 2]);
  }
  return AddRn(sum[0], sum[1]);
}

// Out of line: the rare blocks whose squares over- or underflow or whose walk is long, and tables
// that must not be pruned.
__device__ __noinline__ SweepWinner SweepByDefinition(const float* a, float amax,
                                                      const SweepTable& table, bool exhaustive) {
  return exhaustive ? SweepExhaustive(a, table) : SweepPruned(a, amax, table);
}

// The candidates of one block that may still be the winner.
struct Contenders {
  float best = FloatFromBits(0x7F800000u);
  uint32_t mask = 0;  // bit i: code top - i
  int top;

  __device__ explicit Contenders(int top) : top(top) {}

  __device__ __forceinline__ float threshold() const {
    return MulRn(best, 1.0f + kSweepFilterTolerance);
  }
  __device__ __forceinline__ void Consider(bool active, float loss, int k) {
    if (!active || !(loss <= threshold())) return;
    if (MulRn(loss, 1.0f + kSweepFilterTolerance) < best) mask = 0;
    mask |= 1u << (top - k);
    best = fminf(best, loss);
  }
};

// All 32 threads call it; those without a block of their own pass any.
__device__ __forceinline__ SweepWinner SearchBlock(const float (&a)[kBlockSize], float amax,
                                                   const ScaleSweepTables& t, float unit) {
  const float* scale = t.table.decode_scale;
  int evaluations = 0;
  int first = max(static_cast<int>(E4m3Encode(fminf(MulRn(amax, unit), kE4m3Max))), 1);
  if (MulRn(kE2m1Max, scale[first]) < amax) ++first;
  Contenders contenders(SweepWindowEnd(first));
  const bool nonzero = amax > 0.0f;
  if (__all_sync(kWholeWarp, first >= 8 && first + 7 <= kE4m3Codes)) {
#pragma unroll 2
    for (int j = 0; j < 8; ++j) {
      const int k = first + j;
      contenders.Consider(true, FilterLoss<false>(a, scale[k], t.reciprocal[k]), k);
    }
    evaluations = 8;
  } else {
    for (int k = first; __any_sync(kWholeWarp, k <= contenders.top); ++k) {
      const int in_table = min(k, kE4m3Codes);
      const bool active = k <= contenders.top;
      contenders.Consider(active, FilterLoss<false>(a, scale[in_table], t.reciprocal[in_table]), k);
      evaluations += active;
    }
  }
  bool active = nonzero, too_long = false;
  for (int k = first - 1;; --k) {
    const int in_table = max(k, 1);
    active =
        active && k >= 1 && !(SweepSaturationBound(amax, scale[in_table]) > contenders.threshold());
    if (active && contenders.top - k > 31) {
      too_long = true;
      active = false;
    }
    if (!__any_sync(kWholeWarp, active)) break;
    contenders.Consider(active, FilterLoss<true>(a, scale[in_table], t.reciprocal[in_table]), k);
    evaluations += active;
  }
  SweepWinner winner = {0, FloatFromBits(0x7F800000u), evaluations};
  uint32_t mask = nonzero ? contenders.mask : 0;
  while (__any_sync(kWholeWarp, mask != 0)) {  // from the smallest code up
    const int bit = 31 - __clz(static_cast<int>(mask | 1u));
    const int k = contenders.top - bit;
    const float loss = DefinitionLoss(a, scale[max(k, 1)], t.reciprocal[max(k, 1)]);
    if (mask != 0 && loss < winner.loss) {
      winner.code = k;
      winner.loss = loss;
    }
    mask &= ~(1u << bit);
  }
  if (!nonzero) {
    winner = {1, 0.0f, 0};
  } else if (winner.code == 0 || too_long || winner.loss < kSweepFilterFloor) {
    winner = SweepByDefinition(a, amax, t.table, false);
  }
  return winner;
}

template <typename T, int kWarps, int kBlocksPerThread>
__global__ void __launch_bounds__(kWarps * 32)
    ScaleSweepKernel(ScaleSweepArgs args, const ScaleSweepTables* tables) {
  __shared__ ScaleSweepTables t;
  for (int k = threadIdx.x; k <= kE4m3Codes; k += kWarps * 32) {
    t.table.decode_scale[k] = tables->table.decode_scale[k];
    t.reciprocal[k] = tables->reciprocal[k];
    t.block_amax[k] = tables->block_amax[k];
  }
  if (threadIdx.x == 0) t.table.prunable = tables->table.prunable;
  __syncthreads();
  const float unit = DivRn(kE4m3SmallestSubnormal, MulRn(kE2m1Max, t.table.decode_scale[1]));
  const bool by_definition = args.exhaustive || !t.table.prunable;
  const int64_t base = static_cast<int64_t>(blockIdx.x) * (kWarps * 32 * kBlocksPerThread);
  unsigned long long evaluations = 0;
  for (int i = 0; i < kBlocksPerThread; ++i) {
    const int64_t own = base + i * (kWarps * 32) + static_cast<int>(threadIdx.x);
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
    SweepWinner winner;
    if (by_definition) {
      const bool all_zero = amax == 0.0f && !args.exhaustive;
      winner = all_zero ? SweepWinner{1, 0.0f, 0} : SweepByDefinition(a, amax, t.table, true);
    } else {
      winner = SearchBlock(a, amax, t, unit);
    }
    if (valid) {
      args.code[b] = static_cast<uint8_t>(winner.code);
      args.best_amax[b] = t.block_amax[winner.code];
      args.loss[b] = winner.loss;
      evaluations += winner.evaluations;
    }
  }
  if (args.evaluations != nullptr) {
    const unsigned sum = __reduce_add_sync(kWholeWarp, static_cast<unsigned>(evaluations));
    if (threadIdx.x % 32 == 0) {
      atomicAdd(reinterpret_cast<unsigned long long*>(args.evaluations),
                static_cast<unsigned long long>(sum));
    }
  }
}

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CUDA_SCALE_SWEEP_KERNEL_CUH_
