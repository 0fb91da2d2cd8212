// Histograms of magnitudes by binade.
#ifndef NIBBLE_QUANT_NUMERICS_LOG2_BIN_H_
#define NIBBLE_QUANT_NUMERICS_LOG2_BIN_H_

#include <cstdint>

#include "quant/numerics/float_bits.h"

namespace nibble {

inline constexpr int kLog2Bins = 256;

// The bin of a finite magnitude: 0 for zero, else e for [2^(e - 127), 2^(e - 126)); bin 1 begins at
// the smallest subnormal.
NIBBLE_HD int Log2Bin(float magnitude) {
  const int exponent = static_cast<int>(FloatBits(magnitude) >> 23);
  return magnitude == 0.0f ? 0 : exponent == 0 ? 1 : exponent;
}

}  // namespace nibble

#endif  // NIBBLE_QUANT_NUMERICS_LOG2_BIN_H_
