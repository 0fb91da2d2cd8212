// The scale sweep on the device: branch and bound, a thread a block of 16.
//
// A table in shared memory bounds the losses of twelve candidates at once from below: a row belongs
// to a cell of magnitudes (a bf16 number, or all that truncate to it) and holds, for each of the
// twelve scales around the first unsaturated one, the least squared error of the cell, rounded down
// to units of that scale's square / 256. Sixteen rows are added, then the loss of the candidate
// with the smallest bound is computed by the definition, then those of the few candidates whose
// bound does not exceed it. Scales that differ by a power of two share a row: the table has one
// part for each of the eight mantissas of E4M3.
//
// Blocks that the table does not cover (codes below kFirstInTable, where E4M3 is linear; saturation
// that pays beyond the table; scales whose squares leave the normal range) are searched by the
// definition alone. Loops end for a whole warp at once.
#ifndef NIBBLE_KERNELS_CUDA_SCALE_SWEEP_KERNEL_CUH_
#define NIBBLE_KERNELS_CUDA_SCALE_SWEEP_KERNEL_CUH_

#include <cstdint>

#include "kernels/cuda/block_encode.cuh"
#include "kernels/cuda/block_load.cuh"
#include "kernels/cuda/scale_sweep_launch.h"
#include "kernels/cuda/warp.cuh"
#include "quant/numerics/block_encode.h"
#include "quant/numerics/scale_sweep.h"
#include "quant/swizzle.h"

namespace nibble {

// --- The table of bounds ------------------------------------------------------------------------

// Candidate c of a block is the code first - kBelowFirst + c, first being the first unsaturated.
inline constexpr int kBoundCandidates = 12;
inline constexpr int kBelowFirst = 4;
inline constexpr int kFirstInTable = 12;    // all candidates are then in the floating part of E4M3
inline constexpr int kRepresentative = 64;  // the code of mantissa 0 that the table is made for

// A row's four words hold three sums each: bits 0..10 and 11..21 in units of scale^2 / 256, bits
// 22..31 in twice that. The likeliest winners have the finer ones. A row's entry is at most 255
// (127), so that 16 of them and a penalty of 1024 carry at most twice into the next field: sums are
// lower bounds once kCarries are subtracted, and a field that overflows merely bounds less.
inline constexpr float kBoundUnits = 256.0f;
__host__ __device__ constexpr int CandidateOf(int word, int field) {
  return field < 2 ? 3 + 2 * word + field : word < 3 ? word : 11;
}
__host__ __device__ constexpr int FieldShift(int field) { return 11 * field; }
inline constexpr int kCarries = 4;  // two into the coarser field

// The least of |a - q * scale|^2 over a in [low, high] and E2M1 magnitudes q.
__device__ inline double LeastSquare(double low, double high, double scale) {
  double least = 1e300;
  for (int i = 0; i < 8; ++i) {
    const double point = E2m1Magnitude(static_cast<uint8_t>(i)) * scale;
    const double d = point < low ? low - point : point > high ? point - high : 0.0;
    least = d * d < least ? d * d : least;
  }
  return least;
}

// Four threads a row of the table, one for each of its words; the first threads make the
// candidates' scales, too. kExactCells: the data are bf16 numbers themselves.
template <bool kExactCells>
__global__ void MakeScaleSweepTables(const float* global_amax, float bound,
                                     ScaleSweepTables* tables) {
  if constexpr (NIBBLE_CUDA_ARCH >= 900) cudaTriggerProgrammaticLaunchCompletion();
  const int thread = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  const float g = *global_amax;
  if (thread <= kE4m3Codes) {
    const float s = thread == 0 ? 0.0f : SweepDecodeScale(thread, g, bound);
    tables->table.decode_scale[thread] = s;
    tables->reciprocal[thread] = thread == 0 ? 0.0f : DivRn(1.0f, s);
    tables->block_amax[thread] = SweepBlockAmax(thread, g, bound);
    if (thread == 0) {
      tables->table.prunable = SweepIsPrunable(g);
      tables->fetched = 0;
      tables->finished = 0;
    }
  }
  if (thread >= 4 * 8 * kBoundCells) return;
  const int row = thread / 4, word = thread % 4;
  const int mantissa = row / kBoundCells, cell = row % kBoundCells;
  const int first = kRepresentative + mantissa;
  const float first_scale = SweepDecodeScale(first, g, bound);
  const int top = static_cast<int>(FloatBits(MulRn(kE2m1Max, first_scale)) >> 16);
  const int bottom = top - (kBoundCells - 1);
  const uint32_t bits = static_cast<uint32_t>(bottom + cell);
  uint32_t fields = 0;
  if (cell > 0) {  // cell 0 is that of everything smaller
    const double low = FloatFromBits(bits << 16);
    const double high = kExactCells ? low : FloatFromBits((bits + 1) << 16);
    const double units = kBoundUnits / (static_cast<double>(first_scale) * first_scale);
#pragma unroll
    for (int field = 0; field < 3; ++field) {
      const double scale =
          SweepDecodeScale(first - kBelowFirst + CandidateOf(word, field), g, bound);
      const double value = LeastSquare(low, high, scale) * (field < 2 ? units : units / 2);
      const double most = field < 2 ? 255 : 127;
      fields |= static_cast<uint32_t>(value < most ? value : most) << FieldShift(field);
    }
  } else if (word == 0) {
    tables->bottom_cell[mantissa] = bottom - (kRepresentative << 4);
  }
  reinterpret_cast<uint32_t*>(tables->bounds)[thread] = fields;
}

// --- A block in registers -----------------------------------------------------------------------

// As it lies in memory, but for the signs.
template <typename T>
struct RawBlock {
  static constexpr int kWords = std::is_same_v<T, F32> ? 16 : 8, kBytes = 4 * kWords;
  static constexpr uint32_t kMagnitudes = std::is_same_v<T, F32> ? 0x7FFFFFFFu : 0x7FFF7FFFu;
  uint32_t words[kWords];

