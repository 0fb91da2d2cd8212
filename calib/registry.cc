#include "base/status.h"
#include "base/text.h"
#include "calib/calibrator.h"

namespace nibble {

absl::StatusOr<WeightSpec> DefaultWeightSpec(std::string_view method) {
  const std::optional<WeightMethod> found = FromName<WeightMethod>(method);
  if (!found) {
    return absl::InvalidArgumentError(absl::StrCat(
        "weight calibrator: expected ", NamesOf<WeightMethod>(), ", got ", Quoted(method)));
  }
  WeightSpec spec;
  spec.method = *found;
  if (*found == WeightMethod::kFourOverSix) spec.e4m3_max = 256;
  return spec;
}

absl::StatusOr<ActivationSpec> DefaultActivationSpec(std::string_view method) {
  const std::optional<ActivationMethod> found = FromName<ActivationMethod>(method);
  if (!found) {
    return absl::InvalidArgumentError(absl::StrCat(
        "activation calibrator: expected ", NamesOf<ActivationMethod>(), ", got ", Quoted(method)));
  }
  ActivationSpec spec;
  spec.method = *found;
  return spec;
}

}  // namespace nibble
