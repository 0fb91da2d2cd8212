#include "kernels/cuda/inputs/input_sums.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "base/status.h"
#include "kernels/cuda/device_buffer.h"
#include "kernels/cuda/inputs/input_sums_launch.h"
#include "quant/numerics/float_bits.h"
#include "quant/numerics/window_sum.h"

namespace nibble {
namespace {

class CudaInputSums final : public InputSums {
 public:
  CudaInputSums(int device, int64_t channels, bool hessians, const ConfigPicks& observe,
                const ConfigPicks& accumulate, std::shared_ptr<InputScratch> scratch,
                PinnedRooms& pinned, cudaStream_t stream)
      : device_(device),
        channels_(channels),
        entries_(hessians ? channels / kBlockSize * kHessianEntries : 0),
        observe_(observe),
        accumulate_(accumulate),
        scratch_(std::move(scratch)),
        pinned_(pinned),
        stream_(stream) {}

  absl::Status Prepare() {
    NIBBLE_CUDA_RETURN_IF_ERROR(cudaSetDevice(device_));
    NIBBLE_RETURN_IF_ERROR(Zeros(1, totals_));
    NIBBLE_RETURN_IF_ERROR(Zeros(1, non_finite_));
    if (entries_ == 0) return absl::OkStatus();
    NIBBLE_RETURN_IF_ERROR(Zeros(entries_ * kWindowDigits, digits_));
    return Zeros(entries_, top_);
  }

  absl::Status Add(const MatrixView& x) override {
    if (x.rows == 0) return absl::OkStatus();
    NIBBLE_CUDA_RETURN_IF_ERROR(cudaSetDevice(device_));
    const int64_t blocks = x.size() / kBlockSize;
    // Of Hessians an integer and the workspace, beside the maxima of the blocks.
    const int64_t amax_bytes = (4 * blocks + 255) / 256 * 256;
    const int64_t workspace_bytes =
        entries_ == 0 ? 0 : 256 + 4 * HessianUnitsWorkspace(x.rows, x.cols);
    NIBBLE_ASSIGN_OR_RETURN(char* const room,
                            scratch_->Room(amax_bytes + workspace_bytes, stream_));
    float* const block_amax = reinterpret_cast<float*>(room);
    const ObserveArgs observe = {.x = x.data,
                                 .rows = x.rows,
                                 .cols = x.cols,
                                 .block_amax = block_amax,
                                 .non_finite = non_finite_->get()};
    NIBBLE_CUDA_RETURN_IF_ERROR(
        LaunchObserve(x.dtype, observe, observe_(x.dtype, blocks), stream_));
    NIBBLE_CUDA_RETURN_IF_ERROR(LaunchCountBlocks({.block_amax = block_amax,
                                                   .blocks = blocks,
                                                   .non_finite = non_finite_->get(),
                                                   .totals = totals_->get()},
                                                  stream_));
    tokens_ += x.rows;
    if (entries_ == 0) return absl::OkStatus();
    const int64_t units = (x.rows + kInputUnitTokens - 1) / kInputUnitTokens;
    if (units > kWindowMaxTerms - units_) {
      return absl::ResourceExhaustedError("tokens: expected at most 2^30 units, got more");
    }
    const HessianUnitsArgs args = {.x = x.data,
                                   .tokens = x.rows,
                                   .channels = x.cols,
                                   .workspace = reinterpret_cast<float*>(room + amax_bytes + 256),
                                   .scratch = reinterpret_cast<int64_t*>(room + amax_bytes),
                                   .digits = digits_->get(),
                                   .top = top_->get(),
                                   .totals = totals_->get()};
    NIBBLE_CUDA_RETURN_IF_ERROR(
        LaunchHessianUnits(x.dtype, args, accumulate_(x.dtype, blocks), stream_));
    units_ += units;
    return absl::OkStatus();
  }

