// Runs the program itself: what it writes, what it says, how it fails.
#include <algorithm>
#include <chrono>
#include <filesystem>
#include <limits>
#include <string>
#include <thread>
#include <vector>

#include "base/status.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/testing/subprocess.h"
#include "tests/testing/temp_dir.h"
#include "tests/testing/tensors.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;
using ::nibble::testing::ByteTensor;
using ::nibble::testing::Contents;
using ::nibble::testing::FileBytes;
using ::nibble::testing::Nibble;
using ::nibble::testing::NormalTensor;
using ::nibble::testing::Process;
using ::nibble::testing::ProcessResult;
using ::nibble::testing::PutFile;
using ::nibble::testing::Read;
using ::nibble::testing::Shape;
using ::nibble::testing::TempDir;
using ::nibble::testing::Tensor;
using ::nibble::testing::TensorOf;
using ::nibble::testing::Write;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

using Args = std::vector<std::string>;

constexpr int kFailed = 1, kWrongArguments = 2, kBadData = 3;

Args operator+(Args a, const Args& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

std::string Line(const Args& args) {
  std::string line;
  for (const std::string& arg : args) line += arg + " ";
  return line;
}

void ExpectSuccess(const Args& args) {
  const ProcessResult result = Nibble(args);
  EXPECT_EQ(result.exit_code, 0) << Line(args);
  EXPECT_EQ(result.err, "") << Line(args);
}

void ExpectOneErrorLine(const ProcessResult& result, int code, const std::string& piece) {
  EXPECT_EQ(result.exit_code, code) << result.err;
  EXPECT_EQ(result.signal, 0);
  EXPECT_THAT(result.err, StartsWith("nibble: "));
  EXPECT_EQ(result.err.find('\n') + 1, result.err.size()) << result.err;
  EXPECT_THAT(result.err, HasSubstr(piece));
}

// A Hessian of four slices: `diagonal` on the diagonals.
Tensor Hessian(const std::string& name, float diagonal) {
  std::vector<float> values(4 * 256, 0.0f);
  for (int i = 0; i < 4 * 16; ++i) values[i * 16 + i % 16] = diagonal;
  return TensorOf(name, DType::kF32, {4, 16, 16}, values);
}

Tensor OneBadElement(const std::string& name, float bad) {
  std::vector<float> values(16 * 16, 1.0f);
  values[37] = bad;
  return TensorOf(name, DType::kBf16, {16, 16}, values);
}

class NibbleTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const float nan = std::numeric_limits<float>::quiet_NaN();
    Write(in_,
          {NormalTensor("w", DType::kBf16, {32, 64}), NormalTensor("f32", DType::kF32, {64}),
           NormalTensor("f16", DType::kF16, {2, 16, 32}), Hessian("h", 2.0f), Hessian("h_nan", nan),
           Hessian("h_indefinite", -1.0f), NormalTensor("h_small", DType::kF32, {3, 16, 16}),
           OneBadElement("nan", nan), OneBadElement("inf", std::numeric_limits<float>::infinity()),
           NormalTensor("cols17", DType::kBf16, {16, 17}),
           NormalTensor("rows17", DType::kBf16, {17, 16}),
           ByteTensor("int", DType::kU8, {16, 16}, std::vector<uint8_t>(256, 1))});
  }

  Args Quantize(const std::string& tensor, const Args& more = {}) const {
    return Args{"tensor", "quantize", in_, "--tensor", tensor, "--out", out_} + more;
  }
  Args Sweep(const std::string& tensor, const Args& more = {}) const {
    return Args{"tensor", "sweep", in_, "--tensor", tensor, "--out", out_} + more;
  }

  // One line on stderr, nothing on stdout, nothing left behind, an output that was there untouched.
  void ExpectFailure(const Args& args, int code, const std::string& piece) const {
    SCOPED_TRACE(Line(args));
    for (bool output_exists : {false, true}) {
      if (output_exists) PutFile(out_, "old");
      const std::vector<std::string> names = folder_.Names();
      const ProcessResult result = Nibble(args);
      ExpectOneErrorLine(result, code, piece);
      EXPECT_EQ(result.out, "");
      EXPECT_EQ(folder_.Names(), names);
      if (output_exists) {
        EXPECT_TRUE(FileBytes(out_) == "old");
      }
    }
    fs::remove(out_);
  }

  TempDir folder_;
  const std::string in_ = folder_.path("in.safetensors"), out_ = folder_.path("out.safetensors");
};

