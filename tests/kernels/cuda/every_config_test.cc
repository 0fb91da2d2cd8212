// Every operation under every launch shape, through the backend: the golden cases, and data, types
// and shapes of all kinds against the CPU.
#include <algorithm>
#include <numeric>
#include <string>
#include <vector>

#include "calib/input_collector.h"
#include "engine/synthetic.h"
#include "gtest/gtest.h"
#include "tests/testing/bytes.h"
#include "tests/testing/cuda.h"
#include "tests/testing/golden.h"
#include "tests/testing/hessians.h"
#include "tests/testing/packed.h"
#include "tests/testing/params.h"
#include "tests/testing/results.h"
#include "tests/testing/test_matrix.h"

namespace nibble {
namespace {

using ::nibble::testing::Activations;
using ::nibble::testing::AllLayouts;
using ::nibble::testing::AllParams;
using ::nibble::testing::BackendWithConfig;
using ::nibble::testing::CudaTest;
using ::nibble::testing::Describe;
using ::nibble::testing::DeviceArray;
using ::nibble::testing::kInputDTypes;
using ::nibble::testing::MakeHessians;
using ::nibble::testing::MostConfigs;
using ::nibble::testing::RandomPacked;
using ::nibble::testing::SameBytes;
using ::nibble::testing::SameFeedback;
using ::nibble::testing::SamePacked;
using ::nibble::testing::SameStats;
using ::nibble::testing::SameSweep;
using ::nibble::testing::TestMatrix;

// The parameter is the index of every operation's config.
class EveryConfigTest : public CudaTest, public ::testing::WithParamInterface<size_t> {
 protected:
  void SetUp() override {
    CudaTest::SetUp();
    if (IsSkipped()) return;
    cuda_ = BackendWithConfig(GetParam());
  }

  void ExpectSame(const absl::StatusOr<SweepResult>& expected,
                  const absl::StatusOr<SweepResult>& actual) {
    ASSERT_TRUE(expected.ok() && actual.ok()) << expected.status() << actual.status();
    EXPECT_TRUE(SameSweep(*expected, *actual));
  }

