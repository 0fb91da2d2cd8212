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
  float limit;     // holds below this block maximum; 0: never; negative under kDownFromEven
  uint32_t align;  // P * 2^-112 as bf16, twice: a product's bits << 3 are those of x * P in fp16
  uint32_t worth;  // -(worth * P) / kCodeUnit as the sum of two fp16, the larger one below
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
  const float aligned =
      -MulRn(FloatFromBits((FloatBits(worth) & 0x7FFFFFu) | 126u << 23), 1.0f / kCodeUnit);
  const uint32_t high = F16FromFloat(aligned);
  const uint32_t low = F16FromFloat(SubRn(aligned, FloatFromF16(static_cast<uint16_t>(high))));
  const float limit = MulRn(6.9f, unit);
  return {factor, ties == FilterTies::kUp ? limit : -limit,
          (141 - exponent) << 7 | (141 - exponent) << 23, high | low << 16};
}

// `scale` with the P of `other`: P is the same or half of it, where scale's code is not less than
// other's and not more than its double.
NIBBLE_HD FilterScale AlignFilterScale(FilterScale scale, const FilterScale& other) {
  if (scale.align != other.align) scale.worth += 0x04000400u;
  return scale;
}

// How far apart the computed sums may be from one another though the definition's are not, or are
// the other way round. amax: of the block; align: of its scales.
//
// Let T be a candidate's sum in real numbers, in multiples of 1 / P, and u = 2^-11 the rounding of
// fp16. Codes are the definition's, and d = q s - h is rounded twice (its parts in fp16 are exact
// but for 2^-24 of s and for 2^-22 of h). Beyond that, mae adds a tree of three levels: 5u T in
// all. mse squares, and adds up four and then two: 9u T. The definition's own sums are as far off
// as JudgeFourOverSix leaves room for: 2^-15 amax, or 2^-19 amax^2 and 2^-15 T. The rest is below a
// quarter of what the first terms here are.
template <ErrorMetric kMetric>
NIBBLE_HD float FilterMargin(float error6, float error4, float amax, uint32_t align) {
  const float h = MulRn(amax, FloatFromBits(align));  // times 2^-112
  const float both = AddRn(error6, error4);
  if (kMetric == ErrorMetric::kMae) {
    return FmaRn(h, 0x1p112f * 0x1p-13f, MulRn(both, 5.2f * 0x1p-11f));
  }
  const float root = MulRn(h, 0x1p112f * 0x1p-8f);
  return FmaRn(root, MulRn(root, 0.5f), MulRn(both, 9.3f * 0x1p-11f));
}

}  // namespace nibble

#endif  // NIBBLE_QUANT_NUMERICS_FOUR_OVER_SIX_FILTER_H_
