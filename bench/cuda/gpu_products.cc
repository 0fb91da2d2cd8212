#include "bench/gpu_products.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "kernels/cuda/device_buffer.h"
#include "kernels/cuda/matrix_products.h"

namespace nibble {
namespace {

constexpr int kTimes = 9;

absl::StatusOr<double> Measure(int device, DType dtype, const std::vector<ProductShape>& shapes) {
  NIBBLE_RETURN_IF_ERROR(UseCudaDevice(device).status());
  cudaStream_t stream;
  NIBBLE_CUDA_RETURN_IF_ERROR(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  int64_t most_x = 0, most_w = 0, most_y = 0;
  for (const ProductShape& shape : shapes) {
    most_x = std::max(most_x, shape.rows * shape.depth);
    most_w = std::max(most_w, shape.cols * shape.depth);
    most_y = std::max(most_y, shape.rows * shape.cols);
  }
  std::vector<double> seconds;
  {
    NIBBLE_ASSIGN_OR_RETURN(const auto products, MatrixProducts::Make(stream));
    NIBBLE_ASSIGN_OR_RETURN(const auto x, DeviceBuffer<float>::Make(most_x, stream));
    NIBBLE_ASSIGN_OR_RETURN(const auto w, DeviceBuffer<float>::Make(most_w, stream));
    NIBBLE_ASSIGN_OR_RETURN(const auto y, DeviceBuffer<float>::Make(most_y, stream));
    // Values as those of a layer cost a GPU more power, and so time, than zeros: 0x3F713F71 is
    // 0.94 in float32 and in bf16; every second one is negative.
    std::vector<uint32_t> values(std::max(most_x, most_w));
    uint32_t state = 1;
    for (uint32_t& value : values) {
      state = state * 1664525u + 1013904223u;
      value = (state & 0x807F807Fu) | 0x3F003F00u;
    }
    NIBBLE_CUDA_RETURN_IF_ERROR(cudaStreamSynchronize(stream));
    NIBBLE_CUDA_RETURN_IF_ERROR(
        cudaMemcpy(x.get(), values.data(), most_x * 4, cudaMemcpyHostToDevice));
    NIBBLE_CUDA_RETURN_IF_ERROR(
        cudaMemcpy(w.get(), values.data(), most_w * 4, cudaMemcpyHostToDevice));
    cudaEvent_t begin, end;
    NIBBLE_CUDA_RETURN_IF_ERROR(cudaEventCreate(&begin));
    NIBBLE_CUDA_RETURN_IF_ERROR(cudaEventCreate(&end));
    for (int i = -2; i < kTimes; ++i) {
      NIBBLE_CUDA_RETURN_IF_ERROR(cudaEventRecord(begin, stream));
      for (const ProductShape& shape : shapes) {
        NIBBLE_RETURN_IF_ERROR(products->Multiply(dtype, x.get(), w.get(), y.get(), shape.rows,
                                                  shape.cols, shape.depth, /*add=*/false));
      }
      NIBBLE_CUDA_RETURN_IF_ERROR(cudaEventRecord(end, stream));
      NIBBLE_CUDA_RETURN_IF_ERROR(cudaEventSynchronize(end));
      float ms = 0;
      NIBBLE_CUDA_RETURN_IF_ERROR(cudaEventElapsedTime(&ms, begin, end));
      if (i >= 0) seconds.push_back(ms * 1e-3);
    }
    cudaEventDestroy(begin);
    cudaEventDestroy(end);
  }
  NIBBLE_CUDA_RETURN_IF_ERROR(cudaStreamSynchronize(stream));
  NIBBLE_CUDA_RETURN_IF_ERROR(cudaStreamDestroy(stream));
  std::ranges::sort(seconds);
  return seconds[seconds.size() / 2];
}

}  // namespace

double GpuProductSeconds(int device, DType dtype, const std::vector<ProductShape>& shapes) {
  const auto seconds = Measure(device, dtype, shapes);
  if (seconds.ok()) return *seconds;
  std::fprintf(stderr, "products: %s\n", std::string(seconds.status().message()).c_str());
  std::exit(1);
}

}  // namespace nibble
