// What quantizing a layer's weights costs its output: the error of the weights, weighed by what the
// layer is fed.
#ifndef NIBBLE_QUANT_OUTPUT_ERROR_H_
#define NIBBLE_QUANT_OUTPUT_ERROR_H_

#include <cstdint>
#include <span>

#include "base/parallel_for.h"
#include "base/tensor_view.h"

namespace nibble {

// Sums over rows and blocks of d^T H d and w^T H w, d = w - v, where v is what the stored bytes
// stand for, and H the mean of x x^T over the inputs x of the block's 16 channels.
struct OutputError {
  double squared_error = 0, squared_output = 0;

  double relative() const;  // squared_error / squared_output; 0 where there is no error
  void Merge(const OutputError& other);

  friend bool operator==(const OutputError&, const OutputError&) = default;
};

// What the bytes of a matrix say, both row-major, without padding: v = code * block scale * global.
struct StoredCodes {
  const uint8_t* codes = nullptr;   // E2M1, two a byte, the even element in the low half
  const uint8_t* scales = nullptr;  // E4M3, one for 16 codes
  double global = 1;
};

// Adds the rows of w, which is bf16, fp16 or fp32 with columns a multiple of 16; hessians: cols /
// 16 slices of 16 x 16, symmetric. In double throughout, where v is exact if `global` is a float; a
// row's blocks are added in order, then the rows: the same bits for any number of threads, and
// however the rows come in several calls.
void AddOutputError(const MatrixView& w, const StoredCodes& stored, std::span<const float> hessians,
                    ThreadPool& pool, OutputError& total);

}  // namespace nibble

#endif  // NIBBLE_QUANT_OUTPUT_ERROR_H_
