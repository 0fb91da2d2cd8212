#include "engine/verify_model.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <utility>

#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "base/parallel_for.h"
#include "base/status.h"
#include "base/tensor_view.h"
#include "base/text.h"
#include "engine/calibration.h"
#include "engine/loader_rules.h"
#include "io/json_object.h"
#include "io/model_folder.h"
#include "io/safetensors.h"
#include "io/text_file.h"
#include "nlohmann/json.hpp"
#include "quant/error_stats.h"
#include "quant/output_error.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

constexpr size_t kMostJson = 1 << 30;
constexpr char kIndexName[] = "model.safetensors.index.json";
constexpr int kBlock = 16;

class Holes {
 public:
  explicit Holes(std::vector<std::string>& lines) : lines_(lines) {}

  template <typename... Args>
  void Add(const Args&... args) {
    lines_.push_back(Printable(absl::StrCat(args...)));
  }
  void Add(const absl::Status& status) { Add(status.message()); }

 private:
  std::vector<std::string>& lines_;
};

// --- A folder -----------------------------------------------------------------------------------

struct Place {
  const SafetensorsReader* reader = nullptr;
  const TensorInfo* info = nullptr;
  std::string shard;  // name of the file
};

struct Folder {
  std::string path;
  std::vector<std::string> shard_names;
  std::vector<std::unique_ptr<SafetensorsReader>> shards;
  std::map<std::string, Place> tensors;

  const Place* Find(const std::string& name) const {
    const auto it = tensors.find(name);
    return it == tensors.end() ? nullptr : &it->second;
  }
};

absl::StatusOr<std::vector<std::string>> FileNames(const std::string& path) {
  std::error_code error;
  if (!fs::is_directory(path, error)) {
    return absl::NotFoundError(absl::StrCat(path, ": expected a folder, got none"));
  }
  std::vector<std::string> names;
  for (fs::directory_iterator it(path, error), end; !error && it != end; it.increment(error)) {
    std::error_code ignored;
    if (it->is_regular_file(ignored)) names.push_back(it->path().filename().string());
  }
  if (error) return absl::UnknownError(absl::StrCat(path, ": ", error.message()));
  std::sort(names.begin(), names.end());
  return names;
}

absl::StatusOr<Folder> OpenFolder(const std::string& path, Holes& holes) {
  NIBBLE_ASSIGN_OR_RETURN(const std::vector<std::string> names, FileNames(path));
  Folder folder;
  folder.path = path;
  for (const std::string& name : names) {
    if (!name.ends_with(".safetensors")) continue;
    folder.shard_names.push_back(name);
    absl::StatusOr<SafetensorsReader> reader = SafetensorsReader::Open(path + "/" + name);
    if (!reader.ok()) {
      holes.Add(reader.status());
      continue;
    }
    folder.shards.push_back(std::make_unique<SafetensorsReader>(*std::move(reader)));
    const SafetensorsReader& shard = *folder.shards.back();
    for (const TensorInfo& info : shard.tensors()) {
      const auto [it, is_new] = folder.tensors.try_emplace(info.name, Place{&shard, &info, name});
      if (!is_new) {
        holes.Add("tensor ", Quoted(info.name), ": expected one, got one in ", it->second.shard,
                  " and one in ", name);
      }
    }
  }
  return folder;
}

// The tensors that `nibble quantize` reads of a source.
Folder TensorsOf(const ModelFolder& model) {
  Folder folder;
  folder.path = model.path();
  for (const FolderTensor& tensor : model.tensors()) {
    folder.tensors.emplace(tensor.info->name, Place{&model.ReaderOf(tensor), tensor.info, ""});
  }
  return folder;
}

std::optional<Json> ReadJsonObject(const std::string& path, Holes& holes) {
  const absl::StatusOr<std::string> text =
      ReadTextFile(path, std::min<size_t>(kMostJson, [&]() -> size_t {
                     std::error_code error;
                     const auto size = fs::file_size(path, error);
                     return error ? 0 : static_cast<size_t>(size);
                   }()));
  if (!text.ok()) {
    holes.Add(text.status());
    return std::nullopt;
  }
  absl::StatusOr<Json> json = ParseJsonObject(*text);
  if (json.ok()) return *std::move(json);
  holes.Add(Annotate(json.status(), path));
  return std::nullopt;
}

const Json& Member(const Json& object, const std::string& key) {
  static const Json kNull;
  if (!object.is_object()) return kNull;
  const auto it = object.find(key);
  return it == object.end() ? kNull : *it;
}

std::string Text(const Json& value) {
  return value.is_string() ? value.get<std::string>()
                           : value.dump(-1, ' ', false, Json::error_handler_t::replace);
}

// The strings of an array; nullopt where it is none, or holds something else.
std::optional<std::vector<std::string>> Strings(const Json& value) {
  if (!value.is_array()) return std::nullopt;
  std::vector<std::string> strings;
  for (const Json& item : value) {
    if (!item.is_string()) return std::nullopt;
    strings.push_back(item.get<std::string>());
  }
  return strings;
}

void CheckIndex(const Folder& folder, Holes& holes, VerifyReport& report) {
  for (const auto& shard : folder.shards) {
    const auto it = shard->metadata().find("format");
    if (it == shard->metadata().end() || it->second != "pt") {
      holes.Add(shard->path(), ": expected the metadata format=pt, which loaders ask for, got ",
                it == shard->metadata().end() ? "none" : Quoted(it->second));
    }
  }
  const std::string path = folder.path + "/" + kIndexName;
  std::error_code error;
  if (!fs::exists(path, error)) {
    if (folder.shard_names != std::vector<std::string>{"model.safetensors"}) {
      holes.Add(path, ": expected an index of ", folder.shard_names.size(), " shards, got none");
    }
    return;
  }
  const std::optional<Json> index = ReadJsonObject(path, holes);
  if (!index) return;
  const Json& map = Member(*index, "weight_map");
  if (!map.is_object()) {
    holes.Add(path, ": expected a weight_map, got ", map.type_name());
    return;
  }
  for (const auto& [name, file] : map.items()) {
    const Place* place = folder.Find(name);
    if (place == nullptr) {
      holes.Add(path, ": tensor ", Quoted(name), ": expected it in ", Quoted(Text(file)),
                ", got none");
    } else if (Text(file) != place->shard) {
      holes.Add(path, ": tensor ", Quoted(name), ": expected ", place->shard, ", where it is, got ",
                Quoted(Text(file)));
    }
  }
  for (const auto& [name, place] : folder.tensors) {
    if (!map.contains(name)) {
      holes.Add(path, ": expected tensor ", Quoted(name), " of ", place.shard, ", got none");
    }
  }
  const Json& total = Member(Member(*index, "metadata"), "total_size");
  if (!total.is_number_unsigned() || total.get<uint64_t>() != report.bytes) {
    holes.Add(path, ": total_size: expected ", report.bytes, ", got ", Text(total));
  }
}

// --- Tensors of quantized matrices --------------------------------------------------------------

std::string ModuleOf(const std::string& tensor) {
  return tensor.ends_with(".weight") ? tensor.substr(0, tensor.size() - 7) : tensor;
}

// A quantized matrix, or a stack of them in the orientation of batched products.
struct Matrix {
  std::string module;  // the name before ".weight", or the parameter's own
  const Place *codes = nullptr, *scales = nullptr, *global = nullptr, *input = nullptr;
  bool columns = false;       // [E, K/2, N]
  std::vector<float> stored;  // the global scale as it is stored, once it was read
};

enum Part { kCodes, kScales, kGlobal, kInput };
struct Suffix {
  const char* text;
  Part part;
  bool columns;
};
constexpr Suffix kModeloptSuffixes[] = {
    {".weight_scale_2", kGlobal, false}, {".weight_scale", kScales, false},
    {".input_scale", kInput, false},     {"_weight_scale_2", kGlobal, true},
    {"_weight_scale", kScales, true},    {"_input_scale", kInput, true},
};
constexpr Suffix kCompressedTensorsSuffixes[] = {
    {".weight_packed", kCodes, false},
    {".weight_scale", kScales, false},
    {".weight_global_scale", kGlobal, false},
    {".input_global_scale", kInput, false},
};

