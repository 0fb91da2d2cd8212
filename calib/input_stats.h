// What one layer's input looked like: how many tokens, how large. Whole numbers and maxima, so that
// parts add up to the same in any order.
#ifndef NIBBLE_CALIB_INPUT_STATS_H_
#define NIBBLE_CALIB_INPUT_STATS_H_

#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/tensor_view.h"
#include "calib/amax_histogram.h"
#include "calib/calibrator.h"
#include "kernels/backend.h"
#include "kernels/input_sums.h"

namespace nibble {

class InputStats {
 public:
  explicit InputStats(bool histogram) : has_histogram_(histogram) {}

  // x: tokens x channels. FailedPrecondition for NaN, infinity and another number of channels than
  // before; nothing is added then.
  absl::Status Collect(const MatrixView& x, Backend& backend);
  // What a device summed of inputs of so many columns, with a histogram.
  static InputStats Of(const InputSumsResult& sums, int64_t columns);
  // FailedPrecondition where the numbers of channels differ, InvalidArgument where one has a
  // histogram and the other has not.
  absl::Status Merge(const InputStats& other);

  int64_t tokens() const { return tokens_; }
  int64_t columns() const { return columns_; }  // 0 before any Collect
  float amax() const { return amax_; }
  bool has_histogram() const { return has_histogram_; }
  const AmaxHistogram& histogram() const { return histogram_; }

  // Arrays "tokens" and "columns" (I64 [1]), "amax" (F32 [1]) and those of AmaxHistogram.
  void Save(CalibratorState& state) const;
  static absl::StatusOr<InputStats> Load(const CalibratorState& state, bool histogram);

  friend bool operator==(const InputStats&, const InputStats&) = default;

 private:
  bool has_histogram_;
  int64_t tokens_ = 0, columns_ = 0;
  float amax_ = 0;
  AmaxHistogram histogram_;
};

}  // namespace nibble

#endif  // NIBBLE_CALIB_INPUT_STATS_H_
