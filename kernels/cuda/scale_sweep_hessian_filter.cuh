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
#include "kernels/cuda/warp.cuh"

namespace nibble {

inline constexpr float kHessianFilterError = 0x1p-8f;
inline constexpr int kHessianTableEnd = 97;  // codes that scaled blocks can reach end below it
inline constexpr int kHessianFirstRound = -2, kHessianLastRound = 5;  // of 8 codes, from k0 on

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

template <typename T>
__device__ __forceinline__ float4 UnpackFour(uint2 words) {
  const float2 low = Unpack(T{}, words.x), high = Unpack(T{}, words.y);
  return {low.x, low.y, high.x, high.y};
}

// What a warp keeps of its slice and of its rows.
template <int kRows>
struct alignas(16) HessianWarpMemory {
  float column[kBlockSize][kBlockSize];
  float element_bound[kBlockSize];
  uint4 words[32][2];             // the rows of a tile
  float4 row[32];                 // normalize, scaled amax, bound of its elements, first code
  uint2 contenders[32];           // bit i is code first + 8 * kHessianFirstRound + i
  unsigned queue[64];             // row << 8 | code, to be evaluated
  unsigned long long key[kRows];  // bits of the loss << 32 | code, the smallest so far
};

template <int kWarps, int kRows>
struct HessianFilterMemory {
  float4 codes[kHessianTableEnd];  // scaled: s[k], s[k + 1], 1 / s[k], 1 / s[k + 1]
  float2 code[kE4m3Codes + 1];     // s, 1 / s
  float move[1 << kHessianMoveBits];
  HessianWarpMemory<kRows> warp[kWarps];
};

// The steps of a round that any thread asks for; each asks for that of its quarter.
__device__ __forceinline__ unsigned HessianSteps(bool needed) {
  unsigned steps = __ballot_sync(kWholeWarp, needed);
  steps |= steps >> 16;
  steps |= steps >> 8;
  return (steps | steps >> 4) & 0xFu;
}

// A warp is a slice, a thread block kWarps adjacent slices and kTiles * 32 rows.
template <typename T, int kWarps, int kTiles, int kResident>
__global__ void __launch_bounds__(kWarps * 32, kResident)
    HessianFilterKernel(ScaleSweepHessianArgs args, int slice_groups) {
  constexpr int kRows = kTiles * 32;
  constexpr int kBits = std::is_same_v<T, Bf16> ? 8 : 11;
  constexpr unsigned long long kUnresolved = ~0ull;
  const float infinity = FloatFromBits(0x7F800000u);
  extern __shared__ __align__(16) char raw_memory[];
  auto& memory = *reinterpret_cast<HessianFilterMemory<kWarps, kRows>*>(raw_memory);
  if (!args.tables->filtered) return;

  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int quad = lane / 4, quarter = lane % 4;
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
  for (int i = threadIdx.x; i < 1 << (kBits - 1); i += kWarps * 32) {
    memory.move[i] = args.tables->move[i];
  }
  auto& own = memory.warp[warp];
  const int64_t slice = min(first_slice + warp, args.slices - 1);
  const HessianSlice& prepared = args.prepared[slice];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    reinterpret_cast<float4*>(own.column)[i * 32 + lane] =
        reinterpret_cast<const float4*>(prepared.column)[i * 32 + lane];
  }
  uint32_t l[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) l[i] = prepared.fragment[i][lane];
  const int slice_exponent = prepared.exponent;
  const float slack = prepared.slack, floor = prepared.floor;
  // Normalized like L; both were made with room for a rounding. An unfit slice has no exponent.
  const bool fit = slice_exponent >= -50 && slice_exponent <= 50;
  const float norm =
      MulRn(FloatFromBits(static_cast<uint32_t>(127 - 2 * (fit ? slice_exponent : 0)) << 23),
            1.0f - 0x1p-10f);
  const float eigenvalue_bound = MulRn(prepared.eigenvalue_bound, norm);
  if (lane < kBlockSize) own.element_bound[lane] = MulRn(prepared.element_bound[lane], norm);
  __syncthreads();
  const float unit =
      DivRn(kE4m3SmallestSubnormal, MulRn(kE2m1Max, memory.code[1].x));  // of a block's amax

