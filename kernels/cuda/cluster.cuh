// Thread blocks of a cluster, and barriers in shared memory that threads of all of them may arrive
// at (compute capability 9.0 and up; elsewhere nothing happens). Places in shared memory are
// 32-bit addresses, see SharedAddress.
#ifndef NIBBLE_KERNELS_CUDA_CLUSTER_CUH_
#define NIBBLE_KERNELS_CUDA_CLUSTER_CUH_

#include <cstdint>

#include "quant/numerics/float_bits.h"

namespace nibble {

// Every thread of a cluster arrives and waits, in turns. After waiting, a thread sees what others
// wrote before they arrived.
__device__ __forceinline__ void ArriveAtCluster() {
#if NIBBLE_CUDA_ARCH >= 900
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
#endif
}
__device__ __forceinline__ void WaitForCluster() {
#if NIBBLE_CUDA_ARCH >= 900
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}

// A barrier of eight bytes, for `count` arrivals in each of its phases. By one thread, which calls
// PublishBarriers after the last of them, and before its cluster's barrier.
__device__ __forceinline__ void InitBarrier(unsigned barrier, unsigned count) {
#if NIBBLE_CUDA_ARCH >= 900
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(count) : "memory");
#endif
}
__device__ __forceinline__ void PublishBarriers() {
#if NIBBLE_CUDA_ARCH >= 900
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
}

// One of a phase's arrivals. What the thread wrote before is seen by those who wait for the phase.
__device__ __forceinline__ void ArriveAtBarrier(unsigned barrier) {
#if NIBBLE_CUDA_ARCH >= 900
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
#endif
}
// The same; the phase then ends when `bytes` more have come by SendToCluster.
__device__ __forceinline__ void ArriveAndExpect(unsigned barrier, unsigned bytes) {
#if NIBBLE_CUDA_ARCH >= 900
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
#endif
}

// Until phase `phase` of the barrier, counted from 0, has ended; the next one has not.
__device__ __forceinline__ void WaitForBarrier(unsigned barrier, unsigned phase) {
#if NIBBLE_CUDA_ARCH >= 900
  asm volatile(
      "{\n"
      ".reg .pred ended;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 ended, [%0], %1;\n"
      "@!ended bra again;\n"
      "}\n" ::"r"(barrier),
      "r"(phase & 1)
      : "memory");
#endif
}
// The same where words come by SendToCluster.
__device__ __forceinline__ void WaitForSent(unsigned barrier, unsigned phase) {
#if NIBBLE_CUDA_ARCH >= 900
  asm volatile(
      "{\n"
      ".reg .pred ended;\n"
      "again:\n"
      "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 ended, [%0], %1;\n"
      "@!ended bra again;\n"
      "}\n" ::"r"(barrier),
      "r"(phase & 1)
      : "memory");
#endif
}

// The same place in the shared memory of the cluster's block `rank`.
__device__ __forceinline__ unsigned InCluster(unsigned shared, unsigned rank) {
  unsigned place = shared;
#if NIBBLE_CUDA_ARCH >= 900
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(place) : "r"(shared), "r"(rank));
#endif
  return place;
}

// Stores a word in another block's shared memory and tells a barrier there that four bytes have
// come. Both places are as InCluster has them.
__device__ __forceinline__ void SendToCluster(unsigned place, uint32_t word, unsigned barrier) {
#if NIBBLE_CUDA_ARCH >= 900
  asm volatile(
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.u32 [%0], %1, [%2];" ::"r"(place),
      "r"(word), "r"(barrier)
      : "memory");
#endif
}

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CUDA_CLUSTER_CUH_
