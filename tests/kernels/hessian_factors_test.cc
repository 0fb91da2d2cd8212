#include "kernels/hessian_factors.h"

#include <cmath>
#include <string>
#include <vector>

#include "engine/synthetic.h"
#include "gtest/gtest.h"
#include "quant/numerics/singular_hessian.h"
#include "tests/testing/hessians.h"
#include "tests/testing/is_error.h"

namespace nibble {
namespace {

using ::nibble::testing::Activations;
using ::nibble::testing::IsError;
using ::nibble::testing::MakeHessians;

constexpr int kSize = kBlockSize * kBlockSize;

// H of `tokens` tokens, 64 slices.
std::vector<float> OfTokens(int tokens, uint64_t seed) {
  constexpr int64_t kSlices = 64;
  const std::vector<float> x =
      SyntheticValues(Distribution::kNormal, kSlices * tokens * kBlockSize, seed);
  std::vector<float> h(kSlices * kSize);
  for (int64_t s = 0; s < kSlices; ++s) {
    for (int i = 0; i < kSize; ++i) {
      double sum = 0;
      for (int t = 0; t < tokens; ++t) {
        const float* token = &x[(s * tokens + t) * kBlockSize];
        sum += double{token[i / kBlockSize]} * double{token[i % kBlockSize]};
      }
      h[s * kSize + i] = static_cast<float>(sum);
    }
  }
  return h;
}

// Of all slices; infinity where there is an error.
double Residual(const std::vector<float>& h) {
  ThreadPool pool(1);
  const auto factors = FactorHessians(h, pool);
  EXPECT_TRUE(factors.ok()) << factors.status();
  if (!factors.ok()) return INFINITY;
  double largest = 0;
  for (size_t s = 0; s < factors->size(); ++s) {
    largest = std::max(largest, HessianResidual(&h[s * kSize], (*factors)[s]));
  }
  return largest;
}

TEST(HessianFactorsTest, FewTokens) {
  for (int tokens = 1; tokens <= 20; ++tokens) {
    for (uint64_t seed = 1; seed <= 20; ++seed) {
      EXPECT_LE(Residual(OfTokens(tokens, seed)), 1e-5) << tokens << " tokens, seed " << seed;
    }
  }
}

TEST(HessianFactorsTest, EveryKindOfActivations) {
  for (size_t kind = 0; kind < kEnumNames<Activations>.size(); ++kind) {
    EXPECT_LE(Residual(MakeHessians(static_cast<Activations>(kind), 256)), 1e-5)
        << kEnumNames<Activations>[kind];
  }
}

// Six tokens whose first channels are all but dependent: in order, the seventh pivot is noise many
// times its size.
TEST(FactorSingularHessianTest, TakesWhatFactorHessianRefuses) {
  int refused = 0;
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    const std::vector<float> h = OfTokens(6, seed);
    for (size_t s = 0; s < h.size() / kSize; ++s) {
      HessianFactor factor;
      refused += FactorHessian(&h[s * kSize], &factor) == HessianDefect::kNotPositive;
      ASSERT_EQ(FactorSingularHessian(&h[s * kSize], &factor), HessianDefect::kNone);
      EXPECT_LE(HessianResidual(&h[s * kSize], factor), 1e-5);
    }
  }
  EXPECT_GT(refused, 0);
}

// Where H is regular, there is but one factor.
TEST(FactorSingularHessianTest, RegularFactorIsCholesky) {
  const std::vector<float> h = MakeHessians(Activations::kCorrelated, 64);
  for (size_t s = 0; s < h.size() / kSize; ++s) {
    HessianFactor expected, actual;
    ASSERT_EQ(FactorHessian(&h[s * kSize], &expected), HessianDefect::kNone);
    ASSERT_EQ(FactorSingularHessian(&h[s * kSize], &actual), HessianDefect::kNone);
    for (int i = 0; i < kSize; ++i) {
      const float e = expected.lower[i / kBlockSize][i % kBlockSize];
      EXPECT_NEAR(actual.lower[i / kBlockSize][i % kBlockSize], e, 1e-6) << i;
    }
  }
}

TEST(HessianFactorsTest, RefusesWhatIsIndefinite) {
  ThreadPool pool(1);
  for (float excess : {0.01f, 0.5f, 3.0f}) {
    std::vector<float> h = OfTokens(6, 5);
    // x^T H x < 0 for x = e_i - e_j.
    float* slice = &h[7 * kSize];
    const float larger = std::sqrt(slice[3 * 17] * slice[9 * 17]) * (1 + excess);
    slice[3 * kBlockSize + 9] = slice[9 * kBlockSize + 3] = larger;
    EXPECT_TRUE(IsError(FactorHessians(h, pool).status(), absl::StatusCode::kFailedPrecondition,
                        "not positive semidefinite: slice 7"))
        << excess;
  }
  std::vector<float> h(kSize, 0.0f);
  h[5] = h[5 * kBlockSize] = 1e-30f;  // beside a diagonal of zeros
  EXPECT_FALSE(FactorHessians(h, pool).ok());
  h.assign(kSize, 0.0f);
  h[17] = -1e-30f;
  EXPECT_FALSE(FactorHessians(h, pool).ok());
}

TEST(HessianResidualTest, SeesAWrongFactor) {
  const std::vector<float> h = MakeHessians(Activations::kIid, 1);
  HessianFactor factor;
  ASSERT_EQ(FactorHessian(h.data(), &factor), HessianDefect::kNone);
  EXPECT_LE(HessianResidual(h.data(), factor), 1e-6);
  factor.lower[12][3] += 1e-3f * factor.lower[3][3];
  EXPECT_GT(HessianResidual(h.data(), factor), 1e-4);
}

}  // namespace
}  // namespace nibble
