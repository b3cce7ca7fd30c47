// AdamW and what a step looks at before it: the sum of squares of a gradient, and whether its values are finite. All in f32.
//
//   N values   P parts of 4096 values
//
// A sum and a search are two launches: a block for each part, then one block for what the parts gave. The order depends on N alone.
#include "sums.cuh"

constexpr int PART = 4096, THREADS = 256;

struct Smaller {
  __device__ __forceinline__ int operator()(int a, int b) const { return a < b ? a : b; }
};

// `sums [P]`, f64. The square of an f32 value is exact in f64.
extern "C" __global__ void __launch_bounds__(THREADS) squares_of_parts(const float* x, double* sums, int count) {
  const int end = min(count - static_cast<int>(blockIdx.x) * PART, PART);
  x += at(blockIdx.x, PART, 0);
  double sum[1] = {0.0};
  for (int i = threadIdx.x; i < end; i += THREADS) sum[0] += static_cast<double>(x[i]) * x[i];
  if (join_block<THREADS>(sum, Sum<double>())) sums[blockIdx.x] = sum[0];
}
extern "C" __global__ void __launch_bounds__(THREADS) sum_of_parts(const double* sums, double* total, int parts) {
  double sum[1] = {0.0};
  for (int i = threadIdx.x; i < parts; i += THREADS) sum[0] += sums[i];
  if (join_block<THREADS>(sum, Sum<double>())) *total = sum[0];
}

// `places [P]`: of the first value that is not finite, or `count`.
extern "C" __global__ void __launch_bounds__(THREADS) not_finite_of_parts(const float* x, int* places, int count) {
  const int first = blockIdx.x * PART, end = min(count - first, PART);
  int place[1] = {count};
  for (int i = threadIdx.x; i < end && place[0] == count; i += THREADS)
    if ((__float_as_uint(x[first + i]) & 0x7f800000u) == 0x7f800000u) place[0] = first + i;
  if (join_block<THREADS>(place, Smaller())) places[blockIdx.x] = place[0];
}
extern "C" __global__ void __launch_bounds__(THREADS) first_of_parts(const int* places, int* first, int parts, int count) {
  int place[1] = {count};
  for (int i = threadIdx.x; i < parts; i += THREADS) place[0] = min(place[0], places[i]);
  if (join_block<THREADS>(place, Smaller())) *first = place[0];
}

// One update of AdamW. The factors are the host's, and each rounding is that of the processor. The new values may take the place of the
// old ones.
extern "C" __global__ void __launch_bounds__(THREADS) adamw(const float* parameters, const float* first_moment, const float* second_moment,
                                                            const float* gradient, float* new_parameters, float* new_first_moment,
                                                            float* new_second_moment, int count, float factor, float keep, float step_size,
                                                            float root2, float eps, float beta1, float beta2, float rest1, float rest2) {
  const int i = blockIdx.x * THREADS + threadIdx.x;
  if (i >= count) return;
  const float g = __fmul_rn(gradient[i], factor);
  const float first = __fmaf_rn(rest1, g, __fmul_rn(beta1, first_moment[i]));
  const float second = __fmaf_rn(rest2, __fmul_rn(g, g), __fmul_rn(beta2, second_moment[i]));
  const float direction = __fdiv_rn(first, __fadd_rn(__fdiv_rn(__fsqrt_rn(second), root2), eps));
  new_parameters[i] = __fmaf_rn(-step_size, direction, __fmul_rn(parameters[i], keep));
  new_first_moment[i] = first;
  new_second_moment[i] = second;
}