  template <typename Index>
  __device__ __forceinline__ void Load(const void* x, Index block) {
    const uint4* p = static_cast<const uint4*>(x) + block * (kWords / 4);
#pragma unroll
    for (int i = 0; i < kWords / 4; ++i) {
      const uint4 v = __ldg(p + i);
      words[4 * i] = v.x & kMagnitudes;
      words[4 * i + 1] = v.y & kMagnitudes;
      words[4 * i + 2] = v.z & kMagnitudes;
      words[4 * i + 3] = v.w & kMagnitudes;
    }
  }
  // Into the cache, for a load to come.
  static __device__ __forceinline__ void Prefetch(const void* x, int block) {
    asm volatile(
        "prefetch.global.L1 [%0];" ::"l"(static_cast<const uint4*>(x) + block * (kWords / 4)));
  }
  // Magnitudes 2i and 2i + 1.
  __device__ __forceinline__ float2 Pair(int i) const {
    if constexpr (std::is_same_v<T, F32>) {
      return {FloatFromBits(words[2 * i]), FloatFromBits(words[2 * i + 1])};
    } else {
      return Unpack(T{}, words[i]);
    }
  }
  // The same, truncated to bf16, side by side.
  __device__ __forceinline__ uint32_t CellPair(int i) const {
    if constexpr (std::is_same_v<T, Bf16>) return words[i];
    const float2 pair = Pair(i);
    return __byte_perm(FloatBits(pair.x), FloatBits(pair.y), 0x7632);
  }
  __device__ __forceinline__ float Amax() const {
    if constexpr (std::is_same_v<T, F32>) {
      float amax = 0.0f;
#pragma unroll
      for (int i = 0; i < 16; ++i) amax = fmaxf(amax, FloatFromBits(words[i]));
      return amax;
    } else {
      uint32_t most = words[0];
#pragma unroll
      for (int i = 1; i < 8; ++i) most = __vmaxu2(most, words[i]);
      const float2 pair = Unpack(T{}, most);
      return fmaxf(pair.x, pair.y);
    }
  }
  __device__ __forceinline__ void Get(float (&a)[kBlockSize]) const {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const float2 pair = Pair(i);
      a[2 * i] = pair.x;
      a[2 * i + 1] = pair.y;
    }
  }
};

