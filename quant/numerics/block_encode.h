// Encoding a block in as few operations as there are: what the device kernels call instead of the
// contract's functions one after another, with the same bits. e2m1.h, scale_rules.h and
// four_over_six.h say what the bits are. The shortcuts hold inside the ranges named below
// (OuterScales::regular, IsRegularChoice, IsRegularQuotient); outside of them callers use the
// definitions.
//
// Codes are made from values times 2^-14. E2M1 magnitudes are then fp16 numbers whose bits are
// index << 9: converting to fp16 is exact and is the whole encoding. "Unit" below is that factor.
#ifndef NIBBLE_QUANT_NUMERICS_BLOCK_ENCODE_H_
#define NIBBLE_QUANT_NUMERICS_BLOCK_ENCODE_H_

#include <cstdint>

#include "quant/numerics/e2m1.h"
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

// --- Rounding to E2M1 ---------------------------------------------------------------------------

// E2M1 magnitude nearest to |v|, ties to even, for v and the result in multiples of `unit`, a power
// of two; saturates. 2^22 * m has its last place at the grid's step at m, so subtracting it from |v|
// rounds |v| to that step, and adding it back is exact. Just above 1, since below 2^22 the last
// place would be half a step. A tie's own mantissa is even, and so is that of the least m: an even
// sum is an even code.
NIBBLE_HD float RoundE2m1(float v, float unit = 1.0f) {
  const float a = MinNumber(Abs(v), kE2m1Max * unit);
  const float m = MaxNumber(a, (1.0f + 0x1p-22f) * unit);
  return FmaRn(m, 0x1p22f, FmaRn(m, -0x1p22f, a));
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

// --- Outer scales -------------------------------------------------------------------------------

// Everything that one outer amax decides. `regular`: the shortcuts of this file hold.
struct OuterScales {
  FourOverSixContext context;     // runtime rule, and the choice of 4over6 under both rules
  float block_factor;             // block amax -> scale of the plain runtime rule
  float checkpoint_decode_scale;  // weight_scale_2
  float error_scale;              // 4over6: what a scale code's value is worth in x, nearly
  bool regular;
};

// kFloat32: the values come from float32, not from bf16 or fp16.
// The upper end keeps a bf16 value's product with an encode scale from underflowing to zero.
template <bool kFloat32>
NIBBLE_HD OuterScales MakeOuterScales(float amax, float bound, ErrorPath path) {
  OuterScales outer;
  outer.context = {RuntimeGlobalScale(amax, bound), amax, bound};
  outer.block_factor = MulRn(outer.context.global.encode_scale, 1.0f / 6.0f);
  outer.checkpoint_decode_scale = CheckpointGlobalDecodeScale(amax, bound);
  outer.error_scale =
      path == ErrorPath::kFast ? outer.context.global.decode_scale : DivRn(amax, kE2m1Max * bound);
  outer.regular = amax == 0.0f || (amax >= 0x1p-60f && amax <= (kFloat32 ? 0x1p60f : 0x1p17f));
  return outer;
}

// Of a block's largest magnitude: the bounds of 4over6 below, and the division by 6, stay clear of
// subnormal and infinite numbers. False for NaN.
NIBBLE_HD bool IsRegularChoice(float block_amax) {
  return block_amax == 0.0f || (block_amax >= 0x1p-60f && block_amax <= 0x1p60f);
}

// --- Codes under a scale ------------------------------------------------------------------------

// Correctly rounded x / d, or near enough for E2M1: q0 = x * r, corrected once by its remainder,
// where r is the rounded reciprocal of d. Around every tie of E2M1 and for every mantissa of d the
// result compares with the tie as the quotient does; tests/quant/block_encode_test.cc tries them
// all. Needs 2^-80 <= d <= 2^80.
NIBBLE_HD float DivideForE2m1(float x, float d, float r) {
  const float q = FmaRn(x, r, 0.0f);
  return FmaRn(FmaRn(-q, d, x), r, q);
}

// Values in units, ready to be rounded; their sign bits are those of the codes. How x[i] becomes
// one is prepared once a block.
template <bool kFloat32, Rule kRule>
struct BlockScaler {
  float factor;   // runtime: the encode scale, in units but for float32; checkpoint: 1 / divisor
  float divisor;  // checkpoint

  NIBBLE_HD BlockScaler(uint8_t scale, const OuterScales& outer) {
    if (kRule == Rule::kRuntime) {
      const float product = MulRn(E4m3Decode(scale), outer.context.global.decode_scale);
      // Within the regular range the reciprocal is finite but for a scale of 0.
      const float encode_scale = scale == 0 ? kFloatMax : ReciprocalRn(product);
      factor = kFloat32 ? encode_scale : MulRn(encode_scale, kCodeUnit);
      divisor = 0.0f;
    } else {
      divisor = MulRn(MulRn(E4m3Decode(scale), outer.checkpoint_decode_scale), 1.0f / kCodeUnit);
      factor = ReciprocalRn(divisor);
    }
  }

  // + 0 turns -0 into 0. A float32 product may underflow to zero, which has no sign either; that of
  // another type cannot within the regular range, except after multiplying by the unit, which
  // leaves a sign behind.
  NIBBLE_HD float operator()(float x) const {
    if (kRule == Rule::kCheckpoint) return DivideForE2m1(x, divisor, factor);
    return kFloat32 ? FmaRn(MulRn(x, factor), kCodeUnit, 0.0f) : FmaRn(x, factor, 0.0f);
  }

  // Whether quotients of a block with this largest magnitude stay clear of infinity. False for NaN.
  NIBBLE_HD bool IsRegularQuotient(float block_amax) const {
    return kRule == Rule::kRuntime || MulRn(block_amax, factor) <= 0x1p60f;
  }

  // Has the sign of the code, given v = (*this)(x).
  NIBBLE_HD float Sign(float x, float v) const {
    if (kRule == Rule::kRuntime || !kFloat32) return v;
    // x / d rounds to zero up to |x| = d * 2^-150, which matters from d = 2 on; both products are
    // exact there or far from each other.
    return FmaRn(x, 0x1p100f, MulRn(divisor, 0x1p-50f * kCodeUnit));
  }
};

template <bool kFloat32, Rule kRule>
NIBBLE_HD BlockCodes EncodeCodes(const float (&x)[kBlockSize],
                                 const BlockScaler<kFloat32, kRule>& scaler) {
  float q[kBlockSize], sign[kBlockSize];
  NIBBLE_UNROLL
  for (int i = 0; i < kBlockSize; ++i) {
    const float v = scaler(x[i]);
    sign[i] = scaler.Sign(x[i], v);
    q[i] = RoundE2m1Unit(v);
  }
  return JoinBlock(BlockIndexBytes(q), BlockSignBytes(sign));
}

// --- Stochastic rounding
// --------------------------------------------------------------------------

// first_element: index of x[0] in the quantized copy.
template <bool kFloat32, Rule kRule>
NIBBLE_HD BlockCodes EncodeCodesStochastic(const float (&x)[kBlockSize], uint8_t scale,
                                           const OuterScales& outer, const EncodeParams& params,
                                           int64_t first_element) {
  const float encode_scale = RuntimeBlockEncodeScale(scale, outer.context.global.decode_scale);
  const float decode_scale = CheckpointBlockDecodeScale(scale, outer.checkpoint_decode_scale);
  BlockCodes codes = {{0, 0}};
  NIBBLE_UNROLL
  for (int quad = 0; quad < kBlockSize / 4; ++quad) {
    const PhiloxWords uniform = StochasticUniform31(
        params.seed, params.offset, static_cast<uint64_t>(first_element) / 4 + quad);
    NIBBLE_UNROLL
    for (int j = 0; j < 4; ++j) {
      const int i = 4 * quad + j;
      const float scaled =
          kRule == Rule::kRuntime ? RuntimeScaled(x[i], encode_scale) : DivRn(x[i], decode_scale);
      const uint32_t code = E2m1EncodeStochastic(scaled, uniform.word[j]);
      codes.word[i / 8] |= code << (4 * (i % 8));
    }
  }
  return codes;
}

// --- 4over6 -------------------------------------------------------------------------------------
//
// Which candidate has the smaller error is decided from sums that are cheaper than the definition's
// and off by less than a bound; where they are nearer to one another than that, the definition
// decides. Both of its paths and all orders of summation lie within the bound.

// The sign bits of a block's codes under the runtime rule.
template <bool kFloat32>
NIBBLE_HD BlockBytes RuntimeSignBytes(const float (&x)[kBlockSize],
                                      const BlockScaler<kFloat32, Rule::kRuntime>& scaler) {
  float sign[kBlockSize];
  NIBBLE_UNROLL
  for (int i = 0; i < kBlockSize; ++i) sign[i] = kFloat32 ? scaler(x[i]) : AddRn(x[i], 0.0f);
  return BlockSignBytes(sign);
}

// One candidate: its error, nearly, in x (mse: squared), and its codes.
struct CandidateSum {
  float error;
  BlockBytes indices;
};

template <bool kFloat32, ErrorMetric kMetric>
NIBBLE_HD CandidateSum SumCandidate(const float (&x)[kBlockSize], uint8_t scale,
                                    const OuterScales& outer) {
  const BlockScaler<kFloat32, Rule::kRuntime> scaler(scale, outer);
  const float worth = MulRn(MulRn(E4m3Decode(scale), outer.error_scale), 1.0f / kCodeUnit);
  float q[kBlockSize], sum[2] = {0.0f, 0.0f};
  NIBBLE_UNROLL
  for (int i = 0; i < kBlockSize; ++i) {
    q[i] = RoundE2m1Unit(scaler(x[i]));
    const float d = FmaRn(q[i], worth, -Abs(x[i]));
    float& s = sum[i % 2];
    s = kMetric == ErrorMetric::kMse   ? FmaRn(d, d, s)
        : kMetric == ErrorMetric::kMae ? AddRn(s, Abs(d))
                                       : MaxNumber(s, Abs(d));
  }
  const float error =
      kMetric == ErrorMetric::kAbsMax ? MaxNumber(sum[0], sum[1]) : AddRn(sum[0], sum[1]);
  return {error, BlockIndexBytes(q)};
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

}  // namespace nibble

#endif  // NIBBLE_QUANT_NUMERICS_BLOCK_ENCODE_H_
