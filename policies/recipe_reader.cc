#include "policies/recipe_reader.h"

#include <cmath>
#include <initializer_list>
#include <limits>
#include <utility>

#include "absl/strings/numbers.h"
#include "base/status.h"
#include "base/text.h"
#include "policies/nearest_word.h"
#include "policies/recipe_layers.h"

namespace nibble {
namespace {

using Kind = YamlNode::Kind;
using Words = std::vector<std::string_view>;

// As Backend::MultiplierSearch has it.
constexpr int kMostMultipliers = 4096;
constexpr int64_t kMostLayers = 1'000'000;
// Loaders invert the stored scale; both must stay far from what float32 cannot hold.
constexpr double kLeastInputScale = 1e-30, kMostInputScale = 1e30;
// As calib/activation_calibrators.h has it: beyond, the anchor leaves E4M3's normal range.
constexpr double kHeadroomMax = 1.75;

// --- Values -------------------------------------------------------------------------------------

// A value and the key that leads to it: "weights.algorithm.method".
struct Value {
  YamlPtr node;
  std::string key;

  const YamlNode& operator*() const { return *node; }
  const YamlNode* operator->() const { return node.get(); }
};

absl::Status Refuse(std::string_view place, std::string_view key, std::string_view message) {
  const std::string set = absl::StrCat("--set ", ToAbsl(key));
  return absl::InvalidArgumentError(
      place == set || key.empty()
          ? absl::StrCat(ToAbsl(place), ": ", ToAbsl(message))
          : absl::StrCat(ToAbsl(place), ": ", ToAbsl(key), ": ", ToAbsl(message)));
}

absl::Status Refuse(const Value& value, std::string_view message) {
  return Refuse(value->place, value.key, message);
}

// What stands there instead of what was expected.
std::string Shown(const YamlNode& node) {
  switch (node.kind) {
    case Kind::kNull:
      return "nothing";
    case Kind::kSequence:
      return "a list";
    case Kind::kMap:
      return "a mapping";
    case Kind::kScalar:
      return absl::StrCat(node.quoted ? "the string " : "", Quoted(node.text));
  }
  return "";
}

absl::Status Expected(const Value& value, std::string_view what) {
  return Refuse(value, absl::StrCat("expected ", ToAbsl(what), ", got ", Shown(*value)));
}

absl::Status ReadString(const Value& value, std::string& string) {
  if (value->kind != Kind::kScalar) return Expected(value, "a string");
  string = value->text;
  return absl::OkStatus();
}

absl::Status ReadBool(const Value& value, bool& flag) {
  const bool plain = value->kind == Kind::kScalar && !value->quoted;
  if (!plain || (value->text != "true" && value->text != "false")) {
    return Expected(value, "true or false");
  }
  flag = value->text == "true";
  return absl::OkStatus();
}

absl::StatusOr<int64_t> ReadInteger(const Value& value, int64_t least, int64_t most) {
  int64_t number = 0;
  if (value->kind != Kind::kScalar || value->quoted || !absl::SimpleAtoi(value->text, &number) ||
      number < least || number > most) {
    return Expected(value, absl::StrCat("an integer from ", least, " to ", most));
  }
  return number;
}

// `what`: "a number above 0".
absl::StatusOr<double> ReadNumber(const Value& value, std::string_view what, double least,
                                  double most) {
  double number = 0;
  if (value->kind != Kind::kScalar || value->quoted || !absl::SimpleAtod(value->text, &number) ||
      !(number >= least && number <= most)) {
    return Expected(value, what);
  }
  return number;
}

absl::Status ReadWord(const Value& value, const Words& words, std::string& word) {
  if (value->kind != Kind::kScalar) return Expected(value, WordList(words));
  for (const std::string_view candidate : words) {
    if (candidate != value->text) continue;
    word = value->text;
    return absl::OkStatus();
  }
  return Refuse(value, ExpectedWord("", words, value->text));
}

template <typename Enum>
absl::Status ReadEnum(const Value& value, Enum& enumerator) {
  std::string word;
  NIBBLE_RETURN_IF_ERROR(ReadWord(value, {kEnumNames<Enum>.begin(), kEnumNames<Enum>.end()}, word));
  enumerator = *FromName<Enum>(word);
  return absl::OkStatus();
}

// --- Mappings -----------------------------------------------------------------------------------

// A key that a mapping may have, and what to do with its value.
struct Field {
  std::string_view key;
  std::function<absl::Status(const Value&)> read;
};

absl::Status ReadMap(const Value& map, std::initializer_list<Field> fields) {
  if (map->kind != Kind::kMap) return Expected(map, "a mapping");
  Words keys;
  for (const Field& field : fields) keys.push_back(field.key);
  for (const YamlEntry& entry : map->entries) {
    const Field* known = nullptr;
    for (const Field& field : fields) {
      if (field.key == entry.key) known = &field;
    }
    if (known == nullptr) {
      return Refuse(entry.place, map.key, ExpectedWord("one of the keys ", keys, entry.key));
    }
    const std::string key = map.key.empty() ? entry.key : absl::StrCat(map.key, ".", entry.key);
    NIBBLE_RETURN_IF_ERROR(known->read({entry.value, key}));
  }
  return absl::OkStatus();
}

template <typename Enum>
std::function<absl::Status(const Value&)> To(Enum& enumerator) {
  return [&enumerator](const Value& value) { return ReadEnum(value, enumerator); };
}

std::function<absl::Status(const Value&)> ToInteger(int64_t& number, int64_t least, int64_t most) {
  return [&number, least, most](const Value& value) -> absl::Status {
    NIBBLE_ASSIGN_OR_RETURN(number, ReadInteger(value, least, most));
    return absl::OkStatus();
  };
}

// --- Algorithms ---------------------------------------------------------------------------------

// The method of an algorithm, which is a bare word or a mapping; as it was where none is named.
template <typename Method>
absl::Status ReadMethod(const Value& algorithm, Method& method) {
  if (algorithm->kind == Kind::kScalar) return ReadEnum(algorithm, method);
  const YamlEntry* entry = algorithm->Find("method");
  if (entry == nullptr) return absl::OkStatus();
  return ReadEnum({entry->value, algorithm.key + ".method"}, method);
}

// For keys that only one method has.
template <typename Method>
std::function<absl::Status(const Value&)> Only(Method of, Method method,
                                               std::function<absl::Status(const Value&)> read) {
  return [=](const Value& value) {
    if (method == of) return read(value);
    return Refuse(value, absl::StrCat("expected method ", ToAbsl(NameOf(of)), " with it, got ",
                                      ToAbsl(NameOf(method))));
  };
}

std::function<absl::Status(const Value&)> ToMultiplier(float& number) {
  return [&number](const Value& value) -> absl::Status {
    NIBBLE_ASSIGN_OR_RETURN(const double wide,
                            ReadNumber(value, "a number from 1e-6 to 1e6", 1e-6, 1e6));
    number = static_cast<float>(wide);
    return absl::OkStatus();
  };
}

absl::Status ReadE4m3Max(const Value& value, int& e4m3_max) {
  std::string word;
  if (value->quoted) return Expected(value, "448 or 256");
  NIBBLE_RETURN_IF_ERROR(ReadWord(value, {"448", "256"}, word));
  e4m3_max = word == "448" ? 448 : 256;
  return absl::OkStatus();
}

absl::Status CheckGrid(const Value& algorithm, const WeightSpec& spec) {
  for (const std::string_view key : {"start", "stop", "step"}) {
    const YamlEntry* entry = algorithm->Find(key);
    if (entry == nullptr || !spec.fp8_scale_sweep) continue;
    return Refuse(entry->place, absl::StrCat(algorithm.key, ".", ToAbsl(key)),
                  "expected no multipliers beside fp8_scale_sweep: true, which tries every scale");
  }
  const MultiplierGrid& grid = spec.multipliers;
  if (grid.stop < grid.start ||
      (double{grid.stop} - grid.start) / grid.step > kMostMultipliers - 1) {
    return Refuse(algorithm, absl::StrCat("expected start <= stop and at most ", kMostMultipliers,
                                          " multipliers, got start ", grid.start, ", stop ",
                                          grid.stop, ", step ", grid.step));
  }
  return absl::OkStatus();
}

absl::Status ReadWeightAlgorithm(const Value& algorithm, WeightSpec& spec) {
  NIBBLE_RETURN_IF_ERROR(ReadMethod(algorithm, spec.method));
  if (spec.method == WeightMethod::kFourOverSix) spec.e4m3_max = 256;
  if (algorithm->kind == Kind::kScalar) return absl::OkStatus();
  const WeightMethod method = spec.method;
  const auto mse = [&](auto read) { return Only(WeightMethod::kMse, method, read); };
  const auto four_over_six = [&](auto read) {
    return Only(WeightMethod::kFourOverSix, method, read);
  };
  NIBBLE_RETURN_IF_ERROR(ReadMap(
      algorithm,
      {{"method", To(spec.method)},
       {"fp8_scale_sweep",
        mse([&](const Value& value) { return ReadBool(value, spec.fp8_scale_sweep); })},
       {"start", mse(ToMultiplier(spec.multipliers.start))},
       {"stop", mse(ToMultiplier(spec.multipliers.stop))},
       {"step", mse(ToMultiplier(spec.multipliers.step))},
       {"metric", four_over_six(To(spec.four_over_six.metric))},
       {"error_path", four_over_six(To(spec.four_over_six.path))},
       {"rounding", Only(WeightMethod::kLocalHessian, method, To(spec.rounding))},
       {"e4m3_max", [&](const Value& value) { return ReadE4m3Max(value, spec.e4m3_max); }}}));
  return CheckGrid(algorithm, spec);
}

absl::Status ReadActivationAlgorithm(const Value& algorithm, ActivationSpec& spec) {
  if (spec.scheme == Scheme::kPerToken) spec.method = ActivationMethod::kConstant;
  NIBBLE_RETURN_IF_ERROR(ReadMethod(algorithm, spec.method));
  if (spec.scheme == Scheme::kPerToken && spec.method != ActivationMethod::kConstant) {
    return Refuse(algorithm,
                  absl::StrCat("expected constant with scheme per_token, where the loader finds "
                               "each token's scale at run time, got ",
                               ToAbsl(NameOf(spec.method))));
  }
  if (algorithm->kind == Kind::kScalar) return absl::OkStatus();
  const ActivationMethod method = spec.method;
  return ReadMap(
      algorithm,
      {{"method", To(spec.method)},
       {"percentile", Only(ActivationMethod::kPercentile, method,
                           [&](const Value& value) -> absl::Status {
                             NIBBLE_ASSIGN_OR_RETURN(
                                 spec.percentile,
                                 ReadNumber(value, "a number above 0, up to 100",
                                            std::numeric_limits<double>::min(), 100));
                             return absl::OkStatus();
                           })},
       {"headroom", Only(ActivationMethod::kHeadroom, method,
                         [&](const Value& value) -> absl::Status {
                           NIBBLE_ASSIGN_OR_RETURN(spec.headroom,
                                                   ReadNumber(value, "a number above 0, below 1.75",
                                                              std::numeric_limits<double>::min(),
                                                              std::nextafter(kHeadroomMax, 0.0)));
                           return absl::OkStatus();
                         })},
       {"input_scale",
        Only(ActivationMethod::kConstant, method, [&](const Value& value) -> absl::Status {
          NIBBLE_ASSIGN_OR_RETURN(
              const double wide,
              ReadNumber(value, "a number from 1e-30 to 1e30", kLeastInputScale, kMostInputScale));
          spec.input_scale = static_cast<float>(wide);
          return absl::OkStatus();
        })}});
}

// --- Weights and activations --------------------------------------------------------------------

absl::Status ReadWeights(const Value& weights, WeightSpec& spec) {
  return ReadMap(
      weights,
      {{"format",
        [](const Value& value) {
          std::string word;
          return ReadWord(value, {"nvfp4"}, word);
        }},
       {"scheme",
        [](const Value& value) -> absl::Status {
          Scheme scheme = Scheme::kPerTensor;
          NIBBLE_RETURN_IF_ERROR(ReadEnum(value, scheme));
          if (scheme == Scheme::kPerTensor) return absl::OkStatus();
          return Refuse(
              value, absl::StrCat("expected per_tensor for weights, got ", ToAbsl(NameOf(scheme)),
                                  ": a checkpoint holds one global "
                                  "scale per tensor and one scale per 1x16 block, no loader "
                                  "reads another layout"));
        }},
       {"algorithm", [&](const Value& value) { return ReadWeightAlgorithm(value, spec); }}});
}

absl::Status ReadActivations(const Value& activations, ActivationSpec& spec) {
  // The scheme counts before the algorithm, wherever it stands.
  Value algorithm;
  NIBBLE_RETURN_IF_ERROR(ReadMap(
      activations,
      {{"format", To(spec.format)},
       {"scheme",
        [&](const Value& value) -> absl::Status {
          NIBBLE_RETURN_IF_ERROR(ReadEnum(value, spec.scheme));
          if (spec.scheme != Scheme::kTile2d) return absl::OkStatus();
          return Refuse(value,
                        "expected per_tensor or per_token for activations, got tile_2d: no loader "
                        "quantizes its inputs in tiles");
        }},
       {"algorithm", [&](const Value& value) {
          algorithm = value;
          return absl::OkStatus();
        }}}));
  if (spec.format == ActivationFormat::kNone) {
    for (const YamlEntry& entry : activations->entries) {
      if (entry.key == "format") continue;
      return Refuse(entry.place, absl::StrCat(activations.key, ".", entry.key),
                    "expected format nvfp4 with it, got none");
    }
    return absl::OkStatus();
  }
  if (algorithm.node != nullptr) return ReadActivationAlgorithm(algorithm, spec);
  if (spec.scheme == Scheme::kPerToken) spec.method = ActivationMethod::kConstant;
  return absl::OkStatus();
}

// --- Rules --------------------------------------------------------------------------------------

// A list, or a single value in its place.
std::vector<Value> ItemsOf(const Value& value) {
  if (value->kind != Kind::kSequence) return {value};
  std::vector<Value> items;
  for (const YamlPtr& item : value->items) items.push_back({item, value.key});
  return items;
}

absl::Status ReadMatch(const Value& value, std::vector<std::string>& match) {
  const std::vector<Value> items = ItemsOf(value);
  if (items.empty()) return Refuse(value, "expected at least one pattern, got an empty list");
  for (const Value& item : items) {
    std::string pattern;
    NIBBLE_RETURN_IF_ERROR(ReadString(item, pattern));
    const absl::StatusOr<bool> works = MatchesName(pattern, "");
    if (!works.ok()) return Refuse(item, ToStd(works.status().message()));
    match.push_back(std::move(pattern));
  }
  return absl::OkStatus();
}

absl::Status ReadKinds(const Value& value, std::vector<ModuleKind>& kinds) {
  const std::vector<Value> items = ItemsOf(value);
  if (items.empty()) return Refuse(value, "expected at least one kind, got an empty list");
  for (const Value& item : items) {
    ModuleKind kind = ModuleKind::kOther;
    NIBBLE_RETURN_IF_ERROR(ReadEnum(item, kind));
    kinds.push_back(kind);
  }
  return absl::OkStatus();
}

absl::Status ReadLayers(const Value& value, RecipeRule& rule) {
  const auto to = [](int& layers) {
    return [&layers](const Value& count) -> absl::Status {
      NIBBLE_ASSIGN_OR_RETURN(const int64_t number, ReadInteger(count, 0, kMostLayers));
      layers = static_cast<int>(number);
      return absl::OkStatus();
    };
  };
  NIBBLE_RETURN_IF_ERROR(
      ReadMap(value, {{"first", to(rule.first_layers)}, {"last", to(rule.last_layers)}}));
  if (rule.first_layers > 0 || rule.last_layers > 0) return absl::OkStatus();
  return Refuse(value, "expected first or last above 0, got none");
}

// The recipe's own weights or activations with those of a rule over them.
Value Overlay(const Value& base, const Value& over) {
  return {MergeYaml(base.key, base.node, over.node), over.key};
}

absl::StatusOr<RecipeRule> ReadRule(const Value& value, const Value& weights,
                                    const Value& activations, const Treatment& treatment) {
  RecipeRule rule;
  rule.place = value->place;
  rule.use = RuleUse::kKeep;
  const Value* own = nullptr;
  Value own_weights, own_activations;
  NIBBLE_RETURN_IF_ERROR(
      ReadMap(value, {{"match", [&](const Value& match) { return ReadMatch(match, rule.match); }},
                      {"layers", [&](const Value& layers) { return ReadLayers(layers, rule); }},
                      {"kinds", [&](const Value& kinds) { return ReadKinds(kinds, rule.kinds); }},
                      {"use", To(rule.use)},
                      {"weights",
                       [&](const Value& over) {
                         own_weights = over;
                         own = &own_weights;
                         return absl::OkStatus();
                       }},
                      {"activations", [&](const Value& over) {
                         own_activations = over;
                         own = &own_activations;
                         return absl::OkStatus();
                       }}}));
  if (value->Find("use") == nullptr) {
    return Refuse(value, absl::StrCat("expected the key use (", NamesOf<RuleUse>(), "), got none"));
  }
  if (own == nullptr) return rule;
  if (rule.use == RuleUse::kKeep) {
    return Refuse((*own)->place, own->key, "expected use: quantize with it, got keep");
  }
  rule.treatment = treatment;
  if (own_weights.node != nullptr) {
    rule.treatment->weights = {};
    NIBBLE_RETURN_IF_ERROR(ReadWeights(Overlay(weights, own_weights), rule.treatment->weights));
  }
  if (own_activations.node != nullptr) {
    rule.treatment->activations = {};
    NIBBLE_RETURN_IF_ERROR(
        ReadActivations(Overlay(activations, own_activations), rule.treatment->activations));
  }
  return rule;
}

// --- The rest -----------------------------------------------------------------------------------

// "5GB", "512 MiB" or a number of bytes.
absl::Status ReadSize(const Value& value, uint64_t& bytes) {
  constexpr struct {
    std::string_view name;
    double bytes;
  } kUnits[] = {{"KB", 1e3},     {"MB", 1e6},     {"GB", 1e9},     {"TB", 1e12},
                {"KiB", 0x1p10}, {"MiB", 0x1p20}, {"GiB", 0x1p30}, {"TiB", 0x1p40}};
  constexpr std::string_view kRule = "a size like 5GB, 512MiB or a number of bytes, up to 1000TB";
  constexpr uint64_t kMost = 1'000'000'000'000'000;
  if (value->kind != Kind::kScalar) return Expected(value, kRule);
  if (absl::SimpleAtoi(value->text, &bytes)) {
    return bytes > 0 && bytes <= kMost ? absl::OkStatus() : Expected(value, kRule);
  }
  const std::string& text = value->text;
  for (const auto& unit : kUnits) {
    double number = 0;
    if (!text.ends_with(unit.name) ||
        text.find_first_not_of("0123456789. ") + unit.name.size() != text.size() ||
        !absl::SimpleAtod(text.substr(0, text.size() - unit.name.size()), &number)) {
      continue;
    }
    const double whole = std::round(number * unit.bytes);
    if (!(whole >= 1 && whole <= static_cast<double>(kMost))) break;
    bytes = static_cast<uint64_t>(whole);
    return absl::OkStatus();
  }
  return Expected(value, kRule);
}

std::function<absl::Status(const Value&)> ToChoice(std::optional<int>& choice) {
  return [&choice](const Value& value) -> absl::Status {
    if (value->kind == Kind::kScalar && value->text == "auto") {
      choice = std::nullopt;
      return absl::OkStatus();
    }
    int64_t number = 0;
    if (value->kind != Kind::kScalar || value->quoted || !absl::SimpleAtoi(value->text, &number) ||
        number < 1 || number > 1 << 20) {
      return Expected(value, "auto or an integer from 1 to 1048576");
    }
    choice = static_cast<int>(number);
    return absl::OkStatus();
  };
}

std::function<absl::Status(const Value&)> ToString(std::string& string) {
  return [&string](const Value& value) { return ReadString(value, string); };
}

}  // namespace

absl::StatusOr<Recipe> ReadRecipe(const YamlPtr& document, const std::string& default_name) {
  Recipe recipe;
  recipe.name = default_name;
  // Rules may build on weights and activations that stand behind them.
  Value weights, activations, rules;
  const auto keep = [](Value& kept) {
    return [&kept](const Value& value) {
      kept = value;
      return absl::OkStatus();
    };
  };
  constexpr int64_t kMostTokens = 1'000'000'000;
  NIBBLE_RETURN_IF_ERROR(ReadMap(
      {document, ""},
      {{"metadata",
        [&](const Value& map) {
          return ReadMap(map, {{"name", ToString(recipe.name)},
                               {"description", ToString(recipe.description)}});
        }},
       {"extends", [](const Value& value) { return Expected(value, "it before this layer"); }},
       {"weights", keep(weights)},
       {"activations", keep(activations)},
       {"kv_cache",
        [&](const Value& map) {
          return ReadMap(map, {{"format", To(recipe.kv_cache)}});
        }},
       {"rules", keep(rules)},
       {"calibration",
        [&](const Value& map) {
          Recipe::Calibration& calibration = recipe.calibration;
          return ReadMap(
              map,
              {{"sequences", ToInteger(calibration.sequences, 1, kMostTokens)},
               {"length", ToInteger(calibration.length, 1, kMostTokens)},
               {"routed_min_tokens", ToInteger(calibration.routed_min_tokens, 0, kMostTokens)},
               {"force_all_experts",
                [&](const Value& value) { return ReadBool(value, calibration.force_all_experts); }},
               {"propagate", To(calibration.propagate)}});
        }},
       {"export",
        [&](const Value& map) {
          return ReadMap(map, {{"format", To(recipe.output.format)},
                               {"shard_size", [&](const Value& size) {
                                  return ReadSize(size, recipe.output.shard_bytes);
                                }}});
        }},
       {"tuning",
        [&](const Value& map) {
          recipe.tuning.place = map->place;
          return ReadMap(map, {{"blocks_per_program", ToChoice(recipe.tuning.blocks_per_program)},
                               {"warps", ToChoice(recipe.tuning.warps)},
                               {"store", ToString(recipe.tuning.store)}});
        }},
       {"nonfinite", To(recipe.nonfinite)}}));
  if (weights.node != nullptr) {
    NIBBLE_RETURN_IF_ERROR(ReadWeights(weights, recipe.treatment.weights));
  }
  if (activations.node != nullptr) {
    NIBBLE_RETURN_IF_ERROR(ReadActivations(activations, recipe.treatment.activations));
  }
  weights.key = "weights";
  activations.key = "activations";
  if (rules.node == nullptr) return recipe;
  if (rules->kind != Kind::kSequence) return Expected(rules, "a list of rules");
  for (const YamlPtr& item : rules->items) {
    const std::string key = absl::StrCat("rules[", recipe.rules.size(), "]");
    NIBBLE_ASSIGN_OR_RETURN(RecipeRule rule,
                            ReadRule({item, key}, weights, activations, recipe.treatment));
    recipe.rules.push_back(std::move(rule));
  }
  return recipe;
}

}  // namespace nibble
