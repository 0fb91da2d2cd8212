// The Hessian sweep on the device against the CPU's bytes, for every launch shape, directly and
// replayed from a graph.
#include <algorithm>
#include <cmath>
#include <iterator>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/parallel_for.h"
#include "engine/synthetic.h"
#include "gtest/gtest.h"
#include "kernels/cuda/scale_sweep_hessian_launch.h"
#include "kernels/hessian_factors.h"
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
using ::nibble::testing::SameSweep;

constexpr int kScaleSweepHessianShapes = static_cast<int>(std::size(kScaleSweepHessianConfigs));

std::vector<Activations> AllActivations() {
  std::vector<Activations> all;
  for (size_t i = 0; i < kEnumNames<Activations>.size(); ++i) {
    all.push_back(static_cast<Activations>(i));
  }
  return all;
}

class CudaScaleSweepHessianTest : public CudaTest {
 protected:
  static void ExpectSame(const SweepResult& expected, const SweepResult& actual) {
    EXPECT_TRUE(SameSweep(expected, actual));
    EXPECT_EQ(expected.near_ties, actual.near_ties);
  }
  void ExpectSame(const ScaleSweepParams& params, const MatrixView& x,
                  std::span<const float> hessians) {
    const auto expected = cpu_->ScaleSweepHessian(params, x, hessians);
    const auto actual = cuda_->ScaleSweepHessian(params, x, hessians);
    ASSERT_TRUE(expected.ok()) << expected.status();
    ASSERT_TRUE(actual.ok()) << actual.status();
    ExpectSame(*expected, *actual);
  }

  // One launch with memory of its own, through a graph that was captured over other data.
  SweepResult Launch(const MatrixView& x, std::span<const float> hessians, float g, int e4m3_max,
                     bool exhaustive, int config) {
    ThreadPool pool(1);
    const std::vector<HessianFactor> host_factors = *FactorHessians(hessians, pool);
    const int64_t blocks = x.size() / kBlockSize;
    const int64_t bytes = x.size() * DTypeBytes(x.dtype);
    DeviceArray<char> data(bytes);
    DeviceArray<HessianFactor> factors(std::ssize(host_factors));
    DeviceArray<float> device_g(1), best_amax(blocks), loss(blocks);
    DeviceArray<uint8_t> code(blocks);
    DeviceArray<SweepCounts> counts(1);
    DeviceArray<ScaleSweepHessianTables> tables(1);
    DeviceArray<HessianSlice> prepared(std::ssize(host_factors));
    data.Fill(0x11);
    factors.Fill(0x22);
    counts.Fill(0);
    const ScaleSweepHessianArgs args = {
        .x = data.get(),
        .rows = x.rows,
        .slices = x.cols / kBlockSize,
        .factors = factors.get(),
        .global_amax = device_g.get(),
        .bound = static_cast<float>(e4m3_max),
        .exhaustive = exhaustive,
        .tables = tables.get(),
        .prepared = prepared.get(),
        .code = code.get(),
        .best_amax = best_amax.get(),
        .loss = loss.get(),
        .counts = counts.get(),
    };
    ReplayFromGraph(
        [&](cudaStream_t stream) { return LaunchScaleSweepHessian(x.dtype, args, config, stream); },
        [&] {
          data.Set({static_cast<const char*>(x.data), static_cast<size_t>(bytes)});
          factors.Set(host_factors);
          device_g.Set({&g, 1});
          code.Fill(0xEE);
          best_amax.Fill(0xEE);
          loss.Fill(0xEE);
        });
    const SweepCounts counted = counts.Get()[0];
    SweepResult result;
    result.global_amax = g;
    result.evaluations = counted.evaluations;
    result.near_ties = counted.near_ties;
    const auto copy = [](const auto& from, auto& to) {
      const auto values = from.Get();
      to.assign(values.begin(), values.end());
    };
    copy(code, result.code);
    copy(best_amax, result.best_amax);
    copy(loss, result.loss);
    return result;
  }
};

