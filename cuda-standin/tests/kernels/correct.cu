// Kernels that are right, one for each group of functions of emu.h and device.cuh.
#include "device.cuh"

// out = x + gate * y, two bf16 values a thread.
extern "C" __global__ void __launch_bounds__(256) gated_sum(const unsigned* x, const unsigned* gate, const unsigned* y, unsigned* out, int pairs) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= pairs) return;
  const unsigned a = __ldg(x + i), g = __ldg(gate + i), b = __ldg(y + i);
  const float lo = __uint_as_float(a << 16) + __uint_as_float(g << 16) * __uint_as_float(b << 16);
  const float hi = __uint_as_float(a & 0xffff0000u) + __uint_as_float(g & 0xffff0000u) * __uint_as_float(b & 0xffff0000u);
  out[i] = pack_bf16(lo, hi);
}

// Sum and sum of squares of each row.
extern "C" __global__ void __launch_bounds__(256) row_sums(const float* x, float2* out, int width) {
  const float* row = x + static_cast<long long>(blockIdx.x) * width;
  float2 sums = {0.0f, 0.0f};
  for (int i = threadIdx.x; i < width; i += blockDim.x) {
    sums.x += row[i];
    sums.y += row[i] * row[i];
  }
  sums = block_sum2(sums, shared_memory<float>());
  if (threadIdx.x == 0) out[blockIdx.x] = sums;
}

// The same sums twice, added: the scratch is used again.
extern "C" __global__ void __launch_bounds__(256) row_sums_twice(const float* x, float2* out, int width) {
  const float* row = x + static_cast<long long>(blockIdx.x) * width;
  float2 first = {0.0f, 0.0f};
  for (int i = threadIdx.x; i < width; i += blockDim.x) first.x += row[i], first.y += row[i];
  const float2 second = block_sum2(first, shared_memory<float>());
  first = block_sum2(first, shared_memory<float>());
  if (threadIdx.x == 0) out[blockIdx.x] = float2{first.x + second.x, first.y + second.y};
}

// A sum of each warp by shared memory and barriers of the warp alone: values that several lanes read are written again.
extern "C" __global__ void __launch_bounds__(128) warp_sums(const int* x, int* out) {
  int* s = shared_memory<int>() + threadIdx.x / 32 * 32;
  const int lane = threadIdx.x % 32;
  s[lane] = x[threadIdx.x];
  __syncwarp();
  for (int step = 1; step < 32; step *= 2) {
    const int sum = s[lane] + s[lane ^ step];
    __syncwarp();
    s[lane] = sum;
    __syncwarp();
  }
  out[threadIdx.x] = s[lane];
}

// Where a thread is, in three dimensions.
extern "C" __global__ void __launch_bounds__(64) positions(uint4* out) {
  const unsigned block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  const unsigned thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  const unsigned threads = blockDim.x * blockDim.y * blockDim.z;
  out[block * threads + thread] = uint4{blockIdx.x | threadIdx.x << 16, blockIdx.y | threadIdx.y << 16, blockIdx.z | threadIdx.z << 16, block};
}

// Shuffles and votes of one warp: 12 values a lane.
extern "C" __global__ void __launch_bounds__(32) lanes(double* out) {
  const unsigned all = 0xffffffffu, lane = threadIdx.x;
  double* o = out + lane * 12;
  o[0] = __shfl_xor_sync(all, static_cast<float>(lane) + 0.5f, 5);
  o[1] = __shfl_down_sync(all, static_cast<int>(lane) - 40, 3);
  o[2] = __shfl_up_sync(all, lane, 2);
  o[3] = __shfl_sync(all, lane * 1e10, 7);
  o[4] = __shfl_sync(all, lane, 1, 8);
  o[5] = __ballot_sync(all, lane % 3 == 0);
  o[6] = __any_sync(all, lane == 31);
  o[7] = __all_sync(all, lane < 31);
  o[8] = 0.0;
  if (lane < 8) o[8] = __shfl_xor_sync(0xffu, lane, 1);
  o[9] = warp_sum(lane);
  o[10] = __shfl_down_sync(all, lane, 4, 8);
  o[11] = __popc(__ballot_sync(all, 1));
}

