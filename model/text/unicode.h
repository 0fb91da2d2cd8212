// What the tokenizers need to know of Unicode.
#ifndef NIBBLE_MODEL_TEXT_UNICODE_H_
#define NIBBLE_MODEL_TEXT_UNICODE_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/status.h"

namespace nibble {

// The first byte of `text` that is not part of well-formed UTF-8 (no surrogates, nothing above
// U+10FFFF, no longer forms than needed); text.size() where there is none.
size_t FindInvalidUtf8(std::string_view text);

// FailedPrecondition "line L, byte B: expected text in UTF-8, got ..." for the first byte that is
// not part of it; `line` is the number of the first line.
absl::Status CheckUtf8(std::string_view text, int64_t line = 1);
// The same, and for zeros.
absl::Status CheckText(std::string_view text, int64_t line = 1);

struct CodePoint {
  uint32_t code;
  size_t bytes;
};
// Of well-formed UTF-8: the one that begins at `at`, the one that ends before `end`.
CodePoint CodePointAt(std::string_view text, size_t at);
CodePoint CodePointBefore(std::string_view text, size_t end);
void AppendUtf8(uint32_t code, std::string& text);

// White_Space.
bool IsSpace(uint32_t code);
// \w of Rust's regular expressions: letters, marks, decimal digits, connectors, joiners.
bool IsWordCharacter(uint32_t code);

// Normalization form C as the tokenizers library makes it, which knows Unicode 9: what is younger
// stays where it is.
std::string Nfc(std::string_view text);

// The same text in the same number of bytes, for a library of patterns that knows Unicode 14: what
// Unicode 16 has besides is replaced by an older code point of the same category, and U+180E, which
// PCRE2 takes for a space, by one that it does not. Empty where nothing is replaced.
std::string WithStandIns(std::string_view text);

}  // namespace nibble

#endif  // NIBBLE_MODEL_TEXT_UNICODE_H_
