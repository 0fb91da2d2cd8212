#include "model/text/pattern.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <optional>
#include <utility>
#include <vector>

#include "base/status.h"
#include "base/text.h"
#include "model/text/unicode.h"

namespace nibble {
namespace {

constexpr size_t kMaxBytes = 65'536;          // of an expression
constexpr size_t kMaxGroups = 100;             // of its groups
constexpr uint32_t kMatchLimit = 50'000'000;  // steps of a match from one place on
constexpr size_t kMinJitStack = size_t{64} << 10;
constexpr size_t kMaxJitStack = size_t{64} << 20;

constexpr std::string_view kProperties[] = {"L",  "Lu", "Ll", "Lt", "Lm", "Lo", "M",  "Mn", "Mc",
                                            "Me", "N",  "Nd", "Nl", "No", "P",  "Pc", "Pd", "Ps",
                                            "Pe", "Pi", "Pf", "Po", "S",  "Sm", "Sc", "Sk", "So",
                                            "Z",  "Zs", "Zl", "Zp", "C",  "Cc", "Cf", "Co", "Han"};

// \s, \d and \w of Oniguruma, as what stands in a class.
constexpr std::string_view kSpaces =
    R"(\x{9}-\x{D}\x{20}\x{85}\x{A0}\x{1680}\x{2000}-\x{200A}\x{2028}\x{2029}\x{202F}\x{205F}\x{3000})";
constexpr std::string_view kDigits = R"(\p{Nd})";
constexpr std::string_view kWords =
    R"(\p{L}\p{M}\p{Nd}\p{Nl}\p{Pc}\x{B2}\x{B3}\x{B9}\x{BC}-\x{BE}\x{24B6}-\x{24E9}\x{1F130}-\x{1F149})"
    R"(\x{1F150}-\x{1F169}\x{1F170}-\x{1F189})";

std::string Character(uint32_t code) { return absl::StrCat("\\x{", absl::Hex(code), "}"); }

class Translator {
 public:
  explicit Translator(std::string_view expression) : text_(expression) {}

  absl::StatusOr<std::string> Run() {
    while (status_.ok() && at_ < text_.size()) Step();
    if (status_.ok() && !groups_.empty()) Fail("every group to end", "no ) for one");
    if (!status_.ok()) return status_;
    return std::move(out_);
  }

 private:
  // What a character or an escape stands for.
  struct Item {
    std::optional<uint32_t> code;  // a character
    std::string set;               // else what stands in a class for it
    bool negated = false;          // else its complement
  };

  void Fail(std::string_view expected, std::string_view got) {
    status_ = absl::UnimplementedError(
        absl::StrCat("byte ", at_ + 1, ": expected ", ToAbsl(expected), ", got ", ToAbsl(got)));
  }
  bool Take(std::string_view piece) {
    if (!text_.substr(at_).starts_with(piece)) return false;
    at_ += piece.size();
    return true;
  }
  char Peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }
  bool Caseless() const { return !groups_.empty() && groups_.back(); }

  void Step() {
    constexpr std::string_view kGroups[] = {"(?i:", "(?:", "(?=", "(?!", "(?<=", "(?<!", "(?>"};
    for (const std::string_view group : kGroups) {
      if (!Take(group)) continue;
      OpenGroup(group);
      return;
    }
    const std::string_view rest = text_.substr(at_);
    if (rest.starts_with("(?")) {
      return Fail("a group (?:, (?i:, (?=, (?!, (?<=, (?<! or (?>", Quoted(rest.substr(0, 4)));
    }
    switch (Peek()) {
      case '(':
        ++at_;
        return OpenGroup("(?:");
      case ')':
        if (groups_.empty()) return Fail("no ) without a group", "one");
        ++at_;
        groups_.pop_back();
        out_ += ')';
        return Quantifier();
      case '|':
        ++at_;
        out_ += '|';
        return;
      case '.':
        ++at_;
        out_ += "[^\\n]";
        return Quantifier();
      case '[':
        Class();
        return Quantifier();
      case '*':
      case '+':
      case '?':
      case '{':
        return Fail("a quantifier after what it counts, and no second one",
                    Quoted(rest.substr(0, 4)));
      case '^':
      case '$':
        return Fail("no anchors", Quoted(rest.substr(0, 1)));
      default: {
        const Item item = TakeItem();
        if (!status_.ok()) return;
        out_ += item.code ? Character(*item.code)
                          : absl::StrCat(item.negated ? "[^" : "[", item.set, "]");
        return Quantifier();
      }
    }
  }

