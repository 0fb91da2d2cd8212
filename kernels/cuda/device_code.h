// Whether this build has code for the current device.
#ifndef NIBBLE_KERNELS_CUDA_DEVICE_CODE_H_
#define NIBBLE_KERNELS_CUDA_DEVICE_CODE_H_

#include <cuda_runtime_api.h>

namespace nibble {

// cudaErrorNoKernelImageForDevice or the like where it has none.
cudaError_t QueryDeviceCode();

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CUDA_DEVICE_CODE_H_
