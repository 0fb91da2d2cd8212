#include "io/atomic_file.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "base/status.h"
#include "io/file_descriptor.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

std::string ReadBack(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

#define EXPECT_ERROR(status, expected_code, piece)                                    \
  do {                                                                                \
    const absl::Status actual = (status);                                             \
    EXPECT_EQ(actual.code(), absl::StatusCode::expected_code) << actual;              \
    EXPECT_NE(ToStd(actual.message()).find(piece), std::string_view::npos) << actual; \
  } while (false)

class AtomicFileTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string name = ::testing::TempDir() + "atomic_file_XXXXXX";
    ASSERT_NE(mkdtemp(name.data()), nullptr);
    folder_ = name;
  }
  void TearDown() override { fs::remove_all(folder_); }

  std::string Path(const std::string& name) const { return folder_ + "/" + name; }

  std::vector<std::string> Names() const {
    std::vector<std::string> names;
    for (const auto& entry : fs::directory_iterator(folder_)) {
      names.push_back(entry.path().filename().string());
    }
    std::sort(names.begin(), names.end());
    return names;
  }
  using List = std::vector<std::string>;

  // Whether the folder can hold files that have no name yet.
  bool HasUnnamedFiles() const {
    return FileDescriptor(open(folder_.c_str(), O_WRONLY | O_TMPFILE | O_CLOEXEC, 0600)).is_open();
  }
  // How many names a file that is being written has.
  size_t TemporaryNames() const { return HasUnnamedFiles() ? 0 : 1; }

  std::string folder_;
};

TEST_F(AtomicFileTest, AppearsOnlyAtCommit) {
  auto file = AtomicFile::Create(Path("out"));
  ASSERT_TRUE(file.ok()) << file.status();
  ASSERT_TRUE(file->Append("hello, ").ok());
  const std::vector<std::byte> bytes = {std::byte{0}, std::byte{255}};
  ASSERT_TRUE(file->Append(bytes).ok());
  EXPECT_FALSE(fs::exists(Path("out")));
  ASSERT_EQ(Names().size(), TemporaryNames());
  for (const std::string& name : Names()) {
    EXPECT_EQ(name.rfind("out.partial-" + std::to_string(getpid()) + "-", 0), 0u) << name;
  }
  ASSERT_TRUE(file->Commit().ok());
  EXPECT_EQ(Names(), List{"out"});
  EXPECT_EQ(ReadBack(Path("out")), std::string("hello, \0\xff", 9));
}

TEST_F(AtomicFileTest, LeavesNothingWithoutCommit) {
  {
    auto file = AtomicFile::Create(Path("out"));
    ASSERT_TRUE(file.ok());
    ASSERT_TRUE(file->Append("hello").ok());
  }
  EXPECT_EQ(Names(), List{});
}

TEST_F(AtomicFileTest, ReplacesAFileOrKeepsIt) {
  ASSERT_TRUE(WriteFileAtomically(Path("out"), "old").ok());
  {
    auto file = AtomicFile::Create(Path("out"));
    ASSERT_TRUE(file.ok());
    ASSERT_TRUE(file->Append("abandoned").ok());
  }
  EXPECT_EQ(ReadBack(Path("out")), "old");
  ASSERT_TRUE(WriteFileAtomically(Path("out"), "new").ok());
  EXPECT_EQ(ReadBack(Path("out")), "new");
  ASSERT_TRUE(WriteFileAtomically(Path("out"), "").ok());
  EXPECT_EQ(ReadBack(Path("out")), "");
  EXPECT_EQ(Names(), List{"out"});
}

