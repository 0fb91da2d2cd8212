#ifndef NIBBLE_KERNELS_CUDA_INPUTS_INPUT_SUMS_H_
#define NIBBLE_KERNELS_CUDA_INPUTS_INPUT_SUMS_H_

#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>
#include <optional>

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
  // Host memory that the device copies to without help, until the next call.
  absl::StatusOr<char*> HostRoom(int64_t bytes);

 private:
  struct FreeHost {
    void operator()(char* memory) const { cudaFreeHost(memory); }
  };
  std::optional<DeviceBuffer<char>> memory_;
  cudaStream_t stream_ = nullptr;
  std::unique_ptr<char, FreeHost> host_;
  int64_t host_bytes_ = 0;
};

// For inputs in the memory of the device, which is made the current one. The picks and the stream
// outlive the result. FailedPrecondition for channels that are no positive multiple of 16,
// Unimplemented for more than kMaxHessianUnitChannels.
absl::StatusOr<std::unique_ptr<InputSums>> MakeCudaInputSums(
    int device, int64_t channels, bool hessians, const ConfigPicks& observe,
    const ConfigPicks& accumulate, std::shared_ptr<InputScratch> scratch, cudaStream_t stream);

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CUDA_INPUTS_INPUT_SUMS_H_
