// The cosine between a weighted mean of rows and each of other rows, summed in f64.
//
//   T tokens   D width
#include "sums.cuh"

// What a row adds to the weighted sum of a column, and its weight.
struct MaskedTerm {
  const activation* rows;
  const float* mask;
  int stride;
  __device__ __forceinline__ void operator()(int row, int column, double (&sums)[2]) const {
    const double weight = mask[row];
    sums[0] += weight * to_float(rows[at(row, stride, column)]);
    sums[1] += weight;
  }
};

// The mean of `rows [T, D]` weighted by `mask [T]`; zero where the mask is.
extern "C" __global__ void __launch_bounds__(256) masked_mean(const activation* rows, const float* mask, float* mean, int tokens,
                                                              int width, int stride) {
  double sums[2];
  if (!column_sums(0, tokens, width, sums, MaskedTerm{rows, mask, stride})) return;
  mean[blockIdx.x * COLUMNS + threadIdx.x % COLUMNS] = sums[1] == 0.0 ? 0.0f : static_cast<float>(sums[0] / sums[1]);
}

constexpr int THREADS = 128;

// Cosine of each row of `targets [count, D]` with `mean [D]`; zero where either is zero. One block a row.
extern "C" __global__ void __launch_bounds__(THREADS) cosines(const activation* targets, const float* mean, float* out, int width,
                                                              int stride) {
  double sums[3] = {0.0, 0.0, 0.0};
  for (int i = threadIdx.x; i < width; i += THREADS) {
    const double x = to_float(targets[at(blockIdx.x, stride, i)]), m = mean[i];
    sums[0] += x * m;
    sums[1] += x * x;
    sums[2] += m * m;
  }
  if (!join_block<THREADS>(sums, Sum<double>())) return;
  const double scale = sqrt(sums[1] * sums[2]);
  out[blockIdx.x] = scale == 0.0 ? 0.0f : static_cast<float>(sums[0] / scale);
}
