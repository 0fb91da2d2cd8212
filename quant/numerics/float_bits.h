// float32 arithmetic that rounds once per named operation, on host and device alike, and the
// bit-level conversions of bf16 and fp16. Everything under quant/numerics is freestanding: std
// headers only, no allocation, no errors. Hosts compile it with -ffp-contract=off (g++ contracts
// a*b+c by default, which would change one result in five).
#ifndef NIBBLE_QUANT_NUMERICS_FLOAT_BITS_H_
#define NIBBLE_QUANT_NUMERICS_FLOAT_BITS_H_

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define NIBBLE_HD __host__ __device__ __forceinline__
#define NIBBLE_UNROLL _Pragma("unroll")    // keeps a block's arrays in registers
#define NIBBLE_ROLLED _Pragma("unroll 1")  // for what is rare: small code
#else
#define NIBBLE_HD inline
#define NIBBLE_UNROLL
#define NIBBLE_ROLLED
#endif

namespace nibble {

inline constexpr float kFloatMax = 3.40282346638528859811704183484516925440e+38f;
inline constexpr float kBf16Max = 0x1.FEp127f;

NIBBLE_HD uint32_t FloatBits(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof(bits));
  return bits;
}

NIBBLE_HD float FloatFromBits(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof(x));
  return x;
}

// The one place in the tree that asks which side it is compiled for, and which device.
#if defined(__CUDA_ARCH__)
#define NIBBLE_DEVICE_CODE 1
#define NIBBLE_CUDA_ARCH __CUDA_ARCH__  // 900 for compute capability 9.0
#else
#define NIBBLE_DEVICE_CODE 0
#endif
// Whether it has instructions that convert to E2M1. They belong to families of devices, so that
// only builds for one (100a, 120f) may use them; the condition is that of the toolkit's cuda_fp4.h.
#if defined(__CUDA_ARCH_FAMILY_SPECIFIC__)
#define NIBBLE_CONVERTS_E2M1 \
  (__CUDA_ARCH_FAMILY_SPECIFIC__ >= 1000 && __CUDA_ARCH_FAMILY_SPECIFIC__ < 1300)
#else
#define NIBBLE_CONVERTS_E2M1 0
#endif

#if NIBBLE_DEVICE_CODE
NIBBLE_HD float AddRn(float a, float b) { return __fadd_rn(a, b); }
NIBBLE_HD float SubRn(float a, float b) { return __fsub_rn(a, b); }
NIBBLE_HD float MulRn(float a, float b) { return __fmul_rn(a, b); }
NIBBLE_HD float DivRn(float a, float b) { return __fdiv_rn(a, b); }
NIBBLE_HD float FmaRn(float a, float b, float c) { return __fmaf_rn(a, b, c); }
NIBBLE_HD double AddRn(double a, double b) { return __dadd_rn(a, b); }
NIBBLE_HD double SubRn(double a, double b) { return __dsub_rn(a, b); }
NIBBLE_HD double MulRn(double a, double b) { return __dmul_rn(a, b); }
NIBBLE_HD float ReciprocalRn(float x) { return __frcp_rn(x); }
NIBBLE_HD float Abs(float x) { return fabsf(x); }  // an operand's modifier
// The compiler's own sequences for 1 / x and a / b, without its test for the ranges below.
NIBBLE_HD float ReciprocalInRange(float x) {
  float r;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
  return FmaRn(r, FmaRn(-x, r, 1.0f), r);
}
NIBBLE_HD float DivideInRange(float a, float b) {
  const float r = ReciprocalInRange(b);
  const float q = MulRn(a, r);
  return FmaRn(r, FmaRn(-b, q, a), q);
}
// Of numbers: where one is NaN, hosts and devices disagree.
NIBBLE_HD float MinNumber(float a, float b) { return fminf(a, b); }
NIBBLE_HD float MaxNumber(float a, float b) { return fmaxf(a, b); }
// Bytes of b:a, numbered from a's lowest; a hexadecimal digit of `selector` for each of the result.
NIBBLE_HD uint32_t PermuteBytes(uint32_t a, uint32_t b, uint32_t selector) {
  return __byte_perm(a, b, selector);
}
#else
#define NIBBLE_CUDA_ARCH 0
NIBBLE_HD float AddRn(float a, float b) { return a + b; }
NIBBLE_HD float SubRn(float a, float b) { return a - b; }
NIBBLE_HD float MulRn(float a, float b) { return a * b; }
NIBBLE_HD float DivRn(float a, float b) { return a / b; }
NIBBLE_HD float FmaRn(float a, float b, float c) { return std::fma(a, b, c); }
NIBBLE_HD double AddRn(double a, double b) { return a + b; }
NIBBLE_HD double SubRn(double a, double b) { return a - b; }
NIBBLE_HD double MulRn(double a, double b) { return a * b; }
NIBBLE_HD float ReciprocalRn(float x) { return 1.0f / x; }
NIBBLE_HD float Abs(float x) { return FloatFromBits(FloatBits(x) & 0x7FFFFFFFu); }
// Correctly rounded for x, a / b and b from 2^-100 to 2^100, and for a = 0.
NIBBLE_HD float ReciprocalInRange(float x) { return 1.0f / x; }
NIBBLE_HD float DivideInRange(float a, float b) { return a / b; }
NIBBLE_HD float MinNumber(float a, float b) { return b < a ? b : a; }
NIBBLE_HD float MaxNumber(float a, float b) { return a < b ? b : a; }
NIBBLE_HD uint32_t PermuteBytes(uint32_t a, uint32_t b, uint32_t selector) {
  const uint64_t bytes = uint64_t{b} << 32 | a;
  uint32_t result = 0;
  for (int i = 0; i < 4; ++i) {
    result |= static_cast<uint32_t>(bytes >> (8 * ((selector >> (4 * i)) & 7)) & 0xFFu) << (8 * i);
  }
  return result;
}
#endif

