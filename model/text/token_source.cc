#include "model/text/token_source.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <span>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "base/dtype.h"
#include "base/status.h"
#include "base/text.h"
#include "io/line_reader.h"
#include "io/safetensors.h"
#include "io/text_file.h"
#include "model/text/json_document.h"
#include "model/text/unicode.h"

namespace nibble {
namespace {

constexpr size_t kMaxLineBytes = size_t{1} << 28;
constexpr int64_t kMaxTokens = int64_t{1} << 32;
constexpr std::string_view kByteOrderMark = "\xEF\xBB\xBF";

std::string_view WithoutMark(std::string_view text) {
  if (text.starts_with(kByteOrderMark)) text.remove_prefix(kByteOrderMark.size());
  return text;
}

bool IsBlank(std::string_view line) { return line.find_first_not_of(" \t\r") == line.npos; }

// Reads ids, `wanted` of them where the file has as many; more where a document ends behind.
class SourceReader {
 public:
  SourceReader(const TokenSource& source, const Tokenizer* tokenizer, int64_t wanted)
      : source_(source), tokenizer_(tokenizer), wanted_(wanted) {}

  absl::StatusOr<std::vector<uint32_t>> Read(TokenFormat format) && {
    NIBBLE_RETURN_IF_ERROR(Fill(format));
    return std::move(ids_);
  }

 private:
  absl::Status Fill(TokenFormat format) {
    const bool is_text = format == TokenFormat::kText || format == TokenFormat::kJsonl;
    if (is_text && tokenizer_ == nullptr) {
      return absl::InvalidArgumentError("expected a tokenizer for text, got none");
    }
    switch (format) {
      case TokenFormat::kText:
        return ReadText();
      case TokenFormat::kJsonl:
        return ReadJsonl();
      case TokenFormat::kSafetensors:
        return ReadTensor();
      case TokenFormat::kUint16:
        return ReadRaw<uint16_t>();
      case TokenFormat::kUint32:
        return ReadRaw<uint32_t>();
    }
    return absl::InternalError("expected a format, got none");
  }

  absl::Status ReadText() {
    NIBBLE_ASSIGN_OR_RETURN(const std::string file, ReadTextFile(source_.path, kMaxTextBytes));
    const std::string_view text = WithoutMark(file);
    NIBBLE_RETURN_IF_ERROR(CheckText(text));
    return text.empty() ? absl::OkStatus() : tokenizer_->Encode(text, ids_);
  }

  absl::Status ReadJsonl() {
    NIBBLE_ASSIGN_OR_RETURN(LineReader lines, LineReader::Open(source_.path, kMaxLineBytes));
    while (static_cast<int64_t>(ids_.size()) < wanted_) {
      NIBBLE_ASSIGN_OR_RETURN(std::optional<std::string_view> line, lines.Next());
      if (!line) break;
      if (lines.number() == 1) line = WithoutMark(*line);
      if (IsBlank(*line)) continue;
      // First the bytes: JSON would only say that they are wrong.
      NIBBLE_RETURN_IF_ERROR(CheckText(*line, lines.number()));
      const absl::Status status = AddLine(*line);
      if (!status.ok()) return Annotate(status, absl::StrCat("line ", lines.number()));
    }
    return absl::OkStatus();
  }

  absl::Status AddLine(std::string_view line) {
    NIBBLE_ASSIGN_OR_RETURN(const nlohmann::json document, ParseJson(line));
    const JsonNode root(document);
    NIBBLE_RETURN_IF_ERROR(root.CheckObject());
    NIBBLE_ASSIGN_OR_RETURN(const std::string_view text, root[source_.field].String());
    if (const size_t zero = text.find('\0'); zero != text.npos) {
      return absl::FailedPreconditionError(absl::StrCat(
          Printable(source_.field), ": expected text without zeros, got one at its byte ", zero));
    }
    return text.empty() ? absl::OkStatus() : tokenizer_->Encode(text, ids_);
  }

  absl::Status ReadTensor() {
    NIBBLE_ASSIGN_OR_RETURN(const auto reader, SafetensorsReader::Open(source_.path));
    const TensorInfo* tensor = reader.Find("input_ids");
    if (tensor == nullptr && reader.tensors().size() == 1) tensor = &reader.tensors()[0];
    if (tensor == nullptr) {
      return absl::DataLossError(absl::StrCat("expected a tensor \"input_ids\", or one alone, got ",
                                              reader.tensors().size(), " others"));
    }
    const bool is_id = tensor->dtype == DType::kU16 || tensor->dtype == DType::kU32 ||
                       tensor->dtype == DType::kI32 || tensor->dtype == DType::kI64;
    if (!is_id) {
      return absl::DataLossError(absl::StrCat("tensor ", Quoted(tensor->name),
                                              ": expected U16, U32, I32 or I64, got ",
                                              ToAbsl(DTypeName(tensor->dtype))));
    }
    const auto width = static_cast<uint64_t>(DTypeBytes(tensor->dtype));
    const uint64_t count = std::min(tensor->bytes() / width, static_cast<uint64_t>(wanted_));
    std::vector<std::byte> bytes(count * width);
    NIBBLE_RETURN_IF_ERROR(reader.ReadRange(*tensor, 0, bytes));
    switch (tensor->dtype) {
      case DType::kU16:
        return Add<uint16_t>(bytes);
      case DType::kU32:
        return Add<uint32_t>(bytes);
      case DType::kI32:
        return Add<int32_t>(bytes);
      default:
        return Add<int64_t>(bytes);
    }
  }

