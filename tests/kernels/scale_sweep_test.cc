// Pruning is exact: the pruned searches against the exhaustive ones, block by block, in more than
// ten million searches each, losses compared as bits.
#include <cmath>
#include <cstdio>
#include <iterator>
#include <string>
#include <vector>

#include "engine/synthetic.h"
#include "gtest/gtest.h"
#include "tests/testing/backends.h"
#include "tests/testing/bytes.h"

namespace nibble {
namespace {

using ::nibble::testing::SameBytes;

constexpr Distribution kData[] = {Distribution::kNormal,    Distribution::kLaplace,
                                  Distribution::kStudentT5, Distribution::kUniform,
                                  Distribution::kOutliers,  Distribution::kOnGrid,
                                  Distribution::kSubnormal, Distribution::kConstant,
                                  Distribution::kOneHot,    Distribution::kZero};
constexpr DType kDTypes[] = {DType::kBf16, DType::kF16, DType::kF32};

constexpr float kRatios[] = {1.0f, 4.0f, 0.3f};  // of g to the data's amax
constexpr int kBounds[] = {448, 256};

// Calls body(distribution, name, x, params) for every kind of data, type, ratio and bound.
template <typename Body>
void ForEachCase(Backend& backend, int64_t rows, int64_t cols, const Body& body) {
  for (Distribution distribution : kData) {
    const std::vector<float> values = SyntheticValues(distribution, rows * cols, 11);
    for (DType dtype : kDTypes) {
      const std::vector<std::byte> bytes = ToBytes(values, dtype);
      const MatrixView x = {bytes.data(), dtype, rows, cols};
      const float amax = *backend.Amax(x);
      for (float ratio : kRatios) {
        for (int e4m3_max : kBounds) {
          ScaleSweepParams params = {SweepMethod::kPruned, e4m3_max, amax * ratio};
          const std::string name = std::string(NameOf(distribution)) + " " +
                                   std::string(DTypeName(dtype)) + " g=" + std::to_string(ratio) +
                                   "*amax, " + std::to_string(e4m3_max);
          body(distribution, name, x, params);
        }
      }
    }
  }
}

void ExpectSameWinners(const std::string& name, const absl::StatusOr<SweepResult>& exhaustive,
                       const absl::StatusOr<SweepResult>& pruned) {
  ASSERT_TRUE(exhaustive.ok()) << name << ": " << exhaustive.status();
  ASSERT_TRUE(pruned.ok()) << name << ": " << pruned.status();
  EXPECT_TRUE(SameBytes(exhaustive->code, pruned->code)) << name;
  EXPECT_TRUE(SameBytes(exhaustive->loss, pruned->loss)) << name;
  EXPECT_LE(pruned->evaluations, exhaustive->evaluations) << name;
}

// What ForEachCase has compared so far.
struct Comparison {
  int64_t searches = 0, evaluations = 0, near_ties = 0;
  int64_t near_ties_of[kEnumNames<Distribution>.size()] = {};

  // Sweep(params) searches the case's data.
  template <typename Sweep>
  void Compare(Distribution distribution, const std::string& name, ScaleSweepParams params,
               const Sweep& sweep) {
    const absl::StatusOr<SweepResult> pruned = sweep(params);
    params.method = SweepMethod::kExhaustive;
    const absl::StatusOr<SweepResult> exhaustive = sweep(params);
    ASSERT_NO_FATAL_FAILURE(ExpectSameWinners(name, exhaustive, pruned));
    searches += static_cast<int64_t>(pruned->code.size());
    evaluations += pruned->evaluations;
    near_ties += exhaustive->near_ties;
    near_ties_of[static_cast<size_t>(distribution)] += exhaustive->near_ties;
  }

