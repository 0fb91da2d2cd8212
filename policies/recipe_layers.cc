#include "policies/recipe_layers.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "base/status.h"
#include "base/text.h"
#include "policies/nearest_word.h"

namespace nibble {
namespace {

using Kind = YamlNode::Kind;

constexpr size_t kLongestChain = 16;  // of recipes that extend one another
constexpr size_t kMostKeyParts = 8;

bool Says(const YamlNode& map, std::string_view key, std::string_view word) {
  const YamlEntry* entry = map.Find(key);
  return entry != nullptr && entry->value->kind == Kind::kScalar && entry->value->text == word;
}

std::shared_ptr<YamlNode> Without(const YamlNode& map, std::string_view key) {
  auto copy = std::make_shared<YamlNode>(map);
  std::erase_if(copy->entries, [&](const YamlEntry& entry) { return entry.key == key; });
  return copy;
}

// {method: word} for the bare word of an algorithm.
YamlPtr AlgorithmAsMap(const YamlPtr& algorithm) {
  if (algorithm->kind != Kind::kScalar) return algorithm;
  auto map = std::make_shared<YamlNode>(YamlNode{.kind = Kind::kMap, .place = algorithm->place});
  map->entries.push_back({"method", algorithm->place, algorithm});
  return map;
}

// `afresh`: as MergeYaml; without, the order of `over` and `base` only matters where both speak.
YamlPtr Merge(std::string_view key, const YamlPtr& base, const YamlPtr& over, bool afresh) {
  if (key == "rules" && base->kind == Kind::kSequence && over->kind == Kind::kSequence) {
    auto all = std::make_shared<YamlNode>(*base);
    all->items.insert(all->items.end(), over->items.begin(), over->items.end());
    return all;
  }
  const YamlPtr under = key == "algorithm" ? AlgorithmAsMap(base) : base;
  if (under->kind != Kind::kMap || over->kind != Kind::kMap) return over;
  bool drops_algorithm = false;
  if (afresh) {
    if (key == "algorithm" && over->Find("method") != nullptr) return over;
    if (key == "activations" && Says(*over, "format", "none")) return over;
    drops_algorithm = key == "activations" && Says(*over, "scheme", "per_token");
  }
  auto merged = drops_algorithm ? Without(*under, "algorithm") : std::make_shared<YamlNode>(*under);
  for (const YamlEntry& entry : over->entries) {
    const auto old = std::ranges::find(merged->entries, entry.key, &YamlEntry::key);
    if (old == merged->entries.end()) {
      merged->entries.push_back(entry);
    } else {
      *old = {entry.key, entry.place, Merge(entry.key, old->value, entry.value, afresh)};
    }
  }
  return merged;
}

// --- Names and paths ----------------------------------------------------------------------------

bool IsPath(std::string_view name) {
  return name.find('/') != name.npos || name.ends_with(".yaml") || name.ends_with(".yml");
}

std::string StemOf(const std::string& path) {
  const std::string file = path.substr(path.rfind('/') + 1);
  return file.substr(0, file.rfind('.'));
}

// A path from the folder of the file that names it.
std::string PathFrom(const std::string& from, const std::string& path) {
  if (path.starts_with('/') || from.find('/') == from.npos) return path;
  return from.substr(0, from.rfind('/') + 1) + path;
}

// Without "." and "..": the same for the same file, but for links.
std::string Normal(const std::string& path) {
  std::vector<std::string> parts;
  for (const auto& piece : absl::StrSplit(path, '/')) {
    std::string part(piece.data(), piece.size());
    if (part == ".." && !parts.empty() && parts.back() != "..") {
      parts.pop_back();
    } else if (!part.empty() && part != ".") {
      parts.push_back(std::move(part));
    }
  }
  return absl::StrCat(path.starts_with('/') ? "/" : "", absl::StrJoin(parts, "/"));
}

struct Source {
  std::string id;  // a shipped name, or a path
  bool shipped = false;
  std::string text = {};
};

absl::StatusOr<Source> FindSource(const std::string& name, const Source* from,
                                  const ReadRecipeFile& read) {
  if (IsPath(name)) {
    if (from != nullptr && from->shipped) {
      return absl::InvalidArgumentError(
          absl::StrCat("expected a shipped recipe's name, got ", Quoted(name)));
    }
    Source source{.id = from == nullptr ? name : PathFrom(from->id, name)};
    NIBBLE_ASSIGN_OR_RETURN(source.text, read(source.id));
    return source;
  }
  std::vector<std::string_view> names;
  for (const ShippedRecipe& recipe : ShippedRecipes()) {
    if (recipe.name == name) {
      return Source{.id = name, .shipped = true, .text = std::string(recipe.text)};
    }
    names.push_back(recipe.name);
  }
  return absl::InvalidArgumentError(
      ExpectedWord("a path (with a '/', or ending in .yaml) or one of ", names, name));
}

}  // namespace

YamlPtr MergeYaml(std::string_view key, const YamlPtr& base, const YamlPtr& over) {
  return base == nullptr ? over : Merge(key, base, over, /*afresh=*/true);
}

absl::StatusOr<YamlPtr> OverridesAsYaml(std::span<const std::string> overrides) {
  YamlPtr all;
  for (const std::string& text : overrides) {
    const size_t equals = text.find('=');
    const std::string key = text.substr(0, equals);
    const std::string place = absl::StrCat("--set ", Printable(key));
    if (equals == text.npos || key.empty()) {
      return absl::InvalidArgumentError(
          absl::StrCat("--set: expected KEY=VALUE, got ", Quoted(text)));
    }
    const std::vector<std::string> parts = absl::StrSplit(key, '.');
    if (parts.size() > kMostKeyParts || std::ranges::count(parts, "") > 0) {
      return absl::InvalidArgumentError(
          absl::StrCat(place, ": expected a key like weights.algorithm.method, got ", Quoted(key)));
    }
    if (parts.front() == "extends") {
      return absl::InvalidArgumentError(
          absl::StrCat(place, ": expected a key of the recipe's own, got what it extends"));
    }
    NIBBLE_ASSIGN_OR_RETURN(YamlPtr value, ParseYaml(text.substr(equals + 1), place, false));
    for (auto part = parts.rbegin(); part != parts.rend(); ++part) {
      auto map = std::make_shared<YamlNode>(YamlNode{.kind = Kind::kMap, .place = place});
      map->entries.push_back({*part, place, std::move(value)});
      value = std::move(map);
    }
    all = all == nullptr ? value : Merge("", all, value, /*afresh=*/false);
  }
  return all;
}

absl::StatusOr<YamlPtr> ReadLayers(const std::string& name, const ReadRecipeFile& read,
                                   std::string& default_name) {
  default_name = IsPath(name) ? StemOf(name) : name;
  std::vector<YamlPtr> layers;
  std::vector<std::string> chain;
  std::string next = name, place = "recipe";
  Source source;
  for (;;) {
    absl::StatusOr<Source> found = FindSource(next, chain.empty() ? nullptr : &source, read);
    if (!found.ok()) return Annotate(found.status(), place);
    source = *std::move(found);
    chain.push_back(Normal(source.id));
    if (std::ranges::count(chain, chain.back()) > 1 || chain.size() > kLongestChain) {
      return absl::InvalidArgumentError(
          absl::StrCat(place, ": expected at most ", kLongestChain,
                       " recipes that do not come back to one another, got ",
                       Printable(absl::StrJoin(chain, " -> "))));
    }
    NIBBLE_ASSIGN_OR_RETURN(YamlPtr document, ParseYaml(source.text, source.id));
    if (document->kind != Kind::kMap) {
      return absl::InvalidArgumentError(
          absl::StrCat(document->place, ": recipe: expected a mapping, got ",
                       document->kind == Kind::kNull ? "nothing" : "something else"));
    }
    const YamlEntry* extends = document->Find("extends");
    // Of what it extends, a recipe does not take the name.
    layers.push_back(layers.empty() ? Without(*document, "extends")
                                    : Without(*Without(*document, "extends"), "metadata"));
    if (extends == nullptr) break;
    place = absl::StrCat(extends->value->place, ": extends");
    if (extends->value->kind != Kind::kScalar) {
      return absl::InvalidArgumentError(
          absl::StrCat(place, ": expected the name or the path of a recipe, got ",
                       extends->value->kind == Kind::kNull ? "nothing" : "something else"));
    }
    next = extends->value->text;
  }
  YamlPtr merged = layers.back();
  for (auto layer = std::next(layers.rbegin()); layer != layers.rend(); ++layer) {
    merged = MergeYaml("", merged, *layer);
  }
  return merged;
}

}  // namespace nibble
