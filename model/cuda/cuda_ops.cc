#include "model/cuda/cuda_ops.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <limits>
#include <map>
#include <numeric>
#include <optional>
#include <utility>
#include <vector>

#include "base/status.h"
#include "kernels/cuda/device_buffer.h"
#include "kernels/cuda/matrix_products.h"
#include "model/cuda/attention_launch.h"
#include "model/cuda/layer_launch.h"
#include "model/routing.h"

namespace nibble {
namespace {

constexpr int64_t kStagedBytes = int64_t{64} << 20;  // at a time
constexpr int64_t kCopyPiece = int64_t{1} << 20;     // bytes, of one thread
constexpr size_t kMostGeometries = 64;
constexpr int64_t kAlignment = 256;

// The stream that everything runs in and the memory that it allocates, which stays with this
// program once it has been used. Lives until the last matrix is gone.
class Device {
 public:
  static absl::StatusOr<std::shared_ptr<Device>> Make(int number) {
    NIBBLE_RETURN_IF_ERROR(UseCudaDevice(number).status());
    std::shared_ptr<Device> device(new Device(number));
    NIBBLE_CUDA_RETURN_IF_ERROR(cudaStreamCreateWithFlags(&device->stream_, cudaStreamNonBlocking));
    cudaMemPoolProps properties = {};
    properties.allocType = cudaMemAllocationTypePinned;
    properties.location.type = cudaMemLocationTypeDevice;
    properties.location.id = number;
    NIBBLE_CUDA_RETURN_IF_ERROR(cudaMemPoolCreate(&device->pool_, &properties));
    uint64_t kept = std::numeric_limits<uint64_t>::max();
    NIBBLE_CUDA_RETURN_IF_ERROR(
        cudaMemPoolSetAttribute(device->pool_, cudaMemPoolAttrReleaseThreshold, &kept));
    return device;
  }
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;
  ~Device() {
    cudaSetDevice(number_);
    if (stream_ != nullptr) {
      cudaStreamSynchronize(stream_);
      cudaStreamDestroy(stream_);
    }
    if (pool_ != nullptr) cudaMemPoolDestroy(pool_);
  }

  cudaStream_t stream() const { return stream_; }
  absl::Status Use() const { return CudaStatus(cudaSetDevice(number_), "cudaSetDevice"); }
  absl::Status Synchronize() const {
    return CudaStatus(cudaStreamSynchronize(stream_), "synchronization");
  }

  static absl::StatusOr<std::shared_ptr<void>> Allocate(const std::shared_ptr<Device>& device,
                                                        int64_t bytes) {
    NIBBLE_RETURN_IF_ERROR(device->Use());
    void* data = nullptr;
    const auto allocate = [&] {
      return cudaMallocFromPoolAsync(&data, std::max<int64_t>(1, bytes), device->pool_,
                                     device->stream_);
    };
    cudaError_t error = allocate();
    if (error == cudaErrorMemoryAllocation) {
      // What is free in pieces may do as a whole.
      cudaGetLastError();
      NIBBLE_RETURN_IF_ERROR(device->Synchronize());
      cudaMemPoolTrimTo(device->pool_, 0);
      error = allocate();
    }
    if (error == cudaErrorMemoryAllocation) {
      cudaGetLastError();
      return absl::ResourceExhaustedError(
          absl::StrCat("cuda: expected ", bytes,
                       " bytes of the device's memory, got none; fewer tokens at a time "
                       "(--batch-tokens) need less"));
    }
    NIBBLE_RETURN_IF_ERROR(CudaStatus(error, "allocation"));
    return std::shared_ptr<void>(data, [device](void* p) { cudaFreeAsync(p, device->stream_); });
  }

 private:
  explicit Device(int number) : number_(number) {}

  const int number_;
  cudaStream_t stream_ = nullptr;
  cudaMemPool_t pool_ = nullptr;
};

// Host memory that the device copies from or to while the program goes on, and, for states, the
// device's side of it.
struct Transfer {
  std::byte* host = nullptr;
  int64_t host_bytes = 0;
  std::shared_ptr<void> device;
  int64_t device_bytes = 0;
  unsigned long long* bad = nullptr;  // host; the first value that is not finite
  cudaEvent_t copied = nullptr;       // the host's side may be used again
  cudaEvent_t used = nullptr;         // the device's side may be
  HiddenStates* states = nullptr;     // that the host's side is to go to
  int64_t first = 0, rows = 0, cols = 0;

