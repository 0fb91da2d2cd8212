// D[i][j] *= a[i] * b[j] on the device, in place, in 16-byte pieces where rows are made of those.
#ifndef NIBBLE_KERNELS_CUDA_POST_SCALE_KERNEL_CUH_
#define NIBBLE_KERNELS_CUDA_POST_SCALE_KERNEL_CUH_

#include <cstdint>

#include "kernels/cuda/block_load.cuh"
#include "kernels/cuda/fast_divide.h"
#include "kernels/cuda/post_scale_launch.h"
#include "quant/numerics/post_scale.h"

namespace nibble {

// One element, by quant/numerics; a word of 16 bytes, by instructions that round alike and make
// the same NaN.
template <typename T>
struct PostScaleElement;

template <>
struct PostScaleElement<F32> {
  using Type = float;
  __device__ static __forceinline__ float Scaled(float d, float a, float b) {
    return PostScaled(d, a, b);
  }
  __device__ static __forceinline__ uint32_t ScaledWord(uint32_t word, float a, const float* b) {
    return FloatBits(PostScaled(FloatFromBits(word), a, b[0]));
  }
};

template <>
struct PostScaleElement<Bf16> {
  using Type = uint16_t;
  __device__ static __forceinline__ uint16_t Scaled(uint16_t d, float a, float b) {
    return PostScaledBf16(d, a, b);
  }
  __device__ static __forceinline__ uint32_t ScaledWord(uint32_t word, float a, const float* b) {
    const float2 d = Unpack(Bf16{}, word);
    const float low = MulRn(d.x, MulRn(a, b[0])), high = MulRn(d.y, MulRn(a, b[1]));
    uint32_t scaled;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(scaled) : "f"(high), "f"(low));
    return scaled;
  }
};

template <>
struct PostScaleElement<F16> {
  using Type = uint16_t;
  __device__ static __forceinline__ uint16_t Scaled(uint16_t d, float a, float b) {
    return PostScaledF16(d, a, b);
  }
  __device__ static __forceinline__ uint32_t ScaledWord(uint32_t word, float a, const float* b) {
    const float2 d = Unpack(F16{}, word);
    const float low = MulRn(d.x, MulRn(a, b[0])), high = MulRn(d.y, MulRn(a, b[1]));
    uint32_t scaled;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(scaled) : "f"(high), "f"(low));
    return scaled;
  }
};

// Pieces are counted row by row; row_of_piece divides by the pieces of a row.
template <typename T, bool kVector, int kWarps, int kChunks>
__global__ void __launch_bounds__(kWarps * 32)
    PostScaleKernel(PostScaleArgs args, int64_t pieces_per_row, FastDivide row_of_piece) {
  using Element = PostScaleElement<T>;
  using Type = typename Element::Type;
  using Piece = std::conditional_t<kVector, uint4, Type>;
  constexpr int kThreads = kWarps * 32;
  constexpr int kElements = kVector ? 16 / static_cast<int>(sizeof(Type)) : 1;
  const int64_t pieces = args.rows * pieces_per_row;
  const int64_t first = int64_t{blockIdx.x} * (kThreads * kChunks) + threadIdx.x;
  Piece* d = static_cast<Piece*>(args.d);
  Piece in[kChunks];
#pragma unroll
  for (int i = 0; i < kChunks; ++i) {
    const int64_t at = first + i * kThreads;
    if (at < pieces) in[i] = d[at];
  }
#pragma unroll
  for (int i = 0; i < kChunks; ++i) {
    const int64_t at = first + i * kThreads;
    if (at >= pieces) return;
    const int64_t row = row_of_piece(at);
    const int64_t col = (at - row * pieces_per_row) * kElements;
    const float a = __ldg(args.row_decode_scale + (args.per_row ? row : 0));
    float b[kElements];
    if (!args.per_col) {
      const float one = __ldg(args.col_decode_scale);
#pragma unroll
      for (int j = 0; j < kElements; ++j) b[j] = one;
    } else if constexpr (kVector) {
#pragma unroll
      for (int j = 0; j < kElements; j += 4) {
        const float4 four = __ldg(reinterpret_cast<const float4*>(args.col_decode_scale + col + j));
        b[j] = four.x;
        b[j + 1] = four.y;
        b[j + 2] = four.z;
        b[j + 3] = four.w;
      }
    } else {
      b[0] = __ldg(args.col_decode_scale + col);
    }
    if constexpr (kVector) {
      constexpr int kPerWord = 4 / static_cast<int>(sizeof(Type));
      d[at] = {Element::ScaledWord(in[i].x, a, b), Element::ScaledWord(in[i].y, a, b + kPerWord),
               Element::ScaledWord(in[i].z, a, b + 2 * kPerWord),
               Element::ScaledWord(in[i].w, a, b + 3 * kPerWord)};
    } else {
      d[at] = Element::Scaled(in[i], a, b[0]);
    }
  }
}

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CUDA_POST_SCALE_KERNEL_CUH_