// What other quantizations leave behind.
constexpr const char* kStaleSuffixes[] = {"_scale_inv", "_blocks", "_scales", ".qweight",
                                          ".qzeros",    ".g_idx",  "._amax",  "_double_scale"};

class Matrices {
 public:
  Matrices(const Folder& folder, bool modelopt) {
    const std::span<const Suffix> suffixes =
        modelopt ? std::span<const Suffix>(kModeloptSuffixes) : kCompressedTensorsSuffixes;
    for (const auto& [name, place] : folder.tensors) {
      for (const Suffix& suffix : suffixes) {
        if (!name.ends_with(suffix.text)) continue;
        Matrix& matrix = OfModule(name.substr(0, name.size() - std::strlen(suffix.text)));
        matrix.columns |= suffix.columns;
        Set(matrix, suffix.part, place);
        break;
      }
      if (modelopt && name.ends_with(".weight") && place.info->dtype == DType::kU8) {
        Set(OfModule(ModuleOf(name)), kCodes, place);
      }
    }
    if (!modelopt) return;
    for (auto& [module, matrix] : by_module_) {
      if (matrix.columns) matrix.codes = folder.Find(module);
    }
  }

  const std::map<std::string, Matrix>& all() const { return by_module_; }
  std::map<std::string, Matrix>& all() { return by_module_; }
  const Matrix* Find(const std::string& module) const {
    const auto it = by_module_.find(module);
    return it == by_module_.end() ? nullptr : &it->second;
  }

  // Names of the tensors that quantized matrices are made of.
  std::set<std::string> Used() const {
    std::set<std::string> used;
    for (const auto& [module, matrix] : by_module_) {
      for (const Place* place : {matrix.codes, matrix.scales, matrix.global, matrix.input}) {
        if (place != nullptr) used.insert(place->info->name);
      }
    }
    return used;
  }

 private:
  Matrix& OfModule(const std::string& module) {
    Matrix& matrix = by_module_[module];
    matrix.module = module;
    return matrix;
  }
  static void Set(Matrix& matrix, Part part, const Place& place) {
    (part == kCodes    ? matrix.codes
     : part == kScales ? matrix.scales
     : part == kGlobal ? matrix.global
                       : matrix.input) = &place;
  }

  std::map<std::string, Matrix> by_module_;
};

bool IsUsableScale(float value) { return std::isnormal(value) && value > 0; }

// A float32 scalar of the format's shape, positive and normal with a reciprocal that is, too.
std::optional<float> CheckScalar(const Place& place, bool modelopt, Holes& holes) {
  const TensorInfo& info = *place.info;
  const std::vector<int64_t> shape = modelopt ? std::vector<int64_t>() : std::vector<int64_t>{1};
  if (info.dtype != DType::kF32 || info.shape != shape) {
    holes.Add("tensor ", Quoted(info.name), ": expected F32 ", ShapeName(shape), ", got ",
              TypeName(info.dtype, info.shape));
    return std::nullopt;
  }
  float value = 0;
  const absl::Status status =
      place.reader->Read(info, std::as_writable_bytes(std::span(&value, 1)));
  if (!status.ok()) {
    holes.Add(status);
    return std::nullopt;
  }
  if (!IsUsableScale(value) || !IsUsableScale(1 / value)) {
    holes.Add("tensor ", Quoted(info.name),
              ": expected a positive, normal number that can be inverted, got ", value);
    return std::nullopt;
  }
  return value;
}

void CheckBlockScales(const Place& place, Holes& holes) {
  const TensorInfo& info = *place.info;
  std::vector<std::byte> bytes(std::min<uint64_t>(info.bytes(), kReadBytes));
  uint64_t zero = 0, nan = 0, negative = 0, first = 0;
  for (uint64_t at = 0; at < info.bytes(); at += kReadBytes) {
    const std::span<std::byte> part(bytes.data(),
                                    std::min<uint64_t>(kReadBytes, info.bytes() - at));
    const absl::Status status = place.reader->ReadRange(info, at, part);
    if (!status.ok()) return holes.Add(status);
    for (size_t i = 0; i < part.size(); ++i) {
      const uint8_t code = std::to_integer<uint8_t>(part[i]);
      if (code - 1u < 126u) continue;
      if (zero + nan + negative == 0) first = at + i;
      if ((code & 0x7F) == 0x7F) {
        ++nan;
      } else if (code == 0) {
        ++zero;
      } else {
        ++negative;
      }
    }
  }
  if (zero + nan + negative > 0) {
    holes.Add("tensor ", Quoted(info.name), ": expected positive block scales, got ", nan, " NaN, ",
              zero, " zero and ", negative, " negative ones of ", info.bytes(),
              ", the first at byte ", first);
  }
}

// Of a matrix whose parts are there: whether their types and shapes fit.
bool CheckShapes(const Matrix& matrix, Holes& holes) {
  const TensorInfo &codes = *matrix.codes->info, &scales = *matrix.scales->info;
  const size_t rank = matrix.columns ? 3 : 2, axis = matrix.columns ? 1 : rank - 1;
  if (codes.dtype != DType::kU8 || codes.shape.size() != rank || codes.shape[axis] % 8 != 0) {
    holes.Add("tensor ", Quoted(codes.name), ": expected U8 of ", rank,
              " dimensions, two codes a byte and blocks of 16, got ",
              TypeName(codes.dtype, codes.shape));
    return false;
  }
  std::vector<int64_t> expected = codes.shape;
  expected[axis] /= 8;
  if (scales.dtype != DType::kF8E4M3 || scales.shape != expected) {
    holes.Add("tensor ", Quoted(scales.name), ": expected F8_E4M3 ", ShapeName(expected), ", got ",
              TypeName(scales.dtype, scales.shape));
    return false;
  }
  return true;
}

// --- Configurations -----------------------------------------------------------------------------

// What the configurations say, in the terms of both formats.
struct Declared {
  bool modelopt = false;
  std::vector<std::string> excludes;
  // By module on disk: weight-only or not; absent for a module that is not declared as quantized.
  std::function<std::optional<bool>(const std::string& module)> weight_only;
};

bool IsNvfp4Args(const Json& args, bool compressed_tensors) {
  const auto is = [&](const char* key, const Json& value) { return Member(args, key) == value; };
  const bool same = is("num_bits", 4) && is("type", "float") && is("group_size", kBlock);
  return same && (!compressed_tensors || (is("strategy", "tensor_group") && is("symmetric", true)));
}

void FindStaleKeys(const Json& object, const std::string& at, Holes& holes) {
  for (const auto& [key, value] : object.items()) {
    const bool is_ours = at.empty() && key == "quantization_config";
    if (key == "compression_config" || (key == "quantization_config" && !is_ours)) {
      holes.Add("config.json: expected one quantization_config, got ", at, key, ", too");
    }
    if (value.is_object() && !is_ours) FindStaleKeys(value, at + key + ".", holes);
  }
}

std::optional<bool> WeightOnlyOfAlgorithm(const Json& algorithm) {
  if (algorithm == "NVFP4") return false;
  if (algorithm == "W4A16_NVFP4") return true;
  return std::nullopt;
}

// "quantized_layers" of MIXED_PRECISION: an entry for the module or for its container.
std::optional<std::map<std::string, bool>> MixedLayers(const Json& layers, const std::string& file,
                                                       Holes& holes) {
  if (!layers.is_object() || layers.empty()) {
    holes.Add(file, ": quantized_layers: expected the quantized layers, got ", layers.type_name());
    return std::nullopt;
  }
  std::map<std::string, bool> result;
  for (const auto& [name, layer] : layers.items()) {
    const auto weight_only = WeightOnlyOfAlgorithm(Member(layer, "quant_algo"));
    if (!weight_only || Member(layer, "group_size") != kBlock) {
      holes.Add(file, ": quantized_layers: ", Quoted(name),
                ": expected NVFP4 or W4A16_NVFP4 with a group_size of 16, got ", Text(layer));
      continue;
    }
    result[name] = *weight_only;
  }
  return result;
}

