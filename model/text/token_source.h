// Calibration and evaluation data: a file of text or of token ids into sequences of one length.
//
// Documents are concatenated, in the order of the file, each as the tokenizer encodes it (so each
// begins with BOS where the model has one); sequence i is the tokens i * length up to
// (i + 1) * length. What is left at the end is dropped. Nothing is shuffled or padded.
#ifndef NIBBLE_MODEL_TEXT_TOKEN_SOURCE_H_
#define NIBBLE_MODEL_TEXT_TOKEN_SOURCE_H_

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/enum_names.h"
#include "model/text/tokenizer.h"
#include "model/token_set.h"

namespace nibble {

enum class TokenFormat : uint8_t {
  kText,         // UTF-8, one document
  kJsonl,        // an object a line, one document each
  kSafetensors,  // ids in one tensor of U16, U32, I32 or I64, row by row
  kUint16,       // ids, little-endian, nothing else
  kUint32,
};

template <>
inline constexpr std::array kEnumNames<TokenFormat> = {
    std::string_view("text"), std::string_view("jsonl"), std::string_view("safetensors"),
    std::string_view("u16"), std::string_view("u32")};

// The format that the end of a file's name speaks of: .jsonl and .ndjson, .safetensors, .u16, .u32;
// text for any other but .json and .bin, which may be several things and are InvalidArgument.
absl::StatusOr<TokenFormat> TokenFormatOf(const std::string& path);

struct TokenSource {
  std::string path;
  std::optional<TokenFormat> format;  // else by the path
  std::string field = "text";         // where a line of JSONL has its text
};

struct TokenCut {
  std::optional<int64_t> sequences;  // at most; else all
  int64_t length = 2048;
  int64_t vocabulary = 0;  // of the model: all ids are below it
};

// Fewer sequences than `cut` says where the file holds fewer: the caller tells. Of JSONL and of
// ids it reads no more than it needs. `tokenizer` may be null for ids.
//
// Each message names the file and the place. DataLoss for files that break their format's rules;
// FailedPrecondition for text that is not UTF-8 or has zeros in it, ids that are not the model's,
// and files that are too short for one sequence; InvalidArgument for a cut or a source that is
// none.
absl::StatusOr<TokenSet> ReadTokens(const TokenSource& source, const Tokenizer* tokenizer,
                                    const TokenCut& cut);

}  // namespace nibble

#endif  // NIBBLE_MODEL_TEXT_TOKEN_SOURCE_H_
