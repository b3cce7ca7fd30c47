// Backward of attention on Hopper's tensor cores (wgmma), for heads of 64 and 128 in bf16: the same bits in every run, without atomics.
//
//   B samples   H heads   T tokens   D width of a head
//   q, k, v, dq, dk, dv  [B, H, T, D]     d_out  [B, T, H D] with a stride     lse, delta  [B, H, T]
//   all but lse and delta, and the strides, are multiples of 16 bytes
//
// With P the probabilities and dP = dO V^T: dV = P^T dO, dS = P (dP - delta), dQ = scale dS K, dK = scale dS^T Q, where delta is the
// product of a row of dO with that row of the result (attention_backward.cu has its kernel). One half of the blocks has queries and goes
// over keys (S, dP, dQ), the other half has keys and goes over queries (S^T, dP^T, dV, dK): one launch, or the last blocks of each half
// would leave multiprocessors idle. Both have their scores with the rows that they own as
// rows, so that P and dS are factors of the next product as they stand in registers.
//
// A block has 64 rows for each of its two warpgroups. The other side comes in tiles, with one barrier for each. The last product of a
// tile is still under way when the next tile's scores are asked for, and a tile that it needs stays for one barrier more: three stages
// of what the last products read, two of the rest.
//
//   half      D     rows of a tile   shared memory: own two + stages          sums + scores + weights of a thread
//   queries   64    128              2 * 16 + 3 * 16 + 2 * 16 = 112 KiB       32 + 128 + 32 registers
//   queries   128   96               2 * 32 + 3 * 24 + 2 * 24 = 184 KiB       64 + 96 + 24 registers
//   keys      64    64               2 * 16 + 3 * 2 * 8       = 80 KiB        64 + 64 + 32 registers
//   keys      128   64               2 * 32 + 3 * 2 * 16      = 160 KiB       128 + 64 + 32 registers
//
// and lse and delta of the queries of three stages (keys: 1.5 KiB).
#include "wgmma.cuh"

constexpr int GROUPS = 2, ROWS = GROUPS * 64, THREADS = GROUPS * WARPGROUP;

