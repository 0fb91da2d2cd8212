#include "engine/synthetic.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace nibble {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;

constexpr int64_t kCount = 1 << 16;

std::vector<float> Values(Distribution distribution) {
  return SyntheticValues(distribution, kCount, /*seed=*/1);
}

class SyntheticTest : public ::testing::TestWithParam<Distribution> {};

TEST_P(SyntheticTest, IsFiniteAndTheSameForTheSameSeed) {
  const std::vector<float> values = Values(GetParam());
  ASSERT_EQ(values.size(), static_cast<size_t>(kCount));
  EXPECT_TRUE(std::all_of(values.begin(), values.end(), [](float v) { return std::isfinite(v); }));
  EXPECT_EQ(Values(GetParam()), values);
  const bool same = SyntheticValues(GetParam(), kCount, /*seed=*/2) == values;
  EXPECT_EQ(same, GetParam() == Distribution::kZero);
}

TEST_P(SyntheticTest, AShorterOneIsItsBeginning) {
  const std::vector<float> values = Values(GetParam());
  const std::vector<float> some = SyntheticValues(GetParam(), 1000, /*seed=*/1);
  EXPECT_TRUE(std::equal(some.begin(), some.end(), values.begin()));
  EXPECT_TRUE(SyntheticValues(GetParam(), 0, /*seed=*/1).empty());
}

INSTANTIATE_TEST_SUITE_P(Distributions, SyntheticTest, ::testing::ValuesIn([] {
                           std::vector<Distribution> all;
                           for (std::string_view name : kEnumNames<Distribution>) {
                             all.push_back(*FromName<Distribution>(name));
                           }
                           return all;
                         }()),
                         [](const auto& info) { return std::string(NameOf(info.param)); });

// E |x|^power over the sample.
double Moment(const std::vector<float>& values, double power) {
  double sum = 0;
  for (float v : values) sum += std::pow(std::fabs(double{v}), power);
  return sum / static_cast<double>(values.size());
}

double Mean(const std::vector<float>& values) {
  double sum = 0;
  for (float v : values) sum += v;
  return sum / static_cast<double>(values.size());
}

TEST(SyntheticMomentsTest, AreThoseOfTheDistribution) {
  // E x^2 and E |x|.
  const struct {
    Distribution distribution;
    double second, first;
  } kExpected[] = {{Distribution::kNormal, 1, 0.7979},
                   {Distribution::kLaplace, 2, 1},
                   {Distribution::kStudentT5, 5.0 / 3, 0.949},
                   {Distribution::kUniform, 1.0 / 3, 0.5},
                   {Distribution::kOutliers, 1 + 399.0 / 200, 0.7979 * (1 + 19.0 / 200)}};
  for (const auto& expected : kExpected) {
    SCOPED_TRACE(NameOf(expected.distribution));
    const std::vector<float> values = Values(expected.distribution);
    EXPECT_NEAR(Mean(values), 0, 0.03);
    EXPECT_NEAR(Moment(values, 2) / expected.second, 1, 0.15);
    EXPECT_NEAR(Moment(values, 1) / expected.first, 1, 0.03);
  }
}

TEST(SyntheticShapeTest, UniformStaysInRange) {
  for (float v : Values(Distribution::kUniform)) ASSERT_LT(std::fabs(v), 1);
}

TEST(SyntheticShapeTest, OnGridIsE2m1TimesOnePowerOfTwoABlock) {
  const std::vector<float> values = Values(Distribution::kOnGrid);
  const std::vector<float> grid = {0, 0.5, 1, 1.5, 2, 3, 4, 6};
  for (size_t b = 0; b < values.size(); b += 16) {
    bool some = false;
    for (float power : {0.125f, 0.25f, 0.5f, 1.0f, 2.0f, 4.0f}) {
      some |= std::all_of(&values[b], &values[b] + 16, [&](float v) {
        return std::count(grid.begin(), grid.end(), std::fabs(v) / power) == 1;
      });
    }
    ASSERT_TRUE(some) << b;
  }
}

