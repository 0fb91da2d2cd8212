// 4over6 of a bf16 block that lies packed in registers, under the runtime rule: both candidates are
// encoded, exactly, but the sums of their errors are taken in fp16, two elements an instruction.
// What that leaves undecided, and what is out of the ordinary, is left to block_encode.cuh.
#ifndef NIBBLE_KERNELS_CUDA_FOUR_OVER_SIX_CUH_
#define NIBBLE_KERNELS_CUDA_FOUR_OVER_SIX_CUH_

#include <cstdint>

#include "kernels/cuda/block_encode.cuh"
#include "kernels/cuda/block_load.cuh"
#include "quant/numerics/four_over_six_filter.h"

namespace nibble {

namespace four_over_six_internal {

// Two fp16 numbers in a word.
__device__ __forceinline__ uint32_t TruncateToF16(float low, float high) {
  uint32_t word;
  asm("cvt.rz.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
}
__device__ __forceinline__ uint32_t FmaF16(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t word;
  asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(word) : "r"(a), "r"(b), "r"(c));
  return word;
}
__device__ __forceinline__ uint32_t MulF16(uint32_t a, uint32_t b) {
  uint32_t word;
  asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(word) : "r"(a), "r"(b));
  return word;
}
__device__ __forceinline__ uint32_t AddF16(uint32_t a, uint32_t b) {
  uint32_t word;
  asm("add.rn.f16x2 %0, %1, %2;" : "=r"(word) : "r"(a), "r"(b));
  return word;
}
__device__ __forceinline__ uint32_t AbsF16(uint32_t a) {
  uint32_t word;
  asm("abs.f16x2 %0, %1;" : "=r"(word) : "r"(a));
  return word;
}
// |x| * factor as fp16 times 2^112, for factors and products as FilterScale::align has them.
__device__ __forceinline__ uint32_t Align(uint32_t x, uint32_t factor) {
  uint32_t word;
  // Multiplying bf16 takes compute capability 9.0, adding -0 to a product does not.
  asm("{.reg .b32 a;\n abs.bf16x2 a, %1;\n fma.rn.bf16x2 %0, a, %2, %3;}"
      : "=r"(word)
      : "r"(x), "r"(factor), "r"(0x80008000u));
  return word << 3;
}

// The error of a candidate, of elements 2j and 2j + 1 in word j, in fp16: both of its sums.
template <ErrorMetric kMetric>
__device__ __forceinline__ float SumF16(const uint32_t (&d)[kBlockSize / 2]) {
  uint32_t sum;
  if constexpr (kMetric == ErrorMetric::kMae) {
    const auto add = [&](int i, int j) { return AddF16(AbsF16(d[i]), AbsF16(d[j])); };
    sum = AddF16(AddF16(add(0, 1), add(2, 3)), AddF16(add(4, 5), add(6, 7)));
  } else {
    uint32_t part[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      part[half] = MulF16(d[4 * half], d[4 * half]);
#pragma unroll
      for (int i = 1; i < 4; ++i) part[half] = FmaF16(d[4 * half + i], d[4 * half + i], part[half]);
    }
    sum = AddF16(part[0], part[1]);
  }
  const float2 sums = Unpack(F16{}, sum);
  return AddRn(sums.x, sums.y);
}

// Rounded magnitudes in units, signs above, and below what a mask takes off; the sum of errors.
template <ErrorMetric kMetric>
__device__ __forceinline__ float RoundAndSum(const float (&x)[kBlockSize],
                                             const uint32_t (&h)[kBlockSize / 2], float factor,
                                             uint32_t worth_high, uint32_t worth_low,
                                             uint32_t (&codes)[kBlockSize / 2]) {
  uint32_t d[kBlockSize / 2];
#pragma unroll
  for (int j = 0; j < kBlockSize / 2; ++j) {
    // fp16 bits of a magnitude in units are its index << 9 and the distance to the next: adding
    // half of one rounds, up at a tie.
    codes[j] = TruncateToF16(FmaRn(x[2 * j], factor, 0.0f), FmaRn(x[2 * j + 1], factor, 0.0f)) +
               0x01000100u;
    const uint32_t q = codes[j] & 0x0E000E00u;
    d[j] = FmaF16(q, worth_low, FmaF16(q, worth_high, h[j]));
  }
  return SumF16<kMetric>(d);
}

// (a & mask) | (b & ~mask)
__device__ __forceinline__ uint32_t Choose(uint32_t mask, uint32_t a, uint32_t b) {
  uint32_t chosen;
  asm("lop3.b32 %0, %1, %2, %3, 0xCA;" : "=r"(chosen) : "r"(mask), "r"(a), "r"(b));
  return chosen;
}

// Eight codes from four words.
__device__ __forceinline__ uint32_t JoinWords(const uint32_t* codes) {
  const uint32_t low = PermuteBytes(codes[0], codes[1], 0x7531);
  const uint32_t high = PermuteBytes(codes[2], codes[3], 0x7531);
  // Sign at 7, index at 3..1 of each byte.
  const uint32_t even = PermuteBytes(low, high, 0x6420), odd = PermuteBytes(low, high, 0x7531);
  return Choose(0x0F0F0F0Fu, Choose(0x07070707u, even >> 1, even >> 4),
                Choose(0x70707070u, odd << 3, odd));
}

}  // namespace four_over_six_internal

