// Layer norm without weights, then the modulation of a diffusion transformer: y = norm(x) (1 + scale[b]) + shift[b]; eps 1e-6.
//
//   B samples   T tokens of each   D width
#include "sums.cuh"

constexpr float EPS = 1e-6f;

// One block a row.
extern "C" __global__ void __launch_bounds__(256) norm_modulate(const activation* x, const activation* shift, const activation* scale,
                                                                activation* y, float* mean, float* reciprocal, int tokens, int width,
                                                                int modulation_stride, int wide) {
  float* scratch = shared_memory<float>();
  const int row = blockIdx.x, step = blockDim.x * WIDE;
  const activation* xr = x + at(row, width, 0);
  float v[WIDE];
  float2 sums = {0.0f, 0.0f};
  for (int i = threadIdx.x * WIDE; i < width; i += step) {
    load_wide(xr + i, v, width - i, wide);
#pragma unroll
    for (int k = 0; k < WIDE; ++k) sums.x += v[k];
  }
  const float m = block_sum2(sums, scratch).x / width;
  sums = {0.0f, 0.0f};
  for (int i = threadIdx.x * WIDE; i < width; i += step) {
    load_wide(xr + i, v, width - i, wide);
#pragma unroll
    for (int k = 0; k < WIDE; ++k) {
      const float d = i + k < width ? v[k] - m : 0.0f;
      sums.x += d * d;
    }
  }
  const float r = 1.0f / sqrtf(block_sum2(sums, scratch).x / width + EPS);
  const long long modulation = at(row / tokens, modulation_stride, 0);
  for (int i = threadIdx.x * WIDE; i < width; i += step) {
    float s[WIDE], h[WIDE];
    load_wide(xr + i, v, width - i, wide);
    load_wide(scale + modulation + i, s, width - i, wide);
    load_wide(shift + modulation + i, h, width - i, wide);
#pragma unroll
    for (int k = 0; k < WIDE; ++k) v[k] = fmaf((v[k] - m) * r, 1.0f + s[k], h[k]);
    store_wide(y + at(row, width, i), v, width - i, wide);
  }
  if (threadIdx.x == 0) {
    mean[row] = m;
    reciprocal[row] = r;
  }
}

// dx of the same; added to what is there with `accumulate`.
extern "C" __global__ void __launch_bounds__(256) norm_modulate_backward(const activation* x, const float* mean, const float* reciprocal,
                                                                         const activation* scale, const activation* dy, activation* dx,
                                                                         int tokens, int width, int modulation_stride, int accumulate,
                                                                         int wide) {
  float* scratch = shared_memory<float>();
  const int row = blockIdx.x, step = blockDim.x * WIDE;
  const long long start = at(row, width, 0), modulation = at(row / tokens, modulation_stride, 0);
  const float m = mean[row], r = reciprocal[row];
  float v[WIDE], g[WIDE], s[WIDE];
  float2 sums = {0.0f, 0.0f};
  for (int i = threadIdx.x * WIDE; i < width; i += step) {
    load_wide(x + start + i, v, width - i, wide);
    load_wide(dy + start + i, g, width - i, wide);
    load_wide(scale + modulation + i, s, width - i, wide);
#pragma unroll
    for (int k = 0; k < WIDE; ++k) {
      const float d = g[k] * (1.0f + s[k]);  // zero beyond the row
      sums.x += d;
      sums.y += d * ((v[k] - m) * r);
    }
  }
  sums = block_sum2(sums, scratch);
  const float mean_d = sums.x / width, along = sums.y / width;
  for (int i = threadIdx.x * WIDE; i < width; i += step) {
    float old[WIDE];
    load_wide(x + start + i, v, width - i, wide);
    load_wide(dy + start + i, g, width - i, wide);
    load_wide(scale + modulation + i, s, width - i, wide);
    if (accumulate) load_wide(dx + start + i, old, width - i, wide);
#pragma unroll
    for (int k = 0; k < WIDE; ++k) {
      const float d = g[k] * (1.0f + s[k]), n = (v[k] - m) * r;
      v[k] = fmaf(r, d - mean_d - n * along, accumulate ? old[k] : 0.0f);
    }
    store_wide(dx + start + i, v, width - i, wide);
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
