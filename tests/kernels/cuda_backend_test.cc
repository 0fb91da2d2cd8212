// The CUDA backend against the CPU's bytes, for every launch shape, directly and replayed from a
// graph.
#include <string>
#include <vector>

#include "engine/synthetic.h"
#include "gtest/gtest.h"
#include "kernels/backend.h"
#include "tests/testing/bytes.h"

#if NIBBLE_TEST_CUDA

#include <cuda_runtime_api.h>

#include "kernels/cuda/scale_sweep_launch.h"

namespace nibble {
namespace {

using ::nibble::testing::SameBytes;

constexpr DType kDTypes[] = {DType::kBf16, DType::kF16, DType::kF32};

class CudaBackendTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto backend = MakeBackend("cuda:0");
    if (!backend.ok()) GTEST_SKIP() << backend.status().message();
    cuda_ = std::move(*backend);
  }

  void ExpectSame(const SweepResult& expected, const SweepResult& actual) {
    EXPECT_TRUE(SameBytes(expected.code, actual.code)) << "code";
    EXPECT_TRUE(SameBytes(expected.loss, actual.loss)) << "loss";
    EXPECT_TRUE(SameBytes(expected.best_amax, actual.best_amax)) << "best_amax";
  }

  std::unique_ptr<Backend> cpu_ = *MakeBackend("cpu");
  std::unique_ptr<Backend> cuda_;
};

TEST_F(CudaBackendTest, SweepsEveryDistribution) {
  for (size_t d = 0; d < kEnumNames<Distribution>.size(); ++d) {
    for (DType dtype : kDTypes) {
      SCOPED_TRACE(std::string(kEnumNames<Distribution>[d]) + " " + std::string(DTypeName(dtype)));
      const std::vector<std::byte> bytes =
          ToBytes(SyntheticValues(static_cast<Distribution>(d), 333 * 208, d + 1), dtype);
      const MatrixView x = {bytes.data(), dtype, 333, 208};
      const float amax = *cuda_->Amax(x);
      EXPECT_EQ(amax, *cpu_->Amax(x));
      for (float g : {amax, 4 * amax, 0.3f * amax}) {
        for (int e4m3_max : {448, 256}) {
          for (SweepMethod method : {SweepMethod::kExhaustive, SweepMethod::kPruned}) {
            const ScaleSweepParams params = {method, e4m3_max, g};
            const auto actual = cuda_->ScaleSweep(params, x);
            ASSERT_TRUE(actual.ok()) << actual.status();
            ExpectSame(*cpu_->ScaleSweep(params, x), *actual);
          }
        }
      }
    }
  }
}

TEST_F(CudaBackendTest, SweepsAdversarialScales) {
  std::vector<float> values = SyntheticValues(Distribution::kNormal, 64 * 16, 5);
  for (size_t i = 0; i < 64; ++i) values[i] *= 1e20f;  // squares overflow
  for (size_t i = 64; i < 128; ++i) values[i] *= 8e37f;
  for (size_t i = 128; i < 192; ++i) values[i] *= 1e-40f;
  const MatrixView x = {values.data(), DType::kF32, 1, 64 * 16};
  for (float g : {0.0f, 1e-45f, 1e-39f, 1e-30f, 1e-24f, 1e-3f, 1.0f, 1e30f, 3.4e38f}) {
    SCOPED_TRACE(g);
    const ScaleSweepParams params = {SweepMethod::kPruned, 448, g};
    ExpectSame(*cpu_->ScaleSweep(params, x), *cuda_->ScaleSweep(params, x));
  }
}

TEST_F(CudaBackendTest, SweepsEveryShape) {
  for (int64_t rows : {0, 1, 3, 1000}) {
    for (int64_t cols : {16, 48, 4096}) {
      const std::vector<std::byte> bytes =
          ToBytes(SyntheticValues(Distribution::kOutliers, rows * cols, 3), DType::kBf16);
      const MatrixView x = {bytes.data(), DType::kBf16, rows, cols};
      ExpectSame(*cpu_->ScaleSweep({}, x), *cuda_->ScaleSweep({}, x));
    }
  }
}

TEST_F(CudaBackendTest, RefusesNonFiniteValuesAsTheCpuDoes) {
  std::vector<float> values(160, 1.0f);
  values[37] = -INFINITY;
  values[99] = NAN;
  const MatrixView x = {values.data(), DType::kF32, 2, 80};
  EXPECT_EQ(cuda_->ScaleSweep({}, x).status(), cpu_->ScaleSweep({}, x).status());
}

