#include "model/text/bpe.h"

#include <algorithm>
#include <chrono>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "tests/testing/token_ids.h"

namespace nibble {
namespace {

using ::nibble::testing::SameIds;

// Tokens for the letters given, and then for merges of two tokens by their ids.
BpeModel MakeModel(const std::string& letters,
                   const std::vector<std::pair<uint32_t, uint32_t>>& pairs) {
  BpeModel model;
  std::vector<std::string> tokens;
  for (const char letter : letters) tokens.emplace_back(1, letter);
  for (const auto& [left, right] : pairs) {
    const std::string merged = tokens[left] + tokens[right];
    auto known = std::ranges::find(tokens, merged);
    if (known == tokens.end()) known = tokens.insert(tokens.end(), merged);
    model.merges.push_back({left, right, static_cast<uint32_t>(known - tokens.begin())});
  }
  for (size_t i = 0; i < tokens.size(); ++i) {
    model.vocabulary.emplace(tokens[i], static_cast<uint32_t>(i));
  }
  return model;
}

std::vector<uint32_t> Encode(const Bpe& bpe, const std::string& word) {
  std::vector<uint32_t> ids;
  bpe.Encode(word, ids);
  return ids;
}

// The definition: merge the leftmost pair of the best rank, until there is none.
std::vector<uint32_t> EncodeNaively(const BpeModel& model, const std::string& word) {
  std::vector<uint32_t> ids;
  for (const char c : word) ids.push_back(model.vocabulary.at(std::string(1, c)));
  while (true) {
    size_t best = model.merges.size(), at = 0;
    for (size_t i = 0; i + 1 < ids.size(); ++i) {
      for (size_t rank = 0; rank < best; ++rank) {
        if (model.merges[rank].left == ids[i] && model.merges[rank].right == ids[i + 1]) {
          best = rank;
          at = i;
        }
      }
    }
    if (best == model.merges.size()) return ids;
    ids[at] = model.merges[best].merged;
    ids.erase(ids.begin() + static_cast<std::ptrdiff_t>(at) + 1);
  }
}

TEST(BpeTest, MergesAsTheDefinitionSays) {
  std::mt19937_64 random(7);
  for (int round = 0; round < 200; ++round) {
    std::vector<std::pair<uint32_t, uint32_t>> pairs;
    BpeModel model = MakeModel("abc", {});
    while (pairs.size() < 12) {
      const std::pair<uint32_t, uint32_t> pair(random() % model.vocabulary.size(),
                                               random() % model.vocabulary.size());
      if (std::ranges::find(pairs, pair) != pairs.end()) continue;
      pairs.push_back(pair);
      model = MakeModel("abc", pairs);
    }
    const Bpe bpe(model);
    for (int n = 0; n < 20; ++n) {
      std::string word;
      for (size_t size = 1 + random() % 40; size > 0; --size) word += "abc"[random() % 3];
      EXPECT_TRUE(SameIds(EncodeNaively(model, word), Encode(bpe, word))) << word;
    }
  }
}

TEST(BpeTest, TheLastOfSeveralMergesOfAPairCounts) {
  BpeModel model = MakeModel("abc", {{0, 1}, {1, 2}});
  model.merges.push_back({0, 1, 3});
  EXPECT_TRUE(SameIds(std::vector<uint32_t>{0, 4}, Encode(Bpe(model), "abc")));
}

TEST(BpeTest, WholeWordsGoAheadOfMerges) {
  BpeModel model = MakeModel("abc", {{1, 2}});
  model.vocabulary.emplace("abc", 9);
  EXPECT_TRUE(SameIds(std::vector<uint32_t>{0, 3}, Encode(Bpe(model), "abc")));
  model.whole_words = true;
  EXPECT_TRUE(SameIds(std::vector<uint32_t>{9}, Encode(Bpe(model), "abc")));
  EXPECT_TRUE(SameIds(std::vector<uint32_t>{0, 3, 0}, Encode(Bpe(model), "abca")));
}

TEST(BpeTest, WhatIsUnknownIsLeftOutReplacedOrFused) {
  BpeModel model = MakeModel("ab", {{0, 1}});
  EXPECT_TRUE(SameIds(std::vector<uint32_t>{2}, Encode(Bpe(model), "xaxxb")));
  model.unknown = 7;
  EXPECT_TRUE(SameIds(std::vector<uint32_t>{7, 0, 7, 7, 1, 7}, Encode(Bpe(model), "xaxxbx")));
  model.fuse_unknown = true;
  EXPECT_TRUE(SameIds(std::vector<uint32_t>{7, 0, 7, 1, 7}, Encode(Bpe(model), "xaxxbx")));
}

TEST(BpeTest, CharactersFallBackToBytes) {
  BpeModel model;
  model.by_bytes = false;
  model.vocabulary = {{"a", 0}, {"\u00e9", 1}, {"a\u00e9", 2}};
  model.merges = {{0, 1, 2}};
  model.unknown = 9;
  model.byte_tokens[0xC3] = 3;
  model.byte_tokens[0xA8] = 4;
  const Bpe bpe(model);
  EXPECT_TRUE(SameIds(std::vector<uint32_t>{2, 3, 4, 9}, Encode(bpe, "a\u00e9\u00e8\u00ea")));
  // A pending unknown one comes after the bytes, as in the original.
  EXPECT_TRUE(SameIds(std::vector<uint32_t>{3, 4, 9, 0}, Encode(bpe,
                                                                "\u00ea\u00e8"
                                                                "a")));
}

// Quadratic merging would take hours.
TEST(BpeTest, AMegabyteWithoutSpacesTakesNoTime) {
  std::vector<std::pair<uint32_t, uint32_t>> pairs;
  for (uint32_t i = 0; i < 16; ++i) pairs.emplace_back(i == 0 ? 0 : i + 1, i == 0 ? 0 : i + 1);
  const Bpe bpe(MakeModel("ab", pairs));
  const std::string run(1 << 20, 'a');
  const auto start = std::chrono::steady_clock::now();
  EXPECT_TRUE(SameIds(std::vector<uint32_t>(16, 17), Encode(bpe, run)));
  std::string mixed;
  while (mixed.size() < run.size()) mixed += "aab";
  EXPECT_EQ(Encode(bpe, mixed).size(), 2 * mixed.size() / 3);
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(30));
}

}  // namespace
}  // namespace nibble
