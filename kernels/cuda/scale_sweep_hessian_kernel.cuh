// The Hessian sweep on the device: a thread is a row, a warp 32 rows of one slice, so that all its
// threads share the slice's factor.
//
// Candidates are evaluated kBatch codes at a time by the definition's own operations, in its order:
// a broadcast from shared memory costs the SM as much as a multiplication of four warps, hence each
// element of the factor is loaded once for kBatch uses. Only the quotient is found otherwise, and
// is the same number. Loops end for a whole warp at once: threads that leave one early would make
// the warp run what follows once for each of them.
#ifndef NIBBLE_KERNELS_CUDA_SCALE_SWEEP_HESSIAN_KERNEL_CUH_
#define NIBBLE_KERNELS_CUDA_SCALE_SWEEP_HESSIAN_KERNEL_CUH_

#include <cstdint>

#include "kernels/cuda/block_load.cuh"
#include "kernels/cuda/scale_sweep_hessian_launch.h"
#include "kernels/cuda/warp.cuh"
#include "quant/numerics/block_encode.h"
#include "quant/numerics/hessian_sweep.h"

namespace nibble {

inline constexpr int kHessianBatch = 4;

// The code near which the filter scales every block to begin; see scale_sweep_hessian_filter.cuh.
inline constexpr int kHessianPivot = 40;

// The filter multiplies by reciprocals. For all weights of a 16-bit type the product falls on the
// same side of every tie of E2M1 as the correctly rounded quotient if reciprocals and weights are
// first moved by a few last places. Only weights next to products of a scale and a tie matter (few,
// for 16-bit types; a scale and its double have the same), so this tries some ways to move the
// eight reciprocals, and finds for each such weight the least move that is right for all eight. One
// of these patterns suffices for every g of bf16 or fp16; returns its index, or -1 where none does.
//
// Called by all threads of a thread block, at least 56; results are in shared memory.
inline constexpr int kHessianPatterns = 4;
struct HessianTies {
  float weight[56];  // next to tie * scale; 0 if there is none
  bool up[56];       // whether its quotient rounds up
  float move[56];    // weight + move * weight decides as the quotient does
};
__device__ __forceinline__ float HessianFilterReciprocal(float s, int code, int pattern) {
  constexpr int8_t kMoves[kHessianPatterns][8] = {{8, -8, 8, 0, 0, 0, 0, 0},
                                                  {16, -16, 16, 8, 0, -8, 8, 16},
                                                  {16, 16, 8, -8, -16, 0, -8, 16},
                                                  {0, -16, 0, -8, -8, 8, -16, -8}};
  return FloatFromBits(FloatBits(DivRn(1.0f, s)) + kMoves[pattern][code % 8]);
}
// Index of a weight of `bits` significand bits among those of its binade.
__device__ __forceinline__ int HessianMantissa(float w, int bits) {
  return static_cast<int>((FloatBits(w) & 0x7FFFFFu) >> (24 - bits));
}
__device__ __forceinline__ int SolveHessianTies(const float* decode_scale, int bits,
                                                HessianTies& ties) {
  const int own = static_cast<int>(threadIdx.x);
  const auto tie_of = [](int i) {
    constexpr float kTies[7] = {0.25f, 0.75f, 1.25f, 1.75f, 2.5f, 3.5f, 5.0f};
    return kTies[i / 8];
  };
  const auto scale_of = [&](int i) { return decode_scale[kHessianPivot + i % 8]; };
  if (own < 56) {
    constexpr uint32_t kNear = 256;  // last places; moves are less than 50 each
    const uint32_t unused = (1u << (24 - bits)) - 1;
    const uint32_t product = FloatBits(MulRn(tie_of(own), scale_of(own)));
    const uint32_t nearest = (product + unused / 2 + 1) & ~unused;
    const bool near = max(nearest, product) - min(nearest, product) <= kNear;
    ties.weight[own] = near ? FloatFromBits(nearest) : 0.0f;
    ties.up[own] = E2m1Index(DivRn(FloatFromBits(nearest), scale_of(own))) > own / 8;
  }
  __syncthreads();
  const int mantissa = own < 56 ? HessianMantissa(ties.weight[own], bits) : 0;
  for (int pattern = 0; pattern < kHessianPatterns; ++pattern) {
    bool solved = own >= 56 || ties.weight[own] == 0.0f;
    for (int move = 0; move <= 16 && !solved; ++move) {  // 0, 1, -1, 2, ...
      const float by = static_cast<float>((move + 1) / 2 * (move % 2 == 0 ? -4 : 4)) * 0x1p-23f;
      bool right = true;
      for (int i = 0; i < 56 && right; ++i) {
        const float w = ties.weight[i];
        if (w == 0.0f || HessianMantissa(w, bits) != mantissa) continue;
        const float side =
            FmaRn(FmaRn(w, by, w), HessianFilterReciprocal(scale_of(i), i, pattern), -tie_of(i));
        right = ties.up[i] ? side > 0.0f : side < 0.0f;
      }
      if (right) ties.move[own] = by;
      solved = right;
    }
    if (__syncthreads_and(solved)) return pattern;
  }
  return -1;
}

// The last thread block makes the tables, a thread a code; the others a slice each, with a warp.
// `bits`: of the significands of the input, or 0 where there is no filter.
inline constexpr int kHessianPrepareThreads = 128;
__global__ void __launch_bounds__(kHessianPrepareThreads)
    PrepareHessianSweep(ScaleSweepHessianArgs args, int bits) {
  const int thread = static_cast<int>(threadIdx.x);
  if (blockIdx.x == args.slices) {
    __shared__ float decode_scale[kE4m3Codes + 1];
    __shared__ HessianTies ties;
    ScaleSweepHessianTables& tables = *args.tables;
    const float g = *args.global_amax;
    const bool prunable = SweepIsPrunable(g);
    const int k = thread;
    if (k <= kE4m3Codes) {
      const float s = k == 0 ? 0.0f : SweepDecodeScale(k, g, args.bound);
      decode_scale[k] = s;
      tables.table.decode_scale[k] = s;
      tables.reciprocal[k] = k == 0 ? 0.0f : DivRn(1.0f, s);
      tables.block_amax[k] = SweepBlockAmax(k, g, args.bound);
    }
    for (int i = thread; i < 1 << kHessianMoveBits; i += kHessianPrepareThreads)
      tables.move[i] = 0.0f;
    __syncthreads();
    const bool filter = bits != 0 && prunable && !args.exhaustive;
    const int pattern = filter ? SolveHessianTies(decode_scale, bits, ties) : -1;
    if (thread == 0) {
      tables.table.prunable = prunable;
      tables.filter_exponent = static_cast<int>(FloatBits(decode_scale[kHessianPivot]) >> 23) - 127;
      tables.filtered = pattern >= 0;
      tables.unresolved = 0;
    }
    if (pattern < 0) return;
    if (k >= 8 && k <= kE4m3Codes) {
      tables.filter_reciprocal[k] = HessianFilterReciprocal(decode_scale[k], k, pattern);
    }
    if (thread < 56 && ties.weight[thread] != 0.0f) {
      tables.move[HessianMantissa(ties.weight[thread], bits)] = ties.move[thread];
    }
    return;
  }
  const HessianFactor& factor = args.factors[blockIdx.x];
  HessianSlice& slice = args.prepared[blockIdx.x];
  for (int i = thread; i < kBlockSize * kBlockSize; i += kHessianPrepareThreads) {
    slice.column[i / kBlockSize][i % kBlockSize] = factor.lower[i % kBlockSize][i / kBlockSize];
  }
  if (thread < kBlockSize) slice.element_bound[thread] = factor.element_bound[thread];
  if (thread >= 32) return;
  uint32_t largest = 0;
  for (int i = thread; i < kBlockSize * kBlockSize; i += 32) {
    largest = max(largest, FloatBits((&factor.lower[0][0])[i]) & 0x7FFFFFFFu);
  }
  largest = __reduce_max_sync(kWholeWarp, largest) >> 23;
  constexpr int kUnfit = 1000;
  const int exponent = largest > 60 && largest < 190 ? static_cast<int>(largest) - 126 : kUnfit;
  const float normalize =
      exponent == kUnfit ? 0.0f : FloatFromBits(static_cast<uint32_t>(127 - exponent) << 23);
  float frobenius = 0.0f;
  for (int half = 0; half < 2; ++half) {
    for (int pair = 0; pair < 2; ++pair) {
      uint32_t terms[2] = {0, 0};
      for (int i = 0; i < 2; ++i) {
        const int row = thread % 4 * 4 + pair * 2 + i, column = thread / 4 + 8 * half;
        const float entry = MulRn(factor.lower[row][column], normalize);
        frobenius = FmaRn(entry, entry, frobenius);
        const uint16_t high = F16FromFloat(entry);
        const uint16_t low = F16FromFloat(SubRn(entry, FloatFromF16(high)));
        terms[0] |= uint32_t{high} << (16 * i);
        terms[1] |= uint32_t{low} << (16 * i);
      }
      slice.fragment[half * 2 + pair][thread] = terms[0];
      slice.fragment[4 + half * 2 + pair][thread] = terms[1];
    }
  }
  for (int distance = 16; distance > 0; distance /= 2) {
    frobenius = AddRn(frobenius, __shfl_xor_sync(kWholeWarp, frobenius, distance));
  }
  if (thread == 0) {
    slice.eigenvalue_bound = factor.eigenvalue_bound;
    slice.exponent = exponent;
    slice.slack = frobenius * (513.0f * 1.1714f * 1.01f * 0x1p-22f);
    slice.floor = frobenius * (513.0f * 17.0f * 1.01f * 0x1p-46f);
  }
}

// HessianDifference where the table is prunable.
__device__ __forceinline__ float HessianDifferenceByReciprocal(float w, float decode_scale,
                                                               float reciprocal) {
  const float d = E2m1Difference(Abs(w), decode_scale, reciprocal);
  return FloatFromBits(FloatBits(d) ^ (FloatBits(w) & 0x80000000u));
}

// Losses of codes k[0..3] in HessianLoss's order, and plain sums of d * d for the doubling bound.
__device__ __forceinline__ void HessianBatchLoss(
    const float (&w)[kBlockSize], const int (&k)[kHessianBatch], const ScaleSweepHessianTables& t,
    const HessianSlice& factor, float (&loss)[kHessianBatch], float (&squares)[kHessianBatch]) {
  float d[kHessianBatch][kBlockSize];
#pragma unroll
  for (int c = 0; c < kHessianBatch; ++c) {
    const float s = t.table.decode_scale[k[c]], r = t.reciprocal[k[c]];
    loss[c] = 0.0f;
    squares[c] = 0.0f;
#pragma unroll
    for (int i = 0; i < kBlockSize; ++i) {
      d[c][i] = HessianDifferenceByReciprocal(w[i], s, r);
      squares[c] = FmaRn(d[c][i], d[c][i], squares[c]);
    }
  }
#pragma unroll
  for (int i = kBlockSize - 1; i >= 0; --i) {
    float z[kHessianBatch];
#pragma unroll
    for (int j4 = i / 4 * 4; j4 < kBlockSize; j4 += 4) {
      const float4 four = *reinterpret_cast<const float4*>(&factor.column[i][j4]);
      const float entries[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
      for (int j = j4 < i ? i : j4; j < j4 + 4; ++j) {
#pragma unroll
        for (int c = 0; c < kHessianBatch; ++c) {
          z[c] = j == i ? MulRn(entries[j - j4], d[c][j]) : FmaRn(entries[j - j4], d[c][j], z[c]);
        }
      }
    }
#pragma unroll
    for (int c = 0; c < kHessianBatch; ++c) loss[c] = FmaRn(z[c], z[c], loss[c]);
  }
}

// Adds what the threads of a warp counted.
__device__ __forceinline__ void AddHessianCounts(SweepCounts* counts, unsigned evaluations,
                                                 unsigned near_ties) {
  if (counts == nullptr) return;
  evaluations = __reduce_add_sync(kWholeWarp, evaluations);
  near_ties = __reduce_add_sync(kWholeWarp, near_ties);
  if (threadIdx.x % 32 != 0) return;
  atomicAdd(reinterpret_cast<unsigned long long*>(&counts->evaluations),
            static_cast<unsigned long long>(evaluations));
  if (near_ties == 0) return;
  atomicAdd(reinterpret_cast<unsigned long long*>(&counts->near_ties),
            static_cast<unsigned long long>(near_ties));
}

struct HessianSearch {
  float best = FloatFromBits(0x7F800000u);
  int code = 0;
  int evaluations = 0;
  bool near_tie = false;

  // As in HessianSweepPruned: of equal losses the smaller code's.
  __device__ __forceinline__ void Take(bool active, int k, float loss) {
    if (!active) return;
    ++evaluations;
    if (loss < best || (loss == best && k < code)) {
      best = loss;
      code = k;
    }
  }
};

// HessianSweepExhaustive for every `valid` thread.
__device__ __forceinline__ void SearchHessianExhaustive(bool valid, const float (&w)[kBlockSize],
                                                        const ScaleSweepHessianTables& t,
                                                        const HessianSlice& factor,
                                                        HessianSearch& search) {
  float runner_up = FloatFromBits(0x7F800000u);
  for (int base = 1; base <= kE4m3Codes; base += kHessianBatch) {
    int k[kHessianBatch];
    float loss[kHessianBatch], squares[kHessianBatch];
#pragma unroll
    for (int c = 0; c < kHessianBatch; ++c) k[c] = min(base + c, kE4m3Codes);
    HessianBatchLoss(w, k, t, factor, loss, squares);
#pragma unroll
    for (int c = 0; c < kHessianBatch; ++c) {
      if (!valid || base + c > kE4m3Codes) continue;
      // The first loss stands even where it is infinite or NaN.
      if (k[c] == 1 || loss[c] < search.best) {
        if (k[c] != 1) runner_up = search.best;
        search.best = loss[c];
        search.code = k[c];
      } else if (loss[c] < runner_up) {
        runner_up = loss[c];
      }
    }
  }
  if (valid) {
    search.evaluations = kE4m3Codes;
    search.near_tie = runner_up <= MulRn(search.best, kSweepNearTie);
  }
}

// HessianSweepPruned's three steps, in batches: from the first unsaturated code, down while a
// saturated element alone does not cost more than the best, up while the doubling argument and the
// smallest eigenvalue do not.
__device__ __forceinline__ void SearchHessianPruned(bool valid, const float (&w)[kBlockSize],
                                                    float amax, const ScaleSweepHessianTables& t,
                                                    const HessianSlice& factor,
                                                    HessianSearch& search) {
  enum class Step { kWindow, kDown, kUp };
  const float* scale = t.table.decode_scale;
  float largest_bound = 0.0f;  // of the elements that saturate first
#pragma unroll
  for (int i = 0; i < kBlockSize; ++i) {
    if (Abs(w[i]) == amax) largest_bound = fmaxf(largest_bound, factor.element_bound[i]);
  }
  const int first = SweepFirstUnsaturated(amax, t.table);
  const int window_end = SweepWindowEnd(first);
  const float all_zero = MulRn(4.0f, amax);
  float squares[2][kHessianBatch] = {};  // by code - first, modulo 8
  bool down = valid, up = valid;
  int idle = 0;  // batches of the way up without a candidate, one after another
  Step step = Step::kWindow;
  int offset = 0;  // of the batch from `first`; the same for the whole warp
  while (true) {
    unsigned active = 0;  // one bit a code of the batch
    const int base = first + offset;
    const int half = (offset / kHessianBatch) & 1;
    switch (step) {
      case Step::kWindow:
#pragma unroll
        for (int c = 0; c < kHessianBatch; ++c) {
          if (valid && base + c <= window_end) active |= 1u << c;
        }
        if (!__any_sync(kWholeWarp, active)) {
          step = Step::kDown;
          offset = -kHessianBatch;
          continue;
        }
        break;
      case Step::kDown:
#pragma unroll
        for (int c = kHessianBatch - 1; c >= 0; --c) {
          const int k = base + c;
          const float d = FmaRn(-kE2m1Max, scale[min(max(k, 1), kE4m3Codes)], amax);
          down = down && k >= 1 &&
                 !HessianBoundExceeds(MulRn(largest_bound, MulRn(d, d)), search.best);
          if (down && k <= kE4m3Codes) active |= 1u << c;
        }
        if (!__any_sync(kWholeWarp, active)) {
          step = Step::kUp;
          offset = 2 * kHessianBatch;
          continue;
        }
        break;
      case Step::kUp:
#pragma unroll
        for (int c = 0; c < kHessianBatch; ++c) {
          const int k = base + c;
          const float bound =
              MulRn(factor.eigenvalue_bound, half == 0 ? squares[0][c] : squares[1][c]);
          up = up && k <= kE4m3Codes;
          if (up && k > window_end && !HessianBoundExceeds(bound, search.best)) active |= 1u << c;
          if (up && scale[min(k, kE4m3Codes)] >= all_zero) up = k <= window_end;
        }
        if (!__any_sync(kWholeWarp, active)) {
          // Two in a row are a whole doubling: the bounds of what follows are the same.
          if (++idle >= 2 && !__any_sync(kWholeWarp, valid && base <= window_end)) return;
          if (!__any_sync(kWholeWarp, up)) return;
          offset += kHessianBatch;
          continue;
        }
        idle = 0;
        break;
    }
    int k[kHessianBatch];
    float loss[kHessianBatch], sums[kHessianBatch];
#pragma unroll
    for (int c = 0; c < kHessianBatch; ++c) k[c] = min(max(base + c, 1), kE4m3Codes);
    HessianBatchLoss(w, k, t, factor, loss, sums);
#pragma unroll
    for (int c = 0; c < kHessianBatch; ++c) {
      const bool taken = (active >> c & 1) != 0;
      search.Take(taken, k[c], loss[c]);
      if (taken && step != Step::kDown) (half == 0 ? squares[0][c] : squares[1][c]) = sums[c];
    }
    offset += step == Step::kDown ? -kHessianBatch : kHessianBatch;
  }
}

// The definition's arithmetic. Searches all blocks, or those that the filter left.
inline constexpr int kHessianSearchWarps = 4;

template <typename T>
__global__ void __launch_bounds__(kHessianSearchWarps * 32, 12 / kHessianSearchWarps)
    HessianSearchKernel(ScaleSweepHessianArgs args) {
  constexpr int kThreads = kHessianSearchWarps * 32;
  __shared__ ScaleSweepHessianTables t;
  __shared__ HessianSlice factor;
  const bool filtered = args.tables->filtered != 0;
  if (filtered && args.tables->unresolved == 0) return;
  for (int k = threadIdx.x; k <= kE4m3Codes; k += kThreads) {
    t.table.decode_scale[k] = args.tables->table.decode_scale[k];
    t.reciprocal[k] = args.tables->reciprocal[k];
    t.block_amax[k] = args.tables->block_amax[k];
  }
  if (threadIdx.x == 0) t.table.prunable = args.tables->table.prunable;
  unsigned evaluations = 0, near_ties = 0;
  const int64_t bands = (args.rows + kThreads - 1) / kThreads;
  for (int64_t tile = blockIdx.x; tile < bands * args.slices; tile += gridDim.x) {
    // Neighbouring thread blocks take neighbouring slices: they share sectors of the results.
    const int64_t slice = tile % args.slices;
    const int64_t row = tile / args.slices * kThreads + static_cast<int>(threadIdx.x);
    const int64_t b = min(row, args.rows - 1) * args.slices + slice;
    const bool valid = row < args.rows && !(filtered && args.code[b] != 0);
    if (!__syncthreads_or(valid)) continue;
    const HessianSlice& source = args.prepared[slice];
    for (int i = threadIdx.x; i < kBlockSize * kBlockSize; i += kThreads) {
      (&factor.column[0][0])[i] = (&source.column[0][0])[i];
    }
    if (threadIdx.x < kBlockSize) {
      factor.element_bound[threadIdx.x] = source.element_bound[threadIdx.x];
    }
    if (threadIdx.x == 0) factor.eigenvalue_bound = source.eigenvalue_bound;
    __syncthreads();
    if (!__any_sync(kWholeWarp, valid)) continue;
    float w[kBlockSize];
    LoadBlock<T>(args.x, b, w);
    float amax = 0.0f;
#pragma unroll
    for (int i = 0; i < kBlockSize; ++i) amax = fmaxf(amax, Abs(w[i]));

    HessianSearch search;
    if (!args.exhaustive && amax == 0.0f) {
      search.code = 1;
      search.best = 0.0f;
    }
    const bool sought = valid && search.code == 0;
    if (t.table.prunable) {
      if (!args.exhaustive) SearchHessianPruned(sought, w, amax, t, factor, search);
      // Also where no loss is finite: the definition says which one stands.
      const bool all = sought && search.code == 0;
      if (__any_sync(kWholeWarp, all)) SearchHessianExhaustive(all, w, t, factor, search);
    } else if (sought) {
      const SweepWinner winner = HessianSweepExhaustive(w, t.table, args.factors[slice]);
      search.code = winner.code;
      search.best = winner.loss;
      search.evaluations = winner.evaluations;
      search.near_tie = winner.near_tie;
    }
    if (valid) {
      args.code[b] = static_cast<uint8_t>(search.code);
      args.best_amax[b] = t.block_amax[search.code];
      args.loss[b] = search.best;
      evaluations += search.evaluations;
      near_ties += args.exhaustive && search.near_tie ? 1 : 0;
    }
  }
  AddHessianCounts(args.counts, evaluations, near_ties);
}

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CUDA_SCALE_SWEEP_HESSIAN_KERNEL_CUH_