  ~Transfer() {
    if (copied != nullptr) {
      cudaEventSynchronize(copied);
      cudaEventDestroy(copied);
    }
    if (used != nullptr) cudaEventDestroy(used);
    if (host != nullptr) cudaFreeHost(host);
    if (bad != nullptr) cudaFreeHost(bad);
  }
};

const float* Floats(const DeviceMatrix& x) { return static_cast<const float*>(x.memory.get()); }
float* MutableFloats(const DeviceMatrix& x) { return static_cast<float*>(x.memory.get()); }
int64_t Count(const DeviceMatrix& x) { return x.rows * x.cols; }

// Numbers of rows of which products are made: choosing an algorithm for each number of tokens that
// an expert may get would take longer than the products.
int64_t ProductRows(int64_t rows) {
  constexpr int64_t kRows = 32;
  return (rows + kRows - 1) / kRows * kRows;
}

// Where the second part of a value that is split lies.
int64_t LowOffset(int64_t count) { return (2 * count + kAlignment - 1) / kAlignment * kAlignment; }
struct Split {
  const void *high, *low;
};
Split PartsOf(const void* memory, int64_t count) {
  return {memory, static_cast<const char*>(memory) + LowOffset(count)};
}

class CudaOps final : public LayerOps {
 public:
  CudaOps(std::shared_ptr<Device> device, ThreadPool& pool, DType linear_input)
      : device_(std::move(device)), pool_(pool), bf16_(linear_input == DType::kBf16) {}
  ~CudaOps() override {
    device_->Use().IgnoreError();
    device_->Synchronize().IgnoreError();
    for (cudaStream_t stream : {copy_in_, copy_out_}) {
      if (stream == nullptr) continue;
      cudaStreamSynchronize(stream);
      cudaStreamDestroy(stream);
    }
  }

  absl::Status Prepare() {
    NIBBLE_ASSIGN_OR_RETURN(products_, MatrixProducts::Make(device_->stream()));
    NIBBLE_CUDA_RETURN_IF_ERROR(cudaStreamCreateWithFlags(&copy_in_, cudaStreamNonBlocking));
    NIBBLE_CUDA_RETURN_IF_ERROR(cudaStreamCreateWithFlags(&copy_out_, cudaStreamNonBlocking));
    for (Transfer* transfer : {&in_[0], &in_[1], &out_[0], &out_[1]}) {
      NIBBLE_CUDA_RETURN_IF_ERROR(
          cudaEventCreateWithFlags(&transfer->copied, cudaEventDisableTiming));
      NIBBLE_CUDA_RETURN_IF_ERROR(
          cudaEventCreateWithFlags(&transfer->used, cudaEventDisableTiming));
      void* bad = nullptr;
      NIBBLE_CUDA_RETURN_IF_ERROR(cudaHostAlloc(&bad, sizeof(*transfer->bad), 0));
      transfer->bad = static_cast<unsigned long long*>(bad);
    }
    return absl::OkStatus();
  }

  absl::StatusOr<DeviceMatrix> Allocate(int64_t rows, int64_t cols, Use use) override {
    const bool bf16 = bf16_ && use == Use::kLinearInput;
    const int64_t row_bytes = cols * (bf16 ? 2 : 4), spare = ProductRows(rows) - rows;
    NIBBLE_ASSIGN_OR_RETURN(auto memory, Bytes((rows + spare) * row_bytes));
    if (spare > 0) {
      NIBBLE_CUDA_RETURN_IF_ERROR(cudaMemsetAsync(
          static_cast<char*>(memory.get()) + rows * row_bytes, 0, spare * row_bytes, stream_()));
    }
    return DeviceMatrix{
        std::move(memory), bf16 ? DType::kBf16 : DType::kF32, rows, cols, use, spare};
  }