std::optional<Declared> ReadModelopt(const Json& config, const std::string& folder, Holes& holes,
                                     VerifyReport& report) {
  Declared declared;
  declared.modelopt = true;
  const Json& algorithm = Member(config, "quant_algo");
  report.algorithm = Text(algorithm);
  const bool mixed = algorithm == "MIXED_PRECISION";
  if (!mixed && !WeightOnlyOfAlgorithm(algorithm)) {
    holes.Add("config.json: quant_algo: expected NVFP4, W4A16_NVFP4 or MIXED_PRECISION, got ",
              Text(algorithm));
    return std::nullopt;
  }
  const auto ignore = Strings(Member(config, "ignore"));
  if (!ignore)
    holes.Add("config.json: ignore: expected names, got ", Text(Member(config, "ignore")));
  declared.excludes = ignore.value_or(std::vector<std::string>());

  std::map<std::string, bool> layers;
  if (mixed) {
    auto read = MixedLayers(Member(config, "quantized_layers"), "config.json", holes);
    if (!read) return std::nullopt;
    layers = *std::move(read);
  }

  std::set<bool> kinds;  // of quantization, a group each
  for (const auto& [name, weight_only] : layers) kinds.insert(weight_only);
  const size_t expected_groups = mixed ? kinds.size() : 1;
  const Json& groups = Member(config, "config_groups");
  if (!groups.is_object() || groups.size() != expected_groups) {
    holes.Add("config.json: config_groups: expected ", expected_groups, ", got ", Text(groups));
  } else {
    for (const auto& [name, group] : groups.items()) {
      const Json& inputs = Member(group, "input_activations");
      const auto is_static = [](const Json& args) {
        return IsNvfp4Args(args, false) && Member(args, "dynamic") == false;
      };
      const auto targets = Strings(Member(group, "targets"));
      const bool fits = is_static(Member(group, "weights")) &&
                        (inputs.is_null() || is_static(inputs)) && targets &&
                        (mixed || *targets == std::vector<std::string>{"Linear"});
      if (!fits)
        holes.Add("config.json: ", name,
                  ": expected 4-bit floats in groups of 16, dynamic false, targets [\"Linear\"] "
                  "unless precisions are mixed, got ",
                  Text(group));
      const auto weight_only = WeightOnlyOfAlgorithm(algorithm);
      if (weight_only && *weight_only != inputs.is_null()) {
        holes.Add("config.json: ", name, ": input_activations: expected ",
                  *weight_only ? "none" : "some", " with ", Text(algorithm), ", got ",
                  Text(inputs));
      }
    }
  }

  // The other file says the same.
  constexpr char kFile[] = "hf_quant_config.json";
  if (const auto file = ReadJsonObject(folder + "/" + kFile, holes)) {
    const Json& q = Member(*file, "quantization");
    if (Member(Member(*file, "producer"), "name") != "modelopt") {
      holes.Add(kFile, ": producer: expected the name modelopt, which loaders compare, got ",
                Text(Member(*file, "producer")));
    }
    if (Member(q, "quant_algo") != algorithm) {
      holes.Add(kFile, ": quant_algo: expected ", Text(algorithm), " as in config.json, got ",
                Text(Member(q, "quant_algo")));
    }
    const Json& cache = Member(config, "kv_cache_scheme");
    const Json expected_cache = cache.is_null()     ? Json(nullptr)
                                : cache.is_string() ? cache
                                                    : Json("FP8");
    if (!q.contains("kv_cache_quant_algo") || Member(q, "kv_cache_quant_algo") != expected_cache) {
      holes.Add(
          kFile, ": kv_cache_quant_algo: expected ", Text(expected_cache),
          " as in config.json, got ",
          q.contains("kv_cache_quant_algo") ? Text(Member(q, "kv_cache_quant_algo")) : "none");
    }
    if (mixed) {
      if (Member(q, "quantized_layers") != Member(config, "quantized_layers")) {
        holes.Add(kFile, ": quantized_layers: expected those of config.json, got others");
      }
    } else {
      if (Member(q, "group_size") != kBlock) {
        holes.Add(kFile, ": group_size: expected 16, got ", Text(Member(q, "group_size")));
      }
      const auto excludes = Strings(Member(q, "exclude_modules"));
      if (!excludes ||
          std::set<std::string>(excludes->begin(), excludes->end()) !=
              std::set<std::string>(declared.excludes.begin(), declared.excludes.end())) {
        holes.Add(kFile, ": exclude_modules: expected the entries of ignore in config.json, got ",
                  excludes ? "others" : "none");
      }
    }
  }
  if (mixed) {
    declared.weight_only = [layers](const std::string& module) -> std::optional<bool> {
      for (size_t end = module.size(); end != module.npos && end > 0;
           end = module.rfind('.', end - 1)) {
        const auto it = layers.find(module.substr(0, end));
        if (it != layers.end()) return it->second;
      }
      return std::nullopt;
    };
  } else {
    declared.weight_only = [only = *WeightOnlyOfAlgorithm(algorithm)](const std::string&) {
      return std::optional<bool>(only);
    };
  }
  return declared;
}

std::optional<Declared> ReadCompressedTensors(const Json& config, Holes& holes,
                                              VerifyReport& report) {
  const auto expect = [&](const char* key, const char* value) {
    if (Member(config, key) != value) {
      holes.Add("config.json: ", key, ": expected ", value, ", got ", Text(Member(config, key)));
    }
  };
  expect("format", "nvfp4-pack-quantized");
  expect("quantization_status", "compressed");
  Declared declared;
  const auto ignore = Strings(Member(config, "ignore"));
  if (!ignore)
    holes.Add("config.json: ignore: expected names, got ", Text(Member(config, "ignore")));
  declared.excludes = ignore.value_or(std::vector<std::string>());

  struct Group {
    std::vector<std::string> targets;
    bool weight_only;
  };
  std::vector<Group> groups;
  const Json& config_groups = Member(config, "config_groups");
  if (!config_groups.is_object() || config_groups.empty()) {
    holes.Add("config.json: config_groups: expected some, got ", Text(config_groups));
    return std::nullopt;
  }
  bool any[2] = {false, false};
  for (const auto& [name, group] : config_groups.items()) {
    const Json& inputs = Member(group, "input_activations");
    const auto targets = Strings(Member(group, "targets"));
    if (!IsNvfp4Args(Member(group, "weights"), true) ||
        !(inputs.is_null() ||
          (IsNvfp4Args(inputs, true) && Member(inputs, "dynamic") == "local")) ||
        !targets) {
      holes.Add("config.json: ", name,
                ": expected targets and 4-bit floats, strategy tensor_group of 16, symmetric, "
                "activations dynamic local, got ",
                Text(group));
      continue;
    }
    groups.push_back({*targets, inputs.is_null()});
    any[inputs.is_null()] = true;
  }
  report.algorithm = any[0] && any[1] ? "MIXED_PRECISION" : any[1] ? "W4A16_NVFP4" : "NVFP4";
  // Names and expressions go before classes.
  declared.weight_only = [groups](const std::string& module) -> std::optional<bool> {
    for (const char* class_name : {"", "Linear"}) {
      for (const Group& group : groups) {
        for (const std::string& target : group.targets) {
          if (CompressedTensorsMatches(target, module, class_name)) return group.weight_only;
        }
      }
    }
    return std::nullopt;
  };
  return declared;
}

