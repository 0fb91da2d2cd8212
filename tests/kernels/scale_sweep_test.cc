// Pruning is exact: the pruned searches against the exhaustive ones, block by block, on more than
// ten million blocks each, losses compared as bits.
#include <cmath>
#include <cstdio>
#include <mutex>
#include <string>
#include <vector>

#include "base/parallel_for.h"
#include "engine/synthetic.h"
#include "gtest/gtest.h"
#include "tests/testing/backends.h"
#include "tests/testing/bytes.h"
#include "tests/testing/hessians.h"

namespace nibble {
namespace {

using ::nibble::testing::Activations;
using ::nibble::testing::MakeHessians;
using ::nibble::testing::SameBytes;

constexpr Distribution kData[] = {Distribution::kNormal,    Distribution::kLaplace,
                                  Distribution::kStudentT5, Distribution::kUniform,
                                  Distribution::kOutliers,  Distribution::kOnGrid,
                                  Distribution::kSubnormal, Distribution::kConstant,
                                  Distribution::kOneHot,    Distribution::kZero};
constexpr DType kDTypes[] = {DType::kBf16, DType::kF16, DType::kF32};

// Calls body(name, x, params) for every kind of data, type, ratio of g to the data's amax and
// bound.
template <typename Body>
int64_t ForEachCase(Backend& backend, int64_t rows, int64_t cols, const Body& body) {
  int64_t blocks = 0;
  for (Distribution distribution : kData) {
    const std::vector<float> values = SyntheticValues(distribution, rows * cols, 11);
    for (DType dtype : kDTypes) {
      const std::vector<std::byte> bytes = ToBytes(values, dtype);
      const MatrixView x = {bytes.data(), dtype, rows, cols};
      const float amax = *backend.Amax(x);
      for (float ratio : {1.0f, 4.0f, 0.3f}) {
        for (int e4m3_max : {448, 256}) {
          ScaleSweepParams params = {SweepMethod::kPruned, e4m3_max, amax * ratio};
          const std::string name = std::string(NameOf(distribution)) + " " +
                                   std::string(DTypeName(dtype)) + " g=" + std::to_string(ratio) +
                                   "*amax, " + std::to_string(e4m3_max);
          body(name, x, params);
          blocks += x.size() / kBlockSize;
        }
      }
    }
  }
  return blocks;
}

void ExpectSameWinners(const std::string& name, const absl::StatusOr<SweepResult>& exhaustive,
                       const absl::StatusOr<SweepResult>& pruned) {
  ASSERT_TRUE(exhaustive.ok()) << name << ": " << exhaustive.status();
  ASSERT_TRUE(pruned.ok()) << name << ": " << pruned.status();
  EXPECT_TRUE(SameBytes(exhaustive->code, pruned->code)) << name;
  EXPECT_TRUE(SameBytes(exhaustive->loss, pruned->loss)) << name;
  EXPECT_LE(pruned->evaluations, exhaustive->evaluations) << name;
}

// Blocks whose runner-up's loss is within 1e-6 of the best, relatively: those where pruning could
// differ if it were exact only up to rounding.
int64_t CountNearTies(const MatrixView& x, const SweepTable& table, int64_t every) {
  static ThreadPool pool;
  std::atomic<int64_t> near{0};
  pool.ParallelFor(x.size() / kBlockSize / every, 64, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      float a[kBlockSize];
      LoadBlock(x, i * every * kBlockSize, a);
      for (float& v : a) v = Abs(v);
      float best = INFINITY, second = INFINITY;
      for (int k = 1; k <= kE4m3Codes; ++k) {
        const float loss = SweepLoss(a, table.decode_scale[k]);
        second = Min(second, Max(best, loss));
        best = Min(best, loss);
      }
      near += second <= best * (1 + 1e-6f);
    }
  });
  return near;
}

TEST(ScaleSweepTest, PrunedIsExhaustive) {
  const auto backend = MakeCpuBackend({});
  constexpr int64_t kSample = 64;
  int64_t near_ties = 0, evaluations = 0;
  const int64_t blocks = ForEachCase(
      *backend, 64, 14336,
      [&](const std::string& name, const MatrixView& x, ScaleSweepParams params) {
        const auto pruned = backend->ScaleSweep(params, x);
        params.method = SweepMethod::kExhaustive;
        ExpectSameWinners(name, backend->ScaleSweep(params, x), pruned);
        evaluations += pruned->evaluations;
        const float bound = static_cast<float>(params.e4m3_max);
        near_ties += CountNearTies(x, MakeSweepTable(*params.global_amax, bound), kSample);
      });
  EXPECT_GE(blocks, 10'000'000);
  std::printf(
      "%lld blocks, none different; %.2f evaluations per block; near-ties in a sample of "
      "every %lldth block: %lld\n",
      static_cast<long long>(blocks), static_cast<double>(evaluations) / blocks,
      static_cast<long long>(kSample), static_cast<long long>(near_ties));
  // Ties must have been among them, or this test has not looked where pruning is delicate.
  EXPECT_GT(near_ties, 1000);
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
  const auto backend = MakeCpuBackend({});
  int64_t total = 0;
  for (Activations kind : {Activations::kIid, Activations::kCorrelated,
                           Activations::kChannelOutliers, Activations::kSingular}) {
    const std::vector<float> hessians = MakeHessians(kind, 64);
    int64_t evaluations = 0;
    const int64_t blocks = ForEachCase(
        *backend, 224, 1024,
        [&](const std::string& name, const MatrixView& x, ScaleSweepParams params) {
          const auto pruned = backend->ScaleSweepHessian(params, x, hessians);
          params.method = SweepMethod::kExhaustive;
          ExpectSameWinners(name, backend->ScaleSweepHessian(params, x, hessians), pruned);
          evaluations += pruned->evaluations;
        });
    std::printf("%s activations: %lld blocks, none different; %.2f evaluations per block\n",
                NameOf(kind).data(), static_cast<long long>(blocks),
                static_cast<double>(evaluations) / blocks);
    total += blocks;
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
