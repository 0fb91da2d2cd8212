#include "io/safetensors.h"

#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "base/status.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

#define EXPECT_ERROR(status, expected_code, piece)                                    \
  do {                                                                                \
    const absl::Status actual = (status);                                             \
    EXPECT_EQ(actual.code(), absl::StatusCode::expected_code) << actual;              \
    EXPECT_NE(ToStd(actual.message()).find(piece), std::string_view::npos) << actual; \
  } while (false)

#define EXPECT_BAD_HEADER(json, data_bytes, piece) \
  EXPECT_ERROR(ParseSafetensorsHeader(json, data_bytes).status(), kDataLoss, piece)

std::string Length(uint64_t length) {
  std::string bytes;
  for (int i = 0; i < 8; ++i) bytes.push_back(static_cast<char>(length >> (8 * i)));
  return bytes;
}

// A file with the header `json` and a data section of 0, 1, 2...
std::string Image(const std::string& json, size_t data_bytes) {
  std::string image = Length(json.size()) + json;
  for (size_t i = 0; i < data_bytes; ++i) image.push_back(static_cast<char>(i));
  return image;
}

// {"t":{"dtype":"F32","shape":<shape>,"data_offsets":<offsets>}}
std::string OneTensor(const std::string& shape, const std::string& offsets,
                      const std::string& dtype = "F32") {
  return R"({"t":{"dtype":")" + dtype + R"(","shape":)" + shape + R"(,"data_offsets":)" + offsets +
         "}}";
}

// One U8 vector of [begin, end) as a member of the header.
std::string Bytes(const std::string& name, int begin, int end) {
  return "\"" + name + R"(":{"dtype":"U8","shape":[)" + std::to_string(end - begin) +
         R"(],"data_offsets":[)" + std::to_string(begin) + "," + std::to_string(end) + "]}";
}

// A JSON object of these members.
std::string Object(const std::string& members) { return absl::StrCat("{", members, "}"); }

std::vector<std::byte> Pattern(size_t size, int seed) {
  std::vector<std::byte> bytes(size);
  for (size_t i = 0; i < size; ++i) bytes[i] = static_cast<std::byte>(i * 31 + seed);
  return bytes;
}

class SafetensorsTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string name = ::testing::TempDir() + "safetensors_XXXXXX";
    ASSERT_NE(mkdtemp(name.data()), nullptr);
    folder_ = name;
    path_ = folder_ + "/t.safetensors";
  }
  void TearDown() override { fs::remove_all(folder_); }

  void Put(const std::string& image) const {
    std::ofstream(path_, std::ios::binary | std::ios::trunc) << image;
  }
  // A file of `bytes` bytes that takes no room: `start`, then zeros.
  void PutSparse(const std::string& start, uint64_t bytes) const {
    Put(start);
    fs::resize_file(path_, bytes);
  }
  absl::Status OpenStatus() const { return SafetensorsReader::Open(path_).status(); }
  std::string Contents() const {
    std::ifstream in(path_, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), {}};
  }

  std::string folder_, path_;
};

// --- Round trips -------------------------------------------------------------------------------

TEST_F(SafetensorsTest, RoundTripsEveryType) {
  std::vector<std::vector<std::byte>> data;
  std::vector<TensorToWrite> tensors;
  for (int i = 0; i <= static_cast<int>(DType::kC64); ++i) {
    const DType dtype = static_cast<DType>(i);
    data.push_back(Pattern(15 * DTypeBytes(dtype), i));
    tensors.push_back({std::string("t.") + std::string(DTypeName(dtype)), dtype, {3, 5}, {}});
  }
  for (size_t i = 0; i < tensors.size(); ++i) tensors[i].data = data[i];
  const std::map<std::string, std::string> metadata = {{"format", "pt"}, {"empty", ""}};
  ASSERT_TRUE(WriteSafetensors(path_, tensors, metadata).ok());

  const auto reader = SafetensorsReader::Open(path_);
  ASSERT_TRUE(reader.ok()) << reader.status();
  EXPECT_EQ(reader->path(), path_);
  EXPECT_EQ(reader->metadata(), metadata);
  ASSERT_EQ(reader->tensors().size(), tensors.size());
  const uint64_t data_begin = fs::file_size(path_) - reader->tensors().back().end;
  for (const TensorToWrite& tensor : tensors) {
    const TensorInfo* info = reader->Find(tensor.name);
    ASSERT_NE(info, nullptr) << tensor.name;
    EXPECT_EQ(info->dtype, tensor.dtype);
    EXPECT_EQ(info->shape, tensor.shape);
    EXPECT_EQ((data_begin + info->begin) % DTypeBytes(tensor.dtype), 0u);
    const auto bytes = reader->ReadAll(*info);
    ASSERT_TRUE(bytes.ok()) << bytes.status();
    EXPECT_TRUE(std::ranges::equal(*bytes, tensor.data));
  }
}

