// libFuzzer target: the input is a whole safetensors file.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "base/status.h"
#include "io/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view file(reinterpret_cast<const char*>(data), size);
  const auto json_bytes = nibble::ParseSafetensorsHeaderBytes(file.substr(0, 8), size);
  if (!json_bytes.ok()) return 0;
  NIBBLE_CHECK(*json_bytes <= size - 8);
  const uint64_t data_bytes = size - 8 - *json_bytes;
  const auto header = nibble::ParseSafetensorsHeader(file.substr(8, *json_bytes), data_bytes);
  if (!header.ok()) {
    NIBBLE_CHECK(header.status().code() == absl::StatusCode::kDataLoss);
    for (const char c : header.status().message()) NIBBLE_CHECK(c >= ' ' && c <= '~');
    return 0;
  }
  uint64_t covered = 0;
  for (const nibble::TensorInfo& tensor : header->tensors) {
    NIBBLE_CHECK(!tensor.name.empty());
    NIBBLE_CHECK(tensor.begin == covered && tensor.begin <= tensor.end);
    const auto count = nibble::ElementCount(tensor.shape);
    NIBBLE_CHECK(count.has_value());
    NIBBLE_CHECK(static_cast<unsigned __int128>(*count) * nibble::DTypeBytes(tensor.dtype) ==
                 tensor.bytes());
    covered = tensor.end;
  }
  NIBBLE_CHECK(covered == data_bytes);
  return 0;
}
