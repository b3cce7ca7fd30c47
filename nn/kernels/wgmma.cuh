// Products of Hopper's warpgroups (wgmma, sm_90a only): 64 rows by N columns by steps of 16, from tiles of bf16 rows in shared memory,
// f32 sums in registers, while the threads do something else.
//
//   D width of a head   R rows of a tile   GROUPS warpgroups of a block   N columns of a warpgroup's sums
//
// A tile of R rows of D values stands in panels of 64 columns, one behind the other: rows of 128 bytes, in chunks of eight values.
// Chunk c of row r stands at place c ^ (r & 7), which is the 128-byte swizzle of the matrix descriptors: it takes bits 4 to 6 of an
// address XOR bits 7 to 9, so that every tile, and every panel, begins at a multiple of 1024 bytes.
//
// A warpgroup is four warps, and warp w of it has rows 16 w to 16 w + 15 of a product of 64 rows. Of every eight columns a thread has
// what it has of a product of mma.sync: [0] and [1] of row `group`, [2] and [3] of row `group + 8`, columns `2 pair` and `2 pair + 1`.
//
// What threads write to shared memory (copies among it) the products see after wgmma_publish by those who wrote it, and a barrier. From
// a product on until wgmma_wait nobody may touch its sums, or write to its operands in shared memory.
#pragma once
#include "values.cuh"

typedef unsigned long long descriptor;

#if defined(__CUDACC__)

#define WGMMA_SUMS_8(d, n)                                                                                                             \
  "+f"(d[n][0]), "+f"(d[n][1]), "+f"(d[n][2]), "+f"(d[n][3]), "+f"(d[n + 1][0]), "+f"(d[n + 1][1]), "+f"(d[n + 1][2]), "+f"(d[n + 1][3])
#define WGMMA_SUMS_16(d, n) WGMMA_SUMS_8(d, n), WGMMA_SUMS_8(d, n + 2)
#define WGMMA_SUMS_32(d, n) WGMMA_SUMS_16(d, n), WGMMA_SUMS_16(d, n + 4)
#define WGMMA_SUMS_40(d, n) WGMMA_SUMS_32(d, n), WGMMA_SUMS_8(d, n + 8)
#define WGMMA_SUMS_48(d, n) WGMMA_SUMS_32(d, n), WGMMA_SUMS_16(d, n + 8)
#define WGMMA_SUMS_56(d, n) WGMMA_SUMS_32(d, n), WGMMA_SUMS_16(d, n + 8), WGMMA_SUMS_8(d, n + 12)
#define WGMMA_SUMS_64(d, n) WGMMA_SUMS_32(d, n), WGMMA_SUMS_32(d, n + 8)
#define WGMMA_SUMS_72(d, n) WGMMA_SUMS_64(d, n), WGMMA_SUMS_8(d, n + 16)
#define WGMMA_SUMS_80(d, n) WGMMA_SUMS_64(d, n), WGMMA_SUMS_16(d, n + 16)
#define WGMMA_SUMS_88(d, n) WGMMA_SUMS_64(d, n), WGMMA_SUMS_16(d, n + 16), WGMMA_SUMS_8(d, n + 20)
#define WGMMA_NAMES_32                                                                                                                 \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define WGMMA_NAMES_40 WGMMA_NAMES_32 ",%32,%33,%34,%35,%36,%37,%38,%39"
#define WGMMA_NAMES_48 WGMMA_NAMES_40 ",%40,%41,%42,%43,%44,%45,%46,%47"
#define WGMMA_NAMES_56 WGMMA_NAMES_48 ",%48,%49,%50,%51,%52,%53,%54,%55"
#define WGMMA_NAMES_64 WGMMA_NAMES_56 ",%56,%57,%58,%59,%60,%61,%62,%63"
#define WGMMA_NAMES_72 WGMMA_NAMES_64 ",%64,%65,%66,%67,%68,%69,%70,%71"
#define WGMMA_NAMES_80 WGMMA_NAMES_72 ",%72,%73,%74,%75,%76,%77,%78,%79"
#define WGMMA_NAMES_88 WGMMA_NAMES_80 ",%80,%81,%82,%83,%84,%85,%86,%87"

