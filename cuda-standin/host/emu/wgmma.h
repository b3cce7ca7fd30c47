// Products of a warpgroup (wgmma) of operands that matrix descriptors place in shared memory: what wgmma.cuh includes on the CPU.
//
// Results are delivered at the wait, and are not numbers until then, so that what reads or changes sums too early is wrong. Operands in
// shared memory are read at the wait or at the start, by seed. With checks their reads last from the start to the wait. A product of what
// a copy wrote (and with checks: any thread) without a fence of the proxies afterwards is refused.
//
// Descriptors are decoded as the PTX manual has them, for the 128-byte swizzle alone: start address, leading and stride offset, base
// offset 0. Addresses of shared memory begin at WINDOW, which is a multiple of 16 only.
#pragma once
#include "copies.h"
#include "warps.h"

namespace emu {
constexpr unsigned WINDOW = 1024 + 16, MAX_COLUMNS = 256, STEP = 16, TALL = 64, MAX_PRODUCTS = 128;

// The sums of some registers: where they are, and what they are once the products so far are done.
struct Sums {
  float* d[WARPGROUP];
  unsigned columns;
  float value[TALL][MAX_COLUMNS] __attribute__((aligned(32)));
};
struct Product {
  uint64_t a, b;
  bool across, more, registers, done;
  unsigned group, place;
  Sums* sums;
  unsigned left[WARPGROUP][4];
};
// What a thread says.
struct Wgmma {
  float* d;
  unsigned columns;
  bool across, more;
  const unsigned* registers;
  uint64_t a, b;
  const void* pc;
};

// ---- all threads of a warpgroup, which meet at each of its operations ----
EMU_RUNTIME void meet(const char* what, void* payload, void (*run)(Warpgroup&)) {
  if (block->threads % WARPGROUP) fail("an operation of a warpgroup, and the block is not of whole warpgroups");
  Warpgroup& g = block->warpgroup[self->linear / WARPGROUP];
  if (g.arrived == 0) g.what = what;
  if (g.what != what) fail("threads of a warpgroup meet at different operations");
  g.slot[self->linear % WARPGROUP] = payload;
  if (++g.arrived == WARPGROUP) {
    run(g);
    g.arrived = 0;
    ++g.generation;
    block->idle = 0;
    return;
  }
  const unsigned generation = g.generation;
  do leave(self->next);
  while (g.generation == generation);
}

// ---- operands in shared memory, in chunks of eight values ----
EMU_RUNTIME unsigned start_of(uint64_t d) { return (d & 0x3fff) << 4; }
EMU_RUNTIME unsigned leading_of(uint64_t d) { return (d >> 16 & 0x3fff) << 4; }
EMU_RUNTIME unsigned stride_of(uint64_t d) { return (d >> 32 & 0x3fff) << 4; }
EMU_RUNTIME void check_descriptor(uint64_t d) {
  constexpr uint64_t FIELDS = 0x3fffull | 0x3fffull << 16 | 0x3fffull << 32 | 7ull << 49 | 3ull << 62;
  if (d & ~FIELDS) fail("a matrix descriptor with bits that mean nothing");
  if (d >> 62 != 1) fail("a matrix descriptor without the 128-byte swizzle, which the stand-in does not know");
  if (d >> 49 & 7) fail("a matrix descriptor with a base offset, which the stand-in does not know");
}
EMU_RUNTIME const unsigned short* chunk_at(uint64_t d, unsigned offset) {
  const unsigned plain = start_of(d) + offset, at = (plain ^ (plain >> 7 & 7) << 4) - WINDOW;
  if (at >= block->launch->shared_bytes || at + 16 > block->launch->shared_bytes) fail("a product of what is not in shared memory");
  return reinterpret_cast<const unsigned short*>(block->shared + at);
}
// Values k = 8 half and further of row i of a matrix that lies along K.
EMU_RUNTIME const unsigned short* along_chunk(uint64_t d, unsigned i, unsigned half) {
  return chunk_at(d, i % 8 * 128 + i / 8 * stride_of(d) + half * 16);
}
// Columns 8 c and further of row k of a matrix that lies across K.
EMU_RUNTIME const unsigned short* across_chunk(uint64_t d, unsigned c, unsigned k) {
  return chunk_at(d, c % 8 * 16 + c / 8 * leading_of(d) + k % 8 * 128 + k / 8 * stride_of(d));
}

// Threads of two warps read a chunk: a write by any thread is then one by somebody else. At the start it must have been published.
EMU_RUNTIME void read_chunk(const unsigned short* chunk, bool starts, const void* pc) {
  const unsigned first = self->linear / WARPGROUP * WARPGROUP;
  check(chunk, 16, READ, pc, first);
  check(chunk, 16, READ, pc, first + LANES);
  if (!starts) return;
  const Written& w = block->written[(reinterpret_cast<const char*>(chunk) - block->shared) / 16];
  if (w.fence > block->fiber[w.thread]->fences)
    fail("a product of what was written to shared memory without fence.proxy.async afterwards by who wrote it");
}
EMU_RUNTIME void read_operands(const Product& p, bool starts, const void* pc) {
  const unsigned columns = p.sums->columns;
  for (unsigned i = 0; !p.registers && i < 2 * TALL; ++i) read_chunk(along_chunk(p.a, i / 2, i % 2), starts, pc);
  for (unsigned i = 0; i < 2 * columns; ++i)
    read_chunk(p.across ? across_chunk(p.b, i % (columns / 8), i / (columns / 8)) : along_chunk(p.b, i / 2, i % 2), starts, pc);
}

// Row and column of sum i of a thread.
EMU_RUNTIME unsigned row_of(unsigned thread, unsigned i) { return thread / LANES * 16 + i % 4 / 2 * 8 + thread % LANES / 4; }
EMU_RUNTIME unsigned column_of(unsigned thread, unsigned i) { return i / 4 * 8 + thread % 4 * 2 + i % 2; }

EMU_RUNTIME void multiply(Product& p) {
  static thread_local float a[TALL][STEP], b[STEP][MAX_COLUMNS] __attribute__((aligned(32)));
  Sums& s = *p.sums;
  for (unsigned t = 0; p.registers && t < WARPGROUP; ++t)
    for (unsigned i = 0; i < 4; ++i) {
      const unsigned row = t / LANES * 16 + i % 2 * 8 + t % LANES / 4, k = i / 2 * 8 + t % 4 * 2;
      a[row][k] = low_half(p.left[t][i]), a[row][k + 1] = high_half(p.left[t][i]);
    }
  for (unsigned i = 0; !p.registers && i < TALL; ++i)
    for (unsigned k = 0; k < STEP; ++k) a[i][k] = low_half(along_chunk(p.a, i, k / 8)[k % 8]);
  for (unsigned k = 0; k < STEP; ++k)
    for (unsigned n = 0; n < s.columns; ++n)
      b[k][n] = low_half(p.across ? across_chunk(p.b, n / 8, k)[n % 8] : along_chunk(p.b, n, k / 8)[k % 8]);
  for (unsigned i = 0; i < TALL; ++i)
    for (unsigned n = 0; n < s.columns; n += 8) {
      Row* to = reinterpret_cast<Row*>(&s.value[i][n]);
      Row sum = p.more ? *to : Row{};
      for (unsigned k = 0; k < STEP; ++k) sum = fused(a[i][k], *reinterpret_cast<const Row*>(&b[k][n]), sum);
      *to = sum;
    }
  p.done = true;
}

// The sums that these registers are, as far as products that are under way have them.
EMU_RUNTIME unsigned sums_of(Warpgroup& g, const Wgmma& first) {
  unsigned place = MAX_SUMS;
  for (unsigned i = 0; i < MAX_SUMS; ++i) {
    if (g.under_way[i] && g.sums[i]->d[0] == first.d) return i;
    if (!g.under_way[i] && place == MAX_SUMS) place = i;
  }
  if (place == MAX_SUMS) fail("more sums are under way than the stand-in knows");
  if (!g.sums[place]) g.sums[place] = static_cast<Sums*>(aligned_alloc(64, (sizeof(Sums) + 63) / 64 * 64));
  Sums& s = *g.sums[place];
  s.columns = first.columns;
  for (unsigned t = 0; t < WARPGROUP; ++t) {
    s.d[t] = static_cast<Wgmma*>(g.slot[t])->d;
    for (unsigned i = 0; i < s.columns / 2; ++i) s.value[row_of(t, i)][column_of(t, i)] = s.d[t][i];
  }
  return place;
}
EMU_RUNTIME void begin_product(Warpgroup& g) {
  const Wgmma& first = *static_cast<Wgmma*>(g.slot[0]);
  if (!g.begun) fail("wgmma without wgmma.fence since the last wait, or since the start");
  if (g.count == MAX_PRODUCTS) fail("more products are under way than the stand-in knows");
  if (!g.products) g.products = static_cast<Product*>(malloc(MAX_PRODUCTS * sizeof(Product)));
  Product& p = g.products[g.count++];
  p.a = first.a, p.b = first.b, p.across = first.across, p.more = first.more, p.registers = first.registers != nullptr;
  p.done = false, p.group = g.group, p.place = sums_of(g, first), p.sums = g.sums[p.place];
  if (p.sums->columns != first.columns) fail("sums of one width in a product of another");
  ++g.under_way[p.place];
  if (!p.registers) check_descriptor(p.a);
  check_descriptor(p.b);
  for (unsigned t = 0; t < WARPGROUP; ++t) {
    const Wgmma& w = *static_cast<Wgmma*>(g.slot[t]);
    if (w.b != p.b || (!p.registers && w.a != p.a) || w.more != p.more) fail("threads of a warpgroup disagree about a product");
    if (p.registers) memcpy(p.left[t], w.registers, sizeof p.left[t]);
    memset(w.d, UNDEFINED, first.columns / 2 * sizeof(float));
  }
  read_operands(p, true, first.pc);
  if (!block->late_products) multiply(p);
}
EMU_RUNTIME void begin_products(Warpgroup& g) { g.begun = true; }
EMU_RUNTIME void end_group(Warpgroup& g) { ++g.group; }

struct Wait { unsigned pending; const void* pc; };
EMU_RUNTIME void wait_for_products(Warpgroup& g) {
  const Wait& wait = *static_cast<Wait*>(g.slot[0]);
  unsigned kept = 0;
  for (unsigned i = 0; i < g.count; ++i) {
    Product& p = g.products[i];
    if (p.group + wait.pending >= g.group) {
      if (kept != i) memcpy(&g.products[kept], &p, sizeof p);
      ++kept;
      continue;
    }
    read_operands(p, false, wait.pc);
    if (!p.done) multiply(p);
    if (--g.under_way[p.place]) continue;
    for (unsigned t = 0; t < WARPGROUP; ++t)
      for (unsigned j = 0; j < p.sums->columns / 2; ++j) p.sums->d[t][j] = p.sums->value[row_of(t, j)][column_of(t, j)];
  }
  g.count = kept;
  g.begun = false;
}
}  // namespace emu