TEST_F(SafetensorsTest, RoundTripsEmptyTensorsAndScalars) {
  const auto data = Pattern(4, 7);
  const std::vector<TensorToWrite> tensors = {
      {"empty", DType::kBf16, {4, 0, 3}, {}},
      {"scalar", DType::kF32, {}, data},
      {"also empty", DType::kF64, {0}, {}},
      {"rank 64", DType::kU8, std::vector<int64_t>(64, 1), std::span(data).first(1)},
  };
  ASSERT_TRUE(WriteSafetensors(path_, tensors, {}).ok());
  const auto reader = SafetensorsReader::Open(path_);
  ASSERT_TRUE(reader.ok()) << reader.status();
  EXPECT_TRUE(reader->metadata().empty());
  ASSERT_EQ(reader->tensors().size(), 4u);
  EXPECT_EQ(reader->tensors()[0].name, "also empty");
  EXPECT_EQ(reader->tensors()[1].name, "scalar");
  EXPECT_EQ(reader->ReadAll(*reader->Find("empty")).value().size(), 0u);
  EXPECT_TRUE(std::ranges::equal(reader->ReadAll(*reader->Find("scalar")).value(), data));
  EXPECT_EQ(reader->Find("rank 64")->shape.size(), 64u);
}

TEST_F(SafetensorsTest, RoundTripsNamesOfAllKinds) {
  const std::string names[] = {"π.重み.🙂",
                               "with \"quotes\" and \\",
                               "tab\tnewline\n",
                               std::string("nul\0inside", 10),
                               "{}",
                               " "};
  std::vector<TensorToWrite> tensors;
  std::map<std::string, std::string> metadata;
  const auto data = Pattern(2, 0);
  for (const std::string& name : names) {
    tensors.push_back({name, DType::kF16, {1}, data});
    metadata[name] = name;
  }
  ASSERT_TRUE(WriteSafetensors(path_, tensors, metadata).ok());
  const auto reader = SafetensorsReader::Open(path_);
  ASSERT_TRUE(reader.ok()) << reader.status();
  EXPECT_EQ(reader->metadata(), metadata);
  for (const std::string& name : names) EXPECT_NE(reader->Find(name), nullptr) << name;
  EXPECT_EQ(reader->Find("nul"), nullptr);
}

TEST_F(SafetensorsTest, WritesTheExactBytes) {
  const auto data = Pattern(8, 0);
  const std::vector<TensorToWrite> tensors = {
      {"b", DType::kU8, {2}, std::span(data).first(2)},
      {"c", DType::kF32, {1, 1}, std::span(data).first(4)},
      {"a", DType::kU8, {1}, std::span(data).first(1)},
  };
  ASSERT_TRUE(WriteSafetensors(path_, tensors, {{"k", "v"}}).ok());
  std::string json = R"({"__metadata__":{"k":"v"},)"
                     R"("c":{"dtype":"F32","shape":[1,1],"data_offsets":[0,4]},)"
                     R"("a":{"dtype":"U8","shape":[1],"data_offsets":[4,5]},)"
                     R"("b":{"dtype":"U8","shape":[2],"data_offsets":[5,7]}})";
  json.resize((json.size() + 7) / 8 * 8, ' ');
  const std::string bytes(reinterpret_cast<const char*>(data.data()), 8);
  EXPECT_EQ(Contents(),
            Length(json.size()) + json + bytes.substr(0, 4) + bytes[0] + bytes.substr(0, 2));
}

TEST_F(SafetensorsTest, WritesAndReadsAFileWithoutTensors) {
  ASSERT_TRUE(WriteSafetensors(path_, {}, {}).ok());
  EXPECT_EQ(Contents(), Length(8) + "{}      ");
  const auto reader = SafetensorsReader::Open(path_);
  ASSERT_TRUE(reader.ok()) << reader.status();
  EXPECT_TRUE(reader->tensors().empty());
  EXPECT_EQ(reader->Find(""), nullptr);
}

TEST_F(SafetensorsTest, OrdersTensorsByPlaceWithEmptyOnesFirst) {
  const std::string json =
      Object(Bytes("z", 0, 4) + "," + Bytes("b", 4, 4) + "," + Bytes("c", 4, 8) + "," +
             Bytes("a", 4, 4) + "," + Bytes("y", 8, 8));
  const auto header = ParseSafetensorsHeader(json, 8);
  ASSERT_TRUE(header.ok()) << header.status();
  std::string order;
  for (const TensorInfo& tensor : header->tensors) order += tensor.name;
  EXPECT_EQ(order, "zabcy");
}