TEST_F(CudaScaleSweepHessianTest, SweepsEveryDistribution) {
  constexpr int64_t kRows = 77, kCols = 96;
  for (Activations kind : AllActivations()) {
    const std::vector<float> hessians = MakeHessians(kind, kCols / kBlockSize);
    for (size_t d = 0; d < kEnumNames<Distribution>.size(); ++d) {
      for (DType dtype : kInputDTypes) {
        SCOPED_TRACE(std::string(NameOf(kind)) + " " + std::string(kEnumNames<Distribution>[d]) +
                     " " + std::string(DTypeName(dtype)));
        const std::vector<std::byte> bytes =
            ToBytes(SyntheticValues(static_cast<Distribution>(d), kRows * kCols, d + 1), dtype);
        const MatrixView x = {bytes.data(), dtype, kRows, kCols};
        const float amax = *cpu_->Amax(x);
        for (float g : {amax, 4 * amax, 0.3f * amax}) {
          for (int e4m3_max : {448, 256}) {
            ExpectSame({SweepMethod::kPruned, e4m3_max, g}, x, hessians);
          }
        }
        ExpectSame({SweepMethod::kExhaustive, 448, amax}, x, hessians);
      }
    }
  }
}

// Values of g at which quotients are ties, at which nothing may be pruned, and at both ends of
// where it may; blocks whose squares over- or underflow, or that no candidate reaches.
TEST_F(CudaScaleSweepHessianTest, SweepsAdversarialScales) {
  constexpr int64_t kRows = 64, kCols = 48;
  std::vector<float> values = SyntheticValues(Distribution::kNormal, kRows * kCols, 5);
  for (int64_t i = 0; i < kCols; ++i) values[i] *= 1e18f;
  for (int64_t i = kCols; i < 2 * kCols; ++i) values[i] *= 5e30f;
  for (int64_t i = 2 * kCols; i < 3 * kCols; ++i) values[i] *= 1e-40f;
  for (int64_t i = 3 * kCols; i < 4 * kCols; ++i) values[i] *= 1e-20f;
  for (int64_t i = 4 * kCols; i < 5 * kCols; ++i) values[i] = std::round(4 * values[i]);
  for (DType dtype : {DType::kBf16, DType::kF32}) {
    const std::vector<std::byte> bytes = ToBytes(values, dtype);
    const MatrixView x = {bytes.data(), dtype, kRows, kCols};
    for (Activations kind : AllActivations()) {
      const std::vector<float> hessians = MakeHessians(kind, kCols / kBlockSize);
      for (float g : {0.0f, 1e-45f, 1e-39f, 1e-30f, 8.3e-25f, 1e-24f, 1e-20f, 1e-3f, 0.3f, 1.0f,
                      6.0f, 448.0f, 2688.0f, 3072.0f, 1e4f, 1e12f, 1e30f, 1.3e30f, 3.4e38f}) {
        SCOPED_TRACE(std::string(NameOf(kind)) + " g " + std::to_string(g) + " " +
                     std::string(DTypeName(dtype)));
        for (int e4m3_max : {448, 256}) {
          for (SweepMethod method : {SweepMethod::kPruned, SweepMethod::kExhaustive}) {
            ExpectSame({method, e4m3_max, g}, x, hessians);
          }
        }
      }
    }
  }
}

