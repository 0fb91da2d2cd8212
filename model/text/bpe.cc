#include "model/text/bpe.h"

#include <algorithm>
#include <utility>

#include "base/status.h"
#include "model/text/unicode.h"

namespace nibble {
namespace {

constexpr uint32_t kNoRank = 0xFFFFFFFF;

uint64_t PairKey(uint32_t left, uint32_t right) { return uint64_t{left} << 32 | right; }

}  // namespace

Bpe::Bpe(BpeModel model) : model_(std::move(model)) {
  merges_.reserve(model_.merges.size());
  for (size_t rank = 0; rank < model_.merges.size(); ++rank) {
    const BpeMerge& merge = model_.merges[rank];
    merges_[PairKey(merge.left, merge.right)] = {static_cast<uint32_t>(rank), merge.merged};
  }
  for (int byte = 0; byte < 256; ++byte) {
    const auto token = model_.vocabulary.find(std::string(1, static_cast<char>(byte)));
    if (token != model_.vocabulary.end()) bytes_[byte] = token->second;
  }
  MarkCrossings(model_.merges);
  model_.merges = {};
}

void Bpe::MarkCrossings(const std::vector<BpeMerge>& merges) {
  // The parts of what is merged. They are shorter, so going down from one to the next ends.
  absl::flat_hash_map<uint32_t, const BpeMerge*> parts;
  for (const BpeMerge& merge : merges) parts.emplace(merge.merged, &merge);
  const auto descend = [&](uint32_t id, uint32_t BpeMerge::*part) {
    for (auto found = parts.find(id); found != parts.end(); found = parts.find(id)) {
      id = found->second->*part;
    }
    return id;
  };
  for (const BpeMerge& merge : merges) {
    merges_.try_emplace(
        PairKey(descend(merge.left, &BpeMerge::right), descend(merge.right, &BpeMerge::left)),
        Result{kNoRank, 0});
  }
}

const Bpe::Result* Bpe::FindMerge(uint32_t left, uint32_t right) const {
  const auto found = merges_.find(PairKey(left, right));
  return found == merges_.end() || found->second.rank == kNoRank ? nullptr : &found->second;
}

Bpe::Symbols Bpe::Start(std::string_view word) const {
  Symbols symbols;
  symbols.reserve(word.size());
  const auto add = [&](uint32_t id) {
    const auto index = static_cast<int32_t>(symbols.size());
    // Neighbors are tied only where a merge may join them, so that each heap stays small.
    const bool joins = index > 0 && merges_.contains(PairKey(symbols.back().id, id));
    if (joins) symbols.back().next = index;
    symbols.push_back({id, joins ? index - 1 : -1, -1, false});
  };
  int unknown = 0;  // tokens that are yet to be added
  const auto add_unknown = [&] {
    for (; unknown > 0; --unknown) add(*model_.unknown);
  };
  for (size_t i = 0; i < word.size();) {
    const size_t size = model_.by_bytes ? 1 : CodePointAt(word, i).bytes;
    const std::string_view piece = word.substr(i, size);
    i += size;
    std::optional<uint32_t> id;
    if (size == 1) {
      id = bytes_[static_cast<uint8_t>(piece[0])];
    } else if (const auto token = model_.vocabulary.find(ToAbsl(piece));
               token != model_.vocabulary.end()) {
      id = token->second;
    }
    if (id) {
      add_unknown();
      add(*id);
      continue;
    }
    const auto byte_token = [&](char c) { return model_.byte_tokens[static_cast<uint8_t>(c)]; };
    if (std::ranges::all_of(piece, [&](char c) { return byte_token(c).has_value(); })) {
      // Ahead of an unknown one that is pending, as in the original.
      for (const char c : piece) add(*byte_token(c));
      continue;
    }
    if (!model_.unknown) continue;
    if (!model_.fuse_unknown) add_unknown();
    unknown = 1;
  }
  add_unknown();
  return symbols;
}

void Bpe::Merge(Symbols& symbols, int32_t first, Candidates& heap) const {
  // The best rank first, then the leftmost. Candidates go stale when a neighbor is merged; they are
  // recognized when their turn comes.
  const auto is_later = [](const Candidate& a, const Candidate& b) {
    return a.rank != b.rank ? a.rank > b.rank : a.position > b.position;
  };
  const auto candidate = [&](int32_t position) {
    const Symbol& left = symbols[position];
    const Result* result = FindMerge(left.id, symbols[left.next].id);
    if (result == nullptr) return false;
    heap.push_back({result->rank, position, result->merged});
    return true;
  };
  for (int32_t i = first; symbols[i].next >= 0; i = symbols[i].next) candidate(i);
  std::ranges::make_heap(heap, is_later);
  while (!heap.empty()) {
    std::ranges::pop_heap(heap, is_later);
    const Candidate best = heap.back();
    heap.pop_back();
    Symbol& left = symbols[best.position];
    if (left.is_gone || left.next < 0) continue;
    Symbol& right = symbols[left.next];
    const Result* result = FindMerge(left.id, right.id);
    if (result == nullptr || result->merged != best.merged) continue;
    left.id = best.merged;
    left.next = right.next;
    right.is_gone = true;
    if (left.next >= 0) symbols[left.next].previous = best.position;
    if (left.previous >= 0 && candidate(left.previous)) std::ranges::push_heap(heap, is_later);
    if (left.next >= 0 && candidate(best.position)) std::ranges::push_heap(heap, is_later);
  }
}

void Bpe::Encode(std::string_view word, std::vector<uint32_t>& ids) const {
  if (model_.whole_words) {
    const auto token = model_.vocabulary.find(ToAbsl(word));
    if (token != model_.vocabulary.end()) {
      ids.push_back(token->second);
      return;
    }
  }
  Symbols symbols = Start(word);
  Candidates heap;
  for (size_t i = 0; i < symbols.size(); ++i) {
    if (symbols[i].previous < 0 && symbols[i].next >= 0) {
      Merge(symbols, static_cast<int32_t>(i), heap);
    }
  }
  for (const Symbol& symbol : symbols) {
    if (!symbol.is_gone) ids.push_back(symbol.id);
  }
}

}  // namespace nibble
