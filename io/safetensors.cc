#include "io/safetensors.h"

#include <unistd.h>

#include <algorithm>
#include <iterator>
#include <limits>
#include <new>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <stdexcept>
#include <tuple>

#include "absl/strings/str_join.h"
#include "base/status.h"
#include "base/text.h"

namespace nibble {
namespace {

constexpr std::string_view kMetadataKey = "__metadata__";
constexpr uint64_t kLengthBytes = 8;  // of the field in front of the header
constexpr size_t kMaxRank = 64;

std::string TensorLabel(std::string_view name) { return absl::StrCat("tensor ", Quoted(name)); }

// The rules that one tensor must keep in a file that is read (DataLoss) and in one to be written
// (InvalidArgument). `bytes`: those that its data has, where that is known apart from its shape.
absl::Status CheckTensor(absl::StatusCode code, std::string_view name, DType dtype,
                         std::span<const int64_t> shape, std::optional<uint64_t> bytes) {
  const auto error = [&](const std::string& problem) {
    return absl::Status(code, absl::StrCat(TensorLabel(name), problem));
  };
  if (name.empty()) return error(": expected a name, got an empty one");
  if (shape.size() > kMaxRank) {
    return error(
        absl::StrCat(" shape: expected at most ", kMaxRank, " dimensions, got ", shape.size()));
  }
  const std::optional<int64_t> count = ElementCount(shape);
  uint64_t expected = 0;
  if (!count || __builtin_mul_overflow(static_cast<uint64_t>(*count),
                                       static_cast<uint64_t>(DTypeBytes(dtype)), &expected)) {
    return error(absl::StrCat(
        " shape: expected dimensions of at least 0 with a product below 2^63, and fewer than 2^64"
        " bytes, got ",
        ShapeName(shape)));
  }
  if (bytes && *bytes != expected) {
    return error(absl::StrCat(": expected ", expected, " bytes for the shape ", ShapeName(shape),
                              " of ", ToAbsl(DTypeName(dtype)), ", got ", *bytes));
  }
  return absl::OkStatus();
}

std::string DTypeNames() {
  std::vector<absl::string_view> names;
  for (int i = 0; i <= static_cast<int>(DType::kC64); ++i) {
    names.push_back(ToAbsl(DTypeName(static_cast<DType>(i))));
  }
  return absl::StrJoin(names, ", ");
}

// Takes the events of nlohmann's SAX parser; each returns whether to go on. Not a DOM: that would
// hide duplicate keys, and nest as deep as the text does, where anything out of place ends this at
// once. The parser sees to the grammar of JSON, so a key comes only inside an object, and so on.
class HeaderHandler {
 public:
  explicit HeaderHandler(uint64_t data_bytes) : data_bytes_(data_bytes) {}

  // Once parsing has ended: the first problem, if any, and what was read.
  const absl::Status& status() const { return status_; }
  SafetensorsHeader&& TakeHeader() { return std::move(header_); }

  bool null() { return Unexpected("null"); }
  bool boolean(bool value) { return Unexpected(value ? "true" : "false"); }
  bool number_integer(int64_t value) {  // those with a minus sign
    return Unexpected(value == 0 ? "-0" : absl::StrCat(value));
  }
  bool number_float(double, const std::string& text) {  // and integers from 2^64 on
    return Unexpected(Quoted(text));
  }
  bool binary(nlohmann::json::binary_t&) { return Unexpected("binary"); }

  bool number_unsigned(uint64_t value) {
    if (next_ == kDim && tensor_.shape.size() == kMaxRank) return Unexpected("one more");
    if (next_ == kDim && value <= std::numeric_limits<int64_t>::max()) {
      tensor_.shape.push_back(static_cast<int64_t>(value));
      return true;
    }
    if (next_ == kOffset && offsets_ < 2) {
      (offsets_++ == 0 ? tensor_.begin : tensor_.end) = value;
      return true;
    }
    return Unexpected(absl::StrCat(value));
  }

