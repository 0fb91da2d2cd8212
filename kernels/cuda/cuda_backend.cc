#include "kernels/cuda/cuda_backend.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <iterator>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/parallel_for.h"
#include "base/status.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cuda/accumulate_hessian_launch.h"
#include "kernels/cuda/amax_launch.h"
#include "kernels/cuda/dequantize_launch.h"
#include "kernels/cuda/device_buffer.h"
#include "kernels/cuda/encode_params.h"
#include "kernels/cuda/hessian_feedback_launch.h"
#include "kernels/cuda/inputs/input_sums.h"
#include "kernels/cuda/measure_error_launch.h"
#include "kernels/cuda/multiplier_search_launch.h"
#include "kernels/cuda/observe_launch.h"
#include "kernels/cuda/post_scale_launch.h"
#include "kernels/cuda/quantize_copies.h"
#include "kernels/cuda/quantize_launch.h"
#include "kernels/cuda/scale_sweep_hessian_launch.h"
#include "kernels/cuda/scale_sweep_launch.h"
#include "kernels/cuda/tunable_ops.h"
#include "kernels/hessian_factors.h"

namespace nibble {
namespace {

class CudaBackend final : public Backend {
 public:
  CudaBackend(int device, cudaStream_t stream, std::string name, std::vector<ConfigPicks> configs)
      : device_(device), stream_(stream), name_(std::move(name)), configs_(std::move(configs)) {}
  ~CudaBackend() override {
    cudaSetDevice(device_);
    cudaStreamDestroy(stream_);
  }

  std::string name() const override { return name_; }
  std::optional<int> cuda_device() const override { return device_; }

  absl::StatusOr<std::unique_ptr<InputSums>> MakeInputSums(int64_t channels, bool hessians,
                                                           void* stream) override {
    // Gone with the last sums, before their stream is.
    std::shared_ptr<InputScratch> scratch = input_scratch_.lock();
    if (scratch == nullptr) input_scratch_ = scratch = std::make_shared<InputScratch>();
    return MakeCudaInputSums(device_, channels, hessians,
                             configs_[static_cast<size_t>(CudaOp::kObserve)],
                             configs_[static_cast<size_t>(CudaOp::kAccumulateHessian)],
                             std::move(scratch), pinned_, static_cast<cudaStream_t>(stream));
  }

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
  // What tuning picked, or the default.
  int ConfigOf(CudaOp op, DType dtype, int64_t blocks) const {
    return configs_[static_cast<size_t>(op)](dtype, blocks);
  }
  int ConfigOf(CudaOp op, const MatrixView& x) const {
    return ConfigOf(op, x.dtype, x.size() / kBlockSize);
  }
  CopyConfigs CopyConfigsOf(const MatrixView& x) const {
    return {.amax = ConfigOf(CudaOp::kCopyAmax, x),
            .rows = ConfigOf(CudaOp::kCopyRows, x),
            .encode = ConfigOf(CudaOp::kCopyEncode, x)};
  }
  absl::Status Synchronize() {
    return CudaStatus(cudaStreamSynchronize(stream_), "synchronization");
  }

  // What is told of x is found on the host, wherever x lies.
  static absl::StatusOr<std::vector<char>> OnHost(const MatrixView& x) {
    std::vector<char> values(x.size() * DTypeBytes(x.dtype));
    NIBBLE_CUDA_RETURN_IF_ERROR(
        cudaMemcpy(values.data(), x.data, values.size(), cudaMemcpyDefault));
    return values;
  }
  static absl::Status Refusal(const MatrixView& x) {
    NIBBLE_ASSIGN_OR_RETURN(const auto values, OnHost(x));
    return NonFiniteError({values.data(), x.dtype, x.rows, x.cols});
  }
  static absl::Status HessianRefusal(const MatrixView& x, int64_t slice) {
    NIBBLE_ASSIGN_OR_RETURN(const auto values, OnHost(x));
    return HessianSumError({values.data(), x.dtype, x.rows, x.cols}, slice);
  }

  // Of x, which `data` is a copy of.
  absl::StatusOr<float> AmaxOf(const MatrixView& x, const void* data) {
    NIBBLE_ASSIGN_OR_RETURN(const auto amax, Allocate<float>(1));
    NIBBLE_CUDA_RETURN_IF_ERROR(LaunchAmax(x.dtype, data, x.size() / kBlockSize, amax.get(),
                                           ConfigOf(CudaOp::kAmax, x), stream_));
    float value = 0;
    NIBBLE_RETURN_IF_ERROR(amax.CopyTo(&value));
    NIBBLE_RETURN_IF_ERROR(Synchronize());
    if (!IsFinite(value)) return Refusal(x);
    return value;
  }

