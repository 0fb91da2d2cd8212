// The shipped picks hold for the kernels as they are, and a build id changes exactly when the
// kernels do. Needs neither GPU nor toolkit.
#include "kernels/tuning/shipped.h"

#include <algorithm>
#include <filesystem>
#include <regex>
#include <string>
#include <vector>

#include "base/status.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/cuda/tunable_ops.h"
#include "tests/testing/repository.h"
#include "tests/testing/subprocess.h"
#include "tests/testing/temp_dir.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;
using ::nibble::testing::FileBytes;
using ::nibble::testing::Process;
using ::nibble::testing::PutFile;
using ::nibble::testing::RepositoryFiles;
using ::nibble::testing::TempDir;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr char kH200[] = "NVIDIA H200";

// Why picks can never be used, one line a pick.
std::vector<std::string> DeadPicks(const TuningStore& store, const std::vector<TunableOp>& ops) {
  std::vector<std::string> dead;
  for (const auto& [key, config] : store.picks()) {
    const std::string pick = absl::StrCat(key.device, " ", key.op, " ",
                                          ToAbsl(DTypeName(key.dtype)), " 2^", key.bucket, ": ");
    const auto op = std::ranges::find(ops, key.op, &TunableOp::name);
    if (op == ops.end()) {
      dead.push_back(pick + "no such operation");
    } else if (key.build_id != op->build_id) {
      dead.push_back(pick + "of another build");
    } else if (std::ranges::count(op->dtypes, key.dtype) == 0) {
      dead.push_back(pick + "not a type of the operation");
    } else if (std::ranges::count(op->configs, config) == 0) {
      dead.push_back(pick + "no such config");
    }
  }
  return dead;
}

// "<operation> <type>" without a pick for the device.
std::vector<std::string> Untuned(const TuningStore& store, const std::vector<TunableOp>& ops) {
  std::vector<std::string> untuned;
  for (const TunableOp& op : ops) {
    for (DType dtype : op.dtypes) {
      if (store.Pick({kH200, op.name, op.build_id, dtype, 0})) continue;
      untuned.push_back(absl::StrCat(op.name, " ", ToAbsl(DTypeName(dtype))));
    }
  }
  return untuned;
}

// --- The shipped picks --------------------------------------------------------------------------

TEST(ShippedTuningTest, FilesAreAsTuneWritesThem) {
  EXPECT_FALSE(ShippedTuningFiles().empty());
  for (const auto& [path, text] : ShippedTuningFiles()) {
    const auto store = TuningStore::Parse(text, path);
    ASSERT_TRUE(store.ok()) << store.status();
    EXPECT_EQ(store->Format(), text) << path;
  }
}

// A pick of another build would be ignored without a word. Whoever changes a kernel tunes again or,
// without the device, deletes its picks: then the default is used, and the next test says so.
TEST(ShippedTuningTest, EveryPickIsOfTheseKernels) {
  EXPECT_THAT(DeadPicks(ShippedTuning(), CudaTunableOps()), IsEmpty())
      << "on an NVIDIA H200: nibble tune --out kernels/tuning/h200.tuning\n"
         "without one: delete these lines from it";
}

TEST(ShippedTuningTest, EveryOperationHasPicks) {
  size_t pairs = 0;
  for (const TunableOp& op : CudaTunableOps()) pairs += op.dtypes.size();
  const std::vector<std::string> untuned = Untuned(ShippedTuning(), CudaTunableOps());
  ASSERT_LT(untuned.size(), pairs) << "no operation has a pick";
  if (untuned.empty()) return;
  std::string names;
  for (const std::string& name : untuned) names += name + ", ";
  GTEST_SKIP() << "no shipped pick, hence the default, for " << names
               << "until `nibble tune --out kernels/tuning/h200.tuning` runs on an NVIDIA H200";
}

TEST(ShippedTuningTest, TheBackendsPicksAreTheShippedOnes) {
  const std::vector<ConfigPicks> picks = CudaConfigPicks(kH200, {});
  const std::vector<TunableOp>& ops = CudaTunableOps();
  ASSERT_EQ(picks.size(), ops.size());
  for (const auto& [key, config] : ShippedTuning().picks()) {
    if (key.device != kH200) continue;
    const size_t op = std::ranges::find(ops, key.op, &TunableOp::name) - ops.begin();
    ASSERT_LT(op, ops.size());
    EXPECT_EQ(ops[op].configs[picks[op](key.dtype, int64_t{1} << key.bucket)], config);
  }
}

