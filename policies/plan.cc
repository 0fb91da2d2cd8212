#include "policies/plan.h"

#include <algorithm>
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <span>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/status.h"
#include "base/tensor_view.h"
#include "base/text.h"
#include "policies/layout.h"
#include "policies/names.h"

namespace nibble {
namespace {

constexpr int64_t kBlock = 16;

// "rule 2 (nvfp4.yaml:9:5)", counted from 1.
std::string RuleName(const Recipe& recipe, int rule) {
  if (rule < 0) return "no rule";
  const std::string& place = recipe.rules[rule].place;
  return absl::StrCat("rule ", rule + 1, place.empty() ? "" : absl::StrCat(" (", place, ")"));
}

// Whether somebody wrote the rule for what they quantize; those of shipped recipes are for all
// models.
bool IsOwnRule(const RecipeRule& rule) {
  return !rule.place.empty() &&
         std::ranges::none_of(ShippedRecipes(), [&](const ShippedRecipe& shipped) {
           return rule.place.starts_with(absl::StrCat(ToAbsl(shipped.name), ":"));
         });
}

const Treatment& TreatmentOf(const Recipe& recipe, int rule) {
  const std::optional<Treatment>& own = recipe.rules[rule].treatment;
  return own ? *own : recipe.treatment;
}

// --- Tensors that are quantized already ---------------------------------------------------------

bool IsQuantizedAlready(const ModelTensor& tensor, const LayoutReader& layouts) {
  const std::string& name = tensor.name;
  const auto has_sibling = [&](std::string_view suffix,
                               std::initializer_list<std::string_view> others) {
    if (!name.ends_with(suffix)) return false;
    const std::string stem = name.substr(0, name.size() - suffix.size());
    return std::ranges::any_of(others, [&](std::string_view other) {
      return layouts.Find(absl::StrCat(stem, ToAbsl(other))) != nullptr;
    });
  };
  switch (tensor.dtype) {
    case DType::kF8E4M3:
    case DType::kF8E5M2:
    case DType::kF8E8M0:
      return tensor.shape.size() >= 2;
    case DType::kU8:
    case DType::kI8:
    case DType::kI32:
    case DType::kU32:
      return tensor.shape.size() >= 2 &&
             (name.ends_with(".weight") || name.ends_with(".weight_packed") ||
              name.ends_with(".qweight") || has_sibling("_blocks", {"_scales"}) ||
              has_sibling("", {"_scale", "_scale_inv", "_scale_2", ".absmax"}) ||
              has_sibling(".weight", {".scale", ".scales", ".SCB"}));
    default: {  // of a weight in full precision, to which a loader would apply it
      constexpr std::string_view kScale = "_scale_inv";
      if (!name.ends_with(kScale)) return false;
      const ModelTensor* weight = layouts.Find(name.substr(0, name.size() - kScale.size()));
      return weight != nullptr && DTypeBytes(weight->dtype) > 1;
    }
  }
}

absl::Status CheckNotQuantized(std::span<const ModelTensor* const> tensors,
                               const LayoutReader& layouts) {
  constexpr size_t kShown = 3;
  std::vector<std::string> shown;
  size_t count = 0;
  for (const ModelTensor* tensor : tensors) {
    if (!IsQuantizedAlready(*tensor, layouts)) continue;
    if (++count > kShown) continue;
    shown.push_back(absl::StrCat(Quoted(tensor->name), " (", ToAbsl(DTypeName(tensor->dtype)), " ",
                                 ShapeName(tensor->shape), ")"));
  }
  if (count == 0) return absl::OkStatus();
  return absl::UnimplementedError(absl::StrCat(
      "model: expected weights in BF16, F16 or F32, got ", count,
      count == 1 ? " tensor that is" : " tensors that are",
      " quantized already: ", absl::StrJoin(shown, ", "), count > kShown ? ", ..." : "",
      "; start from the checkpoint before its quantization"));
}

// --- Rules --------------------------------------------------------------------------------------

bool MatchesLayer(const RecipeRule& rule, int64_t layer, int64_t layers) {
  if (rule.first_layers == 0 && rule.last_layers == 0) return true;
  return layer >= 0 && (layer < rule.first_layers || layer >= layers - rule.last_layers);
}

class Rules {
 public:
  Rules(const Recipe& recipe, int64_t layers) : recipe_(recipe), layers_(layers) {}

