// The outer scales of a GEMM's operands on its output, by the CPU.
#include "quant/numerics/post_scale.h"

#include <cmath>
#include <limits>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/backend.h"
#include "tests/testing/bytes.h"
#include "tests/testing/is_error.h"

namespace nibble {
namespace {

using ::nibble::testing::IsError;
using ::nibble::testing::SameBytes;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

TEST(PostScaledTest, RoundsTheFactorsFirst) {
  const float a = 1 + 0x1p-23f, d = 3;
  // a * a = 1 + 2^-22 + 2^-46 is rounded to 1 + 2^-22; three times that is exact.
  EXPECT_EQ(PostScaled(d, a, a), 3 + 3 * 0x1p-22f);
  // Factors whose product underflows give 0, whatever d is.
  EXPECT_EQ(PostScaled(1e30f, 1e-30f, 1e-30f), 0.0f);
  EXPECT_EQ(PostScaled(-2, 3, 0.5f), -3.0f);
}

TEST(PostScaledTest, RoundsToTheTypeOfTheOutput) {
  EXPECT_EQ(PostScaledBf16(Bf16FromFloat(3), 1, 1 + 0x1p-8f), Bf16FromFloat(3 + 3 * 0x1p-8f));
  EXPECT_EQ(PostScaledBf16(Bf16FromFloat(kBf16Max), 1, 1 + 0x1p-8f), 0x7F80);  // infinity
  EXPECT_EQ(PostScaledF16(F16FromFloat(60000), 1, 2), 0x7C00);
  EXPECT_EQ(PostScaledF16(F16FromFloat(1), 0x1p-12f, 0x1p-12f), 0x0001);
}

TEST(PostScaledTest, ThereIsOneNaN) {
  EXPECT_EQ(FloatBits(PostScaled(NAN, 1, 1)), 0x7FFFFFFFu);
  EXPECT_EQ(FloatBits(PostScaled(-NAN, 1, 1)), 0x7FFFFFFFu);
  EXPECT_EQ(FloatBits(PostScaled(kInfinity, 0, 1)), 0x7FFFFFFFu);
  EXPECT_EQ(PostScaledBf16(0xFFC1, 1, 1), 0x7FFF);
  EXPECT_EQ(PostScaledF16(0xFE01, 1, 1), 0x7FFF);
}

class PostScaleTest : public ::testing::TestWithParam<const char*> {
 protected:
  std::unique_ptr<Backend> backend_ = *MakeBackend(GetParam());
};

TEST_P(PostScaleTest, ScalesRowsAndColumns) {
  const std::vector<float> a = {1, 10, 100}, b = {1, -2};
  std::vector<float> d = {1, 2, 3, 4, 5, 6};
  const MutableMatrixView view = {d.data(), DType::kF32, 3, 2};
  ASSERT_TRUE(backend_->PostScale(view, a, b).ok());
  EXPECT_TRUE(SameBytes(std::vector<float>{1, -4, 30, -80, 500, -1200}, d));
  ASSERT_TRUE(backend_->PostScale(view, std::vector<float>{2}, b).ok());
  EXPECT_TRUE(SameBytes(std::vector<float>{2, 16, 60, 320, 1000, 4800}, d));
  ASSERT_TRUE(backend_->PostScale(view, std::vector<float>{1}, std::vector<float>{0.5f}).ok());
  EXPECT_TRUE(SameBytes(std::vector<float>{1, 8, 30, 160, 500, 2400}, d));
}

TEST_P(PostScaleTest, RefusesOtherNumbersOfFactors) {
  std::vector<float> d(6);
  const std::vector<float> one(1), two(2), three(3);
  MutableMatrixView view = {d.data(), DType::kF32, 3, 2};
  const auto code = absl::StatusCode::kInvalidArgument;
  EXPECT_TRUE(IsError(backend_->PostScale(view, two, two), code, "one or 3 for the rows"));
  EXPECT_TRUE(IsError(backend_->PostScale(view, three, three), code, "got 3 and 3"));
  EXPECT_TRUE(IsError(backend_->PostScale(view, {}, two), code, "got 0 and 2"));
  view.dtype = DType::kF64;
  EXPECT_TRUE(IsError(backend_->PostScale(view, three, two), absl::StatusCode::kFailedPrecondition,
                      "got F64"));
  view = {nullptr, DType::kF32, 0, 2};
  EXPECT_TRUE(backend_->PostScale(view, one, two).ok());
  EXPECT_TRUE(backend_->PostScale(view, {}, two).ok());
}

INSTANTIATE_TEST_SUITE_P(Backends, PostScaleTest, ::testing::Values("cpu", "cpu-scalar"),
                         [](const auto& info) {
                           return std::string(info.param) == "cpu" ? "cpu" : "scalar";
                         });

}  // namespace
}  // namespace nibble
