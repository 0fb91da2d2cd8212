#include "policies/nearest_word.h"

#include <algorithm>
#include <vector>

#include "base/status.h"
#include "base/text.h"

namespace nibble {
namespace {

constexpr size_t kLongestWord = 64;  // no word of ours is longer

std::string Folded(std::string_view word) {
  std::string folded(word);
  for (char& c : folded) {
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
    if (c == '-') c = '_';
  }
  return folded;
}

}  // namespace

int EditDistance(std::string_view a, std::string_view b) {
  // Rows of the table of distances between beginnings: the last two and the current one.
  std::vector<int> before(b.size() + 1), last(b.size() + 1), row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) row[j] = static_cast<int>(j);
  for (size_t i = 1; i <= a.size(); ++i) {
    before.swap(last);
    last.swap(row);
    row[0] = static_cast<int>(i);
    for (size_t j = 1; j <= b.size(); ++j) {
      row[j] = std::min({last[j] + 1, row[j - 1] + 1, last[j - 1] + (a[i - 1] != b[j - 1])});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1]) {
        row[j] = std::min(row[j], before[j - 2] + 1);
      }
    }
  }
  return row[b.size()];
}

std::string_view NearestWord(std::string_view word, std::span<const std::string_view> words) {
  if (word.empty() || word.size() > kLongestWord) return "";
  std::string_view nearest;
  int least = 0;
  for (const std::string_view candidate : words) {
    const int distance = EditDistance(Folded(word), Folded(candidate));
    if (nearest.empty() || distance < least) {
      nearest = candidate;
      least = distance;
    }
  }
  const size_t letters = std::max(word.size(), nearest.size());
  return 2 * static_cast<size_t>(least) <= letters ? nearest : "";
}

std::string WordList(std::span<const std::string_view> words) {
  std::string list;
  for (size_t i = 0; i < words.size(); ++i) {
    if (i > 0) list += i + 1 == words.size() ? " or " : ", ";
    list += words[i];
  }
  return list;
}

std::string ExpectedWord(std::string_view what, std::span<const std::string_view> words,
                         std::string_view got) {
  std::string text =
      absl::StrCat("expected ", ToAbsl(what), WordList(words), ", got ", Quoted(got));
  const std::string_view nearest = NearestWord(got, words);
  if (!nearest.empty()) absl::StrAppend(&text, "; did you mean ", Quoted(nearest), "?");
  return text;
}

}  // namespace nibble
