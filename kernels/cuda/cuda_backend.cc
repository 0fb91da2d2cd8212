#include "kernels/cuda/cuda_backend.h"

#include <cuda_runtime_api.h>

#include <string>

#include "base/status.h"
#include "kernels/cuda/amax_launch.h"
#include "kernels/cuda/dequantize_launch.h"
#include "kernels/cuda/device_buffer.h"
#include "kernels/cuda/measure_error_launch.h"
#include "kernels/cuda/multiplier_search_launch.h"
#include "kernels/cuda/post_scale_launch.h"
#include "kernels/cuda/scale_sweep_launch.h"

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
    if (!hessians.empty()) return NotYet("the Hessian sweep");
    const int64_t blocks = x.size() / kBlockSize;
    NIBBLE_ASSIGN_OR_RETURN(const auto data, Upload(x));
    NIBBLE_ASSIGN_OR_RETURN(const float amax, AmaxOf(x, data.get()));
    result.global_amax = params.global_amax.value_or(amax);
    NIBBLE_ASSIGN_OR_RETURN(const auto g, Upload(&result.global_amax, 1));
    NIBBLE_ASSIGN_OR_RETURN(const auto tables, Allocate<ScaleSweepTables>(1));
    NIBBLE_ASSIGN_OR_RETURN(const auto code, Allocate<uint8_t>(blocks));
    NIBBLE_ASSIGN_OR_RETURN(const auto best_amax, Allocate<float>(blocks));
    NIBBLE_ASSIGN_OR_RETURN(const auto loss, Allocate<float>(blocks));
    NIBBLE_ASSIGN_OR_RETURN(const auto evaluations, Allocate<int64_t>(1));
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
    NIBBLE_RETURN_IF_ERROR(code.CopyTo(result.code.data()));
    NIBBLE_RETURN_IF_ERROR(best_amax.CopyTo(result.best_amax.data()));
    NIBBLE_RETURN_IF_ERROR(loss.CopyTo(result.loss.data()));
    NIBBLE_RETURN_IF_ERROR(evaluations.CopyTo(&result.evaluations));
    return Synchronize();
  }

  absl::Status DoMultiplierSearch(const MultiplierSearchParams& params, const MatrixView& x,
                                  SweepResult& result) override {
    const int64_t blocks = x.size() / kBlockSize;
    NIBBLE_ASSIGN_OR_RETURN(const auto data, Upload(x));
    NIBBLE_ASSIGN_OR_RETURN(const float amax, AmaxOf(x, data.get()));
    result.global_amax = params.global_amax.value_or(amax);
    NIBBLE_ASSIGN_OR_RETURN(const auto g, Upload(&result.global_amax, 1));
    NIBBLE_ASSIGN_OR_RETURN(const auto workspace,
                            Allocate<char>(MultiplierSearchWorkspaceBytes(params.grid)));
    NIBBLE_ASSIGN_OR_RETURN(const auto code, Allocate<uint8_t>(blocks));
    NIBBLE_ASSIGN_OR_RETURN(const auto best_amax, Allocate<float>(blocks));
    NIBBLE_ASSIGN_OR_RETURN(const auto loss, Allocate<float>(blocks));
    NIBBLE_ASSIGN_OR_RETURN(const auto evaluations, Allocate<int64_t>(1));
    NIBBLE_CUDA_RETURN_IF_ERROR(cudaMemsetAsync(evaluations.get(), 0, sizeof(int64_t), stream_));
    const MultiplierSearchArgs args = {
        .x = data.get(),
        .blocks = blocks,
        .global_amax = g.get(),
        .bound = static_cast<float>(params.e4m3_max),
        .grid = params.grid,
        .workspace = workspace.get(),
        .code = code.get(),
        .best_amax = best_amax.get(),
        .loss = loss.get(),
        .evaluations = evaluations.get(),
    };
    NIBBLE_CUDA_RETURN_IF_ERROR(LaunchMultiplierSearch(x.dtype, args, /*config=*/0, stream_));
    result.code.resize(blocks);
    result.best_amax.resize(blocks);
    result.loss.resize(blocks);
    NIBBLE_RETURN_IF_ERROR(code.CopyTo(result.code.data()));
    NIBBLE_RETURN_IF_ERROR(best_amax.CopyTo(result.best_amax.data()));
    NIBBLE_RETURN_IF_ERROR(loss.CopyTo(result.loss.data()));
    NIBBLE_RETURN_IF_ERROR(evaluations.CopyTo(&result.evaluations));
    return Synchronize();
  }

  // A packed tensor's bytes on the device.
  struct DevicePacked {
    DeviceBuffer<uint8_t> packed, scale;
    DeviceBuffer<float> amax;
    PackedArgs args;
  };
  absl::StatusOr<DevicePacked> Upload(const PackedView& p) {
    const PackedLayout& layout = p.layout;
    NIBBLE_ASSIGN_OR_RETURN(auto packed, Upload(p.packed, layout.packed_bytes()));
    NIBBLE_ASSIGN_OR_RETURN(auto scale, Upload(p.scale, layout.scale_bytes()));
    NIBBLE_ASSIGN_OR_RETURN(auto amax, Upload(p.amax, layout.amax_count()));
    const PackedArgs args = {
        .packed = packed.get(),
        .scale = scale.get(),
        .amax = amax.get(),
        .rows = layout.rows,
        .blocks_per_row = layout.blocks_per_row(),
        .amax_per_row = layout.scheme == Scheme::kPerToken,
        .checkpoint = layout.rule == Rule::kCheckpoint,
        .bound = static_cast<float>(layout.e4m3_max),
        .swizzled = layout.swizzled,
    };
    return DevicePacked{std::move(packed), std::move(scale), std::move(amax), args};
  }

  absl::Status DoDequantize(const PackedView& packed, DType dtype, void* out) override {
    NIBBLE_ASSIGN_OR_RETURN(const DevicePacked in, Upload(packed));
    NIBBLE_ASSIGN_OR_RETURN(const auto values,
                            Allocate<char>(in.args.blocks() * kBlockSize * DTypeBytes(dtype)));
    const DequantizeArgs args = {.in = in.args, .out = values.get()};
    NIBBLE_CUDA_RETURN_IF_ERROR(LaunchDequantize(dtype, args, /*config=*/0, stream_));
    NIBBLE_RETURN_IF_ERROR(values.CopyTo(out));
    return Synchronize();
  }

  absl::StatusOr<ErrorStats> DoMeasureError(const MatrixView& x,
                                            const PackedView& packed) override {
    NIBBLE_ASSIGN_OR_RETURN(const auto data, Upload(x));
    NIBBLE_ASSIGN_OR_RETURN(const DevicePacked in, Upload(packed));
    NIBBLE_ASSIGN_OR_RETURN(const auto device_totals, Allocate<ErrorTotals>(1));
    const MeasureErrorArgs args = {
        .x = data.get(), .packed = in.args, .totals = device_totals.get()};
    NIBBLE_CUDA_RETURN_IF_ERROR(LaunchMeasureError(x.dtype, args, /*config=*/0, stream_));
    ErrorTotals totals;
    NIBBLE_RETURN_IF_ERROR(device_totals.CopyTo(&totals));
    NIBBLE_RETURN_IF_ERROR(Synchronize());
    if (totals.bad_x_blocks > 0) return NonFiniteError(x);
    if (totals.bad_y_blocks > 0) {
      return NonFinitePackedError(static_cast<int64_t>(totals.bad_y_blocks));
    }
    return ErrorStats(totals, in.args.blocks());
  }

  absl::Status DoPostScale(const MutableMatrixView& d, std::span<const float> row_decode_scale,
                           std::span<const float> col_decode_scale) override {
    NIBBLE_ASSIGN_OR_RETURN(const auto data, Upload(static_cast<const char*>(d.data),
                                                    d.rows * d.cols * DTypeBytes(d.dtype)));
    NIBBLE_ASSIGN_OR_RETURN(const auto a, Upload(row_decode_scale.data(), row_decode_scale.size()));
    NIBBLE_ASSIGN_OR_RETURN(const auto b, Upload(col_decode_scale.data(), col_decode_scale.size()));
    const PostScaleArgs args = {
        .d = data.get(),
        .rows = d.rows,
        .cols = d.cols,
        .row_decode_scale = a.get(),
        .col_decode_scale = b.get(),
        .per_row = row_decode_scale.size() > 1,
        .per_col = col_decode_scale.size() > 1,
    };
    NIBBLE_CUDA_RETURN_IF_ERROR(LaunchPostScale(d.dtype, args, /*config=*/0, stream_));
    NIBBLE_RETURN_IF_ERROR(data.CopyTo(d.data));
    return Synchronize();
  }

  static absl::Status NotYet(const char* what) {
    return absl::UnimplementedError(absl::StrCat(
        "backend: expected an operation that cuda has, got ", what, ": use --backend cpu"));
  }
  absl::Status DoQuantize(const QuantizeParams&, const MatrixView&,
                          const MutablePackedView&) override {
    return NotYet("quantize");
  }
  absl::Status DoQuantizeWithScales(const MatrixView&, std::span<const uint8_t>,
                                    const MutablePackedView&) override {
    return NotYet("quantize with scales");
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
