#include "engine/tensor_ops.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <filesystem>
#include <limits>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/synthetic.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/bytes.h"
#include "tests/testing/is_error.h"
#include "tests/testing/temp_dir.h"
#include "tests/testing/tensors.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;
using ::nibble::testing::ByteTensor;
using ::nibble::testing::Contents;
using ::nibble::testing::FileBytes;
using ::nibble::testing::IsError;
using ::nibble::testing::kDataLoss;
using ::nibble::testing::kInvalid;
using ::nibble::testing::kPrecondition;
using ::nibble::testing::NormalTensor;
using ::nibble::testing::Read;
using ::nibble::testing::ReadTensor;
using ::nibble::testing::SameBytes;
using ::nibble::testing::Shape;
using ::nibble::testing::TempDir;
using ::nibble::testing::Tensor;
using ::nibble::testing::TensorOf;
using ::nibble::testing::Write;
using ::testing::FloatEq;
using ::testing::Pointwise;

// --- The formats once more, written down independently of quant/numerics
// --------------------------

float E2m1(uint8_t code) {
  constexpr float kMagnitudes[] = {0, 0.5, 1, 1.5, 2, 3, 4, 6};
  return (code & 8) != 0 ? -kMagnitudes[code & 7] : kMagnitudes[code & 7];
}

float E4m3(uint8_t code) {
  const int exponent = code >> 3 & 15, mantissa = code & 7;
  return static_cast<float>(exponent == 0 ? std::ldexp(mantissa, -9)
                                          : std::ldexp(8 + mantissa, exponent - 10));
}

float GlobalScale(Rule rule, float amax, float e4m3_max) {
  if (rule == Rule::kCheckpoint) return amax == 0 ? 1.0f : amax / (6 * e4m3_max);
  return amax == 0 ? 1.0f : 1 / std::min(e4m3_max * 6 / amax, FLT_MAX);
}

// Row-major scales; `global` one a row or one.
std::vector<float> Decode(const std::vector<uint8_t>& packed, const std::vector<uint8_t>& scale,
                          const std::vector<float>& global, size_t cols) {
  std::vector<float> values(packed.size() * 2);
  for (size_t i = 0; i < values.size(); ++i) {
    const uint8_t code = i % 2 == 0 ? packed[i / 2] & 15 : packed[i / 2] >> 4;
    const float g = global.size() == 1 ? global[0] : global[i / cols];
    values[i] = E2m1(code) * E4m3(scale[i / 16]) * g;
  }
  return values;
}

std::vector<float> Transposed(const std::vector<float>& x, size_t rows, size_t cols) {
  std::vector<float> y(x.size());
  for (size_t i = 0; i < x.size(); ++i) y[i % cols * rows + i / cols] = x[i];
  return y;
}

// --------------------------------------------------------------------------------------------------

class TensorOpsTest : public ::testing::Test {
 protected:
  // Writes `x` to the input file and quantizes it to the output file.
  absl::StatusOr<QuantizeSummary> Quantize(const Tensor& x, const QuantizeParams& params = {}) {
    Write(in_, {x});
    return QuantizeTensor({in_, x.name}, out_, params, *backend_);
  }
  Contents Quantized(const Tensor& x, const QuantizeParams& params = {}) {
    const auto summary = Quantize(x, params);
    EXPECT_TRUE(summary.ok()) << summary.status();
    return summary.ok() ? Read(out_) : Contents();
  }
  std::vector<float> Dequantized(const Contents& contents) {
    Write(out_, contents);
    const absl::Status status = DequantizeTensor(out_, back_, DType::kF32, *backend_);
    EXPECT_TRUE(status.ok()) << status;
    return status.ok() ? ReadTensor(back_, "dequantized").as<float>() : std::vector<float>();
  }

  TempDir folder_;
  const std::string in_ = folder_.path("in"), out_ = folder_.path("out"),
                    back_ = folder_.path("back");
  std::unique_ptr<Backend> backend_ = MakeBackend("cpu", {.threads = 2}).value();
};

// --- QuantizeTensor
// -------------------------------------------------------------------------------

struct ShapesCase {
  const char* name;
  QuantizeParams params;
  Shape in, copy, packed, scale, amax;
};

class QuantizeShapesTest : public TensorOpsTest,
                           public ::testing::WithParamInterface<ShapesCase> {};