  void OpenGroup(std::string_view group) {
    if (groups_.size() == kMaxGroups) return Fail("groups that nest less deeply", "more");
    groups_.push_back(group == "(?i:" || Caseless());
    out_ += group;
  }

  void Quantifier() {
    if (!status_.ok()) return;
    const char c = Peek();
    if (c == '*' || c == '+' || c == '?') {
      ++at_;
      out_ += c;
      if (Peek() == '+' || Peek() == '?') out_ += text_[at_++];
      return;
    }
    if (c != '{') return;
    // {n}, {n,}, {,m} and {n,m}; before a + or ? the libraries disagree.
    const size_t end = text_.find('}', at_);
    const std::string_view inside = end == text_.npos ? "" : text_.substr(at_ + 1, end - at_ - 1);
    const size_t comma = inside.find(',');
    const std::string_view low = inside.substr(0, comma);
    const std::string_view high = comma == inside.npos ? "" : inside.substr(comma + 1);
    const auto is_count = [](std::string_view number) {
      return number.size() <= 4 && number.find_first_not_of("0123456789") == number.npos;
    };
    if (!is_count(low) || !is_count(high) || low.size() + high.size() == 0) {
      return Fail("{n}, {n,}, {,m} or {n,m} of at most four digits each", Quoted(inside));
    }
    at_ = end + 1;
    const char next = Peek();
    const bool lazy = next == '?' && comma != inside.npos;
    if (next == '+' || (next == '?' && !lazy)) {
      return Fail("no + or ? after {n}, and no + after {n,m}", Quoted(text_.substr(at_, 1)));
    }
    absl::StrAppend(&out_, "{", low.empty() ? "0" : ToAbsl(low), comma == inside.npos ? "" : ",",
                    ToAbsl(high), "}");
    if (Take("?")) out_ += '?';
  }

  Item TakeItem() {
    if (Peek() == '\\') return Escape();
    const CodePoint point = CodePointAt(text_, at_);
    at_ += point.bytes;
    return {point.code, "", false};
  }

  Item Escape() {
    const size_t start = at_++;
    const char c = Peek();
    if (at_ == text_.size()) {
      Fail("something after \\", "the end");
      return {};
    }
    constexpr std::pair<char, uint32_t> kControls[] = {
        {'t', 0x09}, {'n', 0x0A}, {'v', 0x0B}, {'f', 0x0C}, {'r', 0x0D}, {'a', 0x07}, {'e', 0x1B}};
    for (const auto& [name, code] : kControls) {
      if (c == name) return ++at_, Item{code, "", false};
    }
    constexpr std::pair<char, std::string_view> kSets[] = {
        {'s', kSpaces}, {'d', kDigits}, {'w', kWords}};
    for (const auto& [name, set] : kSets) {
      if (c == name || c == name - 'a' + 'A') return ++at_, Item{{}, std::string(set), c != name};
    }
    if (c == 'p' || c == 'P') return Property();
    if (c == 'u') return ++at_, Hex(4, 4);
    if (c == 'x') {
      ++at_;
      if (!Take("{")) return Hex(1, 2);
      const Item item = Hex(1, 6);
      if (status_.ok() && !Take("}")) Fail("}", Quoted(text_.substr(at_, 1)));
      return item;
    }
    if (c >= ' ' && c <= '~' && !(c >= '0' && c <= '9') && !(c >= 'a' && c <= 'z') &&
        !(c >= 'A' && c <= 'Z')) {
      ++at_;
      return {static_cast<uint32_t>(c), "", false};
    }
    at_ = start;
    Fail("one of \\s \\d \\w \\p \\t \\n \\v \\f \\r \\a \\e \\x \\u, or a sign",
         Quoted(text_.substr(at_, 2)));
    return {};
  }

