// A matrix of made-up values, and the memory that it lies in.
#ifndef NIBBLE_TESTS_TESTING_TEST_MATRIX_H_
#define NIBBLE_TESTS_TESTING_TEST_MATRIX_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "base/tensor_view.h"
#include "engine/synthetic.h"

namespace nibble::testing {

struct TestMatrix {
  std::vector<std::byte> bytes;
  MatrixView view;

  TestMatrix(std::span<const float> values, int64_t cols, DType dtype = DType::kF32)
      : bytes(ToBytes(values, dtype)),
        view{bytes.data(), dtype, static_cast<int64_t>(values.size()) / cols, cols} {}
  TestMatrix(Distribution distribution, DType dtype, int64_t rows, int64_t cols, uint64_t seed = 1)
      : TestMatrix(SyntheticValues(distribution, rows * cols, seed), cols, dtype) {}

  MatrixView Rows(int64_t first, int64_t count) const {
    return {bytes.data() + first * view.cols * DTypeBytes(view.dtype), view.dtype, count,
            view.cols};
  }
};

}  // namespace nibble::testing

#endif  // NIBBLE_TESTS_TESTING_TEST_MATRIX_H_