  absl::StatusOr<bool> Matches(int rule, const TensorLayout& layout) const {
    const RecipeRule& r = recipe_.rules[rule];
    if (!MatchesLayer(r, layout.layer, layers_)) return false;
    if (!r.kinds.empty() && std::ranges::find(r.kinds, layout.kind) == r.kinds.end()) return false;
    if (r.match.empty()) return true;
    for (const std::string& pattern : r.match) {
      const absl::StatusOr<bool> matches = MatchesName(pattern, layout.module);
      if (!matches.ok()) return Annotate(matches.status(), RuleName(recipe_, rule));
      if (*matches) return true;
    }
    return false;
  }

  // The last that matches; -1: none.
  absl::StatusOr<int> Deciding(const TensorLayout& layout) const {
    for (int rule = static_cast<int>(recipe_.rules.size()) - 1; rule >= 0; --rule) {
      NIBBLE_ASSIGN_OR_RETURN(const bool matches, Matches(rule, layout));
      if (matches) return rule;
    }
    return -1;
  }

  // Whether a rule that matches a module was written for such modules rather than for all.
  bool Names(int rule, const TensorLayout& layout) const {
    const RecipeRule& r = recipe_.rules[rule];
    if (std::ranges::find(r.kinds, layout.kind) != r.kinds.end()) return true;
    return std::ranges::any_of(r.match, [&](const std::string& pattern) {
      const absl::StatusOr<bool> matches = MatchesName(pattern, layout.module);
      return matches.ok() && *matches && NamesModule(pattern, layout.module);
    });
  }

 private:
  const Recipe& recipe_;
  const int64_t layers_;
};

// --- Bytes --------------------------------------------------------------------------------------

// Codes, block scales, and the scalars of each matrix that is written; the same in all formats.
int64_t QuantizedBytes(const TensorLayout& layout, const Treatment& treatment,
                       const std::string& leaf) {
  const int64_t elements = layout.matrices * layout.rows * layout.cols;
  int64_t written = 1;
  if (SplitsExperts(layout.form)) {
    written = layout.matrices * (leaf == "gate_up_proj" ? 2 : 1);
  }
  const int64_t scalars = treatment.activations.format == ActivationFormat::kNone ? 1 : 2;
  return elements / 2 + elements / kBlock + written * scalars * 4;
}

// --- The plan -----------------------------------------------------------------------------------

class Planner {
 public:
  Planner(const Recipe& recipe, const Model& model, const PlanOptions& options)
      : recipe_(recipe),
        model_(model),
        options_(options),
        layouts_(model, recipe.output.format),
        rules_(recipe, layouts_.layers()) {}

  absl::StatusOr<Plan> Make() {
    NIBBLE_RETURN_IF_ERROR(ReadTensors());
    for (int i = 0; i < size(); ++i) NIBBLE_RETURN_IF_ERROR(Decide(i));
    NIBBLE_RETURN_IF_ERROR(AgreeInFusedGroups());
    NIBBLE_RETURN_IF_ERROR(AgreeInExperts());
    NIBBLE_RETURN_IF_ERROR(CheckWarnings());
    NIBBLE_RETURN_IF_ERROR(CheckAnyQuantized());
    MakeGroups();
    NIBBLE_RETURN_IF_ERROR(MakeInputGroups());
    NIBBLE_RETURN_IF_ERROR(CheckNamesOfResult());
    WarnOfTurnedExperts();
    NIBBLE_RETURN_IF_ERROR(WarnOfIdleRules());
    return std::move(plan_);
  }

 private:
  int size() const { return static_cast<int>(plan_.rows.size()); }
  PlanRow& row(int i) { return plan_.rows[i]; }

  // "quantize for \"a\" (rule 1)"
  std::string FateOf(int i) {
    return absl::StrCat(row(i).quantize ? "quantize" : "keep", " for ", Quoted(row(i).module),
                        " by ", RuleName(recipe_, asked_[i]));
  }