  unsigned evaluations = 0;
  int queued = 0;
  const auto block_of = [&](int64_t row) { return min(row, args.rows - 1) * args.slices + slice; };

  for (int tile = 0; tile < kTiles; ++tile) {
    const int64_t tile_row = first_row + tile * 32;
    if (tile_row >= args.rows) break;
    {  // A thread is a row.
      const uint4* source = static_cast<const uint4*>(args.x) + block_of(tile_row + lane) * 2;
      const uint4 words[2] = {__ldg(source), __ldg(source + 1)};
      own.words[lane][0] = words[0];
      own.words[lane][1] = words[1];
      const uint32_t pairs[8] = {words[0].x, words[0].y, words[0].z, words[0].w,
                                 words[1].x, words[1].y, words[1].z, words[1].w};
      float amax = 0.0f;
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const float2 pair = Unpack(T{}, pairs[i]);
        amax = fmaxf(amax, fmaxf(Abs(pair.x), Abs(pair.y)));
      }
      float bound = 0.0f;  // of the elements that saturate first
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const float2 pair = Unpack(T{}, pairs[i]);
        if (Abs(pair.x) == amax) bound = fmaxf(bound, own.element_bound[2 * i]);
        if (Abs(pair.y) == amax) bound = fmaxf(bound, own.element_bound[2 * i + 1]);
      }
      // The first unsaturated code, as E4M3 rounds or one above; codes below 8 are not sought here.
      const float ratio = fminf(MulRn(amax, unit), kE4m3Max);
      const uint32_t bits = FloatBits(ratio);
      int first = static_cast<int>((bits + 0x7FFFFu + ((bits >> 20) & 1u) - 0x3C000000u) >> 20);
      bool active = fit & (ratio >= 0x1p-6f) & (tile_row + lane < args.rows);
      first = active ? first : kHessianPivot;
      first += MulRn(kE2m1Max, memory.code[first].x) < amax ? 1 : 0;
      const int exponent = table_exponent + first / 8 - kHessianPivot / 8;  // of the block
      // Where losses are so large or so small that the definition rounds otherwise, it decides.
      active = active & (first <= kE4m3Codes) & (abs(exponent) <= 60) &
               (abs(exponent + slice_exponent) <= 40);
      const float normalize =
          active ? FloatFromBits(static_cast<uint32_t>(127 - exponent) << 23) : 0.0f;
      own.row[lane] = {normalize, MulRn(amax, normalize), bound,
                       __int_as_float(active ? first : kHessianPivot)};
      own.key[tile * 32 + lane] = amax == 0.0f ? 1 : kUnresolved;
    }
    __syncwarp();

