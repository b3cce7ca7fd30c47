// The cosine between a weighted mean of rows and each of other rows, summed in f64.
//
//   T tokens   D width
#include "values.cuh"

constexpr int COLUMNS = 32, SLICES = 8;

// The mean of `rows [T, D]` weighted by `mask [T]`; zero where the mask is. A block has 32 columns and eight slices of the rows.
extern "C" __global__ void __launch_bounds__(256) masked_mean(const activation* rows, const float* mask, float* mean, int tokens,
                                                              int width, int stride) {
  double* part = shared_memory<double>();
  const int lane = threadIdx.x % COLUMNS, slice = threadIdx.x / COLUMNS, column = blockIdx.x * COLUMNS + lane;
  double sum = 0.0, weight = 0.0;
  for (int t = slice; t < tokens; t += SLICES) {
    const double m = mask[t];
    weight += m;
    if (column < width) sum += m * to_float(rows[at(t, stride, column)]);
  }
  part[slice * COLUMNS + lane] = sum;
  part[(SLICES + slice) * COLUMNS + lane] = weight;
  __syncthreads();
  if (slice != 0 || column >= width) return;
  for (int s = 1; s < SLICES; ++s) {
    sum += part[s * COLUMNS + lane];
    weight += part[(SLICES + s) * COLUMNS + lane];
  }
  mean[column] = weight == 0.0 ? 0.0f : static_cast<float>(sum / weight);
}

// Cosine of each row of `targets [count, D]` with `mean [D]`; zero where either is zero. One block a row.
extern "C" __global__ void __launch_bounds__(128) cosines(const activation* targets, const float* mean, float* out, int width,
                                                          int stride) {
  double* part = shared_memory<double>();
  double sums[3] = {0.0, 0.0, 0.0};
  for (int i = threadIdx.x; i < width; i += blockDim.x) {
    const double x = to_float(targets[at(blockIdx.x, stride, i)]), m = mean[i];
    sums[0] += x * m;
    sums[1] += x * x;
    sums[2] += m * m;
  }
  for (int n = 0; n < 3; ++n) part[n * 128 + threadIdx.x] = sums[n];
  for (int half = 64; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half)
      for (int n = 0; n < 3; ++n) part[n * 128 + threadIdx.x] += part[n * 128 + threadIdx.x + half];
  }
  if (threadIdx.x != 0) return;
  const double scale = sqrt(part[128] * part[256]);
  out[blockIdx.x] = scale == 0.0 ? 0.0f : static_cast<float>(part[0] / scale);
}