  // Where a search puts what it finds of each block.
  struct DeviceSweep {
    DeviceBuffer<uint8_t> code;
    DeviceBuffer<float> best_amax, loss;

    absl::Status CopyTo(SweepResult& result) const {
      result.code.resize(code.count());
      result.best_amax.resize(best_amax.count());
      result.loss.resize(loss.count());
      NIBBLE_RETURN_IF_ERROR(code.CopyTo(result.code.data()));
      NIBBLE_RETURN_IF_ERROR(best_amax.CopyTo(result.best_amax.data()));
      return loss.CopyTo(result.loss.data());
    }
  };
  absl::StatusOr<DeviceSweep> AllocateSweep(int64_t blocks) {
    NIBBLE_ASSIGN_OR_RETURN(auto code, Allocate<uint8_t>(blocks));
    NIBBLE_ASSIGN_OR_RETURN(auto best_amax, Allocate<float>(blocks));
    NIBBLE_ASSIGN_OR_RETURN(auto loss, Allocate<float>(blocks));
    return DeviceSweep{std::move(code), std::move(best_amax), std::move(loss)};
  }

  absl::StatusOr<float> DoAmax(const MatrixView& x) override {
    NIBBLE_ASSIGN_OR_RETURN(const auto data, Upload(x));
    return AmaxOf(x, data.get());
  }

  absl::Status DoObserve(const MatrixView& x, Observation& result) override {
    const ObserveParams& params = result.params;
    NIBBLE_ASSIGN_OR_RETURN(const auto data, Upload(x));
    NIBBLE_ASSIGN_OR_RETURN(const auto amax, Allocate<float>(1));
    NIBBLE_ASSIGN_OR_RETURN(const auto row_amax, Allocate<float>(result.row_amax.size()));
    NIBBLE_ASSIGN_OR_RETURN(const auto column_amax, Allocate<float>(result.column_amax.size()));
    NIBBLE_ASSIGN_OR_RETURN(const auto block_amax, Allocate<float>(result.block_amax.size()));
    NIBBLE_ASSIGN_OR_RETURN(const auto histogram, Allocate<uint64_t>(result.histogram.size()));
    NIBBLE_ASSIGN_OR_RETURN(const auto non_finite, Allocate<NonFiniteCounts>(1));
    const ObserveArgs args = {
        .x = data.get(),
        .rows = x.rows,
        .cols = x.cols,
        .amax = amax.get(),
        .row_amax = params.row_amax ? row_amax.get() : nullptr,
        .column_amax = params.column_amax ? column_amax.get() : nullptr,
        .block_amax = params.block_amax ? block_amax.get() : nullptr,
        .histogram = params.histogram ? histogram.get() : nullptr,
        .non_finite = non_finite.get(),
    };
    NIBBLE_CUDA_RETURN_IF_ERROR(
        LaunchObserve(x.dtype, args, ConfigOf(CudaOp::kObserve, x), stream_));
    NonFiniteCounts counts = {};
    NIBBLE_RETURN_IF_ERROR(amax.CopyTo(&result.amax));
    NIBBLE_RETURN_IF_ERROR(row_amax.CopyTo(result.row_amax.data()));
    NIBBLE_RETURN_IF_ERROR(column_amax.CopyTo(result.column_amax.data()));
    NIBBLE_RETURN_IF_ERROR(block_amax.CopyTo(result.block_amax.data()));
    NIBBLE_RETURN_IF_ERROR(histogram.CopyTo(result.histogram.data()));
    NIBBLE_RETURN_IF_ERROR(non_finite.CopyTo(&counts));
    NIBBLE_RETURN_IF_ERROR(Synchronize());
    result.nan_count = static_cast<int64_t>(counts.nan);
    result.inf_count = static_cast<int64_t>(counts.inf);
    result.first_non_finite = counts.first;
    return absl::OkStatus();
  }

