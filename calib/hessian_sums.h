// Second moments of a layer's input, summed so that parts combine to the same bits in any order.
//
// A call's tokens are cut into units of 256, the last may be shorter; AccumulateHessian sums each
// in float32, in an order of its own (quant/numerics/hessian_sum.h), and the units' sums are added
// as window_sum.h adds. So the bits are a function of the set of units: neither the order of calls
// nor that of merges matters, nor how tokens were split over calls, as long as each but the last of
// a sequence is a multiple of 256 tokens.
#ifndef NIBBLE_CALIB_HESSIAN_SUMS_H_
#define NIBBLE_CALIB_HESSIAN_SUMS_H_

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/tensor_view.h"
#include "calib/calibrator.h"
#include "kernels/backend.h"
#include "kernels/input_sums.h"
#include "quant/numerics/window_sum.h"

namespace nibble {

class HessianSums {
 public:
  // FailedPrecondition for NaN, infinity, sums that overflow and another number of channels than
  // before; nothing is added then.
  absl::Status Collect(const MatrixView& x, Backend& backend);
  // FailedPrecondition where the numbers of channels differ.
  absl::Status Merge(const HessianSums& other);

  // What a device summed (see InputSumsResult).
  static HessianSums Of(int64_t units, std::vector<int64_t> digits, std::vector<uint8_t> top);

  int64_t units() const { return units_; }

  // columns / 16 slices of 16 x 16, row-major: the sums divided by the number of tokens, in double,
  // and rounded once.
  std::vector<float> Mean(int64_t tokens) const;

  // Arrays "hessian.units" (I64 [1]), "hessian.digits" (I64 [slices, 136, 3]) and "hessian.top" (U8
  // [slices, 136]): the entries i <= j of a slice, by i, then j, as WindowSum has them.
  void Save(CalibratorState& state) const;
  static absl::StatusOr<HessianSums> Load(const CalibratorState& state, int64_t columns);

  friend bool operator==(const HessianSums&, const HessianSums&) = default;

 private:
  absl::Status AddUnit(const MatrixView& unit, Backend& backend, std::vector<float>& sums);
  WindowSum At(size_t entry) const;
  void Put(size_t entry, const WindowSum& sum);

  int64_t units_ = 0;
  std::vector<int64_t> digits_;  // 3 an entry
  std::vector<uint8_t> top_;
};

}  // namespace nibble

#endif  // NIBBLE_CALIB_HESSIAN_SUMS_H_
