// What calibration keeps of a layer's inputs where a device adds it up itself: for inputs that lie
// in its memory, without copies and without waiting.
#ifndef NIBBLE_KERNELS_INPUT_SUMS_H_
#define NIBBLE_KERNELS_INPUT_SUMS_H_

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/tensor_view.h"

namespace nibble {

inline constexpr int kAmaxBins = 0x7F80;          // upper 16 bits of finite block maxima
inline constexpr int64_t kInputUnitTokens = 256;  // that AccumulateHessian sums at a time

struct InputSumsResult {
  int64_t tokens = 0;
  float amax = 0;
  std::vector<int64_t> bins;  // kAmaxBins counts of block maxima, all-zero blocks left out
  // With Hessians. Units of kInputUnitTokens of each call, the last may be shorter; their sums as
  // quant/numerics/window_sum.h adds them, the entries i <= j of a slice of 16 channels, by i, then
  // j: the digits of each, and its top.
  int64_t units = 0;
  std::vector<int64_t> digits;
  std::vector<uint8_t> top;
};

class InputSums {
 public:
  virtual ~InputSums() = default;

  // x, tokens x channels as at the beginning, is read in the order of the stream.
  virtual absl::Status Add(const MatrixView& x) = 0;

  // Of all calls so far, once they are done. FailedPrecondition where there was NaN or infinity, or
  // the sum of a unit overflowed. Several threads may ask, each its own sums.
  virtual absl::StatusOr<InputSumsResult> Result() = 0;
};

}  // namespace nibble

#endif  // NIBBLE_KERNELS_INPUT_SUMS_H_
