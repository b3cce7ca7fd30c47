// Backward of attention on tensor cores, for heads of 64 and 128 in bf16: the same bits in every run, without atomics.
//
//   B samples   H heads   T tokens   U keys   D width of a head   R parts of the queries
//   q, dq  [B, H, T, D]   k, v, dk, dv  [B, H, U, D]   out, d_out  [B, T, H D] with a stride   lse, delta  [B, H, T]
//   all but lse and delta, and the strides, are multiples of 16 bytes
//
// With P the probabilities and dP = dO V^T: dV = P^T dO, dS = P (dP - delta), dQ = scale dS K, dK = scale dS^T Q, where delta is the
// product of a row of dO with that row of the result. One kernel has queries and goes over keys (S, dP, dQ), the other has keys and
// goes over queries (S^T, dP^T, dV, dK): seven products where atomic sums would need five. Both have their scores with the rows that
// they own as rows, so that P and dS are factors of the next product as they stand in registers. Where keys are few and queries many, a
// third one has keys and goes over a part of the queries, and the sums of the parts are added in their order.
//
// Blocks have four warps, and the other side comes in two stages: a tile is fetched while the one before it is in use, with one barrier
// for each. Two blocks fit on a multiprocessor of an H100 (255 registers a thread).
//
//   kernel    D     rows of a block, of a tile   shared memory: own two + 2 stages of two   sums + scores of a thread
//   queries   64    128, 32                      2 * 16 + 2 * 2 * 4  = 48 KiB               64 + 64 registers
//   queries   128   128, 32                      2 * 32 + 2 * 2 * 8  = 96 KiB               128 + 64 registers
//   keys      64    128, 32                      2 * 16 + 2 * 2 * 4  = 48 KiB               128 + 64 registers
//   keys      128   64, 64                       2 * 16 + 2 * 2 * 16 = 96 KiB               128 + 64 registers
//
// and lse and delta of the queries of both stages (keys: 0.5 and 1 KiB). The kernel of parts is that of keys, but for tiles of 32 in wide
// heads: finding its part takes registers that tiles of 64 do not leave.
#include "tensor.cuh"

// delta: D / 8 lanes have one query of one head.
template <int D>
DEVICE void attention_delta(const bf16* out, const bf16* d_out, float* delta, int heads, int tokens, int first_query, int queries,
                            int out_stride, int d_out_stride) {
  constexpr int LANES = D / 8;
  const int index = blockIdx.x * (THREADS / LANES) + threadIdx.x / LANES, lane = threadIdx.x % LANES;
  const bool there = index < queries;
  const int query = first_query + (there ? index : 0), row = blockIdx.y / heads * tokens + query;
  const int column = static_cast<int>(blockIdx.y) % heads * D + lane * 8;
  float o[8], d[8], sum = 0.0f;
  load_wide(out + at(row, out_stride, column), o, 8, true);
  load_wide(d_out + at(row, d_out_stride, column), d, 8, true);
#pragma unroll
  for (int i = 0; i < 8; ++i) sum = fmaf(o[i], d[i], sum);
#pragma unroll
  for (int offset = LANES / 2; offset > 0; offset /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, offset);
  if (there && lane == 0) delta[at(blockIdx.y, tokens, query)] = sum;
}