TEST_P(QuantizeShapesTest, WritesThreeTensorsThatDecodeToTheCopy) {
  const ShapesCase& c = GetParam();
  const Tensor x = NormalTensor("x", DType::kF32, c.in);
  const auto summary = Quantize(x, c.params);
  ASSERT_TRUE(summary.ok()) << summary.status();
  Contents out = Read(out_);
  ASSERT_EQ(out.tensors.size(), 3u);
  const Tensor &packed = out.tensors["packed"], &scale = out.tensors["scale"],
               &amax = out.tensors["amax"];
  EXPECT_EQ(packed.dtype, DType::kU8);
  EXPECT_EQ(scale.dtype, DType::kF8E4M3);
  EXPECT_EQ(amax.dtype, DType::kF32);
  EXPECT_EQ(packed.shape, c.packed);
  EXPECT_EQ(scale.shape, c.scale);
  EXPECT_EQ(amax.shape, c.amax);
  EXPECT_EQ(summary->cols, c.copy.back());
  EXPECT_EQ(summary->rows * summary->cols, *ElementCount(c.copy));

  // The bytes are those of the backend.
  const auto expected = backend_->Quantize(c.params, x.view());
  ASSERT_TRUE(expected.ok());
  EXPECT_TRUE(SameBytes(expected->packed, packed.bytes));
  EXPECT_TRUE(SameBytes(expected->scale, scale.bytes));
  EXPECT_TRUE(SameBytes(expected->amax, amax.bytes));

  EXPECT_EQ(out.metadata[kFormatKey], kPackedFormat);
  EXPECT_EQ(out.metadata[kSchemeKey], NameOf(c.params.scheme));
  EXPECT_EQ(out.metadata[kRuleKey], NameOf(c.params.rule));
  EXPECT_EQ(out.metadata[kRhtKey], NameOf(c.params.rht));
  EXPECT_EQ(out.metadata[kE4m3MaxKey], std::to_string(c.params.e4m3_max));
  EXPECT_EQ(out.metadata[kColumnwiseKey], c.params.columnwise ? "true" : "false");
  EXPECT_EQ(out.metadata[kSwizzledKey], c.params.swizzle ? "true" : "false");
  EXPECT_EQ(out.metadata.count(kFourOverSixKey), c.params.four_over_six ? 1u : 0u);
  EXPECT_EQ(out.metadata.count(kStochasticKey), c.params.stochastic ? 1u : 0u);

  // What comes back has the shape of the copy, and the decoder of this file agrees on every value.
  for (DType dtype : {DType::kF32, DType::kBf16}) {
    const absl::Status status = DequantizeTensor(out_, back_, dtype, *backend_);
    ASSERT_TRUE(status.ok()) << status;
    const Contents back = Read(back_);
    ASSERT_EQ(back.tensors.size(), 1u);
    const Tensor& values = back.tensors.at("dequantized");
    EXPECT_EQ(values.dtype, dtype);
    EXPECT_EQ(values.shape, c.copy);
    if (c.params.swizzle) continue;
    std::vector<float> global;
    for (float a : amax.as<float>()) {
      global.push_back(GlobalScale(c.params.rule, a, static_cast<float>(c.params.e4m3_max)));
    }
    const std::vector<float> decoded =
        Decode(packed.as<uint8_t>(), scale.as<uint8_t>(), global, c.copy.back());
    EXPECT_TRUE(SameBytes(ToBytes(decoded, dtype), values.bytes));
  }

  // The summary's error is that of the values, where it can be.
  ASSERT_EQ(summary->error.has_value(), !c.params.columnwise && c.params.rht == Rht::kNone);
  if (!summary->error) return;
  ASSERT_TRUE(DequantizeTensor(out_, back_, DType::kF32, *backend_).ok());
  const std::vector<float> y = ReadTensor(back_, "dequantized").as<float>();
  double squares = 0;
  for (size_t i = 0; i < y.size(); ++i) squares += std::pow(double{x.as<float>()[i]} - y[i], 2);
  EXPECT_NEAR(summary->error->mse() * static_cast<double>(y.size()), squares, 1e-9 * squares);
}

