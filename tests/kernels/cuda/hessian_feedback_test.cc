// Error feedback on the device against the CPU's bytes, for every launch shape, directly and
// replayed from a graph.
#include <iterator>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/parallel_for.h"
#include "engine/synthetic.h"
#include "gtest/gtest.h"
#include "kernels/cuda/hessian_feedback_launch.h"
#include "kernels/hessian_factors.h"
#include "tests/testing/bytes.h"
#include "tests/testing/cuda.h"
#include "tests/testing/hessians.h"
#include "tests/testing/results.h"

namespace nibble {
namespace {

using ::nibble::testing::Activations;
using ::nibble::testing::CudaTest;
using ::nibble::testing::DeviceArray;
using ::nibble::testing::kInputDTypes;
using ::nibble::testing::MakeHessians;
using ::nibble::testing::ReplayFromGraph;
using ::nibble::testing::SameBytes;
using ::nibble::testing::SameFeedback;

constexpr int kHessianFeedbackShapes = static_cast<int>(std::size(kHessianFeedbackConfigs));

class CudaHessianFeedbackTest : public CudaTest {
 protected:
  void ExpectSame(const ScaleSweepParams& params, const MatrixView& x,
                  std::span<const float> hessians) {
    const auto expected = cpu_->SweepHessianFeedback(params, x, hessians);
    const auto actual = cuda_->SweepHessianFeedback(params, x, hessians);
    ASSERT_TRUE(expected.ok()) << expected.status();
    ASSERT_TRUE(actual.ok()) << actual.status();
    EXPECT_TRUE(SameFeedback(*expected, *actual));
  }

