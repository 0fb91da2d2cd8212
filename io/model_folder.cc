#include "io/model_folder.h"

#include <sys/stat.h>

#include <algorithm>
#include <cctype>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <system_error>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_format.h"
#include "base/fingerprint.h"
#include "base/status.h"
#include "base/text.h"
#include "io/file_descriptor.h"
#include "io/text_file.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

constexpr const char* kConfigName = "config.json";
constexpr const char* kSingleName = "model.safetensors";
constexpr std::string_view kShardSuffix = ".safetensors";

// Far above what the largest models need (an index of 20 MB, a config of 2 MB).
constexpr size_t kMaxConfigBytes = 32'000'000;
constexpr size_t kMaxIndexBytes = 100'000'000;
constexpr size_t kMaxFiles = 100'000;  // in one folder with all below it
constexpr int kMaxFolderDepth = 32;

// --- The index ----------------------------------------------------------------------------------

struct Index {
  std::vector<std::string> files;                    // sorted
  std::vector<std::pair<std::string, int>> tensors;  // sorted; the number of its file
};

// Takes the events of nlohmann's SAX parser, as safetensors.cc does and for the same reasons.
// Whatever stands beside weight_map is skipped.
class IndexHandler {
 public:
  absl::Status status() const { return status_; }
  bool has_map() const { return has_map_; }
  std::map<std::string, int>& files() { return files_; }
  std::vector<std::pair<std::string, int>>& tensors() { return tensors_; }

  bool null() { return Value("null"); }
  bool boolean(bool) { return Value("a boolean"); }
  bool number_integer(int64_t) { return Value("a number"); }
  bool number_unsigned(uint64_t) { return Value("a number"); }
  bool number_float(double, const std::string&) { return Value("a number"); }
  bool binary(nlohmann::json::binary_t&) { return Value("binary"); }

  bool string(std::string& text) {
    if (!InMap()) return Value("a string");
    const auto file = files_.try_emplace(text, static_cast<int>(files_.size())).first;
    tensors_.emplace_back(std::move(key_), file->second);
    return true;
  }

  bool start_object(size_t) { return Open(); }
  bool start_array(size_t) {
    if (depth_ == 0) return Fail("expected an object, got an array");
    return Open();
  }
  bool end_object() { return Close(); }
  bool end_array() { return Close(); }

  bool key(std::string& name) {
    if (InMap()) {
      if (name.empty()) return Fail("weight_map: expected names of tensors, got an empty one");
      key_ = std::move(name);
    } else if (depth_ == 1) {
      at_map_ = name == "weight_map";
      if (at_map_ && has_map_) return Fail("expected one weight_map, got a second");
      has_map_ = has_map_ || at_map_;
    }
    return true;
  }

  bool parse_error(size_t position, const std::string& token, const nlohmann::json::exception&) {
    return Fail(
        absl::StrCat("expected JSON in UTF-8, got ", Quoted(token), " up to its byte ", position));
  }

 private:
  bool InMap() const { return at_map_ && depth_ == 2; }

  bool Fail(const std::string& message) {
    status_ = absl::DataLossError(message);
    return false;
  }
  bool Value(const char* got) {
    if (depth_ == 0) return Fail(absl::StrCat("expected an object, got ", got));
    if (depth_ == 1 && at_map_) {
      return Fail(absl::StrCat("weight_map: expected an object, got ", got));
    }
    if (InMap()) {
      return Fail(absl::StrCat("weight_map: ", Quoted(key_), ": expected a file, got ", got));
    }
    return true;
  }
  bool Open() {
    if (InMap()) return Value("more than a name");
    ++depth_;
    return true;
  }
  bool Close() {
    if (--depth_ == 1) at_map_ = false;
    return true;
  }

  absl::Status status_;
  int64_t depth_ = 0;
  bool at_map_ = false, has_map_ = false;  // at_map_: the value of weight_map, or inside of it
  std::string key_;
  std::map<std::string, int> files_;
  std::vector<std::pair<std::string, int>> tensors_;
};

// Whether a name from an index leads to a place in the folder (which may hold a link).
bool StaysInside(const std::string& name) {
  if (name.empty() || name.front() == '/' || name.find('\0') != name.npos) return false;
  for (const fs::path& part : fs::path(name)) {
    if (part == ".." || part == "." || part.empty()) return false;
  }
  return true;
}