TEST(ShippedTuningTest, TheUsersPicksComeFirst) {
  const TunableOp& op = CudaTunableOps().front();
  const TuningKey key = {kH200, op.name, op.build_id, op.dtypes.front(), 21};
  for (const std::string& config : op.configs) {
    TuningStore own;
    ASSERT_TRUE(own.Put(key, config).ok());
    EXPECT_EQ(op.configs[CudaConfigPicks(kH200, own).front()(key.dtype, 1 << 21)], config);
    EXPECT_EQ(CudaConfigPicks("another", own).front()(key.dtype, 1 << 21), 0);
  }
}

TEST(ShippedTuningCheckTest, ReportsDeadAndMissingPicks) {
  const std::string build = "0123456789abcdef";
  const std::vector<TunableOp> ops = {
      {.name = "a", .build_id = build, .configs = {"w=1"}, .dtypes = {DType::kBf16}},
      {.name = "b", .build_id = build, .configs = {"w=1"}, .dtypes = {DType::kBf16, DType::kF32}}};
  TuningStore store;
  const auto put = [&](const TuningKey& key, std::string_view config) {
    ASSERT_TRUE(store.Put(key, config).ok());
  };
  put({kH200, "a", build, DType::kBf16, 1}, "w=1");
  EXPECT_THAT(DeadPicks(store, ops), IsEmpty());
  EXPECT_THAT(Untuned(store, ops), ElementsAre("b BF16", "b F32"));
  put({kH200, "a", build, DType::kBf16, 2}, "w=2");
  put({kH200, "a", build, DType::kF32, 1}, "w=1");
  put({kH200, "b", "fedcba9876543210", DType::kF32, 1}, "w=1");
  put({kH200, "c", build, DType::kF32, 1}, "w=1");
  put({"another", "b", build, DType::kF32, 1}, "w=1");
  EXPECT_THAT(DeadPicks(store, ops),
              ElementsAre("NVIDIA H200 a BF16 2^2: no such config",
                          "NVIDIA H200 a F32 2^1: not a type of the operation",
                          "NVIDIA H200 b F32 2^1: of another build",
                          "NVIDIA H200 c F32 2^1: no such operation"));
  EXPECT_THAT(Untuned(store, ops), ElementsAre("b BF16", "b F32"));
}

// --- The table of operations --------------------------------------------------------------------

TEST(CudaTunableOpsTest, ConfigsDiffer) {
  for (const TunableOp& op : CudaTunableOps()) {
    EXPECT_GT(op.configs.size(), 1u) << op.name;
    for (const std::string& config : op.configs) {
      EXPECT_EQ(std::ranges::count(op.configs, config), 1) << op.name << ": " << config;
    }
  }
}

TEST(CudaTunableOpsTest, PicksCanBeStoredForAll) {
  for (const TunableOp& op : CudaTunableOps()) {
    for (const std::string& config : op.configs) {
      const absl::Status status =
          TuningStore().Put({kH200, op.name, op.build_id, op.dtypes.front(), 1}, config);
      EXPECT_TRUE(status.ok()) << op.name << ": " << status;
    }
  }
}

// An array of launch shapes that the tuner does not know is never chosen from.
TEST(CudaTunableOpsTest, EveryArrayOfConfigsIsTuned) {
  const std::regex config_header("kernels/cuda/(.*)_config\\.h");
  for (const std::string& file : RepositoryFiles({".h"})) {
    std::smatch match;
    if (!std::regex_match(file, match, config_header)) continue;
    EXPECT_TRUE(std::ranges::any_of(
        CudaTunableOps(),
        [&](const TunableOp& op) { return op.build_id == TuningBuildId(match.str(1)); }))
        << file << " has no entry in kernels/cuda/tunable_ops.cc";
  }
  EXPECT_EQ(TuningBuildId("no_such_operation"), "");
}

// --- Build ids ----------------------------------------------------------------------------------

// Two operations, a and b, in a tree of their own.
class BuildIdTest : public ::testing::Test {
 protected:
  void SetUp() override { MakeTree(root_); }

  static void MakeTree(const std::string& root) {
    fs::create_directories(root + "/kernels/cuda");
    fs::create_directories(root + "/kernels/tuning");
    fs::create_directories(root + "/quant/numerics");
    PutFile(root + "/quant/numerics/n.h", "#include <cstdint>\ninline int N() { return 1; }\n");
    PutFile(root + "/quant/numerics/m.h", "inline int M() { return 1; }\n");
    PutFile(root + "/kernels/cuda/a_config.h", "constexpr int kConfigs[] = {1, 2};\n");
    PutFile(root + "/kernels/cuda/a_kernel.cuh",
            "// The kernel.\n#include \"quant/numerics/n.h\"\nint A(int x) { return x; }\n");
    PutFile(root + "/kernels/cuda/a_launch.cu",
            "#include \"kernels/cuda/a_config.h\"\n#include \"kernels/cuda/a_kernel.cuh\"\n");
    PutFile(root + "/kernels/cuda/b_config.h", "constexpr int kConfigs[] = {1};\n");
    PutFile(root + "/kernels/cuda/b_launch.cu",
            "#include \"kernels/cuda/b_config.h\"\n#include \"quant/numerics/m.h\"\n");
    PutFile(root + "/kernels/tuning/x.tuning", "nibble tuning 1\n");
  }

