// Hessian accumulation on every CPU instruction set: the contract's bytes, and what is refused.
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "engine/synthetic.h"
#include "gtest/gtest.h"
#include "quant/numerics/hessian_sum.h"
#include "tests/testing/backends.h"
#include "tests/testing/bytes.h"
#include "tests/testing/is_error.h"
#include "tests/testing/params.h"
#include "tests/testing/random_bits.h"

namespace nibble {
namespace {

using ::nibble::testing::AllCpuKernels;
using ::nibble::testing::IsError;
using ::nibble::testing::KernelsName;
using ::nibble::testing::kInputDTypes;
using ::nibble::testing::RandomBitsBelow;
using ::nibble::testing::SameBytes;

// H + X^T X from the functions of quant/numerics alone.
std::vector<float> Expected(const MatrixView& x, const std::vector<float>& before) {
  std::vector<float> h = before;
  const int64_t slices = x.cols / kBlockSize;
  for (int64_t s = 0; s < slices; ++s) {
    float total[kHessianSize];
    HessianTotal(
        x.rows, slices,
        [&](int64_t first, int64_t last, float* sum) {
          for (int64_t t = first; t < last; ++t) {
            float channels[kBlockSize];
            LoadBlock(x, t * x.cols + s * kBlockSize, channels);
            HessianAddToken(channels, sum);
          }
        },
        total);
    for (int i = 0; i < kBlockSize; ++i) {
      for (int j = 0; j < kBlockSize; ++j) {
        float& entry = h[s * kHessianSize + i * kBlockSize + j];
        entry = HessianEntry(entry, total, i, j);
      }
    }
  }
  return h;
}

class AccumulateHessianTest : public ::testing::TestWithParam<const CpuKernels*> {
 protected:
  void ExpectContract(const MatrixView& x) {
    SCOPED_TRACE(std::to_string(x.rows) + "x" + std::to_string(x.cols) + " " +
                 std::string(DTypeName(x.dtype)));
    std::vector<float> h = SyntheticValues(Distribution::kNormal, x.cols * kBlockSize, 9);
    const std::vector<float> expected = Expected(x, h);
    ASSERT_TRUE(backend_->AccumulateHessian(x, h).ok());
    EXPECT_TRUE(SameBytes(expected, h));
  }

