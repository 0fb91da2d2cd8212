// nibble verify, the program itself.
#include <filesystem>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/testing/model_folders.h"
#include "tests/testing/reference_export.h"
#include "tests/testing/subprocess.h"
#include "tests/testing/temp_dir.h"

namespace nibble {
namespace {

using ::nibble::testing::Nibble;

using namespace ::nibble::testing;  // NOLINT: the whole kit
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

class VerifyCommandTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const ModelOnPaper model = LlamaModel();
    WriteModelFolder(in_, model);
    WriteExport(out_, model, PlanOnPaper(model), Recipe());
  }
  ProcessResult Verify(std::vector<std::string> args) {
    args.insert(args.begin(), "verify");
    return Nibble(std::move(args));
  }
  void Break() { std::filesystem::remove(out_ + "/hf_quant_config.json"); }

  TempDir dir_;
  std::string in_ = dir_.path("in"), out_ = dir_.path("out");
};

TEST_F(VerifyCommandTest, NoHoles) {
  const ProcessResult alone = Verify({out_});
  EXPECT_EQ(alone.exit_code, 0) << alone.err;
  EXPECT_EQ(alone.err, "");
  EXPECT_THAT(alone.out, AllOf(HasSubstr("modelopt NVFP4: "), HasSubstr("14 matrices quantized"),
                               HasSubstr("0 holes\n"), Not(HasSubstr("SQNR"))));
  const ProcessResult against = Verify({out_, "--against", in_, "--threads", "1"});
  EXPECT_EQ(against.exit_code, 0) << against.err;
  EXPECT_THAT(against.out, HasSubstr("SQNR"));
}

TEST_F(VerifyCommandTest, HolesAreLinesAndExitCode3) {
  Break();
  const ProcessResult result = Verify({out_});
  EXPECT_EQ(result.exit_code, 3);
  EXPECT_THAT(result.out,
              AllOf(HasSubstr("hole: "), HasSubstr("hf_quant_config.json"), HasSubstr("1 hole\n")));
  EXPECT_THAT(result.err, HasSubstr("expected no hole, got 1\n"));
}

TEST_F(VerifyCommandTest, Json) {
  Break();
  const ProcessResult result = Verify({out_, "--json", "--against", in_});
  EXPECT_EQ(result.exit_code, 3);
  const auto json = nlohmann::json::parse(result.out);
  EXPECT_EQ(json["holes"].size(), 1u);
  EXPECT_EQ(json["errors"].size(), 14u);
  EXPECT_EQ(json["format"], "modelopt");
}

TEST_F(VerifyCommandTest, Recipe) {
  const ProcessResult same = Verify({out_, "--against", in_, "--recipe", "nvfp4"});
  EXPECT_EQ(same.exit_code, 0) << same.out << same.err;
  const ProcessResult other = Verify({out_, "--against", in_, "--recipe", "nvfp4_mlp_only"});
  EXPECT_EQ(other.exit_code, 3);
  EXPECT_THAT(other.out, HasSubstr("q_proj.weight\": expected it kept by the recipe"));
}

TEST_F(VerifyCommandTest, WrongArguments) {
  EXPECT_EQ(Verify({}).exit_code, 2);
  EXPECT_EQ(Verify({out_, "--recipe", "nvfp4"}).exit_code, 2);
  EXPECT_EQ(Verify({out_, "--against", ""}).exit_code, 2);
  EXPECT_EQ(Verify({out_, "--against", in_, "--recipe", "nvfp5"}).exit_code, 2);
  EXPECT_EQ(Verify({dir_.path("none")}).exit_code, 1);
  EXPECT_EQ(Verify({out_, "--against", dir_.path("none")}).exit_code, 1);
}

}  // namespace
}  // namespace nibble
