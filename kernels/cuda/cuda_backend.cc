#include "kernels/cuda/cuda_backend.h"

#include <cuda_runtime_api.h>

#include <string>

#include "base/status.h"
#include "kernels/cuda/amax_launch.h"
#include "kernels/cuda/scale_sweep_launch.h"

namespace nibble {
namespace {

absl::Status CudaStatus(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return absl::OkStatus();
  const std::string message =
      absl::StrCat("cuda: ", what, ": expected success, got ", cudaGetErrorString(error));
  cudaGetLastError();  // the error has been told; it must not be told again by a later call
  return error == cudaErrorMemoryAllocation ? absl::ResourceExhaustedError(message)
                                            : absl::UnknownError(message);
}

#define NIBBLE_CUDA_RETURN_IF_ERROR(expression) \
  NIBBLE_RETURN_IF_ERROR(CudaStatus((expression), #expression))

// Device memory, freed in the order of its stream.
template <typename T>
class DeviceBuffer {
 public:
  static absl::StatusOr<DeviceBuffer> Make(int64_t count, cudaStream_t stream) {
    DeviceBuffer buffer(stream);
    void* data = nullptr;
    NIBBLE_RETURN_IF_ERROR(CudaStatus(
        cudaMallocAsync(&data, std::max<int64_t>(1, count) * sizeof(T), stream), "allocation"));
    buffer.data_ = static_cast<T*>(data);
    return buffer;
  }
  DeviceBuffer(DeviceBuffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), stream_(other.stream_) {}
  DeviceBuffer& operator=(DeviceBuffer&&) = delete;
  ~DeviceBuffer() {
    if (data_ != nullptr) cudaFreeAsync(data_, stream_);
  }
  T* get() const { return data_; }

 private:
  explicit DeviceBuffer(cudaStream_t stream) : stream_(stream) {}
  T* data_ = nullptr;
  cudaStream_t stream_;
};

class CudaBackend final : public Backend {
 public:
  CudaBackend(int device, cudaStream_t stream, std::string name)
      : device_(device), stream_(stream), name_(std::move(name)) {}
  ~CudaBackend() override {
    cudaSetDevice(device_);
    cudaStreamDestroy(stream_);
  }

  std::string name() const override { return name_; }

 private:
  absl::StatusOr<DeviceBuffer<char>> Upload(const MatrixView& x) {
    NIBBLE_CUDA_RETURN_IF_ERROR(cudaSetDevice(device_));
    const int64_t bytes = x.size() * DTypeBytes(x.dtype);
    NIBBLE_ASSIGN_OR_RETURN(auto buffer, DeviceBuffer<char>::Make(bytes, stream_));
    NIBBLE_CUDA_RETURN_IF_ERROR(
        cudaMemcpyAsync(buffer.get(), x.data, bytes, cudaMemcpyHostToDevice, stream_));
    return buffer;
  }

  template <typename T>
  absl::Status Download(const DeviceBuffer<T>& from, T* to, int64_t count) {
    NIBBLE_CUDA_RETURN_IF_ERROR(
        cudaMemcpyAsync(to, from.get(), count * sizeof(T), cudaMemcpyDeviceToHost, stream_));
    return absl::OkStatus();
  }

  absl::StatusOr<float> DoAmax(const MatrixView& x) override {
    NIBBLE_ASSIGN_OR_RETURN(const auto data, Upload(x));
    NIBBLE_ASSIGN_OR_RETURN(const auto amax, DeviceBuffer<float>::Make(1, stream_));
    NIBBLE_CUDA_RETURN_IF_ERROR(
        LaunchAmax(x.dtype, data.get(), x.size() / kBlockSize, amax.get(), stream_));
    float value = 0;
    NIBBLE_RETURN_IF_ERROR(Download(amax, &value, 1));
    NIBBLE_CUDA_RETURN_IF_ERROR(cudaStreamSynchronize(stream_));
    if (!IsFinite(value)) return NonFiniteError(x);
    return value;
  }

  absl::Status DoScaleSweep(const ScaleSweepParams& params, const MatrixView& x,
                            std::span<const float> hessians, SweepResult& result) override {
    if (!hessians.empty()) return NotYet("the Hessian sweep");
    const int64_t blocks = x.size() / kBlockSize;
    NIBBLE_ASSIGN_OR_RETURN(const auto data, Upload(x));
    NIBBLE_ASSIGN_OR_RETURN(const auto g, DeviceBuffer<float>::Make(1, stream_));
    NIBBLE_ASSIGN_OR_RETURN(const auto tables, DeviceBuffer<ScaleSweepTables>::Make(1, stream_));
    NIBBLE_ASSIGN_OR_RETURN(const auto code, DeviceBuffer<uint8_t>::Make(blocks, stream_));
    NIBBLE_ASSIGN_OR_RETURN(const auto best_amax, DeviceBuffer<float>::Make(blocks, stream_));
    NIBBLE_ASSIGN_OR_RETURN(const auto loss, DeviceBuffer<float>::Make(blocks, stream_));
    NIBBLE_ASSIGN_OR_RETURN(const auto evaluations, DeviceBuffer<int64_t>::Make(1, stream_));
    NIBBLE_CUDA_RETURN_IF_ERROR(cudaMemcpyAsync(g.get(), &result.global_amax, sizeof(float),
                                                cudaMemcpyHostToDevice, stream_));
    NIBBLE_CUDA_RETURN_IF_ERROR(cudaMemsetAsync(evaluations.get(), 0, sizeof(int64_t), stream_));
    const ScaleSweepArgs args = {
        .x = data.get(),
        .blocks = blocks,
        .global_amax = g.get(),
        .bound = static_cast<float>(params.e4m3_max),
        .exhaustive = params.method == SweepMethod::kExhaustive,
        .tables = tables.get(),
        .code = code.get(),
        .best_amax = best_amax.get(),
        .loss = loss.get(),
        .evaluations = evaluations.get(),
    };
    NIBBLE_CUDA_RETURN_IF_ERROR(LaunchScaleSweep(x.dtype, args, /*config=*/0, stream_));
    result.code.resize(blocks);
    result.best_amax.resize(blocks);
    result.loss.resize(blocks);
    NIBBLE_RETURN_IF_ERROR(Download(code, result.code.data(), blocks));
    NIBBLE_RETURN_IF_ERROR(Download(best_amax, result.best_amax.data(), blocks));
    NIBBLE_RETURN_IF_ERROR(Download(loss, result.loss.data(), blocks));
    NIBBLE_RETURN_IF_ERROR(Download(evaluations, &result.evaluations, 1));
    NIBBLE_CUDA_RETURN_IF_ERROR(cudaStreamSynchronize(stream_));
    return absl::OkStatus();
  }

  static absl::Status NotYet(const char* what) {
    return absl::UnimplementedError(absl::StrCat(
        "backend: expected amax or the plain sweep on cuda, got ", what, ": use --backend cpu"));
  }
  absl::Status DoQuantize(const QuantizeParams&, const MatrixView&,
                          const MutablePackedView&) override {
    return NotYet("quantize");
  }
  absl::Status DoDequantize(const PackedView&, DType, void*) override {
    return NotYet("dequantize");
  }
  absl::Status DoMultiplierSearch(const MultiplierSearchParams&, const MatrixView&,
                                  SweepResult&) override {
    return NotYet("the multiplier search");
  }
  absl::Status DoQuantizeWithScales(const MatrixView&, std::span<const uint8_t>,
                                    const MutablePackedView&) override {
    return NotYet("quantize with scales");
  }
  absl::StatusOr<ErrorStats> DoMeasureError(const MatrixView&, const PackedView&) override {
    return NotYet("error measurement");
  }

  const int device_;
  const cudaStream_t stream_;
  const std::string name_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Backend>> MakeCudaBackend(int device) {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) count = 0;
  cudaGetLastError();
  if (device >= count) {
    return absl::UnavailableError(
        absl::StrCat("backend: expected a CUDA device of this machine, "
                     "which has ",
                     count, ", got cuda:", device));
  }
  cudaDeviceProp properties;
  cudaStream_t stream;
  NIBBLE_CUDA_RETURN_IF_ERROR(cudaSetDevice(device));
  NIBBLE_CUDA_RETURN_IF_ERROR(cudaGetDeviceProperties(&properties, device));
  NIBBLE_CUDA_RETURN_IF_ERROR(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  return std::make_unique<CudaBackend>(device, stream,
                                       absl::StrCat("cuda:", device, " (", properties.name, ")"));
}

}  // namespace nibble
