#ifndef NIBBLE_KERNELS_CPU_CPU_BACKEND_H_
#define NIBBLE_KERNELS_CPU_CPU_BACKEND_H_

#include <memory>

#include "kernels/backend.h"
#include "kernels/cpu/cpu_kernels.h"

namespace nibble {

std::unique_ptr<Backend> MakeCpuBackend(const BackendOptions& options);
std::unique_ptr<Backend> MakeScalarBackend(const BackendOptions& options);

// With the kernels of one instruction set, for tests and benchmarks; `kernels` is not owned.
std::unique_ptr<Backend> MakeCpuBackendWith(const CpuKernels& kernels,
                                            const BackendOptions& options);

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CPU_CPU_BACKEND_H_