TEST_F(SafetensorsTest, ReadsRanges) {
  Put(Image(Object(Bytes("a", 0, 3) + "," + Bytes("b", 3, 10)), 10));
  const auto reader = SafetensorsReader::Open(path_);
  ASSERT_TRUE(reader.ok()) << reader.status();
  const TensorInfo& b = *reader->Find("b");
  std::byte out[7] = {};
  ASSERT_TRUE(reader->ReadRange(b, 2, std::span(out).first(3)).ok());
  EXPECT_EQ(out[0], std::byte{5});
  EXPECT_EQ(out[2], std::byte{7});
  ASSERT_TRUE(reader->Read(b, out).ok());
  EXPECT_EQ(out[6], std::byte{9});
  EXPECT_TRUE(reader->ReadRange(b, 7, {}).ok());

  EXPECT_ERROR(reader->Read(b, std::span(out).first(6)), kInvalidArgument,
               "tensor \"b\": expected room for 7 bytes, got 6");
  EXPECT_ERROR(reader->ReadRange(b, 1, out), kInvalidArgument, "expected a range of its 7 bytes");
  EXPECT_ERROR(reader->ReadRange(b, 8, {}), kInvalidArgument, "expected a range of its 7 bytes");
  EXPECT_ERROR(reader->ReadRange(b, ~uint64_t{0}, std::span(out).first(2)), kInvalidArgument,
               "expected a range of its 7 bytes");
  TensorInfo foreign = b;
  foreign.end = 11;
  EXPECT_ERROR(reader->ReadRange(foreign, 0, out), kInvalidArgument, "a tensor of this file");
}

