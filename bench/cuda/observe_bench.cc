#include "absl/strings/str_cat.h"
#include "bench/cuda/bench.h"
#include "kernels/cuda/amax_launch.h"
#include "kernels/cuda/observe_launch.h"
#include "quant/numerics/scale_rules.h"

namespace nibble::bench {
namespace {

std::string ShapeOf(int64_t rows, int64_t cols) {
  return absl::StrCat(", ", rows, "x", cols, " bf16");
}

void BenchAmax(int64_t rows, int64_t cols) {
  const double bytes = 2.0 * rows * cols;
  const RotatedInputs x(rows, cols);
  const DeviceMemory amax = Allocate(sizeof(float));
  Row("device copy" + ShapeOf(rows, cols), "", CopyMs(2 * static_cast<int64_t>(bytes)), 2 * bytes);
  for (size_t config = 0; config < std::size(kAmaxConfigs); ++config) {
    const double ms = MedianMs([&](int run) {
      return LaunchAmax(DType::kBf16, x[run], rows * cols / kBlockSize, As<float>(amax),
                        static_cast<int>(config), nullptr);
    });
    const auto [warps, loads, thread_blocks] = kAmaxConfigs[config];
    Row("amax" + ShapeOf(rows, cols),
        absl::StrCat(warps, " warps, ", loads, " loads, ", thread_blocks, " a multiprocessor"), ms,
        bytes);
  }
}

void BenchObserve(int64_t rows, int64_t cols) {
  const int64_t blocks = rows * cols / kBlockSize;
  const RotatedInputs x(rows, cols);
  const DeviceMemory amax = Allocate(sizeof(float)), row_amax = Allocate(sizeof(float) * rows),
                     column_amax = Allocate(sizeof(float) * cols),
                     block_amax = Allocate(sizeof(float) * blocks),
                     histogram = Allocate(sizeof(uint64_t) * kLog2Bins),
                     non_finite = Allocate(sizeof(NonFiniteCounts));
  for (size_t config = 0; config < std::size(kObserveConfigs); ++config) {
    const auto [warps, batch_rows, rows_per_warp] = kObserveConfigs[config];
    const std::string shape =
        absl::StrCat(warps, " warps, ", batch_rows, " of ", rows_per_warp, " rows at a time");
    const auto bench = [&](const std::string& what, ObserveArgs args, double written) {
      args.rows = rows;
      args.cols = cols;
      const double ms = MedianMs([&](int run) {
        args.x = x[run];
        return LaunchObserve(DType::kBf16, args, static_cast<int>(config), nullptr);
      });
      Row(what + ShapeOf(rows, cols), shape, ms, 2.0 * rows * cols + written);
    };
    ObserveArgs args = {
        .amax = As<float>(amax),
        .row_amax = As<float>(row_amax),
        .column_amax = As<float>(column_amax),
        .non_finite = As<NonFiniteCounts>(non_finite),
    };
    bench("row and column amax", args, 4.0 * (rows + cols));
    args.histogram = As<uint64_t>(histogram);
    bench("row and column amax, histogram", args, 4.0 * (rows + cols));
    args.block_amax = As<float>(block_amax);
    bench("everything", args, 4.0 * (rows + cols + blocks));
  }
}

}  // namespace

void BenchObserve() {
  BenchAmax(8192, 4096);
  BenchAmax(28672, 8192);
  BenchAmax(98304, 7168);
  BenchObserve(16384, 6144);
  BenchObserve(28672, 8192);
}

}  // namespace nibble::bench
