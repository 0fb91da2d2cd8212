#include "quant/quantize_params.h"

#include "base/status.h"

namespace nibble {

absl::Status Validate(const QuantizeParams& params) {
  if (params.e4m3_max != 448 && params.e4m3_max != 256) {
    return absl::InvalidArgumentError(
        absl::StrCat("e4m3_max: expected 448 or 256, got ", params.e4m3_max));
  }
  if (params.rule == Rule::kCheckpoint && params.scheme == Scheme::kPerToken) {
    return absl::InvalidArgumentError(
        "scheme: expected per_tensor or tile_2d under the checkpoint rule, got per_token: a "
        "checkpoint stores one global scale per tensor, no loader reads one per row");
  }
  if (params.global_amax) {
    if (params.scheme == Scheme::kPerToken) {
      return absl::InvalidArgumentError(
          "global_amax: expected none under per_token, where every row has its own");
    }
    if (!(*params.global_amax >= 0.0f) || !IsFinite(*params.global_amax)) {
      return absl::InvalidArgumentError(absl::StrCat(
          "global_amax: expected a finite number that is not negative, got ", *params.global_amax));
    }
  }
  return absl::OkStatus();
}

}  // namespace nibble
