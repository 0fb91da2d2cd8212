#include "base/tensor_view.h"

#include <limits>
#include <set>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "tests/testing/is_error.h"

namespace nibble {
namespace {

using ::nibble::testing::IsError;
using Shape = std::vector<int64_t>;

constexpr int64_t kMax = std::numeric_limits<int64_t>::max();

TEST(DTypeTest, NamesRoundTripAndAreDistinct) {
  std::set<std::string_view> names;
  for (int i = 0; i <= static_cast<int>(DType::kC64); ++i) {
    const DType dtype = static_cast<DType>(i);
    EXPECT_EQ(DTypeFromName(DTypeName(dtype)), dtype) << i;
    EXPECT_TRUE(names.insert(DTypeName(dtype)).second) << DTypeName(dtype);
  }
  EXPECT_EQ(names.size(), 17u);
}

TEST(DTypeTest, HasTheSpellingAndSizeOfSafetensors) {
  const struct {
    DType dtype;
    const char* name;
    int bytes;
  } kExpected[] = {
      {DType::kBool, "BOOL", 1},      {DType::kU8, "U8", 1},
      {DType::kI8, "I8", 1},          {DType::kU16, "U16", 2},
      {DType::kI16, "I16", 2},        {DType::kU32, "U32", 4},
      {DType::kI32, "I32", 4},        {DType::kU64, "U64", 8},
      {DType::kI64, "I64", 8},        {DType::kF8E4M3, "F8_E4M3", 1},
      {DType::kF8E5M2, "F8_E5M2", 1}, {DType::kF8E8M0, "F8_E8M0", 1},
      {DType::kF16, "F16", 2},        {DType::kBf16, "BF16", 2},
      {DType::kF32, "F32", 4},        {DType::kF64, "F64", 8},
      {DType::kC64, "C64", 8},
  };
  for (const auto& expected : kExpected) {
    EXPECT_EQ(DTypeName(expected.dtype), expected.name);
    EXPECT_EQ(DTypeBytes(expected.dtype), expected.bytes) << expected.name;
    const bool quantizable = expected.dtype == DType::kF16 || expected.dtype == DType::kBf16 ||
                             expected.dtype == DType::kF32;
    EXPECT_EQ(IsQuantizable(expected.dtype), quantizable) << expected.name;
  }
}

TEST(DTypeTest, KnowsNoOtherNames) {
  for (const char* name : {"", "bf16", "BF1", "BF16 ", "F8", "FLOAT"}) {
    EXPECT_EQ(DTypeFromName(name), std::nullopt) << name;
  }
}

TEST(ShapeTest, Name) {
  EXPECT_EQ(ShapeName({}), "[]");
  EXPECT_EQ(ShapeName(Shape{7}), "[7]");
  EXPECT_EQ(ShapeName(Shape{2, -3, 0}), "[2, -3, 0]");
}

TEST(ElementCountTest, IsTheProduct) {
  EXPECT_EQ(ElementCount({}), 1);
  EXPECT_EQ(ElementCount(Shape{5}), 5);
  EXPECT_EQ(ElementCount(Shape{2, 3, 4}), 24);
  EXPECT_EQ(ElementCount(Shape{2, 0, 4}), 0);
  EXPECT_EQ(ElementCount(Shape{kMax}), kMax);
  EXPECT_EQ(ElementCount(Shape{int64_t{1} << 31, int64_t{1} << 31}), int64_t{1} << 62);
}

TEST(ElementCountTest, RefusesOverflowAndNegativeDimensions) {
  EXPECT_EQ(ElementCount(Shape{int64_t{1} << 62, 2}), std::nullopt);
  EXPECT_EQ(ElementCount(Shape{int64_t{1} << 32, int64_t{1} << 31}), std::nullopt);
  EXPECT_EQ(ElementCount(Shape{kMax, kMax}), std::nullopt);
  EXPECT_EQ(ElementCount(Shape{-1}), std::nullopt);
  EXPECT_EQ(ElementCount(Shape{-2, -3}), std::nullopt);
  EXPECT_EQ(ElementCount(Shape{0, -1}), std::nullopt);
  EXPECT_EQ(ElementCount(Shape{-1, 0}), std::nullopt);
}

TEST(AsQuantizableMatrixTest, MergesTheLeadingDimensions) {
  const struct {
    Shape shape;
    int64_t rows, cols;
  } kCases[] = {
      {{32}, 1, 32},    {{3, 16}, 3, 16},    {{2, 3, 4, 48}, 24, 48},
      {{0, 16}, 0, 16}, {{5, 0, 16}, 0, 16},
  };
  const float data = 0;
  for (const auto& c : kCases) {
    SCOPED_TRACE(ShapeName(c.shape));
    const auto x = AsQuantizableMatrix(&data, DType::kF16, c.shape);
    ASSERT_TRUE(x.ok()) << x.status();
    EXPECT_EQ(x->data, &data);
    EXPECT_EQ(x->dtype, DType::kF16);
    EXPECT_EQ(x->rows, c.rows);
    EXPECT_EQ(x->cols, c.cols);
    EXPECT_EQ(x->size(), c.rows * c.cols);
  }
}

TEST(AsQuantizableMatrixTest, RefusesOtherTypesAndShapes) {
  const auto expect_refused = [](DType dtype, const Shape& shape, const std::string& message) {
    EXPECT_TRUE(IsError(AsQuantizableMatrix(nullptr, dtype, shape),
                        absl::StatusCode::kFailedPrecondition, message));
  };
  for (DType dtype : {DType::kI32, DType::kF64, DType::kU8, DType::kF8E4M3}) {
    expect_refused(dtype, {16},
                   "dtype: expected BF16, F16 or F32, got " + std::string(DTypeName(dtype)));
  }
  const std::string columns = "expected a last dimension that is a positive multiple of 16, got ";
  for (const Shape& shape : {Shape{}, {17}, {16, 8}, {16, 0}, {16, -16}, {0}}) {
    expect_refused(DType::kBf16, shape, columns + ShapeName(shape));
  }
  const std::string size = "at most 2^63-1 elements, none of the dimensions negative, got ";
  for (const Shape& shape :
       {Shape{-1, 16}, {-1, -1, 16}, {int64_t{1} << 60, 16}, {kMax, kMax, 16}}) {
    expect_refused(DType::kBf16, shape, size + ShapeName(shape));
  }
}

}  // namespace
}  // namespace nibble