  Item Hex(size_t least, size_t most) {
    uint32_t code = 0;
    size_t digits = 0;
    for (; digits < most; ++digits, ++at_) {
      const char c = Peek();
      if (c >= '0' && c <= '9') {
        code = code * 16 + (c - '0');
      } else if ((c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F')) {
        code = code * 16 + ((c | 0x20) - 'a' + 10);
      } else {
        break;
      }
    }
    const bool is_byte = least == 1 && most == 2 && code >= 0x80;  // a piece of a character
    if (digits < least || code > 0x10FFFF || (code >= 0xD800 && code <= 0xDFFF) || is_byte) {
      Fail("a code point in hexadecimal digits", Quoted(text_.substr(at_ - digits, digits)));
    }
    return {code, "", false};
  }

  Item Property() {
    const bool negated = Peek() == 'P';
    const size_t open = at_ + 1, end = text_.find('}', at_);
    const std::string_view name = open < text_.size() && text_[open] == '{' && end != text_.npos
                                      ? text_.substr(open + 1, end - open - 1)
                                      : "";
    if (std::ranges::find(kProperties, name) == std::end(kProperties)) {
      Fail("a general category (\\p{L}, \\p{Lu} and so on) or \\p{Han}",
           Quoted(text_.substr(at_ - 1, 8)));
      return {};
    }
    if (Caseless() && (name == "Lu" || name == "Ll" || name == "Lt")) {
      Fail("no upper, lower or title case inside of (?i:", Quoted(name));
      return {};
    }
    at_ = end + 1;
    return {{}, absl::StrCat("\\p{", ToAbsl(name), "}"), negated};
  }

  void Class() {
    ++at_;
    const bool negated = Take("^");
    std::string members;
    bool first = true;
    for (; status_.ok(); first = false) {
      const std::string_view rest = text_.substr(at_);
      if (rest.empty()) return Fail("every [ to end", "no ]");
      if (rest[0] == ']') {
        if (first) return Fail("a class of something", "[]");
        ++at_;
        break;
      }
      if (rest[0] == '[') return Fail("no class inside of a class", Quoted(rest.substr(0, 8)));
      if (rest.starts_with("&&")) return Fail("no && in a class", "it");
      if (rest[0] == '-' && !first && !rest.starts_with("-]")) {
        return Fail("a - that is first, last, after \\ or in a range", Quoted(rest.substr(0, 8)));
      }
      const Item item = TakeItem();
      if (!status_.ok()) return;
      if (!item.code) {
        if (item.negated) {
          absl::StatusOr<std::string> complement = Complement(item.set);
          if (!complement.ok()) return Fail("no opposite of this in a class", Quoted(item.set));
          members += *complement;
        } else {
          members += item.set;
        }
        if (Peek() == '-' && !text_.substr(at_).starts_with("-]")) {
          return Fail("no range that begins with a set", Quoted(text_.substr(at_, 8)));
        }
        continue;
      }
      members += Character(*item.code);
      if (Peek() != '-' || text_.substr(at_).starts_with("-]")) continue;
      ++at_;
      if (Peek() == '[' || at_ == text_.size()) return Fail("an end of the range", "[ or nothing");
      const Item last = TakeItem();
      if (!status_.ok()) return;
      if (!last.code || *last.code < *item.code) {
        return Fail("a range that ends with a character no lower than its first", "another");
      }
      absl::StrAppend(&members, "-", Character(*last.code));
    }
    if (status_.ok()) absl::StrAppend(&out_, negated ? "[^" : "[", members, "]");
  }

  // What stands in a class for everything but `set`.
  static absl::StatusOr<std::string> Complement(const std::string& set) {
    if (set == kSpaces) {
      return std::string(
          R"(\x{0}-\x{8}\x{E}-\x{1F}\x{21}-\x{84}\x{86}-\x{9F}\x{A1}-\x{167F}\x{1681}-\x{1FFF})"
          R"(\x{200B}-\x{2027}\x{202A}-\x{202E}\x{2030}-\x{205E}\x{2060}-\x{2FFF}\x{3001}-\x{10FFFF})");
    }
    if (set == kWords) return absl::UnimplementedError("a union has no complement in a class");
    return absl::StrCat("\\P", set.substr(2));
  }

  const std::string_view text_;
  size_t at_ = 0;
  std::string out_;
  std::vector<bool> groups_;  // those that are open: caseless or not
  absl::Status status_;
};

// Frees what PCRE2 allocated.
struct Free {
  void operator()(pcre2_code* p) const { pcre2_code_free(p); }
  void operator()(pcre2_compile_context* p) const { pcre2_compile_context_free(p); }
  void operator()(pcre2_match_context* p) const { pcre2_match_context_free(p); }
  void operator()(pcre2_match_data* p) const { pcre2_match_data_free(p); }
  void operator()(pcre2_jit_stack* p) const { pcre2_jit_stack_free(p); }
};
template <typename T>
using Owned = std::unique_ptr<T, Free>;

std::string ErrorName(int error) {
  PCRE2_UCHAR text[256] = {};
  pcre2_get_error_message(error, text, sizeof(text));
  return reinterpret_cast<const char*>(text);
}

}  // namespace

struct Pattern::Compiled {
  // The next match from byte `from` on, or an error of PCRE2's.
  int Match(PCRE2_SPTR subject, size_t size, size_t from, pcre2_match_data* match,
            pcre2_match_context* with) const {
    return jit ? pcre2_jit_match(code.get(), subject, size, from, 0, match, with)
               : pcre2_match(code.get(), subject, size, from, PCRE2_NO_UTF_CHECK, match, with);
  }

