#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <set>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "quant/numerics/e2m1.h"
#include "quant/numerics/e4m3.h"
#include "quant/numerics/float_bits.h"
#include "quant/numerics/four_over_six.h"
#include "quant/numerics/hadamard.h"
#include "quant/numerics/hessian_sweep.h"
#include "quant/numerics/philox.h"
#include "quant/numerics/scale_rules.h"
#include "quant/numerics/scale_sweep.h"

namespace nibble {
namespace {

TEST(E2m1Test, ValuesAndRoundTrips) {
  const float magnitudes[] = {0, 0.5, 1, 1.5, 2, 3, 4, 6};
  for (int code = 0; code < 16; ++code) {
    const float value = E2m1Decode(static_cast<uint8_t>(code));
    EXPECT_EQ(std::fabs(value), magnitudes[code & 7]);
    EXPECT_EQ(std::signbit(value), code >= 8);
    if (code != 8) {
      EXPECT_EQ(E2m1Encode(value), code);
    }
  }
}

TEST(E2m1Test, TiesGoToEvenAndTheEndSaturates) {
  const std::pair<float, int> cases[] = {{0.25f, 0}, {0.75f, 2},   {1.25f, 2}, {1.75f, 4},
                                         {2.5f, 4},  {3.5f, 6},    {5.0f, 6},  {6.0f, 7},
                                         {1e30f, 7}, {INFINITY, 7}};
  for (const auto& [x, index] : cases) {
    EXPECT_EQ(E2m1Encode(x), index) << x;
    EXPECT_EQ(E2m1Encode(-x), index | 8) << x;
    if (x > 5) continue;
    // Odd neighbours win only strictly beyond the tie.
    EXPECT_EQ(E2m1Encode(std::nextafter(x, 10.0f)) - E2m1Encode(std::nextafter(x, 0.0f)), 1) << x;
  }
  EXPECT_EQ(E2m1Encode(-0.0f), 0);
  EXPECT_EQ(E2m1Encode(-1e-30f), 8);
  EXPECT_EQ(E2m1Encode(NAN), 7);
}

TEST(E2m1Test, StochasticRoundingIsUnbiasedAndStaysBetweenNeighbours) {
  for (float x : {0.1f, 0.3f, 0.9f, 1.6f, 2.2f, 3.7f, 4.5f, 5.9f, -2.9f}) {
    double sum = 0;
    std::set<float> seen;
    constexpr int kDraws = 1 << 16;
    for (int i = 0; i < kDraws; ++i) {
      // Evenly spread instead of random: the mean is then exact to 1/kDraws of a step.
      const uint32_t uniform = static_cast<uint32_t>(i) << 15;
      const float q = E2m1Decode(E2m1EncodeStochastic(x, uniform));
      seen.insert(q);
      sum += q;
    }
    EXPECT_NEAR(sum / kDraws, x, 2.0 / kDraws) << x;
    EXPECT_EQ(seen.size(), 2u) << x;
  }
  for (float x : {0.0f, 0.5f, 3.0f, 6.0f, -4.0f}) {
    EXPECT_EQ(E2m1Decode(E2m1EncodeStochastic(x, 0)), x);
    EXPECT_EQ(E2m1Decode(E2m1EncodeStochastic(x, 0x7FFFFFFF)), x);
  }
  EXPECT_EQ(E2m1EncodeStochastic(100.0f, 0), 7);
  EXPECT_EQ(E2m1EncodeStochastic(-INFINITY, 0), 15);
}

TEST(E4m3Test, ValuesRiseAndRoundTrip) {
  EXPECT_EQ(E4m3Decode(0x01), 0x1p-9f);
  EXPECT_EQ(E4m3Decode(0x38), 1.0f);
  EXPECT_EQ(E4m3Decode(0x7E), 448.0f);
  EXPECT_TRUE(std::isnan(E4m3Decode(0x7F)) && std::isnan(E4m3Decode(0xFF)));
  for (int code = 0; code <= kE4m3Codes; ++code) {
    const float value = E4m3Decode(static_cast<uint8_t>(code));
    EXPECT_EQ(E4m3Encode(value), code);
    EXPECT_EQ(E4m3Encode(-value), code | 0x80);
    if (code > 0) {
      EXPECT_GT(value, E4m3Decode(static_cast<uint8_t>(code - 1)));
    }
  }
  EXPECT_EQ(E4m3Encode(INFINITY), 0x7E);
  EXPECT_EQ(E4m3Encode(-1e9f), 0xFE);
  EXPECT_EQ(E4m3Encode(NAN) & 0x7F, 0x7F);
}

// Nearest value, ties to the even code, found by looking at all of them.
int NearestE4m3(float x) {
  int best = 0;
  for (int code = 1; code <= kE4m3Codes; ++code) {
    const double here = std::fabs(double{x} - E4m3Decode(static_cast<uint8_t>(code)));
    const double there = std::fabs(double{x} - E4m3Decode(static_cast<uint8_t>(best)));
    if (here < there || (here == there && code % 2 == 0)) best = code;
  }
  return best;
}

TEST(E4m3Test, RoundsToNearestEven) {
  for (int code = 0; code < kE4m3Codes; ++code) {
    const float low = E4m3Decode(static_cast<uint8_t>(code));
    const float middle = (low + E4m3Decode(static_cast<uint8_t>(code + 1))) / 2;
    for (float x : {std::nextafter(middle, 0.0f), middle, std::nextafter(middle, 1000.0f)}) {
      EXPECT_EQ(E4m3Encode(x), NearestE4m3(x)) << x;
    }
  }
}

TEST(HalfTest, EveryBf16AndFp16RoundTrips) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const uint16_t half = static_cast<uint16_t>(bits);
    const float from_bf16 = FloatFromBf16(half), from_f16 = FloatFromF16(half);
    if (std::isnan(from_bf16)) {
      EXPECT_TRUE(std::isnan(FloatFromBf16(Bf16FromFloat(from_bf16))));
    } else {
      EXPECT_EQ(Bf16FromFloat(from_bf16), half);
    }
    if (std::isnan(from_f16)) {
      EXPECT_TRUE(std::isnan(FloatFromF16(F16FromFloat(from_f16))));
    } else {
      EXPECT_EQ(F16FromFloat(from_f16), half);
    }
  }
  EXPECT_EQ(FloatFromF16(0x0001), 0x1p-24f);
  EXPECT_EQ(FloatFromF16(0x7BFF), 65504.0f);
}