// dq. Tiles begin at the first token, so that every row of dq belongs to a block: rows without a cotangent are zero.
template <int D>
DEVICE void attention_queries(const bf16* q, const bf16* k, const bf16* v, const bf16* d_out, const float* lse, const float* delta,
                              bf16* dq, int heads, int tokens, int keys, int first_query, int queries, int d_out_stride, float scale) {
  constexpr int TALL = 2, ROWS = TALL * 64, TILE = 32, BYTES = TILE * 2 * D;
  char* qs = shared_memory<char>();
  char* ds = qs + ROWS * 2 * D;
  char* stages = ds + ROWS * 2 * D;  // keys and values
  const Lane lane = lane_of_thread<D>();
  const long long head = at(blockIdx.y, tokens * D, 0);
  const int sample = blockIdx.y / heads, column = static_cast<int>(blockIdx.y) % heads * D;
  const int first = blockIdx.x * ROWS, low = first_query - first, high = first_query + queries - first;
  const int row = lane.warp * (TALL * 16), end = low < ROWS && high > 0 ? keys : 0;
  k += at(blockIdx.y, keys * D, 0), v += at(blockIdx.y, keys * D, 0);

  fetch<D, ROWS>(qs, q + head + at(first, D, 0), D, low, high);
  fetch<D, ROWS>(ds, d_out + at(sample * tokens + first, d_out_stride, column), d_out_stride, low, high);
  fetch<D, TILE>(stages, k, D, 0, keys);
  fetch<D, TILE>(stages + BYTES, v, D, 0, keys);
  copy_async_commit();

  float acc[TALL][D / 8][4], shift[TALL][2], taken[TALL][2], factor[TALL][2];
  clear(acc);
#pragma unroll
  for (int m = 0; m < TALL; ++m)
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int r = row + m * 16 + h * 8 + lane.group;
      const bool there = r >= low && r < high;
      // A row without a cotangent has no probabilities.
      shift[m][h] = there ? -LOG2_E * lse[at(blockIdx.y, tokens, first + r)] : -infinity();
      taken[m][h] = there ? delta[at(blockIdx.y, tokens, first + r)] : 0.0f;
      factor[m][h] = scale;
    }
  const float exponent = scale * LOG2_E;
  char *my_q = qs + row * 2 * D, *my_d = ds + row * 2 * D;

  int stage = 0;
  for (int key = 0; key < end; key += TILE, stage ^= 1) {
    copy_async_wait<0>();
    __syncthreads();  // this stage is there, and everyone has left the other one
    const char *ks = stages + stage * (2 * BYTES), *vs = ks + BYTES;
    if (key + TILE < keys) {
      char* next = stages + (stage ^ 1) * (2 * BYTES);
      fetch<D, TILE>(next, k + at(key + TILE, D, 0), D, 0, keys - key - TILE);
      fetch<D, TILE>(next + BYTES, v + at(key + TILE, D, 0), D, 0, keys - key - TILE);
    }
    copy_async_commit();
    float p[TALL][TILE / 8][4], dp[TALL][TILE / 8][4];
    multiply_rows<D, TALL, TILE>(p, my_q, ks, lane);
    multiply_rows<D, TALL, TILE>(dp, my_d, vs, lane);
#pragma unroll
    for (int m = 0; m < TALL; ++m)
#pragma unroll
      for (int n = 0; n < TILE / 8; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i)
          p[m][n][i] = exp2_approx(fmaf(p[m][n][i], exponent, shift[m][i / 2])) * (dp[m][n][i] - taken[m][i / 2]);
    if (keys - key < TILE) {
      // The keys beyond the end are zeros, but a weight may be infinite there.
      const int left = keys - key - 2 * lane.pair;
#pragma unroll
      for (int m = 0; m < TALL; ++m)
#pragma unroll
        for (int n = 0; n < TILE / 8; ++n)
#pragma unroll
          for (int i = 0; i < 4; ++i)
            if (n * 8 + i % 2 >= left) p[m][n][i] = 0.0f;
    }
    add_weighted_rows<D, TALL, TILE>(acc, p, ks, lane);
  }
  copy_async_wait<0>();  // where there was no tile, the own rows are still on their way
  __syncthreads();
  store_rows<D, TALL>(dq + head + at(first + row, D, 0), D, 0, tokens - first - row, acc, factor, my_q, lane);
}

