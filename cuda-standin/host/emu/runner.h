// The runner of blocks.
//
// The threads of a block are fibers on one OS thread, in a ring. A fiber leaves the processor only where it waits: at
// __syncthreads and at operations of a whole warp. So one block is deterministic, and a barrier costs one switch (some ns) a
// thread. Where nobody can go on any more, the kernel stops with a sentence that says so.
#pragma once
#include <sys/mman.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "numbers.h"

// The runner's own functions are not instrumented. With checks they are not inlined either: a return address names the kernel's line.
#ifdef EMU_CHECK
#define EMU_RUNTIME __attribute__((no_sanitize("thread"), noinline, unused))
#else
#define EMU_RUNTIME __attribute__((unused)) inline
#endif

namespace emu {

// ---- shared with the stand-in (src/kernels/mod.rs, src/checker/access.rs): keep in step ----
enum Kind : unsigned { READ, WRITE, ATOMIC, BEGIN };  // BEGIN: an asynchronous copy will write
struct Request {
  const void* at;
  unsigned bytes, kind, block, thread, epoch, warp_epoch;
  const void* shared;
  size_t shared_bytes;
  const void* pc;
};
using Access = int (*)(const Request*);
struct Launch {
  dim3 grid, block;
  unsigned shared_bytes, first_block, blocks, seed;
  void** parameters;
  Access access;  // null without checks
  char* message;  // MESSAGE bytes, for what went wrong
};
struct Kernel {
  const char* name;
  int (*run)(const Launch*);
  void (*call)(void**);
  unsigned parameters, max_threads;
  const unsigned* sizes;
};
constexpr size_t MESSAGE = 256;
enum End : int { DONE, FAILED, FOREIGN };  // FOREIGN: the checker refused an access
// --------------------------------------------------------------------------------------------

constexpr unsigned MAX_THREADS = 1024, LANES = 32, MAX_WARPS = MAX_THREADS / LANES, ALL = 0xffffffffu;
constexpr unsigned WARPGROUP = 4 * LANES, MAX_WARPGROUPS = MAX_THREADS / WARPGROUP, MAX_SUMS = 8;
constexpr size_t LINE = 64;
constexpr size_t STACK = 48 * 1024 + 17 * LINE;  // the odd lines keep the stacks of a block out of one cache set
constexpr unsigned SPARE_STACKS = 16;            // below the others: what overflows the lowest one spoils nobody's memory
constexpr unsigned char UNDEFINED = 0xff;        // NaN
constexpr uint64_t CANARY = 0x5ca1ab1e0ddba11ull;

struct Copy {
  void* to;
  const void* from;
  bool valid, done;
  unsigned group;
};

struct Fiber {  // at the top of its own stack
  void* sp;
  Fiber *next, *previous;            // all threads of the block
  Fiber *warp_next, *warp_previous;  // those of the warp
  char* low;
  dim3 index;
  unsigned linear, group;  // group: commit groups of asynchronous copies
  unsigned copies, capacity;
  Copy* copy;
  unsigned fences;  // fence.proxy.async so far
};
struct Group {
  unsigned mask, arrived, generation;
  const char* what;
  void* slot[LANES];
};
struct Warp {
  Group group[LANES];
  unsigned open, epoch;  // open: the groups that wait for lanes
};

// Products of a warpgroup (wgmma.h): those under way, and sums of theirs.
struct Warpgroup {
  void* slot[WARPGROUP];
  const char* what;
  unsigned arrived, generation, group, count;
  bool begun;  // wgmma.fence since the last wait
  struct Product* products;
  struct Sums* sums[MAX_SUMS];
  unsigned under_way[MAX_SUMS];  // products of each
};
// Sixteen bytes of shared memory: who wrote last, and the fence of that thread which lets products see it. 0: nobody.
struct Written { unsigned thread, fence; };

struct Block {
  const Launch* launch;
  void (*call)(void**);
  dim3 index;
  unsigned linear, threads, live, arrived, generation, idle, epoch;
  End end;
  bool late_copies, late_products;
  char *stacks, *shared;
  Written* written;
  size_t shared_room;
  void* caller;
  Fiber* fiber[MAX_THREADS];
  Warp warp[MAX_WARPS];
  Warpgroup warpgroup[MAX_WARPGROUPS];
};

static thread_local Block* block;
static thread_local Fiber* self;

// Saves the registers that a call keeps, and goes on where another fiber left.
extern "C" void emu_switch(void** save, void* load);
asm(R"(
.text
.local emu_switch
.type emu_switch,@function
emu_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  popq %rcx
  jmp *%rcx
)");

// The kernel stops here: its fibers are abandoned (kernels have no destructors).
[[noreturn]] EMU_RUNTIME void fail(const char* what, End end = FAILED) {
  if (block->end == DONE) snprintf(block->launch->message, MESSAGE, "block %u, thread %u: %s", block->linear, self->linear, what);
  block->end = end;
  void* nowhere;
  emu_switch(&nowhere, block->caller);
  __builtin_unreachable();
}

EMU_RUNTIME void check_stack() {
  if (*reinterpret_cast<uint64_t*>(self->low) != CANARY) fail("the stack of a thread is full: 48 KiB of local variables");
}

// Lets another fiber run. A ring that goes round without anybody coming further is stuck.
EMU_RUNTIME void leave(Fiber* to) {
  if (++block->idle > 64 * block->threads + 64) fail("threads wait for each other: a barrier or a warp-wide operation that not all reach");
  check_stack();
  Fiber* from = self;
  self = to;
  if (to != from) emu_switch(&from->sp, to->sp);
}

EMU_RUNTIME void release_barrier() {
#ifdef EMU_CHECK
  if (block->live < block->threads) fail("__syncthreads that threads which have ended did not reach");
#endif
  block->arrived = 0;
  block->idle = 0;
  ++block->generation;
  ++block->epoch;
}

EMU_RUNTIME void barrier() {
  const unsigned generation = block->generation;
  if (++block->arrived == block->live) release_barrier();
  else
    while (block->generation == generation) leave(self->next);
}

[[noreturn]] EMU_RUNTIME void fiber_main() {
  block->call(block->launch->parameters);
  check_stack();
  if (block->warpgroup[self->linear / WARPGROUP].count) fail("a thread ends before products that it asked for");
  Fiber* from = self;
  block->idle = 0;
  if (--block->live > 0 && block->arrived == block->live) release_barrier();
  void* nowhere;
  if (block->live == 0) emu_switch(&nowhere, block->caller);
  from->next->previous = from->previous;
  from->previous->next = from->next;
  from->warp_next->warp_previous = from->warp_previous;
  from->warp_previous->warp_next = from->warp_next;
  self = from->next;
  emu_switch(&nowhere, self->sp);
  __builtin_unreachable();
}

// Order of the threads in the ring: forwards, backwards, or warps backwards with lanes forwards, by seed.
EMU_RUNTIME unsigned place(unsigned i, unsigned n, unsigned seed) {
  switch (seed % 3) {
    case 0: return i;
    case 1: return n - 1 - i;
    default: return n % LANES ? (i + n / 2) % n : (n / LANES - 1 - i / LANES) * LANES + i % LANES;
  }
}

EMU_RUNTIME dim3 position(unsigned linear, dim3 size) { return {linear % size.x, linear / size.x % size.y, linear / size.x / size.y}; }

EMU_RUNTIME Block* block_of_this_thread() {
  static thread_local Block* mine = nullptr;
  if (mine) return mine;
  mine = static_cast<Block*>(calloc(1, sizeof(Block)));
  constexpr size_t bytes = STACK * (MAX_THREADS + SPARE_STACKS);
  void* stacks = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (!mine || stacks == MAP_FAILED) abort();
  madvise(stacks, bytes, MADV_HUGEPAGE);
  mine->stacks = static_cast<char*>(stacks) + SPARE_STACKS * STACK;
  return mine;
}

// A fiber that will run the kernel from its start.
EMU_RUNTIME Fiber* prepare(Block& b, unsigned linear) {
  char* low = b.stacks + linear * STACK;
  Fiber* f = reinterpret_cast<Fiber*>(low + STACK - (sizeof(Fiber) + LINE - 1) / LINE * LINE);
  if (!b.fiber[linear]) {
    b.fiber[linear] = f;
    memset(f, 0, sizeof *f);
    *reinterpret_cast<uint64_t*>(low) = CANARY;
  }
  f->low = low, f->linear = linear, f->group = f->copies = f->fences = 0;
  f->index = position(linear, b.launch->block);
  void** top = reinterpret_cast<void**>(reinterpret_cast<uintptr_t>(f) & ~uintptr_t(15));
  top[-1] = nullptr;
  top[-2] = reinterpret_cast<void*>(&fiber_main);
  f->sp = top - 8;  // six registers that a switch restores, and where it goes
  return f;
}

// Puts the fibers of a block into their rings; the first one.
EMU_RUNTIME Fiber* prepare_all(Block& b) {
  const unsigned warps = (b.threads + LANES - 1) / LANES;
  Fiber *first = nullptr, *last = nullptr, *warp_first[MAX_WARPS] = {}, *warp_last[MAX_WARPS] = {};
  for (unsigned i = 0; i < b.threads; ++i) {
    Fiber* f = prepare(b, place(i, b.threads, b.launch->seed));
    if (last) last->next = f, f->previous = last;
    else first = f;
    last = f;
    const unsigned w = f->linear / LANES;
    if (warp_last[w]) warp_last[w]->warp_next = f, f->warp_previous = warp_last[w];
    else warp_first[w] = f;
    warp_last[w] = f;
  }
  last->next = first, first->previous = last;
  for (unsigned w = 0; w < warps; ++w) {
    warp_last[w]->warp_next = warp_first[w], warp_first[w]->warp_previous = warp_last[w];
    b.warp[w].epoch = 1, b.warp[w].open = 0;
    for (Group& g : b.warp[w].group) g.arrived = 0;
  }
  for (Warpgroup& g : b.warpgroup) {
    g.arrived = g.group = g.count = 0, g.begun = false;
    memset(g.under_way, 0, sizeof g.under_way);
  }
  return first;
}

EMU_RUNTIME int run(const Launch* launch, void (*call)(void**)) {
  Block& b = *(block = block_of_this_thread());
  b.launch = launch, b.call = call, b.end = DONE;
  b.late_copies = launch->seed % 2 == 0;
  b.late_products = launch->seed % 4 < 2;
  b.threads = launch->block.x * launch->block.y * launch->block.z;
  if (b.shared_room < launch->shared_bytes) {
    free(b.shared);
    free(b.written);
    b.shared_room = (launch->shared_bytes + 127) / 128 * 128;
    b.shared = static_cast<char*>(aligned_alloc(128, b.shared_room));
    b.written = static_cast<Written*>(malloc(b.shared_room / 16 * sizeof(Written)));
  }
  for (unsigned i = launch->first_block; i < launch->first_block + launch->blocks && b.end == DONE; ++i) {
    b.linear = i;
    b.index = position(i, launch->grid);
    b.live = b.threads, b.arrived = b.generation = b.idle = 0;
    b.epoch = 1;
    if (launch->shared_bytes) {
      memset(b.shared, UNDEFINED, launch->shared_bytes);
      memset(b.written, 0, (launch->shared_bytes + 15) / 16 * sizeof(Written));
    }
    self = prepare_all(b);
    emu_switch(&b.caller, self->sp);
  }
  // What an overflown stack left of its neighbour is not used again.
  if (b.end != DONE) memset(b.fiber, 0, sizeof b.fiber);
  block = nullptr;
  return b.end;
}

// ---- the list of kernels ----
template <auto F, class... A, size_t... I> EMU_RUNTIME void call_with(void (*)(A...), void** at, std::index_sequence<I...>) { F(*static_cast<A*>(at[I])...); }
template <class... A> constexpr unsigned count_of(void (*)(A...)) { return sizeof...(A); }
template <class... A> struct Sizes { static constexpr unsigned value[sizeof...(A) + 1] = {sizeof(A)..., 0}; };
template <class... A> constexpr const unsigned* sizes_of(void (*)(A...)) { return Sizes<A...>::value; }
template <class... A> constexpr auto indices_of(void (*)(A...)) { return std::index_sequence_for<A...>{}; }
template <auto F> EMU_RUNTIME void call(void** at) { call_with<F>(F, at, indices_of(F)); }
template <auto F> EMU_RUNTIME int run_kernel(const Launch* launch) { return run(launch, &call<F>); }

}  // namespace emu

#define EMU_KERNEL(f, max_threads) ::emu::Kernel{#f, &::emu::run_kernel<&f>, &::emu::call<&f>, ::emu::count_of(&f), max_threads, ::emu::sizes_of(&f)}
