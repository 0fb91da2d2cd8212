// The pruned Hessian sweep of 16-bit weights: tensor cores find the few candidates that may win,
// the definition's own operations decide among them.
//
// Blocks are scaled by a power of two of their own, exact, so that their first unsaturated code k0
// lies in [kHessianPivot, kHessianPivot + 8): codes are indices into one table then, whatever the
// block's size, and d fits fp16.
//
// Four threads are a block, each with four of its elements; a warp searches 8 blocks of one slice.
// One step evaluates two neighbouring codes of each: 16 rows of an A operand. d is the
// definition's, bit by bit; only then is it rounded to fp16, multiplied by L in two terms of fp16,
// and its square summed. Four steps, the codes of one doubling, are a round.
//
// With l the sum found here for |L^T d|^2, the definition's computed loss lies in
//   [(1 - e) l - slack |d|^2 - floor, (1 + e) l + slack |d|^2 + floor], e = kHessianFilterError:
// |z - z'| <= K |L|_F |d| + 2^-23 |L|_F for z the definition's and z' the filter's L^T d, with
// K = 2^-11 * 1.05: 2^-11 for d in fp16; 2^-16 for what tensor cores lose in 16 products and a sum,
// twice; 2^-20 for the definition's own roundings; 2^-22 for L in two terms. (The addend is what
// falls below fp16's smallest numbers.) Hence for any h
//   |z|^2 <= (1 + h) |z'|^2 + (1 + 1 / h) (17/16 K^2 |L|_F^2 |d|^2 + 17 * 2^-46 |L|_F^2)
// and from below alike; h = 2^-9, and the sums over four threads lose 2^-10 to tf32.
#ifndef NIBBLE_KERNELS_CUDA_SCALE_SWEEP_HESSIAN_FILTER_CUH_
#define NIBBLE_KERNELS_CUDA_SCALE_SWEEP_HESSIAN_FILTER_CUH_

#include <cstdint>
#include <type_traits>

#include "kernels/cuda/block_load.cuh"
#include "kernels/cuda/scale_sweep_hessian_kernel.cuh"
#include "kernels/cuda/scale_sweep_hessian_launch.h"

namespace nibble {

inline constexpr float kHessianFilterError = 0x1p-8f;
inline constexpr int kHessianTableEnd = 97;  // codes that scaled blocks can reach end below it
inline constexpr int kHessianFirstRound = -2, kHessianLastRound = 5;  // of 8 codes, from k0 on
inline constexpr int kHessianRounds = kHessianLastRound - kHessianFirstRound + 1;

__device__ __forceinline__ uint32_t PackHalves(float low, float high) {
  uint32_t pair;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}

// c += a * b: 16 x 16 times 16 x 8.
__device__ __forceinline__ void MultiplyHalves(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                               uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// c += a * b: 16 x 8 times 8 x 8, in tf32.
__device__ __forceinline__ void MultiplyTf32(float (&c)[4], const float (&a)[4], uint32_t b0,
                                             uint32_t b1) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(FloatBits(a[0])), "r"(FloatBits(a[1])), "r"(FloatBits(a[2])), "r"(FloatBits(a[3])),
        "r"(b0), "r"(b1));
}

__device__ __forceinline__ uint32_t MultiplyBf16x2(uint32_t a, uint32_t b) {
  uint32_t product;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(product) : "r"(a), "r"(b), "r"(0x80008000u));
  return product;
}
__device__ __forceinline__ uint32_t MaxBf16x2(uint32_t a, uint32_t b) {
  uint32_t larger;
  asm("max.bf16x2 %0, %1, %2;" : "=r"(larger) : "r"(a), "r"(b));
  return larger;
}

// What one thread holds of its block.
struct HessianQuarter {
  float w[4];       // scaled
  float moved[4];   // what decides their codes
  uint32_t big[2];  // |w| * 2^22 as bf16, truncated, two a word
};