TEST_F(SafetensorsTest, ReadsFromSeveralThreads) {
  const auto data = Pattern(1 << 16, 3);
  const std::vector<TensorToWrite> tensors = {{"t", DType::kU8, {1 << 16}, data}};
  ASSERT_TRUE(WriteSafetensors(path_, tensors, {}).ok());
  const auto reader = SafetensorsReader::Open(path_);
  ASSERT_TRUE(reader.ok());
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      for (int n = 0; n < 50; ++n) {
        const auto bytes = reader->ReadAll(*reader->Find("t"));
        EXPECT_TRUE(bytes.ok() && *bytes == data);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST_F(SafetensorsTest, Moves) {
  Put(Image(Object(Bytes("a", 0, 3)), 3));
  auto reader = SafetensorsReader::Open(path_);
  ASSERT_TRUE(reader.ok());
  const TensorInfo* info = reader->Find("a");
  SafetensorsReader moved = *std::move(reader);
  EXPECT_EQ(moved.Find("a"), info);
  auto other = SafetensorsReader::Open(path_);
  *other = std::move(moved);
  EXPECT_EQ(other->Find("a"), info);
  EXPECT_EQ(other->ReadAll(*info).value().size(), 3u);
}

// --- Files -------------------------------------------------------------------------------------

TEST_F(SafetensorsTest, RefusesEveryTruncation) {
  const std::string image =
      Image(R"({"__metadata__":{"k":"v"},)" + Bytes("a", 0, 3) + "," + Bytes("b", 3, 10) + "}", 10);
  Put(image);
  ASSERT_TRUE(OpenStatus().ok()) << OpenStatus();
  for (size_t length = 0; length < image.size(); ++length) {
    Put(image.substr(0, length));
    const absl::Status status = OpenStatus();
    EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << length << " " << status;
    EXPECT_EQ(status.message().find(path_), 0u) << status;
  }
  Put(image + "x");
  EXPECT_ERROR(OpenStatus(), kDataLoss, "data section: expected 10 bytes");
}

TEST_F(SafetensorsTest, RefusesShortFiles) {
  Put("");
  EXPECT_ERROR(OpenStatus(), kDataLoss,
               "expected at least 8 bytes, the length of its header, got 0");
  Put("1234567");
  EXPECT_ERROR(OpenStatus(), kDataLoss,
               "expected at least 8 bytes, the length of its header, got 7");
  Put(Length(0));
  EXPECT_ERROR(OpenStatus(), kDataLoss, "begins with {");
}

TEST_F(SafetensorsTest, RefusesLyingHeaderLengths) {
  const std::string json = Object(Bytes("a", 0, 8));
  const std::string rest = json + "12345678";
  for (const uint64_t length : {uint64_t{0}, uint64_t{7}, uint64_t{json.size() - 1}}) {
    Put(Length(length) + rest);
    EXPECT_ERROR(OpenStatus(), kDataLoss, ": header: expected ");
  }
  const uint64_t huge[] = {
      rest.size() + 1,         100'000'000,       100'000'001,      uint64_t{1} << 32,
      (uint64_t{1} << 63) - 1, uint64_t{1} << 63, ~uint64_t{0} - 7, ~uint64_t{0}};
  for (const uint64_t length : huge) {
    Put(Length(length) + rest);
    EXPECT_ERROR(OpenStatus(), kDataLoss,
                 path_ + ": header length: expected at most " + std::to_string(rest.size()) +
                     " for this file, got " + std::to_string(length));
  }
  // A length that takes data for JSON.
  Put(Length(json.size() + 1) + rest);
  EXPECT_ERROR(OpenStatus(), kDataLoss, "expected begin <= end <= 7");
}

TEST_F(SafetensorsTest, LimitsTheHeader) {
  // The largest allowed, of zeros and of spaces after the object; then one byte more.
  PutSparse(Length(kMaxSafetensorsHeaderBytes), 8 + kMaxSafetensorsHeaderBytes);
  EXPECT_ERROR(OpenStatus(), kDataLoss, "begins with {");
  PutSparse(Length(kMaxSafetensorsHeaderBytes) + "{}", 8 + kMaxSafetensorsHeaderBytes);
  EXPECT_ERROR(OpenStatus(), kDataLoss, "got a zero at its byte 2");
  PutSparse(Length(kMaxSafetensorsHeaderBytes + 1) + "{}", 200'000'000);
  EXPECT_ERROR(OpenStatus(), kDataLoss, "expected at most 100000000 for this file, got 100000001");
}

TEST_F(SafetensorsTest, ChecksTheLengthBeforeItReadsTheHeader) {
  // Only 8 bytes are at hand, so nothing that long can have been looked at.
  EXPECT_EQ(ParseSafetensorsHeaderBytes(Length(100'000'000), uint64_t{1} << 62).value(),
            100'000'000u);
  EXPECT_ERROR(ParseSafetensorsHeaderBytes(Length(100'000'001), uint64_t{1} << 62).status(),
               kDataLoss, "expected at most 100000000");
  EXPECT_ERROR(ParseSafetensorsHeaderBytes(Length(100'000'000), 100'000'007).status(), kDataLoss,
               "expected at most 99999999");
  EXPECT_ERROR(ParseSafetensorsHeaderBytes("", 0).status(), kDataLoss, "at least 8 bytes");
}

TEST_F(SafetensorsTest, RefusesWhatIsNotARegularFile) {
  EXPECT_ERROR(OpenStatus(), kNotFound, path_ + ": open");
  EXPECT_ERROR(SafetensorsReader::Open("").status(), kNotFound, "open");
  EXPECT_ERROR(SafetensorsReader::Open(folder_).status(), kInvalidArgument,
               folder_ + ": expected a regular file to read, got a folder");
  EXPECT_ERROR(SafetensorsReader::Open("/dev/zero").status(), kInvalidArgument, "got a device");
  ASSERT_EQ(mkfifo(path_.c_str(), 0600), 0);
  EXPECT_ERROR(OpenStatus(), kInvalidArgument, "got a named pipe");
}

TEST_F(SafetensorsTest, RefusesAFileWithoutPermission) {
  Put(Image("{}", 0));
  ASSERT_EQ(chmod(path_.c_str(), 0), 0);
  const bool root = geteuid() == 0;
  if (root) {
    ASSERT_EQ(seteuid(65534), 0);
  }
  const absl::Status status = OpenStatus();
  if (root) {
    ASSERT_EQ(seteuid(0), 0);
  }
  EXPECT_ERROR(status, kPermissionDenied, path_);
}

TEST_F(SafetensorsTest, SeesAFileThatShrinks) {
  Put(Image(Object(Bytes("a", 0, 10)), 10));
  const auto reader = SafetensorsReader::Open(path_);
  ASSERT_TRUE(reader.ok());
  fs::resize_file(path_, fs::file_size(path_) - 4);
  EXPECT_ERROR(reader->ReadAll(*reader->Find("a")).status(), kDataLoss,
               "expected 4 more bytes at byte");
}

TEST_F(SafetensorsTest, ReportsATensorLargerThanMemory) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "sanitizers need more address space than the limit";
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
  GTEST_SKIP() << "sanitizers need more address space than the limit";
#endif
#endif
  constexpr uint64_t kBytes = uint64_t{8} << 30;
  const std::string size = std::to_string(kBytes);
  const std::string json = OneTensor("[" + size + "]", "[0," + size + "]", "U8");
  PutSparse(Length(json.size()) + json, 8 + json.size() + kBytes);
  const auto reader = SafetensorsReader::Open(path_);
  ASSERT_TRUE(reader.ok()) << reader.status();
  struct rlimit before;
  ASSERT_EQ(getrlimit(RLIMIT_AS, &before), 0);
  const struct rlimit limit = {kBytes / 2, before.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_AS, &limit), 0);
  const absl::Status status = reader->ReadAll(reader->tensors()[0]).status();
  setrlimit(RLIMIT_AS, &before);
  EXPECT_ERROR(status, kResourceExhausted, "expected enough memory");
}

// --- Headers -----------------------------------------------------------------------------------

