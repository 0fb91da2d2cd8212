// The GEMM for checking against a float64 reference. The path of the FP4 tensor cores runs where
// the device has them, and says so where not.
#include "kernels/cuda/check_gemm.h"

#include <string>
#include <vector>

#include "engine/synthetic.h"
#include "gtest/gtest.h"
#include "tests/testing/bytes.h"
#include "tests/testing/cuda.h"
#include "tests/testing/is_error.h"
#include "tests/testing/reference_gemm.h"

namespace nibble {
namespace {

using ::nibble::testing::CudaTest;
using ::nibble::testing::DeviceArray;
using ::nibble::testing::DevicePackedTensor;
using ::nibble::testing::IsError;
using ::nibble::testing::ReferenceGemm;
using ::nibble::testing::ReplayFromGraph;
using ::nibble::testing::SameBytes;

class CudaCheckGemmTest : public CudaTest, public ::testing::WithParamInterface<CheckGemmPath> {
 protected:
  void SetUp() override {
    CudaTest::SetUp();
    if (IsSkipped()) return;
    const absl::Status status = CheckGemmPlan::Make(GetParam(), 128, 128, 128).status();
    // Nothing else is a reason to skip.
    if (absl::IsUnavailable(status) || absl::IsUnimplemented(status)) {
      GTEST_SKIP() << status.message();
    }
    ASSERT_TRUE(status.ok()) << status;
  }

