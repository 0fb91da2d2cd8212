// The random Hadamard transform of a block in registers, rounding to the input types, and largest
// magnitudes in which NaN wins.
#ifndef NIBBLE_KERNELS_CUDA_ROTATE_CUH_
#define NIBBLE_KERNELS_CUDA_ROTATE_CUH_

#include <cstdint>

#include "kernels/cuda/block_load.cuh"
#include "kernels/cuda/dispatch.h"
#include "quant/numerics/float_bits.h"
#include "quant/numerics/hadamard.h"

namespace nibble {

// Two values rounded to the type, the first in the low half.
__device__ __forceinline__ uint32_t PackPair(Bf16, float low, float high) {
  uint32_t word;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
}
__device__ __forceinline__ uint32_t PackPair(F16, float low, float high) {
  uint32_t word;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
}

// The value rounded to the type.
__device__ __forceinline__ float RoundTo(F32, float x) { return x; }
template <typename T>
__device__ __forceinline__ float RoundTo(T, float x) {
  return Unpack(T{}, PackPair(T{}, x, 0.0f)).x;
}

__device__ __forceinline__ void RoundBlock(F32, float (&)[kBlockSize]) {}
template <typename T>
__device__ __forceinline__ void RoundBlock(T, float (&x)[kBlockSize]) {
#pragma unroll
  for (int i = 0; i < kBlockSize; i += 2) {
    const float2 pair = Unpack(T{}, PackPair(T{}, x[i], x[i + 1]));
    x[i] = pair.x;
    x[i + 1] = pair.y;
  }
}

// Of two magnitudes.
__device__ __forceinline__ float LargerNan(float a, float b) {
  float larger;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(larger) : "f"(a), "f"(b));
  return larger;
}
__device__ __forceinline__ float LargestNan(const float (&x)[kBlockSize]) {
  float largest = fabsf(x[0]);
#pragma unroll
  for (int i = 1; i < kBlockSize; ++i) largest = LargerNan(largest, fabsf(x[i]));
  return largest;
}

// The largest magnitude of Rht16's sums, not yet multiplied by 1/4, and `least`, which is not
// negative. Of the last butterfly's a + b and a - b the larger is |a| + |b|. Signs are operands'
// modifiers of the first.
template <Rht kRht>
__device__ __forceinline__ float LargestRotated(float (&x)[kBlockSize], float least = 0.0f) {
  constexpr uint32_t kSigns = RhtSigns(kRht);
#pragma unroll
  for (int i = 0; i < kBlockSize; i += 2) {
    const float a = kSigns >> i & 1 ? -x[i] : x[i],
                b = kSigns >> (i + 1) & 1 ? -x[i + 1] : x[i + 1];
    x[i] = AddRn(a, b);
    x[i + 1] = SubRn(a, b);
  }
#pragma unroll
  for (int distance = 2; distance < kBlockSize / 2; distance *= 2) {
#pragma unroll
    for (int i = 0; i < kBlockSize; ++i) {
      if (i & distance) continue;
      const float a = x[i], b = x[i + distance];
      x[i] = AddRn(a, b);
      x[i + distance] = SubRn(a, b);
    }
  }
  uint32_t largest = FloatBits(least);  // as integers, of which three are compared at once
#pragma unroll
  for (int i = 0; i < kBlockSize / 2; i += 2) {
    const float a = AddRn(fabsf(x[i]), fabsf(x[i + kBlockSize / 2]));
    const float b = AddRn(fabsf(x[i + 1]), fabsf(x[i + 1 + kBlockSize / 2]));
    largest = __vimax3_u32(largest, FloatBits(a), FloatBits(b));
  }
  return FloatFromBits(largest);
}

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CUDA_ROTATE_CUH_
