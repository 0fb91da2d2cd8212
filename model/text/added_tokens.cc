#include "model/text/added_tokens.h"

#include <algorithm>
#include <utility>

#include "base/status.h"
#include "model/text/unicode.h"

namespace nibble {
namespace {

uint64_t EdgeKey(uint32_t node, char byte) {
  return uint64_t{node} << 8 | static_cast<uint8_t>(byte);
}

}  // namespace

AddedTokens::AddedTokens(std::vector<AddedToken> tokens) : tokens_(std::move(tokens)), ends_(1) {
  for (size_t i = 0; i < tokens_.size(); ++i) {
    uint32_t node = 0;
    if (!tokens_[i].content.empty()) begins_[static_cast<uint8_t>(tokens_[i].content[0])] = true;
    for (const char byte : tokens_[i].content) {
      const auto [edge, is_new] =
          edges_.try_emplace(EdgeKey(node, byte), static_cast<uint32_t>(ends_.size()));
      if (is_new) ends_.emplace_back();
      node = edge->second;
    }
    if (node != 0 && !ends_[node]) ends_[node] = i;
  }
}

absl::Status AddedTokens::ForEach(
    std::string_view text,
    absl::FunctionRef<absl::Status(std::string_view, const AddedToken*)> piece) const {
  size_t covered = 0;  // up to where pieces have been told
  for (size_t at = 0; at < text.size() && !tokens_.empty();) {
    if (!begins_[static_cast<uint8_t>(text[at])]) {
      ++at;
      continue;
    }
    const AddedToken* token = nullptr;
    uint32_t node = 0;
    for (size_t i = at; i < text.size(); ++i) {
      const auto edge = edges_.find(EdgeKey(node, text[i]));
      if (edge == edges_.end()) break;
      node = edge->second;
      if (ends_[node]) token = &tokens_[*ends_[node]];
    }
    if (token == nullptr) {
      ++at;
      continue;
    }
    size_t begin = at, end = at + token->content.size();
    at = end;  // also behind a token that does not count
    if (token->single_word &&
        ((begin > 0 && IsWordCharacter(CodePointBefore(text, begin).code)) ||
         (end < text.size() && IsWordCharacter(CodePointAt(text, end).code)))) {
      continue;
    }
    while (token->lstrip && begin > covered) {
      const CodePoint before = CodePointBefore(text, begin);
      if (!IsSpace(before.code)) break;
      begin -= before.bytes;
    }
    while (token->rstrip && end < text.size()) {
      const CodePoint next = CodePointAt(text, end);
      if (!IsSpace(next.code)) break;
      end += next.bytes;
    }
    if (covered < begin)
      NIBBLE_RETURN_IF_ERROR(piece(text.substr(covered, begin - covered), nullptr));
    NIBBLE_RETURN_IF_ERROR(piece(text.substr(begin, end - begin), token));
    covered = end;
  }
  if (covered < text.size()) return piece(text.substr(covered), nullptr);
  return absl::OkStatus();
}

}  // namespace nibble
