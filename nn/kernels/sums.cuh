// Sums over the tokens of each sample: a block has 32 columns of one sample and eight slices of its tokens. The order of the
// additions is fixed, so that every run gives the same bits.
#pragma once
#include "values.cuh"

constexpr int COLUMNS = 32, SLICES = 8;

// Shared memory in floats for `N` sums.
template <int N> DEVICE constexpr int column_sums_shared() { return N * COLUMNS * SLICES; }

// `term(row, column, sums)` adds what a row gives; the totals come back in the threads of the first slice.
template <int N, class Term> DEVICE bool column_sums(int tokens, int width, float (&sums)[N], const Term& term) {
  float* part = shared_memory<float>();
  const int lane = threadIdx.x % COLUMNS, slice = threadIdx.x / COLUMNS, column = blockIdx.x * COLUMNS + lane;
#pragma unroll
  for (int n = 0; n < N; ++n) sums[n] = 0.0f;
  if (column < width)
    for (int t = slice; t < tokens; t += SLICES) term(static_cast<int>(blockIdx.y) * tokens + t, column, sums);
#pragma unroll
  for (int n = 0; n < N; ++n) part[(n * SLICES + slice) * COLUMNS + lane] = sums[n];
  __syncthreads();
  if (slice != 0 || column >= width) return false;
#pragma unroll
  for (int n = 0; n < N; ++n)
    for (int s = 1; s < SLICES; ++s) sums[n] += part[(n * SLICES + s) * COLUMNS + lane];
  return true;
}
