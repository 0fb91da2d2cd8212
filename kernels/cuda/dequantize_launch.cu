#include <iterator>

#include "kernels/cuda/dequantize_kernel.cuh"
#include "kernels/cuda/dequantize_launch.h"

namespace nibble {
namespace {

template <typename T, DequantizeOrder kOrder>
cudaError_t Launch(const DequantizeArgs& args, int config, cudaStream_t stream) {
  constexpr int kConfigs = static_cast<int>(std::size(kDequantizeConfigs));
  const int64_t rows = args.in.rows, per_row = args.in.blocks_per_row;
  return DispatchIndex<kConfigs>(config, [&](auto index) {
    constexpr int kWarps = kDequantizeConfigs[index].warps;
    constexpr int kChunks = kDequantizeConfigs[index].chunks_per_thread;
    constexpr int64_t kBlocks = int64_t{kWarps} * 32 * DequantizeOutput<T>::kCodes / kBlockSize;
    int64_t grid = (rows * per_row + kBlocks * kChunks - 1) / (kBlocks * kChunks);
    FastDivide row_of(per_row, rows * per_row);
    if constexpr (kOrder == DequantizeOrder::kSwizzled) {
      static_assert(32 % kChunks == 0);
      const int64_t parts = (per_row + kBlocks / 4 - 1) / (kBlocks / 4);
      grid = (rows + 127) / 128 * (32 / kChunks) * parts;
      row_of = FastDivide(parts, grid);
    }
    DequantizeKernel<T, kOrder, kWarps, kChunks>
        <<<static_cast<unsigned>(grid), kWarps * 32, 0, stream>>>(args.in, row_of,
                                                                  static_cast<uint4*>(args.out));
  });
}

template <typename T>
cudaError_t Launch(const DequantizeArgs& args, int config, cudaStream_t stream) {
  if (args.in.swizzled) return Launch<T, DequantizeOrder::kSwizzled>(args, config, stream);
  if (args.in.amax_per_row) return Launch<T, DequantizeOrder::kRows>(args, config, stream);
  return Launch<T, DequantizeOrder::kFlat>(args, config, stream);
}

}  // namespace

cudaError_t LaunchDequantize(DType dtype, const DequantizeArgs& args, int config,
                             cudaStream_t stream) {
  if (config < 0 || config >= static_cast<int>(std::size(kDequantizeConfigs)) ||
      (dtype != DType::kBf16 && dtype != DType::kF32)) {
    return cudaErrorInvalidValue;
  }
  if (args.in.blocks() == 0) return cudaSuccess;
  return dtype == DType::kBf16 ? Launch<Bf16>(args, config, stream)
                               : Launch<F32>(args, config, stream);
}

cudaError_t LaunchGlobalDecodeScale(const PackedArgs& in, float* decode_scale,
                                    cudaStream_t stream) {
  const int64_t count = in.amax_per_row ? in.rows : 1;
  if (count == 0) return cudaSuccess;
  constexpr int kThreads = kGlobalDecodeScaleThreads;
  GlobalDecodeScaleKernel<<<static_cast<unsigned>((count + kThreads - 1) / kThreads), kThreads, 0,
                            stream>>>(in, count, decode_scale);
  return cudaGetLastError();
}

}  // namespace nibble