const QuantizeParams kCheckpoint = {.rule = Rule::kCheckpoint};
const QuantizeParams kColumnwise = {.columnwise = true};
const QuantizeParams kPerToken = {.scheme = Scheme::kPerToken};

INSTANTIATE_TEST_SUITE_P(
    Shapes, QuantizeShapesTest,
    ::testing::Values(
        ShapesCase{"vector", {}, {32}, {32}, {16}, {2}, {1}},
        ShapesCase{"matrix", {}, {3, 48}, {3, 48}, {3, 24}, {3, 3}, {1}},
        ShapesCase{"rank3", {}, {2, 3, 32}, {2, 3, 32}, {2, 3, 16}, {2, 3, 2}, {1}},
        ShapesCase{"no_rows", {}, {0, 32}, {0, 32}, {0, 16}, {0, 2}, {1}},
        ShapesCase{"checkpoint", kCheckpoint, {3, 48}, {3, 48}, {3, 24}, {3, 3}, {1}},
        ShapesCase{
            "checkpoint_rank3", kCheckpoint, {2, 3, 16}, {2, 3, 16}, {2, 3, 8}, {2, 3, 1}, {1}},
        ShapesCase{"per_token", kPerToken, {5, 32}, {5, 32}, {5, 16}, {5, 2}, {5}},
        ShapesCase{
            "per_token_rank3", kPerToken, {2, 3, 32}, {2, 3, 32}, {2, 3, 16}, {2, 3, 2}, {6}},
        ShapesCase{
            "tile_2d", {.scheme = Scheme::kTile2d}, {32, 48}, {32, 48}, {32, 24}, {32, 3}, {1}},
        ShapesCase{"columnwise", kColumnwise, {32, 48}, {48, 32}, {48, 16}, {48, 2}, {1}},
        ShapesCase{"columnwise_rank3", kColumnwise, {2, 16, 48}, {48, 32}, {48, 16}, {48, 2}, {1}},
        ShapesCase{"columnwise_per_token",
                   {.scheme = Scheme::kPerToken, .columnwise = true},
                   {32, 48},
                   {48, 32},
                   {48, 16},
                   {48, 2},
                   {48}},
        ShapesCase{"columnwise_rotated",
                   {.columnwise = true, .rht = Rht::kSigns},
                   {32, 48},
                   {48, 32},
                   {48, 16},
                   {48, 2},
                   {1}},
        ShapesCase{"swizzled", {.swizzle = true}, {3, 48}, {3, 48}, {3, 24}, {512}, {1}},
        ShapesCase{
            "swizzled_large", {.swizzle = true}, {129, 80}, {129, 80}, {129, 40}, {2048}, {1}},
        ShapesCase{"swizzled_columnwise",
                   {.columnwise = true, .swizzle = true},
                   {32, 48},
                   {48, 32},
                   {48, 16},
                   {512},
                   {1}},
        ShapesCase{"four_over_six",
                   {.four_over_six = FourOverSix{}, .e4m3_max = 256},
                   {3, 48},
                   {3, 48},
                   {3, 24},
                   {3, 3},
                   {1}},
        ShapesCase{"stochastic",
                   {.stochastic = StochasticRounding{.seed = 5}},
                   {3, 48},
                   {3, 48},
                   {3, 24},
                   {3, 3},
                   {1}}),
    [](const auto& info) { return info.param.name; });

TEST_F(TensorOpsTest, TakesTheThreeTypes) {
  for (DType dtype : {DType::kBf16, DType::kF16, DType::kF32}) {
    // Values that every type holds and NVFP4, too.
    const std::vector<float> values = {0,    0.5, 1,    1.5, 2,  3,  4,  6,
                                       -0.5, -1,  -1.5, -2,  -3, -4, -6, 0};
    EXPECT_THAT(Dequantized(Quantized(TensorOf("x", dtype, {16}, values))),
                Pointwise(FloatEq(), values));
  }
}

TEST_F(TensorOpsTest, AmaxIsTheTensorsOrEachRows) {
  std::vector<float> values(2 * 32, 0.25f);
  values[5] = -3;
  values[40] = 1.5;
  const Tensor x = TensorOf("x", DType::kF32, {2, 32}, values);
  EXPECT_EQ(Quantized(x).tensors["amax"].as<float>(), std::vector<float>{3});
  EXPECT_EQ(Quantized(x, kPerToken).tensors["amax"].as<float>(), (std::vector<float>{3, 1.5}));
}

