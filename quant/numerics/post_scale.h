// The outer scales of a GEMM's operands, applied to its output: D[i][j] *= a[i] * b[j].
#ifndef NIBBLE_QUANT_NUMERICS_POST_SCALE_H_
#define NIBBLE_QUANT_NUMERICS_POST_SCALE_H_

#include <cstdint>

#include "quant/numerics/float_bits.h"

namespace nibble {

// a * b is rounded, then d times that; the caller rounds once more to D's type. Every NaN is the
// one whose bits but the sign are all set, in D's type, too: devices make no other.
NIBBLE_HD float PostScaled(float d, float a, float b) {
  const float scaled = MulRn(d, MulRn(a, b));
  return (FloatBits(scaled) & 0x7FFFFFFFu) > 0x7F800000u ? FloatFromBits(0x7FFFFFFFu) : scaled;
}

NIBBLE_HD uint16_t PostScaledBf16(uint16_t d, float a, float b) {
  const float scaled = PostScaled(FloatFromBf16(d), a, b);
  return scaled != scaled ? uint16_t{0x7FFF} : Bf16FromFloat(scaled);
}

NIBBLE_HD uint16_t PostScaledF16(uint16_t d, float a, float b) {
  const float scaled = PostScaled(FloatFromF16(d), a, b);
  return scaled != scaled ? uint16_t{0x7FFF} : F16FromFloat(scaled);
}

}  // namespace nibble

#endif  // NIBBLE_QUANT_NUMERICS_POST_SCALE_H_
