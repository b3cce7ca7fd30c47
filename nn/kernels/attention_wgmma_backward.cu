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
// A block has 64 rows for each of its two warpgroups. The other side comes in tiles, and for each a warpgroup takes two steps: it asks
// for scores and dP, then turns them into factors and asks for the rest. Each step ends with a barrier of the block, and the second
// warpgroup begins one step later: while one computes factors, the products of the other one keep the tensor cores busy. A warpgroup
// copies its share of a tile where it asks for scores, the first one of the next tile, the second one of the tile after that, and waits
// for it one step later. The last product of a tile is still under way in the step after; four stages of what it reads, three of the rest.
//
//   half      D     rows of a tile   shared memory: own two + stages          sums + scores + weights of a thread
//   queries   64    128              2 * 16 + 4 * 16 + 3 * 16 = 144 KiB       32 + 128 + 32 registers
//   queries   128   80               2 * 32 + 4 * 20 + 3 * 20 = 204 KiB       64 + 80 + 20 registers
//   keys      64    64               2 * 16 + 4 * 2 * 8       = 96 KiB        64 + 64 + 32 registers
//   keys      128   64               2 * 32 + 4 * 2 * 16      = 192 KiB       128 + 64 + 32 registers
//
// and lse and delta of the queries of four stages (keys: 2 KiB).
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
  char* all_vs = all_ks + 4 * BYTES;
  const Lane lane = lane_of_thread();
  const long long head = at(blockIdx.y, tokens * D, 0);
  const int sample = blockIdx.y / heads, column = static_cast<int>(blockIdx.y) % heads * D;
  const int first = block * ROWS, low = first_query - first, high = first_query + queries - first;
  const int row = lane.warp * 16, end = low < ROWS && high > 0 ? tokens : 0;
  k += head, v += head;

  const int late = threadIdx.x / WARPGROUP;  // begins one step later
  // The tile from `key` on into stages, as far as there is one.
  const auto fetch_tile = [&](char* ks, char* vs, int key) {
    if (key >= end) return;
    fetch<D, TILE, THREADS>(ks, k + at(key, D, 0), D, 0, tokens - key);
    fetch<D, TILE, THREADS>(vs, v + at(key, D, 0), D, 0, tokens - key);
  };
  fetch<D, ROWS, THREADS>(qs, q + head + at(first, D, 0), D, low, high);
  fetch<D, ROWS, THREADS>(ds, d_out + at(sample * tokens + first, d_out_stride, column), d_out_stride, low, high);
  fetch_tile(all_ks, all_vs, 0);
  if (late) fetch_tile(all_ks + BYTES, all_vs + BYTES, TILE);
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

  copy_async_wait<0>();
  wgmma_publish();
  __syncthreads();  // the own rows and the first tile are there
  if (late) __syncthreads();
  int k_stage = 0, v_stage = 0;
  for (int key = 0; key < end; key += TILE) {
    const char *ks = all_ks + k_stage * BYTES, *vs = all_vs + v_stage * BYTES;
    wgmma_begin();
    const int next = key + (1 + late) * TILE, left = tokens - next, next_v = v_stage + 1 + late;
    char* next_ks = all_ks + (k_stage + 1 + late) % 4 * BYTES;
    char* next_vs = all_vs + (next_v < 3 ? next_v : next_v - 3) * BYTES;
    multiply_rows<D, ROWS, TILE>(p, qs + own, ks, copies<D, TILE, THREADS>(next_ks, k + at(next, D, 0), D, left));
    wgmma_commit();
    multiply_rows<D, ROWS, TILE>(dp, ds + own, vs, copies<D, TILE, THREADS>(next_vs, v + at(next, D, 0), D, left));
    wgmma_commit();
    copy_async_commit();
    __syncthreads();  // the other warpgroup has asked for its last product

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
    copy_async_wait<0>();
    wgmma_publish();
    __syncthreads();  // this warpgroup's share of the next tile is there, and it has left the tile before this one
    k_stage = (k_stage + 1) % 4, v_stage = v_stage == 2 ? 0 : v_stage + 1;
  }
  wgmma_wait<0>();
  wgmma_pin(acc);
  if (!late) __syncthreads();  // as many steps as the others have
  store_rows<D, ROWS>(dq + head + at(first + row, D, 0), D, 0, tokens - first - row, acc, factor, qs + row * ROW_BYTES, lane);
}

