#include <algorithm>
#include <iterator>

#include "kernels/cuda/measure_error_kernel.cuh"
#include "kernels/cuda/measure_error_launch.h"

namespace nibble {

cudaError_t LaunchMeasureError(DType dtype, const MeasureErrorArgs& args, int config,
                               cudaStream_t stream) {
  constexpr int kConfigs = static_cast<int>(std::size(kMeasureErrorConfigs));
  if (config < 0 || config >= kConfigs || !IsQuantizable(dtype)) return cudaErrorInvalidValue;
  if (cudaError_t error = cudaMemsetAsync(args.totals, 0, sizeof(ErrorTotals), stream)) {
    return error;
  }
  const int64_t blocks = args.packed.blocks();
  if (blocks == 0) return cudaSuccess;
  return DispatchInput(dtype, [&](auto type) {
    return DispatchIndex<kConfigs>(config, [&](auto index) {
      constexpr int kWarps = kMeasureErrorConfigs[index].warps;
      constexpr int64_t kPerThreadBlock =
          int64_t{kWarps} * 32 * kMeasureErrorConfigs[index].blocks_per_thread;
      const int64_t grid =
          std::min((blocks + kPerThreadBlock - 1) / kPerThreadBlock, args.most_thread_blocks);
      MeasureErrorKernel<decltype(type), kWarps, kMeasureErrorConfigs[index].resident>
          <<<static_cast<unsigned>(grid), kWarps * 32, 0, stream>>>(
              args.x, args.packed, FastDivide(args.packed.blocks_per_row, blocks), args.totals);
    });
  });
}

}  // namespace nibble
