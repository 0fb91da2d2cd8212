// The shortcuts of block_encode.h against the contract's functions: over all floats where that is
// possible, over every divisor around every tie, over many blocks where it is not.
#include "quant/numerics/block_encode.h"

#include <atomic>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "base/parallel_for.h"
#include "engine/synthetic.h"
#include "gtest/gtest.h"
#include "kernels/cpu/cpu_kernels.h"
#include "quant/quantize_params.h"

namespace nibble {
namespace {

// Calls differs(bits) for begin <= bits < end; returns how many times it said yes.
template <typename Differs>
int64_t CountDifferent(int64_t begin, int64_t end, const Differs& differs) {
  std::atomic<int64_t> count{0};
  ThreadPool pool;
  pool.ParallelFor(end - begin, 1 << 18, [&](int64_t first, int64_t last) {
    int64_t different = 0;
    for (int64_t i = first; i < last; ++i) different += differs(static_cast<uint32_t>(begin + i));
    count += different;
  });
  return count;
}

// As float bits, of values in units: what lies below is 0, what lies above is clamped to 6.
constexpr uint32_t kTinyUnit = (127 - 14 - 24) << 23;
constexpr uint32_t kEightUnit = (127 - 14 + 3) << 23;

float MagnitudeInUnits(float v) { return E2m1Magnitude(E2m1Index(v / kCodeUnit)) * kCodeUnit; }

TEST(BlockEncodeTest, RoundsEveryFloat) {
  EXPECT_EQ(CountDifferent(kTinyUnit, kEightUnit,
                           [](uint32_t bits) {
                             const float v = FloatFromBits(bits);
                             return RoundE2m1Unit(v) != MagnitudeInUnits(v);
                           }),
            0);
  for (uint32_t bits : {0u, 1u, 0x00800000u, kTinyUnit - 1, kEightUnit, 0x7F7FFFFFu, 0x7F800000u}) {
    const float v = FloatFromBits(bits);
    EXPECT_EQ(RoundE2m1Unit(v), MagnitudeInUnits(v)) << v;
    EXPECT_EQ(RoundE2m1Unit(-v), MagnitudeInUnits(v)) << v;
  }
  // The comparison sees a rounding that breaks ties the other way.
  EXPECT_EQ(CountDifferent(kTinyUnit, kEightUnit,
                           [](uint32_t bits) {
                             const float v = FloatFromBits(bits), up = FloatFromBits(bits + 1);
                             return RoundE2m1Unit(up) != MagnitudeInUnits(v);
                           }),
            7);
}

TEST(BlockEncodeTest, JoinsEveryCodeInEveryPlace) {
  for (int place = 0; place < kBlockSize; ++place) {
    for (int code = 0; code < 16; ++code) {
      for (int others : {0, 7, 15}) {
        float q[kBlockSize], sign[kBlockSize];
        uint8_t codes[kBlockSize];
        for (int i = 0; i < kBlockSize; ++i) {
          codes[i] = static_cast<uint8_t>(i == place ? code : others);
          q[i] = E2m1Magnitude(codes[i] & 7) * kCodeUnit;
          sign[i] = codes[i] & 8 ? -0.0f : 0.0f;
        }
        const BlockCodes joined = JoinBlock(BlockIndexBytes(q), BlockSignBytes(sign));
        for (int i = 0; i < kBlockSize; ++i) {
          EXPECT_EQ((joined.word[i / 8] >> (4 * (i % 8))) & 0xF, codes[i]) << place << " " << code;
        }
      }
    }
  }
}

// Quotients compare with a tie as the correctly rounded ones do. A value farther from tie * d than
// a few last places is on its side of the tie after any rounding; the ties have four mantissas, and
// powers of two change nothing.
TEST(BlockEncodeTest, DividesByEveryMantissa) {
  const auto count_different = [](int corrections, int exponent) {
    const uint32_t begin = static_cast<uint32_t>(127 + exponent) << 23;
    return CountDifferent(begin, begin + (1 << 23), [=](uint32_t bits) {
      const float d = FloatFromBits(bits), r = ReciprocalRn(d);
      for (float tie : {0.25f, 0.75f, 1.25f, 1.75f}) {
        const uint32_t center = FloatBits(tie * d);
        for (uint32_t at = center - 4; at <= center + 4; ++at) {
          const float x = FloatFromBits(at);
          const float v = corrections == 0 ? x * r : DivideForE2m1(x, d, r);
          if (E2m1Index(v) != E2m1Index(x / d)) return true;
        }
      }
      return false;
    });
  };
  for (int exponent : {0, -101, 97}) EXPECT_EQ(count_different(1, exponent), 0) << exponent;
  EXPECT_GT(count_different(0, 0), 1 << 20);  // a reciprocal alone does not do
}

// Correctly rounded quotients by the constants of the contract, for every mantissa.
TEST(BlockEncodeTest, DividesByConstants) {
  for (float d : {6.0f, 6.0f * 448, 6.0f * 256}) {
    EXPECT_EQ(CountDifferent(0x3F800000, 0x40000000,
                             [d](uint32_t bits) {
                               const float x = FloatFromBits(bits);
                               return DivideByConstant(x, d, 1.0f / d) != x / d;
                             }),
              0);
  }
  EXPECT_EQ(DivideBySix(0.0f), 0.0f);
}

// Indices of stochastic rounding in units, over all binades and many fractions.
TEST(BlockEncodeTest, RoundsStochastically) {
  EXPECT_EQ(CountDifferent(0x3F800000 - (40 << 23), 0x41100000,
                           [](uint32_t bits) {
                             const float v = FloatFromBits(bits);
                             const uint32_t uniform = bits * 2654435761u >> 1;
                             return StochasticIndexUnit(v * kCodeUnit, uniform) !=
                                    (E2m1EncodeStochastic(v, uniform) & 7u);
                           }),
            0);
}

struct Sample {
  std::string name;
  std::vector<float> values;
};

// Blocks of every kind, as a tensor of the type would hold them.
std::vector<Sample> Samples(DType dtype, int64_t blocks) {
  std::vector<Sample> samples;
  for (size_t d = 0; d < kEnumNames<Distribution>.size(); ++d) {
    const auto distribution = static_cast<Distribution>(d);
    std::vector<float> values = SyntheticValues(distribution, blocks * kBlockSize, d + 1);
    // Blocks of very different sizes, and negative zeros.
    for (size_t i = 0; i < values.size(); ++i) {
      const size_t block = i / kBlockSize;
      if (block % 3 == 1) values[i] = std::ldexp(values[i], -static_cast<int>(block % 40));
      if (block % 64 == 2 && i % 3 == 0) values[i] = -0.0f;
      if (block % 64 == 5 && i % 5 == 0) values[i] = std::ldexp(-1.0f, -133);
    }
    const std::vector<std::byte> bytes = ToBytes(values, dtype);
    const MatrixView x = {bytes.data(), dtype, 1, static_cast<int64_t>(values.size())};
    for (int64_t b = 0; b < blocks; ++b) {
      LoadBlock(x, b * kBlockSize, &values[b * kBlockSize]);
    }
    samples.push_back({std::string(kEnumNames<Distribution>[d]), std::move(values)});
  }
  return samples;
}

BlockCodes CodesByDefinition(const float* x, uint8_t scale, const OuterScales& outer, Rule rule) {
  const float encode_scale = RuntimeBlockEncodeScale(scale, outer.context.global.decode_scale);
  const float decode_scale = CheckpointBlockDecodeScale(scale, outer.checkpoint_decode_scale);
  BlockCodes codes = {{0, 0}};
  for (int i = 0; i < kBlockSize; ++i) {
    const float scaled =
        rule == Rule::kRuntime ? RuntimeScaled(x[i], encode_scale) : x[i] / decode_scale;
    codes.word[i / 8] |= uint32_t{E2m1Encode(scaled)} << (4 * (i % 8));
  }
  return codes;
}

template <bool kFloat32, Rule kRule>
void ExpectSameCodes(DType dtype, float amax_factor) {
  for (const Sample& sample : Samples(dtype, 3000)) {
    SCOPED_TRACE(sample.name + " " + std::string(DTypeName(dtype)));
    float amax = 0;
    for (float x : sample.values) amax = Max(amax, Abs(x));
    const auto outer = MakeOuterScales<kFloat32>(amax * amax_factor, kE4m3Max, ErrorPath::kStrict);
    if (!outer.regular) continue;
    int64_t different = 0, compared = 0;
    for (size_t at = 0; at < sample.values.size(); at += kBlockSize) {
      float x[kBlockSize];
      std::memcpy(x, &sample.values[at], sizeof(x));
      const float block_amax = BlockAmax(x);
      const uint8_t own = kRule == Rule::kRuntime
                              ? RuntimeBlockScale(block_amax, outer.context.global.encode_scale)
                              : CheckpointBlockScale(block_amax, outer.checkpoint_decode_scale);
      for (int scale : {int{own}, 1, 8, kE4m3Codes}) {
        const BlockScaler<kFloat32, kRule> scaler(static_cast<uint8_t>(scale), outer);
        if (kRule == Rule::kRuntime ? !scaler.IsUnsaturated(block_amax)
                                    : !scaler.IsRegular(block_amax)) {
          continue;
        }
        const BlockCodes expected = CodesByDefinition(x, static_cast<uint8_t>(scale), outer, kRule);
        const BlockCodes actual = EncodeCodes<kFloat32, kRule, false>(x, scaler, {});
        const BlockCodes converted = EncodeCodesByConversion(x, scaler);
        for (int i = 0; i < 2; ++i) {
          different += expected.word[i] != actual.word[i];
          different += expected.word[i] != converted.word[i];
        }
        ++compared;
      }
    }
    EXPECT_EQ(different, 0);
    EXPECT_GT(compared, 0);
  }
}

TEST(BlockEncodeTest, EncodesAsTheDefinition) {
  for (float factor : {1.0f, 0.01f, 300.0f, 0x1p14f, 0x1p50f}) {
    SCOPED_TRACE(factor);
    ExpectSameCodes<false, Rule::kRuntime>(DType::kBf16, factor);
    ExpectSameCodes<false, Rule::kRuntime>(DType::kF16, factor);
    ExpectSameCodes<true, Rule::kRuntime>(DType::kF32, factor);
    ExpectSameCodes<false, Rule::kCheckpoint>(DType::kBf16, factor);
    ExpectSameCodes<false, Rule::kCheckpoint>(DType::kF16, factor);
    ExpectSameCodes<true, Rule::kCheckpoint>(DType::kF32, factor);
  }
}

template <ErrorMetric kMetric>
void ExpectSameVerdicts(ErrorPath path, float bound, float amax_factor) {
  int64_t decided = 0;
  for (const Sample& sample : Samples(DType::kBf16, 4000)) {
    SCOPED_TRACE(sample.name);
    float amax = 0;
    for (float x : sample.values) amax = Max(amax, Abs(x));
    const auto outer = MakeOuterScales<false>(amax * amax_factor, bound, path);
    if (!outer.regular) continue;
    int64_t wrong = 0;
    for (size_t at = 0; at < sample.values.size(); at += kBlockSize) {
      float x[kBlockSize];
      std::memcpy(x, &sample.values[at], sizeof(x));
      const float block_amax = BlockAmax(x);
      if (!IsZeroOrInRange(block_amax)) continue;
      const auto [sf6, sf4] = FourOverSixCandidates(block_amax, outer.context.global.encode_scale);
      if (sf4 == sf6) continue;
      const float error6 = FourOverSixBlockError(x, sf6, outer.context, kMetric, path);
      const float error4 = FourOverSixBlockError(x, sf4, outer.context, kMetric, path);
      wrong += RegularBlockError(x, sf6, outer, kMetric, path) != error6;
      wrong += RegularBlockError(x, sf4, outer, kMetric, path) != error4;
      const BlockScaler<false, Rule::kRuntime> scaler6(sf6, outer), scaler4(sf4, outer);
      if (!scaler6.IsUnsaturated(block_amax) || !scaler4.IsUnsaturated(block_amax)) continue;
      const CandidateSums sums = SumCandidates<false, kMetric>(
          x, scaler6, scaler4, CandidateWorth(sf6, outer), CandidateWorth(sf4, outer));
      const FourOverSixVerdict verdict =
          JudgeFourOverSix<kMetric>(sums.error6, sums.error4, block_amax, 1);
      for (int four = 0; four < 2; ++four) {
        const BlockCodes codes = JoinBlock(four ? sums.indices4 : sums.indices6, ValueSignBytes(x));
        const BlockCodes expected = CodesByDefinition(x, four ? sf4 : sf6, outer, Rule::kRuntime);
        wrong += codes.word[0] != expected.word[0] || codes.word[1] != expected.word[1];
      }
      if (verdict == FourOverSixVerdict::kNear) continue;
      ++decided;
      wrong += (verdict == FourOverSixVerdict::kFour) != (error4 < error6);
    }
    EXPECT_EQ(wrong, 0);
  }
  EXPECT_GT(decided, 10000);
}

TEST(BlockEncodeTest, JudgesAsTheDefinition) {
  for (ErrorPath path : {ErrorPath::kStrict, ErrorPath::kFast}) {
    for (float bound : {448.0f, 256.0f}) {
      for (float factor : {1.0f, 0.3f, 50.0f}) {
        SCOPED_TRACE(std::string(NameOf(path)) + " " + std::to_string(bound) + " " +
                     std::to_string(factor));
        ExpectSameVerdicts<ErrorMetric::kMae>(path, bound, factor);
        ExpectSameVerdicts<ErrorMetric::kMse>(path, bound, factor);
        ExpectSameVerdicts<ErrorMetric::kAbsMax>(path, bound, factor);
      }
    }
  }
}

template <ErrorMetric kMetric>
double ShareOfNear(float bound) {
  constexpr int64_t kBlocks = 200000;
  const std::vector<float> values = SyntheticValues(Distribution::kNormal, kBlocks * kBlockSize, 3);
  float amax = 0;
  for (float x : values) amax = Max(amax, Abs(x));
  const auto outer = MakeOuterScales<false>(amax, bound, ErrorPath::kStrict);
  int64_t near = 0;
  for (size_t at = 0; at < values.size(); at += kBlockSize) {
    float x[kBlockSize];
    std::memcpy(x, &values[at], sizeof(x));
    const float block_amax = BlockAmax(x);
    const auto [sf6, sf4] = FourOverSixCandidates(block_amax, outer.context.global.encode_scale);
    const BlockScaler<false, Rule::kRuntime> scaler6(sf6, outer), scaler4(sf4, outer);
    const auto [error6, error4, indices6, indices4] = SumCandidates<false, kMetric>(
        x, scaler6, scaler4, CandidateWorth(sf6, outer), CandidateWorth(sf4, outer));
    near += JudgeFourOverSix<kMetric>(error6, error4, block_amax, 1) == FourOverSixVerdict::kNear;
  }
  return static_cast<double>(near) / kBlocks;
}

// What makes the shortcut worth its while. abs_max is not among them: where both candidates give
// the worst element the same value, which is common, only the definition can tell.
TEST(BlockEncodeTest, SumsAreSeldomTooNearToCall) {
  for (float bound : {448.0f, 256.0f}) {
    EXPECT_LT(ShareOfNear<ErrorMetric::kMae>(bound), 4e-4);
    EXPECT_LT(ShareOfNear<ErrorMetric::kMse>(bound), 4e-4);
  }
}

}  // namespace
}  // namespace nibble
