// Layer norm without weights, then the modulation of a diffusion transformer: y = norm(x) (1 + scale[b]) + shift[b]; eps 1e-6.
//
//   B samples   T tokens of each   D width
#include "sums.cuh"

constexpr float EPS = 1e-6f;

// A block works on several rows, one after the other. Each of its threads keeps KEPT chunks of a row, which is all of it up to 3072
// values: these are read once, and those of the next row are loaded meanwhile. Without that, all blocks of the machine read at the
// same time, then add, then write. Of longer rows the rest is read again. THREADS is `THREADS_OF_A_ROW`, ROWS and
// ROWS_BACKWARD are `MODULATED_ROWS` and `MODULATED_ROWS_BACKWARD` in queue/norms.rs.
constexpr int THREADS = 128, KEPT = 24 / WIDE, STEP = THREADS * WIDE, ROWS = 5, ROWS_BACKWARD = 8;

DEVICE void fetch_row(const activation* row, uint4 (&chunks)[KEPT], int width, int wide) {
#pragma unroll
  for (int c = 0; c < KEPT; ++c) {
    const int i = threadIdx.x * WIDE + c * STEP;
    chunks[c] = fetch_wide(row + i, width - i, wide && i < width);
  }
}
DEVICE void unpack_row(const uint4 (&chunks)[KEPT], float (&kept)[KEPT][WIDE]) {
#pragma unroll
  for (int c = 0; c < KEPT; ++c) unpack_wide(chunks[c], kept[c]);
}

// What is done to the chunks of a row, kept ones and others: f(first column, kept or -1).
template <class F> DEVICE void each_chunk(int width, const F& f) {
#pragma unroll
  for (int c = 0; c < KEPT; ++c) {
    const int i = threadIdx.x * WIDE + c * STEP;
    if (i < width) f(i, c);
  }
  for (int i = threadIdx.x * WIDE + KEPT * STEP; i < width; i += STEP) f(i, -1);
}

extern "C" __global__ void __launch_bounds__(THREADS) norm_modulate(const activation* x, const activation* shift, const activation* scale,
                                                                    activation* y, float* mean, float* reciprocal, int batch, int first,
                                                                    int second, int third, int width, int modulation_stride, int wide) {
  float* scratch = shared_memory<float>();
  const Streams streams{batch, first, second, third};
  const int from = blockIdx.x * ROWS, until = min(from + ROWS, rows_of(streams));
  uint4 next[KEPT];
  fetch_row(x + at(from, width, 0), next, width, wide);
  for (int row = from; row < until; ++row) {
    const activation* xr = x + at(row, width, 0);
    float kept[KEPT][WIDE];
    unpack_row(next, kept);
    if (row + 1 < until) fetch_row(xr + width, next, width, wide);
    float2 sums = {0.0f, 0.0f};
    each_chunk(width, [&](int i, int c) {
      float v[WIDE];
      if (c < 0) load_wide(xr + i, v, width - i, wide);
#pragma unroll
      for (int k = 0; k < WIDE; ++k) sums.x += c < 0 ? v[k] : kept[c][k];  // zero beyond the row
    });
    const float m = block_sum2(sums, scratch).x / width;
    sums = {0.0f, 0.0f};
    each_chunk(width, [&](int i, int c) {
      float v[WIDE];
      if (c < 0) load_wide(xr + i, v, width - i, wide);
#pragma unroll
      for (int k = 0; k < WIDE; ++k) {
        const float d = i + k < width ? (c < 0 ? v[k] : kept[c][k]) - m : 0.0f;
        sums.x += d * d;
      }
    });
    const float r = 1.0f / sqrtf(block_sum2(sums, scratch).x / width + EPS);
    const long long modulation = at(token_of(row, streams).sample, modulation_stride, 0);
    each_chunk(width, [&](int i, int c) {
      float v[WIDE], s[WIDE], h[WIDE];
      if (c < 0) load_wide(xr + i, v, width - i, wide);
      load_wide(scale + modulation + i, s, width - i, wide);
      load_wide(shift + modulation + i, h, width - i, wide);
#pragma unroll
      for (int k = 0; k < WIDE; ++k) v[k] = fmaf(((c < 0 ? v[k] : kept[c][k]) - m) * r, 1.0f + s[k], h[k]);
      store_wide(y + at(row, width, i), v, width - i, wide);
    });
    if (threadIdx.x == 0) {
      mean[row] = m;
      reciprocal[row] = r;
    }
  }
}