// --- What works ---------------------------------------------------------------------------------

TEST_F(NibbleTest, SaysWhatItIs) {
  EXPECT_THAT(Nibble({"--version"}).out, StartsWith("0."));
  for (const Args& args : {Args{"--help"},
                           {"tensor", "--help"},
                           {"tensor", "quantize", "--help"},
                           {"demo", "-h"},
                           {"tune", "-h"}}) {
    const ProcessResult result = Nibble(args);
    EXPECT_EQ(result.exit_code, 0) << Line(args);
    EXPECT_THAT(result.out, HasSubstr("Usage: nibble"));
    EXPECT_EQ(result.err, "");
  }
}

TEST_F(NibbleTest, QuantizesWithEachOption) {
  const struct {
    const char* tensor;
    Args options;
    Shape packed, scale, amax;
    const char* rule = "runtime";
    const char* e4m3_max = "448";
  } kCases[] = {
      {"w", {}, {32, 32}, {32, 4}, {1}},
      {"f32", {}, {32}, {4}, {1}},
      {"f16", {}, {2, 16, 16}, {2, 16, 2}, {1}},
      {"w", {"--scheme", "per_token"}, {32, 32}, {32, 4}, {32}},
      {"w", {"--scheme", "tile_2d"}, {32, 32}, {32, 4}, {1}},
      {"w", {"--rule", "checkpoint"}, {32, 32}, {32, 4}, {1}, "checkpoint"},
      {"w", {"--four-over-six", "mae"}, {32, 32}, {32, 4}, {1}, "runtime", "256"},
      {"w", {"--four-over-six", "mse", "--e4m3-max", "448"}, {32, 32}, {32, 4}, {1}},
      {"w",
       {"--four-over-six", "abs_max", "--error-path", "fast", "--rule", "checkpoint"},
       {32, 32},
       {32, 4},
       {1},
       "checkpoint",
       "256"},
      {"w", {"--e4m3-max", "256"}, {32, 32}, {32, 4}, {1}, "runtime", "256"},
      {"w", {"--columnwise"}, {64, 16}, {64, 2}, {1}},
      {"w", {"--columnwise", "--rht"}, {64, 16}, {64, 2}, {1}},
      {"w", {"--columnwise", "--scheme", "per_token"}, {64, 16}, {64, 2}, {64}},
      {"w", {"--rht", "--no-signs"}, {32, 32}, {32, 4}, {1}},
      {"w", {"--stochastic", "--seed", "18446744073709551615"}, {32, 32}, {32, 4}, {1}},
      {"w", {"--swizzle"}, {32, 32}, {512}, {1}},
      {"w", {"--swizzle", "--columnwise"}, {64, 16}, {512}, {1}},
      {"w", {"--backend", "cpu", "--threads", "2"}, {32, 32}, {32, 4}, {1}},
      {"w", {"--backend", "cpu-scalar", "--threads", "1"}, {32, 32}, {32, 4}, {1}},
  };
  for (const auto& c : kCases) {
    SCOPED_TRACE(Line(c.options));
    ExpectSuccess(Quantize(c.tensor, c.options));
    Contents out = Read(out_);
    EXPECT_EQ(out.tensors.size(), 3u);
    EXPECT_EQ(out.tensors["packed"].dtype, DType::kU8);
    EXPECT_EQ(out.tensors["packed"].shape, c.packed);
    EXPECT_EQ(out.tensors["scale"].dtype, DType::kF8E4M3);
    EXPECT_EQ(out.tensors["scale"].shape, c.scale);
    EXPECT_EQ(out.tensors["amax"].dtype, DType::kF32);
    EXPECT_EQ(out.tensors["amax"].shape, c.amax);
    EXPECT_EQ(out.metadata["nibble.rule"], c.rule);
    EXPECT_EQ(out.metadata["nibble.e4m3_max"], c.e4m3_max);
    ExpectSuccess({"tensor", "dequantize", out_, "--out", folder_.path("back.safetensors")});
    fs::remove(out_);
  }
  EXPECT_EQ(folder_.Names(), (Args{"back.safetensors", "in.safetensors"}));
}