  absl::Status ReadTensors() {
    std::vector<const ModelTensor*> tensors;
    for (const ModelTensor& tensor : model_.tensors) tensors.push_back(&tensor);
    std::ranges::sort(tensors, NaturalLess, &ModelTensor::name);
    for (size_t i = 0; i < tensors.size(); ++i) {
      if (i > 0 && tensors[i]->name == tensors[i - 1]->name) {
        return absl::DataLossError(absl::StrCat("model: expected names that differ, got ",
                                                Quoted(tensors[i]->name), " twice"));
      }
    }
    NIBBLE_RETURN_IF_ERROR(CheckNotQuantized(tensors, layouts_));
    for (const ModelTensor* tensor : tensors) {
      const std::optional<int64_t> elements = ElementCount(tensor->shape);
      int64_t bytes = 0;
      if (!elements || __builtin_mul_overflow(*elements, DTypeBytes(tensor->dtype), &bytes)) {
        return absl::DataLossError(absl::StrCat(Quoted(tensor->name),
                                                ": expected a shape of fewer than 2^63 bytes, got ",
                                                ShapeName(tensor->shape)));
      }
      TensorLayout layout = layouts_.Read(*tensor);
      PlanRow row;
      row.tensor = *tensor;
      row.module = layout.module;
      row.kind = layout.kind;
      row.layer = layout.layer;
      row.bytes_before = row.bytes_after = bytes;
      plan_.rows.push_back(std::move(row));
      layouts_of_.push_back(std::move(layout));
    }
    asked_.assign(plan_.rows.size(), -1);
    return absl::OkStatus();
  }

  // The fate of one tensor by itself.
  absl::Status Decide(int i) {
    PlanRow& row = this->row(i);
    const TensorLayout& layout = layouts_of_[i];
    NIBBLE_ASSIGN_OR_RETURN(const int rule, rules_.Deciding(layout));
    asked_[i] = rule;
    const bool asks = rule >= 0 && recipe_.rules[rule].use == RuleUse::kQuantize;
    // Keeps it against a rule: worth a warning where the rule was about it.
    const auto against = [&](std::string reason, bool warn) {
      row.why = std::move(reason);
      row.warn = asks && warn;
      if (row.warn) absl::StrAppend(&row.why, ", though ", RuleName(recipe_, rule), " asks for it");
      return absl::OkStatus();
    };
    if (layout.quantizable == Quantizability::kNever) {
      return against(layout.reason, asks && rules_.Names(rule, layout));
    }
    if (row.kind == ModuleKind::kLmHead && model_.tied_embeddings) {
      return against("tied to the embeddings", asks && rules_.Names(rule, layout));
    }
    if (!IsQuantizable(row.tensor.dtype)) {
      return against(absl::StrCat("of type ", ToAbsl(DTypeName(row.tensor.dtype))), true);
    }
    if (layout.quantizable == Quantizability::kRouter && asks && !rules_.Names(rule, layout)) {
      return against("a router, which only a rule that names it quantizes", false);
    }
    if (!asks) {
      row.rule = rule;
      row.why = rule < 0 ? "no rule matches" : RuleName(recipe_, rule);
      return absl::OkStatus();
    }
    if (layout.quantizable == Quantizability::kUnknown) return against(layout.reason, true);
    if (row.bytes_before == 0) return against("empty", false);
    row.quantize = true;
    row.rule = rule;
    row.why = RuleName(recipe_, rule);
    row.form = layout.form;
    row.treatment = TreatmentOf(recipe_, rule);
    row.bytes_after =
        QuantizedBytes(layout, row.treatment, std::string(Components(layout.module).back()));
    return absl::OkStatus();
  }

  // What forbids what a rule asks for; empty where nothing does.
  std::string BlockedBy(int i) const {
    if (!plan_.rows[i].quantize) return "";
    if (layouts_of_[i].cols % kBlock != 0) {
      return absl::StrCat("K is ", layouts_of_[i].cols, ", not a multiple of ", kBlock);
    }
    return options_.non_finite.contains(plan_.rows[i].tensor.name) ? "holds NaN or infinity" : "";
  }