  Owned<pcre2_code> code;
  Owned<pcre2_match_context> context;
  bool is_literal = false;
  bool jit = false;
};

absl::StatusOr<std::string> TranslatePattern(std::string_view expression) {
  if (expression.size() > kMaxBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("expected at most ", kMaxBytes, " bytes, got ", expression.size()));
  }
  if (FindInvalidUtf8(expression) != expression.size()) {
    return absl::InvalidArgumentError("expected UTF-8, got other bytes");
  }
  return Translator(expression).Run();
}

absl::StatusOr<Pattern> Pattern::Compile(std::string_view expression) {
  const absl::StatusOr<std::string> translated = TranslatePattern(expression);
  if (!translated.ok()) {
    return Annotate(translated.status(), absl::StrCat("pattern ", Quoted(expression)));
  }
  return CompileFor(expression, *translated, PCRE2_UTF | PCRE2_UCP);
}

absl::StatusOr<Pattern> Pattern::Literal(std::string_view text) {
  if (FindInvalidUtf8(text) != text.size()) {
    return absl::InvalidArgumentError("pattern: expected UTF-8, got other bytes");
  }
  return CompileFor(text, text, PCRE2_UTF | PCRE2_LITERAL);
}

absl::StatusOr<Pattern> Pattern::Read(const JsonNode& node) {
  if (!node["String"].is_null()) {
    NIBBLE_ASSIGN_OR_RETURN(const std::string_view text, node["String"].String());
    return Literal(text);
  }
  NIBBLE_ASSIGN_OR_RETURN(const std::string_view expression, node["Regex"].String());
  absl::StatusOr<Pattern> pattern = Compile(expression);
  if (!pattern.ok()) return Annotate(pattern.status(), node.path());
  return pattern;
}