TEST_F(TensorOpsTest, ColumnwiseIsTheTransposedTensorRowwise) {
  const std::vector<float> values = SyntheticValues(Distribution::kNormal, 32 * 48, 3);
  for (Scheme scheme : {Scheme::kPerTensor, Scheme::kPerToken, Scheme::kTile2d}) {
    SCOPED_TRACE(NameOf(scheme));
    Contents columnwise = Quantized(TensorOf("x", DType::kF32, {32, 48}, values),
                                    {.scheme = scheme, .columnwise = true});
    Contents rowwise = Quantized(TensorOf("x", DType::kF32, {48, 32}, Transposed(values, 32, 48)),
                                 {.scheme = scheme});
    for (const char* name : {"packed", "scale", "amax"}) {
      EXPECT_EQ(columnwise.tensors[name].shape, rowwise.tensors[name].shape) << name;
      EXPECT_TRUE(SameBytes(rowwise.tensors[name].bytes, columnwise.tensors[name].bytes)) << name;
    }
  }
}

TEST_F(TensorOpsTest, SwizzledScalesMeanTheSameValues) {
  const Tensor x = NormalTensor("x", DType::kBf16, {150, 80});
  Contents linear = Quantized(x), swizzled = Quantized(x, {.swizzle = true});
  EXPECT_TRUE(SameBytes(linear.tensors["packed"].bytes, swizzled.tensors["packed"].bytes));
  const auto scale = linear.tensors["scale"].as<uint8_t>();
  const auto moved = swizzled.tensors["scale"].as<uint8_t>();
  // Block (row, block) of a 128x4 tile is at row % 32 * 16 + row / 32 % 4 * 4 + block % 4.
  EXPECT_EQ(moved[0], scale[0]);
  EXPECT_EQ(moved[3 * 16 + 1 * 4 + 2], scale[(32 + 3) * 5 + 2]);
  EXPECT_EQ(moved[512 + 0], scale[4]);
  EXPECT_EQ(moved[2 * 512 + 5 * 16 + 1], scale[(128 + 5) * 5 + 1]);
  EXPECT_TRUE(SameBytes(Dequantized(linear), Dequantized(swizzled)));
}

TEST_F(TensorOpsTest, TilesShareTheirScale) {
  Contents out = Quantized(NormalTensor("x", DType::kBf16, {32, 32}), {.scheme = Scheme::kTile2d});
  const auto scale = out.tensors["scale"].as<uint8_t>();
  for (size_t i = 0; i < scale.size(); ++i) {
    EXPECT_EQ(scale[i], scale[i / 32 * 32 + i % 2]) << i;
  }
}

TEST_F(TensorOpsTest, GlobalAmaxReplacesTheTensorsOwn) {
  Contents out = Quantized(NormalTensor("x", DType::kBf16, {2, 32}), {.global_amax = 50.0f});
  EXPECT_EQ(out.tensors["amax"].as<float>(), std::vector<float>{50});
}

// A file of no bytes may claim any number of columns: they must not become rows.
TEST_F(TensorOpsTest, RefusesColumnwiseCopiesOfNothing) {
  for (int64_t cols : {int64_t{32}, int64_t{1} << 40, int64_t{1} << 62}) {
    const Tensor x = NormalTensor("x", DType::kBf16, {0, cols});
    for (const bool swizzle : {false, true}) {
      QuantizeParams params = kColumnwise;
      params.scheme = Scheme::kPerToken;
      params.swizzle = swizzle;
      EXPECT_TRUE(IsError(Quantize(x, params), kPrecondition, "positive multiple of 16 rows"));
    }
  }
}

