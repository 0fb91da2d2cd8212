// What is built in: the picks of kernels/tuning/*.tuning and the build ids that they are keyed by.
#ifndef NIBBLE_KERNELS_TUNING_SHIPPED_H_
#define NIBBLE_KERNELS_TUNING_SHIPPED_H_

#include <span>
#include <string_view>

#include "absl/status/statusor.h"
#include "kernels/tuning/store.h"

namespace nibble {

// 16 hexadecimal digits over the sources of the operation's kernels, without comments and spaces:
// those .cu files under kernels/cuda that include <op>_config.h, and all that they include. The
// same wherever those sources are built. Empty for an operation without kernels.
std::string_view TuningBuildId(std::string_view op);

struct ShippedFile {
  std::string_view path;  // in the source tree
  std::string_view text;
};
std::span<const ShippedFile> ShippedTuningFiles();

// The picks of all of them.
const TuningStore& ShippedTuning();

}  // namespace nibble

#endif  // NIBBLE_KERNELS_TUNING_SHIPPED_H_
