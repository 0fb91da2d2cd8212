// Magnitudes as integers: they compare as the values do, infinity above every finite one and NaN
// above infinity. A word is two 16-bit elements or one of 32 bits.
#ifndef NIBBLE_KERNELS_CUDA_MAGNITUDE_CUH_
#define NIBBLE_KERNELS_CUDA_MAGNITUDE_CUH_

#include <cstdint>

#include "kernels/cuda/dispatch.h"
#include "quant/numerics/float_bits.h"

namespace nibble {

template <typename T>
struct Magnitude {
  static constexpr bool kWide = std::is_same_v<T, F32>;
  static constexpr int kPerWord = kWide ? 1 : 2;
  static constexpr int kBytes = 4 / kPerWord;
  // Of an element, and of every element of a word.
  static constexpr uint32_t kInfinity = kWide                     ? 0x7F800000u
                                        : std::is_same_v<T, Bf16> ? 0x7F80u
                                                                  : 0x7C00u;
  static constexpr uint32_t kInfinities = kWide ? kInfinity : kInfinity * 0x10001u;

  // Of every element of a word.
  static __device__ __forceinline__ uint32_t Of(uint32_t word) {
    return word & (kWide ? 0x7FFFFFFFu : 0x7FFF7FFFu);
  }
  static __device__ __forceinline__ uint32_t Max(uint32_t a, uint32_t b) {
    if constexpr (kWide) {
      return max(a, b);
    } else {
      return __vmaxu2(a, b);
    }
  }
  static __device__ __forceinline__ uint32_t Max(uint32_t a, uint32_t b, uint32_t c) {
    if constexpr (kWide) {
      return max(a, max(b, c));
    } else {
      return __vimax3_u16x2(a, b, c);
    }
  }
  // Of words of magnitudes: zero in the place of NaN and infinity.
  static __device__ __forceinline__ uint32_t Finite(uint32_t word) {
    if constexpr (kWide) {
      return word < kInfinity ? word : 0;
    } else {
      return word & __vcmpltu2(word, kInfinities);
    }
  }

  // The larger one's bits.
  static __device__ __forceinline__ uint32_t Largest(uint32_t word) {
    return kWide ? word : max(word & 0xFFFFu, word >> 16);
  }
  static __device__ __forceinline__ float ToFloat(uint32_t bits) {
    if constexpr (kWide) {
      return FloatFromBits(bits);
    } else if constexpr (std::is_same_v<T, Bf16>) {
      return FloatFromBf16(static_cast<uint16_t>(bits));
    } else {
      return FloatFromF16(static_cast<uint16_t>(bits));
    }
  }
};

// *target = the larger of it and `value`; neither is negative.
__device__ __forceinline__ void AtomicMaxMagnitude(float* target, float value) {
  atomicMax(reinterpret_cast<unsigned*>(target), FloatBits(value));
}

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CUDA_MAGNITUDE_CUH_
