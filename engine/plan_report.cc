#include "engine/plan_report.h"

#include <algorithm>

#include "absl/strings/str_format.h"
#include "base/status.h"
#include "nlohmann/json.hpp"

namespace nibble {
namespace {

using OrderedJson = nlohmann::ordered_json;

// Weights a second and thread: bench/results/cpu.md, one thread, rounded down.
double WeightsPerSecond(const WeightSpec& weights) {
  switch (weights.method) {
    case WeightMethod::kMax:
      return 1300e6;
    case WeightMethod::kMse:
      return weights.fp8_scale_sweep ? 240e6 : 90e6;
    case WeightMethod::kLocalHessian:
      return weights.rounding == Rounding::kFeedback ? 15e6 : 60e6;
    case WeightMethod::kFourOverSix:
      return 650e6;
  }
  return 60e6;
}
constexpr double kDiskBytesPerSecond = 1e9;

// "42 s", "17 min", "3.2 h"
std::string DurationName(double seconds) {
  if (seconds < 1) return "less than a second";
  if (seconds < 120) return absl::StrFormat("%.0f s", seconds);
  if (seconds < 7200) return absl::StrFormat("%.0f min", seconds / 60);
  return absl::StrFormat("%.1f h", seconds / 3600);
}

OrderedJson JsonOf(const Treatment& treatment) {
  const WeightSpec& w = treatment.weights;
  OrderedJson weights = {{"method", NameOf(w.method)}, {"e4m3_max", w.e4m3_max}};
  if (w.method == WeightMethod::kLocalHessian) weights["rounding"] = NameOf(w.rounding);
  if (w.method == WeightMethod::kMse) weights["fp8_scale_sweep"] = w.fp8_scale_sweep;
  const ActivationSpec& a = treatment.activations;
  OrderedJson activations = {{"format", NameOf(a.format)}};
  if (a.format != ActivationFormat::kNone) {
    activations["scheme"] = NameOf(a.scheme);
    activations["method"] = NameOf(a.method);
  }
  return {{"weights", std::move(weights)}, {"activations", std::move(activations)}};
}

}  // namespace

PlanEstimate EstimatePlan(const Plan& plan, int threads) {
  PlanEstimate estimate;
  double thread_seconds = 0;
  for (const PlanRow& row : plan.rows) {
    if (!row.quantize) continue;
    const double weights = static_cast<double>(row.bytes_before) / DTypeBytes(row.tensor.dtype);
    thread_seconds += weights / WeightsPerSecond(row.treatment.weights);
  }
  const PlanTotals totals = TotalsOf(plan);
  threads = std::max(threads, 1);
  estimate.compute_seconds = thread_seconds / threads;
  estimate.disk_seconds =
      (static_cast<double>(totals.bytes_before) + static_cast<double>(totals.bytes_after)) /
      kDiskBytesPerSecond;
  estimate.assumes = absl::StrFormat(
      "%d CPU thread%s of 2.45 GHz with AVX2 (a GPU is faster), a disk of %.0f GB/s for reading "
      "and "
      "writing together, both at once",
      threads, threads == 1 ? "" : "s", kDiskBytesPerSecond / 1e9);
  return estimate;
}

std::string EstimateAsText(const PlanEstimate& estimate) {
  return absl::StrFormat("about %s: %s of computing, %s of reading and writing; assumes %s\n",
                         DurationName(estimate.seconds()), DurationName(estimate.compute_seconds),
                         DurationName(estimate.disk_seconds), estimate.assumes);
}

std::string PlanAsJson(const Plan& plan, const PlanEstimate& estimate) {
  OrderedJson root;
  const PlanTotals totals = TotalsOf(plan);
  root["totals"] = {{"tensors", totals.tensors},
                    {"quantized", totals.quantized},
                    {"weights", totals.weights},
                    {"quantized_weights", totals.quantized_weights},
                    {"bytes_before", totals.bytes_before},
                    {"bytes_after", totals.bytes_after},
                    {"quantized_bytes_before", totals.quantized_before},
                    {"quantized_bytes_after", totals.quantized_after},
                    {"bits_per_weight", totals.bits_per_weight()},
                    {"quantized_bits_per_weight", totals.quantized_bits_per_weight()},
                    {"groups", plan.groups.size()},
                    {"input_groups", plan.input_groups}};
  root["estimate"] = {{"seconds", estimate.seconds()},
                      {"compute_seconds", estimate.compute_seconds},
                      {"disk_seconds", estimate.disk_seconds},
                      {"assumes", estimate.assumes}};
  root["warnings"] = plan.warnings;
  root["groups"] = OrderedJson::array();
  for (const FusedGroup& group : plan.groups) {
    OrderedJson tensors = OrderedJson::array();
    for (const int row : group.rows) tensors.push_back(plan.rows[row].tensor.name);
    root["groups"].push_back({{"name", group.name}, {"tensors", std::move(tensors)}});
  }
  root["tensors"] = OrderedJson::array();
  for (const PlanRow& row : plan.rows) {
    OrderedJson tensor = {{"name", row.tensor.name},
                          {"dtype", DTypeName(row.tensor.dtype)},
                          {"shape", row.tensor.shape},
                          {"module", row.module},
                          {"kind", NameOf(row.kind)},
                          {"layer", row.layer < 0 ? OrderedJson(nullptr) : OrderedJson(row.layer)},
                          {"use", row.quantize ? "quantize" : "keep"},
                          {"why", row.why},
                          {"rule", row.rule < 0 ? OrderedJson(nullptr) : OrderedJson(row.rule + 1)},
                          {"warn", row.warn},
                          {"bytes_before", row.bytes_before},
                          {"bytes_after", row.bytes_after}};
    if (row.quantize) {
      tensor["form"] = NameOf(row.form);
      tensor["treatment"] = JsonOf(row.treatment);
      tensor["group"] = row.group;
      tensor["input_group"] = row.input_group;
    }
    root["tensors"].push_back(std::move(tensor));
  }
  // Rules may hold paths, which need not be UTF-8.
  return root.dump(2, ' ', false, OrderedJson::error_handler_t::replace) + "\n";
}

}  // namespace nibble
