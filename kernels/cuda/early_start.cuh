// Kernels that start before the one before them in the stream has ended, and await its results in
// the middle (compute capability 9.0 and up; elsewhere they start when it has ended).
#ifndef NIBBLE_KERNELS_CUDA_EARLY_START_CUH_
#define NIBBLE_KERNELS_CUDA_EARLY_START_CUH_

#include <cuda_runtime.h>

#include <cstdint>

#include "quant/numerics/float_bits.h"

namespace nibble {

// Before the first access to anything that the previous kernel touches. Every thread block calls
// it, also those without work, so that this kernel does not end before that one.
__device__ __forceinline__ void AwaitPreviousKernel() {
#if NIBBLE_CUDA_ARCH >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// From when on all thread blocks have called it or ended, the next one may start.
__device__ __forceinline__ void LetNextKernelStart() {
#if NIBBLE_CUDA_ARCH >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// early: the kernel calls AwaitPreviousKernel. Otherwise an ordinary launch.
template <typename... Parameters, typename... Args>
cudaError_t Launch(bool early, void (*kernel)(Parameters...), int64_t grid, int threads, int shared,
                   cudaStream_t stream, const Args&... args) {
  if (early) {
    int device = 0, major = 0;
    if (cudaError_t error = cudaGetDevice(&device)) return error;
    if (cudaError_t error =
            cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device)) {
      return error;
    }
    early = major >= 9;
  }
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(grid));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = shared;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = early ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, Parameters(args)...);
}

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CUDA_EARLY_START_CUH_
