// Encoding a block in as few operations as there are: what the device kernels call instead of the
// contract's functions one after another, with the same bits. e2m1.h, scale_rules.h and
// four_over_six.h say what the bits are. Each shortcut names the range that it holds in; outside of
// it callers use the definitions.
//
// Codes are made from values times 2^-14. E2M1 magnitudes are then fp16 numbers whose bits are
// index << 9: converting to fp16 is exact and is the whole encoding. "Unit" below is that factor.
#ifndef NIBBLE_QUANT_NUMERICS_BLOCK_ENCODE_H_
#define NIBBLE_QUANT_NUMERICS_BLOCK_ENCODE_H_

#include <cstdint>

#include "quant/numerics/e2m1.h"
#include "quant/numerics/e2m1_convert.h"
#include "quant/numerics/e4m3.h"
#include "quant/numerics/float_bits.h"
#include "quant/numerics/four_over_six.h"
#include "quant/numerics/philox.h"
#include "quant/numerics/scale_rules.h"

namespace nibble {

// What of an encoding is known at compile time.
enum class EncodeMethod : uint8_t {
  kRuntime,     // the runtime rule, plain
  kCheckpoint,  // the checkpoint rule, plain or under scales that a search chose
  kFourOverSixMae,
  kFourOverSixMse,
  kFourOverSixAbsMax,
};

NIBBLE_HD constexpr bool IsFourOverSix(EncodeMethod method) {
  return method >= EncodeMethod::kFourOverSixMae;
}
NIBBLE_HD constexpr ErrorMetric MetricOf(EncodeMethod method) {
  return method == EncodeMethod::kFourOverSixMae   ? ErrorMetric::kMae
         : method == EncodeMethod::kFourOverSixMse ? ErrorMetric::kMse
                                                   : ErrorMetric::kAbsMax;
}

// The rest, the same for a whole launch.
struct EncodeParams {
  float bound = kE4m3Max;               // what the global scale aims at: 448 or 256
  Rule rule = Rule::kRuntime;           // under 4over6; otherwise the method says it
  ErrorPath path = ErrorPath::kStrict;  // of 4over6
  bool stochastic = false;              // rounding; with this seed and offset
  uint64_t seed = 0;
  uint64_t offset = 0;
};

inline constexpr float kCodeUnit = 0x1p-14f;

// Magnitudes that the divisions below take without a thought for underflow or overflow.
NIBBLE_HD bool IsInRange(float magnitude) { return magnitude >= 0x1p-60f && magnitude <= 0x1p60f; }
NIBBLE_HD bool IsZeroOrInRange(float magnitude) {
  return magnitude == 0.0f || IsInRange(magnitude);
}

// --- Rounding to E2M1 ---------------------------------------------------------------------------

// E2M1 magnitude nearest to |v|, ties to even, for v and the result in multiples of `unit`, a power
// of two, and |v| < 7 units. 2^22 * m has its last place at the grid's step at m, so subtracting it
// from |v| rounds |v| to that step, and adding it back is exact. m is just above 1 at least, since
// below 2^22 the last place would be half a step. A tie's own mantissa is even, and so is that of
// the least m: an even sum is an even code.
NIBBLE_HD float RoundE2m1Unsaturated(float v, float unit) {
  const float m = MaxNumber(Abs(v), (1.0f + 0x1p-22f) * unit);
  return FmaRn(m, 0x1p22f, FmaRn(m, -0x1p22f, Abs(v)));
}

// Any v; saturates.
NIBBLE_HD float RoundE2m1(float v, float unit = 1.0f) {
  return RoundE2m1Unsaturated(MinNumber(Abs(v), kE2m1Max * unit), unit);
}
NIBBLE_HD float RoundE2m1Unit(float v) { return RoundE2m1(v, kCodeUnit); }

// Indices of four magnitudes in units, << 1, a byte each.
NIBBLE_HD uint32_t IndexBytes(float q0, float q1, float q2, float q3) {
  return PermuteBytes(PackF16(q0, q1), PackF16(q2, q3), 0x7531);
}

// Bit 7 of each byte is a value's sign bit; the other bits are of no meaning.
NIBBLE_HD uint32_t SignBytes(float v0, float v1, float v2, float v3) {
  const uint32_t low = PermuteBytes(FloatBits(v0), FloatBits(v1), 0x0073);
  const uint32_t high = PermuteBytes(FloatBits(v2), FloatBits(v3), 0x0073);
  return PermuteBytes(low, high, 0x5410);
}

// Eight codes, the first in the low nibble, from the bytes of the even and the odd elements.
NIBBLE_HD uint32_t JoinCodes(uint32_t even_indices, uint32_t odd_indices, uint32_t even_signs,
                             uint32_t odd_signs) {
  const uint32_t even = even_indices | ((even_signs >> 3) & 0x10101010u);
  const uint32_t odd = odd_indices | ((odd_signs >> 3) & 0x10101010u);
  return even >> 1 | odd << 3;
}

// The 16 codes of a block: byte j of the packed block is byte j of these eight, little endian.
struct BlockCodes {
  uint32_t word[2];
};

// Index bytes of a block: of elements 0 2 4 6, 1 3 5 7, 8 10 12 14, 9 11 13 15.
struct BlockBytes {
  uint32_t word[4];
};

NIBBLE_HD BlockBytes BlockIndexBytes(const float (&q)[kBlockSize]) {
  return {{IndexBytes(q[0], q[2], q[4], q[6]), IndexBytes(q[1], q[3], q[5], q[7]),
           IndexBytes(q[8], q[10], q[12], q[14]), IndexBytes(q[9], q[11], q[13], q[15])}};
}

NIBBLE_HD BlockBytes BlockSignBytes(const float (&v)[kBlockSize]) {
  return {{SignBytes(v[0], v[2], v[4], v[6]), SignBytes(v[1], v[3], v[5], v[7]),
           SignBytes(v[8], v[10], v[12], v[14]), SignBytes(v[9], v[11], v[13], v[15])}};
}

NIBBLE_HD BlockCodes JoinBlock(const BlockBytes& indices, const BlockBytes& signs) {
  return {{JoinCodes(indices.word[0], indices.word[1], signs.word[0], signs.word[1]),
           JoinCodes(indices.word[2], indices.word[3], signs.word[2], signs.word[3])}};
}

// --- Divisions ----------------------------------------------------------------------------------

// x / d by its reciprocal r, corrected once by the remainder. Not always the correctly rounded
// quotient, but near enough for E2M1: around every tie, and for every mantissa of d, the result
// compares with the tie as the quotient does (tests/quant/block_encode_test.cc tries them all, at
// both ends of the range, too). Needs 2^-101 <= d <= 2^98. -0 becomes 0; where x * r overflows the
// result is NaN.
NIBBLE_HD float DivideForE2m1(float x, float d, float r) {
  const float q = FmaRn(x, r, 0.0f);
  return FmaRn(FmaRn(-q, d, x), r, q);
}

// a - q * d, rounded once, q being the E2M1 magnitude nearest to a / d: the difference that the
// sweeps square. a >= 0, and on the device any a: of a NaN and a number the number is the lesser.
NIBBLE_HD float E2m1Difference(float a, float d, float r) {
  return FmaRn(-RoundE2m1(DivideForE2m1(a, d, r)), d, a);
}

// x / d, correctly rounded, for the divisors that the contract names: 6 and 6 * bound. The same
// test tries every mantissa of x. Needs a zero or in-range x.
NIBBLE_HD float DivideByConstant(float x, float d, float r) {
  const float q = MulRn(x, r);
  return FmaRn(FmaRn(-q, d, x), r, q);
}
NIBBLE_HD float DivideBySix(float x) { return DivideByConstant(x, kE2m1Max, 1.0f / kE2m1Max); }

// --- Outer scales -------------------------------------------------------------------------------

// Everything that one outer amax decides. `regular`: the shortcuts hold; elsewhere the definitions
// must be used.
struct OuterScales {
  FourOverSixContext context;     // runtime rule, and the choice of 4over6 under both rules
  float block_factor;             // block amax -> scale of the plain runtime rule
  float checkpoint_decode_scale;  // weight_scale_2
  float error_scale;              // 4over6: what a scale code's value is worth in x, nearly
  bool regular;
};

NIBBLE_HD OuterScales MakeIrregularOuterScales(float amax, float bound) {
  OuterScales outer;
  outer.context = {RuntimeGlobalScale(amax, bound), amax, bound};
  outer.block_factor = MulRn(outer.context.global.encode_scale, 1.0f / 6.0f);
  outer.checkpoint_decode_scale = CheckpointGlobalDecodeScale(amax, bound);
  outer.error_scale = 0.0f;
  outer.regular = false;
  return outer;
}

// kFloat32: the values come from float32, not from bf16 or fp16. For those the upper end keeps a
// product with an encode scale from underflowing to zero. amax: not NaN.
template <bool kFloat32>
NIBBLE_HD OuterScales MakeOuterScales(float amax, float bound, ErrorPath path) {
  const float largest = kE2m1Max * bound;
  const bool zero = amax == 0.0f;
  if (!zero && !(IsInRange(amax) && (kFloat32 || amax <= 0x1p17f))) {
    return MakeIrregularOuterScales(amax, bound);
  }
  OuterScales outer;
  const float encode_scale = zero ? 1.0f : DivideInRange(largest, amax);
  outer.context = {{encode_scale, ReciprocalInRange(encode_scale)}, amax, bound};
  outer.block_factor = MulRn(encode_scale, 1.0f / 6.0f);
  const float decode_scale = DivideInRange(amax, largest);
  outer.checkpoint_decode_scale = zero ? 1.0f : decode_scale;
  outer.error_scale = path == ErrorPath::kFast ? outer.context.global.decode_scale : decode_scale;
  outer.regular = true;
  return outer;
}

// --- Block scales -------------------------------------------------------------------------------

// Under regular outer scales, of any block amax that is a number.
NIBBLE_HD uint32_t RegularRuntimeScale(float block_amax, const OuterScales& outer) {
  return E4m3EncodeMagnitude(MinNumber(MulRn(block_amax, outer.block_factor), kE4m3Max));
}

// block_amax: zero or in range.
NIBBLE_HD uint32_t RegularCheckpointScale(float block_amax, const OuterScales& outer) {
  float ratio = DivideInRange(block_amax, MulRn(kE2m1Max, outer.checkpoint_decode_scale));
  if (block_amax == 0.0f) ratio = 1.0f;
  return E4m3EncodeMagnitude(MaxNumber(MinNumber(ratio, kE4m3Max), kE4m3SmallestSubnormal));
}

// block_amax: zero or in range.
NIBBLE_HD FourOverSixScales RegularCandidates(float block_amax, const OuterScales& outer) {
  const float base = MulRn(DivideBySix(block_amax), outer.context.global.encode_scale);
  return {static_cast<uint8_t>(E4m3EncodeMagnitude(MinNumber(base, kE4m3Max))),
          static_cast<uint8_t>(E4m3EncodeMagnitude(MinNumber(MulRn(base, 1.5f), kE4m3Max)))};
}

// --- Codes under a scale ------------------------------------------------------------------------

// Values in units, ready to be rounded, under regular outer scales.
template <bool kFloat32, Rule kRule>
struct BlockScaler {
  float factor;   // runtime: the encode scale, in units but for float32; checkpoint: 1 / divisor
  float divisor;  // checkpoint

