// E4M3 (FN): no infinity, finite max 448 = 0x7E, NaN = 0x7F and 0xFF, smallest subnormal 2^-9 =
// 0x01. Codes 1..126 are the 126 positive finite values, in rising order.
#ifndef NIBBLE_QUANT_NUMERICS_E4M3_H_
#define NIBBLE_QUANT_NUMERICS_E4M3_H_

#include <cstdint>

#include "quant/numerics/float_bits.h"

namespace nibble {

inline constexpr float kE4m3Max = 448.0f;
inline constexpr int kE4m3Codes = 126;  // positive finite codes: 1..kE4m3Codes
inline constexpr float kE4m3SmallestSubnormal = 0x1p-9f;

// Round to nearest even, saturating at +-448; NaN gives 0x7F with the sign kept.
NIBBLE_HD uint8_t E4m3Encode(float x) {
  const uint32_t bits = FloatBits(x);
  const uint8_t sign = static_cast<uint8_t>((bits >> 24) & 0x80u);
  const uint32_t magnitude = bits & 0x7FFFFFFFu;
  if (magnitude > 0x7F800000u) return sign | 0x7F;
  if (magnitude >= 0x43E00000u) return sign | 0x7E;  // 448
  if (magnitude < 0x3C800000u) {                     // below 2^-6: the last place is 2^-9
    const uint32_t aligned = FloatBits(AddRn(FloatFromBits(magnitude), 0x1p14f));
    return sign | static_cast<uint8_t>(aligned - 0x46800000u);
  }
  const uint32_t rounded = magnitude + 0x7FFFFu + ((magnitude >> 20) & 1u);
  return sign | static_cast<uint8_t>((rounded - 0x3C000000u) >> 20);
}

NIBBLE_HD float E4m3Decode(uint8_t code) {
  const uint32_t sign = uint32_t{code & 0x80u} << 24;
  const uint32_t magnitude = code & 0x7Fu;
  if (magnitude == 0x7F) return FloatFromBits(sign | 0x7FC00000u);
  return FloatFromBits(sign | FloatBits(MulRn(FloatFromBits(magnitude << 20), 0x1p120f)));
}

// The same for magnitudes, as devices have them in hardware: x >= 0 and not NaN, code <=
// kE4m3Codes.
#if NIBBLE_DEVICE_CODE
NIBBLE_HD uint32_t E4m3EncodeMagnitude(float x) {
  uint16_t pair;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(0.0f), "f"(x));
  return pair;
}
#else
NIBBLE_HD uint32_t E4m3EncodeMagnitude(float x) { return E4m3Encode(x); }
#endif
NIBBLE_HD float E4m3DecodeMagnitude(uint32_t code) {
  return MulRn(FloatFromBits(code << 20), 0x1p120f);
}

}  // namespace nibble

#endif  // NIBBLE_QUANT_NUMERICS_E4M3_H_
