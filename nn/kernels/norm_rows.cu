// Norms with weights of their own: of rows (layer norm, RMS norm), and of groups of a picture's channels.
//
//   M rows   D width   G groups of D / G neighbouring channels
#include "values.cuh"

// y = norm(x) weight + bias, one block a row. `centred`: a layer norm; without, an RMS norm. No bias is a null pointer.
extern "C" __global__ void __launch_bounds__(256) norm_rows(const activation* x, const float* weight, const float* bias, activation* y,
                                                            int width, int centred, float eps) {
  float* scratch = shared_memory<float>();
  const activation* xr = x + at(blockIdx.x, width, 0);
  activation* yr = y + at(blockIdx.x, width, 0);
  float2 sums = {0.0f, 0.0f};
  float mean = 0.0f;
  if (centred) {
    for (int i = threadIdx.x; i < width; i += blockDim.x) sums.x += to_float(xr[i]);
    mean = block_sum2(sums, scratch).x / width;
  }
  sums = {0.0f, 0.0f};
  for (int i = threadIdx.x; i < width; i += blockDim.x) {
    const float d = to_float(xr[i]) - mean;
    sums.x = fmaf(d, d, sums.x);
  }
  const float reciprocal = 1.0f / sqrtf(block_sum2(sums, scratch).x / width + eps);
  for (int i = threadIdx.x; i < width; i += blockDim.x)
    yr[i] = from_float<activation>(fmaf((to_float(xr[i]) - mean) * reciprocal, weight[i], bias ? bias[i] : 0.0f));
}

// Sums of a group's values and of their squares over one slice of the rows, in f64: a picture has millions of them.
// partial [G, slices, 2]; a block has one group (x) and one slice (y).
extern "C" __global__ void __launch_bounds__(256) group_sums(const activation* x, double* partial, int rows, int width, int groups) {
  double* sums = shared_memory<double>();  // [2][256]
  const int channels = width / groups, slices = gridDim.y;
  const int each = (rows + slices - 1) / slices, first = blockIdx.y * each, end = min(first + each, rows);
  double a = 0.0, b = 0.0;
  for (int i = threadIdx.x; i < (end - first) * channels; i += blockDim.x) {
    const double v = to_float(x[at(first + i / channels, width, static_cast<int>(blockIdx.x) * channels + i % channels)]);
    a += v;
    b += v * v;
  }
  sums[threadIdx.x] = a;
  sums[256 + threadIdx.x] = b;
  for (int half = 128; half > 0; half /= 2) {
    __syncthreads();
    if (static_cast<int>(threadIdx.x) < half) {
      sums[threadIdx.x] += sums[threadIdx.x + half];
      sums[256 + threadIdx.x] += sums[256 + threadIdx.x + half];
    }
  }
  if (threadIdx.x != 0) return;
  double* to = partial + 2 * (blockIdx.x * slices + blockIdx.y);
  to[0] = sums[0];
  to[1] = sums[256];
}

// Mean and 1 / deviation of each group, moments [G, 2]: a thread a group, slices in their order.
extern "C" __global__ void __launch_bounds__(32) group_moments(const double* partial, float* moments, int groups, int slices,
                                                               double count, double eps) {
  const int group = blockIdx.x * blockDim.x + threadIdx.x;
  if (group >= groups) return;
  double a = 0.0, b = 0.0;
  for (int s = 0; s < slices; ++s) {
    a += partial[2 * (group * slices + s)];
    b += partial[2 * (group * slices + s) + 1];
  }
  const double mean = a / count, variance = b / count - mean * mean;
  moments[2 * group] = static_cast<float>(mean);
  moments[2 * group + 1] = static_cast<float>(1.0 / sqrt((variance > 0.0 ? variance : 0.0) + eps));
}

// y = (x - mean) / deviation * weight + bias, then SiLU where it is wanted.
extern "C" __global__ void __launch_bounds__(256) group_norm(const activation* x, const float* moments, const float* weight,
                                                             const float* bias, activation* y, int rows, int width, int groups,
                                                             int silu) {
  const Place p = place_in_rows<1>(rows, width);
  if (!p.there) return;
  const int group = p.column / (width / groups);
  const float n = (to_float(x[at(p.row, width, p.column)]) - moments[2 * group]) * moments[2 * group + 1];
  const float v = fmaf(n, weight[p.column], bias[p.column]);
  y[at(p.row, width, p.column)] = from_float<activation>(silu ? v / (1.0f + expf(-v)) : v);
}
