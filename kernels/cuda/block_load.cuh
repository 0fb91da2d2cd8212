// One block of 16 elements from global memory into registers, as float32, in 16-byte loads.
#ifndef NIBBLE_KERNELS_CUDA_BLOCK_LOAD_CUH_
#define NIBBLE_KERNELS_CUDA_BLOCK_LOAD_CUH_

#include <cstdint>

#include "quant/numerics/float_bits.h"
#include "quant/numerics/scale_rules.h"

namespace nibble {

// Tags of the input types.
struct Bf16 {};
struct F16 {};
struct F32 {};

// x is aligned to 16 bytes, as device allocations are.
template <typename T>
__device__ __forceinline__ void LoadBlock(const void* x, int64_t block, float (&out)[kBlockSize]);

template <>
__device__ __forceinline__ void LoadBlock<F32>(const void* x, int64_t block,
                                               float (&out)[kBlockSize]) {
  const float4* p = static_cast<const float4*>(x) + block * 4;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float4 v = __ldg(p + i);
    out[4 * i] = v.x;
    out[4 * i + 1] = v.y;
    out[4 * i + 2] = v.z;
    out[4 * i + 3] = v.w;
  }
}

template <>
__device__ __forceinline__ void LoadBlock<Bf16>(const void* x, int64_t block,
                                                float (&out)[kBlockSize]) {
  const uint4* p = static_cast<const uint4*>(x) + block * 2;
  const uint4 v[2] = {__ldg(p), __ldg(p + 1)};
  const uint32_t words[8] = {v[0].x, v[0].y, v[0].z, v[0].w, v[1].x, v[1].y, v[1].z, v[1].w};
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    out[2 * i] = FloatFromBits(words[i] << 16);
    out[2 * i + 1] = FloatFromBits(words[i] & 0xFFFF0000u);
  }
}

template <>
__device__ __forceinline__ void LoadBlock<F16>(const void* x, int64_t block,
                                               float (&out)[kBlockSize]) {
  const uint4* p = static_cast<const uint4*>(x) + block * 2;
  const uint4 v[2] = {__ldg(p), __ldg(p + 1)};
  const uint32_t words[8] = {v[0].x, v[0].y, v[0].z, v[0].w, v[1].x, v[1].y, v[1].z, v[1].w};
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    out[2 * i] = FloatFromF16(static_cast<uint16_t>(words[i]));
    out[2 * i + 1] = FloatFromF16(static_cast<uint16_t>(words[i] >> 16));
  }
}

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CUDA_BLOCK_LOAD_CUH_