  PackedTensor Quantized(Distribution distribution, int64_t rows, int64_t cols, uint64_t seed,
                         const QuantizeParams& params) {
    const std::vector<std::byte> bytes =
        ToBytes(SyntheticValues(distribution, rows * cols, seed), DType::kBf16);
    return *cpu_->Quantize(params, {bytes.data(), DType::kBf16, rows, cols});
  }
};

// Every layout that operands may have.
TEST_P(CudaCheckGemmTest, MatchesTheReference) {
  struct Operands {
    Scheme a, w;
    Rule rule;
    bool swizzled;
  };
  const Operands kOperands[] = {
      {Scheme::kPerTensor, Scheme::kPerTensor, Rule::kRuntime, false},
      {Scheme::kPerToken, Scheme::kPerTensor, Rule::kCheckpoint, false},
      {Scheme::kPerToken, Scheme::kTile2d, Rule::kRuntime, true},
      {Scheme::kPerTensor, Scheme::kTile2d, Rule::kCheckpoint, false},
      {Scheme::kPerToken, Scheme::kPerToken, Rule::kRuntime, false},
      {Scheme::kPerTensor, Scheme::kPerToken, Rule::kRuntime, true},
  };
  struct Shape {
    int64_t m, n, k;
  };
  double largest = 0;
  for (const auto& [m, n, k] : {Shape{1, 16, 32}, {48, 80, 160}, {130, 272, 1056}}) {
    for (const Operands& o : kOperands) {
      SCOPED_TRACE(std::string(NameOf(o.a)) + " " + std::string(NameOf(o.w)) + " " +
                   std::to_string(m) + "x" + std::to_string(n) + "x" + std::to_string(k));
      QuantizeParams params;
      params.scheme = o.a;
      params.swizzle = o.swizzled;
      const PackedTensor a = Quantized(Distribution::kOutliers, m, k, 1, params);
      params.scheme = o.w;
      params.rule = o.rule;
      params.e4m3_max = 256;
      params.four_over_six = FourOverSix{};
      const PackedTensor w = Quantized(Distribution::kWeightLike, n, k, 2, params);
      const auto d = CheckGemm(0, GetParam(), a.view(), w.view());
      ASSERT_TRUE(d.ok()) << d.status();
      const ReferenceGemm reference(a.view(), w.view());
      EXPECT_TRUE(reference.Matches(*d));
      largest = std::max(largest, reference.LargestError(*d));
    }
  }
  RecordProperty("largest_error_in_2^-23_of_the_magnitudes", std::to_string(largest));
}

// Whole numbers below 2^24: any order of float32 additions is exact, so every bit must be right.
TEST_P(CudaCheckGemmTest, IsExactWhereFloat32Is) {
  for (int64_t k : {32, 160, 4096}) {
    PackedTensor a({80, k, Scheme::kPerToken, Rule::kRuntime, 448, false});
    PackedTensor w({96, k, k == 160 ? Scheme::kPerToken : Scheme::kPerTensor,
                    k == 160 ? Rule::kRuntime : Rule::kCheckpoint, 448, false});
    const std::vector<float> random = SyntheticValues(Distribution::kUniform, 176 * k, 5);
    for (size_t i = 0; i < a.packed.size(); ++i) a.packed[i] = std::bit_cast<uint32_t>(random[i]);
    for (size_t i = 0; i < w.packed.size(); ++i) {
      w.packed[i] = std::bit_cast<uint32_t>(random[random.size() - 1 - i]);
    }
    for (size_t i = 0; i < a.scale.size(); ++i) a.scale[i] = 0x30 + 8 * (i % 3);  // 0.5, 1, 2
    for (size_t i = 0; i < w.scale.size(); ++i) w.scale[i] = 0x30 + 8 * (i % 2);
    for (size_t i = 0; i < a.amax.size(); ++i) {
      a.amax[i] = std::ldexp(2688.0f, static_cast<int>(i % 5));  // outer scales 1, 2, 4 ...
    }
    for (size_t i = 0; i < w.amax.size(); ++i) {
      w.amax[i] = std::ldexp(2688.0f / 4, static_cast<int>(i % 3));
    }
    const auto d = CheckGemm(0, GetParam(), a.view(), w.view());
    ASSERT_TRUE(d.ok()) << d.status();
    const ReferenceGemm reference(a.view(), w.view());
    EXPECT_TRUE(SameBytes(std::vector<float>(reference.value.begin(), reference.value.end()), *d));
  }
}

TEST_P(CudaCheckGemmTest, NothingInNothingOut) {
  const PackedTensor none({0, 32, Scheme::kPerToken, Rule::kRuntime, 448, false});
  const PackedTensor some({16, 32, Scheme::kPerTensor, Rule::kRuntime, 448, false});
  EXPECT_TRUE(CheckGemm(0, GetParam(), none.view(), some.view())->empty());
}

TEST_P(CudaCheckGemmTest, ReplaysFromAGraph) {
  QuantizeParams params;
  params.swizzle = true;
  const PackedTensor w = Quantized(Distribution::kWeightLike, 96, 160, 1, params);
  params.scheme = Scheme::kPerToken;
  const PackedTensor before = Quantized(Distribution::kNormal, 80, 160, 2, params);
  const PackedTensor after = Quantized(Distribution::kOutliers, 80, 160, 3, params);
  DevicePackedTensor device_a(before);
  const DevicePackedTensor device_w(w);
  DeviceArray<float> d(80 * 96);
  const auto plan = CheckGemmPlan::Make(GetParam(), 80, 96, 160);
  ASSERT_TRUE(plan.ok()) << plan.status();
  ReplayFromGraph(
      [&](cudaStream_t stream) {
        const absl::Status status =
            (*plan)->Launch(device_a.args(), device_w.args(), d.get(), stream);
        EXPECT_TRUE(status.ok()) << status;
        return cudaSuccess;
      },
      [&] { device_a.Set(after); });
  EXPECT_TRUE(ReferenceGemm(after.view(), w.view()).Matches(d.Get()));
}

INSTANTIATE_TEST_SUITE_P(Paths, CudaCheckGemmTest,
                         ::testing::Values(CheckGemmPath::kDequantize, CheckGemmPath::kBlockScaled),
                         [](const auto& info) { return std::string(NameOf(info.param)); });

// Without a device.
TEST(CheckGemmTest, RefusesOperandsThatDoNotFit) {
  const PackedTensor a({16, 32, Scheme::kPerToken, Rule::kRuntime, 448, false});
  const PackedTensor longer({16, 48, Scheme::kPerTensor, Rule::kRuntime, 448, false});
  const auto check = [&](const PackedTensor& left, const PackedTensor& right) {
    return CheckGemm(0, CheckGemmPath::kDequantize, left.view(), right.view()).status();
  };
  if (absl::IsUnimplemented(check(a, longer))) GTEST_SKIP() << check(a, longer).message();
  const auto code = absl::StatusCode::kInvalidArgument;
  EXPECT_TRUE(IsError(check(a, longer), code, "activations, 32, got 48"));
  EXPECT_TRUE(IsError(CheckGemmPlan::Make(CheckGemmPath::kDequantize, 16, 16, 24).status(),
                      absl::StatusCode::kFailedPrecondition, "16 rows of 24"));
}

// The comparison sees one wrong code, one wrong block scale, one wrong outer scale.
TEST(ReferenceGemmTest, SeesWrongOperands) {
  const auto backend = *MakeBackend("cpu");
  QuantizeParams params;
  const auto quantized = [&](int64_t rows, uint64_t seed) {
    const std::vector<float> x = SyntheticValues(Distribution::kNormal, rows * 160, seed);
    return *backend->Quantize(params, {x.data(), DType::kF32, rows, 160});
  };
  const PackedTensor w = quantized(32, 1);
  params.scheme = Scheme::kPerToken;
  const PackedTensor a = quantized(32, 2);
  const auto rounded = [&](const PackedTensor& left) {
    const ReferenceGemm product(left.view(), w.view());
    return std::vector<float>(product.value.begin(), product.value.end());
  };
  const ReferenceGemm reference(a.view(), w.view());
  EXPECT_TRUE(reference.Matches(rounded(a)));
  PackedTensor wrong = a;
  wrong.packed[100] ^= 0x20;
  EXPECT_FALSE(reference.Matches(rounded(wrong)));
  wrong = a;
  wrong.scale[7] ^= 1;
  EXPECT_FALSE(reference.Matches(rounded(wrong)));
  wrong = a;
  std::swap(wrong.amax[3], wrong.amax[4]);
  EXPECT_FALSE(reference.Matches(rounded(wrong)));
  EXPECT_FALSE(reference.Matches(std::vector<float>(5)));
}

}  // namespace
}  // namespace nibble
