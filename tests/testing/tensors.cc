#include "tests/testing/tensors.h"

#include <utility>

#include "engine/synthetic.h"
#include "gtest/gtest.h"

namespace nibble::testing {

Tensor TensorOf(const std::string& name, DType dtype, const Shape& shape,
                const std::vector<float>& values) {
  EXPECT_EQ(static_cast<int64_t>(values.size()), ElementCount(shape).value()) << name;
  return {name, dtype, shape, ToBytes(values, dtype)};
}

Tensor NormalTensor(const std::string& name, DType dtype, const Shape& shape) {
  return TensorOf(name, dtype, shape,
                  SyntheticValues(Distribution::kNormal, ElementCount(shape).value(), 1));
}

Tensor ByteTensor(const std::string& name, DType dtype, const Shape& shape,
                  const std::vector<uint8_t>& values) {
  Tensor tensor = {name, dtype, shape, std::vector<std::byte>(values.size())};
  if (!values.empty()) std::memcpy(tensor.bytes.data(), values.data(), values.size());
  return tensor;
}

void Write(const std::string& path, const std::vector<Tensor>& tensors, const Metadata& metadata) {
  std::vector<TensorToWrite> list;
  for (const Tensor& t : tensors) list.push_back({t.name, t.dtype, t.shape, t.bytes});
  const absl::Status status = WriteSafetensors(path, list, metadata);
  EXPECT_TRUE(status.ok()) << status;
}

void Write(const std::string& path, const Contents& contents) {
  std::vector<Tensor> list;
  for (const auto& [name, tensor] : contents.tensors) list.push_back(tensor);
  Write(path, list, contents.metadata);
}

Contents Read(const std::string& path) {
  Contents contents;
  const absl::StatusOr<SafetensorsReader> reader = SafetensorsReader::Open(path);
  EXPECT_TRUE(reader.ok()) << reader.status();
  if (!reader.ok()) return contents;
  contents.metadata = reader->metadata();
  for (const TensorInfo& info : reader->tensors()) {
    contents.tensors[info.name] = {info.name, info.dtype, info.shape,
                                   reader->ReadAll(info).value()};
  }
  return contents;
}

Tensor ReadTensor(const std::string& path, const std::string& name) {
  Contents contents = Read(path);
  EXPECT_EQ(contents.tensors.count(name), 1u) << path << " has no " << name;
  return std::move(contents.tensors[name]);
}

}  // namespace nibble::testing
