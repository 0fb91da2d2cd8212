#include "engine/model_data.h"

#include <memory>
#include <utility>

#include "base/status.h"
#include "io/model_folder.h"
#include "model/decoder_config.h"
#include "model/text/token_source.h"
#include "model/text/tokenizer.h"

namespace nibble {

absl::StatusOr<ModelData> ReadModelData(const std::string& model, const ModelDataRequest& request) {
  NIBBLE_ASSIGN_OR_RETURN(const ModelFolder folder, ModelFolder::Open(model));
  NIBBLE_ASSIGN_OR_RETURN(const DecoderConfig config, ReadDecoderConfig(folder));
  NIBBLE_ASSIGN_OR_RETURN(const TokenFormat format, TokenFormatOf(request.path));
  std::unique_ptr<Tokenizer> tokenizer;
  if (format == TokenFormat::kText || format == TokenFormat::kJsonl) {
    NIBBLE_ASSIGN_OR_RETURN(tokenizer, ReadTokenizer(model));
  }
  ModelData data;
  NIBBLE_ASSIGN_OR_RETURN(
      data.tokens,
      ReadTokens({.path = request.path, .format = format, .field = request.field}, tokenizer.get(),
                 {.sequences = request.sequences,
                  .length = request.length,
                  .vocabulary = config.vocabulary}));
  if (data.tokens.sequences() < request.sequences) {
    data.warnings.push_back(
        absl::StrCat(request.path, ": ", data.tokens.sequences(), " sequences of ", request.length,
                     " tokens, fewer than the ", request.sequences, " asked for"));
  }
  return data;
}

}  // namespace nibble
