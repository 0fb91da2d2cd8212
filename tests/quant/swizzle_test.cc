#include "quant/swizzle.h"

#include <numeric>
#include <set>
#include <vector>

#include "gtest/gtest.h"

namespace nibble {
namespace {

TEST(SwizzleTest, IsABijectionWithItsInverse) {
  for (int64_t rows : {1, 31, 32, 128, 129, 300}) {
    for (int64_t cols : {1, 3, 4, 5, 8}) {
      std::vector<uint8_t> linear(rows * cols), back(rows * cols);
      std::iota(linear.begin(), linear.end(), uint8_t{1});
      std::vector<uint8_t> swizzled(SwizzledBytes(rows, cols), 0xEE);
      Swizzle(linear, rows, cols, swizzled);
      Unswizzle(swizzled, rows, cols, back);
      EXPECT_EQ(linear, back);
      std::set<int64_t> offsets;
      for (int64_t r = 0; r < rows; ++r) {
        for (int64_t c = 0; c < cols; ++c) {
          const int64_t offset = SwizzledOffset(r, c, cols);
          EXPECT_LT(offset, SwizzledBytes(rows, cols));
          offsets.insert(offset);
        }
      }
      EXPECT_EQ(offsets.size(), linear.size());
      for (size_t i = 0; i < swizzled.size(); ++i) {
        if (!offsets.contains(static_cast<int64_t>(i))) {
          EXPECT_EQ(swizzled[i], 0);
        }
      }
    }
  }
}

TEST(SwizzleTest, OffsetsByHand) {
  EXPECT_EQ(SwizzledBytes(1, 1), 512);
  EXPECT_EQ(SwizzledBytes(129, 5), 2 * 2 * 512);
  EXPECT_EQ(SwizzledOffset(0, 1, 4), 1);
  EXPECT_EQ(SwizzledOffset(1, 0, 4), 16);
  EXPECT_EQ(SwizzledOffset(32, 0, 4), 4);
  EXPECT_EQ(SwizzledOffset(0, 4, 8), 512);
  EXPECT_EQ(SwizzledOffset(128, 0, 8), 1024);
}

}  // namespace
}  // namespace nibble