  bool string(std::string& text) {
    if (next_ == kMetadataValue) {
      *metadata_value_ = std::move(text);
      next_ = kMetadataMember;
      return true;
    }
    if (next_ != kDType) return Unexpected(Quoted(text));
    const std::optional<DType> dtype = DTypeFromName(text);
    if (!dtype) {
      return Fail(absl::StrCat(TensorLabel(tensor_.name), " dtype: expected one of ", DTypeNames(),
                               ", got ", Quoted(text)));
    }
    tensor_.dtype = *dtype;
    next_ = kField;
    return true;
  }

  bool start_object(size_t) {
    switch (next_) {
      case kHeader:
        next_ = kMember;
        return true;
      case kMetadata:
        next_ = kMetadataMember;
        return true;
      case kTensor:
        next_ = kField;
        return true;
      default:
        return Unexpected("an object");
    }
  }

  bool key(std::string& name) {
    switch (next_) {
      case kMetadataMember:
        return MetadataKey(name);
      case kField:
        return FieldKey(name);
      default:
        return MemberKey(name);
    }
  }

  bool end_object() {
    if (next_ == kField && !FinishTensor()) return false;
    next_ = kMember;
    return true;
  }

  bool start_array(size_t) {
    switch (next_) {
      case kShape:
        next_ = kDim;
        return true;
      case kOffsets:
        next_ = kOffset;
        return true;
      default:
        return Unexpected("an array");
    }
  }

  bool end_array() {
    if (next_ == kOffset && offsets_ != 2) return Unexpected(absl::StrCat(offsets_, " of them"));
    next_ = kField;
    return true;
  }

  bool parse_error(size_t position, const std::string& token, const nlohmann::json::exception&) {
    return Fail(absl::StrCat("header: expected JSON in UTF-8, got ", Quoted(token),
                             " up to its byte ", position));
  }

 private:
  // What may come next; the values from kTensor on are about tensor_.
  enum Next {
    kHeader,
    kMember,
    kMetadata,
    kMetadataMember,
    kMetadataValue,
    kTensor,
    kField,
    kDType,
    kShape,
    kDim,
    kOffsets,
    kOffset,
  };

  bool Fail(std::string message) {
    status_ = absl::DataLossError(message);
    return false;
  }

  bool Unexpected(const std::string& got) {
    struct Rule {
      const char* what;
      const char* expected;
    };
    constexpr Rule kRules[] = {
        {"header", "an object"},
        {"header", "one __metadata__ at most"},
        {"__metadata__", "an object"},
        {"__metadata__", "keys that differ"},
        {"__metadata__", "strings only"},
        {"", "an object"},
        {"", "dtype, shape and data_offsets, once each"},
        {" dtype", "a string"},
        {" shape", "an array"},
        {" shape", "at most 64 integers from 0 to 2^63-1"},
        {" data_offsets", "an array"},
        {" data_offsets", "two integers from 0 to 2^64-1"},
    };
    static_assert(std::size(kRules) == kOffset + 1);
    const Rule& rule = kRules[next_];
    return Fail(absl::StrCat(next_ >= kTensor ? TensorLabel(tensor_.name) : "", rule.what,
                             ": expected ", rule.expected, ", got ", got));
  }

  bool MemberKey(std::string& name) {
    if (name != kMetadataKey) {
      tensor_ = TensorInfo();
      tensor_.name = std::move(name);
      fields_ = 0;
      offsets_ = 0;
      next_ = kTensor;
      return true;
    }
    if (has_metadata_) return Unexpected("a second one");
    has_metadata_ = true;
    next_ = kMetadata;
    return true;
  }

  bool MetadataKey(const std::string& name) {
    const auto [item, is_new] = header_.metadata.try_emplace(name);
    if (!is_new) return Unexpected(absl::StrCat("a second ", Quoted(name)));
    metadata_value_ = &item->second;
    next_ = kMetadataValue;
    return true;
  }

  bool FieldKey(std::string_view name) {
    for (unsigned i = 0; i < std::size(kFields); ++i) {
      if (name != kFields[i].name) continue;
      if (fields_ >> i & 1) return Unexpected(absl::StrCat("a second ", Quoted(name)));
      fields_ |= 1u << i;
      next_ = kFields[i].value;
      return true;
    }
    return Unexpected(Quoted(name));
  }