  std::unique_ptr<Backend> backend_ = MakeCpuBackendWith(*GetParam(), {.threads = 3});
};

TEST_P(AccumulateHessianTest, EveryShape) {
  for (int64_t tokens : {1, 15, 16, 17, 128, 129, 1000}) {
    for (int64_t channels : {16, 48, 272}) {
      for (DType dtype : kInputDTypes) {
        const std::vector<std::byte> bytes =
            ToBytes(SyntheticValues(Distribution::kOutliers, tokens * channels, 1), dtype);
        ExpectContract({bytes.data(), dtype, tokens, channels});
      }
    }
  }
  // Longer chains.
  const std::vector<std::byte> bytes =
      ToBytes(SyntheticValues(Distribution::kNormal, 2100 * 1024, 1), DType::kBf16);
  ExpectContract({bytes.data(), DType::kBf16, 2100, 1024});
}

TEST_P(AccumulateHessianTest, SubnormalHugeAndNegativeZero) {
  for (DType dtype : kInputDTypes) {
    for (float limit : {1e-18f, 1e15f}) {
      const std::vector<std::byte> bytes = RandomBitsBelow(limit, dtype, 300 * 48, 7);
      ExpectContract({bytes.data(), dtype, 300, 48});
    }
  }
}

TEST_P(AccumulateHessianTest, UnalignedData) {
  const std::vector<std::byte> bytes =
      ToBytes(SyntheticValues(Distribution::kNormal, 50 * 32, 1), DType::kBf16);
  std::vector<std::byte> shifted(bytes.size() + 2);
  std::copy(bytes.begin(), bytes.end(), shifted.begin() + 2);
  ExpectContract({shifted.data() + 2, DType::kBf16, 50, 32});
}

TEST_P(AccumulateHessianTest, CallsAddUpAndMirror) {
  const std::vector<float> x = SyntheticValues(Distribution::kNormal, 96 * 32, 1);
  std::vector<float> h(2 * kHessianSize, 0.0f);
  const MatrixView first = {x.data(), DType::kF32, 64, 32};
  const MatrixView second = {x.data() + 64 * 32, DType::kF32, 32, 32};
  ASSERT_TRUE(backend_->AccumulateHessian(first, h).ok());
  ASSERT_TRUE(backend_->AccumulateHessian(second, h).ok());
  EXPECT_TRUE(SameBytes(Expected(second, Expected(first, std::vector<float>(h.size(), 0.0f))), h));
  for (int s = 0; s < 2; ++s) {
    for (int i = 0; i < 16; ++i) {
      for (int j = 0; j < 16; ++j) {
        double sum = 0;
        for (int t = 0; t < 96; ++t) {
          sum += double{x[t * 32 + s * 16 + i]} * x[t * 32 + s * 16 + j];
        }
        EXPECT_NEAR(h[s * 256 + i * 16 + j], sum, 1e-3);
        EXPECT_EQ(h[s * 256 + i * 16 + j], h[s * 256 + j * 16 + i]);
      }
    }
  }
  // What the weighted sweep takes.
  EXPECT_TRUE(backend_->ScaleSweepHessian({}, first, h).ok());
}

TEST_P(AccumulateHessianTest, NoTokensChangeNothing) {
  std::vector<float> h(kHessianSize, -0.0f);
  const std::vector<float> before = h;
  ASSERT_TRUE(backend_->AccumulateHessian({nullptr, DType::kF32, 0, 16}, h).ok());
  EXPECT_TRUE(SameBytes(before, h));
}

TEST_P(AccumulateHessianTest, RefusesWhatIsNotFinite) {
  for (DType dtype : kInputDTypes) {
    for (float bad : {NAN, INFINITY, -INFINITY}) {
      std::vector<float> values = SyntheticValues(Distribution::kNormal, 150 * 48, 1);
      values[100 * 48 + 40] = bad;
      values[101 * 48 + 3] = bad;
      const std::vector<std::byte> bytes = ToBytes(values, dtype);
      std::vector<float> h(3 * kHessianSize, 0.5f);
      const std::vector<float> before = h;
      EXPECT_TRUE(IsError(backend_->AccumulateHessian({bytes.data(), dtype, 150, 48}, h),
                          absl::StatusCode::kFailedPrecondition,
                          "got 2 NaN or infinite, the first at row 100, column 40"));
      EXPECT_TRUE(SameBytes(before, h));
    }
  }
}

TEST_P(AccumulateHessianTest, RefusesSumsThatOverflow) {
  std::vector<float> values(20 * 48, 1.0f);
  values[5 * 48 + 17] = 3e19f;
  const MatrixView x = {values.data(), DType::kF32, 20, 48};
  std::vector<float> h(3 * kHessianSize, 1.0f);
  const std::vector<float> before = h;
  const char* words = "expected sums of at most 3.40282e+38, got more in slice 1";
  EXPECT_TRUE(
      IsError(backend_->AccumulateHessian(x, h), absl::StatusCode::kFailedPrecondition, words));
  EXPECT_TRUE(SameBytes(before, h));
  // Alone each fits, together they do not.
  values[5 * 48 + 17] = 1.5e19f;
  ASSERT_TRUE(backend_->AccumulateHessian(x, h).ok());
  const std::vector<float> after = h;
  EXPECT_TRUE(
      IsError(backend_->AccumulateHessian(x, h), absl::StatusCode::kFailedPrecondition, words));
  EXPECT_TRUE(SameBytes(after, h));
}

TEST_P(AccumulateHessianTest, RefusesHessiansOfAnotherSizeOrNotFinite) {
  const std::vector<float> values(48, 1.0f);
  const MatrixView x = {values.data(), DType::kF32, 1, 48};
  std::vector<float> h(2 * kHessianSize, 0.0f);
  EXPECT_TRUE(IsError(backend_->AccumulateHessian(x, h), absl::StatusCode::kFailedPrecondition,
                      "expected 3 slices of 16 x 16, got 512 numbers"));
  h.resize(3 * kHessianSize);
  h[kHessianSize + 1] = -INFINITY;
  EXPECT_TRUE(IsError(backend_->AccumulateHessian(x, h), absl::StatusCode::kFailedPrecondition,
                      "expected finite sums so far, got -inf in slice 1"));
  EXPECT_TRUE(IsError(backend_->AccumulateHessian({nullptr, DType::kF32, 0, 48}, h),
                      absl::StatusCode::kFailedPrecondition, "slice 1"));
}

INSTANTIATE_TEST_SUITE_P(Cpu, AccumulateHessianTest, ::testing::ValuesIn(AllCpuKernels()),
                         [](const auto& info) { return KernelsName(info.param); });

}  // namespace
}  // namespace nibble