// Every launch shape, captured in a graph and replayed on data that was not there at capture.
TEST_F(CudaScaleSweepHessianTest, EveryConfigReplaysFromAGraphOnEveryShape) {
  for (int64_t slices : {1, 3, 9, 16}) {
    const std::vector<float> hessians = MakeHessians(Activations::kIid, slices);
    for (int64_t rows : {1, 3, 33, 1000}) {
      const std::vector<float> values =
          SyntheticValues(Distribution::kOutliers, rows * slices * kBlockSize, rows);
      for (DType dtype : kInputDTypes) {
        const std::vector<std::byte> bytes = ToBytes(values, dtype);
        const MatrixView x = {bytes.data(), dtype, rows, slices * kBlockSize};
        for (bool exhaustive : {false, true}) {
          const SweepMethod method = exhaustive ? SweepMethod::kExhaustive : SweepMethod::kPruned;
          const SweepResult expected =
              *cpu_->ScaleSweepHessian({method, 256, std::nullopt}, x, hessians);
          for (int config = 0; config < kScaleSweepHessianShapes; ++config) {
            SCOPED_TRACE(absl::StrCat(rows, " rows, ", slices, " slices, config ", config));
            const SweepResult actual =
                Launch(x, hessians, expected.global_amax, 256, exhaustive, config);
            ExpectSame(expected, actual);
            EXPECT_GT(actual.evaluations, 0);
            EXPECT_LE(actual.evaluations, rows * slices * kE4m3Codes);
          }
        }
      }
    }
  }
}

TEST_F(CudaScaleSweepHessianTest, ManyBlocks) {
  constexpr int64_t kRows = 4096, kCols = 1024;
  for (Activations kind :
       {Activations::kIid, Activations::kCorrelated, Activations::kChannelOutliers}) {
    const std::vector<float> hessians = MakeHessians(kind, kCols / kBlockSize);
    for (Distribution d : {Distribution::kNormal, Distribution::kWeightLike}) {
      for (DType dtype : {DType::kBf16, DType::kF16}) {
        SCOPED_TRACE(std::string(NameOf(kind)) + " " + std::string(NameOf(d)) + " " +
                     std::string(DTypeName(dtype)));
        const std::vector<std::byte> bytes = ToBytes(SyntheticValues(d, kRows * kCols, 7), dtype);
        ExpectSame({}, {bytes.data(), dtype, kRows, kCols}, hessians);
      }
    }
  }
}

TEST_F(CudaScaleSweepHessianTest, SweepsNoRows) {
  const std::vector<float> hessians = MakeHessians(Activations::kIid, 2);
  ExpectSame({}, {nullptr, DType::kBf16, 0, 32}, hessians);
}

TEST_F(CudaScaleSweepHessianTest, RefusesWhatTheCpuRefuses) {
  std::vector<float> values(96, 1.0f);
  const MatrixView x = {values.data(), DType::kF32, 2, 48};
  const std::vector<float> good = MakeHessians(Activations::kIid, 3);
  const auto expect_same = [&](std::span<const float> hessians) {
    const absl::Status status = cpu_->ScaleSweepHessian({}, x, hessians).status();
    EXPECT_FALSE(status.ok());
    EXPECT_EQ(cuda_->ScaleSweepHessian({}, x, hessians).status(), status);
  };
  const auto with = [&](size_t at, float value) {
    std::vector<float> hessians = good;
    hessians[at] = value;
    return hessians;
  };
  expect_same(std::span(good).first(512));
  expect_same(with(300, NAN));
  expect_same(with(700, INFINITY));
  expect_same(with(257, 5.0f));
  expect_same(with(512, -1.0f));
  values[37] = -INFINITY;
  values[49] = NAN;
  expect_same(good);
  expect_same(with(300, NAN));
}

// Before a device is touched.
TEST(CudaScaleSweepHessianLaunchTest, RefusesUnknownConfigsAndTypes) {
  const ScaleSweepHessianArgs args = {.rows = 1, .slices = 1};
  EXPECT_EQ(LaunchScaleSweepHessian(DType::kBf16, args, kScaleSweepHessianShapes, nullptr),
            cudaErrorInvalidValue);
  EXPECT_EQ(LaunchScaleSweepHessian(DType::kBf16, args, -1, nullptr), cudaErrorInvalidValue);
  EXPECT_EQ(LaunchScaleSweepHessian(DType::kF64, args, 0, nullptr), cudaErrorInvalidValue);
}

}  // namespace
}  // namespace nibble