  // A vector becomes float32. A matrix becomes what products read: under fp32 float32, else bf16,
  // or, with kF32 for a type, its two parts in bf16.
  absl::StatusOr<DeviceMatrix> Place(HostTensor tensor) override {
    const bool vector = tensor.shape.size() != 2;
    const int64_t cols = tensor.shape.back(), rows = vector ? 1 : tensor.shape[0];
    const int64_t count = rows * cols;
    DeviceMatrix placed{nullptr, tensor.dtype, rows, cols};
    const bool as_stored =
        vector || !bf16_ ? tensor.dtype == DType::kF32 : tensor.dtype == DType::kBf16;
    NIBBLE_ASSIGN_OR_RETURN(const auto stored, Bytes(std::ssize(tensor.bytes)));
    NIBBLE_RETURN_IF_ERROR(Stage(tensor.bytes.data(), std::ssize(tensor.bytes), stored.get()));
    if (as_stored) {
      placed.memory = stored;
      return placed;
    }
    placed.dtype = DType::kF32;
    if (vector || !bf16_) {
      NIBBLE_ASSIGN_OR_RETURN(placed.memory, Bytes(count * sizeof(float)));
      NIBBLE_CUDA_RETURN_IF_ERROR(
          LaunchWiden(tensor.dtype, stored.get(), count, MutableFloats(placed), stream_()));
      return placed;
    }
    NIBBLE_ASSIGN_OR_RETURN(placed.memory, SplitParts(tensor.dtype, stored.get(), count));
    return placed;
  }

  bool in_host_memory() const override { return false; }
  void* stream() const override { return device_->stream(); }
  absl::Status Synchronize() override {
    NIBBLE_RETURN_IF_ERROR(device_->Use());
    return device_->Synchronize();
  }

  absl::Status Upload(std::span<const float> values, const DeviceMatrix& out) override {
    NIBBLE_RETURN_IF_ERROR(device_->Use());
    return Stage(values.data(), std::ssize(values) * 4, out.memory.get());
  }

  absl::StatusOr<std::span<const float>> Download(const DeviceMatrix& x,
                                                  UninitializedVector<float>& room) override {
    NIBBLE_RETURN_IF_ERROR(device_->Use());
    room.resize(Count(x));
    std::shared_ptr<void> wide = x.memory;
    if (x.dtype != DType::kF32) {
      NIBBLE_ASSIGN_OR_RETURN(wide, Bytes(Count(x) * 4));
      NIBBLE_CUDA_RETURN_IF_ERROR(LaunchWiden(x.dtype, x.memory.get(), Count(x),
                                              static_cast<float*>(wide.get()), stream_()));
    }
    NIBBLE_CUDA_RETURN_IF_ERROR(
        cudaMemcpyAsync(room.data(), wide.get(), Count(x) * 4, cudaMemcpyDeviceToHost, stream_()));
    NIBBLE_RETURN_IF_ERROR(device_->Synchronize());
    return std::span<const float>(room);
  }

  // Both are a copy ahead of, or behind, what is computed: two buffers each way.
  absl::Status ReadStates(const HiddenStates& states, int64_t first,
                          const DeviceMatrix& out) override {
    NIBBLE_RETURN_IF_ERROR(device_->Use());
    const int64_t row_bytes = out.cols * DTypeBytes(states.dtype()), bytes = out.rows * row_bytes;
    Transfer& transfer = Next(in_, next_in_);
    NIBBLE_RETURN_IF_ERROR(EnsureHost(transfer, bytes));
    NIBBLE_RETURN_IF_ERROR(EnsureDevice(transfer, bytes));
    NIBBLE_CUDA_RETURN_IF_ERROR(cudaEventSynchronize(transfer.copied));
    NIBBLE_RETURN_IF_ERROR(ForPieces(out.rows, row_bytes, [&](int64_t row, int64_t rows) {
      return states.ReadStored(
          first + row, {transfer.host + row * row_bytes, static_cast<size_t>(rows * row_bytes)});
    }));
    NIBBLE_CUDA_RETURN_IF_ERROR(cudaStreamWaitEvent(copy_in_, transfer.used, 0));
    NIBBLE_CUDA_RETURN_IF_ERROR(cudaMemcpyAsync(transfer.device.get(), transfer.host, bytes,
                                                cudaMemcpyHostToDevice, copy_in_));
    NIBBLE_CUDA_RETURN_IF_ERROR(cudaEventRecord(transfer.copied, copy_in_));
    NIBBLE_CUDA_RETURN_IF_ERROR(cudaStreamWaitEvent(stream_(), transfer.copied, 0));
    NIBBLE_CUDA_RETURN_IF_ERROR(LaunchWiden(states.dtype(), transfer.device.get(), Count(out),
                                            MutableFloats(out), stream_()));
    return CudaStatus(cudaEventRecord(transfer.used, stream_()), "event");
  }

