#include "model/text/normalizer.h"

#include <utility>

#include "absl/strings/str_replace.h"
#include "base/status.h"
#include "base/text.h"
#include "model/text/unicode.h"

namespace nibble {

absl::StatusOr<Normalizer> Normalizer::Read(const JsonNode& node) {
  Normalizer normalizer;
  NIBBLE_RETURN_IF_ERROR(normalizer.Add(node));
  return normalizer;
}

absl::Status Normalizer::Add(const JsonNode& node) {
  if (node.is_null()) return absl::OkStatus();
  NIBBLE_ASSIGN_OR_RETURN(const std::string_view type, node["type"].String());
  if (type == "Sequence") {
    NIBBLE_ASSIGN_OR_RETURN(const auto steps, node["normalizers"].Items());
    for (const JsonNode& step : steps) NIBBLE_RETURN_IF_ERROR(Add(step));
    return absl::OkStatus();
  }
  if (type == "NFC") {
    steps_.push_back({Step::Kind::kNfc});
    return absl::OkStatus();
  }
  if (type == "Prepend") {
    NIBBLE_ASSIGN_OR_RETURN(const std::string_view text, node["prepend"].String());
    steps_.push_back({Step::Kind::kPrepend, std::string(text)});
    return absl::OkStatus();
  }
  if (type == "Replace") {
    NIBBLE_ASSIGN_OR_RETURN(const std::string_view text, node["content"].String());
    NIBBLE_ASSIGN_OR_RETURN(Pattern pattern, Pattern::Read(node["pattern"]));
    steps_.push_back({Step::Kind::kReplace, std::string(text), std::move(pattern)});
    return absl::OkStatus();
  }
  return node["type"].Unsupported("one of NFC, Prepend, Replace, Sequence");
}

absl::StatusOr<std::string> Normalizer::Apply(std::string_view text) const {
  std::string normal(text);
  for (const Step& step : steps_) {
    switch (step.kind) {
      case Step::Kind::kNfc:
        normal = Nfc(normal);
        break;
      case Step::Kind::kPrepend:
        if (!normal.empty()) normal.insert(0, step.text);
        break;
      case Step::Kind::kReplace: {
        std::string replaced;
        NIBBLE_RETURN_IF_ERROR(
            step.pattern->ForEach(normal, [&](size_t begin, size_t end, bool is_match) {
              replaced += is_match ? step.text : normal.substr(begin, end - begin);
            }));
        normal = std::move(replaced);
      }
    }
  }
  return normal;
}

}  // namespace nibble