#pragma unroll 1
    for (int group = 0; group < 4; ++group) {
      const int row = group * 8 + quad;
      const float4 about = own.row[row];
      const float4 four =
          UnpackFour<T>(reinterpret_cast<const uint2*>(&own.words[row][0])[quarter]);
      const float amax = about.y;
      const int first = __float_as_int(about.w);
      const bool active = about.x != 0.0f;
      bool resolved = true;
      // The last offset from `first` that is a code, and from this thread's step.
      const int room = kE4m3Codes - first - 2 * quarter;
      const float4* pivot = &memory.codes[kHessianPivot + first % 8];
      HessianQuarter block;
      const float values[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float w = MulRn(values[i], about.x);
        block.w[i] = w;
        block.moved[i] = FmaRn(w, memory.move[HessianMantissa(w, kBits)], w);
      }
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const uint32_t pair =
            __byte_perm(FloatBits(block.w[2 * i]), FloatBits(block.w[2 * i + 1]), 0x7632);
        block.big[i] = (pair & 0x7FFF7FFFu) + 0x0B000B00u;
      }

      float limit = infinity;                // no less than the smallest loss
      float square_bound[2] = {0.0f, 0.0f};  // of losses at twice the scale
      uint2 mask = {0, 0};
      unsigned steps_done = 0;
      // Of this thread's two codes: sum[0] and sum[2] are losses, sum[1] and sum[3] |d|^2.
      const auto finish = [&](const float(&sum)[4], int round, unsigned steps) {
        const bool evaluated = (steps >> quarter & 1) != 0;
        const float loss[2] = {evaluated & (8 * round <= room) ? sum[0] : infinity,
                               evaluated & (8 * round < room) ? sum[2] : infinity};
        const float slacks[2] = {MulRn(slack, sum[1]), MulRn(slack, sum[3])};
        float upper = fminf(FmaRn(loss[0], 1.0f + kHessianFilterError, slacks[0]),
                            FmaRn(loss[1], 1.0f + kHessianFilterError, slacks[1]));
        upper = fminf(upper, __shfl_xor_sync(kWholeWarp, upper, 1));
        upper = fminf(upper, __shfl_xor_sync(kWholeWarp, upper, 2));
        limit = fminf(limit, AddRn(upper, floor));
        steps_done += __popc(steps);
        return float2{FmaRn(loss[0], 1.0f - kHessianFilterError, -slacks[0]),
                      FmaRn(loss[1], 1.0f - kHessianFilterError, -slacks[1])};
      };
      const auto bits_of = [&](const float2& lower) {
        const float threshold = AddRn(limit, floor);
        return (lower.x <= threshold ? 1u : 0u) | (lower.y <= threshold ? 2u : 0u);
      };
      float2 lowers[3];  // of rounds -1, 0 and 1
      lowers[0] = lowers[2] = {infinity, infinity};
      unsigned steps = 0xF;
