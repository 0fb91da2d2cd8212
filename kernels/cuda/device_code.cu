#include "kernels/cuda/device_code.h"

namespace nibble {
namespace {

__global__ void AnyKernel() {}

}  // namespace

cudaError_t QueryDeviceCode() {
  cudaFuncAttributes attributes;
  return cudaFuncGetAttributes(&attributes, AnyKernel);
}

}  // namespace nibble
