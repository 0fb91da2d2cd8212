// What a GPU sums of inputs in its memory against the CPU's collector: the same bits.
#include "kernels/input_sums.h"

#include <cuda_runtime_api.h>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "calib/input_collector.h"
#include "engine/synthetic.h"
#include "gtest/gtest.h"
#include "tests/testing/bytes.h"
#include "tests/testing/cuda.h"
#include "tests/testing/is_error.h"

namespace nibble {
namespace {

using ::nibble::testing::CudaTest;
using ::nibble::testing::DeviceArray;
using ::nibble::testing::IsError;
using ::nibble::testing::kInputDTypes;
using ::nibble::testing::ReplayFromGraph;
using ::nibble::testing::SameBytes;

class CudaInputSumsTest : public CudaTest {
 protected:
  void SetUp() override {
    CudaTest::SetUp();
    if (IsSkipped()) return;
    ASSERT_EQ(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), cudaSuccess);
  }
  void TearDown() override {
    if (stream_ != nullptr) cudaStreamDestroy(stream_);
  }

  // Chunks of these numbers of tokens, the same on both.
  void Check(const std::vector<int64_t>& chunks, int64_t channels, DType dtype, bool hessians,
             Distribution distribution) {
    SCOPED_TRACE(std::to_string(channels) + " " + std::string(DTypeName(dtype)));
    const auto sums = cuda_->MakeInputSums(channels, hessians, stream_).value();
    InputCollector expected(hessians);
    uint64_t seed = 1;
    for (const int64_t tokens : chunks) {
      const std::vector<std::byte> bytes =
          ToBytes(SyntheticValues(distribution, tokens * channels, seed++), dtype);
      ASSERT_TRUE(expected.Collect({bytes.data(), dtype, tokens, channels}, *cpu_).ok());
      const DeviceArray<std::byte> x{std::span<const std::byte>(bytes)};
      ASSERT_TRUE(sums->Add({x.get(), dtype, tokens, channels}).ok());
      ASSERT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);  // x goes
    }
    auto result = sums->Result();
    ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_TRUE(InputCollector::Of(*std::move(result), channels, hessians) == expected);
  }

  cudaStream_t stream_ = nullptr;
};

TEST_F(CudaInputSumsTest, AreTheCollectorsBits) {
  for (const DType dtype : kInputDTypes) {
    for (const Distribution distribution : {Distribution::kNormal, Distribution::kOutliers}) {
      Check({1}, 16, dtype, true, distribution);
      Check({256, 512, 300, 129, 128, 17}, 208, dtype, true, distribution);
      Check({1000, 3}, 64, dtype, false, distribution);
    }
  }
}

// The second chunk comes to where the first lay, and its sums from a graph.
TEST_F(CudaInputSumsTest, RunFromAGraph) {
  constexpr int64_t kTokens = 300, kChannels = 208;
  for (const DType dtype : kInputDTypes) {
    const std::vector<std::byte> first =
        ToBytes(SyntheticValues(Distribution::kNormal, kTokens * kChannels, 1), dtype);
    const std::vector<std::byte> second =
        ToBytes(SyntheticValues(Distribution::kOutliers, kTokens * kChannels, 2), dtype);
    InputCollector expected(/*hessians=*/true);
    for (const auto* bytes : {&first, &second}) {
      ASSERT_TRUE(expected.Collect({bytes->data(), dtype, kTokens, kChannels}, *cpu_).ok());
    }
    const auto sums = cuda_->MakeInputSums(kChannels, true, stream_).value();
    DeviceArray<std::byte> x{std::span<const std::byte>(first)};
    const MatrixView view = {x.get(), dtype, kTokens, kChannels};
    ASSERT_TRUE(sums->Add(view).ok());
    ASSERT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
    ReplayFromGraph(
        [&](cudaStream_t) {
          EXPECT_TRUE(sums->Add(view).ok());
          return cudaSuccess;
        },
        [&] { x.Set(second); }, stream_);
    auto result = sums->Result();
    ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_TRUE(InputCollector::Of(*std::move(result), kChannels, true) == expected);
  }
}

// Chains of 32 tokens in whole units, of 16 in shorter ones.
TEST_F(CudaInputSumsTest, AreTheCollectorsBitsOfManyChannels) {
  Check({512, 100}, 32768 + 1024, DType::kBf16, true, Distribution::kNormal);
}