absl::StatusOr<Pattern> Pattern::CompileFor(std::string_view shown, std::string_view expression,
                                            uint32_t options) {
  const Owned<pcre2_compile_context> context(pcre2_compile_context_create(nullptr));
  if (!context) return absl::ResourceExhaustedError("pattern: expected enough memory, got none");
  pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
  int error = 0;
  size_t where = 0;
  auto compiled = std::make_shared<Compiled>();
  compiled->is_literal = (options & PCRE2_LITERAL) != 0;
  compiled->code.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(expression.data()),
                                     expression.size(), options, &error, &where, context.get()));
  if (!compiled->code) {
    return absl::InvalidArgumentError(absl::StrCat(
        "pattern ", Quoted(shown), ": expected an expression for PCRE2, got: ", ErrorName(error)));
  }
  compiled->context.reset(pcre2_match_context_create(nullptr));
  if (!compiled->context) {
    return absl::ResourceExhaustedError("pattern: expected enough memory, got none");
  }
  pcre2_set_match_limit(compiled->context.get(), kMatchLimit);
  compiled->jit = pcre2_jit_compile(compiled->code.get(), PCRE2_JIT_COMPLETE) == 0;
  return Pattern(std::move(compiled));
}

absl::Status Pattern::ForEach(std::string_view text,
                              absl::FunctionRef<void(size_t, size_t, bool)> piece) const {
  if (text.empty()) return absl::OkStatus();
  const Owned<pcre2_match_data> match(
      pcre2_match_data_create_from_pattern(compiled_->code.get(), nullptr));
  if (!match) return absl::ResourceExhaustedError("pattern: expected enough memory, got none");
  // A larger stack than compiled code has by itself, made when it is needed.
  Owned<pcre2_jit_stack> stack;
  Owned<pcre2_match_context> with_stack;

  const std::string with_stand_ins = compiled_->is_literal ? "" : WithStandIns(text);
  const auto* subject =
      reinterpret_cast<PCRE2_SPTR>(with_stand_ins.empty() ? text.data() : with_stand_ins.data());
  const size_t* ovector = pcre2_get_ovector_pointer(match.get());
  size_t covered = 0;  // up to where pieces have been told
  size_t from = 0;     // where the next search begins
  std::optional<size_t> last_end;
  while (from <= text.size()) {
    const int found = compiled_->Match(subject, text.size(), from, match.get(),
                                       stack ? with_stack.get() : compiled_->context.get());
    if (found == PCRE2_ERROR_JIT_STACKLIMIT && !stack) {
      stack.reset(pcre2_jit_stack_create(kMinJitStack, kMaxJitStack, nullptr));
      with_stack.reset(pcre2_match_context_copy(compiled_->context.get()));
      if (!stack || !with_stack) {
        return absl::ResourceExhaustedError("pattern: expected enough memory, got none");
      }
      pcre2_jit_stack_assign(with_stack.get(), nullptr, stack.get());
      continue;
    }
    if (found == PCRE2_ERROR_NOMATCH) break;
    if (found < 0) {
      return absl::ResourceExhaustedError(
          absl::StrCat("byte ", from, ": expected a pattern that is matched in ", kMatchLimit,
                       " steps, got: ", ErrorName(found)));
    }
    const size_t begin = ovector[0], end = ovector[1];
    if (begin == end && last_end == end) {
      from = end < text.size() ? end + CodePointAt(text, end).bytes : end + 1;
      continue;
    }
    if (covered < begin) piece(covered, begin, false);
    piece(begin, end, true);
    covered = from = end;
    last_end = end;
  }
  if (covered < text.size()) piece(covered, text.size(), false);
  return absl::OkStatus();
}

}  // namespace nibble