  absl::StatusOr<InputSumsResult> Result() override {
    NIBBLE_CUDA_RETURN_IF_ERROR(cudaSetDevice(device_));
    const int64_t digits = entries_ * kWindowDigits;
    NIBBLE_ASSIGN_OR_RETURN(
        PinnedRooms::Room pinned,
        pinned_.Take(sizeof(InputTotals) + digits * sizeof(int64_t) + entries_));
    char* const room = pinned.memory.get();
    const auto* const totals = reinterpret_cast<const InputTotals*>(room);
    NIBBLE_RETURN_IF_ERROR(totals_->CopyTo(room));
    const auto* const digit = reinterpret_cast<const int64_t*>(room + sizeof(InputTotals));
    const auto* const top = reinterpret_cast<const uint8_t*>(digit + digits);
    if (entries_ > 0) {
      NIBBLE_RETURN_IF_ERROR(digits_->CopyTo(room + sizeof(InputTotals)));
      NIBBLE_RETURN_IF_ERROR(top_->CopyTo(room + sizeof(InputTotals) + digits * sizeof(int64_t)));
    }
    NIBBLE_RETURN_IF_ERROR(CudaStatus(cudaStreamSynchronize(stream_), "synchronization"));
    const NonFiniteCounts& bad = totals->non_finite;
    if (bad.nan + bad.inf > 0) {
      return absl::FailedPreconditionError(
          absl::StrCat("values: expected finite numbers, got ", bad.nan + bad.inf,
                       " NaN or infinite, the first at row ", bad.first / channels_,
                       " of a batch, column ", bad.first % channels_));
    }
    if (totals->bad_slice > 0) {
      return absl::FailedPreconditionError(
          absl::StrCat("hessian: expected sums of at most ", kFloatMax, ", got more in slice ",
                       channels_ / kBlockSize - totals->bad_slice));
    }
    InputSumsResult result;
    result.tokens = tokens_;
    result.units = units_;
    result.digits.assign(digit, digit + digits);
    result.top.assign(top, top + entries_);
    result.amax = FloatFromBits(totals->amax);
    result.bins.assign(std::begin(totals->bins), std::end(totals->bins));
    pinned_.Return(std::move(pinned));
    return result;
  }

 private:
  template <typename T>
  absl::Status Zeros(int64_t count, std::optional<DeviceBuffer<T>>& buffer) {
    NIBBLE_ASSIGN_OR_RETURN(auto made, DeviceBuffer<T>::Make(count, stream_));
    buffer.emplace(std::move(made));
    return CudaStatus(cudaMemsetAsync(buffer->get(), 0, count * sizeof(T), stream_), "memset");
  }

  const int device_;
  const int64_t channels_, entries_;
  const ConfigPicks &observe_, &accumulate_;
  const std::shared_ptr<InputScratch> scratch_;
  PinnedRooms& pinned_;
  const cudaStream_t stream_;
  int64_t tokens_ = 0, units_ = 0;
  std::optional<DeviceBuffer<InputTotals>> totals_;
  std::optional<DeviceBuffer<NonFiniteCounts>> non_finite_;
  std::optional<DeviceBuffer<int64_t>> digits_;
  std::optional<DeviceBuffer<uint8_t>> top_;
};

}  // namespace

absl::StatusOr<char*> InputScratch::Room(int64_t bytes, cudaStream_t stream) {
  if (!memory_ || memory_->count() < bytes || stream_ != stream) {
    memory_.reset();
    NIBBLE_ASSIGN_OR_RETURN(auto made, DeviceBuffer<char>::Make(bytes, stream));
    memory_.emplace(std::move(made));
    stream_ = stream;
  }
  return memory_->get();
}

absl::StatusOr<PinnedRooms::Room> PinnedRooms::Take(int64_t bytes) {
  Room room;
  {
    std::lock_guard lock(mutex_);
    if (!free_.empty()) {
      room = std::move(free_.back());
      free_.pop_back();
    }
  }
  if (room.bytes < bytes) {
    room.memory.reset();
    void* memory = nullptr;
    NIBBLE_RETURN_IF_ERROR(CudaStatus(cudaHostAlloc(&memory, bytes, 0), "pinned host memory"));
    room = {std::unique_ptr<char, Room::Free>(static_cast<char*>(memory)), bytes};
  }
  return room;
}

void PinnedRooms::Return(Room room) {
  std::lock_guard lock(mutex_);
  free_.push_back(std::move(room));
}

absl::StatusOr<std::unique_ptr<InputSums>> MakeCudaInputSums(
    int device, int64_t channels, bool hessians, const ConfigPicks& observe,
    const ConfigPicks& accumulate, std::shared_ptr<InputScratch> scratch, PinnedRooms& pinned,
    cudaStream_t stream) {
  if (channels <= 0 || channels % kBlockSize != 0) {
    return absl::FailedPreconditionError(
        absl::StrCat("shape: expected a positive multiple of 16 columns, got ", channels));
  }
  if (hessians && channels > kMaxHessianUnitChannels) {
    return absl::UnimplementedError(absl::StrCat("hessian: expected at most ",
                                                 kMaxHessianUnitChannels,
                                                 " channels on a GPU, got ", channels));
  }
  auto sums = std::make_unique<CudaInputSums>(device, channels, hessians, observe, accumulate,
                                              std::move(scratch), pinned, stream);
  NIBBLE_RETURN_IF_ERROR(sums->Prepare());
  return sums;
}

}  // namespace nibble
