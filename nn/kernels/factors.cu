// Products with an adapter's factors, in bf16 on tensor cores, with f32 sums. One side is the rank: they read or write far more than they
// multiply, and are arranged around that.
//
//   M rows   N columns   R rank: a multiple of 8, at most RANK
//   pointers and strides of rows are multiples of 16 bytes, except those of sums
//
// Tiles stand in shared memory by rows, in chunks of eight values. Beyond the last row, the last column and the rank they are zero.
#include "values.cuh"

// Where chunk c of row r stands in a tile whose rows have so many chunks, in bytes: the chunks of one column in eight neighbouring rows are
// in different banks, which is what ldmatrix reads.
template <int CHUNKS> DEVICE int place(int r, int c) {
  constexpr int ROWS_OF_A_LINE = CHUNKS < 8 ? 8 / CHUNKS : 1;
  return (r * CHUNKS + (c ^ (r / ROWS_OF_A_LINE & (CHUNKS < 8 ? CHUNKS - 1 : 7)))) * 16;
}

// Asks for a tile of ROWS rows, of which there are `rows` with `width` values each.
template <int CHUNKS, int ROWS, int THREADS> DEVICE void fetch(char* tile, const bf16* from, int stride, int rows, int width) {
  static_assert(ROWS * CHUNKS % THREADS == 0);
#pragma unroll
  for (int i = 0; i < ROWS * CHUNKS; i += THREADS) {
    const int r = (i + threadIdx.x) / CHUNKS, c = (i + threadIdx.x) % CHUNKS;
    copy_async_16(tile + place<CHUNKS>(r, c), from + at(r, stride, c * 8), r < rows && c * 8 < width);
  }
}

// Operands of sixteen summed values, from chunk or row `k` of them on. Of a left factor sixteen rows from `m` on, of a right one sixteen
// columns from `n` on: two tiles of eight. `along`: the summed axis runs along the rows of the tile; `across`: it counts them.
template <int CHUNKS> DEVICE void left_along(unsigned (&a)[4], const char* tile, int m, int k, int lane) {
  load_matrix_x4(a, tile + place<CHUNKS>(m + lane % 16, k / 8 + lane / 16));
}
template <int CHUNKS> DEVICE void left_across(unsigned (&a)[4], const char* tile, int m, int k, int lane) {
  load_matrix_x4_transposed(a, tile + place<CHUNKS>(k + lane % 8 + lane / 16 * 8, m / 8 + lane / 8 % 2));
}
template <int CHUNKS> DEVICE void right_along(unsigned (&b)[4], const char* tile, int n, int k, int lane) {
  load_matrix_x4(b, tile + place<CHUNKS>(n + lane % 8 + lane / 16 * 8, k / 8 + lane / 8 % 2));
}
template <int CHUNKS> DEVICE void right_across(unsigned (&b)[4], const char* tile, int n, int k, int lane) {
  load_matrix_x4_transposed(b, tile + place<CHUNKS>(k + lane % 16, n / 8 + lane / 16));
}

// Expanding: out [M, N] = h [M, R] factor, which is stored as [N, R] (OUTPUTS: on the way forward) or as [R, N] (on the way back).
//
// A block has 64 rows and 128 columns, a warp 16 of the rows. It has one tile and nothing to do while that comes, so three to five blocks
// share a multiprocessor. Blocks of the same rows are neighbours: whole rows are written at about the same time.
constexpr int EXPAND_THREADS = 128, EXPAND_ROWS = 64, EXPAND_COLUMNS = 128;