// dx of the same; added to what is there with `accumulate`.
extern "C" __global__ void __launch_bounds__(THREADS) norm_modulate_backward(const activation* x, const float* mean,
                                                                             const float* reciprocal, const activation* scale,
                                                                             const activation* dy, activation* dx, int batch, int first,
                                                                             int second, int third, int width, int modulation_stride,
                                                                             int accumulate, int wide) {
  float* scratch = shared_memory<float>();
  const Streams streams{batch, first, second, third};
  const int from = blockIdx.x * ROWS_BACKWARD, until = min(from + ROWS_BACKWARD, rows_of(streams));
  uint4 x_next[KEPT], dy_next[KEPT];
  fetch_row(x + at(from, width, 0), x_next, width, wide);
  fetch_row(dy + at(from, width, 0), dy_next, width, wide);
  for (int row = from; row < until; ++row) {
    const long long start = at(row, width, 0);
    const activation* modulation = scale + at(token_of(row, streams).sample, modulation_stride, 0);
    const float m = mean[row], r = reciprocal[row];
    // The normed values, the cotangents of them, and what is added to.
    float normed[KEPT][WIDE], cotangent[KEPT][WIDE];
    uint4 old[KEPT] = {};
    unpack_row(x_next, normed);
    unpack_row(dy_next, cotangent);
    if (accumulate) fetch_row(dx + start, old, width, wide);
    if (row + 1 < until) {
      fetch_row(x + start + width, x_next, width, wide);
      fetch_row(dy + start + width, dy_next, width, wide);
    }
    const auto prepare = [&](int i, float(&v)[WIDE], float(&g)[WIDE]) {
      float s[WIDE];
      load_wide(modulation + i, s, width - i, wide);
#pragma unroll
      for (int k = 0; k < WIDE; ++k) {
        v[k] = (v[k] - m) * r;
        g[k] *= 1.0f + s[k];  // zero beyond the row
      }
    };
    float2 sums = {0.0f, 0.0f};
    const auto add = [&](const float(&v)[WIDE], const float(&g)[WIDE]) {
#pragma unroll
      for (int k = 0; k < WIDE; ++k) {
        sums.x += g[k];
        sums.y += g[k] * v[k];
      }
    };
    const auto load = [&](int i, float(&v)[WIDE], float(&g)[WIDE]) {
      load_wide(x + start + i, v, width - i, wide);
      load_wide(dy + start + i, g, width - i, wide);
      prepare(i, v, g);
    };
    each_chunk(width, [&](int i, int c) {
      if (c >= 0) {
        prepare(i, normed[c], cotangent[c]);
        return add(normed[c], cotangent[c]);
      }
      float v[WIDE], g[WIDE];
      load(i, v, g);
      add(v, g);
    });
    sums = block_sum2(sums, scratch);
    const float mean_d = sums.x / width, along = sums.y / width;
    const auto write = [&](int i, const float(&v)[WIDE], const float(&g)[WIDE], const float(&before)[WIDE]) {
      float out[WIDE];
#pragma unroll
      for (int k = 0; k < WIDE; ++k) out[k] = fmaf(r, g[k] - mean_d - v[k] * along, accumulate ? before[k] : 0.0f);
      store_wide(dx + start + i, out, width - i, wide);
    };
    each_chunk(width, [&](int i, int c) {
      float v[WIDE], g[WIDE], before[WIDE];
      if (c >= 0) {
        unpack_wide(old[c], before);
        return write(i, normed[c], cotangent[c], before);
      }
      load(i, v, g);
      if (accumulate) load_wide(dx + start + i, before, width - i, wide);
      write(i, v, g, before);
    });
  }
}

// The modulation's own cotangents: sums over tokens of dy, and of dy times the normed value.
struct ModulationTerm {
  const activation *x, *dy;
  const float *mean, *reciprocal;
  int width;
  __device__ __forceinline__ void operator()(int row, int column, float (&sums)[2]) const {
    const long long i = at(row, width, column);
    const float g = to_float(dy[i]);
    sums[0] += g;
    sums[1] = fmaf(g, (to_float(x[i]) - mean[row]) * reciprocal[row], sums[1]);
  }
};
extern "C" __global__ void __launch_bounds__(256) norm_modulate_sums(const activation* x, const float* mean, const float* reciprocal,
                                                                     const activation* dy, float* d_shift, float* d_scale, int tokens,
                                                                     int width, int stride) {
  float sums[2];
  if (!column_sums(blockIdx.y * tokens, tokens, width, sums, ModulationTerm{x, dy, mean, reciprocal, width})) return;
  const long long i = at(blockIdx.y, stride, blockIdx.x * COLUMNS + threadIdx.x % COLUMNS);
  d_shift[i] = sums[0];
  d_scale[i] = sums[1];
}

// A gate's own cotangent: the sum over tokens of dx y.
struct GateTerm {
  const activation *dx, *y;
  int width;
  __device__ __forceinline__ void operator()(int row, int column, float (&sums)[1]) const {
    const long long i = at(row, width, column);
    sums[0] = fmaf(to_float(dx[i]), to_float(y[i]), sums[0]);
  }
};
extern "C" __global__ void __launch_bounds__(256) gate_sums(const activation* dx, const activation* y, float* d_gate, int tokens,
                                                            int width, int stride) {
  float sums[1];
  if (!column_sums(blockIdx.y * tokens, tokens, width, sums, GateTerm{dx, y, width})) return;
  d_gate[at(blockIdx.y, stride, blockIdx.x * COLUMNS + threadIdx.x % COLUMNS)] = sums[0];
}
