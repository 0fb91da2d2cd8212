// Conversion to E2M1 as the instruction of some GPUs does it (PTX: cvt.rn.satfinite.e2m1x2.f32),
// and the same in portable code. It is E2m1Encode but for what E2m1Encode makes canonical: -0 keeps
// its sign, and NaN is 6 whatever its sign (tests/quant/numerics_toolkit_test.cc tries all floats).
#ifndef NIBBLE_QUANT_NUMERICS_E2M1_CONVERT_H_
#define NIBBLE_QUANT_NUMERICS_E2M1_CONVERT_H_

#include <cstdint>

#include "quant/numerics/e2m1.h"
#include "quant/numerics/float_bits.h"

namespace nibble {

// The codes of eight values, the first in the lowest nibble.
#if NIBBLE_CONVERTS_E2M1
NIBBLE_HD uint32_t ConvertToE2m1(const float* v) {
  uint32_t codes;
  asm("{.reg .b8 a, b, c, d;\n"
      " cvt.rn.satfinite.e2m1x2.f32 a, %2, %1;\n"
      " cvt.rn.satfinite.e2m1x2.f32 b, %4, %3;\n"
      " cvt.rn.satfinite.e2m1x2.f32 c, %6, %5;\n"
      " cvt.rn.satfinite.e2m1x2.f32 d, %8, %7;\n"
      " mov.b32 %0, {a, b, c, d};}"
      : "=r"(codes)
      : "f"(v[0]), "f"(v[1]), "f"(v[2]), "f"(v[3]), "f"(v[4]), "f"(v[5]), "f"(v[6]), "f"(v[7]));
  return codes;
}
#else
NIBBLE_HD uint32_t ConvertToE2m1(const float* v) {
  uint32_t codes = 0;
  NIBBLE_UNROLL
  for (int i = 0; i < 8; ++i) {
    const uint32_t sign = v[i] == v[i] ? FloatBits(v[i]) >> 28 & 8u : 0u;
    codes |= (sign | E2m1Index(Abs(v[i]))) << (4 * i);
  }
  return codes;
}
#endif

}  // namespace nibble

#endif  // NIBBLE_QUANT_NUMERICS_E2M1_CONVERT_H_
