#include "model/token_set.h"

#include "base/status.h"

namespace nibble {

absl::Status CheckTokenSet(const TokenSet& tokens, int64_t vocabulary) {
  if (tokens.lengths.empty()) {
    return absl::InvalidArgumentError("tokens: expected at least one sequence, got none");
  }
  int64_t sum = 0;
  for (size_t i = 0; i < tokens.lengths.size(); ++i) {
    if (tokens.lengths[i] < 1 || tokens.lengths[i] > tokens.tokens() - sum) {
      return absl::InvalidArgumentError(
          absl::StrCat("tokens: sequence ", i, ": expected a length from 1 to the ",
                       tokens.tokens() - sum, " ids that are left, got ", tokens.lengths[i]));
    }
    sum += tokens.lengths[i];
  }
  if (sum != tokens.tokens()) {
    return absl::InvalidArgumentError(absl::StrCat("tokens: expected lengths that add up to the ",
                                                   tokens.tokens(), " ids, got ", sum));
  }
  for (size_t i = 0; i < tokens.ids.size(); ++i) {
    if (tokens.ids[i] >= static_cast<uint64_t>(vocabulary)) {
      return absl::InvalidArgumentError(absl::StrCat("tokens: id ", i, ": expected one below ",
                                                     vocabulary, ", got ", tokens.ids[i]));
    }
  }
  return absl::OkStatus();
}

}  // namespace nibble
