#include "calib/state.h"

#include <algorithm>

#include "base/text.h"
#include "quant/numerics/float_bits.h"

namespace nibble {

absl::Status CheckStateNames(const CalibratorState& state,
                             std::initializer_list<std::string_view> allowed) {
  for (const auto& [name, array] : state) {
    if (std::find(allowed.begin(), allowed.end(), name) != allowed.end()) continue;
    return absl::DataLossError(
        absl::StrCat("state: expected no array of the name, got ", Quoted(name)));
  }
  return absl::OkStatus();
}

absl::StatusOr<const StateArray*> FindStateArray(const CalibratorState& state,
                                                 std::string_view name, DType dtype,
                                                 const std::vector<int64_t>& shape) {
  const auto it = state.find(std::string(name));
  const StateArray* array = it == state.end() ? nullptr : &it->second;
  bool same = array != nullptr && array->dtype == dtype && array->shape.size() == shape.size();
  for (size_t i = 0; same && i < shape.size(); ++i) {
    same = shape[i] == -1 || shape[i] == array->shape[i];
  }
  if (same) {
    const std::optional<int64_t> count = ElementCount(array->shape);
    int64_t bytes;
    same = count && !__builtin_mul_overflow(*count, int64_t{DTypeBytes(dtype)}, &bytes) &&
           bytes == static_cast<int64_t>(array->bytes.size());
  }
  if (same) return array;
  return absl::DataLossError(
      absl::StrCat("state '", ToAbsl(name), "': expected ", TypeName(dtype, shape), ", got ",
                   array == nullptr ? std::string("none")
                                    : absl::StrCat(TypeName(array->dtype, array->shape), " of ",
                                                   array->bytes.size(), " bytes")));
}

absl::StatusOr<int64_t> TakeStateInteger(const CalibratorState& state, std::string_view name,
                                         int64_t first, int64_t last) {
  NIBBLE_ASSIGN_OR_RETURN(const std::vector<int64_t> values,
                          TakeStateArray<int64_t>(state, name, {1}));
  if (values[0] >= first && values[0] <= last) return values[0];
  return absl::DataLossError(absl::StrCat("state '", ToAbsl(name), "': expected ", first, " .. ",
                                          last, ", got ", values[0]));
}

absl::StatusOr<float> TakeStateAmax(const CalibratorState& state, std::string_view name) {
  NIBBLE_ASSIGN_OR_RETURN(const std::vector<float> values, TakeStateArray<float>(state, name, {1}));
  if (values[0] >= 0.0f && IsFinite(values[0])) return values[0];
  return absl::DataLossError(absl::StrCat("state '", ToAbsl(name),
                                          "': expected a finite number that is not negative, got ",
                                          values[0]));
}

}  // namespace nibble