// Every launch shape, captured in a graph and replayed on data that was not there at capture.
TEST_F(CudaBackendTest, EveryConfigReplaysFromAGraph) {
  constexpr int64_t kBlocks = 5001;
  const std::vector<float> first = SyntheticValues(Distribution::kNormal, kBlocks * 16, 1);
  const std::vector<float> second = SyntheticValues(Distribution::kStudentT5, kBlocks * 16, 2);
  for (DType dtype : kDTypes) {
    const std::vector<std::byte> before = ToBytes(first, dtype), after = ToBytes(second, dtype);
    const MatrixView x = {after.data(), dtype, 1, kBlocks * 16};
    const SweepResult expected = *cpu_->ScaleSweep({}, x);
    void* data;
    char* out = nullptr;
    float* g = nullptr;
    ASSERT_EQ(cudaMalloc(&data, before.size()), cudaSuccess);
    ASSERT_EQ(
        cudaMalloc(reinterpret_cast<void**>(&out), sizeof(ScaleSweepTables) + 9 * kBlocks + 64),
        cudaSuccess);
    ASSERT_EQ(cudaMalloc(reinterpret_cast<void**>(&g), 4), cudaSuccess);
    cudaStream_t stream;
    ASSERT_EQ(cudaStreamCreate(&stream), cudaSuccess);
    for (size_t config = 0; config < std::size(kScaleSweepConfigs); ++config) {
      SCOPED_TRACE(config);
      float* floats = reinterpret_cast<float*>(out + (sizeof(ScaleSweepTables) + 15) / 16 * 16);
      const ScaleSweepArgs args = {
          .x = data,
          .blocks = kBlocks,
          .global_amax = g,
          .bound = 448,
          .exhaustive = false,
          .tables = reinterpret_cast<ScaleSweepTables*>(out),
          .code = reinterpret_cast<uint8_t*>(floats + 2 * kBlocks),
          .best_amax = floats,
          .loss = floats + kBlocks,
          .evaluations = nullptr,
      };
      ASSERT_EQ(cudaMemcpy(data, before.data(), before.size(), cudaMemcpyHostToDevice),
                cudaSuccess);
      cudaGraph_t graph;
      cudaGraphExec_t executable;
      ASSERT_EQ(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), cudaSuccess);
      ASSERT_EQ(LaunchScaleSweep(dtype, args, static_cast<int>(config), stream), cudaSuccess);
      ASSERT_EQ(cudaStreamEndCapture(stream, &graph), cudaSuccess);
      ASSERT_EQ(cudaGraphInstantiate(&executable, graph, 0), cudaSuccess);
      ASSERT_EQ(cudaMemcpy(data, after.data(), after.size(), cudaMemcpyHostToDevice), cudaSuccess);
      ASSERT_EQ(cudaMemcpy(g, &expected.global_amax, 4, cudaMemcpyHostToDevice), cudaSuccess);
      ASSERT_EQ(cudaGraphLaunch(executable, stream), cudaSuccess);
      ASSERT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
      SweepResult actual;
      actual.code.resize(kBlocks);
      actual.best_amax.resize(kBlocks);
      actual.loss.resize(kBlocks);
      cudaMemcpy(actual.code.data(), args.code, kBlocks, cudaMemcpyDeviceToHost);
      cudaMemcpy(actual.best_amax.data(), args.best_amax, 4 * kBlocks, cudaMemcpyDeviceToHost);
      cudaMemcpy(actual.loss.data(), args.loss, 4 * kBlocks, cudaMemcpyDeviceToHost);
      ExpectSame(expected, actual);
      cudaGraphExecDestroy(executable);
      cudaGraphDestroy(graph);
    }
    ScaleSweepArgs none = {};
    EXPECT_EQ(LaunchScaleSweep(dtype, none, 99, stream), cudaErrorInvalidValue);
    EXPECT_EQ(LaunchScaleSweep(DType::kF64, none, 0, stream), cudaErrorInvalidValue);
    cudaStreamDestroy(stream);
    cudaFree(data);
    cudaFree(out);
    cudaFree(g);
  }
}

}  // namespace
}  // namespace nibble

#else

TEST(CudaBackendTest, MatchesTheCpu) { GTEST_SKIP() << "this build has no CUDA kernels"; }

#endif  // NIBBLE_TEST_CUDA