// Two neighbouring codes of each of the warp's blocks. Adds |L^T d|^2 and |d|^2 of them to
// sum[0..1] and sum[2..3] of the threads that `column` selects.
//
// Rounding adds a number whose last place is the grid's step at v = w / s, up to 8 / 7 beyond the
// binade where the step changes and down to 9 / 8 below it both steps give the same point: one bf16
// number serves both codes, which are at most 9 / 8 apart.
template <bool kClamp>
__device__ __forceinline__ void HessianStep(const HessianQuarter& own, const float4& codes,
                                            const uint32_t (&l)[8], const uint32_t (&column)[2],
                                            float (&sum)[4]) {
  const uint32_t r2 = __byte_perm(FloatBits(codes.z), 0, 0x3232);
  const uint32_t big01 = MaxBf16x2(MultiplyBf16x2(own.big[0], r2), 0x4AC04AC0u);  // 1.5 * 2^22
  const uint32_t big23 = MaxBf16x2(MultiplyBf16x2(own.big[1], r2), 0x4AC04AC0u);
  const float magic[4] = {FloatFromBits(big01 << 16), FloatFromBits(big01),
                          FloatFromBits(big23 << 16), FloatFromBits(big23)};
  const float scale[2] = {codes.x, codes.y}, reciprocal[2] = {codes.z, codes.w};
  float parts[4];
  uint32_t a[4];
#pragma unroll
  for (int c = 0; c < 2; ++c) {
    float d[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float q = AddRn(FmaRn(own.moved[i], reciprocal[c], -magic[i]), magic[i]);
      if (kClamp) q = fmaxf(fminf(q, kE2m1Max), -kE2m1Max);
      d[i] = FmaRn(-q, scale[c], own.w[i]);
    }
    parts[2 + c] = FmaRn(d[3], d[3], FmaRn(d[2], d[2], FmaRn(d[1], d[1], MulRn(d[0], d[0]))));
    a[c] = PackHalves(d[0], d[1]);
    a[2 + c] = PackHalves(d[2], d[3]);
  }
  float low[4] = {0, 0, 0, 0}, high[4] = {0, 0, 0, 0};  // columns 0-7 and 8-15 of z
  MultiplyHalves(low, a, l[0], l[1]);
  MultiplyHalves(high, a, l[2], l[3]);
  MultiplyHalves(low, a, l[4], l[5]);
  MultiplyHalves(high, a, l[6], l[7]);
#pragma unroll
  for (int c = 0; c < 2; ++c) {
    const float z[4] = {low[2 * c], low[2 * c + 1], high[2 * c], high[2 * c + 1]};
    parts[c] = FmaRn(z[3], z[3], FmaRn(z[2], z[2], FmaRn(z[1], z[1], MulRn(z[0], z[0]))));
  }
  MultiplyTf32(sum, parts, column[0], column[1]);
}

