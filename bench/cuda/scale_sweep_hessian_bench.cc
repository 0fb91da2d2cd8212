#include <chrono>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/parallel_for.h"
#include "bench/cuda/bench.h"
#include "engine/synthetic.h"
#include "kernels/cuda/amax_launch.h"
#include "kernels/cuda/scale_sweep_hessian_launch.h"
#include "kernels/hessian_factors.h"

namespace nibble::bench {
namespace {

// A A^T / 64 for each slice, A 16 x 64 of normal values.
std::vector<float> NormalHessians(int64_t slices) {
  constexpr int kTokens = 64;
  const std::vector<float> a =
      SyntheticValues(Distribution::kNormal, slices * kBlockSize * kTokens, 3);
  std::vector<float> hessians(slices * kBlockSize * kBlockSize);
  for (int64_t i = 0; i < static_cast<int64_t>(hessians.size()); ++i) {
    const int64_t slice = i / (kBlockSize * kBlockSize);
    const float* row = &a[(slice * kBlockSize + i / kBlockSize % kBlockSize) * kTokens];
    const float* col = &a[(slice * kBlockSize + i % kBlockSize) * kTokens];
    double sum = 0;
    for (int t = 0; t < kTokens; ++t) sum += double{row[t]} * col[t];
    hessians[i] = static_cast<float>(sum / kTokens);
  }
  return hessians;
}

void BenchScaleSweepHessianShape(int64_t rows, int64_t cols, DType dtype, bool exhaustive) {
  const int64_t weights = rows * cols, blocks = weights / kBlockSize, slices = cols / kBlockSize;
  const std::vector<float> hessians = NormalHessians(slices);
  ThreadPool pool;
  const auto start = std::chrono::steady_clock::now();
  const std::vector<HessianFactor> host_factors = *FactorHessians(hessians, pool);
  const std::chrono::duration<double, std::milli> factoring =
      std::chrono::steady_clock::now() - start;
  const RotatedInputs x(rows, cols, dtype);
  const int64_t factor_bytes = slices * static_cast<int64_t>(sizeof(HessianFactor));
  const DeviceMemory factors = Allocate(factor_bytes), amax = Allocate(sizeof(float));
  const DeviceMemory tables = Allocate(sizeof(ScaleSweepHessianTables));
  const DeviceMemory prepared = Allocate(slices * static_cast<int64_t>(sizeof(HessianSlice)));
  const DeviceMemory code = Allocate(blocks), best_amax = Allocate(4 * blocks);
  const DeviceMemory loss = Allocate(4 * blocks), counts = Allocate(sizeof(SweepCounts));
  Check(cudaMemcpy(factors.get(), host_factors.data(), factor_bytes, cudaMemcpyHostToDevice));
  Check(LaunchAmax(dtype, x[0], blocks, As<float>(amax), /*config=*/0, nullptr));
  for (size_t config = 0; config < std::size(kScaleSweepHessianConfigs); ++config) {
    ScaleSweepHessianArgs args = {
        .x = x[0],
        .rows = rows,
        .slices = slices,
        .factors = As<HessianFactor>(factors),
        .global_amax = As<float>(amax),
        .bound = 448,
        .exhaustive = exhaustive,
        .tables = As<ScaleSweepHessianTables>(tables),
        .prepared = As<HessianSlice>(prepared),
        .code = As<uint8_t>(code),
        .best_amax = As<float>(best_amax),
        .loss = As<float>(loss),
        .counts = As<SweepCounts>(counts),
    };
    Check(cudaMemset(counts.get(), 0, sizeof(SweepCounts)));
    Check(LaunchScaleSweepHessian(dtype, args, static_cast<int>(config), nullptr));
    SweepCounts counted;
    Check(cudaMemcpy(&counted, counts.get(), sizeof(counted), cudaMemcpyDeviceToHost));
    args.counts = nullptr;
    const double ms = MedianMs([&](int run) {
      args.x = x[run];
      return LaunchScaleSweepHessian(dtype, args, static_cast<int>(config), nullptr);
    });
    const auto [warps, tiles, resident] = kScaleSweepHessianConfigs[config];
    Row(absl::StrCat("Hessian sweep, ", exhaustive ? "exhaustive" : "pruned", ", ", rows, "x", cols,
                     " ", std::string(DTypeName(dtype))),
        absl::StrCat(warps, " warps, ", tiles, " tiles, ", resident, " resident"), ms,
        static_cast<double>(weights * DTypeBytes(dtype) + 9 * blocks),
        absl::StrCat(static_cast<double>(counted.evaluations) / static_cast<double>(blocks),
                     " evaluations a block; factoring on the host ", factoring.count(), " ms"));
  }
}

}  // namespace

void BenchScaleSweepHessian() {
  BenchScaleSweepHessianShape(8192, 4096, DType::kBf16, false);
  BenchScaleSweepHessianShape(8192, 4096, DType::kF32, false);
  BenchScaleSweepHessianShape(8192, 4096, DType::kBf16, true);
}

}  // namespace nibble::bench
