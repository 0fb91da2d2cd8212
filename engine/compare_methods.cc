#include "engine/compare_methods.h"

#include "base/status.h"
#include "base/stopwatch.h"

namespace nibble {

absl::StatusOr<std::vector<MethodRow>> CompareMethods(const MatrixView& x, Backend& backend) {
  QuantizeParams max;
  max.rule = Rule::kCheckpoint;
  QuantizeParams four_over_six = max;
  four_over_six.four_over_six = FourOverSix{};
  four_over_six.e4m3_max = 256;
  const auto with_scales =
      [&](const absl::StatusOr<SweepResult>& result) -> absl::StatusOr<PackedTensor> {
    if (!result.ok()) return result.status();
    return backend.QuantizeWithScales(x, result->global_amax, 448, result->code);
  };

  std::vector<MethodRow> rows;
  const auto measure = [&](std::string method, const auto& quantize) -> absl::Status {
    const Stopwatch watch;
    NIBBLE_ASSIGN_OR_RETURN(const PackedTensor packed, quantize());
    MethodRow row;
    row.method = std::move(method);
    row.seconds = watch.seconds();
    const double bytes = static_cast<double>(packed.packed.size() + packed.scale.size() +
                                             packed.amax.size() * sizeof(float));
    row.bits_per_weight = 8 * bytes / static_cast<double>(x.size());
    NIBBLE_ASSIGN_OR_RETURN(row.error, backend.MeasureError(x, packed.view()));
    rows.push_back(std::move(row));
    return absl::OkStatus();
  };
  NIBBLE_RETURN_IF_ERROR(measure("max", [&] { return backend.Quantize(max, x); }));
  NIBBLE_RETURN_IF_ERROR(
      measure("4over6 (mse, 256)", [&] { return backend.Quantize(four_over_six, x); }));
  NIBBLE_RETURN_IF_ERROR(
      measure("mse, 39 multipliers", [&] { return with_scales(backend.MultiplierSearch({}, x)); }));
  NIBBLE_RETURN_IF_ERROR(
      measure("mse, sweep of 126", [&] { return with_scales(backend.ScaleSweep({}, x)); }));
  return rows;
}

}  // namespace nibble
