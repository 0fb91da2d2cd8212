// The normalizers of tokenizer.json.
#ifndef NIBBLE_MODEL_TEXT_NORMALIZER_H_
#define NIBBLE_MODEL_TEXT_NORMALIZER_H_

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "model/text/json_document.h"
#include "model/text/pattern.h"

namespace nibble {

// Const members may be called from several threads at once.
class Normalizer {
 public:
  // Null, NFC, Prepend, Replace, and Sequences of them; Unimplemented for others.
  static absl::StatusOr<Normalizer> Read(const JsonNode& node);

  // ResourceExhausted where a pattern takes too many steps.
  absl::StatusOr<std::string> Apply(std::string_view text) const;
  bool empty() const { return steps_.empty(); }

 private:
  struct Step {
    enum class Kind { kNfc, kPrepend, kReplace } kind;
    std::string text = {};                // to be put in
    std::optional<Pattern> pattern = {};  // instead of this
  };

  absl::Status Add(const JsonNode& node);

  std::vector<Step> steps_;
};

}  // namespace nibble

#endif  // NIBBLE_MODEL_TEXT_NORMALIZER_H_
