#include "base/fingerprint.h"

#include <functional>
#include <set>
#include <string>
#include <vector>

#include "gtest/gtest.h"

namespace nibble {
namespace {

std::string HexOf(const std::function<void(Fingerprint&)>& fill) {
  Fingerprint hash;
  fill(hash);
  return hash.Hex();
}

TEST(FingerprintTest, EveryBitOfAPieceCounts) {
  std::set<std::string> seen;
  for (const size_t size : {1u, 7u, 8u, 9u, 16u, 23u}) {
    std::string text(size, 'x');
    EXPECT_TRUE(seen.insert(HexOf([&](Fingerprint& f) { f.Add(text); })).second);
    for (size_t bit = 0; bit < 8 * size; ++bit) {
      std::string other = text;
      other[bit / 8] = static_cast<char>(other[bit / 8] ^ (1 << bit % 8));
      EXPECT_TRUE(seen.insert(HexOf([&](Fingerprint& f) { f.Add(other); })).second) << bit;
    }
  }
}

TEST(FingerprintTest, TellsListsOfPiecesApart) {
  const std::vector<std::function<void(Fingerprint&)>> kFills = {
      [](Fingerprint&) {},
      [](Fingerprint& f) { f.Add(""); },
      [](Fingerprint& f) { f.Add("a"); },
      [](Fingerprint& f) { f.Add("ab"); },
      [](Fingerprint& f) { f.Add("a"), f.Add("b"); },
      [](Fingerprint& f) { f.Add("b"), f.Add("a"); },
      [](Fingerprint& f) { f.Add("ab"), f.Add(""); },
      [](Fingerprint& f) { f.Add(""), f.Add("ab"); },
      [](Fingerprint& f) { f.Add(uint64_t{1}); },
      [](Fingerprint& f) { f.Add(uint64_t{1} << 63); },
  };
  std::set<std::string> seen;
  for (const auto& fill : kFills) {
    EXPECT_TRUE(seen.insert(HexOf(fill)).second);
    EXPECT_EQ(HexOf(fill), HexOf(fill));
    EXPECT_EQ(HexOf(fill).size(), 16u);
  }
}

}  // namespace
}  // namespace nibble
