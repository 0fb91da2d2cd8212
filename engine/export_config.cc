// config.json and hf_quant_config.json of a quantized model.
//
// What makes this more than writing down a list is that each loader matches the entries of an
// exclude list by rules of its own:
//   vLLM, modelopt      exact, then *substring* of the module's name, then fnmatch
//   SGLang, modelopt    a regular expression ("." escaped, "*" as ".*") over the whole name or any
//                       one of its dotted components; fused modules are looked up by their fused
//                       name, a MoE block by "<...>.experts"; q_a_proj, q_b_proj,
//                       kv_a_proj_with_mqa and kv_b_proj at an entry's end stand for those of every
//                       layer
//   TensorRT-LLM        fnmatch
//   compressed-tensors  exact, or a regular expression after "re:"; no globs. SGLang looks fused
//                       modules up by their fused name where the architecture does not tell it the
//                       members, among them Llama's
// so an entry must not occur inside the name of anything that is quantized, and names that loaders
// make up by fusing modules are listed beside those of the members.
#include <algorithm>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/ascii.h"
#include "base/status.h"
#include "base/text.h"
#include "engine/export.h"
#include "engine/loader_rules.h"
#include "io/json_object.h"
#include "io/python_json.h"
#include "nlohmann/json.hpp"
#include "quant/numerics/scale_rules.h"

namespace nibble {
namespace {

using OrderedJson = nlohmann::ordered_json;

// Of the releases whose files these are. The name is part of the format: loaders compare it.
constexpr char kProducerName[] = "modelopt";
constexpr char kProducerVersion[] = "0.47.0";
constexpr char kCompressedTensorsVersion[] = "0.12.2";

constexpr char kKey[] = "quantization_config";
constexpr std::string_view kStaleKeys[] = {kKey, "compression_config"};

// Modules that loaders fuse into one, and what they call it.
struct Fusion {
  std::vector<std::string_view> members;
  std::string_view fused;
};
const std::vector<Fusion>& Fusions() {
  static const std::vector<Fusion> kFusions = {
      {{"q_proj", "k_proj", "v_proj"}, "qkv_proj"},
      {{"gate_proj", "up_proj"}, "gate_up_proj"},
      {{"w1", "w3"}, "gate_up_proj"},
      {{"q_a_proj", "kv_a_proj_with_mqa"}, "fused_qkv_a_proj"},           // vLLM
      {{"q_a_proj", "kv_a_proj_with_mqa"}, "fused_qkv_a_proj_with_mqa"},  // SGLang
      {{"in_proj_qkv", "in_proj_z"}, "in_proj_qkvz"},
      {{"in_proj_b", "in_proj_a"}, "in_proj_ba"},
  };
  return kFusions;
}

std::string_view LastComponent(std::string_view name) {
  return name.substr(name.rfind('.') + 1);  // npos + 1 is 0
}

// "a.b.experts" of "a.b.experts.0.up_proj"; nothing of "a.experts".
std::optional<std::string> ExpertsOf(std::string_view name) {
  constexpr std::string_view kExperts = "experts.";
  for (size_t at = name.find(kExperts); at != name.npos; at = name.find(kExperts, at + 1)) {
    if (at == 0 || name[at - 1] == '.') return std::string(name.substr(0, at + 7));
  }
  return std::nullopt;
}

// What the plan does, by modules as they are named on disk.
struct Modules {
  std::map<std::string, bool> quantized;  // to whether it is weight-only
  std::set<std::string> kept;             // linear layers or what might be taken for one
  std::set<std::string> kept_embeddings;
  std::set<std::string> kept_experts;      // containers of which nothing is quantized
  std::set<std::string> whole_experts[2];  // containers of which all is W4A4, or weight-only
  std::set<std::string> kept_subtrees;     // of vision towers and MTP: nothing quantized inside
  std::string text;  // the names that loaders give to what is quantized, a line each

