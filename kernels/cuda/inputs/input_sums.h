#ifndef NIBBLE_KERNELS_CUDA_INPUTS_INPUT_SUMS_H_
#define NIBBLE_KERNELS_CUDA_INPUTS_INPUT_SUMS_H_

#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/cuda/device_buffer.h"
#include "kernels/input_sums.h"
#include "kernels/tuning/tunable_op.h"

namespace nibble {

// Memory that sums of one stream use one after another: more than the driver keeps for allocations
// that come and go (see MakeCudaBackend).
class InputScratch {
 public:
  // Until the next call; bytes that nothing else is done with but in the order of `stream`.
  absl::StatusOr<char*> Room(int64_t bytes, cudaStream_t stream);

 private:
  std::optional<DeviceBuffer<char>> memory_;
  cudaStream_t stream_ = nullptr;
};

// Host memory that the device copies to without help. It takes long to come by, so that it is kept:
// as many pieces as were in use at a time. From any thread.
class PinnedRooms {
 public:
  struct Room {
    struct Free {
      void operator()(char* memory) const { cudaFreeHost(memory); }
    };
    std::unique_ptr<char, Free> memory;
    int64_t bytes = 0;
  };
  absl::StatusOr<Room> Take(int64_t bytes);
  void Return(Room room);

 private:
  std::mutex mutex_;
  std::vector<Room> free_;
};

// For inputs in the memory of the device, which is made the current one. The picks, the pinned
// memory and the stream outlive the result. FailedPrecondition for channels that are no positive
// multiple of 16, Unimplemented for more than kMaxHessianUnitChannels.
absl::StatusOr<std::unique_ptr<InputSums>> MakeCudaInputSums(
    int device, int64_t channels, bool hessians, const ConfigPicks& observe,
    const ConfigPicks& accumulate, std::shared_ptr<InputScratch> scratch, PinnedRooms& pinned,
    cudaStream_t stream);

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CUDA_INPUTS_INPUT_SUMS_H_