TEST(SyntheticShapeTest, SubnormalIsSubnormal) {
  const std::vector<float> values = Values(Distribution::kSubnormal);
  size_t zeros = 0;
  for (float v : values) {
    ASSERT_LT(std::fabs(v), 0x1p-126f);
    zeros += v == 0;
  }
  EXPECT_LT(zeros, values.size() / 100);
  EXPECT_THAT(ToBytes(values, DType::kF16), Each(::testing::AnyOf(std::byte{0}, std::byte{0x80})));
}

TEST(SyntheticShapeTest, BlocksAreConstantOrOneHotOrZero) {
  const std::vector<float> constant = Values(Distribution::kConstant);
  const std::vector<float> one_hot = Values(Distribution::kOneHot);
  for (size_t b = 0; b < constant.size(); b += 16) {
    ASSERT_EQ(std::count(&constant[b], &constant[b] + 16, constant[b]), 16) << b;
    ASSERT_EQ(std::count(&one_hot[b], &one_hot[b] + 16, 0.0f), 15) << b;
  }
  EXPECT_THAT(Values(Distribution::kZero), Each(0.0f));
}

TEST(SyntheticShapeTest, WeightsHaveASpreadOfTheirOwnForEachBlockOf1024) {
  const std::vector<float> values = Values(Distribution::kWeightLike);
  double smallest = INFINITY, largest = 0;
  for (int64_t b = 0; b < kCount; b += 1024) {
    const double spread = std::sqrt(Moment({&values[b], &values[b] + 1024}, 2));
    smallest = std::min(smallest, spread);
    largest = std::max(largest, spread);
  }
  EXPECT_GT(smallest, 0.005);
  EXPECT_LT(largest, 0.08);
  EXPECT_GT(largest, 1.5 * smallest);
}

// --- ToBytes
// --------------------------------------------------------------------------------------

std::vector<uint16_t> Halves(const std::vector<float>& values, DType dtype) {
  const std::vector<std::byte> bytes = ToBytes(values, dtype);
  std::vector<uint16_t> halves(values.size());
  EXPECT_EQ(bytes.size(), 2 * values.size());
  std::memcpy(halves.data(), bytes.data(), bytes.size());
  return halves;
}

TEST(ToBytesTest, RoundsBf16ToNearestEven) {
  EXPECT_THAT(
      Halves({1, -2, 1 + 0x1p-8f, 1 + 3 * 0x1p-8f, 1 + 0x1.1p-8f, 0x1p-133f, -0.0f}, DType::kBf16),
      ElementsAre(0x3F80, 0xC000, 0x3F80, 0x3F82, 0x3F81, 1, 0x8000));
  EXPECT_THAT(Halves({std::numeric_limits<float>::max()}, DType::kBf16), ElementsAre(0x7F80));
}

TEST(ToBytesTest, RoundsF16ToNearestEven) {
  EXPECT_THAT(Halves({1, -2, 1 + 0x1p-11f, 1 + 3 * 0x1p-11f, 65504, 65519, 65520, 0x1p-24f,
                      0x1p-25f, 0x1.8p-24f, -0x1p-14f},
                     DType::kF16),
              ElementsAre(0x3C00, 0xC000, 0x3C00, 0x3C02, 0x7BFF, 0x7BFF, 0x7C00, 1, 0, 2, 0x8400));
}

TEST(ToBytesTest, KeepsFloats) {
  const std::vector<float> values = Values(Distribution::kStudentT5);
  const std::vector<std::byte> bytes = ToBytes(values, DType::kF32);
  ASSERT_EQ(bytes.size(), values.size() * 4);
  EXPECT_EQ(std::memcmp(bytes.data(), values.data(), bytes.size()), 0);
}

TEST(ToBytesDeathTest, RefusesOtherTypes) {
  EXPECT_DEATH(ToBytes(std::vector<float>{1}, DType::kI32), "IsQuantizable");
}

}  // namespace
}  // namespace nibble
