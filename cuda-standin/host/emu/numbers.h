// Vector types, conversions and mathematics, under CUDA's names.
//
// Functions that CUDA computes with fewer bits (__expf, ex2.approx) have all of them here: tests of kernels that use them need
// the device's tolerance. A product and a sum are two roundings (-ffp-contract=off); fmaf and __fmaf_rn are one.
#pragma once
#include <math.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

#ifdef EMU_CHECK
#define EMU_NUMBER __attribute__((no_sanitize("thread"), unused)) inline
#else
#define EMU_NUMBER __attribute__((unused)) inline
#endif

struct dim3 { unsigned x, y, z; };

#define EMU_VECTORS(T, name)                                                       \
  struct alignas(2 * sizeof(T)) name##2 { T x, y; };                               \
  struct name##3 { T x, y, z; };                                                   \
  struct alignas(sizeof(T) < 8 ? 4 * sizeof(T) : 16) name##4 { T x, y, z, w; };    \
  EMU_NUMBER name##2 make_##name##2(T x, T y) { return {x, y}; }                   \
  EMU_NUMBER name##3 make_##name##3(T x, T y, T z) { return {x, y, z}; }           \
  EMU_NUMBER name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
EMU_VECTORS(unsigned char, uchar)
EMU_VECTORS(short, short)
EMU_VECTORS(unsigned short, ushort)
EMU_VECTORS(int, int)
EMU_VECTORS(unsigned, uint)
EMU_VECTORS(float, float)
EMU_VECTORS(double, double)
#undef EMU_VECTORS

// ---- bits ----
template <class To, class From> EMU_NUMBER To emu_bits(From v) {
  static_assert(sizeof(To) == sizeof(From));
  To r;
  __builtin_memcpy(&r, &v, sizeof r);
  return r;
}
EMU_NUMBER float __uint_as_float(unsigned v) { return emu_bits<float>(v); }
EMU_NUMBER unsigned __float_as_uint(float v) { return emu_bits<unsigned>(v); }
EMU_NUMBER float __int_as_float(int v) { return emu_bits<float>(v); }
EMU_NUMBER int __float_as_int(float v) { return emu_bits<int>(v); }
EMU_NUMBER int __popc(unsigned v) { return __builtin_popcount(v); }
EMU_NUMBER int __clz(int v) { return v == 0 ? 32 : __builtin_clz(static_cast<unsigned>(v)); }
EMU_NUMBER int __ffs(int v) { return __builtin_ffs(v); }
EMU_NUMBER int __float2int_rn(float v) { return static_cast<int>(rintf(v)); }
EMU_NUMBER int __float2int_rz(float v) { return static_cast<int>(v); }
EMU_NUMBER float __int2float_rn(int v) { return static_cast<float>(v); }

// Two values rounded to nearest even; `lo` in the low half.
EMU_NUMBER unsigned emu_bf16(float v) {
  const unsigned bits = __float_as_uint(v);
  return v != v ? 0x7fffu : (bits + 0x7fffu + (bits >> 16 & 1)) >> 16;
}
EMU_NUMBER unsigned pack_bf16(float lo, float hi) { return emu_bf16(lo) | emu_bf16(hi) << 16; }

// ---- smaller and larger: CUDA's overloads; of floats a NaN loses, as with fminf ----
#define EMU_MIN_MAX(T)                                     \
  EMU_NUMBER T min(T a, T b) { return b < a ? b : a; }     \
  EMU_NUMBER T max(T a, T b) { return a < b ? b : a; }
EMU_MIN_MAX(int)
EMU_MIN_MAX(unsigned)
EMU_MIN_MAX(long)
EMU_MIN_MAX(unsigned long)
EMU_MIN_MAX(long long)
EMU_MIN_MAX(unsigned long long)
#undef EMU_MIN_MAX
EMU_NUMBER unsigned min(int a, unsigned b) { return min(static_cast<unsigned>(a), b); }
EMU_NUMBER unsigned min(unsigned a, int b) { return min(a, static_cast<unsigned>(b)); }
EMU_NUMBER unsigned max(int a, unsigned b) { return max(static_cast<unsigned>(a), b); }
EMU_NUMBER unsigned max(unsigned a, int b) { return max(a, static_cast<unsigned>(b)); }
EMU_NUMBER float min(float a, float b) { return fminf(a, b); }
EMU_NUMBER float max(float a, float b) { return fmaxf(a, b); }
EMU_NUMBER double min(double a, double b) { return fmin(a, b); }
EMU_NUMBER double max(double a, double b) { return fmax(a, b); }

// ---- mathematics that <math.h> has not ----
EMU_NUMBER float rsqrtf(float x) { return 1.0f / sqrtf(x); }
EMU_NUMBER float __saturatef(float x) { return fminf(fmaxf(x, 0.0f), 1.0f); }
EMU_NUMBER float __expf(float x) { return expf(x); }
EMU_NUMBER float __exp2f(float x) { return exp2f(x); }
EMU_NUMBER float __logf(float x) { return logf(x); }
EMU_NUMBER float __log2f(float x) { return log2f(x); }
EMU_NUMBER float __sinf(float x) { return sinf(x); }
EMU_NUMBER float __cosf(float x) { return cosf(x); }
EMU_NUMBER float __powf(float x, float y) { return powf(x, y); }
EMU_NUMBER float __fdividef(float x, float y) { return x / y; }
EMU_NUMBER float exp2_approx(float x) { return exp2f(x); }

// ---- one rounding each, whatever the compiler fuses elsewhere ----
EMU_NUMBER float __fadd_rn(float a, float b) { return a + b; }
EMU_NUMBER float __fsub_rn(float a, float b) { return a - b; }
EMU_NUMBER float __fmul_rn(float a, float b) { return a * b; }
EMU_NUMBER float __fdiv_rn(float a, float b) { return a / b; }
EMU_NUMBER float __fsqrt_rn(float a) { return sqrtf(a); }
EMU_NUMBER float __frcp_rn(float a) { return 1.0f / a; }
EMU_NUMBER float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
