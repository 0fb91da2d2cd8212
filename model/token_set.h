// The token sequences that a decoder runs over.
#ifndef NIBBLE_MODEL_TOKEN_SET_H_
#define NIBBLE_MODEL_TOKEN_SET_H_

#include <cstdint>
#include <vector>

#include "absl/status/status.h"

namespace nibble {

// A token's index, wherever one is spoken of, is its index in `ids`.
struct TokenSet {
  std::vector<uint32_t> ids;     // of all sequences, one after another
  std::vector<int64_t> lengths;  // of each sequence

  int64_t tokens() const { return static_cast<int64_t>(ids.size()); }
  int64_t sequences() const { return static_cast<int64_t>(lengths.size()); }

  friend bool operator==(const TokenSet&, const TokenSet&) = default;
};

// InvalidArgument unless there are sequences, each has tokens, their lengths add up to the ids, and
// every id is below `vocabulary`.
absl::Status CheckTokenSet(const TokenSet& tokens, int64_t vocabulary);

}  // namespace nibble

#endif  // NIBBLE_MODEL_TOKEN_SET_H_