  NIBBLE_HD BlockScaler(uint32_t scale, const OuterScales& outer) {  // 0 <= scale <= kE4m3Codes
    const float value = E4m3DecodeMagnitude(scale);
    if (kRule == Rule::kRuntime) {
      const float inverse = ReciprocalInRange(MulRn(value, outer.context.global.decode_scale));
      const float encode_scale = scale == 0 ? kFloatMax : inverse;
      factor = kFloat32 ? encode_scale : MulRn(encode_scale, kCodeUnit);
      divisor = 0.0f;
    } else {
      divisor = MulRn(MulRn(value, outer.checkpoint_decode_scale), 1.0f / kCodeUnit);
      factor = ReciprocalInRange(divisor);
    }
  }

  // -0 becomes 0.
  NIBBLE_HD float operator()(float x) const {
    if (kRule == Rule::kCheckpoint) return DivideForE2m1(x, divisor, factor);
    return kFloat32 ? FmaRn(MulRn(x, factor), kCodeUnit, 0.0f) : FmaRn(x, factor, 0.0f);
  }

  // Whether quotients of a block with this largest magnitude stay clear of infinity. False for NaN.
  NIBBLE_HD bool IsRegular(float block_amax) const {
    return kRule == Rule::kRuntime || MulRn(block_amax, factor) <= 0x1p60f;
  }

