// Every path of this repository that a document names exists.
#include <glob.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <regex>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/repository.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;
using ::nibble::testing::RepositoryFiles;
using ::nibble::testing::TopLevelFolders;
using ::testing::ElementsAre;
using ::testing::IsEmpty;

const fs::path kRoot = NIBBLE_SOURCE_DIR;

// Made by building or running, hence not here.
constexpr std::string_view kMadeFolders[] = {"build", "out"};

// Names without a slash that are files at top level, whether they exist or not.
const std::regex kRootFile(
    R"(run|LICENSE|CMakeLists\.txt|CMakePresets\.json|\.clang-format|\.clang-tidy|\.gitignore|[A-Z]+\.md)");

// --- Finding names
// --------------------------------------------------------------------------------

std::vector<std::string> MatchesOf(const std::string& text, const std::regex& pattern) {
  std::vector<std::string> found;
  for (std::sregex_iterator it(text.begin(), text.end(), pattern), end; it != end; ++it) {
    found.push_back(it->str(1));
  }
  return found;
}

std::string WithoutCodeBlocks(const std::string& markdown) {
  std::istringstream lines(markdown);
  std::string text;
  bool inside = false;
  for (std::string line; std::getline(lines, line);) {
    const bool fence = std::regex_search(line, std::regex(R"(^\s*(```|~~~))"));
    inside ^= fence;
    if (!inside && !fence) text += line + "\n";
  }
  return text;
}

// A word of a `code span` without what is not part of a path: "./", a line number, punctuation.
std::string Trimmed(const std::string& word) {
  static const std::regex kAround(R"re(^[("'=]*(\./)?|(:\d+(-\d+)?)?[)"',;:.]*$)re");
  return std::regex_replace(word, kAround, "");
}

bool LooksLikeOurs(const std::string& word, const std::set<std::string>& folders) {
  const size_t slash = word.find('/');
  if (slash == std::string::npos) return std::regex_match(word, kRootFile);
  return folders.contains(word.substr(0, slash));
}

bool IsMade(const std::string& path) {
  const std::string top = path.substr(0, path.find('/'));
  return std::find(std::begin(kMadeFolders), std::end(kMadeFolders), top) != std::end(kMadeFolders);
}

// --- Checking them
// --------------------------------------------------------------------------------

// `path` may hold *, {a,b}, <placeholders> and "...".
bool Exists(const fs::path& folder, const std::string& path) {
  const std::string pattern = std::regex_replace(path, std::regex(R"(<[^<>/]*>|\.\.\.)"), "*");
  glob_t found = {};
  const int result =
      glob((folder / pattern).c_str(), GLOB_BRACE | GLOB_NOSORT | GLOB_PERIOD, nullptr, &found);
  globfree(&found);
  return result == 0;
}

// What `markdown`, a document at `path`, names and is not there.
std::vector<std::string> MissingPaths(const std::string& path, const std::string& markdown) {
  static const std::regex kCodeSpan("`+([^`]+)`+");
  static const std::regex kLink(R"(\]\(<?([^)>\s]+)>?[^)]*\))");
  const std::set<std::string> folders = TopLevelFolders();
  const std::string text = WithoutCodeBlocks(markdown);
  std::vector<std::string> missing;
  for (const std::string& span : MatchesOf(text, kCodeSpan)) {
    std::istringstream words(span);
    for (std::string word; words >> word;) {
      word = Trimmed(word);
      if (LooksLikeOurs(word, folders) && !IsMade(word) && !Exists(kRoot, word)) {
        missing.push_back(word);
      }
    }
  }
  // A link leads on from the document's own folder.
  for (const std::string& link : MatchesOf(std::regex_replace(text, kCodeSpan, ""), kLink)) {
    const std::string target = link.substr(0, link.find('#'));
    const bool elsewhere = std::regex_search(target, std::regex("^[a-zA-Z][a-zA-Z+.-]*:"));
    if (target.empty() || elsewhere) continue;
    const fs::path from = fs::path(path).parent_path();
    const std::string whole = (from / target).lexically_normal().string();
    if (!IsMade(whole) && !fs::exists(kRoot / whole)) missing.push_back(target);
  }
  return missing;
}

// --- The repository
// -------------------------------------------------------------------------------

TEST(DocumentsTest, EveryPathExists) {
  for (const std::string& document : RepositoryFiles({".md"})) {
    std::ifstream in(kRoot / document);
    const std::string markdown(std::istreambuf_iterator<char>(in), {});
    EXPECT_THAT(MissingPaths(document, markdown), IsEmpty()) << document;
  }
}

TEST(DocumentsTest, ThereIsAReadme) { EXPECT_TRUE(fs::exists(kRoot / "README.md")); }

// --- The check itself
// -----------------------------------------------------------------------------

TEST(MissingPathsTest, ReportsPathsThatDoNotExist) {
  EXPECT_THAT(
      MissingPaths("README.md",
                   "See `tests/nothing.cc` and ``base/no_such_file.h``, `MISSING.md`,\n"
                   "[a link](docs/no_such_page.md), [two](base/gone.h#L3 \"title\"),\n"
                   "`run` it: `cmake -P cli/no.cmake, ./engine/no_*.cc` or `tests/no/<x>.cc`.\n"),
      ::testing::IsSupersetOf({"tests/nothing.cc", "base/no_such_file.h", "MISSING.md",
                               "docs/no_such_page.md", "base/gone.h", "cli/no.cmake",
                               "engine/no_*.cc", "tests/no/<x>.cc"}));
}

TEST(MissingPathsTest, FollowsLinksFromTheDocument) {
  EXPECT_THAT(MissingPaths("docs/page.md", "[up](../CMakeLists.txt) [not](CMakeLists.txt)"),
              ElementsAre("CMakeLists.txt"));
}

TEST(MissingPathsTest, TakesWhatExists) {
  EXPECT_THAT(
      MissingPaths(
          "README.md",
          "`CMakeLists.txt`, `base/status.h`, `base/status.h:12-40`, `tests/`, `base/*.h`,\n"
          "`base/status.{h,cc}`, `tests/<folder>/<what>_test.cc`, `tests/.../*_test.cc`,\n"
          "`clang-format -i base/status.h`, (`./cli/main.cc`), [x](base/status.h#L1),\n"
          "[site](https://example.com/a.md) [here](#heading) [mail](mailto:a@b.c)"),
      IsEmpty());
}

TEST(MissingPathsTest, LeavesAloneWhatIsNoPathOfOurs) {
  EXPECT_THAT(
      MissingPaths("README.md",
                   "`and/or`, `a/b.h`, `/tmp/x`, `x.safetensors`, `--threads`, `build/nibble`,\n"
                   "`out/report.json`, [made](build/x), plain tests/nothing.cc\n"
                   "```sh\ncat `tests/nothing.cc`\n```\n"),
      IsEmpty());
}

}  // namespace
}  // namespace nibble
