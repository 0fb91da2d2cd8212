// One block of 16 elements from global memory into registers, as float32, in 16-byte loads.
#ifndef NIBBLE_KERNELS_CUDA_BLOCK_LOAD_CUH_
#define NIBBLE_KERNELS_CUDA_BLOCK_LOAD_CUH_

#include <cstdint>

#include "kernels/cuda/dispatch.h"
#include "quant/numerics/float_bits.h"
#include "quant/numerics/scale_rules.h"

namespace nibble {

// The two elements of a word.
__device__ __forceinline__ float2 Unpack(Bf16, uint32_t word) {
  return {FloatFromBits(word << 16), FloatFromBits(word & 0xFFFF0000u)};
}
__device__ __forceinline__ float2 Unpack(F16, uint32_t word) {
  float2 pair;
  asm("{.reg .b16 l, h;\n mov.b32 {l, h}, %2;\n cvt.f32.f16 %0, l;\n cvt.f32.f16 %1, h;}"
      : "=f"(pair.x), "=f"(pair.y)
      : "r"(word));
  return pair;
}

// Sixteen bytes of elements.
__device__ __forceinline__ void UnpackChunk(F32, const uint4& v, float* out) {
  out[0] = FloatFromBits(v.x);
  out[1] = FloatFromBits(v.y);
  out[2] = FloatFromBits(v.z);
  out[3] = FloatFromBits(v.w);
}
template <typename T>
__device__ __forceinline__ void UnpackChunk(T, const uint4& v, float* out) {
  const float2 pairs[4] = {Unpack(T{}, v.x), Unpack(T{}, v.y), Unpack(T{}, v.z), Unpack(T{}, v.w)};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    out[2 * i] = pairs[i].x;
    out[2 * i + 1] = pairs[i].y;
  }
}

// x is aligned to 16 bytes, as device allocations are.
template <typename T>
__device__ __forceinline__ void LoadBlock(const void* x, int64_t block, float (&out)[kBlockSize]) {
  constexpr bool kWide = std::is_same_v<T, F32>;
  const uint4* p = static_cast<const uint4*>(x) + block * (kWide ? 4 : 2);
#pragma unroll
  for (int i = 0; i < (kWide ? 4 : 2); ++i) {
    UnpackChunk(T{}, __ldg(p + i), out + i * (kWide ? 4 : 8));
  }
}

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CUDA_BLOCK_LOAD_CUH_
