// Dequantization on the device: a thread makes 16 bytes of the output at a time, so that warps
// write whole lines.
#ifndef NIBBLE_KERNELS_CUDA_DEQUANTIZE_KERNEL_CUH_
#define NIBBLE_KERNELS_CUDA_DEQUANTIZE_KERNEL_CUH_

#include <cstdint>

#include "kernels/cuda/dequantize_launch.h"
#include "kernels/cuda/packed_decode.cuh"

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

// kByRow: rows matter, for a global scale of their own or for the place of a block's scale.
template <typename T, bool kByRow, int kWarps, int kChunks>
__global__ void __launch_bounds__(kWarps * 32)
    DequantizeKernel(PackedArgs p, FastDivide row_of_block, uint4* out) {
  using Output = DequantizeOutput<T>;
  constexpr int kThreads = kWarps * 32;
  constexpr int kPerBlock = kBlockSize / Output::kCodes;  // chunks of one NVFP4 block
  constexpr int kBlocks = kThreads * kChunks / kPerBlock;
  const int64_t first_block = int64_t{blockIdx.x} * kBlocks;
  __shared__ RowScales<kByRow ? kBlocks : 1> scales;
  if constexpr (kByRow) {
    scales.Load(p, row_of_block, first_block);
    __syncthreads();
  }
  const int64_t blocks = p.blocks();
  typename Output::Codes codes[kChunks];
  uint8_t scale[kChunks];
  float global[kChunks];
#pragma unroll
  for (int i = 0; i < kChunks; ++i) {
    const int local = i * kThreads + static_cast<int>(threadIdx.x);
    const int64_t b = min(first_block + local / kPerBlock, blocks - 1);
    codes[i] = __ldg(reinterpret_cast<const typename Output::Codes*>(p.packed) + b * kPerBlock +
                     local % kPerBlock);
    int64_t offset = b;
    if constexpr (kByRow) {
      const int64_t row = row_of_block(b);
      global[i] = scales(p, row);
      if (p.swizzled) offset = SwizzledOffset(row, b - row * p.blocks_per_row, p.blocks_per_row);
    }
    scale[i] = __ldg(p.scale + offset);
  }
  const float uniform = kByRow ? 0.0f : GlobalDecodeScale(p, 0);
#pragma unroll
  for (int i = 0; i < kChunks; ++i) {
    const int local = i * kThreads + static_cast<int>(threadIdx.x);
    if (first_block + local / kPerBlock >= blocks) return;
    uint4& chunk = out[first_block * kPerBlock + local];
    if (IsNanScale(scale[i])) {  // a quiet NaN of its sign, as the host's arithmetic makes it
      const uint32_t nan = Output::Nan(scale[i] >> 7);
      chunk = {nan, nan, nan, nan};
      continue;
    }
    float y[Output::kCodes];
    CodeDecoder(scale[i], kByRow ? global[i] : uniform).Decode(codes[i], y);
    chunk = Output::Pack(y);
  }
}

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CUDA_DEQUANTIZE_KERNEL_CUH_
