// What may include what. The table is the rule; WORKSPACE.md explains it.
#include <algorithm>
#include <fstream>
#include <iterator>
#include <regex>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/repository.h"

namespace nibble {
namespace {

using ::nibble::testing::RepositoryFiles;
using ::nibble::testing::TopLevelFolders;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

// A folder, the folders that it may include besides itself, and the libraries. The longest row that
// matches a file counts. "*" is everything.
struct Row {
  std::string_view folder;
  std::vector<std::string_view> folders, libraries;
};

const Row kRules[] = {
    {"base", {}, {"absl"}},
    {"quant", {"base"}, {"absl"}},
    {"quant/numerics", {}, {}},
    {"io", {"base"}, {"absl", "nlohmann"}},
    {"kernels", {"base", "quant"}, {"absl", "hwy"}},
    {"kernels/cuda", {"base", "quant", "kernels"}, {"absl", "CUDA"}},
    {"kernels/tuning", {"base"}, {"absl"}},
    {"policies", {"base", "quant"}, {"absl", "yaml-cpp"}},
    {"calib", {"base", "quant", "policies", "kernels"}, {"absl", "Eigen"}},
    {"model", {"base", "quant", "io", "kernels"}, {"absl", "nlohmann", "OpenBLAS"}},
    {"model/cuda", {"base", "quant", "kernels", "model"}, {"absl", "CUDA"}},
    {"model/text",
     {"base", "io", "model"},
     {"absl", "nlohmann", "PCRE2", "utf8proc", "SentencePiece"}},
    {"engine",
     {"base", "quant", "io", "kernels", "policies", "calib", "model"},
     {"absl", "nlohmann"}},
    {"cli",
     {"base", "quant", "io", "kernels", "policies", "calib", "model", "engine"},
     {"absl", "CLI"}},
    {"tests", {"*"}, {"*"}},
    {"bench", {"*"}, {"*"}},
    {"examples", {"*"}, {"*"}},
    {"docs", {}, {}},
};
// What nothing else includes, but that the last three rows may use helpers of tests.
constexpr std::string_view kNeverIncluded[] = {"tests", "bench", "examples", "docs"};

// Third-party headers, by how their names begin.
struct Library {
  std::string_view name, pattern;
};
constexpr Library kLibraries[] = {
    {"absl", "absl/.*"},
    {"hwy", "hwy/.*"},
    {"nlohmann", "nlohmann/.*"},
    {"CLI", "CLI/.*"},
    {"yaml-cpp", "yaml-cpp/.*"},
    {"Eigen", "Eigen/.*|unsupported/Eigen/.*"},
    {"OpenBLAS", "cblas\\.h"},
    {"CUDA",
     "cuda.*|cub/.*|thrust/.*|cooperative_groups.*|cublas.*|curand.*|nvrtc.*|nccl.*|mma\\.h"},
    {"PCRE2", "pcre2\\.h"},
    {"utf8proc", "utf8proc\\.h"},
    {"SentencePiece", "sentencepiece_processor\\.h"},
    {"GoogleTest", "gtest/.*|gmock/.*"},
    {"benchmark", "benchmark/.*"},
};
// The C++ library, POSIX and the compiler's own.
constexpr std::string_view kSystem = "[^/]*|sys/.*|linux/.*|netinet/.*|arpa/.*";

bool IsUnder(std::string_view path, std::string_view folder) {
  return path.size() > folder.size() && path.starts_with(folder) && path[folder.size()] == '/';
}

bool Matches(std::string_view text, std::string_view pattern) {
  return std::regex_match(text.begin(), text.end(), std::regex(pattern.begin(), pattern.end()));
}

bool Lists(const std::vector<std::string_view>& list, std::string_view name) {
  return std::count(list.begin(), list.end(), name) + std::count(list.begin(), list.end(), "*") > 0;
}

const Row* RowOf(std::string_view path) {
  const Row* best = nullptr;
  for (const Row& row : kRules) {
    if (IsUnder(path, row.folder) && (!best || row.folder.size() > best->folder.size()))
      best = &row;
  }
  return best;
}

// Why `file` may not include `header`; empty where it may. `quoted`: as "header", not <header>.
std::string Violation(std::string_view file, std::string_view header, bool quoted) {
  const Row* row = RowOf(file);
  if (row == nullptr) return "lies in no folder of the table";
  for (const Library& library : kLibraries) {
    // "cuda_backend.h" would be ours; <cuda_runtime.h> is the toolkit's.
    if (!Matches(header, library.pattern) || (quoted && header.find('/') == header.npos)) continue;
    return Lists(row->libraries, library.name) ? ""
                                               : "may not include " + std::string(library.name);
  }
  const Row* target = RowOf(header);
  if (target == nullptr) {
    if (!quoted && Matches(header, kSystem)) return "";
    return "includes neither a path from the root nor a known library";
  }
  if (!quoted) return "includes a file of ours in angle brackets";
  if (IsUnder(header, row->folder)) return "";
  const std::string top(header.substr(0, header.find('/')));
  if (std::find(std::begin(kNeverIncluded), std::end(kNeverIncluded), top) !=
      std::end(kNeverIncluded)) {
    return Lists(row->folders, "*") && top == "tests" ? "" : "may not include " + top;
  }
  return Lists(row->folders, top) ? "" : "may not include " + top;
}

// "<file>:<line>: <why>: <include>"
std::vector<std::string> Violations(const std::string& file, std::istream& text) {
  static const std::regex kInclude(R"re(\s*#\s*include\s*(["<])([^">]+)[">].*)re");
  std::vector<std::string> found;
  int number = 0;
  for (std::string line; std::getline(text, line);) {
    ++number;
    std::smatch match;
    if (!std::regex_match(line, match, kInclude)) continue;
    const std::string why = Violation(file, match.str(2), match.str(1) == "\"");
    if (!why.empty())
      found.push_back(file + ":" + std::to_string(number) + ": " + why + ": " + line);
  }
  return found;
}

std::vector<std::string> ViolationsOf(const std::string& file, const std::string& text) {
  std::istringstream stream(text);
  return Violations(file, stream);
}

// --- The repository -----------------------------------------------------------------------------

TEST(LayeringTest, EveryIncludeIsAllowed) {
  size_t files = 0;
  for (const std::string& file : RepositoryFiles({".h", ".cc", ".cu", ".cuh"})) {
    ++files;
    std::ifstream text(std::string(NIBBLE_SOURCE_DIR) + "/" + file);
    EXPECT_THAT(Violations(file, text), IsEmpty());
  }
  EXPECT_GT(files, 30u);
}

TEST(LayeringTest, EveryFolderHasARow) {
  for (const std::string& folder : TopLevelFolders()) {
    EXPECT_NE(RowOf(folder + "/x"), nullptr) << folder << " has no row in this test's table";
  }
}

// --- The check itself
// -----------------------------------------------------------------------------

TEST(LayeringRuleTest, NamesFileLineAndReason) {
  EXPECT_THAT(ViolationsOf("base/x.h", "// base\n#include <vector>\n#include \"io/a.h\"\n"),
              ElementsAre("base/x.h:3: may not include io: #include \"io/a.h\""));
  EXPECT_THAT(ViolationsOf("base/x.h", "  #  include <nlohmann/json.hpp>  // why not\n"),
              ElementsAre(HasSubstr("base/x.h:1: may not include nlohmann")));
}

TEST(LayeringRuleTest, LetsAllowedArrowsThrough) {
  const struct {
    const char *file, *include;
  } kAllowed[] = {
      {"base/x.h", "\"base/y.h\""},
      {"base/x.h", "\"absl/status/status.h\""},
      {"base/x.cc", "<sys/stat.h>"},
      {"quant/x.h", "\"quant/numerics/e2m1.h\""},
      {"quant/numerics/x.h", "\"quant/numerics/y.h\""},
      {"quant/numerics/x.h", "<cmath>"},
      {"io/x.cc", "\"nlohmann/json.hpp\""},
      {"kernels/cpu/x.cc", "\"hwy/foreach_target.h\"  // IWYU pragma: keep"},
      {"kernels/backend.cc", "\"kernels/cuda/cuda_backend.h\""},
      {"kernels/cuda/x.cu", "<cuda_runtime.h>"},
      {"kernels/cuda/x.cu", "\"kernels/backend.h\""},
      {"kernels/cuda/x_config.h", "\"kernels/tuning/config_field.h\""},
      {"kernels/backend.h", "\"kernels/tuning/store.h\""},
      {"calib/x.cc", "<Eigen/Dense>"},
      {"calib/x.cc", "\"policies/policy.h\""},
      {"policies/x.cc", "<yaml-cpp/yaml.h>"},
      {"engine/x.cc", "\"model/decoder.h\""},
      {"model/x.cc", "\"io/model_folder.h\""},
      {"model/text/x.cc", "<pcre2.h>"},
      {"model/text/x.cc", "\"model/token_set.h\""},
      {"model/x.cc", "<cblas.h>"},
      {"model/x.cc", "\"model/cuda/y.h\""},
      {"model/cuda/x.cu", "<cuda_runtime.h>"},
      {"model/cuda/x.cc", "\"kernels/cuda/device_buffer.h\""},
      {"cli/main.cc", "\"CLI/CLI.hpp\""},
      {"tests/x_test.cc", "<cuda_fp4.h>"},
      {"tests/x_test.cc", "\"tests/testing/y.h\""},
      {"bench/x.cc", "\"tests/testing/y.h\""},
      {"bench/x.cc", "<benchmark/benchmark.h>"},
  };
  for (const auto& [file, include] : kAllowed) {
    EXPECT_THAT(ViolationsOf(file, std::string("#include ") + include), IsEmpty());
  }
}

TEST(LayeringRuleTest, ReportsForbiddenArrows) {
  const struct {
    const char *file, *include;
  } kForbidden[] = {
      {"base/x.h", "\"quant/swizzle.h\""},
      {"base/x.h", "<hwy/highway.h>"},
      {"quant/x.h", "\"io/safetensors.h\""},
      {"quant/x.h", "\"kernels/backend.h\""},
      {"quant/numerics/x.h", "\"base/status.h\""},
      {"quant/numerics/x.h", "\"quant/swizzle.h\""},
      {"quant/numerics/x.h", "\"absl/strings/str_cat.h\""},
      {"quant/numerics/x.h", "<cuda_fp16.h>"},
      {"io/x.h", "\"quant/swizzle.h\""},
      {"kernels/x.h", "\"io/safetensors.h\""},
      {"kernels/x.h", "<nlohmann/json.hpp>"},
      {"kernels/cpu/x.cc", "<cuda_runtime.h>"},
      {"kernels/cpu/x.cc", "<cub/cub.cuh>"},
      {"kernels/tuning/x.cc", "\"kernels/backend.h\""},
      {"kernels/tuning/x.cc", "\"io/atomic_file.h\""},
      {"kernels/tuning/x.cc", "<cuda_runtime.h>"},
      {"policies/x.h", "\"kernels/backend.h\""},
      {"calib/x.h", "\"model/decoder.h\""},
      {"calib/x.h", "\"io/safetensors.h\""},
      {"model/x.h", "\"calib/collect.h\""},
      {"model/x.h", "\"engine/tensor_ops.h\""},
      {"model/x.h", "\"policies/plan.h\""},
      {"model/x.h", "<pcre2.h>"},
      {"model/x.cc", "<cuda_runtime.h>"},
      {"model/cuda/x.cc", "<cblas.h>"},
      {"model/text/x.h", "\"kernels/backend.h\""},
      {"engine/x.h", "\"cli/main.h\""},
      {"engine/x.h", "<Eigen/Dense>"},
      {"engine/x.cc", "<cblas.h>"},
      {"engine/x.h", "<CLI/CLI.hpp>"},
      {"cli/main.cc", "\"nlohmann/json.hpp\""},
      {"cli/main.cc", "\"tests/testing/bytes.h\""},
      {"base/x.cc", "<gtest/gtest.h>"},
      {"engine/x.cc", "\"bench/timer.h\""},
      {"tests/x.cc", "\"examples/y.h\""},
      {"base/x.h", "\"y.h\""},
      {"base/x.h", "\"../base/y.h\""},
      {"base/x.h", "<base/y.h>"},
      {"base/x.h", "<boost/optional.hpp>"},
      {"new_folder/x.h", "<vector>"},
  };
  for (const auto& [file, include] : kForbidden) {
    EXPECT_EQ(ViolationsOf(file, std::string("#include ") + include).size(), 1u)
        << file << " includes " << include;
  }
}

TEST(LayeringRuleTest, IgnoresWhatIsNoInclude) {
  EXPECT_THAT(ViolationsOf("base/x.h",
                           "// #include \"io/a.h\"\n#define HWY_TARGET_INCLUDE \"io/a.h\"\n"
                           "#include HWY_TARGET_INCLUDE\n"),
              IsEmpty());
}

}  // namespace
}  // namespace nibble