TEST_F(TensorOpsTest, QuantizeRefuses) {
  const Tensor x = NormalTensor("x", DType::kBf16, {17, 32});
  const auto expect = [&](const Tensor& tensor, const QuantizeParams& params, absl::StatusCode code,
                          const std::string& piece) {
    EXPECT_TRUE(IsError(Quantize(tensor, params), code, piece));
    EXPECT_EQ(folder_.Names(), std::vector<std::string>{"in"});
  };
  expect(x, {.e4m3_max = 300}, kInvalid, "got 300");
  expect(x, {.scheme = Scheme::kPerToken, .rule = Rule::kCheckpoint}, kInvalid, "checkpoint");
  expect(x, {.scheme = Scheme::kPerToken, .global_amax = 1.0f}, kInvalid, "global_amax");
  expect(x, {.global_amax = -1.0f}, kInvalid, "got -1");
  expect(x, kColumnwise, kPrecondition, "shape: expected a positive multiple of 16 rows");
  expect(x, {.scheme = Scheme::kTile2d}, kPrecondition, "under tile_2d, got 17");
  expect(NormalTensor("x", DType::kBf16, {32, 17}), {}, kPrecondition, "got [32, 17]");
  expect(NormalTensor("x", DType::kBf16, {}), {}, kPrecondition, "got []");
  expect(ByteTensor("x", DType::kI8, {16}, std::vector<uint8_t>(16)), {}, kPrecondition, "got I8");
  std::vector<float> values(32, 1.0f);
  values[20] = std::numeric_limits<float>::quiet_NaN();
  values[30] = std::numeric_limits<float>::infinity();
  expect(TensorOf("x", DType::kF16, {2, 16}, values), {}, kPrecondition,
         "got 2 NaN or infinite, the first at row 1, column 4");
  EXPECT_TRUE(IsError(QuantizeTensor({in_, "y\n"}, out_, {}, *backend_), kInvalid,
                      "expected the name of one of its tensors"));
  EXPECT_TRUE(IsError(QuantizeTensor({folder_.path("no"), "x"}, out_, {}, *backend_),
                      absl::StatusCode::kNotFound, "no"));
}

TEST_F(TensorOpsTest, RefusesToReplaceItsInput) {
  const Tensor x = NormalTensor("x", DType::kBf16, {2, 32});
  Write(in_, {x});
  fs::create_symlink("in", folder_.path("link"));
  fs::create_hard_link(in_, folder_.path("hard"));
  const std::string before = FileBytes(in_);
  for (const std::string& out :
       {in_, folder_.path("link"), folder_.path("hard"), folder_.path("./in")}) {
    const std::string message = "--out: expected a file other than the input, got " + out;
    EXPECT_TRUE(IsError(QuantizeTensor({in_, "x"}, out, {}, *backend_), kInvalid, message));
    EXPECT_TRUE(IsError(SweepTensor({in_, "x"}, out, {}, *backend_), kInvalid, message));
    EXPECT_TRUE(IsError(DequantizeTensor(in_, out, DType::kF32, *backend_), kInvalid, message));
  }
  EXPECT_EQ(FileBytes(in_), before);
}

// --- DequantizeTensor
// -----------------------------------------------------------------------------

TEST_F(TensorOpsTest, DequantizesEveryCodeUnderEveryScale) {
  for (Rule rule : {Rule::kRuntime, Rule::kCheckpoint}) {
    for (float amax : {0.0f, 1.0f, 3.7f, 1e-30f, 2e4f}) {
      Contents file = Quantized(NormalTensor("x", DType::kF32, {127, 16}), {.rule = rule});
      std::vector<uint8_t> packed(127 * 8), scale(127);
      for (size_t i = 0; i < packed.size(); ++i) {
        packed[i] = static_cast<uint8_t>(2 * (i % 8) | (2 * (i % 8) + 1) << 4);
      }
      for (size_t i = 0; i < scale.size(); ++i) scale[i] = static_cast<uint8_t>(i);
      file.tensors["packed"] = ByteTensor("packed", DType::kU8, {127, 8}, packed);
      file.tensors["scale"] = ByteTensor("scale", DType::kF8E4M3, {127, 1}, scale);
      file.tensors["amax"] = TensorOf("amax", DType::kF32, {1}, {amax});
      EXPECT_TRUE(
          SameBytes(Decode(packed, scale, {GlobalScale(rule, amax, 448)}, 16), Dequantized(file)))
          << NameOf(rule) << " " << amax;
    }
  }
}