std::optional<Declared> ReadDeclared(const std::string& folder, Holes& holes,
                                     VerifyReport& report) {
  const std::optional<Json> config = ReadJsonObject(folder + "/config.json", holes);
  if (!config) return std::nullopt;
  FindStaleKeys(*config, "", holes);
  const Json& quantization = Member(*config, "quantization_config");
  const Json& method = Member(quantization, "quant_method");
  if (method == "modelopt") {
    report.format = "modelopt";
    return ReadModelopt(quantization, folder, holes, report);
  }
  if (method == "compressed-tensors") {
    report.format = "compressed-tensors";
    std::error_code error;
    if (fs::exists(folder + "/hf_quant_config.json", error)) {
      holes.Add("hf_quant_config.json: expected none beside compressed-tensors, got one");
    }
    return ReadCompressedTensors(quantization, holes, report);
  }
  holes.Add(
      "config.json: quantization_config: expected the quant_method modelopt or "
      "compressed-tensors, got ",
      Text(method));
  return std::nullopt;
}

// --- Modules as loaders see them ----------------------------------------------------------------

std::string ParentOf(const std::string& module) {
  const size_t dot = module.rfind('.');
  return dot == module.npos ? "" : module.substr(0, dot + 1);
}

// Members of one fused module, and what vLLM and SGLang call it.
struct FusedNames {
  std::vector<std::string> members;
  const char *vllm, *sglang;
};
const std::vector<FusedNames>& AllFusedNames() {
  static const std::vector<FusedNames> kNames = {
      {{"q_proj", "k_proj", "v_proj"}, "qkv_proj", "qkv_proj"},
      {{"gate_proj", "up_proj"}, "gate_up_proj", "gate_up_proj"},
      {{"w1", "w3"}, "gate_up_proj", "gate_up_proj"},
      {{"q_a_proj", "kv_a_proj_with_mqa"}, "fused_qkv_a_proj", "fused_qkv_a_proj_with_mqa"},
      {{"wq_a", "wkv_a_with_mqa"}, "fused_wqa_wkv", "fused_wqa_wkv"},
      {{"in_proj_qkv", "in_proj_z"}, "in_proj_qkvz", "in_proj_qkvz"},
      {{"in_proj_b", "in_proj_a"}, "in_proj_ba", "in_proj_ba"},
  };
  return kNames;
}

// The container of a module inside it: "a.experts" of "a.experts.3.w1".
std::string ContainerOf(const std::string& module) {
  const size_t at = ("." + module).find(".experts.");
  return at == std::string::npos ? "" : module.substr(0, at + 7);
}

bool LooksLikeLinear(const TensorInfo& info) {
  constexpr std::string_view kWeight = ".weight";
  if (!info.name.ends_with(kWeight) || info.shape.size() != 2) return false;
  const std::string module = info.name.substr(0, info.name.size() - kWeight.size());
  const std::string last = module.substr(ParentOf(module).size());
  for (const char* other : {"embed", "wte", "wpe", "norm", "conv", "relative_attention_bias"}) {
    if (last.find(other) != last.npos) return false;
  }
  return IsQuantizable(info.dtype);
}

// A module that loaders make, and whether what is on disk for it is quantized.
struct Expectation {
  LoaderModule vllm, sglang;
  bool quantized = false;
};

std::vector<Expectation> ExpectationsOf(const Folder& folder, const Matrices& matrices,
                                        Holes& holes) {
  std::map<std::string, bool> modules;  // on disk, to whether quantized
  std::map<std::string, std::set<bool>> containers;
  const std::set<std::string> used = matrices.Used();
  for (const auto& [module, matrix] : matrices.all()) {
    const std::string container = ContainerOf(module);
    if (container.empty()) {
      modules[module] = true;
    } else {
      containers[container].insert(true);
    }
  }
  for (const auto& [name, place] : folder.tensors) {
    if (used.contains(name)) continue;
    const std::string container = ContainerOf(name);
    const bool stacked = place.info->shape.size() == 3;
    if (!container.empty()) {
      if (LooksLikeLinear(*place.info) || (stacked && IsQuantizable(place.info->dtype))) {
        containers[container].insert(false);
      }
    } else if (LooksLikeLinear(*place.info)) {
      modules[ModuleOf(name)] = false;
    }
  }
  std::vector<Expectation> expectations;
  for (const auto& [container, states] : containers) {
    if (states.size() > 1) {
      holes.Add("module ", Quoted(container),
                ": expected all of its experts quantized or none, since loaders have one method "
                "for them, got some of each");
      continue;
    }
    expectations.push_back({{container, {}}, {container, {}}, *states.begin()});
  }
  std::set<std::string> fused;
  for (const auto& [module, quantized] : modules) {
    const std::string parent = ParentOf(module), last = module.substr(parent.size());
    for (const FusedNames& names : AllFusedNames()) {
      if (last != names.members[0]) continue;
      std::vector<std::string> members;
      bool alike = true;
      for (const std::string& member : names.members) {
        const auto it = modules.find(parent + member);
        if (it == modules.end()) continue;
        alike &= it->second == quantized;
        members.push_back(it->first);
      }
      if (members.size() < names.members.size()) continue;  // nothing to fuse
      if (!alike) {
        holes.Add("module ", Quoted(parent + names.vllm), ": expected ",
                  absl::StrJoin(names.members, ", "),
                  " all quantized or none, since loaders fuse them, got some of each");
      } else {
        expectations.push_back(
            {{parent + names.vllm, members}, {parent + names.sglang, members}, quantized});
      }
      fused.insert(members.begin(), members.end());
    }
  }
  for (const auto& [module, quantized] : modules) {
    if (!fused.contains(module)) expectations.push_back({{module, {}}, {module, {}}, quantized});
  }
  const bool has_head = std::ranges::any_of(modules, [](const auto& module) {
    return module.first == "lm_head" || module.first.ends_with(".lm_head");
  });
  // One that shares the embedding's tensor.
  if (!has_head) expectations.push_back({{"lm_head", {}}, {"lm_head", {}}, false});
  return expectations;
}

void CheckExcludes(const std::vector<Expectation>& expectations, const Declared& declared,
                   Holes& holes) {
  using Rule = std::optional<bool> (*)(std::span<const std::string>, const LoaderModule&);
  struct Loader {
    const char* name;
    Rule rule;
    bool sglang;
  };
  const std::vector<Loader> loaders =
      declared.modelopt
          ? std::vector<Loader>{{"vLLM", VllmModeloptExcludes, false},
                                {"SGLang", SglangModeloptExcludes, true},
                                {"TensorRT-LLM", TensorRtLlmExcludes, false}}
          : std::vector<Loader>{{"compressed-tensors", CompressedTensorsIgnores, false}};
  for (const Expectation& expectation : expectations) {
    for (const Loader& loader : loaders) {
      LoaderModule module = loader.sglang ? expectation.sglang : expectation.vllm;
      // What compressed-tensors is asked for of a container.
      if (!declared.modelopt && module.name.ends_with("experts")) module.name += ".0.gate_proj";
      const std::optional<bool> excluded = loader.rule(declared.excludes, module);
      if (!excluded) {
        holes.Add("module ", Quoted(module.name), ": expected its members all in the list of what ",
                  "is not quantized or none, got some of each as ", loader.name, " matches them");
      } else if (*excluded == expectation.quantized) {
        holes.Add("module ", Quoted(module.name), ": expected it ",
                  expectation.quantized ? "quantized" : "not quantized",
                  " as its tensors are, got the contrary from the list as ", loader.name,
                  " matches it");
      }
    }
  }
}

