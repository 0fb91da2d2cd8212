// Tensors of safetensors files, made and read back whole.
#ifndef NIBBLE_TESTS_TESTING_TENSORS_H_
#define NIBBLE_TESTS_TESTING_TENSORS_H_

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "engine/synthetic.h"
#include "gtest/gtest.h"
#include "io/safetensors.h"

namespace nibble::testing {

using Metadata = std::map<std::string, std::string>;
using Shape = std::vector<int64_t>;

struct Tensor {
  std::string name;
  DType dtype = DType::kU8;
  Shape shape;
  std::vector<std::byte> bytes;

  template <typename T>
  std::vector<T> as() const {
    std::vector<T> values(bytes.size() / sizeof(T));
    if (!values.empty()) std::memcpy(values.data(), bytes.data(), bytes.size());
    return values;
  }
  MatrixView view() const { return AsQuantizableMatrix(bytes.data(), dtype, shape).value(); }
};

// bf16, fp16 or fp32; as many values as the shape says.
inline Tensor TensorOf(const std::string& name, DType dtype, const Shape& shape,
                       const std::vector<float>& values) {
  EXPECT_EQ(static_cast<int64_t>(values.size()), ElementCount(shape).value()) << name;
  return {name, dtype, shape, ToBytes(values, dtype)};
}

inline Tensor NormalTensor(const std::string& name, DType dtype, const Shape& shape) {
  return TensorOf(name, dtype, shape,
                  SyntheticValues(Distribution::kNormal, ElementCount(shape).value(), 1));
}

// One-byte elements of any type.
inline Tensor ByteTensor(const std::string& name, DType dtype, const Shape& shape,
                         const std::vector<uint8_t>& values) {
  Tensor tensor = {name, dtype, shape, std::vector<std::byte>(values.size())};
  if (!values.empty()) std::memcpy(tensor.bytes.data(), values.data(), values.size());
  return tensor;
}

struct Contents {
  std::map<std::string, Tensor> tensors;
  Metadata metadata;
};

inline void Write(const std::string& path, const std::vector<Tensor>& tensors,
                  const Metadata& metadata = {}) {
  std::vector<TensorToWrite> list;
  for (const Tensor& t : tensors) list.push_back({t.name, t.dtype, t.shape, t.bytes});
  const absl::Status status = WriteSafetensors(path, list, metadata);
  EXPECT_TRUE(status.ok()) << status;
}

inline void Write(const std::string& path, const Contents& contents) {
  std::vector<Tensor> list;
  for (const auto& [name, tensor] : contents.tensors) list.push_back(tensor);
  Write(path, list, contents.metadata);
}

// Empty, and a failure of the test, where the file cannot be read.
inline Contents Read(const std::string& path) {
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

// A tensor that the file must hold.
inline Tensor ReadTensor(const std::string& path, const std::string& name) {
  Contents contents = Read(path);
  EXPECT_EQ(contents.tensors.count(name), 1u) << path << " has no " << name;
  return std::move(contents.tensors[name]);
}

}  // namespace nibble::testing

#endif  // NIBBLE_TESTS_TESTING_TENSORS_H_
