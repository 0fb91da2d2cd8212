// Whether this build is one of ./run test --asan, where tests of millions of cases do with fewer.
#ifndef NIBBLE_TESTS_TESTING_SANITIZERS_H_
#define NIBBLE_TESTS_TESTING_SANITIZERS_H_

namespace nibble::testing {

#if defined(__SANITIZE_ADDRESS__)
inline constexpr bool kSanitized = true;
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
inline constexpr bool kSanitized = true;
#else
inline constexpr bool kSanitized = false;
#endif
#else
inline constexpr bool kSanitized = false;
#endif

}  // namespace nibble::testing

#endif  // NIBBLE_TESTS_TESTING_SANITIZERS_H_
