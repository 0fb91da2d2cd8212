#include <iterator>

#include "kernels/cuda/dequantize_kernel.cuh"
#include "kernels/cuda/dequantize_launch.h"

namespace nibble {
namespace {

template <typename T, bool kByRow>
cudaError_t Launch(const DequantizeArgs& args, int config, cudaStream_t stream) {
  constexpr int kConfigs = static_cast<int>(std::size(kDequantizeConfigs));
  const int64_t blocks = args.in.blocks();
  return DispatchIndex<kConfigs>(config, [&](auto index) {
    constexpr int kWarps = kDequantizeConfigs[index].warps;
    constexpr int kChunks = kDequantizeConfigs[index].chunks_per_thread;
    constexpr int64_t kBlocks =
        int64_t{kWarps} * 32 * kChunks * DequantizeOutput<T>::kCodes / kBlockSize;
    const int64_t grid = (blocks + kBlocks - 1) / kBlocks;
    const FastDivide row_of_block(args.in.blocks_per_row, blocks + kBlocks);
    DequantizeKernel<T, kByRow, kWarps, kChunks>
        <<<static_cast<unsigned>(grid), kWarps * 32, 0, stream>>>(args.in, row_of_block,
                                                                  static_cast<uint4*>(args.out));
  });
}

}  // namespace

cudaError_t LaunchDequantize(DType dtype, const DequantizeArgs& args, int config,
                             cudaStream_t stream) {
  if (config < 0 || config >= static_cast<int>(std::size(kDequantizeConfigs)) ||
      (dtype != DType::kBf16 && dtype != DType::kF32)) {
    return cudaErrorInvalidValue;
  }
  if (args.in.blocks() == 0) return cudaSuccess;
  const bool by_row = args.in.amax_per_row || args.in.swizzled;
  if (dtype == DType::kBf16) {
    return by_row ? Launch<Bf16, true>(args, config, stream)
                  : Launch<Bf16, false>(args, config, stream);
  }
  return by_row ? Launch<F32, true>(args, config, stream)
                : Launch<F32, false>(args, config, stream);
}

}  // namespace nibble
