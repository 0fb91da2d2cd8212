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
      stats.AddBlock(&x[b * kBlockSize], &y[b * kBlockSize], 6.0f);
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

TEST(ErrorStatsTest, ValuesByHand) {
  float x[kBlockSize] = {10, 3, 0.1f}, y[kBlockSize] = {6, 4};
  ErrorStats stats;
  stats.AddBlock(x, y, 6.0f);
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

TEST(ErrorStatsTest, EmptyAndZero) {
  ErrorStats stats;
  EXPECT_EQ(stats.mse(), 0);
  EXPECT_EQ(stats.cosine(), 1);
  const float zero[kBlockSize] = {};
  stats.AddBlock(zero, zero, 0.0f);
  EXPECT_EQ(stats.relative_mse(), 0);
  EXPECT_EQ(stats.sqnr_db(), INFINITY);
  EXPECT_EQ(stats.saturated(), 0);
}

}  // namespace
}  // namespace nibble
