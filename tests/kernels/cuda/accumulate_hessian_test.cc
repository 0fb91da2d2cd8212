// Hessian accumulation on the device against the CPU's bytes, for every launch shape, directly and
// replayed from a graph.
#include <cmath>
#include <iterator>
#include <string>
#include <vector>

#include "engine/synthetic.h"
#include "gtest/gtest.h"
#include "kernels/cuda/accumulate_hessian_launch.h"
#include "tests/testing/bytes.h"
#include "tests/testing/cuda.h"
#include "tests/testing/random_bits.h"

namespace nibble {
namespace {

using ::nibble::testing::CudaTest;
using ::nibble::testing::DeviceArray;
using ::nibble::testing::kInputDTypes;
using ::nibble::testing::RandomBitsBelow;
using ::nibble::testing::ReplayFromGraph;
using ::nibble::testing::SameBytes;

constexpr int kAccumulateHessianShapes = static_cast<int>(std::size(kAccumulateHessianConfigs));

// What a launch needs besides x, filled with bytes that would show.
struct Buffers {
  DeviceArray<float> workspace, hessians;
  DeviceArray<int64_t> bad_slice = DeviceArray<int64_t>(1);

  Buffers(int64_t tokens, const std::vector<float>& before)
      : workspace(AccumulateHessianWorkspace(tokens, before.size() / kBlockSize)),
        hessians(before) {
    workspace.Fill(0xFF);
    bad_slice.Fill(0x55);
  }

