// The type of activations, and how threads read and write several of them at once.
//
// Every file is compiled once for each precision of products: activations are bf16 with -DACTIVATION_BF16, f32 without.
// Statistics, adapters, gradients and moments are f32 in either case.
#pragma once
#include "device.cuh"

#if defined(ACTIVATION_BF16)
typedef bf16 activation;
#else
typedef float activation;
#endif

constexpr float LOG2_E = 1.4426950408889634f;

// x times the logistic function of y, to a few units in the last place: SiLU, and GELU in its tanh form. Without a branch, so that
// memory stays the limit.
DEVICE float times_logistic(float x, float y) { return __fdividef(x, 1.0f + exp2_approx(-LOG2_E * y)); }

DEVICE float to_float(float v) { return v; }
template <class T> DEVICE T from_float(float v) {
  if constexpr (sizeof(T) == 2) return to_bf16(v);
  else return v;
}

// Values that a thread reads or writes at once: sixteen bytes of them.
template <class T> struct Wide { static constexpr int count = 16 / sizeof(T); };
constexpr int WIDE = Wide<activation>::count;

// `left` of the values from `p` on, at most a thread's; others are zero. `wide`: p is a multiple of 16 bytes, and all are there.
template <int N> DEVICE void load_wide(const float* p, float (&v)[N], int left, bool wide) {
  if (wide) {
#pragma unroll
    for (int i = 0; i < N; i += 4) {
      const float4 x = *reinterpret_cast<const float4*>(p + i);
      v[i] = x.x, v[i + 1] = x.y, v[i + 2] = x.z, v[i + 3] = x.w;
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < N; ++i) v[i] = i < left ? p[i] : 0.0f;
}
DEVICE void load_wide(const float* p, float (&v)[2], int left, bool wide) {
  if (wide) {
    const float2 x = *reinterpret_cast<const float2*>(p);
    v[0] = x.x, v[1] = x.y;
    return;
  }
  v[0] = left > 0 ? p[0] : 0.0f;
  v[1] = left > 1 ? p[1] : 0.0f;
}

// The same, still packed, so that loads can be in flight while other values are worked on.
DEVICE uint4 fetch_wide(const float* p, int left, bool wide) {
  if (wide) return *reinterpret_cast<const uint4*>(p);
  unsigned words[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) words[i] = i < left ? __float_as_uint(p[i]) : 0u;
  return uint4{words[0], words[1], words[2], words[3]};
}
DEVICE uint4 fetch_wide(const bf16* p, int left, bool wide) {
  if (wide) return *reinterpret_cast<const uint4*>(p);
  unsigned words[4] = {0u, 0u, 0u, 0u};
#pragma unroll
  for (int i = 0; i < 8; ++i)
    if (i < left) words[i / 2] |= static_cast<unsigned>(p[i].bits) << i % 2 * 16;
  return uint4{words[0], words[1], words[2], words[3]};
}
DEVICE void unpack_wide(uint4 x, float (&v)[4]) {
  v[0] = __uint_as_float(x.x), v[1] = __uint_as_float(x.y), v[2] = __uint_as_float(x.z), v[3] = __uint_as_float(x.w);
}
DEVICE void unpack_wide(uint4 x, float (&v)[8]) {
  const unsigned words[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    v[2 * i] = __uint_as_float(words[i] << 16);
    v[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
  }
}
DEVICE void load_wide(const bf16* p, float (&v)[8], int left, bool wide) { unpack_wide(fetch_wide(p, left, wide), v); }

template <int N> DEVICE void store_wide(float* p, const float (&v)[N], int left, bool wide) {
  if (wide) {
#pragma unroll
    for (int i = 0; i < N; i += 4) *reinterpret_cast<float4*>(p + i) = float4{v[i], v[i + 1], v[i + 2], v[i + 3]};
    return;
  }
#pragma unroll
  for (int i = 0; i < N; ++i)
    if (i < left) p[i] = v[i];
}
DEVICE void store_wide(bf16* p, const float (&v)[8], int left, bool wide) {
  if (wide) {
    *reinterpret_cast<uint4*>(p) =
        uint4{pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]), pack_bf16(v[4], v[5]), pack_bf16(v[6], v[7])};
    return;
  }
#pragma unroll
  for (int i = 0; i < 8; ++i)
    if (i < left) p[i] = to_bf16(v[i]);
}

// Where a thread works in rows of `width` values: one row, and the first of Count columns. `wide`: rows begin at multiples of 16 bytes,
// so that whole chunks can be read and written at once; the last one of a row may be shorter.
struct Place {
  int row, column, left;
  bool there, wide;
};
template <int Count> DEVICE Place place_in_rows(int rows, int width, int wide) {
  const int chunks = (width + Count - 1) / Count;
  const long long i = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
  const long long row = i / chunks;
  const int column = static_cast<int>(i - row * chunks) * Count, left = width - column;
  return Place{static_cast<int>(row), column, left, row < rows, wide && left >= Count};
}
DEVICE long long at(int row, int stride, int column) { return static_cast<long long>(row) * stride + column; }

// Token rows of up to three streams, one after the other: those of the first of all samples, then those of the next.
struct Streams {
  int batch, first, second, third;  // tokens of each
};
DEVICE int rows_of(Streams s) { return s.batch * (s.first + s.second + s.third); }
// The sample of a row, and its place among the tokens of all streams.
struct Token {
  int sample, place;
};
DEVICE Token token_of(int row, Streams s) {
  int before = 0, tokens = s.first;
  if (row >= s.batch * tokens) {
    row -= s.batch * tokens;
    before = tokens, tokens = s.second;
    if (row >= s.batch * tokens) {
      row -= s.batch * tokens;
      before += tokens, tokens = s.third;
    }
  }
  if (tokens == 0) tokens = 1;  // beyond the last row
  return Token{row / tokens, before + row % tokens};
}
