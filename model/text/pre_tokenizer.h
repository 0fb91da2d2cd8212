// The pre-tokenizers of tokenizer.json: a text into words.
#ifndef NIBBLE_MODEL_TEXT_PRE_TOKENIZER_H_
#define NIBBLE_MODEL_TEXT_PRE_TOKENIZER_H_

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "model/text/json_document.h"
#include "model/text/pattern.h"

namespace nibble {

// Const members may be called from several threads at once.
class PreTokenizer {
 public:
  // Null, ByteLevel, Split, Digits, Metaspace, and Sequences of them where nothing follows
  // ByteLevel; Unimplemented for others.
  static absl::StatusOr<PreTokenizer> Read(const JsonNode& node);

  // Whether words are taken as bytes.
  bool by_bytes() const { return by_bytes_; }

  using Sink = absl::FunctionRef<void(std::string_view)>;
  // Calls `word` for each word, none of them empty. `is_first`: the text is the input's beginning.
  // ResourceExhausted where a pattern takes too many steps.
  absl::Status Apply(std::string_view text, bool is_first, Sink word) const;

 private:
  enum class Behavior { kRemoved, kIsolated, kMergedWithPrevious, kMergedWithNext, kContiguous };
  enum class Prefix { kNever, kFirst, kAlways };
  struct Step {
    std::string spaces = {};  // what spaces become; empty: they stay
    Prefix prefix = Prefix::kNever;
    std::string prefix_text = {};         // put before what does not begin with it
    std::optional<Pattern> pattern = {};  // to split by
    Behavior behavior = Behavior::kIsolated;
    bool invert = false;  // what does not match counts as match
  };

  absl::Status Add(const JsonNode& node);
  absl::Status AddSplit(const JsonNode& node);
  absl::Status AddMetaspace(const JsonNode& node);
  absl::Status ApplyFrom(size_t step, std::string_view text, bool is_first, Sink word) const;
  static absl::Status Split(const Step& step, std::string_view text, Sink piece);

  std::vector<Step> steps_;
  bool by_bytes_ = false;
};

}  // namespace nibble

#endif  // NIBBLE_MODEL_TEXT_PRE_TOKENIZER_H_
