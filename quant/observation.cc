#include "quant/observation.h"

#include <algorithm>

#include "base/status.h"

namespace nibble {

absl::Status Observation::Append(const Observation& next) {
  if (cols == 0) {
    *this = next;
    return absl::OkStatus();
  }
  if (next.cols != cols) {
    return absl::InvalidArgumentError(
        absl::StrCat("observation: expected one of ", cols, " columns, got ", next.cols));
  }
  if (!(next.params == params)) {
    return absl::InvalidArgumentError(
        "observation: expected one made with the same parameters, got another");
  }
  if (first_non_finite < 0 && next.first_non_finite >= 0) {
    first_non_finite = rows * cols + next.first_non_finite;
  }
  rows += next.rows;
  amax = std::max(amax, next.amax);
  row_amax.insert(row_amax.end(), next.row_amax.begin(), next.row_amax.end());
  block_amax.insert(block_amax.end(), next.block_amax.begin(), next.block_amax.end());
  for (size_t i = 0; i < column_amax.size(); ++i) {
    column_amax[i] = std::max(column_amax[i], next.column_amax[i]);
  }
  for (size_t i = 0; i < histogram.size(); ++i) histogram[i] += next.histogram[i];
  nan_count += next.nan_count;
  inf_count += next.inf_count;
  return absl::OkStatus();
}

}  // namespace nibble
