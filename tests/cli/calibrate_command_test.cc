// `nibble calibrate`, `nibble quantize --data` and `nibble eval`, run as programs.
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "engine/calibration.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/testing/model_folders.h"
#include "tests/testing/sanitizers.h"
#include "tests/testing/subprocess.h"
#include "tests/testing/temp_dir.h"

namespace nibble {
namespace {

using ::nibble::testing::Nibble;

namespace fs = std::filesystem;

using namespace testing;  // NOLINT: model folders, processes
using ::testing::AllOf;
using ::testing::HasSubstr;

// Ids below `vocabulary`, as a file of 16-bit ones.
void WriteIds(const std::string& path, int count, int vocabulary) {
  std::string bytes;
  uint32_t state = 1;
  for (int i = 0; i < count; ++i) {
    state = state * 1664525u + 1013904223u;
    const uint32_t id = (state >> 8) % static_cast<uint32_t>(vocabulary);
    bytes += {static_cast<char>(id & 255), static_cast<char>(id >> 8)};
  }
  PutFile(path, bytes);
}

class CalibrateCommandTest : public ::testing::Test {
 protected:
  CalibrateCommandTest() {
    WriteModelFolder(folder_.path("model"), LlamaModel());
    WriteIds(folder_.path("ids.u16"), 12'800, 48);  // as many as recipes ask for
  }

  std::vector<std::string> Calibrate(std::vector<std::string> more = {}) const {
    std::vector<std::string> args = {"calibrate", folder_.path("model"),
                                     "--recipe",  "nvfp4_local_hessian",
                                     "--data",    folder_.path("ids.u16"),
                                     "--out",     folder_.path("state"),
                                     "--length",  "100"};
    args.insert(args.end(), more.begin(), more.end());
    return args;
  }
  std::vector<std::string> Quantize(std::vector<std::string> more = {}) const {
    std::vector<std::string> args = {"quantize", folder_.path("model"),
                                     "--recipe", "nvfp4_local_hessian",
                                     "--out",    folder_.path("out")};
    args.insert(args.end(), more.begin(), more.end());
    return args;
  }
  std::vector<std::string> Eval(std::vector<std::string> more = {}) const {
    std::vector<std::string> args = {
        "eval", folder_.path("model"), "--data", folder_.path("ids.u16"), "--length", "100"};
    args.insert(args.end(), more.begin(), more.end());
    return args;
  }

  // One line, this code; nothing is left.
  void ExpectFailure(const std::vector<std::string>& args, int code, const std::string& words) {
    const ProcessResult result = Nibble(args);
    EXPECT_EQ(result.exit_code, code) << result.err;
    EXPECT_THAT(result.err, HasSubstr(words));
    EXPECT_EQ(std::count(result.err.begin(), result.err.end(), '\n'), 1) << result.err;
    EXPECT_FALSE(fs::exists(folder_.path("state"))) << words;
    EXPECT_FALSE(fs::exists(folder_.path("out"))) << words;
  }

  const TempDir folder_;
};

TEST_F(CalibrateCommandTest, CalibratedApartOrInOneGoTheBytesAreTheSame) {
  const ProcessResult calibrated = Nibble(Calibrate({"--sequences", "5", "--threads", "1"}));
  ASSERT_EQ(calibrated.exit_code, 0) << calibrated.err;
  EXPECT_THAT(calibrated.out, HasSubstr("state: 14 modules of 2 layers, 5 sequences, 500 tokens"));
  EXPECT_EQ(LoadCalibration(folder_.path("state"))->at("model.layers.1.mlp.down_proj").tokens(),
            500);
  const ProcessResult apart = Nibble(Quantize({"--calib", folder_.path("state")}));
  ASSERT_EQ(apart.exit_code, 0) << apart.err;
  const auto files = FilesOf(folder_.path("out"));
  const ProcessResult at_once =
      Nibble(Quantize({"--data", folder_.path("ids.u16"), "--sequences", "5", "--length", "100",
                       "--overwrite", "--threads", "2"}));
  ASSERT_EQ(at_once.exit_code, 0) << at_once.err;
  EXPECT_EQ(DifferentFiles(FilesOf(folder_.path("out")), files), std::vector<std::string>());
  EXPECT_EQ(folder_.Names(),
            (std::vector<std::string>{"ids.u16", "model", "out", "out.calibration", "state"}));
  EXPECT_EQ(FileBytes(folder_.path("out.calibration")), FileBytes(folder_.path("state")));

  const ProcessResult eval =
      Nibble({"eval", folder_.path("model"), folder_.path("out"), "--data", folder_.path("ids.u16"),
              "--sequences", "4", "--length", "64", "--json", "--activations", "four_over_six"});
  ASSERT_EQ(eval.exit_code, 0) << eval.err;
  const auto scores = nlohmann::json::parse(eval.out);
  EXPECT_EQ(scores["models"][1]["quantized_inputs"], 14);
  EXPECT_GT(scores["models"][1]["divergence"]["mean"], 0);
}

TEST_F(CalibrateCommandTest, SaysWhereThereIsLessTextThanAskedFor) {
  const ProcessResult result = Nibble(Calibrate({"--sequences", "500"}));
  EXPECT_EQ(result.exit_code, 0);
  EXPECT_THAT(result.err, HasSubstr("warning: "));
  EXPECT_THAT(result.err, HasSubstr("128 sequences of 100 tokens, fewer than the 500 asked for"));
}

TEST_F(CalibrateCommandTest, EachFailureIsOneLineAndACode) {
  PutFile(folder_.path("text.txt"), "some words");
  fs::remove(folder_.path("model/tokenizer.json"));
  const std::string text = folder_.path("text.txt");
  const auto with_data = [&](std::vector<std::string> args, const std::string& data) {
    *(std::ranges::find(args, "--data") + 1) = data;
    return args;
  };
  ExpectFailure(with_data(Calibrate(), text), 1, "tokenizer.json");
  ExpectFailure(with_data(Eval(), text), 1, "tokenizer.json");
  ExpectFailure(with_data(Calibrate(), folder_.path("nothing.u16")), 1, "nothing.u16");
  ExpectFailure(with_data(Calibrate(), folder_.path("x.bin")), 2, "x.bin");
  WriteIds(folder_.path("short.u16"), 99, 48);
  ExpectFailure(with_data(Calibrate(), folder_.path("short.u16")), 3, "short.u16");
  ExpectFailure(with_data(Eval(), folder_.path("short.u16")), 3, "short.u16");
  WriteIds(folder_.path("wide.u16"), 1000, 49);
  ExpectFailure(with_data(Calibrate(), folder_.path("wide.u16")), 3, "48");
  ExpectFailure(with_data(Eval(), folder_.path("wide.u16")), 3, "48");

  ExpectFailure(Eval({folder_.path("nowhere")}), 1, "nowhere");
  ExpectFailure({"eval", "--data", text}, 2, "MODEL");
  ExpectFailure({"eval", folder_.path("model")}, 2, "--data");
  ExpectFailure(Eval({"--activations", "fp8"}), 2, "per_tensor, per_token, four_over_six or none");
  ExpectFailure(Calibrate({"--dtype", "fp16"}), 2, "--dtype");
  ExpectFailure(Calibrate({"--sequences", "0"}), 2, "--sequences");
  ExpectFailure(Quantize(), 2, "--data");
  ExpectFailure(Quantize({"--data", text, "--calib", text}), 2, "--calib");
  ExpectFailure(Quantize({"--length", "100"}), 2, "--data");
  ExpectFailure(Calibrate({"--set", "activations.format=none", "--set", "weights.algorithm=max"}),
                2, "expected methods that need activations");

  ModelOnPaper other = LlamaModel();
  other.config["architectures"] = {"GPTNeoXForCausalLM"};
  WriteModelFolder(folder_.path("model"), other);
  ExpectFailure(Calibrate(), 2, "LlamaForCausalLM");
  ExpectFailure(Eval(), 2, "Qwen3MoeForCausalLM");
  fs::remove(folder_.path("model/config.json"));
  ExpectFailure(Calibrate(), 1, "config.json");
}

TEST_F(CalibrateCommandTest, AnotherRunIsNotResumed) {
  // Killed once there is something to resume.
  {
    Process process([&] {
      std::vector<std::string> args = Calibrate();
      args.insert(args.begin(), NIBBLE_PROGRAM);
      return args;
    }());
    while (!process.HasEnded() && !fs::exists(folder_.path("state.partial/hidden.safetensors"))) {
      usleep(100);
    }
  }
  if (fs::exists(folder_.path("state"))) GTEST_SKIP() << "it was done before it was killed";
  ExpectFailure(Calibrate(), 2, "--resume goes on with it");
  ExpectFailure(Calibrate({"--sequences", "127", "--resume"}), 3,
                "got others; --overwrite without --resume starts again");
  const ProcessResult resumed = Nibble(Calibrate({"--resume", "--quiet"}));
  EXPECT_EQ(resumed.exit_code, 0) << resumed.err;
  EXPECT_TRUE(fs::exists(folder_.path("state")));
}

// --- Memory -------------------------------------------------------------------------------------

// The most that a process has had in memory so far.
int64_t PeakKiB(pid_t pid) {
  std::ifstream status(absl::StrCat("/proc/", pid, "/status"));
  int64_t peak = 0;
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with("VmHWM:")) peak = std::stoll(line.substr(6));
  }
  return peak;
}

// Of calibrating a model of so many layers, as seen every millisecond.
int64_t PeakOfCalibration(const TempDir& folder, int64_t layers) {
  ModelSize size;
  size.layers = layers;
  size.hidden = 256;
  size.intermediate = 1024;
  const std::string name = absl::StrCat(layers);
  WriteModelFolder(folder.path(name), LlamaModel(size));
  Process process({NIBBLE_PROGRAM, "calibrate", folder.path(name), "--recipe",
                   "nvfp4_local_hessian", "--data", folder.path("ids.u16"), "--sequences", "20",
                   "--length", "100", "--out", folder.path("state" + name), "--quiet", "--threads",
                   "2"});
  int64_t peak = 0;
  while (!process.HasEnded()) {
    peak = std::max(peak, PeakKiB(process.pid()));
    usleep(1000);
  }
  const ProcessResult result = process.Wait();
  EXPECT_EQ(result.exit_code, 0) << result.err;
  return peak;
}

TEST_F(CalibrateCommandTest, ADeepModelTakesNoMoreMemoryThanAShallowOne) {
  if (kSanitized) GTEST_SKIP() << "sanitizers have a memory of their own";
  const int64_t shallow = PeakOfCalibration(folder_, 3), deep = PeakOfCalibration(folder_, 40);
  const int64_t model =
      static_cast<int64_t>(fs::file_size(folder_.path("40/model.safetensors")) / 1024);
  const int64_t states = static_cast<int64_t>(fs::file_size(folder_.path("state40")) / 1024);
  EXPECT_GT(model, 60'000);
  EXPECT_GT(states, 20'000);
  EXPECT_LT(deep, shallow + 10'000) << "KiB";
}

}  // namespace
}  // namespace nibble
