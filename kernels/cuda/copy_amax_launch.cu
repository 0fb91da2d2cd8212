#include <iterator>

#include "kernels/cuda/copy_amax_kernel.cuh"
#include "kernels/cuda/copy_amax_launch.h"

namespace nibble {
namespace {

cudaError_t Clear(float* values, int64_t count, cudaStream_t stream) {
  return values == nullptr ? cudaSuccess : cudaMemsetAsync(values, 0, 4 * count, stream);
}

}  // namespace

cudaError_t LaunchCopyAmax(DType dtype, const CopyAmaxArgs& args, int config, cudaStream_t stream) {
  constexpr int kConfigs = static_cast<int>(std::size(kCopyAmaxConfigs));
  if (config < 0 || config >= kConfigs || !IsQuantizable(dtype)) return cudaErrorInvalidValue;
  const int64_t groups = args.group_count;
  const int64_t row_count = args.per_row ? args.rows : groups;
  const int64_t column_count = args.per_column ? groups * args.cols : groups;
  if (cudaError_t error = Clear(args.source, groups, stream)) return error;
  if (cudaError_t error = Clear(args.row, row_count, stream)) return error;
  if (cudaError_t error = Clear(args.column, column_count, stream)) return error;
  if (args.rows == 0 || groups == 0) return cudaSuccess;
  const int64_t tiles = MostTiles(args.rows, groups);
  const bool rotate_rows = args.row != nullptr && args.row_rht != Rht::kNone;
  const bool plain = args.column != nullptr || !rotate_rows;
  if (rotate_rows) {
    const int64_t segments = (args.cols + 511) / 512;
    const cudaError_t error = DispatchInput(dtype, [&](auto type) {
      RotatedRowAmaxKernel<decltype(type)>
          <<<static_cast<unsigned>(tiles * segments), kAmaxWarps * 32, 0, stream>>>(
              args, segments, RhtSigns(args.row_rht), !plain);
    });
    if (error != cudaSuccess || !plain) return error;
  }
  return DispatchInput(dtype, [&](auto type) {
    DispatchIndex<kConfigs>(config, [&](auto index) {
      constexpr auto kConfig = kCopyAmaxConfigs[index];
      constexpr int kSegmentColumns = kConfig.steps * kStripColumns;
      const int64_t segments = (args.cols + kSegmentColumns - 1) / kSegmentColumns;
      DispatchIndex<3>(static_cast<int>(args.column_rht), [&](auto rht) {
        CopyAmaxKernel<decltype(type), static_cast<Rht>(int{rht}), kConfig.steps,
                       kConfig.thread_blocks>
            <<<static_cast<unsigned>(tiles * segments), kAmaxWarps * 32, 0, stream>>>(args,
                                                                                      segments);
      });
    });
  });
}

}  // namespace nibble