TEST_F(TensorOpsTest, DequantizeRefusesWhatWasTamperedWith) {
  const Contents good = Quantized(NormalTensor("x", DType::kBf16, {2, 32}));
  const auto expect_refused = [&](const Contents& bad, const std::string& piece) {
    Write(out_, bad);
    EXPECT_TRUE(IsError(DequantizeTensor(out_, back_, DType::kF32, *backend_), kDataLoss, piece));
    EXPECT_FALSE(fs::exists(back_));
  };

  const struct {
    const char* key;
    std::vector<std::string> values;
  } kMetadata[] = {
      {kFormatKey, {"", "nibble.packed.2", "nibble.sweep.1"}},
      {kSchemeKey, {"", "per_row", "PER_TENSOR"}},
      {kRuleKey, {"", "other"}},
      {kE4m3MaxKey, {"", "300", "448.0", " 448"}},
      {kRhtKey, {"", "true"}},
      {kSwizzledKey, {"", "yes", "TRUE"}},
      {kShapeKey,
       {"", "x", "64", "{}", "[]", "[[2,32]]", "[2,17]", "[2,-32]", "[-2,32]", "[2,32.0]",
        "[2,\"32\"]", "[2,32", "[9223372036854775808,16]", "[18446744073709551600,16]",
        "[1152921504606846976,16]", "[4294967296,4294967296,16]",
        absl::StrCat("[2,", std::string(2000, ' '), "32]")}},
  };
  for (const auto& [key, values] : kMetadata) {
    Contents bad = good;
    bad.metadata.erase(key);
    expect_refused(bad, key);
    for (const std::string& value : values) {
      bad.metadata[key] = value;
      expect_refused(bad, key);
    }
  }

  // Metadata that is fine by itself and disagrees with the tensors.
  for (const auto& [key, value] :
       {std::pair(kShapeKey, "[4,32]"), std::pair(kShapeKey, "[2,48]"),
        std::pair(kShapeKey, "[2,0]"), std::pair(kSwizzledKey, "true"),
        std::pair(kSchemeKey, "per_token"), std::pair(kSchemeKey, "tile_2d"),
        std::pair(kShapeKey, "[576460752303423487,16]")}) {
    Contents bad = good;
    bad.metadata[key] = value;
    expect_refused(bad, "expected");
  }

  for (const char* name : {"packed", "scale", "amax"}) {
    Contents bad = good;
    bad.tensors.erase(name);
    expect_refused(bad, "tensor '" + std::string(name) + "': expected");
    bad = good;
    bad.tensors[name].dtype = bad.tensors[name].dtype == DType::kF32 ? DType::kI32 : DType::kI8;
    expect_refused(bad, "tensor '" + std::string(name) + "': expected");
  }

  for (uint8_t code : {0x7F, 0x80, 0x81, 0xFF}) {
    Contents bad = good;
    bad.tensors["scale"].bytes[3] = std::byte{code};
    expect_refused(bad, "tensor 'scale': expected E4M3 codes 0..126, got " + std::to_string(code));
  }
  for (float amax : {-1.0f, std::numeric_limits<float>::infinity(), std::nanf(""), -1e-45f}) {
    Contents bad = good;
    bad.tensors["amax"] = TensorOf("amax", DType::kF32, {1}, {amax});
    expect_refused(bad, "tensor 'amax': expected finite numbers >= 0, got ");
  }
}

// A shape without elements costs nothing, whatever its other dimensions claim.
TEST_F(TensorOpsTest, DequantizeIsQuickWithEmptyShapes) {
  const Contents empty = Quantized(NormalTensor("x", DType::kBf16, {0, 32}));
  for (const char* swizzled : {"false", "true"}) {
    for (const char* shape : {"[9223372036854775807,0]", "[0,9223372036854775792]", "[0,16]"}) {
      Contents file = empty;
      file.metadata[kShapeKey] = shape;
      file.metadata[kSwizzledKey] = swizzled;
      Write(out_, file);
      const absl::Status status = DequantizeTensor(out_, back_, DType::kF32, *backend_);
      EXPECT_TRUE(status.ok() || status.code() == kDataLoss) << shape << ": " << status;
    }
  }
}

TEST_F(TensorOpsTest, DequantizeTakesOnlyTheTwoTypes) {
  Quantized(NormalTensor("x", DType::kBf16, {2, 32}));
  EXPECT_TRUE(IsError(DequantizeTensor(out_, back_, DType::kF16, *backend_), kInvalid, "got F16"));
}

// --- SweepTensor
// ----------------------------------------------------------------------------------

