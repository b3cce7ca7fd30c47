// Copies, sums, activation functions and gates. A thread has WIDE neighbouring values of a row.
//
//   B samples   T tokens of each   D width
#include "values.cuh"

// Tokens to where they stand in another order: samples are `from_tokens` and `to_tokens` rows apart.
template <class T>
DEVICE void copied(const T* from, T* to, int batch, int tokens, int width, int from_stride, int from_tokens, int to_stride,
                   int to_tokens, int wide) {
  constexpr int N = Wide<T>::count;
  const Place p = place_in_rows<N>(batch * tokens, width, wide);
  if (!p.there) return;
  const int sample = p.row / tokens, token = p.row % tokens;
  float v[N];
  load_wide(from + at(sample * from_tokens + token, from_stride, p.column), v, p.left, p.wide);
  store_wide(to + at(sample * to_tokens + token, to_stride, p.column), v, p.left, p.wide);
}
extern "C" __global__ void __launch_bounds__(256) copy_tokens(const activation* from, activation* to, int batch, int tokens, int width,
                                                              int from_stride, int from_tokens, int to_stride, int to_tokens,
                                                              int wide) {
  copied(from, to, batch, tokens, width, from_stride, from_tokens, to_stride, to_tokens, wide);
}
extern "C" __global__ void __launch_bounds__(256) copy_tokens_exact(const float* from, float* to, int batch, int tokens, int width,
                                                                    int from_stride, int from_tokens, int to_stride, int to_tokens,
                                                                    int wide) {
  copied(from, to, batch, tokens, width, from_stride, from_tokens, to_stride, to_tokens, wide);
}

// Rows of some streams to their places in the joint order [B, T, D], or with `into_joint` 0 back from there. `offset`: the first stream's
// place among the T tokens.
extern "C" __global__ void __launch_bounds__(256) copy_joint(const activation* from, activation* to, int batch, int first, int second,
                                                             int third, int tokens, int offset, int width, int from_stride,
                                                             int to_stride, int into_joint, int wide) {
  const Streams streams = {batch, first, second, third};
  const Place p = place_in_rows<WIDE>(rows_of(streams), width, wide);
  if (!p.there) return;
  const Token token = token_of(p.row, streams);
  const int joint = token.sample * tokens + offset + token.place;
  float v[WIDE];
  load_wide(from + at(into_joint ? p.row : joint, from_stride, p.column), v, p.left, p.wide);
  store_wide(to + at(into_joint ? joint : p.row, to_stride, p.column), v, p.left, p.wide);
}

// Between the precision of activations and f32.
template <class From, class To>
DEVICE void convert(const From* from, To* to, int rows, int width, int from_stride, int to_stride, int wide) {
  const Place p = place_in_rows<WIDE>(rows, width, wide);
  if (!p.there) return;
  float v[WIDE];
  load_wide(from + at(p.row, from_stride, p.column), v, p.left, p.wide);
  store_wide(to + at(p.row, to_stride, p.column), v, p.left, p.wide);
}
extern "C" __global__ void __launch_bounds__(256) to_activation(const float* from, activation* to, int rows, int width, int from_stride,
                                                                int to_stride, int wide) {
  convert(from, to, rows, width, from_stride, to_stride, wide);
}
// Activations from sums in parts of `count` values, rows without gaps, that are added in their order.
extern "C" __global__ void __launch_bounds__(256) add_parts(const float* sums, activation* to, int rows, int width, int parts, int count,
                                                            int to_stride, int wide) {
  const Place p = place_in_rows<WIDE>(rows, width, wide);
  if (!p.there) return;
  float total[WIDE], v[WIDE];
  load_wide(sums + at(p.row, width, p.column), total, p.left, p.wide);
  for (int part = 1; part < parts; ++part) {
    load_wide(sums + at(part, count, 0) + at(p.row, width, p.column), v, p.left, p.wide);
#pragma unroll
    for (int i = 0; i < WIDE; ++i) total[i] += v[i];
  }
  store_wide(to + at(p.row, to_stride, p.column), total, p.left, p.wide);
}
extern "C" __global__ void __launch_bounds__(256) to_exact(const activation* from, float* to, int rows, int width, int from_stride,
                                                           int to_stride, int wide) {
  convert(from, to, rows, width, from_stride, to_stride, wide);
}

// to = a from
template <int N, class From, class To> DEVICE void multiple(float a, const From* from, To* to, int count, int wide) {
  const Place p = place_in_rows<N>(1, count, wide);
  if (!p.there) return;
  float v[N];
  load_wide(from + p.column, v, p.left, p.wide);
#pragma unroll
  for (int i = 0; i < N; ++i) v[i] *= a;
  store_wide(to + p.column, v, p.left, p.wide);
}
extern "C" __global__ void __launch_bounds__(256) scale(float a, activation* x, int count, int wide) {
  multiple<WIDE>(a, x, x, count, wide);
}
extern "C" __global__ void __launch_bounds__(256) scale_exact(float a, float* x, int count, int wide) {
  multiple<Wide<float>::count>(a, x, x, count, wide);
}
// A part of an adapter as a factor of products: scaled, in the precision of activations.
extern "C" __global__ void __launch_bounds__(256) scaled_factor(float a, const float* from, activation* to, int count, int wide) {
  multiple<WIDE>(a, from, to, count, wide);
}

