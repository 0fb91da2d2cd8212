// Which candidate of 4over6 wins, by sums in fp16 instead of the definition's: how a scale's codes
// are found by truncation, and how far such a sum lies from the definition's at most. For bf16
// values under the runtime rule. kernels/cuda/four_over_six.cuh is the rest.
#ifndef NIBBLE_QUANT_NUMERICS_FOUR_OVER_SIX_FILTER_H_
#define NIBBLE_QUANT_NUMERICS_FOUR_OVER_SIX_FILTER_H_

#include <cstdint>

#include "quant/numerics/block_encode.h"
#include "quant/numerics/e4m3.h"
#include "quant/numerics/float_bits.h"
#include "quant/numerics/four_over_six.h"

namespace nibble {

// How a value goes at a tie. Values are truncated to fp16 in units, so that a tie and all that is
// above it goes up, and that is right for a tie above an odd code.
enum class FilterTies : uint8_t {
  kUp,
  kDownFromEven  // a truncated value that is a tie above an even code goes down after all
};

// What the filter knows of a scale code under one outer scale. Errors are measured in x * P, with
// P the power of two that brings the worth of the scale's unit between 1/2 and 1.
struct FilterScale {
  float factor;    // x * factor is in units
  float limit;     // holds for blocks whose largest magnitude is below; 0: for none
  uint32_t align;  // P * 2^-112 as bf16, twice: a product's bits << 3 are those of x * P in fp16
  // Low half: -(worth * P) / kCodeUnit as fp16; as a float: a bound of its relative error, negative
  // under kDownFromEven.
  uint32_t worth;
};

// Whether all bf16 values get the definition's code, which rounds their rounded product to even.
// Ties have four mantissas (those of 2.5, 3.5 and 5 are 1.25 and 1.75 again, above codes of the
// same parity). A bf16 value that is not the nearest to tie * unit is 2^-9 of it away at least: on
// its side of the tie by either rule, as the factors differ by 2^-21 at most, and not truncated to
// it (the step of fp16 is 2^-10 units there, which only for the even tie at 1/4 is more than 2^-9
// of it: there the next value is tried, too).
NIBBLE_HD bool DecidesAsDefinition(float factor, FilterTies ties, float encode_scale, float unit) {
  constexpr float kTies[] = {0.25f, 0.75f, 1.25f, 1.75f};
  bool same = true;
  NIBBLE_UNROLL
  for (int i = 0; i < 4; ++i) {
    const bool odd = i % 2 == 1;
    const uint32_t nearest = (FloatBits(MulRn(kTies[i], unit)) + 0x8000u) & 0xFFFF0000u;
    NIBBLE_UNROLL
    for (uint32_t next = 0; next < (i == 0 ? 2 : 1); ++next) {
      const float x = FloatFromBits(nearest + (next << 16));
      const float scaled = MulRn(x, encode_scale);
      const bool expected = scaled > kTies[i] || (odd && scaled == kTies[i]);
      // Where a truncated value begins that is more than the tie.
      const float step = !odd && ties == FilterTies::kDownFromEven ? 0x1p-10f : 0.0f;
      same &= expected == (MulRn(x, factor) >= (kTies[i] + step) * kCodeUnit);
    }
  }
  return same;
}

// The error that a bound leaves room for beside that of the worth: that of the definition's own
// arithmetic, and of what is below the range of fp16.
inline constexpr float kFilterSlack = 0x1p-18f;

NIBBLE_HD FilterScale MakeFilterScale(uint32_t scale, const OuterScales& outer) {
  FilterScale none = {1.0f, 0.0f, 0, 0};
  const float amax = outer.context.amax;
  // Below 2^-40 a block of less than 2^-60, which DivideBySix is not for, might get a scale.
  if (!outer.regular || scale > kE4m3Codes || (amax != 0.0f && amax < 0x1p-40f)) return none;
  if (scale == 0) {  // zeros and nothing else
    none.limit = 0x1p-149f;
    return none;
  }
  const float value = E4m3DecodeMagnitude(scale);
  const float unit = MulRn(value, outer.context.global.decode_scale);
  const float worth = MulRn(value, outer.error_scale);
  const uint32_t exponent = FloatBits(worth) >> 23;
  if (exponent < 16 || exponent > 140) return none;
  const float encode_scale = ReciprocalInRange(unit);
  float factor = MulRn(encode_scale, kCodeUnit);
  FilterTies ties = FilterTies::kUp;
  if (!DecidesAsDefinition(factor, ties, encode_scale, unit)) {
    // Most often a value is a tie above an even code: a factor two last places less sends it down.
    const float less = MulRn(factor, 1.0f - 0x1p-22f);
    if (DecidesAsDefinition(less, ties, encode_scale, unit)) {
      factor = less;
    } else {  // and another is one above an odd code
      ties = FilterTies::kDownFromEven;
      if (!DecidesAsDefinition(factor, ties, encode_scale, unit)) return none;
    }
  }
  const float aligned = FloatFromBits((FloatBits(worth) & 0x7FFFFFu) | 126u << 23);
  const uint16_t half = F16FromFloat(MulRn(aligned, 1.0f / kCodeUnit));
  const float difference = Abs(SubRn(MulRn(FloatFromF16(half), kCodeUnit), aligned));
  // Rounded up; what the half adds to its mantissa below only adds.
  const uint32_t error =
      (FloatBits(FmaRn(DivideInRange(difference, aligned), 1.01f, kFilterSlack)) + 0xFFFFu) &
      0xFFFF0000u;
  return {factor, MulRn(6.9f, unit), (141 - exponent) << 7 | (141 - exponent) << 23,
          (ties == FilterTies::kDownFromEven ? 0x80000000u : 0u) | error | half | 0x8000u};
}

// How far apart the computed sums may be from one another though the definition's are not, or are
// the other way round. `six`, `four`: what MakeFilterScale said of both scales; amax: of the block.
//
// Let T be a candidate's sum in real numbers, h = x * P, s its worth there and e the relative error
// of s as fp16, u = 2^-11. Codes are the definition's, and fma(q, s(1 + e), -h) is rounded once, so
// |d'| = |d + e q s| (1 + u). mae: the sum of q s is 16 amax + T at most, three levels of a tree
// add 3u: |T' - T| <= 16 e amax + (e + 4u)(1 + u) T, and e <= u. mse: the sum of |d| q s is
// sqrt(T) (4 amax + sqrt(T)) at most, sqrt(T) amax <= 0.13 amax^2 / 2 + T / 0.26, the sum of
// (q s)^2 is 2 (16 amax^2 + T) at most, two roundings of d and five of sums add 7u. The definition
// itself is off by no more than JudgeFourOverSix leaves room for, which kFilterSlack covers.
template <ErrorMetric kMetric>
NIBBLE_HD float FilterMargin(float error6, float error4, float amax, const FilterScale& six,
                             const FilterScale& four) {
  const float e6 = Abs(FloatFromBits(six.worth)), e4 = Abs(FloatFromBits(four.worth));
  const float h = MulRn(MulRn(amax, FloatFromBits(six.align)), 0x1p112f);
  const float both = AddRn(error6, error4);
  if (kMetric == ErrorMetric::kMae) {
    return FmaRn(MulRn(h, 16.5f), AddRn(e6, e4), MulRn(both, 5.2f * 0x1p-11f));
  }
  const float worths = FmaRn(e6, error6, MulRn(e4, error4));
  return FmaRn(MulRn(MulRn(h, h), 0.6f), AddRn(e6, e4),
               FmaRn(worths, 34.0f, MulRn(both, 7.3f * 0x1p-11f)));
}

}  // namespace nibble

#endif  // NIBBLE_QUANT_NUMERICS_FOUR_OVER_SIX_FILTER_H_
