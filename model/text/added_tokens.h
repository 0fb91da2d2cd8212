// Tokens that are found in a text before it is split into words, as the tokenizers library does it.
#ifndef NIBBLE_MODEL_TEXT_ADDED_TOKENS_H_
#define NIBBLE_MODEL_TEXT_ADDED_TOKENS_H_

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"

namespace nibble {

struct AddedToken {
  std::string content;
  uint32_t id = 0;
  bool single_word = false;             // not next to a word character
  bool lstrip = false, rstrip = false;  // takes the spaces to its left, right with it
  bool normalized = false;              // is looked for in normalized text, itself normalized
};

// Finds tokens in a text: the first, there the longest, then the first behind it.
class AddedTokens {
 public:
  // Of several with the same content the first counts; empty ones are never found.
  explicit AddedTokens(std::vector<AddedToken> tokens);

  bool empty() const { return tokens_.empty(); }

  // Calls `piece` for what is found, with its token, and for what lies between, in order. Stops at
  // the first error.
  absl::Status ForEach(
      std::string_view text,
      absl::FunctionRef<absl::Status(std::string_view, const AddedToken*)> piece) const;

 private:
  std::vector<AddedToken> tokens_;
  // A trie: from a node and a byte to the next node, and the tokens that end at nodes. Of its root,
  // the bytes that lead on, since most do not.
  std::array<bool, 256> begins_ = {};
  absl::flat_hash_map<uint64_t, uint32_t> edges_;
  std::vector<std::optional<size_t>> ends_;
};

}  // namespace nibble

#endif  // NIBBLE_MODEL_TEXT_ADDED_TOKENS_H_