absl::StatusOr<Index> ParseIndex(const std::string& text) {
  IndexHandler handler;
  nlohmann::json::sax_parse(text, &handler);
  NIBBLE_RETURN_IF_ERROR(handler.status());
  if (!handler.has_map()) return absl::DataLossError("expected a weight_map, got none");
  Index index;
  std::vector<int> order(handler.files().size());  // from the order of the text to sorted
  for (const auto& [file, number] : handler.files()) {
    if (!StaysInside(file) || !file.ends_with(kShardSuffix)) {
      return absl::DataLossError(absl::StrCat(
          "weight_map: expected *.safetensors files inside of the folder, got ", Quoted(file)));
    }
    order[number] = static_cast<int>(index.files.size());
    index.files.push_back(file);
  }
  index.tensors = std::move(handler.tensors());
  for (auto& [tensor, file] : index.tensors) file = order[file];
  std::ranges::sort(index.tensors);
  for (size_t i = 1; i < index.tensors.size(); ++i) {
    if (index.tensors[i].first == index.tensors[i - 1].first) {
      return absl::DataLossError(absl::StrCat("weight_map: expected names that differ, got ",
                                              Quoted(index.tensors[i].first), " twice"));
    }
  }
  if (index.tensors.empty()) return absl::DataLossError("weight_map: expected tensors, got none");
  return index;
}

// --- The files of a folder ----------------------------------------------------------------------

struct File {
  std::string name;  // relative
  uint64_t bytes = 0;
  // In nanoseconds. `changed` can't be set back, as copying tools do with `modified`.
  int64_t modified = 0, changed = 0;
};