TEST(SafetensorsHeaderTest, AcceptsPaddingAndAnyOrderOfKeys) {
  const auto header = ParseSafetensorsHeader(
      R"({ "t" : {"data_offsets":[0, 4],"shape" : [ ],"dtype":"\u0046\u0033\u0032"},
           "__metadata__":{"k":"\u00e9"} }    )",
      4);
  ASSERT_TRUE(header.ok()) << header.status();
  EXPECT_EQ(header->tensors[0].dtype, DType::kF32);
  EXPECT_EQ(header->metadata.at("k"), "é");
  EXPECT_TRUE(ParseSafetensorsHeader(R"({"__metadata__":{}})", 0).ok());
}

TEST(SafetensorsHeaderTest, RefusesWhatIsNotOneObject) {
  for (const char* json : {"", " {}", "[]", "1", "\"t\"", "null", "x", "\xef\xbb\xbf{}"}) {
    EXPECT_BAD_HEADER(json, 0, "header: expected a JSON object that begins with {");
  }
  for (const char* json : {"{", "{\"", "{}x", "{}{}", "{},", "{'a':1}", "{\"a\"}", "{\"a\":}",
                           "{\"a\":}", "{,}", "{}}", "{/**/}", "{}//"}) {
    EXPECT_BAD_HEADER(json, 0, "header: expected JSON in UTF-8");
  }
  for (const char* json : {"{}\n", "{}\t ", "{} \r"}) {
    EXPECT_BAD_HEADER(json, 0, "header: expected padding by spaces only");
  }
  EXPECT_BAD_HEADER(std::string_view("{}\0", 3), 0, "got a zero at its byte 2");
  EXPECT_BAD_HEADER(std::string_view("{}\0}", 4), 0, "got a zero at its byte 2");
}

TEST(SafetensorsHeaderTest, RefusesNonUtf8) {
  for (const char* name : {"\xff", "\xc3", "\xc0\x80", "\xed\xa0\x80", "\xf4\x90\x80\x80"}) {
    EXPECT_BAD_HEADER(Object(Bytes(name, 0, 1)), 1, "header: expected JSON in UTF-8");
  }
  EXPECT_BAD_HEADER(Object(Bytes("\\ud800", 0, 1)), 1, "header: expected JSON in UTF-8");
  EXPECT_BAD_HEADER("{\xff}", 0, "header: expected JSON in UTF-8");
}

