#include <algorithm>
#include <iterator>

#include "kernels/cuda/device_query.h"
#include "kernels/cuda/quantize_kernel.cuh"
#include "kernels/cuda/quantize_launch.h"

namespace nibble {
namespace {

constexpr int kConfigs = static_cast<int>(std::size(kQuantizeConfigs));

template <typename T, EncodeMethod kMethod, bool kStochastic>
cudaError_t Launch(const QuantizeArgs& args, int config, cudaStream_t stream) {
  int multiprocessors = 0;
  if (cudaError_t error = QueryMultiprocessors(&multiprocessors)) return error;
  const int64_t blocks = args.rows * (args.cols / kBlockSize);
  return DispatchIndex<kConfigs>(config, [&](auto index) {
    constexpr int kWarps = kQuantizeConfigs[index].warps;
    constexpr int kBlocksPerThread = kQuantizeConfigs[index].blocks_per_thread;
    constexpr int kThreadBlocks = kQuantizeConfigs[index].thread_blocks;
    constexpr int64_t kChunk = int64_t{kWarps} * 32 * kBlocksPerThread;
    const unsigned grid = static_cast<unsigned>(std::min<int64_t>(
        (blocks + kChunk - 1) / kChunk, int64_t{multiprocessors} * kThreadBlocks));
    if (args.scheme == Scheme::kTile2d) {
      QuantizeTilesKernel<T, kMethod, kStochastic, kWarps, kThreadBlocks>
          <<<grid, kWarps * 32, 0, stream>>>(args);
    } else if constexpr (std::is_same_v<T, Bf16> && (kMethod == EncodeMethod::kFourOverSixMae ||
                                                     kMethod == EncodeMethod::kFourOverSixMse)) {
      // Indices of 32 bits, and one stride beyond the last.
      if (args.scheme == Scheme::kPerTensor && args.encode.rule == Rule::kRuntime &&
          !args.encode.stochastic && blocks <= int64_t{1} << 31) {
        // Fewer thread blocks than plain quantization: the filter needs more registers.
        constexpr int kFilterThreadBlocks = kThreadBlocks * 7 / 8;
        const auto kernel =
            args.swizzle ? QuantizeFourOverSixKernel<kMethod, true, kWarps, kFilterThreadBlocks>
                         : QuantizeFourOverSixKernel<kMethod, false, kWarps, kFilterThreadBlocks>;
        constexpr int64_t kPerThreadBlock = int64_t{kWarps} * 32;
        const int64_t filter_grid =
            std::min<int64_t>((blocks + kPerThreadBlock - 1) / kPerThreadBlock,
                              int64_t{multiprocessors} * kFilterThreadBlocks);
        kernel<<<static_cast<unsigned>(filter_grid), kWarps * 32, 0, stream>>>(args);
      } else {
        QuantizeBlocksKernel<T, kMethod, kStochastic, kWarps, kBlocksPerThread, kThreadBlocks>
            <<<grid, kWarps * 32, 0, stream>>>(args);
      }
    } else {
      QuantizeBlocksKernel<T, kMethod, kStochastic, kWarps, kBlocksPerThread, kThreadBlocks>
          <<<grid, kWarps * 32, 0, stream>>>(args);
    }
  });
}

template <typename T>
cudaError_t DispatchMethod(const QuantizeArgs& args, int config, cudaStream_t stream) {
  switch (args.method) {
    case EncodeMethod::kRuntime:
      return args.encode.stochastic
                 ? Launch<T, EncodeMethod::kRuntime, true>(args, config, stream)
                 : Launch<T, EncodeMethod::kRuntime, false>(args, config, stream);
    case EncodeMethod::kCheckpoint:
      return args.encode.stochastic
                 ? Launch<T, EncodeMethod::kCheckpoint, true>(args, config, stream)
                 : Launch<T, EncodeMethod::kCheckpoint, false>(args, config, stream);
    case EncodeMethod::kFourOverSixMae:
      return Launch<T, EncodeMethod::kFourOverSixMae, false>(args, config, stream);
    case EncodeMethod::kFourOverSixMse:
      return Launch<T, EncodeMethod::kFourOverSixMse, false>(args, config, stream);
    case EncodeMethod::kFourOverSixAbsMax:
      return Launch<T, EncodeMethod::kFourOverSixAbsMax, false>(args, config, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace

cudaError_t LaunchQuantize(const QuantizeArgs& args, int config, cudaStream_t stream) {
  const bool given = args.given_scale != nullptr;
  if (config < 0 || config >= kConfigs || !IsQuantizable(args.dtype) ||
      (args.scheme == Scheme::kTile2d && args.rows % kBlockSize != 0) ||
      (given && (args.method != EncodeMethod::kCheckpoint || args.scheme == Scheme::kTile2d))) {
    return cudaErrorInvalidValue;
  }
  if (args.rows == 0 || args.cols == 0) return cudaSuccess;
  return DispatchInput(
      args.dtype, [&](auto type) { return DispatchMethod<decltype(type)>(args, config, stream); });
}

}  // namespace nibble