TEST(HalfTest, HalfwayGoesToEven) {
  for (uint32_t bits = 0; bits < 0x7BFF; ++bits) {
    const uint16_t low = static_cast<uint16_t>(bits);
    const uint16_t even = low % 2 == 0 ? low : static_cast<uint16_t>(low + 1);
    const float middle = 0.5f * (FloatFromF16(low) + FloatFromF16(static_cast<uint16_t>(low + 1)));
    ASSERT_EQ(F16FromFloat(middle), even) << bits;
    ASSERT_EQ(F16FromFloat(std::nextafter(middle, 1e9f)), low + 1) << bits;
    ASSERT_EQ(F16FromFloat(std::nextafter(middle, -1.0f)), low) << bits;
  }
  EXPECT_EQ(F16FromFloat(65519.99f), 0x7BFF);
  EXPECT_EQ(F16FromFloat(65520.0f), 0x7C00);
  EXPECT_EQ(Bf16FromFloat(FloatFromBits(0x3F808000u)), 0x3F80);
  EXPECT_EQ(Bf16FromFloat(FloatFromBits(0x3F818000u)), 0x3F82);
}

// Vectors from Random123's kat_vectors, philox4x32 with 10 rounds.
TEST(PhiloxTest, KnownAnswers) {
  const PhiloxWords zero = Philox4x32(0, 0, 0);
  EXPECT_THAT(zero.word,
              ::testing::ElementsAre(0x6627e8d5u, 0xe169c58du, 0xbc57ac4cu, 0x9b00dbd8u));
  const PhiloxWords ones = Philox4x32(~uint64_t{0}, ~uint64_t{0}, ~uint64_t{0});
  EXPECT_THAT(ones.word,
              ::testing::ElementsAre(0x408f276du, 0x41c83b0eu, 0xa20bc7c6u, 0x6d5451fdu));
  const PhiloxWords pi =
      Philox4x32(0x299f31d0a4093822ull, 0x85a308d3243f6a88ull, 0x0370734413198a2eull);
  EXPECT_THAT(pi.word, ::testing::ElementsAre(0xd16cfe09u, 0x94fdccebu, 0x5001e420u, 0x24126ea1u));
}

TEST(RhtTest, IsTheSylvesterMatrixWithSigns) {
  const int signs[] = {1, 1, 1, -1, 1, -1, -1, -1, -1, -1, -1, 1, -1, 1, -1, -1};
  for (uint32_t mask : {kRhtDefaultSigns, kRhtNoSigns}) {
    for (int k = 0; k < kBlockSize; ++k) {
      float x[kBlockSize] = {};
      x[k] = 1.0f;
      Rht16(x, mask);
      for (int i = 0; i < kBlockSize; ++i) {
        const int sylvester = __builtin_popcount(i & k) % 2 == 0 ? 1 : -1;
        const int sign = mask == kRhtNoSigns ? 1 : signs[k];
        EXPECT_EQ(x[i], 0.25f * static_cast<float>(sylvester * sign)) << i << " " << k;
      }
    }
  }
}

TEST(ScaleRulesTest, EdgesOfTheRuntimeRule) {
  EXPECT_EQ(RuntimeGlobalScale(0.0f, 448).encode_scale, 1.0f);
  EXPECT_EQ(RuntimeGlobalScale(1e-40f, 448).encode_scale, kFloatMax);
  EXPECT_EQ(RuntimeGlobalScale(2688.0f, 448).encode_scale, 1.0f);
  EXPECT_EQ(RuntimeBlockScale(0.0f, 1.0f), 0);
  EXPECT_EQ(RuntimeBlockScale(1e38f, kFloatMax), 0x7E);
  EXPECT_EQ(RuntimeBlockEncodeScale(0, 1.0f), kFloatMax);
  EXPECT_EQ(RuntimeScaled(1e30f, kFloatMax), 6.0f);
}

