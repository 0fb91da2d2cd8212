#include "kernels/cuda/tuning_device.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <functional>
#include <iterator>
#include <utility>
#include <vector>

#include "base/status.h"
#include "kernels/cuda/accumulate_hessian_launch.h"
#include "kernels/cuda/amax_launch.h"
#include "kernels/cuda/copy_amax_launch.h"
#include "kernels/cuda/copy_encode_launch.h"
#include "kernels/cuda/copy_rows_launch.h"
#include "kernels/cuda/dequantize_launch.h"
#include "kernels/cuda/device_buffer.h"
#include "kernels/cuda/hessian_feedback_launch.h"
#include "kernels/cuda/measure_error_launch.h"
#include "kernels/cuda/multiplier_search_launch.h"
#include "kernels/cuda/observe_launch.h"
#include "kernels/cuda/post_scale_launch.h"
#include "kernels/cuda/quantize_launch.h"
#include "kernels/cuda/scale_sweep_hessian_launch.h"
#include "kernels/cuda/scale_sweep_launch.h"
#include "kernels/cuda/tunable_ops.h"
#include "quant/numerics/scale_rules.h"

namespace nibble {
namespace {

// Everything that one trial holds on the device, on a stream of its own.
class TrialMemory {
 public:
  static absl::StatusOr<std::shared_ptr<TrialMemory>> Make(int device, const TuningTrial& trial) {
    std::shared_ptr<TrialMemory> memory(new TrialMemory(device, trial));
    NIBBLE_CUDA_RETURN_IF_ERROR(cudaSetDevice(device));
    NIBBLE_CUDA_RETURN_IF_ERROR(cudaStreamCreateWithFlags(&memory->stream_, cudaStreamNonBlocking));
    NIBBLE_CUDA_RETURN_IF_ERROR(cudaEventCreate(&memory->start_));
    NIBBLE_CUDA_RETURN_IF_ERROR(cudaEventCreate(&memory->stop_));
    NIBBLE_RETURN_IF_ERROR(memory->MakeInputs(trial.sample));
    return memory;
  }
  TrialMemory(const TrialMemory&) = delete;
  TrialMemory& operator=(const TrialMemory&) = delete;
  ~TrialMemory() {
    cudaSetDevice(device_);
    if (stream_ != nullptr) cudaStreamSynchronize(stream_);
    buffers_.clear();
    if (start_ != nullptr) cudaEventDestroy(start_);
    if (stop_ != nullptr) cudaEventDestroy(stop_);
    if (stream_ != nullptr) cudaStreamDestroy(stream_);
  }

  DType dtype() const { return dtype_; }
  int64_t rows() const { return rows_; }
  int64_t cols() const { return cols_; }
  int64_t blocks() const { return rows_ * cols_ / kBlockSize; }
  cudaStream_t stream() const { return stream_; }
  int64_t bytes() const { return rows_ * cols_ * DTypeBytes(dtype_); }  // of an input
  // Another one than the last few times.
  void* input(int64_t run) const { return buffers_.front().get() + run % copies_ * stride_; }

  // All zero.
  template <typename T>
  absl::StatusOr<T*> Allocate(int64_t count) {
    NIBBLE_ASSIGN_OR_RETURN(auto buffer, DeviceBuffer<char>::Make(count * sizeof(T), stream_));
    NIBBLE_CUDA_RETURN_IF_ERROR(cudaMemsetAsync(buffer.get(), 0, count * sizeof(T), stream_));
    buffers_.push_back(std::move(buffer));
    return reinterpret_cast<T*>(buffers_.back().get());
  }

  absl::StatusOr<float*> AllocateOnes(int64_t count) {
    NIBBLE_ASSIGN_OR_RETURN(float* const values, Allocate<float>(count));
    const std::vector<float> ones(count, 1.0f);
    NIBBLE_CUDA_RETURN_IF_ERROR(cudaMemcpyAsync(values, ones.data(), count * sizeof(float),
                                                cudaMemcpyHostToDevice, stream_));
    NIBBLE_CUDA_RETURN_IF_ERROR(cudaStreamSynchronize(stream_));
    return values;
  }

