// Operations of a warp. Once all lanes of the mask have come, the last one does the work of the whole warp.
#pragma once
#include "checks.h"

namespace emu {

// The lanes that wait with this mask, or nobody yet: other lanes of the warp may be at an operation of their own.
EMU_RUNTIME Group& group_of(Warp& w, unsigned mask) {
  for (unsigned open = w.open; open != 0; open &= open - 1) {
    Group& g = w.group[__builtin_ctz(open)];
    if (g.mask == mask) return g;
  }
  const unsigned first = __builtin_ctz(~w.open);
  w.open |= 1u << first;
  w.group[first].mask = mask;
  return w.group[first];
}

// `run` does the work of all lanes of the mask; it must be a plain function: the checks would instrument a lambda.
EMU_RUNTIME void collective(unsigned mask, const char* what, void* payload, void (*run)(void** slot, unsigned mask)) {
  const unsigned lane = self->linear % LANES;
  if (!(mask >> lane & 1)) fail("a lane outside its own mask");
  Warp& w = block->warp[self->linear / LANES];
  Group& g = group_of(w, mask);
  if (g.arrived == 0) g.what = what;
  if (g.what != what) fail("lanes of a warp meet at different warp-wide operations");
  g.slot[lane] = payload;
  g.arrived |= 1u << lane;
  if (g.arrived == mask) {
    run(g.slot, mask);
    g.arrived = 0;
    w.open &= ~(1u << (&g - w.group));
    ++g.generation;
    block->idle = 0;
    return;
  }
  const unsigned generation = g.generation;
  do leave(self->warp_next);
  while (g.generation == generation);
}

// Accesses to memory before it are before those that come after; of a shuffle or a vote CUDA does not promise that.
EMU_RUNTIME void sync_warp(void**, unsigned) { ++block->warp[self->linear / LANES].epoch; }

// ---- shuffles ----
constexpr unsigned LONGEST = 8;
struct Shuffle {
  unsigned char value[LONGEST], result[LONGEST];
  unsigned from;
};
// The value of a lane that takes no part is undefined.
EMU_RUNTIME void shuffle_warp(void** slot, unsigned mask) {
  for (unsigned l = 0; l < LANES; ++l) {
    if (!(mask >> l & 1)) continue;
    Shuffle& s = *static_cast<Shuffle*>(slot[l]);
    if (mask >> s.from & 1) memcpy(s.result, static_cast<Shuffle*>(slot[s.from])->value, LONGEST);
    else memset(s.result, UNDEFINED, LONGEST);
  }
}
template <class T> EMU_RUNTIME T shuffle(unsigned mask, const char* what, T value, unsigned from) {
  static_assert(sizeof(T) <= LONGEST);
  Shuffle s = {{}, {}, from};
  memcpy(s.value, &value, sizeof value);
  collective(mask, what, &s, shuffle_warp);
  memcpy(&value, s.result, sizeof value);
  return value;
}
EMU_RUNTIME unsigned own_lane() { return self->linear % LANES; }
// The lane itself, where another part of the warp begins there.
EMU_RUNTIME unsigned within(unsigned lane, unsigned from, unsigned width) { return from / width == lane / width ? from : lane; }

// ---- votes ----
struct Vote { bool yes; unsigned result; };
EMU_RUNTIME void vote_warp(void** slot, unsigned mask) {
  unsigned yes = 0;
  for (unsigned l = 0; l < LANES; ++l)
    if (mask >> l & 1) yes |= static_cast<Vote*>(slot[l])->yes ? 1u << l : 0;
  for (unsigned l = 0; l < LANES; ++l)
    if (mask >> l & 1) static_cast<Vote*>(slot[l])->result = yes;
}
EMU_RUNTIME unsigned vote(unsigned mask, const char* what, bool yes) {
  Vote v = {yes, 0};
  collective(mask, what, &v, vote_warp);
  return v.result;
}

// ---- tensor cores: the operands of a warp, as the PTX manual lays them out ----
typedef float Row __attribute__((vector_size(32)));
struct Mma { float* c; const unsigned* a; unsigned b0, b1; };
EMU_RUNTIME float low_half(unsigned w) { return __uint_as_float(w << 16); }
EMU_RUNTIME float high_half(unsigned w) { return __uint_as_float(w & 0xffff0000u); }
// a * b + c with one rounding: products are exact on the device too. Spelled out, so that the bits do not depend on whether the
// compiler fuses, which it does with one level of optimisation and not with another.
EMU_RUNTIME Row fused(float a, Row b, Row c) {
#ifdef __FMA__
  return __builtin_ia32_vfmaddps256(Row{a, a, a, a, a, a, a, a}, b, c);
#else
  for (int i = 0; i < 8; ++i) c[i] = fmaf(a, b[i], c[i]);
  return c;
#endif
}
EMU_RUNTIME void mma_warp(void** slot, unsigned) {
  float a[16][16];
  Row b[16], c[16];
  for (unsigned l = 0; l < LANES; ++l) {
    const Mma& m = *static_cast<Mma*>(slot[l]);
    const int g = l / 4, t = l % 4 * 2;
    a[g][t] = low_half(m.a[0]), a[g][t + 1] = high_half(m.a[0]);
    a[g + 8][t] = low_half(m.a[1]), a[g + 8][t + 1] = high_half(m.a[1]);
    a[g][t + 8] = low_half(m.a[2]), a[g][t + 9] = high_half(m.a[2]);
    a[g + 8][t + 8] = low_half(m.a[3]), a[g + 8][t + 9] = high_half(m.a[3]);
    b[t][g] = low_half(m.b0), b[t + 1][g] = high_half(m.b0);
    b[t + 8][g] = low_half(m.b1), b[t + 9][g] = high_half(m.b1);
    c[g][t] = m.c[0], c[g][t + 1] = m.c[1], c[g + 8][t] = m.c[2], c[g + 8][t + 1] = m.c[3];
  }
  for (int i = 0; i < 16; ++i) {
    Row sum = c[i];
    for (int k = 0; k < 16; ++k) sum = fused(a[i][k], b[k], sum);
    c[i] = sum;
  }
  for (unsigned l = 0; l < LANES; ++l) {
    float* r = static_cast<Mma*>(slot[l])->c;
    const int g = l / 4, t = l % 4 * 2;
    r[0] = c[g][t], r[1] = c[g][t + 1], r[2] = c[g + 8][t], r[3] = c[g + 8][t + 1];
  }
}

struct Rows { const unsigned short* row; unsigned* r; };
template <bool Transposed> EMU_RUNTIME void load_matrix_warp(void** slot, unsigned) {
  for (unsigned l = 0; l < LANES; ++l)
    for (int m = 0; m < 4; ++m) {
      const int i = l / 4, j = l % 4 * 2;
      const unsigned lo = Transposed ? static_cast<Rows*>(slot[m * 8 + j])->row[i] : static_cast<Rows*>(slot[m * 8 + i])->row[j];
      const unsigned hi = Transposed ? static_cast<Rows*>(slot[m * 8 + j + 1])->row[i] : static_cast<Rows*>(slot[m * 8 + i])->row[j + 1];
      static_cast<Rows*>(slot[l])->r[m] = lo | hi << 16;
    }
}
// A row outside the block's shared memory, or not of 16 whole bytes, is an error on the device.
EMU_RUNTIME void check_row(const void* row) {
  const char* at = static_cast<const char*>(row);
  if (at < block->shared || at + 16 > block->shared + block->launch->shared_bytes) fail("ldmatrix of a row that is not in shared memory");
  if (reinterpret_cast<uintptr_t>(row) % 16) fail("ldmatrix of a row that is not aligned to 16 bytes");
}

}  // namespace emu

