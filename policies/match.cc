// Globs and regular expressions on module names. Expressions are matched without backtracking, on
// sets of positions: what is left over of the name's end after each part, for all ways to match the
// parts before at once. Hostile ones end at a number of steps instead of never.
#include <algorithm>
#include <bitset>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "base/status.h"
#include "base/text.h"
#include "policies/recipe.h"

namespace nibble {
namespace {

constexpr std::string_view kExpressionMark = "re:";
constexpr size_t kLongestPattern = 4096;
constexpr size_t kDeepestGroups = 64;
constexpr int kMostRepeats = 1000;
constexpr int64_t kMostSteps = 20'000'000;  // bytes of position sets that are looked at

bool MatchesGlob(std::string_view glob, std::string_view name) {
  size_t g = 0, n = 0, star = glob.npos, star_name = 0;
  while (n < name.size()) {
    if (g < glob.size() && glob[g] == '*') {
      star = g++;
      star_name = n;
    } else if (g < glob.size() && (glob[g] == '?' || glob[g] == name[n])) {
      ++g, ++n;
    } else if (star != glob.npos) {  // the last star takes one more
      g = star + 1;
      n = ++star_name;
    } else {
      return false;
    }
  }
  return glob.find_first_not_of('*', g) == glob.npos;
}

using CharSet = std::bitset<256>;

CharSet Range(unsigned char first, unsigned char last) {
  CharSet set;
  for (int c = first; c <= last; ++c) set.set(c);
  return set;
}

const CharSet& WordCharacters() {
  static const CharSet set = Range('a', 'z') | Range('A', 'Z') | Range('0', '9') | Range('_', '_');
  return set;
}

struct Part {
  enum class Kind : uint8_t {
    kCharacter,    // one of `set`
    kSequence,     // `parts`, one after another
    kAlternation,  // one of `parts`
    kRepeat,       // parts[0], `least` to `most` times (-1: any number)
    kLookahead,    // parts[0] follows, or does not
    kBegin,
    kEnd,
    kWordBoundary,
  };
  Kind kind = Kind::kSequence;
  CharSet set = {};
  std::vector<Part> parts = {};
  int least = 0, most = 0;
  bool negative = false;  // of lookaheads and word boundaries
};

// Recursive descent over the syntax of ECMAScript's expressions without back references.
class ExpressionParser {
 public:
  explicit ExpressionParser(std::string_view text) : text_(text) {}

  absl::StatusOr<Part> Parse() {
    NIBBLE_ASSIGN_OR_RETURN(Part part, Alternation());
    if (!Done()) return Error("expected a '(' before this ')'");
    return part;
  }

 private:
  bool Done() const { return at_ == text_.size(); }
  char Next() const { return text_[at_]; }
  bool Take(std::string_view token) {
    if (!text_.substr(at_).starts_with(token)) return false;
    at_ += token.size();
    return true;
  }
  absl::Status Error(std::string_view message) const {
    return absl::InvalidArgumentError(absl::StrCat(
        "character ", at_ + 1, " of the expression: ", ToAbsl(message), ", got ", Quoted(text_)));
  }

  absl::StatusOr<Part> Alternation() {
    Part alternation{.kind = Part::Kind::kAlternation};
    do {
      NIBBLE_ASSIGN_OR_RETURN(Part sequence, Sequence());
      alternation.parts.push_back(std::move(sequence));
    } while (Take("|"));
    if (alternation.parts.size() > 1) return alternation;
    Part only = std::move(alternation.parts.front());
    return only;
  }

  absl::StatusOr<Part> Sequence() {
    Part sequence{.kind = Part::Kind::kSequence};
    while (!Done() && Next() != '|' && Next() != ')') {
      NIBBLE_ASSIGN_OR_RETURN(Part part, Atom());
      NIBBLE_ASSIGN_OR_RETURN(Part repeated, Repeated(std::move(part)));
      sequence.parts.push_back(std::move(repeated));
    }
    return sequence;
  }

  static bool IsAssertion(const Part& part) {
    return part.kind == Part::Kind::kBegin || part.kind == Part::Kind::kEnd ||
           part.kind == Part::Kind::kWordBoundary || part.kind == Part::Kind::kLookahead;
  }

  absl::StatusOr<Part> Repeated(Part part) {
    int least = 0, most = -1;
    if (Take("+")) {
      least = 1;
    } else if (Take("?")) {
      most = 1;
    } else if (Take("{")) {
      const std::optional<int> first = Number();
      if (!first) return Error("expected {N}, {N,} or {N,M}, up to 1000");
      least = most = *first;
      if (Take(",")) {
        most = -1;
        if (!Done() && Next() != '}') {
          const std::optional<int> last = Number();
          if (!last || *last < least) return Error("expected {N}, {N,} or {N,M}, up to 1000");
          most = *last;
        }
      }
      if (!Take("}")) return Error("expected {N}, {N,} or {N,M}, up to 1000");
    } else if (!Take("*")) {
      return part;
    }
    if (IsAssertion(part)) return Error("expected something before it that can be repeated");
    Take("?");  // as few as possible: the same, for whole names
    if (!Done() && (Next() == '*' || Next() == '+' || Next() == '?' || Next() == '{')) {
      return Error("expected something before it that can be repeated");
    }
    Part repeat{.kind = Part::Kind::kRepeat, .least = least, .most = most};
    repeat.parts.push_back(std::move(part));
    return repeat;
  }