class SweepTensorTest : public TensorOpsTest {
 protected:
  absl::StatusOr<SweepSummary> Sweep(const std::vector<Tensor>& tensors,
                                     const SweepRequest& request = {}) {
    Write(in_, tensors);
    return SweepTensor({in_, "x"}, out_, request, *backend_);
  }
  Contents Swept(const std::vector<Tensor>& tensors, const SweepRequest& request = {}) {
    const auto summary = Sweep(tensors, request);
    EXPECT_TRUE(summary.ok()) << summary.status();
    return summary.ok() ? Read(out_) : Contents();
  }

  static Tensor Identities(int64_t count) {
    std::vector<float> h(count * 256, 0.0f);
    for (int64_t i = 0; i < count * 16; ++i) h[i * 16 + i % 16] = 1;
    return TensorOf("h", DType::kF32, {count, 16, 16}, h);
  }

  const Tensor x_ = NormalTensor("x", DType::kF32, {2, 3, 32});
  const std::vector<float> values_ = x_.as<float>();
};

// The squared error of 16 weights under one decode scale, each rounded to the nearest, in float64.
double LossOf(const float* weights, double scale) {
  double loss = 0;
  for (int i = 0; i < 16; ++i) {
    double nearest = INFINITY;
    for (int code = 0; code < 8; ++code) {
      nearest = std::min(nearest, std::fabs(std::fabs(weights[i]) - E2m1(code) * scale));
    }
    loss += nearest * nearest;
  }
  return loss;
}

TEST_F(SweepTensorTest, FindsTheSmallestLossOfAll126) {
  float amax = 0;
  for (float v : values_) amax = std::max(amax, std::fabs(v));
  for (SweepMethod method : {SweepMethod::kExhaustive, SweepMethod::kPruned}) {
    for (std::optional<float> g : {std::optional<float>(), std::optional(2 * amax)}) {
      Contents out = Swept({x_}, {.search = ScaleSweepParams{method, 448, g}});
      ASSERT_EQ(out.tensors.size(), 3u);
      for (const char* name : {"best_amax", "code", "loss"}) {
        EXPECT_EQ(out.tensors[name].shape, Shape{12}) << name;
        EXPECT_EQ(out.tensors[name].dtype, std::string(name) == "code" ? DType::kU8 : DType::kF32);
      }
      const auto code = out.tensors["code"].as<uint8_t>();
      const auto loss = out.tensors["loss"].as<float>();
      const auto best_amax = out.tensors["best_amax"].as<float>();
      for (int b = 0; b < 12; ++b) {
        double best = INFINITY;
        for (int k = 1; k <= 126; ++k) {
          best = std::min(best, LossOf(&values_[16 * b], double{E4m3(static_cast<uint8_t>(k))} /
                                                             448 * g.value_or(amax) / 6));
        }
        EXPECT_NEAR(loss[b], best, 1e-6 * best) << b;
        EXPECT_FLOAT_EQ(best_amax[b], E4m3(code[b]) / 448 * g.value_or(amax)) << b;
      }
    }
  }
}

TEST_F(SweepTensorTest, PackedDecodesToTheLossThatItReports) {
  for (const std::variant<ScaleSweepParams, MultiplierSearchParams>& search :
       {std::variant<ScaleSweepParams, MultiplierSearchParams>(ScaleSweepParams{.e4m3_max = 256}),
        {ScaleSweepParams{.method = SweepMethod::kExhaustive}},
        {MultiplierSearchParams{}}}) {
    Contents out = Swept({x_}, {.search = search, .packed = true});
    ASSERT_EQ(out.tensors.size(), 6u);
    const Tensor &packed = out.tensors["packed"], &scale = out.tensors["scale"],
                 &scale2 = out.tensors["scale2"];
    EXPECT_EQ(packed.dtype, DType::kU8);
    EXPECT_EQ(packed.shape, (Shape{2, 3, 16}));
    EXPECT_EQ(scale.dtype, DType::kF8E4M3);
    EXPECT_EQ(scale.shape, (Shape{2, 3, 2}));
    EXPECT_EQ(scale2.dtype, DType::kF32);
    EXPECT_EQ(scale2.shape, Shape{1});
    EXPECT_TRUE(SameBytes(out.tensors["code"].bytes, scale.bytes));
    const std::vector<float> y =
        Decode(packed.as<uint8_t>(), scale.as<uint8_t>(), scale2.as<float>(), 32);
    const auto loss = out.tensors["loss"].as<float>();
    for (int b = 0; b < 12; ++b) {
      double sum = 0;
      for (int i = 16 * b; i < 16 * b + 16; ++i) sum += std::pow(double{values_[i]} - y[i], 2);
      EXPECT_NEAR(loss[b], sum, 1e-5 * sum) << b;
    }
    EXPECT_EQ(out.metadata[kRuleKey], "checkpoint");
    const bool is_256 = std::visit([](const auto& p) { return p.e4m3_max == 256; }, search);
    EXPECT_EQ(out.metadata[kE4m3MaxKey], is_256 ? "256" : "448");
  }
}

