#include <memory>
#include <vector>

#include "absl/strings/str_cat.h"
#include "bench/cuda/bench.h"
#include "kernels/cuda/post_scale_launch.h"

namespace nibble::bench {
namespace {

void BenchPostScaleShape(int64_t rows, int64_t cols, DType dtype) {
  const int64_t bytes = rows * cols * DTypeBytes(dtype);
  std::vector<DeviceMemory> outputs;  // enough that none is still cached when its turn comes
  for (int64_t held = 0; held < (int64_t{512} << 20) || outputs.size() < 2; held += bytes) {
    outputs.push_back(Allocate(bytes));
  }
  const DeviceMemory row = Allocate(4 * rows), col = Allocate(4 * cols);
  PostScaleArgs args = {
      .rows = rows,
      .cols = cols,
      .row_decode_scale = As<float>(row),
      .col_decode_scale = As<float>(col),
  };
  const double copy_ms = CopyMs(2 * bytes);
  for (size_t config = 0; config < std::size(kPostScaleConfigs); ++config) {
    const double ms = MedianMs([&](int run) {
      args.d = outputs[static_cast<size_t>(run) % outputs.size()].get();
      return LaunchPostScale(dtype, args, static_cast<int>(config), nullptr);
    });
    const auto [warps, chunks] = kPostScaleConfigs[config];
    Row(absl::StrCat("post-scale, ", rows, "x", cols, " ", std::string(DTypeName(dtype))),
        absl::StrCat(warps, " warps, ", chunks, " chunks a thread"), ms,
        2.0 * static_cast<double>(bytes), PercentOfCopy(copy_ms, ms));
  }
}

}  // namespace

void BenchPostScale() {
  BenchPostScaleShape(16384, 16384, DType::kBf16);
  BenchPostScaleShape(16384, 16384, DType::kF16);
  BenchPostScaleShape(16384, 16384, DType::kF32);
  BenchPostScaleShape(16384, 16383, DType::kBf16);
  BenchPostScaleShape(8192, 4096, DType::kBf16);
}

}  // namespace nibble::bench
