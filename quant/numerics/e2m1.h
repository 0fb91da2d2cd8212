// E2M1: code = sign << 3 | index into {0, .5, 1, 1.5, 2, 3, 4, 6}.
#ifndef NIBBLE_QUANT_NUMERICS_E2M1_H_
#define NIBBLE_QUANT_NUMERICS_E2M1_H_

#include <cstdint>

#include "quant/numerics/float_bits.h"

namespace nibble {

inline constexpr float kE2m1Max = 6.0f;

// Index of the magnitude nearest to a >= 0, ties to the even index; saturates at 7, NaN too.
NIBBLE_HD uint8_t E2m1Index(float a) {
  return static_cast<uint8_t>(!(a <= 0.25f)) + static_cast<uint8_t>(!(a < 0.75f)) +
         static_cast<uint8_t>(!(a <= 1.25f)) + static_cast<uint8_t>(!(a < 1.75f)) +
         static_cast<uint8_t>(!(a <= 2.5f)) + static_cast<uint8_t>(!(a < 3.5f)) +
         static_cast<uint8_t>(!(a <= 5.0f));
}

// Twice the magnitude is {0, 1, 2, 3, 4, 6, 8, 12}: one nibble each.
NIBBLE_HD float E2m1Magnitude(uint8_t index) {
  return 0.5f * static_cast<float>((0xC8643210u >> (4 * index)) & 0xFu);
}

// Round to nearest, ties to even, saturating. The sign bit is (x < 0): a small negative gives 8, an
// exact -0.0 gives 0.
NIBBLE_HD uint8_t E2m1Encode(float x) {
  return static_cast<uint8_t>((x < 0.0f ? 8 : 0) | E2m1Index(Abs(x)));
}

NIBBLE_HD float E2m1Decode(uint8_t code) {
  const float magnitude = E2m1Magnitude(code & 7);
  return (code & 8) ? -magnitude : magnitude;
}

// Stochastic rounding: between two neighbours the magnitude goes up with probability equal to its
// relative distance, to within 2^-31. `uniform31` is uniform in [0, 2^31). Saturates like
// E2m1Encode.
NIBBLE_HD uint8_t E2m1EncodeStochastic(float x, uint32_t uniform31) {
  const float a = Abs(x);
  const uint8_t sign = x < 0.0f ? 8 : 0;
  if (!(a < 6.0f)) return sign | 7;
  const uint8_t low = static_cast<uint8_t>(a >= 0.5f) + static_cast<uint8_t>(a >= 1.0f) +
                      static_cast<uint8_t>(a >= 1.5f) + static_cast<uint8_t>(a >= 2.0f) +
                      static_cast<uint8_t>(a >= 3.0f) + static_cast<uint8_t>(a >= 4.0f);
  // a - low is exact, and so is the division by the step: 0.5, 1 or 2.
  const float inverse_step = low < 4 ? 2.0f : low < 6 ? 1.0f : 0.5f;
  const float up = MulRn(SubRn(a, E2m1Magnitude(low)), inverse_step);
  const bool goes_up = uniform31 < static_cast<uint32_t>(MulRn(up, 0x1p31f));
  return static_cast<uint8_t>(sign | (low + (goes_up ? 1 : 0)));
}

}  // namespace nibble

#endif  // NIBBLE_QUANT_NUMERICS_E2M1_H_
