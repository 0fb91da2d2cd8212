// Copies from global to shared memory that a thread starts and awaits later (compute capability 8.0
// and up). A thread sees what it copied itself after WaitForCopies; others after a barrier, too.
#ifndef NIBBLE_KERNELS_CUDA_ASYNC_COPY_CUH_
#define NIBBLE_KERNELS_CUDA_ASYNC_COPY_CUH_

#include <cstdint>

namespace nibble {

// Shared memory by its own 32-bit addresses: loops keep them in registers.
__device__ __forceinline__ unsigned SharedAddress(const void* shared) {
  return static_cast<unsigned>(__cvta_generic_to_shared(shared));
}

__device__ __forceinline__ uint4 LoadShared16(unsigned address) {
  uint4 v;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "r"(address)
               : "memory");
  return v;
}

// Both are aligned to 16 bytes.
__device__ __forceinline__ void CopyAsync16(unsigned shared, const void* global) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" ::"r"(shared), "l"(global)
               : "memory");
}

// The same, or 16 zeros where `valid` is false.
__device__ __forceinline__ void CopyAsync16(unsigned shared, const void* global, bool valid) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(shared), "l"(global),
               "r"(valid ? 16 : 0)
               : "memory");
}

// Makes one group of the copies started since the last one.
__device__ __forceinline__ void CommitCopies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

// Until no more than the last kPending groups are on their way.
template <int kPending>
__device__ __forceinline__ void WaitForCopies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CUDA_ASYNC_COPY_CUH_