// dk and dv.
template <int D, int TILE>
DEVICE void attention_keys(const bf16* q, const bf16* k, const bf16* v, const bf16* d_out, const float* lse, const float* delta,
                           bf16* dk, bf16* dv, int block, int heads, int tokens, int first_query, int queries, int d_out_stride, float scale) {
  constexpr int BYTES = TILE * 2 * D;
  static_assert(2 * TILE <= WARPGROUP);  // of the warpgroup that is not late
  char* ks = tiles_in_shared_memory();
  char* vs = ks + ROWS * 2 * D;
  char* stages = vs + ROWS * 2 * D;                                  // queries and cotangents
  float* sums = reinterpret_cast<float*>(stages + 4 * (2 * BYTES));  // of each stage: -log2(e) lse, then delta
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

  const int late = threadIdx.x / WARPGROUP;  // begins one step later
  const auto fetch_tile = [&](int stage, int query) {
    if (query >= queries) return;
    char* to = stages + stage * (2 * BYTES);
    fetch<D, TILE, THREADS>(to, q + at(query, D, 0), D, 0, queries - query);
    fetch<D, TILE, THREADS>(to + BYTES, d_out + at(query, d_out_stride, 0), d_out_stride, 0, queries - query);
  };
  fetch<D, ROWS, THREADS>(ks, k + head + at(first, D, 0), D, 0, tokens - first);
  fetch<D, ROWS, THREADS>(vs, v + head + at(first, D, 0), D, 0, tokens - first);
  fetch_tile(0, 0);
  if (late) fetch_tile(1, TILE);
  copy_async_commit();
  if (threadIdx.x < 2 * TILE) sums[threadIdx.x] = share(0);

  float d_key[D / 8][4], d_value[D / 8][4], p[TILE / 8][4], dp[TILE / 8][4];
  unsigned weights[TILE / 16][4], slopes[TILE / 16][4];
  clear(d_key);
  clear(d_value);
  const float exponent = scale * LOG2_E;
  const int own = threadIdx.x / WARPGROUP * (64 * ROW_BYTES);

  copy_async_wait<0>();
  wgmma_publish();
  __syncthreads();  // the own rows, the first tile and its sums are there
  if (late) __syncthreads();
  int stage = 0;
  for (int query = 0; query < queries; query += TILE) {
    const char *qs = stages + stage * (2 * BYTES), *ds = qs + BYTES;
    const float *shift = sums + stage * (2 * TILE) + 2 * lane.pair, *taken = shift + TILE;
    wgmma_begin();
    const int next = query + (1 + late) * TILE, left = queries - next;
    char* to = stages + (stage + 1 + late) % 4 * (2 * BYTES);
    multiply_rows<D, ROWS, TILE>(p, ks + own, qs, copies<D, TILE, THREADS>(to, q + at(next, D, 0), D, left));
    wgmma_commit();
    multiply_rows<D, ROWS, TILE>(dp, vs + own, ds,
                                 copies<D, TILE, THREADS>(to + BYTES, d_out + at(next, d_out_stride, 0), d_out_stride, left));
    wgmma_commit();
    copy_async_commit();
    const float next_sum = query + TILE < queries ? share(query + TILE) : 0.0f;
    stage = (stage + 1) % 4;
    __syncthreads();  // the other warpgroup has asked for its last product

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
    copy_async_wait<0>();
    wgmma_publish();
    __syncthreads();  // this warpgroup's share of the next tile is there, and it has left the tile before this one
  }
  wgmma_wait<0>();
  wgmma_pin(d_key);
  wgmma_pin(d_value);
  if (!late) __syncthreads();  // as many steps as the others have
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
BACKWARD(128, 80, 64)