// Many of them, each on its way from an adapter's values to where the factors of a pass stand. A row of blocks has one.
struct Part {
  long long from, to;
  int count;
  float scale;
};
extern "C" __global__ void __launch_bounds__(256) scaled_factors(const float* values, activation* factors, const Part* parts, int wide) {
  const Part part = parts[blockIdx.y];
  const float* from = values + part.from;
  activation* to = factors + part.to;
  const int step = gridDim.x * blockDim.x * WIDE;
  const bool aligned = wide && part.from % Wide<float>::count == 0 && part.to % WIDE == 0;
  for (int i = (blockIdx.x * blockDim.x + threadIdx.x) * WIDE; i < part.count; i += step) {
    float v[WIDE];
    const int left = part.count - i;
    load_wide(from + i, v, left, aligned && left >= WIDE);
#pragma unroll
    for (int k = 0; k < WIDE; ++k) v[k] *= part.scale;
    store_wide(to + i, v, left, aligned && left >= WIDE);
  }
}

// y += a x
template <class T> DEVICE void add_scaled_values(float a, const T* x, T* y, int count, int wide) {
  constexpr int N = Wide<T>::count;
  const Place p = place_in_rows<N>(1, count, wide);
  if (!p.there) return;
  float u[N], v[N];
  load_wide(x + p.column, u, p.left, p.wide);
  load_wide(y + p.column, v, p.left, p.wide);
#pragma unroll
  for (int i = 0; i < N; ++i) v[i] = fmaf(a, u[i], v[i]);
  store_wide(y + p.column, v, p.left, p.wide);
}
extern "C" __global__ void __launch_bounds__(256) add_scaled(float a, const activation* x, activation* y, int count, int wide) {
  add_scaled_values(a, x, y, count, wide);
}
extern "C" __global__ void __launch_bounds__(256) add_scaled_exact(float a, const float* x, float* y, int count, int wide) {
  add_scaled_values(a, x, y, count, wide);
}

// The tanh form of GELU, and its slope: (1 + tanh(u)) / 2 is the logistic function of 2 u.
constexpr float GELU_SCALE = 1.5957691216057308f, GELU_CUBE = 0.044715f;  // 2 sqrt(2 / pi)
DEVICE float gelu_argument(float x) { return GELU_SCALE * (x + GELU_CUBE * x * x * x); }
DEVICE float gelu_slope(float x) {
  const float s = times_logistic(1.0f, gelu_argument(x));
  return fmaf(x * s * (1.0f - s), GELU_SCALE * (1.0f + 3.0f * GELU_CUBE * x * x), s);
}

// In the order of `Activation` in queue/pointwise.rs.
enum Function { SILU, GELU, GELU_ERF, QUICK_GELU, RELU, TANH };
DEVICE float function_of(int function, float x) {
  switch (function) {
    case SILU: return times_logistic(x, x);
    case GELU: return times_logistic(x, gelu_argument(x));
    case GELU_ERF: return 0.5f * x * (1.0f + erff(x * 0.7071067811865476f));
    case QUICK_GELU: return times_logistic(x, 1.702f * x);
    case RELU: return fmaxf(x, 0.0f);
    default: return tanhf(x);
  }
}

// y = f(x)
extern "C" __global__ void __launch_bounds__(256) activate(const activation* x, activation* y, int function, int rows, int width,
                                                           int x_stride, int y_stride, int wide) {
  const Place p = place_in_rows<WIDE>(rows, width, wide);
  if (!p.there) return;
  float v[WIDE];
  load_wide(x + at(p.row, x_stride, p.column), v, p.left, p.wide);
#pragma unroll
  for (int i = 0; i < WIDE; ++i) v[i] = function_of(function, v[i]);
  store_wide(y + at(p.row, y_stride, p.column), v, p.left, p.wide);
}

// y *= x
extern "C" __global__ void __launch_bounds__(256) multiply(const activation* x, activation* y, int rows, int width, int x_stride,
                                                           int y_stride, int wide) {
  const Place p = place_in_rows<WIDE>(rows, width, wide);
  if (!p.there) return;
  float v[WIDE], w[WIDE];
  load_wide(x + at(p.row, x_stride, p.column), v, p.left, p.wide);
  load_wide(y + at(p.row, y_stride, p.column), w, p.left, p.wide);
#pragma unroll
  for (int i = 0; i < WIDE; ++i) w[i] *= v[i];
  store_wide(y + at(p.row, y_stride, p.column), w, p.left, p.wide);
}

// x = dy gelu'(x)
extern "C" __global__ void __launch_bounds__(256) gelu_backward(const activation* dy, activation* x, int rows, int width, int dy_stride,
                                                                int x_stride, int wide) {
  const Place p = place_in_rows<WIDE>(rows, width, wide);
  if (!p.there) return;
  float v[WIDE], g[WIDE];
  load_wide(x + at(p.row, x_stride, p.column), v, p.left, p.wide);
  load_wide(dy + at(p.row, dy_stride, p.column), g, p.left, p.wide);
#pragma unroll
  for (int i = 0; i < WIDE; ++i) g[i] *= gelu_slope(v[i]);
  store_wide(x + at(p.row, x_stride, p.column), g, p.left, p.wide);
}

