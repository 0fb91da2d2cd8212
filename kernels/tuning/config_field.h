// How a launch shape names its fields. Standard C++ alone: device code includes it.
#ifndef NIBBLE_KERNELS_TUNING_CONFIG_FIELD_H_
#define NIBBLE_KERNELS_TUNING_CONFIG_FIELD_H_

namespace nibble {

// A config is a struct of ints with one of these for each, in an array kFields.
template <typename Config>
struct ConfigField {
  const char* name;
  int Config::*value;
};

}  // namespace nibble

#endif  // NIBBLE_KERNELS_TUNING_CONFIG_FIELD_H_