  std::optional<int> Number() {
    int number = 0;
    const size_t begin = at_;
    for (; !Done() && Next() >= '0' && Next() <= '9'; ++at_) {
      number = number * 10 + (Next() - '0');
      if (number > kMostRepeats) return std::nullopt;
    }
    return at_ == begin ? std::nullopt : std::optional(number);
  }

  absl::StatusOr<Part> Atom() {
    switch (Next()) {
      case '(':
        return Group();
      case '[':
        return Class();
      case '\\':
        return Escape();
      case '^':
        ++at_;
        return Part{.kind = Part::Kind::kBegin};
      case '$':
        ++at_;
        return Part{.kind = Part::Kind::kEnd};
      case '.':
        ++at_;
        return Part{.kind = Part::Kind::kCharacter,
                    .set = ~(Range('\n', '\n') | Range('\r', '\r'))};
      case '*':
      case '+':
      case '?':
      case '{':
        return Error("expected something before it that can be repeated");
      default:
        return Character(text_[at_++]);
    }
  }

  static Part Character(char c) {
    const auto byte = static_cast<unsigned char>(c);
    return Part{.kind = Part::Kind::kCharacter, .set = Range(byte, byte)};
  }

  absl::StatusOr<Part> Group() {
    if (++depth_ > kDeepestGroups) return Error("expected at most 64 groups inside of one another");
    std::optional<Part> lookahead;
    if (Take("(?=") || Take("(?!")) {
      lookahead = Part{.kind = Part::Kind::kLookahead, .negative = text_[at_ - 1] == '!'};
    } else if (!Take("(?:")) {
      Take("(");
      if (!Done() && Next() == '?') return Error("expected (?:, (?= or (?!");
    }
    NIBBLE_ASSIGN_OR_RETURN(Part inner, Alternation());
    if (!Take(")")) return Error("expected the ')' of a '('");
    --depth_;
    if (!lookahead) return inner;
    lookahead->parts.push_back(std::move(inner));
    return *std::move(lookahead);
  }

  // \d, \w, \s, their complements, and letters that stand for a character.
  std::optional<CharSet> NamedSet(char c) const {
    switch (c) {
      case 'd':
        return Range('0', '9');
      case 'D':
        return ~Range('0', '9');
      case 'w':
        return WordCharacters();
      case 'W':
        return ~WordCharacters();
      case 's':
        return Range('\t', '\r') | Range(' ', ' ');
      case 'S':
        return ~(Range('\t', '\r') | Range(' ', ' '));
      case 't':
        return Range('\t', '\t');
      case 'n':
        return Range('\n', '\n');
      case 'r':
        return Range('\r', '\r');
      default:
        // Any other letter or digit would be a back reference or a misunderstanding.
        if (WordCharacters()[static_cast<unsigned char>(c)] && c != '_') return std::nullopt;
        return Range(static_cast<unsigned char>(c), static_cast<unsigned char>(c));
    }
  }

  absl::StatusOr<Part> Escape() {
    ++at_;
    if (Done()) return Error("expected a character after the '\\'");
    if (Next() == 'b' || Next() == 'B') {
      return Part{.kind = Part::Kind::kWordBoundary, .negative = text_[at_++] == 'B'};
    }
    const std::optional<CharSet> set = NamedSet(Next());
    if (!set) return Error("expected one of \\d \\w \\s \\b, \\t \\n \\r or a sign after the '\\'");
    ++at_;
    return Part{.kind = Part::Kind::kCharacter, .set = *set};
  }

  // One member of a [class]; a set of one may begin or end a range.
  absl::StatusOr<CharSet> Member() {
    if (Done()) return Error("expected the ']' of a '['");
    if (text_.substr(at_).starts_with("[:")) return Error("expected no [:names:]");
    const char c = text_[at_++];
    if (c != '\\') return Range(static_cast<unsigned char>(c), static_cast<unsigned char>(c));
    if (Done()) return Error("expected a character after the '\\'");
    const std::optional<CharSet> set = NamedSet(Next());
    if (!set) return Error("expected one of \\d \\w \\s, \\t \\n \\r or a sign after the '\\'");
    ++at_;
    return *set;
  }

  static int First(const CharSet& set) {
    int c = 0;
    while (c < 256 && !set[c]) ++c;
    return c;
  }

