#include "absl/strings/str_cat.h"
#include "bench/cuda/bench.h"
#include "kernels/cuda/dequantize_launch.h"
#include "quant/packed_tensor.h"

namespace nibble::bench {
namespace {

void BenchDequantizeShape(int64_t rows, int64_t cols, Scheme scheme, bool swizzled, DType dtype,
                          bool every_config) {
  const PackedLayout layout = {rows, cols, scheme, Rule::kRuntime, 448, swizzled};
  // A quarter as many columns of bf16 have as many bytes as the codes.
  const RotatedInputs codes(rows, cols / 4);
  const DeviceMemory scale = Allocate(layout.scale_bytes());
  const DeviceMemory amax = Allocate(layout.amax_count() * int64_t{sizeof(float)});
  const int64_t out_bytes = rows * cols * DTypeBytes(dtype);
  const DeviceMemory out = Allocate(out_bytes);
  Check(cudaMemset(scale.get(), 0x38, layout.scale_bytes()));
  Check(cudaMemset(amax.get(), 0x40, layout.amax_count() * sizeof(float)));
  DequantizeArgs args = {
      .in = {.scale = As<uint8_t>(scale),
             .amax = As<float>(amax),
             .rows = rows,
             .blocks_per_row = layout.blocks_per_row(),
             .amax_per_row = scheme == Scheme::kPerToken,
             .swizzled = swizzled},
      .out = out.get(),
  };
  const int64_t bytes = layout.packed_bytes() + layout.blocks() + out_bytes;
  const double copy_ms = CopyMs(bytes);
  const std::string name =
      absl::StrCat("dequantize ", std::string(NameOf(scheme)), swizzled ? " swizzled" : "", " to ",
                   std::string(DTypeName(dtype)), ", ", rows, "x", cols);
  for (size_t config = 0; config < (every_config ? std::size(kDequantizeConfigs) : 1); ++config) {
    const double ms = MedianMs([&](int run) {
      args.in.packed = static_cast<const uint8_t*>(codes[run]);
      return LaunchDequantize(dtype, args, static_cast<int>(config), nullptr);
    });
    const auto [warps, chunks] = kDequantizeConfigs[config];
    Row(name, absl::StrCat(warps, " warps, ", chunks, " chunks a thread"), ms,
        static_cast<double>(bytes), PercentOfCopy(copy_ms, ms));
  }
}

}  // namespace

void BenchDequantize() {
  for (DType dtype : {DType::kBf16, DType::kF32}) {
    BenchDequantizeShape(98304, 7168, Scheme::kPerTensor, false, dtype, true);
    BenchDequantizeShape(98304, 7168, Scheme::kPerToken, false, dtype, true);
    BenchDequantizeShape(98304, 7168, Scheme::kPerTensor, true, dtype, true);
    BenchDequantizeShape(98304, 7168, Scheme::kPerToken, true, dtype, true);
    BenchDequantizeShape(8192, 4096, Scheme::kPerTensor, false, dtype, false);
  }
}

}  // namespace nibble::bench
