#include "engine/compare_methods.h"

#include <limits>
#include <string>
#include <vector>

#include "engine/synthetic.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/is_error.h"

namespace nibble {
namespace {

using ::nibble::testing::IsError;
using ::testing::ElementsAre;

std::vector<MethodRow> Compare(Distribution distribution, int64_t rows, int64_t cols) {
  const auto bytes = ToBytes(SyntheticValues(distribution, rows * cols, 1), DType::kBf16);
  const auto backend = MakeBackend("cpu").value();
  const auto table = CompareMethods({bytes.data(), DType::kBf16, rows, cols}, *backend);
  EXPECT_TRUE(table.ok()) << table.status();
  return table.value_or(std::vector<MethodRow>());
}

TEST(CompareMethodsTest, NamesTheMethodsMaxFirst) {
  std::vector<std::string> methods;
  for (const MethodRow& row : Compare(Distribution::kNormal, 16, 64)) {
    methods.push_back(row.method);
    EXPECT_EQ(row.error.count(), 16 * 64);
    EXPECT_GE(row.seconds, 0);
    // 4 a code, 8 a scale of 16 codes, 32 for the global scale.
    EXPECT_DOUBLE_EQ(row.bits_per_weight, 4 + 8.0 / 16 + 32.0 / (16 * 64)) << row.method;
  }
  EXPECT_THAT(methods,
              ElementsAre("max", "4over6 (mse, 256)", "mse, 39 multipliers", "mse, sweep of 126"));
}

TEST(CompareMethodsTest, EachSearchGainsOnWhatItIncludes) {
  for (Distribution distribution : {Distribution::kNormal, Distribution::kLaplace,
                                    Distribution::kOutliers, Distribution::kWeightLike}) {
    SCOPED_TRACE(NameOf(distribution));
    const std::vector<MethodRow> table = Compare(distribution, 64, 256);
    ASSERT_EQ(table.size(), 4u);
    const double max = table[0].error.mse(), four_over_six = table[1].error.mse(),
                 multipliers = table[2].error.mse(), sweep = table[3].error.mse();
    EXPECT_GT(sweep, 0);
    EXPECT_LT(four_over_six, max);
    EXPECT_LT(multipliers, max);
    EXPECT_LE(sweep, multipliers * (1 + 1e-6));
    EXPECT_LT(sweep, four_over_six);
  }
}

TEST(CompareMethodsTest, LosesNothingWhereThereIsNothing) {
  for (const MethodRow& row : Compare(Distribution::kZero, 16, 32)) {
    EXPECT_EQ(row.error.mse(), 0) << row.method;
  }
}

TEST(CompareMethodsTest, RefusesBadData) {
  const auto backend = MakeBackend("cpu-scalar").value();
  const std::vector<float> x(16, std::numeric_limits<float>::infinity());
  EXPECT_TRUE(IsError(CompareMethods({x.data(), DType::kF32, 1, 16}, *backend),
                      absl::StatusCode::kFailedPrecondition, "got 16 NaN or infinite"));
  EXPECT_TRUE(IsError(CompareMethods({x.data(), DType::kF32, 1, 15}, *backend),
                      absl::StatusCode::kFailedPrecondition, "multiple of 16 columns, got 1 x 15"));
}

}  // namespace
}  // namespace nibble