  // Milliseconds that the device takes for what `work` launches: captured in a graph first, or the
  // host's speed would decide where kernels are short.
  absl::StatusOr<double> Time(const std::function<cudaError_t()>& work) {
    NIBBLE_CUDA_RETURN_IF_ERROR(cudaSetDevice(device_));
    NIBBLE_ASSIGN_OR_RETURN(const Graph graph, Capture(work));
    NIBBLE_CUDA_RETURN_IF_ERROR(cudaGraphUpload(graph.get(), stream_));
    NIBBLE_CUDA_RETURN_IF_ERROR(cudaEventRecord(start_, stream_));
    NIBBLE_CUDA_RETURN_IF_ERROR(cudaGraphLaunch(graph.get(), stream_));
    NIBBLE_CUDA_RETURN_IF_ERROR(cudaEventRecord(stop_, stream_));
    NIBBLE_CUDA_RETURN_IF_ERROR(cudaEventSynchronize(stop_));
    float milliseconds = 0;
    NIBBLE_CUDA_RETURN_IF_ERROR(cudaEventElapsedTime(&milliseconds, start_, stop_));
    return milliseconds;
  }

 private:
  TrialMemory(int device, const TuningTrial& trial)
      : device_(device), dtype_(trial.dtype), rows_(trial.rows), cols_(trial.cols) {}

  using Graph = std::unique_ptr<CUgraphExec_st, decltype(&cudaGraphExecDestroy)>;

  absl::StatusOr<Graph> Capture(const std::function<cudaError_t()>& work) {
    NIBBLE_CUDA_RETURN_IF_ERROR(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal));
    const cudaError_t launched = work();
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t executable = nullptr;
    cudaError_t captured = cudaStreamEndCapture(stream_, &graph);
    if (captured == cudaSuccess) captured = cudaGraphInstantiate(&executable, graph, 0);
    if (graph != nullptr) cudaGraphDestroy(graph);
    Graph owned(executable, cudaGraphExecDestroy);
    NIBBLE_RETURN_IF_ERROR(CudaStatus(launched, "launch"));
    NIBBLE_RETURN_IF_ERROR(CudaStatus(captured, "capture"));
    return owned;
  }

  // Several matrices in one allocation: two, or as many as fill the L2 cache four times.
  absl::Status MakeInputs(std::span<const std::byte> sample) {
    int l2_bytes = 0;
    NIBBLE_CUDA_RETURN_IF_ERROR(cudaDeviceGetAttribute(&l2_bytes, cudaDevAttrL2CacheSize, device_));
    constexpr int64_t kAlignment = 256;
    stride_ = (bytes() + kAlignment - 1) / kAlignment * kAlignment;
    copies_ = std::max<int64_t>(2, 4 * int64_t{l2_bytes} / stride_ + 1);
    const int64_t size = copies_ * stride_;
    NIBBLE_ASSIGN_OR_RETURN(char* const data, Allocate<char>(size));
    int64_t have = std::min(size, static_cast<int64_t>(sample.size()));
    NIBBLE_CUDA_RETURN_IF_ERROR(
        cudaMemcpyAsync(data, sample.data(), have, cudaMemcpyHostToDevice, stream_));
    while (have < size) {
      const int64_t count = std::min(have, size - have);
      NIBBLE_CUDA_RETURN_IF_ERROR(
          cudaMemcpyAsync(data + have, data, count, cudaMemcpyDeviceToDevice, stream_));
      have += count;
    }
    return CudaStatus(cudaStreamSynchronize(stream_), "making of the inputs");
  }

