#include <algorithm>
#include <iterator>

#include "kernels/cuda/copy_amax_kernel.cuh"
#include "kernels/cuda/copy_amax_launch.h"

namespace nibble {
namespace {

constexpr int kConfigs = static_cast<int>(std::size(kCopyAmaxConfigs));
constexpr int kThreads = kAmaxWarps * 32;

// early: the kernel before this one only clears.
template <typename T, Rht kRht, int kStages>
cudaError_t LaunchStages(bool early, const CopyAmaxArgs& args, int steps, cudaStream_t stream) {
  const int shared = AmaxStrip<T>::SharedBytes(kStages, steps);
  const auto kernel = CopyAmaxKernel<T, kRht, kStages>;
  if (cudaError_t error =
          cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared)) {
    return error;
  }
  const int64_t columns = int64_t{kStripColumns} * steps;
  const int64_t segments = (args.cols + columns - 1) / columns;
  return Launch(early, kernel, MostTiles(args.rows, args.group_count) * segments, kThreads, shared,
                stream, args, segments, steps);
}

template <typename T, Rht kRht>
cudaError_t LaunchAmax(bool early, const CopyAmaxArgs& args, int config, cudaStream_t stream) {
  const auto [steps, stages] = kCopyAmaxConfigs[config];
  return stages == 2 ? LaunchStages<T, kRht, 2>(early, args, steps, stream)
                     : LaunchStages<T, kRht, 3>(early, args, steps, stream);
}

}  // namespace

cudaError_t LaunchClearMaxima(const CopyAmaxArgs& args, cudaStream_t stream) {
  const int64_t groups = args.group_count;
  const ClearedMaxima cleared = {
      {args.source, args.row, args.column},
      {groups, args.per_row ? args.rows : groups, args.per_column ? groups * args.cols : groups}};
  const int64_t most = std::max(groups, std::max(cleared.counts[1], cleared.counts[2]));
  if (most == 0) return cudaSuccess;
  const int64_t grid = std::min<int64_t>((most + kThreads - 1) / kThreads, 1024);
  return Launch(false, ClearMaximaKernel, grid, kThreads, 0, stream, cleared);
}

cudaError_t LaunchCopyAmax(DType dtype, const CopyAmaxArgs& args, int config, cudaStream_t stream) {
  if (config < 0 || config >= kConfigs || !IsQuantizable(dtype)) return cudaErrorInvalidValue;
  if (cudaError_t error = LaunchClearMaxima(args, stream)) return error;
  if (args.rows == 0 || args.cols == 0 || args.group_count == 0) return cudaSuccess;
  const bool rotate_rows = args.row != nullptr && args.row_rht != Rht::kNone;
  const bool plain = args.column != nullptr || !rotate_rows;
  if (rotate_rows) {
    const int64_t segments = (args.cols + 511) / 512;
    const int64_t grid = MostTiles(args.rows, args.group_count) * segments;
    const cudaError_t error = DispatchInput(dtype, [&](auto type) {
      using T = decltype(type);
      const auto kernel = args.row_rht == Rht::kSigns ? RotatedRowAmaxKernel<T, Rht::kSigns>
                                                      : RotatedRowAmaxKernel<T, Rht::kNoSigns>;
      kernel<<<static_cast<unsigned>(grid), kThreads, 0, stream>>>(args, segments, !plain);
    });
    if (error != cudaSuccess || !plain) return error;
  }
  return DispatchInput(dtype, [&](auto type) {
    return DispatchIndex<3>(static_cast<int>(args.column_rht), [&](auto rht) {
      return LaunchAmax<decltype(type), static_cast<Rht>(int{rht})>(!rotate_rows, args, config,
                                                                    stream);
    });
  });
}

}  // namespace nibble
