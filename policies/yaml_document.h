// A YAML document as a tree of values that know where they stand.
#ifndef NIBBLE_POLICIES_YAML_DOCUMENT_H_
#define NIBBLE_POLICIES_YAML_DOCUMENT_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace nibble {

struct YamlNode;
using YamlPtr = std::shared_ptr<const YamlNode>;

struct YamlEntry {
  std::string key;
  std::string place;  // the key's
  YamlPtr value;
};

struct YamlNode {
  enum class Kind : uint8_t { kNull, kScalar, kSequence, kMap };

  Kind kind = Kind::kNull;
  std::string place;                // "file:line:column", from 1 on
  std::string text = {};            // of a scalar
  bool quoted = false;              // a scalar in quotes, or a block of text: a string, no number
  std::vector<YamlPtr> items = {};  // of a sequence
  std::vector<YamlEntry> entries = {};  // of a map, in the order of the file; keys are unique
  // Of the whole tree, aliases counted wherever they are used.
  size_t values = 1, levels = 0;

  // The value of a map's key; null where there is none, or this is no map.
  const YamlEntry* Find(std::string_view key) const;
};

inline constexpr size_t kMostYamlBytes = size_t{1} << 20;
inline constexpr size_t kDeepestYaml = 32;
inline constexpr size_t kMostYamlValues = 50'000;

// One document in UTF-8; keys are words, no tags. InvalidArgument "<file>:<line>:<column>: ..." for
// everything else, and beyond the limits above. `lines` off: places are `file` alone.
absl::StatusOr<YamlPtr> ParseYaml(std::string_view text, std::string_view file, bool lines = true);

}  // namespace nibble

#endif  // NIBBLE_POLICIES_YAML_DOCUMENT_H_
