// libFuzzer target: the input is a tokenizer.json.
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "model/text/tokenizer.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view json(reinterpret_cast<const char*>(data), size);
  const auto tokenizer = nibble::ParseTokenizerJson(json);
  if (!tokenizer.ok()) {
    const absl::StatusCode code = tokenizer.status().code();
    NIBBLE_CHECK(code == absl::StatusCode::kDataLoss || code == absl::StatusCode::kUnimplemented ||
                 code == absl::StatusCode::kInvalidArgument ||
                 code == absl::StatusCode::kResourceExhausted);
    for (const char c : tokenizer.status().message()) NIBBLE_CHECK(c >= ' ' && c <= '~');
    return 0;
  }
  for (const std::string_view text :
       {std::string_view(), std::string_view("I'll say  \u00e9e\u0301\u0323 <s>12345\r\n\n x"),
        std::string_view("\u6f22\U0001f600\u3000 a\0b aaaaaaaaaa", 25), json}) {
    std::vector<uint32_t> ids;
    const absl::Status status = (*tokenizer)->Encode(text, ids);
    NIBBLE_CHECK(status.ok() || status.code() == absl::StatusCode::kFailedPrecondition ||
                 status.code() == absl::StatusCode::kResourceExhausted);
    for (const uint32_t id : ids) NIBBLE_CHECK(id < (*tokenizer)->vocabulary());
  }
  return 0;
}