  absl::StatusOr<Part> Class() {
    ++at_;
    Part part{.kind = Part::Kind::kCharacter};
    const bool complement = Take("^");
    while (!Take("]")) {
      NIBBLE_ASSIGN_OR_RETURN(CharSet set, Member());
      if (text_.substr(at_).starts_with("-") && !text_.substr(at_).starts_with("-]")) {
        ++at_;
        NIBBLE_ASSIGN_OR_RETURN(const CharSet last, Member());
        if (set.count() != 1 || last.count() != 1 || First(last) < First(set)) {
          return Error("expected a range from a smaller to a larger character");
        }
        set =
            Range(static_cast<unsigned char>(First(set)), static_cast<unsigned char>(First(last)));
      }
      part.set |= set;
    }
    if (complement) part.set = ~part.set;
    return part;
  }

  const std::string_view text_;
  size_t at_ = 0, depth_ = 0;
};

class ExpressionMatcher {
 public:
  explicit ExpressionMatcher(std::string_view name) : name_(name) {}

  absl::StatusOr<bool> MatchesWhole(const Part& part) {
    Positions begin(name_.size() + 1, 0);
    begin[0] = 1;
    const Positions ends = Ends(part, begin);
    if (steps_ > kMostSteps) {
      return absl::InvalidArgumentError(
          absl::StrCat("expression: expected one that is easier to match with ", Quoted(name_)));
    }
    return ends.back() != 0;
  }

 private:
  // One for each position between characters: 1 where a match may stand.
  using Positions = std::vector<uint8_t>;

  static bool None(const Positions& positions) {
    return std::ranges::find(positions, 1) == positions.end();
  }

  // False at the end of our patience; what is returned then does not matter.
  bool Step() {
    steps_ += static_cast<int64_t>(name_.size()) + 1;
    return steps_ <= kMostSteps;
  }

  // Where `part` may end if it begins at one of these positions.
  Positions Ends(const Part& part, const Positions& begins) {
    Positions ends(begins.size(), 0);
    if (!Step() || None(begins)) return ends;
    switch (part.kind) {
      case Part::Kind::kCharacter:
        for (size_t i = 0; i < name_.size(); ++i) {
          ends[i + 1] = begins[i] & part.set[static_cast<unsigned char>(name_[i])];
        }
        return ends;
      case Part::Kind::kSequence:
        ends = begins;
        for (const Part& next : part.parts) ends = Ends(next, ends);
        return ends;
      case Part::Kind::kAlternation:
        for (const Part& choice : part.parts) Unite(ends, Ends(choice, begins));
        return ends;
      case Part::Kind::kRepeat:
        return RepeatEnds(part, begins);
      case Part::Kind::kLookahead:
        for (size_t i = 0; i < begins.size(); ++i) {
          if (!begins[i]) continue;
          Positions here(begins.size(), 0);
          here[i] = 1;
          ends[i] = None(Ends(part.parts[0], here)) == part.negative;
        }
        return ends;
      case Part::Kind::kBegin:
        ends.front() = begins.front();
        return ends;
      case Part::Kind::kEnd:
        ends.back() = begins.back();
        return ends;
      case Part::Kind::kWordBoundary:
        for (size_t i = 0; i < begins.size(); ++i) {
          const bool boundary = IsWord(i - 1) != IsWord(i);
          ends[i] = begins[i] & (boundary != part.negative);
        }
        return ends;
    }
    return ends;
  }

  Positions RepeatEnds(const Part& part, const Positions& begins) {
    Positions at = begins;
    for (int i = 0; i < part.least && Step(); ++i) at = Ends(part.parts[0], at);
    Positions ends = at;
    for (int i = part.least; (part.most < 0 || i < part.most) && !None(at) && Step(); ++i) {
      at = Ends(part.parts[0], at);
      for (size_t p = 0; p < at.size(); ++p) at[p] &= !ends[p];  // the others were here before
      Unite(ends, at);
    }
    return ends;
  }

  static void Unite(Positions& positions, const Positions& more) {
    for (size_t i = 0; i < positions.size(); ++i) positions[i] |= more[i];
  }

  bool IsWord(size_t i) const {
    return i < name_.size() && WordCharacters()[static_cast<unsigned char>(name_[i])];
  }

  const std::string_view name_;
  int64_t steps_ = 0;
};

}  // namespace

absl::StatusOr<bool> MatchesName(std::string_view pattern, std::string_view module) {
  if (pattern.empty() || pattern.size() > kLongestPattern) {
    return absl::InvalidArgumentError(
        absl::StrCat("pattern: expected 1 to ", kLongestPattern, " bytes, got ", pattern.size()));
  }
  if (!pattern.starts_with(kExpressionMark)) return MatchesGlob(pattern, module);
  NIBBLE_ASSIGN_OR_RETURN(const Part part,
                          ExpressionParser(pattern.substr(kExpressionMark.size())).Parse());
  return ExpressionMatcher(module).MatchesWhole(part);
}

}  // namespace nibble