// Products of N columns, whose COUNT = N / 2 sums a thread has; A to F are the numbers of the operands behind those.
//
// sums = (more ? sums : 0) + a b, where descriptors say where a [64, 16] and b [16, N] are. a by rows. b: by columns (keys as they
// stand), or by rows (`Across`, values as they stand).
#define WGMMA(N, COUNT, A, B, C, D, E, F)                                                                                              \
  template <bool Across> DEVICE void wgmma(float (&d)[N / 8][4], descriptor a, descriptor b, bool more) {                              \
    asm volatile("{.reg .pred more; setp.ne.b32 more, %" C ", 0;\n"                                                                    \
                 "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.bf16.bf16 {" WGMMA_NAMES_##COUNT "}, %" A ", %" B                     \
                 ", more, 1, 1, 0, %" D ";}"                                                                                           \
                 : WGMMA_SUMS_##COUNT(d, 0) : "l"(a), "l"(b), "r"(static_cast<int>(more)), "n"(Across ? 1 : 0) : "memory");            \
  }                                                                                                                                    \
  template <bool Across> DEVICE void wgmma(float (&d)[N / 8][4], const unsigned (&a)[4], descriptor b, bool more) {                    \
    asm volatile("{.reg .pred more; setp.ne.b32 more, %" F ", 0;\n"                                                                    \
                 "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.bf16.bf16 {" WGMMA_NAMES_##COUNT "}, {%" A ", %" B ", %" C ", %" D    \
                 "}, %" E ", more, 1, 1, " WGMMA_ACROSS_##COUNT ";}"                                                                   \
                 : WGMMA_SUMS_##COUNT(d, 0)                                                                                            \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(more)), "n"(Across ? 1 : 0) : "memory");   \
  }
#define WGMMA_ACROSS_32 "%38"
#define WGMMA_ACROSS_40 "%46"
#define WGMMA_ACROSS_48 "%54"
#define WGMMA_ACROSS_56 "%62"
#define WGMMA_ACROSS_64 "%70"
#define WGMMA_ACROSS_72 "%78"
#define WGMMA_ACROSS_80 "%86"
#define WGMMA_ACROSS_88 "%94"
WGMMA(64, 32, "32", "33", "34", "35", "36", "37")
WGMMA(80, 40, "40", "41", "42", "43", "44", "45")
WGMMA(96, 48, "48", "49", "50", "51", "52", "53")
WGMMA(112, 56, "56", "57", "58", "59", "60", "61")
WGMMA(128, 64, "64", "65", "66", "67", "68", "69")
WGMMA(144, 72, "72", "73", "74", "75", "76", "77")
WGMMA(160, 80, "80", "81", "82", "83", "84", "85")
WGMMA(176, 88, "88", "89", "90", "91", "92", "93")

// Keeps the compiler from moving a use of these registers across this place.
template <int N> DEVICE void wgmma_pin(float (&d)[N][4]) {
#pragma unroll
  for (int n = 0; n < N; ++n) asm volatile("" : "+f"(d[n][0]), "+f"(d[n][1]), "+f"(d[n][2]), "+f"(d[n][3])::"memory");
}

// Before products, where their registers were used otherwise since the last ones.
DEVICE void wgmma_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEVICE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// The products are done, but for the last `Pending` groups of them.
template <int Pending> DEVICE void wgmma_wait() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(Pending) : "memory"); }
// What stands before this is done before what stands behind it. In a straight piece of code ptxas puts a wait first, and what could be
// done beside the products comes after them: this ends the piece, by a branch that is always taken. `count` is never negative.
DEVICE void wgmma_meanwhile(int count) {
  asm volatile("{.reg .pred p; setp.ge.s32 p, %0, 0; @p bra.uni behind; nanosleep.u32 20; behind: }" ::"r"(count) : "memory");
}
// What this thread has written to shared memory, and has waited for, is there for products after a barrier.
DEVICE void wgmma_publish() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

#else
#include "emu/wgmma.h"
template <int N> DEVICE void wgmma_pin(float (&)[N][4]) {}
DEVICE void wgmma_meanwhile(int) {}
#endif

