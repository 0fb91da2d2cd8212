// How scales follow from maxima, under the two rules: runtime (activations, the embedding API) and
// checkpoint (stored weights). They differ in the order of operations, hence in a few bytes per
// million; every plan, report and file names the rule that made it.
//
// `bound` is the E4M3 value that the global scale aims at: 448, or 256 with 4over6.
#ifndef NIBBLE_QUANT_NUMERICS_SCALE_RULES_H_
#define NIBBLE_QUANT_NUMERICS_SCALE_RULES_H_

#include <cstdint>

#include "quant/numerics/e2m1.h"
#include "quant/numerics/e4m3.h"
#include "quant/numerics/float_bits.h"

namespace nibble {

inline constexpr int kBlockSize = 16;

enum class Rule : uint8_t { kRuntime, kCheckpoint };
enum class Scheme : uint8_t {
  kPerTensor,  // one outer amax; a scale per 1x16 block
  kPerToken,   // an outer amax per row; a scale per 1x16 block
  kTile2d,     // one outer amax; a scale per 16x16 tile, repeated on its 16 rows
};

// --- Runtime rule -------------------------------------------------------------------------------

struct GlobalScale {
  float encode_scale;  // S_enc
  float decode_scale;  // S_dec = 1 / S_enc
};

NIBBLE_HD GlobalScale RuntimeGlobalScale(float amax, float bound) {
  float encode_scale = Min(DivRn(bound * kE2m1Max, amax), kFloatMax);
  if (amax == 0.0f || encode_scale == 0.0f) encode_scale = 1.0f;
  return {encode_scale, DivRn(1.0f, encode_scale)};
}

NIBBLE_HD uint8_t RuntimeBlockScale(float block_amax, float global_encode_scale) {
  const float sf = Min(MulRn(block_amax, MulRn(global_encode_scale, 1.0f / 6.0f)), kFloatMax);
  return E4m3Encode(Max(Min(sf, kE4m3Max), -kE4m3Max));
}

// What elements are multiplied with before they are clamped to +-6 and rounded.
NIBBLE_HD float RuntimeBlockEncodeScale(uint8_t scale_code, float global_decode_scale) {
  return Min(DivRn(1.0f, MulRn(E4m3Decode(scale_code), global_decode_scale)), kFloatMax);
}

NIBBLE_HD float RuntimeScaled(float x, float block_encode_scale) {
  return Max(Min(MulRn(x, block_encode_scale), kE2m1Max), -kE2m1Max);
}

// --- Checkpoint rule ----------------------------------------------------------------------------

// weight_scale_2. Where the quotient is 0 (an all-zero tensor, or an amax below the smallest float
// times 6 * bound) it is 1: no stored scale is ever zero.
NIBBLE_HD float CheckpointGlobalDecodeScale(float amax, float bound) {
  const float decode_scale = DivRn(amax, kE2m1Max * bound);
  return decode_scale == 0.0f ? 1.0f : decode_scale;
}

// The stored scale without a search; never 0, never NaN.
NIBBLE_HD uint8_t CheckpointBlockScale(float block_amax, float global_decode_scale) {
  float ratio = DivRn(block_amax, MulRn(kE2m1Max, global_decode_scale));
  if (ratio == 0.0f) ratio = 1.0f;
  return E4m3Encode(Max(Min(ratio, kE4m3Max), kE4m3SmallestSubnormal));
}

// What elements are divided by before they are rounded; never 0, so that a zero stays one.
NIBBLE_HD float CheckpointBlockDecodeScale(uint8_t scale_code, float global_decode_scale) {
  return Max(MulRn(E4m3Decode(scale_code), global_decode_scale), 0x1p-149f);
}

// --- Both ---------------------------------------------------------------------------------------

// E2M1 x E4M3 is exact in float32, so this rounds once.
NIBBLE_HD float Dequantize(uint8_t code, uint8_t scale_code, float global_decode_scale) {
  return MulRn(MulRn(E2m1Decode(code), E4m3Decode(scale_code)), global_decode_scale);
}

}  // namespace nibble

#endif  // NIBBLE_QUANT_NUMERICS_SCALE_RULES_H_