  static std::string Generate(const std::string& root, int exit_code = 0) {
    const std::string out = root + "/out.cc";
    const auto result = Process({NIBBLE_CMAKE, "-DSOURCE_DIR=" + root, "-DOUT=" + out, "-P",
                                 NIBBLE_SOURCE_DIR "/kernels/tuning/embed.cmake"})
                            .Wait();
    EXPECT_EQ(result.exit_code, exit_code) << result.err;
    return exit_code == 0 ? FileBytes(out) : "";
  }
  static std::string IdIn(const std::string& text, const std::string& op) {
    std::smatch match;
    EXPECT_TRUE(std::regex_search(text, match, std::regex("\"" + op + "\", \"([0-9a-f]{16})\"")))
        << text;
    return match.str(1);
  }
  std::string Id(const std::string& op) const { return IdIn(Generate(root_), op); }

  void Replace(const std::string& file, const std::string& from, const std::string& to) const {
    const std::string path = root_ + "/" + file;
    std::string text = FileBytes(path);
    const size_t at = text.find(from);
    ASSERT_NE(at, text.npos);
    PutFile(path, text.replace(at, from.size(), to));
  }

  TempDir folder_;
  const std::string root_ = folder_.path("tree");
};

TEST_F(BuildIdTest, IsTheSameElsewhere) {
  const std::string other = folder_.path("another folder");
  MakeTree(other);
  EXPECT_EQ(Generate(root_), Generate(other));
  EXPECT_NE(Id("a"), Id("b"));
}

TEST_F(BuildIdTest, ChangesWithWhatTheKernelsInclude) {
  const std::string b = Id("b");
  std::vector<std::string> seen = {Id("a")};
  const struct {
    const char *file, *from, *to;
  } kChanges[] = {{"kernels/cuda/a_config.h", "1, 2", "2, 1"},
                  {"kernels/cuda/a_kernel.cuh", "return x", "return -x"},
                  {"quant/numerics/n.h", "return 1", "return 2"},
                  {"kernels/cuda/a_launch.cu", "#include", "int y;\n#include"}};
  for (const auto& change : kChanges) {
    Replace(change.file, change.from, change.to);
    const std::string id = Id("a");
    EXPECT_EQ(std::ranges::count(seen, id), 0) << change.file;
    seen.push_back(id);
  }
  PutFile(root_ + "/kernels/cuda/a_more.cu", "#include \"kernels/cuda/a_config.h\"\n");
  EXPECT_EQ(std::ranges::count(seen, Id("a")), 0);
  EXPECT_EQ(Id("b"), b);
}

TEST_F(BuildIdTest, StaysWhereNoKernelChanges) {
  const std::string a = Id("a");
  Replace("kernels/cuda/a_kernel.cuh", "// The kernel.", "// The kernel of a; \"x\" [1].");
  Replace("kernels/cuda/a_kernel.cuh", "{ return x; }", "{\n  return x;  // its value\n}");
  Replace("quant/numerics/m.h", "return 1", "return 2");
  PutFile(root_ + "/kernels/cuda/c.cu", "int c;\n");
  PutFile(root_ + "/kernels/tuning/y.tuning", "nibble tuning 1\n");
  EXPECT_EQ(Id("a"), a);
}

TEST_F(BuildIdTest, EmbedsEveryStore) {
  PutFile(root_ + "/kernels/tuning/y.tuning", "nibble tuning 1\n# \"y\"; \\ ${z} [1]\n");
  const std::string text = Generate(root_);
  EXPECT_THAT(text,
              HasSubstr("{\"kernels/tuning/x.tuning\", R\"tuning(nibble tuning 1\n)tuning\"}"));
  EXPECT_THAT(text, HasSubstr("R\"tuning(nibble tuning 1\n# \"y\"; \\ ${z} [1]\n)tuning\"}"));
}

TEST_F(BuildIdTest, FailsWhereAnIncludeIsMissing) {
  fs::remove(root_ + "/quant/numerics/n.h");
  Generate(root_, 1);
}

}  // namespace
}  // namespace nibble
