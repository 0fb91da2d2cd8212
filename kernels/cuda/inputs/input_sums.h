#ifndef NIBBLE_KERNELS_CUDA_INPUTS_INPUT_SUMS_H_
#define NIBBLE_KERNELS_CUDA_INPUTS_INPUT_SUMS_H_

#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "kernels/input_sums.h"
#include "kernels/tuning/tunable_op.h"

namespace nibble {

// For inputs in the memory of the device, which is made the current one. The picks and the stream
// outlive the result. Unimplemented for more than kMaxHessianUnitChannels channels.
absl::StatusOr<std::unique_ptr<InputSums>> MakeCudaInputSums(int device, int64_t channels,
                                                             bool hessians,
                                                             const ConfigPicks& observe,
                                                             const ConfigPicks& accumulate,
                                                             cudaStream_t stream);

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CUDA_INPUTS_INPUT_SUMS_H_
