// Norms with weights of their own: of rows (layer norm, RMS norm), and of groups of a picture's channels.
//
//   M rows   D width   G groups of D / G neighbouring channels
#include "sums.cuh"

constexpr int THREADS = 256;

// y = norm(x) weight + bias, one block a row. `centred`: a layer norm; without, an RMS norm. No bias is a null pointer.
extern "C" __global__ void __launch_bounds__(THREADS) norm_rows(const activation* x, const float* weight, const float* bias,
                                                                activation* y, int width, int centred, float eps, int wide) {
  constexpr int STEP = THREADS * WIDE;
  float* scratch = shared_memory<float>();
  const activation* xr = x + at(blockIdx.x, width, 0);
  activation* yr = y + at(blockIdx.x, width, 0);
  float mean, reciprocal;
  row_moments<THREADS>(xr, width, centred, eps, wide, scratch, mean, reciprocal);
  for (int i = threadIdx.x * WIDE; i < width; i += STEP) {
    float v[WIDE], w[WIDE], b[WIDE] = {};
    load_wide(xr + i, v, width - i, wide);
    load_wide(weight + i, w, width - i, wide);
    if (bias) load_wide(bias + i, b, width - i, wide);
#pragma unroll
    for (int k = 0; k < WIDE; ++k) v[k] = fmaf((v[k] - mean) * reciprocal, w[k], b[k]);
    store_wide(yr + i, v, width - i, wide);
  }
}

// A channel's values and their squares, in f64: a picture has millions of them.
struct ChannelTerm {
  const activation* x;
  int width;
  __device__ __forceinline__ void operator()(int row, int column, double (&sums)[2]) const {
    const double v = to_float(x[at(row, width, column)]);
    sums[0] += v;
    sums[1] += v * v;
  }
};
// Their sums over one slice of the rows: partial [slices, D, 2]; a block has 32 channels (x) of one slice (y).
extern "C" __global__ void __launch_bounds__(THREADS) channel_sums(const activation* x, double* partial, int rows, int width) {
  const int each = (rows + gridDim.y - 1) / gridDim.y, first = blockIdx.y * each;
  double sums[2];
  if (!column_sums(first, min(each, rows - first), width, sums, ChannelTerm{x, width})) return;
  double* to = partial + 2 * at(blockIdx.y, width, blockIdx.x * COLUMNS + threadIdx.x % COLUMNS);
  to[0] = sums[0];
  to[1] = sums[1];
}

// Mean and 1 / deviation of each group, moments [G, 2]: a block a group.
extern "C" __global__ void __launch_bounds__(THREADS) group_moments(const double* partial, float* moments, int width, int slices,
                                                                    double count, double eps) {
  const int channels = width / gridDim.x, first = blockIdx.x * channels;
  double sums[2] = {0.0, 0.0};
  for (int i = threadIdx.x; i < slices * channels; i += THREADS) {
    const double* from = partial + 2 * at(i / channels, width, first + i % channels);
    sums[0] += from[0];
    sums[1] += from[1];
  }
  if (!join_block<THREADS>(sums, Sum<double>())) return;
  const double mean = sums[0] / count, variance = sums[1] / count - mean * mean;
  moments[2 * blockIdx.x] = static_cast<float>(mean);
  moments[2 * blockIdx.x + 1] = static_cast<float>(1.0 / sqrt((variance > 0.0 ? variance : 0.0) + eps));
}

// y = (x - mean) / deviation * weight + bias, then SiLU where it is wanted.
extern "C" __global__ void __launch_bounds__(THREADS) group_norm(const activation* x, const float* moments, const float* weight,
                                                                 const float* bias, activation* y, int rows, int width, int groups,
                                                                 int silu, int wide) {
  const Place p = place_in_rows<WIDE>(rows, width, wide);
  if (!p.there) return;
  const long long start = at(p.row, width, p.column);
  const int channels = width / groups;
  int group = p.column / channels, end = (group + 1) * channels;
  float mean = moments[2 * group], reciprocal = moments[2 * group + 1];
  float v[WIDE], w[WIDE], b[WIDE];
  load_wide(x + start, v, p.left, p.wide);
  load_wide(weight + p.column, w, p.left, p.wide);
  load_wide(bias + p.column, b, p.left, p.wide);
#pragma unroll
  for (int k = 0; k < WIDE; ++k) {
    if (p.column + k == end && k < p.left) {
      ++group, end += channels;
      mean = moments[2 * group], reciprocal = moments[2 * group + 1];
    }
    v[k] = fmaf((v[k] - mean) * reciprocal, w[k], b[k]);
    if (silu) v[k] = times_logistic(v[k], v[k]);
  }
  store_wide(y + start, v, p.left, p.wide);
}
