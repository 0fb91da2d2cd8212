#include "engine/calibration.h"

#include <cmath>
#include <cstring>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "calib/activation_calibrators.h"
#include "engine/synthetic.h"
#include "engine/tensor_ops.h"
#include "gtest/gtest.h"
#include "kernels/cpu/cpu_backend.h"
#include "tests/testing/bytes.h"
#include "tests/testing/is_error.h"
#include "tests/testing/temp_dir.h"
#include "tests/testing/tensors.h"

namespace nibble {
namespace {

using ::nibble::testing::ByteTensor;
using ::nibble::testing::Contents;
using ::nibble::testing::FileBytes;
using ::nibble::testing::IsError;
using ::nibble::testing::Metadata;
using ::nibble::testing::PutFile;
using ::nibble::testing::Read;
using ::nibble::testing::SameBytes;
using ::nibble::testing::Shape;
using ::nibble::testing::TempDir;
using ::nibble::testing::Tensor;
using ::nibble::testing::TensorOf;
using ::nibble::testing::Write;

const char kModule[] = "model.layers.0.mlp.down_proj";

ActivationSpec SpecOf(ActivationMethod method) {
  ActivationSpec spec;
  spec.method = method;
  return spec;
}

std::vector<ActivationSpec> AllSpecs() {
  std::vector<ActivationSpec> specs;
  for (size_t i = 0; i < kEnumNames<ActivationMethod>.size(); ++i) {
    specs.push_back(SpecOf(static_cast<ActivationMethod>(i)));
  }
  return specs;
}

Tensor Capture(const std::string& module, DType dtype, const Shape& shape, uint64_t seed = 1) {
  return TensorOf(module + ".input", dtype, shape,
                  SyntheticValues(Distribution::kOutliers, ElementCount(shape).value(), seed));
}

std::unique_ptr<Calibration> Open(const std::string& path) {
  absl::StatusOr<std::unique_ptr<Calibration>> opened = Calibration::Open(path);
  EXPECT_TRUE(opened.ok()) << opened.status();
  return *std::move(opened);
}

class CalibrationTest : public ::testing::Test {
 protected:
  std::string Saved(const std::string& name, const std::string& captures, bool hessians = true) {
    const auto states = CollectCalibration(captures, hessians, *backend_);
    EXPECT_TRUE(states.ok()) << states.status();
    const absl::Status saved = SaveCalibration(dir_.path(name), *states);
    EXPECT_TRUE(saved.ok()) << saved;
    return dir_.path(name);
  }

  // A file of states with one change, to be refused with DataLoss by whatever reads it.
  void ExpectRefused(const std::string& piece, const std::function<void(Contents&)>& change) {
    Contents contents = Read(state_);
    change(contents);
    const std::string bad = dir_.path("bad.safetensors");
    Write(bad, contents);
    EXPECT_TRUE(IsError(LoadCalibration(bad), absl::StatusCode::kDataLoss, piece));
    EXPECT_TRUE(
        IsError(MergeCalibrations(std::vector{state_, bad}), absl::StatusCode::kDataLoss, piece));
    const auto opened = Calibration::Open(bad);
    if (!opened.ok()) {
      EXPECT_TRUE(IsError(opened, absl::StatusCode::kDataLoss, piece));
      return;
    }
    EXPECT_TRUE(
        IsError((*opened)->Hessians(kModule, 32, *backend_), absl::StatusCode::kDataLoss, piece));
  }

  void MakeState() {
    captures_ = dir_.path("captures.safetensors");
    Write(captures_, {Capture(kModule, DType::kBf16, {300, 32})});
    state_ = Saved("state.safetensors", captures_);
  }

