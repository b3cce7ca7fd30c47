// Backward of the norms with weights of their own, by the input alone: their weights are frozen.
//
//   M rows   D width   G groups of D / G neighbouring channels
//
// With n the normed values and g = dy weight: dx = (g - mean(g) - n mean(g n)) / deviation; an RMS norm has no mean(g).
#include "sums.cuh"

constexpr int THREADS = 256;

// One block a row; adds to dx. `centred`: a layer norm; without, an RMS norm.
extern "C" __global__ void __launch_bounds__(THREADS) norm_rows_backward(const activation* x, const float* weight, const activation* dy,
                                                                         activation* dx, int width, int centred, float eps, int wide) {
  constexpr int STEP = THREADS * WIDE;
  float* scratch = shared_memory<float>();
  const activation* xr = x + at(blockIdx.x, width, 0);
  const activation* dyr = dy + at(blockIdx.x, width, 0);
  activation* dxr = dx + at(blockIdx.x, width, 0);
  float mean, reciprocal;
  row_moments<THREADS>(xr, width, centred, eps, wide, scratch, mean, reciprocal);
  float v[WIDE], w[WIDE], g[WIDE];
  float2 sums = {0.0f, 0.0f};
  for (int i = threadIdx.x * WIDE; i < width; i += STEP) {
    load_wide(xr + i, v, width - i, wide);
    load_wide(weight + i, w, width - i, wide);
    load_wide(dyr + i, g, width - i, wide);
#pragma unroll
    for (int k = 0; k < WIDE; ++k) {
      // Beyond the end of the row the cotangent is zero, and so are both terms.
      const float part = g[k] * w[k];
      sums.x += part;
      sums.y = fmaf(part, (v[k] - mean) * reciprocal, sums.y);
    }
  }
  sums = block_sum2(sums, scratch);
  const float off = centred ? sums.x / width : 0.0f, along = sums.y / width;
  for (int i = threadIdx.x * WIDE; i < width; i += STEP) {
    float old[WIDE];
    load_wide(xr + i, v, width - i, wide);
    load_wide(weight + i, w, width - i, wide);
    load_wide(dyr + i, g, width - i, wide);
    load_wide(dxr + i, old, width - i, wide);
#pragma unroll
    for (int k = 0; k < WIDE; ++k) {
      const float normed = (v[k] - mean) * reciprocal;
      v[k] = fmaf(reciprocal, g[k] * w[k] - off - normed * along, old[k]);
    }
    store_wide(dxr + i, v, width - i, wide);
  }
}

// The cotangent of a normed value, which is the result's or, where SiLU follows, that times the slope of SiLU.
DEVICE float before_silu(float dy, float normed, float weight, float bias, int silu) {
  if (!silu) return dy;
  const float z = fmaf(normed, weight, bias), s = times_logistic(1.0f, z);
  return dy * fmaf(z * s, 1.0f - s, s);
}

// A channel's cotangents, and those times the normed values.
struct CotangentTerm {
  const activation *x, *dy;
  const float *moments, *weight, *bias;
  int width, channels, silu;
  __device__ __forceinline__ void operator()(int row, int column, double (&sums)[2]) const {
    const int group = column / channels;
    const float normed = (to_float(x[at(row, width, column)]) - moments[2 * group]) * moments[2 * group + 1];
    const float d = before_silu(to_float(dy[at(row, width, column)]), normed, weight[column], bias[column], silu);
    sums[0] += d;
    sums[1] += static_cast<double>(d) * normed;
  }
};
// Their sums over one slice of the rows: partial [slices, D, 2]; a block has 32 channels (x) of one slice (y). moments [G, 2].
extern "C" __global__ void __launch_bounds__(THREADS) cotangent_sums(const activation* x, const activation* dy, const float* moments,
                                                                     const float* weight, const float* bias, double* partial, int rows,
                                                                     int width, int groups, int silu) {
  const int each = (rows + gridDim.y - 1) / gridDim.y, first = blockIdx.y * each;
  const CotangentTerm term = {x, dy, moments, weight, bias, width, width / groups, silu};
  double sums[2];
  if (!column_sums(first, min(each, rows - first), width, sums, term)) return;
  double* to = partial + 2 * at(blockIdx.y, width, blockIdx.x * COLUMNS + threadIdx.x % COLUMNS);
  to[0] = sums[0];
  to[1] = sums[1];
}

// mean(g) and mean(g n) of each group, means [G, 2]: a block a group.
extern "C" __global__ void __launch_bounds__(THREADS) group_means(const double* partial, const float* weight, float* means, int width,
                                                                  int slices, double count) {
  const int channels = width / gridDim.x, first = blockIdx.x * channels;
  double sums[2] = {0.0, 0.0};
  for (int i = threadIdx.x; i < slices * channels; i += THREADS) {
    const int channel = first + i % channels;
    const double* from = partial + 2 * at(i / channels, width, channel);
    sums[0] += from[0] * weight[channel];
    sums[1] += from[1] * weight[channel];
  }
  if (!join_block<THREADS>(sums, Sum<double>())) return;
  means[2 * blockIdx.x] = static_cast<float>(sums[0] / count);
  means[2 * blockIdx.x + 1] = static_cast<float>(sums[1] / count);
}

extern "C" __global__ void __launch_bounds__(THREADS) group_norm_backward(const activation* x, const activation* dy,
                                                                          const float* moments, const float* means,
                                                                          const float* weight, const float* bias, activation* dx,
                                                                          int rows, int width, int groups, int silu, int wide) {
  const Place p = place_in_rows<WIDE>(rows, width, wide);
  if (!p.there) return;
  const long long start = at(p.row, width, p.column);
  const int channels = width / groups;
  float v[WIDE], d[WIDE], w[WIDE], b[WIDE];
  load_wide(x + start, v, p.left, p.wide);
  load_wide(dy + start, d, p.left, p.wide);
  load_wide(weight + p.column, w, p.left, p.wide);
  load_wide(bias + p.column, b, p.left, p.wide);
#pragma unroll
  for (int k = 0; k < WIDE; ++k) {
    // Columns beyond the end belong to no group.
    const int group = min(p.column + k, width - 1) / channels;
    const float reciprocal = moments[2 * group + 1], normed = (v[k] - moments[2 * group]) * reciprocal;
    const float g = before_silu(d[k], normed, w[k], b[k], silu) * w[k];
    v[k] = reciprocal * (g - means[2 * group] - normed * means[2 * group + 1]);
  }
  store_wide(dx + start, v, p.left, p.wide);
}