  absl::Status WriteStates(const DeviceMatrix& x, int64_t first, HiddenStates& states) override {
    NIBBLE_RETURN_IF_ERROR(device_->Use());
    const int64_t bytes = Count(x) * DTypeBytes(states.dtype());
    Transfer& transfer = Next(out_, next_out_);
    NIBBLE_RETURN_IF_ERROR(Finish(transfer));
    NIBBLE_RETURN_IF_ERROR(EnsureHost(transfer, bytes));
    NIBBLE_RETURN_IF_ERROR(EnsureDevice(transfer, bytes + kAlignment));
    // The number of the first bad value, then the states.
    auto* bad = static_cast<unsigned long long*>(transfer.device.get());
    char* values = static_cast<char*>(transfer.device.get()) + kAlignment;
    NIBBLE_CUDA_RETURN_IF_ERROR(cudaMemsetAsync(bad, 0xFF, sizeof(*bad), stream_()));
    NIBBLE_CUDA_RETURN_IF_ERROR(LaunchFindNonFinite(Floats(x), Count(x), bad, stream_()));
    if (states.dtype() == DType::kBf16) {
      NIBBLE_CUDA_RETURN_IF_ERROR(
          LaunchToBf16(Floats(x), Count(x), reinterpret_cast<uint16_t*>(values), stream_()));
    } else {
      NIBBLE_CUDA_RETURN_IF_ERROR(
          cudaMemcpyAsync(values, Floats(x), bytes, cudaMemcpyDeviceToDevice, stream_()));
    }
    NIBBLE_CUDA_RETURN_IF_ERROR(cudaEventRecord(transfer.used, stream_()));
    NIBBLE_CUDA_RETURN_IF_ERROR(cudaStreamWaitEvent(copy_out_, transfer.used, 0));
    NIBBLE_CUDA_RETURN_IF_ERROR(
        cudaMemcpyAsync(transfer.bad, bad, sizeof(*bad), cudaMemcpyDeviceToHost, copy_out_));
    NIBBLE_CUDA_RETURN_IF_ERROR(
        cudaMemcpyAsync(transfer.host, values, bytes, cudaMemcpyDeviceToHost, copy_out_));
    NIBBLE_CUDA_RETURN_IF_ERROR(cudaEventRecord(transfer.copied, copy_out_));
    transfer.states = &states;
    transfer.first = first;
    transfer.rows = x.rows;
    transfer.cols = x.cols;
    return absl::OkStatus();
  }

  absl::Status FinishStates() override {
    NIBBLE_RETURN_IF_ERROR(device_->Use());
    // The older one first: of two failures the first is told.
    absl::Status status = Finish(out_[next_out_]);
    status.Update(Finish(out_[1 - next_out_]));
    return status;
  }

  absl::Status Copy(const DeviceMatrix& x, const DeviceMatrix& out) override {
    return Launched(LaunchWiden(x.dtype, x.memory.get(), Count(x), MutableFloats(out), stream_()));
  }

  absl::Status RmsNorm(const DeviceMatrix& x, const DeviceMatrix& weight, double eps,
                       const DeviceMatrix& out) override {
    return Launched(LaunchRmsNorm({.x = Floats(x),
                                   .weight = Floats(weight),
                                   .eps = static_cast<float>(eps),
                                   .rows = x.rows,
                                   .cols = x.cols,
                                   .out = InputArgs(out)},
                                  stream_()));
  }

  absl::Status Linear(const DeviceMatrix& x, const DeviceMatrix& weight, const DeviceMatrix& bias,
                      const DeviceMatrix& out) override {
    NIBBLE_RETURN_IF_ERROR(device_->Use());
    NIBBLE_RETURN_IF_ERROR(Product(x, weight, out));
    if (bias.empty()) return absl::OkStatus();
    return Launched(LaunchAddBias(MutableFloats(out), Floats(bias), out.rows, out.cols, stream_()));
  }