constexpr int WARPGROUP = 128, ROW_BYTES = 128, EIGHT_ROWS = 8 * ROW_BYTES;

// Where the tiles of the block begin. The host asks for 1024 bytes more than they take.
DEVICE char* tiles_in_shared_memory() {
  char* from = shared_memory<char>();
  return from + (0u - shared_address(from)) % EIGHT_ROWS;
}

// Of a matrix with the 128-byte swizzle. `leading`: bytes from one panel to the next, for a matrix that lies across its rows.
DEVICE descriptor describe(const void* from, int leading) {
  return static_cast<descriptor>(shared_address(from) >> 4) | static_cast<descriptor>(leading >> 4) << 16 |
         static_cast<descriptor>(EIGHT_ROWS >> 4) << 32 | static_cast<descriptor>(1) << 62;
}
// The same matrix, so many bytes further: an address has 18 bits, and nothing is carried beyond its 14.
DEVICE descriptor further(descriptor d, int bytes) { return d + (bytes >> 4); }

// Where a thread stands in sums.
struct Lane {
  int warp, group, pair;
};
DEVICE Lane lane_of_thread() {
  const int lane = threadIdx.x % 32;
  return Lane{static_cast<int>(threadIdx.x / 32), lane / 4, lane % 4};
}

// Asks for R rows from `from` on, which stand `stride` values apart; zeros where a row is not in `low..high`. Nothing is read there.
template <int D, int R, int THREADS> DEVICE void fetch(char* tile, const bf16* from, int stride, int low, int high) {
  constexpr int CHUNKS = D / 8, STEP = THREADS / CHUNKS;  // rows of a step: whole groups of eight
  static_assert(STEP % 8 == 0);
  const int r = threadIdx.x / CHUNKS, c = threadIdx.x % CHUNKS;
  char* to = tile + c / 8 * (R * ROW_BYTES) + r * ROW_BYTES + (c % 8 ^ (r & 7)) * 16;
  const bf16* mine = from + at(r, stride, c * 8);
#pragma unroll
  for (int i = 0; i < R; i += STEP) {
    if (i + STEP > R && r >= R - i) break;
    copy_async_16(to + i * ROW_BYTES, mine + at(i, stride, 0), r >= low - i && r < high - i);
  }
}

// A thread's copies of the rows of a tile of R, as fetch makes them, one by one: a copy behind each product costs no time. Rows of the
// tile beyond those that are there become zeros, all of them where none is.
template <int D, int R, int THREADS> struct Copies {
  char* to;
  const bf16* from;
  int stride, left;
};
struct NoCopies {};
template <int D, int R, int THREADS> DEVICE Copies<D, R, THREADS> copies(char* tile, const bf16* from, int stride, int there) {
  const int r = threadIdx.x / (D / 8), c = threadIdx.x % (D / 8);
  return {tile + c / 8 * (R * ROW_BYTES) + r * ROW_BYTES + (c % 8 ^ (r & 7)) * 16, from + at(r, stride, c * 8), stride, there - r};
}
template <int D, int R, int THREADS> DEVICE void copy(const Copies<D, R, THREADS>& c, int i) {
  constexpr int STEP = THREADS / (D / 8);
  static_assert(STEP % 8 == 0 && R % STEP == 0);
  if (i * STEP < R) copy_async_16(c.to + i * STEP * ROW_BYTES, c.from + at(i * STEP, c.stride, 0), i * STEP < c.left);
}
DEVICE void copy(NoCopies, int) {}

// sums = a b^T over D: 64 rows of `a`, which are part of a tile of R, and the N rows of `b`.
template <int D, int R, int N, class C = NoCopies>
DEVICE void multiply_rows(float (&sums)[N / 8][4], const char* a, const char* b, C between = {}) {
  const descriptor left = describe(a, 16), right = describe(b, 16);
#pragma unroll
  for (int d = 0; d < D / 16; ++d) {
    wgmma<false>(sums, further(left, d / 4 * (R * ROW_BYTES) + d % 4 * 32), further(right, d / 4 * (N * ROW_BYTES) + d % 4 * 32), d > 0);
    copy(between, d);
  }
}
// The same of 64 rows in registers, which the warps have by load_rows.
template <int D, int N, class C = NoCopies>
DEVICE void multiply_rows(float (&sums)[N / 8][4], const unsigned (&a)[D / 16][4], const char* b, C between = {}) {
  const descriptor right = describe(b, 16);
#pragma unroll
  for (int d = 0; d < D / 16; ++d) {
    wgmma<false>(sums, a[d], further(right, d / 4 * (N * ROW_BYTES) + d % 4 * 32), d > 0);
    copy(between, d);
  }
}

