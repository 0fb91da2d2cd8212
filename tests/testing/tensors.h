// Tensors of safetensors files, made and read back whole.
#ifndef NIBBLE_TESTS_TESTING_TENSORS_H_
#define NIBBLE_TESTS_TESTING_TENSORS_H_

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <string>
#include <vector>

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
Tensor TensorOf(const std::string& name, DType dtype, const Shape& shape,
                const std::vector<float>& values);

Tensor NormalTensor(const std::string& name, DType dtype, const Shape& shape);

// One-byte elements of any type.
Tensor ByteTensor(const std::string& name, DType dtype, const Shape& shape,
                  const std::vector<uint8_t>& values);

struct Contents {
  std::map<std::string, Tensor> tensors;
  Metadata metadata;
};

void Write(const std::string& path, const std::vector<Tensor>& tensors,
           const Metadata& metadata = {});

void Write(const std::string& path, const Contents& contents);

// Empty, and a failure of the test, where the file cannot be read.
Contents Read(const std::string& path);

// A tensor that the file must hold.
Tensor ReadTensor(const std::string& path, const std::string& name);

}  // namespace nibble::testing

#endif  // NIBBLE_TESTS_TESTING_TENSORS_H_
