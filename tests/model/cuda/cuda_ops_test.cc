// Every operation of a GPU's layers against the CPU's, and what only a GPU can do wrong.
//
// Bounds: e = 2^-24 is half a unit in the last place of float32. Both sides' sums of n terms are
// within n e of the exact one, relative to the sum of magnitudes.
#include "model/cuda/cuda_ops.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "engine/synthetic.h"
#include "gtest/gtest.h"
#include "model/cpu_ops.h"
#include "quant/numerics/float_bits.h"
#include "tests/testing/bytes.h"
#include "tests/testing/closeness.h"
#include "tests/testing/cuda.h"
#include "tests/testing/is_error.h"

namespace nibble {
namespace {

using ::nibble::testing::CudaTest;
using ::nibble::testing::IsError;
using ::nibble::testing::RelativeErrorBelow;
using ::nibble::testing::SameBytes;

constexpr double kE = 1.0 / (1 << 24);
constexpr double kBf16Unit = 1.0 / 128;  // at most, of a value

std::vector<float> Normal(int64_t count, uint64_t seed, float scale = 1) {
  std::vector<float> values = SyntheticValues(Distribution::kNormal, count, seed);
  for (float& value : values) value *= scale;
  return values;
}

float Rounded(float x) { return FloatFromBf16(Bf16FromFloat(x)); }

// |a[i] - b[i]| <= bound(i)
template <typename Bound>
::testing::AssertionResult Within(const std::vector<float>& a, const std::vector<float>& b,
                                  const Bound& bound) {
  if (a.empty() || a.size() != b.size()) {
    return ::testing::AssertionFailure() << a.size() << " and " << b.size() << " values";
  }
  for (size_t i = 0; i < a.size(); ++i) {
    const double difference = std::abs(double{a[i]} - b[i]);
    if (difference <= bound(i)) continue;  // NaN is not
    return ::testing::AssertionFailure()
           << "value " << i << ": " << a[i] << " and " << b[i] << ", bound " << bound(i);
  }
  return ::testing::AssertionSuccess();
}

::testing::AssertionResult RelativelyWithin(const std::vector<float>& a,
                                            const std::vector<float>& b, double bound) {
  return Within(a, b, [&](size_t i) { return bound * std::abs(a[i]); });
}

// One device's operations, with matrices in and out.
struct Ops {
  std::unique_ptr<LayerOps> ops;

  LayerOps* operator->() const { return ops.get(); }

  DeviceMatrix Matrix(int64_t rows, int64_t cols, Use use = Use::kOther) const {
    return ops->Allocate(rows, cols, use).value();
  }
  DeviceMatrix Matrix(int64_t rows, int64_t cols, const std::vector<float>& values) const {
    const DeviceMatrix x = Matrix(rows, cols);
    EXPECT_TRUE(ops->Upload(values, x).ok());
    return x;
  }
  // As a linear layer's input: rounded by an operation that changes nothing else.
  DeviceMatrix Input(int64_t rows, int64_t cols, const std::vector<float>& values) const {
    const DeviceMatrix x = Matrix(rows, cols, Use::kLinearInput);
    const std::vector<int64_t> lengths(rows, 1);
    // Attention over single tokens is v.
    const DeviceMatrix v = Matrix(rows, cols, values);
    EXPECT_TRUE(ops->Attention({cols / 2, cols / 2, 2, 0}, lengths, v, v, v, x).ok());
    return x;
  }
  DeviceMatrix Weight(const std::vector<int64_t>& shape, const std::vector<float>& values,
                      DType dtype = DType::kF32) const {
    const std::vector<std::byte> bytes = ToBytes(values, dtype);
    return ops->Place({dtype, shape, {bytes.begin(), bytes.end()}}).value();
  }
  std::vector<float> Values(const DeviceMatrix& x) const {
    UninitializedVector<float> room;
    const std::span<const float> values = ops->Download(x, room).value();
    return {values.begin(), values.end()};
  }
};

class CudaOpsTest : public CudaTest, public ::testing::WithParamInterface<DType> {
 protected:
  void SetUp() override {
    CudaTest::SetUp();
    if (IsSkipped()) return;
    auto ops = MakeCudaOps(0, pool_, GetParam());
    if (absl::IsUnavailable(ops.status())) GTEST_SKIP() << ops.status().message();  // no cuBLASLt
    ASSERT_TRUE(ops.ok()) << ops.status();
    gpu_.ops = *std::move(ops);
    host_.ops = MakeCpuOps(pool_, GetParam());
  }
  bool bf16() const { return GetParam() == DType::kBf16; }
  // What rounding to the type of linear inputs may add.
  double rounding() const { return bf16() ? kBf16Unit : 0; }

