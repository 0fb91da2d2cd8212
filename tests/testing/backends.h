// The CPU backends under test: the scalar reference and every instruction set of this machine.
#ifndef NIBBLE_TESTS_TESTING_BACKENDS_H_
#define NIBBLE_TESTS_TESTING_BACKENDS_H_

#include <memory>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "kernels/cpu/cpu_backend.h"

namespace nibble::testing {

inline std::vector<const CpuKernels*> AllCpuKernels() {
  std::vector<const CpuKernels*> all = {&ScalarKernels()};
  all.insert(all.end(), AllSimdKernels().begin(), AllSimdKernels().end());
  return all;
}

inline std::unique_ptr<Backend> Cpu(int threads = 2) {
  return *MakeBackend("cpu", {.threads = threads});
}

// For gtest's parameter names.
inline std::string KernelsName(const CpuKernels* kernels) { return std::string(kernels->name); }

}  // namespace nibble::testing

#endif  // NIBBLE_TESTS_TESTING_BACKENDS_H_
