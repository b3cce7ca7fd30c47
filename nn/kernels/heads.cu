// From token-major projections to head-major operands of the attention: RMS norm (eps 1e-6), rotary embedding, transposition.
//
//   B samples   H heads   S tokens of the streams   T tokens of the attention   D width of a head
//
// A block works on several rows of tokens, one after the other, and each operand has a row of blocks: queries, keys and values go
// together. A group of `lanes` neighbouring threads, a power of two and at most a warp, has some heads of a row: of each head a thread has
// WIDE neighbouring values, and more of them lanes * WIDE values further where the head is wider. Those of the next row are loaded
// meanwhile: without that, all blocks of the machine read at the same time, and then write. `wide`: rows begin at multiples of 16 bytes,
// and a head is whole chunks of WIDE values.
#include "values.cuh"

constexpr float EPS = 1e-6f;
// Heads of a group and rows of a block: `HEADS_OF_A_GROUP`, `HEADS_OF_A_GROUP_BACKWARD` and `ROWS_OF_A_BLOCK` in queue/heads.rs.
constexpr int HEADS = 4, HEADS_BACKWARD = 2, ROWS = 8;

template <class T> DEVICE T operand(T first, T second, T third) { return blockIdx.y == 0 ? first : blockIdx.y == 1 ? second : third; }

// The heads of a group, and which of their values the thread has.
struct Group {
  int head, count;
  int first, step;  // of the thread's values in a head, and to the next ones
};
template <int EACH> DEVICE Group group_of_heads(int number, int lanes, int heads) {
  const int head = number * EACH, left = head < heads ? heads - head : 0;
  return Group{left > 0 ? head : 0, left < EACH ? left : EACH, static_cast<int>(threadIdx.x) % lanes * WIDE, lanes * WIDE};
}

// Where tokens stand among those of the attention, and where their heads do: in [B, H, T, D].
struct Layout {
  Streams streams;
  int heads, tokens, dim, offset;
};
DEVICE int place_of(int row, const Layout& layout) { return layout.offset + token_of(row, layout.streams).place; }
DEVICE long long by_heads(int row, const Group& g, const Layout& layout) {
  const Token token = token_of(row, layout.streams);
  return at(token.sample * layout.heads + g.head, layout.tokens, layout.offset + token.place) * layout.dim + g.first;
}

// Each of N sums of a group, in the order of a tree. Whole warps only.
template <int N> DEVICE void group_sums(float (&sums)[N], int lanes) {
  for (int offset = 1; offset < lanes; offset *= 2) {
#pragma unroll
    for (int n = 0; n < N; ++n) sums[n] += __shfl_xor_sync(0xffffffffu, sums[n], offset);
  }
}

// What a thread's values of a head are multiplied by and turned by.
struct Turn {
  float w[WIDE], c[WIDE / 2], s[WIDE / 2];
};
DEVICE Turn turn_at(const float* weight, const float* cos, const float* sin, int place, int dim, int i, int wide) {
  Turn turn;
  load_wide(weight + i, turn.w, dim - i, wide);
  load_wide(cos + at(place, dim / 2, i / 2), turn.c, (dim - i) / 2, wide);
  load_wide(sin + at(place, dim / 2, i / 2), turn.s, (dim - i) / 2, wide);
  return turn;
}

DEVICE float sum_of_squares(const float (&v)[WIDE], float sum) {
#pragma unroll
  for (int k = 0; k < WIDE; ++k) sum = fmaf(v[k], v[k], sum);
  return sum;
}

// 1 / roots of the mean squares of a group's heads, of which the first chunks are there.
template <int N>
DEVICE void reciprocal_roots(const activation* x, const uint4 (&chunks)[N], const Group& g, int dim, int lanes, int wide, float (&r)[N]) {
#pragma unroll
  for (int n = 0; n < N; ++n) {
    float v[WIDE];
    unpack_wide(chunks[n], v);
    r[n] = sum_of_squares(v, 0.0f);
    for (int i = g.step; i < dim - g.first && n < g.count; i += g.step) {
      load_wide(x + n * dim + i, v, dim - g.first - i, wide);
      r[n] = sum_of_squares(v, r[n]);
    }
  }
  group_sums(r, lanes);
#pragma unroll
  for (int n = 0; n < N; ++n) r[n] = 1.0f / sqrtf(r[n] / dim + EPS);
}

DEVICE void norm_and_turn(float (&v)[WIDE], float r, const Turn& turn) {
#pragma unroll
  for (int k = 0; k < WIDE; k += 2) {
    const float x0 = v[k] * r * turn.w[k], x1 = v[k + 1] * r * turn.w[k + 1], c = turn.c[k / 2], s = turn.s[k / 2];
    v[k] = x0 * c - x1 * s;
    v[k + 1] = x0 * s + x1 * c;
  }
}