TEST_F(SweepTensorTest, AnIdentityHessianFindsTheSameLosses) {
  const auto plain = Swept({x_}).tensors["loss"].as<float>();
  const auto weighed = Swept({x_, Identities(2)}, {.hessian = "h"}).tensors["loss"].as<float>();
  ASSERT_EQ(weighed.size(), plain.size());
  for (size_t b = 0; b < plain.size(); ++b) EXPECT_NEAR(weighed[b], plain[b], 1e-5 * plain[b]) << b;
}

TEST_F(SweepTensorTest, TakesAVectorAndNoRows) {
  EXPECT_EQ(Swept({NormalTensor("x", DType::kBf16, {48})}).tensors["code"].shape, Shape{3});
  const auto none = Sweep({NormalTensor("x", DType::kBf16, {0, 32})}, {.packed = true});
  ASSERT_TRUE(none.ok()) << none.status();
  EXPECT_EQ(none->blocks, 0);
  EXPECT_EQ(Read(out_).tensors["packed"].shape, (Shape{0, 16}));
}

TEST_F(SweepTensorTest, Refuses) {
  const auto expect = [&](const std::vector<Tensor>& tensors, const SweepRequest& request,
                          absl::StatusCode code, const std::string& piece) {
    EXPECT_TRUE(IsError(Sweep(tensors, request), code, piece));
    EXPECT_EQ(folder_.Names(), std::vector<std::string>{"in"});
  };
  const SweepRequest with_hessian = {.hessian = "h"};
  expect({x_}, with_hessian, kInvalid, "expected the name of one");
  const std::string wrong = "expected F32 [2, 16, 16], got ";
  expect({x_, Identities(3)}, with_hessian, kPrecondition, wrong + "F32 [3, 16, 16]");
  expect({x_, NormalTensor("h", DType::kF32, {2, 256})}, with_hessian, kPrecondition,
         wrong + "F32 [2, 256]");
  expect({x_, NormalTensor("h", DType::kBf16, {2, 16, 16})}, with_hessian, kPrecondition,
         wrong + "BF16 [2, 16, 16]");
  const auto with_element = [&](int index, float value) {
    std::vector<float> h = Identities(2).as<float>();
    h[256 + index] = value;
    return std::vector<Tensor>{x_, TensorOf("h", DType::kF32, {2, 16, 16}, h)};
  };
  expect(with_element(0, NAN), with_hessian, kPrecondition, "not finite: slice 1");
  expect(with_element(1, 0.5f), with_hessian, kPrecondition, "not symmetric: slice 1");
  expect(with_element(17, -1), with_hessian, kPrecondition, "not positive semidefinite: slice 1");
  for (float g : {-1.0f, NAN, INFINITY}) {
    expect({x_}, {.search = ScaleSweepParams{.global_amax = g}}, kInvalid, "global_amax");
    expect({x_}, {.search = MultiplierSearchParams{.global_amax = g}}, kInvalid, "global_amax");
  }
  expect({x_}, {.search = ScaleSweepParams{.e4m3_max = 300}}, kInvalid, "got 300");
  expect({x_}, {.search = MultiplierSearchParams{.grid = {.step = 0}}}, kInvalid, "multipliers");
  expect({NormalTensor("x", DType::kBf16, {2, 20})}, {}, kPrecondition, "got [2, 20]");
  expect({TensorOf("x", DType::kF32, {16}, std::vector<float>(16, NAN))}, {}, kPrecondition,
         "got 16 NaN or infinite");
}

}  // namespace
}  // namespace nibble