  const int device_;
  const DType dtype_;
  const int64_t rows_, cols_;
  cudaStream_t stream_ = nullptr;
  cudaEvent_t start_ = nullptr, stop_ = nullptr;
  std::vector<DeviceBuffer<char>> buffers_;
  int64_t stride_ = 0, copies_ = 0;
};

// One run of an operation under one of its configs. x: the bytes of a matrix of the trial's type
// and shape, to be read as the operation likes; may be written.
using Launch = std::function<cudaError_t(void* x, int config)>;

// The largest magnitude of the first input.
absl::StatusOr<const float*> AmaxOf(TrialMemory& memory) {
  NIBBLE_ASSIGN_OR_RETURN(float* const amax, memory.Allocate<float>(1));
  NIBBLE_CUDA_RETURN_IF_ERROR(LaunchAmax(memory.dtype(), memory.input(0), memory.blocks(), amax,
                                         /*config=*/0, memory.stream()));
  return amax;
}

absl::Status NotAColumn(const TrialMemory& memory) {
  return absl::FailedPreconditionError(absl::StrCat(
      "shape: expected a multiple of 16 rows for a column-wise copy, got ", memory.rows()));
}

absl::StatusOr<Launch> PrepareAccumulateHessian(TrialMemory& memory) {
  AccumulateHessianArgs args = {.tokens = memory.rows(), .channels = memory.cols()};
  NIBBLE_ASSIGN_OR_RETURN(args.workspace, memory.Allocate<float>(AccumulateHessianWorkspace(
                                              memory.rows(), memory.cols())));
  NIBBLE_ASSIGN_OR_RETURN(args.hessians, memory.Allocate<float>(memory.cols() * kBlockSize));
  NIBBLE_ASSIGN_OR_RETURN(args.bad_slice, memory.Allocate<int64_t>(1));
  return [args, dtype = memory.dtype(), stream = memory.stream()](void* x, int config) mutable {
    args.x = x;
    return LaunchAccumulateHessian(dtype, args, config, stream);
  };
}

absl::StatusOr<Launch> PrepareAmax(TrialMemory& memory) {
  NIBBLE_ASSIGN_OR_RETURN(float* const amax, memory.Allocate<float>(1));
  return [amax, blocks = memory.blocks(), dtype = memory.dtype(), stream = memory.stream()](
             void* x, int config) { return LaunchAmax(dtype, x, blocks, amax, config, stream); };
}

// What a per-token quantization asks for.
absl::StatusOr<Launch> PrepareObserve(TrialMemory& memory) {
  ObserveArgs args = {.rows = memory.rows(), .cols = memory.cols()};
  NIBBLE_ASSIGN_OR_RETURN(args.row_amax, memory.Allocate<float>(memory.rows()));
  NIBBLE_ASSIGN_OR_RETURN(args.column_amax, memory.Allocate<float>(memory.cols()));
  return [args, dtype = memory.dtype(), stream = memory.stream()](void* x, int config) mutable {
    args.x = x;
    return LaunchObserve(dtype, args, config, stream);
  };
}

absl::StatusOr<Launch> PrepareScaleSweep(TrialMemory& memory) {
  ScaleSweepArgs args;
  args.blocks = memory.blocks();
  NIBBLE_ASSIGN_OR_RETURN(args.global_amax, AmaxOf(memory));
  NIBBLE_ASSIGN_OR_RETURN(args.tables, memory.Allocate<ScaleSweepTables>(1));
  NIBBLE_ASSIGN_OR_RETURN(args.code, memory.Allocate<uint8_t>(args.blocks));
  NIBBLE_ASSIGN_OR_RETURN(args.best_amax, memory.Allocate<float>(args.blocks));
  NIBBLE_ASSIGN_OR_RETURN(args.loss, memory.Allocate<float>(args.blocks));
  return [args, dtype = memory.dtype(), stream = memory.stream()](void* x, int config) mutable {
    args.x = x;
    return LaunchScaleSweep(dtype, args, config, stream);
  };
}

// What quantizing both copies for a backward pass asks for: per_token, the column-wise one rotated.
absl::StatusOr<CopyAmaxArgs> AllocateMaxima(TrialMemory& memory) {
  if (memory.rows() % kBlockSize != 0) return NotAColumn(memory);
  CopyAmaxArgs args = {.rows = memory.rows(), .cols = memory.cols()};
  args.per_row = args.per_column = true;
  args.column_rht = Rht::kSigns;
  NIBBLE_ASSIGN_OR_RETURN(args.source, memory.Allocate<float>(1));
  NIBBLE_ASSIGN_OR_RETURN(args.row, memory.Allocate<float>(memory.rows()));
  NIBBLE_ASSIGN_OR_RETURN(args.column, memory.Allocate<float>(memory.cols()));
  return args;
}

absl::StatusOr<Launch> PrepareCopyAmax(TrialMemory& memory) {
  NIBBLE_ASSIGN_OR_RETURN(CopyAmaxArgs args, AllocateMaxima(memory));
  return [args, dtype = memory.dtype(), stream = memory.stream()](void* x, int config) mutable {
    args.x = x;
    return LaunchCopyAmax(dtype, args, config, stream);
  };
}

// Under the first input's maxima: under others most blocks would not take the usual way.
absl::StatusOr<Launch> PrepareCopyEncode(TrialMemory& memory) {
  NIBBLE_ASSIGN_OR_RETURN(CopyAmaxArgs maxima, AllocateMaxima(memory));
  maxima.x = memory.input(0);
  NIBBLE_CUDA_RETURN_IF_ERROR(LaunchCopyAmax(memory.dtype(), maxima, 0, memory.stream()));
  CopyEncodeArgs args;
  args.rows = memory.rows();
  args.cols = memory.cols();
  args.row.amax = maxima.row;
  args.column.amax = maxima.column;
  args.column.rht = Rht::kSigns;
  for (EncodedCopy* copy : {&args.row, &args.column}) {
    copy->scheme = Scheme::kPerToken;
    NIBBLE_ASSIGN_OR_RETURN(copy->packed, memory.Allocate<uint8_t>(memory.blocks() * 8));
    NIBBLE_ASSIGN_OR_RETURN(copy->scale, memory.Allocate<uint8_t>(memory.blocks()));
  }
  if (CopyRowsFits(memory.dtype(), maxima, args.row)) args.row.packed = nullptr;
  return [args, dtype = memory.dtype(), stream = memory.stream()](void* x, int config) mutable {
    args.x = x;
    return LaunchCopyEncode(dtype, args, config, stream);
  };
}

absl::StatusOr<Launch> PrepareCopyRows(TrialMemory& memory) {
  NIBBLE_ASSIGN_OR_RETURN(CopyAmaxArgs maxima, AllocateMaxima(memory));
  EncodedCopy row;
  row.scheme = Scheme::kPerToken;
  row.amax = maxima.row;
  NIBBLE_ASSIGN_OR_RETURN(row.packed, memory.Allocate<uint8_t>(memory.blocks() * 8));
  NIBBLE_ASSIGN_OR_RETURN(row.scale, memory.Allocate<uint8_t>(memory.blocks()));
  return
      [maxima, row, dtype = memory.dtype(), stream = memory.stream()](void* x, int config) mutable {
        maxima.x = x;
        return LaunchCopyRows(dtype, maxima, row, config, stream);
      };
}

absl::StatusOr<PackedArgs> AllocatePacked(TrialMemory& memory) {
  PackedArgs args = {.rows = memory.rows(), .blocks_per_row = memory.cols() / kBlockSize};
  NIBBLE_ASSIGN_OR_RETURN(args.packed, memory.Allocate<uint8_t>(memory.blocks() * 8));
  NIBBLE_ASSIGN_OR_RETURN(args.scale, memory.Allocate<uint8_t>(memory.blocks()));
  NIBBLE_ASSIGN_OR_RETURN(args.amax, memory.AllocateOnes(1));
  return args;
}

absl::StatusOr<Launch> PrepareDequantize(TrialMemory& memory) {
  DequantizeArgs args;
  NIBBLE_ASSIGN_OR_RETURN(args.in, AllocatePacked(memory));
  return [args, dtype = memory.dtype(), stream = memory.stream()](void* x, int config) mutable {
    args.out = x;
    return LaunchDequantize(dtype, args, config, stream);
  };
}

absl::StatusOr<Launch> PrepareMeasureError(TrialMemory& memory) {
  MeasureErrorArgs args;
  NIBBLE_ASSIGN_OR_RETURN(args.packed, AllocatePacked(memory));
  NIBBLE_ASSIGN_OR_RETURN(args.totals, memory.Allocate<ErrorTotals>(1));
  return [args, dtype = memory.dtype(), stream = memory.stream()](void* x, int config) mutable {
    args.x = x;
    return LaunchMeasureError(dtype, args, config, stream);
  };
}

absl::StatusOr<Launch> PrepareMultiplierSearch(TrialMemory& memory) {
  MultiplierSearchArgs args = {.blocks = memory.blocks()};
  NIBBLE_ASSIGN_OR_RETURN(args.global_amax, AmaxOf(memory));
  NIBBLE_ASSIGN_OR_RETURN(args.workspace,
                          memory.Allocate<char>(MultiplierSearchWorkspaceBytes(args.grid)));
  NIBBLE_ASSIGN_OR_RETURN(args.code, memory.Allocate<uint8_t>(args.blocks));
  NIBBLE_ASSIGN_OR_RETURN(args.best_amax, memory.Allocate<float>(args.blocks));
  NIBBLE_ASSIGN_OR_RETURN(args.loss, memory.Allocate<float>(args.blocks));
  return [args, dtype = memory.dtype(), stream = memory.stream()](void* x, int config) mutable {
    args.x = x;
    return LaunchMultiplierSearch(dtype, args, config, stream);
  };
}

absl::StatusOr<Launch> PreparePostScale(TrialMemory& memory) {
  PostScaleArgs args = {.rows = memory.rows(), .cols = memory.cols()};
  NIBBLE_ASSIGN_OR_RETURN(args.row_decode_scale, memory.AllocateOnes(memory.rows()));
  NIBBLE_ASSIGN_OR_RETURN(args.col_decode_scale, memory.AllocateOnes(memory.cols()));
  return [args, dtype = memory.dtype(), stream = memory.stream()](void* x, int config) mutable {
    args.d = x;
    return LaunchPostScale(dtype, args, config, stream);
  };
}

absl::StatusOr<Launch> PrepareQuantize(TrialMemory& memory) {
  QuantizeArgs args = {.dtype = memory.dtype(), .rows = memory.rows(), .cols = memory.cols()};
  NIBBLE_ASSIGN_OR_RETURN(args.amax, AmaxOf(memory));
  NIBBLE_ASSIGN_OR_RETURN(args.packed, memory.Allocate<uint8_t>(memory.blocks() * 8));
  NIBBLE_ASSIGN_OR_RETURN(args.scale, memory.Allocate<uint8_t>(memory.blocks()));
  return [args, stream = memory.stream()](void* x, int config) mutable {
    args.x = x;
    return LaunchQuantize(args, config, stream);
  };
}

// Of correlated second moments.
HessianFactor CorrelatedFactor() {
  float h[kBlockSize * kBlockSize];
  for (int i = 0; i < kBlockSize * kBlockSize; ++i) h[i] = i % (kBlockSize + 1) == 0 ? 1.0f : 0.1f;
  HessianFactor factor;
  NIBBLE_CHECK(FactorHessian(h, &factor) == HessianDefect::kNone);
  return factor;
}

// So many of one value, on the device.
template <typename T>
absl::StatusOr<T*> Copies(const T& value, int64_t count, TrialMemory& memory) {
  NIBBLE_ASSIGN_OR_RETURN(T* const copies, memory.Allocate<T>(count));
  const std::vector<T> host(count, value);
  NIBBLE_CUDA_RETURN_IF_ERROR(cudaMemcpyAsync(copies, host.data(), count * sizeof(T),
                                              cudaMemcpyHostToDevice, memory.stream()));
  NIBBLE_CUDA_RETURN_IF_ERROR(cudaStreamSynchronize(memory.stream()));
  return copies;
}

absl::StatusOr<Launch> PrepareScaleSweepHessian(TrialMemory& memory) {
  ScaleSweepHessianArgs args = {.rows = memory.rows(), .slices = memory.cols() / kBlockSize};
  NIBBLE_ASSIGN_OR_RETURN(args.factors, Copies(CorrelatedFactor(), args.slices, memory));
  NIBBLE_ASSIGN_OR_RETURN(args.global_amax, AmaxOf(memory));
  NIBBLE_ASSIGN_OR_RETURN(args.tables, memory.Allocate<ScaleSweepHessianTables>(1));
  NIBBLE_ASSIGN_OR_RETURN(args.prepared, memory.Allocate<HessianSlice>(args.slices));
  NIBBLE_ASSIGN_OR_RETURN(args.code, memory.Allocate<uint8_t>(memory.blocks()));
  NIBBLE_ASSIGN_OR_RETURN(args.best_amax, memory.Allocate<float>(memory.blocks()));
  NIBBLE_ASSIGN_OR_RETURN(args.loss, memory.Allocate<float>(memory.blocks()));
  return [args, dtype = memory.dtype(), stream = memory.stream()](void* x, int config) mutable {
    args.x = x;
    return LaunchScaleSweepHessian(dtype, args, config, stream);
  };
}

// From one scale everywhere: what is done is the same from any.
absl::StatusOr<Launch> PrepareHessianFeedback(TrialMemory& memory) {
  HessianFeedbackArgs args = {.rows = memory.rows(), .slices = memory.cols() / kBlockSize};
  const HessianFactor factor = CorrelatedFactor();
  NIBBLE_ASSIGN_OR_RETURN(args.factors, Copies(factor, args.slices, memory));
  NIBBLE_ASSIGN_OR_RETURN(args.feedback, Copies(MakeHessianFeedback(factor), args.slices, memory));
  NIBBLE_ASSIGN_OR_RETURN(args.table, Copies(MakeSweepTable(8.0f, kE4m3Max), 1, memory));
  NIBBLE_ASSIGN_OR_RETURN(args.code, Copies(uint8_t{110}, memory.blocks(), memory));
  NIBBLE_ASSIGN_OR_RETURN(args.loss, memory.AllocateOnes(memory.blocks()));
  NIBBLE_ASSIGN_OR_RETURN(args.packed, memory.Allocate<uint8_t>(memory.blocks() * 8));
  return [args, dtype = memory.dtype(), stream = memory.stream()](void* x, int config) mutable {
    args.x = x;
    return LaunchHessianFeedback(dtype, args, config, stream);
  };
}

// In the order of CudaOp. A function allocates what its operation writes and returns its launch.
using PrepareOp = absl::StatusOr<Launch> (*)(TrialMemory& memory);
constexpr PrepareOp kPrepare[] = {PrepareAccumulateHessian, PrepareAmax,
                                  PrepareCopyAmax,          PrepareCopyEncode,
                                  PrepareCopyRows,          PrepareDequantize,
                                  PrepareHessianFeedback,   PrepareMeasureError,
                                  PrepareMultiplierSearch,  PrepareObserve,
                                  PreparePostScale,         PrepareQuantize,
                                  PrepareScaleSweep,        PrepareScaleSweepHessian};
static_assert(std::size(kPrepare) == kEnumNames<CudaOp>.size());

class CudaTuningDevice final : public TuningDevice {
 public:
  CudaTuningDevice(int device, std::string name) : device_(device), name_(std::move(name)) {}

