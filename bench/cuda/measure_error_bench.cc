#include "absl/strings/str_cat.h"
#include "bench/cuda/bench.h"
#include "kernels/cuda/measure_error_launch.h"
#include "quant/packed_tensor.h"

namespace nibble::bench {
namespace {

void BenchMeasureErrorShape(int64_t rows, int64_t cols, DType dtype, Scheme scheme) {
  const PackedLayout layout = {rows, cols, scheme, Rule::kRuntime, 448, false};
  const RotatedInputs x(rows, cols, dtype), codes(rows, cols / 4);
  const DeviceMemory scale = Allocate(layout.scale_bytes());
  const DeviceMemory amax = Allocate(layout.amax_count() * int64_t{sizeof(float)});
  const DeviceMemory totals = Allocate(sizeof(ErrorTotals));
  Check(cudaMemset(scale.get(), 0x38, layout.scale_bytes()));
  Check(cudaMemset(amax.get(), 0x40, layout.amax_count() * sizeof(float)));
  MeasureErrorArgs args = {
      .packed = {.scale = As<uint8_t>(scale),
                 .amax = As<float>(amax),
                 .rows = rows,
                 .blocks_per_row = layout.blocks_per_row(),
                 .amax_per_row = scheme == Scheme::kPerToken},
      .totals = As<ErrorTotals>(totals),
  };
  const int64_t bytes = rows * cols * DTypeBytes(dtype) + layout.packed_bytes() + layout.blocks();
  const double copy_ms = CopyMs(bytes);
  for (size_t config = 0; config < std::size(kMeasureErrorConfigs); ++config) {
    const double ms = MedianMs([&](int run) {
      args.x = x[run];
      args.packed.packed = static_cast<const uint8_t*>(codes[run]);
      return LaunchMeasureError(dtype, args, static_cast<int>(config), nullptr);
    });
    const auto [warps, per_thread, resident] = kMeasureErrorConfigs[config];
    Row(absl::StrCat("measure error ", std::string(NameOf(scheme)), ", ", rows, "x", cols, " ",
                     std::string(DTypeName(dtype))),
        absl::StrCat(warps, " warps, ", per_thread, " blocks a thread, ", resident, " resident"),
        ms, static_cast<double>(bytes), PercentOfCopy(copy_ms, ms));
  }
}

}  // namespace

void BenchMeasureError() {
  BenchMeasureErrorShape(8192, 4096, DType::kBf16, Scheme::kPerTensor);
  BenchMeasureErrorShape(28672, 8192, DType::kBf16, Scheme::kPerTensor);
  BenchMeasureErrorShape(28672, 8192, DType::kBf16, Scheme::kPerToken);
  BenchMeasureErrorShape(8192, 4096, DType::kF32, Scheme::kPerTensor);
}

}  // namespace nibble::bench
