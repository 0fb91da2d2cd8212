#include "engine/inspect.h"

#include <filesystem>
#include <string>
#include <vector>

#include "engine/tensor_ops.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/testing/is_error.h"
#include "tests/testing/temp_dir.h"
#include "tests/testing/tensors.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;
using ::nibble::testing::ByteTensor;
using ::nibble::testing::FileBytes;
using ::nibble::testing::IsError;
using ::nibble::testing::Metadata;
using ::nibble::testing::NormalTensor;
using ::nibble::testing::PutFile;
using ::nibble::testing::Shape;
using ::nibble::testing::TempDir;
using ::nibble::testing::Tensor;
using ::nibble::testing::TensorOf;
using ::nibble::testing::Write;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

class InspectTest : public ::testing::Test {
 protected:
  // What the one file holds.
  InspectedFile Inspected(const std::vector<Tensor>& tensors, const Metadata& metadata = {}) {
    Write(file_, tensors, metadata);
    return InspectedOf(file_);
  }
  static InspectedFile InspectedOf(const std::string& path) {
    const auto files = Inspect(path);
    EXPECT_TRUE(files.ok()) << files.status();
    return files.ok() && files->size() == 1 ? files->front() : InspectedFile();
  }

  TempDir folder_;
  const std::string file_ = folder_.path("a.safetensors");
};

Tensor Scales(const std::string& name, const std::vector<uint8_t>& codes) {
  return ByteTensor(name, DType::kF8E4M3, {static_cast<int64_t>(codes.size()), 1}, codes);
}
Tensor Codes(const std::string& name, int64_t rows) {
  return ByteTensor(name, DType::kU8, {rows, 8}, std::vector<uint8_t>(8 * rows));
}
Tensor Scalar(const std::string& name) { return TensorOf(name, DType::kF32, {}, {0.5f}); }

TEST_F(InspectTest, ListsTensorsByName) {
  const InspectedFile file =
      Inspected({NormalTensor("b", DType::kBf16, {2, 3, 16}), NormalTensor("a", DType::kF32, {5}),
                 Scalar("c"), ByteTensor("d", DType::kI8, {0, 4}, {})},
                {{"format", "pt"}});
  EXPECT_EQ(file.path, file_);
  EXPECT_EQ(file.metadata, (Metadata{{"format", "pt"}}));
  const struct {
    const char* name;
    DType dtype;
    Shape shape;
    uint64_t bytes;
  } kExpected[] = {{"a", DType::kF32, {5}, 20},
                   {"b", DType::kBf16, {2, 3, 16}, 192},
                   {"c", DType::kF32, {}, 4},
                   {"d", DType::kI8, {0, 4}, 0}};
  ASSERT_EQ(file.tensors.size(), 4u);
  for (int i = 0; i < 4; ++i) {
    EXPECT_EQ(file.tensors[i].info.name, kExpected[i].name);
    EXPECT_EQ(file.tensors[i].info.dtype, kExpected[i].dtype);
    EXPECT_EQ(file.tensors[i].info.shape, kExpected[i].shape);
    EXPECT_EQ(file.tensors[i].info.bytes(), kExpected[i].bytes);
    EXPECT_FALSE(file.tensors[i].quantized);
  }
}

TEST_F(InspectTest, ReadsEverySafetensorsFileOfAFolder) {
  Write(folder_.path("b.safetensors"), {Scalar("x")});
  Write(folder_.path("a.safetensors"), {Scalar("y"), Scalar("z")});
  Write(folder_.path("c.other"), {Scalar("w")});
  PutFile(folder_.path("config.json"), "{}");
  fs::create_directory(folder_.path("below"));
  Write(folder_.path("below/d.safetensors"), {Scalar("v")});
  const auto files = Inspect(folder_.path());
  ASSERT_TRUE(files.ok()) << files.status();
  ASSERT_EQ(files->size(), 2u);
  EXPECT_EQ((*files)[0].path, folder_.path("a.safetensors"));
  EXPECT_EQ((*files)[0].tensors.size(), 2u);
  EXPECT_EQ((*files)[1].path, folder_.path("b.safetensors"));
  EXPECT_THAT(InspectionAsText(*files), HasSubstr("3 tensors, 12 bytes in 2 files\n"));
}

TEST_F(InspectTest, RefusesWhatItCannotRead) {
  EXPECT_TRUE(IsError(Inspect(folder_.path()), absl::StatusCode::kNotFound,
                      "expected a folder with *.safetensors files, got none"));
  EXPECT_TRUE(IsError(Inspect(folder_.path("no")), absl::StatusCode::kNotFound, "no"));
  Write(file_, {Scalar("x")});
  PutFile(folder_.path("b.safetensors"), FileBytes(file_).substr(0, 30));
  EXPECT_TRUE(IsError(Inspect(folder_.path()), absl::StatusCode::kDataLoss, "b.safetensors"));
}

