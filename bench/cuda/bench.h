// What the benchmarks of the CUDA kernels share. One row a kernel, shape and config: the median of
// timed runs after warm-up, by events, inputs rotated past the L2 cache.
#ifndef NIBBLE_BENCH_CUDA_BENCH_H_
#define NIBBLE_BENCH_CUDA_BENCH_H_

#include <cuda_runtime_api.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/dtype.h"

namespace nibble::bench {

// Prints the error and ends the program.
void Check(cudaError_t error);

using DeviceMemory = std::unique_ptr<void, void (*)(void*)>;
DeviceMemory Allocate(int64_t bytes);  // all zero

template <typename T>
T* As(const DeviceMemory& memory) {
  return static_cast<T*>(memory.get());
}

// Copies of a rows x cols matrix of normal values, enough of them that none is still cached when
// its turn comes.
class RotatedInputs {
 public:
  RotatedInputs(int64_t rows, int64_t cols, DType dtype = DType::kBf16);
  const void* operator[](int run) const { return copies_[run % copies_.size()].get(); }

 private:
  std::vector<DeviceMemory> copies_;
};

// Median milliseconds of launch(run). The device waits until all runs are queued, so that they
// follow each other without the host between them.
double MedianMs(const std::function<cudaError_t(int run)>& launch);

// Milliseconds that a device copy reading and writing `bytes` in total would take, at the rate of
// one of the same size measured here.
double CopyMs(int64_t bytes);

// One line of the table; `note` says what the figure compares with.
void Row(const std::string& work, const std::string& config, double milliseconds, double bytes,
         const std::string& note = "");

// The line of work that cannot run here.
void Skipped(const std::string& work, const std::string& reason);

// "93 % of the copy's rate"
std::string PercentOfCopy(double copy_ms, double milliseconds);

// The benchmarks, each in its file.
void BenchAccumulateHessian();
void BenchCheckGemm();
void BenchDequantize();
void BenchHessianFeedback();
void BenchMeasureError();
void BenchMultiplierSearch();
void BenchObserve();
void BenchPostScale();
void BenchQuantize();
void BenchQuantizeCopies();
void BenchScaleSweep();
void BenchScaleSweepHessian();

}  // namespace nibble::bench

#endif  // NIBBLE_BENCH_CUDA_BENCH_H_
