// What quantization cost one block, and what many did: the unit that error statistics add up.
#ifndef NIBBLE_QUANT_NUMERICS_BLOCK_ERROR_H_
#define NIBBLE_QUANT_NUMERICS_BLOCK_ERROR_H_

#include <cmath>
#include <cstdint>

#include "quant/numerics/exact_sum.h"
#include "quant/numerics/float_bits.h"
#include "quant/numerics/scale_rules.h"

namespace nibble {

struct BlockError {
  double squared_error = 0, squared_x = 0, squared_y = 0, product = 0;
  double max_error = 0;  // largest |x - y|
  int saturated = 0;     // |x| above `largest`
  int flushed = 0;       // x != 0 became 0
};

// Float64 sums in element order, starting at 0, each operation rounded. `largest` is the largest
// value that the block's scale can express. squared_y is not finite where, and only where, a y is
// not, as squares of finite floats are far from overflow; likewise squared_x.
NIBBLE_HD BlockError MeasureBlock(const float x[kBlockSize], const float y[kBlockSize],
                                  float largest) {
  BlockError e;
  for (int i = 0; i < kBlockSize; ++i) {
    const double xi = x[i], yi = y[i], error = SubRn(xi, yi);
    e.squared_error = AddRn(e.squared_error, MulRn(error, error));
    e.squared_x = AddRn(e.squared_x, MulRn(xi, xi));
    e.squared_y = AddRn(e.squared_y, MulRn(yi, yi));
    e.product = AddRn(e.product, MulRn(xi, yi));
    const double magnitude = std::fabs(error);
    if (magnitude > e.max_error) e.max_error = magnitude;
    e.saturated += Abs(x[i]) > largest;
    e.flushed += x[i] != 0 && y[i] == 0;
  }
  return e;
}

// The sums of many blocks, as a device adds them up; all zero at first.
struct ErrorTotals {
  enum Sum { kSquaredError, kSquaredX, kSquaredY, kProduct, kSums };
  int64_t digits[kSums][kExactDigits];
  uint64_t max_error_bits;  // of a double that is not negative: larger bits, larger value
  uint64_t saturated, flushed;
  uint64_t bad_x_blocks, bad_y_blocks;  // with values that are NaN or infinite; if any, the rest
                                        // means nothing
};

}  // namespace nibble

#endif  // NIBBLE_QUANT_NUMERICS_BLOCK_ERROR_H_
