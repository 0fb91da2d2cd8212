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
#include "quant/numerics/hessian_sweep.h"

namespace nibble {

inline constexpr unsigned kHessianWarp = 0xFFFFFFFFu;
inline constexpr int kHessianBatch = 4;

// One thread a code.
__global__ void MakeScaleSweepHessianTables(const float* global_amax, float bound,
                                            ScaleSweepHessianTables* tables) {
  const int k = static_cast<int>(threadIdx.x);
  if (k > kE4m3Codes) return;
  const float g = *global_amax;
  const float s = k == 0 ? 0.0f : SweepDecodeScale(k, g, bound);
  tables->table.decode_scale[k] = s;
  tables->reciprocal[k] = k == 0 ? 0.0f : DivRn(1.0f, s);
  tables->block_amax[k] = SweepBlockAmax(k, g, bound);
  if (k == 0) tables->table.prunable = SweepIsPrunable(g);
}

// HessianFactor for reading by columns of L, four rows at a time.
struct alignas(16) HessianColumns {
  float column[kBlockSize][kBlockSize];  // [i][j] = L[j][i]
  float element_bound[kBlockSize];
  float eigenvalue_bound;
};

// HessianDifference, the quotient corrected twice by its remainder: with the correctly rounded
// reciprocal the first correction makes it faithful and the second correctly rounded. A product
// that overflows becomes NaN and then 6, as the quotient would.
__device__ __forceinline__ float HessianDifferenceByReciprocal(float w, float decode_scale,
                                                               float reciprocal) {
  const float a = Abs(w);
  float v = MulRn(a, reciprocal);
  v = FmaRn(FmaRn(-v, decode_scale, a), reciprocal, v);
  v = FmaRn(FmaRn(-v, decode_scale, a), reciprocal, v);
  v = fminf(v, kE2m1Max);
  // Adding 1.5 * 2^(22 + e), e the exponent of v or 0, rounds to the grid's step at v, ties to
  // even.
  const uint32_t exponent = max(FloatBits(v) & 0x7F800000u, 0x3F800000u);
  const float magic = FloatFromBits(exponent + ((22u << 23) | 0x400000u));
  const float q = SubRn(AddRn(v, magic), magic);
  const float d = FmaRn(-q, decode_scale, a);
  return FloatFromBits(FloatBits(d) ^ (FloatBits(w) & 0x80000000u));
}

// Losses of codes k[0..3] in HessianLoss's order, and plain sums of d * d for the doubling bound.
__device__ __forceinline__ void HessianBatchLoss(
    const float (&w)[kBlockSize], const int (&k)[kHessianBatch], const ScaleSweepHessianTables& t,
    const HessianColumns& factor, float (&loss)[kHessianBatch], float (&squares)[kHessianBatch]) {
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

struct HessianSearch {
  float best = FloatFromBits(0x7F800000u);
  int code = 0;
  int evaluations = 0;

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
                                                        const HessianColumns& factor,
                                                        HessianSearch& search) {
  for (int base = 1; base <= kE4m3Codes; base += kHessianBatch) {
    int k[kHessianBatch];
    float loss[kHessianBatch], squares[kHessianBatch];
#pragma unroll
    for (int c = 0; c < kHessianBatch; ++c) k[c] = min(base + c, kE4m3Codes);
    HessianBatchLoss(w, k, t, factor, loss, squares);
#pragma unroll
    for (int c = 0; c < kHessianBatch; ++c) {
      // The first loss stands even where it is infinite or NaN.
      if (valid && (k[c] == 1 || loss[c] < search.best)) {
        search.best = loss[c];
        search.code = k[c];
      }
    }
  }
  if (valid) search.evaluations = kE4m3Codes;
}

// HessianSweepPruned's three steps, in batches: from the first unsaturated code, down while a
// saturated element alone does not cost more than the best, up while the doubling argument and the
// smallest eigenvalue do not.
__device__ __forceinline__ void SearchHessianPruned(bool valid, const float (&w)[kBlockSize],
                                                    float amax, const ScaleSweepHessianTables& t,
                                                    const HessianColumns& factor,
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
        if (!__any_sync(kHessianWarp, active)) {
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
        if (!__any_sync(kHessianWarp, active)) {
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
        if (!__any_sync(kHessianWarp, active)) {
          // Two in a row are a whole doubling: the bounds of what follows are the same.
          if (++idle >= 2 && !__any_sync(kHessianWarp, valid && base <= window_end)) return;
          if (!__any_sync(kHessianWarp, up)) return;
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

template <typename T, int kWarps, int kSlices>
__global__ void __launch_bounds__(kWarps * 32, 12 / kWarps)
    ScaleSweepHessianKernel(ScaleSweepHessianArgs args, int slice_groups) {
  static_assert(kWarps % kSlices == 0);
  constexpr int kRows = kWarps / kSlices * 32;
  __shared__ ScaleSweepHessianTables t;
  __shared__ HessianColumns columns[kSlices];
  const int64_t first_slice = int64_t{blockIdx.x % slice_groups} * kSlices;
  for (int k = threadIdx.x; k <= kE4m3Codes; k += kWarps * 32) {
    t.table.decode_scale[k] = args.tables->table.decode_scale[k];
    t.reciprocal[k] = args.tables->reciprocal[k];
    t.block_amax[k] = args.tables->block_amax[k];
  }
  if (threadIdx.x == 0) t.table.prunable = args.tables->table.prunable;
  for (int i = threadIdx.x; i < kSlices * kBlockSize * kBlockSize; i += kWarps * 32) {
    const int slice = i / (kBlockSize * kBlockSize), row = i / kBlockSize % kBlockSize;
    const int64_t source = min(first_slice + slice, args.slices - 1);
    const HessianFactor& factor = args.factors[source];
    columns[slice].column[i % kBlockSize][row] = factor.lower[row][i % kBlockSize];
    if (row == 0)
      columns[slice].element_bound[i % kBlockSize] = factor.element_bound[i % kBlockSize];
    if (row == 0 && i % kBlockSize == 0) columns[slice].eigenvalue_bound = factor.eigenvalue_bound;
  }
  __syncthreads();
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int own_slice = warp % kSlices;
  const int64_t slice = first_slice + own_slice;
  if (slice >= args.slices) return;
  const int64_t row = int64_t{blockIdx.x / slice_groups} * kRows + warp / kSlices * 32 +
                      static_cast<int>(threadIdx.x) % 32;
  const bool valid = row < args.rows;
  const int64_t b = (valid ? row : args.rows - 1) * args.slices + slice;
  float w[kBlockSize];
  LoadBlock<T>(args.x, b, w);
  float amax = 0.0f;
#pragma unroll
  for (int i = 0; i < kBlockSize; ++i) amax = fmaxf(amax, Abs(w[i]));

  const HessianColumns& factor = columns[own_slice];
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
    if (__any_sync(kHessianWarp, all)) SearchHessianExhaustive(all, w, t, factor, search);
  } else if (sought) {
    const SweepWinner winner = HessianSweepExhaustive(w, t.table, args.factors[slice]);
    search.code = winner.code;
    search.best = winner.loss;
    search.evaluations = winner.evaluations;
  }
  if (valid) {
    args.code[b] = static_cast<uint8_t>(search.code);
    args.best_amax[b] = t.block_amax[search.code];
    args.loss[b] = search.best;
  }
  if (args.evaluations != nullptr) {
    const unsigned sum =
        __reduce_add_sync(kHessianWarp, valid ? static_cast<unsigned>(search.evaluations) : 0u);
    if (threadIdx.x % 32 == 0) {
      atomicAdd(reinterpret_cast<unsigned long long*>(args.evaluations),
                static_cast<unsigned long long>(sum));
    }
  }
}

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CUDA_SCALE_SWEEP_HESSIAN_KERNEL_CUH_
