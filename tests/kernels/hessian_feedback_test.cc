// Rounding with error feedback: that it never loses, block by block, on millions of them; what it
// gains; that it is what GPTQ does within a block; that all CPU backends agree.
#include "quant/numerics/hessian_feedback.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <iterator>
#include <mutex>
#include <string>
#include <vector>

#include "base/parallel_for.h"
#include "engine/synthetic.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/hessian_factors.h"
#include "tests/testing/backends.h"
#include "tests/testing/bytes.h"
#include "tests/testing/hessians.h"
#include "tests/testing/is_error.h"
#include "tests/testing/params.h"
#include "tests/testing/results.h"
#include "tests/testing/sanitizers.h"
#include "tests/testing/test_matrix.h"

namespace nibble {
namespace {

using ::nibble::testing::Activations;
using ::nibble::testing::AllCpuKernels;
using ::nibble::testing::IsError;
using ::nibble::testing::KernelsName;
using ::nibble::testing::kInputDTypes;
using ::nibble::testing::kSanitized;
using ::nibble::testing::MakeHessians;
using ::nibble::testing::SameFeedback;
using ::nibble::testing::SamePacked;
using ::nibble::testing::TestMatrix;
using ::testing::HasSubstr;

// d^T H d of one block's stored bytes, in double precision, H as it was given.
double StoredLoss(const MatrixView& x, const PackedTensor& packed, int64_t block, const float* h) {
  const float global = packed.layout.GlobalDecodeScale(packed.amax[0]);
  float w[kBlockSize];
  LoadBlock(x, block * kBlockSize, w);
  double d[kBlockSize], loss = 0;
  for (int i = 0; i < kBlockSize; ++i) {
    const uint8_t byte = packed.packed[block * 8 + i / 2];
    const uint8_t code = i % 2 == 0 ? byte & 0xF : byte >> 4;
    d[i] = double{w[i]} - double{Dequantize(code, packed.scale[block], global)};
  }
  for (int i = 0; i < kBlockSize; ++i) {
    for (int j = 0; j < kBlockSize; ++j) loss += double{h[i * kBlockSize + j]} * d[i] * d[j];
  }
  return loss;
}

struct Outcome {
  int64_t blocks = 0, better = 0;
  double nearest = 0, feedback = 0;  // sums of StoredLoss
  int64_t lost = 0;                  // blocks whose loss is above that of codes rounded to nearest
};

// Of two encodings of x under the same g.
Outcome Compare(const MatrixView& x, const std::vector<float>& hessians,
                const PackedTensor& nearest, const PackedTensor& feedback) {
  Outcome result;
  const int64_t slices = x.cols / kBlockSize;
  for (int64_t b = 0; b < x.rows * slices; ++b) {
    const float* h = &hessians[b % slices * kBlockSize * kBlockSize];
    const double before = StoredLoss(x, nearest, b, h), after = StoredLoss(x, feedback, b, h);
    result.nearest += before;
    result.feedback += after;
    result.better += after < before;
    result.lost += after > before;
    ++result.blocks;
  }
  return result;
}

struct Encodings {
  SweepResult found;
  PackedTensor nearest;
  FeedbackTensor feedback;
};

absl::StatusOr<Encodings> Encode(Backend& backend, const ScaleSweepParams& params,
                                 const MatrixView& x, const std::vector<float>& hessians) {
  NIBBLE_ASSIGN_OR_RETURN(SweepResult found, backend.ScaleSweepHessian(params, x, hessians));
  NIBBLE_ASSIGN_OR_RETURN(
      PackedTensor nearest,
      backend.QuantizeWithScales(x, found.global_amax, params.e4m3_max, found.code));
  NIBBLE_ASSIGN_OR_RETURN(FeedbackTensor feedback,
                          backend.SweepHessianFeedback(params, x, hessians));
  return Encodings{std::move(found), std::move(nearest), std::move(feedback)};
}

// By the sweep's own losses: a block is either as it was, to the byte, or better by the margin. The
// number of those that are better.
int64_t ExpectBetterOrTheSame(const Encodings& e) {
  const SweepResult& found = e.feedback.found;
  int64_t better = 0, wrong = 0;
  for (size_t b = 0; b < e.found.loss.size(); ++b) {
    const bool same = std::equal(&e.nearest.packed[b * 8], &e.nearest.packed[b * 8] + 8,
                                 &e.feedback.packed.packed[b * 8]) &&
                      e.nearest.scale[b] == e.feedback.packed.scale[b] &&
                      e.found.loss[b] == found.loss[b];
    const bool is_better = found.loss[b] < e.found.loss[b] * kFeedbackMargin;
    wrong += same == is_better || found.code[b] != e.feedback.packed.scale[b];
    better += is_better;
  }
  EXPECT_EQ(wrong, 0);
  return better;
}

constexpr Activations kActivations[] = {Activations::kIid, Activations::kCorrelated,
                                        Activations::kChannelOutliers, Activations::kSingular};
constexpr Distribution kFeedbackData[] = {Distribution::kNormal, Distribution::kLaplace,
                                          Distribution::kOutliers, Distribution::kWeightLike};

// Prints docs/calibration.md's table.
TEST(HessianFeedbackTest, NeverLosesABlock) {
  constexpr int64_t kRows = kSanitized ? 64 : 512, kCols = 2048;
  struct Row {
    Outcome sum;
    double nearest_error = 0, feedback_error = 0;  // squared errors of the weights
  } rows[std::size(kActivations)][std::size(kFeedbackData)];
  std::vector<float> hessians[std::size(kActivations)];
  ThreadPool().ParallelFor(std::size(kActivations), 1, [&](int64_t a, int64_t) {
    hessians[a] =
        MakeHessians(kActivations[a], kCols / kBlockSize, 200 + 2 * a, /*most_tokens=*/1024);
  });
  std::mutex mutex;
  const int64_t cases =
      std::size(kActivations) * std::size(kFeedbackData) * std::size(kInputDTypes);
  ThreadPool().ParallelFor(cases, 1, [&](int64_t index, int64_t) {
    const size_t a = index % std::size(kActivations);
    const size_t d = index / std::size(kActivations) % std::size(kFeedbackData);
    const DType dtype = kInputDTypes[index / std::size(kActivations) / std::size(kFeedbackData)];
    const TestMatrix w(kFeedbackData[d], dtype, kRows, kCols, 100 + index);
    const std::vector<float>& h = hessians[a];
    const auto backend = MakeCpuBackend({.threads = 1});
    const auto e = Encode(*backend, {}, w.view, h);
    ASSERT_TRUE(e.ok()) << e.status();
    const Outcome c = Compare(w.view, h, e->nearest, e->feedback.packed);
    const auto before = backend->MeasureError(w.view, e->nearest.view());
    const auto after = backend->MeasureError(w.view, e->feedback.packed.view());
    std::lock_guard lock(mutex);
    EXPECT_GT(ExpectBetterOrTheSame(*e), 0);
    EXPECT_EQ(c.lost, 0) << NameOf(kActivations[a]) << " " << NameOf(kFeedbackData[d]);
    Row& row = rows[a][d];
    row.sum.blocks += c.blocks;
    row.sum.better += c.better;
    row.sum.nearest += c.nearest;
    row.sum.feedback += c.feedback;
    row.nearest_error += before->squared_error();
    row.feedback_error += after->squared_error();
  });
  int64_t blocks = 0;
  std::printf("| inputs | weights | d^T H d | squared error of the weights | blocks bettered |\n");
  std::printf("|---|---|---|---|---|\n");
  for (size_t a = 0; a < std::size(kActivations); ++a) {
    for (size_t d = 0; d < std::size(kFeedbackData); ++d) {
      const Row& row = rows[a][d];
      std::printf("| %s | %s | %+.1f %% | %+.1f %% | %.1f %% |\n", NameOf(kActivations[a]).data(),
                  NameOf(kFeedbackData[d]).data(), 100 * (row.sum.feedback / row.sum.nearest - 1),
                  100 * (row.feedback_error / row.nearest_error - 1),
                  100.0 * row.sum.better / row.sum.blocks);
      blocks += row.sum.blocks;
      EXPECT_LT(row.sum.feedback, 0.999 * row.sum.nearest);
    }
  }
  std::printf("%lld blocks\n", static_cast<long long>(blocks));
  EXPECT_GE(blocks, kSanitized ? 100'000 : 3'000'000);
}

TEST(HessianFeedbackTest, TheComparisonSeesALostBlock) {
  const TestMatrix w(Distribution::kNormal, DType::kBf16, 4, 64);
  const std::vector<float> h = MakeHessians(Activations::kCorrelated, 4);
  auto e = *Encode(*MakeCpuBackend({}), {}, w.view, h);
  const Outcome good = Compare(w.view, h, e.nearest, e.feedback.packed);
  EXPECT_EQ(good.lost, 0);
  EXPECT_GT(good.better, 1);
  EXPECT_EQ(Compare(w.view, h, e.feedback.packed, e.nearest).lost, good.better);
  e.feedback.packed.packed[8 * 7] ^= 0x07;  // 6 for 0, or the like
  EXPECT_EQ(Compare(w.view, h, e.nearest, e.feedback.packed).lost, 1);
}

// The losses that are reported are those of the bytes that are stored.
TEST(HessianFeedbackTest, ReportsTheLossOfWhatIsStored) {
  for (int e4m3_max : {448, 256}) {
    const TestMatrix w(Distribution::kLaplace, DType::kF32, 33, 160);
    const std::vector<float> h = MakeHessians(Activations::kIid, 10);
    ThreadPool pool(1);
    const auto factors = FactorHessians(h, pool).value();
    const auto e = *Encode(*MakeCpuBackend({}), {SweepMethod::kPruned, e4m3_max, 5.0f}, w.view, h);
    const SweepTable table = MakeSweepTable(5.0f, static_cast<float>(e4m3_max));
    const FeedbackTensor& made = e.feedback;
    for (int64_t b = 0; b < 330; ++b) {
      float x[kBlockSize], d[kBlockSize];
      LoadBlock(w.view, b * kBlockSize, x);
      const float scale = table.decode_scale[made.packed.scale[b]];
      for (int i = 0; i < kBlockSize; ++i) {
        const uint8_t byte = made.packed.packed[b * 8 + i / 2];
        d[i] = FmaRn(-E2m1Decode(i % 2 == 0 ? byte & 0xF : byte >> 4), scale, x[i]);
      }
      EXPECT_EQ(made.found.loss[b], HessianLoss(d, factors[b % 10], INFINITY));
      EXPECT_EQ(made.found.best_amax[b],
                SweepBlockAmax(made.packed.scale[b], 5.0f, static_cast<float>(e4m3_max)));
    }
    EXPECT_EQ(made.nearest_loss, SumSweepLosses(e.found.loss.data(), 330));
    EXPECT_EQ(made.found.evaluations, e.found.evaluations);
    EXPECT_EQ(made.packed.layout, e.nearest.layout);
    EXPECT_EQ(made.packed.amax, e.nearest.amax);
  }
}

// H^-1's upper Cholesky factor U, H^-1 = U^T U, as GPTQ takes it: code q, then the error over U_qq
// times row q off what comes later. In this order of elements, in double precision.
std::vector<int> Gptq(const float w[kBlockSize], float scale, const float* h,
                      const HessianFeedback& feedback) {
  constexpr int n = kBlockSize;
  double a[n][2 * n] = {};
  for (int p = 0; p < n; ++p) {
    for (int r = 0; r < n; ++r) a[p][r] = h[feedback.order[p] * n + feedback.order[r]];
    a[p][p] *= 1 + 0x1p-5;
    a[p][n + p] = 1;
  }
  for (int c = 0; c < n; ++c) {  // Gauss and Jordan; H is positive definite
    const double pivot = a[c][c];
    for (double& v : a[c]) v /= pivot;
    for (int r = 0; r < n; ++r) {
      const double share = a[r][c];
      for (int k = 0; r != c && k < 2 * n; ++k) a[r][k] -= share * a[c][k];
    }
  }
  double upper[n][n] = {};
  for (int i = 0; i < n; ++i) {
    for (int j = i; j < n; ++j) {
      double sum = a[i][n + j];
      for (int k = 0; k < i; ++k) sum -= upper[k][i] * upper[k][j];
      upper[i][j] = i == j ? std::sqrt(sum) : sum / upper[i][i];
    }
  }
  std::vector<int> codes(n);
  double left[n];
  for (int p = 0; p < n; ++p) left[p] = w[feedback.order[p]];
  for (int p = 0; p < n; ++p) {
    const uint8_t code = E2m1Encode(static_cast<float>(left[p] / scale));
    codes[feedback.order[p]] = code;
    const double error = (left[p] - double{E2m1Decode(code)} * scale) / upper[p][p];
    for (int r = p + 1; r < n; ++r) left[r] -= error * upper[p][r];
  }
  return codes;
}

TEST(HessianFeedbackTest, IsGptqWithinABlock) {
  const std::vector<float> values = SyntheticValues(Distribution::kNormal, 2000 * kBlockSize, 3);
  const std::vector<float> h = MakeHessians(Activations::kCorrelated, 20);
  ThreadPool pool(1);
  const auto factors = FactorHessians(h, pool).value();
  int same = 0;
  for (int b = 0; b < 2000; ++b) {
    const float* w = &values[b * kBlockSize];
    const HessianFeedback feedback = MakeHessianFeedback(factors[b % 20]);
    float placed[kBlockSize];
    for (int p = 0; p < kBlockSize; ++p) placed[p] = w[feedback.order[p]];
    FeedbackBlock block;
    FeedbackRound(placed, FeedbackScale(0.4f), feedback, block);
    std::vector<int> codes(kBlockSize);
    for (int p = 0; p < kBlockSize; ++p) codes[feedback.order[p]] = block.code[p];
    same += codes == Gptq(w, 0.4f, &h[b % 20 * 256], feedback);
  }
  EXPECT_GE(same, 1990);  // ties of doubles and floats may fall differently
}

// The terms that the choice minimizes one by one are d^T H d, H damped.
TEST(HessianFeedbackTest, TheTermsAddUpToTheLoss) {
  const std::vector<float> d = SyntheticValues(Distribution::kNormal, 100 * kBlockSize, 4);
  for (Activations kind : {Activations::kIid, Activations::kCorrelated, Activations::kSingular,
                           Activations::kChannelOutliers, Activations::kDeadChannels}) {
    const std::vector<float> h = MakeHessians(kind, 100);
    ThreadPool pool(1);
    const auto factors = FactorHessians(h, pool).value();
    for (int s = 0; s < 100; ++s) {
      const HessianFeedback f = MakeHessianFeedback(factors[s]);
      double expected = 0, actual = 0, largest = 0;
      for (int i = 0; i < kBlockSize; ++i) {
        const double damping = 0x1p-5 * h[s * 256 + i * 17];
        largest = std::max(largest, h[s * 256 + i * 17] + damping);
        expected += damping * d[s * 16 + i] * d[s * 16 + i];
        for (int j = 0; j < kBlockSize; ++j) {
          expected += double{h[s * 256 + i * 16 + j]} * d[s * 16 + i] * d[s * 16 + j];
        }
      }
      bool seen[kBlockSize] = {};
      for (int p = 0; p < kBlockSize; ++p) {
        double term = d[s * 16 + f.order[p]];
        for (int r = 0; r < p; ++r) {
          term += double{f.feedback[p][r]} * d[s * 16 + f.order[r]];
        }
        actual += largest * f.pivot[p] * term * term;
        EXPECT_FALSE(seen[f.order[p]]);
        seen[f.order[p]] = true;
      }
      EXPECT_NEAR(actual, expected, 1e-4 * expected) << NameOf(kind) << " " << s;
    }
  }
}

TEST(HessianFeedbackTest, NothingToGainChangesNothing) {
  const auto backend = MakeCpuBackend({});
  // Under a diagonal H every code is on its own, and the nearest is best.
  const TestMatrix w(Distribution::kNormal, DType::kBf16, 40, 64);
  for (Activations kind : {Activations::kDeadChannels, Activations::kZero}) {
    const auto e = *Encode(*backend, {}, w.view, MakeHessians(kind, 4));
    EXPECT_EQ(ExpectBetterOrTheSame(e), 0) << NameOf(kind);
  }
  // Where scales may be subnormal nothing is tried.
  const auto tiny = *Encode(*backend, {SweepMethod::kPruned, 448, 0x1p-100f}, w.view,
                            MakeHessians(Activations::kCorrelated, 4));
  EXPECT_TRUE(SamePacked(tiny.nearest, tiny.feedback.packed));
}

TEST(HessianFeedbackTest, RefusesWhatTheSweepRefuses) {
  const auto backend = MakeCpuBackend({});
  const TestMatrix w(Distribution::kNormal, DType::kBf16, 4, 32);
  const std::vector<float> good = MakeHessians(Activations::kIid, 2);
  const auto refused = [&](const std::vector<float>& h, const MatrixView& x,
                           std::string_view piece) {
    const absl::Status sweep = backend->ScaleSweepHessian({}, x, h).status();
    EXPECT_EQ(backend->SweepHessianFeedback({}, x, h).status(), sweep);
    EXPECT_TRUE(IsError(sweep, absl::StatusCode::kFailedPrecondition, piece));
  };
  std::vector<float> bad = good;
  bad[256 + 3] = NAN;
  refused(bad, w.view, "not finite: slice 1");
  bad = good;
  bad[17] = -1;
  refused(bad, w.view, "not positive semidefinite: slice 0");
  bad = good;
  bad[1] += 1;
  refused(bad, w.view, "not symmetric: slice 0");
  bad = good;
  bad.resize(256);
  refused(bad, w.view, "2 slices of 16 x 16");
  std::vector<float> values(64, 1.0f);
  values[40] = INFINITY;
  refused(good, {values.data(), DType::kF32, 2, 32}, "row 1, column 8");
  EXPECT_TRUE(IsError(backend->SweepHessianFeedback({SweepMethod::kPruned, 300, {}}, w.view, good),
                      absl::StatusCode::kInvalidArgument, "300"));
}

class HessianFeedbackKernelsTest : public ::testing::TestWithParam<const CpuKernels*> {
 protected:
  std::unique_ptr<Backend> scalar_ = MakeScalarBackend({});
  std::unique_ptr<Backend> simd_ = MakeCpuBackendWith(*GetParam(), {});
};

TEST_P(HessianFeedbackKernelsTest, AgreeOnEveryDistributionAndHessian) {
  for (size_t d = 0; d < kEnumNames<Distribution>.size(); ++d) {
    for (size_t a = 0; a < kEnumNames<Activations>.size(); ++a) {
      const auto dtype = kInputDTypes[(a + d) % 3];
      SCOPED_TRACE(std::string(kEnumNames<Distribution>[d]) + " " +
                   std::string(kEnumNames<Activations>[a]));
      const TestMatrix w(static_cast<Distribution>(d), dtype, 37, 80, d + 1);
      const std::vector<float> h = MakeHessians(static_cast<Activations>(a), 5, a + 1);
      const ScaleSweepParams params = {SweepMethod::kPruned, d % 2 == 0 ? 448 : 256, std::nullopt};
      const auto expected = scalar_->SweepHessianFeedback(params, w.view, h);
      const auto actual = simd_->SweepHessianFeedback(params, w.view, h);
      ASSERT_TRUE(expected.ok()) << expected.status();
      ASSERT_TRUE(actual.ok()) << actual.status();
      EXPECT_TRUE(SameFeedback(*expected, *actual));
    }
  }
}

TEST_P(HessianFeedbackKernelsTest, AgreeUnderEveryGlobalAmax) {
  for (float g : {0.0f, 1e-39f, 1e-20f, 1e-3f, 1.0f, 100.0f, 1e30f, 3.4e38f}) {
    SCOPED_TRACE(g);
    std::vector<float> values = SyntheticValues(Distribution::kNormal, 40 * 48, 5);
    for (size_t i = 0; i < 64; ++i) values[i] *= 1e20f;  // squares overflow
    for (size_t i = 64; i < 128; ++i) values[i] *= 8e37f;
    const MatrixView x = {values.data(), DType::kF32, 40, 48};
    for (Activations kind : {Activations::kCorrelated, Activations::kHuge, Activations::kTiny}) {
      const std::vector<float> h = MakeHessians(kind, 3);
      const ScaleSweepParams params = {SweepMethod::kPruned, 448, g};
      EXPECT_TRUE(SameFeedback(*scalar_->SweepHessianFeedback(params, x, h),
                               *simd_->SweepHessianFeedback(params, x, h)));
    }
  }
}

TEST_P(HessianFeedbackKernelsTest, AgreeOnEveryShapeAndThreadCount) {
  for (const auto& [rows, cols] : {std::pair<int64_t, int64_t>{0, 16},
                                   {1, 16},
                                   {1, 4096},
                                   {3, 48},
                                   {16, 16},
                                   {65, 32},
                                   {129, 80}}) {
    SCOPED_TRACE(std::to_string(rows) + " x " + std::to_string(cols));
    const TestMatrix w(Distribution::kOutliers, DType::kBf16, rows, cols);
    const std::vector<float> h = MakeHessians(Activations::kCorrelated, cols / 16);
    const auto expected = scalar_->SweepHessianFeedback({}, w.view, h);
    ASSERT_TRUE(expected.ok()) << expected.status();
    EXPECT_EQ(static_cast<int64_t>(expected->packed.packed.size()), rows * cols / 2);
    for (int threads : {1, 2, 3}) {
      const auto backend = MakeCpuBackendWith(*GetParam(), {.threads = threads});
      EXPECT_TRUE(SameFeedback(*expected, *backend->SweepHessianFeedback({}, w.view, h)));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, HessianFeedbackKernelsTest, ::testing::ValuesIn(AllCpuKernels()),
                         [](const auto& info) { return KernelsName(info.param); });

}  // namespace
}  // namespace nibble