  absl::Status DoAccumulateHessian(const MatrixView& x, std::span<float> hessians) override {
    NIBBLE_ASSIGN_OR_RETURN(const auto data, Upload(x));
    NIBBLE_ASSIGN_OR_RETURN(const auto sums, Upload(hessians.data(), hessians.size()));
    NIBBLE_ASSIGN_OR_RETURN(const auto workspace,
                            Allocate<float>(AccumulateHessianWorkspace(x.rows, x.cols)));
    NIBBLE_ASSIGN_OR_RETURN(const auto bad_slice, Allocate<int64_t>(1));
    const AccumulateHessianArgs args = {
        .x = data.get(),
        .tokens = x.rows,
        .channels = x.cols,
        .workspace = workspace.get(),
        .hessians = sums.get(),
        .bad_slice = bad_slice.get(),
    };
    NIBBLE_CUDA_RETURN_IF_ERROR(
        LaunchAccumulateHessian(x.dtype, args, ConfigOf(CudaOp::kAccumulateHessian, x), stream_));
    int64_t slice = -1;
    NIBBLE_RETURN_IF_ERROR(bad_slice.CopyTo(&slice));
    NIBBLE_RETURN_IF_ERROR(Synchronize());
    if (slice >= 0) return HessianRefusal(x, slice);
    NIBBLE_RETURN_IF_ERROR(sums.CopyTo(hessians.data()));
    return Synchronize();
  }

  absl::Status DoScaleSweep(const ScaleSweepParams& params, const MatrixView& x,
                            std::span<const float> hessians, SweepResult& result) override {
    const int64_t blocks = x.size() / kBlockSize;
    NIBBLE_ASSIGN_OR_RETURN(const auto data, Upload(x));
    NIBBLE_ASSIGN_OR_RETURN(const float amax, AmaxOf(x, data.get()));
    result.global_amax = params.global_amax.value_or(amax);
    NIBBLE_ASSIGN_OR_RETURN(const auto g, Upload(&result.global_amax, 1));
    NIBBLE_ASSIGN_OR_RETURN(const DeviceSweep found, AllocateSweep(blocks));
    SweepCounts totals;
    NIBBLE_ASSIGN_OR_RETURN(const auto counts, Upload(&totals, 1));
    if (hessians.empty()) {
      NIBBLE_ASSIGN_OR_RETURN(const auto tables, Allocate<ScaleSweepTables>(1));
      const ScaleSweepArgs args = {
          .x = data.get(),
          .blocks = blocks,
          .global_amax = g.get(),
          .bound = static_cast<float>(params.e4m3_max),
          .exhaustive = params.method == SweepMethod::kExhaustive,
          .tables = tables.get(),
          .code = found.code.get(),
          .best_amax = found.best_amax.get(),
          .loss = found.loss.get(),
          .counts = counts.get(),
      };
      NIBBLE_CUDA_RETURN_IF_ERROR(
          LaunchScaleSweep(x.dtype, args, ConfigOf(CudaOp::kScaleSweep, x), stream_));
    } else {
      ThreadPool pool;
      NIBBLE_ASSIGN_OR_RETURN(const auto host_factors, FactorHessians(hessians, pool));
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
          .code = found.code.get(),
          .best_amax = found.best_amax.get(),
          .loss = found.loss.get(),
          .counts = counts.get(),
      };
      NIBBLE_CUDA_RETURN_IF_ERROR(
          LaunchScaleSweepHessian(x.dtype, args, ConfigOf(CudaOp::kScaleSweepHessian, x), stream_));
      // The copy from host_factors may still be under way.
      NIBBLE_RETURN_IF_ERROR(Synchronize());
    }
    NIBBLE_RETURN_IF_ERROR(found.CopyTo(result));
    NIBBLE_RETURN_IF_ERROR(counts.CopyTo(&totals));
    NIBBLE_RETURN_IF_ERROR(Synchronize());
    result.evaluations = totals.evaluations;
    result.near_ties = totals.near_ties;
    return absl::OkStatus();
  }

