#include "engine/runnable_model.h"

#include <cmath>
#include <new>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "base/status.h"
#include "base/tensor_view.h"
#include "base/text.h"
#include "engine/export.h"
#include "quant/numerics/scale_rules.h"

namespace nibble {
namespace {

constexpr std::string_view kWeightPacked = ".weight_packed";
constexpr int64_t kRowsAtOnce = 16;

}  // namespace

absl::StatusOr<std::unique_ptr<RunnableModel>> RunnableModel::Open(const std::string& path,
                                                                   int threads) {
  NIBBLE_ASSIGN_OR_RETURN(ModelFolder folder, ModelFolder::Open(path));
  NIBBLE_ASSIGN_OR_RETURN(DecoderConfig config, ReadDecoderConfig(folder));
  std::unique_ptr<RunnableModel> model(new RunnableModel(std::move(folder), threads));
  model->config_ = std::move(config);
  NIBBLE_RETURN_IF_ERROR(model->FindPacked());
  return model;
}

absl::Status RunnableModel::FindPacked() {
  double bytes = 0, weights = 0;
  for (const FolderTensor& tensor : folder_.tensors()) {
    const std::string_view name = tensor.info->name;
    const double elements = static_cast<double>(ElementCount(tensor.info->shape).value_or(0));
    bytes += static_cast<double>(tensor.info->bytes());
    if (name.ends_with(kWeightPacked)) {
      const std::string module(name.substr(0, name.size() - kWeightPacked.size()));
      NIBBLE_RETURN_IF_ERROR(AddPacked(module, tensor, /*modelopt=*/false));
      weights += 2 * elements;
    } else if (name.ends_with(kWeight) && tensor.info->dtype == DType::kU8) {
      const std::string module(name.substr(0, name.size() - kWeight.size()));
      NIBBLE_RETURN_IF_ERROR(AddPacked(module, tensor, /*modelopt=*/true));
      weights += 2 * elements;
    } else if (!name.ends_with("_scale") && !name.ends_with("_scale_2")) {
      weights += elements;
    }
  }
  bits_per_weight_ = weights == 0 ? 0 : 8 * bytes / weights;
  return absl::OkStatus();
}

absl::Status RunnableModel::AddPacked(const std::string& module, const FolderTensor& codes,
                                      bool modelopt) {
  const auto wrong = [&](const std::string& name, const std::string& expected,
                         const FolderTensor* got) {
    return absl::DataLossError(absl::StrCat(
        Printable(folder_.path()), ": tensor ", Quoted(name), ": expected ", expected, ", got ",
        got == nullptr ? "none" : TypeName(got->info->dtype, got->info->shape)));
  };
  const std::vector<int64_t>& shape = codes.info->shape;
  if (codes.info->dtype != DType::kU8 || shape.size() != 2 || shape[1] % (kBlockSize / 2) != 0) {
    return wrong(codes.info->name, "U8 of two dimensions, two codes a byte and blocks of 16",
                 &codes);
  }
  Packed packed;
  packed.codes = &codes;
  const std::string scales = module + ".weight_scale";
  packed.scales = folder_.Find(scales);
  const std::vector<int64_t> blocks = {shape[0], shape[1] / (kBlockSize / 2)};
  if (packed.scales == nullptr || packed.scales->info->dtype != DType::kF8E4M3 ||
      packed.scales->info->shape != blocks) {
    return wrong(scales, absl::StrCat("F8_E4M3 ", ShapeName(blocks)), packed.scales);
  }
  NIBBLE_ASSIGN_OR_RETURN(
      packed.global_scale,
      ReadScale(module + (modelopt ? ".weight_scale_2" : ".weight_global_scale"), modelopt));
  const std::string input = module + (modelopt ? ".input_scale" : ".input_global_scale");
  std::optional<float>& input_scale = input_scales_[module];
  if (folder_.Find(input) != nullptr) {
    NIBBLE_ASSIGN_OR_RETURN(input_scale, ReadScale(input, modelopt));
  }
  packed_[module + std::string(kWeight)] = packed;
  return absl::OkStatus();
}

// As a multiplier; compressed-tensors stores divisors.
absl::StatusOr<float> RunnableModel::ReadScale(const std::string& name, bool modelopt) const {
  const FolderTensor* tensor = folder_.Find(name);
  const std::string place = absl::StrCat(Printable(folder_.path()), ": tensor ", Quoted(name));
  if (tensor == nullptr || tensor->info->dtype != DType::kF32 ||
      tensor->info->bytes() != sizeof(float)) {
    return absl::DataLossError(absl::StrCat(
        place, ": expected one F32, got ",
        tensor == nullptr ? "no such tensor" : TypeName(tensor->info->dtype, tensor->info->shape)));
  }
  float stored = 0;
  NIBBLE_RETURN_IF_ERROR(
      folder_.ReaderOf(*tensor).Read(*tensor->info, std::as_writable_bytes(std::span(&stored, 1))));
  const float multiplier = modelopt ? stored : DivRn(1.0f, stored);
  if (!(stored > 0) || !std::isnormal(stored) || !std::isnormal(multiplier)) {
    return absl::DataLossError(
        absl::StrCat(place, ": expected a positive, normal number, got ", stored));
  }
  return multiplier;
}

absl::StatusOr<HostTensor> RunnableModel::Dequantized(const Packed& packed) const {
  const int64_t rows = packed.codes->info->shape[0], row_bytes = packed.codes->info->shape[1];
  const int64_t cols = 2 * row_bytes, row_blocks = cols / kBlockSize;
  NIBBLE_ASSIGN_OR_RETURN(const std::vector<std::byte> codes,
                          folder_.ReaderOf(*packed.codes).ReadAll(*packed.codes->info));
  NIBBLE_ASSIGN_OR_RETURN(const std::vector<std::byte> scales,
                          folder_.ReaderOf(*packed.scales).ReadAll(*packed.scales->info));
  HostTensor result{DType::kF32, {rows, cols}, {}};
  try {
    result.bytes.resize(static_cast<size_t>(rows * cols) * sizeof(float));
  } catch (const std::bad_alloc&) {
    return absl::ResourceExhaustedError(
        absl::StrCat("expected memory for ", rows * cols, " values, got none"));
  }
  float* out = reinterpret_cast<float*>(result.bytes.data());
  pool_.ParallelFor(rows, kRowsAtOnce, [&](int64_t first, int64_t end) {
    for (int64_t block = first * row_blocks; block < end * row_blocks; ++block) {
      const uint8_t scale = std::to_integer<uint8_t>(scales[block]);
      for (int64_t i = block * kBlockSize; i < (block + 1) * kBlockSize; i += 2) {
        const uint8_t pair = std::to_integer<uint8_t>(codes[i / 2]);
        out[i] = Dequantize(pair & 15, scale, packed.global_scale);
        out[i + 1] = Dequantize(pair >> 4, scale, packed.global_scale);
      }
    }
  });
  return result;
}

WeightSource RunnableModel::weights() const {
  return [this,
          stored = FolderWeights(folder_)](const std::string& name) -> absl::StatusOr<HostTensor> {
    const auto packed = packed_.find(name);
    return packed == packed_.end() ? stored(name) : Dequantized(packed->second);
  };
}

}  // namespace nibble
