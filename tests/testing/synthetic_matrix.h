// A matrix of made-up values, and the memory that it lies in.
#ifndef NIBBLE_TESTS_TESTING_SYNTHETIC_MATRIX_H_
#define NIBBLE_TESTS_TESTING_SYNTHETIC_MATRIX_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/tensor_view.h"
#include "engine/synthetic.h"

namespace nibble::testing {

struct SyntheticMatrix {
  std::vector<std::byte> bytes;
  MatrixView view;

  SyntheticMatrix(Distribution distribution, DType dtype, int64_t rows, int64_t cols,
                  uint64_t seed = 1)
      : bytes(ToBytes(SyntheticValues(distribution, rows * cols, seed), dtype)),
        view{bytes.data(), dtype, rows, cols} {}
};

}  // namespace nibble::testing

#endif  // NIBBLE_TESTS_TESTING_SYNTHETIC_MATRIX_H_
