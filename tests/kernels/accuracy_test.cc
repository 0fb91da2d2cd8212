// Relative errors on known distributions against figures computed independently in double
// precision.
#include <cstdio>
#include <string>
#include <vector>

#include "engine/synthetic.h"
#include "gtest/gtest.h"
#include "kernels/backend.h"

namespace nibble {
namespace {

class AccuracyTest : public ::testing::Test {
 protected:
  static constexpr int64_t kRows = 1024, kCols = 4096;  // 4.19 M elements

  void Use(Distribution distribution) {
    values_ = SyntheticValues(distribution, kRows * kCols, 1);
    x_ = {values_.data(), DType::kF32, kRows, kCols};
  }

  double Error(const absl::StatusOr<PackedTensor>& packed) {
    EXPECT_TRUE(packed.ok()) << packed.status();
    return backend_->MeasureError(x_, packed->view())->relative_mse();
  }

  double Max(int e4m3_max = 448) {
    QuantizeParams params;
    params.e4m3_max = e4m3_max;
    return Error(backend_->Quantize(params, x_));
  }

  double FourOverSixError(ErrorMetric metric, int e4m3_max = 448) {
    QuantizeParams params;
    params.e4m3_max = e4m3_max;
    params.four_over_six = FourOverSix{metric, ErrorPath::kStrict};
    return Error(backend_->Quantize(params, x_));
  }

  double WithScales(const absl::StatusOr<SweepResult>& result, int e4m3_max) {
    EXPECT_TRUE(result.ok()) << result.status();
    return Error(backend_->QuantizeWithScales(x_, result->global_amax, e4m3_max, result->code));
  }

  double Sweep(int e4m3_max = 448) {
    ScaleSweepParams params;
    params.e4m3_max = e4m3_max;
    return WithScales(backend_->ScaleSweep(params, x_), e4m3_max);
  }

  double Multipliers() { return WithScales(backend_->MultiplierSearch({}, x_), 448); }

  // Within `tolerance`, relatively; printed either way.
  static void Expect(const std::string& what, double actual, double expected,
                     double tolerance = 0.005) {
    std::printf("%-28s %.4e, expected %.4e (%+.2f %%)\n", what.c_str(), actual, expected,
                100 * (actual / expected - 1));
    EXPECT_NEAR(actual / expected, 1.0, tolerance) << what;
  }

  std::unique_ptr<Backend> backend_ = *MakeBackend("cpu");
  std::vector<float> values_;
  MatrixView x_;
};

TEST_F(AccuracyTest, Normal) {
  Use(Distribution::kNormal);
  const double max = Max();
  Expect("max", max, 9.051e-3);
  Expect("4over6 mse", FourOverSixError(ErrorMetric::kMse), 7.565e-3);
  Expect("4over6 mae / max", FourOverSixError(ErrorMetric::kMae) / max, 1 - 0.138);
  Expect("4over6 abs_max / max", FourOverSixError(ErrorMetric::kAbsMax) / max, 1 - 0.115);
  Expect("multipliers / max", Multipliers() / max, 1 - 0.258);
  Expect("sweep", Sweep(), 6.594e-3);
  QuantizeParams tile;
  tile.scheme = Scheme::kTile2d;
  Expect("tile_2d", Error(backend_->Quantize(tile, x_)), 1.240e-2);
  QuantizeParams stochastic;
  stochastic.stochastic = StochasticRounding{.seed = 5};
  Expect("stochastic rounding", Error(backend_->Quantize(stochastic, x_)), 1.888e-2);
}

TEST_F(AccuracyTest, Laplace) {
  Use(Distribution::kLaplace);
  Expect("max", Max(), 8.596e-3);
  Expect("4over6 mse", FourOverSixError(ErrorMetric::kMse), 7.598e-3);
  Expect("4over6 mae", FourOverSixError(ErrorMetric::kMae), 7.83e-3);
  Expect("4over6 abs_max", FourOverSixError(ErrorMetric::kAbsMax), 8.18e-3);
  Expect("multipliers", Multipliers(), 6.99e-3);
  Expect("sweep", Sweep(), 6.798e-3);
}

TEST_F(AccuracyTest, StudentT5) {
  Use(Distribution::kStudentT5);
  Expect("4over6 mse", FourOverSixError(ErrorMetric::kMse), 7.515e-3);
  Expect("sweep", Sweep(), 6.744e-3);
}

TEST_F(AccuracyTest, UniformNeedsTheSmallerBound) {
  Use(Distribution::kUniform);
  Expect("max, 448", Max(448), 1.032e-2);
  Expect("4over6 mse, 448", FourOverSixError(ErrorMetric::kMse, 448), 1.001e-2);
  Expect("sweep, 448", Sweep(448), 7.82e-3);
  Expect("max, 256", Max(256), 1.028e-2);
  Expect("4over6 mse, 256", FourOverSixError(ErrorMetric::kMse, 256), 7.61e-3);
  Expect("sweep, 256", Sweep(256), 6.17e-3);
}

// Stochastic rounding of a constant: the mean comes back.
TEST_F(AccuracyTest, StochasticRoundingIsUnbiased) {
  std::vector<float> constant(1 << 20, 0.3f);
  const MatrixView x = {constant.data(), DType::kF32, 1, 1 << 20};
  QuantizeParams params;
  params.global_amax = 2688.0f;  // every scale is then what its block alone asks for
  // The first element of each block fixes its scale at 1.
  for (size_t i = 0; i < constant.size(); i += kBlockSize) constant[i] = 6.0f;
  params.stochastic = StochasticRounding{.seed = 9};
  std::vector<float> y(constant.size());
  ASSERT_TRUE(
      backend_->Dequantize(backend_->Quantize(params, x)->view(), DType::kF32, y.data()).ok());
  double sum = 0;
  int64_t count = 0;
  for (size_t i = 0; i < y.size(); ++i) {
    if (i % kBlockSize == 0) continue;
    EXPECT_TRUE(y[i] == 0.0f || y[i] == 0.5f);
    sum += y[i];
    ++count;
  }
  EXPECT_NEAR(sum / count, 0.3, 0.002);  // 8 standard errors
}

}  // namespace
}  // namespace nibble
