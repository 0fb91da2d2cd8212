// What calibration keeps of one layer's input: enough for any activation calibrator and for
// local_hessian. A forward runner feeds it chunks; a saved state has one of these a module.
#ifndef NIBBLE_CALIB_INPUT_COLLECTOR_H_
#define NIBBLE_CALIB_INPUT_COLLECTOR_H_

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/tensor_view.h"
#include "calib/calibrator.h"
#include "calib/hessian_sums.h"
#include "calib/input_stats.h"
#include "kernels/backend.h"
#include "kernels/input_sums.h"
#include "policies/recipe.h"

namespace nibble {

class InputCollector {
 public:
  // Without Hessians a collector is a few kilobytes; with them 213 bytes a channel, and collecting
  // takes most of its time for them.
  explicit InputCollector(bool hessians = true) : has_hessians_(hessians) {}

  // A chunk, tokens x channels. FailedPrecondition for NaN, infinity, moments that overflow and
  // another number of channels than before; nothing is added then.
  absl::Status Collect(const MatrixView& x, Backend& backend);
  // What a device collected of inputs of so many columns: the same bits as Collect's of the same
  // chunks.
  static InputCollector Of(InputSumsResult sums, int64_t columns, bool hessians);
  void Reset() { *this = InputCollector(has_hessians_); }
  // The same bits for any order and tree; see calib/hessian_sums.h for what chunks are alike.
  // InvalidArgument where one has Hessians and the other has not, or for itself;
  // FailedPrecondition where the channels differ. Nothing is added then.
  absl::Status Merge(const InputCollector& other);
  CalibratorState Save() const;
  // Takes over whether there are Hessians. DataLoss where the state is not one that Save made; the
  // collector is untouched then.
  absl::Status Load(const CalibratorState& state);

  int64_t tokens() const { return stats_.tokens(); }
  int64_t columns() const { return stats_.columns(); }  // 0 before any Collect
  float amax() const { return stats_.amax(); }
  bool has_hessians() const { return has_hessians_; }

  // See activation_calibrators.h.
  absl::StatusOr<float> InputAmax(const ActivationSpec& spec) const;
  // The mean of x x^T over the tokens, columns / 16 slices of 16 x 16, for
  // WeightCalibrator::SetHessians; nullopt without tokens or Hessians.
  std::optional<std::vector<float>> Hessians() const;

  friend bool operator==(const InputCollector&, const InputCollector&) = default;

 private:
  bool has_hessians_;
  InputStats stats_{/*histogram=*/true};
  HessianSums hessians_;
};

}  // namespace nibble

#endif  // NIBBLE_CALIB_INPUT_COLLECTOR_H_
