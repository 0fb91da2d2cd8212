// Comparing token ids, and the reference results of tests/golden/tokenizers.
#ifndef NIBBLE_TESTS_TESTING_TOKEN_IDS_H_
#define NIBBLE_TESTS_TESTING_TOKEN_IDS_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "io/safetensors.h"
#include "model/text/json_document.h"
#include "tests/testing/temp_dir.h"

namespace nibble::testing {

// Fails with the first place where they differ. Different lengths differ.
inline ::testing::AssertionResult SameIds(std::span<const uint32_t> expected,
                                          std::span<const uint32_t> actual) {
  const auto [e, a] = std::ranges::mismatch(expected, actual);
  if (e == expected.end() && a == actual.end()) return ::testing::AssertionSuccess();
  const auto shown = [](std::span<const uint32_t> ids, size_t from) {
    std::string text;
    for (size_t i = from; i < std::min(ids.size(), from + 8); ++i) {
      absl::StrAppend(&text, " ", ids[i]);
    }
    return text.empty() ? " the end" : text;
  };
  const auto at = static_cast<size_t>(e - expected.begin());
  return ::testing::AssertionFailure() << "ids differ from the one at " << at << " on: expected"
                                       << shown(expected, at) << ", got" << shown(actual, at);
}

class TokenizerGoldens {
 public:
  TokenizerGoldens() : folder_(NIBBLE_SOURCE_DIR "/tests/golden/tokenizers") {
    const std::string lines = FileBytes(folder_ + "/strings.jsonl");
    for (size_t begin = 0; begin < lines.size();) {
      const size_t end = lines.find('\n', begin);
      const auto document = ParseJson(lines.substr(begin, end - begin));
      EXPECT_TRUE(document.ok()) << document.status();
      strings_.emplace_back(JsonNode(*document)["text"].String().value());
      begin = end + 1;
    }
  }

  const std::vector<std::string>& strings() const { return strings_; }
  std::string Folder(const std::string& kind) const { return folder_ + "/" + kind; }

  // Every kind that has ids.
  std::vector<std::string> Kinds() const {
    const auto reader = SafetensorsReader::Open(folder_ + "/ids.safetensors");
    EXPECT_TRUE(reader.ok()) << reader.status();
    std::vector<std::string> kinds;
    for (const TensorInfo& tensor : reader->tensors()) {
      if (tensor.name.ends_with(".ids")) {
        kinds.push_back(tensor.name.substr(0, tensor.name.size() - 4));
      }
    }
    return kinds;
  }

  // Of each string.
  std::vector<std::vector<uint32_t>> Ids(const std::string& kind) const {
    const auto reader = SafetensorsReader::Open(folder_ + "/ids.safetensors");
    EXPECT_TRUE(reader.ok()) << reader.status();
    const auto flat = Read<uint16_t>(*reader, kind + ".ids");
    std::vector<std::vector<uint32_t>> ids;
    auto next = flat.begin();
    for (const uint32_t length : Read<uint32_t>(*reader, kind + ".lengths")) {
      ids.emplace_back(next, next + length);
      next += length;
    }
    EXPECT_EQ(next, flat.end());
    return ids;
  }

 private:
  template <typename T>
  static std::vector<T> Read(const SafetensorsReader& reader, const std::string& name) {
    const TensorInfo* tensor = reader.Find(name);
    EXPECT_NE(tensor, nullptr) << name;
    std::vector<T> values(tensor->bytes() / sizeof(T));
    EXPECT_TRUE(reader.Read(*tensor, std::as_writable_bytes(std::span(values))).ok());
    return values;
  }

  std::string folder_;
  std::vector<std::string> strings_;
};

}  // namespace nibble::testing

#endif  // NIBBLE_TESTS_TESTING_TOKEN_IDS_H_
