// The files of this repository, as they lie in NIBBLE_SOURCE_DIR.
#ifndef NIBBLE_TESTS_TESTING_REPOSITORY_H_
#define NIBBLE_TESTS_TESTING_REPOSITORY_H_

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <set>
#include <string>
#include <vector>

namespace nibble::testing {

// Folders at top level, less hidden ones and those that .gitignore names.
inline std::set<std::string> TopLevelFolders() {
  const std::filesystem::path root = NIBBLE_SOURCE_DIR;
  std::set<std::string> ignored;
  std::ifstream gitignore(root / ".gitignore");
  for (std::string line; std::getline(gitignore, line);) {
    line.erase(std::remove(line.begin(), line.end(), '/'), line.end());
    ignored.insert(line);
  }
  std::set<std::string> folders;
  for (const auto& entry : std::filesystem::directory_iterator(root)) {
    const std::string name = entry.path().filename().string();
    if (entry.is_directory() && name[0] != '.' && !ignored.contains(name)) folders.insert(name);
  }
  return folders;
}

// Paths, from the root on, of the files at top level and in TopLevelFolders with one of these
// extensions, sorted.
inline std::vector<std::string> RepositoryFiles(const std::set<std::string>& extensions) {
  const std::filesystem::path root = NIBBLE_SOURCE_DIR;
  std::vector<std::string> files;
  const auto add = [&](const std::filesystem::directory_entry& entry) {
    if (entry.is_regular_file() && extensions.contains(entry.path().extension().string())) {
      files.push_back(entry.path().lexically_relative(root).string());
    }
  };
  for (const auto& entry : std::filesystem::directory_iterator(root)) add(entry);
  for (const std::string& folder : TopLevelFolders()) {
    for (const auto& entry : std::filesystem::recursive_directory_iterator(root / folder)) {
      add(entry);
    }
  }
  std::sort(files.begin(), files.end());
  return files;
}

}  // namespace nibble::testing

#endif  // NIBBLE_TESTS_TESTING_REPOSITORY_H_