TEST_F(NibbleTest, OptionsReachTheBytes) {
  ExpectSuccess(Quantize("w"));
  const std::string plain = FileBytes(out_);
  for (const Args& options : {Args{"--scheme", "per_token"},
                              {"--rule", "checkpoint"},
                              {"--four-over-six", "mse"},
                              {"--e4m3-max", "256"},
                              {"--columnwise"},
                              {"--rht"},
                              {"--rht", "--no-signs"},
                              {"--stochastic"},
                              {"--swizzle"},
                              {"--scheme", "tile_2d"}}) {
    ExpectSuccess(Quantize("w", options));
    EXPECT_NE(FileBytes(out_), plain) << Line(options);
  }
  const auto packed = [&](const Args& options) {
    ExpectSuccess(Quantize("w", options));
    return Read(out_).tensors["packed"].bytes;
  };
  EXPECT_EQ(packed({"--stochastic"}), packed({"--stochastic", "--seed", "0"}));
  EXPECT_NE(packed({"--stochastic", "--seed", "1"}), packed({"--stochastic", "--seed", "2"}));
  EXPECT_NE(packed({"--rht"}), packed({"--rht", "--no-signs"}));
}

TEST_F(NibbleTest, SweepsWithEachOption) {
  for (const Args& options :
       {Args{},
        {"--method", "exhaustive"},
        {"--method", "pruned", "--packed"},
        {"--method", "multipliers", "--packed"},
        {"--hessian", "h"},
        {"--method", "exhaustive", "--hessian", "h", "--packed"},
        {"--global-amax", "2.5"},
        {"--method", "multipliers", "--start", "0.5", "--stop", "1.5", "--step", "0.25"},
        {"--e4m3-max", "256", "--global-amax", "0"}}) {
    SCOPED_TRACE(Line(options));
    ExpectSuccess(Sweep("w", options));
    Contents out = Read(out_);
    const bool packed = std::find(options.begin(), options.end(), "--packed") != options.end();
    EXPECT_EQ(out.tensors.size(), packed ? 6u : 3u);
    for (const auto& [name, dtype] :
         {std::pair("best_amax", DType::kF32), std::pair("code", DType::kU8),
          std::pair("loss", DType::kF32)}) {
      EXPECT_EQ(out.tensors[name].dtype, dtype) << name;
      EXPECT_EQ(out.tensors[name].shape, Shape{32 * 4}) << name;
    }
    if (packed) {
      EXPECT_EQ(out.tensors["packed"].shape, (Shape{32, 32}));
      EXPECT_EQ(out.tensors["scale"].shape, (Shape{32, 4}));
      EXPECT_EQ(out.tensors["scale"].dtype, DType::kF8E4M3);
      EXPECT_EQ(out.tensors["scale2"].dtype, DType::kF32);
    }
  }
}

TEST_F(NibbleTest, AnExhaustiveSweepReportsNearTies) {
  Write(in_, {TensorOf("w", DType::kBf16, {2, 16}, std::vector<float>(32, 0.0f))});
  EXPECT_THAT(Nibble(Sweep("w", {"--method", "exhaustive"})).out, HasSubstr(", 2 near-ties, "));
  EXPECT_THAT(Nibble(Sweep("w")).out, Not(HasSubstr("near-ties")));
}

TEST_F(NibbleTest, DequantizesToBothTypes) {
  ExpectSuccess(Quantize("f16"));
  const std::string back = folder_.path("back.safetensors");
  for (const auto& [word, dtype] :
       {std::pair("bf16", DType::kBf16), std::pair("fp32", DType::kF32)}) {
    ExpectSuccess({"tensor", "dequantize", out_, "--out", back, "--dtype", word});
    Contents contents = Read(back);
    EXPECT_EQ(contents.tensors["dequantized"].dtype, dtype);
    EXPECT_EQ(contents.tensors["dequantized"].shape, (Shape{2, 16, 32}));
  }
  ExpectSuccess({"tensor", "dequantize", out_, "--out", back});
  EXPECT_EQ(Read(back).tensors["dequantized"].dtype, DType::kBf16);
}

