#include "model/text/sentencepiece_library.h"

#include <sentencepiece_processor.h>

namespace nibble {

SentencePieceLibrary::SentencePieceLibrary()
    : processor_(std::make_unique<sentencepiece::SentencePieceProcessor>()) {}
SentencePieceLibrary::SentencePieceLibrary(SentencePieceLibrary&&) noexcept = default;
SentencePieceLibrary::~SentencePieceLibrary() = default;

std::string SentencePieceLibrary::Load(std::string_view model) {
  const sentencepiece::util::Status status = processor_->LoadFromSerializedProto(model);
  return status.ok() ? "" : status.ToString();
}

std::string SentencePieceLibrary::Encode(std::string_view text, std::vector<int>& ids) const {
  const sentencepiece::util::Status status = processor_->Encode(text, &ids);
  return status.ok() ? "" : status.ToString();
}

int SentencePieceLibrary::bos() const { return processor_->bos_id(); }
int SentencePieceLibrary::eos() const { return processor_->eos_id(); }
int SentencePieceLibrary::pieces() const { return processor_->GetPieceSize(); }

}  // namespace nibble