// One element of SweepLoss.
__device__ __forceinline__ float Accumulate(float sum, float a, float decode_scale,
                                            float reciprocal) {
  const float d = E2m1Difference(a, decode_scale, reciprocal);
  return FmaRn(d, d, sum);
}

// SweepLoss.
template <typename T>
__device__ __forceinline__ float DefinitionLoss(const RawBlock<T>& raw, float decode_scale,
                                                float reciprocal) {
  float even = 0.0f, odd = 0.0f;
#pragma unroll
  for (int i = 0; i < kBlockSize / 2; ++i) {
    const float2 a = raw.Pair(i);
    even = Accumulate(even, a.x, decode_scale, reciprocal);
    odd = Accumulate(odd, a.y, decode_scale, reciprocal);
  }
  return AddRn(even, odd);
}

// Out of line: what the table does not cover.
template <typename T>
__device__ __noinline__ SweepWinner SweepByDefinition(const void* x, int64_t block,
                                                      const SweepTable& table, bool exhaustive) {
  RawBlock<T> raw;
  raw.Load(x, block);
  const float amax = raw.Amax();
  float a[kBlockSize];
  raw.Get(a);
  if (exhaustive) return SweepExhaustive(a, table);
  if (amax == 0.0f) return {1, 0.0f, 0};
  return SweepPruned(a, amax, table);
}

// --- The search ---------------------------------------------------------------------------------

// What a warp keeps of the blocks it works on. Candidates that must be evaluated besides the first
// wait in the queue until they fill a warp.
template <int kBlocksPerThread>
struct WarpState {
  static constexpr int kQueue = 32 + 32 * (kBoundCandidates - 1);
  // Loss and code of the best so far: smaller is better, ties to the smaller code.
  unsigned long long best[kBlocksPerThread * 32];
  uint16_t queue[kQueue];  // code << 8 | block of the warp's
};

template <int kWarps, int kBlocksPerThread>
struct ScaleSweepShared {
  uint4 bounds[8 * kBoundCells];
  uint4 penalties[kBoundCandidates + 1];  // by the number of candidates that exist
  WarpState<kBlocksPerThread> warps[kWarps];
  SweepTable table;
  float reciprocal[kE4m3Codes + 1];
  float block_amax[kE4m3Codes + 1];
  int bottom_cell[8];
  OuterScales outer;
};

inline constexpr unsigned long long kUndecided = ~0ull;
__device__ __forceinline__ unsigned long long Key(float loss, int code) {
  return static_cast<unsigned long long>(FloatBits(loss)) << 32 | static_cast<unsigned>(code);
}

// The first code whose grid reaches amax, 127 if none does, in the floating part of E4M3; anything
// in 1..127 below it. unit: the decode scale's share of an amax, in E4M3's units.
__device__ __forceinline__ int FirstUnsaturated(float amax, const float* scale, float unit) {
  const int bits = static_cast<int>(FloatBits(MulRn(amax, unit)));
  const int nearest = min(max(((bits + 0x80000) >> 20) - 0x3C0, 1), kE4m3Codes);
  return nearest + (MulRn(kE2m1Max, scale[nearest]) < amax ? 1 : 0);
}

