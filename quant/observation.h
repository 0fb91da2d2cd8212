// What one read of a matrix tells about its magnitudes.
#ifndef NIBBLE_QUANT_OBSERVATION_H_
#define NIBBLE_QUANT_OBSERVATION_H_

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "quant/numerics/log2_bin.h"

namespace nibble {

// What to look for besides the tensor's own maximum and the non-finite elements.
struct ObserveParams {
  bool row_amax = false;
  bool column_amax = false;
  bool block_amax = false;
  bool histogram = false;

  friend bool operator==(const ObserveParams&, const ObserveParams&) = default;
};

// Maxima are over finite elements, 0 where there is none: NaN and infinity are counted and
// otherwise ignored, so that one bad element leaves the maxima usable.
struct Observation {
  ObserveParams params;
  int64_t rows = 0, cols = 0;
  float amax = 0.0f;
  std::vector<float> row_amax;      // one a row
  std::vector<float> column_amax;   // one a column
  std::vector<float> block_amax;    // one a block of 16, row-major
  std::vector<uint64_t> histogram;  // block maxima by Log2Bin
  int64_t nan_count = 0, inf_count = 0;
  int64_t first_non_finite = -1;  // index of the first NaN or infinity, row-major; -1: none

  friend bool operator==(const Observation&, const Observation&) = default;

  // The rows of `next` follow the ones seen so far: the result is the observation of both matrices,
  // one above the other. But for what is by row or by place, parts may be joined in any order. An
  // observation without columns is of nothing yet. InvalidArgument where the columns or the
  // parameters differ.
  absl::Status Append(const Observation& next);
};

}  // namespace nibble

#endif  // NIBBLE_QUANT_OBSERVATION_H_
