// Quantize on the device, row-wise: block_encode.cuh between loads and stores.
#ifndef NIBBLE_KERNELS_CUDA_QUANTIZE_KERNEL_CUH_
#define NIBBLE_KERNELS_CUDA_QUANTIZE_KERNEL_CUH_

#include <cstdint>

#include "kernels/cuda/block_encode.cuh"
#include "kernels/cuda/block_load.cuh"
#include "kernels/cuda/quantize_launch.h"
#include "quant/swizzle.h"

namespace nibble {

__device__ __forceinline__ int64_t ScaleOffset(const QuantizeArgs& args, int64_t row,
                                               int64_t column, int64_t blocks_per_row) {
  return args.swizzle ? SwizzledOffset(row, column, blocks_per_row) : row * blocks_per_row + column;
}

template <bool kFloat32>
__device__ __forceinline__ void LoadInput(const QuantizeArgs& args, int64_t block,
                                          float (&x)[kBlockSize]) {
  if constexpr (kFloat32) {
    LoadBlock<F32>(args.x, block, x);
  } else if (args.dtype == DType::kBf16) {
    LoadBlock<Bf16>(args.x, block, x);
  } else {
    LoadBlock<F16>(args.x, block, x);
  }
}

__device__ __forceinline__ void StoreCodes(const QuantizeArgs& args, int64_t block,
                                           const BlockCodes& codes) {
  reinterpret_cast<uint2*>(args.packed)[block] = {codes.word[0], codes.word[1]};
}

// The index-th of the bytes that pad swizzled scales: columns to the right of the data first.
__device__ __forceinline__ void StorePadding(const QuantizeArgs& args, int64_t index) {
  const int64_t columns = args.cols / kBlockSize;
  const int64_t padded_columns = (columns + 3) / 4 * 4;
  const int64_t right = padded_columns - columns;
  int64_t row, column;
  if (index < args.rows * right) {
    row = index / right;
    column = columns + index % right;
  } else {
    index -= args.rows * right;
    row = args.rows + index / padded_columns;
    column = index % padded_columns;
  }
  if (row < (args.rows + 127) / 128 * 128) args.scale[SwizzledOffset(row, column, columns)] = 0;
}

// per_tensor and per_token: a thread is a block.
template <typename E, int kWarps, int kBlocksPerThread>
__global__ void __launch_bounds__(kWarps * 32) QuantizeBlocksKernel(QuantizeArgs args) {
  constexpr int kThreads = kWarps * 32;
  const int64_t columns = args.cols / kBlockSize;
  const int64_t blocks = args.rows * columns;
  const bool per_token = args.scheme == Scheme::kPerToken;
  const int64_t first =
      static_cast<int64_t>(blockIdx.x) * (kThreads * kBlocksPerThread) + threadIdx.x;
  float x[kBlocksPerThread][kBlockSize];
#pragma unroll
  for (int i = 0; i < kBlocksPerThread; ++i) {
    const int64_t b = first + i * kThreads;
    LoadInput<E::kFloat32>(args, b < blocks ? b : blocks - 1, x[i]);
  }
  OuterScales outer;
  if (!per_token) outer = MakeOuter<E>(*args.amax, args.encode);
#pragma unroll
  for (int i = 0; i < kBlocksPerThread; ++i) {
    const int64_t own = first + i * kThreads;
    const int64_t b = own < blocks ? own : blocks - 1;
    const int64_t row = per_token || args.swizzle ? b / columns : 0;
    if (per_token) outer = MakeOuter<E>(args.amax[row], args.encode);
    const float amax = BlockMagnitude(x[i]);
    uint8_t given = 0;
    if (E::kMethod == EncodeMethod::kCheckpoint && args.given_scale != nullptr) {
      given = args.given_scale[b];
    }
    const EncodedBlock encoded =
        EncodeBlock<E>(x[i], amax, outer, args.encode, b * kBlockSize, given);
    if (own < blocks) {
      StoreCodes(args, b, encoded.codes);
      args.scale[args.swizzle ? SwizzledOffset(row, b - row * columns, columns) : b] =
          encoded.scale;
      if (args.non_finite != nullptr && !IsFiniteMagnitude(amax)) *args.non_finite = 1;
    } else if (args.swizzle) {
      StorePadding(args, own - blocks);
    }
  }
}

// tile_2d: half a warp is a tile, a lane one of its rows.
template <typename E, int kWarps, int kBlocksPerThread>
__global__ void __launch_bounds__(kWarps * 32) QuantizeTilesKernel(QuantizeArgs args) {
  constexpr int kTilesAtOnce = kWarps * 2;
  const int64_t columns = args.cols / kBlockSize;
  const int64_t tiles = args.rows / kBlockSize * columns;
  const OuterScales outer = MakeOuter<E>(*args.amax, args.encode);
  const int64_t first = static_cast<int64_t>(blockIdx.x) * (kTilesAtOnce * kBlocksPerThread) +
                        threadIdx.x / kBlockSize;
#pragma unroll
  for (int i = 0; i < kBlocksPerThread; ++i) {
    const int64_t own = first + i * kTilesAtOnce;
    const int64_t tile = own < tiles ? own : tiles - 1;
    const int64_t band = tile / columns, column = tile - band * columns;
    const int64_t row = band * kBlockSize + threadIdx.x % kBlockSize;
    const int64_t b = row * columns + column;
    float x[kBlockSize];
    LoadInput<E::kFloat32>(args, b, x);
    const float row_amax = BlockMagnitude(x);
    const EncodedBlock encoded =
        EncodeTileRow<E>(x, TileMagnitude(row_amax), outer, args.encode, b * kBlockSize);
    if (own < tiles) {
      StoreCodes(args, b, encoded.codes);
      args.scale[ScaleOffset(args, row, column, columns)] = encoded.scale;
      if (args.non_finite != nullptr && !IsFiniteMagnitude(row_amax)) *args.non_finite = 1;
    } else if (args.swizzle) {
      StorePadding(args, (own - tiles) * kBlockSize + threadIdx.x % kBlockSize);
    }
  }
}

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CUDA_QUANTIZE_KERNEL_CUH_