// The warp's 16 rows from `rows` on, which are part of a tile of R, as a left factor.
template <int D, int R> DEVICE void load_rows(unsigned (&a)[D / 16][4], const char* rows) {
  const int r = threadIdx.x % 16, c = threadIdx.x % 32 / 16;
#pragma unroll
  for (int d = 0; d < D / 16; ++d)
    load_matrix_x4(a[d], rows + d / 4 * (R * ROW_BYTES) + r * ROW_BYTES + (d % 4 * 2 + c ^ (r & 7)) * 16);
}

// acc = (more ? acc : 0) + weights b over the N rows of `b`.
template <int D, int N, class C = NoCopies>
DEVICE void add_weighted_rows(float (&acc)[D / 8][4], const unsigned (&weights)[N / 16][4], const char* b, bool more, C between = {}) {
  const descriptor right = describe(b, N * ROW_BYTES);
#pragma unroll
  for (int t = 0; t < N / 16; ++t) {
    wgmma<true>(acc, weights[t], further(right, t * 2 * EIGHT_ROWS), more || t > 0);
    copy(between, t);
  }
}

template <int N> DEVICE void clear(float (&acc)[N][4]) {
#pragma unroll
  for (int n = 0; n < N; ++n) acc[n][0] = acc[n][1] = acc[n][2] = acc[n][3] = 0.0f;
}

// Sums as the left factor of the next product, which has them where they stand.
template <int N> DEVICE void to_weights(unsigned (&weights)[N / 2][4], const float (&sums)[N][4]) {
#pragma unroll
  for (int t = 0; t < N / 2; ++t) {
    const float(&lo)[4] = sums[2 * t], (&hi)[4] = sums[2 * t + 1];
    weights[t][0] = pack_bf16(lo[0], lo[1]), weights[t][1] = pack_bf16(lo[2], lo[3]);
    weights[t][2] = pack_bf16(hi[0], hi[1]), weights[t][3] = pack_bf16(hi[2], hi[3]);
  }
}

// The warp's 16 rows of sums, each with a factor of its own ([0] for row `group`, [1] for row `group + 8`), as bf16 to `to` in rows
// `stride` apart, where a row is in `low..high`. `tile`: the warp's rows of a tile of R that nobody has used since a barrier; they carry
// the values from where the sums stand to sixteen bytes a lane.
template <int D, int R>
DEVICE void store_rows(bf16* to, int stride, int low, int high, const float (&acc)[D / 8][4], const float (&factor)[2], char* tile,
                       const Lane& lane) {
#pragma unroll
  for (int n = 0; n < D / 8; ++n)
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      char* row = tile + n / 8 * (R * ROW_BYTES) + (h * 8 + lane.group) * ROW_BYTES;
      *reinterpret_cast<unsigned*>(row + (n % 8 ^ lane.group) * 16 + lane.pair * 4) =
          pack_bf16(acc[n][2 * h] * factor[h], acc[n][2 * h + 1] * factor[h]);
    }
  __syncwarp();
  constexpr int CHUNKS = D / 8;
  const int c = threadIdx.x % CHUNKS;
#pragma unroll
  for (int i = 0; i < 16; i += 32 / CHUNKS) {
    const int r = i + threadIdx.x % 32 / CHUNKS;
    if (r < low || r >= high) continue;
    const char* chunk = tile + c / 8 * (R * ROW_BYTES) + r * ROW_BYTES + (c % 8 ^ (r & 7)) * 16;
    *reinterpret_cast<uint4*>(to + at(r, stride, c * 8)) = *reinterpret_cast<const uint4*>(chunk);
  }
}
