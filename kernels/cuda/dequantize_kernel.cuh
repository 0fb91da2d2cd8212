// Dequantization on the device: a thread makes 16 bytes of the output at a time, so that warps
// write whole lines.
#ifndef NIBBLE_KERNELS_CUDA_DEQUANTIZE_KERNEL_CUH_
#define NIBBLE_KERNELS_CUDA_DEQUANTIZE_KERNEL_CUH_

#include <cstdint>

#include "kernels/cuda/dequantize_launch.h"
#include "kernels/cuda/packed_decode.cuh"
#include "quant/swizzle.h"

namespace nibble {

// kCodes values as 16 bytes; loads of as many codes at once.
template <typename T>
struct DequantizeOutput;

template <>
struct DequantizeOutput<F32> {
  static constexpr int kCodes = 4;
  using Codes = uint16_t;
  __device__ static __forceinline__ uint4 Pack(const float (&y)[kCodes]) {
    return {FloatBits(y[0]), FloatBits(y[1]), FloatBits(y[2]), FloatBits(y[3])};
  }
  __device__ static __forceinline__ uint32_t Nan(uint32_t sign) { return sign << 31 | 0x7FC00000u; }
};

template <>
struct DequantizeOutput<Bf16> {
  static constexpr int kCodes = 8;
  using Codes = uint32_t;
  // Finite stays finite, as on the host.
  __device__ static __forceinline__ uint32_t Pair(float low, float high) {
    uint32_t pair;
    asm("cvt.rn.satfinite.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
  }
  __device__ static __forceinline__ uint4 Pack(const float (&y)[kCodes]) {
    return {Pair(y[0], y[1]), Pair(y[2], y[3]), Pair(y[4], y[5]), Pair(y[6], y[7])};
  }
  __device__ static __forceinline__ uint32_t Nan(uint32_t sign) {
    return (sign << 15 | 0x7FC0u) * 0x10001u;
  }
};

// How a thread's chunks and a thread block's threads follow one another.
enum class DequantizeOrder {
  kFlat,  // row-major; one global scale
  kRows,  // row-major; one a row
  // A thread goes down neighbouring rows, and a thread block's quarters lie 32 rows apart: those
  // are the rows whose scales share 32-byte sectors of a swizzled buffer.
  kSwizzled,
};

// The block of a thread's first chunk, where its scale lies, and its row.
struct DequantizePlace {
  int64_t block, scale, row;
};

// Where chunk i of a thread lies is `first` plus i times `step`; below `chunks` it exists.
struct DequantizePath {
  DequantizePlace first, step;
  int chunks;
};

// kBlocks: how many a thread block decodes at a time.
template <DequantizeOrder kOrder, int kBlocks, int kChunks>
__device__ __forceinline__ DequantizePath PathOf(const PackedArgs& p, const FastDivide& row_of,
                                                 unsigned local) {
  if constexpr (kOrder == DequantizeOrder::kSwizzled) {
    constexpr int kCols = kBlocks / 4, kStrips = 32 / kChunks;
    const int64_t strip = row_of(blockIdx.x);
    const int64_t part = blockIdx.x - strip * ((p.blocks_per_row + kCols - 1) / kCols);
    const int64_t col = part * kCols + local % kCols;
    const int64_t row = strip / kStrips * 128 + strip % kStrips * kChunks + local / kCols * 32;
    const int64_t rows = col < p.blocks_per_row ? p.rows - row : 0;
    return {{row * p.blocks_per_row + col, SwizzledOffset(row, col, p.blocks_per_row), row},
            {p.blocks_per_row, 16, 1},
            static_cast<int>(min(rows, int64_t{kChunks}))};
  } else {
    const int64_t block = int64_t{blockIdx.x} * (kBlocks * kChunks) + local;
    const int64_t left = p.blocks() - block + kBlocks - 1;
    return {{block, block, 0},
            {kBlocks, kBlocks, 0},
            static_cast<int>(min(left / kBlocks, int64_t{kChunks}))};
  }
}

// row_of divides by the blocks of a row, or, under kSwizzled, by the thread blocks that cover one.
template <typename T, DequantizeOrder kOrder, int kWarps, int kChunks>
__global__ void __launch_bounds__(kWarps * 32)
    DequantizeKernel(PackedArgs p, FastDivide row_of, uint4* out) {
  using Output = DequantizeOutput<T>;
  using Codes = typename Output::Codes;
  constexpr unsigned kThreads = kWarps * 32;
  constexpr unsigned kPerBlock = kBlockSize / Output::kCodes;  // chunks of one NVFP4 block
  const auto [first, step, chunks] =
      PathOf<kOrder, kThreads / kPerBlock, kChunks>(p, row_of, threadIdx.x / kPerBlock);
  const Codes* packed = reinterpret_cast<const Codes*>(p.packed) + threadIdx.x % kPerBlock;
  out += threadIdx.x % kPerBlock;
  Codes codes[kChunks];
  uint8_t scale[kChunks];
  float amax[kChunks];
#pragma unroll
  for (int i = 0; i < kChunks; ++i) {
    if (i >= chunks) break;
    const int64_t block = first.block + i * step.block;
    codes[i] = __ldg(packed + block * kPerBlock);
    scale[i] = __ldg(p.scale + first.scale + i * step.scale);
    if (kOrder == DequantizeOrder::kRows) amax[i] = Amax(p, row_of(block));
    if (kOrder == DequantizeOrder::kSwizzled) amax[i] = Amax(p, first.row + i * step.row);
  }
  const float uniform = kOrder == DequantizeOrder::kFlat ? GlobalDecodeScale(p, Amax(p, 0)) : 0.0f;
#pragma unroll
  for (int i = 0; i < kChunks; ++i) {
    if (i >= chunks) break;
    uint4& chunk = out[(first.block + i * step.block) * kPerBlock];
    if (IsNanScale(scale[i])) {  // a quiet NaN of its sign, as the host's arithmetic makes it
      const uint32_t nan = Output::Nan(scale[i] >> 7);
      chunk = {nan, nan, nan, nan};
      continue;
    }
    const float global = kOrder == DequantizeOrder::kFlat ? uniform : GlobalDecodeScale(p, amax[i]);
    float y[Output::kCodes];
    CodeDecoder(scale[i], global).Decode(codes[i], y);
    chunk = Output::Pack(y);
  }
}

inline constexpr int kGlobalDecodeScaleThreads = 256;

static __global__ void __launch_bounds__(kGlobalDecodeScaleThreads)
    GlobalDecodeScaleKernel(PackedArgs in, int64_t count, float* decode_scale) {
  const int64_t row = int64_t{blockIdx.x} * kGlobalDecodeScaleThreads + threadIdx.x;
  if (row < count) decode_scale[row] = GlobalDecodeScale(in, Amax(in, row));
}

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CUDA_DEQUANTIZE_KERNEL_CUH_