  absl::Status DoHessianFeedback(const MatrixView& x, std::span<const float> hessians,
                                 SweepResult& found, const MutablePackedView& out) override {
    ThreadPool pool;
    NIBBLE_ASSIGN_OR_RETURN(const auto host_factors, FactorHessians(hessians, pool));
    const auto host_feedback = MakeHessianFeedbacks(host_factors, pool);
    const SweepTable host_table =
        MakeSweepTable(found.global_amax, static_cast<float>(out.layout.e4m3_max));
    NIBBLE_ASSIGN_OR_RETURN(const auto data, Upload(x));
    NIBBLE_ASSIGN_OR_RETURN(const auto factors,
                            Upload(host_factors.data(), std::ssize(host_factors)));
    NIBBLE_ASSIGN_OR_RETURN(const auto feedback,
                            Upload(host_feedback.data(), std::ssize(host_feedback)));
    NIBBLE_ASSIGN_OR_RETURN(const auto table, Upload(&host_table, 1));
    NIBBLE_ASSIGN_OR_RETURN(const auto code, Upload(found.code.data(), std::ssize(found.code)));
    NIBBLE_ASSIGN_OR_RETURN(const auto loss, Upload(found.loss.data(), std::ssize(found.loss)));
    NIBBLE_ASSIGN_OR_RETURN(const auto packed, Upload(out.packed, out.layout.packed_bytes()));
    const HessianFeedbackArgs args = {
        .x = data.get(),
        .rows = x.rows,
        .slices = x.cols / kBlockSize,
        .factors = factors.get(),
        .feedback = feedback.get(),
        .table = table.get(),
        .code = code.get(),
        .loss = loss.get(),
        .packed = packed.get(),
    };
    NIBBLE_CUDA_RETURN_IF_ERROR(
        LaunchHessianFeedback(x.dtype, args, ConfigOf(CudaOp::kHessianFeedback, x), stream_));
    NIBBLE_RETURN_IF_ERROR(code.CopyTo(found.code.data()));
    NIBBLE_RETURN_IF_ERROR(loss.CopyTo(found.loss.data()));
    NIBBLE_RETURN_IF_ERROR(packed.CopyTo(out.packed));
    return Synchronize();
  }

  absl::Status DoQuantize(const QuantizeParams& params, const MatrixView& x,
                          const MutablePackedView& out) override {
    if (params.columnwise || params.rht != Rht::kNone) {
      NIBBLE_ASSIGN_OR_RETURN(const bool finite, Copies(params, x, {&x.rows, 1}, {&out, 1}));
      return finite ? absl::OkStatus() : MakeCpuBackend({})->Quantize(params, x, out);
    }
    NIBBLE_ASSIGN_OR_RETURN(const auto data, Upload(x));
    NIBBLE_ASSIGN_OR_RETURN(const float tensor_amax, AmaxOf(x, data.get()));
    std::fill_n(out.amax, out.layout.amax_count(), params.global_amax.value_or(tensor_amax));
    if (x.size() == 0) return absl::OkStatus();
    NIBBLE_ASSIGN_OR_RETURN(const auto amax, Upload(out.amax, out.layout.amax_count()));
    if (params.scheme == Scheme::kPerToken) {
      const ObserveArgs args = {
          .x = data.get(), .rows = x.rows, .cols = x.cols, .row_amax = amax.get()};
      NIBBLE_CUDA_RETURN_IF_ERROR(
          LaunchObserve(x.dtype, args, ConfigOf(CudaOp::kObserve, x), stream_));
      NIBBLE_RETURN_IF_ERROR(amax.CopyTo(out.amax));
    }
    const QuantizeArgs args = {
        .dtype = x.dtype,
        .x = data.get(),
        .rows = x.rows,
        .cols = x.cols,
        .scheme = params.scheme,
        .method = MethodOf(params),
        .encode = EncodeParamsOf(params),
        .amax = amax.get(),
        .swizzle = params.swizzle,
    };
    return Encode(args, out);
  }

  // False where not all is finite: the CPU's backend then finds what and where.
  absl::StatusOr<bool> Copies(const QuantizeParams& params, const MatrixView& x,
                              std::span<const int64_t> group_rows,
                              std::span<const MutablePackedView> out) {
    NIBBLE_CUDA_RETURN_IF_ERROR(cudaSetDevice(device_));
    const CopyRequest none, copy = {&params, out};
    return QuantizeCopies(x, group_rows, params.columnwise ? none : copy,
                          params.columnwise ? copy : none, CopyConfigsOf(x), stream_);
  }

  absl::Status DoQuantizeGrouped(const QuantizeParams& params, const MatrixView& x,
                                 std::span<const int64_t> group_rows,
                                 std::span<const MutablePackedView> out) override {
    NIBBLE_ASSIGN_OR_RETURN(const bool finite, Copies(params, x, group_rows, out));
    return finite ? absl::OkStatus()
                  : MakeCpuBackend({})->QuantizeGrouped(params, x, group_rows, out);
  }

