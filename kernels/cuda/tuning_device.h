#ifndef NIBBLE_KERNELS_CUDA_TUNING_DEVICE_H_
#define NIBBLE_KERNELS_CUDA_TUNING_DEVICE_H_

#include <memory>

#include "absl/status/statusor.h"
#include "kernels/tuning/tunable_op.h"

namespace nibble {

// Measures by events. Which definition is linked decides whether the build has CUDA.
absl::StatusOr<std::unique_ptr<TuningDevice>> MakeCudaTuningDevice(int device);

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CUDA_TUNING_DEVICE_H_
