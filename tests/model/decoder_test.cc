#include "model/decoder.h"

#include <malloc.h>

#include <algorithm>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "io/model_folder.h"
#include "tests/testing/bytes.h"
#include "tests/testing/closeness.h"
#include "tests/testing/decoders.h"
#include "tests/testing/is_error.h"
#include "tests/testing/sanitizers.h"
#include "tests/testing/temp_dir.h"

namespace nibble {
namespace {

using ::nibble::testing::DecoderOf;
using ::nibble::testing::DifferencesBelow;
using ::nibble::testing::IsError;
using ::nibble::testing::kDataLoss;
using ::nibble::testing::kInvalid;
using ::nibble::testing::kPrecondition;
using ::nibble::testing::kSanitized;
using ::nibble::testing::LlamaModel;
using ::nibble::testing::LogitsOf;
using ::nibble::testing::MixtralModel;
using ::nibble::testing::ModelOnPaper;
using ::nibble::testing::ModelSize;
using ::nibble::testing::Qwen3MoeModel;
using ::nibble::testing::RecordingHook;
using ::nibble::testing::RunDecoder;
using ::nibble::testing::SameBytes;
using ::nibble::testing::TempDir;
using ::nibble::testing::TokensOf;
using ::nibble::testing::WeightsOf;

const TokenSet kTokens = TokensOf({9, 1, 30, 17}, 48);

// The first failure of a whole run.
absl::Status RunStatus(Decoder& decoder, const TokenSet& tokens, LinearHook* hook = nullptr) {
  auto hidden = decoder.Embed(tokens);
  if (!hidden.ok()) return hidden.status();
  while (hidden->next_layer() < decoder.config().layers) {
    const absl::Status status = decoder.RunLayer(*hidden, hook);
    if (!status.ok()) return status;
  }
  return decoder.Logits(*hidden, [](int64_t, std::span<const float>) { return absl::OkStatus(); });
}

absl::Status RunStatus(const ModelOnPaper& model) { return RunStatus(*DecoderOf(model), kTokens); }

// --- The same bits
// --------------------------------------------------------------------------------

TEST(DecoderTest, ThreadsAndSpillingChangeNoByte) {
  for (const ModelOnPaper& model : {LlamaModel(), Qwen3MoeModel()}) {
    for (const DType dtype : {DType::kF32, DType::kBf16}) {
      RecordingHook expected_hook;
      const std::vector<float> expected =
          RunDecoder(*DecoderOf(model, {.threads = 1, .dtype = dtype, .batch_tokens = 20}), kTokens,
                     &expected_hook);
      ASSERT_FALSE(expected.empty());
      for (const DecoderOptions& options :
           {DecoderOptions{.threads = 3, .dtype = dtype, .batch_tokens = 20},
            DecoderOptions{.threads = 2,
            .dtype = dtype,
            .batch_tokens = 20,
            .hidden_states = {.memory_budget = 1000}}}) {
        RecordingHook hook;
        EXPECT_TRUE(SameBytes(expected, RunDecoder(*DecoderOf(model, options), kTokens, &hook)));
        EXPECT_TRUE(expected_hook.records == hook.records);
      }
    }
  }
}

TEST(DecoderTest, BatchesChangeRoundingAtMost) {
  const ModelOnPaper model = Qwen3MoeModel();
  const std::vector<float> expected = RunDecoder(*DecoderOf(model), kTokens);
  for (const int64_t batch_tokens : {1, 10, 31, 1000}) {
    EXPECT_TRUE(DifferencesBelow(
        1e-5, expected,
        RunDecoder(*DecoderOf(model, {.batch_tokens = batch_tokens, .logit_rows = 7}), kTokens)));
  }
  // A sequence does not see its neighbours.
  const TokenSet alone{{kTokens.ids.begin() + 10, kTokens.ids.begin() + 40}, {30}};
  const std::vector<float> logits = RunDecoder(*DecoderOf(model), alone);
  EXPECT_TRUE(
      DifferencesBelow(1e-5, std::span(expected).subspan(10 * 48, 30 * 48), std::span(logits)));
}

TEST(DecoderTest, ResumesAtAnyLayerWithTheSameBytes) {
  const TempDir dir;
  const ModelOnPaper model = LlamaModel({.layers = 4});
  for (const DType dtype : {DType::kF32, DType::kBf16}) {
    const auto decoder = DecoderOf(model, {.dtype = dtype});
    const std::vector<float> expected = RunDecoder(*decoder, kTokens);
    for (int stop = 0; stop <= 4; ++stop) {
      HiddenStates hidden = decoder->Embed(kTokens).value();
      for (int i = 0; i < stop; ++i) ASSERT_TRUE(decoder->RunLayer(hidden).ok());
      ASSERT_TRUE(hidden.Save(dir.path("states")).ok());

      const auto other = DecoderOf(model, {.dtype = dtype});
      HiddenStates resumed = HiddenStates::Load(dir.path("states")).value();
      while (resumed.next_layer() < 4) ASSERT_TRUE(other->RunLayer(resumed).ok());
      EXPECT_TRUE(SameBytes(expected, LogitsOf(*other, resumed)));
    }
  }
}

// --- Hooks
// ----------------------------------------------------------------------------------------

TEST(DecoderTest, ObserversSeeWhatARunMultipliesAndChangeNothing) {
  const ModelOnPaper model = Qwen3MoeModel();
  const auto decoder = DecoderOf(model);
  const std::vector<float> plain = RunDecoder(*decoder, kTokens);
  RecordingHook hook, observed;
  EXPECT_TRUE(SameBytes(plain, RunDecoder(*decoder, kTokens, &hook)));

  HiddenStates hidden = decoder->Embed(kTokens).value();
  while (hidden.next_layer() < decoder->config().layers) {
    ASSERT_TRUE(decoder->ObserveLayer(hidden, observed).ok());
    ASSERT_TRUE(decoder->RunLayer(hidden).ok());
  }
  EXPECT_TRUE(SameBytes(plain, LogitsOf(*decoder, hidden, &observed)));
  EXPECT_TRUE(hook.records == observed.records);

  // Every module was seen; those of one input saw the same.
  size_t modules = 1;
  for (int64_t layer = 0; layer < 2; ++layer) {
    for (const LinearModule& module : LinearModules(decoder->config(), layer)) {
      ++modules;
      const auto& record = hook.records[module.name];
      EXPECT_EQ(record.x.size(), record.tokens.size() * module.cols) << module.name;
      if (module.expert >= 0) continue;
      EXPECT_EQ(record.tokens.size(), kTokens.ids.size()) << module.name;
    }
  }
  EXPECT_EQ(hook.records.size(), modules);
  EXPECT_EQ(hook.records.at("model.layers.1.self_attn.q_proj").x,
            hook.records.at("model.layers.1.self_attn.v_proj").x);
  EXPECT_EQ(hook.records.at("lm_head").channels, 64);
}

TEST(DecoderTest, ExpertsSeeTheirTokensOnly) {
  for (const ModelOnPaper& model : {Qwen3MoeModel(), MixtralModel()}) {
    const auto decoder = DecoderOf(model);
    RecordingHook hook;
    RunDecoder(*decoder, kTokens, &hook);
    for (int64_t layer = 0; layer < 2; ++layer) {
      const std::vector<LinearModule> modules = LinearModules(decoder->config(), layer);
      const auto& router = hook.records[modules[4].name];
      size_t rows = 0;
      for (size_t m = 5; m < modules.size(); m += 3) {
        const auto& gate = hook.records[modules[m].name];
        EXPECT_EQ(gate.tokens, hook.records[modules[m + 2].name].tokens);
        EXPECT_TRUE(std::ranges::is_sorted(gate.tokens));
        EXPECT_EQ(gate.routed, static_cast<int64_t>(gate.tokens.size()));
        for (size_t i = 0; i < gate.tokens.size(); ++i) {
          EXPECT_EQ(gate.row(i), router.row(gate.tokens[i]));
        }
        rows += gate.tokens.size();
      }
      EXPECT_EQ(rows, 2 * kTokens.ids.size());
    }
  }
}

TEST(DecoderTest, ForcedExpertsSeeEveryTokenAndOutputsStay) {
  const ModelOnPaper model = Qwen3MoeModel();
  RecordingHook routed, forced;
  const std::vector<float> expected = RunDecoder(*DecoderOf(model), kTokens, &routed);
  EXPECT_TRUE(SameBytes(
      expected, RunDecoder(*DecoderOf(model, {.force_all_experts = true}), kTokens, &forced)));
  for (auto& [name, record] : forced.records) {
    const auto& before = routed.records[name];
    EXPECT_EQ(record.routed, before.routed) << name;
    std::ranges::sort(record.tokens);
    std::vector<int64_t> all(kTokens.ids.size());
    for (size_t i = 0; i < all.size(); ++i) all[i] = static_cast<int64_t>(i);
    EXPECT_EQ(record.tokens, all) << name;
    // Those that were routed come first.
    EXPECT_TRUE(std::equal(before.x.begin(), before.x.end(), record.x.begin())) << name;
  }
}

// Multiplies the input of one module by a factor.
class ScalingHook : public RecordingHook {
 public:
  ScalingHook(std::string module, float factor) : module_(std::move(module)), factor_(factor) {}

