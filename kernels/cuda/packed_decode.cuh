// Packed blocks back into values: what the kernels that read packed tensors share.
#ifndef NIBBLE_KERNELS_CUDA_PACKED_DECODE_CUH_
#define NIBBLE_KERNELS_CUDA_PACKED_DECODE_CUH_

#include <cstdint>

#include "kernels/cuda/block_load.cuh"
#include "kernels/cuda/fast_divide.h"
#include "kernels/cuda/packed_args.h"
#include "quant/numerics/scale_rules.h"
#include "quant/swizzle.h"

namespace nibble {

// The outer amax of a row; what the next function ignores where the global scale is not wanted.
__device__ __forceinline__ float Amax(const PackedArgs& p, int64_t row) {
  return p.amax == nullptr ? 0.0f : __ldg(p.amax + (p.amax_per_row ? row : 0));
}

// The factor of every value of a row, from its outer amax.
__device__ __forceinline__ float GlobalDecodeScale(const PackedArgs& p, float amax) {
  if (p.amax == nullptr) return 1.0f;
  return p.checkpoint ? CheckpointGlobalDecodeScale(amax, p.bound)
                      : RuntimeGlobalScale(amax, p.bound).decode_scale;
}

__device__ __forceinline__ bool IsNanScale(uint8_t scale) { return (scale & 0x7Fu) == 0x7F; }

// Codes times a block's scale, which is not NaN, times the global scale, rounded as Dequantize
// rounds. Codes times scale are exact in half precision: the code's bits in place are q * 2^-14,
// and with the scale times 2^5 the product neither overflows nor loses digits.
class CodeDecoder {
 public:
  __device__ __forceinline__ CodeDecoder(uint8_t scale, float global_decode_scale)
      : global_(MulRn(global_decode_scale, 0x1p9f)) {
    const uint32_t bits = (scale & 0x80u) << 8 | (scale & 0x7Fu) << 7;  // scale * 2^-8
    scale_ = MulHalves(bits * 0x10001u, 0x70007000u);                   // 2^13
  }

  // Of word's lowest kCount nibbles, the lowest first.
  template <int kCount>
  __device__ __forceinline__ void Decode(uint32_t word, float (&out)[kCount]) const {
    static_assert(kCount == 4 || kCount == 8);
    // Two halves are code i of the lower 16 bits and code i of the upper ones.
    if (kCount == 4) word = (word & 0xFFu) | (word & 0xFF00u) << 8;
#pragma unroll
    for (int i = 0; i < kCount / 2; ++i) {
      const uint32_t top = word << (12 - 4 * i);
      const uint32_t q = (top & 0x80008000u) | ((top >> 3) & 0x0E000E00u);
      const float2 pair = Unpack(F16{}, MulHalves(q, scale_));
      out[i] = MulRn(pair.x, global_);
      out[i + kCount / 2] = MulRn(pair.y, global_);
    }
  }

 private:
  __device__ static __forceinline__ uint32_t MulHalves(uint32_t a, uint32_t b) {
    uint32_t product;
    asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(product) : "r"(a), "r"(b));
    return product;
  }

  uint32_t scale_;  // both halves: the scale times 2^5
  float global_;    // times 2^9, which undoes 2^-14 * 2^5
};

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CUDA_PACKED_DECODE_CUH_