  void Keep(int i, std::string why) {
    PlanRow& row = this->row(i);
    row.why = absl::StrCat(why, ", though ", RuleName(recipe_, asked_[i]), " asks for it");
    row.quantize = false;
    row.warn = true;
    row.rule = -1;
    row.form = WeightForm::kMatrix;
    row.treatment = {};
    row.bytes_after = row.bytes_before;
  }

  // Keeps all of `members` where one has to be kept.
  void KeepBlocked(std::span<const int> members) {
    std::optional<std::string> culprit;
    for (const int i : members) {
      if (!culprit && (!BlockedBy(i).empty() || row(i).warn)) {
        // Without the rest of its name, so that the warnings of all layers are one.
        culprit = absl::StrCat("runs as one with a ", ToAbsl(Components(row(i).module).back()),
                               " that has to be kept");
      }
    }
    if (!culprit) return;
    for (const int i : members) {
      if (std::string reason = BlockedBy(i); !reason.empty()) {
        Keep(i, std::move(reason));
      } else if (row(i).quantize) {
        Keep(i, *culprit);
      }
    }
  }

  // What may be quantized, by a key; an empty key is no key.
  std::map<std::string, std::vector<int>> By(const std::function<std::string(int)>& key) {
    std::map<std::string, std::vector<int>> sets;
    for (int i = 0; i < size(); ++i) {
      if (layouts_of_[i].quantizable != Quantizability::kLinear) continue;
      if (std::string k = key(i); !k.empty()) sets[std::move(k)].push_back(i);
    }
    return sets;
  }

  // InvalidArgument unless `same` holds between the first member and each other. A member that
  // something other than a rule keeps differs from none.
  absl::Status CheckAlike(const std::string& what, std::span<const int> members,
                          const std::function<bool(const PlanRow&, const PlanRow&)>& same,
                          std::string_view change) {
    int first = -1;
    for (const int i : members) {
      if (row(i).warn || row(i).bytes_before == 0) continue;
      if (first < 0) first = i;
      const PlanRow &a = row(first), &b = row(i);
      if (a.quantize == b.quantize && (!a.quantize || same(a, b))) continue;
      return absl::InvalidArgumentError(
          absl::StrCat("recipe ", recipe_.name, ": ", Printable(what),
                       ": expected one treatment for all, since engines run them as one, got ",
                       FateOf(first), " and ", a.quantize == b.quantize ? "other settings: " : "",
                       FateOf(i), "; ", ToAbsl(change)));
    }
    return absl::OkStatus();
  }

  absl::Status AgreeInFusedGroups() {
    for (const auto& [name, members] : By([&](int i) { return layouts_of_[i].fused_group; })) {
      NIBBLE_RETURN_IF_ERROR(CheckAlike(
          name, members,
          [](const PlanRow& a, const PlanRow& b) { return a.treatment == b.treatment; },
          "let one rule decide on all of them"));
      KeepBlocked(members);
    }
    for (int i = 0; i < size(); ++i) {
      if (!BlockedBy(i).empty()) KeepBlocked(std::span(&i, 1));
    }
    return absl::OkStatus();
  }

  // All experts of a layer are one kernel: quantized together, activations alike or not at all.
  absl::Status AgreeInExperts() {
    for (const auto& [name, members] : By([&](int i) { return layouts_of_[i].experts; })) {
      NIBBLE_RETURN_IF_ERROR(CheckAlike(
          name, members,
          [](const PlanRow& a, const PlanRow& b) {
            return a.treatment.activations.format == b.treatment.activations.format;
          },
          "let the rules treat all experts of a layer alike"));
      KeepBlocked(members);
    }
    return absl::OkStatus();
  }