  template <typename T>
  absl::Status ReadRaw() {
    NIBBLE_ASSIGN_OR_RETURN(const std::string bytes,
                            ReadFileStart(source_.path, static_cast<size_t>(wanted_) * sizeof(T)));
    if (bytes.size() % sizeof(T) != 0) {
      return absl::DataLossError(
          absl::StrCat("expected a multiple of ", sizeof(T), " bytes, got ", bytes.size()));
    }
    return Add<T>(std::as_bytes(std::span(bytes)));
  }

  template <typename T>
  absl::Status Add(std::span<const std::byte> bytes) {
    ids_.reserve(bytes.size() / sizeof(T));
    for (size_t i = 0; i < bytes.size(); i += sizeof(T)) {
      T id;
      std::memcpy(&id, bytes.data() + i, sizeof(T));
      if (!std::in_range<int32_t>(id) || id < 0) {
        return absl::FailedPreconditionError(
            absl::StrCat("token ", i / sizeof(T), ": expected an id from 0 to 2^31-1, got ", id));
      }
      ids_.push_back(static_cast<uint32_t>(id));
    }
    return absl::OkStatus();
  }

  const TokenSource& source_;
  const Tokenizer* tokenizer_;
  const int64_t wanted_;
  std::vector<uint32_t> ids_;
};

absl::Status CheckCut(const TokenCut& cut) {
  const auto error = [](const char* what, const char* rule, int64_t got) {
    return absl::InvalidArgumentError(absl::StrCat(what, ": expected ", rule, ", got ", got));
  };
  if (cut.length < 1) return error("sequence length", "at least 1", cut.length);
  if (cut.vocabulary < 1) return error("vocabulary", "at least 1", cut.vocabulary);
  if (!cut.sequences) return absl::OkStatus();
  if (*cut.sequences < 1) return error("sequences", "at least 1", *cut.sequences);
  if (*cut.sequences > kMaxTokens / cut.length) {
    return error("sequences", "at most 2^32 tokens in all", *cut.sequences);
  }
  return absl::OkStatus();
}

absl::StatusOr<TokenSet> Cut(std::vector<uint32_t> ids, const TokenCut& cut) {
  const int64_t whole = static_cast<int64_t>(ids.size()) / cut.length;
  const int64_t sequences = std::min(cut.sequences.value_or(whole), whole);
  if (sequences == 0) {
    return absl::FailedPreconditionError(
        absl::StrCat("expected at least ", cut.length, " tokens, one sequence, got ", ids.size()));
  }
  ids.resize(static_cast<size_t>(sequences * cut.length));
  for (size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] < cut.vocabulary) continue;
    return absl::FailedPreconditionError(absl::StrCat("token ", i, ": expected an id below ",
                                                      cut.vocabulary,
                                                      ", the model's vocabulary, got ", ids[i]));
  }
  return TokenSet{std::move(ids), std::vector<int64_t>(static_cast<size_t>(sequences), cut.length)};
}

}  // namespace

absl::StatusOr<TokenFormat> TokenFormatOf(const std::string& path) {
  constexpr std::pair<std::string_view, TokenFormat> kEndings[] = {
      {".jsonl", TokenFormat::kJsonl},
      {".ndjson", TokenFormat::kJsonl},
      {".safetensors", TokenFormat::kSafetensors},
      {".u16", TokenFormat::kUint16},
      {".u32", TokenFormat::kUint32}};
  const std::string lower = absl::AsciiStrToLower(path);
  for (const auto& [ending, format] : kEndings) {
    if (lower.ends_with(ending)) return format;
  }
  for (const char* ending :
       {".json", ".bin", ".parquet", ".arrow", ".npy", ".gz", ".zst", ".zip"}) {
    if (!lower.ends_with(ending)) continue;
    return absl::InvalidArgumentError(
        absl::StrCat(Printable(path),
                     ": expected a name that says what is in it: *.txt, *.jsonl, *.safetensors, "
                     "*.u16 or *.u32, got *",
                     ending, "; rename or convert it"));
  }
  return TokenFormat::kText;
}

absl::StatusOr<TokenSet> ReadTokens(const TokenSource& source, const Tokenizer* tokenizer,
                                    const TokenCut& cut) {
  NIBBLE_RETURN_IF_ERROR(CheckCut(cut));
  std::optional<TokenFormat> format = source.format;
  if (!format) {
    NIBBLE_ASSIGN_OR_RETURN(format, TokenFormatOf(source.path));
  }
  const int64_t wanted = cut.sequences ? *cut.sequences * cut.length : kMaxTokens;
  auto ids = SourceReader(source, tokenizer, wanted).Read(*format);
  absl::StatusOr<TokenSet> tokens =
      ids.ok() ? Cut(*std::move(ids), cut) : absl::StatusOr<TokenSet>(ids.status());
  if (tokens.ok() || ToStd(tokens.status().message()).starts_with(source.path)) return tokens;
  return Annotate(tokens.status(), Printable(source.path));
}

}  // namespace nibble
