#include "kernels/cuda/cuda_backend.h"

#include <cuda_runtime_api.h>

#include <iterator>
#include <string>

#include "base/status.h"
#include "kernels/cuda/amax_launch.h"
#include "kernels/cuda/device_buffer.h"
#include "kernels/cuda/scale_sweep_hessian_launch.h"
#include "kernels/cuda/scale_sweep_launch.h"
#include "kernels/hessian_factors.h"

namespace nibble {
namespace {

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
  template <typename T>
  absl::StatusOr<DeviceBuffer<T>> Allocate(int64_t count) {
    NIBBLE_CUDA_RETURN_IF_ERROR(cudaSetDevice(device_));
    return DeviceBuffer<T>::Make(count, stream_);
  }
  template <typename T>
  absl::StatusOr<DeviceBuffer<T>> Upload(const T* values, int64_t count) {
    NIBBLE_ASSIGN_OR_RETURN(auto buffer, Allocate<T>(count));
    NIBBLE_RETURN_IF_ERROR(buffer.CopyFrom(values));
    return buffer;
  }
  absl::StatusOr<DeviceBuffer<char>> Upload(const MatrixView& x) {
    return Upload(static_cast<const char*>(x.data), x.size() * DTypeBytes(x.dtype));
  }
  absl::Status Synchronize() {
    return CudaStatus(cudaStreamSynchronize(stream_), "synchronization");
  }

  // Of x, which `data` is a copy of.
  absl::StatusOr<float> AmaxOf(const MatrixView& x, const void* data) {
    NIBBLE_ASSIGN_OR_RETURN(const auto amax, Allocate<float>(1));
    NIBBLE_CUDA_RETURN_IF_ERROR(
        LaunchAmax(x.dtype, data, x.size() / kBlockSize, amax.get(), stream_));
    float value = 0;
    NIBBLE_RETURN_IF_ERROR(amax.CopyTo(&value));
    NIBBLE_RETURN_IF_ERROR(Synchronize());
    if (!IsFinite(value)) return NonFiniteError(x);
    return value;
  }

  absl::StatusOr<float> DoAmax(const MatrixView& x) override {
    NIBBLE_ASSIGN_OR_RETURN(const auto data, Upload(x));
    return AmaxOf(x, data.get());
  }

  absl::Status DoScaleSweep(const ScaleSweepParams& params, const MatrixView& x,
                            std::span<const float> hessians, SweepResult& result) override {
    const int64_t blocks = x.size() / kBlockSize;
    NIBBLE_ASSIGN_OR_RETURN(const auto data, Upload(x));
    NIBBLE_ASSIGN_OR_RETURN(const float amax, AmaxOf(x, data.get()));
    result.global_amax = params.global_amax.value_or(amax);
    NIBBLE_ASSIGN_OR_RETURN(const auto g, Upload(&result.global_amax, 1));
    NIBBLE_ASSIGN_OR_RETURN(const auto code, Allocate<uint8_t>(blocks));
    NIBBLE_ASSIGN_OR_RETURN(const auto best_amax, Allocate<float>(blocks));
    NIBBLE_ASSIGN_OR_RETURN(const auto loss, Allocate<float>(blocks));
    NIBBLE_ASSIGN_OR_RETURN(const auto evaluations, Allocate<int64_t>(1));
    NIBBLE_CUDA_RETURN_IF_ERROR(cudaMemsetAsync(evaluations.get(), 0, sizeof(int64_t), stream_));
    if (hessians.empty()) {
      NIBBLE_ASSIGN_OR_RETURN(const auto tables, Allocate<ScaleSweepTables>(1));
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
    } else {
      NIBBLE_ASSIGN_OR_RETURN(const auto host_factors, FactorHessians(hessians, pool_));
      NIBBLE_ASSIGN_OR_RETURN(const auto factors,
                              Upload(host_factors.data(), std::ssize(host_factors)));
      NIBBLE_ASSIGN_OR_RETURN(const auto tables, Allocate<ScaleSweepHessianTables>(1));
      NIBBLE_ASSIGN_OR_RETURN(const auto prepared, Allocate<HessianSlice>(factors.count()));
      const ScaleSweepHessianArgs args = {
          .x = data.get(),
          .rows = x.rows,
          .slices = x.cols / kBlockSize,
          .factors = factors.get(),
          .global_amax = g.get(),
          .bound = static_cast<float>(params.e4m3_max),
          .exhaustive = params.method == SweepMethod::kExhaustive,
          .tables = tables.get(),
          .prepared = prepared.get(),
          .code = code.get(),
          .best_amax = best_amax.get(),
          .loss = loss.get(),
          .evaluations = evaluations.get(),
      };
      NIBBLE_CUDA_RETURN_IF_ERROR(LaunchScaleSweepHessian(x.dtype, args, /*config=*/0, stream_));
      // The copy from host_factors may still be under way.
      NIBBLE_RETURN_IF_ERROR(Synchronize());
    }
    result.code.resize(blocks);
    result.best_amax.resize(blocks);
    result.loss.resize(blocks);
    NIBBLE_RETURN_IF_ERROR(code.CopyTo(result.code.data()));
    NIBBLE_RETURN_IF_ERROR(best_amax.CopyTo(result.best_amax.data()));
    NIBBLE_RETURN_IF_ERROR(loss.CopyTo(result.loss.data()));
    NIBBLE_RETURN_IF_ERROR(evaluations.CopyTo(&result.evaluations));
    return Synchronize();
  }

  static absl::Status NotYet(const char* what) {
    return absl::UnimplementedError(absl::StrCat("backend: expected amax or a sweep on cuda, got ",
                                                 what, ": use --backend cpu"));
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
  ThreadPool pool_;  // for what is done on the host
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
