#ifndef NIBBLE_KERNELS_CUDA_CUDA_BACKEND_H_
#define NIBBLE_KERNELS_CUDA_CUDA_BACKEND_H_

#include <memory>

#include "absl/status/statusor.h"
#include "kernels/backend.h"

namespace nibble {

// `tuning`: picks before the shipped ones. Which definition is linked decides whether the build has
// CUDA.
absl::StatusOr<std::unique_ptr<Backend>> MakeCudaBackend(int device, const TuningStore& tuning);

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CUDA_CUDA_BACKEND_H_