template <int RANK, bool OUTPUTS>
DEVICE void expand(const bf16* h, const bf16* factor, bf16* out, int h_stride, int factor_stride, int out_stride, int rows, int columns,
                   int rank) {
  constexpr int CHUNKS = RANK / 8, WIDE_CHUNKS = EXPAND_COLUMNS / 8;
  char* hs = shared_memory<char>();
  char* factors = hs + EXPAND_ROWS * RANK * 2;
  const int stripes = (columns + EXPAND_COLUMNS - 1) / EXPAND_COLUMNS, stripe = static_cast<int>(blockIdx.x) % stripes;
  const int row = static_cast<int>(blockIdx.x) / stripes * EXPAND_ROWS, column = stripe * EXPAND_COLUMNS;
  const int there = rows - row, wide = columns - column;

  fetch<CHUNKS, EXPAND_ROWS, EXPAND_THREADS>(hs, h + at(row, h_stride, 0), h_stride, there, rank);
  if constexpr (OUTPUTS)
    fetch<CHUNKS, EXPAND_COLUMNS, EXPAND_THREADS>(factors, factor + at(column, factor_stride, 0), factor_stride, wide, rank);
  else fetch<WIDE_CHUNKS, RANK, EXPAND_THREADS>(factors, factor + column, factor_stride, rank, wide);
  copy_async_commit();
  copy_async_wait<0>();
  __syncthreads();

  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  float acc[WIDE_CHUNKS][4];
#pragma unroll
  for (int n = 0; n < WIDE_CHUNKS; ++n) acc[n][0] = acc[n][1] = acc[n][2] = acc[n][3] = 0.0f;
#pragma unroll
  for (int k = 0; k < RANK; k += 16) {
    unsigned left[4];
    left_along<CHUNKS>(left, hs, warp * 16, k, lane);
#pragma unroll
    for (int n = 0; n < WIDE_CHUNKS; n += 2) {
      unsigned right[4];
      if constexpr (OUTPUTS) right_along<CHUNKS>(right, factors, n * 8, k, lane);
      else right_across<WIDE_CHUNKS>(right, factors, n * 8, k, lane);
      mma_bf16(acc[n], left, right[0], right[1]);
      mma_bf16(acc[n + 1], left, right[2], right[3]);
    }
  }

  // Through shared memory of the warp's own, from where sums stand to sixteen bytes a lane.
  __syncthreads();  // everyone has left the operands
  char* results = hs + warp * 16 * (2 * EXPAND_COLUMNS);
#pragma unroll
  for (int n = 0; n < WIDE_CHUNKS; ++n)
#pragma unroll
    for (int half = 0; half < 2; ++half)
      *reinterpret_cast<unsigned*>(results + place<WIDE_CHUNKS>(half * 8 + lane / 4, n) + lane % 4 * 4) =
          pack_bf16(acc[n][2 * half], acc[n][2 * half + 1]);
  __syncwarp();
  const int c = lane % WIDE_CHUNKS;
#pragma unroll
  for (int i = 0; i < 16; i += 32 / WIDE_CHUNKS) {
    const int r = i + lane / WIDE_CHUNKS;
    if (warp * 16 + r < there && c * 8 < wide)
      *reinterpret_cast<uint4*>(out + at(row + warp * 16 + r, out_stride, column + c * 8)) =
          *reinterpret_cast<const uint4*>(results + place<WIDE_CHUNKS>(r, c));
  }
}

#define EXPAND(NAME, RANK, OUTPUTS)                                                                                            \
  extern "C" __global__ void __launch_bounds__(EXPAND_THREADS, RANK == 32 ? 5 : RANK == 64 ? 4 : 3)                             \
      NAME##RANK(const bf16* h, const bf16* factor, bf16* out, int h_stride, int factor_stride, int out_stride, int rows,       \
                 int columns, int rank) {                                                                                       \
    expand<RANK, OUTPUTS>(h, factor, out, h_stride, factor_stride, out_stride, rows, columns, rank);                            \
  }
EXPAND(expand_outputs_, 32, true)
EXPAND(expand_outputs_, 64, true)
EXPAND(expand_outputs_, 128, true)
EXPAND(expand_inputs_, 32, false)
EXPAND(expand_inputs_, 64, false)
EXPAND(expand_inputs_, 128, false)

// Gradients of factors: out [N, R] = scale wide [M, N]^T narrow [M, R] in f32, or with `turned` its transpose [R, N].
//
// A block has a stripe of columns and goes over all rows, 128 at a time, of which each warp adds up sixteen; the sums of the warps
// are joined at the end. The order is that of the rows, and depends on nothing else. As many tiles are on their way as there is shared
// memory for: 96 KiB, which every GPU has.
//
//   RANK   STRIPE   KiB of a tile   tiles
//   32     32       8 + 8           6
//   32     64       16 + 8          4
//   64     32       8 + 16          4
//   64     64       16 + 16         3
constexpr int SUM_THREADS = 256, SUM_WARPS = SUM_THREADS / 32, SUM_ROWS = 16 * SUM_WARPS, SUM_SHARED = 96 << 10;