  absl::Status Rope(const RopeTable& table, std::span<const int64_t> lengths,
                    const DeviceMatrix& x) override {
    NIBBLE_RETURN_IF_ERROR(PlaceTable(table));
    NIBBLE_ASSIGN_OR_RETURN(const Geometry* geometry, GeometryOf(lengths));
    const float* cos = static_cast<const float*>(table_.get());
    return Launched(LaunchRope({.x = MutableFloats(x),
                                .cos = cos,
                                .sin = cos + table_cos_.size(),
                                .position = static_cast<const int32_t*>(geometry->positions.get()),
                                .rows = x.rows,
                                .heads = x.cols / (2 * table.half),
                                .half = table.half},
                               stream_()));
  }

  absl::Status Attention(const AttentionShape& shape, std::span<const int64_t> lengths,
                         const DeviceMatrix& q, const DeviceMatrix& k, const DeviceMatrix& v,
                         const DeviceMatrix& out) override {
    if (shape.head_dim > kAttentionMaxHeadDim) {
      return absl::UnimplementedError(absl::StrCat("attention: expected heads of at most ",
                                                   kAttentionMaxHeadDim, " channels on a GPU, got ",
                                                   shape.head_dim, "; run it on the CPU"));
    }
    NIBBLE_ASSIGN_OR_RETURN(const Geometry* geometry, GeometryOf(lengths));
    AttentionArgs args = {
        .q = Floats(q),
        .k = Floats(k),
        .v = Floats(v),
        .rows = q.rows,
        .heads = shape.heads,
        .kv_heads = shape.kv_heads,
        .head_dim = shape.head_dim,
        .window = std::min<int64_t>(shape.window, std::numeric_limits<int32_t>::max()),
        .pieces = static_cast<const AttentionPiece*>(geometry->pieces.get()),
        .piece_count = geometry->piece_count,
        .out = InputArgs(out)};
    if (!bf16_ || shape.head_dim > kAttentionTensorHeadDim) {
      return Launched(LaunchAttentionF32(args, stream_()));
    }
    NIBBLE_ASSIGN_OR_RETURN(
        const auto workspace,
        Bytes(AttentionWorkspace(q.rows, shape.heads, shape.kv_heads, shape.head_dim)));
    args.workspace = workspace.get();
    return Launched(LaunchAttentionTensor(args, stream_()));
  }

  absl::Status SwiGlu(const DeviceMatrix& gate, const DeviceMatrix& up,
                      const DeviceMatrix& out) override {
    return Launched(LaunchSwiGlu(Floats(gate), Floats(up), Count(gate), InputArgs(out), stream_()));
  }

  absl::Status Add(const DeviceMatrix& x, const DeviceMatrix& y) override {
    return Launched(LaunchAdd(MutableFloats(x), Floats(y), Count(x), stream_()));
  }

  absl::StatusOr<Routing> Route(const DeviceMatrix& logits, int64_t experts_per_token,
                                bool normalize) override {
    NIBBLE_ASSIGN_OR_RETURN(const std::span<const float> values, Download(logits, room_));
    return RouteRows(pool_, values, logits.cols, experts_per_token, normalize);
  }

  absl::Status SetZero(const DeviceMatrix& x) override {
    NIBBLE_RETURN_IF_ERROR(device_->Use());
    return CudaStatus(cudaMemsetAsync(x.memory.get(), 0, Count(x) * DTypeBytes(x.dtype), stream_()),
                      "memset");
  }

  absl::Status Gather(const DeviceMatrix& x, std::span<const int64_t> rows,
                      const DeviceMatrix& out) override {
    NIBBLE_ASSIGN_OR_RETURN(const auto places, PlaceValues(rows));
    return Launched(LaunchGather(x.memory.get(), static_cast<const int64_t*>(places.get()),
                                 std::ssize(rows), x.cols * DTypeBytes(x.dtype), out.memory.get(),
                                 stream_()));
  }