TEST(SafetensorsHeaderTest, RefusesDeepNesting) {
  const std::string deep(1'000'000, '[');
  EXPECT_BAD_HEADER(deep, 0, "begins with {");
  EXPECT_BAD_HEADER("{\"t\":" + deep, 0, "tensor \"t\": expected an object, got an array");
  EXPECT_BAD_HEADER(OneTensor(deep, "[0,4]"), 4, "tensor \"t\" shape: expected at most 64");
  std::string objects;
  for (int i = 0; i < 100'000; ++i) objects += "{\"a\":";
  EXPECT_BAD_HEADER(objects, 0, "tensor \"a\": expected dtype, shape and data_offsets");
}

TEST(SafetensorsHeaderTest, RefusesEntriesOfTheWrongKind) {
  for (const char* value : {"null", "true", "1", "-1", "1.5", "\"x\"", "[]"}) {
    EXPECT_BAD_HEADER(std::string("{\"t\":") + value + "}", 0,
                      "tensor \"t\": expected an object, got ");
  }
  const char* rule = "tensor \"t\": expected dtype, shape and data_offsets, once each, got ";
  const std::string all = R"("dtype":"U8","shape":[0],"data_offsets":[0,0])";
  EXPECT_TRUE(ParseSafetensorsHeader("{\"t\":{" + all + "}}", 0).ok());
  const auto expect_bad = [&](const std::string& fields, const std::string& got) {
    EXPECT_BAD_HEADER("{\"t\":{" + fields + "}}", 0, rule + got);
  };
  expect_bad("", "no dtype");
  expect_bad(R"("dtype":"U8")", "no shape");
  expect_bad(R"("dtype":"U8","shape":[0])", "no data_offsets");
  expect_bad(R"("shape":[0],"data_offsets":[0,0])", "no dtype");
  expect_bad(all + R"(,"extra":1)", "\"extra\"");
  expect_bad(all + R"(,"dtype":"U8")", "a second \"dtype\"");
  expect_bad(all + R"(,"shape":[0])", "a second \"shape\"");
  expect_bad(all + R"(,"data_offsets":[0,0])", "a second \"data_offsets\"");
  expect_bad(R"("DTYPE":"U8")", "\"DTYPE\"");
}

TEST(SafetensorsHeaderTest, RefusesBadTypes) {
  for (const char* dtype : {"", "F4", "f32", "F32 ", "FLOAT", "U128"}) {
    EXPECT_BAD_HEADER(OneTensor("[1]", "[0,4]", dtype), 4,
                      std::string("F64, C64, got \"") + dtype + "\"");
  }
  EXPECT_BAD_HEADER(R"({"t":{"dtype":4}})", 4, "tensor \"t\" dtype: expected a string, got 4");
  EXPECT_BAD_HEADER(R"({"t":{"dtype":null}})", 4, "dtype: expected a string, got null");
  EXPECT_BAD_HEADER(R"({"t":{"dtype":{}}})", 4, "dtype: expected a string, got an object");
  EXPECT_BAD_HEADER(R"({"t":{"dtype":["F32"]}})", 4, "dtype: expected a string, got an array");
}

TEST(SafetensorsHeaderTest, RefusesBadShapes) {
  for (const char* shape : {"1", "null", "\"1\"", "true", "-1", "1.0"}) {
    EXPECT_BAD_HEADER(OneTensor(shape, "[0,4]"), 4, "tensor \"t\" shape: expected an array, got ");
  }
  EXPECT_BAD_HEADER(OneTensor("{}", "[0,4]"), 4, "shape: expected an array, got an object");
  const std::pair<const char*, const char*> items[] = {
      {"-1", "-1"},
      {"-0", "-0"},
      {"1.0", "\"1.0\""},
      {"1e0", "\"1e0\""},
      {"9223372036854775808", "9223372036854775808"},
      {"18446744073709551615", "18446744073709551615"},
      {"18446744073709551616", "\"18446744073709551616\""},
      {"null", "null"},
      {"true", "true"},
      {"false", "false"},
      {"\"1\"", "\"1\""},
      {"[1]", "an array"},
      {"{}", "an object"},
  };
  for (const auto& [item, shown] : items) {
    EXPECT_BAD_HEADER(OneTensor(std::string("[1,") + item + "]", "[0,4]"), 4,
                      std::string("tensor \"t\" shape: expected at most 64 integers from 0 to "
                                  "2^63-1, got ") +
                          shown);
  }
  EXPECT_BAD_HEADER(OneTensor("[1e999]", "[0,4]"), 4, "expected JSON in UTF-8, got \"1e999\"");
  EXPECT_BAD_HEADER(OneTensor("[01]", "[0,4]"), 4, "expected JSON in UTF-8");
  std::string ones = "1";
  for (int i = 1; i < 64; ++i) ones += ",1";
  EXPECT_TRUE(ParseSafetensorsHeader(OneTensor("[" + ones + "]", "[0,4]"), 4).ok());
  EXPECT_BAD_HEADER(OneTensor("[" + ones + ",1]", "[0,4]"), 4,
                    "shape: expected at most 64 integers from 0 to 2^63-1, got one more");
}

TEST(SafetensorsHeaderTest, RefusesShapesThatOverflow) {
  const char* rule = "tensor \"t\" shape: expected dimensions of at least 0 with a product below";
  EXPECT_BAD_HEADER(OneTensor("[4294967296,4294967296]", "[0,4]"), 4, rule);    // 2^64
  EXPECT_BAD_HEADER(OneTensor("[4294967296,4294967297]", "[0,4]"), 4, rule);    // 2^64 + 2^32
  EXPECT_BAD_HEADER(OneTensor("[9223372036854775807,2,0]", "[0,0]"), 0, rule);  // as the reference
  EXPECT_BAD_HEADER(OneTensor("[4611686018427387905]", "[0,4]"), 4, rule);      // x 4 = 2^64 + 4
  EXPECT_BAD_HEADER(OneTensor("[9223372036854775807]", "[0,4]", "U8"), 4,
                    "expected 9223372036854775807 bytes for the shape [9223372036854775807] of U8");
  EXPECT_TRUE(ParseSafetensorsHeader(OneTensor("[0,9223372036854775807]", "[0,0]"), 0).ok());
}

TEST(SafetensorsHeaderTest, RefusesBadOffsets) {
  for (const char* offsets : {"0", "null", "\"0\"", "1.5"}) {
    EXPECT_BAD_HEADER(OneTensor("[1]", offsets), 4,
                      "tensor \"t\" data_offsets: expected an array, got ");
  }
  const std::pair<const char*, const char*> lists[] = {
      {"[]", "0 of them"},    {"[0]", "1 of them"},
      {"[0,4,4]", "4"},       {"[-1,3]", "-1"},
      {"[0,4.0]", "\"4.0\""}, {"[0,18446744073709551616]", "\"18446744073709551616\""},
      {"[0,null]", "null"},   {"[[0,4]]", "an array"},
      {"[0,\"4\"]", "\"4\""},
  };
  for (const auto& [list, shown] : lists) {
    EXPECT_BAD_HEADER(
        OneTensor("[1]", list), 4,
        std::string("tensor \"t\" data_offsets: expected two integers from 0 to 2^64-1, got ") +
            shown);
  }
  const std::pair<const char*, const char*> ranges[] = {
      {"[4,0]", "[4, 0]"},
      {"[4,8]", "[4, 8]"},
      {"[0,5]", "[0, 5]"},
      {"[5,5]", "[5, 5]"},
      {"[18446744073709551615,3]", "[18446744073709551615, 3]"},
      {"[0,18446744073709551615]", "[0, 18446744073709551615]"},
      {"[18446744073709551615,18446744073709551615]",
       "[18446744073709551615, 18446744073709551615]"},
  };
  for (const auto& [range, shown] : ranges) {
    EXPECT_BAD_HEADER(
        OneTensor("[1]", range), 4,
        std::string("tensor \"t\" data_offsets: expected begin <= end <= 4, the bytes that follow "
                    "the header, got ") +
            shown);
  }
}

TEST(SafetensorsHeaderTest, RefusesSizesThatDisagreeWithTheShape) {
  EXPECT_BAD_HEADER(OneTensor("[1]", "[0,3]"), 3,
                    "tensor \"t\": expected 4 bytes for the shape [1] of F32, got 3");
  EXPECT_BAD_HEADER(OneTensor("[]", "[0,8]"), 8, "expected 4 bytes for the shape [] of F32, got 8");
  EXPECT_BAD_HEADER(OneTensor("[2,0]", "[0,4]"), 4, "expected 0 bytes for the shape [2, 0]");
}

TEST(SafetensorsHeaderTest, RefusesOverlapsAndHoles) {
  const auto expect_bad = [](const std::string& members, uint64_t bytes, const std::string& piece) {
    EXPECT_BAD_HEADER(Object(members), bytes, piece);
  };
  expect_bad(Bytes("a", 0, 4) + "," + Bytes("b", 3, 8), 8,
             "tensor \"b\" data_offsets: expected to begin at byte 4, where the tensors before it "
             "end, got 3 (an overlap)");
  expect_bad(Bytes("b", 0, 4) + "," + Bytes("a", 0, 4), 4, "got 0 (an overlap)");
  expect_bad(Bytes("a", 0, 8) + "," + Bytes("b", 4, 4), 8, "tensor \"b\"");
  expect_bad(Bytes("b", 5, 8) + "," + Bytes("a", 0, 4), 8,
             "tensor \"b\" data_offsets: expected to begin at byte 4, where the tensors before it "
             "end, got 5 (a hole)");
  expect_bad(Bytes("a", 1, 8), 8, "got 1 (a hole)");
  expect_bad(Bytes("a", 0, 7), 8,
             "data section: expected 7 bytes, where the last tensor ends, got 8");
  EXPECT_BAD_HEADER("{}", 1, "data section: expected 0 bytes");
}

TEST(SafetensorsHeaderTest, RefusesRepeatedAndEmptyNames) {
  EXPECT_BAD_HEADER(Object(Bytes("a", 0, 1) + "," + Bytes("b", 1, 2) + "," + Bytes("a", 2, 3)), 3,
                    "tensor \"a\": expected names that differ, got a second one");
  EXPECT_BAD_HEADER(Object(Bytes("a", 0, 1) + "," + Bytes("\\u0061", 1, 2)), 2,
                    "tensor \"a\": expected names that differ");
  EXPECT_BAD_HEADER(Object(Bytes("", 0, 1)), 1, "tensor \"\": expected a name");
}

TEST(SafetensorsHeaderTest, RefusesBadMetadata) {
  for (const char* value : {"null", "1", "[]", "\"x\"", "true"}) {
    EXPECT_BAD_HEADER(std::string("{\"__metadata__\":") + value + "}", 0,
                      "__metadata__: expected an object, got ");
  }
  for (const char* value : {"null", "1", "-1", "1.5", "[]", "{}", "false"}) {
    EXPECT_BAD_HEADER(std::string("{\"__metadata__\":{\"k\":") + value + "}}", 0,
                      "__metadata__: expected strings only, got ");
  }
  EXPECT_BAD_HEADER(R"({"__metadata__":{"k":"1","k":"2"}})", 0,
                    "__metadata__: expected keys that differ, got a second \"k\"");
  EXPECT_BAD_HEADER(R"({"__metadata__":{},"__metadata__":{}})", 0,
                    "header: expected one __metadata__ at most, got a second one");
}

TEST(SafetensorsHeaderTest, ShowsHostileNamesEscapedAndShort) {
  const std::string name = "\\u001b[2J\\u202e\\u009b" + std::string(5000, 'x');
  const absl::Status status = ParseSafetensorsHeader("{\"" + name + "\":1}", 0).status();
  EXPECT_ERROR(status, kDataLoss, "tensor \"\\x1b[2J\\xe2\\x80\\xae\\xc2\\x9bxxx");
  EXPECT_LT(status.message().size(), 300u);
  const absl::Status syntax = ParseSafetensorsHeader("{\"" + std::string(5000, 'y'), 0).status();
  EXPECT_ERROR(syntax, kDataLoss, "yyy\"...");
  EXPECT_LT(syntax.message().size(), 300u);
}

TEST(SafetensorsHeaderTest, TakesManyTensors) {
  std::string json = "{";
  for (int i = 0; i < 20'000; ++i) {
    json += Bytes("model.layers." + std::to_string(i), i, i + 1) + ",";
  }
  json.back() = '}';
  const auto header = ParseSafetensorsHeader(json, 20'000);
  ASSERT_TRUE(header.ok()) << header.status();
  EXPECT_EQ(header->tensors[19'999].name, "model.layers.19999");
}

// --- Writing what the reader would refuse ------------------------------------------------------

class SafetensorsWriteTest : public SafetensorsTest {
 protected:
  absl::Status Write(const std::vector<TensorToWrite>& tensors,
                     const std::map<std::string, std::string>& metadata = {}) const {
    return WriteSafetensors(path_, tensors, metadata);
  }
  const std::vector<std::byte> data_ = Pattern(4, 0);
};

TEST_F(SafetensorsWriteTest, RefusesBadTensors) {
  EXPECT_ERROR(Write({{"t", DType::kF32, {2}, data_}}), kInvalidArgument,
               path_ + ": tensor \"t\": expected 8 bytes for the shape [2] of F32, got 4");
  EXPECT_ERROR(Write({{"t", DType::kF32, {-1}, data_}}), kInvalidArgument,
               "shape: expected dimensions of at least 0");
  EXPECT_ERROR(Write({{"t", DType::kF32, {INT64_MAX, INT64_MAX}, data_}}), kInvalidArgument,
               "a product below 2^63");
  EXPECT_ERROR(Write({{"t", DType::kF32, {INT64_MAX}, data_}}), kInvalidArgument,
               "fewer than 2^64 bytes");
  EXPECT_ERROR(Write({{"t", DType::kF32, std::vector<int64_t>(65, 1), data_}}), kInvalidArgument,
               "at most 64 dimensions, got 65");
  EXPECT_ERROR(Write({{"", DType::kF32, {1}, data_}}), kInvalidArgument, "expected a name");
  EXPECT_ERROR(Write({{"\xff", DType::kF32, {1}, data_}}), kInvalidArgument,
               "text: expected UTF-8, got \"\\xff\"");
  EXPECT_TRUE(fs::is_empty(folder_));
}

TEST_F(SafetensorsWriteTest, RefusesRepeatedAndReservedNames) {
  const auto bytes = std::span(data_).first(1);
  EXPECT_ERROR(Write({{"t", DType::kF32, {1}, data_}, {"t", DType::kU8, {1}, bytes}}),
               kInvalidArgument, "tensor \"t\": expected names that differ");
  EXPECT_ERROR(Write({{"__metadata__", DType::kU8, {1}, bytes}}), kInvalidArgument,
               "from __metadata__");
  EXPECT_TRUE(fs::is_empty(folder_));
}

TEST_F(SafetensorsWriteTest, RefusesBadMetadata) {
  EXPECT_ERROR(Write({}, {{"k", "\xff"}}), kInvalidArgument, path_ + ": text: expected UTF-8");
  EXPECT_ERROR(Write({}, {{"\xc3", "v"}}), kInvalidArgument, path_ + ": text: expected UTF-8");
  EXPECT_ERROR(Write({}, {{"k", std::string(kMaxSafetensorsHeaderBytes, 'x')}}), kInvalidArgument,
               "header: expected at most 100000000 bytes");
  EXPECT_TRUE(fs::is_empty(folder_));
}

TEST_F(SafetensorsWriteTest, RefusesBadPaths) {
  EXPECT_ERROR(WriteSafetensors("/dev/null", {}, {}), kInvalidArgument, "/dev/null: expected");
  EXPECT_ERROR(WriteSafetensors(folder_, {}, {}), kInvalidArgument, "got a folder");
  EXPECT_ERROR(WriteSafetensors(folder_ + "/none/t", {}, {}), kNotFound, folder_ + "/none/t");
}

TEST_F(SafetensorsWriteTest, ReplacesTheFileThatIsBeingRead) {
  ASSERT_TRUE(Write({{"t", DType::kU8, {4}, data_}}).ok());
  const auto reader = SafetensorsReader::Open(path_);
  ASSERT_TRUE(reader.ok());
  ASSERT_TRUE(Write({}).ok());
  EXPECT_EQ(reader->ReadAll(*reader->Find("t")).value(), data_);
  EXPECT_TRUE(SafetensorsReader::Open(path_).value().tensors().empty());
}

}  // namespace
}  // namespace nibble