  // One launch with memory of its own, through a graph that was captured over other data.
  void ExpectSameLaunch(const MatrixView& x, std::span<const float> hessians, int config) {
    const SweepResult found = *cpu_->ScaleSweepHessian({}, x, hessians);
    const PackedTensor nearest =
        *cpu_->QuantizeWithScales(x, found.global_amax, /*e4m3_max=*/448, found.code);
    const FeedbackTensor expected = *cpu_->SweepHessianFeedback({}, x, hessians);
    ThreadPool pool(1);
    const std::vector<HessianFactor> host_factors = *FactorHessians(hessians, pool);
    const std::vector<HessianFeedback> host_feedback = MakeHessianFeedbacks(host_factors, pool);
    const SweepTable host_table = MakeSweepTable(found.global_amax, 448);
    const int64_t blocks = x.size() / kBlockSize;
    const int64_t bytes = x.size() * DTypeBytes(x.dtype);
    DeviceArray<char> data(bytes);
    DeviceArray<HessianFactor> factors(std::ssize(host_factors));
    DeviceArray<HessianFeedback> feedback(std::ssize(host_feedback));
    DeviceArray<SweepTable> table(1);
    DeviceArray<uint8_t> code(blocks), packed(8 * blocks);
    DeviceArray<float> loss(blocks);
    const HessianFeedbackArgs args = {
        .x = data.get(),
        .rows = x.rows,
        .slices = x.cols / kBlockSize,
        .factors = factors.get(),
        .feedback = feedback.get(),
        .table = table.get(),
        .code = code.get(),
        .loss = loss.get(),
        .packed = packed.get(),
    };
    ReplayFromGraph(
        [&](cudaStream_t stream) { return LaunchHessianFeedback(x.dtype, args, config, stream); },
        [&] {
          data.Set({static_cast<const char*>(x.data), static_cast<size_t>(bytes)});
          factors.Set(host_factors);
          feedback.Set(host_feedback);
          table.Set({&host_table, 1});
          code.Set(found.code);
          loss.Set(found.loss);
          packed.Set(nearest.packed);
        });
    EXPECT_TRUE(SameBytes(expected.found.code, code.Get())) << "code";
    EXPECT_TRUE(SameBytes(expected.found.loss, loss.Get())) << "loss";
    EXPECT_TRUE(SameBytes(expected.packed.packed, packed.Get())) << "packed";
  }
};

TEST_F(CudaHessianFeedbackTest, EveryDistributionAndHessian) {
  constexpr int64_t kRows = 77, kCols = 96;
  for (size_t a = 0; a < kEnumNames<Activations>.size(); ++a) {
    const std::vector<float> hessians =
        MakeHessians(static_cast<Activations>(a), kCols / kBlockSize);
    for (size_t d = 0; d < kEnumNames<Distribution>.size(); ++d) {
      for (DType dtype : kInputDTypes) {
        SCOPED_TRACE(absl::StrCat(std::string(kEnumNames<Activations>[a]), " ",
                                  std::string(kEnumNames<Distribution>[d]), " ",
                                  std::string(DTypeName(dtype))));
        const std::vector<std::byte> bytes =
            ToBytes(SyntheticValues(static_cast<Distribution>(d), kRows * kCols, d + 1), dtype);
        const MatrixView x = {bytes.data(), dtype, kRows, kCols};
        const float amax = *cpu_->Amax(x);
        ExpectSame({}, x, hessians);
        ExpectSame({SweepMethod::kPruned, 256, 0.3f * amax}, x, hessians);
      }
    }
  }
}

// Blocks whose squares overflow, targets that are no numbers, scales that are subnormal.
TEST_F(CudaHessianFeedbackTest, EveryGlobalAmax) {
  std::vector<float> values = SyntheticValues(Distribution::kNormal, 40 * 48, 5);
  for (size_t i = 0; i < 64; ++i) values[i] *= 1e20f;
  for (size_t i = 64; i < 128; ++i) values[i] *= 8e37f;
  const MatrixView x = {values.data(), DType::kF32, 40, 48};
  for (size_t a = 0; a < kEnumNames<Activations>.size(); ++a) {
    const std::vector<float> hessians = MakeHessians(static_cast<Activations>(a), 3);
    for (float g : {0.0f, 1e-39f, 1e-20f, 1e-3f, 1.0f, 100.0f, 1e30f, 3.4e38f}) {
      SCOPED_TRACE(absl::StrCat(std::string(kEnumNames<Activations>[a]), " ", g));
      ExpectSame({SweepMethod::kPruned, 448, g}, x, hessians);
    }
  }
}

TEST_F(CudaHessianFeedbackTest, EveryConfigReplaysFromAGraphOnEveryShape) {
  for (int64_t slices : {1, 3, 9}) {
    const std::vector<float> hessians = MakeHessians(Activations::kCorrelated, slices);
    for (int64_t rows : {1, 3, 64, 65, 1000}) {
      for (DType dtype : kInputDTypes) {
        const std::vector<std::byte> bytes = ToBytes(
            SyntheticValues(Distribution::kOutliers, rows * slices * kBlockSize, rows), dtype);
        for (int config = 0; config < kHessianFeedbackShapes; ++config) {
          SCOPED_TRACE(absl::StrCat(rows, " rows, ", slices, " slices, config ", config));
          ExpectSameLaunch({bytes.data(), dtype, rows, slices * kBlockSize}, hessians, config);
        }
      }
    }
  }
}

TEST_F(CudaHessianFeedbackTest, ManyBlocks) {
  constexpr int64_t kRows = 2048, kCols = 1024;
  for (Activations kind : {Activations::kIid, Activations::kCorrelated, Activations::kSingular}) {
    SCOPED_TRACE(NameOf(kind));
    const std::vector<std::byte> bytes =
        ToBytes(SyntheticValues(Distribution::kWeightLike, kRows * kCols, 7), DType::kBf16);
    ExpectSame({}, {bytes.data(), DType::kBf16, kRows, kCols},
               MakeHessians(kind, kCols / kBlockSize));
  }
}

TEST_F(CudaHessianFeedbackTest, NoRows) {
  ExpectSame({}, {nullptr, DType::kBf16, 0, 32}, MakeHessians(Activations::kIid, 2));
}

// Before a device is touched.
TEST(CudaHessianFeedbackLaunchTest, RefusesUnknownConfigsAndTypes) {
  const HessianFeedbackArgs args = {.rows = 1, .slices = 1};
  EXPECT_EQ(LaunchHessianFeedback(DType::kBf16, args, kHessianFeedbackShapes, nullptr),
            cudaErrorInvalidValue);
  EXPECT_EQ(LaunchHessianFeedback(DType::kBf16, args, -1, nullptr), cudaErrorInvalidValue);
  EXPECT_EQ(LaunchHessianFeedback(DType::kF64, args, 0, nullptr), cudaErrorInvalidValue);
}

}  // namespace
}  // namespace nibble
