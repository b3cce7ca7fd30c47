// Softmax attention on Hopper's tensor cores (wgmma), for heads of 64 and 128 in bf16: f32 sums, softmax as the keys come by.
//
//   B samples   H heads   T tokens   D width of a head
//   q, k, v  [B, H, T, D]     out  [B, T, H D] with a stride     lse  [B, H, T], natural logarithm
//   q, k, v, out and the stride are multiples of 16 bytes
//
// A block has 64 queries of one head for each of its warpgroups, in registers. Keys and values come in tiles, three stages of each. For each tile a
// warpgroup takes two steps. It asks for the products: the scores of this tile, and the weighted values of the tile before. Then it
// turns the scores into weights, while the tensor cores are at the values. Each step ends with a barrier of the block, and every other
// warpgroup begins one step later: while one is at its softmax, the products of the other one keep the tensor cores busy.
//
//   step    even warpgroup                       odd warpgroup
//   2 j     asks for scores j, values j - 1      softmax j - 1
//   2 j+1   softmax j                            asks for scores j, values j - 1
//
// A warpgroup fetches where it asks for products, its share of each tile: an even one for the next products, keys j + 1 and values j, an
// odd one a tile further ahead. What it fetched it waits for after its softmax. Then nobody waits for a copy, and nobody is at keys j - 2
// or values j - 3, at whose places the new ones are, nor, one step later, at keys j - 1 or values j - 2.
//
//   D     warpgroups, keys of a tile   shared memory: queries + 3 stages of keys and values   queries + sums + scores + weights of a thread
//   64    2, 128                       16 + 3 * 2 * 16 = 112 KiB                              16 + 32 + 64 + 32 registers
//   128   2, 128                       32 + 3 * 2 * 32 = 224 KiB                              32 + 64 + 64 + 32 registers
//
// One block of 128 queries fits on a multiprocessor. A row's bits depend on its own query and on the keys and values: neither on its
// place in the block nor on other rows.
#include "wgmma.cuh"

// The greatest scores of a thread's two rows, without the scale, and its share of the sums of their exponentials.
struct Softmax {
  float top[2], sum[2];
};

// Scores become weights, beside the greatest score so far. `shrink`: the factor of what was summed before.
template <int N> DEVICE void weigh(float (&scores)[N][4], Softmax& rows, float (&shrink)[2], float factor) {
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    float high = rows.top[h], other = high;
#pragma unroll
    for (int n = 0; n < N; n += 2) {
      high = fmaxf(high, fmaxf(scores[n][2 * h], scores[n][2 * h + 1]));
      other = fmaxf(other, fmaxf(scores[n + 1][2 * h], scores[n + 1][2 * h + 1]));
    }
    high = fmaxf(high, other);
    high = fmaxf(high, __shfl_xor_sync(0xffffffffu, high, 1));
    high = fmaxf(high, __shfl_xor_sync(0xffffffffu, high, 2));
    const float shift = -high * factor;
    shrink[h] = exp2_approx((rows.top[h] - high) * factor);
    rows.top[h] = high;
    float even = rows.sum[h] * shrink[h], odd = 0.0f;
#pragma unroll
    for (int n = 0; n < N; ++n) {
      even += scores[n][2 * h] = exp2_approx(fmaf(scores[n][2 * h], factor, shift));
      odd += scores[n][2 * h + 1] = exp2_approx(fmaf(scores[n][2 * h + 1], factor, shift));
    }
    rows.sum[h] = even + odd;
  }
}

