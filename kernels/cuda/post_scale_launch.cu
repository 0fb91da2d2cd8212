#include <iterator>

#include "kernels/cuda/post_scale_kernel.cuh"
#include "kernels/cuda/post_scale_launch.h"

namespace nibble {
namespace {

constexpr int kConfigs = static_cast<int>(std::size(kPostScaleConfigs));

template <typename T, bool kVector>
cudaError_t Launch(const PostScaleArgs& args, int64_t pieces_per_row, int config,
                   cudaStream_t stream) {
  const int64_t pieces = args.rows * pieces_per_row;
  return DispatchIndex<kConfigs>(config, [&](auto index) {
    constexpr int kWarps = kPostScaleConfigs[index].warps;
    constexpr int kChunks = kPostScaleConfigs[index].chunks_per_thread;
    constexpr int64_t kPerThreadBlock = int64_t{kWarps} * 32 * kChunks;
    const int64_t grid = (pieces + kPerThreadBlock - 1) / kPerThreadBlock;
    PostScaleKernel<T, kVector, kWarps, kChunks>
        <<<static_cast<unsigned>(grid), kWarps * 32, 0, stream>>>(
            args, pieces_per_row, FastDivide(pieces_per_row, pieces));
  });
}

}  // namespace

cudaError_t LaunchPostScale(DType dtype, const PostScaleArgs& args, int config,
                            cudaStream_t stream) {
  if (config < 0 || config >= kConfigs || !IsQuantizable(dtype)) return cudaErrorInvalidValue;
  if (args.rows == 0 || args.cols == 0) return cudaSuccess;
  const int64_t per_vector = dtype == DType::kF32 ? 4 : 8;
  return DispatchInput(dtype, [&](auto type) {
    using T = decltype(type);
    return args.cols % per_vector == 0
               ? Launch<T, true>(args, args.cols / per_vector, config, stream)
               : Launch<T, false>(args, args.cols, config, stream);
  });
}

}  // namespace nibble
