#include "engine/inspect.h"

#include <algorithm>
#include <filesystem>

#include "absl/strings/str_format.h"
#include "base/status.h"
#include "base/text.h"
#include "engine/tensor_ops.h"
#include "nlohmann/json.hpp"
#include "quant/numerics/e4m3.h"

namespace nibble {
namespace {

// How the codes of a quantized tensor and their scales are named.
struct FormatNames {
  const char* format;
  const char* codes;         // suffix of the tensor of codes
  const char* scale;         // suffix of its block scales
  const char* global_scale;  // suffix of its global scale
};
constexpr FormatNames kFormats[] = {
    {"modelopt", ".weight", ".weight_scale", ".weight_scale_2"},
    {"compressed-tensors", ".weight_packed", ".weight_scale", ".weight_global_scale"},
};

std::string Lookup(const std::map<std::string, std::string>& map, const char* key) {
  const auto it = map.find(key);
  return it == map.end() ? "" : it->second;
}

// `padding` of the bytes are zeros that stand for no block.
absl::Status ReadScaleRange(const SafetensorsReader& reader, const TensorInfo& scale,
                            int64_t padding, QuantizedInfo& info) {
  constexpr uint64_t kChunk = 1 << 20;
  std::vector<std::byte> bytes(std::min(scale.bytes(), kChunk));
  uint8_t smallest = 0x7F, largest = 0;
  for (uint64_t at = 0; at < scale.bytes(); at += kChunk) {
    const std::span<std::byte> part(bytes.data(), std::min(kChunk, scale.bytes() - at));
    NIBBLE_RETURN_IF_ERROR(reader.ReadRange(scale, at, part));
    for (std::byte b : part) {
      const uint8_t code = std::to_integer<uint8_t>(b);
      if (code > kE4m3Codes) {
        ++info.scale_invalid;
        continue;
      }
      info.scale_zero += code == 0;
      if (code != 0) smallest = std::min(smallest, code);
      largest = std::max(largest, code);
    }
  }
  info.scale_zero -= std::min(padding, info.scale_zero);
  if (info.scale_zero > 0) smallest = 0;
  if (smallest <= largest) {
    info.scale_min = E4m3Decode(smallest);
    info.scale_max = E4m3Decode(largest);
  }
  return absl::OkStatus();
}

// Whether `codes` is the packed part of a quantized tensor; says where its scales are.
const TensorInfo* FindScale(const SafetensorsReader& reader, const TensorInfo& codes,
                            QuantizedInfo& info) {
  const auto scale_named = [&](const std::string& name) -> const TensorInfo* {
    const TensorInfo* scale = reader.Find(name);
    return scale != nullptr && scale->dtype == DType::kF8E4M3 ? scale : nullptr;
  };
  if (codes.dtype != DType::kU8) return nullptr;
  const std::string format = Lookup(reader.metadata(), kFormatKey);
  if (codes.name == "packed" && (format == kPackedFormat || format == kSweepFormat)) {
    info.format = "nibble";
    info.scheme = Lookup(reader.metadata(), kSchemeKey);
    info.rule = Lookup(reader.metadata(), kRuleKey);
    return scale_named("scale");
  }
  for (const FormatNames& names : kFormats) {
    if (!codes.name.ends_with(names.codes)) continue;
    const std::string module =
        codes.name.substr(0, codes.name.size() - std::string_view(names.codes).size());
    const TensorInfo* scale = scale_named(module + names.scale);
    if (scale == nullptr || reader.Find(module + names.global_scale) == nullptr) continue;
    info.format = names.format;
    info.scheme = std::string(NameOf(Scheme::kPerTensor));
    info.rule = std::string(NameOf(Rule::kCheckpoint));
    return scale;
  }
  return nullptr;
}

absl::StatusOr<InspectedFile> InspectFile(const std::string& path) {
  NIBBLE_ASSIGN_OR_RETURN(const SafetensorsReader reader, SafetensorsReader::Open(path));
  InspectedFile file = {path, reader.metadata(), {}};
  for (const TensorInfo& info : reader.tensors()) {
    InspectedTensor tensor = {info, std::nullopt};
    QuantizedInfo quantized;
    if (const TensorInfo* scale = FindScale(reader, info, quantized)) {
      const bool swizzled =
          quantized.format == "nibble" && Lookup(reader.metadata(), kSwizzledKey) == "true";
      const int64_t blocks = static_cast<int64_t>(info.bytes() / (kBlockSize / 2));
      const int64_t padding = swizzled ? static_cast<int64_t>(scale->bytes()) - blocks : 0;
      NIBBLE_RETURN_IF_ERROR(
          ReadScaleRange(reader, *scale, std::max<int64_t>(0, padding), quantized));
      tensor.quantized = std::move(quantized);
    }
    file.tensors.push_back(std::move(tensor));
  }
  std::sort(file.tensors.begin(), file.tensors.end(),
            [](const auto& a, const auto& b) { return a.info.name < b.info.name; });
  return file;
}

}  // namespace

absl::StatusOr<std::vector<InspectedFile>> Inspect(const std::string& path) {
  namespace fs = std::filesystem;
  std::vector<std::string> paths;
  std::error_code error;
  if (fs::is_directory(path, error)) {
    for (fs::directory_iterator it(path, error), end; !error && it != end; it.increment(error)) {
      if (it->path().extension() == ".safetensors") paths.push_back(it->path().string());
    }
    if (error) return absl::UnknownError(absl::StrCat(path, ": ", error.message()));
    if (paths.empty()) {
      return absl::NotFoundError(
          absl::StrCat(path, ": expected a folder with *.safetensors files, got none"));
    }
    std::sort(paths.begin(), paths.end());
  } else {
    paths.push_back(path);
  }
  std::vector<InspectedFile> files;
  for (const std::string& p : paths) {
    NIBBLE_ASSIGN_OR_RETURN(InspectedFile file, InspectFile(p));
    files.push_back(std::move(file));
  }
  return files;
}

std::string InspectionAsText(const std::vector<InspectedFile>& files) {
  std::string text;
  uint64_t total = 0;
  size_t count = 0;
  for (const InspectedFile& file : files) {
    absl::StrAppend(&text, Printable(file.path), "\n");
    size_t name_width = 4, shape_width = 5;
    for (const InspectedTensor& t : file.tensors) {
      name_width = std::max(name_width, Printable(t.info.name).size());
      shape_width = std::max(shape_width, ShapeName(t.info.shape).size());
    }
    name_width = std::min<size_t>(name_width, 80);
    absl::StrAppendFormat(&text, "  %-*s  %-8s %-*s %14s\n", name_width, "name", "dtype",
                          shape_width, "shape", "bytes");
    for (const InspectedTensor& t : file.tensors) {
      absl::StrAppendFormat(&text, "  %-*s  %-8s %-*s %14d\n", name_width, Printable(t.info.name),
                            ToAbsl(DTypeName(t.info.dtype)), shape_width, ShapeName(t.info.shape),
                            t.info.bytes());
      if (t.quantized) {
        const QuantizedInfo& q = *t.quantized;
        absl::StrAppendFormat(&text, "    NVFP4 %s, %s, %s rule, block scales %g .. %g",
                              Printable(q.format), Printable(q.scheme), Printable(q.rule),
                              q.scale_min, q.scale_max);
        if (q.scale_zero > 0) absl::StrAppend(&text, ", ", q.scale_zero, " zero");
        if (q.scale_invalid > 0) absl::StrAppend(&text, ", ", q.scale_invalid, " NaN or negative");
        absl::StrAppend(&text, "\n");
      }
      total += t.info.bytes();
      ++count;
    }
    for (const auto& [key, value] : file.metadata) {
      absl::StrAppend(&text, "  metadata ", Printable(key), ": ",
                      Printable(value.size() > 200 ? value.substr(0, 200) + "..." : value), "\n");
    }
  }
  absl::StrAppendFormat(&text, "%d tensors, %d bytes in %d file%s\n", count, total, files.size(),
                        files.size() == 1 ? "" : "s");
  return text;
}

std::string InspectionAsJson(const std::vector<InspectedFile>& files) {
  nlohmann::ordered_json root;
  root["files"] = nlohmann::ordered_json::array();
  uint64_t total = 0;
  for (const InspectedFile& file : files) {
    nlohmann::ordered_json f = {{"path", file.path}, {"metadata", file.metadata}};
    f["tensors"] = nlohmann::ordered_json::array();
    for (const InspectedTensor& t : file.tensors) {
      nlohmann::ordered_json tensor = {{"name", t.info.name},
                                       {"dtype", DTypeName(t.info.dtype)},
                                       {"shape", t.info.shape},
                                       {"bytes", t.info.bytes()}};
      if (t.quantized) {
        const QuantizedInfo& q = *t.quantized;
        tensor["quantized"] = {{"format", q.format},
                               {"scheme", q.scheme},
                               {"rule", q.rule},
                               {"scale_min", q.scale_min},
                               {"scale_max", q.scale_max},
                               {"scale_zero", q.scale_zero},
                               {"scale_invalid", q.scale_invalid}};
      }
      total += t.info.bytes();
      f["tensors"].push_back(std::move(tensor));
    }
    root["files"].push_back(std::move(f));
  }
  root["total_bytes"] = total;
  // A path need not be UTF-8.
  return root.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
}

}  // namespace nibble