template <int RANK, int STRIPE>
DEVICE void factor_sums(const bf16* wide, const bf16* narrow, float* out, int wide_stride, int narrow_stride, int rows, int columns,
                        int rank, int turned, float scale) {
  constexpr int CHUNKS = STRIPE / 8, RANK_CHUNKS = RANK / 8, TALL = STRIPE / 16, TILE = SUM_ROWS * (STRIPE + RANK) * 2;
  constexpr int TILES = SUM_SHARED / TILE;
  char* tiles = shared_memory<char>();
  const int column = blockIdx.x * STRIPE, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int count = (rows + SUM_ROWS - 1) / SUM_ROWS;
  const auto request = [&](int tile) {
    const int row = tile * SUM_ROWS;
    char* to = tiles + tile % TILES * TILE;
    if (tile < count) {
      fetch<CHUNKS, SUM_ROWS, SUM_THREADS>(to, wide + at(row, wide_stride, column), wide_stride, rows - row, columns - column);
      to += SUM_ROWS * STRIPE * 2;
      fetch<RANK_CHUNKS, SUM_ROWS, SUM_THREADS>(to, narrow + at(row, narrow_stride, 0), narrow_stride, rows - row, rank);
    }
    copy_async_commit();
  };

  float acc[TALL * RANK_CHUNKS][4];
#pragma unroll
  for (int t = 0; t < TALL * RANK_CHUNKS; ++t) acc[t][0] = acc[t][1] = acc[t][2] = acc[t][3] = 0.0f;
  for (int tile = 0; tile < TILES - 1; ++tile) request(tile);
  for (int tile = 0; tile < count; ++tile) {
    copy_async_wait<TILES - 2>();
    __syncthreads();  // the tile is there, and everyone has left the one before
    request(tile + TILES - 1);
    const char* wides = tiles + tile % TILES * TILE;
    const char* narrows = wides + SUM_ROWS * STRIPE * 2;
    unsigned right[RANK / 16][4];
#pragma unroll
    for (int n = 0; n < RANK; n += 16) right_across<RANK_CHUNKS>(right[n / 16], narrows, n, warp * 16, lane);
#pragma unroll
    for (int m = 0; m < TALL; ++m) {
      unsigned left[4];
      left_across<CHUNKS>(left, wides, m * 16, warp * 16, lane);
#pragma unroll
      for (int n = 0; n < RANK_CHUNKS; n += 2) {
        mma_bf16(acc[m * RANK_CHUNKS + n], left, right[n / 2][0], right[n / 2][1]);
        mma_bf16(acc[m * RANK_CHUNKS + n + 1], left, right[n / 2][2], right[n / 2][3]);
      }
    }
  }

  // The upper half of the warps hands its sums to the lower one, until one warp has all.
  copy_async_wait<0>();
  __syncthreads();
#pragma unroll
  for (int half = SUM_WARPS / 2; half > 0; half /= 2) {
    float* sums = reinterpret_cast<float*>(tiles) + warp % half * (32 * 4 * TALL * RANK_CHUNKS) + lane;
    if (warp >= half && warp < 2 * half) {
#pragma unroll
      for (int t = 0; t < TALL * RANK_CHUNKS; ++t)
#pragma unroll
        for (int i = 0; i < 4; ++i) sums[32 * (4 * t + i)] = acc[t][i];
    }
    __syncthreads();
    if (warp < half) {
#pragma unroll
      for (int t = 0; t < TALL * RANK_CHUNKS; ++t)
#pragma unroll
        for (int i = 0; i < 4; ++i) acc[t][i] += sums[32 * (4 * t + i)];
    }
    __syncthreads();
  }
  if (warp > 0) return;
#pragma unroll
  for (int t = 0; t < TALL * RANK_CHUNKS; ++t)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int m = column + t / RANK_CHUNKS * 16 + i / 2 * 8 + lane / 4, n = t % RANK_CHUNKS * 8 + lane % 4 * 2 + i % 2;
      if (m < columns && n < rank) out[turned ? at(n, columns, m) : at(m, rank, n)] = scale * acc[t][i];
    }
}

#define FACTOR_SUMS(RANK, STRIPE)                                                                                              \
  extern "C" __global__ void __launch_bounds__(SUM_THREADS)                                                                     \
      factor_sums_##RANK##_##STRIPE(const bf16* wide, const bf16* narrow, float* out, int wide_stride, int narrow_stride,       \
                                    int rows, int columns, int rank, int turned, float scale) {                                 \
    factor_sums<RANK, STRIPE>(wide, narrow, out, wide_stride, narrow_stride, rows, columns, rank, turned, scale);               \
  }
FACTOR_SUMS(32, 32)
FACTOR_SUMS(32, 64)
FACTOR_SUMS(64, 32)
FACTOR_SUMS(64, 64)
