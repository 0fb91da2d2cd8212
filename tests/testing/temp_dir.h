// A folder of a test's own, removed with all that is in it.
#ifndef NIBBLE_TESTS_TESTING_TEMP_DIR_H_
#define NIBBLE_TESTS_TESTING_TEMP_DIR_H_

#include <map>
#include <string>
#include <vector>

namespace nibble::testing {

class TempDir {
 public:
  TempDir();
  ~TempDir();
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;

  const std::string& path() const { return path_; }
  std::string path(const std::string& name) const { return path_ + "/" + name; }

  // What is in it, sorted.
  std::vector<std::string> Names() const;

 private:
  std::string path_;
};

std::string FileBytes(const std::string& path);

void PutFile(const std::string& path, const std::string& bytes);

// Every file below a folder, by its path there.
std::map<std::string, std::string> FilesOf(const std::string& folder);

// The names of files that two folders do not have in common, or with other bytes.
std::vector<std::string> DifferentFiles(const std::map<std::string, std::string>& a,
                                        const std::map<std::string, std::string>& b);

}  // namespace nibble::testing

#endif  // NIBBLE_TESTS_TESTING_TEMP_DIR_H_
