// Products on tensor cores, for attention: tiles of bf16 rows in shared memory, f32 sums in registers.
//
//   D width of a head   R rows of a tile   TALL tiles of 16 rows that a warp has   N columns of its scores
//
// Blocks have four warps. A row of a tile takes 2 D bytes, in chunks of eight values. Chunk c of row r stands at place c ^ (r & 7),
// so that eight neighbouring rows have a chunk each in different banks: ldmatrix, cp.async and the results' way out are free of bank
// conflicts. A warp's lanes differ in r & 7 by lane alone, and steps along a row are even numbers of chunks: an address is the lane's
// own, XOR 32 for each step of 16 values, plus a constant for each step of eight rows.
#pragma once
#include "values.cuh"

constexpr int THREADS = 128;
// For Blackwell (-DBLACKWELL) the compiler needs a few registers more than there are, and would spill: tiles of the other side are shorter
// there. The host asks for the shared memory of long ones.
#if defined(BLACKWELL)
constexpr bool SHORT_TILES = true;
#else
constexpr bool SHORT_TILES = false;
#endif

// Where a thread stands in operands and in sums. The sums of a tile of 16 rows and eight columns that a thread has: [0] and [1] of
// row `group`, [2] and [3] of row `group + 8`, columns `2 pair` and `2 pair + 1`.
struct Lane {
  int warp, group, pair;
  unsigned along;  // of sixteen rows, for products over the row; for products over rows of sixteen rows, transposed
  unsigned across;  // of sixteen rows as columns of a result, for products over the row
};
template <int D> DEVICE Lane lane_of_thread() {
  const unsigned lane = threadIdx.x % 32, row = lane % 8;
  return Lane{static_cast<int>(threadIdx.x / 32), static_cast<int>(lane / 4), static_cast<int>(lane % 4),
              lane % 16 * (2 * D) + (lane / 16 ^ row) * 16, (row + lane / 16 * 8) * (2 * D) + (lane / 8 % 2 ^ row) * 16};
}

// Asks for R rows from `from` on, which stand `stride` values apart; zeros where a row is not in `low..high`. Nothing is read there.
template <int D, int R> DEVICE void fetch(char* tile, const bf16* from, int stride, int low, int high) {
  constexpr int CHUNKS = D / 8, STEP = THREADS / CHUNKS;  // rows of a step: whole groups of eight
  static_assert(R % STEP == 0 && STEP % 8 == 0);
  const int r = threadIdx.x / CHUNKS, c = threadIdx.x % CHUNKS;
  char* to = tile + r * (2 * D) + (c ^ (r & 7)) * 16;
  const bf16* mine = from + at(r, stride, c * 8);
#pragma unroll
  for (int i = 0; i < R; i += STEP) copy_async_16(to + i * (2 * D), mine + at(i, stride, 0), r >= low - i && r < high - i);
}

// scores = a b^T over D, for TALL times 16 rows of `a` and N rows of `b`.
template <int D, int TALL, int N>
DEVICE void multiply_rows(float (&scores)[TALL][N / 8][4], const char* a, const char* b, const Lane& lane) {
#pragma unroll
  for (int m = 0; m < TALL; ++m)
#pragma unroll
    for (int n = 0; n < N / 8; ++n) scores[m][n][0] = scores[m][n][1] = scores[m][n][2] = scores[m][n][3] = 0.0f;
#pragma unroll
  for (int d = 0; d < D / 16; ++d) {
    unsigned left[TALL][4];
#pragma unroll
    for (int m = 0; m < TALL; ++m) load_matrix_x4(left[m], a + m * 16 * (2 * D) + (lane.along ^ d * 32));
#pragma unroll
    for (int n = 0; n < N / 8; n += 2) {
      unsigned right[4];
      load_matrix_x4(right, b + n * 8 * (2 * D) + (lane.across ^ d * 32));
#pragma unroll
      for (int m = 0; m < TALL; ++m) {
        mma_bf16(scores[m][n], left[m], right[0], right[1]);
        mma_bf16(scores[m][n + 1], left[m], right[2], right[3]);
      }
    }
  }
}

// acc += weights b over the N rows of `b`. The sums of a product are the left factor of the next one as they stand in registers.
template <int D, int TALL, int N>
DEVICE void add_weighted_rows(float (&acc)[TALL][D / 8][4], const float (&weights)[TALL][N / 8][4], const char* b, const Lane& lane) {
#pragma unroll
  for (int t = 0; t < N / 16; ++t) {
    unsigned left[TALL][4];
#pragma unroll
    for (int m = 0; m < TALL; ++m) {
      const float(&lo)[4] = weights[m][2 * t], (&hi)[4] = weights[m][2 * t + 1];
      left[m][0] = pack_bf16(lo[0], lo[1]), left[m][1] = pack_bf16(lo[2], lo[3]);
      left[m][2] = pack_bf16(hi[0], hi[1]), left[m][3] = pack_bf16(hi[2], hi[3]);
    }
#pragma unroll
    for (int n = 0; n < D / 8; n += 2) {
      unsigned right[4];
      load_matrix_x4_transposed(right, b + t * 16 * (2 * D) + (lane.along ^ n * 16));
#pragma unroll
      for (int m = 0; m < TALL; ++m) {
        mma_bf16(acc[m][n], left[m], right[0], right[1]);
        mma_bf16(acc[m][n + 1], left[m], right[2], right[3]);
      }
    }
  }
}

template <int TALL, int N> DEVICE void clear(float (&acc)[TALL][N][4]) {
#pragma unroll
  for (int m = 0; m < TALL; ++m)
#pragma unroll
    for (int n = 0; n < N; ++n) acc[m][n][0] = acc[m][n][1] = acc[m][n][2] = acc[m][n][3] = 0.0f;
}

// The warp's rows of sums, each with a factor of its own ([m][0] for row `group`, [m][1] for row `group + 8`), as bf16 to `to` in rows
// `stride` apart, where a row is in `low..high`. `tile`: the warp's rows of a tile that nobody has used since a barrier; they carry
// the values from where the sums stand to sixteen bytes a lane.
template <int D, int TALL>
DEVICE void store_rows(bf16* to, int stride, int low, int high, const float (&acc)[TALL][D / 8][4], const float (&factor)[TALL][2],
                       char* tile, const Lane& lane) {
#pragma unroll
  for (int m = 0; m < TALL; ++m)
#pragma unroll
    for (int n = 0; n < D / 8; ++n)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        char* row = tile + (m * 16 + h * 8 + lane.group) * (2 * D);
        *reinterpret_cast<unsigned*>(row + (n ^ lane.group) * 16 + lane.pair * 4) =
            pack_bf16(acc[m][n][2 * h] * factor[m][h], acc[m][n][2 * h + 1] * factor[m][h]);
      }
  __syncwarp();
  constexpr int CHUNKS = D / 8;
  const int c = threadIdx.x % CHUNKS;
#pragma unroll
  for (int i = 0; i < TALL * 16; i += 32 / CHUNKS) {
    const int r = i + threadIdx.x % 32 / CHUNKS;
    if (r < low || r >= high) continue;
    *reinterpret_cast<uint4*>(to + at(r, stride, c * 8)) = *reinterpret_cast<const uint4*>(tile + r * (2 * D) + (c ^ (r & 7)) * 16);
  }
}
