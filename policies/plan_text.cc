#include <algorithm>
#include <map>
#include <tuple>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/status.h"
#include "base/tensor_view.h"
#include "base/text.h"
#include "policies/names.h"
#include "policies/plan.h"

namespace nibble {
namespace {

// "16.38 GB", in powers of 1000.
std::string BytesName(int64_t bytes) {
  constexpr const char* kUnits[] = {"kB", "MB", "GB", "TB", "PB", "EB"};
  if (bytes < 1000) return absl::StrCat(bytes, " B");
  double value = static_cast<double>(bytes) / 1000;
  size_t unit = 0;
  while (value >= 999.995 && unit + 1 < std::size(kUnits)) {
    value /= 1000;
    ++unit;
  }
  return absl::StrFormat("%.2f %s", value, kUnits[unit]);
}

double BitsPer(int64_t bytes, int64_t weights) {
  return weights == 0 ? 0 : 8 * static_cast<double>(bytes) / static_cast<double>(weights);
}

struct Line {
  std::string name, count, kind, source, before, after, becomes, why;
};

Line LineOf(const Plan& plan, const std::string& name, const std::vector<int>& rows) {
  const PlanRow& row = plan.rows[rows.front()];
  int64_t before = 0, after = 0;
  for (const int i : rows) {
    before += plan.rows[i].bytes_before;
    after += plan.rows[i].bytes_after;
  }
  return {Printable(name),
          absl::StrCat(rows.size()),
          std::string(NameOf(row.kind)),
          TypeName(row.tensor.dtype, row.tensor.shape),
          BytesName(before),
          BytesName(after),
          row.quantize ? TreatmentName(row.treatment)
          : row.warn   ? "kept (!)"
                       : "kept",
          Printable(row.why)};
}

std::vector<Line> TableOf(const Plan& plan) {
  // Rows of one fate; treatments have equality but no order, so they are numbered.
  using Fate = std::tuple<std::string, bool, bool, ModuleKind, DType, std::vector<int64_t>, int>;
  std::vector<Treatment> treatments;
  std::map<Fate, std::vector<int>> fates;
  for (int i = 0; i < static_cast<int>(plan.rows.size()); ++i) {
    const PlanRow& row = plan.rows[i];
    const auto known = std::ranges::find(treatments, row.treatment);
    const int treatment = static_cast<int>(known - treatments.begin());
    if (known == treatments.end()) treatments.push_back(row.treatment);
    fates[{row.why, row.quantize, row.warn, row.kind, row.tensor.dtype, row.tensor.shape,
           treatment}]
        .push_back(i);
  }
  std::vector<std::pair<int, Line>> lines;  // with the first row of each
  for (const auto& [fate, rows] : fates) {
    std::vector<std::string> names;
    for (const int i : rows) names.push_back(plan.rows[i].tensor.name);
    for (const FoldedNames& fold : FoldNames(names)) {
      std::vector<int> members;
      for (const int name : fold.names) members.push_back(rows[name]);
      lines.emplace_back(members.front(), LineOf(plan, fold.text, members));
    }
  }
  std::ranges::sort(lines, {}, [](const auto& line) { return line.first; });
  std::vector<Line> table = {
      {"tensors", "count", "kind", "source", "before", "after", "becomes", "decided by"}};
  for (auto& [first, line] : lines) table.push_back(std::move(line));
  return table;
}

}  // namespace

std::string TreatmentName(const Treatment& treatment) {
  const WeightSpec& weights = treatment.weights;
  std::string name = absl::StrCat("nvfp4, ", ToAbsl(NameOf(weights.method)));
  if (weights.fp8_scale_sweep) absl::StrAppend(&name, " with fp8_scale_sweep");
  if (weights.rounding == Rounding::kFeedback) absl::StrAppend(&name, " with rounding: feedback");
  const ActivationSpec& activations = treatment.activations;
  if (activations.format == ActivationFormat::kNone) return name + ", weight-only";
  const bool per_token = activations.scheme == Scheme::kPerToken;
  return absl::StrCat(name, ", activations ", per_token ? "per_token, " : "",
                      ToAbsl(NameOf(activations.method)));
}

double PlanTotals::bits_per_weight() const { return BitsPer(bytes_after, weights); }
double PlanTotals::quantized_bits_per_weight() const {
  return BitsPer(quantized_after, quantized_weights);
}

PlanTotals TotalsOf(const Plan& plan) {
  PlanTotals totals;
  for (const PlanRow& row : plan.rows) {
    const int64_t weights = row.bytes_before / DTypeBytes(row.tensor.dtype);
    ++totals.tensors;
    totals.weights += weights;
    totals.bytes_before += row.bytes_before;
    totals.bytes_after += row.bytes_after;
    if (!row.quantize) continue;
    ++totals.quantized;
    totals.quantized_weights += weights;
    totals.quantized_before += row.bytes_before;
    totals.quantized_after += row.bytes_after;
  }
  return totals;
}

std::string PlanAsText(const Plan& plan) {
  const std::vector<Line> table = TableOf(plan);
  const auto width = [&](std::string Line::*column) {
    size_t most = 0;
    for (const Line& line : table) most = std::max(most, (line.*column).size());
    return static_cast<int>(std::min<size_t>(most, 100));
  };
  const int name = width(&Line::name), count = width(&Line::count), kind = width(&Line::kind),
            source = width(&Line::source), before = width(&Line::before),
            after = width(&Line::after), becomes = width(&Line::becomes);
  std::string text;
  for (const Line& line : table) {
    absl::StrAppendFormat(&text, "%-*s  %*s  %-*s  %-*s  %*s  %*s  %-*s  %s\n", name, line.name,
                          count, line.count, kind, line.kind, source, line.source, before,
                          line.before, after, line.after, becomes, line.becomes, line.why);
  }

  std::vector<std::string> names;
  for (const FusedGroup& group : plan.groups) {
    if (group.rows.size() > 1) names.push_back(group.name);
  }
  if (!names.empty()) absl::StrAppend(&text, "\nsharing one global scale:\n");
  for (const FoldedNames& fold : FoldNames(names)) {
    absl::StrAppendFormat(&text, "  %s (%d group%s)\n", Printable(fold.text), fold.names.size(),
                          fold.names.size() == 1 ? "" : "s");
  }
  if (!plan.warnings.empty()) absl::StrAppend(&text, "\nwarnings:\n");
  for (const std::string& warning : plan.warnings) {
    absl::StrAppend(&text, "  ", Printable(warning), "\n");
  }

  const PlanTotals totals = TotalsOf(plan);
  absl::StrAppendFormat(
      &text,
      "\n%d of %d tensors quantized, in %d groups with %d input scales: %s -> %s, %.3f bits "
      "per weight\n",
      totals.quantized, totals.tensors, plan.groups.size(), plan.input_groups,
      BytesName(totals.quantized_before), BytesName(totals.quantized_after),
      totals.quantized_bits_per_weight());
  absl::StrAppendFormat(&text, "all tensors: %s -> %s, %.3f bits per weight\n",
                        BytesName(totals.bytes_before), BytesName(totals.bytes_after),
                        totals.bits_per_weight());
  return text;
}

}  // namespace nibble
