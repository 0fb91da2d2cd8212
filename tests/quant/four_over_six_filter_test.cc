// The filter of 4over6 against the contract: which code a value gets, and that what it decides is
// what the definition decides. fp16 arithmetic is done in double here and rounded.
#include "quant/numerics/four_over_six_filter.h"

#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "engine/synthetic.h"
#include "gtest/gtest.h"
#include "quant/quantize_params.h"

namespace nibble {
namespace {

// To nearest even; of doubles that hold the exact sum.
double RoundF16(double x) {
  if (x == 0) return x;
  const double place = std::ldexp(1.0, std::max(std::ilogb(x), -14) - 10);
  return std::nearbyint(x / place) * place;
}

float Half(uint32_t word) { return FloatFromF16(static_cast<uint16_t>(word & 0xFFFFu)); }

// The index of a magnitude by truncation, as the kernel finds it.
int FilterIndex(float a, const FilterScale& scale) {
  const float v = FmaRn(a, scale.factor, 0.0f);
  const double place = std::ldexp(1.0, v < kCodeUnit ? -24 : std::ilogb(v) - 10);
  uint32_t bits = F16FromFloat(static_cast<float>(std::floor(v / place) * place)) + 0x100u;
  if (scale.limit < 0) bits &= (bits - 1) | 0xFDFFu;
  return static_cast<int>(bits >> 9);
}

// Outer maxima: with ties of every kind (those that make encode scales 1 / n among them), and none.
std::vector<float> OuterMaxima() {
  std::vector<float> maxima = {0.0f, 1.0f, 1.5f, 3.0f, 6.0f, 2688.0f, 1536.0f, 5.25f, 0x1p-39f};
  for (int i = 1; i < 60; ++i) maxima.push_back(std::ldexp(1.0f + i / 61.0f, i % 40 - 28));
  for (int n = 1; n < 60; n += 2) maxima.push_back(2688.0f / n);
  return maxima;
}

// All bf16 significands in all binades that matter, under every scale.
TEST(FourOverSixFilterTest, CodesAreTheDefinitions) {
  int64_t held = 0, even_down = 0, refused = 0, different = 0;
  for (float amax : OuterMaxima()) {
    for (float bound : {448.0f, 256.0f}) {
      const OuterScales outer = MakeOuterScales<false>(amax, bound, ErrorPath::kFast);
      ASSERT_TRUE(outer.regular);
      for (uint32_t code = 1; code <= kE4m3Codes; ++code) {
        const FilterScale scale = MakeFilterScale(code, outer);
        (scale.limit != 0 ? held : refused) += 1;
        if (scale.limit == 0) continue;
        even_down += scale.limit < 0;
        const float encode_scale =
            RuntimeBlockEncodeScale(static_cast<uint8_t>(code), outer.context.global.decode_scale);
        const uint32_t top = FloatBits(Abs(scale.limit)) >> 16;
        for (uint32_t bits = top - 8 * 128; bits <= top; ++bits) {
          const float x = FloatFromBits(bits << 16);
          if (!(x < Abs(scale.limit))) continue;
          different += FilterIndex(x, scale) != E2m1Index(RuntimeScaled(x, encode_scale));
        }
      }
    }
  }
  EXPECT_EQ(different, 0);
  EXPECT_GT(held, 100 * refused);
  EXPECT_GT(even_down, 0);  // scales with ties of both kinds exist
}

// Zero and NaN are what they are, and nothing holds where the shortcuts do not.
TEST(FourOverSixFilterTest, Ranges) {
  const OuterScales outer = MakeOuterScales<false>(1.7f, 448, ErrorPath::kStrict);
  EXPECT_EQ(MakeFilterScale(0, outer).limit, 0x1p-149f);
  EXPECT_EQ(MakeFilterScale(127, outer).limit, 0.0f);
  for (float amax : {0x1p-41f, 0x1p-100f, 1e30f}) {
    EXPECT_EQ(MakeFilterScale(0, MakeOuterScales<false>(amax, 448, ErrorPath::kStrict)).limit, 0);
    EXPECT_EQ(MakeFilterScale(9, MakeOuterScales<false>(amax, 448, ErrorPath::kStrict)).limit, 0);
  }
}

// The kernel's sum of a candidate.
template <ErrorMetric kMetric>
float FilterSum(const float* x, const FilterScale& scale, double align) {
  double d[kBlockSize];
  for (int i = 0; i < kBlockSize; ++i) {
    const double q = E2m1Magnitude(static_cast<uint8_t>(FilterIndex(Abs(x[i]), scale)));
    d[i] = RoundF16(RoundF16(Abs(x[i]) * align) + q * kCodeUnit * Half(scale.worth));
    d[i] = RoundF16(d[i] + q * kCodeUnit * Half(scale.worth >> 16));
  }
  double lanes[2];
  for (int lane = 0; lane < 2; ++lane) {
    const auto at = [&](int j) { return std::fabs(d[2 * j + lane]); };
    if (kMetric == ErrorMetric::kMae) {
      const auto add = [](double a, double b) { return RoundF16(a + b); };
      lanes[lane] =
          add(add(add(at(0), at(1)), add(at(2), at(3))), add(add(at(4), at(5)), add(at(6), at(7))));
    } else {
      double part[2];
      for (int half = 0; half < 2; ++half) {
        part[half] = 0;
        for (int j = 0; j < 4; ++j) {
          part[half] = RoundF16(at(4 * half + j) * at(4 * half + j) + part[half]);
        }
      }
      lanes[lane] = RoundF16(part[0] + part[1]);
    }
  }
  return static_cast<float>(lanes[0]) + static_cast<float>(lanes[1]);
}

struct Tally {
  int64_t blocks = 0, decided = 0, wrong = 0;
};

template <ErrorMetric kMetric>
void Judge(const std::vector<float>& values, float outer_amax, float bound, ErrorPath path,
           Tally& tally) {
  const OuterScales outer = MakeOuterScales<false>(outer_amax, bound, path);
  for (size_t at = 0; at < values.size(); at += kBlockSize) {
    const float* x = &values[at];
    float amax = 0;
    for (int i = 0; i < kBlockSize; ++i) amax = Max(amax, Abs(x[i]));
    const auto [sf6, sf4] = FourOverSixCandidates(amax, outer.context.global.encode_scale);
    const FilterScale six = MakeFilterScale(sf6, outer);
    const FilterScale four = AlignFilterScale(MakeFilterScale(sf4, outer), six);
    if (!(amax < Abs(six.limit)) || !(amax < Abs(four.limit)) || sf6 == sf4 || amax == 0) continue;
    const double align = FloatFromBits(six.align & 0xFFFF0000u) * 0x1p112;
    const float error6 = FilterSum<kMetric>(x, six, align);
    const float error4 = FilterSum<kMetric>(x, four, align);
    ++tally.blocks;
    if (!(Abs(error6 - error4) > FilterMargin<kMetric>(error6, error4, amax, six.align))) {
      continue;
    }
    ++tally.decided;
    tally.wrong +=
        (error4 < error6) != (FourOverSixBlockError(x, sf4, outer.context, kMetric, path) <
                              FourOverSixBlockError(x, sf6, outer.context, kMetric, path));
  }
}

std::vector<float> Bf16Values(Distribution distribution, int64_t count, uint64_t seed) {
  std::vector<float> values = SyntheticValues(distribution, count, seed);
  for (float& value : values) value = FloatFromBf16(Bf16FromFloat(value));
  return values;
}

template <ErrorMetric kMetric>
void ExpectVerdictsOfTheDefinition() {
  Tally all;
  for (ErrorPath path : {ErrorPath::kStrict, ErrorPath::kFast}) {
    for (float bound : {448.0f, 256.0f}) {
      for (size_t d = 0; d < kEnumNames<Distribution>.size(); ++d) {
        const std::vector<float> values =
            Bf16Values(static_cast<Distribution>(d), 1500 * kBlockSize, d + 1);
        float amax = 0;
        for (float x : values) amax = Max(amax, Abs(x));
        for (float factor : {1.0f, 1.37f, 40.0f, 3e4f}) {
          Judge<kMetric>(values, amax * factor, bound, path, all);
        }
      }
    }
  }
  EXPECT_EQ(all.wrong, 0);
  EXPECT_GT(all.decided, all.blocks / 2);
}

TEST(FourOverSixFilterTest, DecidesAsTheDefinition) {
  ExpectVerdictsOfTheDefinition<ErrorMetric::kMae>();
  ExpectVerdictsOfTheDefinition<ErrorMetric::kMse>();
}

// Near-ties, made: of many blocks, one element is moved by last places until the candidates' errors
// are as near to one another as it goes, on both sides.
template <ErrorMetric kMetric>
void ExpectNearTiesRight() {
  Tally tally;
  for (float bound : {448.0f, 256.0f}) {
    for (float outer_amax : {4.5f, 5.7f, 7.77f}) {
      const OuterScales outer = MakeOuterScales<false>(outer_amax, bound, ErrorPath::kStrict);
      std::vector<float> values =
          Bf16Values(Distribution::kNormal, 800 * kBlockSize, static_cast<uint64_t>(bound));
      std::vector<float> near;
      for (size_t at = 0; at < values.size(); at += kBlockSize) {
        float* x = &values[at];
        const auto difference = [&] {
          float amax = 0;
          for (int i = 0; i < kBlockSize; ++i) amax = Max(amax, Abs(x[i]));
          const auto [sf6, sf4] = FourOverSixCandidates(amax, outer.context.global.encode_scale);
          return FourOverSixBlockError(x, sf6, outer.context, kMetric, ErrorPath::kStrict) -
                 FourOverSixBlockError(x, sf4, outer.context, kMetric, ErrorPath::kStrict);
        };
        float best = Abs(difference());
        for (int i = 0; i < kBlockSize; ++i) {
          const uint32_t old = FloatBits(x[i]);
          uint32_t kept = old;
          for (int step = -12; step <= 12; ++step) {
            x[i] = FloatFromBits(old + (static_cast<uint32_t>(step) << 16));
            if (!(Abs(x[i]) < 6)) continue;
            const float now = Abs(difference());
            if (now < best) {
              best = now;
              kept = FloatBits(x[i]);
            }
          }
          x[i] = FloatFromBits(kept);
          near.insert(near.end(), x, x + kBlockSize);  // nearer and nearer
        }
      }
      Judge<kMetric>(near, outer_amax, bound, ErrorPath::kStrict, tally);
      Judge<kMetric>(near, outer_amax, bound, ErrorPath::kFast, tally);
    }
  }
  EXPECT_EQ(tally.wrong, 0);
  EXPECT_GT(tally.decided, 1000);
  EXPECT_LT(tally.decided, tally.blocks);
}

TEST(FourOverSixFilterTest, NearTies) {
  ExpectNearTiesRight<ErrorMetric::kMae>();
  ExpectNearTiesRight<ErrorMetric::kMse>();
}

// What makes the filter worth its while.
TEST(FourOverSixFilterTest, FewBlocksAreUndecided) {
  const std::vector<float> values = Bf16Values(Distribution::kNormal, 30000 * kBlockSize, 3);
  for (float bound : {448.0f, 256.0f}) {
    for (float outer_amax : {4.6875f, 5.03f, 5.5f, 7.9f}) {
      Tally mae, mse;
      Judge<ErrorMetric::kMae>(values, outer_amax, bound, ErrorPath::kStrict, mae);
      Judge<ErrorMetric::kMse>(values, outer_amax, bound, ErrorPath::kStrict, mse);
      EXPECT_GT(mae.decided, 0.975 * mae.blocks) << outer_amax << " " << bound;
      EXPECT_GT(mse.decided, 0.975 * mse.blocks) << outer_amax << " " << bound;
    }
  }
}

}  // namespace
}  // namespace nibble
