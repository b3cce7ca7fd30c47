// From token-major projections to head-major operands of the attention: RMS norm (eps 1e-6), rotary embedding, transposition.
//
//   B samples   H heads   S tokens of one stream   T tokens of the attention   D width of a head
//
// A group of `lanes` neighbouring threads, a power of two and at most a warp, has one head of one token: each thread has WIDE
// neighbouring values of it, and more of them lanes * WIDE values further where the head is wider. `wide`: rows begin at multiples of 16
// bytes, and a head is whole chunks of WIDE values.
#include "values.cuh"

constexpr float EPS = 1e-6f;

struct Head {
  int row, place, first;  // of the thread's values
  int step;   // to the next ones
  long long from, to;
  bool there;
};
DEVICE Head head_of_group(int lanes, int rows, int heads, int dim, int stream_tokens, int tokens, int offset, int stride) {
  const int thread = threadIdx.x;
  const long long i = static_cast<long long>(blockIdx.x) * (blockDim.x / lanes) + thread / lanes;
  const int row = static_cast<int>(i / heads), head = static_cast<int>(i % heads);
  const int place = offset + row % stream_tokens;
  const long long to = (static_cast<long long>(row / stream_tokens * heads + head) * tokens + place) * dim;
  return Head{row, place, thread % lanes * WIDE, lanes * WIDE, at(row, stride, head * dim), to, row < rows};
}

// Of a group, in the order of a tree. Whole warps only.
DEVICE float group_sum(float v, int lanes) {
#pragma unroll
  for (int offset = 1; offset < 32; offset *= 2) {
    const float other = __shfl_xor_sync(0xffffffffu, v, offset);
    if (offset < lanes) v += other;
  }
  return v;
}

// 1 / root of the mean square of a head.
DEVICE float reciprocal_root_mean_square(const activation* x, const Head& h, int lanes, int dim, int wide) {
  float sum = 0.0f;
  for (int i = h.first; i < dim; i += h.step) {
    float v[WIDE];
    load_wide(x + h.from + i, v, h.there ? dim - i : 0, wide && h.there);
#pragma unroll
    for (int k = 0; k < WIDE; ++k) sum = fmaf(v[k], v[k], sum);
  }
  return 1.0f / sqrtf(group_sum(sum, lanes) / dim + EPS);
}

// The angles of a thread's pairs.
struct Turn {
  float c[WIDE / 2], s[WIDE / 2];
};
DEVICE Turn turn_at(const float* cos, const float* sin, int place, int dim, int i, int wide) {
  Turn turn;
  load_wide(cos + at(place, dim / 2, i / 2), turn.c, (dim - i) / 2, wide);
  load_wide(sin + at(place, dim / 2, i / 2), turn.s, (dim - i) / 2, wide);
  return turn;
}

extern "C" __global__ void __launch_bounds__(256) split_heads(const activation* x, const float* weight, const float* cos,
                                                              const float* sin, activation* out, int lanes, int rows, int heads, int dim,
                                                              int stream_tokens, int tokens, int offset, int stride, int wide) {
  const Head h = head_of_group(lanes, rows, heads, dim, stream_tokens, tokens, offset, stride);
  const float r = reciprocal_root_mean_square(x, h, lanes, dim, wide);
  if (!h.there) return;
  for (int i = h.first; i < dim; i += h.step) {
    float v[WIDE], w[WIDE];
    load_wide(x + h.from + i, v, dim - i, wide);
    load_wide(weight + i, w, dim - i, wide);
    const Turn turn = turn_at(cos, sin, h.place, dim, i, wide);
#pragma unroll
    for (int k = 0; k < WIDE; k += 2) {
      const float x0 = v[k] * r * w[k], x1 = v[k + 1] * r * w[k + 1], c = turn.c[k / 2], s = turn.s[k / 2];
      v[k] = x0 * c - x1 * s;
      v[k + 1] = x0 * s + x1 * c;
    }
    store_wide(out + h.to + i, v, dim - i, wide);
  }
}

extern "C" __global__ void __launch_bounds__(256) split_heads_backward(const activation* d_out, const activation* x, const float* weight,
                                                                       const float* cos, const float* sin, activation* dx, int lanes,
                                                                       int rows, int heads, int dim, int stream_tokens, int tokens,
                                                                       int offset, int x_stride, int dx_stride, int wide) {
  const Head h = head_of_group(lanes, rows, heads, dim, stream_tokens, tokens, offset, x_stride);
  const float r = reciprocal_root_mean_square(x, h, lanes, dim, wide);
  activation* to = dx + at(h.row, dx_stride, static_cast<int>(h.from - at(h.row, x_stride, 0)));
  float along = 0.0f;
  for (int pass = 0; pass < 2; ++pass) {
    // Turned back twice: the first time for its part along x, the second time to be written.
    for (int i = h.first; i < dim && h.there; i += h.step) {
      float v[WIDE], d[WIDE], w[WIDE];
      load_wide(x + h.from + i, v, dim - i, wide);
      load_wide(d_out + h.to + i, d, dim - i, wide);
      load_wide(weight + i, w, dim - i, wide);
      const Turn turn = turn_at(cos, sin, h.place, dim, i, wide);
#pragma unroll
      for (int k = 0; k < WIDE; k += 2) {
        const float c = turn.c[k / 2], s = turn.s[k / 2];
        const float g0 = (d[k] * c + d[k + 1] * s) * w[k], g1 = (d[k + 1] * c - d[k] * s) * w[k + 1];
        if (pass == 0) along = fmaf(g0, v[k], fmaf(g1, v[k + 1], along));
        v[k] = r * (g0 - v[k] * along);
        v[k + 1] = r * (g1 - v[k + 1] * along);
      }
      if (pass == 1) store_wide(to + i, v, dim - i, wide);
    }
    if (pass == 0) along = group_sum(along, lanes) * r * r / dim;
  }
}

// Values go without norm and rotation.
DEVICE void move_values(const activation* from, activation* to, const Head& h, int dim, int wide) {
  for (int i = h.first; i < dim && h.there; i += h.step) {
    float v[WIDE];
    load_wide(from + i, v, dim - i, wide);
    store_wide(to + i, v, dim - i, wide);
  }
}
extern "C" __global__ void __launch_bounds__(256) split_values(const activation* x, activation* out, int lanes, int rows, int heads,
                                                               int dim, int stream_tokens, int tokens, int offset, int stride,
                                                               int wide) {
  const Head h = head_of_group(lanes, rows, heads, dim, stream_tokens, tokens, offset, stride);
  move_values(x + h.from, out + h.to, h, dim, wide);
}
extern "C" __global__ void __launch_bounds__(256) split_values_backward(const activation* d_out, activation* dx, int lanes, int rows,
                                                                        int heads, int dim, int stream_tokens, int tokens, int offset,
                                                                        int stride, int wide) {
  const Head h = head_of_group(lanes, rows, heads, dim, stream_tokens, tokens, offset, stride);
  move_values(d_out + h.to, dx + h.from, h, dim, wide);
}
