#include "quant/error_stats.h"

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "gtest/gtest.h"

namespace nibble {
namespace {

TEST(ExactSumTest, AddsWhatRoundingWouldLose) {
  ExactSum sum;
  sum.Add(1e60);
  sum.Add(1.0);
  sum.Add(0x1p-290);
  sum.Add(-1e60);
  sum.Add(-1.0);
  EXPECT_EQ(sum.Value(), 0x1p-290);
  sum.Add(-0x1p-289);
  EXPECT_EQ(sum.Value(), -0x1p-290);
  EXPECT_EQ(ExactSum().Value(), 0.0);
}

TEST(ExactSumTest, OrderDoesNotMatter) {
  std::mt19937_64 random(1);
  std::vector<double> values(5000);
  for (double& v : values) {
    v = std::ldexp(static_cast<double>(random()), static_cast<int>(random() % 400) - 250);
    if (random() % 2) v = -v;
  }
  ExactSum forward;
  for (double v : values) forward.Add(v);
  for (int round = 0; round < 5; ++round) {
    std::shuffle(values.begin(), values.end(), random);
    ExactSum whole, part;
    const size_t cut = random() % values.size();
    for (size_t i = 0; i < values.size(); ++i) (i < cut ? part : whole).Add(values[i]);
    whole.Merge(part);
    EXPECT_EQ(whole.Value(), forward.Value());
  }
}

struct Blocks {
  std::vector<float> x, y;
  explicit Blocks(int count) : x(count * kBlockSize), y(count * kBlockSize) {
    std::mt19937 random(2);
    std::normal_distribution<float> normal;
    for (size_t i = 0; i < x.size(); ++i) {
      x[i] = normal(random) * std::ldexp(1.0f, static_cast<int>(i % 60) - 30);
      y[i] = x[i] * (1 + 0.1f * normal(random));
    }
  }
  ErrorStats Stats(int begin, int end) const {
    ErrorStats stats;
    for (int b = begin; b < end; ++b) {
      stats.AddBlock(MeasureBlock(&x[b * kBlockSize], &y[b * kBlockSize], 6.0f));
    }
    return stats;
  }
};

TEST(ErrorStatsTest, MergesToTheSameBitsForAnyChunking) {
  constexpr int kBlocks = 1000;
  const Blocks blocks(kBlocks);
  const ErrorStats whole = blocks.Stats(0, kBlocks);
  for (int chunk : {1, 3, 7, 100, 999}) {
    ErrorStats merged;
    // From the back, so that the order differs, too.
    for (int begin = (kBlocks - 1) / chunk * chunk; begin >= 0; begin -= chunk) {
      merged.Merge(blocks.Stats(begin, std::min(begin + chunk, kBlocks)));
    }
    EXPECT_EQ(merged.count(), whole.count());
    EXPECT_EQ(merged.mse(), whole.mse());
    EXPECT_EQ(merged.relative_mse(), whole.relative_mse());
    EXPECT_EQ(merged.cosine(), whole.cosine());
    EXPECT_EQ(merged.max_error(), whole.max_error());
    EXPECT_EQ(merged.saturated(), whole.saturated());
    EXPECT_EQ(merged.flushed(), whole.flushed());
  }
  EXPECT_NE(blocks.Stats(0, kBlocks - 1).mse(), whole.mse());
}

// As a device adds up: digits of terms in any order, carried or not, in several totals.
TEST(ErrorStatsTest, TakesTheTotalsOfADevice) {
  constexpr int kBlocks = 1000;
  const Blocks blocks(kBlocks);
  ErrorTotals totals = {};
  for (int b = kBlocks - 1; b >= 0; --b) {
    const BlockError e = MeasureBlock(&blocks.x[b * kBlockSize], &blocks.y[b * kBlockSize], 6.0f);
    const double sums[] = {e.squared_error, e.squared_x, e.squared_y, e.product};
    for (int i = 0; i < ErrorTotals::kSums; ++i) {
      const ExactTerm term = SplitExact(sums[i]);
      const auto wide = static_cast<unsigned __int128>(term.mantissa) << (term.shift % 32);
      for (int d = 0; d < 3; ++d) {
        const auto digit = static_cast<int64_t>(static_cast<uint32_t>(wide >> (32 * d)));
        totals.digits[i][term.shift / 32 + d] += term.negative ? -digit : digit;
      }
      if (b % 7 == 0) CarryExact(totals.digits[i]);
    }
    totals.saturated += static_cast<uint64_t>(e.saturated);
    totals.flushed += static_cast<uint64_t>(e.flushed);
    totals.max_error_bits = std::max(totals.max_error_bits, DoubleBits(e.max_error));
  }
  const ErrorStats expected = blocks.Stats(0, kBlocks);
  const ErrorStats actual(totals, kBlocks);
  EXPECT_EQ(actual.count(), expected.count());
  EXPECT_EQ(actual.mse(), expected.mse());
  EXPECT_EQ(actual.relative_mse(), expected.relative_mse());
  EXPECT_EQ(actual.cosine(), expected.cosine());
  EXPECT_EQ(actual.max_error(), expected.max_error());
  EXPECT_EQ(actual.saturated(), expected.saturated());
  EXPECT_EQ(actual.flushed(), expected.flushed());
}

TEST(ErrorStatsTest, ValuesByHand) {
  float x[kBlockSize] = {10, 3, 0.1f}, y[kBlockSize] = {6, 4};
  ErrorStats stats;
  stats.AddBlock(MeasureBlock(x, y, 6.0f));
  const double small = 0.1f;
  const double error = 16 + 1 + small * small, energy = 100 + 9 + small * small;
  EXPECT_EQ(stats.count(), 16);
  EXPECT_EQ(stats.saturated(), 1);
  EXPECT_EQ(stats.flushed(), 1);
  EXPECT_EQ(stats.max_error(), 4.0);
  EXPECT_DOUBLE_EQ(stats.mse(), error / 16);
  EXPECT_DOUBLE_EQ(stats.relative_mse(), error / energy);
  EXPECT_DOUBLE_EQ(stats.sqnr_db(), -10 * std::log10(error / energy));
  EXPECT_DOUBLE_EQ(stats.cosine(), (60.0 + 12) / std::sqrt(energy * 52));
}

// What MeasureBlock promises, at the ends of float32.
TEST(MeasureBlockTest, SumsAreFiniteWhereTheValuesAre) {
  float x[kBlockSize], y[kBlockSize];
  for (float magnitude : {1e-45f, 3.4e38f}) {
    std::fill(x, x + kBlockSize, magnitude);
    std::fill(y, y + kBlockSize, -magnitude);
    const BlockError e = MeasureBlock(x, y, 1.0f);
    EXPECT_TRUE(IsFinite(e.squared_error) && IsFinite(e.squared_x) && IsFinite(e.squared_y));
    EXPECT_GT(e.squared_x, 0x1p-300);
    ErrorStats stats;
    stats.AddBlock(e);  // does not abort
    EXPECT_EQ(stats.cosine(), -1);
  }
  y[15] = INFINITY;
  EXPECT_FALSE(IsFinite(MeasureBlock(x, y, 1.0f).squared_y));
  y[15] = NAN;
  EXPECT_FALSE(IsFinite(MeasureBlock(x, y, 1.0f).squared_y));
}

TEST(ErrorStatsTest, EmptyAndZero) {
  ErrorStats stats;
  EXPECT_EQ(stats.mse(), 0);
  EXPECT_EQ(stats.cosine(), 1);
  const float zero[kBlockSize] = {};
  stats.AddBlock(MeasureBlock(zero, zero, 0.0f));
  EXPECT_EQ(stats.relative_mse(), 0);
  EXPECT_EQ(stats.sqnr_db(), INFINITY);
  EXPECT_EQ(stats.saturated(), 0);
}

}  // namespace
}  // namespace nibble