// dq. Tiles begin at the first token, so that every row of dq belongs to a block: rows without a cotangent are zero.
template <int D, int TILE>
DEVICE void attention_queries(const bf16* q, const bf16* k, const bf16* v, const bf16* d_out, const float* lse, const float* delta,
                              bf16* dq, int block, int heads, int tokens, int first_query, int queries, int d_out_stride, float scale) {
  constexpr int BYTES = TILE * 2 * D;
  char* qs = tiles_in_shared_memory();
  char* ds = qs + ROWS * 2 * D;
  char* all_ks = ds + ROWS * 2 * D;
  char* all_vs = all_ks + 3 * BYTES;
  const Lane lane = lane_of_thread();
  const long long head = at(blockIdx.y, tokens * D, 0);
  const int sample = blockIdx.y / heads, column = static_cast<int>(blockIdx.y) % heads * D;
  const int first = block * ROWS, low = first_query - first, high = first_query + queries - first;
  const int row = lane.warp * 16, end = low < ROWS && high > 0 ? tokens : 0;
  k += head, v += head;

  fetch<D, ROWS, THREADS>(qs, q + head + at(first, D, 0), D, low, high);
  fetch<D, ROWS, THREADS>(ds, d_out + at(sample * tokens + first, d_out_stride, column), d_out_stride, low, high);
  fetch<D, TILE, THREADS>(all_ks, k, D, 0, tokens);
  fetch<D, TILE, THREADS>(all_vs, v, D, 0, tokens);
  copy_async_commit();

  float acc[D / 8][4], p[TILE / 8][4], dp[TILE / 8][4], shift[2], taken[2], factor[2];
  unsigned weights[TILE / 16][4];
  clear(acc);
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int r = row + h * 8 + lane.group;
    const bool there = r >= low && r < high;
    // A row without a cotangent has no probabilities.
    shift[h] = there ? -LOG2_E * lse[at(blockIdx.y, tokens, first + r)] : -infinity();
    taken[h] = there ? delta[at(blockIdx.y, tokens, first + r)] : 0.0f;
    factor[h] = scale;
  }
  const float exponent = scale * LOG2_E;
  const int own = threadIdx.x / WARPGROUP * (64 * ROW_BYTES);

  char *ks = all_ks, *vs = all_vs;
  for (int key = 0; key < end; key += TILE) {
    copy_async_wait<0>();
    wgmma_publish();
    __syncthreads();  // this tile is there, and everyone has left the keys before the last ones, and the last values
    wgmma_begin();
    multiply_rows<D, ROWS, TILE>(p, qs + own, ks);
    wgmma_commit();
    multiply_rows<D, ROWS, TILE>(dp, ds + own, vs);
    wgmma_commit();
    char* next_ks = ks == all_ks + 2 * BYTES ? all_ks : ks + BYTES;
    char* next_vs = vs == all_vs ? all_vs + BYTES : all_vs;
    if (key + TILE < tokens) {
      fetch<D, TILE, THREADS>(next_ks, k + at(key + TILE, D, 0), D, 0, tokens - key - TILE);
      fetch<D, TILE, THREADS>(next_vs, v + at(key + TILE, D, 0), D, 0, tokens - key - TILE);
    }
    copy_async_commit();
    wgmma_wait<1>();
    wgmma_pin(p);
    wgmma_pin(acc);
#pragma unroll
    for (int n = 0; n < TILE / 8; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) p[n][i] = exp2_approx(fmaf(p[n][i], exponent, shift[i / 2]));
    wgmma_pin(p);
    wgmma_meanwhile(tokens);
    wgmma_wait<0>();
    wgmma_pin(dp);
#pragma unroll
    for (int n = 0; n < TILE / 8; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) p[n][i] *= dp[n][i] - taken[i / 2];
    if (tokens - key < TILE) {
      // The keys beyond the end are zeros, but a weight may be infinite there.
      const int left = tokens - key - 2 * lane.pair;
#pragma unroll
      for (int n = 0; n < TILE / 8; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i)
          if (n * 8 + i % 2 >= left) p[n][i] = 0.0f;
    }
    to_weights(weights, p);
    wgmma_begin();
    add_weighted_rows<D, TILE>(acc, weights, ks, true);
    wgmma_commit();
    ks = next_ks, vs = next_vs;
  }
  wgmma_wait<0>();
  wgmma_pin(acc);
  copy_async_wait<0>();  // where there was no tile, the own rows are still on their way
  __syncthreads();
  store_rows<D, ROWS>(dq + head + at(first + row, D, 0), D, 0, tokens - first - row, acc, factor, qs + row * ROW_BYTES, lane);
}