// `scales`: MakeFilterScale of 0..127. Returns whether `out` is what EncodeBlock would return.
template <ErrorMetric kMetric>
__device__ __forceinline__ bool EncodeFourOverSix(const BlockWords<Bf16>& words, float encode_scale,
                                                  const FilterScale* scales, EncodedBlock& out) {
  using namespace four_over_six_internal;
  const float amax = WordsMagnitude(words);
  const float base = MulRn(DivideBySix(amax), encode_scale);
  uint32_t candidates;  // that of 6, then that of 4
  asm("{.reg .b16 c;\n cvt.rn.satfinite.e4m3x2.f32 c, %1, %2;\n mov.b32 %0, {c, c};}"
      : "=r"(candidates)
      : "f"(MulRn(base, 1.5f)), "f"(base));
  const FilterScale six = scales[candidates & 0x7F];
  const FilterScale four = AlignFilterScale(scales[candidates >> 8 & 0x7F], six);
  float x[kBlockSize];
  UnpackBlock(words, x);
  uint32_t h[kBlockSize / 2], codes6[kBlockSize / 2], codes4[kBlockSize / 2];
#pragma unroll
  for (int j = 0; j < kBlockSize / 2; ++j) h[j] = Align(words.word[j], six.align);
  const auto sum = [&](const FilterScale& scale, uint32_t(&codes)[kBlockSize / 2]) {
    return RoundAndSum<kMetric>(x, h, scale.factor, __byte_perm(scale.worth, 0, 0x1010),
                                __byte_perm(scale.worth, 0, 0x3232), codes);
  };
  const float error6 = sum(six, codes6), error4 = sum(four, codes4);
  const float difference = SubRn(error6, error4);
  const bool choose_four = difference > 0.0f;
  const bool ties_up = (choose_four ? four.limit : six.limit) > 0.0f;
  const uint32_t keep = ties_up ? 0xFFFFFFFFu : 0xFDFFFDFFu;
#pragma unroll
  for (int j = 0; j < kBlockSize / 2; ++j) {
    // A tie above an even code went up, to an odd one, and no bits are below: 1 less has the last
    // index bit clear. At ties the errors are the same either way.
    const uint32_t code = choose_four ? codes4[j] : codes6[j];
    codes6[j] = code & (code - 0x00010001u | keep);
  }
  out.scale = static_cast<uint8_t>(choose_four ? candidates >> 8 : candidates);
  out.codes = {{JoinWords(codes6), JoinWords(codes6 + 4)}};
  // Equal candidates leave nothing to choose.
  const bool decided = fabsf(difference) > FilterMargin<kMetric>(error6, error4, amax, six.align) ||
                       six.factor == four.factor;
  return decided & (amax < fabsf(six.limit)) & (amax < fabsf(four.limit));
}

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CUDA_FOUR_OVER_SIX_CUH_
