#include "io/python_json.h"

#include <array>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "base/status.h"

namespace nibble {
namespace {

constexpr std::array<std::string_view, 3> kConstants = {"NaN", "-Infinity", "Infinity"};

std::string Quote(std::string_view constant) {
  return absl::StrCat("\"\\u001a", ToAbsl(constant), "\"");
}

}  // namespace

std::string QuoteConstants(std::string_view json) {
  std::string quoted;
  quoted.reserve(json.size());
  bool in_string = false;
  for (size_t i = 0; i < json.size();) {
    if (in_string && json[i] == '\\') {
      quoted.append(json.substr(i, 2));
      i += 2;
      continue;
    }
    if (json[i] == '"') in_string = !in_string;
    std::string_view constant;
    for (const std::string_view candidate : kConstants) {
      if (!in_string && json.substr(i).starts_with(candidate)) constant = candidate;
    }
    if (constant.empty()) {
      quoted += json[i++];
    } else {
      quoted += Quote(constant);
      i += constant.size();
    }
  }
  return quoted;
}

std::string UnquoteConstants(std::string_view json) {
  std::vector<std::pair<std::string, std::string>> replacements;
  for (const std::string_view constant : kConstants) {
    replacements.emplace_back(Quote(constant), constant);
  }
  return absl::StrReplaceAll(ToAbsl(json), replacements);
}

}  // namespace nibble
