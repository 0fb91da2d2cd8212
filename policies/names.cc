#include "policies/names.h"

#include <algorithm>
#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status.h"

namespace nibble {
namespace {

bool IsDigit(char c) { return c >= '0' && c <= '9'; }

// Removes and returns the digits that `text` begins with.
std::string_view TakeDigits(std::string_view& text) {
  size_t count = 0;
  while (count < text.size() && IsDigit(text[count])) ++count;
  const std::string_view digits = text.substr(0, count);
  text.remove_prefix(count);
  return digits;
}

std::string_view WithoutLeadingZeros(std::string_view digits) {
  return digits.substr(std::min(digits.find_first_not_of('0'), digits.size()));
}

// A name's numbers, and its position in the input.
struct Numbered {
  std::vector<int64_t> numbers;
  int name = 0;
};

// "0-2,5"
std::string RangesOf(const std::vector<int64_t>& ascending) {
  std::string text;
  for (size_t i = 0; i < ascending.size();) {
    size_t end = i + 1;
    while (end < ascending.size() && ascending[end] == ascending[end - 1] + 1) ++end;
    absl::StrAppend(&text, i == 0 ? "" : ",", ascending[i]);
    if (end - i > 1) absl::StrAppend(&text, "-", ascending[end - 1]);
    i = end;
  }
  return text;
}

// A product of sets of numbers, one a position, and the names that it stands for.
struct Product {
  std::vector<std::string> ranges;
  std::vector<int> names;
};

// Covers `items`, which are sorted by their numbers and agree before `position`.
std::vector<Product> Products(std::span<const Numbered> items, size_t position) {
  if (position == items.front().numbers.size()) {
    Product product;
    for (const Numbered& item : items) product.names.push_back(item.name);
    return {product};
  }
  // Values of this position whose products further on are the same are one set.
  std::map<std::vector<std::vector<std::string>>,
           std::pair<std::vector<int64_t>, std::vector<Product>>>
      alike;
  for (size_t i = 0; i < items.size();) {
    size_t end = i + 1;
    const int64_t value = items[i].numbers[position];
    while (end < items.size() && items[end].numbers[position] == value) ++end;
    const std::vector<Product> rest = Products(items.subspan(i, end - i), position + 1);
    std::vector<std::vector<std::string>> key;
    for (const Product& product : rest) key.push_back(product.ranges);
    auto& [values, products] = alike[key];
    values.push_back(value);
    if (products.empty()) {
      products = rest;
    } else {
      for (size_t p = 0; p < rest.size(); ++p) {
        products[p].names.insert(products[p].names.end(), rest[p].names.begin(),
                                 rest[p].names.end());
      }
    }
    i = end;
  }
  std::vector<Product> result;
  for (auto& [key, set] : alike) {
    for (Product& product : set.second) {
      product.ranges.insert(product.ranges.begin(), RangesOf(set.first));
      result.push_back(std::move(product));
    }
  }
  return result;
}

}  // namespace

std::vector<std::string_view> Components(std::string_view name) {
  std::vector<std::string_view> components;
  for (size_t dot = name.find('.'); dot != name.npos; dot = name.find('.')) {
    components.push_back(name.substr(0, dot));
    name.remove_prefix(dot + 1);
  }
  components.push_back(name);
  return components;
}

std::optional<int64_t> ComponentNumber(std::string_view component) {
  if (component.empty() || component.size() > 9) return std::nullopt;
  int64_t value = 0;
  for (const char c : component) {
    if (!IsDigit(c)) return std::nullopt;
    value = 10 * value + (c - '0');
  }
  return value;
}

bool NaturalLess(std::string_view a, std::string_view b) {
  const std::string_view whole_a = a, whole_b = b;
  while (!a.empty() && !b.empty()) {
    if (IsDigit(a.front()) && IsDigit(b.front())) {
      const std::string_view x = WithoutLeadingZeros(TakeDigits(a));
      const std::string_view y = WithoutLeadingZeros(TakeDigits(b));
      if (x.size() != y.size()) return x.size() < y.size();
      if (x != y) return x < y;
    } else if (a.front() != b.front()) {
      return a.front() < b.front();
    } else {
      a.remove_prefix(1);
      b.remove_prefix(1);
    }
  }
  if (a.empty() != b.empty()) return a.empty();
  return whole_a < whole_b;  // where leading zeros alone differ
}

std::vector<FoldedNames> FoldNames(std::span<const std::string> names) {
  std::map<std::vector<std::string_view>, std::vector<Numbered>> by_words;
  for (int i = 0; i < static_cast<int>(names.size()); ++i) {
    Numbered item = {{}, i};
    std::vector<std::string_view> words = Components(names[i]);
    for (std::string_view& word : words) {
      const std::optional<int64_t> number = ComponentNumber(word);
      if (!number || (word.size() > 1 && word.front() == '0')) continue;
      item.numbers.push_back(*number);
      word = std::string_view("\0", 1);
    }
    by_words[words].push_back(std::move(item));
  }
  std::vector<FoldedNames> folds;
  for (auto& [words, items] : by_words) {
    std::ranges::sort(items, {}, &Numbered::numbers);
    for (Product& product : Products(items, 0)) {
      FoldedNames fold;
      size_t position = 0;
      for (size_t i = 0; i < words.size(); ++i) {
        const bool number = words[i] == std::string_view("\0", 1);
        absl::StrAppend(&fold.text, i == 0 ? "" : ".",
                        number ? absl::string_view(product.ranges[position++]) : ToAbsl(words[i]));
      }
      std::ranges::sort(product.names);
      fold.names = std::move(product.names);
      folds.push_back(std::move(fold));
    }
  }
  std::ranges::sort(folds, {}, [](const FoldedNames& fold) { return fold.names.front(); });
  return folds;
}

}  // namespace nibble