  std::string name() const override { return name_; }
  const std::vector<TunableOp>& ops() const override { return CudaTunableOps(); }

  absl::StatusOr<MeasureCandidate> Prepare(const TunableOp& op, const TuningTrial& trial) override {
    const std::optional<CudaOp> which = FromName<CudaOp>(op.name);
    NIBBLE_CHECK(which.has_value());
    NIBBLE_ASSIGN_OR_RETURN(const auto memory, TrialMemory::Make(device_, trial));
    NIBBLE_ASSIGN_OR_RETURN(Launch launch, kPrepare[static_cast<size_t>(*which)](*memory));
    NIBBLE_CUDA_RETURN_IF_ERROR(cudaStreamSynchronize(memory->stream()));
    // Short runs are timed several at once: an event is no finer than a microsecond.
    constexpr int64_t kBytesATime = int64_t{64} << 20, kMostRuns = 64;
    const int64_t runs = std::clamp<int64_t>(kBytesATime / memory->bytes(), 1, kMostRuns);
    return
        [memory, runs, launch = std::move(launch)](int config, int run) -> absl::StatusOr<double> {
          NIBBLE_ASSIGN_OR_RETURN(const double milliseconds, memory->Time([&] {
            for (int64_t i = 0; i < runs; ++i) {
              if (cudaError_t error = launch(memory->input(run * runs + i), config)) return error;
            }
            return cudaSuccess;
          }));
          return milliseconds / static_cast<double>(runs);
        };
  }

 private:
  const int device_;
  const std::string name_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<TuningDevice>> MakeCudaTuningDevice(int device) {
  NIBBLE_ASSIGN_OR_RETURN(std::string name, UseCudaDevice(device));
  return std::make_unique<CudaTuningDevice>(device, std::move(name));
}

}  // namespace nibble
