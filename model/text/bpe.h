// Byte-pair encoding of words, as the tokenizers library does it.
#ifndef NIBBLE_MODEL_TEXT_BPE_H_
#define NIBBLE_MODEL_TEXT_BPE_H_

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/inlined_vector.h"

namespace nibble {

struct BpeMerge {
  uint32_t left, right, merged;  // ids
};

struct BpeModel {
  // Tokens as they stand in words: bytes of any kind where `by_bytes`, else text.
  absl::flat_hash_map<std::string, uint32_t> vocabulary;
  // Best first; of several for one pair the last counts. What is merged is longer than its parts,
  // and no byte token or unknown one.
  std::vector<BpeMerge> merges;
  bool by_bytes = true;          // words begin as single bytes, else as single characters
  // A character that is no token becomes those of its bytes, where all of them are there.
  std::array<std::optional<uint32_t>, 256> byte_tokens = {};
  // What is left becomes this, each on its own or a run of them as one; without, it is left out.
  std::optional<uint32_t> unknown;
  bool fuse_unknown = false;
  bool whole_words = false;  // a word that is a token is that token, whatever merges say
};

// Const members may be called from several threads at once.
class Bpe {
 public:
  explicit Bpe(BpeModel model);

  // Appends the ids of a word of fewer than 2^31 bytes, not empty. Takes n log n for n bytes.
  void Encode(std::string_view word, std::vector<uint32_t>& ids) const;

 private:
  // What two neighbors become. Of tokens of one character each there is one, without a rank, also
  // where they are neighbors inside of some token: where there is none, no merge ever crosses.
  struct Result {
    uint32_t rank, merged;
  };
  struct Symbol {
    uint32_t id;
    int32_t previous, next;  // -1: none
    bool is_gone;
  };
  struct Candidate {
    uint32_t rank;
    int32_t position;
    uint32_t merged;
  };

  using Symbols = absl::InlinedVector<Symbol, 32>;
  using Candidates = absl::InlinedVector<Candidate, 32>;

  void MarkCrossings(const std::vector<BpeMerge>& merges);
  const Result* FindMerge(uint32_t left, uint32_t right) const;
  Symbols Start(std::string_view word) const;
  // Of the run of tied symbols that begins with `first`; `heap` is empty before and after.
  void Merge(Symbols& symbols, int32_t first, Candidates& heap) const;

  BpeModel model_;
  absl::flat_hash_map<uint64_t, Result> merges_;
  std::array<std::optional<uint32_t>, 256> bytes_ = {};  // the tokens of one byte
};

}  // namespace nibble

#endif  // NIBBLE_MODEL_TEXT_BPE_H_