TEST_F(InspectTest, DescribesWhatQuantizeWrote) {
  const auto backend = MakeBackend("cpu").value();
  Write(folder_.path("in"), {TensorOf("x", DType::kF32, {2, 16}, std::vector<float>(32, 1.0f))});
  QuantizeParams params;
  params.scheme = Scheme::kPerToken;
  ASSERT_TRUE(QuantizeTensor({folder_.path("in"), "x"}, file_, params, *backend).ok());
  const InspectedFile file = InspectedOf(file_);
  ASSERT_EQ(file.tensors.size(), 3u);
  ASSERT_TRUE(file.tensors[1].quantized);
  const QuantizedInfo& q = *file.tensors[1].quantized;
  EXPECT_EQ(file.tensors[1].info.name, "packed");
  EXPECT_EQ(q.format, "nibble");
  EXPECT_EQ(q.scheme, "per_token");
  EXPECT_EQ(q.rule, "runtime");
  EXPECT_EQ(q.scale_min, 448);
  EXPECT_EQ(q.scale_max, 448);
  EXPECT_EQ(q.scale_zero, 0);
  EXPECT_FALSE(file.tensors[0].quantized || file.tensors[2].quantized);

  params.swizzle = true;  // with padding, which is no scale
  ASSERT_TRUE(QuantizeTensor({folder_.path("in"), "x"}, file_, params, *backend).ok());
  const InspectedFile swizzled = InspectedOf(file_);
  ASSERT_TRUE(swizzled.tensors[1].quantized);
  EXPECT_EQ(swizzled.tensors[1].quantized->scale_min, 448);
  EXPECT_EQ(swizzled.tensors[1].quantized->scale_zero, 0);
}

struct Convention {
  const char *format, *codes, *scale, *global;
};

class InspectCheckpointTest : public InspectTest, public ::testing::WithParamInterface<Convention> {
 protected:
  const std::string module_ = "model.layers.0.q_proj";
  const std::string codes_ = module_ + GetParam().codes, scale_ = module_ + GetParam().scale,
                    global_ = module_ + GetParam().global;

  // Of the tensor of codes; nothing else may be described.
  std::optional<QuantizedInfo> Described(const std::vector<Tensor>& tensors) {
    std::optional<QuantizedInfo> result;
    for (const InspectedTensor& t : Inspected(tensors).tensors) {
      if (t.info.name == codes_) {
        result = t.quantized;
      } else {
        EXPECT_FALSE(t.quantized) << t.info.name;
      }
    }
    return result;
  }
};

TEST_P(InspectCheckpointTest, FindsTheThreeTensors) {
  // 2^-9, 1, 448, zero, NaN, -1.
  const auto q = Described({Codes(codes_, 6), Scales(scale_, {0x01, 0x38, 0x7E, 0x00, 0x7F, 0xB8}),
                            Scalar(global_), NormalTensor("model.norm.weight", DType::kBf16, {16}),
                            Codes("other.codes", 2)});
  ASSERT_TRUE(q);
  EXPECT_EQ(q->format, GetParam().format);
  EXPECT_EQ(q->scheme, "per_tensor");
  EXPECT_EQ(q->rule, "checkpoint");
  EXPECT_EQ(q->scale_min, 0);
  EXPECT_EQ(q->scale_max, 448);
  EXPECT_EQ(q->scale_zero, 1);
  EXPECT_EQ(q->scale_invalid, 2);
}

TEST_P(InspectCheckpointTest, RangesOverMoreThanOneChunk) {
  std::vector<uint8_t> scales((1 << 20) + 5, 0x38);
  scales.front() = 0x30;  // 0.5
  scales.back() = 0x40;   // 2
  const auto q = Described({Codes(codes_, 1), Scales(scale_, scales), Scalar(global_)});
  ASSERT_TRUE(q);
  EXPECT_EQ(q->scale_min, 0.5f);
  EXPECT_EQ(q->scale_max, 2);
  EXPECT_EQ(q->scale_zero + q->scale_invalid, 0);
}

TEST_P(InspectCheckpointTest, NeedsAllThreeOfTheirTypes) {
  const Tensor codes = Codes(codes_, 2), scale = Scales(scale_, {1, 2}), global = Scalar(global_);
  EXPECT_TRUE(Described({codes, scale, global}));
  EXPECT_FALSE(Described({codes, scale}));
  EXPECT_FALSE(Described({codes, global}));
  EXPECT_FALSE(Described({NormalTensor(codes_, DType::kBf16, {2, 16}), scale, global}));
  EXPECT_FALSE(Described({codes, NormalTensor(scale_, DType::kF32, {2, 1}), global}));
}