EMU_RUNTIME void __syncwarp(unsigned mask = emu::ALL) { emu::collective(mask, "__syncwarp", nullptr, emu::sync_warp); }

template <class T> EMU_RUNTIME T __shfl_sync(unsigned mask, T value, int from, int width = emu::LANES) {
  const unsigned first = emu::own_lane() / width * width;
  return emu::shuffle(mask, "__shfl_sync", value, first + static_cast<unsigned>(from) % width);
}
template <class T> EMU_RUNTIME T __shfl_xor_sync(unsigned mask, T value, int with, int width = emu::LANES) {
  const unsigned lane = emu::own_lane();
  return emu::shuffle(mask, "__shfl_xor_sync", value, emu::within(lane, lane ^ static_cast<unsigned>(with), width));
}
template <class T> EMU_RUNTIME T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = emu::LANES) {
  const unsigned lane = emu::own_lane();
  return emu::shuffle(mask, "__shfl_down_sync", value, emu::within(lane, lane + by, width));
}
template <class T> EMU_RUNTIME T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = emu::LANES) {
  const unsigned lane = emu::own_lane();
  return emu::shuffle(mask, "__shfl_up_sync", value, emu::within(lane, lane - by, width));
}
EMU_RUNTIME unsigned __ballot_sync(unsigned mask, int yes) { return emu::vote(mask, "__ballot_sync", yes); }
EMU_RUNTIME int __any_sync(unsigned mask, int yes) { return emu::vote(mask, "__any_sync", yes) != 0; }
EMU_RUNTIME int __all_sync(unsigned mask, int yes) { return emu::vote(mask, "__all_sync", yes) == mask; }

EMU_RUNTIME void mma_bf16(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  emu::Mma m = {c, a, b0, b1};
  emu::collective(emu::ALL, "mma", &m, emu::mma_warp);
}
EMU_RUNTIME void load_matrix_x4(unsigned (&r)[4], const void* row) {
  emu::check_row(row);
  EMU_ACCESS(row, 16, emu::READ);
  emu::Rows m = {static_cast<const unsigned short*>(row), r};
  emu::collective(emu::ALL, "ldmatrix", &m, emu::load_matrix_warp<false>);
}
EMU_RUNTIME void load_matrix_x4_transposed(unsigned (&r)[4], const void* row) {
  emu::check_row(row);
  EMU_ACCESS(row, 16, emu::READ);
  emu::Rows m = {static_cast<const unsigned short*>(row), r};
  emu::collective(emu::ALL, "ldmatrix.trans", &m, emu::load_matrix_warp<true>);
}