  // What reads a matrix and no parameters of quantization.
  void ExpectSameOf(const MatrixView& x) {
    SCOPED_TRACE(std::string(DTypeName(x.dtype)) + " " + std::to_string(x.rows) + "x" +
                 std::to_string(x.cols));
    const float amax = *cpu_->Amax(x);
    EXPECT_EQ(amax, *cuda_->Amax(x));
    const ObserveParams all = {true, true, true, true};
    EXPECT_EQ(*cpu_->Observe(all, x), *cuda_->Observe(all, x));
    const std::vector<float> hessians = MakeHessians(Activations::kCorrelated, x.cols / 16);
    std::vector<float> expected = hessians, actual = hessians;
    EXPECT_EQ(cpu_->AccumulateHessian(x, expected), cuda_->AccumulateHessian(x, actual));
    EXPECT_TRUE(SameBytes(expected, actual));
    InputCollector collected(/*hessians=*/true);
    if (x.rows > 0 && collected.Collect(x, *cpu_).ok()) {  // no unit overflows
      const auto sums = *cuda_->MakeInputSums(x.cols, /*hessians=*/true, nullptr);
      const DeviceArray<std::byte> there(
          std::span(static_cast<const std::byte*>(x.data), x.size() * DTypeBytes(x.dtype)));
      ASSERT_TRUE(sums->Add({there.get(), x.dtype, x.rows, x.cols}).ok());
      EXPECT_TRUE(InputCollector::Of(*sums->Result(), x.cols, true) == collected);
    }
    ExpectSame(cpu_->MultiplierSearch({}, x), cuda_->MultiplierSearch({}, x));
    for (int e4m3_max : {448, 256}) {
      for (SweepMethod method : {SweepMethod::kExhaustive, SweepMethod::kPruned}) {
        const ScaleSweepParams params = {method, e4m3_max, 0.8f * amax};
        ExpectSame(cpu_->ScaleSweep(params, x), cuda_->ScaleSweep(params, x));
        ExpectSame(cpu_->ScaleSweepHessian(params, x, hessians),
                   cuda_->ScaleSweepHessian(params, x, hessians));
      }
      const ScaleSweepParams params = {SweepMethod::kPruned, e4m3_max, amax};
      const auto swept = cpu_->SweepAndQuantize(params, x, /*swizzle=*/e4m3_max == 256);
      const auto swept_there = cuda_->SweepAndQuantize(params, x, e4m3_max == 256);
      ASSERT_TRUE(swept.ok() && swept_there.ok()) << swept_there.status();
      EXPECT_TRUE(SamePacked(swept->packed, swept_there->packed));
      EXPECT_EQ(swept->loss, swept_there->loss);
      const auto fed = cpu_->SweepHessianFeedback(params, x, hessians);
      const auto fed_there = cuda_->SweepHessianFeedback(params, x, hessians);
      ASSERT_TRUE(fed.ok() && fed_there.ok()) << fed_there.status();
      EXPECT_TRUE(SameFeedback(*fed, *fed_there));
    }
    std::vector<std::byte> scaled(x.size() * DTypeBytes(x.dtype));
    std::copy_n(static_cast<const std::byte*>(x.data), scaled.size(), scaled.begin());
    std::vector<std::byte> scaled_there = scaled;
    const std::vector<float> row(x.rows, 0.37f), column(x.cols, 1.9f);
    EXPECT_TRUE(cpu_->PostScale({scaled.data(), x.dtype, x.rows, x.cols}, row, column).ok());
    EXPECT_TRUE(cuda_->PostScale({scaled_there.data(), x.dtype, x.rows, x.cols}, row, column).ok());
    EXPECT_TRUE(SameBytes(scaled, scaled_there));
  }
};

TEST_P(EveryConfigTest, GoldenCases) {
  EXPECT_EQ(testing::CheckTransformerEngineCases(*cuda_, [](const auto&) { return true; }), 277);
  testing::CheckSwizzledScales(*cuda_);
  testing::CheckModelOptimizerExports(*cuda_);
}

TEST_P(EveryConfigTest, EveryDistribution) {
  for (size_t d = 0; d < kEnumNames<Distribution>.size(); ++d) {
    SCOPED_TRACE(kEnumNames<Distribution>[d]);
    for (DType dtype : kInputDTypes) {
      ExpectSameOf(TestMatrix(static_cast<Distribution>(d), dtype, 33, 208, d + 1).view);
    }
  }
}

TEST_P(EveryConfigTest, EveryShape) {
  for (int64_t rows : {0, 1, 130, 1000}) {
    for (int64_t cols : {16, 48, 1040}) {
      for (DType dtype : kInputDTypes) {
        ExpectSameOf(TestMatrix(Distribution::kOutliers, dtype, rows, cols, 3).view);
      }
    }
  }
}

TEST_P(EveryConfigTest, EveryWayToQuantize) {
  for (const auto& [rows, cols] :
       {std::pair<int64_t, int64_t>{0, 16}, {1, 48}, {16, 16}, {17, 208}, {144, 208}}) {
    for (DType dtype : kInputDTypes) {
      const TestMatrix x(Distribution::kStudentT5, dtype, rows, cols, 5);
      for (QuantizeParams params : AllParams()) {
        for (bool columnwise : {false, true}) {
          params.columnwise = columnwise;
          params.swizzle = columnwise != params.stochastic.has_value();
          params.rht = columnwise && params.scheme != Scheme::kTile2d ? Rht::kSigns : Rht::kNone;
          SCOPED_TRACE(Describe(params, x.view));
          const auto expected = cpu_->Quantize(params, x.view);
          const auto actual = cuda_->Quantize(params, x.view);
          ASSERT_EQ(expected.status(), actual.status());
          if (!expected.ok()) continue;
          EXPECT_TRUE(SamePacked(*expected, *actual));
        }
      }
    }
  }
}

// More blocks than any shape has threads for at once: thread blocks that stay walk on, and fetch
// more than once.
TEST_P(EveryConfigTest, LongWalks) {
  for (DType dtype : kInputDTypes) {
    const TestMatrix x(Distribution::kOutliers, dtype, 2064, 3344, 4);
    SCOPED_TRACE(DTypeName(dtype));
    for (SweepMethod method : {SweepMethod::kExhaustive, SweepMethod::kPruned}) {
      if (method == SweepMethod::kExhaustive && dtype != DType::kBf16) continue;  // slow on a CPU
      ExpectSame(cpu_->ScaleSweep({method}, x.view), cuda_->ScaleSweep({method}, x.view));
    }
    EXPECT_TRUE(SamePacked(cpu_->SweepAndQuantize({}, x.view, /*swizzle=*/true)->packed,
                           cuda_->SweepAndQuantize({}, x.view, true)->packed));
    for (Scheme scheme : {Scheme::kPerTensor, Scheme::kPerToken, Scheme::kTile2d}) {
      for (bool four_over_six : {false, true}) {
        QuantizeParams params = {.scheme = scheme};
        if (four_over_six) params.four_over_six = FourOverSix{};
        SCOPED_TRACE(Describe(params, x.view));
        EXPECT_TRUE(SamePacked(*cpu_->Quantize(params, x.view), *cuda_->Quantize(params, x.view)));
      }
    }
  }
}

// One of the rows' groups is empty, others are ragged; columns take whole blocks of rows.
TEST_P(EveryConfigTest, Groups) {
  const std::vector<int64_t> ragged = {0, 1, 17, 127, 0, 129, 160, 255, 0};
  const std::vector<int64_t> whole = {0, 16, 160, 0, 128, 240, 0};
  for (DType dtype : kInputDTypes) {
    for (Scheme scheme : {Scheme::kPerTensor, Scheme::kPerToken}) {
      for (bool columnwise : {false, true}) {
        for (bool swizzle : {false, true}) {
          const std::vector<int64_t>& groups = columnwise ? whole : ragged;
          const TestMatrix x(Distribution::kLaplace, dtype,
                             std::accumulate(groups.begin(), groups.end(), int64_t{0}), 208, 8);
          const QuantizeParams params = {.scheme = scheme,
                                         .columnwise = columnwise,
                                         .rht = columnwise ? Rht::kSigns : Rht::kNone,
                                         .swizzle = swizzle};
          SCOPED_TRACE(Describe(params, x.view));
          const auto expected = cpu_->QuantizeGrouped(params, x.view, groups);
          const auto actual = cuda_->QuantizeGrouped(params, x.view, groups);
          ASSERT_TRUE(expected.ok() && actual.ok()) << expected.status() << actual.status();
          ASSERT_EQ(expected->size(), actual->size());
          for (size_t i = 0; i < groups.size(); ++i) {
            EXPECT_TRUE(SamePacked((*expected)[i], (*actual)[i])) << "group " << i;
          }
        }
      }
    }
  }
}

TEST_P(EveryConfigTest, BothCopies) {
  for (const auto& [rows, cols] : {std::pair<int64_t, int64_t>{16, 16}, {144, 208}, {1040, 3344}}) {
    for (DType dtype : kInputDTypes) {
      const TestMatrix x(Distribution::kOutliers, dtype, rows, cols, 7);
      for (Scheme scheme : {Scheme::kPerTensor, Scheme::kPerToken}) {
        for (Rht rht : {Rht::kNone, Rht::kSigns, Rht::kNoSigns}) {
          for (bool swizzle : {false, true}) {
            QuantizeBothParams params;
            params.rowwise.scheme = params.columnwise.scheme = scheme;
            params.rowwise.swizzle = params.columnwise.swizzle = swizzle;
            params.columnwise.rht = rht;
            SCOPED_TRACE(Describe(params.columnwise, x.view));
            PackedTensor rowwise(LayoutOf(params.rowwise, rows, cols));
            PackedTensor columnwise(LayoutOf(params.columnwise, rows, cols));
            ASSERT_TRUE(cuda_
                            ->QuantizeBoth(params, x.view, rowwise.mutable_view(),
                                           columnwise.mutable_view())
                            .ok());
            EXPECT_TRUE(SamePacked(*cpu_->Quantize(params.rowwise, x.view), rowwise));
            EXPECT_TRUE(SamePacked(*cpu_->Quantize(params.columnwise, x.view), columnwise));
          }
        }
      }
    }
  }
}

TEST_P(EveryConfigTest, EveryPackedLayout) {
  for (const auto& [rows, cols] : {std::pair<int64_t, int64_t>{0, 16}, {16, 16}, {144, 208}}) {
    for (const PackedLayout& layout : AllLayouts(rows, cols)) {
      SCOPED_TRACE(Describe(layout));
      const PackedTensor packed = RandomPacked(layout, /*nan_scales=*/false, 9);
      for (DType dtype : {DType::kBf16, DType::kF32}) {
        std::vector<std::byte> expected(rows * cols * DTypeBytes(dtype)), actual = expected;
        ASSERT_TRUE(cpu_->Dequantize(packed.view(), dtype, expected.data()).ok());
        ASSERT_TRUE(cuda_->Dequantize(packed.view(), dtype, actual.data()).ok());
        EXPECT_TRUE(SameBytes(expected, actual));
      }
      const TestMatrix x(Distribution::kLaplace, DType::kBf16, rows, cols, 6);
      const auto expected = cpu_->MeasureError(x.view, packed.view());
      const auto actual = cuda_->MeasureError(x.view, packed.view());
      ASSERT_EQ(expected.status(), actual.status());
      if (!expected.ok()) continue;
      EXPECT_TRUE(SameStats(*expected, *actual));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Configs, EveryConfigTest, ::testing::Range(size_t{0}, MostConfigs()));

}  // namespace
}  // namespace nibble
