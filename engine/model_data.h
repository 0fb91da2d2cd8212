// Text for a model to run over: a file's tokens, by the tokenizer that lies in the model's folder.
#ifndef NIBBLE_ENGINE_MODEL_DATA_H_
#define NIBBLE_ENGINE_MODEL_DATA_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "model/token_set.h"

namespace nibble {

struct ModelDataRequest {
  std::string path;            // see model/text/token_source.h for what it may be
  std::string field = "text";  // of JSONL
  int64_t sequences = 128;     // at most
  int64_t length = 512;        // tokens of each
};

struct ModelData {
  TokenSet tokens;
  std::vector<std::string> warnings;  // fewer sequences than asked for
};

absl::StatusOr<ModelData> ReadModelData(const std::string& model, const ModelDataRequest& request);

}  // namespace nibble

#endif  // NIBBLE_ENGINE_MODEL_DATA_H_
