// The reader of a decoder's configuration: no input may crash it, and what it accepts has sizes
// that can be multiplied.
#include <cstddef>
#include <cstdint>
#include <string>

#include "base/status.h"
#include "model/decoder_config.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto config =
      nibble::ReadDecoderConfig(std::string(reinterpret_cast<const char*>(data), size));
  if (!config.ok()) {
    const absl::StatusCode code = config.status().code();
    NIBBLE_CHECK(code == absl::StatusCode::kDataLoss || code == absl::StatusCode::kUnimplemented);
    for (const char c : config.status().message()) NIBBLE_CHECK(c >= ' ' && c <= '~');
    return 0;
  }
  NIBBLE_CHECK(config->layers >= 1 && config->heads % config->kv_heads == 0);
  NIBBLE_CHECK(static_cast<int64_t>(config->window.size()) == config->layers);
  NIBBLE_CHECK(static_cast<int64_t>(config->has_experts.size()) == config->layers);
  for (const nibble::LinearModule& module : nibble::LinearModules(*config, config->layers - 1)) {
    NIBBLE_CHECK(module.rows >= 1 && module.cols >= 1 && module.rows <= INT64_MAX / module.cols);
  }
  return 0;
}
