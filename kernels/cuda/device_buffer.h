// What the host side of the CUDA backend stands on: errors as statuses, memory that frees itself.
#ifndef NIBBLE_KERNELS_CUDA_DEVICE_BUFFER_H_
#define NIBBLE_KERNELS_CUDA_DEVICE_BUFFER_H_

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "base/text.h"
#include "kernels/cuda/device_code.h"

namespace nibble {

inline absl::Status CudaStatus(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return absl::OkStatus();
  const std::string message =
      absl::StrCat("cuda: ", what, ": expected success, got ", cudaGetErrorString(error));
  cudaGetLastError();  // the error has been told; it must not be told again by a later call
  return error == cudaErrorMemoryAllocation ? absl::ResourceExhaustedError(message)
                                            : absl::UnknownError(message);
}

#define NIBBLE_CUDA_RETURN_IF_ERROR(expression) \
  NIBBLE_RETURN_IF_ERROR(::nibble::CudaStatus((expression), #expression))

// The device's name, once it is that of the calling thread. Unavailable where this machine has no
// such device, or this build no code for it.
inline absl::StatusOr<std::string> UseCudaDevice(int device) {
  int count = 0;
  const cudaError_t counted = cudaGetDeviceCount(&count);
  cudaGetLastError();
  if (counted != cudaSuccess && counted != cudaErrorNoDevice) {
    return absl::UnavailableError(absl::StrCat(
        "backend: expected a CUDA driver, at least of the toolkit that this was built with, got ",
        Quoted(cudaGetErrorString(counted)), " for cuda:", device,
        "; without a GPU: --backend cpu"));
  }
  if (device >= count) {
    return absl::UnavailableError(
        absl::StrCat("backend: expected a CUDA device of this machine, which has ", count,
                     ", got cuda:", device));
  }
  cudaDeviceProp properties;
  NIBBLE_CUDA_RETURN_IF_ERROR(cudaSetDevice(device));
  NIBBLE_CUDA_RETURN_IF_ERROR(cudaGetDeviceProperties(&properties, device));
  if (const cudaError_t code = QueryDeviceCode(); code != cudaSuccess) {
    cudaGetLastError();
    return absl::UnavailableError(absl::StrCat(
        "backend: expected a device that this build has code for, got ", properties.name,
        " of compute capability ", properties.major, ".", properties.minor, " (",
        cudaGetErrorString(code), "); build with -DCMAKE_CUDA_ARCHITECTURES=", properties.major,
        properties.minor, properties.major >= 9 ? "a" : "", "-real"));
  }
  return std::string(properties.name);
}

// Device memory, freed in the order of its stream.
template <typename T>
class DeviceBuffer {
 public:
  static absl::StatusOr<DeviceBuffer> Make(int64_t count, cudaStream_t stream) {
    DeviceBuffer buffer(count, stream);
    void* data = nullptr;
    NIBBLE_RETURN_IF_ERROR(CudaStatus(
        cudaMallocAsync(&data, std::max<int64_t>(1, count) * sizeof(T), stream), "allocation"));
    buffer.data_ = static_cast<T*>(data);
    return buffer;
  }
  DeviceBuffer(DeviceBuffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), count_(other.count_), stream_(other.stream_) {}
  DeviceBuffer& operator=(DeviceBuffer&&) = delete;
  ~DeviceBuffer() {
    if (data_ != nullptr) cudaFreeAsync(data_, stream_);
  }

  T* get() const { return data_; }
  int64_t count() const { return count_; }

  // Both copy all of it and are ordered by the stream; the other side, host memory or this
  // device's, must live until then.
  absl::Status CopyFrom(const void* other) {
    return CudaStatus(cudaMemcpyAsync(data_, other, count_ * sizeof(T), cudaMemcpyDefault, stream_),
                      "copy to the device");
  }
  absl::Status CopyTo(void* other) const {
    return CudaStatus(cudaMemcpyAsync(other, data_, count_ * sizeof(T), cudaMemcpyDefault, stream_),
                      "copy from the device");
  }

 private:
  DeviceBuffer(int64_t count, cudaStream_t stream) : count_(count), stream_(stream) {}
  T* data_ = nullptr;
  int64_t count_;
  cudaStream_t stream_;
};

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CUDA_DEVICE_BUFFER_H_
