// How scales are chosen from data. A calibrator collects (weights, or a layer's input chunk by
// chunk), then computes; its state can be merged with another's, saved and loaded, so that chunks,
// runs and ranks combine to the same result in any order.
#ifndef NIBBLE_CALIB_CALIBRATOR_H_
#define NIBBLE_CALIB_CALIBRATOR_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/dtype.h"
#include "base/tensor_view.h"
#include "base/uninitialized_vector.h"
#include "kernels/backend.h"
#include "policies/recipe.h"
#include "quant/packed_tensor.h"

namespace nibble {

// What was collected, as named arrays: what files of saved states hold.
struct StateArray {
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;
  std::vector<std::byte> bytes;

  friend bool operator==(const StateArray&, const StateArray&) = default;
};
using CalibratorState = std::map<std::string, StateArray>;

class Calibrator {
 public:
  virtual ~Calibrator() = default;

  virtual std::string_view name() const = 0;  // in the registry

  // FailedPrecondition for NaN and infinity, another number of columns than before, and a second
  // call where one is all that makes sense.
  virtual absl::Status Collect(const MatrixView& x, Backend& backend) = 0;
  virtual void Reset() = 0;  // as new
  // InvalidArgument where `other` is another calibrator or has other parameters.
  virtual absl::Status Merge(const Calibrator& other) = 0;
  virtual CalibratorState Save() const = 0;
  // DataLoss where the state is not one that Save made; the calibrator is untouched then.
  virtual absl::Status Load(const CalibratorState& state) = 0;
};

// What was chosen for one weight: enough to encode it.
struct ScaleSet {
  float global_amax = 0;
  int e4m3_max = 448;
  std::optional<FourOverSix> four_over_six = {};
  UninitializedVector<uint8_t>
      block_scale;  // one a block, 1..126; empty: the encode chooses (max, 4over6)
  // Two a byte, as PackedTensor has them, where they were chosen with the scales; empty: each code
  // is the nearest.
  std::vector<uint8_t> codes = {};

  friend bool operator==(const ScaleSet&, const ScaleSet&) = default;
};

// The amax that a checkpoint's global scale is made from: `amax` itself, but where it is so small
// that amax / (6 * e4m3_max) is subnormal, the smallest for which it is not. Loaders divide by
// global scales, some with subnormals flushed to zero. 0 stays 0.
float ExportableAmax(float amax, int e4m3_max);

// Collect is called once for each member of a fused group: they share one global amax. Collect and
// Merge are FailedPrecondition once Compute or Quantize was called, until Reset: a member that came
// later would have another global scale than the ones before it. Without members, and for another
// number of columns, so are Compute and Quantize.
class WeightCalibrator : public Calibrator {
 public:
  virtual bool needs_hessians() const { return false; }
  // Of the members' common input: columns / 16 slices of 16 x 16 floats, sums as AccumulateHessian
  // makes them or means. Without, local_hessian is the plain sweep; so it is for slices that are
  // all zero. InvalidArgument where the method takes none; FailedPrecondition for another size and
  // for NaN and infinity.
  virtual absl::Status SetHessians(std::vector<float> hessians);
  // Whether Hessians would be used and there are none.
  virtual bool fell_back() const { return false; }

  // For one member, after all were collected.
  virtual absl::StatusOr<ScaleSet> Compute(const MatrixView& weight, Backend& backend) = 0;

  // Compute and EncodeWeight, in one read of the weight where the backend can.
  virtual absl::StatusOr<PackedTensor> Quantize(const MatrixView& weight, Backend& backend);
};

// The bytes of a checkpoint: per_tensor, checkpoint rule.
absl::StatusOr<PackedTensor> EncodeWeight(const ScaleSet& scales, const MatrixView& weight,
                                          Backend& backend);

class ActivationCalibrator : public Calibrator {
 public:
  // The amax that the input's global scale is made from; FailedPrecondition before any Collect.
  virtual absl::StatusOr<float> Compute() const = 0;
};

// The parameters that a method has unless told otherwise, by its name (NamesOf<WeightMethod> and
// NamesOf<ActivationMethod>); InvalidArgument with these names for another.
absl::StatusOr<WeightSpec> DefaultWeightSpec(std::string_view method);
absl::StatusOr<ActivationSpec> DefaultActivationSpec(std::string_view method);

// InvalidArgument for a specification that no recipe could have.
absl::Status Validate(const WeightSpec& spec);
absl::Status Validate(const ActivationSpec& spec);

// InvalidArgument as Validate says.
absl::StatusOr<std::unique_ptr<WeightCalibrator>> MakeWeightCalibrator(const WeightSpec& spec);
absl::StatusOr<std::unique_ptr<ActivationCalibrator>> MakeActivationCalibrator(
    const ActivationSpec& spec);

}  // namespace nibble

#endif  // NIBBLE_CALIB_CALIBRATOR_H_
