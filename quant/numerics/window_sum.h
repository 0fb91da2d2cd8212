// Sums of floats in 24 bytes that come out with the same bits in any order and any tree.
//
// Fixed point in digits of 32 bits, as in exact_sum.h: digit d counts 2^(32 d - 160), so floats
// reach from digit 0 to digit 9. Kept are three digits, the highest that a term has reached and the
// two below it: at least 65 bits from the largest term's leading one down. A term's bits below are
// dropped, whenever it comes: the digits kept at the end were kept all along, since the highest one
// only rises, so what they hold does not depend on the order.
#ifndef NIBBLE_QUANT_NUMERICS_WINDOW_SUM_H_
#define NIBBLE_QUANT_NUMERICS_WINDOW_SUM_H_

#include <cmath>
#include <cstdint>

#include "quant/numerics/float_bits.h"

namespace nibble {

inline constexpr int kWindowDigits = 3;
inline constexpr int kWindowTopDigit = 9;
// Digits are carried by nobody: each is below 2^32 times the number of terms.
inline constexpr int64_t kWindowMaxTerms = int64_t{1} << 30;

struct WindowSum {
  int64_t digit[kWindowDigits] = {};  // the highest first
  int top = 0;                        // the index of digit[0]; 0 where nothing reached higher
};

NIBBLE_HD void WindowRaise(WindowSum& sum, int top) {
  for (; sum.top < top; ++sum.top) {
    for (int i = kWindowDigits - 1; i > 0; --i) sum.digit[i] = sum.digit[i - 1];
    sum.digit[0] = 0;
  }
}

// x: finite. At most kWindowMaxTerms in all.
NIBBLE_HD void WindowAdd(WindowSum& sum, float x) {
  const uint32_t bits = FloatBits(x) & 0x7FFFFFFFu;
  if (bits == 0) return;
  const int exponent = static_cast<int>(bits >> 23);
  const uint64_t mantissa = (bits & 0x7FFFFFu) | (exponent == 0 ? 0u : 0x800000u);
  const int shift = (exponent == 0 ? 1 : exponent) - 150 + 160;
  const uint64_t wide = mantissa << (shift % 32);
  const int64_t sign = x < 0.0f ? -1 : 1;
  const int64_t parts[2] = {static_cast<int64_t>(wide & 0xFFFFFFFFu),
                            static_cast<int64_t>(wide >> 32)};
  const int low = shift / 32;
  WindowRaise(sum, parts[1] != 0 ? low + 1 : low);
  for (int i = 0; i < 2; ++i) {
    const int below = sum.top - (low + i);
    if (parts[i] != 0 && below < kWindowDigits) sum.digit[below] += sign * parts[i];
  }
}

NIBBLE_HD void WindowMerge(WindowSum& sum, WindowSum other) {
  WindowRaise(sum, other.top);
  WindowRaise(other, sum.top);
  for (int i = 0; i < kWindowDigits; ++i) sum.digit[i] += other.digit[i];
}

// The sum as a double, from the highest digit down.
inline double WindowValue(const WindowSum& sum) {
  double value = 0;
  for (int i = 0; i < kWindowDigits; ++i) {
    value += std::ldexp(static_cast<double>(sum.digit[i]), 32 * (sum.top - i) - 160);
  }
  return value;
}

}  // namespace nibble

#endif  // NIBBLE_QUANT_NUMERICS_WINDOW_SUM_H_
