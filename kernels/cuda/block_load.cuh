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

// A block as it lies in memory.
template <typename T>
struct BlockWords {
  static constexpr int kCount = std::is_same_v<T, F32> ? 16 : 8;
  uint32_t word[kCount];
};

// x is aligned to 16 bytes, as device allocations are.
template <typename T>
__device__ __forceinline__ BlockWords<T> LoadWords(const void* x, int64_t block) {
  constexpr int kLoads = BlockWords<T>::kCount / 4;
  const uint4* p = static_cast<const uint4*>(x) + block * kLoads;
  BlockWords<T> words;
#pragma unroll
  for (int i = 0; i < kLoads; ++i) {
    const uint4 v = __ldg(p + i);
    words.word[4 * i] = v.x;
    words.word[4 * i + 1] = v.y;
    words.word[4 * i + 2] = v.z;
    words.word[4 * i + 3] = v.w;
  }
  return words;
}

template <typename T>
__device__ __forceinline__ void UnpackBlock(const BlockWords<T>& words, float (&out)[kBlockSize]) {
#pragma unroll
  for (int i = 0; i < BlockWords<T>::kCount; ++i) {
    if constexpr (std::is_same_v<T, F32>) {
      out[i] = FloatFromBits(words.word[i]);
    } else {
      const float2 pair = Unpack(T{}, words.word[i]);
      out[2 * i] = pair.x;
      out[2 * i + 1] = pair.y;
    }
  }
}

template <typename T>
__device__ __forceinline__ void LoadBlock(const void* x, int64_t block, float (&out)[kBlockSize]) {
  UnpackBlock(LoadWords<T>(x, block), out);
}

// The larger magnitudes of two words, with either sign; NaN where one is.
__device__ __forceinline__ uint32_t MaxOrNan(Bf16, uint32_t a, uint32_t b) {
  uint32_t larger;
  asm("max.NaN.xorsign.abs.bf16x2 %0, %1, %2;" : "=r"(larger) : "r"(a), "r"(b));
  return larger;
}
__device__ __forceinline__ uint32_t MaxOrNan(F16, uint32_t a, uint32_t b) {
  uint32_t larger;
  asm("max.NaN.xorsign.abs.f16x2 %0, %1, %2;" : "=r"(larger) : "r"(a), "r"(b));
  return larger;
}
__device__ __forceinline__ uint32_t MaxOrNan(F32, uint32_t a, uint32_t b) {
  float larger;
  asm("max.NaN.f32 %0, %1, %2;"
      : "=f"(larger)
      : "f"(fabsf(FloatFromBits(a))), "f"(fabsf(FloatFromBits(b))));
  return FloatBits(larger);
}

// Both elements of a word plus 0: what was -0 is 0.
__device__ __forceinline__ uint32_t AddZero(Bf16, uint32_t word) {
  uint32_t sum;  // x * 1 + 0
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(sum) : "r"(word), "r"(0x3F803F80u), "r"(0u));
  return sum;
}
__device__ __forceinline__ uint32_t AddZero(F16, uint32_t word) {
  uint32_t sum;
  asm("add.rn.f16x2 %0, %1, %2;" : "=r"(sum) : "r"(word), "r"(0u));
  return sum;
}

// The largest magnitude of a block; NaN where an element is NaN.
template <typename T>
__device__ __forceinline__ float WordsMagnitude(const BlockWords<T>& words) {
  uint32_t largest = MaxOrNan(T{}, words.word[0], words.word[1]);
#pragma unroll
  for (int i = 2; i < BlockWords<T>::kCount; ++i) largest = MaxOrNan(T{}, largest, words.word[i]);
  if constexpr (std::is_same_v<T, F32>) {
    return fabsf(FloatFromBits(largest));
  } else {
    return fabsf(Unpack(T{}, MaxOrNan(T{}, largest, largest >> 16)).x);
  }
}

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CUDA_BLOCK_LOAD_CUH_
