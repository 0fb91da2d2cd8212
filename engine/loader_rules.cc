#include "engine/loader_rules.h"

#include <algorithm>
#include <iterator>
#include <regex>
#include <unordered_map>

namespace nibble {
namespace {

// Longer than any module's name; the library's matcher recurses.
constexpr size_t kMaxRegexText = 2000;

bool HasAny(std::string_view text, std::string_view characters) {
  return text.find_first_of(characters) != text.npos;
}

// nullptr for a broken one. Kept, since the same few are asked for of each module.
const std::regex* Compiled(std::string_view expression) {
  constexpr size_t kMostKept = 10'000;
  static thread_local std::unordered_map<std::string, std::optional<std::regex>> kept;
  if (kept.size() > kMostKept) kept.clear();
  const auto [it, is_new] = kept.try_emplace(std::string(expression));
  if (is_new) {
    try {
      it->second.emplace(expression.begin(), expression.end());
    } catch (const std::regex_error&) {
    }
  }
  return it->second ? &*it->second : nullptr;
}

// `whole`: the expression must match all of the text, else a start of it.
bool RegexMatches(std::string_view expression, std::string_view text, bool whole) {
  if (expression.size() > kMaxRegexText || text.size() > kMaxRegexText) return false;
  const std::regex* regex = Compiled(expression);
  if (regex == nullptr) return false;
  try {
    return whole ? std::regex_match(text.begin(), text.end(), *regex)
                 : std::regex_search(text.begin(), text.end(), *regex,
                                     std::regex_constants::match_continuous);
  } catch (const std::regex_error&) {  // too complex for the text
    return false;
  }
}

// Of one "[...]" at pattern[0]; its length, or 0 where there is no end.
size_t MatchClass(std::string_view pattern, char c, bool& matches) {
  size_t at = 1;
  const bool negated = at < pattern.size() && pattern[at] == '!';
  if (negated) ++at;
  const size_t first = at;
  size_t end = first;
  if (end < pattern.size() && pattern[end] == ']') ++end;
  end = pattern.find(']', end);
  if (end == pattern.npos) return 0;
  matches = false;
  for (at = first; at < end; ++at) {
    if (at + 2 < end && pattern[at + 1] == '-') {
      matches |= pattern[at] <= c && c <= pattern[at + 2];
      at += 2;
    } else {
      matches |= pattern[at] == c;
    }
  }
  matches ^= negated;
  return end + 1;
}

// SGLang's regular expression; without other special characters it is a glob of "*" alone.
bool SglangMatches(std::string_view entry, std::string_view text) {
  if (!HasAny(entry, R"(\^$|?+()[]{})")) return PythonFnmatch(entry, text);
  std::string expression;
  for (char c : entry) {
    if (c == '.') {
      expression += R"(\.)";
    } else if (c == '*') {
      expression += ".*";
    } else {
      expression += c;
    }
  }
  return RegexMatches(expression, text, /*whole=*/true);
}

// nullopt unless `excluded` says the same of all names.
template <typename Excluded>
std::optional<bool> OfAll(const LoaderModule& module, Excluded excluded) {
  if (module.members.empty()) return excluded(module.name);
  const bool first = excluded(module.members[0]);
  for (const std::string& member : module.members) {
    if (excluded(member) != first) return std::nullopt;
  }
  return first;
}

}  // namespace

bool PythonFnmatch(std::string_view pattern, std::string_view name) {
  // Where to go on after the last "*" with one character more for it.
  size_t p = 0, n = 0, star = pattern.npos, star_name = 0;
  while (n < name.size()) {
    bool matches = false;
    size_t step = 1;
    if (p < pattern.size()) {
      if (pattern[p] == '*') {
        star = p++;
        star_name = n;
        continue;
      }
      if (pattern[p] == '[') {
        step = MatchClass(pattern.substr(p), name[n], matches);
        if (step == 0) {
          matches = name[n] == '[';
          step = 1;
        }
      } else {
        matches = pattern[p] == '?' || pattern[p] == name[n];
      }
    }
    if (matches) {
      p += step;
      ++n;
    } else if (star != pattern.npos) {
      p = star + 1;
      n = ++star_name;
    } else {
      return false;
    }
  }
  while (p < pattern.size() && pattern[p] == '*') ++p;
  return p == pattern.size();
}

std::optional<bool> VllmModeloptExcludes(std::span<const std::string> excludes,
                                         const LoaderModule& module) {
  const std::optional<bool> exact = OfAll(module, [&](const std::string& name) {
    return std::find(excludes.begin(), excludes.end(), name) != excludes.end();
  });
  if (!exact || *exact) return exact;
  for (const std::string& entry : excludes) {
    std::string_view part = entry;
    if (part.ends_with('*') && !part.ends_with(".*")) part.remove_suffix(1);
    if (module.name.find(part) != module.name.npos || PythonFnmatch(entry, module.name)) {
      return true;
    }
  }
  return false;
}

std::string_view SglangNameOfEveryLayer(std::string_view entry) {
  constexpr std::string_view kNames[] = {"q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj"};
  const std::string_view last = entry.substr(entry.rfind('.') + 1);  // npos + 1 is 0
  return std::ranges::find(kNames, last) != std::end(kNames) ? last : std::string_view();
}

std::optional<bool> SglangModeloptExcludes(std::span<const std::string> excludes,
                                           const LoaderModule& module) {
  std::vector<std::string_view> texts = {module.name};
  for (size_t begin = 0; begin <= module.name.size();) {
    const size_t end = std::min(module.name.find('.', begin), module.name.size());
    texts.push_back(std::string_view(module.name).substr(begin, end - begin));
    begin = end + 1;
  }
  const std::string_view last = texts.back();
  return std::ranges::any_of(excludes, [&](const std::string& entry) {
    const std::string_view of_all = SglangNameOfEveryLayer(entry);
    return std::ranges::any_of(texts,
                               [&](std::string_view text) { return SglangMatches(entry, text); }) ||
           (!of_all.empty() && last.find(of_all) != last.npos);
  });
}

std::optional<bool> TensorRtLlmExcludes(std::span<const std::string> excludes,
                                        const LoaderModule& module) {
  return OfAll(module, [&](const std::string& name) {
    return std::ranges::any_of(
        excludes, [&](const std::string& entry) { return PythonFnmatch(entry, name); });
  });
}

std::optional<bool> CompressedTensorsIgnores(std::span<const std::string> ignores,
                                             const LoaderModule& module) {
  return OfAll(module, [&](const std::string& name) {
    return std::ranges::any_of(
        ignores, [&](const std::string& entry) { return CompressedTensorsMatches(entry, name); });
  });
}

bool CompressedTensorsMatches(std::string_view entry, std::string_view name,
                              std::string_view class_name) {
  constexpr std::string_view kRegex = "re:";
  if (entry.starts_with(kRegex)) {
    return RegexMatches(entry.substr(kRegex.size()), name, /*whole=*/false);
  }
  return entry == name || (!class_name.empty() && entry == class_name);
}

}  // namespace nibble