INSTANTIATE_TEST_SUITE_P(
    Conventions, InspectCheckpointTest,
    ::testing::Values(Convention{"modelopt", ".weight", ".weight_scale", ".weight_scale_2"},
                      Convention{"compressed-tensors", ".weight_packed", ".weight_scale",
                                 ".weight_global_scale"}),
    [](const auto& info) { return info.index == 0 ? "modelopt" : "compressed_tensors"; });

TEST_F(InspectTest, JsonHoldsEverything) {
  Write(file_,
        {Codes("m.weight", 2), Scales("m.weight_scale", {0x30, 0x40}), Scalar("m.weight_scale_2")},
        {{"key", "a \"value\""}});
  const std::string text = InspectionAsJson(Inspect(folder_.path()).value());
  EXPECT_EQ(text.back(), '\n');
  EXPECT_EQ(nlohmann::json::parse(text, nullptr, false), nlohmann::json::parse(R"({
    "total_bytes": 22,
    "files": [{
      "path": ")" + file_ + R"(",
      "metadata": {"key": "a \"value\""},
      "tensors": [
        {"name": "m.weight", "dtype": "U8", "shape": [2, 8], "bytes": 16,
         "quantized": {"format": "modelopt", "scheme": "per_tensor", "rule": "checkpoint",
                       "scale_min": 0.5, "scale_max": 2.0, "scale_zero": 0, "scale_invalid": 0}},
        {"name": "m.weight_scale", "dtype": "F8_E4M3", "shape": [2, 1], "bytes": 2},
        {"name": "m.weight_scale_2", "dtype": "F32", "shape": [], "bytes": 4}
      ]
    }]
  })"))
      << text;
}

TEST_F(InspectTest, TextHoldsEverything) {
  const InspectedFile file =
      Inspected({Codes("m.weight", 3), Scales("m.weight_scale", {0x30, 0x00, 0xFF}),
                 Scalar("m.weight_scale_2")},
                {{"key", "value"}});
  const std::string text = InspectionAsText({file});
  for (const std::string& piece :
       {file_, std::string("m.weight_scale_2"), std::string("F8_E4M3"), std::string("[3, 8]"),
        std::string(" 24\n"), std::string("metadata key: value\n"),
        std::string("NVFP4 modelopt, per_tensor, checkpoint rule, block scales 0 .. 0.5, 1 zero, "
                    "1 NaN or negative\n"),
        std::string("3 tensors, 31 bytes in 1 file\n")}) {
    EXPECT_THAT(text, HasSubstr(piece));
  }
}

TEST_F(InspectTest, EscapesWhatIsNotPrintable) {
  const std::string nasty = "a\n\x1b[31mb\x7f";
  const InspectedFile file =
      Inspected({Scalar(nasty), Codes("packed", 2), Scales("scale", {0x38, 0x38})},
                {{"nibble.format", "nibble.packed.1"}, {"nibble.scheme", nasty}, {nasty, nasty}});
  const std::string text = InspectionAsText({file});
  EXPECT_THAT(text, HasSubstr("\\x1b[31mb\\x7f"));
  for (const char* raw : {"\x1b", "a\n", "\x7f"}) {
    EXPECT_THAT(text, Not(HasSubstr(raw)));
  }
  const nlohmann::json root = nlohmann::json::parse(InspectionAsJson({file}));
  EXPECT_EQ(root["files"][0]["tensors"][0]["name"], nasty);
  EXPECT_EQ(root["files"][0]["metadata"][nasty], nasty);
}

// U+009B introduces escape sequences just as ESC [ does.
TEST_F(InspectTest, EscapesC1Controls) {
  const std::string text = InspectionAsText({Inspected({Scalar("a\xc2\x9b\x33\x31mb")})});
  EXPECT_THAT(text, Not(HasSubstr("\xc2\x9b")));
}

// JSON is UTF-8, whatever a path is.
TEST_F(InspectTest, JsonTakesAPathThatIsNotUtf8) {
  const std::string path = folder_.path("\xff.safetensors");
  Write(path, {Scalar("x")});
  const std::string json = InspectionAsJson({InspectedOf(path)});
  EXPECT_FALSE(nlohmann::json::parse(json, nullptr, false).is_discarded()) << json;
}

// Long values are cut between characters.
TEST_F(InspectTest, TextIsUtf8) {
  std::string value = "x";
  while (value.size() < 300) value += "\xc3\xa9";  // é
  const std::string text = InspectionAsText({Inspected({Scalar("x")}, {{"key", value}})});
  EXPECT_NO_THROW(nlohmann::json(text).dump()) << text;
}

}  // namespace
}  // namespace nibble