  absl::Status DoQuantizeBoth(const QuantizeBothParams& params, const MatrixView& x,
                              const MutablePackedView& rowwise,
                              const MutablePackedView& columnwise) override {
    NIBBLE_CUDA_RETURN_IF_ERROR(cudaSetDevice(device_));
    NIBBLE_ASSIGN_OR_RETURN(
        const bool finite,
        QuantizeCopies(x, {&x.rows, 1}, {&params.rowwise, {&rowwise, 1}},
                       {&params.columnwise, {&columnwise, 1}}, CopyConfigsOf(x), stream_));
    return finite ? absl::OkStatus()
                  : MakeCpuBackend({})->QuantizeBoth(params, x, rowwise, columnwise);
  }

  absl::Status DoQuantizeWithScales(const MatrixView& x, std::span<const uint8_t> scales,
                                    const MutablePackedView& out) override {
    NIBBLE_ASSIGN_OR_RETURN(const auto data, Upload(x));
    NIBBLE_RETURN_IF_ERROR(AmaxOf(x, data.get()).status());
    NIBBLE_ASSIGN_OR_RETURN(const auto amax, Upload(out.amax, 1));
    NIBBLE_ASSIGN_OR_RETURN(const auto given, Upload(scales.data(), out.layout.blocks()));
    QuantizeArgs args = {
        .dtype = x.dtype,
        .x = data.get(),
        .rows = x.rows,
        .cols = x.cols,
        .method = EncodeMethod::kCheckpoint,
        .amax = amax.get(),
        .given_scale = given.get(),
    };
    args.encode.bound = static_cast<float>(out.layout.e4m3_max);
    return Encode(args, out);
  }

  // Launches it with memory for its results, which go to out.
  absl::Status Encode(QuantizeArgs args, const MutablePackedView& out) {
    NIBBLE_ASSIGN_OR_RETURN(const auto packed, Allocate<uint8_t>(out.layout.packed_bytes()));
    NIBBLE_ASSIGN_OR_RETURN(const auto scale, Allocate<uint8_t>(out.layout.scale_bytes()));
    args.packed = packed.get();
    args.scale = scale.get();
    NIBBLE_CUDA_RETURN_IF_ERROR(LaunchQuantize(
        args, ConfigOf(CudaOp::kQuantize, args.dtype, out.layout.blocks()), stream_));
    NIBBLE_RETURN_IF_ERROR(packed.CopyTo(out.packed));
    NIBBLE_RETURN_IF_ERROR(scale.CopyTo(out.scale));
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
    NIBBLE_ASSIGN_OR_RETURN(const DeviceSweep found, AllocateSweep(blocks));
    SweepCounts totals;
    NIBBLE_ASSIGN_OR_RETURN(const auto counts, Upload(&totals, 1));
    const MultiplierSearchArgs args = {
        .x = data.get(),
        .blocks = blocks,
        .global_amax = g.get(),
        .bound = static_cast<float>(params.e4m3_max),
        .grid = params.grid,
        .workspace = workspace.get(),
        .code = found.code.get(),
        .best_amax = found.best_amax.get(),
        .loss = found.loss.get(),
        .counts = counts.get(),
    };
    NIBBLE_CUDA_RETURN_IF_ERROR(
        LaunchMultiplierSearch(x.dtype, args, ConfigOf(CudaOp::kMultiplierSearch, x), stream_));
    NIBBLE_RETURN_IF_ERROR(found.CopyTo(result));
    NIBBLE_RETURN_IF_ERROR(counts.CopyTo(&totals));
    NIBBLE_RETURN_IF_ERROR(Synchronize());
    result.evaluations = totals.evaluations;
    return absl::OkStatus();
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
    NIBBLE_CUDA_RETURN_IF_ERROR(LaunchDequantize(
        dtype, args, ConfigOf(CudaOp::kDequantize, dtype, in.args.blocks()), stream_));
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
    NIBBLE_CUDA_RETURN_IF_ERROR(LaunchMeasureError(
        x.dtype, args, ConfigOf(CudaOp::kMeasureError, x.dtype, in.args.blocks()), stream_));
    ErrorTotals totals;
    NIBBLE_RETURN_IF_ERROR(device_totals.CopyTo(&totals));
    NIBBLE_RETURN_IF_ERROR(Synchronize());
    if (totals.bad_x_blocks > 0) return Refusal(x);
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
    NIBBLE_CUDA_RETURN_IF_ERROR(LaunchPostScale(
        d.dtype, args, ConfigOf(CudaOp::kPostScale, d.dtype, d.rows * d.cols / kBlockSize),
        stream_));
    NIBBLE_RETURN_IF_ERROR(data.CopyTo(d.data));
    return Synchronize();
  }

