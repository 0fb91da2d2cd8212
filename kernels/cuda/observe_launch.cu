#include <algorithm>
#include <iterator>

#include "kernels/cuda/observe_kernel.cuh"
#include "kernels/cuda/observe_launch.h"

namespace nibble {

cudaError_t LaunchObserve(DType dtype, const ObserveArgs& args, int config, cudaStream_t stream) {
  constexpr int kConfigs = static_cast<int>(std::size(kObserveConfigs));
  if (config < 0 || config >= kConfigs || !IsQuantizable(dtype)) return cudaErrorInvalidValue;
  constexpr int64_t kMostClearing = 1024;
  const int64_t cleared = std::max({args.rows, args.cols, int64_t{kLog2Bins}});
  const int64_t clearing = std::min((cleared + kClearThreads - 1) / kClearThreads, kMostClearing);
  ClearObservationKernel<<<static_cast<unsigned>(clearing), kClearThreads, 0, stream>>>(args);
  if (args.rows == 0) return cudaGetLastError();
  return DispatchInput(dtype, [&](auto type) {
    return DispatchIndex<kConfigs>(config, [&](auto index) {
      constexpr ObserveConfig kConfig = kObserveConfigs[index];
      constexpr int kStripColumns = 512 / Magnitude<decltype(type)>::kBytes;
      constexpr int kTileRows = kConfig.warps * kConfig.rows_per_warp;
      const int64_t strips = (args.cols + kStripColumns - 1) / kStripColumns;
      const int64_t tiles = (args.rows + kTileRows - 1) / kTileRows;
      ObserveKernel<decltype(type), kConfig.warps, kConfig.batch_rows, kConfig.rows_per_warp>
          <<<static_cast<unsigned>(strips * tiles), kConfig.warps * 32, 0, stream>>>(
              args, static_cast<unsigned>(strips));
    });
  });
}

}  // namespace nibble