  bool IsQuantizedName(std::string_view piece) const { return text.find(piece) != text.npos; }
};

void AddFusedNames(const std::set<std::string>& names, std::set<std::string>& fused) {
  for (const std::string& name : names) {
    for (const Fusion& fusion : Fusions()) {
      if (LastComponent(name) != fusion.members[0]) continue;
      const std::string parent = name.substr(0, name.size() - fusion.members[0].size());
      const bool all = std::ranges::all_of(fusion.members, [&](std::string_view member) {
        return names.contains(parent + std::string(member));
      });
      if (all) fused.insert(parent + std::string(fusion.fused));
    }
  }
}

absl::StatusOr<Modules> ModulesOf(const Plan& plan, ExportFormat format) {
  Modules modules;
  std::set<std::string> experts_with_kept, special;
  for (const PlanRow& row : plan.rows) {
    const bool is_weight = row.tensor.name.ends_with(".weight");
    if (row.quantize) {
      NIBBLE_ASSIGN_OR_RETURN(const std::vector<OutputTensor> outputs, OutputsOf(row, format));
      const bool weight_only = row.treatment.activations.format == ActivationFormat::kNone;
      for (const OutputTensor& output : outputs) {
        if (output.part != OutputPart::kCodes) continue;
        std::string name = output.tensor.name;
        for (const std::string_view suffix : {".weight", ".weight_packed"}) {
          if (name.ends_with(suffix)) name.erase(name.size() - suffix.size());
        }
        modules.quantized.emplace(std::move(name), weight_only);
      }
      continue;
    }
    if (row.kind == ModuleKind::kEmbedding) modules.kept_embeddings.insert(row.module);
    if (row.kind == ModuleKind::kVision || row.kind == ModuleKind::kMtp) special.insert(row.module);
    const size_t rank = row.tensor.shape.size();
    if (row.kind == ModuleKind::kEmbedding || row.kind == ModuleKind::kNorm || rank < 2) continue;
    // Experts have no ".weight" where all of a layer's are one tensor; their biases are matrices.
    const bool are_experts = rank == 3 && ExpertsOf(row.tensor.name).has_value();
    if (!is_weight && !are_experts) continue;
    modules.kept.insert(row.module);
    if (const auto experts = ExpertsOf(row.module)) experts_with_kept.insert(*experts);
  }

  std::set<std::string> quantized, partly[2];
  for (const auto& [name, weight_only] : modules.quantized) {
    quantized.insert(name);
    if (const auto experts = ExpertsOf(name)) partly[weight_only].insert(*experts);
  }
  for (const std::string& experts : experts_with_kept) {
    if (!partly[0].contains(experts) && !partly[1].contains(experts)) {
      modules.kept_experts.insert(experts);
    }
  }
  for (int weight_only : {0, 1}) {
    for (const std::string& experts : partly[weight_only]) {
      if (!partly[1 - weight_only].contains(experts) && !experts_with_kept.contains(experts)) {
        modules.whole_experts[weight_only].insert(experts);
      }
    }
  }
  std::set<std::string> names = quantized;
  AddFusedNames(quantized, names);
  for (const auto& containers : partly) names.insert(containers.begin(), containers.end());
  for (const std::string& name : names) modules.text += name + "\n";

  // The shortest prefix in dotted components that occurs nowhere in what is quantized.
  for (const std::string& name : special) {
    for (size_t dot = name.find('.'); dot != name.npos; dot = name.find('.', dot + 1)) {
      if (modules.IsQuantizedName(name.substr(0, dot))) continue;
      modules.kept_subtrees.insert(name.substr(0, dot));
      break;
    }
  }
  return modules;
}

// The output layer where it shares the embedding's tensor and hence has none of its own.
std::set<std::string> TiedHeads(const Modules& modules) {
  std::set<std::string> heads = {"lm_head"};
  for (const std::string& name : modules.kept_embeddings) {
    constexpr std::string_view kTokens = ".embed_tokens";
    if (!name.ends_with(kTokens)) continue;
    std::string parent = name.substr(0, name.size() - kTokens.size());
    if (!parent.ends_with(".model")) continue;
    heads.insert(parent.substr(0, parent.size() - 5) + "lm_head");
  }
  const auto is_head = [](const std::string& name) { return LastComponent(name) == "lm_head"; };
  const bool has_head =
      std::ranges::any_of(modules.kept, is_head) ||
      std::ranges::any_of(modules.quantized, [&](const auto& m) { return is_head(m.first); });
  return has_head ? std::set<std::string>() : heads;
}

// --- modelopt -----------------------------------------------------------------------------------

// A pattern for a name that occurs in a quantized module's: with one letter as a class it matches
// only itself, by fnmatch and as SGLang's regular expression, and is a substring of nothing.
std::string ExactPattern(const std::string& name) {
  const auto at = std::find_if(name.rbegin(), name.rend(), absl::ascii_isalnum);
  if (at == name.rend()) return name;
  const size_t i = static_cast<size_t>(name.rend() - at) - 1;
  return name.substr(0, i) + "[" + name[i] + "]" + name.substr(i + 1);
}

// Whether SGLang would take the name for that of every layer's module, some of which are quantized.
bool IsForEveryLayer(const std::string& name, const Modules& modules) {
  const std::string_view of_all = SglangNameOfEveryLayer(name);
  return !of_all.empty() && modules.IsQuantizedName(of_all);
}

std::vector<std::string> ModeloptExcludes(const Modules& modules) {
  std::set<std::string> names = modules.kept;
  names.insert(modules.kept_embeddings.begin(), modules.kept_embeddings.end());
  AddFusedNames(modules.kept, names);
  const std::set<std::string> heads = TiedHeads(modules);
  names.insert(heads.begin(), heads.end());

  std::set<std::string> patterns;
  for (const std::string& name : names) {
    if (const auto experts = ExpertsOf(name)) {
      if (modules.kept_experts.contains(*experts)) continue;
    }
    const bool hides_others = modules.IsQuantizedName(name) || IsForEveryLayer(name, modules);
    patterns.insert(hides_others ? ExactPattern(name) : name);
  }
  for (const std::string& experts : modules.kept_experts) {
    patterns.insert(experts);
    patterns.insert(experts + ".*");
  }
  for (const std::string& subtree : modules.kept_subtrees) patterns.insert(subtree + "*");
  return {patterns.begin(), patterns.end()};
}

const char* ModeloptAlgorithm(bool weight_only) { return weight_only ? "W4A16_NVFP4" : "NVFP4"; }

OrderedJson ModeloptGroup(bool weight_only, OrderedJson targets) {
  const OrderedJson scheme = {
      {"dynamic", false}, {"num_bits", 4}, {"type", "float"}, {"group_size", kBlockSize}};
  OrderedJson group = OrderedJson::object();
  if (!weight_only) group["input_activations"] = scheme;
  group["weights"] = scheme;
  group["targets"] = std::move(targets);
  return group;
}

struct ModeloptConfigs {
  OrderedJson config;           // quantization_config
  OrderedJson hf_quant_config;  // the file
};

// Names for which no pattern is sure to mean the same everywhere: a root module, or characters that
// mean something in a pattern.
bool IsOdd(std::string_view name) {
  return name.find('.') == name.npos || std::ranges::any_of(name, [](char c) {
           return !absl::ascii_isalnum(static_cast<unsigned char>(c)) && c != '_' && c != '.' &&
                  c != '-';
         });
}

// A module that a loader would take for the other kind by `list`, as far as odd names are
// concerned; nullopt where there is none. excludes(list, module): whether any loader, or all of
// them, leaves the module alone.
template <typename Excludes>
std::optional<std::string> Misread(const std::vector<std::string>& list, const Modules& modules,
                                   const Excludes& excludes) {
  std::vector<std::string> odd;
  for (const std::string& entry : list) {
    const std::string_view name = entry;
    if (IsOdd(name.ends_with(".*") ? name.substr(0, name.size() - 2) : name)) odd.push_back(entry);
  }
  for (const std::string& name : modules.kept) {
    if (IsOdd(name) && !excludes(list, LoaderModule{name, {}}, /*all=*/true)) return name;
  }
  for (const auto& [name, weight_only] : modules.quantized) {
    if (excludes(IsOdd(name) ? list : odd, LoaderModule{name, {}}, /*all=*/false)) return name;
  }
  return std::nullopt;
}

bool ModeloptListIsSafe(const Modules& modules) {
  return !Misread(ModeloptExcludes(modules), modules,
                  [](const std::vector<std::string>& list, const LoaderModule& m, bool all) {
                    const bool by[] = {VllmModeloptExcludes(list, m).value_or(!all),
                                       SglangModeloptExcludes(list, m).value_or(!all),
                                       TensorRtLlmExcludes(list, m).value_or(!all)};
                    return all ? by[0] && by[1] && by[2] : by[0] || by[1] || by[2];
                  });
}

ModeloptConfigs ModeloptConfigsOf(const Modules& modules, KvCacheFormat kv_cache) {
  std::vector<std::string> targets[2];
  for (const auto& [name, weight_only] : modules.quantized) targets[weight_only].push_back(name);
  // A list of what is quantized says it by exact names, where a list of what is not cannot.
  const bool mixed = (!targets[0].empty() && !targets[1].empty()) || !ModeloptListIsSafe(modules);
  const bool weight_only = targets[0].empty();

  OrderedJson layers = OrderedJson::object(), groups = OrderedJson::object();
  if (mixed) {
    for (const auto& [name, is_weight_only] : modules.quantized) {
      layers[name] = {{"quant_algo", ModeloptAlgorithm(is_weight_only)},
                      {"group_size", kBlockSize}};
    }
    for (const bool only : {false, true}) {
      if (targets[only].empty()) continue;
      groups[absl::StrCat("group_", groups.size())] = ModeloptGroup(only, targets[only]);
    }
  } else {
    groups["group_0"] = ModeloptGroup(weight_only, OrderedJson::array({"Linear"}));
  }
  const OrderedJson excludes =
      mixed ? OrderedJson::array() : OrderedJson(ModeloptExcludes(modules));
  const char* algorithm = mixed ? "MIXED_PRECISION" : ModeloptAlgorithm(weight_only);
  const OrderedJson producer = {{"name", kProducerName}, {"version", kProducerVersion}};
  const bool fp8_cache = kv_cache == KvCacheFormat::kFp8;

  ModeloptConfigs configs;
  OrderedJson& config = configs.config;
  config["config_groups"] = std::move(groups);
  config["ignore"] = excludes;
  config["quant_algo"] = algorithm;
  if (mixed) config["quantized_layers"] = layers;
  if (fp8_cache) {
    config["kv_cache_scheme"] = {{"dynamic", false}, {"num_bits", 8}, {"type", "float"}};
  }
  config["producer"] = producer;
  config["quant_method"] = "modelopt";

  OrderedJson quantization;
  quantization["quant_algo"] = algorithm;
  quantization["kv_cache_quant_algo"] = fp8_cache ? OrderedJson("FP8") : OrderedJson(nullptr);
  if (mixed) {
    quantization["quantized_layers"] = std::move(layers);
  } else {
    quantization["group_size"] = kBlockSize;
    quantization["exclude_modules"] = excludes;
  }
  configs.hf_quant_config = {{"producer", producer}, {"quantization", std::move(quantization)}};
  return configs;
}

// --- compressed-tensors -------------------------------------------------------------------------

std::string EscapedForRegex(std::string_view text) {
  constexpr std::string_view kSpecial = R"(\.^$|?*+()[]{})";
  std::string escaped;
  for (char c : text) {
    if (kSpecial.find(c) != kSpecial.npos) escaped += '\\';
    escaped += c;
  }
  return escaped;
}

std::string AllUnder(std::string_view container) {
  return "re:" + EscapedForRegex(container) + R"(\..*)";
}

std::vector<std::string> CompressedTensorsIgnoreList(const Modules& modules) {
  std::set<std::string> ignores = TiedHeads(modules), names = modules.kept;
  AddFusedNames(modules.kept, names);
  for (const std::string& name : names) {
    const auto experts = ExpertsOf(name);
    if (!experts || !modules.kept_experts.contains(*experts)) ignores.insert(name);
  }
  for (const std::string& experts : modules.kept_experts) {
    ignores.insert(experts);
    ignores.insert(AllUnder(experts));
  }
  // Wrappers move these subtrees about: "visual" on disk may be "model.visual" in memory.
  for (const std::string& subtree : modules.kept_subtrees) {
    const std::string_view last = LastComponent(subtree);
    ignores.insert(modules.IsQuantizedName(last)
                       ? AllUnder(subtree)
                       : R"(re:(?:.*\.)?)" + EscapedForRegex(last) + R"(\..*)");
  }
  return {ignores.begin(), ignores.end()};
}

// Of one group; a container of experts that is all of it as one expression.
OrderedJson CompressedTensorsTargets(const Modules& modules, bool weight_only) {
  std::set<std::string> targets, names, fused;
  for (const auto& [name, is_weight_only] : modules.quantized) {
    if (is_weight_only == weight_only) names.insert(name);
  }
  AddFusedNames(names, fused);
  names.merge(fused);
  for (const std::string& name : names) {
    const auto experts = ExpertsOf(name);
    const bool whole = experts && modules.whole_experts[weight_only].contains(*experts);
    targets.insert(whole ? AllUnder(*experts) : name);
  }
  return targets;
}

// QuantizationArgs of the library.
OrderedJson CompressedTensorsArgs(OrderedJson dynamic, const char* observer) {
  return {{"actorder", nullptr},
          {"block_structure", nullptr},
          {"dynamic", std::move(dynamic)},
          {"group_size", kBlockSize},
          {"num_bits", 4},
          {"observer", observer},
          {"observer_kwargs", OrderedJson::object()},
          {"scale_dtype", "torch.float8_e4m3fn"},
          {"strategy", "tensor_group"},
          {"symmetric", true},
          {"type", "float"},
          {"zp_dtype", nullptr}};
}

OrderedJson CompressedTensorsConfig(const Modules& modules, KvCacheFormat kv_cache) {
  constexpr char kFormat[] = "nvfp4-pack-quantized";
  const OrderedJson targets[2] = {CompressedTensorsTargets(modules, false),
                                  CompressedTensorsTargets(modules, true)};
  const bool mixed = !targets[0].empty() && !targets[1].empty();
  OrderedJson groups = OrderedJson::object();
  for (const bool weight_only : {false, true}) {
    if (targets[weight_only].empty()) continue;
    OrderedJson group;
    group["format"] = kFormat;
    group["input_activations"] =
        weight_only ? OrderedJson(nullptr) : CompressedTensorsArgs("local", "static_minmax");
    group["output_activations"] = nullptr;
    group["targets"] = mixed ? targets[weight_only] : OrderedJson::array({"Linear"});
    group["weights"] = CompressedTensorsArgs(false, "memoryless_minmax");
    groups[absl::StrCat("group_", groups.size())] = std::move(group);
  }
  OrderedJson cache = nullptr;
  if (kv_cache == KvCacheFormat::kFp8) {
    cache = {{"actorder", nullptr},
             {"block_structure", nullptr},
             {"dynamic", false},
             {"group_size", nullptr},
             {"num_bits", 8},
             {"observer", "static_minmax"},
             {"observer_kwargs", OrderedJson::object()},
             {"scale_dtype", nullptr},
             {"strategy", "tensor"},
             {"symmetric", true},
             {"type", "float"},
             {"zp_dtype", nullptr}};
  }
  return {
      {"config_groups", std::move(groups)},        {"format", kFormat},
      {"global_compression_ratio", nullptr},       {"ignore", CompressedTensorsIgnoreList(modules)},
      {"kv_cache_scheme", std::move(cache)},       {"quant_method", "compressed-tensors"},
      {"quantization_status", "compressed"},       {"sparsity_config", OrderedJson::object()},
      {"transform_config", OrderedJson::object()}, {"version", kCompressedTensorsVersion}};
}

// --- config.json --------------------------------------------------------------------------------

// Loaders look for these keys in nested configurations, too (text_config).
void RemoveStaleKeys(OrderedJson& object) {
  for (const std::string_view key : kStaleKeys) object.erase(std::string(key));
  for (auto& [key, value] : object.items()) {
    if (value.is_object()) RemoveStaleKeys(value);
  }
}

}  // namespace

absl::StatusOr<std::vector<ConfigFile>> ConfigFilesOf(const Plan& plan, const Recipe& recipe,
                                                      const std::string& config_json) {
  absl::StatusOr<OrderedJson> parsed = ParseOrderedJsonObject(config_json);
  if (!parsed.ok()) return Annotate(parsed.status(), "config.json");
  OrderedJson config = *std::move(parsed);
  NIBBLE_ASSIGN_OR_RETURN(const Modules modules, ModulesOf(plan, recipe.output.format));
  if (modules.quantized.empty()) {
    return absl::InvalidArgumentError("plan: expected at least one quantized weight, got none");
  }
  RemoveStaleKeys(config);
  std::vector<ConfigFile> files;
  if (recipe.output.format == ExportFormat::kModelopt) {
    ModeloptConfigs configs = ModeloptConfigsOf(modules, recipe.kv_cache);
    config[kKey] = std::move(configs.config);
    files.push_back({"hf_quant_config.json", configs.hf_quant_config.dump(4) + "\n"});
  } else {
    const std::optional<std::string> misread =
        Misread(CompressedTensorsIgnoreList(modules), modules,
                [](const std::vector<std::string>& list, const LoaderModule& m, bool all) {
                  return CompressedTensorsIgnores(list, m).value_or(!all);
                });
    if (misread) {
      return absl::FailedPreconditionError(absl::StrCat(
          "module ", Quoted(*misread),
          ": expected a name that compressed-tensors' list of kept modules can tell from the "
          "others, "
          "got none such; use the format modelopt, or treat the modules alike by a rule"));
    }
    config[kKey] = CompressedTensorsConfig(modules, recipe.kv_cache);
  }
  files.insert(files.begin(), {"config.json", UnquoteConstants(config.dump(2)) + "\n"});
  return files;
}

}  // namespace nibble