TEST_F(AtomicFileTest, HasTheModeThatTheUmaskAsksFor) {
  const mode_t before = umask(027);
  ASSERT_TRUE(WriteFileAtomically(Path("out"), "x").ok());
  umask(before);
  struct stat info;
  ASSERT_EQ(stat(Path("out").c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0640u);
}

TEST_F(AtomicFileTest, RefusesAfterCommit) {
  auto file = AtomicFile::Create(Path("out"));
  ASSERT_TRUE(file.ok());
  ASSERT_TRUE(file->Commit().ok());
  EXPECT_ERROR(file->Append("x"), kFailedPrecondition,
               "out: expected a file that is being written");
  EXPECT_ERROR(file->Commit(), kFailedPrecondition, "out: expected a file that is being written");
  EXPECT_EQ(ReadBack(Path("out")), "");
}

TEST_F(AtomicFileTest, Moves) {
  auto a = AtomicFile::Create(Path("a"));
  auto b = AtomicFile::Create(Path("b"));
  ASSERT_TRUE(a.ok() && b.ok());
  ASSERT_TRUE(a->Append("1").ok());
  AtomicFile moved = *std::move(a);
  EXPECT_EQ(a->Append("x").code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(a->Commit().code(), absl::StatusCode::kFailedPrecondition);
  ASSERT_TRUE(moved.Append("2").ok());
  *b = std::move(moved);  // what b was writing is dropped
  ASSERT_EQ(Names().size(), TemporaryNames());
  ASSERT_TRUE(b->Append("3").ok());
  ASSERT_TRUE(b->Commit().ok());
  EXPECT_EQ(ReadBack(Path("a")), "123");
  EXPECT_EQ(Names(), List{"a"});
}

TEST_F(AtomicFileTest, SeveralAtOnceDoNotCollide) {
  auto a = AtomicFile::Create(Path("out"));
  auto b = AtomicFile::Create(Path("out"));
  ASSERT_TRUE(a.ok() && b.ok());
  ASSERT_TRUE(a->Append("a").ok() && b->Append("b").ok());
  ASSERT_TRUE(b->Commit().ok());
  ASSERT_TRUE(a->Commit().ok());
  EXPECT_EQ(ReadBack(Path("out")), "a");
  EXPECT_EQ(Names(), List{"out"});
}

TEST_F(AtomicFileTest, StepsOverATemporaryLeftByADeadProcess) {
  ASSERT_TRUE(WriteFileAtomically(Path("out"), "old").ok());
  constexpr size_t kStale = 300;  // more than the counter can have reached
  for (size_t i = 0; i < kStale; ++i) {
    std::ofstream(Path("out.partial-" + std::to_string(getpid()) + "-" + std::to_string(i)))
        << "stale";
  }
  ASSERT_TRUE(WriteFileAtomically(Path("out"), "new").ok());
  const List names = Names();
  EXPECT_EQ(names.size(), kStale + 1);
  for (const std::string& name : names) {
    EXPECT_EQ(ReadBack(Path(name)), name == "out" ? "new" : "stale") << name;
  }
}

// A process that dies between Create and Commit, by a signal that it does not see coming.
TEST_F(AtomicFileTest, LeavesNothingWhenKilled) {
  if (!HasUnnamedFiles()) GTEST_SKIP() << "no unnamed files on this file system";
  ASSERT_TRUE(WriteFileAtomically(Path("old"), "old").ok());
  for (int signal : {SIGKILL, SIGTERM, SIGINT}) {
    int ready[2];
    ASSERT_EQ(pipe(ready), 0);
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      auto fresh = AtomicFile::Create(Path("new"));
      auto replacing = AtomicFile::Create(Path("old"));
      if (!fresh.ok() || !replacing.ok()) _exit(1);
      if (!fresh->Append("half").ok() || !replacing->Append("half").ok()) _exit(2);
      if (write(ready[1], "", 1) != 1) _exit(3);
      for (;;) pause();
    }
    close(ready[1]);
    char byte;
    EXPECT_EQ(read(ready[0], &byte, 1), 1);
    close(ready[0]);
    EXPECT_EQ(kill(child, signal), 0);
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == signal) << status;
    EXPECT_EQ(Names(), List{"old"});
    EXPECT_EQ(ReadBack(Path("old")), "old");
  }
}

TEST_F(AtomicFileTest, WritesALargeFile) {
  const std::string big(5'000'003, 'x');
  ASSERT_TRUE(WriteFileAtomically(Path("out"), big).ok());
  EXPECT_EQ(ReadBack(Path("out")), big);
}

TEST_F(AtomicFileTest, RefusesWhatIsNotARegularFile) {
  EXPECT_ERROR(WriteFileAtomically("/dev/null", "x"), kInvalidArgument,
               "/dev/null: expected the path of a regular file to write, got a device");
  struct stat info;
  ASSERT_EQ(stat("/dev/null", &info), 0);
  EXPECT_TRUE(S_ISCHR(info.st_mode));

  EXPECT_ERROR(WriteFileAtomically(folder_, "x"), kInvalidArgument, "got a folder");
  EXPECT_ERROR(WriteFileAtomically(folder_ + "/", "x"), kInvalidArgument, "got a folder");
  EXPECT_ERROR(WriteFileAtomically(".", "x"), kInvalidArgument, "got a folder");

  ASSERT_EQ(mkfifo(Path("pipe").c_str(), 0600), 0);
  EXPECT_ERROR(WriteFileAtomically(Path("pipe"), "x"), kInvalidArgument, "got a named pipe");

  ASSERT_EQ(mknod(Path("socket").c_str(), S_IFSOCK | 0600, 0), 0);
  EXPECT_ERROR(WriteFileAtomically(Path("socket"), "x"), kInvalidArgument, "got a socket");

  fs::create_symlink("/dev/null", Path("null"));
  EXPECT_ERROR(WriteFileAtomically(Path("null"), "x"), kInvalidArgument, "got a device");
  EXPECT_EQ(Names(), (List{"null", "pipe", "socket"}));
}