TEST_F(CudaInputSumsTest, ZerosAndTinyBlocksAreCountedAsTheCollectorDoes) {
  constexpr int64_t kChannels = 64;
  std::vector<float> values(8 * kChannels);
  for (int64_t i = 0; i < 16; ++i) values[i] = 1e-42f;
  for (int64_t i = 16; i < 32; ++i) values[i] = -1e-30f;
  for (int64_t i = 64; i < 80; ++i) values[i] = -0.0f;
  values[100] = 3e18f;
  const DeviceArray<float> x{std::span<const float>(values)};
  const auto sums = cuda_->MakeInputSums(kChannels, true, stream_).value();
  ASSERT_TRUE(sums->Add({x.get(), DType::kF32, 8, kChannels}).ok());
  InputCollector expected(true);
  ASSERT_TRUE(expected.Collect({values.data(), DType::kF32, 8, kChannels}, *cpu_).ok());
  EXPECT_TRUE(InputCollector::Of(sums->Result().value(), kChannels, true) == expected);
}

TEST_F(CudaInputSumsTest, RefusesWhatIsNotFinite) {
  constexpr int64_t kChannels = 32;
  const auto result = [&](float value, int64_t at) {
    std::vector<float> values(300 * kChannels, 1.0f);
    const DeviceArray<float> x{std::span<const float>(values)};
    values[at] = value;
    const DeviceArray<float> bad{std::span<const float>(values)};
    const auto sums = cuda_->MakeInputSums(kChannels, true, stream_).value();
    for (const float* data : {x.get(), bad.get(), x.get()}) {
      EXPECT_TRUE(sums->Add({data, DType::kF32, 300, kChannels}).ok());
    }
    return sums->Result().status();
  };
  EXPECT_TRUE(IsError(result(std::numeric_limits<float>::quiet_NaN(), 5 * kChannels + 7),
                      absl::StatusCode::kFailedPrecondition, "row 5 of a batch, column 7"));
  EXPECT_TRUE(IsError(result(1e20f, 20), absl::StatusCode::kFailedPrecondition, "in slice 1"));
}

TEST_F(CudaInputSumsTest, AreOfAGpu) {
  EXPECT_EQ(cuda_->cuda_device(), 0);
  EXPECT_EQ(cpu_->cuda_device(), std::nullopt);
  EXPECT_TRUE(IsError(cpu_->MakeInputSums(16, true, nullptr), absl::StatusCode::kUnimplemented,
                      "expected a GPU's"));
  EXPECT_TRUE(IsError(cuda_->MakeInputSums(65552, true, stream_), absl::StatusCode::kUnimplemented,
                      "65552"));
}

// What backend.h lets lie in the GPU's memory.
TEST_F(CudaInputSumsTest, OperationsReadTheMemoryOfTheGpu) {
  constexpr int64_t kRows = 64, kCols = 96;
  const std::vector<float> values = SyntheticValues(Distribution::kNormal, kRows * kCols, 3);
  const DeviceArray<float> x{std::span<const float>(values)};
  const MatrixView here = {values.data(), DType::kF32, kRows, kCols};
  const MatrixView there = {x.get(), DType::kF32, kRows, kCols};
  EXPECT_EQ(cuda_->Amax(there).value(), cpu_->Amax(here).value());
  EXPECT_TRUE(cuda_->Observe({.block_amax = true}, there).value() ==
              cpu_->Observe({.block_amax = true}, here).value());
  std::vector<float> sums(kCols * 16), expected_sums(sums.size());
  ASSERT_TRUE(cuda_->AccumulateHessian(there, sums).ok());
  ASSERT_TRUE(cpu_->AccumulateHessian(here, expected_sums).ok());
  EXPECT_EQ(sums, expected_sums);
  for (const Scheme scheme : {Scheme::kPerTensor, Scheme::kPerToken}) {
    QuantizeParams params;
    params.scheme = scheme;
    const PackedTensor packed = cuda_->Quantize(params, there).value();
    const PackedTensor expected = cpu_->Quantize(params, here).value();
    EXPECT_TRUE(SameBytes(packed.packed, expected.packed));
    EXPECT_TRUE(SameBytes(packed.scale, expected.scale));
    const DeviceArray<float> out(kRows * kCols);
    ASSERT_TRUE(cuda_->Dequantize(packed.view(), DType::kF32, out.get()).ok());
    std::vector<float> expected_out(kRows * kCols);
    ASSERT_TRUE(cpu_->Dequantize(expected.view(), DType::kF32, expected_out.data()).ok());
    EXPECT_EQ(out.Get(), expected_out);
  }
  std::vector<float> bad = values;
  bad[kCols + 2] = std::numeric_limits<float>::infinity();
  const DeviceArray<float> bad_x{std::span<const float>(bad)};
  const MatrixView bad_there = {bad_x.get(), DType::kF32, kRows, kCols};
  EXPECT_TRUE(
      IsError(cuda_->Amax(bad_there), absl::StatusCode::kFailedPrecondition, "row 1, column 2"));
  EXPECT_TRUE(IsError(cuda_->AccumulateHessian(bad_there, sums),
                      absl::StatusCode::kFailedPrecondition, "row 1, column 2"));
}

}  // namespace
}  // namespace nibble
