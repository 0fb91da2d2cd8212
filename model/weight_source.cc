#include "model/weight_source.h"

#include <cstring>
#include <new>

#include "base/status.h"
#include "base/text.h"
#include "quant/numerics/float_bits.h"

namespace nibble {

void WidenValues(const void* data, DType dtype, int64_t first, int64_t count, float* out) {
  const uint16_t* halves = static_cast<const uint16_t*>(data) + first;
  switch (dtype) {
    case DType::kBf16:
      for (int64_t i = 0; i < count; ++i) out[i] = FloatFromBf16(halves[i]);
      return;
    case DType::kF16:
      for (int64_t i = 0; i < count; ++i) out[i] = FloatFromF16(halves[i]);
      return;
    default:
      NIBBLE_CHECK(dtype == DType::kF32);
      std::memcpy(out, static_cast<const float*>(data) + first, count * sizeof(float));
  }
}

WeightSource FolderWeights(const ModelFolder& folder) {
  return [&folder](const std::string& name) -> absl::StatusOr<HostTensor> {
    const FolderTensor* tensor = folder.Find(name);
    if (tensor == nullptr) {
      return absl::NotFoundError(
          absl::StrCat(Printable(folder.path()), ": expected a tensor of that name, got none"));
    }
    HostTensor result{tensor->info->dtype, tensor->info->shape, {}};
    try {
      result.bytes.resize(tensor->info->bytes());
    } catch (const std::bad_alloc&) {
      return absl::ResourceExhaustedError(
          absl::StrCat("expected memory for ", tensor->info->bytes(), " bytes, got none"));
    }
    NIBBLE_RETURN_IF_ERROR(folder.ReaderOf(*tensor).Read(*tensor->info, result.bytes));
    return result;
  };
}

}  // namespace nibble
