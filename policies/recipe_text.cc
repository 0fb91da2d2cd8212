// A recipe written out.
#include <string>
#include <string_view>
#include <vector>

#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "base/status.h"
#include "policies/recipe.h"

namespace nibble {
namespace {

// In quotes: no string is then taken for a number, a list or nothing.
std::string YamlString(std::string_view text) {
  std::string quoted = "\"";
  for (size_t i = 0; i < text.size(); ++i) {
    const auto c = static_cast<unsigned char>(text[i]);
    // U+0080 to U+009F, which terminals may obey.
    const bool wide_control =
        c == 0xC2 && i + 1 < text.size() && static_cast<unsigned char>(text[i + 1]) < 0xA0;
    if (c == '"' || c == '\\') {
      quoted += {'\\', text[i]};
    } else if (c < 0x20 || c == 0x7F) {
      absl::StrAppendFormat(&quoted, "\\x%02x", c);
    } else if (wide_control) {
      absl::StrAppendFormat(&quoted, "\\x%02x", static_cast<unsigned char>(text[++i]));
    } else {
      quoted += text[i];
    }
  }
  return quoted + "\"";
}

// The fewest digits that are read back as this number.
template <typename Float>
std::string Shortest(Float value, Float (*parse)(const std::string&)) {
  for (int digits = 1;; ++digits) {
    std::string text = absl::StrFormat("%.*g", digits, value);
    if (digits == 17 || parse(text) == value) return text;
  }
}
std::string Number(double value) {
  return Shortest<double>(value, [](const std::string& text) { return std::stod(text); });
}
// The reader rounds twice, by way of a double.
std::string Number(float value) {
  return Shortest<float>(
      value, [](const std::string& text) { return static_cast<float>(std::stod(text)); });
}

template <typename Enum>
std::string Name(Enum value) {
  return std::string(NameOf(value));
}

std::string AsYaml(const WeightSpec& spec) {
  std::string algorithm = "method: " + Name(spec.method);
  if (spec.method == WeightMethod::kMse) {
    absl::StrAppend(&algorithm, ", fp8_scale_sweep: ", spec.fp8_scale_sweep ? "true" : "false");
    if (!spec.fp8_scale_sweep) {
      absl::StrAppend(&algorithm, ", start: ", Number(spec.multipliers.start),
                      ", stop: ", Number(spec.multipliers.stop),
                      ", step: ", Number(spec.multipliers.step));
    }
  }
  if (spec.method == WeightMethod::kFourOverSix) {
    absl::StrAppend(&algorithm, ", metric: ", Name(spec.four_over_six.metric),
                    ", error_path: ", Name(spec.four_over_six.path));
  }
  if (spec.method == WeightMethod::kLocalHessian) {
    absl::StrAppend(&algorithm, ", rounding: ", Name(spec.rounding));
  }
  absl::StrAppend(&algorithm, ", e4m3_max: ", spec.e4m3_max);
  return absl::StrCat("{format: nvfp4, scheme: per_tensor, algorithm: {", algorithm, "}}");
}

std::string AsYaml(const ActivationSpec& spec) {
  if (spec.format == ActivationFormat::kNone) return "{format: none}";
  std::string algorithm = "method: " + Name(spec.method);
  switch (spec.method) {
    case ActivationMethod::kMax:
      break;
    case ActivationMethod::kPercentile:
      absl::StrAppend(&algorithm, ", percentile: ", Number(spec.percentile));
      break;
    case ActivationMethod::kHeadroom:
      absl::StrAppend(&algorithm, ", headroom: ", Number(spec.headroom));
      break;
    case ActivationMethod::kConstant:
      absl::StrAppend(&algorithm, ", input_scale: ", Number(spec.input_scale));
      break;
  }
  return absl::StrCat("{format: ", Name(spec.format), ", scheme: ", Name(spec.scheme),
                      ", algorithm: {", algorithm, "}}");
}

std::string AsYaml(const RecipeRule& rule) {
  std::vector<std::string> lines;
  if (!rule.match.empty()) {
    lines.push_back(absl::StrCat("match: [",
                                 absl::StrJoin(rule.match, ", ",
                                               [](std::string* out, const std::string& pattern) {
                                                 out->append(YamlString(pattern));
                                               }),
                                 "]"));
  }
  if (rule.first_layers > 0 || rule.last_layers > 0) {
    lines.push_back(
        absl::StrCat("layers: {first: ", rule.first_layers, ", last: ", rule.last_layers, "}"));
  }
  if (!rule.kinds.empty()) {
    lines.push_back(absl::StrCat(
        "kinds: [",
        absl::StrJoin(rule.kinds, ", ",
                      [](std::string* out, ModuleKind kind) { out->append(NameOf(kind)); }),
        "]"));
  }
  lines.push_back("use: " + Name(rule.use));
  if (rule.treatment) {
    lines.push_back("weights: " + AsYaml(rule.treatment->weights));
    lines.push_back("activations: " + AsYaml(rule.treatment->activations));
  }
  return absl::StrCat("  - ", absl::StrJoin(lines, "\n    "), "\n");
}

std::string ChoiceAsYaml(const std::optional<int>& choice) {
  return choice ? absl::StrCat(*choice) : "auto";
}

std::string SizeAsYaml(uint64_t bytes) {
  constexpr uint64_t kGigabyte = 1'000'000'000;
  return bytes % kGigabyte == 0 ? absl::StrCat(bytes / kGigabyte, "GB") : absl::StrCat(bytes);
}

}  // namespace

std::string RecipeAsYaml(const Recipe& recipe) {
  std::string rules;
  for (const RecipeRule& rule : recipe.rules) rules += AsYaml(rule);
  return absl::StrCat(
      "metadata:\n  name: ", YamlString(recipe.name),
      "\n  description: ", YamlString(recipe.description),
      "\nweights: ", AsYaml(recipe.treatment.weights),
      "\nactivations: ", AsYaml(recipe.treatment.activations),
      "\nkv_cache: {format: ", Name(recipe.kv_cache), "}\nrules:", rules.empty() ? " []\n" : "\n",
      rules, "calibration: {sequences: ", recipe.calibration.sequences,
      ", length: ", recipe.calibration.length,
      ", routed_min_tokens: ", recipe.calibration.routed_min_tokens,
      ", force_all_experts: ", recipe.calibration.force_all_experts ? "true" : "false",
      ", propagate: ", Name(recipe.calibration.propagate),
      "}\nexport: {format: ", Name(recipe.output.format),
      ", shard_size: ", SizeAsYaml(recipe.output.shard_bytes),
      "}\ntuning: {blocks_per_program: ", ChoiceAsYaml(recipe.tuning.blocks_per_program),
      ", warps: ", ChoiceAsYaml(recipe.tuning.warps), ", store: ", YamlString(recipe.tuning.store),
      "}\nnonfinite: ", Name(recipe.nonfinite), "\n");
}

}  // namespace nibble