  absl::Status CheckWarnings() {
    std::map<std::string, std::vector<std::string>> by_reason;
    std::vector<std::string> reasons;  // in the order of rows
    for (const PlanRow& row : plan_.rows) {
      if (!row.warn) continue;
      std::vector<std::string>& names = by_reason[row.why];
      if (names.empty()) reasons.push_back(row.why);
      names.push_back(row.module);
    }
    for (const std::string& reason : reasons) {
      for (const FoldedNames& fold : FoldNames(by_reason[reason])) {
        plan_.warnings.push_back(absl::StrCat(Printable(fold.text), ": kept: ", Printable(reason)));
      }
    }
    if (!options_.strict || plan_.warnings.empty()) return absl::OkStatus();
    return absl::FailedPreconditionError(absl::StrCat(
        "strict: expected every tensor that a rule asks for to be quantizable, got ",
        plan_.warnings.front(),
        plan_.warnings.size() > 1 ? absl::StrCat("; and ", plan_.warnings.size() - 1, " more")
                                  : ""));
  }

  absl::Status WarnOfIdleRules() {
    for (int rule = 0; rule < static_cast<int>(recipe_.rules.size()); ++rule) {
      if (!IsOwnRule(recipe_.rules[rule])) continue;
      bool idle = true;
      for (size_t i = 0; idle && i < layouts_of_.size(); ++i) {
        NIBBLE_ASSIGN_OR_RETURN(const bool matches, rules_.Matches(rule, layouts_of_[i]));
        idle = !matches;
      }
      if (idle) {
        plan_.warnings.push_back(
            absl::StrCat(RuleName(recipe_, rule), ": matches nothing of this model"));
      }
    }
    return absl::OkStatus();
  }

  absl::Status CheckAnyQuantized() {
    if (std::ranges::any_of(plan_.rows, &PlanRow::quantize)) return absl::OkStatus();
    // Biases and the like have modules, too, of which no rule decides.
    int candidates = 0;
    std::vector<int> matched(recipe_.rules.size());
    for (const TensorLayout& layout : layouts_of_) {
      if (layout.quantizable == Quantizability::kNever) continue;
      ++candidates;
      for (int rule = 0; rule < static_cast<int>(matched.size()); ++rule) {
        NIBBLE_ASSIGN_OR_RETURN(const bool matches, rules_.Matches(rule, layout));
        matched[rule] += matches;
      }
    }
    std::vector<std::string> counts;
    for (int rule = 0; rule < static_cast<int>(matched.size()); ++rule) {
      counts.push_back(absl::StrCat(RuleName(recipe_, rule), ", ",
                                    ToAbsl(NameOf(recipe_.rules[rule].use)), ", matches ",
                                    matched[rule]));
    }
    return absl::InvalidArgumentError(absl::StrCat(
        "recipe ", recipe_.name, ": expected something to quantize, got nothing: of ", candidates,
        " linear modules ", counts.empty() ? "no rule matches any" : absl::StrJoin(counts, "; "),
        plan_.warnings.empty() ? "" : absl::StrCat("; ", plan_.warnings.front())));
  }

  // The group's name by the members that are there.
  std::string GroupName(const std::vector<int>& members) {
    const std::string& module = plan_.rows[members.front()].module;
    if (members.size() == 1) return module;
    std::vector<std::string> leaves;
    std::vector<int> order = members;
    std::ranges::sort(order, {}, [&](int i) { return layouts_of_[i].fused_member; });
    bool proj = true;
    for (const int i : order) {
      leaves.emplace_back(Components(row(i).module).back());
      proj = proj && leaves.back().ends_with("_proj");
    }
    const std::string parent = module.substr(0, module.size() - Components(module).back().size());
    if (proj) {
      for (std::string& leaf : leaves) leaf.resize(leaf.size() - 5);
    }
    return absl::StrCat(parent, "{", absl::StrJoin(leaves, ","), "}", proj ? "_proj" : "");
  }

  void MakeGroups() {
    std::map<std::string, int> groups;
    for (int i = 0; i < size(); ++i) {
      if (!row(i).quantize) continue;
      const std::string& fused = layouts_of_[i].fused_group;
      // A tensor's own name is no fused group's.
      const auto [group, is_new] = groups.try_emplace(fused.empty() ? row(i).tensor.name : fused,
                                                      static_cast<int>(plan_.groups.size()));
      if (is_new) plan_.groups.emplace_back();
      row(i).group = group->second;
      plan_.groups[group->second].rows.push_back(i);
    }
    for (FusedGroup& group : plan_.groups) group.name = GroupName(group.rows);
  }

