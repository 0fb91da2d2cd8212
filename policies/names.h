// Dotted names of tensors and modules.
#ifndef NIBBLE_POLICIES_NAMES_H_
#define NIBBLE_POLICIES_NAMES_H_

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace nibble {

// "a.b.0" -> {"a", "b", "0"}; one empty component for an empty name.
std::vector<std::string_view> Components(std::string_view name);

// The value of a component that is a number of at most 9 digits.
std::optional<int64_t> ComponentNumber(std::string_view component);

// Runs of digits count as numbers: "h.2.x" before "h.10.x". A total order of different names.
bool NaturalLess(std::string_view a, std::string_view b);

// Names that differ only in components that are numbers, as one: "model.layers.0-35.mlp.up_proj",
// "experts.0-2,5". What a fold's text says is exactly its names, none more.
struct FoldedNames {
  std::string text;
  std::vector<int> names;  // positions in the input, ascending
};
// In the order of first names.
std::vector<FoldedNames> FoldNames(std::span<const std::string> names);

}  // namespace nibble

#endif  // NIBBLE_POLICIES_NAMES_H_