// dk, without the scale, and dv of the block's keys from `first` on, over some queries.
template <int D, int TALL, int TILE>
DEVICE void sum_over_queries(float (&d_key)[TALL][D / 8][4], float (&d_value)[TALL][D / 8][4], int first, const bf16* q, const bf16* k,
                             const bf16* v, const bf16* d_out, const float* lse, const float* delta, int heads, int tokens, int keys,
                             int first_query, int queries, int d_out_stride, float scale, const Lane& lane) {
  constexpr int ROWS = TALL * 64, BYTES = TILE * 2 * D;
  static_assert(2 * TILE <= THREADS);
  char* ks = shared_memory<char>();
  char* vs = ks + ROWS * 2 * D;
  char* stages = vs + ROWS * 2 * D;                                 // queries and cotangents
  float* sums = reinterpret_cast<float*>(stages + 2 * (2 * BYTES));  // of each stage: -log2(e) lse, then delta
  const int sample = blockIdx.y / heads, column = static_cast<int>(blockIdx.y) % heads * D;
  const int row = lane.warp * (TALL * 16);
  q += at(blockIdx.y, tokens * D, 0) + at(first_query, D, 0);
  k += at(blockIdx.y, keys * D, 0), v += at(blockIdx.y, keys * D, 0);
  d_out += at(sample * tokens + first_query, d_out_stride, column);
  lse += at(blockIdx.y, tokens, first_query);
  delta += at(blockIdx.y, tokens, first_query);

  // A thread's share of lse and delta. A query beyond the end has no probabilities.
  const int mine = threadIdx.x % TILE;
  const bool is_lse = threadIdx.x < TILE, is_delta = !is_lse && threadIdx.x < 2 * TILE;
  const auto share = [&](int query) {
    if (is_lse) return query + mine < queries ? -LOG2_E * lse[query + mine] : -infinity();
    return is_delta && query + mine < queries ? delta[query + mine] : 0.0f;
  };

  fetch<D, ROWS>(ks, k + at(first, D, 0), D, 0, keys - first);
  fetch<D, ROWS>(vs, v + at(first, D, 0), D, 0, keys - first);
  fetch<D, TILE>(stages, q, D, 0, queries);
  fetch<D, TILE>(stages + BYTES, d_out, d_out_stride, 0, queries);
  copy_async_commit();
  if (threadIdx.x < 2 * TILE) sums[threadIdx.x] = share(0);

  clear(d_key);
  clear(d_value);
  const float exponent = scale * LOG2_E;
  const char *my_k = ks + row * 2 * D, *my_v = vs + row * 2 * D;

  int stage = 0;
  for (int query = 0; query < queries; query += TILE, stage ^= 1) {
    copy_async_wait<0>();
    __syncthreads();  // this stage is there, and everyone has left the other one
    const char *qs = stages + stage * (2 * BYTES), *ds = qs + BYTES;
    const float *shift = sums + stage * (2 * TILE) + 2 * lane.pair, *taken = shift + TILE;
    const int after = query + TILE;
    float next_sum = 0.0f;
    if (after < queries) {
      char* next = stages + (stage ^ 1) * (2 * BYTES);
      fetch<D, TILE>(next, q + at(after, D, 0), D, 0, queries - after);
      fetch<D, TILE>(next + BYTES, d_out + at(after, d_out_stride, 0), d_out_stride, 0, queries - after);
      next_sum = share(after);
    }
    copy_async_commit();
    float p[TALL][TILE / 8][4], dp[TALL][TILE / 8][4];
    multiply_rows<D, TALL, TILE>(p, my_k, qs, lane);
#pragma unroll
    for (int n = 0; n < TILE / 8; ++n) {
      const float2 s = *reinterpret_cast<const float2*>(shift + n * 8);
#pragma unroll
      for (int m = 0; m < TALL; ++m)
#pragma unroll
        for (int i = 0; i < 4; ++i) p[m][n][i] = exp2_approx(fmaf(p[m][n][i], exponent, i % 2 == 0 ? s.x : s.y));
    }
    multiply_rows<D, TALL, TILE>(dp, my_v, ds, lane);
    add_weighted_rows<D, TALL, TILE>(d_value, p, ds, lane);
#pragma unroll
    for (int n = 0; n < TILE / 8; ++n) {
      const float2 t = *reinterpret_cast<const float2*>(taken + n * 8);
#pragma unroll
      for (int m = 0; m < TALL; ++m)
#pragma unroll
        for (int i = 0; i < 4; ++i) p[m][n][i] *= dp[m][n][i] - (i % 2 == 0 ? t.x : t.y);
    }
    add_weighted_rows<D, TALL, TILE>(d_key, p, qs, lane);
    if (threadIdx.x < 2 * TILE) sums[(stage ^ 1) * (2 * TILE) + threadIdx.x] = next_sum;
  }
  copy_async_wait<0>();  // where there was no tile, the own rows are still on their way
  __syncthreads();
}

