#include "kernels/tuning/store.h"

#include <cstdint>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "base/status.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/is_error.h"

namespace nibble {
namespace {

using ::nibble::testing::IsError;
using ::testing::Optional;

constexpr char kBuild[] = "0123456789abcdef";
constexpr char kHeader[] = "nibble tuning 1\n";
constexpr char kLine[] =
    "NVIDIA H200 | scale_sweep | BF16 | 2^21 | 0123456789abcdef | warps=4 blocks_per_thread=2\n";

TuningKey Key(int bucket = 21) {
  return {"NVIDIA H200", "scale_sweep", kBuild, DType::kBf16, bucket};
}

TuningStore Parsed(std::string_view text) {
  auto store = TuningStore::Parse(text, "here");
  EXPECT_TRUE(store.ok()) << store.status();
  return store.ok() ? *std::move(store) : TuningStore();
}

void Put(TuningStore& store, const TuningKey& key, std::string_view config) {
  const absl::Status status = store.Put(key, config);
  EXPECT_TRUE(status.ok()) << status;
}

// --- Buckets and lookup -------------------------------------------------------------------------

TEST(TuningBucketTest, IsTheLogarithmOfTheBlocks) {
  EXPECT_EQ(TuningBucket(-1), 0);
  EXPECT_EQ(TuningBucket(0), 0);
  EXPECT_EQ(TuningBucket(1), 0);
  EXPECT_EQ(TuningBucket(2), 1);
  EXPECT_EQ(TuningBucket(3), 1);
  EXPECT_EQ(TuningBucket((1 << 21) - 1), 20);
  EXPECT_EQ(TuningBucket(1 << 21), 21);
  EXPECT_EQ(TuningBucket(std::numeric_limits<int64_t>::max()), kTuningBuckets - 1);
}

TEST(TuningStoreTest, PicksTheNearestBucket) {
  TuningStore store;
  EXPECT_EQ(store.Pick(Key()), std::nullopt);
  Put(store, Key(14), "warps=14");
  Put(store, Key(18), "warps=18");
  Put(store, Key(23), "warps=23");
  for (const auto& [bucket, config] :
       {std::pair(0, "warps=14"), std::pair(14, "warps=14"), std::pair(15, "warps=14"),
        std::pair(16, "warps=14"), std::pair(17, "warps=18"), std::pair(18, "warps=18"),
        std::pair(20, "warps=18"), std::pair(21, "warps=23"), std::pair(62, "warps=23")}) {
    EXPECT_THAT(store.Pick(Key(bucket)), Optional(std::string_view(config))) << bucket;
  }
}

TEST(TuningStoreTest, PicksNothingOfAnotherKey) {
  TuningStore store;
  Put(store, Key(), "warps=4");
  for (const TuningKey& other :
       {TuningKey{"NVIDIA H20", "scale_sweep", kBuild, DType::kBf16, 21},
        TuningKey{"NVIDIA H200 NVL", "scale_sweep", kBuild, DType::kBf16, 21},
        TuningKey{"NVIDIA H200", "amax", kBuild, DType::kBf16, 21},
        TuningKey{"NVIDIA H200", "scale_sweep", "0123456789abcdee", DType::kBf16, 21},
        TuningKey{"NVIDIA H200", "scale_sweep", "fedcba9876543210", DType::kBf16, 21},
        TuningKey{"NVIDIA H200", "scale_sweep", kBuild, DType::kF16, 21},
        TuningKey{"NVIDIA H200", "scale_sweep", kBuild, DType::kF32, 21}}) {
    EXPECT_EQ(store.Pick(other), std::nullopt);
    Put(store, other, "warps=8");
  }
  EXPECT_THAT(store.Pick(Key()), Optional(std::string_view("warps=4")));
  EXPECT_THAT(store.Pick(Key(3)), Optional(std::string_view("warps=4")));
}

TEST(TuningStoreTest, MergedPicksWin) {
  TuningStore shipped, own;
  Put(shipped, Key(20), "warps=1");
  Put(shipped, Key(21), "warps=2");
  Put(own, Key(21), "warps=3");
  Put(own, Key(22), "warps=4");
  shipped.Merge(own);
  EXPECT_EQ(shipped.picks().size(), 3u);
  EXPECT_THAT(shipped.Pick(Key(20)), Optional(std::string_view("warps=1")));
  EXPECT_THAT(shipped.Pick(Key(21)), Optional(std::string_view("warps=3")));
  EXPECT_THAT(shipped.Pick(Key(22)), Optional(std::string_view("warps=4")));
}

TEST(TuningStoreTest, DropsStalePicksOfOneOperationOnOneDevice) {
  const TuningKey current = Key();
  TuningKey stale = Key(), other_op = Key(), other_device = Key();
  stale.build_id = other_op.build_id = other_device.build_id = "fedcba9876543210";
  other_op.op = "amax";
  other_device.device = "NVIDIA B200";
  TuningStore store;
  for (const TuningKey& key : {current, stale, other_op, other_device}) Put(store, key, "warps=4");
  store.DropStale("NVIDIA H200", "scale_sweep", kBuild);
  EXPECT_EQ(store.picks().size(), 3u);
  EXPECT_FALSE(store.picks().contains(stale));
}

// --- The text -----------------------------------------------------------------------------------

TEST(TuningStoreTest, WritesWhatItReads) {
  TuningStore store;
  Put(store, Key(), "warps=4 blocks_per_thread=2");
  EXPECT_EQ(
      store.Format(),
      absl::StrCat(kHeader, "# device | operation | type | blocks | build | config\n", kLine));
  Put(store, Key(0), "a=-2147483648");
  Put(store, Key(62), "a=2147483647 b=0");
  Put(store, {"x", "y", kBuild, DType::kF32, 7}, "v=1");
  EXPECT_EQ(Parsed(store.Format()).picks(), store.picks());
  EXPECT_EQ(Parsed(store.Format()).Format(), store.Format());
  EXPECT_EQ(Parsed(TuningStore().Format()).picks(), TuningStore().picks());
}

TEST(TuningStoreTest, ReadsCommentsEmptyLinesAndSpaces) {
  const TuningStore store = Parsed(absl::StrCat(
      kHeader, "\n   \n# | what | ever\n",
      "  NVIDIA H200   |scale_sweep|BF16 |2^21| 0123456789abcdef |warps=4 blocks_per_thread=2"));
  EXPECT_EQ(store.picks().size(), 1u);
  EXPECT_THAT(store.Pick(Key()), Optional(std::string_view("warps=4 blocks_per_thread=2")));
  EXPECT_TRUE(Parsed("nibble tuning 1").picks().empty());
}

TEST(TuningStoreTest, SaysWhatIsWrongAndWhere) {
  const auto line = [](std::string_view device, std::string_view op, std::string_view dtype,
                       std::string_view blocks, std::string_view build, std::string_view config) {
    std::string text = kHeader;
    for (std::string_view field : {device, op, dtype, blocks, build}) {
      absl::StrAppend(&text, ToAbsl(field), " | ");
    }
    return absl::StrCat(text, ToAbsl(config), "\n");
  };
  const std::string long_name(300, 'a');
  const struct {
    std::string text, piece;
  } kCases[] = {
      {"", "here:1: first line: expected nibble tuning 1, got \"\""},
      {"\n", "here:1: first line"},
      {"nibble tuning 2\n", "here:1: first line"},
      {std::string("nibble tuning 1\0\n", 17), "here:1: first line"},
      {"nibble tuning 1\r\n", "here:1: first line"},
      {"\x7f"
       "ELF\x02\x01\x01",
       "got \"\\x7fELF"},
      {absl::StrCat(kHeader, "warps=4\n"), "here:2: line: expected six fields"},
      {absl::StrCat(kHeader, kLine, "\n", "a|b|c|d|e|f|g\n"), "here:4: line: expected six fields"},
      {absl::StrCat(kHeader, "|||||\n"), "here:2: type"},
      {absl::StrCat(kHeader, kLine, kLine), "here:3: line: expected one pick a key"},
      {line("", "op", "BF16", "2^1", kBuild, "a=1"), "here:2: device"},
      {line("x\x1b[31m", "op", "BF16", "2^1", kBuild, "a=1"), "here:2: device"},
      {line("x\xff", "op", "BF16", "2^1", kBuild, "a=1"), "here:2: device"},
      {line(long_name, "op", "BF16", "2^1", kBuild, "a=1"), "here:2: field"},
      {line("x", "", "BF16", "2^1", kBuild, "a=1"), "here:2: operation"},
      {line("x", "Op", "BF16", "2^1", kBuild, "a=1"), "here:2: operation"},
      {line("x", "o p", "BF16", "2^1", kBuild, "a=1"), "here:2: operation"},
      {line("x", long_name, "BF16", "2^1", kBuild, "a=1"), "here:2: field"},
      {line("x", "op", "bf16", "2^1", kBuild, "a=1"), "here:2: type"},
      {line("x", "op", "BF16", "21", kBuild, "a=1"), "here:2: blocks"},
      {line("x", "op", "BF16", "2^", kBuild, "a=1"), "here:2: blocks"},
      {line("x", "op", "BF16", "2^63", kBuild, "a=1"), "here:2: blocks"},
      {line("x", "op", "BF16", "2^-1", kBuild, "a=1"), "here:2: blocks"},
      {line("x", "op", "BF16", "2^+1", kBuild, "a=1"), "here:2: blocks"},
      {line("x", "op", "BF16", "2^01", kBuild, "a=1"), "here:2: blocks"},
      {line("x", "op", "BF16", "2^99999999999999999999", kBuild, "a=1"), "here:2: blocks"},
      {line("x", "op", "BF16", "2^1", "0123456789abcde", "a=1"), "here:2: build"},
      {line("x", "op", "BF16", "2^1", "0123456789ABCDEF", "a=1"), "here:2: build"},
      {line("x", "op", "BF16", "2^1", kBuild, ""), "here:2: config"},
      {line("x", "op", "BF16", "2^1", kBuild, "4"), "here:2: config"},
      {line("x", "op", "BF16", "2^1", kBuild, "a="), "here:2: config"},
      {line("x", "op", "BF16", "2^1", kBuild, "=1"), "here:2: config"},
      {line("x", "op", "BF16", "2^1", kBuild, "a=x"), "here:2: config"},
      {line("x", "op", "BF16", "2^1", kBuild, "a=1=2"), "here:2: config"},
      {line("x", "op", "BF16", "2^1", kBuild, "a=2147483648"), "here:2: config"},
      {line("x", "op", "BF16", "2^1", kBuild, "a=1  b=2"), "here:2: config"},
      {line("x", "op", "BF16", "2^1", kBuild, "a=1 a=2"), "here:2: config"},
      {line("x", "op", "BF16", "2^1", kBuild, "a=1, b=2"), "here:2: config"},
      {line("x", "op", "BF16", "2^1", kBuild, long_name + "=1"), "here:2: field"},
  };
  for (const auto& c : kCases) {
    EXPECT_TRUE(IsError(TuningStore::Parse(c.text, "here"), absl::StatusCode::kDataLoss, c.piece))
        << c.text;
  }
}

TEST(TuningStoreTest, RefusesToHoldWhatItCouldNotReadBack) {
  TuningStore store;
  const auto refused = [&](const TuningKey& key, std::string_view config, std::string_view piece) {
    EXPECT_TRUE(IsError(store.Put(key, config), absl::StatusCode::kInvalidArgument, piece));
  };
  refused({"a|b", "op", kBuild, DType::kBf16, 1}, "a=1", "device");
  refused({"#1", "op", kBuild, DType::kBf16, 1}, "a=1", "device");
  refused({" x", "op", kBuild, DType::kBf16, 1}, "a=1", "device");
  refused({"x\n", "op", kBuild, DType::kBf16, 1}, "a=1", "device");
  refused({"x", "op|", kBuild, DType::kBf16, 1}, "a=1", "operation");
  refused({"x", "op", "", DType::kBf16, 1}, "a=1", "build");
  refused({"x", "op", kBuild, DType::kBf16, 63}, "a=1", "blocks");
  refused({"x", "op", kBuild, DType::kBf16, -1}, "a=1", "blocks");
  refused({"x", "op", kBuild, DType::kBf16, 1}, "a=1\n", "config");
  EXPECT_TRUE(store.picks().empty());
}

// Whatever a file holds is read or refused; what is read survives being written.
TEST(TuningStoreTest, AnyBytesAreReadOrRefused) {
  const std::string valid = absl::StrCat(kHeader, "# comment\n", kLine,
                                         "x | y | F32 | 2^3 | fedcba9876543210 | a=1 b=-2\n");
  constexpr std::string_view kUseful = "|\n =^#0129afz_-\r\t\xff";
  std::mt19937 random(1);
  int read = 0, refused = 0;
  for (int i = 0; i < 20000; ++i) {
    std::string text = valid;
    for (int edits = 1 + static_cast<int>(random() % 3); edits > 0; --edits) {
      const size_t at = random() % (text.size() + 1);
      const char c = random() % 8 == 0 ? static_cast<char>(random() % 256)
                                       : kUseful[random() % kUseful.size()];
      switch (random() % 4) {
        case 0:
          text.insert(at, 1, c);
          break;
        case 1:
          text.resize(at);
          break;
        case 2:
          text.erase(at, random() % 20);
          break;
        default:
          if (at < text.size()) text[at] = c;
      }
    }
    const auto store = TuningStore::Parse(text, "here");
    if (!store.ok()) {
      ++refused;
      ASSERT_TRUE(IsError(store, absl::StatusCode::kDataLoss, "here:")) << text;
      continue;
    }
    ++read;
    ASSERT_EQ(Parsed(store->Format()).picks(), store->picks()) << text;
  }
  EXPECT_GT(read, 1000);
  EXPECT_GT(refused, 1000);
}

}  // namespace
}  // namespace nibble
