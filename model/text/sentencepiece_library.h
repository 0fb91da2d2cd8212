// The SentencePiece library behind types of our own: its header declares absl::string_view in a way
// that does not go with Abseil's, so only sentencepiece_library.cc includes it.
#ifndef NIBBLE_MODEL_TEXT_SENTENCEPIECE_LIBRARY_H_
#define NIBBLE_MODEL_TEXT_SENTENCEPIECE_LIBRARY_H_

#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace sentencepiece {
class SentencePieceProcessor;
}

namespace nibble {

// Const members may be called from several threads at once.
class SentencePieceLibrary {
 public:
  SentencePieceLibrary();
  SentencePieceLibrary(SentencePieceLibrary&&) noexcept;
  ~SentencePieceLibrary();

  // Each returns what went wrong, in the library's words; empty where nothing did.
  std::string Load(std::string_view model);
  std::string Encode(std::string_view text, std::vector<int>& ids) const;

  int bos() const;  // negative: none
  int eos() const;
  int pieces() const;

 private:
  std::unique_ptr<sentencepiece::SentencePieceProcessor> processor_;
};

}  // namespace nibble

#endif  // NIBBLE_MODEL_TEXT_SENTENCEPIECE_LIBRARY_H_
