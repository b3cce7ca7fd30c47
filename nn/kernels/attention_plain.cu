// Softmax attention in plain f32 arithmetic, for any width of a head, and its backward. Every sum has a fixed order.
//
//   B samples   H heads   T tokens   U keys   D width of a head
//   q, dq  [B, H, T, D]   k, v, dk, dv  [B, H, U, D]   out, d_out  [B, T, H D] with a stride   lse, delta  [B, H, T]
//
// A block has four warps, and a warp one row: a query, or a key in the backward of keys and values. The other side comes in tiles of
// 32 rows through shared memory, a lane for each row of the tile.
#include "values.cuh"

constexpr int ROWS = 4, TILE = 32, LANE_VALUES = 16;  // heads of at most 512

struct Shared {
  float *tile, *row, *weights;  // [TILE][D + 1], a row of each warp [D], its weights [TILE]
  int dim;
};
DEVICE Shared shared_of(int dim) {
  float* tile = shared_memory<float>();
  const int warp = threadIdx.x / 32;
  float* rows = tile + TILE * (dim + 1);
  return Shared{tile, rows + 2 * warp * dim, rows + 2 * ROWS * dim + warp * TILE, dim};
}

// Rows `first..` of `from`, zeros beyond `end`, for everyone.
DEVICE void load_tile(const Shared& s, const activation* from, int first, int end, int stride) {
  __syncthreads();
  for (int i = threadIdx.x; i < TILE * s.dim; i += ROWS * 32) {
    const int r = i / s.dim, c = i % s.dim;
    s.tile[r * (s.dim + 1) + c] = first + r < end ? to_float(from[at(first + r, stride, c)]) : 0.0f;
  }
  __syncthreads();
}
DEVICE void load_row(float* to, const activation* from, int dim, bool there) {
  for (int i = threadIdx.x % 32; i < dim; i += 32) to[i] = there ? to_float(from[i]) : 0.0f;
}
// The lane's row of the tile times a row of the warp.
DEVICE float dot(const Shared& s, const float* row) {
  const float* mine = s.tile + threadIdx.x % 32 * (s.dim + 1);
  float sum = 0.0f;
  for (int i = 0; i < s.dim; ++i) sum = fmaf(row[i], mine[i], sum);
  return sum;
}
// acc += the sum over the tile's rows of weight times row; the lane has the columns lane, lane + 32, ... A tile is loaded between
// two of these, so that everyone has left the weights of the last one.
DEVICE void add_weighted(const Shared& s, float weight, float (&acc)[LANE_VALUES]) {
  const int lane = threadIdx.x % 32;
  s.weights[lane] = weight;
  __syncwarp();
#pragma unroll
  for (int n = 0; n < LANE_VALUES; ++n) {
    const int column = lane + 32 * n;
    if (column >= s.dim) break;
    float sum = acc[n];
    for (int j = 0; j < TILE; ++j) sum = fmaf(s.weights[j], s.tile[j * (s.dim + 1) + column], sum);
    acc[n] = sum;
  }
}
DEVICE void store_row(activation* to, const float (&acc)[LANE_VALUES], int dim, float factor) {
#pragma unroll
  for (int n = 0; n < LANE_VALUES; ++n) {
    const int column = threadIdx.x % 32 + 32 * n;
    if (column >= dim) break;
    to[column] = from_float<activation>(acc[n] * factor);
  }
}
DEVICE float warp_max(float v) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, offset));
  return v;
}

extern "C" __global__ void __launch_bounds__(128) attention_plain(const activation* q, const activation* k, const activation* v,
                                                                  activation* out, float* lse, int heads, int tokens, int keys, int dim,
                                                                  int first_query, int queries, int out_stride, float scale,
                                                                  const float* bias, int causal) {
  const Shared s = shared_of(dim);
  const int lane = threadIdx.x % 32, index = blockIdx.x * ROWS + threadIdx.x / 32, query = first_query + index;
  const bool there = index < queries;
  const long long head = at(blockIdx.y, keys * dim, 0);
  load_row(s.row, q + at(blockIdx.y, tokens * dim, 0) + at(there ? query : 0, dim, 0), dim, there);
  if (bias) bias += at(static_cast<int>(blockIdx.y) % heads * tokens + (there ? query : 0), keys, 0);
  float acc[LANE_VALUES], top = -infinity(), sum = 0.0f;
#pragma unroll
  for (int n = 0; n < LANE_VALUES; ++n) acc[n] = 0.0f;
  for (int first = 0; first < keys; first += TILE) {
    load_tile(s, k + head, first, keys, dim);
    const int key = first + lane;
    const float score = dot(s, s.row) * scale + (bias && key < keys ? bias[key] : 0.0f);
    const bool seen = key < keys && !(causal && key > query);
    const float high = fmaxf(top, warp_max(seen ? score : -infinity()));
    // Every query sees the first key, so that `high` is finite.
    const float weight = seen ? expf(score - high) : 0.0f, shrink = expf(top - high);
    top = high;
    sum = fmaf(sum, shrink, warp_sum(weight));
    load_tile(s, v + head, first, keys, dim);
#pragma unroll
    for (int n = 0; n < LANE_VALUES; ++n) acc[n] *= shrink;
    add_weighted(s, weight, acc);
  }
  if (!there) return;
  const int sample = blockIdx.y / heads;
  store_row(out + at(sample * tokens + query, out_stride, static_cast<int>(blockIdx.y) % heads * dim), acc, dim, 1.0f / sum);
  if (lane == 0) lse[at(blockIdx.y, tokens, query)] = top + logf(sum);
}

