// Which word was meant.
#ifndef NIBBLE_POLICIES_NEAREST_WORD_H_
#define NIBBLE_POLICIES_NEAREST_WORD_H_

#include <span>
#include <string>
#include <string_view>

namespace nibble {

// How many letters must be inserted, left out, replaced or swapped with their neighbour to make one
// word of the other.
int EditDistance(std::string_view a, std::string_view b);

// The first of the nearest words, capitals and small letters being the same, '-' and '_' too; empty
// where even that one shares less than half of its letters.
std::string_view NearestWord(std::string_view word, std::span<const std::string_view> words);

// "a, b or c"
std::string WordList(std::span<const std::string_view> words);

// "expected <what>a, b or c, got "x"; did you mean "c"?"
std::string ExpectedWord(std::string_view what, std::span<const std::string_view> words,
                         std::string_view got);

}  // namespace nibble

#endif  // NIBBLE_POLICIES_NEAREST_WORD_H_
