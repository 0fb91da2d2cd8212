#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <map>
#include <string>
#include <vector>

#include "absl/strings/str_format.h"
#include "base/status.h"
#include "base/text.h"
#include "engine/quantize_model.h"
#include "io/json_object.h"
#include "nlohmann/json.hpp"

namespace nibble {
namespace {

constexpr size_t kWorstTensors = 5;

// "4.21 GB"
std::string Bytes(int64_t bytes) {
  constexpr std::array kUnits = {"B", "kB", "MB", "GB", "TB"};
  double value = static_cast<double>(bytes);
  size_t unit = 0;
  while (value >= 999.5 && unit + 1 < kUnits.size()) {
    value /= 1000;
    ++unit;
  }
  return absl::StrFormat("%.3g %s", value, kUnits[unit]);
}

std::string Errors(const TensorError& e) {
  return absl::StrFormat("%13.4e %10.2f", e.relative_mse(), e.sqnr_db());
}

TensorError Total(const std::vector<TensorError>& tensors) {
  TensorError total;
  for (const TensorError& t : tensors) total.Add(t);
  return total;
}

std::map<ModuleKind, std::pair<int64_t, TensorError>> ByKind(const ModelSummary& summary) {
  std::map<ModuleKind, std::pair<int64_t, TensorError>> kinds;
  for (const TensorError& t : summary.tensors) {
    auto& [count, sum] = kinds[t.kind];
    ++count;
    sum.Add(t);
  }
  return kinds;
}

std::vector<TensorError> Worst(const ModelSummary& summary) {
  std::vector<TensorError> worst = summary.tensors;
  const size_t count = std::min(worst.size(), kWorstTensors);
  std::partial_sort(worst.begin(), worst.begin() + static_cast<int64_t>(count), worst.end(),
                    [](const TensorError& a, const TensorError& b) {
                      return a.relative_mse() != b.relative_mse()
                                 ? a.relative_mse() > b.relative_mse()
                                 : a.module < b.module;
                    });
  worst.resize(count);
  return worst;
}

double BitsPerWeight(int64_t bytes, int64_t weights) {
  return weights == 0 ? 0 : 8.0 * static_cast<double>(bytes) / static_cast<double>(weights);
}

nlohmann::ordered_json ErrorAsJson(const TensorError& e) {
  return {{"weights", e.weights},
          {"relative_mse", e.relative_mse()},
          {"sqnr_db", FiniteOrNull(e.sqnr_db())},
          {"max_error", e.max_error},
          {"saturated", e.saturated},
          {"flushed_to_zero", e.flushed}};
}

}  // namespace

double TensorError::sqnr_db() const {
  return squared_error == 0 ? std::numeric_limits<double>::infinity()
                            : -10 * std::log10(relative_mse());
}

void TensorError::Add(const TensorError& other) {
  weights += other.weights;
  squared_error += other.squared_error;
  squared_weights += other.squared_weights;
  max_error = std::max(max_error, other.max_error);
  saturated += other.saturated;
  flushed += other.flushed;
}

std::string ModelSummaryAsText(const ModelSummary& s) {
  std::string text;
  const auto line = [&](const std::string& words) { text += words + "\n"; };
  line(absl::StrFormat("%-20s %9s %13s %13s %10s", "quantized", "tensors", "weights",
                       "relative MSE", "SQNR [dB]"));
  const auto row = [&](std::string_view name, int64_t count, const TensorError& e) {
    line(absl::StrFormat("%-20s %9d %13d %s", ToAbsl(name), count, e.weights, Errors(e)));
  };
  for (const auto& [kind, sum] : ByKind(s)) row(NameOf(kind), sum.first, sum.second);
  if (!s.tensors.empty()) {
    row("all", static_cast<int64_t>(s.tensors.size()), Total(s.tensors));
    line("\nworst tensors");
  }
  for (const TensorError& e : Worst(s)) {
    line(absl::StrFormat("  %-56s %s", Printable(e.module), Errors(e)));
  }
  line(absl::StrFormat("\nkept              %d tensors, %d weights", s.kept, s.kept_weights));
  line(absl::StrFormat("size              %s -> %s in %d %s, %.2f -> %.2f bits per weight",
                       Bytes(s.bytes_before), Bytes(s.bytes_after), s.shards,
                       s.shards == 1 ? "file" : "files", BitsPerWeight(s.bytes_before, s.weights),
                       BitsPerWeight(s.bytes_after, s.weights)));
  line(absl::StrFormat(
      "time              %.2f s: reading %.2f, computing %.2f, writing %.2f (they overlap)%s",
      s.seconds, s.read_seconds, s.compute_seconds, s.write_seconds,
      s.resumed_shards == 0
          ? ""
          : absl::StrFormat("; %d of %d files were there", s.resumed_shards, s.shards)));
  for (const std::string& warning : s.warnings) line("warning: " + Printable(warning));
  return text;
}

namespace {

using OrderedJson = nlohmann::ordered_json;

OrderedJson AsJson(const ModelSummary& s) {
  OrderedJson json = {{"weights", s.weights},
                      {"kept_tensors", s.kept},
                      {"kept_weights", s.kept_weights},
                      {"bytes_before", s.bytes_before},
                      {"bytes_after", s.bytes_after},
                      {"bits_per_weight", BitsPerWeight(s.bytes_after, s.weights)},
                      {"files", s.shards},
                      {"resumed_files", s.resumed_shards}};
  json["seconds"] = {{"total", s.seconds},
                     {"reading", s.read_seconds},
                     {"computing", s.compute_seconds},
                     {"writing", s.write_seconds}};
  json["all"] = ErrorAsJson(Total(s.tensors));
  json["kinds"] = OrderedJson::object();
  for (const auto& [kind, sum] : ByKind(s)) {
    OrderedJson& entry = json["kinds"][std::string(NameOf(kind))];
    entry = ErrorAsJson(sum.second);
    entry["tensors"] = sum.first;
  }
  json["tensors"] = OrderedJson::array();
  for (const TensorError& e : s.tensors) {
    OrderedJson entry = {{"module", e.module}, {"kind", std::string(NameOf(e.kind))}};
    entry.update(ErrorAsJson(e));
    json["tensors"].push_back(entry);
  }
  json["warnings"] = s.warnings;
  return json;
}

// Names of tensors are UTF-8, but a path of the system need not be.
std::string Dump(const OrderedJson& json, int indent) {
  return json.dump(indent, ' ', false, OrderedJson::error_handler_t::replace) + "\n";
}

}  // namespace

std::string ModelSummaryAsJson(const ModelSummary& summary) { return Dump(AsJson(summary), 2); }

std::string ModelSummaryAsJsonLine(const ModelSummary& summary) {
  OrderedJson line = {{"event", "summary"}};
  line.update(AsJson(summary));
  return Dump(line, -1);
}

std::string ProgressAsJsonLine(const QuantizeModelProgress& p) {
  return Dump({{"event", "progress"},
               {"weights", p.weights},
               {"all_weights", p.all_weights},
               {"seconds", p.seconds},
               {"weights_per_second", p.rate()},
               {"seconds_left", p.seconds_left()},
               {"tensor", std::string(p.tensor)}},
              -1);
}

}  // namespace nibble
