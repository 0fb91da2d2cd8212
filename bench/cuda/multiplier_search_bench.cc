#include "absl/strings/str_cat.h"
#include "bench/cuda/bench.h"
#include "kernels/cuda/amax_launch.h"
#include "kernels/cuda/multiplier_search_launch.h"

namespace nibble::bench {
namespace {

void BenchMultiplierSearchShape(int64_t rows, int64_t cols) {
  const int64_t weights = rows * cols, blocks = weights / kBlockSize;
  const RotatedInputs x(rows, cols);
  const DeviceMemory amax = Allocate(sizeof(float));
  const DeviceMemory workspace = Allocate(MultiplierSearchWorkspaceBytes({}));
  const DeviceMemory code = Allocate(blocks), best_amax = Allocate(4 * blocks);
  const DeviceMemory loss = Allocate(4 * blocks);
  Check(LaunchAmax(DType::kBf16, x[0], blocks, As<float>(amax), /*config=*/0, nullptr));
  MultiplierSearchArgs args = {
      .blocks = blocks,
      .global_amax = As<float>(amax),
      .workspace = workspace.get(),
      .code = As<uint8_t>(code),
      .best_amax = As<float>(best_amax),
      .loss = As<float>(loss),
  };
  for (size_t config = 0; config < std::size(kMultiplierSearchConfigs); ++config) {
    const double ms = MedianMs([&](int run) {
      args.x = x[run];
      return LaunchMultiplierSearch(DType::kBf16, args, static_cast<int>(config), nullptr);
    });
    const auto [warps, per_thread] = kMultiplierSearchConfigs[config];
    Row(absl::StrCat(MultiplierCount({}), " multipliers, ", rows, "x", cols, " bf16"),
        absl::StrCat(warps, " warps, ", per_thread, " blocks a thread"), ms,
        2.0 * static_cast<double>(weights) + 9.0 * static_cast<double>(blocks));
  }
}

}  // namespace

void BenchMultiplierSearch() {
  BenchMultiplierSearchShape(8192, 4096);
  BenchMultiplierSearchShape(28672, 8192);
}

}  // namespace nibble::bench