  ThreadPool pool_;
  Ops gpu_, host_;
};
INSTANTIATE_TEST_SUITE_P(DTypes, CudaOpsTest, ::testing::Values(DType::kF32, DType::kBf16),
                         [](const auto& info) { return std::string(DTypeName(info.param)); });

TEST_P(CudaOpsTest, Linear) {
  const struct {
    int64_t rows, outputs, depth;
  } kShapes[] = {{1, 1, 8}, {1, 16, 8}, {3, 5, 24}, {70, 97, 32}, {33, 257, 12}, {257, 130, 1040}};
  for (const auto& [rows, outputs, depth] : kShapes) {
    for (const DType dtype : {DType::kF32, DType::kBf16, DType::kF16}) {
      SCOPED_TRACE(std::to_string(rows) + " " + std::string(DTypeName(dtype)));
      std::vector<float> x = Normal(rows * depth, 1);
      if (bf16()) std::ranges::transform(x, x.begin(), Rounded);
      const std::vector<float> w = Normal(outputs * depth, 2), bias = Normal(outputs, 3);
      std::vector<double> bound(rows * outputs);
      // An fp32 weight is the sum of two bf16 values but for 2^-17 of it.
      const double split = bf16() && dtype == DType::kF32 ? 1.0 / (1 << 17) : 0;
      for (int64_t i = 0; i < rows; ++i) {
        for (int64_t j = 0; j < outputs; ++j) {
          double magnitudes = std::abs(bias[j]);
          for (int64_t k = 0; k < depth; ++k) {
            magnitudes += std::abs(double{x[i * depth + k]} * w[j * depth + k]);
          }
          bound[i * outputs + j] = (2 * (depth + 2) * kE + split) * magnitudes;
        }
      }
      for (const bool biased : {false, true}) {
        const auto product = [&](const Ops& ops) {
          const DeviceMatrix out = ops.Matrix(rows, outputs);
          const absl::Status status =
              ops->Linear(ops.Input(rows, depth, x), ops.Weight({outputs, depth}, w, dtype),
                          biased ? ops.Weight({outputs}, bias, dtype) : DeviceMatrix(), out);
          EXPECT_TRUE(status.ok()) << status;
          return ops.Values(out);
        };
        EXPECT_TRUE(Within(product(host_), product(gpu_), [&](size_t i) { return bound[i]; }));
      }
    }
  }
}

// What a hook changed is float32, whatever linear layers read.
TEST_P(CudaOpsTest, LinearOfAFloat32Input) {
  constexpr int64_t kRows = 40, kOutputs = 24, kDepth = 64;
  const std::vector<float> x = Normal(kRows * kDepth, 1), w = Normal(kOutputs * kDepth, 2);
  for (const DType dtype : {DType::kF32, DType::kBf16}) {
    const auto product = [&](const Ops& ops) {
      const DeviceMatrix out = ops.Matrix(kRows, kOutputs);
      EXPECT_TRUE(ops->Linear(ops.Matrix(kRows, kDepth, x),
                              ops.Weight({kOutputs, kDepth}, w, dtype), {}, out)
                      .ok());
      return ops.Values(out);
    };
    // Both operands split, and what is missing of the product of their low parts.
    EXPECT_TRUE(
        RelativeErrorBelow(bf16() ? 3.0 / (1 << 17) : 8 * kE, product(host_), product(gpu_)));
  }
}

TEST_P(CudaOpsTest, RmsNorm) {
  const struct {
    int64_t rows, cols;
  } kShapes[] = {{1, 1}, {3, 10}, {70, 96}, {9, 1024}, {5, 1026}, {3, 4096}, {2, 5000}};
  for (const auto& [rows, cols] : kShapes) {
    SCOPED_TRACE(cols);
    std::vector<float> x = Normal(rows * cols, 4);
    for (int64_t i = 0; i < cols; ++i) x[i] *= 1e-4f;  // where eps counts
    const std::vector<float> weight = Normal(cols, 5);
    for (const Use use : {Use::kOther, Use::kLinearInput}) {
      const auto norm = [&](const Ops& ops) {
        const DeviceMatrix in = ops.Matrix(rows, cols, x);
        const DeviceMatrix out = use == Use::kOther ? in : ops.Matrix(rows, cols, use);
        EXPECT_TRUE(ops->RmsNorm(in, ops.Weight({cols}, weight, DType::kBf16), 1e-5, out).ok());
        return ops.Values(out);
      };
      EXPECT_TRUE(RelativelyWithin(norm(host_), norm(gpu_),
                                   (cols + 8) * kE + (use == Use::kLinearInput ? rounding() : 0)));
    }
  }
}

TEST_P(CudaOpsTest, Rope) {
  const std::vector<int64_t> lengths = {5, 1, 40};
  constexpr int64_t kRows = 46, kHeads = 3;
  RopeParams params;
  params.theta = 10000;
  for (const int64_t dim : {6, 8, 64, 128}) {
    const RopeTable table = MakeRopeTable(params, dim, 64);
    const std::vector<float> x = Normal(kRows * kHeads * dim, 6);
    const auto turn = [&](const Ops& ops) {
      const DeviceMatrix turned = ops.Matrix(kRows, kHeads * dim, x);
      EXPECT_TRUE(ops->Rope(table, lengths, turned).ok());
      return ops.Values(turned);
    };
    // Two products and a sum, each rounded once or not at all.
    EXPECT_TRUE(Within(turn(host_), turn(gpu_), [](size_t) { return 4 * kE * 10; }));
  }
}

// The second table lies where the first one did, and has its size.
TEST_P(CudaOpsTest, RopeSeesThatATableChanged) {
  const std::vector<int64_t> lengths = {8};
  const std::vector<float> x = Normal(8 * 16, 7);
  RopeParams params;
  params.theta = 10000;
  RopeTable table = MakeRopeTable(params, 16, 8);
  const auto turn = [&](const Ops& ops) {
    const DeviceMatrix turned = ops.Matrix(8, 16, x);
    EXPECT_TRUE(ops->Rope(table, lengths, turned).ok());
    return ops.Values(turned);
  };
  const std::vector<float> first = turn(gpu_);
  params.theta = 500;
  const RopeTable other = MakeRopeTable(params, 16, 8);
  std::ranges::copy(other.cos, table.cos.begin());
  std::ranges::copy(other.sin, table.sin.begin());
  EXPECT_NE(first, turn(gpu_));
  EXPECT_TRUE(Within(turn(host_), turn(gpu_), [](size_t) { return 4 * kE * 10; }));
}

struct AttentionCase {
  std::vector<int64_t> lengths;
  int64_t heads, kv_heads, dim, window;
};

class CudaAttentionTest : public CudaOpsTest {
 protected:
  // q, k and v times these.
  void Check(const AttentionCase& c, float q_scale = 1, float k_scale = 1, float v_scale = 1) {
    int64_t rows = 0;
    for (const int64_t length : c.lengths) rows += length;
    SCOPED_TRACE(std::to_string(rows) + " rows, heads " + std::to_string(c.heads) + "/" +
                 std::to_string(c.kv_heads) + ", dim " + std::to_string(c.dim) + ", window " +
                 std::to_string(c.window));
    const std::vector<float> q = Normal(rows * c.heads * c.dim, 8, q_scale),
                             k = Normal(rows * c.kv_heads * c.dim, 9, k_scale),
                             v = Normal(rows * c.kv_heads * c.dim, 10, v_scale);
    for (const Use use : {Use::kOther, Use::kLinearInput}) {
      const auto mix = [&](const Ops& ops) {
        const DeviceMatrix out = ops.Matrix(rows, c.heads * c.dim, use);
        const absl::Status status = ops->Attention(
            {c.heads, c.kv_heads, c.dim, c.window}, c.lengths, ops.Matrix(rows, c.heads * c.dim, q),
            ops.Matrix(rows, c.kv_heads * c.dim, k), ops.Matrix(rows, c.kv_heads * c.dim, v), out);
        EXPECT_TRUE(status.ok()) << status;
        return ops.Values(out);
      };
      const std::vector<float> expected = mix(host_), actual = mix(gpu_);
      // By tensor cores: q, k, v and probabilities keep 11 bits, so that a score of the usual size
      // (3 at most) is off by 2^-12 of it for q and for k, and a probability and what is mixed as
      // much; some 2^-11 together, 2^-10 with room. A mask that is off by one token changes them
      // by more than a tenth.
      const bool tensor = bf16() && c.dim <= 128;
      double limit = tensor ? 1.0 / 1024 : 1e-5;
      if (use == Use::kLinearInput && bf16()) limit += 1.0 / 256;
      EXPECT_TRUE(RelativeErrorBelow(limit, expected, actual));
      // Row by row, so that none hides behind the others.
      const int64_t cols = c.heads * c.dim;
      for (int64_t row = 0; row < rows; ++row) {
        const auto of = [&](const std::vector<float>& all) {
          return std::span(all).subspan(row * cols, cols);
        };
        ASSERT_TRUE(RelativeErrorBelow(4 * limit, of(expected), of(actual))) << "row " << row;
      }
    }
  }
};
INSTANTIATE_TEST_SUITE_P(DTypes, CudaAttentionTest, ::testing::Values(DType::kF32, DType::kBf16),
                         [](const auto& info) { return std::string(DTypeName(info.param)); });

TEST_P(CudaAttentionTest, SequencesOfAnyLength) {
  for (const std::vector<int64_t>& lengths :
       std::vector<std::vector<int64_t>>{{1}, {1, 1, 3}, {63, 64, 65}, {128}, {200, 1, 129, 16}}) {
    Check({lengths, 4, 2, 64, 0});
  }
}

TEST_P(CudaAttentionTest, Windows) {
  for (const int64_t window : {1, 2, 7, 63, 64, 65, 100, 1000}) {
    Check({{150, 70}, 2, 2, 32, window});
  }
}

TEST_P(CudaAttentionTest, HeadsOfAnySize) {
  for (const int64_t dim : {2, 8, 12, 32, 34, 64, 80, 96, 112, 128, 130, 160, 192, 256}) {
    Check({{97, 30}, 2, 1, dim, 50});
  }
}

TEST_P(CudaAttentionTest, GroupsOfAnySize) {
  for (const auto& [heads, kv_heads] :
       std::vector<std::pair<int64_t, int64_t>>{{1, 1}, {6, 2}, {7, 1}, {7, 7}, {15, 5}, {32, 8}}) {
    Check({{80, 3}, heads, kv_heads, 16, 0});
  }
}

// Beyond what fp16 reaches; scores are as they were.
TEST_P(CudaAttentionTest, ValuesOfAnySize) {
  const AttentionCase shape = {{70, 20}, 4, 2, 64, 0};
  Check(shape, 1e10f, 1e-10f, 1e30f);
  Check(shape, 1e-18f, 1e18f, 1e-30f);
  Check(shape, 0, 1, 1);
}

TEST_P(CudaAttentionTest, RefusesHeadsThatAreTooWide) {
  const std::vector<int64_t> lengths = {1};
  const DeviceMatrix x = gpu_.Matrix(1, 258);
  EXPECT_TRUE(IsError(gpu_->Attention({1, 1, 258, 0}, lengths, x, x, x, x),
                      absl::StatusCode::kUnimplemented, "run it on the CPU"));
}

TEST_P(CudaOpsTest, SwiGlu) {
  constexpr int64_t kRows = 33, kCols = 41;
  for (const int64_t cols : {kCols, kCols + 3}) {
    std::vector<float> gate = Normal(kRows * cols, 11, 5);
    gate[0] = 200;
    gate[1] = 0;
    const std::vector<float> up = Normal(kRows * cols, 12);
    const auto mul = [&](const Ops& ops) {
      const DeviceMatrix out = ops.Matrix(kRows, cols, Use::kLinearInput);
      EXPECT_TRUE(
          ops->SwiGlu(ops.Matrix(kRows, cols, gate), ops.Matrix(kRows, cols, up), out).ok());
      return ops.Values(out);
    };
    // Two exponentials within 2 units in the last place, and four roundings.
    EXPECT_TRUE(RelativelyWithin(mul(host_), mul(gpu_), 16 * kE + rounding()));
  }
}

TEST_P(CudaOpsTest, AddGatherScatterZeroAndCopyAreTheSameBytes) {
  for (const int64_t cols : {1, 6, 8, 40}) {
    constexpr int64_t kRows = 50;
    const std::vector<float> x = Normal(kRows * cols, 13), y = Normal(kRows * cols, 14);
    const std::vector<int64_t> rows = {49, 0, 7, 8, 3}, repeated = {7, 49, 7, 7, 49};
    const std::vector<float> weights = Normal(5, 15);
    const auto run = [&](const Ops& ops) {
      const DeviceMatrix sum = ops.Matrix(kRows, cols, x), added = ops.Matrix(kRows, cols, y);
      EXPECT_TRUE(ops->Add(sum, added).ok());
      const DeviceMatrix picked = ops.Matrix(5, cols);
      EXPECT_TRUE(ops->Gather(sum, rows, picked).ok());
      const DeviceMatrix scattered = ops.Matrix(kRows, cols);
      EXPECT_TRUE(ops->SetZero(scattered).ok());
      EXPECT_TRUE(ops->AddScaledRows(picked, rows, weights, scattered).ok());
      EXPECT_TRUE(ops->AddScaledRows(picked, repeated, weights, scattered).ok());
      const DeviceMatrix copy = ops.Matrix(kRows, cols);
      EXPECT_TRUE(ops->Copy(scattered, copy).ok());
      std::vector<float> all = ops.Values(copy), others = ops.Values(picked);
      all.insert(all.end(), others.begin(), others.end());
      if (cols % 2 == 0) {
        const DeviceMatrix input = ops.Input(kRows, cols, x);
        const DeviceMatrix picked_input = ops.Matrix(5, cols, Use::kLinearInput);
        EXPECT_TRUE(ops->Gather(input, rows, picked_input).ok());
        others = ops.Values(picked_input);
        for (float& value : others) value = bf16() ? Rounded(value) : value;
        all.insert(all.end(), others.begin(), others.end());
      }
      return all;
    };
    const std::vector<float> expected = run(host_), actual = run(gpu_);
    const size_t exact = (kRows + 5) * cols;
    EXPECT_TRUE(SameBytes(std::vector(expected.begin(), expected.begin() + exact),
                          std::vector(actual.begin(), actual.begin() + exact)));
    // Through attention, whose rounding may turn over a last bit.
    EXPECT_TRUE(RelativelyWithin(expected, actual, kBf16Unit));
  }
}

TEST_P(CudaOpsTest, RouteIsTheSame) {
  std::vector<float> logits = Normal(300 * 60, 16);
  for (size_t i = 0; i < 60; ++i) logits[i] = 1.5f;  // all equal
  for (const bool normalize : {false, true}) {
    const Routing expected = host_->Route(host_.Matrix(300, 60, logits), 8, normalize).value();
    const Routing actual = gpu_->Route(gpu_.Matrix(300, 60, logits), 8, normalize).value();
    EXPECT_EQ(expected.expert, actual.expert);
    EXPECT_TRUE(SameBytes(expected.weight, actual.weight));
    EXPECT_EQ(actual.expert[0], 0);
    EXPECT_EQ(actual.expert[7], 7);
  }
  for (const float bad :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    EXPECT_TRUE(IsError(gpu_->Route(gpu_.Matrix(1, 2, {0, bad}), 1, true),
                        absl::StatusCode::kFailedPrecondition, "expert 1"));
  }
}

TEST_P(CudaOpsTest, StatesComeAndGoInAnyNumberOfBatches) {
  constexpr int64_t kTokens = 100, kChannels = 24;
  std::vector<float> values = Normal(kTokens * kChannels, 17);
  for (const DType dtype : {DType::kF32, DType::kBf16}) {
    for (const uint64_t budget : {uint64_t{1} << 30, uint64_t{3000}}) {  // in memory, and spilled
      HiddenStates states =
          HiddenStates::Create({60, 40}, kChannels, dtype, {.memory_budget = budget}).value();
      ASSERT_TRUE(states.Write(0, values).ok());
      std::vector<float> kept(values.size());
      ASSERT_TRUE(states.Read(0, kept).ok());
      for (int64_t first = 0; first < kTokens; first += 7) {
        const DeviceMatrix x = gpu_.Matrix(std::min<int64_t>(7, kTokens - first), kChannels);
        ASSERT_TRUE(gpu_->ReadStates(states, first, x).ok());
        ASSERT_TRUE(gpu_->Add(x, x).ok());
        ASSERT_TRUE(gpu_->WriteStates(x, first, states).ok());
      }
      ASSERT_TRUE(gpu_->FinishStates().ok());
      std::vector<float> doubled(values.size());
      ASSERT_TRUE(states.Read(0, doubled).ok());
      for (float& value : kept) value *= 2;
      EXPECT_TRUE(SameBytes(kept, doubled));
    }
  }
}

TEST_P(CudaOpsTest, StatesThatAreNotFiniteAreNamed) {
  HiddenStates states = HiddenStates::Create({9}, 4, DType::kF32).value();
  std::vector<float> values(9 * 4, 1.0f);
  ASSERT_TRUE(states.Write(0, values).ok());
  const auto write = [&](int64_t first, int64_t bad) {
    std::vector<float> own(3 * 4, 1.0f);
    if (bad >= 0) own[bad] = std::numeric_limits<float>::infinity();
    return gpu_->WriteStates(gpu_.Matrix(3, 4, own), first, states);
  };
  absl::Status status = write(0, -1);
  status.Update(write(3, 6));
  status.Update(write(6, 1));
  status.Update(gpu_->FinishStates());
  EXPECT_TRUE(IsError(status, absl::StatusCode::kFailedPrecondition, "token 4"));
  EXPECT_TRUE(gpu_->FinishStates().ok());
}

TEST_P(CudaOpsTest, SaysWhatToDoWhereMemoryDoesNotSuffice) {
  EXPECT_TRUE(IsError(gpu_->Allocate(int64_t{1} << 40, 1024, Use::kOther),
                      absl::StatusCode::kResourceExhausted, "--batch-tokens"));
  EXPECT_TRUE(gpu_->Allocate(16, 16, Use::kOther).ok());
}

TEST(MakeCudaOpsTest, SaysThatThereIsNoSuchDevice) {
  ThreadPool pool;
  EXPECT_TRUE(
      IsError(MakeCudaOps(1000, pool, DType::kF32), absl::StatusCode::kUnavailable, "cuda:1000"));
}

}  // namespace
}  // namespace nibble