  absl::Status AddScaledRows(const DeviceMatrix& x, std::span<const int64_t> rows,
                             std::span<const float> weights, const DeviceMatrix& out) override {
    // One thread adds all that goes to one element.
    std::vector<int64_t> from(rows.size()), row, first;
    std::iota(from.begin(), from.end(), 0);
    std::ranges::stable_sort(from, {}, [&](int64_t i) { return rows[i]; });
    std::vector<float> sorted(rows.size());
    for (size_t i = 0; i < from.size(); ++i) {
      sorted[i] = weights[from[i]];
      if (i > 0 && rows[from[i]] == row.back()) continue;
      row.push_back(rows[from[i]]);
      first.push_back(static_cast<int64_t>(i));
    }
    first.push_back(std::ssize(from));
    NIBBLE_ASSIGN_OR_RETURN(const auto placed_from, PlaceValues(std::span<const int64_t>(from)));
    NIBBLE_ASSIGN_OR_RETURN(const auto placed_weight, PlaceValues(std::span<const float>(sorted)));
    NIBBLE_ASSIGN_OR_RETURN(const auto placed_row, PlaceValues(std::span<const int64_t>(row)));
    NIBBLE_ASSIGN_OR_RETURN(const auto placed_first, PlaceValues(std::span<const int64_t>(first)));
    return Launched(LaunchAddScaledRows({.x = Floats(x),
                                         .from = static_cast<const int64_t*>(placed_from.get()),
                                         .weight = static_cast<const float*>(placed_weight.get()),
                                         .row = static_cast<const int64_t*>(placed_row.get()),
                                         .first = static_cast<const int64_t*>(placed_first.get()),
                                         .rows = std::ssize(row),
                                         .cols = x.cols,
                                         .out = MutableFloats(out)},
                                        stream_()));
  }

 private:
  // What a batch's sequences mean for RoPE and attention.
  struct Geometry {
    std::shared_ptr<void> positions;  // int32, of each row
    std::shared_ptr<void> pieces;     // those that see most keys first
    int64_t piece_count = 0;
  };

  cudaStream_t stream_() const { return device_->stream(); }

  absl::StatusOr<std::shared_ptr<void>> Bytes(int64_t bytes) {
    return Device::Allocate(device_, bytes);
  }

  absl::Status Launched(cudaError_t error) const { return CudaStatus(error, "launch"); }

  static LinearInputArgs InputArgs(const DeviceMatrix& out) {
    return {out.memory.get(), out.dtype == DType::kBf16};
  }

  static Transfer& Next(Transfer (&transfers)[2], int& next) {
    Transfer& transfer = transfers[next];
    next = 1 - next;
    return transfer;
  }

  absl::Status EnsureHost(Transfer& transfer, int64_t bytes) {
    if (transfer.host_bytes >= bytes) return absl::OkStatus();
    NIBBLE_CUDA_RETURN_IF_ERROR(cudaEventSynchronize(transfer.copied));
    if (transfer.host != nullptr) cudaFreeHost(std::exchange(transfer.host, nullptr));
    transfer.host_bytes = 0;
    void* host = nullptr;
    NIBBLE_RETURN_IF_ERROR(CudaStatus(cudaHostAlloc(&host, bytes, 0), "pinned host memory"));
    transfer.host = static_cast<std::byte*>(host);
    transfer.host_bytes = bytes;
    return absl::OkStatus();
  }

  absl::Status EnsureDevice(Transfer& transfer, int64_t bytes) {
    if (transfer.device_bytes >= bytes) return absl::OkStatus();
    // The copies' streams know nothing of when memory becomes free or is there.
    NIBBLE_CUDA_RETURN_IF_ERROR(cudaEventSynchronize(transfer.copied));
    NIBBLE_ASSIGN_OR_RETURN(transfer.device, Bytes(bytes));
    transfer.device_bytes = bytes;
    return device_->Synchronize();
  }

  // Calls body(first row, rows) for pieces, on all threads.
  template <typename Body>
  absl::Status ForPieces(int64_t rows, int64_t row_bytes, const Body& body) {
    const int64_t grain = std::max<int64_t>(1, kCopyPiece / std::max<int64_t>(1, row_bytes));
    std::vector<absl::Status> statuses((rows + grain - 1) / grain);
    pool_.ParallelFor(rows, grain, [&](int64_t begin, int64_t end) {
      statuses[begin / grain] = body(begin, end - begin);
    });
    for (const absl::Status& status : statuses) NIBBLE_RETURN_IF_ERROR(status);
    return absl::OkStatus();
  }

