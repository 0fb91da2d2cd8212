// Runs a program and keeps what it printed.
#ifndef NIBBLE_TESTS_TESTING_SUBPROCESS_H_
#define NIBBLE_TESTS_TESTING_SUBPROCESS_H_

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"

namespace nibble::testing {

struct ProcessResult {
  int exit_code = -1;  // -1 where a signal ended it
  int signal = 0;
  std::string out, err;
};

class Process {
 public:
  // args[0] is the program's path. `stdout_path`: a file to open instead of keeping what is
  // printed.
  explicit Process(std::vector<std::string> args, const char* stdout_path = nullptr)
      : out_(memfd_create("stdout", MFD_CLOEXEC)), err_(memfd_create("stderr", MFD_CLOEXEC)) {
    std::vector<char*> argv;
    for (std::string& arg : args) argv.push_back(arg.data());
    argv.push_back(nullptr);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
    if (stdout_path != nullptr) {
      posix_spawn_file_actions_addopen(&actions, 1, stdout_path, O_WRONLY, 0);
    } else {
      posix_spawn_file_actions_adddup2(&actions, out_, 1);
    }
    posix_spawn_file_actions_adddup2(&actions, err_, 2);
    EXPECT_EQ(posix_spawn(&pid_, argv[0], &actions, nullptr, argv.data(), environ), 0) << argv[0];
    posix_spawn_file_actions_destroy(&actions);
  }
  ~Process() {
    if (pid_ > 0) {
      Kill();
      Wait();
    }
    close(out_);
    close(err_);
  }
  Process(const Process&) = delete;
  Process& operator=(const Process&) = delete;

  pid_t pid() const { return pid_; }
  void Kill() { kill(pid_, SIGKILL); }

  bool HasEnded() const {
    siginfo_t info = {};
    waitid(P_PID, static_cast<id_t>(pid_), &info, WEXITED | WNOHANG | WNOWAIT);
    return info.si_pid != 0;
  }

  ProcessResult Wait() {
    int status = 0;
    EXPECT_EQ(waitpid(pid_, &status, 0), pid_);
    pid_ = -1;
    ProcessResult result;
    if (WIFEXITED(status)) result.exit_code = WEXITSTATUS(status);
    if (WIFSIGNALED(status)) result.signal = WTERMSIG(status);
    result.out = Text(out_);
    result.err = Text(err_);
    return result;
  }

 private:
  static std::string Text(int file) {
    std::string text;
    std::array<char, 4096> part;
    while (true) {
      const ssize_t got = pread(file, part.data(), part.size(), static_cast<off_t>(text.size()));
      if (got <= 0) return text;
      text.append(part.data(), static_cast<size_t>(got));
    }
  }

  pid_t pid_ = -1;
  int out_, err_;
};

// The program, with these arguments, to its end.
inline ProcessResult Nibble(std::vector<std::string> args, const char* stdout_path = nullptr) {
  args.insert(args.begin(), NIBBLE_PROGRAM);
  return Process(std::move(args), stdout_path).Wait();
}

}  // namespace nibble::testing

#endif  // NIBBLE_TESTS_TESTING_SUBPROCESS_H_