// dk and dv.
template <int D, int TALL, int TILE>
DEVICE void attention_keys(const bf16* q, const bf16* k, const bf16* v, const bf16* d_out, const float* lse, const float* delta,
                           bf16* dk, bf16* dv, int heads, int tokens, int keys, int first_query, int queries, int d_out_stride,
                           float scale) {
  constexpr int ROWS = TALL * 64;
  const Lane lane = lane_of_thread<D>();
  const int first = blockIdx.x * ROWS, row = lane.warp * (TALL * 16);
  float d_key[TALL][D / 8][4], d_value[TALL][D / 8][4];
  sum_over_queries<D, TALL, TILE>(d_key, d_value, first, q, k, v, d_out, lse, delta, heads, tokens, keys, first_query, queries,
                                  d_out_stride, scale, lane);
  float scaled[TALL][2], plain[TALL][2];
#pragma unroll
  for (int m = 0; m < TALL; ++m) {
    scaled[m][0] = scaled[m][1] = scale;
    plain[m][0] = plain[m][1] = 1.0f;
  }
  char *my_k = shared_memory<char>() + row * 2 * D, *my_v = my_k + ROWS * 2 * D;
  const long long to = at(blockIdx.y, keys * D, 0) + at(first + row, D, 0);
  store_rows<D, TALL>(dk + to, D, 0, keys - first - row, d_key, scaled, my_k, lane);
  store_rows<D, TALL>(dv + to, D, 0, keys - first - row, d_value, plain, my_v, lane);
}

// A thread's sums, from its first row on; `left` rows from there on exist.
template <int D, int TALL> DEVICE void store_sums(float* to, int left, const float (&acc)[TALL][D / 8][4]) {
#pragma unroll
  for (int m = 0; m < TALL; ++m)
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int r = m * 16 + h * 8;
      if (r >= left) continue;
#pragma unroll
      for (int n = 0; n < D / 8; ++n) *reinterpret_cast<float2*>(to + r * D + n * 8) = float2{acc[m][n][2 * h], acc[m][n][2 * h + 1]};
    }
}

// dk, without the scale, and dv of each part of the queries, of `each` of them: sums [R, 2, B, H, U, D].
template <int D, int TALL, int TILE>
DEVICE void attention_key_parts(const bf16* q, const bf16* k, const bf16* v, const bf16* d_out, const float* lse, const float* delta,
                                float* sums, int heads, int tokens, int keys, int first_query, int queries, int each,
                                int d_out_stride, float scale) {
  constexpr int ROWS = TALL * 64;
  const Lane lane = lane_of_thread<D>();
  const int blocks = (keys + ROWS - 1) / ROWS, part = blockIdx.x / blocks, first = blockIdx.x % blocks * ROWS;
  const int before = part * each, row = first + lane.warp * (TALL * 16) + lane.group;
  float d_key[TALL][D / 8][4], d_value[TALL][D / 8][4];
  sum_over_queries<D, TALL, TILE>(d_key, d_value, first, q, k, v, d_out, lse, delta, heads, tokens, keys, first_query + before,
                                  min(each, queries - before), d_out_stride, scale, lane);
  float* to = sums + at(2 * part * gridDim.y + blockIdx.y, keys, row) * D + 2 * lane.pair;
  store_sums<D, TALL>(to, keys - row, d_key);
  store_sums<D, TALL>(to + at(gridDim.y, keys * D, 0), keys - row, d_value);
}