// The definition's loss.
__device__ __forceinline__ float HessianLossByReciprocal(const float (&w)[kBlockSize], float2 scale,
                                                         const float (*column)[kBlockSize]) {
  float d[kBlockSize];
#pragma unroll
  for (int i = 0; i < kBlockSize; ++i) {
    d[i] = HessianDifferenceByReciprocal(w[i], scale.x, scale.y);
  }
  float loss = 0.0f;
#pragma unroll
  for (int i = kBlockSize - 1; i >= 0; --i) {
    float z = 0.0f;
#pragma unroll
    for (int j4 = i / 4 * 4; j4 < kBlockSize; j4 += 4) {
      const float4 four = *reinterpret_cast<const float4*>(&column[i][j4]);
      const float entries[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
      for (int j = j4 < i ? i : j4; j < j4 + 4; ++j) {
        z = j == i ? MulRn(entries[j - j4], d[j]) : FmaRn(entries[j - j4], d[j], z);
      }
    }
    loss = FmaRn(z, z, loss);
  }
  return loss;
}

// What a warp keeps of its slice and its rows.
template <int kRows>
struct alignas(16) HessianWarpMemory {
  float column[kBlockSize][kBlockSize];
  float2 lower[kHessianRounds][32];  // lower bounds of the losses of a thread's codes
  uint2 contenders[32];              // by row of a tile: bit i is code first + i - 16
  int first[32];                     // 0 where there is nothing to decide
  unsigned queue[64];                // row << 8 | code, to be evaluated
  unsigned long long key[kRows];     // bits of the loss << 32 | code; 0 is unresolved
};

template <int kWarps, int kRows>
struct HessianFilterMemory {
  float4 codes[kHessianTableEnd];  // scaled: s[k], s[k + 1], 1 / s[k], 1 / s[k + 1]
  float2 code[kE4m3Codes + 1];     // s, 1 / s
  float move[1 << kHessianMoveBits];
  HessianWarpMemory<kRows> warp[kWarps];
};

template <typename T>
__device__ __forceinline__ float4 UnpackFour(uint2 words) {
  const float2 low = Unpack(T{}, words.x), high = Unpack(T{}, words.y);
  return {low.x, low.y, high.x, high.y};
}

// A warp is a slice, a thread block kWarps adjacent slices and kTiles * 32 rows.
template <typename T, int kWarps, int kTiles, int kResident>
__global__ void __launch_bounds__(kWarps * 32, kResident)
    HessianFilterKernel(ScaleSweepHessianArgs args, int slice_groups) {
  constexpr int kRows = kTiles * 32;
  const float kInfinity = FloatFromBits(0x7F800000u);
  constexpr unsigned long long kUnresolved = 0;
  extern __shared__ __align__(16) char raw_memory[];
  auto& memory = *reinterpret_cast<HessianFilterMemory<kWarps, kRows>*>(raw_memory);
  if (!args.tables->filtered) return;

  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int64_t first_slice = int64_t{blockIdx.x % slice_groups} * kWarps;
  const int64_t first_row = int64_t{blockIdx.x / slice_groups} * kRows;
  const int table_exponent = args.tables->filter_exponent;
  for (int k = threadIdx.x; k <= kE4m3Codes; k += kWarps * 32) {
    const float s = args.tables->table.decode_scale[k];
    memory.code[k] = {s, args.tables->reciprocal[k]};
    const float r = k < 8 ? 0.0f : args.tables->filter_reciprocal[k];
    // Exact: a prunable table's scales and reciprocals are far from both ends.
    const float down = FloatFromBits(static_cast<uint32_t>(127 - table_exponent) << 23);
    const float up = FloatFromBits(static_cast<uint32_t>(127 + table_exponent) << 23);
    if (k < kHessianTableEnd) {
      memory.codes[k].x = MulRn(s, down);
      memory.codes[k].z = MulRn(r, up);
    }
    if (k >= 1 && k <= kHessianTableEnd) {
      memory.codes[k - 1].y = MulRn(s, down);
      memory.codes[k - 1].w = MulRn(r, up);
    }
  }
  constexpr int kBits = std::is_same_v<T, Bf16> ? 8 : 11;
  for (int i = threadIdx.x; i < 1 << (kBits - 1); i += kWarps * 32) {
    memory.move[i] = args.tables->move[i];
  }
  auto& own = memory.warp[warp];
  const int64_t slice = min(first_slice + warp, args.slices - 1);
  const HessianSlice& prepared = args.prepared[slice];
#pragma unroll
  for (int i = 0; i < kBlockSize * kBlockSize / 32; ++i) {
    (&own.column[0][0])[i * 32 + lane] = (&prepared.column[0][0])[i * 32 + lane];
  }
  uint32_t l[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) l[i] = prepared.fragment[i][lane];
  const int quad = lane / 4, quarter = lane % 4;
  float element_bound[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) element_bound[i] = prepared.element_bound[quarter * 4 + i];
  const int slice_exponent = prepared.exponent;
  const float slack = prepared.slack, floor = prepared.floor;
  // Normalized like L; both were made with room for a rounding. An unfit slice has no exponent.
  const bool fit = slice_exponent >= -50 && slice_exponent <= 50;
  const float norm =
      FloatFromBits(static_cast<uint32_t>(127 - 2 * (fit ? slice_exponent : 0)) << 23);
  const float eigenvalue_bound = MulRn(MulRn(prepared.eigenvalue_bound, norm), 1.0f - 0x1p-10f);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    element_bound[i] = MulRn(MulRn(element_bound[i], norm), 1.0f - 0x1p-10f);
  }
  __syncthreads();
  const float unit =
      DivRn(kE4m3SmallestSubnormal, MulRn(kE2m1Max, memory.code[1].x));  // of a block's amax

  unsigned evaluations = 0;
  int queued = 0;
  const auto block_of = [&](int64_t row) { return min(row, args.rows - 1) * args.slices + slice; };
  const auto evaluate_queue = [&](int count) {
    __syncwarp();
    const unsigned entry = own.queue[lane < count ? lane : 0];
    const int row = static_cast<int>(entry >> 8), k = static_cast<int>(entry & 0xFF);
    float w[kBlockSize];
    LoadBlock<T>(args.x, block_of(first_row + row), w);
    const float loss = HessianLossByReciprocal(w, memory.code[k], own.column);
    if (lane < count) {
      atomicMin(&own.key[row], static_cast<unsigned long long>(FloatBits(loss)) << 32 | k);
    }
    __syncwarp();
  };

  for (int tile = 0; tile < kTiles; ++tile) {
    const int64_t tile_row = first_row + tile * 32;
    if (tile_row >= args.rows) break;
    uint2 words[4];
#pragma unroll
    for (int group = 0; group < 4; ++group) {
      const int64_t b = block_of(tile_row + group * 8 + quad);
      words[group] = __ldg(static_cast<const uint2*>(args.x) + b * 4 + quarter);
    }
#pragma unroll 1
    for (int group = 0; group < 4; ++group) {
      const uint2 word = group == 0   ? words[0]
                         : group == 1 ? words[1]
                         : group == 2 ? words[2]
                                      : words[3];
      const float4 four = UnpackFour<T>(word);
      const float values[4] = {four.x, four.y, four.z, four.w};
      float amax = fmaxf(fmaxf(Abs(four.x), Abs(four.y)), fmaxf(Abs(four.z), Abs(four.w)));
      amax = fmaxf(amax, __shfl_xor_sync(kHessianWarp, amax, 1));
      amax = fmaxf(amax, __shfl_xor_sync(kHessianWarp, amax, 2));
      float bound = 0.0f;  // of the elements that saturate first
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (Abs(values[i]) == amax) bound = fmaxf(bound, element_bound[i]);
      }
      bound = fmaxf(bound, __shfl_xor_sync(kHessianWarp, bound, 1));
      bound = fmaxf(bound, __shfl_xor_sync(kHessianWarp, bound, 2));

      const float ratio = MulRn(amax, unit);
      int first = static_cast<int>(E4m3Encode(fminf(ratio, kE4m3Max)));
      if (MulRn(kE2m1Max, memory.code[first].x) < amax) ++first;
      const int doublings = first / 8 - kHessianPivot / 8;
      const int exponent = table_exponent + doublings;  // of the block
      const bool zero = amax == 0.0f;
      bool active = fit && !zero && first >= 8 && first <= kE4m3Codes &&
                    tile_row + group * 8 + quad < args.rows;
      // Where losses are so large or so small that the definition rounds otherwise, it decides.
      active = active && abs(exponent) <= 60 && abs(exponent + slice_exponent) <= 40;
      const float normalize =
          active ? FloatFromBits(static_cast<uint32_t>(127 - exponent) << 23) : 0.0f;
      const int pivot = active ? first - 8 * doublings : kHessianPivot;
      HessianQuarter own_quarter;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float w = MulRn(values[i], normalize);
        own_quarter.w[i] = w;
        own_quarter.moved[i] = FmaRn(w, memory.move[HessianMantissa(w, kBits)], w);
      }
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const uint32_t pair = __byte_perm(FloatBits(own_quarter.w[2 * i]),
                                          FloatBits(own_quarter.w[2 * i + 1]), 0x7632);
        own_quarter.big[i] = (pair & 0x7FFF7FFFu) + 0x0B000B00u;
      }
      amax = MulRn(amax, normalize);

      float limit = kInfinity;  // no less than the smallest loss
      float square_bound[2] = {0.0f, 0.0f};
      unsigned rounds = 0;  // evaluated ones
      const auto evaluate = [&](auto clamp, int round, unsigned steps) {
        float sum[4] = {0, 0, 0, 0};
        const float4* codes = &memory.codes[pivot + 8 * round];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          if (steps >> j & 1) {
            const uint32_t one = FloatBits(1.0f);
            const uint32_t column[2] = {quad == 2 * j ? one : 0u, quad == 2 * j + 1 ? one : 0u};
            HessianStep<decltype(clamp)::value>(own_quarter, codes[2 * j], l, column, sum);
          }
        }
        // This thread's two codes: sum[0] and sum[2] are their losses, sum[1] and sum[3] |d|^2.
        const bool evaluated = (steps >> quarter & 1) != 0;
        const int k = first + 8 * round + 2 * quarter;
        float upper = kInfinity;
        float2 lower = {kInfinity, kInfinity};
        if (evaluated && k <= kE4m3Codes) {
          lower.x = FmaRn(sum[0], 1.0f - kHessianFilterError, -MulRn(slack, sum[1]));
          upper = FmaRn(sum[0], 1.0f + kHessianFilterError, MulRn(slack, sum[1]));
          evaluations += active;
        }
        if (evaluated && k + 1 <= kE4m3Codes) {
          lower.y = FmaRn(sum[2], 1.0f - kHessianFilterError, -MulRn(slack, sum[3]));
          upper = fminf(upper, FmaRn(sum[2], 1.0f + kHessianFilterError, MulRn(slack, sum[3])));
          evaluations += active;
        }
        if (evaluated) {
          square_bound[0] = MulRn(eigenvalue_bound, sum[1]);
          square_bound[1] = MulRn(eigenvalue_bound, sum[3]);
        }
        own.lower[round - kHessianFirstRound][lane] = lower;
        rounds |= 1u << (round - kHessianFirstRound);
        upper = fminf(upper, __shfl_xor_sync(kHessianWarp, upper, 1));
        upper = fminf(upper, __shfl_xor_sync(kHessianWarp, upper, 2));
        limit = fminf(limit, AddRn(upper, floor));
      };
      // One bit for each of the four steps that a thread of its quarter asks for.
      const auto steps_of = [&](bool needed) {
        unsigned steps = __ballot_sync(kHessianWarp, needed);
        steps |= steps >> 16;
        steps |= steps >> 8;
        return (steps | steps >> 4) & 0xFu;
      };

      evaluate(std::false_type{}, 0, 0xFu);
      const float2 window_bound = {square_bound[0], square_bound[1]};
      for (int round = -1; round >= kHessianFirstRound - 1; --round) {
        const int k = first + 8 * round + 2 * quarter;  // and the next
        const float d = FmaRn(-kE2m1Max, memory.codes[pivot + 8 * round + 2 * quarter + 1].x, amax);
        bool needed = active && k + 1 >= 1 && !(MulRn(bound, MulRn(d, d)) > limit);
        const bool beyond = needed && (k < 8 || round < kHessianFirstRound);
        const unsigned leaving = __ballot_sync(kHessianWarp, beyond);
        if ((leaving >> (quad * 4) & 0xFu) != 0) active = false;
        needed = needed && active;
        const unsigned steps = steps_of(needed);
        if (steps == 0) break;
        evaluate(std::true_type{}, round, steps);
      }
      square_bound[0] = window_bound.x;
      square_bound[1] = window_bound.y;
      for (int round = 1; round <= kHessianLastRound; ++round) {
        const int k = first + 8 * round + 2 * quarter;
        // Beyond the first code that rounds everything to zero nothing changes.
        const float before = memory.codes[pivot + 8 * round + 2 * quarter - 1].x;
        const bool needed = active && k <= kE4m3Codes && before < 4.0f * amax &&
                            (square_bound[0] <= limit || square_bound[1] <= limit);
        const unsigned steps = steps_of(needed);
        if (steps == 0) break;
        evaluate(std::false_type{}, round, steps);
      }

      uint2 mask = {0, 0};
      const float threshold = AddRn(limit, floor);
      for (unsigned left = rounds; left != 0; left &= left - 1) {
        const int round = __ffs(static_cast<int>(left)) - 1;
        const float2 lower = own.lower[round][lane];
        const unsigned both = (lower.x <= threshold ? 1u : 0u) | (lower.y <= threshold ? 2u : 0u);
        const unsigned bits = both << (8 * (round % 4) + 2 * quarter);
        if (round < 4) {
          mask.x |= bits;
        } else {
          mask.y |= bits;
        }
      }
      mask.x |= __shfl_xor_sync(kHessianWarp, mask.x, 1);
      mask.y |= __shfl_xor_sync(kHessianWarp, mask.y, 1);
      mask.x |= __shfl_xor_sync(kHessianWarp, mask.x, 2);
      mask.y |= __shfl_xor_sync(kHessianWarp, mask.y, 2);
      if (quarter == 0) {
        own.contenders[group * 8 + quad] = active ? mask : uint2{0, 0};
        own.first[group * 8 + quad] = first;
        own.key[tile * 32 + group * 8 + quad] = zero ? 1 : kUnresolved;
      }
    }
    __syncwarp();
    // A thread is a row now: its first contender at once, the others when a warp of them is there.
    uint2 mask = own.contenders[lane];
    const int base = own.first[lane] + 8 * kHessianFirstRound;
    const auto take = [&]() {
      const bool low = mask.x != 0;
      const int bit =
          low ? __ffs(static_cast<int>(mask.x)) - 1 : 31 + __ffs(static_cast<int>(mask.y));
      if (low) {
        mask.x &= mask.x - 1;
      } else {
        mask.y &= mask.y - 1;
      }
      return base + bit;
    };
    const bool any = (mask.x | mask.y) != 0;
    const int k = any ? take() : 8;
    {
      float w[kBlockSize];
      LoadBlock<T>(args.x, block_of(tile_row + lane), w);
      const float loss = HessianLossByReciprocal(w, memory.code[k], own.column);
      if (any)
        own.key[tile * 32 + lane] = static_cast<unsigned long long>(FloatBits(loss)) << 32 | k;
    }
    __syncwarp();
    while (true) {
      const bool more = (mask.x | mask.y) != 0;
      const unsigned voters = __ballot_sync(kHessianWarp, more);
      if (voters == 0) break;
      if (more) {
        const int at = queued + __popc(voters & ((1u << lane) - 1u));
        own.queue[at] = static_cast<unsigned>((tile * 32 + lane) << 8 | take());
      }
      queued += __popc(voters);
      if (queued >= 32) {
        evaluate_queue(32);
        const unsigned moved = own.queue[32 + lane];
        __syncwarp();
        own.queue[lane] = moved;
        queued -= 32;
        __syncwarp();
      }
    }
  }
  if (queued != 0) evaluate_queue(queued);
  __syncthreads();

  bool unresolved = false;
  for (int i = threadIdx.x; i < kWarps * kRows; i += kWarps * 32) {
    const int64_t row = first_row + i / kWarps, column = first_slice + i % kWarps;
    if (row >= args.rows || column >= args.slices) continue;
    const unsigned long long key = memory.warp[i % kWarps].key[i / kWarps];
    const int64_t b = row * args.slices + column;
    const int k = static_cast<int>(key & 0xFF);
    args.code[b] = static_cast<uint8_t>(k);
    args.best_amax[b] = args.tables->block_amax[k];
    args.loss[b] = FloatFromBits(static_cast<uint32_t>(key >> 32));
    unresolved = unresolved || key == kUnresolved;
  }
  if (unresolved) args.tables->unresolved = 1;
  if (args.evaluations != nullptr) {
    const unsigned sum = __reduce_add_sync(kHessianWarp, evaluations);
    if (lane == 0 && first_slice + warp < args.slices) {
      atomicAdd(reinterpret_cast<unsigned long long*>(args.evaluations),
                static_cast<unsigned long long>(sum));
    }
  }
}

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CUDA_SCALE_SWEEP_HESSIAN_FILTER_CUH_
