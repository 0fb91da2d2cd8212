// `nibble quantize` as a person runs it: words, exit codes, and kills.
#include <signal.h>
#include <sys/xattr.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <map>
#include <random>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/testing/model_folders.h"
#include "tests/testing/subprocess.h"
#include "tests/testing/temp_dir.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

using namespace testing;  // NOLINT: model folders, processes
using ::testing::AllOf;
using ::testing::AnyOf;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

class QuantizeCommandTest : public ::testing::Test {
 protected:
  std::vector<std::string> Arguments(std::vector<std::string> more = {}) const {
    std::vector<std::string> args = {NIBBLE_PROGRAM,
                                     "quantize",
                                     folder_.path("model"),
                                     "--recipe",
                                     "nvfp4_mse",
                                     "--set",
                                     "activations.algorithm.method=constant",
                                     "--out",
                                     folder_.path("out")};
    args.insert(args.end(), more.begin(), more.end());
    return args;
  }
  ProcessResult Run(std::vector<std::string> more = {}) const {
    return Process(Arguments(std::move(more))).Wait();
  }

  const TempDir folder_;
};

TEST_F(QuantizeCommandTest, SaysWhatItDid) {
  WriteModelFolder(folder_.path("model"), Qwen3MoeModel());
  const ProcessResult result = Run({"--report", folder_.path("report.json")});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  EXPECT_THAT(result.out,
              AllOf(HasSubstr("attention"), HasSubstr("expert"), HasSubstr("bits per")));
  EXPECT_THAT(result.err, HasSubstr("100.0 %"));
  const auto report = nlohmann::json::parse(FileBytes(folder_.path("report.json")));
  EXPECT_GT(report["all"]["sqnr_db"], 15);
}

TEST_F(QuantizeCommandTest, QuietAndJsonLogs) {
  WriteModelFolder(folder_.path("model"), LlamaModel());
  const ProcessResult quiet = Run({"--quiet"});
  ASSERT_EQ(quiet.exit_code, 0) << quiet.err;
  EXPECT_THAT(quiet.out + quiet.err, IsEmpty());
  const ProcessResult json = Run({"--json-log", "--overwrite"});
  ASSERT_EQ(json.exit_code, 0) << json.err;
  std::vector<std::string> events;
  std::istringstream lines(json.err);
  for (std::string line; std::getline(lines, line);) {
    events.push_back(nlohmann::json::parse(line)["event"]);
  }
  ASSERT_GE(events.size(), 2);
  EXPECT_EQ(events.back(), "summary");
  events.pop_back();
  EXPECT_THAT(events, ::testing::Each("progress"));
}

TEST_F(QuantizeCommandTest, EachFailureIsOneLineAndACode) {
  const auto fails = [&](const ProcessResult& result, int code, const std::string& words) {
    EXPECT_EQ(result.exit_code, code) << result.err;
    EXPECT_THAT(result.err, HasSubstr(words));
    EXPECT_EQ(std::count(result.err.begin(), result.err.end(), '\n'), 1) << result.err;
    EXPECT_FALSE(fs::exists(folder_.path("out"))) << words;
  };
  fails(Run(), 1, "model");
  ModelOnPaper model = LlamaModel();
  WriteModelFolder(folder_.path("model"), model);
  fails(Run({"--recipe", "nvfp4"}), 2, "--recipe");
  fails(Run({"--set", "wieghts.format=nvfp4"}), 2, "weights");
  fails(Run({"--set", "activations.algorithm.method=max"}), 2, "--calib");
  fails(Run({"--report", folder_.path("model/config.json")}), 2, "--report");
  fails(Run({"--report", folder_.path("out.partial/x")}), 2, "--report");
  fails(Run({"--report", folder_.path("nowhere/x")}), 1, "nowhere");
  fails(Run({"--calib", folder_.path("nothing")}), 1, "nothing");
  fails(Run({"--backend", "cuda:99"}), 1, "cuda:99");
  fails(Run({"--threads", "-1"}), 2, "--threads");
  fails(Run({"--out", folder_.path("model/in")}), 2, "--out");
  model.Fill("model.layers.1.mlp.up_proj.weight", [](int64_t) { return INFINITY; });
  WriteModelFolder(folder_.path("model"), model);
  fails(Run({"--quiet"}), 3, "model.layers.1.mlp.up_proj.weight");
  fs::remove_all(folder_.path("out.partial"));
  fs::resize_file(folder_.path("model/model.safetensors"), 100);
  fails(Run(), 3, "model.safetensors");
}

