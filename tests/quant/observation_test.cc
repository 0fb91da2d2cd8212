#include "quant/observation.h"

#include <cmath>

#include "gtest/gtest.h"
#include "tests/testing/is_error.h"

namespace nibble {
namespace {

using ::nibble::testing::IsError;

Observation Part(float amax, int64_t rows) {
  Observation part;
  part.params = {true, true, true, true};
  part.rows = rows;
  part.cols = 16;
  part.amax = amax;
  part.row_amax.assign(rows, amax);
  part.block_amax.assign(rows, amax);
  part.column_amax.assign(16, 0.0f);
  part.column_amax[static_cast<int>(amax)] = amax;
  part.histogram.assign(kLog2Bins, 0);
  part.histogram[Log2Bin(amax)] = static_cast<uint64_t>(rows);
  return part;
}

TEST(ObservationTest, PartsAddUp) {
  Observation whole;
  Observation last = Part(3.0f, 2);
  last.nan_count = 2;
  last.inf_count = 1;
  last.first_non_finite = 5;
  ASSERT_TRUE(whole.Append(Part(1.0f, 1)).ok());
  EXPECT_EQ(whole, Part(1.0f, 1));
  ASSERT_TRUE(whole.Append(Part(2.0f, 3)).ok());
  ASSERT_TRUE(whole.Append(last).ok());
  EXPECT_EQ(whole.rows, 6);
  EXPECT_EQ(whole.amax, 3.0f);
  EXPECT_EQ(whole.row_amax, (std::vector<float>{1, 2, 2, 2, 3, 3}));
  EXPECT_EQ(whole.block_amax, whole.row_amax);
  EXPECT_EQ(whole.column_amax[1], 1.0f);
  EXPECT_EQ(whole.column_amax[2], 2.0f);
  EXPECT_EQ(whole.column_amax[3], 3.0f);
  EXPECT_EQ(whole.column_amax[4], 0.0f);
  EXPECT_EQ(whole.histogram[127], 1u);
  EXPECT_EQ(whole.histogram[128], 5u);
  EXPECT_EQ(whole.nan_count, 2);
  EXPECT_EQ(whole.inf_count, 1);
  EXPECT_EQ(whole.first_non_finite, 4 * 16 + 5);
  ASSERT_TRUE(whole.Append(last).ok());
  EXPECT_EQ(whole.first_non_finite, 4 * 16 + 5);
  EXPECT_EQ(whole.nan_count, 4);
}

TEST(ObservationTest, RefusesOtherShapesAndParameters) {
  Observation whole = Part(1.0f, 1);
  const Observation before = whole;
  Observation other = Part(1.0f, 1);
  other.cols = 32;
  EXPECT_TRUE(IsError(whole.Append(other), absl::StatusCode::kInvalidArgument,
                      "expected one of 16 columns, got 32"));
  other = Part(1.0f, 1);
  other.params.histogram = false;
  EXPECT_TRUE(IsError(whole.Append(other), absl::StatusCode::kInvalidArgument, "same parameters"));
  EXPECT_EQ(whole, before);
}

TEST(Log2BinTest, IsTheBinade) {
  EXPECT_EQ(Log2Bin(0.0f), 0);
  EXPECT_EQ(Log2Bin(1e-45f), 1);
  EXPECT_EQ(Log2Bin(0x1p-127f), 1);
  EXPECT_EQ(Log2Bin(0x1p-126f), 1);
  EXPECT_EQ(Log2Bin(0x1p-125f), 2);
  EXPECT_EQ(Log2Bin(1.0f), 127);
  EXPECT_EQ(Log2Bin(std::nextafter(2.0f, 0.0f)), 127);
  EXPECT_EQ(Log2Bin(2.0f), 128);
  EXPECT_EQ(Log2Bin(kFloatMax), 254);
}

}  // namespace
}  // namespace nibble