DEVICE void turn_back(float (&d)[WIDE], const Turn& turn) {
#pragma unroll
  for (int k = 0; k < WIDE; k += 2) {
    const float c = turn.c[k / 2], s = turn.s[k / 2], d0 = d[k], d1 = d[k + 1];
    d[k] = (d0 * c + d1 * s) * turn.w[k];
    d[k + 1] = (d1 * c - d0 * s) * turn.w[k + 1];
  }
}

DEVICE float sum_of_products(const float (&a)[WIDE], const float (&b)[WIDE], float sum) {
#pragma unroll
  for (int k = 0; k < WIDE; ++k) sum = fmaf(a[k], b[k], sum);
  return sum;
}

// The first chunk of each of a group's heads; zeros where there is none.
template <int N>
DEVICE void fetch_heads(const activation* p, long long apart, uint4 (&chunks)[N], const Group& g, int dim, int wide) {
#pragma unroll
  for (int n = 0; n < N; ++n) {
    const int left = n < g.count ? dim - g.first : 0;
    chunks[n] = fetch_wide(p + n * apart, left, wide && left > 0);
  }
}

// Values, which go without norm and rotation; `x` and `y` are the group's.
template <int N>
DEVICE void move_values(const activation* x, long long x_apart, activation* y, long long y_apart, const uint4 (&chunks)[N],
                        const Group& g, int dim, int wide) {
#pragma unroll
  for (int n = 0; n < N; ++n) {
    float v[WIDE];
    unpack_wide(chunks[n], v);
    for (int i = 0; i < dim - g.first && n < g.count; i += g.step) {
      if (i > 0) load_wide(x + n * x_apart + i, v, dim - g.first - i, wide);
      store_wide(y + n * y_apart + i, v, dim - g.first - i, wide);
    }
  }
}

template <int N> DEVICE void turn_heads(const activation* x, activation* out, long long apart, const uint4 (&chunks)[N], const float* weight,
                                        const float* cos, const float* sin, int place, const Group& g, int dim, int lanes, int wide) {
  const bool there = g.count > 0 && g.first < dim;
  Turn turn;
  if (there) turn = turn_at(weight, cos, sin, place, dim, g.first, wide);
  float r[N];
  reciprocal_roots(x, chunks, g, dim, lanes, wide, r);
  if (!there) return;
  for (int i = 0; i < dim - g.first; i += g.step) {
    const int left = dim - g.first - i;
    if (i > 0) turn = turn_at(weight, cos, sin, place, dim, g.first + i, wide);
#pragma unroll
    for (int n = 0; n < N; ++n) {
      if (n >= g.count) continue;
      float v[WIDE];
      unpack_wide(chunks[n], v);
      if (i > 0) load_wide(x + n * dim + i, v, left, wide);
      norm_and_turn(v, r[n], turn);
      store_wide(out + n * apart + i, v, left, wide);
    }
  }
}

// An operand without a weight has values.
extern "C" __global__ void __launch_bounds__(96, 5) split_heads(const activation* x_0, const activation* x_1, const activation* x_2,
                                                              const float* weight_0, const float* weight_1, const float* weight_2,
                                                              activation* out_0, activation* out_1, activation* out_2, int stride_0,
                                                              int stride_1, int stride_2, const float* cos, const float* sin, int lanes,
                                                              int rows, int heads, int dim, int batch, int first, int second, int third,
                                                              int tokens, int offset, int wide) {
  const Layout layout{Streams{batch, first, second, third}, heads, tokens, dim, offset};
  const int stride = operand(stride_0, stride_1, stride_2);
  const float* weight = operand(weight_0, weight_1, weight_2);
  const int from = blockIdx.x * ROWS, until = min(from + ROWS, rows);
  for (int done = 0; done < heads; done += blockDim.x / lanes * HEADS) {
    const Group g = group_of_heads<HEADS>(done / HEADS + threadIdx.x / lanes, lanes, heads);
    const activation* x = operand(x_0, x_1, x_2) + g.head * dim + g.first;
    uint4 now[HEADS], next[HEADS];
    fetch_heads(x + at(from, stride, 0), dim, next, g, dim, wide);
    for (int row = from; row < until; ++row) {
#pragma unroll
      for (int n = 0; n < HEADS; ++n) now[n] = next[n];
      if (row + 1 < until) fetch_heads(x + at(row + 1, stride, 0), dim, next, g, dim, wide);
      const activation* xr = x + at(row, stride, 0);
      activation* out = operand(out_0, out_1, out_2) + by_heads(row, g, layout);
      const long long apart = at(tokens, dim, 0);
      if (weight == nullptr) move_values(xr, dim, out, apart, now, g, dim, wide);
      else turn_heads(xr, out, apart, now, weight, cos, sin, place_of(row, layout), g, dim, lanes, wide);
    }
  }
}