TEST_F(AtomicFileTest, RefusesPathsWithoutAName) {
  EXPECT_ERROR(WriteFileAtomically("", "x"), kInvalidArgument, "got no file name");
  EXPECT_ERROR(WriteFileAtomically(Path("missing/"), "x"), kInvalidArgument, "got no file name");
}

TEST_F(AtomicFileTest, RefusesAFolderThatIsMissingOrNoFolder) {
  EXPECT_ERROR(WriteFileAtomically(Path("missing/out"), "x"), kNotFound, Path("missing/out"));
  ASSERT_TRUE(WriteFileAtomically(Path("file"), "x").ok());
  EXPECT_ERROR(WriteFileAtomically(Path("file/out"), "x"), kNotFound, "Not a directory");
  EXPECT_ERROR(WriteFileAtomically(Path(std::string(300, 'n')), "x"), kUnknown,
               "File name too long");
}

TEST_F(AtomicFileTest, RefusesAFolderWithoutPermission) {
  ASSERT_EQ(chmod(folder_.c_str(), 0555), 0);
  const bool root = geteuid() == 0;
  if (root) {
    ASSERT_EQ(seteuid(65534), 0);
  }
  const absl::Status status = WriteFileAtomically(Path("out"), "x");
  if (root) {
    ASSERT_EQ(seteuid(0), 0);
  }
  ASSERT_EQ(chmod(folder_.c_str(), 0755), 0);
  EXPECT_ERROR(status, kPermissionDenied, Path("out"));
}

TEST_F(AtomicFileTest, ReplacesTheTargetOfALink) {
  fs::create_directory(Path("real"));
  ASSERT_TRUE(WriteFileAtomically(Path("real/target"), "old").ok());
  fs::create_symlink("real/target", Path("link"));
  fs::create_symlink("link", Path("link2"));
  ASSERT_TRUE(WriteFileAtomically(Path("link2"), "new").ok());
  EXPECT_TRUE(fs::is_symlink(Path("link")) && fs::is_symlink(Path("link2")));
  EXPECT_EQ(ReadBack(Path("real/target")), "new");
  EXPECT_EQ(Names(), (List{"link", "link2", "real"}));
}

TEST_F(AtomicFileTest, RefusesALinkToNothing) {
  fs::create_symlink("nowhere", Path("link"));
  EXPECT_ERROR(WriteFileAtomically(Path("link"), "x"), kInvalidArgument, "link to nothing");
  fs::create_symlink("loop", Path("loop"));
  EXPECT_FALSE(WriteFileAtomically(Path("loop"), "x").ok());
  EXPECT_EQ(Names(), (List{"link", "loop"}));
}

TEST_F(AtomicFileTest, HoldsWhenTheWorkingFolderChanges) {
  const fs::path before = fs::current_path();
  fs::current_path(folder_);
  auto kept = AtomicFile::Create("out");
  auto dropped = AtomicFile::Create("./dropped");
  fs::current_path(before);
  ASSERT_TRUE(kept.ok() && dropped.ok());
  ASSERT_TRUE(kept->Append("x").ok());
  ASSERT_TRUE(kept->Commit().ok());
  dropped = absl::CancelledError();
  EXPECT_EQ(ReadBack(Path("out")), "x");
  EXPECT_EQ(Names(), List{"out"});
}

