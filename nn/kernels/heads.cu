// From token-major projections to head-major operands of the attention: RMS norm (eps 1e-6), rotary embedding, transposition.
//
//   B samples   H heads   S tokens of one stream   T tokens of the attention   D width of a head
#include "values.cuh"

constexpr float EPS = 1e-6f;

// A warp has one head of one token of the stream.
struct Head {
  int row, place;
  long long from, to;
  bool there;
};
DEVICE Head head_of_warp(int rows, int heads, int dim, int stream_tokens, int tokens, int offset, int stride) {
  const int warps = blockDim.x / 32;
  const long long i = static_cast<long long>(blockIdx.x) * warps + threadIdx.x / 32;
  const int row = static_cast<int>(i / heads), head = static_cast<int>(i % heads);
  const int place = offset + row % stream_tokens;
  const long long to = (static_cast<long long>(row / stream_tokens * heads + head) * tokens + place) * dim;
  return Head{row, place, at(row, stride, head * dim), to, row < rows};
}

// 1 / root of the mean square of a head.
DEVICE float reciprocal_root_mean_square(const activation* x, int dim) {
  float sum = 0.0f;
  for (int i = threadIdx.x % 32; i < dim; i += 32) {
    const float v = to_float(x[i]);
    sum = fmaf(v, v, sum);
  }
  return 1.0f / sqrtf(warp_sum(sum) / dim + EPS);
}

extern "C" __global__ void __launch_bounds__(256) split_heads(const activation* x, const float* weight, const float* cos,
                                                              const float* sin, activation* out, int rows, int heads, int dim,
                                                              int stream_tokens, int tokens, int offset, int stride) {
  const Head h = head_of_warp(rows, heads, dim, stream_tokens, tokens, offset, stride);
  if (!h.there) return;
  const activation* from = x + h.from;
  const float r = reciprocal_root_mean_square(from, dim);
  for (int i = threadIdx.x % 32; i < dim / 2; i += 32) {
    const float c = cos[at(h.place, dim / 2, i)], s = sin[at(h.place, dim / 2, i)];
    const float x0 = to_float(from[2 * i]) * r * weight[2 * i], x1 = to_float(from[2 * i + 1]) * r * weight[2 * i + 1];
    out[h.to + 2 * i] = from_float<activation>(x0 * c - x1 * s);
    out[h.to + 2 * i + 1] = from_float<activation>(x0 * s + x1 * c);
  }
}

extern "C" __global__ void __launch_bounds__(256) split_heads_backward(const activation* d_out, const activation* x, const float* weight,
                                                                       const float* cos, const float* sin, activation* dx, int rows,
                                                                       int heads, int dim, int stream_tokens, int tokens, int offset,
                                                                       int x_stride, int dx_stride) {
  const Head h = head_of_warp(rows, heads, dim, stream_tokens, tokens, offset, x_stride);
  if (!h.there) return;
  const activation *from = x + h.from, *d = d_out + h.to;
  activation* to = dx + at(h.row, dx_stride, static_cast<int>(h.from - at(h.row, x_stride, 0)));
  const float r = reciprocal_root_mean_square(from, dim);
  float along = 0.0f;
  for (int pass = 0; pass < 2; ++pass) {
    // Turned back twice: the first time for its part along x, the second time to be written.
    for (int i = threadIdx.x % 32; i < dim / 2; i += 32) {
      const float c = cos[at(h.place, dim / 2, i)], s = sin[at(h.place, dim / 2, i)];
      const float d0 = to_float(d[2 * i]), d1 = to_float(d[2 * i + 1]);
      const float g0 = (d0 * c + d1 * s) * weight[2 * i], g1 = (d1 * c - d0 * s) * weight[2 * i + 1];
      const float x0 = to_float(from[2 * i]), x1 = to_float(from[2 * i + 1]);
      if (pass == 0) {
        along = fmaf(g0, x0, fmaf(g1, x1, along));
      } else {
        to[2 * i] = from_float<activation>(r * (g0 - x0 * along));
        to[2 * i + 1] = from_float<activation>(r * (g1 - x1 * along));
      }
    }
    if (pass == 0) along = warp_sum(along) * r * r / dim;
  }
}

// Values go without norm and rotation.
extern "C" __global__ void __launch_bounds__(256) split_values(const activation* x, activation* out, int rows, int heads, int dim,
                                                               int stream_tokens, int tokens, int offset, int stride) {
  const Head h = head_of_warp(rows, heads, dim, stream_tokens, tokens, offset, stride);
  if (!h.there) return;
  for (int i = threadIdx.x % 32; i < dim; i += 32) out[h.to + i] = x[h.from + i];
}
extern "C" __global__ void __launch_bounds__(256) split_values_backward(const activation* d_out, activation* dx, int rows, int heads,
                                                                        int dim, int stream_tokens, int tokens, int offset, int stride) {
  const Head h = head_of_warp(rows, heads, dim, stream_tokens, tokens, offset, stride);
  if (!h.there) return;
  for (int i = threadIdx.x % 32; i < dim; i += 32) dx[h.from + i] = d_out[h.to + i];
}