template <int N>
DEVICE void turn_heads_back(const activation* d_out, long long apart, const activation* x, activation* dx, const uint4 (&d_chunks)[N],
                            const uint4 (&chunks)[N], const float* weight, const float* cos, const float* sin, int place, const Group& g,
                            int dim, int lanes, int wide) {
  const bool there = g.count > 0 && g.first < dim;
  Turn turn;
  if (there) turn = turn_at(weight, cos, sin, place, dim, g.first, wide);
  float r[N], along[N];
  reciprocal_roots(x, chunks, g, dim, lanes, wide, r);
  float d[N][WIDE];
#pragma unroll
  for (int n = 0; n < N; ++n) {
    along[n] = 0.0f;
    if (!there || n >= g.count) continue;
    float v[WIDE];
    unpack_wide(d_chunks[n], d[n]);
    unpack_wide(chunks[n], v);
    turn_back(d[n], turn);
    along[n] = sum_of_products(d[n], v, 0.0f);
    // Wider heads: the rest is turned back twice, here for its part along x, below to be written.
    for (int i = g.step; i < dim - g.first; i += g.step) {
      float more_d[WIDE], more_v[WIDE];
      load_wide(d_out + n * apart + i, more_d, dim - g.first - i, wide);
      load_wide(x + n * dim + i, more_v, dim - g.first - i, wide);
      turn_back(more_d, turn_at(weight, cos, sin, place, dim, g.first + i, wide));
      along[n] = sum_of_products(more_d, more_v, along[n]);
    }
  }
  group_sums(along, lanes);
  if (!there) return;
#pragma unroll
  for (int n = 0; n < N; ++n) {
    const float part = along[n] * r[n] * r[n] / dim;
    float v[WIDE];
    unpack_wide(chunks[n], v);
    for (int i = 0; i < dim - g.first && n < g.count; i += g.step) {
      const int left = dim - g.first - i;
      if (i > 0) {
        load_wide(d_out + n * apart + i, d[n], left, wide);
        load_wide(x + n * dim + i, v, left, wide);
        turn_back(d[n], turn_at(weight, cos, sin, place, dim, g.first + i, wide));
      }
#pragma unroll
      for (int k = 0; k < WIDE; ++k) d[n][k] = r[n] * (d[n][k] - v[k] * part);
      store_wide(dx + n * dim + i, d[n], left, wide);
    }
  }
}

extern "C" __global__ void __launch_bounds__(96, 5) split_heads_backward(
    const activation* d_out_0, const activation* d_out_1, const activation* d_out_2, const activation* x_0, const activation* x_1,
    const activation* x_2, const float* weight_0, const float* weight_1, const float* weight_2, activation* dx_0, activation* dx_1,
    activation* dx_2, int x_stride_0, int x_stride_1, int x_stride_2, int dx_stride_0, int dx_stride_1, int dx_stride_2,
    const float* cos, const float* sin, int lanes, int rows, int heads, int dim, int batch, int first, int second, int third, int tokens,
    int offset, int wide) {
  const Layout layout{Streams{batch, first, second, third}, heads, tokens, dim, offset};
  const int stride = operand(x_stride_0, x_stride_1, x_stride_2), dx_stride = operand(dx_stride_0, dx_stride_1, dx_stride_2);
  const float* weight = operand(weight_0, weight_1, weight_2);
  const long long apart = at(tokens, dim, 0);
  const int from = blockIdx.x * ROWS, until = min(from + ROWS, rows);
  for (int done = 0; done < heads; done += blockDim.x / lanes * HEADS_BACKWARD) {
    const Group g = group_of_heads<HEADS_BACKWARD>(done / HEADS_BACKWARD + threadIdx.x / lanes, lanes, heads);
    const activation* d_out = operand(d_out_0, d_out_1, d_out_2);
    const activation* x = operand(x_0, x_1, x_2) + g.head * dim + g.first;
    uint4 d_now[HEADS_BACKWARD], d_next[HEADS_BACKWARD], now[HEADS_BACKWARD] = {}, next[HEADS_BACKWARD] = {};
    fetch_heads(d_out + by_heads(from, g, layout), apart, d_next, g, dim, wide);
    if (weight != nullptr) fetch_heads(x + at(from, stride, 0), dim, next, g, dim, wide);
    for (int row = from; row < until; ++row) {
#pragma unroll
      for (int n = 0; n < HEADS_BACKWARD; ++n) d_now[n] = d_next[n], now[n] = next[n];
      if (row + 1 < until) {
        fetch_heads(d_out + by_heads(row + 1, g, layout), apart, d_next, g, dim, wide);
        if (weight != nullptr) fetch_heads(x + at(row + 1, stride, 0), dim, next, g, dim, wide);
      }
      const activation* d_row = d_out + by_heads(row, g, layout);
      activation* dx = operand(dx_0, dx_1, dx_2) + at(row, dx_stride, g.head * dim + g.first);
      if (weight == nullptr) {
        move_values(d_row, apart, dx, dim, d_now, g, dim, wide);
        continue;
      }
      turn_heads_back(d_row, apart, x + at(row, stride, 0), dx, d_now, now, weight, cos, sin, place_of(row, layout), g, dim, lanes, wide);
    }
  }
}
