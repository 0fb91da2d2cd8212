#include "base/text.h"

#include "absl/strings/str_cat.h"

namespace nibble {

std::string Printable(std::string_view text) {
  constexpr char kHex[] = "0123456789abcdef";
  std::string printable;
  printable.reserve(text.size());
  for (const unsigned char c : text) {
    if (c >= 0x20 && c <= 0x7E) {
      printable += static_cast<char>(c);
    } else {
      printable += "\\x";
      printable += kHex[c >> 4];
      printable += kHex[c & 15];
    }
  }
  return printable;
}

std::string Quoted(std::string_view text) {
  constexpr size_t kShown = 100;
  return absl::StrCat("\"", Printable(text.substr(0, kShown)), "\"",
                      text.size() > kShown ? "..." : "");
}

}  // namespace nibble