  bool Changes(const std::string& module) const override { return module == module_; }
  absl::Status Change(const LinearInput& input, const std::string& module,
                      std::span<float> x) override {
    EXPECT_EQ(module, module_);
    EXPECT_EQ(static_cast<int64_t>(x.size()), input.x.size());
    for (float& value : x) value *= factor_;
    return absl::OkStatus();
  }

 private:
  std::string module_;
  float factor_;
};

TEST(DecoderTest, ChangedInputsReachTheirModuleAlone) {
  const ModelOnPaper model = LlamaModel();
  for (const char* module : {"model.layers.1.self_attn.v_proj", "model.layers.0.mlp.up_proj",
                             "model.layers.1.mlp.down_proj", "lm_head"}) {
    SCOPED_TRACE(module);
    ScalingHook hook(module, 2);
    const std::vector<float> changed = RunDecoder(*DecoderOf(model), kTokens, &hook);
    // A linear layer with twice the weights does the same.
    ModelOnPaper twice = model;
    testing::Tensor& weight = twice.at(std::string(module) + ".weight");
    for (size_t i = 0; i < weight.bytes.size(); i += 2) {
      uint16_t bits;
      std::memcpy(&bits, &weight.bytes[i], 2);
      if ((bits & 0x7FFF) >= 0x0080) bits += 0x0080;  // one binade up
      std::memcpy(&weight.bytes[i], &bits, 2);
    }
    EXPECT_TRUE(DifferencesBelow(1e-5, RunDecoder(*DecoderOf(twice), kTokens), changed));
    EXPECT_FALSE(DifferencesBelow(1e-5, RunDecoder(*DecoderOf(model), kTokens), changed));
  }
}

class FailingHook : public LinearHook {
 public:
  absl::Status Observe(const LinearInput& input) override {
    if (input.modules.front() != "model.layers.1.self_attn.o_proj") return absl::OkStatus();
    return absl::AbortedError("enough");
  }
};

TEST(DecoderTest, AFailedLayerLeavesNothingToGoOnWith) {
  const auto decoder = DecoderOf(LlamaModel());
  HiddenStates hidden = decoder->Embed(kTokens).value();
  FailingHook hook;
  ASSERT_TRUE(decoder->RunLayer(hidden, &hook).ok());
  EXPECT_TRUE(IsError(decoder->ObserveLayer(hidden, hook), absl::StatusCode::kAborted, "enough"));
  EXPECT_TRUE(IsError(decoder->RunLayer(hidden, &hook), absl::StatusCode::kAborted,
                      "layer 1: model.layers.1.self_attn.o_proj: enough"));
  EXPECT_TRUE(IsError(decoder->RunLayer(hidden), kPrecondition, "did not fail"));
  EXPECT_TRUE(IsError(decoder->Logits(hidden, {}), kPrecondition, "did not fail"));
}

TEST(DecoderTest, AHeadGivesAnyRows) {
  const auto decoder = DecoderOf(LlamaModel({.layers = 1}));
  HiddenStates hidden = decoder->Embed(kTokens).value();
  ASSERT_TRUE(decoder->RunLayer(hidden).ok());
  const std::vector<float> all = LogitsOf(*decoder, hidden);
  const auto head = decoder->LoadHead().value();
  for (const auto& [first, count] : {std::pair(50, 7), std::pair(0, 57), std::pair(9, 1)}) {
    EXPECT_TRUE(DifferencesBelow(1e-5, std::span(all).subspan(first * 48, count * 48),
                                 head->Logits(hidden, first, count).value()));
  }
  for (const auto& [first, count] :
       {std::pair<int64_t, int64_t>(57, 1), std::pair<int64_t, int64_t>(0, 0),
        std::pair<int64_t, int64_t>(-1, 2),
        std::pair<int64_t, int64_t>(1, std::numeric_limits<int64_t>::max())}) {
    EXPECT_TRUE(IsError(head->Logits(hidden, first, count), kInvalid, "of 57 tokens"));
  }
}

TEST(DecoderTest, ASinkCanStop) {
  const auto decoder = DecoderOf(LlamaModel({.layers = 1}), {.logit_rows = 10});
  HiddenStates hidden = decoder->Embed(kTokens).value();
  ASSERT_TRUE(decoder->RunLayer(hidden).ok());
  int calls = 0;
  const absl::Status status = decoder->Logits(hidden, [&](int64_t, std::span<const float>) {
    return ++calls == 2 ? absl::AbortedError("enough") : absl::OkStatus();
  });
  EXPECT_TRUE(IsError(status, absl::StatusCode::kAborted, "enough"));
  EXPECT_EQ(calls, 2);
}

// --- What is refused
// ------------------------------------------------------------------------------

TEST(DecoderTest, RefusesTokensOfNoVocabulary) {
  const auto decoder = DecoderOf(LlamaModel());
  const auto embed = [&](const TokenSet& tokens) { return decoder->Embed(tokens).status(); };
  EXPECT_TRUE(IsError(embed({}), kInvalid, "at least one sequence"));
  EXPECT_TRUE(IsError(embed({{1, 2}, {}}), kInvalid, "at least one sequence"));
  EXPECT_TRUE(IsError(embed({{1, 2}, {2, 0}}), kInvalid, "sequence 1: expected a length"));
  EXPECT_TRUE(IsError(embed({{1, 2}, {-2}}), kInvalid, "sequence 0: expected a length"));
  EXPECT_TRUE(IsError(embed({{1, 2}, {3}}), kInvalid, "got 3"));
  EXPECT_TRUE(IsError(embed({{1, 2}, {1}}), kInvalid, "add up to the 2 ids, got 1"));
  EXPECT_TRUE(
      IsError(embed({{1, 2}, {1, std::numeric_limits<int64_t>::max()}}), kInvalid, "sequence 1"));
  EXPECT_TRUE(IsError(embed({{1, 48}, {2}}), kInvalid, "id 1: expected one below 48"));
  EXPECT_TRUE(IsError(embed({{1, 0xFFFFFFFF}, {2}}), kInvalid, "got 4294967295"));
}

TEST(DecoderTest, NamesTensorsThatAreMissing) {
  for (const ModelOnPaper& whole : {LlamaModel(), Qwen3MoeModel()}) {
    for (const testing::Tensor& tensor : whole.tensors) {
      ModelOnPaper model = whole;
      model.Remove(tensor.name);
      EXPECT_TRUE(IsError(RunStatus(model), absl::StatusCode::kNotFound, tensor.name));
    }
  }
}

TEST(DecoderTest, NamesTensorsOfOtherShapes) {
  const ModelOnPaper whole = Qwen3MoeModel();
  for (const testing::Tensor& tensor : whole.tensors) {
    ModelOnPaper model = whole;
    std::vector<int64_t>& shape = model.at(tensor.name).shape;
    shape[0] += 1;
    EXPECT_TRUE(IsError(RunStatus(model), kDataLoss, tensor.name + ": expected the shape ["));
    shape[0] -= 1;
    shape.push_back(1);
    EXPECT_TRUE(IsError(RunStatus(model), kDataLoss, tensor.name + ": expected the shape ["));
    shape.pop_back();
    model.at(tensor.name).bytes.pop_back();
    EXPECT_TRUE(IsError(RunStatus(model), kDataLoss, tensor.name + ": expected "));
  }
  ModelOnPaper model = whole;
  model.at("model.norm.weight").dtype = DType::kI16;
  EXPECT_TRUE(IsError(RunStatus(model), kDataLoss, "model.norm.weight: expected BF16, F16 or F32"));
}

TEST(DecoderTest, NamesTensorsThatHoldNan) {
  for (const DType dtype : {DType::kBf16, DType::kF16, DType::kF32}) {
    const ModelOnPaper whole = LlamaModel({.dtype = dtype});
    for (const float bad :
         {std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::infinity()}) {
      for (const testing::Tensor& tensor : whole.tensors) {
        ModelOnPaper model = whole;
        model.Fill(tensor.name, [&](int64_t i) { return i == 37 || i == 60 ? bad : 0.5f; });
        EXPECT_TRUE(IsError(RunStatus(model), kPrecondition, tensor.name)) << tensor.name;
        EXPECT_TRUE(IsError(RunStatus(model), kPrecondition, "element 37")) << tensor.name;
      }
    }
  }
}

TEST(DecoderTest, NamesTheLayerThatOverflows) {
  ModelOnPaper model = LlamaModel({.dtype = DType::kF32});
  for (const char* name : {"up_proj", "down_proj", "gate_proj"}) {
    model.Fill(absl::StrCat("model.layers.1.mlp.", name, ".weight"), [](int64_t) { return 1e30f; });
  }
  EXPECT_TRUE(IsError(RunStatus(model), kPrecondition, "layer 1: expected finite hidden states"));
  ModelOnPaper routed = Qwen3MoeModel({.dtype = DType::kF32});
  routed.Fill("model.layers.0.post_attention_layernorm.weight", [](int64_t) { return 3e38f; });
  EXPECT_TRUE(IsError(RunStatus(routed), kPrecondition,
                      "layer 0: model.layers.0.mlp.gate: expected finite logits"));
}

TEST(DecoderTest, RefusesHiddenStatesOfAnotherRun) {
  const auto decoder = DecoderOf(LlamaModel());
  HiddenStates hidden = decoder->Embed(kTokens).value();
  EXPECT_TRUE(IsError(decoder->Logits(hidden, {}), kPrecondition,
                      "expected those behind the last of 2 layers, got those before layer 0"));
  hidden.set_next_layer(2);
  EXPECT_TRUE(IsError(decoder->RunLayer(hidden), kPrecondition, "before one of 2 layers"));
  HiddenStates narrow = HiddenStates::Create({3}, 32, DType::kF32).value();
  EXPECT_TRUE(IsError(decoder->RunLayer(narrow), kInvalid, "64 channels of F32"));
  HiddenStates bf16 = HiddenStates::Create({3}, 64, DType::kBf16).value();
  EXPECT_TRUE(IsError(decoder->RunLayer(bf16), kInvalid, "got 64 of BF16"));
}

TEST(DecoderTest, RefusesOptionsOfNoRun) {
  const ModelOnPaper model = LlamaModel();
  const DecoderConfig config = ReadDecoderConfig(model.config.dump()).value();
  const auto make = [&](const DecoderOptions& options) {
    return Decoder::Make(config, WeightsOf(model), options).status();
  };
  EXPECT_TRUE(IsError(make({.threads = -1}), kInvalid, "threads"));
  EXPECT_TRUE(IsError(make({.dtype = DType::kF16}), kInvalid, "dtype: expected F32 or BF16"));
  EXPECT_TRUE(IsError(make({.batch_tokens = 0}), kInvalid, "batch_tokens"));
  EXPECT_TRUE(IsError(make({.logit_rows = 0}), kInvalid, "logit_rows"));
}

TEST(DecoderTest, ReadsAFolder) {
  const TempDir dir;
  const ModelOnPaper model = LlamaModel({.shards = 3}, /*tied=*/true);
  testing::WriteModelFolder(dir.path("model"), model);
  const ModelFolder folder = ModelFolder::Open(dir.path("model")).value();
  const auto decoder =
      Decoder::Make(ReadDecoderConfig(folder.config_json()).value(), FolderWeights(folder)).value();
  EXPECT_TRUE(SameBytes(RunDecoder(*DecoderOf(model), kTokens), RunDecoder(*decoder, kTokens)));
}

// --- Memory
// ---------------------------------------------------------------------------------------

// What is allocated each time when a layer's first product is about to run.
class MemoryHook : public LinearHook {
 public:
  absl::Status Observe(const LinearInput& input) override {
    if (input.modules.front().ends_with("q_proj")) {
      const struct mallinfo2 info = mallinfo2();
      bytes.push_back(info.uordblks + info.hblkhd);
    }
    return absl::OkStatus();
  }

  std::vector<uint64_t> bytes;
};

TEST(DecoderTest, MemoryDoesNotGrowWithDepth) {
  if (kSanitized) GTEST_SKIP() << "sanitizers have an allocator of their own";
  const ModelOnPaper model = LlamaModel({.layers = 40, .hidden = 128, .intermediate = 512});
  const uint64_t layer_bytes = 2 * (3 * 128 * 512 + 3 * 128 * 128);
  const auto decoder = DecoderOf(model, {.threads = 1});
  MemoryHook hook;
  ASSERT_TRUE(RunStatus(*decoder, kTokens, &hook).ok());
  ASSERT_EQ(hook.bytes.size(), 40u);
  // The first layer also makes what the others share.
  const auto [least, most] = std::minmax_element(hook.bytes.begin() + 1, hook.bytes.end());
  EXPECT_LT(*most - *least, layer_bytes / 8);
}

}  // namespace
}  // namespace nibble
