// Typed arrays into and out of a CalibratorState.
#ifndef NIBBLE_CALIB_STATE_H_
#define NIBBLE_CALIB_STATE_H_

#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/status.h"
#include "calib/calibrator.h"

namespace nibble {

template <typename T>
inline constexpr DType kStateDType = DType::kU8;
template <>
inline constexpr DType kStateDType<uint16_t> = DType::kU16;
template <>
inline constexpr DType kStateDType<int64_t> = DType::kI64;
template <>
inline constexpr DType kStateDType<float> = DType::kF32;

template <typename T>
StateArray MakeStateArray(std::vector<int64_t> shape, const std::vector<T>& values) {
  StateArray array = {kStateDType<T>, std::move(shape),
                      std::vector<std::byte>(values.size() * sizeof(T))};
  if (!values.empty()) std::memcpy(array.bytes.data(), values.data(), array.bytes.size());
  return array;
}

// DataLoss where the state has a name other than these.
absl::Status CheckStateNames(const CalibratorState& state,
                             std::initializer_list<std::string_view> allowed);

// DataLoss where there is none of that name, type and shape; a dimension of -1 may be any.
absl::StatusOr<const StateArray*> FindStateArray(const CalibratorState& state,
                                                 std::string_view name, DType dtype,
                                                 const std::vector<int64_t>& shape);

template <typename T>
absl::StatusOr<std::vector<T>> TakeStateArray(const CalibratorState& state, std::string_view name,
                                              const std::vector<int64_t>& shape) {
  NIBBLE_ASSIGN_OR_RETURN(const StateArray* array,
                          FindStateArray(state, name, kStateDType<T>, shape));
  std::vector<T> values(array->bytes.size() / sizeof(T));
  if (!values.empty()) std::memcpy(values.data(), array->bytes.data(), array->bytes.size());
  return values;
}

// A single integer in first .. last.
absl::StatusOr<int64_t> TakeStateInteger(const CalibratorState& state, std::string_view name,
                                         int64_t first, int64_t last);
// A single number, finite and not negative.
absl::StatusOr<float> TakeStateAmax(const CalibratorState& state, std::string_view name);

}  // namespace nibble

#endif  // NIBBLE_CALIB_STATE_H_