// dk (y = 0) and dv (y = 1), of `count` values each, from the sums of the parts: in their order.
extern "C" __global__ void __launch_bounds__(THREADS) attention_sum_parts(const float* sums, bf16* dk, bf16* dv, int count, int parts,
                                                                          float scale) {
  const int i = (blockIdx.x * THREADS + threadIdx.x) * 8;
  if (i >= count) return;
  const bool is_key = blockIdx.y == 0;
  float total[8], v[8];
#pragma unroll
  for (int j = 0; j < 8; ++j) total[j] = 0.0f;
  for (int part = 0; part < parts; ++part) {
    load_wide(sums + at(2 * part + (is_key ? 0 : 1), count, i), v, 8, true);
#pragma unroll
    for (int j = 0; j < 8; ++j) total[j] += v[j];
  }
#pragma unroll
  for (int j = 0; j < 8; ++j) total[j] *= is_key ? scale : 1.0f;
  store_wide((is_key ? dk : dv) + i, total, 8, true);
}

#define BACKWARD(D, TALL, TILE, PART_TILE)                                                                                            \
  extern "C" __global__ void __launch_bounds__(THREADS)                                                                               \
      attention_delta_##D(const bf16* out, const bf16* d_out, float* delta, int heads, int tokens, int first_query, int queries,      \
                          int out_stride, int d_out_stride) {                                                                         \
    attention_delta<D>(out, d_out, delta, heads, tokens, first_query, queries, out_stride, d_out_stride);                             \
  }                                                                                                                                   \
  extern "C" __global__ void __launch_bounds__(THREADS, 2)                                                                            \
      attention_queries_##D(const bf16* q, const bf16* k, const bf16* v, const bf16* d_out, const float* lse, const float* delta,     \
                            bf16* dq, int heads, int tokens, int keys, int first_query, int queries, int d_out_stride, float scale) { \
    attention_queries<D>(q, k, v, d_out, lse, delta, dq, heads, tokens, keys, first_query, queries, d_out_stride, scale);             \
  }                                                                                                                                   \
  extern "C" __global__ void __launch_bounds__(THREADS, 2)                                                                            \
      attention_keys_##D(const bf16* q, const bf16* k, const bf16* v, const bf16* d_out, const float* lse, const float* delta,        \
                         bf16* dk, bf16* dv, int heads, int tokens, int keys, int first_query, int queries, int d_out_stride,         \
                         float scale) {                                                                                               \
    attention_keys<D, TALL, TILE>(q, k, v, d_out, lse, delta, dk, dv, heads, tokens, keys, first_query, queries, d_out_stride, scale);\
  }                                                                                                                                   \
  extern "C" __global__ void __launch_bounds__(THREADS, 2)                                                                            \
      attention_key_parts_##D(const bf16* q, const bf16* k, const bf16* v, const bf16* d_out, const float* lse, const float* delta,   \
                              float* sums, int heads, int tokens, int keys, int first_query, int queries, int each,                   \
                              int d_out_stride, float scale) {                                                                        \
    attention_key_parts<D, TALL, PART_TILE>(q, k, v, d_out, lse, delta, sums, heads, tokens, keys, first_query, queries, each,        \
                                       d_out_stride, scale);                                                                          \
  }
BACKWARD(64, 2, (SHORT_TILES ? 16 : 32), (SHORT_TILES ? 16 : 32))
BACKWARD(128, 1, (SHORT_TILES ? 16 : 64), (SHORT_TILES ? 16 : 32))
