// Nibble against the reference results of tests/golden, on every CPU backend.
#include "tests/testing/golden.h"

#include <cmath>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/backends.h"
#include "tests/testing/bytes.h"

namespace nibble {
namespace {

using ::nibble::testing::AllCpuKernels;
using ::nibble::testing::CheckModelOptimizerExports;
using ::nibble::testing::CheckSwizzledScales;
using ::nibble::testing::CheckTransformerEngineCases;
using ::nibble::testing::CountDifferentCodes;
using ::nibble::testing::GoldenFile;
using ::nibble::testing::GoldenMatrix;
using ::nibble::testing::KernelsName;
using ::nibble::testing::SameBytes;

class GoldenTest : public ::testing::TestWithParam<const CpuKernels*> {
 protected:
  std::unique_ptr<Backend> backend_ = MakeCpuBackendWith(*GetParam(), {});
};

TEST_P(GoldenTest, QuantizeMatchesTransformerEngine) {
  EXPECT_EQ(CheckTransformerEngineCases(*backend_, [](const QuantizeParams&) { return true; }),
            277);
}

TEST_P(GoldenTest, SwizzledScales) { CheckSwizzledScales(*backend_); }

TEST_P(GoldenTest, ExportsMatchModelOptimizer) { CheckModelOptimizerExports(*backend_); }

// Relative difference, 0 for two zeros.
double Apart(double a, double b) { return a == b ? 0 : std::fabs(a - b) / std::fabs(b); }

TEST_P(GoldenTest, SweepMatchesModelOptimizer) {
  const GoldenFile file("mo_shared.safetensors");
  for (const std::string& name : file.cases()) {
    SCOPED_TRACE(name);
    const GoldenMatrix x(file, name + ".x");
    const auto winner64 = file.Read<uint8_t>(name + ".sweep.argmin64");
    const auto loss64 = file.Read<double>(name + ".sweep.best_loss64");
    const auto best_amax = file.Read<float>(name + ".sweep.best_amax");
    for (SweepMethod method : {SweepMethod::kExhaustive, SweepMethod::kPruned}) {
      ScaleSweepParams params;
      params.method = method;
      const auto sweep = backend_->ScaleSweep(params, x.view);
      ASSERT_TRUE(sweep.ok()) << sweep.status();
      ASSERT_EQ(sweep->code.size(), winner64.size());
      int neighbours = 0;
      for (size_t b = 0; b < winner64.size(); ++b) {
        // Stronger than the contract asks: the same winner also where a runner-up is near.
        EXPECT_EQ(sweep->code[b], winner64[b] + 1) << "block " << b;
        EXPECT_LE(Apart(sweep->loss[b], loss64[b]), 1e-6) << "block " << b;
        neighbours += Apart(sweep->best_amax[b], best_amax[b]) > 1e-6;
      }
      EXPECT_LE(neighbours, 0.005 * winner64.size());
    }
  }
}

// d^T H d in float64 under code k.
double HessianLoss64(const float* w, const float* h, float decode_scale) {
  double d[kBlockSize], loss = 0;
  for (int i = 0; i < kBlockSize; ++i) {
    const double q = E2m1Decode(E2m1Encode(w[i] / decode_scale));
    d[i] = w[i] - q * decode_scale;
  }
  for (int i = 0; i < kBlockSize; ++i) {
    for (int j = 0; j < kBlockSize; ++j) loss += d[i] * h[i * kBlockSize + j] * d[j];
  }
  return loss;
}

TEST_P(GoldenTest, HessianSweepMatchesModelOptimizer) {
  const GoldenFile file("mo_shared.safetensors");
  size_t blocks = 0, neighbours = 0;
  for (const std::string& name : file.cases()) {
    SCOPED_TRACE(name);
    const GoldenMatrix x(file, name + ".x");
    const auto h = file.Read<float>(name + ".hess.H");
    const auto best_amax = file.Read<float>(name + ".hess.best_amax");
    const auto sweep = backend_->ScaleSweepHessian({}, x.view, h);
    ASSERT_TRUE(sweep.ok()) << sweep.status();
    const int64_t slices = x.view.cols / kBlockSize;
    const SweepTable table = MakeSweepTable(sweep->global_amax, 448);
    for (size_t b = 0; b < best_amax.size(); ++b) {
      float w[kBlockSize];
      LoadBlock(x.view, b * kBlockSize, w);
      const float* slice = &h[b % slices * kBlockSize * kBlockSize];
      double smallest = INFINITY;
      for (int k = 1; k <= kE4m3Codes; ++k) {
        smallest = std::min(smallest, HessianLoss64(w, slice, table.decode_scale[k]));
      }
      const double ours = HessianLoss64(w, slice, table.decode_scale[sweep->code[b]]);
      EXPECT_LE(ours, smallest * (1 + 1e-6)) << "block " << b;
      EXPECT_LE(Apart(sweep->loss[b], ours), 1e-5) << "block " << b;
      neighbours += Apart(sweep->best_amax[b], best_amax[b]) > 1e-6;
      ++blocks;
    }
  }
  // The reference's kernel divides by 6 approximately, which turns some ties the other way.
  EXPECT_LE(neighbours, 0.005 * blocks);
}

INSTANTIATE_TEST_SUITE_P(Backends, GoldenTest, ::testing::ValuesIn(AllCpuKernels()),
                         [](const auto& info) { return KernelsName(info.param); });

TEST(SameBytesTest, SeesDifferences) {
  const std::vector<uint8_t> a = {1, 2, 3}, b = {1, 2, 4}, shorter = {1, 2};
  EXPECT_TRUE(SameBytes(a, a));
  EXPECT_FALSE(SameBytes(a, b));
  EXPECT_FALSE(SameBytes(a, shorter));
  EXPECT_THAT(SameBytes(a, b).message(),
              ::testing::HasSubstr("1 of 3 bytes differ, the first at 2"));
  EXPECT_EQ(CountDifferentCodes({0x12, 0x34}, {0x13, 0x34}), 1);
  EXPECT_GT(Apart(1.0, 1.1), 0.05);
}

}  // namespace
}  // namespace nibble
