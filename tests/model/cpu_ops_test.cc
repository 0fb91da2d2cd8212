// Each operation against plain loops in double, at sizes around those of its pieces.
#include "model/cpu_ops.h"

#include <cmath>
#include <limits>
#include <map>
#include <string>
#include <vector>

#include "engine/synthetic.h"
#include "gtest/gtest.h"
#include "model/vector_exp.h"
#include "quant/numerics/float_bits.h"
#include "tests/testing/bytes.h"
#include "tests/testing/closeness.h"
#include "tests/testing/is_error.h"

namespace nibble {
namespace {

using ::nibble::testing::DifferencesBelow;
using ::nibble::testing::IsError;
using ::nibble::testing::SameBytes;

std::vector<float> Normal(int64_t count, uint64_t seed) {
  return SyntheticValues(Distribution::kNormal, count, seed);
}

// Operations with a pool of their own, and matrices in and out.
struct Ops {
  ThreadPool pool;
  std::unique_ptr<LayerOps> ops;

  explicit Ops(int threads = 2, DType linear_input = DType::kF32)
      : pool(threads), ops(MakeCpuOps(pool, linear_input)) {}
  LayerOps* operator->() { return ops.get(); }

  DeviceMatrix Matrix(int64_t rows, int64_t cols, Use use = Use::kOther) {
    return ops->Allocate(rows, cols, use).value();
  }
  DeviceMatrix Matrix(int64_t rows, int64_t cols, const std::vector<float>& values) {
    DeviceMatrix x = Matrix(rows, cols);
    EXPECT_TRUE(ops->Upload(values, x).ok());
    return x;
  }
  DeviceMatrix Weight(const std::vector<int64_t>& shape, const std::vector<float>& values,
                      DType dtype = DType::kF32) {
    const std::vector<std::byte> bytes = ToBytes(values, dtype);
    return ops->Place({dtype, shape, {bytes.begin(), bytes.end()}}).value();
  }
  std::vector<float> Values(const DeviceMatrix& x) {
    UninitializedVector<float> room;
    const std::span<const float> values = ops->Download(x, room).value();
    return {values.begin(), values.end()};
  }
};

float Rounded(float x, DType dtype) {
  if (dtype == DType::kBf16) return FloatFromBf16(Bf16FromFloat(x));
  if (dtype == DType::kF16) return FloatFromF16(F16FromFloat(x));
  return x;
}

TEST(CpuOpsTest, LinearIsTheProductOfStoredWeights) {
  const struct {
    int64_t rows, outputs, depth;
  } kShapes[] = {{1, 1, 1}, {3, 5, 7}, {513, 257, 33}, {1030, 300, 64}};
  for (const auto& [rows, outputs, depth] : kShapes) {
    for (const DType dtype : {DType::kF32, DType::kBf16, DType::kF16}) {
      SCOPED_TRACE(std::to_string(rows) + " " + std::string(DTypeName(dtype)));
      const std::vector<float> x = Normal(rows * depth, 1), w = Normal(outputs * depth, 2),
                               bias = Normal(outputs, 3);
      std::vector<float> expected(rows * outputs);
      for (int64_t i = 0; i < rows; ++i) {
        for (int64_t j = 0; j < outputs; ++j) {
          double sum = Rounded(bias[j], dtype);
          for (int64_t k = 0; k < depth; ++k) {
            sum += double{x[i * depth + k]} * Rounded(w[j * depth + k], dtype);
          }
          expected[i * outputs + j] = static_cast<float>(sum);
        }
      }
      Ops ops;
      const DeviceMatrix out = ops.Matrix(rows, outputs);
      ASSERT_TRUE(ops->Linear(ops.Matrix(rows, depth, x), ops.Weight({outputs, depth}, w, dtype),
                              ops.Weight({outputs}, bias, dtype), out)
                      .ok());
      EXPECT_TRUE(DifferencesBelow(1e-4, expected, ops.Values(out)));
      ASSERT_TRUE(
          ops->Linear(ops.Matrix(rows, depth, x), ops.Weight({outputs, depth}, w, dtype), {}, out)
              .ok());
      for (int64_t i = 0; i < rows * outputs; ++i) {
        expected[i] -= Rounded(bias[i % outputs], dtype);
      }
      EXPECT_TRUE(DifferencesBelow(1e-4, expected, ops.Values(out)));
    }
  }
}

TEST(CpuOpsTest, RmsNormDividesByTheRootOfTheMeanSquare) {
  constexpr int64_t kRows = 37, kCols = 1027;
  const std::vector<float> x = Normal(kRows * kCols, 4), weight = Normal(kCols, 5);
  constexpr double kEps = 1e-2;
  std::vector<float> expected(x.size());
  for (int64_t i = 0; i < kRows; ++i) {
    double squares = 0;
    for (int64_t j = 0; j < kCols; ++j) squares += double{x[i * kCols + j]} * x[i * kCols + j];
    const double factor = 1 / std::sqrt(squares / kCols + kEps);
    for (int64_t j = 0; j < kCols; ++j) {
      expected[i * kCols + j] = static_cast<float>(x[i * kCols + j] * factor * weight[j]);
    }
  }
  Ops ops(2, DType::kBf16);
  const DeviceMatrix in = ops.Matrix(kRows, kCols, x), out = ops.Matrix(kRows, kCols);
  const DeviceMatrix scale = ops.Weight({kCols}, weight);
  ASSERT_TRUE(ops->RmsNorm(in, scale, kEps, out).ok());
  EXPECT_TRUE(DifferencesBelow(1e-5, expected, ops.Values(out)));
  // What a linear layer reads is those values in bf16.
  std::vector<float> rounded = ops.Values(out);
  for (float& value : rounded) value = Rounded(value, DType::kBf16);
  const DeviceMatrix linear_input = ops.Matrix(kRows, kCols, Use::kLinearInput);
  ASSERT_TRUE(ops->RmsNorm(in, scale, kEps, linear_input).ok());
  EXPECT_TRUE(SameBytes(rounded, ops.Values(linear_input)));
  const std::vector<float> plain = ops.Values(out);
  ASSERT_TRUE(ops->RmsNorm(in, scale, kEps, in).ok());  // in place
  EXPECT_TRUE(SameBytes(plain, ops.Values(in)));
}

TEST(CpuOpsTest, RopeTurnsPairsOfEachHeadFromEachSequencesStart) {
  constexpr int64_t kHeads = 3, kDim = 6, kHalf = 3;
  const std::vector<int64_t> lengths = {4, 1, 70};
  const RopeTable table = MakeRopeTable({.theta = 100}, kDim, 70);
  const int64_t rows = 75;
  const std::vector<float> x = Normal(rows * kHeads * kDim, 6);
  std::vector<float> expected = x;
  int64_t row = 0;
  for (const int64_t length : lengths) {
    for (int64_t p = 0; p < length; ++p, ++row) {
      for (int64_t h = 0; h < kHeads; ++h) {
        for (int64_t i = 0; i < kHalf; ++i) {
          const int64_t at = (row * kHeads + h) * kDim + i;
          const double angle = static_cast<double>(p) * std::pow(100.0, -2.0 * i / kDim);
          expected[at] = x[at] * std::cos(angle) - x[at + kHalf] * std::sin(angle);
          expected[at + kHalf] = x[at + kHalf] * std::cos(angle) + x[at] * std::sin(angle);
        }
      }
    }
  }
  Ops ops;
  const DeviceMatrix turned = ops.Matrix(rows, kHeads * kDim, x);
  ASSERT_TRUE(ops->Rope(table, lengths, turned).ok());
  EXPECT_TRUE(DifferencesBelow(1e-4, expected, ops.Values(turned)));
}

TEST(CpuOpsTest, AttentionMixesWhatEachQuerySees) {
  const std::vector<int64_t> lengths = {130, 1, 65};
  constexpr int64_t kRows = 196, kHeads = 6, kKvHeads = 2, kDim = 10;
  const std::vector<float> q = Normal(kRows * kHeads * kDim, 7),
                           k = Normal(kRows * kKvHeads * kDim, 8),
                           v = Normal(kRows * kKvHeads * kDim, 9);
  for (const int64_t window : {0, 1, 40, 64, 1000}) {
    SCOPED_TRACE(window);
    std::vector<float> expected(q.size());
    int64_t begin = 0;
    for (const int64_t length : lengths) {
      for (int64_t p = 0; p < length; ++p) {
        for (int64_t h = 0; h < kHeads; ++h) {
          const int64_t kv = h / (kHeads / kKvHeads);
          std::vector<double> weights;
          double sum = 0;
          const int64_t first = window == 0 ? 0 : std::max<int64_t>(0, p - window + 1);
          for (int64_t key = first; key <= p; ++key) {
            double score = 0;
            for (int64_t i = 0; i < kDim; ++i) {
              score += double{q[((begin + p) * kHeads + h) * kDim + i]} *
                       k[((begin + key) * kKvHeads + kv) * kDim + i];
            }
            weights.push_back(std::exp(score / std::sqrt(double{kDim})));
            sum += weights.back();
          }
          for (int64_t i = 0; i < kDim; ++i) {
            double mixed = 0;
            for (int64_t key = first; key <= p; ++key) {
              mixed += weights[key - first] / sum * v[((begin + key) * kKvHeads + kv) * kDim + i];
            }
            expected[((begin + p) * kHeads + h) * kDim + i] = static_cast<float>(mixed);
          }
        }
      }
      begin += length;
    }
    Ops ops;
    const DeviceMatrix out = ops.Matrix(kRows, kHeads * kDim);
    ASSERT_TRUE(ops->Attention({kHeads, kKvHeads, kDim, window}, lengths,
                               ops.Matrix(kRows, kHeads * kDim, q),
                               ops.Matrix(kRows, kKvHeads * kDim, k),
                               ops.Matrix(kRows, kKvHeads * kDim, v), out)
                    .ok());
    EXPECT_TRUE(DifferencesBelow(1e-5, expected, ops.Values(out)));
  }
}

TEST(VectorExpTest, IsExp) {
  for (int i = -87000; i <= 87000; ++i) {
    const float x = static_cast<float>(i) / 1000;
    const double expected = std::exp(double{x});
    ASSERT_NEAR(VectorExp(x) / expected, 1, 2.4e-7) << x;
  }
  EXPECT_EQ(VectorExp(0), 1);
  EXPECT_EQ(VectorExp(-1000), VectorExp(-87));
  EXPECT_EQ(VectorExp(1e30f), VectorExp(87));
  for (const float x :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
        -std::numeric_limits<float>::infinity()}) {
    EXPECT_TRUE(std::isnan(VectorExp(x))) << x;
  }
}

TEST(CpuOpsTest, SwiGluAddGatherAndScatter) {
  Ops ops;
  const DeviceMatrix gate = ops.Matrix(1, 3, {-1, 0, 200}), up = ops.Matrix(1, 3, {2, 3, 4});
  ASSERT_TRUE(ops->SwiGlu(gate, up, gate).ok());
  EXPECT_TRUE(DifferencesBelow(
      1e-6, std::vector<float>{static_cast<float>(-2 / (1 + std::exp(1.0))), 0, 800},
      ops.Values(gate)));
  ASSERT_TRUE(ops->Add(up, up).ok());
  EXPECT_EQ(ops.Values(up), (std::vector<float>{4, 6, 8}));

  const DeviceMatrix x = ops.Matrix(3, 2, {1, 2, 3, 4, 5, 6}), picked = ops.Matrix(2, 2);
  const std::vector<int64_t> rows = {2, 0};
  ASSERT_TRUE(ops->Gather(x, rows, picked).ok());
  EXPECT_EQ(ops.Values(picked), (std::vector<float>{5, 6, 1, 2}));
  const DeviceMatrix sums = ops.Matrix(3, 2);
  ASSERT_TRUE(ops->SetZero(sums).ok());
  const std::vector<float> weights = {0.5f, 2};
  ASSERT_TRUE(ops->AddScaledRows(picked, rows, weights, sums).ok());
  ASSERT_TRUE(ops->AddScaledRows(picked, rows, weights, sums).ok());
  EXPECT_EQ(ops.Values(sums), (std::vector<float>{4, 8, 0, 0, 5, 6}));
  const std::vector<int64_t> repeated = {1, 1};
  ASSERT_TRUE(ops->AddScaledRows(picked, repeated, weights, sums).ok());
  EXPECT_EQ(ops.Values(sums), (std::vector<float>{4, 8, 4.5f, 7, 5, 6}));
}

TEST(CpuOpsTest, RouteTakesTheMostLikelyAndOfEqualOnesTheFirst) {
  Ops ops;
  const DeviceMatrix logits = ops.Matrix(2, 4, {0, 2, 1, 2, 5, 5, 5, 5});
  const Routing plain = ops->Route(logits, 2, false).value();
  EXPECT_EQ(plain.expert, (std::vector<int32_t>{1, 3, 0, 1}));
  const double sum = 1 + 2 * std::exp(2.0) + std::exp(1.0);
  EXPECT_NEAR(plain.weight[0], std::exp(2.0) / sum, 1e-6);
  EXPECT_NEAR(plain.weight[2], 0.25, 1e-6);
  const Routing normalized = ops->Route(logits, 2, true).value();
  EXPECT_EQ(normalized.expert, plain.expert);
  for (const float weight : normalized.weight) EXPECT_NEAR(weight, 0.5, 1e-6);
  for (const float bad :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    EXPECT_TRUE(IsError(ops->Route(ops.Matrix(1, 2, {0, bad}), 1, true),
                        absl::StatusCode::kFailedPrecondition, "expert 1"));
  }
}

TEST(CpuOpsTest, TheNumberOfThreadsChangesNoByte) {
  const std::vector<int64_t> lengths = {700, 333};
  constexpr int64_t kRows = 1033, kWidth = 128;
  const std::vector<float> x = Normal(kRows * kWidth, 10), w = Normal(600 * kWidth, 11);
  std::vector<float> first;
  for (const int threads : {1, 2, 3, 8}) {
    Ops ops(threads);
    const DeviceMatrix in = ops.Matrix(kRows, kWidth, x), wide = ops.Matrix(kRows, 600),
                       mixed = ops.Matrix(kRows, kWidth);
    ASSERT_TRUE(ops->RmsNorm(in, ops.Weight({kWidth}, Normal(kWidth, 12)), 1e-6, in).ok());
    ASSERT_TRUE(ops->Attention({4, 4, 32, 0}, lengths, in, in, in, mixed).ok());
    ASSERT_TRUE(ops->Linear(mixed, ops.Weight({600, kWidth}, w, DType::kBf16), {}, wide).ok());
    const std::vector<float> values = ops.Values(wide);
    if (first.empty()) first = values;
    EXPECT_TRUE(SameBytes(first, values)) << threads;
  }
}

}  // namespace
}  // namespace nibble
