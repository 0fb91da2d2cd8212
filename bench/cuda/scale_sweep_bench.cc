#include "absl/strings/str_cat.h"
#include "bench/cuda/bench.h"
#include "kernels/cuda/amax_launch.h"
#include "kernels/cuda/scale_sweep_launch.h"

namespace nibble::bench {
namespace {

void BenchScaleSweepShape(int64_t rows, int64_t cols) {
  const int64_t weights = rows * cols, blocks = weights / kBlockSize;
  const std::string shape = absl::StrCat(", ", rows, "x", cols, " bf16");
  const RotatedInputs x(rows, cols);
  const DeviceMemory amax = Allocate(sizeof(float)), tables = Allocate(sizeof(ScaleSweepTables));
  const DeviceMemory code = Allocate(blocks), best_amax = Allocate(4 * blocks);
  const DeviceMemory loss = Allocate(4 * blocks), packed = Allocate(8 * blocks);
  const DeviceMemory loss_sum = Allocate(sizeof(double));
  Row("device copy" + shape, "", CopyMs(4 * weights), 4.0 * weights);
  Row("amax" + shape, "", MedianMs([&](int run) {
        return LaunchAmax(DType::kBf16, x[run], blocks, As<float>(amax), /*config=*/0, nullptr);
      }),
      2.0 * weights);
  for (size_t config = 0; config < std::size(kScaleSweepConfigs); ++config) {
    ScaleSweepArgs args = {
        .blocks = blocks,
        .global_amax = As<float>(amax),
        .bound = 448,
        .tables = As<ScaleSweepTables>(tables),
        .code = As<uint8_t>(code),
        .best_amax = As<float>(best_amax),
        .loss = As<float>(loss),
    };
    const double ms = MedianMs([&](int run) {
      args.x = x[run];
      return LaunchScaleSweep(DType::kBf16, args, static_cast<int>(config), nullptr);
    });
    const auto [warps, per_thread] = kScaleSweepConfigs[config];
    const std::string shape_of_launch =
        absl::StrCat(warps, " warps, ", per_thread, " blocks a thread");
    Row("sweep, pruned" + shape, shape_of_launch, ms, 2.0 * weights + 9.0 * blocks);
    args.code = nullptr;
    args.best_amax = args.loss = nullptr;
    args.encode = {.packed = As<uint8_t>(packed),
                   .swizzled_scale = As<uint8_t>(code),
                   .blocks_per_row = cols / kBlockSize,
                   .loss_sum = As<double>(loss_sum),
                   .group_sums = As<double>(best_amax)};
    const double fused_ms = MedianMs([&](int run) {
      args.x = x[run];
      return LaunchScaleSweep(DType::kBf16, args, static_cast<int>(config), nullptr);
    });
    Row("sweep + encode + swizzle + loss" + shape, shape_of_launch, fused_ms,
        2.5 * weights + blocks);
  }
}

}  // namespace

void BenchScaleSweep() {
  BenchScaleSweepShape(8192, 4096);
  BenchScaleSweepShape(28672, 8192);
}

}  // namespace nibble::bench