// Scalars that loaders take to be one, of modules that they fuse, and of the inputs of a layer's
// experts.
void CheckShared(const Matrices& matrices, Holes& holes) {
  const auto scalar = [](const Place* place) -> std::optional<uint32_t> {
    uint32_t bits = 0;
    if (place == nullptr || place->info->bytes() != sizeof(bits)) return std::nullopt;
    if (!place->reader->Read(*place->info, std::as_writable_bytes(std::span(&bits, 1))).ok()) {
      return std::nullopt;
    }
    return bits;
  };
  const auto compare = [&](const Place* a, const Place* b, const char* why) {
    const auto bits_a = scalar(a), bits_b = scalar(b);
    if (!bits_a || !bits_b || *bits_a == *bits_b) return;
    float value_a, value_b;
    std::memcpy(&value_a, &*bits_a, sizeof(value_a));
    std::memcpy(&value_b, &*bits_b, sizeof(value_b));
    holes.Add("tensor ", Quoted(b->info->name), ": expected ", absl::StrFormat("%.9g", value_a),
              ", that of ", Quoted(a->info->name), ", ", why, ", got ",
              absl::StrFormat("%.9g", value_b));
  };
  std::map<std::string, const Place*> of_experts;  // by container and projection
  for (const auto& [module, matrix] : matrices.all()) {
    const std::string parent = ParentOf(module), last = module.substr(parent.size());
    for (const FusedNames& names : AllFusedNames()) {
      if (last != names.members[0]) continue;
      for (size_t i = 1; i < names.members.size(); ++i) {
        const Matrix* other = matrices.Find(parent + names.members[i]);
        if (other == nullptr) continue;
        if ((matrix.input == nullptr) != (other->input == nullptr)) {
          holes.Add("module ", Quoted(other->module), ": expected an input scale like ",
                    Quoted(module), ", or none like it, since loaders fuse them, got the contrary");
        }
        compare(matrix.global, other->global, "since loaders fuse them");
        compare(matrix.input, other->input, "since loaders fuse them");
      }
    }
    const std::string container = ContainerOf(module);
    if (container.empty() || matrix.input == nullptr || matrix.columns) continue;
    const auto [it, is_new] = of_experts.try_emplace(container + ":" + last, matrix.input);
    if (!is_new) compare(it->second, matrix.input, "since experts of a layer share it");
  }
}

// --- Against the source -------------------------------------------------------------------------

// What stands for a global scale in a backend's terms: an amax that gives the multiplier back.
struct OuterScale {
  float amax;
  int e4m3_max;
};
OuterScale OuterScaleOf(float multiplier) {
  for (int bound : {448, 256}) {
    const float divisor = 6.0f * static_cast<float>(bound);
    float amax = multiplier * divisor;
    amax = std::nextafter(amax, 0.0f);
    for (int step = 0; step < 3; ++step) {
      if (amax / divisor == multiplier) return {amax, bound};
      amax = std::nextafter(amax, HUGE_VALF);
    }
  }
  return {multiplier * 2688.0f, 448};  // not made by division: one unit in the last place off
}

// rows x columns elements of `size` bytes, from columns x rows.
std::vector<std::byte> Transposed(const std::vector<std::byte>& in, int64_t rows, int64_t cols,
                                  size_t size) {
  std::vector<std::byte> out(in.size());
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < cols; ++c) {
      std::memcpy(&out[(r * cols + c) * size], &in[(c * rows + r) * size], size);
    }
  }
  return out;
}

absl::StatusOr<std::vector<std::byte>> ReadPart(const Place& place, uint64_t offset,
                                                uint64_t bytes) {
  std::vector<std::byte> part(bytes);
  NIBBLE_RETURN_IF_ERROR(place.reader->ReadRange(*place.info, offset, part));
  return part;
}

// One of the matrices that a tensor of the source became, and where in it it was.
struct SourcePiece {
  const Matrix* matrix;
  int64_t source_begin;  // in values
  int64_t rows, k;
  // Where the source has [k, turned_rows] instead: rows of its transpose from first_row on.
  int64_t turned_rows = 0, first_row = 0;
};

// Measures errors; of outputs, too, where there are second moments.
struct Meter {
  Backend& backend;
  ThreadPool* pool = nullptr;
  std::span<const float> moments = {};
  ErrorStats stats = {};
  // Of scales from each block's largest magnitude, under the same global one.
  ErrorStats plain = {};
  float amax = 0;  // of the source
  OutputError output = {};
};

// Of expert `e` of a stack; 0 for a matrix.
absl::Status AddErrors(const Place& source, const SourcePiece& piece, int64_t e, double multiplier,
                       Meter& meter) {
  const Matrix& matrix = *piece.matrix;
  const int64_t k = piece.k, size = DTypeBytes(source.info->dtype);
  const int64_t begin = piece.source_begin + e * piece.rows * k;
  const bool turned = piece.turned_rows > 0;
  const int64_t whole = turned ? piece.rows : std::max<int64_t>(1, kReadBytes / (k * size));
  const OuterScale outer = OuterScaleOf(static_cast<float>(multiplier));
  for (int64_t row = 0; row < piece.rows; row += whole) {
    const int64_t n = std::min(whole, piece.rows - row), from = e * piece.rows * k + row * k;
    const int64_t source_rows = turned ? piece.turned_rows : n;
    NIBBLE_ASSIGN_OR_RETURN(std::vector<std::byte> x,
                            ReadPart(source, (begin + row * k) * size, source_rows * k * size));
    NIBBLE_ASSIGN_OR_RETURN(std::vector<std::byte> codes,
                            ReadPart(*matrix.codes, from / 2, n * k / 2));
    NIBBLE_ASSIGN_OR_RETURN(std::vector<std::byte> scales,
                            ReadPart(*matrix.scales, from / kBlock, n * k / kBlock));
    if (turned) x = Transposed(x, source_rows, k, size);
    if (matrix.columns) {
      codes = Transposed(codes, n, k / 2, 1);
      scales = Transposed(scales, n, k / kBlock, 1);
    }
    PackedView packed;
    packed.layout.rows = n;
    packed.layout.cols = k;
    packed.layout.rule = Rule::kCheckpoint;
    packed.layout.e4m3_max = outer.e4m3_max;
    packed.packed = reinterpret_cast<const uint8_t*>(codes.data());
    packed.scale = reinterpret_cast<const uint8_t*>(scales.data());
    packed.amax = &outer.amax;
    const MatrixView view = {x.data() + piece.first_row * k * size, source.info->dtype, n, k};
    NIBBLE_ASSIGN_OR_RETURN(const ErrorStats part, meter.backend.MeasureError(view, packed));
    meter.stats.Merge(part);
    NIBBLE_ASSIGN_OR_RETURN(const float amax, meter.backend.Amax(view));
    meter.amax = std::max(meter.amax, amax);
    QuantizeParams plain;
    plain.rule = Rule::kCheckpoint;
    plain.e4m3_max = outer.e4m3_max;
    plain.global_amax = outer.amax;
    NIBBLE_ASSIGN_OR_RETURN(const PackedTensor again, meter.backend.Quantize(plain, view));
    NIBBLE_ASSIGN_OR_RETURN(const ErrorStats least, meter.backend.MeasureError(view, again.view()));
    meter.plain.Merge(least);
    if (meter.moments.empty()) continue;
    AddOutputError(view, {packed.packed, packed.scale, multiplier}, meter.moments, *meter.pool,
                   meter.output);
  }
  return absl::OkStatus();
}

void CompareCopy(const Place& source, const Place& result, Holes& holes) {
  const TensorInfo &a = *source.info, &b = *result.info;
  if (a.dtype != b.dtype || a.shape != b.shape) {
    holes.Add("tensor ", Quoted(a.name), ": expected ", TypeName(a.dtype, a.shape),
              " as in the source, got ", TypeName(b.dtype, b.shape));
    return;
  }
  for (uint64_t at = 0; at < a.bytes(); at += kReadBytes) {
    const uint64_t bytes = std::min<uint64_t>(kReadBytes, a.bytes() - at);
    const auto x = ReadPart(source, at, bytes), y = ReadPart(result, at, bytes);
    if (!x.ok()) return holes.Add(x.status());
    if (!y.ok()) return holes.Add(y.status());
    if (*x != *y) {
      const auto differ = std::mismatch(x->begin(), x->end(), y->begin()).first - x->begin();
      holes.Add("tensor ", Quoted(a.name),
                ": expected the bytes of the source, got others from byte ",
                at + static_cast<uint64_t>(differ), " on");
      return;
    }
  }
}