// Bounds of all candidates, each as bound << 4 | candidate.
template <typename T>
__device__ __forceinline__ void BoundCandidates(const RawBlock<T>& raw, const uint4* rows,
                                                int bottom_cell, const uint4& penalty,
                                                int (&keys)[kBoundCandidates]) {
  uint32_t sums[4] = {penalty.x, penalty.y, penalty.z, penalty.w};
  const uint32_t minus_bottom = __byte_perm(static_cast<uint32_t>(-bottom_cell), 0, 0x1010);
  const char* base = reinterpret_cast<const char*>(rows);
  static_assert(kBoundCells <= 4096 && sizeof(uint4) == 16);  // for the offset by cells >> 12
#pragma unroll
  for (int i = 0; i < kBlockSize / 2; ++i) {
    const uint32_t cells = __viaddmax_s16x2(raw.CellPair(i), minus_bottom, 0);
    const uint4 x = *reinterpret_cast<const uint4*>(base + (cells & 0xFFFFu) * 16);
    const uint4 y = *reinterpret_cast<const uint4*>(base + (cells >> 12));
    sums[0] += x.x + y.x;
    sums[1] += x.y + y.y;
    sums[2] += x.z + y.z;
    sums[3] += x.w + y.w;
  }
  // In registers, so that masking and adding the candidate is one operation.
  uint32_t fine = 0x7FF0u, coarse = 0x7FE0u;
  asm volatile("" : "+r"(fine), "+r"(coarse));
#pragma unroll
  for (int word = 0; word < 4; ++word) {
    const int low = CandidateOf(word, 0), middle = CandidateOf(word, 1);
    const int high = CandidateOf(word, 2);
    keys[low] = static_cast<int>((sums[word] << 4 & fine) | low);
    keys[middle] = static_cast<int>((sums[word] >> 7 & fine) | middle);
    keys[high] = static_cast<int>((sums[word] >> 17 & coarse) | high);
  }
}

// SumSweepLosses of all groups, by the thread block that finishes last.
template <int kThreads>
__device__ __forceinline__ void SumGroups(const double* group_sums, int64_t groups,
                                          unsigned* finished, double* shared_sums,
                                          double* loss_sum) {
  __threadfence();
  bool last = false;
  if (threadIdx.x == 0) last = atomicAdd(finished, 1u) == gridDim.x - 1;
  if (!__syncthreads_or(last)) return;
  __threadfence();
  for (int i = threadIdx.x; i < kLossSums; i += kThreads) {
    double sum = 0;
    for (int64_t j = i; j < groups; j += kLossSums) sum += __ldcg(group_sums + j);
    shared_sums[i] = sum;
  }
  for (int half = kLossSums / 2; half > 0; half /= 2) {
    __syncthreads();
    for (int i = threadIdx.x; i < half; i += kThreads) shared_sums[i] += shared_sums[i + half];
  }
  if (threadIdx.x == 0) *loss_sum = shared_sums[0];
}

