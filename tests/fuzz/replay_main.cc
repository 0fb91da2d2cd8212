// main() for fuzz targets in builds without libFuzzer:
//   replay [--mutations=N] [--length-prefix] FOLDER...
// runs every file below the folders, then N mutations of each, the same ones every time.
// --length-prefix: the first eight bytes of an input count the bytes of a header that ends in a
// brace; half of the mutations have them right.
#include <charconv>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <set>
#include <string>
#include <string_view>
#include <system_error>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace {

constexpr std::string_view kTokens[] = {
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    "\"",
    " ",
    "-1",
    "0",
    "1e9",
    "1.5",
    "null",
    "true",
    "\\u0000",
    "\\ud800",
    "\xff",
    "18446744073709551615",
    "18446744073709551616",
    "9223372036854775808",
    "\"dtype\":",
    "\"shape\":",
    "\"data_offsets\":",
    "\"__metadata__\":",
    "\"F32\"",
    "\"BF16\"",
    "[0,4]",
    "\n",
    "\n  - ",
    "- ",
    ": ",
    "#",
    "&a ",
    "*a",
    "!!str ",
    "? ",
    "|\n",
    ">-\n",
    "---\n",
    "'",
    "~",
    "\t",
    "re:(",
    "extends: nvfp4\n",
    "weights: ",
    "algorithm: ",
    "method: ",
    "rules: ",
    "use: keep",
    "\\\\p{L}",
    "\\\\s+",
    "(?!",
    "(?i:",
    "{1,3}",
    "\"Regex\":",
    "\"type\":\"ByteLevel\"",
    "\"merges\":",
    "\"id\":",
};

void Run(const std::string& input) {
  LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t*>(input.data()), input.size());
}

std::string Mutate(const std::vector<std::string>& corpus, size_t index, bool length_prefix,
                   std::mt19937_64& random) {
  const auto below = [&](size_t limit) { return limit == 0 ? 0 : random() % limit; };
  std::string text = corpus[index];
  for (size_t steps = 1 + below(4); steps > 0; --steps) {
    const size_t at = below(text.size() + 1);
    switch (below(5)) {
      case 0:  // flip a bit
        if (at < text.size()) text[at] = static_cast<char>(text[at] ^ 1 << below(8));
        break;
      case 1:  // truncate
        text.resize(at);
        break;
      case 2: {  // go on as another file does
        const std::string& other = corpus[below(corpus.size())];
        text = text.substr(0, at) + other.substr(below(other.size() + 1));
        break;
      }
      case 3:  // insert
        text.insert(at, kTokens[below(std::size(kTokens))]);
        break;
      default:  // cut out
        text.erase(at, 1 + below(8));
    }
    // Half the time, a header length that reaches up to the last brace, lest all die at the length.
    if (!length_prefix) continue;
    if (const size_t brace = text.rfind('}'); brace != text.npos && brace >= 8 && below(2) == 0) {
      for (size_t i = 0; i < 8; ++i) text[i] = static_cast<char>((brace - 7) >> (8 * i));
    }
  }
  return text;
}

}  // namespace

int main(int argc, char** argv) {
  constexpr std::string_view kMutations = "--mutations=";
  size_t mutations = 0;
  bool length_prefix = false;
  std::set<std::filesystem::path> files;
  for (int i = 1; i < argc; ++i) {
    const std::string_view argument = argv[i];
    if (argument.starts_with(kMutations)) {
      const char* end = argument.data() + argument.size();
      const auto [rest, error] =
          std::from_chars(argument.data() + kMutations.size(), end, mutations);
      if (error == std::errc() && rest == end) continue;
      std::fprintf(stderr, "%s: expected a number\n", argv[i]);
      return 2;
    }
    if (argument == "--length-prefix") {
      length_prefix = true;
      continue;
    }
    std::error_code error;
    for (std::filesystem::recursive_directory_iterator it(argument, error), end; it != end;
         it.increment(error)) {
      if (it->is_regular_file(error)) files.insert(it->path());
    }
    if (error) {
      std::fprintf(stderr, "%s: %s\n", argv[i], error.message().c_str());
      return 2;
    }
  }
  std::vector<std::string> corpus;
  for (const auto& path : files) {
    std::ifstream in(path, std::ios::binary);
    corpus.emplace_back(std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>());
  }
  if (corpus.empty()) {
    std::fprintf(stderr,
                 "usage: %s [--mutations=N] [--length-prefix] FOLDER...: no corpus file found\n",
                 argv[0]);
    return 2;
  }
  std::mt19937_64 random(20240607);
  for (size_t i = 0; i < corpus.size(); ++i) {
    Run(corpus[i]);
    for (size_t n = 0; n < mutations; ++n) Run(Mutate(corpus, i, length_prefix, random));
  }
  std::printf("replayed %zu files and %zu mutations\n", corpus.size(), corpus.size() * mutations);
  return 0;
}
