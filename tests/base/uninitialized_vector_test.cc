#include "base/uninitialized_vector.h"

#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <fstream>
#include <numeric>
#include <utility>

#include "gtest/gtest.h"

namespace nibble {
namespace {

int64_t ResidentBytes() {
  int64_t pages = 0;
  std::ifstream statm("/proc/self/statm");
  statm >> pages >> pages;
  return pages * sysconf(_SC_PAGESIZE);
}

TEST(UninitializedVectorTest, GrowingTouchesNoMemory) {
  constexpr int64_t kBytes = int64_t{256} << 20;
  const int64_t before = ResidentBytes();
  UninitializedVector<uint8_t> values;
  values.resize(kBytes);
  // A quarter is room for what sanitizers note down.
  EXPECT_LT(ResidentBytes() - before, kBytes / 4);
  std::fill(values.begin(), values.end(), 1);
  const int64_t after = ResidentBytes();
  EXPECT_GT(after - before, kBytes / 4) << "nothing is seen by this test";
  EXPECT_EQ(values[after % kBytes], 1);
}

TEST(UninitializedVectorTest, KeepsWhatItIsGiven) {
  UninitializedVector<float> values(3, 1.5f);
  EXPECT_EQ(values, (UninitializedVector<float>{1.5f, 1.5f, 1.5f}));
  std::iota(values.begin(), values.end(), 0.0f);
  values.resize(1000, 7.0f);
  values.push_back(8.0f);
  EXPECT_EQ(values[2], 2.0f);
  EXPECT_EQ(values[3], 7.0f);
  EXPECT_EQ(values[999], 7.0f);
  EXPECT_EQ(values.back(), 8.0f);
  const UninitializedVector<float> copy = values;
  EXPECT_EQ(copy, values);
  UninitializedVector<float> moved = std::move(values);
  EXPECT_EQ(moved, copy);
}

}  // namespace
}  // namespace nibble
