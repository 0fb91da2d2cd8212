#include "absl/strings/str_cat.h"
#include "bench/cuda/bench.h"
#include "kernels/cuda/check_gemm.h"

namespace nibble::bench {
namespace {

void BenchCheckGemmShape(CheckGemmPath path, int64_t rows, int64_t cols, int64_t depth) {
  const std::string name =
      absl::StrCat("check gemm, ", std::string(NameOf(path)), ", ", rows, "x", cols, "x", depth);
  const auto plan = CheckGemmPlan::Make(path, rows, cols, depth);
  if (!plan.ok()) {
    Skipped(name, std::string(plan.status().message()));
    return;
  }
  const RotatedInputs a(rows, depth / 4), w(cols, depth / 4);
  const int64_t a_scales = SwizzledBytes(rows, depth / kBlockSize);
  const int64_t w_scales = SwizzledBytes(cols, depth / kBlockSize);
  const DeviceMemory a_scale = Allocate(a_scales), w_scale = Allocate(w_scales);
  const DeviceMemory a_amax = Allocate(4 * rows), w_amax = Allocate(4);
  const DeviceMemory d = Allocate(4 * rows * cols);
  Check(cudaMemset(a_scale.get(), 0x38, a_scales));
  Check(cudaMemset(w_scale.get(), 0x38, w_scales));
  PackedArgs a_args = {.scale = As<uint8_t>(a_scale),
                       .amax = As<float>(a_amax),
                       .rows = rows,
                       .blocks_per_row = depth / kBlockSize,
                       .amax_per_row = true,
                       .swizzled = true};
  PackedArgs w_args = {.scale = As<uint8_t>(w_scale),
                       .amax = As<float>(w_amax),
                       .rows = cols,
                       .blocks_per_row = depth / kBlockSize,
                       .swizzled = true};
  const double ms = MedianMs([&](int run) {
    a_args.packed = static_cast<const uint8_t*>(a[run]);
    w_args.packed = static_cast<const uint8_t*>(w[run]);
    const absl::Status status = (*plan)->Launch(a_args, w_args, As<float>(d), nullptr);
    return status.ok() ? cudaSuccess : cudaErrorUnknown;
  });
  const double bytes =
      0.5625 * static_cast<double>((rows + cols) * depth) + 4.0 * static_cast<double>(rows * cols);
  const double tera = 2e-9 * static_cast<double>(rows * cols) * static_cast<double>(depth) / ms;
  Row(name, "", ms, bytes, absl::StrCat(static_cast<int>(tera), " TFLOP/s"));
}

}  // namespace

void BenchCheckGemm() {
  for (CheckGemmPath path : {CheckGemmPath::kDequantize, CheckGemmPath::kBlockScaled}) {
    BenchCheckGemmShape(path, 4096, 4096, 4096);
    BenchCheckGemmShape(path, 16, 8192, 4096);
  }
}

}  // namespace nibble::bench
