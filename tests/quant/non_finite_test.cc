#include "quant/non_finite.h"

#include <cmath>
#include <vector>

#include "engine/synthetic.h"
#include "gtest/gtest.h"

namespace nibble {
namespace {

TEST(FirstNonFiniteTest, FindsTheFirstOfEveryType) {
  for (DType dtype : {DType::kBf16, DType::kF16, DType::kF32}) {
    for (const size_t at : {0, 1, 1023, 1024, 2047, 2048, 4999}) {
      for (const float bad : {NAN, -NAN, INFINITY, -INFINITY}) {
        std::vector<float> values(5000, -65504.0f);  // the largest fp16
        if (dtype != DType::kF16) values[2] = 3.3e38f;
        EXPECT_EQ(FirstNonFinite(dtype, ToBytes(values, dtype)), std::nullopt);
        values[at] = bad;
        values.back() = bad;
        EXPECT_EQ(FirstNonFinite(dtype, ToBytes(values, dtype)), static_cast<int64_t>(at));
      }
    }
    EXPECT_EQ(FirstNonFinite(dtype, {}), std::nullopt);
  }
}

TEST(FirstNonFiniteTest, LeavesOtherTypesAlone) {
  const std::vector<std::byte> ones(64, std::byte{0xFF});
  EXPECT_EQ(FirstNonFinite(DType::kU8, ones), std::nullopt);
  EXPECT_EQ(FirstNonFinite(DType::kI32, ones), std::nullopt);
  EXPECT_EQ(FirstNonFinite(DType::kF32, ones), 0);
}

}  // namespace
}  // namespace nibble
