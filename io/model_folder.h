// A Hugging Face model folder: config.json and safetensors, single or sharded.
#ifndef NIBBLE_IO_MODEL_FOLDER_H_
#define NIBBLE_IO_MODEL_FOLDER_H_

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "io/safetensors.h"

namespace nibble {

struct FolderTensor {
  const TensorInfo* info = nullptr;
  int shard = 0;  // in shards()
};

// An open folder. Const members may be called from several threads at once.
class ModelFolder {
 public:
  // NotFound for a folder without config.json or safetensors; DataLoss where the index and the
  // shards contradict each other (a tensor that is in no shard, or in two), naming both.
  static absl::StatusOr<ModelFolder> Open(const std::string& path);

  const std::string& path() const { return path_; }
  const std::string& config_json() const { return config_json_; }
  const std::vector<SafetensorsReader>& shards() const { return shards_; }
  const std::vector<FolderTensor>& tensors() const { return tensors_; }  // by name
  const FolderTensor* Find(std::string_view name) const;
  const SafetensorsReader& ReaderOf(const FolderTensor& tensor) const {
    return shards_[tensor.shard];
  }

  // Regular files that are neither safetensors, nor their index, nor config.json: what a copy of
  // the model needs besides (tokenizers, generation_config.json, code). Relative to path().
  const std::vector<std::string>& other_files() const { return other_files_; }

  // A hash of names, sizes, modification times and headers: changes when the source does.
  std::string Fingerprint() const;

 private:
  ModelFolder() = default;

  std::string path_, config_json_;
  std::vector<SafetensorsReader> shards_;
  std::vector<FolderTensor> tensors_;
  std::vector<std::string> other_files_;
};

}  // namespace nibble

#endif  // NIBBLE_IO_MODEL_FOLDER_H_
