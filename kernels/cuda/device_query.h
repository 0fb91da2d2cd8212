// What launchers ask of the current device.
#ifndef NIBBLE_KERNELS_CUDA_DEVICE_QUERY_H_
#define NIBBLE_KERNELS_CUDA_DEVICE_QUERY_H_

#include <cuda_runtime_api.h>

namespace nibble {

inline cudaError_t QueryDevice(cudaDeviceAttr attribute, int* value) {
  int device = 0;
  if (cudaError_t error = cudaGetDevice(&device)) return error;
  return cudaDeviceGetAttribute(value, attribute, device);
}

inline cudaError_t QueryMultiprocessors(int* count) {
  return QueryDevice(cudaDevAttrMultiProcessorCount, count);
}

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CUDA_DEVICE_QUERY_H_