// Functions of one value: 16 results a value.
extern "C" __global__ void __launch_bounds__(64) functions(const float* x, float* out, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  const float v = x[i], positive = fabsf(v) + 0.125f;
  float* o = out + i * 16;
  o[0] = expf(v), o[1] = logf(positive), o[2] = tanhf(v), o[3] = erff(v);
  o[4] = sqrtf(positive), o[5] = rsqrtf(positive), o[6] = exp2f(v), o[7] = log2f(positive);
  o[8] = sinf(v), o[9] = cosf(v), o[10] = __expf(v), o[11] = fmaf(v, v, 1.0f);
  o[12] = fminf(v, 0.5f) + max(v, -0.5f), o[13] = __fdividef(1.0f, positive), o[14] = exp2_approx(v);
  o[15] = static_cast<float>(min(static_cast<int>(v * 8), 3) + static_cast<int>(max(2u, 1u)));
}

// A histogram with atomics, and the block's largest value.
extern "C" __global__ void __launch_bounds__(128) histogram(const int* x, int* bins, unsigned* largest, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  atomicAdd(bins + x[i] % 10, 1);
  atomicMax(largest, static_cast<unsigned>(x[i]));
}

// The lane maps of ldmatrix: 16 rows of 16 values, as they are and transposed.
extern "C" __global__ void __launch_bounds__(32) lane_maps(const unsigned short* x, unsigned* out) {
  unsigned short* s = shared_memory<unsigned short>();
  for (int i = threadIdx.x; i < 256; i += 32) s[i] = x[i];
  __syncwarp();
  const unsigned lane = threadIdx.x;
  unsigned plain[4], turned[4];
  load_matrix_x4(plain, s + lane % 16 * 16 + lane / 16 * 8);
  load_matrix_x4_transposed(turned, s + lane % 16 * 16 + lane / 16 * 8);
  for (int i = 0; i < 4; ++i) out[lane * 8 + i] = plain[i], out[lane * 8 + 4 + i] = turned[i];
}

// c[16, 8] = a[16, 16] b[16, 8] by one mma, with operands taken by the PTX manual's maps.
extern "C" __global__ void __launch_bounds__(32) one_mma(const unsigned short* a, const unsigned short* b, float* c) {
  const unsigned lane = threadIdx.x, group = lane / 4, pair = lane % 4 * 2;
  auto two = [](const unsigned short* m, int first, int second) { return m[first] | static_cast<unsigned>(m[second]) << 16; };
  const unsigned ra[4] = {two(a, group * 16 + pair, group * 16 + pair + 1), two(a, (group + 8) * 16 + pair, (group + 8) * 16 + pair + 1),
                          two(a, group * 16 + pair + 8, group * 16 + pair + 9), two(a, (group + 8) * 16 + pair + 8, (group + 8) * 16 + pair + 9)};
  float r[4] = {0.0f, 0.0f, 0.0f, 0.0f};
  mma_bf16(r, ra, two(b, pair * 8 + group, (pair + 1) * 8 + group), two(b, (pair + 8) * 8 + group, (pair + 9) * 8 + group));
  c[group * 8 + pair] = r[0], c[group * 8 + pair + 1] = r[1], c[(group + 8) * 8 + pair] = r[2], c[(group + 8) * 8 + pair + 1] = r[3];
}

// A product and a sum: two roundings on the stand-in; fmaf: one everywhere.
extern "C" __global__ void __launch_bounds__(32) roundings(const float* x, float* out) {
  const float a = x[0], b = x[1], c = x[2];
  out[0] = __fadd_rn(__fmul_rn(a, b), c);
  out[1] = fmaf(a, b, c);
}