EMU_RUNTIME unsigned shared_address(const void* p) {
  return emu::WINDOW + static_cast<unsigned>(static_cast<const char*>(p) - emu::block->shared);
}
template <bool Across, int N> EMU_RUNTIME void wgmma(float (&d)[N][4], unsigned long long a, unsigned long long b, bool more) {
  emu::Wgmma w = {d[0], 8 * N, Across, more, nullptr, a, b, __builtin_return_address(0)};
  emu::meet("wgmma", &w, emu::begin_product);
}
template <bool Across, int N> EMU_RUNTIME void wgmma(float (&d)[N][4], const unsigned (&a)[4], unsigned long long b, bool more) {
  emu::Wgmma w = {d[0], 8 * N, Across, more, a, 0, b, __builtin_return_address(0)};
  emu::meet("wgmma", &w, emu::begin_product);
}
EMU_RUNTIME void wgmma_begin() { emu::meet("wgmma.fence", nullptr, emu::begin_products); }
EMU_RUNTIME void wgmma_commit() { emu::meet("wgmma.commit_group", nullptr, emu::end_group); }
template <int Pending> EMU_RUNTIME void wgmma_wait() {
  emu::Wait wait = {Pending, __builtin_return_address(0)};
  emu::meet("wgmma.wait_group", &wait, emu::wait_for_products);
}
EMU_RUNTIME void wgmma_publish() { ++emu::self->fences; }