TEST_F(AtomicFileTest, KeepsTheOldFileWhenTheNewOneMayNotGrow) {
  ASSERT_TRUE(WriteFileAtomically(Path("out"), "old").ok());
  struct rlimit before;
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
  const auto handler = signal(SIGXFSZ, SIG_IGN);
  const struct rlimit limit = {4096, before.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &limit), 0);
  absl::Status append, append_again, commit;
  std::vector<std::string> names;
  {
    auto file = AtomicFile::Create(Path("out"));
    append = file->Append(std::string(10'000, 'x'));  // a short write first, then the error
    names = Names();
    append_again = file->Append("x");
    commit = file->Commit();
  }
  setrlimit(RLIMIT_FSIZE, &before);
  signal(SIGXFSZ, handler);
  EXPECT_ERROR(append, kOutOfRange, "out: write: File too large");
  EXPECT_EQ(names, List{"out"});
  EXPECT_EQ(append_again.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(commit.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(ReadBack(Path("out")), "old");
}

// A disk of 64 KiB, mounted in a child with its own mounts; needs the right to mount.
TEST_F(AtomicFileTest, KeepsTheOldFileWhenTheDiskIsFull) {
  constexpr int kCannotMount = 100;
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    if ((unshare(CLONE_NEWNS) != 0 && unshare(CLONE_NEWUSER | CLONE_NEWNS) != 0) ||
        mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0 ||
        mount("tmpfs", folder_.c_str(), "tmpfs", 0, "size=64k") != 0) {
      _exit(kCannotMount);
    }
    if (!WriteFileAtomically(Path("out"), "old").ok()) _exit(1);
    const absl::Status status = WriteFileAtomically(Path("out"), std::string(1 << 20, 'x'));
    if (status.code() != absl::StatusCode::kResourceExhausted) _exit(2);
    if (ReadBack(Path("out")) != "old" || Names() != List{"out"}) _exit(3);
    _exit(0);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFEXITED(status));
  if (WEXITSTATUS(status) == kCannotMount) GTEST_SKIP() << "may not mount";
  EXPECT_EQ(WEXITSTATUS(status), 0);
}

TEST_F(AtomicFileTest, RemovesTheTemporaryWhenRenameFails) {
  auto file = AtomicFile::Create(Path("out"));
  ASSERT_TRUE(file.ok());
  fs::create_directory(Path("out"));
  EXPECT_ERROR(file->Commit(), kUnknown, "out: rename");
  EXPECT_EQ(Names(), List{"out"});
}

TEST_F(AtomicFileTest, RefusesWhenTheFolderHasGone) {
  auto file = AtomicFile::Create(Path("out"));
  ASSERT_TRUE(file.ok());
  fs::remove_all(folder_);
  EXPECT_ERROR(file->Commit(), kNotFound, Path("out"));
}

TEST_F(AtomicFileTest, SameFileFollowsLinks) {
  ASSERT_TRUE(WriteFileAtomically(Path("a"), "x").ok());
  ASSERT_TRUE(WriteFileAtomically(Path("b"), "x").ok());
  fs::create_symlink("a", Path("link"));
  fs::create_hard_link(Path("a"), Path("hard"));
  EXPECT_EQ(SameFile(Path("a"), Path("./a")).value(), true);
  EXPECT_EQ(SameFile(Path("a"), Path("link")).value(), true);
  EXPECT_EQ(SameFile(Path("hard"), Path("link")).value(), true);
  EXPECT_EQ(SameFile(Path("a"), Path("b")).value(), false);
  EXPECT_EQ(SameFile(Path("a"), Path("missing")).value(), false);
  EXPECT_EQ(SameFile(Path("missing"), Path("missing")).value(), false);
  EXPECT_EQ(SameFile(Path("a/below"), Path("a")).value(), false);
  EXPECT_FALSE(SameFile(Path(std::string(300, 'n')), Path("a")).ok());
}

// --- Without unnamed files ----------------------------------------------------------------------

// Makes the system answer as a file system without unnamed files does, from now on and after exec.
bool ForbidUnnamedFiles() {
  constexpr uint32_t kFlag = O_TMPFILE & ~O_DIRECTORY;
  sock_filter code[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_openat, 0, 3),
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, args[2])),  // the flags' low half
      BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, kFlag, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EOPNOTSUPP),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  const sock_fprog program = {std::size(code), code};
  return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
         prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0 &&
         open("/tmp", O_WRONLY | O_TMPFILE | O_CLOEXEC, 0600) < 0 && errno == EOPNOTSUPP;
}

// All of the above once more, but what only unnamed files promise.
TEST(AtomicFileFallbackTest, HoldsWithoutUnnamedFiles) {
  constexpr int kCannotForbid = 100;
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    if (!ForbidUnnamedFiles()) _exit(kCannotForbid);
    execl("/proc/self/exe", "atomic_file_test",
          "--gtest_filter=AtomicFileTest.*-*.LeavesNothingWhenKilled", nullptr);
    _exit(kCannotForbid);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFEXITED(status));
  if (WEXITSTATUS(status) == kCannotForbid) GTEST_SKIP() << "may not filter system calls";
  EXPECT_EQ(WEXITSTATUS(status), 0);
}

}  // namespace
}  // namespace nibble
