// Hooks of a decoder on a GPU: those that read its memory see and do what those on the host do.
#include "model/decoder.h"

#include <cuda_runtime_api.h>

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "calib/input_collector.h"
#include "engine/input_observer.h"
#include "engine/quantized_inputs.h"
#include "gtest/gtest.h"
#include "io/model_folder.h"
#include "tests/testing/bytes.h"
#include "tests/testing/cuda.h"
#include "tests/testing/decoders.h"

namespace nibble {
namespace {

using ::nibble::testing::CudaTest;
using ::nibble::testing::RunDecoder;
using ::nibble::testing::SameBytes;
using ::nibble::testing::TokensOf;

// Collects on the host, by the CPU, what a decoder copies there.
class HostCollector final : public LinearHook {
 public:
  explicit HostCollector(Backend& cpu) : cpu_(cpu) {}
  absl::Status Observe(const LinearInput& input) override {
    EXPECT_EQ(input.stream, nullptr);
    EXPECT_EQ(input.x.dtype, DType::kF32);
    if (input.x.cols % 16 != 0) return absl::OkStatus();
    for (const std::string& module : input.modules) {
      const absl::Status status = collectors[module].Collect(input.x, cpu_);
      if (!status.ok()) return status;
    }
    return absl::OkStatus();
  }

  std::map<std::string, InputCollector> collectors;

 private:
  Backend& cpu_;
};

std::string PathOf(const std::string& name) {
  return absl::StrCat(NIBBLE_SOURCE_DIR, "/tests/golden/decoders/", name);
}

class CudaDecoderTest : public CudaTest, public ::testing::WithParamInterface<std::string> {
 protected:
  void SetUp() override {
    CudaTest::SetUp();
    if (IsSkipped()) return;
    const auto decoder = Make(DType::kF32);
    if (absl::IsUnavailable(decoder.status())) GTEST_SKIP() << decoder.status().message();
    ASSERT_TRUE(decoder.ok()) << decoder.status();
  }

  absl::StatusOr<std::unique_ptr<Decoder>> Make(DType dtype, int64_t batch_tokens = 40) const {
    return Decoder::Make(config_, FolderWeights(folder_),
                         {.dtype = dtype, .batch_tokens = batch_tokens, .cuda_device = 0});
  }

  const ModelFolder folder_ = ModelFolder::Open(PathOf(GetParam())).value();
  const DecoderConfig config_ = ReadDecoderConfig(folder_.config_json()).value();
  const TokenSet tokens_ = TokensOf({33, 1, 20, 70, 9}, config_.vocabulary);
};
INSTANTIATE_TEST_SUITE_P(Decoders, CudaDecoderTest,
                         ::testing::Values("qwen3_yarn", "qwen3_moe_sparse_step"),
                         [](const auto& info) { return info.param; });

TEST_P(CudaDecoderTest, ObserversInItsMemoryGetTheBitsOfThoseOnTheHost) {
  for (const DType dtype : {DType::kF32, DType::kBf16}) {
    const auto decoder = Make(dtype).value();
    HostCollector host(*cpu_);
    const std::vector<float> logits = RunDecoder(*decoder, tokens_, &host);
    ASSERT_FALSE(host.collectors.empty());
    std::map<std::string, bool> wanted;
    for (const auto& [module, collector] : host.collectors) wanted[module] = true;
    wanted["nobody"] = true;
    InputObserver observer(wanted, *cuda_);
    EXPECT_TRUE(SameBytes(logits, RunDecoder(*decoder, tokens_, &observer)));
    const auto states = observer.States();
    ASSERT_TRUE(states.ok()) << states.status();
    for (const auto& [module, collector] : host.collectors) {
      EXPECT_TRUE(states->at(module) == collector) << module;
    }
    EXPECT_EQ(states->at("nobody").tokens(), 0);
  }
}

TEST_P(CudaDecoderTest, ChangesInItsMemoryAreThoseOnTheHost) {
  for (const InputQuantization how : {InputQuantization::kPerTensor, InputQuantization::kPerToken,
                                      InputQuantization::kFourOverSix}) {
    std::vector<float> logits[2];
    for (const bool gpu : {false, true}) {
      QuantizedInputs inputs(gpu ? *cuda_ : *cpu_);
      for (int64_t layer = 0; layer < config_.layers; ++layer) {
        for (const LinearModule& module : LinearModules(config_, layer)) {
          if (module.cols % 16 == 0) inputs.Add(module.name, how, 0.002f);
        }
      }
      EXPECT_EQ(inputs.ReadsDeviceMemory(), gpu);
      logits[gpu] = RunDecoder(*Make(DType::kBf16).value(), tokens_, &inputs);
    }
    EXPECT_TRUE(SameBytes(logits[0], logits[1]));
    EXPECT_FALSE(SameBytes(logits[0], RunDecoder(*Make(DType::kBf16).value(), tokens_)));
  }
}

// Batches overlap with the copies of their neighbours.
TEST_P(CudaDecoderTest, ManyBatchesGiveTheSameBytesEachTime) {
  for (const int64_t batch_tokens : {1, 40, 1000}) {
    const auto decoder = Make(DType::kBf16, batch_tokens).value();
    const std::vector<float> first = RunDecoder(*decoder, tokens_);
    for (int i = 0; i < 3; ++i) EXPECT_TRUE(SameBytes(first, RunDecoder(*decoder, tokens_)));
  }
}

}  // namespace
}  // namespace nibble