int64_t Nanoseconds(const timespec& time) {
  return time.tv_sec * int64_t{1'000'000'000} + time.tv_nsec;
}

File FileOf(std::string name, const struct stat& info) {
  return {std::move(name), static_cast<uint64_t>(info.st_size), Nanoseconds(info.st_mtim),
          Nanoseconds(info.st_ctim)};
}

absl::StatusOr<File> StatFile(const std::string& folder, const std::string& name) {
  struct stat info;
  const std::string path = absl::StrCat(folder, "/", name);
  if (stat(path.c_str(), &info) != 0) return ErrnoStatus(path, "stat");
  return FileOf(name, info);
}

// All regular files that are not hidden, sorted by name.
absl::StatusOr<std::vector<File>> ListFiles(const std::string& folder) {
  std::vector<File> files;
  std::vector<std::pair<std::string, int>> below = {{"", 0}};  // with a slash at the end, and depth
  while (!below.empty()) {
    const auto [prefix, depth] = std::move(below.back());
    below.pop_back();
    std::error_code error;
    const std::string here = absl::StrCat(folder, "/", prefix);
    for (fs::directory_iterator it(here, error), end; !error && it != end; it.increment(error)) {
      const std::string leaf = it->path().filename().string();
      if (leaf.front() == '.' || leaf == "__pycache__") continue;
      const std::string name = prefix + leaf, path = absl::StrCat(folder, "/", name);
      struct stat info, link;
      if (lstat(path.c_str(), &link) != 0) return ErrnoStatus(path, "stat");
      if (stat(path.c_str(), &info) != 0) {
        if (S_ISLNK(link.st_mode) && errno == ENOENT) {
          return absl::NotFoundError(absl::StrCat(
              Printable(path), ": expected a file, got a symbolic link that leads nowhere"));
        }
        return ErrnoStatus(path, "stat");
      }
      if (S_ISDIR(link.st_mode)) {
        if (depth + 1 >= kMaxFolderDepth) {
          return absl::InvalidArgumentError(absl::StrCat(
              Printable(path), ": expected folders at most ", kMaxFolderDepth, " deep, got more"));
        }
        below.emplace_back(name + "/", depth + 1);
      } else if (S_ISREG(info.st_mode)) {
        files.push_back(FileOf(name, info));
      }
      if (files.size() + below.size() > kMaxFiles) {
        return absl::InvalidArgumentError(absl::StrCat(
            Printable(folder), ": expected a model of at most ", kMaxFiles, " files, got more"));
      }
    }
    if (error) return absl::UnknownError(absl::StrCat(Printable(here), ": ", error.message()));
  }
  std::ranges::sort(files, {}, &File::name);
  return files;
}

// Weights in any format, and their indexes.
bool IsWeights(const std::string& name) {
  const std::string lower = absl::AsciiStrToLower(name);
  for (const char* suffix : {".safetensors",
                             ".safetensors.index.json",
                             ".bin",
                             ".bin.index.json",
                             ".pth",
                             ".pt",
                             ".ckpt",
                             ".gguf",
                             ".ggml",
                             ".h5",
                             ".h5.index.json",
                             ".msgpack",
                             ".msgpack.index.json",
                             ".onnx",
                             ".onnx_data",
                             ".ot",
                             ".tflite",
                             ".nemo",
                             ".npz",
                             ".mlmodel"}) {
    if (lower.ends_with(suffix)) return true;
  }
  return false;
}

// The I and N of "model-0000I-of-0000N.safetensors".
std::optional<std::pair<int, int>> ShardNumber(std::string_view name) {
  constexpr std::string_view kPrefix = "model-", kMiddle = "-of-";
  if (!name.starts_with(kPrefix) || !name.ends_with(kShardSuffix)) return std::nullopt;
  name.remove_prefix(kPrefix.size());
  name.remove_suffix(kShardSuffix.size());
  const size_t middle = name.find(kMiddle);
  if (middle == name.npos) return std::nullopt;
  const auto number = [](std::string_view digits) {
    int value = -1;
    const bool plain =
        !digits.empty() && std::ranges::all_of(digits, [](char c) { return c >= '0' && c <= '9'; });
    return plain && absl::SimpleAtoi(ToAbsl(digits), &value) ? value : -1;
  };
  const int i = number(name.substr(0, middle));
  const int n = number(name.substr(middle + kMiddle.size()));
  if (i < 0 || n < 0) return std::nullopt;
  return std::pair(i, n);
}

absl::Status TwoModels(const std::string& folder, std::string_view other) {
  return absl::DataLossError(absl::StrCat(
      Printable(folder), ": expected one model, got ", kSingleName, " and ", ToAbsl(other),
      ", and loaders differ on which one they read; remove one of the two"));
}

// The safetensors files of a model without an index.
absl::StatusOr<std::vector<std::string>> FindShards(const std::string& folder,
                                                    const std::vector<File>& files) {
  std::vector<std::string> all, numbered;
  std::set<std::pair<int, int>> numbers;
  bool single = false, others = false;
  for (const File& file : files) {
    if (file.name.find('/') != file.name.npos || !file.name.ends_with(kShardSuffix)) continue;
    single = single || file.name == kSingleName;
    if (const auto number = ShardNumber(file.name)) {
      numbered.push_back(file.name);
      numbers.insert(*number);
    }
    if (file.name.starts_with("adapter_")) continue;
    others = others || !file.name.starts_with("consolidated");
    all.push_back(file.name);
  }
  if (single && !numbered.empty()) return TwoModels(folder, numbered.front());
  if (single) return std::vector<std::string>{kSingleName};
  if (!numbered.empty()) {
    const int n = numbers.begin()->second;
    // Some count from 0.
    const int first = numbers.begin()->first == 0 ? 0 : 1;
    int expected = first;
    for (const auto& [i, of] : numbers) {
      if (of != n || i != expected++) {
        return absl::DataLossError(absl::StrCat(Printable(folder), ": expected the shards ", first,
                                                " to ", first + n - 1, " of one model, got ", i,
                                                " of ", of, of == n ? " next" : " beside them",
                                                "; is the download complete?"));
      }
    }
    if (expected != first + n || numbered.size() != numbers.size()) {
      return absl::DataLossError(absl::StrCat(Printable(folder), ": expected ", n,
                                              " shards, as their names say, got ", numbered.size(),
                                              "; is the download complete?"));
    }
    return numbered;
  }
  if (others) std::erase_if(all, [](const auto& name) { return name.starts_with("consolidated"); });
  if (all.empty()) {
    const auto other =
        std::ranges::find_if(files, [](const File& file) { return IsWeights(file.name); });
    return absl::NotFoundError(absl::StrCat(
        Printable(folder), ": expected *.safetensors files, got ",
        other == files.end() ? "none"
                             : absl::StrCat("weights as ", Printable(other->name),
                                            ", a format that is not read; save the model as "
                                            "safetensors first (transformers' save_pretrained)")));
  }
  return all;
}

std::string NameOfTensor(std::string_view name) { return absl::StrCat("tensor ", Quoted(name)); }

// What the index says against what the files hold; both by name.
absl::Status CheckIndex(const Index& index, const std::vector<FolderTensor>& tensors) {
  const auto says = [&](const std::pair<std::string, int>& entry) {
    return absl::StrCat(NameOfTensor(entry.first), ": expected in ",
                        Printable(index.files[entry.second]), ", as ", kShardIndexFile,
                        " says, got ");
  };
  auto entry = index.tensors.begin();
  for (const FolderTensor& tensor : tensors) {
    const std::string& name = tensor.info->name;
    const std::string file = Printable(index.files[tensor.shard]);
    if (entry == index.tensors.end() || entry->first > name) {
      return absl::DataLossError(absl::StrCat(NameOfTensor(name), ": expected an entry in ",
                                              kShardIndexFile, ", as it is in ", file,
                                              ", got none"));
    }
    if (entry->first < name) break;
    if (entry->second != tensor.shard) {
      return absl::DataLossError(absl::StrCat(says(*entry), "it in ", file));
    }
    ++entry;
  }
  if (entry == index.tensors.end()) return absl::OkStatus();
  return absl::DataLossError(absl::StrCat(says(*entry), "no tensor of that name"));
}

std::string FingerprintOf(const std::vector<File>& files, const std::string& config,
                          const std::vector<SafetensorsReader>& shards,
                          const std::set<std::string>& counted) {
  nibble::Fingerprint hash;
  hash.Add(config);
  for (const File& file : files) {
    if (!counted.contains(file.name)) continue;
    hash.Add(file.name);
    hash.Add(file.bytes);
    hash.Add(static_cast<uint64_t>(file.modified));
    hash.Add(static_cast<uint64_t>(file.changed));
  }
  for (const SafetensorsReader& shard : shards) {
    hash.Add(shard.tensors().size());
    for (const TensorInfo& tensor : shard.tensors()) {
      hash.Add(tensor.name);
      hash.Add(DTypeName(tensor.dtype));
      hash.Add(tensor.shape.size());
      for (const int64_t dim : tensor.shape) hash.Add(static_cast<uint64_t>(dim));
      hash.Add(tensor.begin);
    }
    for (const auto& [key, value] : shard.metadata()) {
      hash.Add(key);
      hash.Add(value);
    }
  }
  return hash.Hex();
}

}  // namespace