  absl::Status MakeInputGroups() {
    std::map<std::string, int> inputs;
    std::vector<int> first;
    for (int i = 0; i < size(); ++i) {
      if (!row(i).quantize) continue;
      const std::string& experts = layouts_of_[i].experts_input;
      const auto [input, is_new] = inputs.try_emplace(
          experts.empty() ? absl::StrCat(row(i).group) : experts, static_cast<int>(first.size()));
      if (is_new) first.push_back(i);
      row(i).input_group = input->second;
      const PlanRow& other = row(first[input->second]);
      if (other.treatment.activations == row(i).treatment.activations) continue;
      return absl::InvalidArgumentError(absl::StrCat(
          "recipe ", recipe_.name, ": ", Printable(input->first),
          ": expected the same settings of activations, since they share an input scale, got ",
          "others in ", FateOf(first[input->second]), " than in ", FateOf(i)));
    }
    plan_.input_groups = static_cast<int>(first.size());
    return absl::OkStatus();
  }

  // That no two tensors of the result have one name.
  absl::Status CheckNamesOfResult() {
    std::set<std::string_view> modules, experts;
    for (const PlanRow& row : plan_.rows) {
      if (!row.quantize) continue;
      const auto twice = [&](std::string_view other) {
        return absl::DataLossError(absl::StrCat(
            "model: expected one tensor for each name of the result, got ", Quoted(row.tensor.name),
            " and ", Quoted(other), ", which would be written under one"));
      };
      if (!modules.insert(row.module).second) return twice(row.module);
      for (const char* suffix : {".weight_scale", ".weight_scale_2", ".weight_global_scale",
                                 ".weight_packed", ".input_scale", ".input_global_scale",
                                 "_weight_scale", "_weight_scale_2", "_input_scale"}) {
        const ModelTensor* other = layouts_.Find(absl::StrCat(row.module, suffix));
        if (other != nullptr) return twice(other->name);
      }
      if (SplitsExperts(row.form)) {
        const std::string parent =
            row.module.substr(0, row.module.size() - Components(row.module).back().size());
        for (const char* leaf : {"gate_proj", "up_proj", "down_proj"}) {
          const ModelTensor* other = layouts_.Find(absl::StrCat(parent, "0.", leaf, ".weight"));
          if (other != nullptr) return twice(other->name);
        }
      }
    }
    return absl::OkStatus();
  }

  // Which half is the gate is known of these models alone.
  void WarnOfTurnedExperts() {
    for (const char* known : {"llama4", "qwen3_vl_moe"}) {
      if (model_.model_type.starts_with(known)) return;
    }
    std::vector<std::string> names;
    for (const PlanRow& row : plan_.rows) {
      if (row.quantize && row.form == WeightForm::kTurnedExperts &&
          row.module.ends_with("gate_up_proj")) {
        names.push_back(row.module);
      }
    }
    for (const FoldedNames& fold : FoldNames(names)) {
      plan_.warnings.push_back(absl::StrCat(
          Printable(fold.text),
          ": gate is taken for the first half of [inputs, outputs], up for the second; check that "
          "the model_type ",
          Quoted(model_.model_type), " has them so"));
    }
  }

  const Recipe& recipe_;
  const Model& model_;
  const PlanOptions options_;
  const LayoutReader layouts_;
  const Rules rules_;

  Plan plan_;
  std::vector<TensorLayout> layouts_of_;  // of the plan's rows
  std::vector<int> asked_;                // the rule that matched, whatever came of it
};

}  // namespace

MatrixShape MatrixShapeOf(const PlanRow& row) {
  const std::vector<int64_t>& shape = row.tensor.shape;
  switch (row.form) {
    case WeightForm::kMatrix:
      return {ElementCount(shape).value_or(0) / shape.back(), shape.back()};
    case WeightForm::kExpertRows:
      return {shape[1], shape[2]};
    case WeightForm::kTurnedExperts:
    case WeightForm::kExpertColumns:
      return {shape[2], shape[1]};
  }
  return {};
}

absl::StatusOr<Plan> MakePlan(const Recipe& recipe, const Model& model,
                              const PlanOptions& options) {
  return Planner(recipe, model, options).Make();
}

}  // namespace nibble