  bool FinishTensor() {
    for (unsigned i = 0; i < std::size(kFields); ++i) {
      if (!(fields_ >> i & 1)) return Unexpected(absl::StrCat("no ", kFields[i].name));
    }
    if (tensor_.begin > tensor_.end || tensor_.end > data_bytes_) {
      return Fail(absl::StrCat(
          TensorLabel(tensor_.name), " data_offsets: expected begin <= end <= ", data_bytes_,
          ", the bytes that follow the header, got [", tensor_.begin, ", ", tensor_.end, "]"));
    }
    status_ = CheckTensor(absl::StatusCode::kDataLoss, tensor_.name, tensor_.dtype, tensor_.shape,
                          tensor_.bytes());
    if (!status_.ok()) return false;
    header_.tensors.push_back(std::move(tensor_));
    return true;
  }

  struct Field {
    const char* name;
    Next value;
  };
  static constexpr Field kFields[] = {
      {"dtype", kDType}, {"shape", kShape}, {"data_offsets", kOffsets}};

  const uint64_t data_bytes_;
  absl::Status status_;
  SafetensorsHeader header_;
  Next next_ = kHeader;
  bool has_metadata_ = false;
  std::string* metadata_value_ = nullptr;

  TensorInfo tensor_;    // the one being read
  unsigned fields_ = 0;  // those of it met so far, one bit each
  int offsets_ = 0;      // how many of its data_offsets
};

absl::Status CheckNamesDiffer(std::vector<TensorInfo>& tensors) {
  std::ranges::sort(tensors, {}, &TensorInfo::name);
  const auto repeated = std::ranges::adjacent_find(tensors, {}, &TensorInfo::name);
  if (repeated == tensors.end()) return absl::OkStatus();
  return absl::DataLossError(
      absl::StrCat(TensorLabel(repeated->name), ": expected names that differ, got a second one"));
}

// Sorts the tensors by place, and requires each to begin where the one before it ends.
absl::Status CheckTiling(std::vector<TensorInfo>& tensors, uint64_t data_bytes) {
  std::ranges::sort(tensors, {}, [](const TensorInfo& t) {
    return std::tuple<uint64_t, uint64_t, const std::string&>(t.begin, t.end, t.name);
  });
  uint64_t covered = 0;
  for (const TensorInfo& tensor : tensors) {
    if (tensor.begin != covered) {
      return absl::DataLossError(
          absl::StrCat(TensorLabel(tensor.name), " data_offsets: expected to begin at byte ",
                       covered, ", where the tensors before it end, got ", tensor.begin,
                       tensor.begin < covered ? " (an overlap)" : " (a hole)"));
    }
    covered = tensor.end;
  }
  if (covered == data_bytes) return absl::OkStatus();
  return absl::DataLossError(absl::StrCat("data section: expected ", covered,
                                          " bytes, where the last tensor ends, got ", data_bytes));
}

// Runs `call`, which returns a status or a StatusOr, with running out of memory as a status.
template <typename Call>
auto WithMemoryStatus(const std::string& path, Call call) -> decltype(call()) {
  const char* problem;
  try {
    return call();
  } catch (const std::bad_alloc&) {
    problem = ": expected enough memory, got none";
  } catch (const std::length_error&) {
    problem = ": expected a size that memory can hold, got a larger one";
  }
  return absl::ResourceExhaustedError(absl::StrCat(path, problem));
}

// pread rather than mmap: where the file is truncated by another process, this is a status, and a
// mapping is a SIGBUS.
absl::Status ReadExactly(const std::string& path, const FileDescriptor& file, uint64_t offset,
                         std::span<std::byte> out) {
  while (!out.empty()) {
    const ssize_t got = RetryOnInterrupt(
        [&] { return pread(file.get(), out.data(), out.size(), static_cast<off_t>(offset)); });
    if (got < 0) return ErrnoStatus(path, "read");
    if (got == 0) {
      return absl::DataLossError(absl::StrCat(path, ": expected ", out.size(),
                                              " more bytes at byte ", offset,
                                              ", got the end of the file (has it shrunk?)"));
    }
    offset += static_cast<uint64_t>(got);
    out = out.subspan(static_cast<size_t>(got));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> ReadText(const std::string& path, const FileDescriptor& file,
                                     uint64_t offset, uint64_t bytes) {
  std::string text(bytes, '\0');
  NIBBLE_RETURN_IF_ERROR(
      ReadExactly(path, file, offset, std::as_writable_bytes(std::span<char>(text))));
  return text;
}

absl::StatusOr<std::string> JsonString(std::string_view text) {
  try {
    return nlohmann::json(text).dump();
  } catch (const nlohmann::json::exception&) {
    return absl::InvalidArgumentError(absl::StrCat("text: expected UTF-8, got ", Quoted(text)));
  }
}

// Of a tensor that CheckTensor let through.
uint64_t BytesOf(const TensorSpec& tensor) {
  return static_cast<uint64_t>(*ElementCount(tensor.shape)) *
         static_cast<uint64_t>(DTypeBytes(tensor.dtype));
}

// `order` is the order of the data section.
absl::StatusOr<std::string> MakeHeader(std::span<const TensorSpec* const> order,
                                       const std::map<std::string, std::string>& metadata) {
  std::vector<std::string> members;
  if (!metadata.empty()) {
    std::vector<std::string> pairs;
    for (const auto& [key, value] : metadata) {
      NIBBLE_ASSIGN_OR_RETURN(const std::string json_key, JsonString(key));
      NIBBLE_ASSIGN_OR_RETURN(const std::string json_value, JsonString(value));
      pairs.push_back(absl::StrCat(json_key, ":", json_value));
    }
    members.push_back(
        absl::StrCat("\"", ToAbsl(kMetadataKey), "\":{", absl::StrJoin(pairs, ","), "}"));
  }
  uint64_t begin = 0;
  for (const TensorSpec* tensor : order) {
    NIBBLE_ASSIGN_OR_RETURN(const std::string json_name, JsonString(tensor->name));
    const uint64_t end = begin + BytesOf(*tensor);
    members.push_back(absl::StrCat(json_name, ":{\"dtype\":\"", ToAbsl(DTypeName(tensor->dtype)),
                                   "\",\"shape\":[", absl::StrJoin(tensor->shape, ","),
                                   "],\"data_offsets\":[", begin, ",", end, "]}"));
    begin = end;
  }
  std::string header = absl::StrCat("{", absl::StrJoin(members, ","), "}");
  header.resize((header.size() + 7) / 8 * 8, ' ');
  if (header.size() > kMaxSafetensorsHeaderBytes) {
    return absl::InvalidArgumentError(absl::StrCat(
        "header: expected at most ", kMaxSafetensorsHeaderBytes, " bytes, got ", header.size()));
  }
  return header;
}

absl::StatusOr<std::vector<const TensorSpec*>> CheckAndOrder(std::span<const TensorSpec> tensors) {
  std::set<std::string_view> names = {kMetadataKey};
  std::vector<const TensorSpec*> order;
  uint64_t total = 0;
  for (const TensorSpec& tensor : tensors) {
    NIBBLE_RETURN_IF_ERROR(CheckTensor(absl::StatusCode::kInvalidArgument, tensor.name,
                                       tensor.dtype, tensor.shape, std::nullopt));
    if (!names.insert(tensor.name).second) {
      return absl::InvalidArgumentError(
          absl::StrCat(TensorLabel(tensor.name),
                       ": expected names that differ from each other and"
                       " from __metadata__, got a second one"));
    }
    if (__builtin_add_overflow(total, BytesOf(tensor), &total) ||
        total > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
      return absl::InvalidArgumentError("tensors: expected fewer than 2^63 bytes in all, got more");
    }
    order.push_back(&tensor);
  }
  std::ranges::sort(order, {}, [](const TensorSpec* t) {
    return std::pair<int, std::string_view>(-DTypeBytes(t->dtype), t->name);
  });
  return order;
}

}  // namespace

absl::StatusOr<uint64_t> ParseSafetensorsHeaderBytes(std::string_view start, uint64_t file_bytes) {
  if (start.size() < kLengthBytes || file_bytes < kLengthBytes) {
    return absl::DataLossError(absl::StrCat("file: expected at least ", kLengthBytes,
                                            " bytes, the length of its header, got ", file_bytes));
  }
  uint64_t length = 0;
  for (size_t i = kLengthBytes; i-- > 0;) length = length << 8 | static_cast<uint8_t>(start[i]);
  if (length > kMaxSafetensorsHeaderBytes || length > file_bytes - kLengthBytes) {
    return absl::DataLossError(
        absl::StrCat("header length: expected at most ",
                     std::min(kMaxSafetensorsHeaderBytes, file_bytes - kLengthBytes),
                     " for this file, got ", length));
  }
  return length;
}

absl::StatusOr<SafetensorsHeader> ParseSafetensorsHeader(std::string_view json,
                                                         uint64_t data_bytes) {
  if (!json.starts_with('{')) {
    return absl::DataLossError(
        absl::StrCat("header: expected a JSON object that begins with {", ", got ", Quoted(json)));
  }
  // The parser would take a NUL for the end of the text.
  if (const size_t nul = json.find('\0'); nul != json.npos) {
    return absl::DataLossError(absl::StrCat("header: expected JSON, got a zero at its byte ", nul));
  }
  HeaderHandler handler(data_bytes);
  if (!nlohmann::json::sax_parse(json.begin(), json.end(), &handler)) return handler.status();
  // The parser has seen that nothing but white space follows the object.
  if (json[json.find_last_not_of(' ')] != '}') {
    return absl::DataLossError("header: expected padding by spaces only, got other white space");
  }
  SafetensorsHeader header = handler.TakeHeader();
  NIBBLE_RETURN_IF_ERROR(CheckNamesDiffer(header.tensors));
  NIBBLE_RETURN_IF_ERROR(CheckTiling(header.tensors, data_bytes));
  return header;
}

absl::StatusOr<SafetensorsReader> SafetensorsReader::Open(const std::string& path) {
  NIBBLE_ASSIGN_OR_RETURN(OpenedFile opened, OpenRegularFile(path));
  FileDescriptor& file = opened.file;
  const uint64_t file_bytes = opened.bytes;
  return WithMemoryStatus(path, [&]() -> absl::StatusOr<SafetensorsReader> {
    NIBBLE_ASSIGN_OR_RETURN(const std::string start,
                            ReadText(path, file, 0, std::min(kLengthBytes, file_bytes)));
    const absl::StatusOr<uint64_t> json_bytes = ParseSafetensorsHeaderBytes(start, file_bytes);
    if (!json_bytes.ok()) return Annotate(json_bytes.status(), path);
    NIBBLE_ASSIGN_OR_RETURN(const std::string json,
                            ReadText(path, file, kLengthBytes, *json_bytes));
    const uint64_t data_begin = kLengthBytes + *json_bytes;
    const uint64_t data_bytes = file_bytes - data_begin;
    absl::StatusOr<SafetensorsHeader> header = ParseSafetensorsHeader(json, data_bytes);
    if (!header.ok()) return Annotate(header.status(), path);
    return SafetensorsReader(path, std::move(file), data_begin, data_bytes, *std::move(header));
  });
}

SafetensorsReader::SafetensorsReader(std::string path, FileDescriptor file, uint64_t data_begin,
                                     uint64_t data_bytes, SafetensorsHeader header)
    : path_(std::move(path)),
      file_(std::move(file)),
      data_begin_(data_begin),
      data_bytes_(data_bytes),
      header_(std::move(header)) {
  by_name_.reserve(header_.tensors.size());
  for (const TensorInfo& tensor : header_.tensors) by_name_.push_back(&tensor);
  std::ranges::sort(by_name_, {}, &TensorInfo::name);
}

const TensorInfo* SafetensorsReader::Find(std::string_view name) const {
  const auto found = std::ranges::lower_bound(by_name_, name, {}, &TensorInfo::name);
  return found != by_name_.end() && (*found)->name == name ? *found : nullptr;
}

absl::Status SafetensorsReader::Read(const TensorInfo& tensor, std::span<std::byte> out) const {
  if (out.size() != tensor.bytes()) {
    return absl::InvalidArgumentError(absl::StrCat(path_, ": ", TensorLabel(tensor.name),
                                                   ": expected room for ", tensor.bytes(),
                                                   " bytes, got ", out.size()));
  }
  return ReadRange(tensor, 0, out);
}

absl::Status SafetensorsReader::ReadRange(const TensorInfo& tensor, uint64_t offset,
                                          std::span<std::byte> out) const {
  if (tensor.begin > tensor.end || tensor.end > data_bytes_) {
    return absl::InvalidArgumentError(absl::StrCat(
        path_, ": ", TensorLabel(tensor.name), ": expected a tensor of this file, got [",
        tensor.begin, ", ", tensor.end, "] in ", data_bytes_, " bytes of data"));
  }
  if (offset > tensor.bytes() || out.size() > tensor.bytes() - offset) {
    return absl::InvalidArgumentError(
        absl::StrCat(path_, ": ", TensorLabel(tensor.name), ": expected a range of its ",
                     tensor.bytes(), " bytes, got ", out.size(), " from byte ", offset, " on"));
  }
  return ReadExactly(path_, file_, data_begin_ + tensor.begin + offset, out);
}

absl::StatusOr<std::vector<std::byte>> SafetensorsReader::ReadAll(const TensorInfo& tensor) const {
  return WithMemoryStatus(path_, [&]() -> absl::StatusOr<std::vector<std::byte>> {
    std::vector<std::byte> bytes(tensor.bytes());
    NIBBLE_RETURN_IF_ERROR(Read(tensor, bytes));
    return bytes;
  });
}

absl::StatusOr<SafetensorsWriter> SafetensorsWriter::Create(
    const std::string& path, std::span<const TensorSpec> tensors,
    const std::map<std::string, std::string>& metadata) {
  const auto order = CheckAndOrder(tensors);
  if (!order.ok()) return Annotate(order.status(), path);
  const absl::StatusOr<std::string> header = MakeHeader(*order, metadata);
  if (!header.ok()) return Annotate(header.status(), path);

  std::string length;
  for (size_t i = 0; i < kLengthBytes; ++i) {
    length.push_back(static_cast<char>(header->size() >> (8 * i)));
  }
  NIBBLE_ASSIGN_OR_RETURN(AtomicFile file, AtomicFile::Create(path));
  NIBBLE_RETURN_IF_ERROR(file.Append(length));
  NIBBLE_RETURN_IF_ERROR(file.Append(*header));
  std::vector<Place> places(tensors.size());
  uint64_t begin = kLengthBytes + header->size();
  for (const TensorSpec* tensor : *order) {
    places[tensor - tensors.data()] = {tensor->name, begin, BytesOf(*tensor), 0};
    begin += BytesOf(*tensor);
  }
  return SafetensorsWriter(path, std::move(file), std::move(places));
}

absl::Status SafetensorsWriter::Write(size_t tensor, uint64_t offset,
                                      std::span<const std::byte> bytes) {
  Place& place = places_[tensor];
  if (offset > place.bytes || bytes.size() > place.bytes - offset) {
    return absl::InvalidArgumentError(
        absl::StrCat(path_, ": ", TensorLabel(place.name), ": expected a range of its ",
                     place.bytes, " bytes, got ", bytes.size(), " from byte ", offset, " on"));
  }
  NIBBLE_RETURN_IF_ERROR(file_.WriteAt(place.begin + offset, bytes));
  place.written += bytes.size();
  return absl::OkStatus();
}

absl::Status SafetensorsWriter::Commit() {
  for (const Place& place : places_) {
    if (place.written == place.bytes) continue;
    return absl::FailedPreconditionError(absl::StrCat(path_, ": ", TensorLabel(place.name),
                                                      ": expected its ", place.bytes,
                                                      " bytes to be written, got ", place.written));
  }
  return file_.Commit();
}

absl::Status WriteSafetensors(const std::string& path, std::span<const TensorToWrite> tensors,
                              const std::map<std::string, std::string>& metadata) {
  std::vector<TensorSpec> specs;
  for (const TensorToWrite& tensor : tensors) {
    const absl::Status valid = CheckTensor(absl::StatusCode::kInvalidArgument, tensor.name,
                                           tensor.dtype, tensor.shape, tensor.data.size());
    if (!valid.ok()) return Annotate(valid, path);
    specs.push_back({tensor.name, tensor.dtype, tensor.shape});
  }
  NIBBLE_ASSIGN_OR_RETURN(auto writer, SafetensorsWriter::Create(path, specs, metadata));
  for (size_t i = 0; i < tensors.size(); ++i) {
    NIBBLE_RETURN_IF_ERROR(writer.Write(i, 0, tensors[i].data));
  }
  return writer.Commit();
}

}  // namespace nibble
