// Atomic operations on whole numbers. On floating point there are none: the result would depend on the order.
#pragma once
#include "checks.h"

namespace emu {
template <class T> constexpr bool whole = false;
template <> constexpr bool whole<int> = true;
template <> constexpr bool whole<unsigned> = true;
template <> constexpr bool whole<unsigned long long> = true;

// Blocks may run on several OS threads.
template <class T, class F> EMU_RUNTIME T atomic(T* at, F next) {
  static_assert(whole<T>, "atomics are for whole numbers");
  T old = __atomic_load_n(at, __ATOMIC_RELAXED);
  while (!__atomic_compare_exchange_n(at, &old, next(old), false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {}
  return old;
}
}  // namespace emu

#define EMU_ATOMIC(name, result)                                             \
  template <class T> EMU_RUNTIME T name(T* at, std::type_identity_t<T> v) { \
    EMU_ACCESS(at, sizeof(T), emu::ATOMIC);                                 \
    return emu::atomic(at, [v](T old) __attribute__((no_sanitize("thread"))) { return static_cast<T>(result); }); \
  }
EMU_ATOMIC(atomicAdd, old + v)
EMU_ATOMIC(atomicMin, old < v ? old : v)
EMU_ATOMIC(atomicMax, old > v ? old : v)
EMU_ATOMIC(atomicAnd, old & v)
EMU_ATOMIC(atomicOr, old | v)
EMU_ATOMIC(atomicXor, old ^ v)
EMU_ATOMIC(atomicExch, (static_cast<void>(old), v))
template <class T> EMU_RUNTIME T atomicCAS(T* at, std::type_identity_t<T> expected, std::type_identity_t<T> v) {
  EMU_ACCESS(at, sizeof(T), emu::ATOMIC);
  return emu::atomic(at, [expected, v](T old) __attribute__((no_sanitize("thread"))) { return old == expected ? v : old; });
}