// Experts of a tensor [E, a, b] that are matrices in the result, and how they are split there.
struct SplitExperts {
  std::string parent;  // "model.layers.0.mlp.experts."
  std::vector<std::string> names;
};
SplitExperts SplitOf(const std::string& module) {
  SplitExperts split = {ParentOf(module), {}};
  const std::string last = module.substr(split.parent.size());
  split.names = last == "gate_up_proj" ? std::vector<std::string>{"gate_proj", "up_proj"}
                                       : std::vector<std::string>{last};
  return split;
}

// Whether they were transposed, as the shape of the first of them tells; nullopt where it fits both
// ways or neither.
std::optional<bool> AreTurned(const TensorInfo& source, const SplitExperts& split,
                              const Matrices& matrices) {
  const std::vector<int64_t>& shape = source.shape;
  const Matrix* first = matrices.Find(split.parent + "0." + split.names[0]);
  if (shape.size() != 3 || first == nullptr || first->codes == nullptr) return std::nullopt;
  const int64_t parts = static_cast<int64_t>(split.names.size());
  const auto fits = [&](int64_t rows, int64_t k) {
    return first->codes->info->shape == std::vector<int64_t>{rows / parts, k / 2};
  };
  const bool straight = fits(shape[1], shape[2]), turned = fits(shape[2], shape[1]);
  if (straight == turned) return std::nullopt;
  return turned;
}

// Nothing where the source's tensor is not quantized in the result.
std::vector<SourcePiece> PiecesOf(const TensorInfo& source, const Folder& folder,
                                  const Matrices& matrices, bool& complete) {
  complete = true;
  const std::string module = ModuleOf(source.name);
  const std::string_view suffix = source.name == module ? "" : ".weight";
  const std::vector<int64_t>& shape = source.shape;
  const Matrix* matrix = matrices.Find(module);
  const bool own = matrix != nullptr && (matrix->columns || !suffix.empty());
  if (own && shape.size() == (matrix->columns ? 3u : 2u)) {
    if (matrix->columns) return {{matrix, 0, shape[2], shape[1], shape[2]}};
    return {{matrix, 0, shape[0], shape[1]}};
  }
  if (shape.size() != 3) return {};
  const SplitExperts split = SplitOf(module);
  std::optional<bool> told = AreTurned(source, split, matrices);
  if (!told) {  // a square: as its sibling is
    const char* sibling = split.names.size() == 2 ? "down_proj" : "gate_up_proj";
    const Place* other = folder.Find(absl::StrCat(split.parent, sibling, ToAbsl(suffix)));
    if (other != nullptr) {
      told = AreTurned(*other->info, SplitOf(split.parent + sibling), matrices);
    }
  }
  const bool turned = told.value_or(false);
  const int64_t n = shape[turned ? 2 : 1], k = shape[turned ? 1 : 2];
  const int64_t rows = n / static_cast<int64_t>(split.names.size());
  std::vector<SourcePiece> pieces;
  for (int64_t e = 0; e < shape[0]; ++e) {
    for (size_t i = 0; i < split.names.size(); ++i) {
      const Matrix* part = matrices.Find(absl::StrCat(split.parent, e, ".", split.names[i]));
      const int64_t first_row = static_cast<int64_t>(i) * rows;
      if (part == nullptr) {
        complete = false;
      } else if (turned) {
        pieces.push_back({part, e * n * k, rows, k, n, first_row});
      } else {
        pieces.push_back({part, (e * n + first_row) * k, rows, k});
      }
    }
  }
  return pieces;
}

// --- Second moments -----------------------------------------------------------------------------

// The mean of x x^T over the inputs x of matrices, by what names a calibration has for them.
class Moments {
 public:
  static absl::StatusOr<Moments> Open(const std::string& path) {
    NIBBLE_ASSIGN_OR_RETURN(auto calibration, Calibration::Open(path));
    return Moments(path, std::move(calibration));
  }

  // Of the input of a piece of the source's tensor `source`; nullopt where there are none.
  absl::StatusOr<std::optional<std::span<const float>>> Of(const SourcePiece& piece,
                                                           const std::string& source,
                                                           Backend& backend) {
    for (const std::string& name : NamesOf(piece, source)) {
      if (name != name_ || piece.k != columns_) {
        NIBBLE_ASSIGN_OR_RETURN(auto moments, calibration_->Hessians(name, piece.k, backend));
        if (!moments) continue;
        name_ = name;
        columns_ = piece.k;
        moments_ = *std::move(moments);
      }
      return std::span<const float>(moments_);
    }
    return std::nullopt;
  }

  // FailedPrecondition where there are none for any matrix.
  absl::Status Check(const Folder& source, const Matrices& matrices, Backend& backend) {
    std::string first, seen;
    for (const auto& [name, place] : source.tensors) {
      bool complete;
      for (const SourcePiece& piece : PiecesOf(*place.info, source, matrices, complete)) {
        NIBBLE_ASSIGN_OR_RETURN(const auto moments, Of(piece, name, backend));
        if (moments) return absl::OkStatus();
        if (first.empty()) first = piece.matrix->module;
        for (const std::string& input : NamesOf(piece, name)) {
          if (!seen.empty()) break;
          NIBBLE_ASSIGN_OR_RETURN(const int64_t tokens, calibration_->Tokens(input));
          if (tokens > 0) seen = input;
        }
      }
    }
    if (first.empty()) return absl::OkStatus();  // nothing is quantized, which was said
    constexpr char kHow[] =
        "; `nibble calibrate SOURCE --recipe nvfp4_local_hessian --data FILE --out STATE` makes "
        "one";
    if (!seen.empty()) {
      return absl::FailedPreconditionError(absl::StrCat(
          path_, ": expected second moments (Hessians) of the inputs of quantized matrices, got ",
          Quoted(seen), " and others without", kHow));
    }
    return absl::FailedPreconditionError(
        absl::StrCat(path_, ": expected a calibration of this model, with inputs of ",
                     Quoted(first), " or of other quantized matrices, got none of them", kHow));
  }

 private:
  Moments(std::string path, std::unique_ptr<Calibration> calibration)
      : path_(std::move(path)), calibration_(std::move(calibration)) {}

  // Its own; the source's, which stands for all experts that are one tensor there; those of modules
  // that are fused with it, as they read the same input.
  static std::vector<std::string> NamesOf(const SourcePiece& piece, const std::string& source) {
    const std::string& module = piece.matrix->module;
    const std::string parent = ParentOf(module), last = module.substr(parent.size());
    std::vector<std::string> names = {module, ModuleOf(source)};
    for (const FusedNames& fused : AllFusedNames()) {
      if (std::ranges::find(fused.members, last) == fused.members.end()) continue;
      for (const std::string& member : fused.members) {
        if (member != last) names.push_back(parent + member);
      }
    }
    return names;
  }

  std::string path_;
  std::unique_ptr<Calibration> calibration_;
  // Those that were found last: one tensor of the source may hold many matrices.
  std::string name_;
  int64_t columns_ = 0;
  std::vector<float> moments_;
};

// A search by output errors may leave weights nine times the error that the largest magnitudes of
// blocks leave (docs/calibration.md); codes or scales that are lost, hundreds of times.
constexpr double kMostOverPlain = 32;

struct MatrixSize {
  const Matrix* matrix;
  float amax;         // of the source
  double multiplier;  // of the result
};

// The largest magnitude of a matrix must be within reach (6 times the largest block scale, 448, or
// fewer), and not be far below what engines may have fused it with: its siblings.
void CheckGlobalScales(const std::vector<MatrixSize>& sizes, Holes& holes) {
  constexpr double kSlack = 1e-5;
  std::map<std::string, float> of_parent;
  for (const MatrixSize& size : sizes) {
    float& amax = of_parent[ParentOf(size.matrix->module)];
    amax = std::max(amax, size.amax);
  }
  for (const MatrixSize& size : sizes) {
    if (size.amax == 0) continue;
    const double least = size.amax / (6.0 * 448) * (1 - kSlack);
    const double most = std::max<double>(of_parent[ParentOf(size.matrix->module)] / (6.0 * 256),
                                         std::numeric_limits<float>::min()) *
                        (1 + kSlack);
    if (size.multiplier >= least && size.multiplier <= most) continue;
    holes.Add("tensor ", Quoted(size.matrix->global->info->name), ": expected a multiplier of ",
              least, " to ", most, " for weights of at most ", size.amax, " in size, got ",
              size.multiplier);
  }
}

