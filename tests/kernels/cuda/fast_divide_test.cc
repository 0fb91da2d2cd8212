// Host side only: the same function that kernels call.
#include "kernels/cuda/fast_divide.h"

#include <random>

#include "gtest/gtest.h"

namespace nibble {
namespace {

TEST(FastDivideTest, IsDivision) {
  std::mt19937_64 random(1);
  for (int64_t divisor = 1; divisor < 5000; ++divisor) {
    const int64_t largest = int64_t{1} << 45;
    const FastDivide divide(divisor, largest);
    for (int64_t n : {int64_t{0}, divisor - 1, divisor, divisor + 1, 1000 * divisor - 1,
                      largest / divisor * divisor - 1, largest / divisor * divisor, largest,
                      static_cast<int64_t>(random() % largest)}) {
      ASSERT_EQ(divide(n), n / divisor) << n << " / " << divisor;
    }
  }
}

TEST(FastDivideTest, IsDivisionWhereTheProductWouldNotFit) {
  std::mt19937_64 random(2);
  for (int i = 0; i < 100000; ++i) {
    const int64_t divisor = 1 + static_cast<int64_t>(random() >> (1 + random() % 62));
    const int64_t largest = static_cast<int64_t>(random() >> (1 + random() % 62));
    const FastDivide divide(divisor, largest);
    ASSERT_EQ(divide(largest), largest / divisor);
    const int64_t n = largest == 0 ? 0 : static_cast<int64_t>(random() % largest);
    ASSERT_EQ(divide(n), n / divisor) << n << " / " << divisor << ", largest " << largest;
  }
}

}  // namespace
}  // namespace nibble
