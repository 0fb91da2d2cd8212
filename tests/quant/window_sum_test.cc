#include "quant/numerics/window_sum.h"

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "gtest/gtest.h"
#include "quant/error_stats.h"

namespace nibble {
namespace {

bool Same(const WindowSum& a, const WindowSum& b) {
  return a.top == b.top && std::equal(a.digit, a.digit + kWindowDigits, b.digit);
}

float RandomFloat(std::mt19937& random, int exponents) {
  uint32_t bits = random() & 0x807FFFFFu;
  bits |= static_cast<uint32_t>(127 - exponents / 2 + static_cast<int>(random() % exponents)) << 23;
  return FloatFromBits(bits);
}

TEST(WindowSumTest, SingleTermsAreExact) {
  std::mt19937 random(1);
  for (int i = 0; i < 100000; ++i) {
    const float x = i % 2 ? RandomFloat(random, 254) : FloatFromBits(random() & 0x807FFFFFu);
    WindowSum sum;
    WindowAdd(sum, x);
    EXPECT_EQ(WindowValue(sum), x);
    EXPECT_LE(sum.top, kWindowTopDigit);
  }
  for (float x : {0.0f, -0.0f, kFloatMax, -kFloatMax, 0x1p-149f, 1.0f}) {
    WindowSum sum;
    WindowAdd(sum, x);
    EXPECT_EQ(WindowValue(sum), x);
  }
}

TEST(WindowSumTest, SumsAreWithin64BitsOfTheLargestTerm) {
  std::mt19937 random(2);
  for (int trial = 0; trial < 300; ++trial) {
    WindowSum sum;
    ExactSum exact;
    float largest = 0;
    for (int i = 0; i < 1000; ++i) {
      const float x = RandomFloat(random, 1 + trial % 250);
      WindowAdd(sum, x);
      exact.Add(x);
      largest = std::max(largest, std::fabs(x));
    }
    // 1000 terms lose less than 2^-64 of the largest each; the value is rounded thrice.
    EXPECT_NEAR(WindowValue(sum), exact.Value(),
                std::ldexp(largest, -54) + std::fabs(exact.Value()) * 0x1p-51);
  }
}

TEST(WindowSumTest, AnyOrderAndTreeGivesTheSameBits) {
  std::mt19937 random(3);
  for (int trial = 0; trial < 300; ++trial) {
    std::vector<float> terms(50);
    for (float& x : terms) x = RandomFloat(random, 1 + trial % 250);
    WindowSum expected;
    for (float x : terms) WindowAdd(expected, x);
    std::shuffle(terms.begin(), terms.end(), random);
    std::vector<WindowSum> parts(1 + random() % 8);
    for (float x : terms) WindowAdd(parts[random() % parts.size()], x);
    while (parts.size() > 1) {
      const size_t into = random() % (parts.size() - 1);
      WindowMerge(parts[into], parts.back());
      parts.pop_back();
    }
    EXPECT_TRUE(Same(parts[0], expected));
  }
}

}  // namespace
}  // namespace nibble
