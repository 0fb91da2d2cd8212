// A model folder as what a decoder runs: original, or quantized in one of our export formats, whose
// loaders' arithmetic this repeats from the stored bytes.
#ifndef NIBBLE_ENGINE_RUNNABLE_MODEL_H_
#define NIBBLE_ENGINE_RUNNABLE_MODEL_H_

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "base/parallel_for.h"
#include "io/model_folder.h"
#include "model/decoder_config.h"
#include "model/weight_source.h"

namespace nibble {

class RunnableModel {
 public:
  // Beside what ModelFolder::Open and ReadDecoderConfig say: DataLoss for a quantized matrix that
  // lacks a part or whose parts do not fit. `threads` as in ThreadPool.
  static absl::StatusOr<std::unique_ptr<RunnableModel>> Open(const std::string& path,
                                                             int threads = 0);
  RunnableModel(const RunnableModel&) = delete;
  RunnableModel& operator=(const RunnableModel&) = delete;

  const ModelFolder& folder() const { return folder_; }
  const DecoderConfig& config() const { return config_; }

  // Tensors as they are stored, quantized matrices as fp32: code * block scale * global scale, the
  // first product exact, the second rounded. The model outlives the source.
  WeightSource weights() const;

  // The modules whose weights are quantized, and the multiplier that is stored for their inputs;
  // none where only weights are quantized.
  const std::map<std::string, std::optional<float>>& input_scales() const { return input_scales_; }

  // Of all tensors, scales counted.
  double bits_per_weight() const { return bits_per_weight_; }

 private:
  // A quantized matrix.
  struct Packed {
    const FolderTensor *codes = nullptr, *scales = nullptr;
    float global_scale = 1;  // multiplier
  };

  RunnableModel(ModelFolder folder, int threads) : folder_(std::move(folder)), pool_(threads) {}

  absl::Status FindPacked();
  absl::Status AddPacked(const std::string& module, const FolderTensor& codes, bool modelopt);
  absl::StatusOr<float> ReadScale(const std::string& name, bool modelopt) const;
  absl::StatusOr<HostTensor> Dequantized(const Packed& packed) const;

  ModelFolder folder_;
  DecoderConfig config_;
  mutable ThreadPool pool_;
  std::map<std::string, Packed> packed_;  // by the name of the weight
  std::map<std::string, std::optional<float>> input_scales_;
  double bits_per_weight_ = 0;
};

}  // namespace nibble

#endif  // NIBBLE_ENGINE_RUNNABLE_MODEL_H_
