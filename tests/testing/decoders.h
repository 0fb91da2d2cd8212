// Running decoders in tests.
#ifndef NIBBLE_TESTS_TESTING_DECODERS_H_
#define NIBBLE_TESTS_TESTING_DECODERS_H_

#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "model/decoder.h"
#include "tests/testing/model_folders.h"

namespace nibble::testing {

// The tensors of a model that was made up.
inline WeightSource WeightsOf(const ModelOnPaper& model) {
  const auto tensors = std::make_shared<const std::vector<Tensor>>(model.tensors);
  return [tensors](const std::string& name) -> absl::StatusOr<HostTensor> {
    for (const Tensor& tensor : *tensors) {
      if (tensor.name != name) continue;
      return HostTensor{tensor.dtype, tensor.shape, {tensor.bytes.begin(), tensor.bytes.end()}};
    }
    return absl::NotFoundError("expected a tensor of that name, got none");
  };
}

inline std::unique_ptr<Decoder> DecoderOf(const ModelOnPaper& model,
                                          const DecoderOptions& options = {}) {
  return Decoder::Make(ReadDecoderConfig(model.config.dump()).value(), WeightsOf(model), options)
      .value();
}

// Made-up ids of sequences with these lengths.
inline TokenSet TokensOf(std::vector<int64_t> lengths, uint32_t vocabulary) {
  TokenSet tokens{{}, std::move(lengths)};
  uint32_t state = 1;
  for (const int64_t length : tokens.lengths) {
    for (int64_t i = 0; i < length; ++i) {
      state = state * 1664525u + 1013904223u;
      tokens.ids.push_back((state >> 8) % vocabulary);
    }
  }
  return tokens;
}

// All logits behind hidden states that the last layer wrote.
inline std::vector<float> LogitsOf(Decoder& decoder, const HiddenStates& hidden,
                                   LinearHook* hook = nullptr) {
  std::vector<float> all;
  const absl::Status status = decoder.Logits(
      hidden,
      [&](int64_t first, std::span<const float> logits) {
        EXPECT_EQ(first * decoder.config().vocabulary, static_cast<int64_t>(all.size()));
        all.insert(all.end(), logits.begin(), logits.end());
        return absl::OkStatus();
      },
      hook);
  EXPECT_TRUE(status.ok()) << status;
  return all;
}

inline std::vector<float> RunDecoder(Decoder& decoder, const TokenSet& tokens,
                                     LinearHook* hook = nullptr) {
  absl::StatusOr<HiddenStates> hidden = decoder.Embed(tokens);
  EXPECT_TRUE(hidden.ok()) << hidden.status();
  if (!hidden.ok()) return {};
  while (hidden->next_layer() < decoder.config().layers) {
    const absl::Status status = decoder.RunLayer(*hidden, hook);
    EXPECT_TRUE(status.ok()) << status;
    if (!status.ok()) return {};
  }
  return LogitsOf(decoder, *hidden, hook);
}

// Everything that linear layers read, by module.
class RecordingHook : public LinearHook {
 public:
  struct Record {
    int64_t channels = 0;
    std::vector<float> x;
    std::vector<int64_t> tokens;
    int64_t calls = 0, routed = 0;  // rows that were routed

    std::vector<float> row(int64_t i) const {
      return {x.begin() + i * channels, x.begin() + (i + 1) * channels};
    }
    friend bool operator==(const Record&, const Record&) = default;
  };

  absl::Status Observe(const LinearInput& input) override {
    const float* values = static_cast<const float*>(input.x.data);
    EXPECT_EQ(input.x.dtype, DType::kF32);
    EXPECT_EQ(input.x.rows, static_cast<int64_t>(input.tokens.size()));
    for (const std::string& module : input.modules) {
      Record& record = records[module];
      record.channels = input.x.cols;
      record.x.insert(record.x.end(), values, values + input.x.size());
      record.tokens.insert(record.tokens.end(), input.tokens.begin(), input.tokens.end());
      record.calls += 1;
      record.routed += input.routed ? input.x.rows : 0;
    }
    return absl::OkStatus();
  }

  std::map<std::string, Record> records;
};

}  // namespace nibble::testing

#endif  // NIBBLE_TESTS_TESTING_DECODERS_H_
