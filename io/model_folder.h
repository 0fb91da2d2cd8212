// A Hugging Face model folder: config.json and safetensors, single or sharded.
//
// Which safetensors files are the model, as the common loaders see it:
//   1. those that model.safetensors.index.json names, else
//   2. model.safetensors, else
//   3. model-0000I-of-0000N.safetensors, all N of them, else
//   4. every *.safetensors but adapters (adapter_*) and, where there is anything besides, Mistral's
//      second copy of the model (consolidated*).
// Where 1 or 3 stands beside a model.safetensors that is not part of it, loaders would disagree,
// and Open refuses. A path, or a file in the folder, may be a symbolic link, as in hub caches.
#ifndef NIBBLE_IO_MODEL_FOLDER_H_
#define NIBBLE_IO_MODEL_FOLDER_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "io/safetensors.h"

namespace nibble {

// How a folder's safetensors are named, and the file that says which tensor is in which, where
// there are several.
inline constexpr char kShardIndexFile[] = "model.safetensors.index.json";
std::string ShardFileName(size_t shard, size_t shards);
std::string ShardIndex(const std::map<std::string, std::string>& file_of_tensor,
                       uint64_t tensor_bytes);

struct FolderTensor {
  const TensorInfo* info = nullptr;
  int shard = 0;  // in shards()
};

// An open folder. Const members may be called from several threads at once.
class ModelFolder {
 public:
  // NotFound for a folder without config.json or safetensors, or where a file that the index names
  // is missing; DataLoss where the index and the shards contradict each other (a tensor that is in
  // no shard, in two, or in another), naming both, and where the index is no index: names that
  // repeat, files outside of the folder.
  static absl::StatusOr<ModelFolder> Open(const std::string& path);

  const std::string& path() const { return path_; }
  const std::string& config_json() const { return config_json_; }
  const std::vector<SafetensorsReader>& shards() const { return shards_; }
  const std::vector<FolderTensor>& tensors() const { return tensors_; }  // by name
  const FolderTensor* Find(std::string_view name) const;
  const SafetensorsReader& ReaderOf(const FolderTensor& tensor) const {
    return shards_[tensor.shard];
  }

  // What a copy of the model needs besides config.json and tensors (tokenizers,
  // generation_config.json, code), by name, relative to path(): all regular files, of subfolders
  // too, but hidden ones and those in hidden folders (.git, .cache), __pycache__,
  // hf_quant_config.json, which speaks of the source's tensors, and weights. Folders that are
  // symbolic links are not entered.
  const std::vector<std::string>& other_files() const { return other_files_; }
  uint64_t other_bytes() const { return other_bytes_; }  // of all of them

  // Weights that are neither read nor to be copied: safetensors of no part of the model, the same
  // model in other formats (*.bin, *.pth, *.gguf, *.onnx ...), and indexes. By name, relative.
  const std::vector<std::string>& unread_weights() const { return unread_weights_; }

  // A hash of names, sizes, modification times and headers, as they were when opened: changes when
  // the source does, not when the folder is moved.
  const std::string& Fingerprint() const { return fingerprint_; }

 private:
  ModelFolder() = default;

  std::string path_, config_json_;
  std::vector<SafetensorsReader> shards_;
  std::vector<FolderTensor> tensors_;
  std::vector<std::string> other_files_, unread_weights_;
  uint64_t other_bytes_ = 0;
  std::string fingerprint_;
};

// On a file of unread_weights(): that it stays behind, why, and what to do.
std::string AboutUnreadWeights(std::string_view file);

}  // namespace nibble

#endif  // NIBBLE_IO_MODEL_FOLDER_H_