TEST_F(NibbleTest, Inspects) {
  ExpectSuccess(Quantize("w"));
  EXPECT_THAT(Nibble({"inspect", in_}).out, HasSubstr("cols17"));
  const ProcessResult text = Nibble({"inspect", folder_.path()});
  EXPECT_EQ(text.exit_code, 0);
  EXPECT_THAT(text.out, HasSubstr("NVFP4 nibble, per_tensor, runtime rule"));
  const ProcessResult json = Nibble({"inspect", "--json", folder_.path()});
  EXPECT_EQ(json.exit_code, 0);
  const nlohmann::json root = nlohmann::json::parse(json.out, nullptr, false);
  ASSERT_FALSE(root.is_discarded()) << json.out;
  ASSERT_EQ(root["files"].size(), 2u);
  EXPECT_EQ(root["files"][0]["path"], in_);
  EXPECT_EQ(root["files"][1]["tensors"][1]["quantized"]["scheme"], "per_tensor");
}

TEST_F(NibbleTest, Demonstrates) {
  const ProcessResult result = Nibble({"demo", "--rows", "32", "--cols", "1024"});
  EXPECT_EQ(result.exit_code, 0);
  EXPECT_EQ(result.err, "");
  for (const char* method : {"max", "4over6", "multipliers", "sweep"}) {
    EXPECT_THAT(result.out, HasSubstr(method));
  }
}

TEST_F(NibbleTest, GivesTheSameBytesOnEveryBackendAndThreadCount) {
  // Large enough for several pieces of work.
  Write(in_, {NormalTensor("w", DType::kBf16, {512, 512}), NormalTensor("h", DType::kF32, {1})});
  Contents contents = Read(in_);
  std::vector<float> hessians(32 * 256, 0.0f);
  for (int i = 0; i < 32 * 16; ++i)
    hessians[i * 16 + i % 16] = 1.0f + 0.01f * static_cast<float>(i);
  contents.tensors["h"] = TensorOf("h", DType::kF32, {32, 16, 16}, hessians);
  Write(in_, contents);
  for (const Args& command :
       {Quantize("w"), Quantize("w", {"--scheme", "tile_2d", "--rule", "checkpoint"}),
        Quantize("w", {"--scheme", "per_token", "--four-over-six", "mse", "--swizzle"}),
        Quantize("w", {"--columnwise", "--rht", "--stochastic", "--seed", "7"}),
        Sweep("w", {"--packed"}), Sweep("w", {"--method", "exhaustive"}),
        Sweep("w", {"--method", "multipliers", "--packed"}), Sweep("w", {"--hessian", "h"})}) {
    ExpectSuccess(command + Args{"--backend", "cpu-scalar", "--threads", "1"});
    const std::string reference = FileBytes(out_);
    for (const Args& backend : {Args{"--backend", "cpu-scalar", "--threads", "2"},
                                {"--backend", "cpu", "--threads", "1"},
                                {"--backend", "cpu", "--threads", "2"},
                                {"--threads", "3"}}) {
      ExpectSuccess(command + backend);
      EXPECT_TRUE(FileBytes(out_) == reference) << Line(command + backend);
    }
  }
}

// --- What does not ------------------------------------------------------------------------------

