// Every instruction set, thread count and chunking against the scalar reference, byte for byte.
#include <cmath>
#include <string>
#include <vector>

#include "engine/synthetic.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/backends.h"
#include "tests/testing/bytes.h"
#include "tests/testing/params.h"
#include "tests/testing/random_bits.h"
#include "tests/testing/results.h"
#include "tests/testing/test_matrix.h"

namespace nibble {
namespace {

using ::nibble::testing::AllParams;
using ::nibble::testing::Describe;
using ::nibble::testing::KernelsName;
using ::nibble::testing::kInputDTypes;
using ::nibble::testing::RandomBits;
using ::nibble::testing::SameBytes;
using ::nibble::testing::SamePacked;
using ::nibble::testing::SameSweep;
using ::nibble::testing::TestMatrix;

class ConformanceTest : public ::testing::TestWithParam<const CpuKernels*> {
 protected:
  std::unique_ptr<Backend> scalar_ = MakeScalarBackend({});
  std::unique_ptr<Backend> simd_ = MakeCpuBackendWith(*GetParam(), {});

  void ExpectSame(const QuantizeParams& params, const MatrixView& x) {
    SCOPED_TRACE(Describe(params, x));
    const auto expected = scalar_->Quantize(params, x);
    const auto actual = simd_->Quantize(params, x);
    ASSERT_EQ(expected.ok(), actual.ok()) << expected.status() << " against " << actual.status();
    if (!expected.ok()) {
      EXPECT_EQ(expected.status(), actual.status());
      return;
    }
    EXPECT_TRUE(SamePacked(*expected, *actual));
  }

