#include "model/text/tokenizer.h"

#include <optional>
#include <utility>

#include "base/status.h"
#include "base/text.h"
#include "io/text_file.h"
#include "model/text/json_document.h"
#include "model/text/sentencepiece_library.h"
#include "model/text/unicode.h"

namespace nibble {
namespace {

// The largest that are known take 35 MB and 5 MB.
constexpr size_t kMaxJsonBytes = 256'000'000;
constexpr size_t kMaxModelBytes = 64'000'000;
constexpr size_t kMaxConfigBytes = 32'000'000;
// Of a document; the library takes 200 bytes of memory for each of text.
constexpr size_t kMaxSentencePieceBytes = size_t{1} << 25;

class SentencePieceTokenizer final : public Tokenizer {
 public:
  SentencePieceTokenizer(SentencePieceLibrary library, bool add_bos, bool add_eos)
      : library_(std::move(library)), add_bos_(add_bos), add_eos_(add_eos) {}

  int64_t vocabulary() const override { return library_.pieces(); }

 private:
  absl::Status DoEncode(std::string_view text, std::vector<uint32_t>& ids) const override {
    if (text.size() > kMaxSentencePieceBytes) {
      return absl::FailedPreconditionError(
          absl::StrCat("expected documents of at most ", kMaxSentencePieceBytes,
                       " bytes for tokenizer.model, got ", text.size()));
    }
    std::vector<int> pieces;
    const std::string problem = library_.Encode(text, pieces);
    if (!problem.empty()) {
      return absl::InternalError(absl::StrCat("sentencepiece: ", Printable(problem)));
    }
    if (add_bos_ && library_.bos() >= 0) ids.push_back(static_cast<uint32_t>(library_.bos()));
    ids.insert(ids.end(), pieces.begin(), pieces.end());
    if (add_eos_ && library_.eos() >= 0) ids.push_back(static_cast<uint32_t>(library_.eos()));
    return absl::OkStatus();
  }

  SentencePieceLibrary library_;
  bool add_bos_, add_eos_;
};

absl::StatusOr<std::unique_ptr<Tokenizer>> ReadSentencePiece(const std::string& folder) {
  const std::string path = folder + "/tokenizer.model";
  NIBBLE_ASSIGN_OR_RETURN(const std::string model, ReadTextFile(path, kMaxModelBytes));
  SentencePieceLibrary library;
  if (const std::string problem = library.Load(model); !problem.empty()) {
    return absl::DataLossError(absl::StrCat(
        Printable(path), ": expected a model of SentencePiece, got: ", Printable(problem)));
  }
  // What LlamaTokenizer assumes where the file does not say.
  bool add_bos = true, add_eos = false;
  const std::string config_path = folder + "/tokenizer_config.json";
  const absl::StatusOr<std::string> config = ReadTextFile(config_path, kMaxConfigBytes);
  if (config.ok()) {
    const absl::StatusOr<nlohmann::json> document = ParseJson(*config);
    if (!document.ok()) return Annotate(document.status(), Printable(config_path));
    const JsonNode root(*document);
    for (const auto& [key, value] :
         {std::pair("add_bos_token", &add_bos), {"add_eos_token", &add_eos}}) {
      const absl::StatusOr<bool> flag = root[key].BoolOr(*value);
      if (!flag.ok()) return Annotate(flag.status(), Printable(config_path));
      *value = *flag;
    }
  } else if (!absl::IsNotFound(config.status())) {
    return config.status();
  }
  return std::make_unique<SentencePieceTokenizer>(std::move(library), add_bos, add_eos);
}

absl::StatusOr<std::unique_ptr<Tokenizer>> ReadJson(const std::string& path) {
  NIBBLE_ASSIGN_OR_RETURN(const std::string json, ReadTextFile(path, kMaxJsonBytes));
  absl::StatusOr<std::unique_ptr<Tokenizer>> tokenizer = ParseTokenizerJson(json);
  if (!tokenizer.ok()) return Annotate(tokenizer.status(), Printable(path));
  return tokenizer;
}

}  // namespace

absl::Status Tokenizer::Encode(std::string_view text, std::vector<uint32_t>& ids) const {
  if (text.size() > kMaxTextBytes) {
    return absl::FailedPreconditionError(
        absl::StrCat("expected documents of at most ", kMaxTextBytes, " bytes, got ", text.size()));
  }
  NIBBLE_RETURN_IF_ERROR(CheckUtf8(text));
  return DoEncode(text, ids);
}

absl::StatusOr<std::unique_ptr<Tokenizer>> ReadTokenizer(const std::string& folder) {
  absl::StatusOr<std::unique_ptr<Tokenizer>> from_json = ReadJson(folder + "/tokenizer.json");
  const absl::Status& json = from_json.status();
  if (!absl::IsNotFound(json) && !absl::IsUnimplemented(json)) return from_json;
  absl::StatusOr<std::unique_ptr<Tokenizer>> from_model = ReadSentencePiece(folder);
  if (!absl::IsNotFound(from_model.status())) return from_model;
  if (absl::IsUnimplemented(json)) return json;
  return absl::NotFoundError(
      absl::StrCat(Printable(folder), ": expected tokenizer.json or tokenizer.model, got neither"));
}

}  // namespace nibble