TEST_F(NibbleTest, WrongArgumentsExit2) {
  const std::string out_of_file = folder_.path("x.safetensors");
  const struct {
    Args args;
    const char* piece;
  } kCases[] = {
      {{}, "command: expected"},
      {{"tensor"}, "command: expected"},
      {{"frobnicate"}, "frobnicate"},
      {{"tensor", "frobnicate"}, "frobnicate"},
      {Quantize("w", {"--unknown"}), "--unknown"},
      {Quantize("w", {"--scheme", "per_row"}),
       "--scheme: expected per_tensor, per_token or tile_2d, got per_row"},
      {Quantize("w", {"--rule", "x"}), "--rule: expected runtime or checkpoint, got x"},
      {Quantize("w", {"--four-over-six", "l2"}), "expected mae, mse or abs_max, got l2"},
      {Quantize("w", {"--four-over-six", "mae", "--error-path", "x"}), "expected strict or fast"},
      {Quantize("w", {"--error-path", "fast"}), "--four-over-six"},
      {Quantize("w", {"--seed", "1"}), "--stochastic"},
      {Quantize("w", {"--stochastic", "--seed", "x"}), "--seed"},
      {Quantize("w", {"--no-signs"}), "--rht"},
      {Quantize("w", {"--e4m3-max", "300"}), "--e4m3-max"},
      {Quantize("w", {"--rule", "checkpoint", "--scheme", "per_token"}), "checkpoint"},
      {Quantize("w", {"--backend", "gpu"}), "expected auto, cpu, cpu-scalar or cuda:N, got "},
      {Quantize("w", {"--threads", "-1"}), "--threads"},
      {Quantize("absent"), "absent"},
      {Quantize("absent\x1b[31m\nsecond line"), "second line"},
      {{"tensor", "quantize", in_, "--out", out_}, "--tensor"},
      {{"tensor", "quantize", in_, "--tensor", "w"}, "--out"},
      {{"tensor", "quantize", "--tensor", "w", "--out", out_}, "IN"},
      {{"tensor", "quantize", in_, "--tensor", "w", "--out", "/dev/null"}, "/dev/null"},
      {{"tensor", "quantize", in_, "--tensor", "w", "--out", in_}, "other than the input"},
      {Sweep("w", {"--method", "random"}),
       "expected exhaustive, pruned or multipliers, got random"},
      {Sweep("w", {"--method", "multipliers", "--hessian", "h"}), "--hessian"},
      {Sweep("w", {"--hessian", "absent"}), "absent"},
      {Sweep("w", {"--global-amax", "nan"}), "global_amax"},
      {Sweep("w", {"--global-amax", "inf"}), "global_amax"},
      {Sweep("w", {"--global-amax", "-1"}), "global_amax"},
      {Sweep("w", {"--global-amax", "x"}), "--global-amax"},
      {Sweep("w", {"--global-amax", "1e-60"}), "--global-amax"},
      {Sweep("w", {"--e4m3-max", "300"}), "--e4m3-max"},
      {Sweep("w", {"--method", "multipliers", "--step", "0"}), "multipliers"},
      {Sweep("w", {"--method", "multipliers", "--start", "2", "--stop", "1"}), "multipliers"},
      {Sweep("absent"), "absent"},
      {{"tensor", "dequantize", in_, "--out", out_, "--dtype", "fp16"}, "--dtype"},
      {{"tensor", "dequantize", in_}, "--out"},
      {{"tensor", "dequantize", in_, "--out", in_}, "other than the input"},
      {{"inspect"}, "PATH"},
      {{"inspect", in_, "another"}, "another"},
      {{"demo", "--rows", "0"}, "--rows"},
      {{"demo", "--cols", "8"}, "--cols"},
      {{"tune", "--ops", "scale_sweep,nothing"}, "ops: expected some of accumulate_hessian, "},
      {{"tune", "--ops", ""}, "ops: expected some of accumulate_hessian, "},
      {{"tune", "--device", "cpu"}, "--device: expected cuda:N, got \"cpu\""},
      {{"tune", "--device", "0"}, "--device: expected cuda:N"},
      {{"tune", "--shapes", "512x500"}, "a multiple of 16, at most 2^48 elements, got \"512x500\""},
      {{"tune", "--shapes", "512x512,x"}, "got \"x\""},
      {{"tune", "--shapes", "512x512,513x512"}, "got 512x512 and 513x512"},
      {{"tune", "--out", folder_.path()}, "a regular file"},
  };
  for (const auto& c : kCases) ExpectFailure(c.args, kWrongArguments, c.piece);
}

