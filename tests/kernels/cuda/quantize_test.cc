// Row-wise quantization on the device against the CPU's bytes: through the backend, and by the
// launcher for every launch shape, directly and replayed from a graph.
#include <algorithm>
#include <cmath>
#include <iterator>
#include <string>
#include <vector>

#include "engine/synthetic.h"
#include "gtest/gtest.h"
#include "kernels/cpu/cpu_kernels.h"
#include "kernels/cuda/quantize_launch.h"
#include "tests/testing/bytes.h"
#include "tests/testing/cuda.h"
#include "tests/testing/golden.h"
#include "tests/testing/params.h"

namespace nibble {
namespace {

using ::nibble::testing::AllParams;
using ::nibble::testing::CudaTest;
using ::nibble::testing::Describe;
using ::nibble::testing::DeviceArray;
using ::nibble::testing::kInputDTypes;
using ::nibble::testing::ReplayFromGraph;
using ::nibble::testing::SameBytes;
using ::nibble::testing::SamePacked;

struct Tensor {
  std::vector<std::byte> bytes;
  MatrixView view;

  Tensor(const std::vector<float>& values, DType dtype, int64_t rows, int64_t cols)
      : bytes(ToBytes(values, dtype)), view{bytes.data(), dtype, rows, cols} {}
  Tensor(Distribution distribution, DType dtype, int64_t rows, int64_t cols, uint64_t seed = 1)
      : Tensor(SyntheticValues(distribution, rows * cols, seed), dtype, rows, cols) {}
};

// Blocks from 2^-140 to 2^100 beside one another, with zeros of both signs among them.
std::vector<float> AdversarialValues(int64_t count) {
  std::vector<float> values = SyntheticValues(Distribution::kNormal, count, 9);
  for (int64_t i = 0; i < count; ++i) {
    const int64_t block = i / kBlockSize;
    values[i] = std::ldexp(values[i], static_cast<int>(block * 7 % 241 - 140));
    if (block % 5 == 1) values[i] = std::ldexp(values[i], -static_cast<int>(i % 16) * 8);
    if (i % 11 == 3) values[i] = -0.0f;
  }
  return values;
}

EncodeMethod MethodOf(const QuantizeParams& params) {
  if (!params.four_over_six) {
    return params.rule == Rule::kRuntime ? EncodeMethod::kRuntime : EncodeMethod::kCheckpoint;
  }
  return params.four_over_six->metric == ErrorMetric::kMae   ? EncodeMethod::kFourOverSixMae
         : params.four_over_six->metric == ErrorMetric::kMse ? EncodeMethod::kFourOverSixMse
                                                             : EncodeMethod::kFourOverSixAbsMax;
}

// A launch and the memory it needs; everything that is written is followed by a guard.
struct Launch {
  static constexpr int64_t kGuard = 64;
  PackedLayout layout;
  DeviceArray<std::byte> x;
  DeviceArray<float> amax;
  DeviceArray<uint8_t> packed, scale;
  DeviceArray<uint32_t> non_finite;
  QuantizeArgs args;

  Launch(const QuantizeParams& params, const MatrixView& input)
      : layout(LayoutOf(params, input.rows, input.cols)),
        x(input.size() * DTypeBytes(input.dtype)),
        amax(layout.amax_count()),
        packed(layout.packed_bytes() + kGuard),
        scale(layout.scale_bytes() + kGuard),
        non_finite(1) {
    packed.Fill(0xA5);
    scale.Fill(0xA5);
    non_finite.Fill(0);
    args = {.dtype = input.dtype,
            .x = x.get(),
            .rows = input.rows,
            .cols = input.cols,
            .scheme = params.scheme,
            .method = MethodOf(params),
            .amax = amax.get(),
            .swizzle = params.swizzle,
            .packed = packed.get(),
            .scale = scale.get(),
            .non_finite = non_finite.get()};
    args.encode.bound = static_cast<float>(params.e4m3_max);
    args.encode.rule = params.rule;
    if (params.four_over_six) args.encode.path = params.four_over_six->path;
    if (params.stochastic) {
      args.encode.stochastic = true;
      args.encode.seed = params.stochastic->seed;
      args.encode.offset = params.stochastic->offset;
    }
  }

