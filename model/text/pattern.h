// The regular expressions of tokenizer.json: Oniguruma's, run by PCRE2.
#ifndef NIBBLE_MODEL_TEXT_PATTERN_H_
#define NIBBLE_MODEL_TEXT_PATTERN_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "model/text/json_document.h"

namespace nibble {

// `expression` as PCRE2 writes it. Only what means the same in both libraries is let through:
// characters, classes without classes in them, the properties of general categories and Han, \s \d
// \w and their opposites, groups without names, (?i:...), looking ahead and behind, quantifiers.
// Unimplemented, with the place, for the rest (anchors, back references, set operations, {n,m}+).
absl::StatusOr<std::string> TranslatePattern(std::string_view expression);

// Const members may be called from several threads at once.
class Pattern {
 public:
  // `expression` in UTF-8. Unimplemented as above; InvalidArgument for what is no expression.
  static absl::StatusOr<Pattern> Compile(std::string_view expression);
  // What matches `text` and nothing else.
  static absl::StatusOr<Pattern> Literal(std::string_view text);
  // {"Regex": expression} or {"String": text}.
  static absl::StatusOr<Pattern> Read(const JsonNode& node);

  // Calls `piece(begin, end, is_match)` for the matches in `text`, well-formed UTF-8, and for what
  // lies between them, in order. Matches may be empty, but never where the one before ended.
  // ResourceExhausted where a match takes too many steps. Nothing of an empty text.
  absl::Status ForEach(std::string_view text,
                       absl::FunctionRef<void(size_t, size_t, bool)> piece) const;

 private:
  struct Compiled;
  static absl::StatusOr<Pattern> CompileFor(std::string_view shown, std::string_view expression,
                                            uint32_t options);
  explicit Pattern(std::shared_ptr<const Compiled> compiled) : compiled_(std::move(compiled)) {}

  std::shared_ptr<const Compiled> compiled_;
};

}  // namespace nibble

#endif  // NIBBLE_MODEL_TEXT_PATTERN_H_
