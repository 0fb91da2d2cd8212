// 4over6: each block may map its largest element to 6 (sf6) or to 4 (sf4); the smaller error
// decides.
#ifndef NIBBLE_QUANT_NUMERICS_FOUR_OVER_SIX_H_
#define NIBBLE_QUANT_NUMERICS_FOUR_OVER_SIX_H_

#include <cstdint>

#include "quant/numerics/e2m1.h"
#include "quant/numerics/e4m3.h"
#include "quant/numerics/float_bits.h"
#include "quant/numerics/scale_rules.h"

namespace nibble {

enum class ErrorMetric : uint8_t { kMae, kMse, kAbsMax };
enum class ErrorPath : uint8_t { kStrict, kFast };

struct FourOverSixScales {
  uint8_t sf6;
  uint8_t sf4;
};

NIBBLE_HD FourOverSixScales FourOverSixCandidates(float block_amax, float global_encode_scale) {
  const float base = MulRn(DivRn(block_amax, 6.0f), global_encode_scale);
  return {E4m3Encode(Min(base, kE4m3Max)), E4m3Encode(Min(MulRn(base, 1.5f), kE4m3Max))};
}

// The outer scale that errors are measured against.
struct FourOverSixContext {
  GlobalScale global;
  float amax;   // of the tensor; of the row under per_token
  float bound;  // 448 or 256
};

// d of one element: q is its signed E2M1 value under the candidate.
NIBBLE_HD float FourOverSixDifference(float q, float scale, float x, const FourOverSixContext& c,
                                      ErrorPath path) {
  if (path == ErrorPath::kFast) {  // q * scale is exact, so the fused form rounds as the page says
    return FmaRn(q, scale, -MulRn(x, c.global.encode_scale));
  }
  return SubRn(DivRn(MulRn(MulRn(q, scale), c.amax), kE2m1Max * c.bound), x);
}

// Adds one element's difference to the running error.
NIBBLE_HD float FourOverSixAccumulate(float error, float difference, ErrorMetric metric) {
  switch (metric) {
    case ErrorMetric::kMae:
      return AddRn(error, Abs(difference));
    case ErrorMetric::kMse:
      return AddRn(error, MulRn(difference, difference));
    case ErrorMetric::kAbsMax:
      break;
  }
  return Max(error, Abs(difference));
}

// Joins the errors of two rows of a 16x16 tile. A tile's sixteen are joined as a tree, with
// row r + 8, then r + 4, r + 2, r + 1.
NIBBLE_HD float FourOverSixJoin(float a, float b, ErrorMetric metric) {
  return metric == ErrorMetric::kAbsMax ? Max(a, b) : AddRn(a, b);
}

NIBBLE_HD float FourOverSixJoinTile(float errors[kBlockSize], ErrorMetric metric) {
  for (int half = kBlockSize / 2; half > 0; half /= 2) {
    for (int r = 0; r < half; ++r) {
      errors[r] = FourOverSixJoin(errors[r], errors[r + half], metric);
    }
  }
  return errors[0];
}

// The error of a block under one candidate, summed in element order from 0.
NIBBLE_HD float FourOverSixBlockError(const float x[kBlockSize], uint8_t scale_code,
                                      const FourOverSixContext& c, ErrorMetric metric,
                                      ErrorPath path) {
  const float encode_scale = RuntimeBlockEncodeScale(scale_code, c.global.decode_scale);
  const float scale = E4m3Decode(scale_code);
  float error = 0.0f;
  NIBBLE_ROLLED
  for (int i = 0; i < kBlockSize; ++i) {
    const float q = E2m1Decode(E2m1Encode(RuntimeScaled(x[i], encode_scale)));
    error = FourOverSixAccumulate(error, FourOverSixDifference(q, scale, x[i], c, path), metric);
  }
  return error;
}

}  // namespace nibble

#endif  // NIBBLE_QUANT_NUMERICS_FOUR_OVER_SIX_H_
