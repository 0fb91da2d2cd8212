#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "base/status.h"
#include "io/safetensors.h"
#include "tests/testing/is_error.h"
#include "tests/testing/temp_dir.h"

namespace nibble {
namespace {

using testing::FileBytes;
using testing::IsError;
using testing::TempDir;

std::vector<std::byte> Counting(size_t count) {
  std::vector<std::byte> bytes(count);
  for (size_t i = 0; i < count; ++i) bytes[i] = static_cast<std::byte>(i);
  return bytes;
}

// Of differing element sizes, one empty.
const std::vector<TensorSpec> kSpecs = {{"codes", DType::kU8, {3, 5}},
                                        {"scale", DType::kF32, {}},
                                        {"empty", DType::kBf16, {0, 16}},
                                        {"weight", DType::kBf16, {2, 4}}};

size_t BytesOf(const TensorSpec& spec) {
  return static_cast<size_t>(*ElementCount(spec.shape)) * DTypeBytes(spec.dtype);
}

TEST(SafetensorsWriterTest, AnyOrderGivesTheSameFile) {
  const TempDir folder;
  std::vector<std::vector<std::byte>> data;
  std::vector<TensorToWrite> whole;
  for (const TensorSpec& spec : kSpecs) data.push_back(Counting(BytesOf(spec)));
  for (size_t i = 0; i < kSpecs.size(); ++i) {
    whole.push_back({kSpecs[i].name, kSpecs[i].dtype, kSpecs[i].shape, data[i]});
  }
  ASSERT_TRUE(WriteSafetensors(folder.path("whole"), whole, {{"format", "pt"}}).ok());

  auto writer = SafetensorsWriter::Create(folder.path("pieces"), kSpecs, {{"format", "pt"}});
  ASSERT_TRUE(writer.ok()) << writer.status();
  for (size_t i = kSpecs.size(); i-- > 0;) {
    const size_t half = data[i].size() / 2;
    const std::span<const std::byte> bytes = data[i];
    ASSERT_TRUE(writer->Write(i, half, bytes.subspan(half)).ok());
    ASSERT_TRUE(writer->Write(i, 0, bytes.first(half)).ok());
  }
  ASSERT_TRUE(writer->Commit().ok());
  EXPECT_EQ(FileBytes(folder.path("whole")), FileBytes(folder.path("pieces")));
}

TEST(SafetensorsWriterTest, RefusesMissingBytesAndWritesNothing) {
  const TempDir folder;
  auto writer = SafetensorsWriter::Create(folder.path("file"), kSpecs, {});
  ASSERT_TRUE(writer.ok());
  ASSERT_TRUE(writer->Write(0, 0, Counting(BytesOf(kSpecs[0]))).ok());
  EXPECT_TRUE(IsError(writer->Commit(), absl::StatusCode::kFailedPrecondition,
                      "tensor \"scale\": expected its 4 bytes"));
  { const auto dropped = *std::move(writer); }
  EXPECT_TRUE(folder.Names().empty());
}

TEST(SafetensorsWriterTest, RefusesBytesPastTheEnd) {
  const TempDir folder;
  auto writer = SafetensorsWriter::Create(folder.path("file"), kSpecs, {});
  ASSERT_TRUE(writer.ok());
  for (const uint64_t offset : {uint64_t{15}, uint64_t{1} << 63, ~uint64_t{0}}) {
    EXPECT_EQ(writer->Write(0, offset, Counting(1)).code(), absl::StatusCode::kInvalidArgument);
  }
  EXPECT_EQ(writer->Write(0, 1, Counting(15)).code(), absl::StatusCode::kInvalidArgument);
}

TEST(SafetensorsWriterTest, RefusesWhatTheReaderWould) {
  const TempDir folder;
  const auto refused = [&](std::vector<TensorSpec> specs) {
    return SafetensorsWriter::Create(folder.path("file"), specs, {}).status().code() ==
           absl::StatusCode::kInvalidArgument;
  };
  EXPECT_TRUE(refused({{"a", DType::kU8, {1}}, {"a", DType::kU8, {1}}}));
  EXPECT_TRUE(refused({{"", DType::kU8, {1}}}));
  EXPECT_TRUE(refused({{"__metadata__", DType::kU8, {1}}}));
  EXPECT_TRUE(refused({{"\xff", DType::kU8, {1}}}));
  EXPECT_TRUE(refused({{"a", DType::kU8, {-1}}}));
  EXPECT_TRUE(refused({{"a", DType::kF32, {int64_t{1} << 40, int64_t{1} << 40}}}));
  EXPECT_TRUE(refused({{"a", DType::kU8, {int64_t{1} << 62}},
                       {"b", DType::kU8, {int64_t{1} << 62}},
                       {"c", DType::kU8, {int64_t{1} << 62}}}));
  EXPECT_TRUE(folder.Names().empty());
}

}  // namespace
}  // namespace nibble
