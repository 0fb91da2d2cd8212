// What each way of choosing scales costs and gains on one matrix.
#ifndef NIBBLE_ENGINE_COMPARE_METHODS_H_
#define NIBBLE_ENGINE_COMPARE_METHODS_H_

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/tensor_view.h"
#include "kernels/backend.h"
#include "quant/error_stats.h"

namespace nibble {

struct MethodRow {
  std::string method;
  double bits_per_weight = 0;
  ErrorStats error;    // of the stored bytes
  double seconds = 0;  // to choose the scales and encode
};

// max, 4over6 (mse, 256), the multiplier grid and the sweep, all under the checkpoint rule; max
// first.
absl::StatusOr<std::vector<MethodRow>> CompareMethods(const MatrixView& x, Backend& backend);

}  // namespace nibble

#endif  // NIBBLE_ENGINE_COMPARE_METHODS_H_
