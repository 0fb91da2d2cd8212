#include "model/text/pre_tokenizer.h"

#include <utility>

#include "absl/strings/str_replace.h"
#include "base/status.h"

namespace nibble {
namespace {

// ByteLevel's own, which is GPT-2's.
constexpr std::string_view kByteLevelPattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

}  // namespace

absl::StatusOr<PreTokenizer> PreTokenizer::Read(const JsonNode& node) {
  PreTokenizer pre_tokenizer;
  NIBBLE_RETURN_IF_ERROR(pre_tokenizer.Add(node));
  return pre_tokenizer;
}

absl::Status PreTokenizer::Add(const JsonNode& node) {
  if (node.is_null()) return absl::OkStatus();
  NIBBLE_ASSIGN_OR_RETURN(const std::string_view type, node["type"].String());
  if (type == "Sequence") {
    NIBBLE_ASSIGN_OR_RETURN(const auto steps, node["pretokenizers"].Items());
    for (const JsonNode& step : steps) NIBBLE_RETURN_IF_ERROR(Add(step));
    return absl::OkStatus();
  }
  if (by_bytes_) return node["type"].Unsupported("nothing behind ByteLevel");
  if (type == "ByteLevel") {
    NIBBLE_ASSIGN_OR_RETURN(const bool prefix, node["add_prefix_space"].Bool());
    NIBBLE_ASSIGN_OR_RETURN(const bool use_regex, node["use_regex"].BoolOr(true));
    Step step;
    step.prefix = prefix ? Prefix::kAlways : Prefix::kNever;
    step.prefix_text = " ";
    if (use_regex) {
      NIBBLE_ASSIGN_OR_RETURN(step.pattern, Pattern::Compile(kByteLevelPattern));
    }
    steps_.push_back(std::move(step));
    by_bytes_ = true;
    return absl::OkStatus();
  }
  if (type == "Split") return AddSplit(node);
  if (type == "Digits") {
    NIBBLE_ASSIGN_OR_RETURN(const bool individual, node["individual_digits"].Bool());
    Step step;
    step.behavior = individual ? Behavior::kIsolated : Behavior::kContiguous;
    NIBBLE_ASSIGN_OR_RETURN(step.pattern, Pattern::Compile(R"(\p{N})"));
    steps_.push_back(std::move(step));
    return absl::OkStatus();
  }
  if (type == "Metaspace") return AddMetaspace(node);
  return node["type"].Unsupported("one of ByteLevel, Split, Digits, Metaspace, Sequence");
}

absl::Status PreTokenizer::AddSplit(const JsonNode& node) {
  constexpr std::pair<std::string_view, Behavior> kBehaviors[] = {
      {"Removed", Behavior::kRemoved},
      {"Isolated", Behavior::kIsolated},
      {"MergedWithPrevious", Behavior::kMergedWithPrevious},
      {"MergedWithNext", Behavior::kMergedWithNext},
      {"Contiguous", Behavior::kContiguous}};
  NIBBLE_ASSIGN_OR_RETURN(const std::string_view name, node["behavior"].String());
  std::optional<Behavior> behavior;
  for (const auto& [known, value] : kBehaviors) {
    if (name == known) behavior = value;
  }
  if (!behavior) {
    return node["behavior"].Error(
        "one of Removed, Isolated, MergedWithPrevious, MergedWithNext, Contiguous");
  }
  Step step;
  step.behavior = *behavior;
  NIBBLE_ASSIGN_OR_RETURN(step.invert, node["invert"].BoolOr(false));
  NIBBLE_ASSIGN_OR_RETURN(step.pattern, Pattern::Read(node["pattern"]));
  steps_.push_back(std::move(step));
  return absl::OkStatus();
}

absl::Status PreTokenizer::AddMetaspace(const JsonNode& node) {
  Step step;
  NIBBLE_ASSIGN_OR_RETURN(step.spaces, node["replacement"].String());
  if (step.spaces.empty()) return node["replacement"].Error("a character");
  step.prefix_text = step.spaces;
  // Files of before the scheme have the flag alone.
  NIBBLE_ASSIGN_OR_RETURN(const bool add_prefix, node["add_prefix_space"].BoolOr(true));
  const JsonNode scheme_node = node["prepend_scheme"];
  std::string_view scheme = "always";
  if (!scheme_node.is_null()) {
    NIBBLE_ASSIGN_OR_RETURN(scheme, scheme_node.String());
  }
  if (scheme == "always") {
    step.prefix = Prefix::kAlways;
  } else if (scheme == "first") {
    step.prefix = Prefix::kFirst;
  } else if (scheme != "never") {
    return scheme_node.Error("one of always, first, never");
  }
  if (!add_prefix) step.prefix = Prefix::kNever;
  NIBBLE_ASSIGN_OR_RETURN(const bool split, node["split"].BoolOr(true));
  if (split) {
    NIBBLE_ASSIGN_OR_RETURN(step.pattern, Pattern::Literal(step.spaces));
    step.behavior = Behavior::kMergedWithNext;
  }
  steps_.push_back(std::move(step));
  return absl::OkStatus();
}

absl::Status PreTokenizer::Apply(std::string_view text, bool is_first, Sink word) const {
  return ApplyFrom(0, text, is_first, word);
}

absl::Status PreTokenizer::ApplyFrom(size_t index, std::string_view text, bool is_first,
                                     Sink word) const {
  if (text.empty()) return absl::OkStatus();
  if (index == steps_.size()) {
    word(text);
    return absl::OkStatus();
  }
  const Step& step = steps_[index];
  std::string changed;
  if (!step.spaces.empty()) {
    changed = absl::StrReplaceAll(ToAbsl(text), {{" ", step.spaces}});
    text = changed;
  }
  const bool prefix = step.prefix == Prefix::kAlways || (step.prefix == Prefix::kFirst && is_first);
  if (prefix && !text.starts_with(step.prefix_text)) {
    changed = absl::StrCat(step.prefix_text, ToAbsl(text));
    text = changed;
  }
  if (!step.pattern) return ApplyFrom(index + 1, text, is_first, word);
  absl::Status status;
  const char* begin = text.data();
  const absl::Status split = Split(step, text, [&](std::string_view piece) {
    if (status.ok()) {
      status = ApplyFrom(index + 1, piece, is_first && piece.data() == begin, word);
    }
  });
  return split.ok() ? status : split;
}

absl::Status PreTokenizer::Split(const Step& step, std::string_view text, Sink piece) {
  // A piece is held back while what follows may join it.
  size_t begin = 0, end = 0;
  bool has_held = false, held_is_match = false;
  const auto let_go = [&] {
    if (has_held && begin < end) piece(text.substr(begin, end - begin));
    has_held = false;
  };
  const absl::Status status =
      step.pattern->ForEach(text, [&](size_t from, size_t to, bool matches) {
        const bool is_match = matches != step.invert;
        bool joins = false;
        switch (step.behavior) {
          case Behavior::kRemoved:
            if (!is_match) piece(text.substr(from, to - from));
            return;
          case Behavior::kIsolated:
            break;
          case Behavior::kMergedWithPrevious:
            joins = is_match && !held_is_match;
            break;
          case Behavior::kMergedWithNext:
            joins = !is_match && held_is_match;
            break;
          case Behavior::kContiguous:
            joins = is_match == held_is_match;
        }
        if (!joins || !has_held) {
          let_go();
          begin = from;
        }
        end = to;
        has_held = true;
        held_is_match = is_match;
      });
  let_go();
  return status;
}

}  // namespace nibble
