// Text into the ids of a model's tokens, by the tokenizer that lies in its folder.
#ifndef NIBBLE_MODEL_TEXT_TOKENIZER_H_
#define NIBBLE_MODEL_TEXT_TOKENIZER_H_

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace nibble {

// Of a document, whose indexes have 32 bits.
inline constexpr size_t kMaxTextBytes = size_t{1} << 30;

// Const members may be called from several threads at once.
class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  // Appends the ids of one document, with the special tokens that belong around it (BOS).
  // FailedPrecondition "line L, byte B: ..." for what is not UTF-8, and for more than kMaxTextBytes
  // (32 MiB for SentencePiece, whose library takes 200 times that); ResourceExhausted where a pattern takes
  // too many steps.
  absl::Status Encode(std::string_view text, std::vector<uint32_t>& ids) const;

  // All ids are below this.
  virtual int64_t vocabulary() const = 0;

 private:
  // Of well-formed UTF-8.
  virtual absl::Status DoEncode(std::string_view text, std::vector<uint32_t>& ids) const = 0;
};

// tokenizer.json. DataLoss for what contradicts itself, Unimplemented, with the place, for kinds
// of tokenizers that the library has and we have not. `docs/text.md` lists what is supported.
absl::StatusOr<std::unique_ptr<Tokenizer>> ParseTokenizerJson(std::string_view json);

// A folder's tokenizer.json, or its tokenizer.model (SentencePiece) where there is no
// tokenizer.json or one that is not supported. NotFound where there is neither.
absl::StatusOr<std::unique_ptr<Tokenizer>> ReadTokenizer(const std::string& folder);

}  // namespace nibble

#endif  // NIBBLE_MODEL_TEXT_TOKENIZER_H_