// dk and dv.
template <int D, int TILE>
DEVICE void attention_keys(const bf16* q, const bf16* k, const bf16* v, const bf16* d_out, const float* lse, const float* delta,
                           bf16* dk, bf16* dv, int block, int heads, int tokens, int first_query, int queries, int d_out_stride, float scale) {
  constexpr int BYTES = TILE * 2 * D;
  static_assert(2 * TILE <= THREADS);
  char* ks = tiles_in_shared_memory();
  char* vs = ks + ROWS * 2 * D;
  char* stages = vs + ROWS * 2 * D;                                  // queries and cotangents
  float* sums = reinterpret_cast<float*>(stages + 3 * (2 * BYTES));  // of each stage: -log2(e) lse, then delta
  const Lane lane = lane_of_thread();
  const long long head = at(blockIdx.y, tokens * D, 0);
  const int sample = blockIdx.y / heads, column = static_cast<int>(blockIdx.y) % heads * D;
  const int first = block * ROWS, row = lane.warp * 16;
  q += head + at(first_query, D, 0);
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

  fetch<D, ROWS, THREADS>(ks, k + head + at(first, D, 0), D, 0, tokens - first);
  fetch<D, ROWS, THREADS>(vs, v + head + at(first, D, 0), D, 0, tokens - first);
  fetch<D, TILE, THREADS>(stages, q, D, 0, queries);
  fetch<D, TILE, THREADS>(stages + BYTES, d_out, d_out_stride, 0, queries);
  copy_async_commit();
  if (threadIdx.x < 2 * TILE) sums[threadIdx.x] = share(0);

  float d_key[D / 8][4], d_value[D / 8][4], p[TILE / 8][4], dp[TILE / 8][4];
  unsigned weights[TILE / 16][4], slopes[TILE / 16][4];
  clear(d_key);
  clear(d_value);
  const float exponent = scale * LOG2_E;
  const int own = threadIdx.x / WARPGROUP * (64 * ROW_BYTES);

  int stage = 0;
  for (int query = 0; query < queries; query += TILE) {
    copy_async_wait<0>();
    wgmma_publish();
    __syncthreads();  // this stage is there, and everyone has left the stage before the last one
    const char *qs = stages + stage * (2 * BYTES), *ds = qs + BYTES;
    const float *shift = sums + stage * (2 * TILE) + 2 * lane.pair, *taken = shift + TILE;
    wgmma_begin();
    multiply_rows<D, ROWS, TILE>(p, ks + own, qs);
    wgmma_commit();
    multiply_rows<D, ROWS, TILE>(dp, vs + own, ds);
    wgmma_commit();
    const int after = query + TILE;
    stage = stage == 2 ? 0 : stage + 1;
    float next_sum = 0.0f;
    if (after < queries) {
      char* next = stages + stage * (2 * BYTES);
      fetch<D, TILE, THREADS>(next, q + at(after, D, 0), D, 0, queries - after);
      fetch<D, TILE, THREADS>(next + BYTES, d_out + at(after, d_out_stride, 0), d_out_stride, 0, queries - after);
      next_sum = share(after);
    }
    copy_async_commit();
    wgmma_wait<1>();
    wgmma_pin(p);
    wgmma_pin(d_key);
    wgmma_pin(d_value);
#pragma unroll
    for (int n = 0; n < TILE / 8; ++n) {
      const float2 s = *reinterpret_cast<const float2*>(shift + n * 8);
#pragma unroll
      for (int i = 0; i < 4; ++i) p[n][i] = exp2_approx(fmaf(p[n][i], exponent, i % 2 == 0 ? s.x : s.y));
    }
    to_weights(weights, p);
    wgmma_begin();
    add_weighted_rows<D, TILE>(d_value, weights, ds, true);
    wgmma_commit();
    wgmma_wait<1>();
    wgmma_pin(dp);
#pragma unroll
    for (int n = 0; n < TILE / 8; ++n) {
      const float2 t = *reinterpret_cast<const float2*>(taken + n * 8);
#pragma unroll
      for (int i = 0; i < 4; ++i) p[n][i] *= dp[n][i] - (i % 2 == 0 ? t.x : t.y);
    }
    to_weights(slopes, p);
    wgmma_begin();
    add_weighted_rows<D, TILE>(d_key, slopes, qs, true);
    wgmma_commit();
    if (threadIdx.x < 2 * TILE) sums[stage * (2 * TILE) + threadIdx.x] = next_sum;
  }
  wgmma_wait<0>();
  wgmma_pin(d_key);
  wgmma_pin(d_value);
  copy_async_wait<0>();  // where there was no tile, the own rows are still on their way
  __syncthreads();
  const float scaled[2] = {scale, scale}, plain[2] = {1.0f, 1.0f};
  const long long to = head + at(first + row, D, 0);
  store_rows<D, ROWS>(dk + to, D, 0, tokens - first - row, d_key, scaled, ks + row * ROW_BYTES, lane);
  store_rows<D, ROWS>(dv + to, D, 0, tokens - first - row, d_value, plain, vs + row * ROW_BYTES, lane);
}

#define BACKWARD(D, QUERIES_TILE, KEYS_TILE)                                                                                          \
  extern "C" __global__ void __launch_bounds__(THREADS, 1)                                                                            \
      attention_wgmma_backward_##D(const bf16* q, const bf16* k, const bf16* v, const bf16* d_out, const float* lse,                  \
                                   const float* delta, bf16* dq, bf16* dk, bf16* dv, int heads, int tokens, int first_query,          \
                                   int queries, int d_out_stride, float scale) {                                                      \
    const int half = gridDim.x / 2, block = blockIdx.x;                                                                               \
    if (block < half)                                                                                                                 \
      attention_keys<D, KEYS_TILE>(q, k, v, d_out, lse, delta, dk, dv, block, heads, tokens, first_query, queries, d_out_stride, scale);\
    else                                                                                                                              \
      attention_queries<D, QUERIES_TILE>(q, k, v, d_out, lse, delta, dq, block - half, heads, tokens, first_query, queries,           \
                                         d_out_stride, scale);                                                                        \
  }
BACKWARD(64, 128, 64)
BACKWARD(128, 96, 64)