NIBBLE_HD float CopySign(float magnitude, float sign) {
  return FloatFromBits((FloatBits(magnitude) & 0x7FFFFFFFu) | (FloatBits(sign) & 0x80000000u));
}
NIBBLE_HD float Min(float a, float b) { return b < a ? b : a; }
NIBBLE_HD float Max(float a, float b) { return a < b ? b : a; }
NIBBLE_HD bool IsFinite(float x) { return (FloatBits(x) & 0x7F800000u) != 0x7F800000u; }

NIBBLE_HD uint64_t DoubleBits(double x) {
  uint64_t bits;
  memcpy(&bits, &x, sizeof(bits));
  return bits;
}
NIBBLE_HD bool IsFinite(double x) { return ((DoubleBits(x) >> 52) & 0x7FF) != 0x7FF; }

NIBBLE_HD float FloatFromBf16(uint16_t bits) { return FloatFromBits(uint32_t{bits} << 16); }

// Round to nearest even. Finite values may round up to infinity; NaN stays NaN.
NIBBLE_HD uint16_t Bf16FromFloat(float x) {
  const uint32_t bits = FloatBits(x);
  if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);
  return static_cast<uint16_t>((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16);
}

NIBBLE_HD float FloatFromF16(uint16_t bits) {
  const uint32_t sign = uint32_t{bits & 0x8000u} << 16;
  const uint32_t magnitude = bits & 0x7FFFu;
  if (magnitude >= 0x7C00u) return FloatFromBits(sign | 0x7F800000u | (magnitude & 0x3FFu) << 13);
  // Exact for normal and subnormal values: the exponent is rebased by a multiplication.
  return FloatFromBits(sign | FloatBits(MulRn(FloatFromBits(magnitude << 13), 0x1p112f)));
}

// Round to nearest even. 65520 and above become infinity; NaN stays NaN.
NIBBLE_HD uint16_t F16FromFloat(float x) {
  const uint32_t bits = FloatBits(x);
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
  const uint32_t magnitude = bits & 0x7FFFFFFFu;
  if (magnitude > 0x7F800000u) return static_cast<uint16_t>(sign | 0x7E00u);
  if (magnitude >= 0x477FF000u) return static_cast<uint16_t>(sign | 0x7C00u);
  if (magnitude < 0x38800000u) {  // below 2^-14: adding 0.5 aligns the last place to 2^-24
    const uint32_t aligned = FloatBits(AddRn(FloatFromBits(magnitude), 0.5f));
    return static_cast<uint16_t>(sign | (aligned - 0x3F000000u));
  }
  const uint32_t rounded = magnitude + 0xFFFu + ((magnitude >> 13) & 1u);
  return static_cast<uint16_t>(sign | ((rounded - 0x38000000u) >> 13));
}

// Two values as fp16, round to nearest even, the first in the low half.
#if NIBBLE_DEVICE_CODE
NIBBLE_HD uint32_t PackF16(float low, float high) {
  uint32_t word;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
}
#else
NIBBLE_HD uint32_t PackF16(float low, float high) {
  return F16FromFloat(low) | uint32_t{F16FromFloat(high)} << 16;
}
#endif

}  // namespace nibble

#endif  // NIBBLE_QUANT_NUMERICS_FLOAT_BITS_H_
