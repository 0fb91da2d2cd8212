// nibble calibration, run as a program.
#include <string>
#include <vector>

#include "engine/calibration.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/subprocess.h"
#include "tests/testing/temp_dir.h"
#include "tests/testing/tensors.h"

namespace nibble {
namespace {

using ::nibble::testing::FileBytes;
using ::nibble::testing::Nibble;
using ::nibble::testing::NormalTensor;
using ::nibble::testing::Process;
using ::nibble::testing::ProcessResult;
using ::nibble::testing::TempDir;
using ::nibble::testing::Write;
using ::testing::HasSubstr;

ProcessResult Calibration(std::vector<std::string> args) {
  args.insert(args.begin(), "calibration");
  return Nibble(std::move(args));
}

void ExpectFailure(const std::vector<std::string>& args, int code, const std::string& piece) {
  const ProcessResult result = Calibration(args);
  EXPECT_EQ(result.exit_code, code) << result.err;
  EXPECT_THAT(result.err, HasSubstr(piece));
}

TEST(CalibrationCommandTest, CollectsAndMerges) {
  const TempDir dir;
  Write(dir.path("a"), {NormalTensor("x.input", DType::kBf16, {40, 32}),
                        NormalTensor("y.input", DType::kF32, {3, 16})});
  Write(dir.path("b"), {NormalTensor("x.input", DType::kF16, {500, 32})});
  const ProcessResult collected =
      Calibration({"collect", dir.path("a"), "--out", dir.path("a.state"), "--threads", "1"});
  EXPECT_EQ(collected.exit_code, 0) << collected.err;
  EXPECT_THAT(collected.out, HasSubstr("a.state: 2 modules, up to 40 tokens each"));
  EXPECT_EQ(Calibration({"collect", dir.path("b"), "--out", dir.path("b.state")}).exit_code, 0);
  const ProcessResult merged =
      Calibration({"merge", dir.path("ab"), dir.path("a.state"), dir.path("b.state")});
  EXPECT_EQ(merged.exit_code, 0) << merged.err;
  EXPECT_THAT(merged.out, HasSubstr("ab: 2 modules, up to 540 tokens each"));
  EXPECT_EQ(
      Calibration({"merge", dir.path("ba"), dir.path("b.state"), dir.path("a.state")}).exit_code,
      0);
  EXPECT_EQ(FileBytes(dir.path("ab")), FileBytes(dir.path("ba")));
  EXPECT_EQ(LoadCalibration(dir.path("ab"))->at("x").tokens(), 540);
  EXPECT_EQ(Calibration({"collect", dir.path("a"), "--out", dir.path("light"), "--no-hessians"})
                .exit_code,
            0);
  EXPECT_FALSE(LoadCalibration(dir.path("light"))->at("x").has_hessians());
}

TEST(CalibrationCommandTest, SaysWhatIsWrong) {
  const TempDir dir;
  Write(dir.path("a"), {NormalTensor("x.input", DType::kBf16, {40, 32})});
  Write(dir.path("weights"), {NormalTensor("x.weight", DType::kBf16, {40, 32})});
  ExpectFailure({}, 2, "command: expected one");
  ExpectFailure({"mix"}, 2, "mix");
  ExpectFailure({"collect", dir.path("a")}, 2, "--out");
  ExpectFailure({"collect", dir.path("weights"), "--out", dir.path("o")}, 3, "got neither");
  ExpectFailure({"collect", dir.path("none"), "--out", dir.path("o")}, 1, "none");
  ExpectFailure({"merge", dir.path("o")}, 2, "IN");
  ExpectFailure({"merge", dir.path("o"), dir.path("a")}, 3, "expected 'nibble.calibration.1'");
  EXPECT_EQ(Calibration({"collect", dir.path("a"), "--out", dir.path("s")}).exit_code, 0);
  ExpectFailure({"merge", dir.path("o"), dir.path("s"), dir.path("s")}, 2, "twice");
  EXPECT_EQ(dir.Names(), (std::vector<std::string>{"a", "s", "weights"}));
}

}  // namespace
}  // namespace nibble