// delta = the sum over D of out times its cotangent. A warp has one query of one head.
extern "C" __global__ void __launch_bounds__(128) attention_delta(const activation* out, const activation* d_out, float* delta, int heads,
                                                                  int tokens, int dim, int first_query, int queries, int out_stride,
                                                                  int d_out_stride) {
  const int index = blockIdx.x * ROWS + threadIdx.x / 32, query = first_query + index;
  if (index >= queries) return;
  const int row = blockIdx.y / heads * tokens + query, column = static_cast<int>(blockIdx.y) % heads * dim;
  const activation *o = out + at(row, out_stride, column), *d = d_out + at(row, d_out_stride, column);
  float sum = 0.0f;
  for (int i = threadIdx.x % 32; i < dim; i += 32) sum = fmaf(to_float(o[i]), to_float(d[i]), sum);
  sum = warp_sum(sum);
  if (threadIdx.x % 32 == 0) delta[at(blockIdx.y, tokens, query)] = sum;
}

// A warp has one token: where it is no query with a cotangent, dq is zero.
extern "C" __global__ void __launch_bounds__(128) attention_plain_queries(const activation* q, const activation* k, const activation* v,
                                                                          const activation* d_out, const float* lse, const float* delta,
                                                                          activation* dq, int heads, int tokens, int keys, int dim, int first_query,
                                                                          int queries, int d_out_stride, float scale) {
  const Shared s = shared_of(dim);
  const int lane = threadIdx.x % 32, query = blockIdx.x * ROWS + threadIdx.x / 32;
  const bool there = query >= first_query && query < first_query + queries;
  const long long head = at(blockIdx.y, keys * dim, 0), mine_at = at(blockIdx.y, tokens * dim, 0);
  const int sample = blockIdx.y / heads, column = static_cast<int>(blockIdx.y) % heads * dim;
  float* cotangent = s.row + dim;
  load_row(s.row, q + mine_at + at(there ? query : 0, dim, 0), dim, there);
  load_row(cotangent, d_out + at(sample * tokens + (there ? query : 0), d_out_stride, column), dim, there);
  const float mine = there ? lse[at(blockIdx.y, tokens, query)] : 0.0f, taken = there ? delta[at(blockIdx.y, tokens, query)] : 0.0f;
  float acc[LANE_VALUES];
#pragma unroll
  for (int n = 0; n < LANE_VALUES; ++n) acc[n] = 0.0f;
  for (int first = 0; first < keys; first += TILE) {
    load_tile(s, v + head, first, keys, dim);
    const float d_weight = dot(s, cotangent);
    load_tile(s, k + head, first, keys, dim);
    const float weight = there && first + lane < keys ? expf(scale * dot(s, s.row) - mine) : 0.0f;
    add_weighted(s, weight * (d_weight - taken), acc);
  }
  if (query < tokens) store_row(dq + mine_at + at(query, dim, 0), acc, dim, scale);
}

// A warp has one key and its value.
extern "C" __global__ void __launch_bounds__(128) attention_plain_keys(const activation* q, const activation* k, const activation* v,
                                                                       const activation* d_out, const float* lse, const float* delta,
                                                                       activation* dk, activation* dv, int heads, int tokens, int keys, int dim,
                                                                       int first_query, int queries, int d_out_stride, float scale) {
  const Shared s = shared_of(dim);
  const int lane = threadIdx.x % 32, key = blockIdx.x * ROWS + threadIdx.x / 32, end = first_query + queries;
  const bool there = key < keys;
  const long long head = at(blockIdx.y, keys * dim, 0), queries_at = at(blockIdx.y, tokens * dim, 0);
  const int sample = blockIdx.y / heads, column = static_cast<int>(blockIdx.y) % heads * dim;
  float* value = s.row + dim;
  load_row(s.row, k + head + at(there ? key : 0, dim, 0), dim, there);
  load_row(value, v + head + at(there ? key : 0, dim, 0), dim, there);
  float d_key[LANE_VALUES], d_value[LANE_VALUES];
#pragma unroll
  for (int n = 0; n < LANE_VALUES; ++n) d_key[n] = d_value[n] = 0.0f;
  for (int first = first_query; first < end; first += TILE) {
    const int query = first + lane;
    const bool asked = query < end;
    load_tile(s, q + queries_at, first, end, dim);
    const float weight = asked ? expf(scale * dot(s, s.row) - lse[at(blockIdx.y, tokens, query)]) : 0.0f;
    load_tile(s, d_out + at(sample * tokens, d_out_stride, column), first, end, d_out_stride);
    const float d_score = weight * (dot(s, value) - (asked ? delta[at(blockIdx.y, tokens, query)] : 0.0f));
    add_weighted(s, weight, d_value);
    load_tile(s, q + queries_at, first, end, dim);
    add_weighted(s, d_score, d_key);
  }
  if (!there) return;
  store_row(dk + head + at(key, dim, 0), d_key, dim, scale);
  store_row(dv + head + at(key, dim, 0), d_value, dim, 1.0f);
}