TEST_F(NibbleTest, SeedsThatAreNoUint64Exit2) {
  for (const char* seed : {"-1", "18446744073709551616", "99999999999999999999", "1.5", "1e3"}) {
    ExpectFailure(Quantize("w", {"--stochastic", "--seed", seed}), kWrongArguments, "--seed");
  }
}

TEST_F(NibbleTest, DemoColumnsThatAreNoMultipleOf16Exit2) {
  ExpectFailure({"demo", "--rows", "1", "--cols", "17"}, kWrongArguments, "17");
}

TEST_F(NibbleTest, BadDataExits3) {
  const std::string cut = folder_.path("cut"), image = FileBytes(in_);
  PutFile(cut, image.substr(0, image.size() - 1));
  const struct {
    Args args;
    const char* piece;
  } kCases[] = {
      {Quantize("nan"), "got 1 NaN or infinite, the first at row 2, column 5"},
      {Quantize("inf"), "row 2, column 5"},
      {Quantize("int"), "expected BF16, F16 or F32, got U8"},
      {Quantize("cols17"), "multiple of 16, got [16, 17]"},
      {Quantize("rows17", {"--scheme", "tile_2d"}), "multiple of 16 rows under tile_2d, got 17"},
      {Quantize("rows17", {"--columnwise"}), "multiple of 16 rows for a column-wise copy, got 17"},
      {{"tensor", "quantize", cut, "--tensor", "w", "--out", out_}, "bytes that follow the header"},
      {Sweep("nan"), "row 2, column 5"},
      {Sweep("inf", {"--method", "multipliers"}), "row 2, column 5"},
      {Sweep("int"), "got U8"},
      {Sweep("cols17"), "[16, 17]"},
      {Sweep("w", {"--hessian", "h_nan"}), "not finite: slice 0"},
      {Sweep("w", {"--hessian", "h_indefinite"}), "not positive semidefinite: slice 0"},
      {Sweep("w", {"--hessian", "h_small"}), "expected F32 [4, 16, 16], got F32 [3, 16, 16]"},
      {Sweep("w", {"--hessian", "int"}), "got U8 [16, 16]"},
      {{"tensor", "dequantize", in_, "--out", out_}, "nibble.packed.1"},
      {{"tensor", "dequantize", cut, "--out", out_}, "bytes that follow the header"},
      {{"inspect", cut}, "bytes that follow the header"},
      {{"tune", "--out", cut}, "cut:1: first line: expected nibble tuning 1, got "},
  };
  for (const auto& c : kCases) ExpectFailure(c.args, kBadData, c.piece);
}

TEST_F(NibbleTest, OtherFailuresExit1) {
  const std::string missing = folder_.path("missing");
  fs::create_directory(folder_.path("empty"));
  const struct {
    Args args;
    std::string piece;
  } kCases[] = {
      {{"tensor", "quantize", missing, "--tensor", "w", "--out", out_}, missing},
      {{"tensor", "sweep", missing, "--tensor", "w", "--out", out_}, missing},
      {{"tensor", "dequantize", missing, "--out", out_}, missing},
      {{"inspect", missing}, missing},
      {{"inspect", folder_.path("empty")}, "got none"},
      {{"tensor", "quantize", in_, "--tensor", "w", "--out", missing + "/out"}, missing + "/out"},
      {{"tensor", "sweep", in_, "--tensor", "w", "--out", missing + "/out"}, missing + "/out"},
      {{"tensor", "quantize", in_, "--tensor", "w", "--out", "/proc/out"}, "/proc/out"},
      {{"tune", "--device", "cuda:99", "--out", missing + "/out"},
       "tune on a machine that has one"},
  };
  for (const auto& c : kCases) ExpectFailure(c.args, kFailed, c.piece);
}

// A path through a file is no more the data's fault than a missing folder is.
TEST_F(NibbleTest, PathsThatLeadNowhereExit1) {
  ExpectFailure({"tensor", "quantize", in_ + "/x", "--tensor", "w", "--out", out_}, kFailed, in_);
  ExpectFailure({"tensor", "quantize", in_, "--tensor", "w", "--out", in_ + "/x"}, kFailed, in_);
  ExpectFailure({"inspect", in_ + "/x"}, kFailed, in_);
}