// A limit on the size of files stands for a disk that fills up: one line, nothing under the final
// name, and once there is room the run is resumed.
TEST_F(QuantizeCommandTest, AFullDiskIsOneLineAndCanBeResumed) {
  WriteModelFolder(folder_.path("model"), LlamaModel());
  std::vector<std::string> args = Arguments({"--quiet"});
  std::string command = "ulimit -f 30; trap '' XFSZ; exec";
  for (const std::string& arg : args) command += " '" + arg + "'";
  const ProcessResult full = Process({"/bin/bash", "-c", command}).Wait();
  EXPECT_EQ(full.exit_code, 1) << full.err;
  EXPECT_THAT(full.err, HasSubstr("model.safetensors"));
  EXPECT_FALSE(fs::exists(folder_.path("out")));
  const ProcessResult resumed = Run({"--resume"});
  EXPECT_EQ(resumed.exit_code, 0) << resumed.err;
}

// Too small from the start: nothing is left that a second run would have to be told about.
TEST_F(QuantizeCommandTest, NoRoomAtAllLeavesNothing) {
  ModelOnPaper model = LlamaModel();
  WriteModelFolder(folder_.path("model"), model);
  // A file of 2^50 bytes that takes none: it would have to be copied.
  std::ofstream(folder_.path("model/huge.txt")).close();
  std::error_code error;
  fs::resize_file(folder_.path("model/huge.txt"), uintmax_t{1} << 43, error);
  if (error) GTEST_SKIP() << "no sparse files of this size: " << error.message();
  const ProcessResult result = Run({"--quiet"});
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_THAT(result.err, HasSubstr("expected room for"));
  EXPECT_FALSE(fs::exists(folder_.path("out.partial")));
}

TEST_F(QuantizeCommandTest, ResumingWhatIsFinishedSaysSoAndTouchesNothing) {
  WriteModelFolder(folder_.path("model"), LlamaModel());
  ASSERT_EQ(Run({"--quiet"}).exit_code, 0);
  if (getxattr(folder_.path("out").c_str(), "user.nibble.finished", nullptr, 0) < 0) {
    GTEST_SKIP() << "no attributes on this file system";
  }
  const auto before = FilesOf(folder_.path("out"));
  const auto time = fs::last_write_time(folder_.path("out/model.safetensors"));
  const ProcessResult again = Run({"--resume"});
  EXPECT_EQ(again.exit_code, 0) << again.err;
  EXPECT_THAT(again.out + again.err, HasSubstr("complete already"));
  EXPECT_THAT(DifferentFiles(before, FilesOf(folder_.path("out"))), IsEmpty());
  EXPECT_EQ(fs::last_write_time(folder_.path("out/model.safetensors")), time);
  const ProcessResult other = Run({"--resume", "--set", "weights.algorithm=max"});
  EXPECT_EQ(other.exit_code, 3) << other.err;
  EXPECT_THAT(other.err, HasSubstr("expected the recipe that"));
}

// Killed at twenty points of its life; each time the next run goes on.
TEST_F(QuantizeCommandTest, SurvivesKills) {
  ModelSize size;
  size.layers = 6;
  size.hidden = 256;
  size.intermediate = 1024;
  size.shards = 2;
  WriteModelFolder(folder_.path("model"), LlamaModel(size));
  const std::vector<std::string> more = {"--quiet", "--set", "export.shard_size=500KB", "--resume"};
  const auto start = std::chrono::steady_clock::now();
  ASSERT_EQ(Run(more).exit_code, 0);
  const auto life = std::chrono::steady_clock::now() - start;
  const auto straight = FilesOf(folder_.path("out"));

  std::mt19937 random(7);
  int kills = 0, finished = 0;
  fs::remove_all(folder_.path("out"));
  while (kills < 20) {
    Process process(Arguments(more));
    std::this_thread::sleep_for(std::chrono::duration_cast<std::chrono::microseconds>(life) *
                                static_cast<int64_t>(random() % 1000) / 1000);
    process.Kill();
    const ProcessResult result = process.Wait();
    if (result.signal == SIGKILL) {
      ++kills;
    } else {
      ASSERT_EQ(result.exit_code, 0) << result.err;
    }
    // Whatever has the final name is complete.
    if (fs::exists(folder_.path("out"))) {
      // 2 where even its notes are gone and the file system has no attributes to say so.
      EXPECT_THAT(Run(more).exit_code, AnyOf(0, 2));
      EXPECT_THAT(DifferentFiles(straight, FilesOf(folder_.path("out"))), IsEmpty());
      fs::remove_all(folder_.path("out"));
      ++finished;
    }
  }
  const ProcessResult last = Run(more);
  ASSERT_EQ(last.exit_code, 0) << last.err;
  EXPECT_THAT(DifferentFiles(straight, FilesOf(folder_.path("out"))), IsEmpty());
  RecordProperty("finished_between_kills", finished);
}

}  // namespace
}  // namespace nibble
