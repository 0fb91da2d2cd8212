// Pruning is exact: the pruned searches against the exhaustive ones, block by block, on more than
// ten million blocks each, no block searched twice, losses compared as bits.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <iterator>
#include <mutex>
#include <string>
#include <vector>

#include "base/parallel_for.h"
#include "engine/synthetic.h"
#include "gtest/gtest.h"
#include "tests/testing/backends.h"
#include "tests/testing/bytes.h"
#include "tests/testing/hessians.h"
#include "tests/testing/params.h"
#include "tests/testing/sanitizers.h"

namespace nibble {
namespace {

using ::nibble::testing::Activations;
using ::nibble::testing::kInputDTypes;
using ::nibble::testing::kSanitized;
using ::nibble::testing::MakeHessians;
using ::nibble::testing::SameBytes;

constexpr Distribution kData[] = {Distribution::kNormal,    Distribution::kLaplace,
                                  Distribution::kStudentT5, Distribution::kUniform,
                                  Distribution::kOutliers,  Distribution::kOnGrid,
                                  Distribution::kSubnormal, Distribution::kConstant,
                                  Distribution::kOneHot,    Distribution::kZero};

constexpr float kRatios[] = {1.0f, 4.0f, 0.3f};  // of g to the data's amax
constexpr int kBounds[] = {448, 256};
constexpr int64_t kCases =
    std::size(kData) * std::size(kInputDTypes) * std::size(kRatios) * std::size(kBounds);
constexpr int64_t kBlocks = kSanitized ? 1'000'000 : 10'000'000;  // not of zeros alone

struct Case {
  Distribution distribution;
  DType dtype;
  float ratio;
  int e4m3_max;
  uint64_t seed;  // a case's own

  // Of [0, kCases); `set` makes the data different from that of other sets.
  static Case At(int64_t index, int64_t set) {
    Case c;
    c.seed = 1000 + set * kCases + index;
    c.distribution = kData[index % std::size(kData)];
    index /= std::size(kData);
    c.dtype = kInputDTypes[index % std::size(kInputDTypes)];
    index /= std::size(kInputDTypes);
    c.ratio = kRatios[index % std::size(kRatios)];
    c.e4m3_max = kBounds[index / std::size(kRatios)];
    return c;
  }

  std::string Name() const {
    return std::string(NameOf(distribution)) + " " + std::string(DTypeName(dtype)) +
           " g=" + std::to_string(ratio) + "*amax, " + std::to_string(e4m3_max);
  }
};

void ExpectSameWinners(const std::string& name, const absl::StatusOr<SweepResult>& exhaustive,
                       const absl::StatusOr<SweepResult>& pruned) {
  ASSERT_TRUE(exhaustive.ok()) << name << ": " << exhaustive.status();
  ASSERT_TRUE(pruned.ok()) << name << ": " << pruned.status();
  EXPECT_TRUE(SameBytes(exhaustive->code, pruned->code)) << name;
  EXPECT_TRUE(SameBytes(exhaustive->loss, pruned->loss)) << name;
  EXPECT_LE(pruned->evaluations, exhaustive->evaluations) << name;
}

int64_t BlocksNotZero(const MatrixView& x) {
  int64_t count = 0;
  for (int64_t i = 0; i < x.size(); i += kBlockSize) {
    float values[kBlockSize];
    LoadBlock(x, i, values);
    count += std::any_of(values, values + kBlockSize, [](float v) { return v != 0.0f; });
  }
  return count;
}

// What has been compared so far.
struct Comparison {
  int64_t blocks = 0, not_zero = 0, evaluations = 0, near_ties = 0;
  int64_t near_ties_of[kEnumNames<Distribution>.size()] = {};

  // Sweep(backend, params, x, case) searches a case's data, rows x cols of them; every case on one
  // thread, many at a time.
  template <typename Sweep>
  void CompareAll(int64_t set, int64_t rows, int64_t cols, const Sweep& sweep) {
    std::mutex mutex;
    ThreadPool().ParallelFor(kCases, 1, [&](int64_t index, int64_t) {
      const Case c = Case::At(index, set);
      const std::vector<std::byte> bytes =
          ToBytes(SyntheticValues(c.distribution, rows * cols, c.seed), c.dtype);
      const MatrixView x = {bytes.data(), c.dtype, rows, cols};
      const auto backend = MakeCpuBackend({.threads = 1});
      ScaleSweepParams params = {SweepMethod::kPruned, c.e4m3_max, *backend->Amax(x) * c.ratio};
      const absl::StatusOr<SweepResult> pruned = sweep(*backend, params, x, c);
      params.method = SweepMethod::kExhaustive;
      const absl::StatusOr<SweepResult> exhaustive = sweep(*backend, params, x, c);
      const int64_t blocks_not_zero = BlocksNotZero(x);
      std::lock_guard lock(mutex);
      ASSERT_NO_FATAL_FAILURE(ExpectSameWinners(c.Name(), exhaustive, pruned));
      blocks += static_cast<int64_t>(pruned->code.size());
      not_zero += blocks_not_zero;
      evaluations += pruned->evaluations;
      near_ties += exhaustive->near_ties;
      near_ties_of[static_cast<size_t>(c.distribution)] += exhaustive->near_ties;
    });
  }

  void Print() const {
    std::printf(
        "%lld blocks, %lld of them not zero, each searched once by either method, %s different; "
        "%.2f evaluations per block; %lld near-ties:",
        static_cast<long long>(blocks), static_cast<long long>(not_zero),
        ::testing::Test::HasFailure() ? "some" : "none", static_cast<double>(evaluations) / blocks,
        static_cast<long long>(near_ties));
    for (Distribution d : kData) {
      std::printf(" %s %lld", NameOf(d).data(),
                  static_cast<long long>(near_ties_of[static_cast<size_t>(d)]));
    }
    std::printf("\n");
    if (kSanitized) std::printf("a tenth of the blocks, as sanitizers are slow\n");
  }

  // Ties must have been among every kind of data, or nobody has looked where pruning is delicate.
  void ExpectNearTies() const {
    for (Distribution d : kData) {
      EXPECT_GE(near_ties_of[static_cast<size_t>(d)], kSanitized ? 1 : 100) << NameOf(d);
    }
  }
};

TEST(ScaleSweepTest, PrunedIsExhaustive) {
  Comparison all;
  all.CompareAll(0, kSanitized ? 8 : 72, 14336,
                 [](Backend& backend, const ScaleSweepParams& params, const MatrixView& x,
                    const Case&) { return backend.ScaleSweep(params, x); });
  all.Print();
  all.ExpectNearTies();
  EXPECT_GE(all.not_zero, kBlocks);
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

TEST(ScaleSweepHessianTest, PrunedIsExhaustive) {
  constexpr int64_t kRows = kSanitized ? 26 : 256, kSlices = 64;
  int64_t not_zero = 0;
  for (Activations kind : {Activations::kIid, Activations::kCorrelated,
                           Activations::kChannelOutliers, Activations::kSingular}) {
    Comparison all;
    all.CompareAll(1 + static_cast<int64_t>(kind), kRows, kSlices * kBlockSize,
                   [kind](Backend& backend, const ScaleSweepParams& params, const MatrixView& x,
                          const Case& c) {
                     return backend.ScaleSweepHessian(params, x,
                                                      MakeHessians(kind, kSlices, 2 * c.seed));
                   });
    std::printf("%s activations: ", NameOf(kind).data());
    all.Print();
    all.ExpectNearTies();
    not_zero += all.not_zero;
  }
  EXPECT_GE(not_zero, kBlocks);
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
