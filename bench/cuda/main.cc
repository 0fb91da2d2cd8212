// The CUDA kernels, each launch shape. Prints a Markdown table.
//
//   build/release/bench/cuda_bench [WORK...]
#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <string_view>

#include "bench/cuda/bench.h"
#include "engine/synthetic.h"

namespace nibble::bench {

void Check(cudaError_t error) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "cuda_bench: %s\n", cudaGetErrorString(error));
  std::exit(1);
}

DeviceMemory Allocate(int64_t bytes) {
  void* data = nullptr;
  Check(cudaMalloc(&data, bytes));
  Check(cudaMemset(data, 0, bytes));
  return {data, [](void* p) { cudaFree(p); }};
}

RotatedInputs::RotatedInputs(int64_t rows, int64_t cols, DType dtype) {
  const int64_t bytes = rows * cols * DTypeBytes(dtype);
  const int64_t copies = std::max<int64_t>(2, (int64_t{512} << 20) / bytes);
  const std::vector<std::byte> part =
      ToBytes(SyntheticValues(Distribution::kNormal, 1 << 22, 1), dtype);
  for (int64_t i = 0; i < copies; ++i) {
    copies_.push_back(Allocate(bytes));
    for (int64_t at = 0; at < bytes; at += static_cast<int64_t>(part.size())) {
      const int64_t count = std::min<int64_t>(part.size(), bytes - at);
      Check(cudaMemcpy(As<char>(copies_.back()) + at, part.data(), count, cudaMemcpyHostToDevice));
    }
  }
}

double MedianMs(const std::function<cudaError_t(int run)>& launch) {
  constexpr int kWarmUp = 10, kRuns = 60;
  std::vector<cudaEvent_t> events(kRuns + 1);
  for (cudaEvent_t& event : events) Check(cudaEventCreate(&event));
  // Before the gate: a kernel's first launch loads it, which waits for the device.
  for (int run = 0; run < kWarmUp; ++run) Check(launch(run));
  Check(cudaDeviceSynchronize());
  std::atomic<bool> queued{false};
  Check(cudaLaunchHostFunc(
      nullptr,
      [](void* flag) {
        while (!static_cast<std::atomic<bool>*>(flag)->load()) {
        }
      },
      &queued));
  cudaError_t error = cudaEventRecord(events[0]);
  for (int run = 0; run < kRuns && error == cudaSuccess; ++run) {
    error = launch(kWarmUp + run);
    if (error == cudaSuccess) error = cudaEventRecord(events[run + 1]);
  }
  queued = true;
  Check(error);
  Check(cudaDeviceSynchronize());
  std::vector<float> times(kRuns);
  for (int i = 0; i < kRuns; ++i) {
    Check(cudaEventElapsedTime(&times[i], events[i], events[i + 1]));
  }
  for (cudaEvent_t event : events) Check(cudaEventDestroy(event));
  std::nth_element(times.begin(), times.begin() + kRuns / 2, times.end());
  return times[kRuns / 2];
}

double CopyMs(int64_t bytes) {
  const int64_t half = bytes / 2;
  const DeviceMemory from[2] = {Allocate(half), Allocate(half)};
  const DeviceMemory to = Allocate(half);
  return MedianMs([&](int run) {
    return cudaMemcpyAsync(to.get(), from[run % 2].get(), half, cudaMemcpyDeviceToDevice, nullptr);
  });
}

void Row(const std::string& work, const std::string& config, double milliseconds, double bytes,
         const std::string& note) {
  std::printf("| %s | %s | %.4f | %.2f | %s |\n", work.c_str(), config.c_str(), milliseconds,
              bytes / milliseconds * 1e-9, note.c_str());
  std::fflush(stdout);
}

void Skipped(const std::string& work, const std::string& reason) {
  std::printf("| %s | | | | not run: %s |\n", work.c_str(), reason.c_str());
}

std::string PercentOfCopy(double copy_ms, double milliseconds) {
  return std::to_string(static_cast<int>(100 * copy_ms / milliseconds + 0.5)) +
         " % of the copy's rate";
}

}  // namespace nibble::bench

int main(int argc, char** argv) {
  using namespace nibble::bench;
  struct Work {
    std::string_view name;
    void (*run)();
  };
  constexpr Work kWorks[] = {{"accumulate_hessian", BenchAccumulateHessian},
                             {"check_gemm", BenchCheckGemm},
                             {"dequantize", BenchDequantize},
                             {"hessian_feedback", BenchHessianFeedback},
                             {"measure_error", BenchMeasureError},
                             {"multiplier_search", BenchMultiplierSearch},
                             {"observe", BenchObserve},
                             {"post_scale", BenchPostScale},
                             {"quantize", BenchQuantize},
                             {"quantize_copies", BenchQuantizeCopies},
                             {"scale_sweep", BenchScaleSweep},
                             {"scale_sweep_hessian", BenchScaleSweepHessian}};
  for (int i = 1; i < argc; ++i) {
    if (std::ranges::none_of(kWorks, [&](const Work& work) { return work.name == argv[i]; })) {
      std::fprintf(stderr, "cuda_bench: expected");
      for (const Work& work : kWorks) std::fprintf(stderr, " %s", work.name.data());
      std::fprintf(stderr, ", got '%s'\n", argv[i]);
      return 2;
    }
  }
  cudaDeviceProp properties;
  Check(cudaGetDeviceProperties(&properties, 0));
  std::printf("%s\n\n| work | config | ms | TB/s | |\n|---|---|---|---|---|\n", properties.name);
  for (const Work& work : kWorks) {
    const bool asked = argc == 1 || std::any_of(argv + 1, argv + argc, [&](const char* name) {
                         return work.name == name;
                       });
    if (asked) work.run();
  }
  return 0;
}