TEST(ScaleRulesTest, StoredScalesAreNeverZeroOrNan) {
  EXPECT_EQ(CheckpointGlobalDecodeScale(0.0f, 448), 1.0f);
  EXPECT_EQ(CheckpointGlobalDecodeScale(1e-44f, 448), 1.0f);  // the quotient is below any float
  for (float block_amax : {0.0f, 1e-45f, 1e-30f, 1.0f, 3e38f}) {
    for (float amax : {1e-45f, 1e-30f, 1.0f, 3e38f}) {
      const uint8_t code = CheckpointBlockScale(block_amax, CheckpointGlobalDecodeScale(amax, 448));
      EXPECT_GE(code, 1) << block_amax << " " << amax;
      EXPECT_LE(code, kE4m3Codes) << block_amax << " " << amax;
    }
  }
  EXPECT_EQ(CheckpointBlockScale(0.0f, 1.0f), 0x38);
}

TEST(FourOverSixTest, TilesJoinAsATree) {
  float errors[kBlockSize];
  for (int r = 0; r < kBlockSize; ++r) errors[r] = std::ldexp(1.0f, 2 * r);
  float tree[kBlockSize];
  std::copy(errors, errors + kBlockSize, tree);
  for (int half : {8, 4, 2, 1}) {
    for (int r = 0; r < half; ++r) tree[r] = tree[r] + tree[r + half];
  }
  EXPECT_EQ(FourOverSixJoinTile(errors, ErrorMetric::kMae), tree[0]);
  for (int r = 0; r < kBlockSize; ++r) errors[r] = static_cast<float>((r * 7) % 16);
  EXPECT_EQ(FourOverSixJoinTile(errors, ErrorMetric::kAbsMax), 15.0f);
}

TEST(SweepTest, TableDoublesExactlyWherePrunable) {
  for (float g : {0x1p-80f, 1e-3f, 1.0f, 12345.678f, 1e30f}) {
    for (float bound : {448.0f, 256.0f}) {
      const SweepTable table = MakeSweepTable(g, bound);
      ASSERT_TRUE(table.prunable);
      for (int k = 1; k <= 7; ++k) {
        EXPECT_EQ(table.decode_scale[2 * k], 2 * table.decode_scale[k]);
      }
      for (int k = 8; k + 8 <= kE4m3Codes; ++k) {
        EXPECT_EQ(table.decode_scale[k + 8], 2 * table.decode_scale[k]);
      }
    }
  }
  EXPECT_FALSE(MakeSweepTable(1e-40f, 448).prunable);
  EXPECT_FALSE(MakeSweepTable(0.0f, 448).prunable);
  EXPECT_EQ(MakeSweepTable(0.0f, 448).decode_scale[5], 1.0f);
}

TEST(MultiplierTest, GridIsModelOptimizers) {
  const MultiplierGrid grid;
  const int count = MultiplierCount(grid);
  EXPECT_EQ(count, 39);
  EXPECT_EQ(MultiplierAt(grid, count, 0), 0.25f);
  EXPECT_EQ(MultiplierAt(grid, count, 38), 4.0f);
  EXPECT_NEAR(MultiplierAt(grid, count, 19), 0.25 + 19 * 3.75 / 38, 1e-6);
  EXPECT_EQ(MultiplierCount({1.0f, 1.0f, 0.1f}), 1);
  EXPECT_EQ(MultiplierCount({1.0f, 2.0f, 0.1f}), 11);
}

TEST(HessianTest, RefusesWhatIsNoHessian) {
  float h[256] = {};
  HessianFactor factor;
  EXPECT_EQ(FactorHessian(h, &factor), HessianDefect::kNone);  // all zero is semidefinite
  EXPECT_EQ(factor.eigenvalue_bound, 0.0f);
  for (int i = 0; i < 16; ++i) h[i * 17] = 2.0f;
  EXPECT_EQ(FactorHessian(h, &factor), HessianDefect::kNone);
  EXPECT_LE(factor.eigenvalue_bound, 2.0f);
  EXPECT_GE(factor.eigenvalue_bound, 1.6f);  // at most a factor of 16^(1/16) loose
  h[1] = h[16] = 3.0f;
  EXPECT_EQ(FactorHessian(h, &factor), HessianDefect::kNotPositive);
  h[16] = 0.0f;
  EXPECT_EQ(FactorHessian(h, &factor), HessianDefect::kNotSymmetric);
  h[1] = NAN;
  EXPECT_EQ(FactorHessian(h, &factor), HessianDefect::kNotFinite);
  h[1] = 0.0f;
  h[0] = -1.0f;
  EXPECT_EQ(FactorHessian(h, &factor), HessianDefect::kNotPositive);
}

}  // namespace
}  // namespace nibble