// kEncode: whether args.encode is asked for.
template <typename T, int kWarps, int kBlocksPerThread, bool kEncode>
__global__ void __launch_bounds__(kWarps * 32, 1) ScaleSweepKernel(ScaleSweepArgs args) {
  extern __shared__ uint4 shared_memory[];
  using Shared = ScaleSweepShared<kWarps, kBlocksPerThread>;
  Shared& t = *reinterpret_cast<Shared*>(shared_memory);
  if constexpr (NIBBLE_CUDA_ARCH >= 900) cudaGridDependencySynchronize();
  const ScaleSweepTables& global = *args.tables;
  for (int i = threadIdx.x; i <= kE4m3Codes; i += kWarps * 32) {
    t.table.decode_scale[i] = global.table.decode_scale[i];
    t.reciprocal[i] = global.reciprocal[i];
    t.block_amax[i] = global.block_amax[i];
  }
  if (threadIdx.x < 8) t.bottom_cell[threadIdx.x] = global.bottom_cell[threadIdx.x];
  if (threadIdx.x <= kBoundCandidates) {
    const auto penalty = [&](int word) {
      uint32_t fields = 0;
      for (int field = 0; field < 3; ++field) {
        const bool exists = CandidateOf(word, field) < static_cast<int>(threadIdx.x);
        if (!exists) fields |= (field < 2 ? 1024u : 512u) << FieldShift(field);
      }
      return fields;
    };
    t.penalties[threadIdx.x] = make_uint4(penalty(0), penalty(1), penalty(2), penalty(3));
  }
  if (threadIdx.x == 0) {
    t.table.prunable = global.table.prunable;
    if (kEncode) {
      t.outer = MakeOuterScales<std::is_same_v<T, F32>>(*args.global_amax, args.bound,
                                                        ErrorPath::kStrict);
    }
  }
  for (int i = threadIdx.x; i < 8 * kBoundCells; i += kWarps * 32) t.bounds[i] = global.bounds[i];
  __syncthreads();

  const float* scale = t.table.decode_scale;
  const float unit = DivRn(kE4m3SmallestSubnormal, MulRn(kE2m1Max, scale[1]));
  // The first unsaturated codes that the table covers: none if pruning is off.
  int first_covered = kFirstInTable, last_covered = 0;
  if (!args.exhaustive && t.table.prunable) {
    while (first_covered <= kE4m3Codes && scale[first_covered] < 0x1p-40f) ++first_covered;
    last_covered = kE4m3Codes;
    while (last_covered > 0 && scale[last_covered] > 0x1p60f) --last_covered;
  }
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  WarpState<kBlocksPerThread>& state = t.warps[warp];

  constexpr int kWarpBlocks = 32 * kBlocksPerThread;
  // A warp's first chunk is its own; then warps fetch what is left, for multiprocessors are not
  // equally fast.
  int64_t next = static_cast<int64_t>(blockIdx.x) * kWarps + warp;
  unsigned evaluations = 0, near_ties = 0;
  for (;;) {
    const int64_t base = __shfl_sync(kWholeWarp, next, 0) * kWarpBlocks;
    if (base >= args.blocks) break;
    if (lane == 0) {
      next = static_cast<int64_t>(atomicAdd(&args.tables->fetched, 1ull)) +
             static_cast<int64_t>(gridDim.x) * kWarps;
    }
    const char* data = static_cast<const char*>(args.x) + base * RawBlock<T>::kBytes;
    const int last = static_cast<int>(min(args.blocks - 1 - base, int64_t{kWarpBlocks - 1}));
    const int chunk_groups = last / 32 + 1;
    int queued = 0;
    // Evaluates the queue's last 32 entries, or as many as there are.
    const auto evaluate_queue = [&] {
      const int count = min(queued, 32);
      queued -= count;
      __syncwarp();
      if (lane < count) {
        const uint16_t entry = state.queue[queued + lane];
        const int own = entry & 0xFF, code = entry >> 8;
        RawBlock<T> raw;
        raw.Load(data, own);
        const float loss = DefinitionLoss(raw, scale[code], t.reciprocal[code]);
        atomicMin(&state.best[own], Key(loss, code));
        ++evaluations;
      }
      __syncwarp();
    };
    for (int i = 0; i < chunk_groups; ++i) {
      const int own = i * 32 + lane;
      const bool valid = own <= last;
      RawBlock<T> raw;
      raw.Load(data, min(own, last));
      RawBlock<T>::Prefetch(data, min(own + 32, last));
      const float amax = raw.Amax();
      int first = FirstUnsaturated(amax, scale, unit);
      const bool covered = first >= first_covered && first <= last_covered;
      if (!covered) first = kRepresentative;
      const int existing = min(kE4m3Codes - first + 1 + kBelowFirst, kBoundCandidates);
      int keys[kBoundCandidates];
      const int bottom_cell =
          covered ? t.bottom_cell[first & 7] + ((first & ~7) << 4) : 0x7FFF;  // else all at cell 0
      BoundCandidates(raw, t.bounds + (first & 7) * kBoundCells, bottom_cell, t.penalties[existing],
                      keys);
      int least = keys[0];
#pragma unroll
      for (int c = 1; c < kBoundCandidates; ++c) least = min(least, keys[c]);
      int guess = least & 15;
      if (guess >= existing) guess = kBelowFirst;
      const int code = first - kBelowFirst + guess;
      const float loss = DefinitionLoss(raw, scale[code], t.reciprocal[code]);
      // Further down saturation alone must cost more than this.
      const bool decided =
          covered && SweepSaturationBound(amax, scale[first - kBelowFirst - 1]) > loss;
      state.best[own] = decided ? Key(loss, code) : kUndecided;
      // What lies at or below the loss, in the bounds' units.
      const float r = t.reciprocal[first];
      const float units = MulRn(MulRn(MulRn(loss, r), r), kBoundUnits * (1.0f + 0x1p-12f));
      const int limit = (static_cast<int>(fminf(units, 4096.0f)) + 1 + kCarries) << 4 | 15;
      uint32_t contenders = 0;
#pragma unroll
      for (int c = kBoundCandidates - 1; c >= 0; --c) {
        contenders = __funnelshift_l(static_cast<uint32_t>(keys[c] - limit - 1), contenders, 1);
      }
      contenders &= ((1u << existing) - 1) & ~(1u << guess);
      if (!decided || !valid) contenders = 0;
      evaluations += decided && valid;
      for (;;) {
        const unsigned pushing = __ballot_sync(kWholeWarp, contenders != 0);
        if (pushing == 0) break;
        if (contenders != 0) {
          const int c = __ffs(static_cast<int>(contenders)) - 1;
          const int place = queued + __popc(pushing & ((1u << lane) - 1));
          state.queue[place] = static_cast<uint16_t>((first - kBelowFirst + c) << 8 | own);
          contenders &= contenders - 1;
        }
        queued += __popc(pushing);
      }
      const int waiting = i + 1 < chunk_groups ? 31 : 0;  // until they fill a warp
      while (queued > waiting) evaluate_queue();
    }
    __syncwarp();
    for (int i = 0; i < chunk_groups; ++i) {
      const bool valid = i * 32 + lane <= last;
      const int own = min(i * 32 + lane, last);
      const int64_t b = base + own;
      unsigned long long best = state.best[own];
      if (valid && best == kUndecided) {
        const SweepWinner winner = SweepByDefinition<T>(args.x, b, t.table, args.exhaustive);
        best = Key(winner.loss, winner.code);
        evaluations += winner.evaluations;
        near_ties += args.exhaustive && winner.near_tie;
      }
      const int code = static_cast<int>(best & 0xFF);
      const float loss = FloatFromBits(static_cast<uint32_t>(best >> 32));
      if constexpr (kEncode) {
        using E = Encoding<std::is_same_v<T, F32>, EncodeMethod::kCheckpoint>;
        float x[kBlockSize];
        LoadBlock<T>(args.x, b, x);
        const EncodedBlock encoded =
            EncodeBlock<E>(x, BlockMagnitude(x), t.outer, {.rule = Rule::kCheckpoint},
                           /*first_element=*/0, static_cast<uint8_t>(code));
        if (valid) {
          reinterpret_cast<uint2*>(args.encode.packed)[b] = {encoded.codes.word[0],
                                                             encoded.codes.word[1]};
        }
        if (valid && args.encode.swizzled_scale != nullptr) {
          const int64_t columns = args.encode.blocks_per_row, row = b / columns;
          args.encode.swizzled_scale[SwizzledOffset(row, b - row * columns, columns)] =
              encoded.scale;
        }
        if (args.encode.loss_sum != nullptr) {
          double sum = valid ? loss : 0.0;
          for (int distance = kLossGroup / 2; distance > 0; distance /= 2) {
            sum += __shfl_xor_sync(kWholeWarp, sum, distance);
          }
          if (lane == 0) args.encode.group_sums[base / kLossGroup + i] = sum;
        }
      }
      if (!valid) continue;
      if (args.code != nullptr) args.code[b] = static_cast<uint8_t>(code);
      if (args.best_amax != nullptr) args.best_amax[b] = t.block_amax[code];
      if (args.loss != nullptr) args.loss[b] = loss;
    }
    __syncwarp();
  }
  if constexpr (kEncode) {
    if (args.encode.loss_sum != nullptr) {
      __syncthreads();
      static_assert(sizeof(t.bounds) >= kLossSums * sizeof(double));
      SumGroups<kWarps * 32>(args.encode.group_sums, (args.blocks + kLossGroup - 1) / kLossGroup,
                             &args.tables->finished, reinterpret_cast<double*>(t.bounds),
                             args.encode.loss_sum);
    }
  }
  if (args.counts != nullptr) {
    const auto add = [&](int64_t& total, unsigned count) {
      const unsigned sum = __reduce_add_sync(kWholeWarp, count);
      if (lane == 0) {
        atomicAdd(reinterpret_cast<unsigned long long*>(&total),
                  static_cast<unsigned long long>(sum));
      }
    };
    add(args.counts->evaluations, evaluations);
    add(args.counts->near_ties, near_ties);
  }
}

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CUDA_SCALE_SWEEP_KERNEL_CUH_
