// Names of enumerators, in one table per enum: printing, parsing and "expected one of" share it.
//
//   template <> inline constexpr std::array kEnumNames<Color> = {"red"sv, "green"sv};
//
// Enumerators count up from 0 in the order of the table.
#ifndef NIBBLE_BASE_ENUM_NAMES_H_
#define NIBBLE_BASE_ENUM_NAMES_H_

#include <array>
#include <cstddef>
#include <optional>
#include <string>
#include <string_view>

namespace nibble {

template <typename Enum>
inline constexpr std::array<std::string_view, 0> kEnumNames = {};

template <typename Enum>
constexpr std::string_view NameOf(Enum value) {
  return kEnumNames<Enum>[static_cast<size_t>(value)];
}

template <typename Enum>
constexpr std::optional<Enum> FromName(std::string_view name) {
  for (size_t i = 0; i < kEnumNames<Enum>.size(); ++i) {
    if (kEnumNames<Enum>[i] == name) return static_cast<Enum>(i);
  }
  return std::nullopt;
}

// "mae, mse or abs_max"
template <typename Enum>
std::string NamesOf() {
  std::string names;
  const size_t count = kEnumNames<Enum>.size();
  for (size_t i = 0; i < count; ++i) {
    if (i > 0) names += i + 1 == count ? " or " : ", ";
    names += kEnumNames<Enum>[i];
  }
  return names;
}

}  // namespace nibble

#endif  // NIBBLE_BASE_ENUM_NAMES_H_
