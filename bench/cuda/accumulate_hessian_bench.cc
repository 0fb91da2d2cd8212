#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "bench/cuda/bench.h"
#include "kernels/cuda/accumulate_hessian_launch.h"

namespace nibble::bench {
namespace {

void BenchAccumulateHessianShape(int64_t tokens, int64_t channels, DType dtype) {
  const std::string work = absl::StrCat("Hessian accumulation, ", tokens, " tokens x ", channels,
                                        " ", ToAbsl(DTypeName(dtype)));
  const RotatedInputs x(tokens, channels, dtype);
  const DeviceMemory workspace =
      Allocate(sizeof(float) * AccumulateHessianWorkspace(tokens, channels));
  const int64_t hessian_bytes = sizeof(float) * channels * kBlockSize;
  const DeviceMemory hessians = Allocate(hessian_bytes), bad_slice = Allocate(sizeof(int64_t));
  AccumulateHessianArgs args = {
      .tokens = tokens,
      .channels = channels,
      .workspace = As<float>(workspace),
      .hessians = As<float>(hessians),
      .bad_slice = As<int64_t>(bad_slice),
  };
  for (size_t config = 0; config < std::size(kAccumulateHessianConfigs); ++config) {
    const double ms = MedianMs([&](int run) {
      args.x = x[run];
      return LaunchAccumulateHessian(dtype, args, static_cast<int>(config), nullptr);
    });
    const auto [warps, ring_bytes] = kAccumulateHessianConfigs[config];
    Row(work, absl::StrCat(warps, " warps, ", ring_bytes, " bytes on their way"), ms,
        static_cast<double>(tokens * channels * DTypeBytes(dtype) + 2 * hessian_bytes));
  }
}

}  // namespace

void BenchAccumulateHessian() {
  BenchAccumulateHessianShape(8192, 4096, DType::kBf16);
  BenchAccumulateHessianShape(8192, 4096, DType::kF16);
  BenchAccumulateHessianShape(8192, 4096, DType::kF32);
  BenchAccumulateHessianShape(2048, 4096, DType::kBf16);
  BenchAccumulateHessianShape(8192, 14336, DType::kBf16);
  BenchAccumulateHessianShape(65536, 4096, DType::kBf16);
}

}  // namespace nibble::bench
