// The CUDA kernels, each launch shape: medians over timed runs after warm-up, by events, inputs
// rotated past the L2 cache. Prints a Markdown table.
//
//   build/release/bench/cuda_bench
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdio>
#include <functional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "engine/synthetic.h"
#include "kernels/cuda/amax_launch.h"
#include "kernels/cuda/scale_sweep_launch.h"

namespace nibble {
namespace {

void Check(cudaError_t error) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "cuda_bench: %s\n", cudaGetErrorString(error));
  std::exit(1);
}

// Milliseconds of launch(i), i the number of the run.
double Median(const std::function<void(int)>& launch) {
  constexpr int kWarmUp = 10, kRuns = 60;
  cudaEvent_t start, stop;
  Check(cudaEventCreate(&start));
  Check(cudaEventCreate(&stop));
  std::vector<float> times;
  for (int i = 0; i < kWarmUp + kRuns; ++i) {
    Check(cudaEventRecord(start));
    launch(i);
    Check(cudaEventRecord(stop));
    Check(cudaEventSynchronize(stop));
    float milliseconds = 0;
    Check(cudaEventElapsedTime(&milliseconds, start, stop));
    if (i >= kWarmUp) times.push_back(milliseconds);
  }
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

template <typename T>
T* Allocate(int64_t count) {
  void* data = nullptr;
  Check(cudaMalloc(&data, count * sizeof(T)));
  return static_cast<T*>(data);
}

void Row(const std::string& work, const std::string& config, double milliseconds, int64_t weights) {
  std::printf("| %s | %s | %.4f | %.0f |\n", work.c_str(), config.c_str(), milliseconds,
              static_cast<double>(weights) / milliseconds * 1e-6);
}

void BenchSweep(int64_t rows, int64_t cols) {
  const int64_t weights = rows * cols, blocks = weights / kBlockSize;
  const std::string shape = absl::StrCat(rows, "x", cols, " bf16");
  // Enough inputs that none is still in the cache when its turn comes.
  const int inputs = static_cast<int>(std::max<int64_t>(2, (int64_t{512} << 20) / (2 * weights)));
  std::vector<void*> x;
  const std::vector<std::byte> part =
      ToBytes(SyntheticValues(Distribution::kNormal, 1 << 24, 1), DType::kBf16);
  for (int i = 0; i < inputs; ++i) {
    x.push_back(Allocate<char>(2 * weights));
    for (int64_t at = 0; at < 2 * weights; at += static_cast<int64_t>(part.size())) {
      const size_t bytes = std::min<size_t>(part.size(), 2 * weights - at);
      Check(cudaMemcpy(static_cast<char*>(x[i]) + at, part.data(), bytes, cudaMemcpyHostToDevice));
    }
  }
  ScaleSweepArgs args = {};
  float* amax = Allocate<float>(1);
  args.blocks = blocks;
  args.global_amax = amax;
  args.bound = 448;
  args.tables = Allocate<ScaleSweepTables>(1);
  args.code = Allocate<uint8_t>(blocks);
  args.best_amax = Allocate<float>(blocks);
  args.loss = Allocate<float>(blocks);
  char* copy = Allocate<char>(2 * weights);

  Row("device copy, " + shape, "", Median([&](int i) {
        Check(cudaMemcpyAsync(copy, x[i % inputs], 2 * weights, cudaMemcpyDeviceToDevice, 0));
      }),
      weights);
  Row("amax, " + shape, "",
      Median([&](int i) { Check(LaunchAmax(DType::kBf16, x[i % inputs], blocks, amax, 0)); }),
      weights);
  for (size_t c = 0; c < std::size(kScaleSweepConfigs); ++c) {
    const auto [warps, per_thread] = kScaleSweepConfigs[c];
    const double time = Median([&](int i) {
      args.x = x[i % inputs];
      Check(LaunchScaleSweep(DType::kBf16, args, static_cast<int>(c), 0));
    });
    Row("sweep, pruned, " + shape, absl::StrCat(warps, " warps, ", per_thread, " blocks a thread"),
        time, weights);
  }
  Check(cudaDeviceSynchronize());
  for (void* p : x) cudaFree(p);
  cudaFree(copy);
  cudaFree(args.code);
  cudaFree(args.best_amax);
  cudaFree(args.loss);
  cudaFree(args.tables);
  cudaFree(amax);
}

}  // namespace
}  // namespace nibble

int main() {
  cudaDeviceProp properties;
  nibble::Check(cudaGetDeviceProperties(&properties, 0));
  std::printf("%s\n\n| work | config | ms | G weights/s |\n|---|---|---|---|\n", properties.name);
  nibble::BenchSweep(8192, 4096);
  nibble::BenchSweep(28672, 8192);
  return 0;
}