  void ExpectSameSweep(const absl::StatusOr<SweepResult>& expected,
                       const absl::StatusOr<SweepResult>& actual) {
    ASSERT_TRUE(expected.ok()) << expected.status();
    ASSERT_TRUE(actual.ok()) << actual.status();
    EXPECT_TRUE(SameSweep(*expected, *actual));
    EXPECT_EQ(expected->evaluations, actual->evaluations);
    EXPECT_EQ(expected->near_ties, actual->near_ties);
  }
};

TEST_P(ConformanceTest, QuantizeEveryDistribution) {
  for (size_t d = 0; d < kEnumNames<Distribution>.size(); ++d) {
    SCOPED_TRACE(kEnumNames<Distribution>[d]);
    for (DType dtype : kInputDTypes) {
      const TestMatrix x(static_cast<Distribution>(d), dtype, 32, 208, d + 1);
      for (const QuantizeParams& params : AllParams()) ExpectSame(params, x.view);
    }
  }
}

TEST_P(ConformanceTest, QuantizeEveryShape) {
  const std::pair<int64_t, int64_t> shapes[] = {{0, 16},  {1, 16},  {1, 4096}, {3, 48},
                                                {16, 16}, {17, 80}, {48, 144}, {160, 32}};
  for (const auto& [rows, cols] : shapes) {
    const TestMatrix x(Distribution::kOutliers, DType::kBf16, rows, cols);
    for (QuantizeParams params : AllParams()) {
      for (bool columnwise : {false, true}) {
        for (Rht rht : {Rht::kNone, Rht::kSigns, Rht::kNoSigns}) {
          params.columnwise = columnwise;
          params.rht = rht;
          params.swizzle = rht == Rht::kSigns;
          ExpectSame(params, x.view);
        }
      }
    }
  }
}

TEST_P(ConformanceTest, GlobalAmaxOfTheCallers) {
  for (float g : {0.0f, 1e-42f, 1e-20f, 0.5f, 3e38f}) {
    for (DType dtype : kInputDTypes) {
      const TestMatrix x(Distribution::kNormal, dtype, 16, 160);
      for (QuantizeParams params : AllParams()) {
        if (params.scheme == Scheme::kPerToken) continue;
        params.global_amax = g;
        ExpectSame(params, x.view);
      }
    }
  }
}

TEST_P(ConformanceTest, UnalignedData) {
  const TestMatrix aligned(Distribution::kNormal, DType::kBf16, 8, 96);
  std::vector<std::byte> shifted(aligned.bytes.size() + 2);
  std::copy(aligned.bytes.begin(), aligned.bytes.end(), shifted.begin() + 2);
  MatrixView x = aligned.view;
  x.data = shifted.data() + 2;
  ExpectSame({}, x);
  EXPECT_TRUE(SamePacked(*simd_->Quantize({}, aligned.view), *simd_->Quantize({}, x)));
}

TEST_P(ConformanceTest, SweepsEveryDistribution) {
  for (size_t d = 0; d < kEnumNames<Distribution>.size(); ++d) {
    SCOPED_TRACE(kEnumNames<Distribution>[d]);
    for (DType dtype : kInputDTypes) {
      const TestMatrix x(static_cast<Distribution>(d), dtype, 5, 208, d + 1);
      for (int e4m3_max : {448, 256}) {
        for (SweepMethod method : {SweepMethod::kExhaustive, SweepMethod::kPruned}) {
          const ScaleSweepParams params = {method, e4m3_max, std::nullopt};
          ExpectSameSweep(scalar_->ScaleSweep(params, x.view), simd_->ScaleSweep(params, x.view));
        }
        MultiplierSearchParams multipliers;
        multipliers.e4m3_max = e4m3_max;
        ExpectSameSweep(scalar_->MultiplierSearch(multipliers, x.view),
                        simd_->MultiplierSearch(multipliers, x.view));
      }
    }
  }
}

TEST_P(ConformanceTest, SweepsUnderEveryGlobalAmax) {
  for (float g : {0.0f, 1e-45f, 1e-39f, 1e-30f, 1e-3f, 1.0f, 100.0f, 1e30f, 3.4e38f}) {
    SCOPED_TRACE(g);
    for (Distribution d : {Distribution::kNormal, Distribution::kSubnormal}) {
      std::vector<float> values = SyntheticValues(d, 40 * 16, 5);
      for (size_t i = 0; i < 64; ++i) values[i] *= 1e20f;  // squares overflow
      for (size_t i = 64; i < 128; ++i) values[i] *= 8e37f;
      const MatrixView x = {values.data(), DType::kF32, 1, 40 * 16};
      for (int e4m3_max : {448, 256}) {
        for (SweepMethod method : {SweepMethod::kExhaustive, SweepMethod::kPruned}) {
          const ScaleSweepParams params = {method, e4m3_max, g};
          ExpectSameSweep(scalar_->ScaleSweep(params, x), simd_->ScaleSweep(params, x));
        }
        const MultiplierSearchParams multipliers = {{}, e4m3_max, g};
        ExpectSameSweep(scalar_->MultiplierSearch(multipliers, x),
                        simd_->MultiplierSearch(multipliers, x));
      }
    }
  }
}

TEST_P(ConformanceTest, HessianSweeps) {
  for (Distribution d : {Distribution::kNormal, Distribution::kOutliers, Distribution::kOneHot,
                         Distribution::kZero, Distribution::kSubnormal}) {
    for (int tokens : {4, 64}) {  // singular and not
      SCOPED_TRACE(std::string(NameOf(d)) + " " + std::to_string(tokens));
      const TestMatrix x(d, DType::kBf16, 21, 48);
      const std::vector<float> a = SyntheticValues(Distribution::kNormal, 3 * 16 * tokens, 3);
      std::vector<float> h(3 * 256, 0.0f);
      for (int s = 0; s < 3; ++s) {
        for (int i = 0; i < 256; ++i) {
          double sum = 0;
          for (int t = 0; t < tokens; ++t) {
            const float* channel = &a[(s * tokens + t) * 16];
            sum += double{channel[i / 16]} * channel[i % 16];
          }
          h[s * 256 + i] = static_cast<float>(sum / tokens);
        }
      }
      for (SweepMethod method : {SweepMethod::kExhaustive, SweepMethod::kPruned}) {
        const ScaleSweepParams params = {method, 448, std::nullopt};
        ExpectSameSweep(scalar_->ScaleSweepHessian(params, x.view, h),
                        simd_->ScaleSweepHessian(params, x.view, h));
      }
    }
  }
}

// One block at a time, in every lane, so that a lane's flag shows in the count.
TEST_P(ConformanceTest, NearTiesBlockByBlock) {
  constexpr int64_t kCopies = 16;
  const auto exhaustive = [](float g) {
    return ScaleSweepParams{SweepMethod::kExhaustive, 448, g};
  };
  // All but the last channel weigh so little that candidates which agree in that one (q = 3 under
  // twice the scale of q = 6) differ by some 1e-6: their partial sums, which begin with it, end
  // before, within and after a near-tie's reach.
  std::vector<float> h(256, 0.0f);
  for (int i = 0; i < 16; ++i) h[i * 17] = i == 15 ? 1.0f : 3e-8f;
  int64_t near_ties[2] = {}, blocks = 0;
  for (Distribution d : {Distribution::kNormal, Distribution::kOnGrid, Distribution::kUniform}) {
    const std::vector<float> values = SyntheticValues(d, 300 * 16, 6);
    for (int64_t b = 0; b < 300; ++b, ++blocks) {
      SCOPED_TRACE(std::string(NameOf(d)) + " " + std::to_string(b));
      std::vector<float> copies;
      for (int64_t i = 0; i < kCopies; ++i) {
        copies.insert(copies.end(), &values[b * 16], &values[b * 16] + 16);
      }
      const MatrixView one = {copies.data(), DType::kF32, 1, 16};
      const MatrixView many = {copies.data(), DType::kF32, kCopies, 16};
      const float g = 3.0f + 0.01f * static_cast<float>(b);
      const int64_t plain = scalar_->ScaleSweep(exhaustive(g), one)->near_ties;
      const int64_t weighted = scalar_->ScaleSweepHessian(exhaustive(g), one, h)->near_ties;
      EXPECT_EQ(simd_->ScaleSweep(exhaustive(g), many)->near_ties, kCopies * plain);
      EXPECT_EQ(simd_->ScaleSweepHessian(exhaustive(g), many, h)->near_ties, kCopies * weighted);
      near_ties[0] += plain;
      near_ties[1] += weighted;
    }
  }
  for (int64_t count : near_ties) {
    EXPECT_GT(count, 0);
    EXPECT_LT(count, blocks);
  }
  // Counted by the exhaustive method only, even where the pruned one must search exhaustively:
  // under g = 0 all candidates are alike.
  const std::vector<float> ones(16, 1.0f);
  const MatrixView x = {ones.data(), DType::kF32, 1, 16};
  const ScaleSweepParams pruned = {SweepMethod::kPruned, 448, 0.0f};
  for (Backend* backend : {scalar_.get(), simd_.get()}) {
    EXPECT_EQ(backend->ScaleSweep(exhaustive(0.0f), x)->near_ties, 1);
    EXPECT_EQ(backend->ScaleSweep(pruned, x)->near_ties, 0);
    EXPECT_EQ(backend->ScaleSweepHessian(exhaustive(0.0f), x, h)->near_ties, 1);
    EXPECT_EQ(backend->ScaleSweepHessian(pruned, x, h)->near_ties, 0);
  }
}

TEST_P(ConformanceTest, AccumulatedHessians) {
  for (size_t d = 0; d < kEnumNames<Distribution>.size(); ++d) {
    for (DType dtype : kInputDTypes) {
      SCOPED_TRACE(std::string(kEnumNames<Distribution>[d]) + " " + std::string(DTypeName(dtype)));
      const TestMatrix x(static_cast<Distribution>(d), dtype, 333, 80, d + 1);
      std::vector<float> expected(5 * 256, 0.25f), actual = expected;
      ASSERT_TRUE(scalar_->AccumulateHessian(x.view, expected).ok());
      ASSERT_TRUE(simd_->AccumulateHessian(x.view, actual).ok());
      EXPECT_TRUE(SameBytes(expected, actual));
    }
  }
}

TEST_P(ConformanceTest, Observations) {
  for (DType dtype : kInputDTypes) {
    const std::vector<std::byte> bits = RandomBits(70 * 1040 * DTypeBytes(dtype), 1);
    const MatrixView x = {bits.data(), dtype, 70, 1040};
    EXPECT_EQ(*scalar_->Observe({true, true, true, true}, x),
              *simd_->Observe({true, true, true, true}, x));
  }
}

TEST_P(ConformanceTest, ThreadsChangeNothing) {
  // Large enough for several pieces of work.
  const TestMatrix x(Distribution::kOutliers, DType::kBf16, 272, 4096);
  const std::vector<float> identity = [] {
    std::vector<float> h(256 * 256, 0.0f);
    for (int s = 0; s < 256; ++s) {
      for (int i = 0; i < 16; ++i) h[s * 256 + i * 17] = 1.0f;
    }
    return h;
  }();
  const auto one = MakeCpuBackendWith(*GetParam(), {.threads = 1});
  for (int threads : {2, 3, 8}) {
    const auto many = MakeCpuBackendWith(*GetParam(), {.threads = threads});
    QuantizeParams params;
    params.stochastic = StochasticRounding{};
    for (Scheme scheme : {Scheme::kPerTensor, Scheme::kPerToken, Scheme::kTile2d}) {
      params.scheme = scheme;
      for (bool columnwise : {false, true}) {
        params.columnwise = columnwise;
        EXPECT_TRUE(SamePacked(*one->Quantize(params, x.view), *many->Quantize(params, x.view)));
      }
    }
    ExpectSameSweep(one->ScaleSweep({}, x.view), many->ScaleSweep({}, x.view));
    ExpectSameSweep(one->MultiplierSearch({}, x.view), many->MultiplierSearch({}, x.view));
    ExpectSameSweep(one->ScaleSweepHessian({}, x.view, identity),
                    many->ScaleSweepHessian({}, x.view, identity));
    std::vector<float> h1(256 * 256, 0.5f), h2 = h1;
    ASSERT_TRUE(one->AccumulateHessian(x.view, h1).ok());
    ASSERT_TRUE(many->AccumulateHessian(x.view, h2).ok());
    EXPECT_TRUE(SameBytes(h1, h2));
    const ObserveParams everything = {true, true, true, true};
    EXPECT_EQ(*one->Observe(everything, x.view), *many->Observe(everything, x.view));
    const PackedTensor packed = *one->Quantize({}, x.view);
    std::vector<float> a(x.view.size()), b(x.view.size());
    ASSERT_TRUE(one->Dequantize(packed.view(), DType::kF32, a.data()).ok());
    ASSERT_TRUE(many->Dequantize(packed.view(), DType::kF32, b.data()).ok());
    EXPECT_TRUE(SameBytes(a, b));
    const ErrorStats e1 = *one->MeasureError(x.view, packed.view());
    const ErrorStats e2 = *many->MeasureError(x.view, packed.view());
    EXPECT_EQ(e1.mse(), e2.mse());
    EXPECT_EQ(e1.cosine(), e2.cosine());
    EXPECT_EQ(e1.max_error(), e2.max_error());
  }
}

// Rows quantized apart, under one global amax, are the rows of the whole.
TEST_P(ConformanceTest, ChunksAreThePartsOfTheWhole) {
  const TestMatrix x(Distribution::kLaplace, DType::kF16, 64, 80);
  const float amax = *simd_->Amax(x.view);
  for (QuantizeParams params : AllParams()) {
    if (params.stochastic) continue;  // an element's bits depend on its index
    const PackedTensor whole = *simd_->Quantize(params, x.view);
    if (params.scheme != Scheme::kPerToken) params.global_amax = amax;
    for (int64_t rows : {16, 32}) {
      MatrixView part = x.view;
      part.rows = rows;
      for (int64_t first = 0; first < x.view.rows; first += rows) {
        part.data = x.bytes.data() + first * x.view.cols * 2;
        const PackedTensor piece = *simd_->Quantize(params, part);
        const auto begin = whole.packed.begin() + first * x.view.cols / 2;
        EXPECT_TRUE(std::equal(piece.packed.begin(), piece.packed.end(), begin));
        EXPECT_TRUE(std::equal(piece.scale.begin(), piece.scale.end(),
                               whole.scale.begin() + first * x.view.cols / 16));
      }
    }
  }
}

TEST_P(ConformanceTest, AmaxAndNonFiniteValues) {
  for (DType dtype : kInputDTypes) {
    TestMatrix x(Distribution::kNormal, dtype, 3, 1040);
    EXPECT_EQ(*scalar_->Amax(x.view), *simd_->Amax(x.view));
    for (float bad : {NAN, INFINITY, -INFINITY}) {
      for (int64_t at : {int64_t{0}, int64_t{1041}, x.view.size() - 1}) {
        TestMatrix broken = x;
        broken.view.data = broken.bytes.data();
        const std::vector<float> value = {bad};
        const std::vector<std::byte> bytes = ToBytes(value, dtype);
        std::copy(bytes.begin(), bytes.end(), broken.bytes.begin() + at * DTypeBytes(dtype));
        const absl::Status status = simd_->Quantize({}, broken.view).status();
        EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
        EXPECT_EQ(status, scalar_->Quantize({}, broken.view).status());
        EXPECT_THAT(std::string(status.message()),
                    ::testing::HasSubstr("got 1 NaN or infinite, the first at row " +
                                         std::to_string(at / 1040) + ", column " +
                                         std::to_string(at % 1040)));
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Simd, ConformanceTest, ::testing::ValuesIn(AllSimdKernels()),
                         [](const auto& info) { return KernelsName(info.param); });

TEST(SameSweepTest, SeesDifferences) {
  const TestMatrix x(Distribution::kNormal, DType::kBf16, 16, 32);
  const auto backend = MakeScalarBackend({});
  const SweepResult a = *backend->ScaleSweep({}, x.view);
  EXPECT_TRUE(SameSweep(a, a));
  SweepResult b = a;
  b.code[17] ^= 1;
  EXPECT_FALSE(SameSweep(a, b));
  b = a;
  b.loss[3] = std::nextafter(b.loss[3], 0.0f);
  EXPECT_FALSE(SameSweep(a, b));
  b = a;
  b.best_amax[0] = std::nextafter(b.best_amax[0], 0.0f);
  EXPECT_FALSE(SameSweep(a, b));
}

TEST(SamePackedTest, SeesDifferences) {
  const TestMatrix x(Distribution::kNormal, DType::kBf16, 16, 32);
  const auto backend = MakeScalarBackend({});
  const PackedTensor a = *backend->Quantize({}, x.view);
  EXPECT_TRUE(SamePacked(a, a));
  PackedTensor b = a;
  b.packed[17] ^= 1;
  EXPECT_FALSE(SamePacked(a, b));
  b = a;
  b.scale[3] ^= 1;
  EXPECT_FALSE(SamePacked(a, b));
  b = a;
  b.amax[0] = std::nextafter(b.amax[0], 0.0f);
  EXPECT_FALSE(SamePacked(a, b));
  b = a;
  b.layout.rule = Rule::kCheckpoint;
  EXPECT_FALSE(SamePacked(a, b));
}

}  // namespace
}  // namespace nibble