std::string ShardFileName(size_t shard, size_t shards) {
  if (shards == 1) return kSingleName;
  return absl::StrFormat("model-%05d-of-%05d.safetensors", shard + 1, shards);
}

std::string ShardIndex(const std::map<std::string, std::string>& file_of_tensor,
                       uint64_t tensor_bytes) {
  const nlohmann::ordered_json index = {{"metadata", {{"total_size", tensor_bytes}}},
                                        {"weight_map", file_of_tensor}};
  return index.dump(2) + "\n";
}

absl::StatusOr<ModelFolder> ModelFolder::Open(const std::string& path) {
  struct stat info;
  if (stat(path.c_str(), &info) != 0) return ErrnoStatus(path, "open");
  if (!S_ISDIR(info.st_mode)) {
    return absl::InvalidArgumentError(absl::StrCat(
        Printable(path), ": expected a model folder, got ", ToAbsl(FileKind(info.st_mode))));
  }
  ModelFolder folder;
  folder.path_ = path;
  absl::StatusOr<std::string> config =
      ReadTextFile(absl::StrCat(path, "/", kConfigName), kMaxConfigBytes);
  if (absl::IsNotFound(config.status())) {
    return absl::NotFoundError(
        absl::StrCat(Printable(path), ": expected a model folder with config.json, got none"));
  }
  NIBBLE_RETURN_IF_ERROR(config.status());
  folder.config_json_ = *std::move(config);

  NIBBLE_ASSIGN_OR_RETURN(std::vector<File> files, ListFiles(path));
  std::optional<Index> index;
  std::vector<std::string> shards;
  const std::string index_path = absl::StrCat(path, "/", kShardIndexFile);
  const auto listed = [&](std::string_view name) {
    return std::ranges::binary_search(files, name, {}, &File::name);
  };
  if (listed(kShardIndexFile)) {
    NIBBLE_ASSIGN_OR_RETURN(const std::string text, ReadTextFile(index_path, kMaxIndexBytes));
    absl::StatusOr<Index> parsed = ParseIndex(text);
    if (!parsed.ok()) return Annotate(parsed.status(), Printable(index_path));
    index = *std::move(parsed);
    shards = index->files;
    if (listed(kSingleName) && !std::ranges::binary_search(shards, std::string_view(kSingleName))) {
      return TwoModels(path, absl::StrCat(kShardIndexFile, ", which does not name it"));
    }
  } else {
    NIBBLE_ASSIGN_OR_RETURN(shards, FindShards(path, files));
  }

  for (const std::string& shard : shards) {
    absl::StatusOr<SafetensorsReader> reader =
        SafetensorsReader::Open(absl::StrCat(path, "/", shard));
    if (absl::IsNotFound(reader.status()) && index) {
      return absl::DataLossError(absl::StrCat(
          Printable(index_path), ": expected ", Printable(shard),
          ", which it names, in the folder, got no such file; is the download complete?"));
    }
    if (!reader.ok() && index) {
      return Annotate(reader.status(), absl::StrCat("a shard that ", kShardIndexFile, " names"));
    }
    NIBBLE_RETURN_IF_ERROR(reader.status());
    folder.shards_.push_back(*std::move(reader));
  }
  for (int shard = 0; shard < static_cast<int>(folder.shards_.size()); ++shard) {
    for (const TensorInfo& tensor : folder.shards_[shard].tensors()) {
      folder.tensors_.push_back({&tensor, shard});
    }
  }
  std::ranges::sort(folder.tensors_, {}, [](const FolderTensor& tensor) {
    return std::pair<const std::string&, int>(tensor.info->name, tensor.shard);
  });
  for (size_t i = 1; i < folder.tensors_.size(); ++i) {
    const FolderTensor &a = folder.tensors_[i - 1], &b = folder.tensors_[i];
    if (a.info->name != b.info->name) continue;
    return absl::DataLossError(absl::StrCat(
        Printable(path), ": ", NameOfTensor(a.info->name), ": expected in one shard, got in ",
        Printable(shards[a.shard]), " and in ", Printable(shards[b.shard])));
  }
  if (index) {
    const absl::Status agrees = CheckIndex(*index, folder.tensors_);
    if (!agrees.ok()) return Annotate(agrees, Printable(path));
  }

  std::set<std::string> counted(shards.begin(), shards.end());
  // Shards below hidden folders are not listed.
  for (const std::string& shard : shards) {
    if (listed(shard)) continue;
    NIBBLE_ASSIGN_OR_RETURN(File file, StatFile(path, shard));
    files.insert(std::ranges::lower_bound(files, shard, {}, &File::name), std::move(file));
  }
  for (const File& file : files) {
    if (file.name == kConfigName || file.name == kShardIndexFile ||
        file.name == "hf_quant_config.json" || counted.contains(file.name)) {
      continue;
    }
    if (IsWeights(file.name)) {
      folder.unread_weights_.push_back(file.name);
    } else {
      folder.other_files_.push_back(file.name);
      folder.other_bytes_ += file.bytes;
    }
  }
  counted.insert(folder.other_files_.begin(), folder.other_files_.end());
  folder.fingerprint_ = FingerprintOf(files, folder.config_json_, folder.shards_, counted);
  return folder;
}

std::string AboutUnreadWeights(std::string_view file) {
  return absl::StrCat(Printable(file),
                      ": neither read nor copied: the model is taken from its safetensors, and "
                      "these weights are not quantized; if something needs the file, copy it");
}

const FolderTensor* ModelFolder::Find(std::string_view name) const {
  const auto found = std::ranges::lower_bound(tensors_, name, {}, [](const FolderTensor& tensor) {
    return std::string_view(tensor.info->name);
  });
  return found != tensors_.end() && found->info->name == name ? &*found : nullptr;
}

}  // namespace nibble
