// Shared memory by its own 32-bit addresses (SharedAddress), which loops keep in registers.
#ifndef NIBBLE_KERNELS_CUDA_SHARED_WORDS_CUH_
#define NIBBLE_KERNELS_CUDA_SHARED_WORDS_CUH_

#include <cstdint>

#include "kernels/cuda/async_copy.cuh"

namespace nibble {

__device__ __forceinline__ uint32_t LoadShared4(unsigned address) {
  uint32_t v;
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(address) : "memory");
  return v;
}
__device__ __forceinline__ uint2 LoadShared8(unsigned address) {
  uint2 v;
  asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "r"(address) : "memory");
  return v;
}
__device__ __forceinline__ void StoreShared4(unsigned address, uint32_t v) {
  asm volatile("st.shared.u32 [%0], %1;" ::"r"(address), "r"(v) : "memory");
}
__device__ __forceinline__ void StoreShared8(unsigned address, uint2 v) {
  asm volatile("st.shared.v2.u32 [%0], {%1, %2};" ::"r"(address), "r"(v.x), "r"(v.y) : "memory");
}

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CUDA_SHARED_WORDS_CUH_