  AccumulateHessianArgs Args(const void* x, int64_t tokens, int64_t channels) {
    return {.x = x,
            .tokens = tokens,
            .channels = channels,
            .workspace = workspace.get(),
            .hessians = hessians.get(),
            .bad_slice = bad_slice.get()};
  }
};

class CudaAccumulateHessianTest : public CudaTest {
 protected:
  // Every config.
  void ExpectTheCpusBytes(const MatrixView& x) {
    const std::vector<float> before =
        SyntheticValues(Distribution::kNormal, x.cols * kBlockSize, 9);
    std::vector<float> expected = before;
    ASSERT_TRUE(cpu_->AccumulateHessian(x, expected).ok());
    const std::byte* bytes = static_cast<const std::byte*>(x.data);
    DeviceArray<std::byte> data(
        std::span(bytes, static_cast<size_t>(x.size() * DTypeBytes(x.dtype))));
    for (int config = 0; config < kAccumulateHessianShapes; ++config) {
      SCOPED_TRACE(std::to_string(x.rows) + "x" + std::to_string(x.cols) + " " +
                   std::string(DTypeName(x.dtype)) + ", config " + std::to_string(config));
      Buffers buffers(x.rows, before);
      ASSERT_EQ(LaunchAccumulateHessian(x.dtype, buffers.Args(data.get(), x.rows, x.cols), config,
                                        nullptr),
                cudaSuccess);
      EXPECT_TRUE(SameBytes(expected, buffers.hessians.Get()));
      EXPECT_EQ(buffers.bad_slice.Get()[0], -1);
    }
  }
};

TEST_F(CudaAccumulateHessianTest, EveryShapeTypeAndConfig) {
  for (int64_t tokens : {0, 1, 15, 17, 128, 129, 1000}) {
    for (int64_t channels : {16, 48, 64, 80, 1040}) {
      for (DType dtype : kInputDTypes) {
        const std::vector<std::byte> bytes =
            ToBytes(SyntheticValues(Distribution::kOutliers, tokens * channels, 1), dtype);
        ExpectTheCpusBytes({bytes.data(), dtype, tokens, channels});
      }
    }
  }
}

// Chains of 32, 64 and 128 tokens, more groups than lanes.
TEST_F(CudaAccumulateHessianTest, LongChainsAndManyGroups) {
  const std::pair<int64_t, int64_t> shapes[] = {
      {2500, 272}, {2100, 1024}, {3001, 2048}, {9000, 16}};
  for (const auto& [tokens, channels] : shapes) {
    for (DType dtype : kInputDTypes) {
      const std::vector<std::byte> bytes =
          ToBytes(SyntheticValues(Distribution::kNormal, tokens * channels, 2), dtype);
      ExpectTheCpusBytes({bytes.data(), dtype, tokens, channels});
    }
  }
}

TEST_F(CudaAccumulateHessianTest, SubnormalHugeAndNegativeZero) {
  for (DType dtype : kInputDTypes) {
    for (float limit : {1e-18f, 1e15f}) {
      const std::vector<std::byte> bytes = RandomBitsBelow(limit, dtype, 1100 * 144, 7);
      ExpectTheCpusBytes({bytes.data(), dtype, 1100, 144});
    }
  }
}

TEST_F(CudaAccumulateHessianTest, EveryConfigReplaysFromAGraph) {
  constexpr int64_t kTokens = 777, kChannels = 208;
  const std::vector<float> before = SyntheticValues(Distribution::kNormal, kChannels * 16, 3);
  for (DType dtype : kInputDTypes) {
    const auto bytes = [&](Distribution distribution) {
      return ToBytes(SyntheticValues(distribution, kTokens * kChannels, 1), dtype);
    };
    const std::vector<std::byte> first = bytes(Distribution::kLaplace);
    const std::vector<std::byte> second = bytes(Distribution::kNormal);
    std::vector<float> expected = before;
    ASSERT_TRUE(cpu_->AccumulateHessian({second.data(), dtype, kTokens, kChannels}, expected).ok());
    for (int config = 0; config < kAccumulateHessianShapes; ++config) {
      SCOPED_TRACE(config);
      DeviceArray<std::byte> x(first);
      Buffers buffers(kTokens, std::vector<float>(before.size(), NAN));
      const AccumulateHessianArgs args = buffers.Args(x.get(), kTokens, kChannels);
      ReplayFromGraph(
          [&](cudaStream_t stream) { return LaunchAccumulateHessian(dtype, args, config, stream); },
          [&] {
            x.Set(second);
            buffers.hessians.Set(before);
          });
      EXPECT_TRUE(SameBytes(expected, buffers.hessians.Get()));
      EXPECT_EQ(buffers.bad_slice.Get()[0], -1);
    }
  }
}

// The backend: several calls add up, and errors are the CPU's and change nothing.
TEST_F(CudaAccumulateHessianTest, TheBackendAccumulatesAsTheCpuDoes) {
  const std::vector<float> values = SyntheticValues(Distribution::kNormal, 300 * 48, 1);
  std::vector<float> on_cpu(3 * kHessianSize, 0.0f), on_cuda = on_cpu;
  for (int64_t first : {0, 100, 200}) {
    const MatrixView x = {values.data() + first * 48, DType::kF32, 100, 48};
    ASSERT_TRUE(cpu_->AccumulateHessian(x, on_cpu).ok());
    ASSERT_TRUE(cuda_->AccumulateHessian(x, on_cuda).ok());
    EXPECT_TRUE(SameBytes(on_cpu, on_cuda));
  }
  for (float bad : {NAN, INFINITY, -INFINITY, 3e19f}) {
    for (DType dtype : kInputDTypes) {
      std::vector<float> broken = values;
      broken[200 * 48 + 20] = bad;
      broken[201 * 48 + 47] = bad;
      const std::vector<std::byte> bytes = ToBytes(broken, dtype);
      const MatrixView x = {bytes.data(), dtype, 300, 48};
      std::vector<float> h = on_cpu;
      const absl::Status status = cuda_->AccumulateHessian(x, h);
      EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
      EXPECT_TRUE(SameBytes(on_cpu, h));
      EXPECT_EQ(status, cpu_->AccumulateHessian(x, h));
    }
  }
  std::vector<float> huge(160 * 16, 1.8e19f);
  std::vector<float> h(kHessianSize, 1.0f);
  const MatrixView x = {huge.data(), DType::kF32, 160, 16};
  EXPECT_EQ(cuda_->AccumulateHessian(x, h), cpu_->AccumulateHessian(x, h));
}

// NaN with any payload, anywhere, and which slice is named.
TEST_F(CudaAccumulateHessianTest, NamesTheFirstBadSlice) {
  constexpr int64_t kTokens = 259, kChannels = 144;
  for (int config = 0; config < kAccumulateHessianShapes; ++config) {
    for (uint16_t pattern : {0x7F80, 0xFF80, 0x7F81, 0xFFFF}) {
      for (int64_t at : {int64_t{0}, 130 * kChannels + 95, kTokens * kChannels - 1}) {
        std::vector<uint16_t> values(kTokens * kChannels, 0x3F80);
        values[at] = pattern;
        values[200 * kChannels + 140] = 0x7FC0;
        DeviceArray<uint16_t> x(values);
        Buffers buffers(kTokens, std::vector<float>(kChannels * 16, 0.0f));
        ASSERT_EQ(LaunchAccumulateHessian(DType::kBf16, buffers.Args(x.get(), kTokens, kChannels),
                                          config, nullptr),
                  cudaSuccess);
        EXPECT_EQ(buffers.bad_slice.Get()[0], at % kChannels / 16);
      }
    }
  }
}

// More than 2^31 elements; all tokens alike but one, so that the expected sums are cheap.
TEST_F(CudaAccumulateHessianTest, MoreElementsThanAnInt32Counts) {
  const std::pair<int64_t, int64_t> shapes[] = {{(int64_t{1} << 19) + 5, 4096},
                                                {(int64_t{1} << 27) + 7, 16}};
  for (const auto& [tokens, channels] : shapes) {
    SCOPED_TRACE(tokens);
    const int64_t slices = channels / kBlockSize;
    const int64_t odd_token = tokens - 3;
    const std::vector<uint16_t> odd(kBlockSize, 0x4049);
    float usual[kBlockSize], unusual[kBlockSize];
    for (int i = 0; i < kBlockSize; ++i) {
      usual[i] = FloatFromBf16(0x3C3C);
      unusual[i] = FloatFromBf16(0x4049);
    }
    DeviceArray<uint16_t> x(tokens * channels);
    x.Fill(0x3C);
    ASSERT_EQ(cudaMemcpy(x.get() + odd_token * channels + channels - kBlockSize, odd.data(),
                         kBlockSize * 2, cudaMemcpyHostToDevice),
              cudaSuccess);
    Buffers buffers(tokens, std::vector<float>(channels * kBlockSize, 0.0f));
    ASSERT_EQ(LaunchAccumulateHessian(DType::kBf16, buffers.Args(x.get(), tokens, channels),
                                      /*config=*/0, nullptr),
              cudaSuccess);
    const std::vector<float> actual = buffers.hessians.Get();
    const int64_t chain = HessianChainTokens(tokens, slices);
    float of_chain[kHessianSize] = {};
    for (int64_t t = 0; t < chain; ++t) HessianAddToken(usual, of_chain);
    for (int64_t s = 0; s < slices; s += std::max<int64_t>(1, slices - 1)) {
      float total[kHessianSize];
      HessianTotal(
          tokens, slices,
          [&](int64_t first, int64_t last, float* sum) {
            const bool is_odd = s == slices - 1 && first <= odd_token && odd_token < last;
            if (last - first == chain && !is_odd) {
              std::copy_n(of_chain, kHessianSize, sum);
              return;
            }
            for (int64_t t = first; t < last; ++t) {
              HessianAddToken(is_odd && t == odd_token ? unusual : usual, sum);
            }
          },
          total);
      std::vector<float> expected(kHessianSize, 0.0f);
      for (int e = 0; e < kHessianSize; ++e) {
        expected[e] = HessianEntry(0.0f, total, e / kBlockSize, e % kBlockSize);
      }
      const std::span<const float> slice(actual.data() + s * kHessianSize, kHessianSize);
      EXPECT_TRUE(SameBytes(expected, slice)) << s;
    }
    EXPECT_EQ(buffers.bad_slice.Get()[0], -1);
  }
}

// Before a device is touched.
TEST(CudaAccumulateHessianLaunchTest, RefusesUnknownConfigsAndTypes) {
  const AccumulateHessianArgs args = {.tokens = 1, .channels = 16};
  EXPECT_EQ(LaunchAccumulateHessian(DType::kBf16, args, kAccumulateHessianShapes, nullptr),
            cudaErrorInvalidValue);
  EXPECT_EQ(LaunchAccumulateHessian(DType::kBf16, args, -1, nullptr), cudaErrorInvalidValue);
  EXPECT_EQ(LaunchAccumulateHessian(DType::kF64, args, 0, nullptr), cudaErrorInvalidValue);
}

}  // namespace
}  // namespace nibble