// The share of a normal distribution below x, by which GELU multiplies, and its slope, the density.
DEVICE float normal_share(float x) { return 0.5f * (1.0f + erff(x * 0.7071067811865476f)); }
DEVICE float normal_density(float x) { return 0.3989422804014327f * exp2_approx(-0.5f * LOG2_E * x * x); }

// y = a gelu(b), where a row of x is [a | b].
extern "C" __global__ void __launch_bounds__(256) gated_gelu(const activation* x, activation* y, int rows, int width, int x_stride,
                                                             int y_stride, int wide) {
  const Place p = place_in_rows<WIDE>(rows, width, wide);
  if (!p.there) return;
  float a[WIDE], b[WIDE];
  load_wide(x + at(p.row, x_stride, p.column), a, p.left, p.wide);
  load_wide(x + at(p.row, x_stride, width + p.column), b, p.left, p.wide);
#pragma unroll
  for (int i = 0; i < WIDE; ++i) a[i] *= b[i] * normal_share(b[i]);
  store_wide(y + at(p.row, y_stride, p.column), a, p.left, p.wide);
}
extern "C" __global__ void __launch_bounds__(256) gated_gelu_backward(const activation* x, const activation* dy, activation* dx,
                                                                      int rows, int width, int x_stride, int dy_stride, int dx_stride,
                                                                      int wide) {
  const Place p = place_in_rows<WIDE>(rows, width, wide);
  if (!p.there) return;
  float a[WIDE], b[WIDE], g[WIDE];
  load_wide(x + at(p.row, x_stride, p.column), a, p.left, p.wide);
  load_wide(x + at(p.row, x_stride, width + p.column), b, p.left, p.wide);
  load_wide(dy + at(p.row, dy_stride, p.column), g, p.left, p.wide);
#pragma unroll
  for (int i = 0; i < WIDE; ++i) {
    const float share = normal_share(b[i]), slope = fmaf(b[i], normal_density(b[i]), share);
    b[i] *= g[i] * share;
    a[i] *= g[i] * slope;
  }
  store_wide(dx + at(p.row, dx_stride, p.column), b, p.left, p.wide);
  store_wide(dx + at(p.row, dx_stride, width + p.column), a, p.left, p.wide);
}

// x[b, t] += v[b]
extern "C" __global__ void __launch_bounds__(256) add_to_tokens(activation* x, const activation* v, int batch, int tokens, int width,
                                                                int v_stride, int wide) {
  const Place p = place_in_rows<WIDE>(batch * tokens, width, wide);
  if (!p.there) return;
  float a[WIDE], b[WIDE];
  load_wide(x + at(p.row, width, p.column), a, p.left, p.wide);
  load_wide(v + at(p.row / tokens, v_stride, p.column), b, p.left, p.wide);
#pragma unroll
  for (int i = 0; i < WIDE; ++i) a[i] += b[i];
  store_wide(x + at(p.row, width, p.column), a, p.left, p.wide);
}

// y[b, t] = x[b, t] + gate[b] y[b, t]
extern "C" __global__ void __launch_bounds__(256) gated_add(const activation* x, const activation* gate, activation* y, int batch,
                                                            int first, int second, int third, int width, int gate_stride,
                                                            int wide) {
  const Streams streams = {batch, first, second, third};
  const Place p = place_in_rows<WIDE>(rows_of(streams), width, wide);
  if (!p.there) return;
  float v[WIDE], g[WIDE], w[WIDE];
  load_wide(x + at(p.row, width, p.column), v, p.left, p.wide);
  load_wide(gate + at(token_of(p.row, streams).sample, gate_stride, p.column), g, p.left, p.wide);
  load_wide(y + at(p.row, width, p.column), w, p.left, p.wide);
#pragma unroll
  for (int i = 0; i < WIDE; ++i) v[i] = fmaf(g[i], w[i], v[i]);
  store_wide(y + at(p.row, width, p.column), v, p.left, p.wide);
}

// dy[b, t] = gate[b] dx[b, t]
extern "C" __global__ void __launch_bounds__(256) gated_add_backward(const activation* dx, const activation* gate, activation* dy,
                                                                     int batch, int first, int second, int third, int width,
                                                                     int gate_stride, int wide) {
  const Streams streams = {batch, first, second, third};
  const Place p = place_in_rows<WIDE>(rows_of(streams), width, wide);
  if (!p.there) return;
  float v[WIDE], g[WIDE];
  load_wide(dx + at(p.row, width, p.column), v, p.left, p.wide);
  load_wide(gate + at(token_of(p.row, streams).sample, gate_stride, p.column), g, p.left, p.wide);
#pragma unroll
  for (int i = 0; i < WIDE; ++i) v[i] *= g[i];
  store_wide(dy + at(p.row, width, p.column), v, p.left, p.wide);
}
