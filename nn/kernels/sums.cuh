// Sums whose order is fixed, so that every run gives the same bits: of what the threads of a block have, and over rows.
#pragma once
#include "values.cuh"

template <class T> struct Sum {
  __device__ __forceinline__ T operator()(T a, T b) const { return a + b; }
};

// Each of N values joined over the block, as a tree. True in the first thread, which has the results.
// Shared memory: N values for each thread.
template <int THREADS, class T, int N, class Join> DEVICE bool join_block(T (&values)[N], const Join& join) {
  T* part = shared_memory<T>() + threadIdx.x;
#pragma unroll
  for (int n = 0; n < N; ++n) part[n * THREADS] = values[n];
  for (int half = THREADS / 2; half > 0; half /= 2) {
    __syncthreads();
    if (static_cast<int>(threadIdx.x) < half) {
#pragma unroll
      for (int n = 0; n < N; ++n) part[n * THREADS] = join(part[n * THREADS], part[n * THREADS + half]);
    }
  }
  if (threadIdx.x != 0) return false;
#pragma unroll
  for (int n = 0; n < N; ++n) values[n] = part[n * THREADS];
  return true;
}

constexpr int COLUMNS = 32, SLICES = 8;

// N sums over `count` rows for each column: a block has 32 columns, and eight slices of the rows. `term(row, column, sums)` adds what a
// row gives. True in the threads of the first slice whose column is there: they have the sums.
// Shared memory: N values for each thread.
template <class T, int N, class Term> DEVICE bool column_sums(int first, int count, int width, T (&sums)[N], const Term& term) {
  T* part = shared_memory<T>();
  const int lane = threadIdx.x % COLUMNS, slice = threadIdx.x / COLUMNS, column = blockIdx.x * COLUMNS + lane;
#pragma unroll
  for (int n = 0; n < N; ++n) sums[n] = 0;
  if (column < width)
    for (int row = first + slice; row < first + count; row += SLICES) term(row, column, sums);
#pragma unroll
  for (int n = 0; n < N; ++n) part[(n * SLICES + slice) * COLUMNS + lane] = sums[n];
  __syncthreads();
  if (slice != 0 || column >= width) return false;
#pragma unroll
  for (int n = 0; n < N; ++n)
    for (int s = 1; s < SLICES; ++s) sums[n] += part[(n * SLICES + s) * COLUMNS + lane];
  return true;
}

// Mean and 1 / deviation of a row, by a whole block. Without `centred` the mean is zero: the moments of an RMS norm.
template <int THREADS>
DEVICE void row_moments(const activation* row, int width, int centred, float eps, int wide, float* scratch, float& mean,
                        float& reciprocal) {
  constexpr int STEP = THREADS * WIDE;
  float v[WIDE];
  float2 sums = {0.0f, 0.0f};
  mean = 0.0f;
  if (centred) {
    for (int i = threadIdx.x * WIDE; i < width; i += STEP) {
      load_wide(row + i, v, width - i, wide);
#pragma unroll
      for (int k = 0; k < WIDE; ++k) sums.x += v[k];
    }
    mean = block_sum2(sums, scratch).x / width;
  }
  sums = {0.0f, 0.0f};
  for (int i = threadIdx.x * WIDE; i < width; i += STEP) {
    load_wide(row + i, v, width - i, wide);
#pragma unroll
    for (int k = 0; k < WIDE; ++k) {
      const float d = i + k < width ? v[k] - mean : 0.0f;
      sums.x = fmaf(d, d, sums.x);
    }
  }
  reciprocal = 1.0f / sqrtf(block_sum2(sums, scratch).x / width + eps);
}
