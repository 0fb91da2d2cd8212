#include <iterator>

#include "kernels/cuda/quantize_kernel.cuh"
#include "kernels/cuda/quantize_launch.h"

namespace nibble {
namespace {

constexpr int kConfigs = static_cast<int>(std::size(kQuantizeConfigs));

template <typename E>
void Launch(const QuantizeArgs& args, int config, cudaStream_t stream) {
  const int64_t columns = args.cols / kBlockSize;
  const int64_t work = args.swizzle ? SwizzledBytes(args.rows, columns) : args.rows * columns;
  DispatchIndex<kConfigs>(config, [&](auto index) {
    constexpr int kWarps = kQuantizeConfigs[index].warps;
    constexpr int kBlocksPerThread = kQuantizeConfigs[index].blocks_per_thread;
    constexpr int64_t kPerThreadBlock = int64_t{kWarps} * 32 * kBlocksPerThread;
    const unsigned grid = static_cast<unsigned>((work + kPerThreadBlock - 1) / kPerThreadBlock);
    if (args.scheme == Scheme::kTile2d) {
      QuantizeTilesKernel<E, kWarps, kBlocksPerThread><<<grid, kWarps * 32, 0, stream>>>(args);
    } else {
      QuantizeBlocksKernel<E, kWarps, kBlocksPerThread><<<grid, kWarps * 32, 0, stream>>>(args);
    }
  });
}

template <bool kFloat32>
void DispatchMethod(const QuantizeArgs& args, int config, cudaStream_t stream) {
  switch (args.method) {
    case EncodeMethod::kRuntime:
      return Launch<Encoding<kFloat32, EncodeMethod::kRuntime>>(args, config, stream);
    case EncodeMethod::kCheckpoint:
      return Launch<Encoding<kFloat32, EncodeMethod::kCheckpoint>>(args, config, stream);
    case EncodeMethod::kFourOverSixMae:
      return Launch<Encoding<kFloat32, EncodeMethod::kFourOverSixMae>>(args, config, stream);
    case EncodeMethod::kFourOverSixMse:
      return Launch<Encoding<kFloat32, EncodeMethod::kFourOverSixMse>>(args, config, stream);
    case EncodeMethod::kFourOverSixAbsMax:
      return Launch<Encoding<kFloat32, EncodeMethod::kFourOverSixAbsMax>>(args, config, stream);
  }
}

}  // namespace

cudaError_t LaunchQuantize(const QuantizeArgs& args, int config, cudaStream_t stream) {
  const bool given = args.given_scale != nullptr;
  if (config < 0 || config >= kConfigs ||
      (given && (args.method != EncodeMethod::kCheckpoint || args.scheme == Scheme::kTile2d))) {
    return cudaErrorInvalidValue;
  }
  if (args.rows == 0) return cudaSuccess;
  return DispatchInput(args.dtype, [&](auto type) {
    DispatchMethod<std::is_same_v<decltype(type), F32>>(args, config, stream);
  });
}

}  // namespace nibble
