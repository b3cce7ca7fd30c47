// Softmax attention on tensor cores, for heads of 64 and 128 in bf16: f32 sums, softmax as the keys come by.
//
//   B samples   H heads   T tokens   U keys   D width of a head
//   q  [B, H, T, D]     k, v  [B, H, U, D]     out  [B, T, H D] with a stride     lse  [B, H, T], natural logarithm
//   q, k, v, out and the stride are multiples of 16 bytes
//
// A block has 128 queries of one head. Each of its four warps has 32 of them: keys and values that a warp reads from shared memory
// serve two products of 16 rows, or shared memory would be slower than the tensor cores. Keys and values come in tiles of 64
// rows, one tile of each at a time: the values come while scores are computed, and the next keys during softmax and sums.
//
//   D     keys of a tile   shared memory: queries + keys + values   sums + scores of a thread
//   64    64               16 + 8 + 8 = 32 KiB                      64 + 64 registers
//   128   64               32 + 16 + 16 = 64 KiB                    128 + 64 registers
//
// Two blocks fit on a multiprocessor (255 registers a thread); while one computes its softmax, the other one multiplies. A row's bits
// depend on its own query and on the keys and values: neither on its place in the block nor on other rows.
#include "tensor.cuh"

constexpr int ROWS = 128, TALL = 2;

template <int D>
DEVICE void attention(const bf16* q, const bf16* k, const bf16* v, bf16* out, float* lse, int heads, int tokens, int keys,
                      int first_query, int queries, int out_stride, float scale) {
  constexpr int TILE = SHORT_TILES && D == 128 ? 32 : 64;
  char* qs = shared_memory<char>();
  char* ks = qs + ROWS * 2 * D;
  char* vs = ks + TILE * 2 * D;
  const Lane lane = lane_of_thread<D>();
  const int first = first_query + blockIdx.x * ROWS, there = first_query + queries - first;

  q += at(blockIdx.y, tokens * D, 0);
  k += at(blockIdx.y, keys * D, 0), v += at(blockIdx.y, keys * D, 0);

  fetch<D, ROWS>(qs, q + at(first, D, 0), D, 0, there);
  fetch<D, TILE>(ks, k, D, 0, keys);
  copy_async_commit();

  float acc[TALL][D / 8][4], top[TALL][2], sum[TALL][2];  // the largest score without the scale
  clear(acc);
#pragma unroll
  for (int m = 0; m < TALL; ++m) {
    top[m][0] = top[m][1] = -infinity();
    sum[m][0] = sum[m][1] = 0.0f;
  }
  const float factor = scale * LOG2_E;
  char* mine = qs + lane.warp * (TALL * 16) * (2 * D);

  for (int key = 0; key < keys; key += TILE) {
    copy_async_wait<0>();
    __syncthreads();  // keys are there, and everyone has left the values
    fetch<D, TILE>(vs, v + at(key, D, 0), D, 0, keys - key);
    copy_async_commit();
    float scores[TALL][TILE / 8][4];
    multiply_rows<D, TALL, TILE>(scores, mine, ks, lane);
    copy_async_wait<0>();
    __syncthreads();  // values are there, and everyone has left the keys
    if (key + TILE < keys) fetch<D, TILE>(ks, k + at(key + TILE, D, 0), D, 0, keys - key - TILE);
    copy_async_commit();

    if (keys - key < TILE) {
      const int left = keys - key - 2 * lane.pair;
#pragma unroll
      for (int m = 0; m < TALL; ++m)
#pragma unroll
        for (int n = 0; n < TILE / 8; ++n)
#pragma unroll
          for (int i = 0; i < 4; ++i)
            if (n * 8 + i % 2 >= left) scores[m][n][i] = -infinity();
    }
#pragma unroll
    for (int m = 0; m < TALL; ++m)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float high = top[m][h];
#pragma unroll
        for (int n = 0; n < TILE / 8; ++n) high = fmaxf(high, fmaxf(scores[m][n][2 * h], scores[m][n][2 * h + 1]));
        high = fmaxf(high, __shfl_xor_sync(0xffffffffu, high, 1));
        high = fmaxf(high, __shfl_xor_sync(0xffffffffu, high, 2));
        const float shrink = exp2_approx((top[m][h] - high) * factor), shift = -high * factor;
        top[m][h] = high;
        float total = sum[m][h] * shrink;
#pragma unroll
        for (int n = 0; n < TILE / 8; ++n)
#pragma unroll
          for (int i = 2 * h; i < 2 * h + 2; ++i) {
            scores[m][n][i] = exp2_approx(fmaf(scores[m][n][i], factor, shift));
            total += scores[m][n][i];
          }
        sum[m][h] = total;
#pragma unroll
        for (int n = 0; n < D / 8; ++n) acc[m][n][2 * h] *= shrink, acc[m][n][2 * h + 1] *= shrink;
      }
    add_weighted_rows<D, TALL, TILE>(acc, scores, vs, lane);
  }

  float inverse[TALL][2];
  const int row = lane.warp * (TALL * 16);
#pragma unroll
  for (int m = 0; m < TALL; ++m)
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      sum[m][h] += __shfl_xor_sync(0xffffffffu, sum[m][h], 1);
      sum[m][h] += __shfl_xor_sync(0xffffffffu, sum[m][h], 2);
      inverse[m][h] = 1.0f / sum[m][h];
      const int r = row + m * 16 + h * 8 + lane.group;
      if (lane.pair == 0 && r < there) lse[at(blockIdx.y, tokens, first + r)] = fmaf(top[m][h], scale, logf(sum[m][h]));
    }
  const int sample = blockIdx.y / heads, column = static_cast<int>(blockIdx.y) % heads * D;
  store_rows<D, TALL>(out + at(sample * tokens + first + row, out_stride, column), out_stride, 0, there - row, acc, inverse, mine, lane);
}

#define ATTENTION(D)                                                                                                                  \
  extern "C" __global__ void __launch_bounds__(THREADS, 2)                                                                            \
      attention_##D(const bf16* q, const bf16* k, const bf16* v, bf16* out, float* lse, int heads, int tokens, int keys,              \
                    int first_query, int queries, int out_stride, float scale) {                                                      \
    attention<D>(q, k, v, out, lse, heads, tokens, keys, first_query, queries, out_stride, scale);                                    \
  }
ATTENTION(64)
ATTENTION(128)