  // Copies to the device, in the order of the stream; `values` may go once this returns.
  absl::Status Stage(const void* values, int64_t bytes, void* to) {
    NIBBLE_RETURN_IF_ERROR(device_->Use());
    for (int64_t done = 0; done < bytes; done += kStagedBytes) {
      const int64_t piece = std::min(kStagedBytes, bytes - done);
      Transfer& transfer = Next(in_, next_in_);
      NIBBLE_RETURN_IF_ERROR(EnsureHost(transfer, piece));
      NIBBLE_CUDA_RETURN_IF_ERROR(cudaEventSynchronize(transfer.copied));
      pool_.ParallelFor(piece, kCopyPiece, [&](int64_t begin, int64_t end) {
        std::memcpy(transfer.host + begin, static_cast<const char*>(values) + done + begin,
                    end - begin);
      });
      NIBBLE_CUDA_RETURN_IF_ERROR(cudaMemcpyAsync(static_cast<char*>(to) + done, transfer.host,
                                                  piece, cudaMemcpyHostToDevice, stream_()));
      NIBBLE_CUDA_RETURN_IF_ERROR(cudaEventRecord(transfer.copied, stream_()));
    }
    return absl::OkStatus();
  }

  template <typename T>
  absl::StatusOr<std::shared_ptr<void>> PlaceValues(std::span<const T> values) {
    NIBBLE_ASSIGN_OR_RETURN(auto memory, Bytes(std::ssize(values) * sizeof(T)));
    NIBBLE_RETURN_IF_ERROR(Stage(values.data(), std::ssize(values) * sizeof(T), memory.get()));
    return memory;
  }

  // Waits for the states on their way and hands them over.
  absl::Status Finish(Transfer& transfer) {
    HiddenStates* const states = std::exchange(transfer.states, nullptr);
    if (states == nullptr) return absl::OkStatus();
    NIBBLE_CUDA_RETURN_IF_ERROR(cudaEventSynchronize(transfer.copied));
    if (*transfer.bad != std::numeric_limits<unsigned long long>::max()) {
      return NonFiniteStates(transfer.first + static_cast<int64_t>(*transfer.bad) / transfer.cols);
    }
    const int64_t row_bytes = transfer.cols * DTypeBytes(states->dtype());
    return ForPieces(transfer.rows, row_bytes, [&](int64_t row, int64_t rows) {
      return states->WriteStored(transfer.first + row, {transfer.host + row * row_bytes,
                                                        static_cast<size_t>(rows * row_bytes)});
    });
  }

  absl::StatusOr<std::shared_ptr<void>> SplitParts(DType dtype, const void* values, int64_t count) {
    NIBBLE_ASSIGN_OR_RETURN(auto parts, Bytes(LowOffset(count) + 2 * count));
    auto* high = static_cast<uint16_t*>(parts.get());
    NIBBLE_CUDA_RETURN_IF_ERROR(
        LaunchSplit(dtype, values, count, high, high + LowOffset(count) / 2, stream_()));
    return parts;
  }

  absl::Status Product(const DeviceMatrix& x, const DeviceMatrix& weight, const DeviceMatrix& out) {
    int64_t rows = ProductRows(x.rows);
    if (rows - x.rows > std::min(x.spare, out.spare)) rows = x.rows;
    const auto multiply = [&](DType dtype, const void* a, const void* w, bool add) {
      return products_->Multiply(dtype, a, w, MutableFloats(out), rows, weight.rows, x.cols, add);
    };
    if (!bf16_) return multiply(DType::kF32, x.memory.get(), weight.memory.get(), false);
    // What is small first, without the product of both low parts.
    Split a = {x.memory.get(), nullptr}, w = {weight.memory.get(), nullptr};
    std::shared_ptr<void> parts;
    bool add = false;
    if (x.dtype != DType::kBf16) {
      rows = x.rows;
      NIBBLE_ASSIGN_OR_RETURN(parts, SplitParts(x.dtype, x.memory.get(), Count(x)));
      a = PartsOf(parts.get(), Count(x));
    }
    if (weight.dtype != DType::kBf16) w = PartsOf(weight.memory.get(), Count(weight));
    if (a.low != nullptr) {
      NIBBLE_RETURN_IF_ERROR(multiply(DType::kBf16, a.low, w.high, add));
      add = true;
    }
    if (w.low != nullptr) {
      NIBBLE_RETURN_IF_ERROR(multiply(DType::kBf16, a.high, w.low, add));
      add = true;
    }
    return multiply(DType::kBf16, a.high, w.high, add);
  }

