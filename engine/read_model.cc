#include "engine/read_model.h"

#include <initializer_list>
#include <string>
#include <utility>

#include "base/status.h"
#include "base/text.h"
#include "io/json_object.h"
#include "nlohmann/json.hpp"

namespace nibble {
namespace {

using Json = nlohmann::json;

constexpr int64_t kMaxLayers = 1'000'000;
constexpr int64_t kMaxHidden = int64_t{1} << 40;

// The first of `names` that is there and not null.
const Json* Find(const Json& object, std::initializer_list<const char*> names, std::string& name) {
  for (const char* candidate : names) {
    const auto found = object.find(candidate);
    if (found == object.end() || found->is_null()) continue;
    name = candidate;
    return &*found;
  }
  return nullptr;
}

// 0 where there is none of `names`.
absl::StatusOr<int64_t> Count(const Json& object, std::initializer_list<const char*> names,
                              int64_t most) {
  std::string name;
  const Json* value = Find(object, names, name);
  if (value == nullptr) return 0;
  if (!value->is_number_unsigned() || value->get<uint64_t>() > static_cast<uint64_t>(most)) {
    return absl::DataLossError(absl::StrCat(name, ": expected an integer from 0 to ", most,
                                            ", got ", Quoted(value->dump(-1, ' ', true))));
  }
  return value->get<int64_t>();
}

absl::StatusOr<std::string> ModelType(const Json& object) {
  std::string name;
  const Json* value = Find(object, {"model_type"}, name);
  if (value == nullptr) return std::string();
  if (!value->is_string()) {
    return absl::DataLossError(
        absl::StrCat("model_type: expected a string, got ", Quoted(value->dump(-1, ' ', true))));
  }
  return value->get<std::string>();
}

// The part of the configuration that speaks of the language model.
absl::StatusOr<const Json*> TextConfig(const Json& config) {
  const Json* part = &config;
  for (int depth = 0; depth < 3; ++depth) {
    std::string name;
    const Json* inner =
        Find(*part, {"text_config", "llm_config", "language_config", "thinker_config"}, name);
    if (inner == nullptr) return part;
    if (!inner->is_object()) {
      return absl::DataLossError(
          absl::StrCat(name, ": expected an object, got ", inner->type_name()));
    }
    part = inner;
  }
  return part;
}

absl::Status FillFromConfig(const std::string& text, Model& model) {
  NIBBLE_ASSIGN_OR_RETURN(const Json config, ParseJsonObject(text));
  NIBBLE_ASSIGN_OR_RETURN(const Json* language, TextConfig(config));
  NIBBLE_ASSIGN_OR_RETURN(model.model_type, ModelType(config));
  if (model.model_type.empty()) {
    NIBBLE_ASSIGN_OR_RETURN(model.model_type, ModelType(*language));
  }
  // Some have an inner configuration that leaves these to the outer one.
  for (const Json* part : {language, &config}) {
    if (model.layers == 0) {
      NIBBLE_ASSIGN_OR_RETURN(
          model.layers,
          Count(*part, {"num_hidden_layers", "n_layer", "num_layers", "n_layers"}, kMaxLayers));
    }
    if (model.hidden_size == 0) {
      NIBBLE_ASSIGN_OR_RETURN(
          model.hidden_size, Count(*part, {"hidden_size", "n_embd", "d_model", "dim"}, kMaxHidden));
    }
  }
  for (const Json* part : {language, &config}) {
    std::string name;
    const Json* tied = Find(*part, {"tie_word_embeddings"}, name);
    if (tied == nullptr) continue;
    if (!tied->is_boolean()) {
      return absl::DataLossError(
          absl::StrCat(name, ": expected true or false, got ", Quoted(tied->dump(-1, ' ', true))));
    }
    model.tied_embeddings = tied->get<bool>();
    break;
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<Model> ReadModel(const ModelFolder& folder) {
  Model model;
  const absl::Status config = FillFromConfig(folder.config_json(), model);
  if (!config.ok()) return Annotate(config, Printable(folder.path() + "/config.json"));
  for (const FolderTensor& tensor : folder.tensors()) {
    model.tensors.push_back({tensor.info->name, tensor.info->dtype, tensor.info->shape});
  }
  return model;
}

}  // namespace nibble