  TempDir dir_;
  std::unique_ptr<Backend> backend_ = MakeCpuBackend({.threads = 2});
  std::string captures_, state_;
};

// The file's chunks of rows do not show, and a state stands for what it was made of.
TEST_F(CalibrationTest, CapturesAndTheirStatesGiveTheSameAnswers) {
  // 40 MB: three chunks.
  const std::string captures = dir_.path("captures.safetensors");
  Write(captures,
        {Capture("large", DType::kF32, {2, 2500, 2048}, 1),
         Capture("half", DType::kF16, {700, 32}, 2),
         Capture("brain", DType::kBf16, {3, 7, 100, 48}, 3),
         Capture("empty", DType::kBf16, {0, 48}), ByteTensor("other", DType::kU8, {1}, {7})});
  const std::string state = Saved("state.safetensors", captures);
  const auto from_captures = Open(captures), from_state = Open(state);
  const struct {
    const char* module;
    int64_t columns;
  } kModules[] = {{"large", 2048}, {"half", 32}, {"brain", 48}};
  for (const auto& [module, columns] : kModules) {
    SCOPED_TRACE(module);
    const Tensor x = nibble::testing::ReadTensor(captures, std::string(module) + ".input");
    InputCollector whole;
    ASSERT_TRUE(whole.Collect(x.view(), *backend_).ok());
    for (const ActivationSpec& spec : AllSpecs()) {
      const auto expected = whole.InputAmax(spec);
      const auto a = from_captures->InputAmax(module, spec, columns, *backend_);
      const auto b = from_state->InputAmax(module, spec, columns, *backend_);
      ASSERT_TRUE(a.ok() && b.ok()) << a.status() << b.status();
      EXPECT_EQ(*a, *expected);
      EXPECT_EQ(*b, *expected);
    }
    const auto a = from_captures->Hessians(module, columns, *backend_);
    const auto b = from_state->Hessians(module, columns, *backend_);
    ASSERT_TRUE(a.ok() && b.ok()) << a.status() << b.status();
    EXPECT_TRUE(SameBytes(**a, *whole.Hessians()));
    EXPECT_TRUE(SameBytes(**b, *whole.Hessians()));
    for (const auto* calibration : {from_captures.get(), from_state.get()}) {
      EXPECT_TRUE(IsError(calibration->InputAmax(module, {}, columns + 16, *backend_),
                          absl::StatusCode::kFailedPrecondition, "channels, got"));
      EXPECT_TRUE(IsError(calibration->Hessians(module, columns + 16, *backend_),
                          absl::StatusCode::kFailedPrecondition, "channels, got"));
    }
  }
  for (const auto* calibration : {from_captures.get(), from_state.get()}) {
    for (const char* module : {"empty", "none", "other", "", "large.input"}) {
      EXPECT_EQ(*calibration->InputAmax(module, {}, 48, *backend_), std::nullopt) << module;
      EXPECT_EQ(*calibration->Hessians(module, 48, *backend_), std::nullopt) << module;
      EXPECT_EQ(*calibration->InputAmax(module, SpecOf(ActivationMethod::kConstant), 48, *backend_),
                2688.0f);
    }
    ActivationSpec bad;
    bad.percentile = 3;
    EXPECT_TRUE(IsError(calibration->InputAmax("half", bad, 32, *backend_),
                        absl::StatusCode::kInvalidArgument, "method max alone"));
  }
}

TEST_F(CalibrationTest, ThreadsMayAskAtOnce) {
  MakeState();
  for (const std::string& path : {captures_, state_}) {
    const auto calibration = Open(path);
    std::vector<float> expected = **calibration->Hessians(kModule, 32, *backend_);
    std::vector<std::thread> threads;
    std::vector<int> same(8);
    for (int i = 0; i < 8; ++i) {
      threads.emplace_back([&, i] {
        const auto backend = MakeCpuBackend({.threads = 1});
        same[i] = **calibration->Hessians(kModule, 32, *backend) == expected &&
                  calibration->Fingerprint() == Open(path)->Fingerprint();
      });
    }
    for (std::thread& thread : threads) thread.join();
    EXPECT_EQ(same, std::vector<int>(8, 1));
  }
}

TEST_F(CalibrationTest, SavedStatesComeBackAndAreTheSameBytes) {
  MakeState();
  const auto states = LoadCalibration(state_);
  ASSERT_TRUE(states.ok()) << states.status();
  ASSERT_TRUE(SaveCalibration(dir_.path("again"), *states).ok());
  EXPECT_EQ(FileBytes(dir_.path("again")), FileBytes(state_));
  EXPECT_EQ(Read(state_).metadata, (Metadata{{kFormatKey, "nibble.calibration.1"}}));
  EXPECT_TRUE(Read(state_).tensors.count(std::string(kModule) + ".input.amax") == 1);
  ASSERT_TRUE(SaveCalibration(dir_.path("nothing"), {}).ok());
  EXPECT_TRUE(LoadCalibration(dir_.path("nothing"))->empty());
  EXPECT_EQ(*Open(dir_.path("nothing"))->InputAmax(kModule, {}, 32, *backend_), std::nullopt);
  CalibrationStates unnamed;
  unnamed[""] = InputCollector();
  EXPECT_TRUE(IsError(SaveCalibration(dir_.path("unnamed"), unnamed),
                      absl::StatusCode::kInvalidArgument, "expected a name"));
}

TEST_F(CalibrationTest, StatesWithoutHessiansHaveAmaxAlone) {
  MakeState();
  const std::string light = Saved("light", captures_, /*hessians=*/false);
  const auto calibration = Open(light);
  EXPECT_EQ(*calibration->Hessians(kModule, 32, *backend_), std::nullopt);
  EXPECT_EQ(*calibration->InputAmax(kModule, {}, 32, *backend_),
            *Open(state_)->InputAmax(kModule, {}, 32, *backend_));
  EXPECT_TRUE(IsError(MergeCalibrations(std::vector{state_, light}),
                      absl::StatusCode::kInvalidArgument, "light: module"));
}

TEST_F(CalibrationTest, MergesInAnyOrder) {
  std::vector<std::string> files;
  for (int i = 0; i < 3; ++i) {
    const std::string captures = dir_.path("captures" + std::to_string(i));
    std::vector<Tensor> tensors = {
        Capture("shared", DType::kBf16, {100 + 300 * i, 32}, 10 + static_cast<uint64_t>(i))};
    if (i != 1)
      tensors.push_back(Capture("a", DType::kF32, {5, 16}, 20 + static_cast<uint64_t>(i)));
    tensors.push_back(Capture("only" + std::to_string(i), DType::kF16, {9, 48}));
    Write(captures, tensors);
    files.push_back(Saved("state" + std::to_string(i), captures));
  }
  const auto merged = MergeCalibrations(files);
  ASSERT_TRUE(merged.ok()) << merged.status();
  EXPECT_EQ(merged->size(), 5u);
  EXPECT_EQ(merged->at("shared").tokens(), 100 + 400 + 700);
  EXPECT_EQ(merged->at("a").tokens(), 10);
  ASSERT_TRUE(SaveCalibration(dir_.path("merged"), *merged).ok());
  std::sort(files.begin(), files.end());
  do {
    const auto other = MergeCalibrations(files);
    ASSERT_TRUE(other.ok()) << other.status();
    EXPECT_EQ(*other, *merged);
    // As a tree, by way of a file.
    const auto pair = MergeCalibrations(std::span(files).first(2));
    ASSERT_TRUE(SaveCalibration(dir_.path("pair"), *pair).ok());
    const auto tree = MergeCalibrations(std::vector{files[2], dir_.path("pair")});
    ASSERT_TRUE(tree.ok()) << tree.status();
    ASSERT_TRUE(SaveCalibration(dir_.path("tree"), *tree).ok());
    EXPECT_EQ(FileBytes(dir_.path("tree")), FileBytes(dir_.path("merged")));
  } while (std::next_permutation(files.begin(), files.end()));
  EXPECT_TRUE(IsError(MergeCalibrations(std::vector{files[0], files[1], files[0]}),
                      absl::StatusCode::kInvalidArgument, "twice"));
  EXPECT_TRUE(IsError(MergeCalibrations(std::vector{files[0], dir_.path("captures0")}),
                      absl::StatusCode::kDataLoss, "got none"));
  EXPECT_TRUE(MergeCalibrations({})->empty());
  Write(dir_.path("wide"), {Capture("shared", DType::kBf16, {4, 64})});
  EXPECT_TRUE(
      IsError(MergeCalibrations(std::vector{files[0], Saved("wide.state", dir_.path("wide"))}),
              absl::StatusCode::kFailedPrecondition, "module \"shared\""));
}

TEST_F(CalibrationTest, FingerprintsTellContentsApart) {
  MakeState();
  const std::string fingerprint = Open(captures_)->Fingerprint();
  EXPECT_EQ(fingerprint.size(), 16u);
  PutFile(dir_.path("copy"), FileBytes(captures_));
  EXPECT_EQ(Open(dir_.path("copy"))->Fingerprint(), fingerprint);
  EXPECT_NE(Open(state_)->Fingerprint(), fingerprint);
  std::string bytes = FileBytes(captures_);
  bytes.back() ^= 1;
  PutFile(dir_.path("copy"), bytes);
  EXPECT_NE(Open(dir_.path("copy"))->Fingerprint(), fingerprint);
  Write(dir_.path("named"), {Capture("other", DType::kBf16, {300, 32})});
  EXPECT_NE(Open(dir_.path("named"))->Fingerprint(), fingerprint);
  const auto shrinking = Open(dir_.path("named"));
  PutFile(dir_.path("named"), FileBytes(dir_.path("named")).substr(0, 5000));
  EXPECT_NE(shrinking->Fingerprint().find("unreadable"), std::string::npos);
}

TEST_F(CalibrationTest, RefusesFilesThatAreNeither) {
  EXPECT_TRUE(IsError(Calibration::Open(dir_.path("none")), absl::StatusCode::kNotFound, "none"));
  PutFile(dir_.path("text"), "not safetensors");
  EXPECT_TRUE(IsError(Calibration::Open(dir_.path("text")), absl::StatusCode::kDataLoss, "text"));
  Write(dir_.path("weights"), {nibble::testing::NormalTensor("model.weight", DType::kBf16, {2, 16}),
                               nibble::testing::NormalTensor(".input", DType::kBf16, {2, 16})});
  for (const auto& status : {Calibration::Open(dir_.path("weights")).status(),
                             CollectCalibration(dir_.path("weights"), true, *backend_).status()}) {
    EXPECT_TRUE(
        IsError(status, absl::StatusCode::kDataLoss, "tensors '<module>.input'; got neither"));
  }
}

TEST_F(CalibrationTest, RefusesCapturesThatAreNoActivations) {
  const auto refused = [&](const Tensor& tensor, std::string_view piece) {
    const std::string path = dir_.path("bad.safetensors");
    Write(path, {tensor});
    const auto calibration = Open(path);
    for (const auto& status :
         {calibration->InputAmax("m", {}, 32, *backend_).status(),
          calibration->InputAmax("m", SpecOf(ActivationMethod::kHeadroom), 32, *backend_).status(),
          calibration->Hessians("m", 32, *backend_).status(),
          CollectCalibration(path, true, *backend_).status()}) {
      EXPECT_TRUE(IsError(status, absl::StatusCode::kFailedPrecondition, piece));
      EXPECT_TRUE(IsError(status, absl::StatusCode::kFailedPrecondition, "tensor \"m.input\""));
    }
    // A constant looks at none of it.
    EXPECT_TRUE(
        calibration->InputAmax("m", SpecOf(ActivationMethod::kConstant), 32, *backend_).ok());
  };
  refused(ByteTensor("m.input", DType::kU8, {2, 32}, std::vector<uint8_t>(64)), "dtype");
  refused(ByteTensor("m.input", DType::kF8E4M3, {2, 32}, std::vector<uint8_t>(64)), "dtype");
  refused(TensorOf("m.input", DType::kF32, {32}, std::vector<float>(32)), "tokens x channels");
  refused(TensorOf("m.input", DType::kF32, {}, {1}), "tokens x channels");
  refused(TensorOf("m.input", DType::kF32, {2, 24}, std::vector<float>(48)), "multiple of 16");
  refused(TensorOf("m.input", DType::kF32, {0, 1 << 21}, {}), "at most 1048576 channels");
  std::vector<float> values(200000 * 32, 1.0f);
  values[190000 * 32 + 3] = std::nanf("");
  refused(TensorOf("m.input", DType::kF32, {200000, 32}, values), "rows from ");
  values[190000 * 32 + 3] = HUGE_VALF;
  refused(TensorOf("m.input", DType::kF32, {2, 100000, 32}, values), "NaN or infinite");
}

TEST_F(CalibrationTest, RefusesStatesOfOtherVersionsAndKinds) {
  MakeState();
  ExpectRefused("or older, which this version reads, got \"nibble.calibration.2\"",
                [](Contents& c) { c.metadata[kFormatKey] = "nibble.calibration.2"; });
  for (const char* format : {"nibble.calibration.0", "nibble.calibration.", "nibble.calibration.x",
                             "nibble.packed.1", "nibble.calibration.1x", ""}) {
    ExpectRefused("expected 'nibble.calibration.1', got",
                  [&](Contents& c) { c.metadata[kFormatKey] = format; });
  }
}

TEST_F(CalibrationTest, RefusesStatesThatNobodySaved) {
  MakeState();
  const std::string prefix = std::string(kModule) + ".input.";
  const auto set = [&](Contents& c, const std::string& array, auto value) {
    std::memcpy(c.tensors.at(prefix + array).bytes.data(), &value, sizeof(value));
  };
  const auto rename = [&](Contents& c, const std::string& array, const std::string& name) {
    Tensor tensor = c.tensors.at(prefix + array);
    c.tensors.erase(prefix + array);
    tensor.name = name;
    c.tensors[name] = tensor;
  };
  ExpectRefused("expected '<module>.input.<array>'",
                [&](Contents& c) { rename(c, "amax", "amax"); });
  ExpectRefused("expected '<module>.input.<array>'",
                [&](Contents& c) { rename(c, "amax", prefix + "amin"); });
  ExpectRefused("expected '<module>.input.<array>'",
                [&](Contents& c) { rename(c, "amax", ".input.amax"); });
  ExpectRefused("expected '<module>.input.<array>'",
                [&](Contents& c) { rename(c, "amax", std::string(kModule) + ".input"); });
  ExpectRefused("got none", [&](Contents& c) { c.tensors.erase(prefix + "amax"); });
  ExpectRefused("got none", [&](Contents& c) { c.tensors.erase(prefix + "hessian.top"); });
  ExpectRefused("state 'amax': expected a finite",
                [&](Contents& c) { set(c, "amax", std::nanf("")); });
  ExpectRefused("state 'amax': expected a finite", [&](Contents& c) { set(c, "amax", -1.0f); });
  ExpectRefused("state 'tokens'", [&](Contents& c) { set(c, "tokens", int64_t{-300}); });
  ExpectRefused("state 'blocks.count'", [&](Contents& c) { set(c, "blocks.count", int64_t{-1}); });
  ExpectRefused("state 'columns'", [&](Contents& c) { set(c, "columns", int64_t{31}); });
  ExpectRefused("state 'amax': expected F32 [1], got F32 [1, 1]", [&](Contents& c) {
    c.tensors.at(prefix + "amax").shape = {1, 1};
  });
  ExpectRefused("state 'hessian.digits'", [&](Contents& c) {
    c.tensors.at(prefix + "hessian.digits").shape = {1, 2 * 136, 3};
  });
  ExpectRefused("module \"model.layers.0.mlp.down_proj\"",
                [&](Contents& c) { set(c, "hessian.units", int64_t{0}); });
}

}  // namespace
}  // namespace nibble