  void Set(const MatrixView& input, const std::vector<float>& maxima) {
    x.Set({static_cast<const std::byte*>(input.data),
           static_cast<size_t>(input.size()) * DTypeBytes(input.dtype)});
    amax.Set(maxima);
  }

  // Fails where the guards were written to.
  PackedTensor Result() const {
    PackedTensor result(layout);
    const auto take = [](const DeviceArray<uint8_t>& from, std::vector<uint8_t>& to) {
      const std::vector<uint8_t> bytes = from.Get();
      std::copy_n(bytes.begin(), to.size(), to.begin());
      EXPECT_EQ(std::count(bytes.begin() + to.size(), bytes.end(), 0xA5), kGuard);
    };
    take(packed, result.packed);
    take(scale, result.scale);
    result.amax = amax.Get();
    return result;
  }
};

class CudaQuantizeTest : public CudaTest {
 protected:
  void ExpectSame(const QuantizeParams& params, const MatrixView& x) {
    SCOPED_TRACE(Describe(params, x));
    const auto expected = cpu_->Quantize(params, x);
    const auto actual = cuda_->Quantize(params, x);
    ASSERT_TRUE(expected.ok()) << expected.status();
    ASSERT_TRUE(actual.ok()) << actual.status();
    EXPECT_TRUE(SamePacked(*expected, *actual));
  }
};

TEST_F(CudaQuantizeTest, MatchesTransformerEngine) {
  const int cases = testing::CheckTransformerEngineCases(*cuda_, [](const QuantizeParams& params) {
    return !params.columnwise && params.rht == Rht::kNone;
  });
  EXPECT_EQ(cases, 243);
  testing::CheckSwizzledScales(*cuda_);
}

TEST_F(CudaQuantizeTest, MatchesModelOptimizer) { testing::CheckModelOptimizerExports(*cuda_); }

TEST_F(CudaQuantizeTest, EveryDistribution) {
  for (size_t d = 0; d < kEnumNames<Distribution>.size(); ++d) {
    SCOPED_TRACE(kEnumNames<Distribution>[d]);
    for (DType dtype : kInputDTypes) {
      const Tensor x(static_cast<Distribution>(d), dtype, 112, 208, d + 1);
      for (QuantizeParams params : AllParams()) ExpectSame(params, x.view);
    }
  }
}

TEST_F(CudaQuantizeTest, EveryShape) {
  const std::pair<int64_t, int64_t> shapes[] = {{0, 16},   {1, 16},    {1, 4096}, {3, 48},
                                                {16, 16},  {17, 80},   {48, 144}, {160, 32},
                                                {128, 64}, {272, 528}, {1000, 16}};
  for (const auto& [rows, cols] : shapes) {
    const Tensor x(Distribution::kOutliers, DType::kBf16, rows, cols);
    for (QuantizeParams params : AllParams()) {
      if (params.scheme == Scheme::kTile2d && rows % kBlockSize != 0) continue;
      for (bool swizzle : {false, true}) {
        params.swizzle = swizzle;
        ExpectSame(params, x.view);
      }
    }
  }
}

TEST_F(CudaQuantizeTest, EveryMagnitude) {
  for (DType dtype : kInputDTypes) {
    std::vector<float> values = AdversarialValues(64 * 1024);
    if (dtype == DType::kF16) {
      for (float& value : values) value = std::clamp(value, -65504.0f, 65504.0f);
    }
    const Tensor x(values, dtype, 64, 1024);
    for (QuantizeParams params : AllParams()) {
      ExpectSame(params, x.view);
      if (params.scheme == Scheme::kPerToken) continue;
      for (float g : {0.0f, 1e-42f, 1e-20f, 1e-10f, 0.5f, 6e4f, 1e9f, 3e38f}) {
        params.global_amax = g;
        ExpectSame(params, x.view);
      }
    }
  }
}

// What 4over6 finds hard: values on the grid and at its ties, under outer scales that keep them
// there; both candidates alike or nearly; blocks of one magnitude; everything that the filter for
// bf16 refuses.
TEST_F(CudaQuantizeTest, NearTiesOfFourOverSix) {
  constexpr int64_t kRows = 96, kCols = 1040, kCount = kRows * kCols;
  constexpr float kGrid[] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6};
  constexpr float kTies[] = {0.25f, 0.75f, 1.25f, 1.75f, 2.5f, 3.5f, 5, 6};
  const std::vector<float> normal = SyntheticValues(Distribution::kNormal, kCount, 21);
  for (int kind = 0; kind < 5; ++kind) {
    std::vector<float> values = normal;
    for (int64_t i = 0; i < kCount; ++i) {
      const float unit = 1.0f + 0.25f * static_cast<float>(i / kBlockSize % 4);
      const int pick = static_cast<int>((i * 2654435761u >> 7) % 8);
      const float sign = std::copysign(1.0f, normal[i]);
      if (kind == 1) values[i] = kGrid[pick] * unit * sign;
      if (kind == 2) values[i] = (i % kBlockSize == 3 ? 6.0f : kTies[pick]) * unit * sign;
      if (kind == 3) values[i] = std::round(normal[i] * 2) / 2;
      if (kind == 4) values[i] = unit * sign;
    }
    const Tensor x(values, DType::kBf16, kRows, kCols);
    for (QuantizeParams params : AllParams()) {
      if (!params.four_over_six || params.scheme == Scheme::kPerToken) continue;
      params.swizzle = kind % 2 == 1;
      ExpectSame(params, x.view);
      for (float g : {3.0f, 4.375f, 4.5f, 6.0f, 10.5f, 1344.0f, 0x1p16f}) {
        params.global_amax = g;
        ExpectSame(params, x.view);
      }
    }
  }
}

TEST_F(CudaQuantizeTest, GivenScales) {
  for (DType dtype : kInputDTypes) {
    const Tensor x(Distribution::kStudentT5, dtype, 37, 208);
    for (float g : {1e-42f, 0.01f, 10.0f}) {
      std::vector<uint8_t> scales(37 * 13);
      for (size_t b = 0; b < scales.size(); ++b) scales[b] = static_cast<uint8_t>(1 + b % 126);
      EXPECT_TRUE(SamePacked(*cpu_->QuantizeWithScales(x.view, g, 448, scales),
                             *cuda_->QuantizeWithScales(x.view, g, 448, scales)));
    }
  }
}

TEST_F(CudaQuantizeTest, RefusesNonFiniteValuesAsTheCpuDoes) {
  std::vector<float> values(160, 1.0f);
  values[37] = -INFINITY;
  values[99] = NAN;
  const MatrixView x = {values.data(), DType::kF32, 2, 80};
  EXPECT_EQ(cuda_->Quantize({}, x).status(), cpu_->Quantize({}, x).status());
  const std::vector<uint8_t> scales(10, 1);
  EXPECT_EQ(cuda_->QuantizeWithScales(x, 1.0f, 448, scales).status(),
            cpu_->QuantizeWithScales(x, 1.0f, 448, scales).status());
}

// Every launch shape under all parameters, captured in a graph and replayed on data that was not
// there at capture.
TEST_F(CudaQuantizeTest, EveryConfigReplaysFromAGraph) {
  for (DType dtype : kInputDTypes) {
    const Tensor before(Distribution::kNormal, dtype, 144, 592, 1);
    const Tensor after(Distribution::kWeightLike, dtype, 144, 592, 2);
    for (QuantizeParams params : AllParams()) {
      params.swizzle = params.e4m3_max == 256;
      const PackedTensor expected = *cpu_->Quantize(params, after.view);
      for (size_t config = 0; config < std::size(kQuantizeConfigs); ++config) {
        SCOPED_TRACE(Describe(params, after.view) + " config " + std::to_string(config));
        Launch launch(params, before.view);
        launch.Set(before.view, std::vector<float>(expected.amax.size(), 1.0f));
        ReplayFromGraph(
            [&](cudaStream_t stream) {
              return LaunchQuantize(launch.args, static_cast<int>(config), stream);
            },
            [&] { launch.Set(after.view, expected.amax); });
        EXPECT_TRUE(SamePacked(expected, launch.Result()));
        EXPECT_EQ(launch.non_finite.Get()[0], 0u);
      }
    }
  }
}

// NaN and infinity in the blocks, as the reference encodes them; the flag is raised by either and
// by nothing else, and where it was up, it stays.
TEST_F(CudaQuantizeTest, NonFiniteValuesInTheKernels) {
  constexpr int64_t kRows = 48, kCols = 176;
  for (DType dtype : kInputDTypes) {
    for (float bad : {NAN, -NAN, INFINITY, -INFINITY}) {
      std::vector<float> values = SyntheticValues(Distribution::kNormal, kRows * kCols, 4);
      for (int64_t i : {int64_t{0}, int64_t{37}, 20 * kCols + 5, kRows * kCols - 1})
        values[i] = bad;
      for (int64_t i = 5 * kCols; i < 5 * kCols + 16; ++i) values[i] = bad;  // nothing else
      const Tensor x(values, dtype, kRows, kCols);
      for (const QuantizeParams& params : AllParams()) {
        SCOPED_TRACE(Describe(params, x.view) + " " + std::to_string(bad));
        const std::vector<float> amax(params.scheme == Scheme::kPerToken ? kRows : 1, 4.5f);
        PackedTensor expected(LayoutOf(params, kRows, kCols));
        expected.amax = amax;
        const EncodeJob job = {
            x.view, &params, amax.data(), nullptr, expected.packed.data(), expected.scale.data()};
        if (params.scheme == Scheme::kTile2d) {
          ScalarKernels().encode_tiles(job, 0, kRows / kBlockSize * (kCols / kBlockSize));
        } else {
          ScalarKernels().encode_blocks(job, 0, kRows * kCols / kBlockSize);
        }
        for (size_t config = 0; config < std::size(kQuantizeConfigs); ++config) {
          Launch launch(params, x.view);
          launch.Set(x.view, amax);
          ASSERT_EQ(LaunchQuantize(launch.args, static_cast<int>(config), nullptr), cudaSuccess);
          EXPECT_TRUE(SamePacked(expected, launch.Result()));
          EXPECT_EQ(launch.non_finite.Get()[0], 1u);
          launch.args.non_finite = nullptr;
          EXPECT_EQ(LaunchQuantize(launch.args, static_cast<int>(config), nullptr), cudaSuccess);
          EXPECT_TRUE(SamePacked(expected, launch.Result()));
        }
      }
    }
  }
  // One bad element anywhere raises it; finite ones, however large, leave it alone.
  std::vector<float> values(kRows * kCols, 3e38f);
  for (int64_t bad : {int64_t{-1}, int64_t{0}, int64_t{15}, int64_t{1234}, kRows * kCols - 1}) {
    std::vector<float> copy = values;
    if (bad >= 0) copy[bad] = NAN;
    const Tensor x(copy, DType::kF32, kRows, kCols);
    Launch launch({}, x.view);
    launch.Set(x.view, {3e38f});
    ASSERT_EQ(LaunchQuantize(launch.args, 0, nullptr), cudaSuccess);
    EXPECT_EQ(launch.non_finite.Get()[0], bad >= 0 ? 1u : 0u) << bad;
    launch.non_finite.Set(std::vector<uint32_t>{7});
    ASSERT_EQ(LaunchQuantize(launch.args, 0, nullptr), cudaSuccess);
    EXPECT_EQ(launch.non_finite.Get()[0], bad >= 0 ? 1u : 7u) << bad;
  }
}

// More elements than 32 bits count: rows on both sides of element 2^31, and the last ones, as the
// CPU encodes them at these indices.
TEST_F(CudaQuantizeTest, MoreThanTwoToTheThirtyOneElements) {
  constexpr int64_t kCols = 4096, kPart = 256;  // rows of a part
  constexpr int64_t kRows = (int64_t{1} << 31) / kCols + 2 * kPart;
  size_t free = 0, total = 0;
  ASSERT_EQ(cudaMemGetInfo(&free, &total), cudaSuccess);
  if (free < (size_t{8} << 30)) GTEST_SKIP() << "needs 8 GiB of device memory";
  const Tensor pattern(Distribution::kStudentT5, DType::kBf16, kPart, kCols, 5);
  constexpr int64_t kPartBytes = kPart * kCols * 2;
  DeviceArray<std::byte> x(kRows * kCols * 2);
  for (int64_t at = 0; at < kRows * kCols * 2; at += kPartBytes) {
    ASSERT_EQ(cudaMemcpyAsync(x.get() + at, at == 0 ? pattern.bytes.data() : x.get(), kPartBytes,
                              cudaMemcpyDefault),
              cudaSuccess);
  }
  const std::vector<float> amax(kRows, 6.25f);
  const DeviceArray<float> device_amax{std::span(amax)};
  const DeviceArray<uint8_t> packed(kRows * kCols / 2);
  DeviceArray<uint8_t> scale(kRows * kCols / kBlockSize);
  for (QuantizeParams params : AllParams()) {
    const bool skip = params.four_over_six &&
                      *params.four_over_six != FourOverSix{ErrorMetric::kMse, ErrorPath::kFast};
    if (skip || params.e4m3_max == 256) continue;
    params.swizzle = params.scheme == Scheme::kPerTensor && params.rule == Rule::kCheckpoint;
    const MatrixView shape = {nullptr, DType::kBf16, kRows, kCols};
    SCOPED_TRACE(Describe(params, shape));
    Launch launch(params, {nullptr, DType::kBf16, 0, kCols});
    launch.args.rows = kRows;
    launch.args.x = x.get();
    launch.args.amax = device_amax.get();
    launch.args.packed = packed.get();
    launch.args.scale = scale.get();
    scale.Fill(0xA5);
    ASSERT_EQ(LaunchQuantize(launch.args, 0, nullptr), cudaSuccess);
    const std::vector<uint8_t> scales = scale.Get();
    const PackedLayout layout = LayoutOf(params, kRows, kCols);
    for (int64_t first_row : {kRows - 3 * kPart, kRows - 2 * kPart, kRows - kPart}) {
      // The job reads and writes what belongs to these rows only, at their own indices.
      const int64_t first = first_row * kCols;
      std::vector<uint8_t> expected(kPart * kCols / 2), actual(kPart * kCols / 2);
      std::vector<uint8_t> expected_scale(kPart * kCols / kBlockSize), actual_scale;
      const auto before = [](auto* p, int64_t bytes) {
        return reinterpret_cast<decltype(p)>(reinterpret_cast<uintptr_t>(p) - bytes);
      };
      const EncodeJob job = {{before(pattern.bytes.data(), first * 2), DType::kBf16, kRows, kCols},
                             &params,
                             amax.data(),
                             nullptr,
                             before(expected.data(), first / 2),
                             before(expected_scale.data(), first / kBlockSize)};
      if (params.scheme == Scheme::kTile2d) {
        SimdKernels().encode_tiles(job, first / 256, (first + kPart * kCols) / 256);
      } else {
        SimdKernels().encode_blocks(job, first / kBlockSize, (first + kPart * kCols) / kBlockSize);
      }
      ASSERT_EQ(cudaMemcpy(actual.data(), packed.get() + first / 2, actual.size(),
                           cudaMemcpyDeviceToHost),
                cudaSuccess);
      EXPECT_TRUE(SameBytes(expected, actual)) << first_row;
      for (int64_t r = first_row; r < first_row + kPart; ++r) {
        for (int64_t b = 0; b < kCols / kBlockSize; ++b) {
          actual_scale.push_back(scales[layout.scale_offset(r, b)]);
        }
      }
      EXPECT_TRUE(SameBytes(expected_scale, actual_scale)) << first_row;
    }
  }
}

// Before a device is touched.
TEST(CudaQuantizeLaunchTest, RefusesUnknownConfigsAndTypes) {
  const int configs = static_cast<int>(std::size(kQuantizeConfigs));
  EXPECT_EQ(LaunchQuantize({}, configs, nullptr), cudaErrorInvalidValue);
  EXPECT_EQ(LaunchQuantize({}, -1, nullptr), cudaErrorInvalidValue);
  EXPECT_EQ(LaunchQuantize({.dtype = DType::kF64, .rows = 16, .cols = 16}, 0, nullptr),
            cudaErrorInvalidValue);
  const uint8_t scale = 1;
  EXPECT_EQ(LaunchQuantize({.rows = 16, .cols = 16, .given_scale = &scale}, 0, nullptr),
            cudaErrorInvalidValue);
  EXPECT_EQ(LaunchQuantize({}, 0, nullptr), cudaSuccess);  // no rows
}

}  // namespace
}  // namespace nibble