  void Print() const {
    constexpr int64_t kPairs = std::size(kRatios) * std::size(kBounds);
    std::printf(
        "%lld blocks, each with %lld pairs of g and bound: %lld searches, %s different; %.2f "
        "evaluations per search; %lld near-ties:",
        static_cast<long long>(searches / kPairs), static_cast<long long>(kPairs),
        static_cast<long long>(searches), ::testing::Test::HasFailure() ? "some" : "none",
        static_cast<double>(evaluations) / searches, static_cast<long long>(near_ties));
    for (Distribution d : kData) {
      std::printf(" %s %lld", NameOf(d).data(),
                  static_cast<long long>(near_ties_of[static_cast<size_t>(d)]));
    }
    std::printf("\n");
  }

  // Ties must have been among every kind of data, or nobody has looked where pruning is delicate.
  void ExpectNearTies() const {
    for (Distribution d : kData) {
      EXPECT_GE(near_ties_of[static_cast<size_t>(d)], 100) << NameOf(d);
    }
  }
};

TEST(ScaleSweepTest, PrunedIsExhaustive) {
  const auto backend = MakeCpuBackend({});
  Comparison all;
  ForEachCase(*backend, 64, 14336,
              [&](Distribution distribution, const std::string& name, const MatrixView& x,
                  const ScaleSweepParams& params) {
                all.Compare(distribution, name, params,
                            [&](const ScaleSweepParams& p) { return backend->ScaleSweep(p, x); });
              });
  all.Print();
  all.ExpectNearTies();
  EXPECT_GE(all.searches, 10'000'000);
}

TEST(ScaleSweepTest, TenEvaluationsOnOrdinaryData) {
  const auto backend = MakeCpuBackend({});
  for (Distribution distribution :
       {Distribution::kNormal, Distribution::kLaplace, Distribution::kStudentT5}) {
    const std::vector<std::byte> bytes =
        ToBytes(SyntheticValues(distribution, 1 << 20, 5), DType::kBf16);
    const auto sweep = backend->ScaleSweep({}, {bytes.data(), DType::kBf16, 1024, 1024});
    const double per_block = static_cast<double>(sweep->evaluations) / (1 << 16);
    std::printf("%s: %.2f evaluations per block\n", NameOf(distribution).data(), per_block);
    EXPECT_GT(per_block, 8.0);
    EXPECT_LT(per_block, 11.0);
  }
}

// Second moments of activations: x_b x_b^T summed over tokens, for one kind of activation.
enum class Activations { kIid, kCorrelated, kChannelOutliers, kSingular };

std::vector<float> MakeHessians(Activations kind, int64_t slices) {
  const int tokens = kind == Activations::kSingular ? 6 : 64;
  const std::vector<float> noise =
      SyntheticValues(Distribution::kNormal, slices * tokens * kBlockSize, 21);
  const std::vector<float> spread = SyntheticValues(Distribution::kNormal, slices * kBlockSize, 22);
  std::vector<float> hessians(slices * 256);
  for (int64_t s = 0; s < slices; ++s) {
    double h[kBlockSize][kBlockSize] = {};
    for (int t = 0; t < tokens; ++t) {
      double x[kBlockSize];
      for (int i = 0; i < kBlockSize; ++i) {
        x[i] = noise[(s * tokens + t) * kBlockSize + i];
        if (kind == Activations::kCorrelated && i > 0) x[i] = 0.9 * x[i - 1] + 0.436 * x[i];
        if (kind == Activations::kChannelOutliers) {
          x[i] = (x[i] + 0.5) * std::exp(1.5 * spread[s * kBlockSize + i]);
        }
      }
      for (int i = 0; i < kBlockSize; ++i) {
        for (int j = 0; j < kBlockSize; ++j) h[i][j] += x[i] * x[j] / tokens;
      }
    }
    for (int i = 0; i < 256; ++i) hessians[s * 256 + i] = static_cast<float>(h[i / 16][i % 16]);
  }
  return hessians;
}

TEST(ScaleSweepHessianTest, PrunedIsExhaustive) {
  const auto backend = MakeCpuBackend({});
  const char* names[] = {"iid", "correlated", "channel outliers", "singular"};
  int64_t total = 0;
  for (Activations kind : {Activations::kIid, Activations::kCorrelated,
                           Activations::kChannelOutliers, Activations::kSingular}) {
    const std::vector<float> hessians = MakeHessians(kind, 64);
    Comparison all;
    ForEachCase(*backend, 224, 1024,
                [&](Distribution distribution, const std::string& name, const MatrixView& x,
                    const ScaleSweepParams& params) {
                  all.Compare(distribution, name, params, [&](const ScaleSweepParams& p) {
                    return backend->ScaleSweepHessian(p, x, hessians);
                  });
                });
    std::printf("%s activations: ", names[static_cast<int>(kind)]);
    all.Print();
    all.ExpectNearTies();
    total += all.searches;
  }
  EXPECT_GE(total, 10'000'000);
}

// Squares among the subnormal numbers, where a tie may hide in one rounding: each block alone, so
// that no neighbour makes the vectorized search look twice.
TEST(ScaleSweepTest, PrunedIsExhaustiveAmongSubnormalSquares) {
  const auto scalar = MakeScalarBackend({});
  const auto simd = MakeCpuBackend({});
  const auto expect_same = [&](const MatrixView& x, int e4m3_max, float g) {
    const auto expected = scalar->ScaleSweep({SweepMethod::kExhaustive, e4m3_max, g}, x);
    ExpectSameWinners("scalar", expected,
                      scalar->ScaleSweep({SweepMethod::kPruned, e4m3_max, g}, x));
    ExpectSameWinners("simd", expected, simd->ScaleSweep({SweepMethod::kPruned, e4m3_max, g}, x));
  };
  std::vector<float> known(kBlockSize, 0.0f);
  known[0] = 0x1.1ffp-65f;
  known[1] = 0x1.4fed54p-67f;
  expect_same({known.data(), DType::kF32, 1, kBlockSize}, 256, 7.80456178e-19f);
  const std::vector<float> values = SyntheticValues(Distribution::kNormal, 3000 * kBlockSize, 4);
  for (int64_t b = 0; b < 3000; ++b) {
    std::vector<float> block(kBlockSize, 0.0f);
    for (int i = 0; i <= b % 4; ++i) block[i] = values[b * kBlockSize + i] * 0x1p-64f;
    expect_same({block.data(), DType::kF32, 1, kBlockSize}, b % 2 ? 448 : 256,
                Abs(values[b * kBlockSize + 8]) * 0x1p-58f);
  }
}

// With H = identity the weighted loss is the plain one, up to the order of the sum.
TEST(ScaleSweepHessianTest, IdentityIsThePlainSweep) {
  const auto backend = MakeScalarBackend({});
  std::vector<float> identity(256, 0.0f);
  for (int i = 0; i < 16; ++i) identity[i * 17] = 1.0f;
  const std::vector<float> values = SyntheticValues(Distribution::kNormal, 16 * 4096, 2);
  const MatrixView x = {values.data(), DType::kF32, 4096, 16};
  const auto plain = backend->ScaleSweep({}, x);
  const auto weighted = backend->ScaleSweepHessian({}, x, identity);
  for (size_t b = 0; b < plain->code.size(); ++b) {
    EXPECT_NEAR(weighted->loss[b] / plain->loss[b], 1.0, 1e-6);
  }
}

TEST(ExpectSameWinnersTest, SeesDifferences) {
  const std::vector<float> values = SyntheticValues(Distribution::kNormal, 160, 2);
  const auto backend = MakeScalarBackend({});
  const auto result = backend->ScaleSweep({}, {values.data(), DType::kF32, 1, 160});
  SweepResult other = *result;
  other.code[3] ^= 1;
  EXPECT_FALSE(SameBytes(result->code, other.code));
  other = *result;
  other.loss[9] = std::nextafter(other.loss[9], 1.0f);
  EXPECT_FALSE(SameBytes(result->loss, other.loss));
}

}  // namespace
}  // namespace nibble