#pragma unroll 1
      for (int round = 0;;) {
        {
          float sum[4] = {0, 0, 0, 0};
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            if (steps >> j & 1) {
              const uint32_t one = FloatBits(1.0f);
              const uint32_t column[2] = {quad == 2 * j ? one : 0u, quad == 2 * j + 1 ? one : 0u};
              HessianStep<false>(block, pivot[8 * round + 2 * j], l, column, sum);
            }
          }
          const float2 lower = finish(sum, round, steps);
          if (steps >> quarter & 1) {
            square_bound[0] = MulRn(eigenvalue_bound, sum[1]);
            square_bound[1] = MulRn(eigenvalue_bound, sum[3]);
          }
          if (round == 0) {
            lowers[1] = lower;
          } else if (round == 1) {
            lowers[2] = lower;
          } else {
            mask.y |= bits_of(lower) << (8 * (round - 2));
          }
        }
        if (round == 0) {
          steps = 1;  // while the lowest codes of a round are needed, so may be those below
#pragma unroll 1
          for (int below = -1; steps & 1; --below) {
            // Of this thread's two codes the larger one.
            const float d = FmaRn(-kE2m1Max, pivot[8 * below + 2 * quarter].y, amax);
            bool needed = active & (MulRn(about.z, MulRn(d, d)) <= limit) &
                          (first + 8 * below + 2 * quarter >= 0);
            const bool here =
                (below >= kHessianFirstRound) & (first + 8 * below + 2 * quarter >= 8);
            resolved = resolved & (here | !needed);
            needed = needed & here;
            steps = HessianSteps(needed);
            if (steps == 0) break;
            float sum[4] = {0, 0, 0, 0};
#pragma unroll
            for (int j = 0; j < 4; ++j) {
              if (steps >> j & 1) {
                const uint32_t one = FloatBits(1.0f);
                const uint32_t column[2] = {quad == 2 * j ? one : 0u, quad == 2 * j + 1 ? one : 0u};
                HessianStep<true>(block, pivot[8 * below + 2 * j], l, column, sum);
              }
            }
            const float2 lower = finish(sum, below, steps);
            if (below == -1) {
              lowers[0] = lower;
            } else {
              mask.x |= bits_of(lower);
            }
          }
        }
        if (++round > kHessianLastRound) break;
        bool needed = active & (8 * round <= room) &
                      ((square_bound[0] <= limit) | (square_bound[1] <= limit));
        // Beyond the first code that rounds everything to zero nothing changes.
        if (round >= 3) {
          needed = needed & (pivot[8 * round + 2 * quarter - 1].x < MulRn(4.0f, amax));
        }
        steps = HessianSteps(needed);
        if (steps == 0) break;
      }

      mask.x |= bits_of(lowers[0]) << 8 | bits_of(lowers[1]) << 16 | bits_of(lowers[2]) << 24;
      const unsigned stuck = __ballot_sync(kWholeWarp, !resolved) >> (4 * quad) & 0xFu;
      mask.x <<= 2 * quarter;
      mask.y <<= 2 * quarter;
      mask.x |= __shfl_xor_sync(kWholeWarp, mask.x, 1);
      mask.x |= __shfl_xor_sync(kWholeWarp, mask.x, 2);
      mask.y |= __shfl_xor_sync(kWholeWarp, mask.y, 1);
      mask.y |= __shfl_xor_sync(kWholeWarp, mask.y, 2);
      if (quarter == 0) {
        own.contenders[row] = active & (stuck == 0) ? mask : uint2{0, 0};
        evaluations += active ? 2 * steps_done : 0;
      }
    }
    __syncwarp();

    // A thread is a row again. Contenders are evaluated when there are as many as threads.
    uint2 mask = own.contenders[lane];
    const int base = __float_as_int(own.row[lane].w) + 8 * kHessianFirstRound;
    const bool last = tile == kTiles - 1 || tile_row + 32 >= args.rows;
    while (true) {
      const bool any = (mask.x | mask.y) != 0;
      const unsigned voters = __ballot_sync(kWholeWarp, any);
      if (any) {
        const int bit = mask.x != 0 ? __ffs(static_cast<int>(mask.x)) - 1
                                    : __ffs(static_cast<int>(mask.y)) + 31;
        if (mask.x != 0) {
          mask.x &= mask.x - 1;
        } else {
          mask.y &= mask.y - 1;
        }
        own.queue[queued + __popc(voters & ((1u << lane) - 1u))] =
            static_cast<unsigned>((tile * 32 + lane) << 8 | (base + bit));
      }
      queued += __popc(voters);
      if (queued < 32 && !(voters == 0 && last && queued != 0)) {
        if (voters == 0) break;
        continue;
      }
      __syncwarp();
      const unsigned entry = own.queue[lane < queued ? lane : 0], next = own.queue[lane + 32];
      __syncwarp();
      own.queue[lane] = next;
      __syncwarp();
      const int row = static_cast<int>(entry >> 8), k = static_cast<int>(entry & 0xFF);
      float w[kBlockSize];
      LoadBlock<T>(args.x, block_of(first_row + row), w);
      const float loss = HessianLossByReciprocal(w, memory.code[k], own.column);
      if (lane < queued) {
        atomicMin(&own.key[row], static_cast<unsigned long long>(FloatBits(loss)) << 32 | k);
      }
      queued = max(queued - 32, 0);
    }
    __syncwarp();
  }
  __syncthreads();

  bool unresolved = false;
  for (int i = threadIdx.x; i < kWarps * kRows; i += kWarps * 32) {
    const int64_t row = first_row + i / kWarps, column = first_slice + i % kWarps;
    if (row >= args.rows || column >= args.slices) continue;
    const unsigned long long key = memory.warp[i % kWarps].key[i / kWarps];
    const int64_t b = row * args.slices + column;
    const int k = key == kUnresolved ? 0 : static_cast<int>(key & 0xFF);
    args.code[b] = static_cast<uint8_t>(k);
    args.best_amax[b] = args.tables->block_amax[k];
    args.loss[b] = FloatFromBits(static_cast<uint32_t>(key >> 32));
    unresolved = unresolved || key == kUnresolved;
  }
  if (unresolved) args.tables->unresolved = 1;
  AddHessianCounts(first_slice + warp < args.slices ? args.counts : nullptr, evaluations, 0);
}

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CUDA_SCALE_SWEEP_HESSIAN_FILTER_CUH_
