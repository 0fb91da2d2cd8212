// The order of the sum against a second transcription of it, and against float64.
#include "quant/numerics/hessian_sum.h"

#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "gtest/gtest.h"
#include "tests/testing/bytes.h"

namespace nibble {
namespace {

using ::nibble::testing::SameBytes;

std::vector<float> Normal(int64_t count, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(count);
  for (float& v : values) v = normal(random);
  return values;
}

// x: tokens x 16, one of `slices` slices.
std::vector<float> Total(const std::vector<float>& x, int64_t slices) {
  std::vector<float> total(kHessianSize);
  HessianTotal(
      static_cast<int64_t>(x.size()) / kBlockSize, slices,
      [&](int64_t first, int64_t last, float* sum) {
        for (int64_t t = first; t < last; ++t) HessianAddToken(&x[t * kBlockSize], sum);
      },
      total.data());
  return total;
}

// One entry, from the words at the top of the header.
float Entry(const std::vector<float>& x, int64_t chain_tokens, int i, int j) {
  const int64_t tokens = static_cast<int64_t>(x.size()) / kBlockSize;
  std::vector<float> chains;
  for (int64_t t = 0; t < tokens; ++t) {
    if (t % chain_tokens == 0) chains.push_back(0.0f);
    chains.back() = std::fma(x[t * 16 + i], x[t * 16 + j], chains.back());
  }
  while (chains.size() % 8 != 0) chains.push_back(0.0f);
  std::vector<float> lanes(16, 0.0f);
  for (size_t g = 0; g < chains.size() / 8; ++g) {
    const float* c = &chains[g * 8];
    lanes[g % 16] += ((c[0] + c[4]) + (c[2] + c[6])) + ((c[1] + c[5]) + (c[3] + c[7]));
  }
  float pairs[8], quads[4];
  for (int r = 0; r < 8; ++r) pairs[r] = lanes[r] + lanes[r + 8];
  for (int r = 0; r < 4; ++r) quads[r] = pairs[r] + pairs[r + 4];
  return (quads[0] + quads[2]) + (quads[1] + quads[3]);
}

TEST(HessianSumTest, ChainsFollowFromTheShape) {
  EXPECT_EQ(HessianChainTokens(8192, 256), 64);
  EXPECT_EQ(HessianChainTokens(8193, 256), 128);
  EXPECT_EQ(HessianChainTokens(4096, 128), 16);
  EXPECT_EQ(HessianChainTokens(0, 1), 16);
  EXPECT_EQ(HessianChainTokens(int64_t{1} << 40, 4096), kHessianMaxChain);
  EXPECT_EQ(HessianGroups(0, 4), 0);
  EXPECT_EQ(HessianGroups(1, 4), 1);
  EXPECT_EQ(HessianGroups(128, 4), 1);
  EXPECT_EQ(HessianGroups(129, 4), 2);
  EXPECT_EQ(HessianGroups(8192, 256), 16);
}

TEST(HessianSumTest, RunsInTheOrderThatTheHeaderSays) {
  for (int64_t tokens : {0, 1, 16, 17, 128, 129, 2500, 6000}) {
    for (int64_t slices : {1, 400, 100000}) {
      SCOPED_TRACE(std::to_string(tokens) + " tokens, " + std::to_string(slices) + " slices");
      const std::vector<float> x = Normal(tokens * 16, 3);
      std::vector<float> expected(kHessianSize), actual = Total(x, slices);
      for (int i = 0; i < 16; ++i) {
        for (int j = i; j < 16; ++j) {
          expected[i * 16 + j] = Entry(x, HessianChainTokens(tokens, slices), i, j);
        }
        for (int j = 0; j < i; ++j) actual[i * 16 + j] = 0.0f;  // unspecified
      }
      EXPECT_TRUE(SameBytes(expected, actual));
    }
  }
}

// The comparison above would see another order.
TEST(HessianSumTest, AnotherOrderHasOtherBits) {
  std::vector<float> x = Normal(2500 * 16, 3);
  const std::vector<float> total = Total(x, 1);
  EXPECT_FALSE(SameBytes(total, Total(x, 100000)));  // longer chains
  for (int i = 0; i < 16; ++i) std::swap(x[i], x[20 * 16 + i]);
  EXPECT_FALSE(SameBytes(total, Total(x, 1)));
}

TEST(HessianSumTest, IsCloseToFloat64) {
  const std::vector<float> x = Normal(20000 * 16, 5);
  const std::vector<float> total = Total(x, 4096);
  for (int i = 0; i < 16; ++i) {
    for (int j = i; j < 16; ++j) {
      double sum = 0;
      for (int64_t t = 0; t < 20000; ++t) sum += double{x[t * 16 + i]} * x[t * 16 + j];
      // Diagonal entries are about 20000.
      EXPECT_NEAR(total[i * 16 + j], sum, 20000 * 1e-6);
    }
  }
}

TEST(HessianSumTest, BothHalvesGetTheTotal) {
  float total[kHessianSize] = {};
  total[3 * 16 + 5] = 7.0f;
  EXPECT_EQ(HessianEntry(1.0f, total, 3, 5), 8.0f);
  EXPECT_EQ(HessianEntry(2.0f, total, 5, 3), 9.0f);
  EXPECT_EQ(HessianEntry(2.0f, total, 5, 4), 2.0f);
}

}  // namespace
}  // namespace nibble
