// How fast a folder's tokenizer takes a file of text, on one thread:
//
//   build/release/bench/text_bench tests/golden/tokenizers/llama3 FILE
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <string>
#include <vector>

#include "absl/strings/str_format.h"
#include "io/text_file.h"
#include "model/text/tokenizer.h"

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: %s FOLDER FILE\n", argv[0]);
    return 2;
  }
  const auto tokenizer = nibble::ReadTokenizer(argv[1]);
  const auto text = nibble::ReadTextFile(argv[2], size_t{1} << 30);
  std::vector<double> seconds;
  std::vector<uint32_t> ids;
  absl::Status status = tokenizer.ok() ? text.status() : tokenizer.status();
  for (int i = 0; i < 5 && status.ok(); ++i) {
    ids.clear();
    const auto start = std::chrono::steady_clock::now();
    status = (*tokenizer)->Encode(*text, ids);
    seconds.push_back(
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  if (!status.ok()) {
    std::fprintf(stderr, "%s\n", std::string(status.message()).c_str());
    return 1;
  }
  std::ranges::sort(seconds);
  const double megabytes = static_cast<double>(text->size()) / 1e6;
  absl::PrintF("%s: %.1f MB, %d tokens, %.1f MB/s (median of 5)\n", argv[1], megabytes, ids.size(),
               megabytes / seconds[2]);
  return 0;
}