absl::StatusOr<std::set<std::string>> CompareFolders(const Folder& source, const Folder& result,
                                                     const Matrices& matrices, bool modelopt,
                                                     const VerifyOptions& options, Backend& backend,
                                                     Holes& holes, VerifyReport& report) {
  std::set<std::string> claimed, quantized;
  std::vector<MatrixSize> sizes;
  std::optional<Moments> moments;
  std::optional<ThreadPool> pool;
  if (!options.calibration.empty()) {
    NIBBLE_ASSIGN_OR_RETURN(moments, Moments::Open(options.calibration));
    NIBBLE_RETURN_IF_ERROR(moments->Check(source, matrices, backend));
    pool.emplace(options.threads);
    report.all.output.emplace();
  }
  ErrorStats all;
  for (const auto& [name, place] : source.tensors) {
    bool complete = true;
    const std::vector<SourcePiece> pieces = PiecesOf(*place.info, source, matrices, complete);
    if (pieces.empty()) {
      const Place* copy = result.Find(name);
      if (copy == nullptr) {
        holes.Add("tensor ", Quoted(name), ": expected it as in the source or quantized, got none");
      } else {
        claimed.insert(name);
        CompareCopy(place, *copy, holes);
      }
      continue;
    }
    quantized.insert(name);
    if (!complete) holes.Add("tensor ", Quoted(name), ": expected all of its experts, got some");
    for (const SourcePiece& piece : pieces) {
      const Matrix& matrix = *piece.matrix;
      for (const Place* part : {matrix.codes, matrix.scales, matrix.global, matrix.input}) {
        if (part != nullptr) claimed.insert(part->info->name);
      }
      if (matrix.stored.empty()) continue;  // said already
      const std::vector<int64_t>& shape = place.info->shape;
      const std::vector<int64_t> expected =
          matrix.columns ? std::vector<int64_t>{shape[0], shape[1] / 2, shape[2]}
                         : std::vector<int64_t>{piece.rows, piece.k / 2};
      if (!IsQuantizable(place.info->dtype) || matrix.codes->info->shape != expected) {
        holes.Add("tensor ", Quoted(matrix.codes->info->name), ": expected ", ShapeName(expected),
                  " for ", TypeName(place.info->dtype, place.info->shape), " of the source, got ",
                  TypeName(matrix.codes->info->dtype, matrix.codes->info->shape));
        continue;
      }
      Meter meter{backend};
      std::optional<std::span<const float>> seen;
      if (moments) {
        NIBBLE_ASSIGN_OR_RETURN(seen, moments->Of(piece, name, backend));
        meter.pool = &*pool;
        meter.moments = seen.value_or(meter.moments);
      }
      absl::Status status;
      const double stored = matrix.stored[0], multiplier = modelopt ? stored : 1 / stored;
      const int64_t stack = matrix.columns ? shape[0] : 1;
      for (int64_t e = 0; e < stack && status.ok(); ++e) {
        status = AddErrors(place, piece, e, multiplier, meter);
      }
      if (!status.ok()) {
        holes.Add("tensor ", Quoted(name), ": ", status.message());
        continue;
      }
      const ErrorStats& stats = meter.stats;
      all.Merge(stats);
      report.errors.push_back({matrix.module, stats.relative_mse(), stats.sqnr_db()});
      if (seen) {
        report.errors.back().output = meter.output;
        report.all.output->Merge(meter.output);
      }
      if (stats.relative_mse() > kMostOverPlain * meter.plain.relative_mse()) {
        holes.Add("module ", Quoted(matrix.module), ": expected the values of the source's ",
                  Quoted(name), ", with a relative MSE near the ", meter.plain.relative_mse(),
                  " that the largest magnitudes of the blocks give, got ", stats.relative_mse());
      }
      sizes.push_back({&matrix, meter.amax, multiplier});
    }
  }
  CheckGlobalScales(sizes, holes);
  for (const auto& [name, place] : result.tensors) {
    if (!claimed.contains(name)) {
      holes.Add("tensor ", Quoted(name),
                ": expected one that stands for something of the source, "
                "got an extra one");
    }
  }
  std::ranges::stable_sort(report.errors, std::greater(), &WeightError::relative_mse);
  report.all.relative_mse = all.relative_mse();
  report.all.sqnr_db = all.sqnr_db();
  return quantized;
}

bool HaveSameBytes(const std::string& a, const std::string& b) {
  std::error_code error;
  if (fs::file_size(a, error) != fs::file_size(b, error) || error) return false;
  std::ifstream one(a, std::ios::binary), other(b, std::ios::binary);
  std::vector<char> x(size_t{1} << 20), y(x.size());
  while (one && other) {
    one.read(x.data(), std::ssize(x));
    other.read(y.data(), std::ssize(y));
    if (one.gcount() != other.gcount() || std::memcmp(x.data(), y.data(), one.gcount()) != 0) {
      return false;
    }
  }
  return one.eof() && other.eof();
}

// Everything in config.json but quantizations, and all other files that were copied; some a model
// is useless without.
void CompareFiles(const ModelFolder& model, const std::string& result, Holes& holes) {
  const std::string& source = model.path();
  const auto without_quantization = [](Json config) {
    const auto remove = [](auto& self, Json& object) -> void {
      object.erase("quantization_config");
      object.erase("compression_config");
      for (auto& [key, value] : object.items()) {
        if (value.is_object()) self(self, value);
      }
    };
    remove(remove, config);
    return config;
  };
  const auto a = ReadJsonObject(source + "/config.json", holes);
  const auto b = ReadJsonObject(result + "/config.json", holes);
  if (a && b && without_quantization(*a) != without_quantization(*b)) {
    holes.Add(
        "config.json: expected all of the source's but quantization_config, got a difference");
  }
  for (const std::string& name : model.other_files()) {
    const bool needed = name.find("token") != name.npos || name.ends_with(".model") ||
                        name.ends_with(".jinja") || name.ends_with(".py") ||
                        name == "generation_config.json" || name == "vocab.json" ||
                        name == "merges.txt" || name == "preprocessor_config.json";
    std::error_code error;
    if (!fs::is_regular_file(result + "/" + name, error)) {
      if (needed) holes.Add("file ", Quoted(name), ": expected a copy of the source's, got none");
    } else if (!HaveSameBytes(source + "/" + name, result + "/" + name)) {
      holes.Add("file ", Quoted(name), ": expected the bytes of the source's, got others");
    }
  }
}

}  // namespace