  // Whether values of a block with this largest magnitude need no saturation. False for NaN.
  NIBBLE_HD bool IsUnsaturated(float block_amax) const {
    return MulRn(block_amax, factor) <
           (kFloat32 && kRule == Rule::kRuntime ? 6.9f : 6.9f * kCodeUnit);
  }

  // Has the code's sign bit, given v = (*this)(x): set where the scaled value is below 0. A float32
  // value's may underflow to zero, which then has no sign; another type's cannot under regular
  // outer scales, but for the multiplication by the unit, which leaves the sign behind.
  NIBBLE_HD float Sign(float x, float v) const {
    if (kRule == Rule::kRuntime || !kFloat32) return v;
    // x / d rounds to zero up to |x| = d * 2^-150, which matters from d = 2 on; both products are
    // exact there or far from each other.
    return FmaRn(x, 0x1p100f, MulRn(divisor, 0x1p-50f * kCodeUnit));
  }
};

// EncodeCodes where the device has the instruction of ConvertToE2m1.
template <bool kFloat32, Rule kRule>
NIBBLE_HD BlockCodes EncodeCodesByConversion(const float (&x)[kBlockSize],
                                             const BlockScaler<kFloat32, kRule>& scaler) {
  constexpr bool kInUnits = kRule == Rule::kCheckpoint || !kFloat32;
  const float factor = kInUnits ? MulRn(scaler.factor, 1.0f / kCodeUnit) : scaler.factor;
  const float divisor = MulRn(scaler.divisor, kCodeUnit);
  float v[kBlockSize];
  NIBBLE_UNROLL
  for (int i = 0; i < kBlockSize; ++i) {
    if (kRule == Rule::kCheckpoint) {
      v[i] = DivideForE2m1(x[i], divisor, factor);
      if (kFloat32) v[i] = CopySign(v[i], scaler.Sign(x[i], v[i]));
    } else {  // a float32 value's product may become -0, which has no sign in a code
      v[i] = kFloat32 ? AddRn(MulRn(x[i], factor), 0.0f) : FmaRn(x[i], factor, 0.0f);
    }
  }
  return {{ConvertToE2m1(v), ConvertToE2m1(v + kBlockSize / 2)}};
}

// EncodeCodes everywhere else.
template <bool kFloat32, Rule kRule, bool kSignsKnown>
NIBBLE_HD BlockCodes EncodeCodesByRounding(const float (&x)[kBlockSize],
                                           const BlockScaler<kFloat32, kRule>& scaler,
                                           const BlockBytes& signs) {
  float q[kBlockSize], sign[kBlockSize];
  NIBBLE_UNROLL
  for (int i = 0; i < kBlockSize; ++i) {
    const float v = scaler(x[i]);
    sign[i] = scaler.Sign(x[i], v);
    q[i] = kRule == Rule::kRuntime ? RoundE2m1Unsaturated(v, kCodeUnit) : RoundE2m1Unit(v);
  }
  return JoinBlock(BlockIndexBytes(q), kSignsKnown ? signs : BlockSignBytes(sign));
}

// signs: those of the codes, where kSignsKnown says that they are at hand. Under the runtime rule
// the block must be unsaturated.
template <bool kFloat32, Rule kRule, bool kSignsKnown>
NIBBLE_HD BlockCodes EncodeCodes(const float (&x)[kBlockSize],
                                 const BlockScaler<kFloat32, kRule>& scaler,
                                 const BlockBytes& signs) {
  if constexpr (NIBBLE_CONVERTS_E2M1) {
    return EncodeCodesByConversion(x, scaler);
  } else {
    return EncodeCodesByRounding<kFloat32, kRule, kSignsKnown>(x, scaler, signs);
  }
}

// The sign bits of the codes under a scale.
template <bool kFloat32, Rule kRule>
NIBBLE_HD BlockBytes ScaledSignBytes(const float (&x)[kBlockSize],
                                     const BlockScaler<kFloat32, kRule>& scaler) {
  float sign[kBlockSize];
  NIBBLE_UNROLL
  for (int i = 0; i < kBlockSize; ++i) sign[i] = scaler.Sign(x[i], scaler(x[i]));
  return BlockSignBytes(sign);
}

// The same for values of another type than float32, whatever the scale.
NIBBLE_HD BlockBytes ValueSignBytes(const float (&x)[kBlockSize]) {
  float sign[kBlockSize];
  NIBBLE_UNROLL
  for (int i = 0; i < kBlockSize; ++i) sign[i] = AddRn(x[i], 0.0f);
  return BlockSignBytes(sign);
}

// --- Stochastic rounding ------------------------------------------------------------------------

// Index of |v|, v in units, as E2m1EncodeStochastic rounds it. From 1 on the first mantissa bit is
// the index's last, and the others are the distance to the next magnitude down; below 1 the grid is
// even.
NIBBLE_HD uint32_t StochasticIndexUnit(float v, uint32_t uniform31) {
  constexpr uint32_t kOneUnit = (127u - 14u) << 23;
  const float a = MinNumber(Abs(v), kE2m1Max * kCodeUnit);
  const uint32_t bits = FloatBits(a);
  const bool linear = bits < kOneUnit;
  const uint32_t fixed = static_cast<uint32_t>(MulRn(linear ? a : 0.0f, 0x1p32f / kCodeUnit));
  const uint32_t low = linear ? fixed >> 31 : (bits >> 22) - (kOneUnit >> 22) + 2;
  const uint32_t threshold = linear ? fixed & 0x7FFFFFFFu : (bits & 0x3FFFFFu) << 9;
  return low + (uniform31 < threshold ? 1 : 0);
}

template <bool kFloat32, Rule kRule>
NIBBLE_HD BlockCodes EncodeCodesStochastic(const float (&x)[kBlockSize],
                                           const BlockScaler<kFloat32, kRule>& scaler,
                                           uint64_t seed, uint64_t offset, int64_t first_element) {
  BlockCodes codes = {{0, 0}};
  NIBBLE_UNROLL
  for (int quad = 0; quad < kBlockSize / 4; ++quad) {
    const PhiloxWords uniform =
        StochasticUniform31(seed, offset, static_cast<uint64_t>(first_element) / 4 + quad);
    NIBBLE_UNROLL
    for (int j = 0; j < 4; ++j) {
      const int i = 4 * quad + j;
      const float v = scaler(x[i]);
      const uint32_t sign = (FloatBits(scaler.Sign(x[i], v)) >> 28) & 8u;
      codes.word[i / 8] |= (sign | StochasticIndexUnit(v, uniform.word[j])) << (4 * (i % 8));
    }
  }
  return codes;
}

// --- 4over6 -------------------------------------------------------------------------------------
//
// Which candidate has the smaller error is decided from sums that are cheaper than the definition's
// and off by less than a bound; where they are nearer to one another than that, the definition
// decides. Both of its paths and all orders of summation lie within the bound.

// The errors of both candidates, nearly, in x (mse: squared), and what their codes are made of.
struct CandidateSums {
  float error6, error4;
  BlockBytes indices6, indices4;
};

template <ErrorMetric kMetric>
NIBBLE_HD float AddDifference(float sum, float d) {
  return kMetric == ErrorMetric::kMse   ? FmaRn(d, d, sum)
         : kMetric == ErrorMetric::kMae ? AddRn(sum, Abs(d))
                                        : MaxNumber(sum, Abs(d));
}

// What a candidate's codes are worth in x, for values in units.
NIBBLE_HD float CandidateWorth(uint32_t scale, const OuterScales& outer) {
  return MulRn(MulRn(E4m3DecodeMagnitude(scale), outer.error_scale), 1.0f / kCodeUnit);
}

// Both scalers must leave the block unsaturated. worth6, worth4: CandidateWorth.
template <bool kFloat32, ErrorMetric kMetric>
NIBBLE_HD CandidateSums SumCandidates(const float (&x)[kBlockSize],
                                      const BlockScaler<kFloat32, Rule::kRuntime>& scaler6,
                                      const BlockScaler<kFloat32, Rule::kRuntime>& scaler4,
                                      float worth6, float worth4) {
  CandidateSums sums;
  float error6[2] = {0.0f, 0.0f}, error4[2] = {0.0f, 0.0f};
  float q6[kBlockSize], q4[kBlockSize];
  NIBBLE_UNROLL
  for (int i = 0; i < kBlockSize; ++i) {
    q6[i] = RoundE2m1Unsaturated(scaler6(x[i]), kCodeUnit);
    q4[i] = RoundE2m1Unsaturated(scaler4(x[i]), kCodeUnit);
    error6[i % 2] = AddDifference<kMetric>(error6[i % 2], FmaRn(q6[i], worth6, -Abs(x[i])));
    error4[i % 2] = AddDifference<kMetric>(error4[i % 2], FmaRn(q4[i], worth4, -Abs(x[i])));
  }
  sums.indices6 = BlockIndexBytes(q6);
  sums.indices4 = BlockIndexBytes(q4);
  sums.error6 = FourOverSixJoin(error6[0], error6[1], kMetric);
  sums.error4 = FourOverSixJoin(error4[0], error4[1], kMetric);
  return sums;
}

enum class FourOverSixVerdict { kSix, kFour, kNear };

// `rows`: how many blocks of 16 the errors are sums over (16 for a tile); amax: the largest
// magnitude of all of them, a regular block's.
//
// With u = 2^-24, q * worth and the definition's value of q lie within 4u * q * worth of each
// other, and q * worth <= 2 amax, so that the two d of an element differ by at most 6u * 2 amax,
// whichever path defines d. mae: 16 of those for each of two candidates are 384u amax; the
// roundings of the sums add at most 2 * 16u of them (2 * 20u for a tile). mse: d^2 differs by 2|d|
// times that, and the sum of |d| over a row is at most 4 * sqrt(error), so a row's error by 96u *
// amax * sqrt(error) <= u (8 amax^2 + 288 error). The factors below leave room for the squares of
// u.
template <ErrorMetric kMetric>
NIBBLE_HD FourOverSixVerdict JudgeFourOverSix(float error6, float error4, float amax, int rows) {
  const float both = AddRn(error6, error4);
  const float n = static_cast<float>(rows);
  const float margin =
      kMetric == ErrorMetric::kMse
          ? FmaRn(MulRn(amax, amax), MulRn(n, 32 * 0x1p-24f), MulRn(both, 400 * 0x1p-24f))
          : FmaRn(amax, MulRn(n, 512 * 0x1p-24f), MulRn(both, 64 * 0x1p-24f));
  if (AddRn(error4, margin) < error6) return FourOverSixVerdict::kFour;
  if (AddRn(error6, margin) < error4) return FourOverSixVerdict::kSix;
  return FourOverSixVerdict::kNear;
}

// FourOverSixBlockError for a zero or in-range block amax under regular outer scales: the same bits
// in fewer operations. Magnitudes stand for values: only |d| and d * d count.
NIBBLE_HD float RegularBlockError(const float* x, uint32_t scale, const OuterScales& outer,
                                  ErrorMetric metric, ErrorPath path) {
  const float value = E4m3DecodeMagnitude(scale);
  const float largest = kE2m1Max * outer.context.bound;
  const float inverse_largest = DivideInRange(1.0f, largest);
  const BlockScaler<true, Rule::kRuntime> scaler(scale, outer);
  float error = 0.0f;
  NIBBLE_ROLLED
  for (int i = 0; i < kBlockSize; ++i) {
    const float a = Abs(x[i]);
    const float q = MulRn(RoundE2m1Unit(scaler(a)), 1.0f / kCodeUnit);
    float d;
    if (path == ErrorPath::kFast) {
      d = FmaRn(q, value, -MulRn(a, outer.context.global.encode_scale));
    } else {
      const float product = MulRn(MulRn(q, value), outer.context.amax);
      d = SubRn(DivideByConstant(product, largest, inverse_largest), a);
    }
    error = FourOverSixAccumulate(error, d, metric);
  }
  return error;
}

}  // namespace nibble

#endif  // NIBBLE_QUANT_NUMERICS_BLOCK_ENCODE_H_