TEST_F(NibbleTest, BackendsThatAreNotBuiltExit1) {
  const ProcessResult probe =
      Nibble({"demo", "--rows", "1", "--cols", "16", "--backend", "cuda:0"});
  if (probe.err.find("no CUDA kernels") == std::string::npos) GTEST_SKIP() << "built with CUDA";
  ExpectFailure(Quantize("w", {"--backend", "cuda:0"}), kFailed, "got cuda:0");
  ExpectFailure(Sweep("w", {"--backend", "cuda:7"}), kFailed, "got cuda:7");
  ExpectFailure({"demo", "--backend", "cuda:0"}, kFailed, "got cuda:0");
}

TEST_F(NibbleTest, OutputThatDoesNotArriveExits1) {
  for (const Args& args : {Args{"inspect", in_},
                           {"inspect", in_, "--json"},
                           {"demo", "--rows", "1", "--cols", "16"},
                           Quantize("w")}) {
    SCOPED_TRACE(Line(args));
    ExpectOneErrorLine(Nibble(args, "/dev/full"), kFailed, "");
  }
}

// What an error repeats cannot drive the terminal.
TEST_F(NibbleTest, ErrorsHoldNoControlCharacters) {
  for (const Args& args : {Args{"inspect", folder_.path("\x1b[31m")}, Quantize("w", {"--\x1b[31m"}),
                           Quantize("\x1b[31m"), Quantize("w", {"--backend", "\x1b[31m"})}) {
    const std::string err = Nibble(args).err;
    EXPECT_EQ(err.find('\x1b'), err.npos) << Line(args);
  }
}

// --- What is left after a kill ------------------------------------------------------------------

TEST_F(NibbleTest, KilledInTheMiddleOfTheWorkLeavesNothing) {
  Write(in_, {TensorOf("w", DType::kBf16, {2048, 4096}, std::vector<float>(2048 * 4096, 1.25f))});
  Process process(Args{NIBBLE_PROGRAM} + Sweep("w", {"--method", "exhaustive", "--backend",
                                                     "cpu-scalar", "--threads", "1"}));
  std::this_thread::sleep_for(std::chrono::milliseconds(200));
  process.Kill();
  EXPECT_EQ(process.Wait().signal, SIGKILL);
  EXPECT_FALSE(fs::exists(out_));
}

// Whether the process has a file of the folder open that is none of `known`: one that it is
// writing, under a temporary name or under none.
bool IsWriting(const Process& process, const std::string& folder, const Args& known) {
  std::error_code error, ended;
  fs::directory_iterator open_file("/proc/" + std::to_string(process.pid()) + "/fd", error);
  for (; !error && open_file != fs::directory_iterator(); open_file.increment(error)) {
    const std::string file = fs::read_symlink(open_file->path(), ended).string();
    const bool is_known = std::find(known.begin(), known.end(), file) != known.end();
    if (file.rfind(folder + "/", 0) == 0 && !is_known) return true;
  }
  return false;
}

// Killed as soon as it begins to write, the new file is there whole or not at all.
TEST_F(NibbleTest, KilledInTheMiddleOfTheWriteLeavesTheOldFileOrTheNew) {
  Write(in_, {TensorOf("w", DType::kBf16, {2048, 4096}, std::vector<float>(2048 * 4096, 1.25f))});
  ExpectSuccess(Quantize("w"));
  const std::string whole = FileBytes(out_);
  int kept = 0;
  for (int round = 0; round < 5; ++round) {
    PutFile(out_, "old");
    Process process(Args{NIBBLE_PROGRAM} + Quantize("w"));
    while (!process.HasEnded() && !IsWriting(process, folder_.path(), {in_, out_})) {
    }
    process.Kill();
    process.Wait();
    const std::string now = FileBytes(out_);
    EXPECT_TRUE(now == "old" || now == whole) << round << ": " << now.size() << " bytes";
    kept += now == "old";
    for (const std::string& name : folder_.Names()) {
      if (name.find(".partial") != std::string::npos) fs::remove(folder_.path(name));
    }
  }
  EXPECT_GT(kept, 0) << "never killed in time";
}

}  // namespace
}  // namespace nibble
