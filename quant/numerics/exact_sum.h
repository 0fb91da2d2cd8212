// Sums of doubles without rounding, in fixed point: digit i of 32 bits counts 2^(32 i +
// kExactLowestBit). Digits are kept signed and wider than that, and carried late, so adding is
// associative and commutative: any order, any chunking, any device gives the same sum.
#ifndef NIBBLE_QUANT_NUMERICS_EXACT_SUM_H_
#define NIBBLE_QUANT_NUMERICS_EXACT_SUM_H_

#include <cstdint>

#include "quant/numerics/float_bits.h"

namespace nibble {

// Wide enough for any block's sum of products of floats, 2^-298 .. 2^260, and 2^40 times that.
inline constexpr int kExactLowestBit = -352;
inline constexpr int kExactDigits = 24;

// x = (negative ? -1 : 1) * mantissa * 2^(shift + kExactLowestBit); mantissa < 2^53.
struct ExactTerm {
  uint64_t mantissa;
  int shift;
  bool negative;
};

// x: zero, or normal with 2^-300 < |x| < 2^300.
NIBBLE_HD ExactTerm SplitExact(double x) {
  const uint64_t bits = DoubleBits(x);
  const int biased = static_cast<int>((bits >> 52) & 0x7FF);
  if (biased == 0) return {0, 0, false};
  return {(bits & ((uint64_t{1} << 52) - 1)) | uint64_t{1} << 52, biased - 1075 - kExactLowestBit,
          (bits >> 63) != 0};
}

// Leaves every digit in [0, 2^32) but the last, which keeps the sign.
NIBBLE_HD void CarryExact(int64_t digits[kExactDigits]) {
  for (int i = 0; i + 1 < kExactDigits; ++i) {
    const int64_t carry = digits[i] >> 32;  // arithmetic: rounds down
    digits[i] -= carry * (int64_t{1} << 32);
    digits[i + 1] += carry;
  }
}

}  // namespace nibble

#endif  // NIBBLE_QUANT_NUMERICS_EXACT_SUM_H_
