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

TEST_F(VerifyCommandTest, Calibration) {
  std::vector<Tensor> captures;
  for (const char* module : {"self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj"}) {
    captures.push_back(
        NormalTensor(absl::StrCat("model.layers.1.", module, ".input"), DType::kBf16, {40, 64}));
  }
  Write(dir_.path("captures"), captures);
  const std::vector<std::string> args = {out_, "--against", in_, "--calib", dir_.path("captures")};
  const ProcessResult table = Verify(args);
  EXPECT_EQ(table.exit_code, 0) << table.err;
  // q, k, v, o, gate and up of one layer of two.
  EXPECT_THAT(table.out,
              AllOf(HasSubstr("output error\n"), HasSubstr("\nall of them together "),
                    HasSubstr("8 of 14 matrices without second moments"), HasSubstr("--json")));
  std::vector<std::string> with_json = args;
  with_json.push_back("--json");
  const auto json = nlohmann::json::parse(Verify(with_json).out);
  EXPECT_EQ(json["without_second_moments"].size(), 8u);
  EXPECT_GT(json["all"]["output_error"], 0.001);
  EXPECT_LT(json["all"]["output_error"], 0.02);

  const ProcessResult alone = Verify({out_, "--calib", dir_.path("captures")});
  EXPECT_EQ(alone.exit_code, 2);
  EXPECT_THAT(alone.err, HasSubstr("--calib: expected --against SOURCE with it"));
  ASSERT_EQ(Nibble({"calibration", "collect", dir_.path("captures"), "--out", dir_.path("state"),
                    "--no-hessians"})
                .exit_code,
            0);
  const ProcessResult light = Verify({out_, "--against", in_, "--calib", dir_.path("state")});
  EXPECT_EQ(light.exit_code, 3);
  EXPECT_THAT(light.err, AllOf(HasSubstr("expected second moments (Hessians)"),
                               HasSubstr("nibble calibrate SOURCE --recipe nvfp4_local_hessian")));
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
