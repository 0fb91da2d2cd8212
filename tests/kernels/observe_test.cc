// Observations on every CPU instruction set, against loops that could not be plainer.
#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "engine/synthetic.h"
#include "gtest/gtest.h"
#include "tests/testing/backends.h"
#include "tests/testing/params.h"
#include "tests/testing/random_bits.h"

namespace nibble {
namespace {

using ::nibble::testing::AllCpuKernels;
using ::nibble::testing::KernelsName;
using ::nibble::testing::kInputDTypes;
using ::nibble::testing::RandomBits;

constexpr ObserveParams kEverything = {true, true, true, true};

Observation Expected(const MatrixView& x) {
  Observation o;
  o.params = kEverything;
  o.rows = x.rows;
  o.cols = x.cols;
  o.row_amax.resize(x.rows);
  o.column_amax.resize(x.cols);
  o.block_amax.resize(x.size() / 16);
  o.histogram.resize(256);
  for (int64_t i = 0; i < x.size(); ++i) {
    const float value = LoadElement(x.dtype, x.data, i);
    if (!std::isfinite(value)) {
      ++(std::isnan(value) ? o.nan_count : o.inf_count);
      if (o.first_non_finite < 0) o.first_non_finite = i;
      continue;
    }
    for (float* amax :
         {&o.amax, &o.row_amax[i / x.cols], &o.column_amax[i % x.cols], &o.block_amax[i / 16]}) {
      *amax = std::max(*amax, std::fabs(value));
    }
  }
  for (float amax : o.block_amax) {
    // ilogb is exact: -149 .. 127.
    ++o.histogram[amax == 0 ? 0 : std::max(std::ilogb(amax) + 127, 1)];
  }
  return o;
}

class ObserveTest : public ::testing::TestWithParam<const CpuKernels*> {
 protected:
  std::unique_ptr<Backend> backend_ = MakeCpuBackendWith(*GetParam(), {.threads = 3});
};

TEST_P(ObserveTest, EveryShape) {
  for (int64_t rows : {0, 1, 3, 100}) {
    for (int64_t cols : {16, 48, 272, 1040}) {
      for (DType dtype : kInputDTypes) {
        const std::vector<std::byte> bytes =
            ToBytes(SyntheticValues(Distribution::kOneHot, rows * cols, 1), dtype);
        const MatrixView x = {bytes.data(), dtype, rows, cols};
        const auto actual = backend_->Observe(kEverything, x);
        ASSERT_TRUE(actual.ok()) << actual.status();
        EXPECT_EQ(*actual, Expected(x)) << rows << "x" << cols << " " << DTypeName(dtype);
      }
    }
  }
}

TEST_P(ObserveTest, AnyBitPattern) {
  for (DType dtype : kInputDTypes) {
    for (uint64_t seed : {1, 2, 3}) {
      const std::vector<std::byte> bytes = RandomBits(257 * 528 * DTypeBytes(dtype), seed);
      const MatrixView x = {bytes.data(), dtype, 257, 528};
      const Observation expected = Expected(x);
      EXPECT_GT(expected.nan_count, 0);
      EXPECT_EQ(*backend_->Observe(kEverything, x), expected) << DTypeName(dtype);
    }
  }
}

TEST_P(ObserveTest, OneBadElementAnywhere) {
  for (DType dtype : kInputDTypes) {
    for (float bad : {NAN, INFINITY, -INFINITY}) {
      for (int64_t at : {0, 15, 80, 3 * 48 - 1}) {
        std::vector<float> values = SyntheticValues(Distribution::kNormal, 3 * 48, 1);
        values[at] = bad;
        const std::vector<std::byte> bytes = ToBytes(values, dtype);
        const MatrixView x = {bytes.data(), dtype, 3, 48};
        const Observation seen = *backend_->Observe(kEverything, x);
        EXPECT_EQ(seen, Expected(x));
        EXPECT_EQ(seen.first_non_finite, at);
        EXPECT_EQ(seen.nan_count, std::isnan(bad) ? 1 : 0);
        EXPECT_EQ(seen.inf_count, std::isnan(bad) ? 0 : 1);
      }
    }
  }
}

TEST_P(ObserveTest, AllBadElementsLeaveZeros) {
  const std::vector<float> values(2 * 16, -INFINITY);
  const MatrixView x = {values.data(), DType::kF32, 2, 16};
  const Observation seen = *backend_->Observe(kEverything, x);
  EXPECT_EQ(seen, Expected(x));
  EXPECT_EQ(seen.amax, 0.0f);
  EXPECT_EQ(seen.histogram[0], 2u);
  EXPECT_EQ(seen.inf_count, 32);
}

TEST_P(ObserveTest, OnlyWhatIsAskedFor) {
  const std::vector<float> values = SyntheticValues(Distribution::kNormal, 5 * 32, 1);
  const MatrixView x = {values.data(), DType::kF32, 5, 32};
  for (int mask = 0; mask < 16; ++mask) {
    const ObserveParams params = {(mask & 1) != 0, (mask & 2) != 0, (mask & 4) != 0,
                                  (mask & 8) != 0};
    Observation expected = Expected(x);
    expected.params = params;
    if (!params.row_amax) expected.row_amax.clear();
    if (!params.column_amax) expected.column_amax.clear();
    if (!params.block_amax) expected.block_amax.clear();
    if (!params.histogram) expected.histogram.clear();
    EXPECT_EQ(*backend_->Observe(params, x), expected) << mask;
  }
}

TEST_P(ObserveTest, PartsAddUpToTheWhole) {
  const std::vector<std::byte> bytes = RandomBits(90 * 48 * 2, 5);
  const MatrixView x = {bytes.data(), DType::kF16, 90, 48};
  Observation sum;
  for (int64_t first = 0; first < 90; first += 30) {
    const MatrixView part = {bytes.data() + first * 48 * 2, DType::kF16, 30, 48};
    ASSERT_TRUE(sum.Append(*backend_->Observe(kEverything, part)).ok());
  }
  EXPECT_EQ(sum, *backend_->Observe(kEverything, x));
}

TEST_P(ObserveTest, UnalignedData) {
  std::vector<std::byte> bytes = RandomBits(20 * 272 * 2 + 2, 5);
  const MatrixView x = {bytes.data() + 2, DType::kBf16, 20, 272};
  EXPECT_EQ(*backend_->Observe(kEverything, x), Expected(x));
}

TEST_P(ObserveTest, RefusesShapesAndTypes) {
  const std::vector<float> values(32, 1.0f);
  EXPECT_EQ(backend_->Observe({}, {values.data(), DType::kF32, 1, 17}).status().code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(backend_->Observe({}, {values.data(), DType::kF64, 1, 16}).status().code(),
            absl::StatusCode::kFailedPrecondition);
}

INSTANTIATE_TEST_SUITE_P(Cpu, ObserveTest, ::testing::ValuesIn(AllCpuKernels()),
                         [](const auto& info) { return KernelsName(info.param); });

}  // namespace
}  // namespace nibble