  absl::Status DoSweepAndQuantize(const ScaleSweepParams& params, const MatrixView& x,
                                  const MutablePackedView& out, SweptTensor& result) override {
    const int64_t blocks = out.layout.blocks();
    NIBBLE_ASSIGN_OR_RETURN(const auto data, Upload(x));
    NIBBLE_ASSIGN_OR_RETURN(const float amax, AmaxOf(x, data.get()));
    out.amax[0] = params.global_amax.value_or(amax);
    NIBBLE_ASSIGN_OR_RETURN(const auto g, Upload(out.amax, 1));
    NIBBLE_ASSIGN_OR_RETURN(const auto tables, Allocate<ScaleSweepTables>(1));
    NIBBLE_ASSIGN_OR_RETURN(const auto packed, Allocate<uint8_t>(out.layout.packed_bytes()));
    NIBBLE_ASSIGN_OR_RETURN(const auto scale, Allocate<uint8_t>(out.layout.scale_bytes()));
    NIBBLE_ASSIGN_OR_RETURN(const auto loss, Allocate<double>(1));
    NIBBLE_ASSIGN_OR_RETURN(const auto group_sums, Allocate<double>(blocks / kLossGroup + 1));
    SweepCounts totals;
    NIBBLE_ASSIGN_OR_RETURN(const auto counts, Upload(&totals, 1));
    const ScaleSweepArgs args = {
        .x = data.get(),
        .blocks = blocks,
        .global_amax = g.get(),
        .bound = static_cast<float>(params.e4m3_max),
        .exhaustive = params.method == SweepMethod::kExhaustive,
        .tables = tables.get(),
        .code = out.layout.swizzled ? nullptr : scale.get(),
        .counts = counts.get(),
        .encode = {.packed = packed.get(),
                   .swizzled_scale = out.layout.swizzled ? scale.get() : nullptr,
                   .blocks_per_row = out.layout.blocks_per_row(),
                   .loss_sum = loss.get(),
                   .group_sums = group_sums.get()},
    };
    NIBBLE_CUDA_RETURN_IF_ERROR(
        LaunchScaleSweep(x.dtype, args, ConfigOf(CudaOp::kScaleSweep, x), stream_));
    NIBBLE_RETURN_IF_ERROR(packed.CopyTo(out.packed));
    NIBBLE_RETURN_IF_ERROR(scale.CopyTo(out.scale));
    NIBBLE_RETURN_IF_ERROR(loss.CopyTo(&result.loss));
    NIBBLE_RETURN_IF_ERROR(counts.CopyTo(&totals));
    NIBBLE_RETURN_IF_ERROR(Synchronize());
    result.evaluations = totals.evaluations;
    return absl::OkStatus();
  }

  const int device_;
  const cudaStream_t stream_;
  const std::string name_;
  const std::vector<ConfigPicks> configs_;  // in the order of CudaOp
  std::weak_ptr<InputScratch> input_scratch_;
  PinnedRooms pinned_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Backend>> MakeCudaBackend(int device, const TuningStore& tuning) {
  NIBBLE_ASSIGN_OR_RETURN(const std::string name, UseCudaDevice(device));
  // Without this the driver takes back all free memory at each synchronisation, and has to map it
  // anew.
  cudaMemPool_t pool;
  uint64_t kept_bytes = uint64_t{256} << 20;
  NIBBLE_CUDA_RETURN_IF_ERROR(cudaDeviceGetDefaultMemPool(&pool, device));
  NIBBLE_CUDA_RETURN_IF_ERROR(
      cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &kept_bytes));
  cudaStream_t stream;
  NIBBLE_CUDA_RETURN_IF_ERROR(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  return std::make_unique<CudaBackend>(device, stream,
                                       absl::StrCat("cuda:", device, " (", name, ")"),
                                       CudaConfigPicks(name, tuning));
}

}  // namespace nibble
