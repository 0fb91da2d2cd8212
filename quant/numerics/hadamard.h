// The random Hadamard transform of 16 values: y = x * diag(sign) * H16 / 4, H16 the Sylvester
// matrix.
#ifndef NIBBLE_QUANT_NUMERICS_HADAMARD_H_
#define NIBBLE_QUANT_NUMERICS_HADAMARD_H_

#include <cstdint>

#include "quant/numerics/float_bits.h"
#include "quant/numerics/scale_rules.h"

namespace nibble {

enum class Rht : uint8_t { kNone, kSigns, kNoSigns };

// Bit i set: element i is negated. + + + - + - - - - - - + - + - -
inline constexpr uint32_t kRhtDefaultSigns = 0xD7E8;
inline constexpr uint32_t kRhtNoSigns = 0;

NIBBLE_HD constexpr uint32_t RhtSigns(Rht rht) {
  return rht == Rht::kSigns ? kRhtDefaultSigns : kRhtNoSigns;
}

// In place, in float32. The order of the additions is fixed: butterflies over distance 1, 2, 4, 8;
// the division by 4 comes last and is exact but for subnormals.
NIBBLE_HD void Rht16(float x[kBlockSize], uint32_t signs) {
  for (int i = 0; i < kBlockSize; ++i) {
    if ((signs >> i) & 1) x[i] = -x[i];
  }
  for (int distance = 1; distance < kBlockSize; distance *= 2) {
    for (int i = 0; i < kBlockSize; ++i) {
      if (i & distance) continue;
      const float a = x[i];
      const float b = x[i + distance];
      x[i] = AddRn(a, b);
      x[i + distance] = SubRn(a, b);
    }
  }
  for (int i = 0; i < kBlockSize; ++i) x[i] = MulRn(x[i], 0.25f);
}

}  // namespace nibble

#endif  // NIBBLE_QUANT_NUMERICS_HADAMARD_H_