absl::StatusOr<VerifyReport> VerifyModel(const std::string& path, const VerifyOptions& options,
                                         Backend& backend) {
  if (!options.calibration.empty() && options.against.empty()) {
    return absl::InvalidArgumentError(
        "--calib: expected --against SOURCE with it, the model whose weights the quantized ones "
        "are compared with, got none");
  }
  VerifyReport report;
  Holes holes(report.holes);
  NIBBLE_ASSIGN_OR_RETURN(const Folder folder, OpenFolder(path, holes));
  report.shards = static_cast<int64_t>(folder.shard_names.size());
  report.tensors = static_cast<int64_t>(folder.tensors.size());
  for (const auto& [name, place] : folder.tensors) report.bytes += place.info->bytes();
  if (folder.shard_names.empty()) holes.Add(path, ": expected *.safetensors, got none");
  CheckIndex(folder, holes, report);

  const std::optional<Declared> declared = ReadDeclared(path, holes, report);
  const bool modelopt = report.format != "compressed-tensors";
  Matrices matrices(folder, modelopt);
  for (auto& [module, matrix] : matrices.all()) {
    const std::optional<bool> weight_only =
        declared ? declared->weight_only(module) : std::optional<bool>(matrix.input == nullptr);
    if (!weight_only) {
      holes.Add("module ", Quoted(module),
                ": expected it in the configuration as quantized, as "
                "its tensors are, got nothing");
    }
    bool complete = true;
    const auto need = [&, &name = module](const Place* place, const char* what) {
      if (place != nullptr) return;
      holes.Add("module ", Quoted(name), ": expected ", what, ", got none");
      complete = false;
    };
    need(matrix.codes, "packed codes (U8)");
    need(matrix.scales, "block scales");
    need(matrix.global, "a global scale");
    if (weight_only && !*weight_only)
      need(matrix.input, "an input scale, since it is not weight-only");
    if (weight_only && *weight_only && matrix.input != nullptr) {
      holes.Add("module ", Quoted(module),
                ": expected no input scale, since it is weight-only, got ",
                Quoted(matrix.input->info->name));
    }
    if (matrix.input != nullptr) CheckScalar(*matrix.input, modelopt, holes);
    const std::optional<float> global =
        matrix.global == nullptr ? std::nullopt : CheckScalar(*matrix.global, modelopt, holes);
    if (matrix.scales != nullptr && matrix.scales->info->dtype == DType::kF8E4M3) {
      CheckBlockScales(*matrix.scales, holes);
    }
    if (matrix.codes != nullptr && matrix.scales != nullptr && CheckShapes(matrix, holes) &&
        global && complete) {
      matrix.stored = {*global};
    }
    ++report.quantized;
    report.weight_only += matrix.input == nullptr;
  }
  const std::set<std::string> used = matrices.Used();
  for (const auto& [name, place] : folder.tensors) {
    if (used.contains(name)) continue;
    ++report.kept;
    for (const char* suffix : kStaleSuffixes) {
      if (!name.ends_with(suffix)) continue;
      holes.Add("tensor ", Quoted(name), ": expected nothing of an earlier quantization, got it");
      break;
    }
    if (!modelopt && name.ends_with(".weight") && matrices.Find(ModuleOf(name)) != nullptr) {
      holes.Add("tensor ", Quoted(name), ": expected none beside its quantized form, got it");
    }
  }
  if (report.quantized == 0) holes.Add(path, ": expected quantized weights, got none");
  if (declared) {
    const std::vector<Expectation> expectations = ExpectationsOf(folder, matrices, holes);
    if (report.algorithm == "MIXED_PRECISION" && modelopt) {
      for (const Expectation& expectation : expectations) {
        if (!expectation.quantized && declared->weight_only(expectation.vllm.name)) {
          holes.Add("module ", Quoted(expectation.vllm.name),
                    ": expected it not in quantized_layers, as it is not quantized, got it there");
        }
      }
    } else {
      CheckExcludes(expectations, *declared, holes);
    }
  }
  CheckShared(matrices, holes);

  if (!options.against.empty()) {
    NIBBLE_ASSIGN_OR_RETURN(const ModelFolder source_model, ModelFolder::Open(options.against));
    const Folder source = TensorsOf(source_model);
    NIBBLE_ASSIGN_OR_RETURN(
        const std::set<std::string> quantized,
        CompareFolders(source, folder, matrices, modelopt, options, backend, holes, report));
    CompareFiles(source_model, path, holes);
    if (options.planned) {
      NIBBLE_ASSIGN_OR_RETURN(const std::set<std::string> planned,
                              options.planned(options.against));
      for (const std::string& name : planned) {
        if (!quantized.contains(name)) {
          holes.Add("tensor ", Quoted(name), ": expected it quantized by the recipe, got it kept");
        }
      }
      for (const std::string& name : quantized) {
        if (!planned.contains(name)) {
          holes.Add("tensor ", Quoted(name), ": expected it kept by the recipe, got it quantized");
        }
      }
    }
  }
  return report;
}

namespace {

constexpr size_t kWorst = 5;

std::vector<std::string> WithoutMoments(const VerifyReport& report) {
  std::vector<std::string> names;
  for (const WeightError& error : report.errors) {
    if (!error.output) names.push_back(error.name);
  }
  return names;
}

// As columns behind a name.
std::string ErrorLine(const std::string& name, const WeightError& error, bool outputs) {
  std::string line =
      absl::StrFormat("%-60s %14.6g %10.2f", name, error.relative_mse, error.sqnr_db);
  if (error.output) {
    absl::StrAppendFormat(&line, " %14.6g", error.output->relative());
  } else if (outputs) {
    absl::StrAppendFormat(&line, " %14s", "-");
  }
  return line + "\n";
}

// "2 of 14 matrices have no second moments: a, b"
std::string WithoutMomentsLine(const VerifyReport& report) {
  std::vector<std::string> names = WithoutMoments(report);
  const size_t count = names.size();
  std::string line =
      absl::StrFormat("%d of %d matrices without second moments", count, report.errors.size());
  if (count == 0) return line + "\n";
  for (std::string& name : names) name = Printable(name);
  if (count > kWorst) {
    names.resize(kWorst);
    names.push_back("and others, which --json names");
  }
  return absl::StrCat(line, ", not in the output error: ", absl::StrJoin(names, ", "), "\n");
}

nlohmann::ordered_json ErrorAsJson(const WeightError& error, bool outputs) {
  nlohmann::ordered_json json = {{"relative_mse", error.relative_mse},
                                 {"sqnr_db", FiniteOrNull(error.sqnr_db)}};
  if (!outputs) return json;
  json["output_error"] =
      error.output ? FiniteOrNull(error.output->relative()) : nlohmann::ordered_json(nullptr);
  if (error.output) {
    json["d_h_d"] = error.output->squared_error;
    json["w_h_w"] = error.output->squared_output;
  }
  return json;
}

}  // namespace

std::string VerifyReportAsText(const VerifyReport& report) {
  std::string text;
  for (const std::string& hole : report.holes) absl::StrAppend(&text, "hole: ", hole, "\n");
  absl::StrAppendFormat(
      &text, "%s %s: %d tensors, %d bytes in %d shard%s; %d matrices quantized (%d weight-only), ",
      report.format.empty() ? "no format" : report.format, Printable(report.algorithm),
      report.tensors, report.bytes, report.shards, report.shards == 1 ? "" : "s", report.quantized,
      report.weight_only);
  absl::StrAppendFormat(&text, "%d tensors kept\n", report.kept);
  if (!report.errors.empty()) {
    const bool outputs = report.all.output.has_value();
    absl::StrAppendFormat(&text, "%-60s %14s %10s", "worst against the source", "relative MSE",
                          "SQNR dB");
    if (outputs) absl::StrAppendFormat(&text, " %14s", "output error");
    text += "\n";
    for (size_t i = 0; i < std::min(kWorst, report.errors.size()); ++i) {
      const WeightError& error = report.errors[i];
      text += ErrorLine(Printable(error.name), error, outputs);
    }
    text += ErrorLine("all of them together", report.all, outputs);
    if (outputs) text += WithoutMomentsLine(report);
  }
  absl::StrAppendFormat(&text, "%d hole%s\n", report.holes.size(),
                        report.holes.size() == 1 ? "" : "s");
  return text;
}

std::string VerifyReportAsJson(const VerifyReport& report) {
  const bool outputs = report.all.output.has_value();
  nlohmann::ordered_json errors = nlohmann::ordered_json::array();
  for (const WeightError& error : report.errors) {
    nlohmann::ordered_json entry = {{"name", error.name}};
    entry.update(ErrorAsJson(error, outputs));
    errors.push_back(std::move(entry));
  }
  nlohmann::ordered_json root = {{"format", report.format},
                                 {"algorithm", report.algorithm},
                                 {"shards", report.shards},
                                 {"tensors", report.tensors},
                                 {"bytes", report.bytes},
                                 {"quantized", report.quantized},
                                 {"weight_only", report.weight_only},
                                 {"kept", report.kept},
                                 {"holes", report.holes},
                                 {"errors", std::move(errors)}};
  if (!report.errors.empty()) root["all"] = ErrorAsJson(report.all, outputs);
  if (outputs) root["without_second_moments"] = WithoutMoments(report);
  return root.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
}

}  // namespace nibble