  // Tables are compared by what they hold: another one may have come to lie at the same place.
  absl::Status PlaceTable(const RopeTable& table) {
    const auto same = [](const std::vector<float>& a, const std::vector<float>& b) {
      return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * 4) == 0;
    };
    if (table_ != nullptr && same(table.cos, table_cos_) && same(table.sin, table_sin_)) {
      return absl::OkStatus();
    }
    table_ = nullptr;
    NIBBLE_ASSIGN_OR_RETURN(auto memory, Bytes(8 * std::ssize(table.cos)));
    auto* values = static_cast<float*>(memory.get());
    NIBBLE_RETURN_IF_ERROR(Stage(table.cos.data(), 4 * std::ssize(table.cos), values));
    NIBBLE_RETURN_IF_ERROR(
        Stage(table.sin.data(), 4 * std::ssize(table.sin), values + table.cos.size()));
    table_cos_ = table.cos;
    table_sin_ = table.sin;
    table_ = std::move(memory);
    return absl::OkStatus();
  }

  absl::StatusOr<const Geometry*> GeometryOf(std::span<const int64_t> lengths) {
    std::vector<int64_t> key(lengths.begin(), lengths.end());
    const auto known = geometries_.find(key);
    if (known != geometries_.end()) return &known->second;
    if (geometries_.size() == kMostGeometries) geometries_.clear();
    std::vector<int32_t> positions;
    std::vector<AttentionPiece> pieces;
    int64_t begin = 0;
    for (const int64_t length : lengths) {
      if (length > std::numeric_limits<int32_t>::max() - begin) {
        return absl::ResourceExhaustedError(
            "attention: expected fewer than 2^31 tokens at a time on a GPU, got more");
      }
      for (int64_t p = 0; p < length; ++p) positions.push_back(static_cast<int32_t>(p));
      for (int64_t first = 0; first < length; first += kAttentionQueries) {
        const int64_t count = std::min<int64_t>(kAttentionQueries, length - first);
        pieces.push_back({static_cast<int32_t>(begin), static_cast<int32_t>(first),
                          static_cast<int32_t>(count), static_cast<int32_t>(first + count)});
      }
      begin += length;
    }
    std::ranges::stable_sort(pieces, std::greater(), &AttentionPiece::after_last);
    Geometry geometry;
    geometry.piece_count = std::ssize(pieces);
    NIBBLE_ASSIGN_OR_RETURN(geometry.positions, PlaceValues(std::span<const int32_t>(positions)));
    NIBBLE_ASSIGN_OR_RETURN(geometry.pieces, PlaceValues(std::span<const AttentionPiece>(pieces)));
    return &geometries_.emplace(std::move(key), std::move(geometry)).first->second;
  }

  const std::shared_ptr<Device> device_;
  ThreadPool& pool_;
  const bool bf16_;
  std::unique_ptr<MatrixProducts> products_;
  cudaStream_t copy_in_ = nullptr, copy_out_ = nullptr;
  Transfer in_[2], out_[2];
  int next_in_ = 0, next_out_ = 0;
  std::vector<float> table_cos_, table_sin_;  // what table_ holds
  std::shared_ptr<void> table_;
  std::map<std::vector<int64_t>, Geometry> geometries_;
  UninitializedVector<float> room_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<LayerOps>> MakeCudaOps(int device, ThreadPool& pool,
                                                      DType linear_input) {
  NIBBLE_ASSIGN_OR_RETURN(std::shared_ptr<Device> made, Device::Make(device));
  auto ops = std::make_unique<CudaOps>(std::move(made), pool, linear_input);
  NIBBLE_RETURN_IF_ERROR(ops->Prepare());
  return ops;
}

}  // namespace nibble