// Keys beyond the end have no weight: `left` of the keys are there.
template <int N> DEVICE void hide(float (&scores)[N][4], int left, const Lane& lane) {
#pragma unroll
  for (int n = 0; n < N; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (n * 8 + 2 * lane.pair + i % 2 >= left) scores[n][i] = -infinity();
}

template <int D, int GROUPS, int TILE>
DEVICE void attention(const bf16* q, const bf16* k, const bf16* v, bf16* out, float* lse, int heads, int tokens, int first_query,
                      int queries, int out_stride, float scale) {
  constexpr int ROWS = GROUPS * 64, THREADS = GROUPS * WARPGROUP, BYTES = TILE * 2 * D;
  char* qs = tiles_in_shared_memory();
  char* ks = qs + ROWS * 2 * D;
  char* vs = ks + 3 * BYTES;
  const Lane lane = lane_of_thread();
  const long long head = at(blockIdx.y, tokens * D, 0);
  const int first = first_query + blockIdx.x * ROWS, there = first_query + queries - first;
  k += head, v += head;
  // The keys, or the values, from `key` on into a stage.
  const auto fetch_tile = [&](char* to, const bf16* from, int key) {
    if (key < tokens) fetch<D, TILE, THREADS>(to, from + at(key, D, 0), D, 0, tokens - key);
  };

  const int late = threadIdx.x / WARPGROUP % 2;  // begins one step later
  fetch<D, ROWS, THREADS>(qs, q + head + at(first, D, 0), D, 0, there);
  fetch_tile(ks, k, 0);
  copy_async_commit();
  if (late) {
    fetch_tile(ks + BYTES, k, TILE);
    fetch_tile(vs, v, 0);
  }
  copy_async_commit();

  const float factor = scale * LOG2_E;
  const int row = lane.warp * 16;
  char* mine = qs + row * ROW_BYTES;
  unsigned own[D / 16][4];
  float acc[D / 8][4], scores[TILE / 8][4], shrink[2];
  unsigned weights[TILE / 16][4];
  Softmax rows = {{-infinity(), -infinity()}, {0.0f, 0.0f}};
  clear(acc);

  copy_async_wait<1>();
  wgmma_publish();
  __syncthreads();  // queries and the first keys are there
  load_rows<D, ROWS>(own, mine);
  if (late) __syncthreads();
  wgmma_begin();
  multiply_rows<D, TILE>(scores, own, ks);
  wgmma_commit();
  copy_async_wait<0>();
  wgmma_publish();
  fetch_tile(ks + (late ? 2 * BYTES : BYTES), k, late ? 2 * TILE : TILE);
  fetch_tile(vs + (late ? BYTES : 0), v, late ? TILE : 0);
  copy_async_commit();
  __syncthreads();

  wgmma_wait<0>();
  wgmma_pin(scores);
  if (tokens < TILE) hide(scores, tokens, lane);
  weigh(scores, rows, shrink, factor);
  to_weights(weights, scores);
  copy_async_wait<0>();
  wgmma_publish();
  __syncthreads();

  int before = 0, now = BYTES, next = 2 * BYTES;  // stages of the tile before this one, of this one, and of the next one
  for (int key = TILE; key < tokens; key += TILE) {
    wgmma_pin(acc);
    wgmma_begin();
    const int key_fetched = key + (late ? 2 * TILE : TILE), value_fetched = key_fetched - TILE;
    multiply_rows<D, TILE>(scores, own, ks + now,
                           copies<D, TILE, THREADS>(ks + (late ? before : next), k + at(key_fetched, D, 0), D, tokens - key_fetched));
    wgmma_commit();
    add_weighted_rows<D, TILE>(acc, weights, vs + before, true,
                               copies<D, TILE, THREADS>(vs + (late ? next : now), v + at(value_fetched, D, 0), D, tokens - value_fetched));
    wgmma_commit();
    copy_async_commit();
    __syncthreads();  // the others' softmax ends

    wgmma_wait<1>();
    wgmma_pin(scores);
    if (tokens - key < TILE) hide(scores, tokens - key, lane);
    weigh(scores, rows, shrink, factor);
    wgmma_pin(scores);
    wgmma_meanwhile(tokens);
    wgmma_wait<0>();
    wgmma_pin(acc);
    wgmma_pin(scores);
#pragma unroll
    for (int n = 0; n < D / 8; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) acc[n][i] *= shrink[i / 2];
    to_weights(weights, scores);
    copy_async_wait<0>();
    wgmma_publish();
    __syncthreads();  // what this warpgroup fetched is there, and it has left the keys of this tile and the values before them
    const int last = before;
    before = now, now = next, next = last;
  }
  wgmma_pin(acc);
  wgmma_begin();
  add_weighted_rows<D, TILE>(acc, weights, vs + before, true);
  wgmma_commit();
  wgmma_wait<0>();
  wgmma_pin(acc);
  if (!late) __syncthreads();  // as many steps as the others have

  float inverse[2];
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    rows.sum[h] += __shfl_xor_sync(0xffffffffu, rows.sum[h], 1);
    rows.sum[h] += __shfl_xor_sync(0xffffffffu, rows.sum[h], 2);
    inverse[h] = 1.0f / rows.sum[h];
    const int r = row + h * 8 + lane.group;
    if (lane.pair == 0 && r < there) lse[at(blockIdx.y, tokens, first + r)] = fmaf(rows.top[h], scale, logf(rows.sum[h]));
  }
  const int sample = blockIdx.y / heads, column = static_cast<int>(blockIdx.y) % heads * D;
  store_rows<D, ROWS>(out + at(sample * tokens + first + row, out_stride, column), out_stride, 0, there - row, acc, inverse, mine,
                      lane);
}

#define ATTENTION(D, GROUPS, TILE)                                                                                                    \
  extern "C" __global__ void __launch_bounds__(GROUPS* WARPGROUP, 1)                                                                  \
      attention_wgmma_##D(const bf16* q, const bf16* k, const bf16* v, bf16* out, float* lse, int heads, int tokens, int first_query, \
                          int queries, int out_stride, float scale) {                                                                 \
    attention<D, GROUPS, TILE>(q, k, v, out, lse, heads, tokens, first_query, queries, out_stride, scale);                            \
  }
ATTENTION(64, 2, 128)
ATTENTION(128, 2, 128)
