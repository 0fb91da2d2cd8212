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

TEST(FingerprintTest, IsFnv1a) {
  EXPECT_EQ(Fingerprint().Hex(), "cbf29ce484222325");
  // Eight zero bytes.
  uint64_t expected = 0xcbf29ce484222325u;
  for (int i = 0; i < 8; ++i) expected *= 0x100000001b3u;
  Fingerprint hash;
  hash.Add(uint64_t{0});
  EXPECT_EQ(std::stoull(hash.Hex(), nullptr, 16), expected);
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
