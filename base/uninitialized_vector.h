// A vector for results that are written whole by several threads: growing it touches no memory, so
// that its pages are first touched, and zeroed by the system, where they are written.
#ifndef NIBBLE_BASE_UNINITIALIZED_VECTOR_H_
#define NIBBLE_BASE_UNINITIALIZED_VECTOR_H_

#include <memory>
#include <type_traits>
#include <utility>
#include <vector>

namespace nibble {

// std::allocator, but elements without an initial value have none.
template <typename T>
struct UninitializedAllocator : std::allocator<T> {
  static_assert(std::is_trivially_default_constructible_v<T>);

  UninitializedAllocator() = default;
  template <typename U>
  explicit UninitializedAllocator(const UninitializedAllocator<U>&) {}
  template <typename U>
  struct rebind {
    using other = UninitializedAllocator<U>;
  };

  template <typename U>
  void construct(U* p) {
    ::new (static_cast<void*>(p)) U;
  }
  template <typename U, typename... Args>
  void construct(U* p, Args&&... args) {
    ::new (static_cast<void*>(p)) U(std::forward<Args>(args)...);
  }
};

template <typename T>
using UninitializedVector = std::vector<T, UninitializedAllocator<T>>;

}  // namespace nibble

#endif  // NIBBLE_BASE_UNINITIALIZED_VECTOR_H_
