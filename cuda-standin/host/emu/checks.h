// Each access of a kernel goes to the stand-in, which knows allocations, and orders accesses by barriers, events and streams.
//
// g++ -fsanitize=thread calls a function before each access. Those functions are here, in the place of libtsan's.
#pragma once
#include "runner.h"

namespace emu {
// What was written to shared memory is there for products after the thread's next fence.
EMU_RUNTIME void note_written(const void* p, unsigned bytes) {
  const char* at = static_cast<const char*>(p);
  if (at < block->shared || at + bytes > block->shared + block->launch->shared_bytes) return;
  for (size_t i = (at - block->shared) / 16, last = (at + bytes - 1 - block->shared) / 16; i <= last; ++i)
    block->written[i] = {self->linear, self->fences + 1};
}
}  // namespace emu

#ifdef EMU_CHECK
namespace emu {
extern "C" const char __ehdr_start __attribute__((visibility("hidden")));
extern "C" char _end __attribute__((visibility("hidden")));

// By a thread of the block, which is not always the one that runs.
EMU_RUNTIME void check(const void* p, unsigned bytes, Kind kind, const void* pc, unsigned thread) {
  const Request request = {p, bytes, kind, block->linear, thread, block->epoch, block->warp[thread / LANES].epoch,
                           block->shared, block->launch->shared_bytes, pc};
  if (block->launch->access(&request)) fail("access to memory that is not the kernel's", FOREIGN);
}
EMU_RUNTIME void check(const void* p, unsigned bytes, Kind kind, const void* pc) {
  const char* at = static_cast<const char*>(p);
  if (block == nullptr || (at >= self->low && at < self->low + STACK)) return;  // its own stack
  if (at >= &__ehdr_start && at < &_end) return;                                // constants
  check(p, bytes, kind, pc, self->linear);
  if (kind == WRITE) note_written(p, bytes);
}
}  // namespace emu

#define EMU_CALLBACK extern "C" __attribute__((visibility("hidden"), no_sanitize("thread"))) void
#define EMU_READ_AND_WRITE(read, write, bytes)                                                            \
  EMU_CALLBACK read##bytes(void* p) { ::emu::check(p, bytes, ::emu::READ, __builtin_return_address(0)); } \
  EMU_CALLBACK write##bytes(void* p) { ::emu::check(p, bytes, ::emu::WRITE, __builtin_return_address(0)); }
#define EMU_ACCESSES(bytes) EMU_READ_AND_WRITE(__tsan_read, __tsan_write, bytes)
#define EMU_UNALIGNED_ACCESSES(bytes) EMU_READ_AND_WRITE(__tsan_unaligned_read, __tsan_unaligned_write, bytes)
EMU_ACCESSES(1)
EMU_ACCESSES(2)
EMU_ACCESSES(4)
EMU_ACCESSES(8)
EMU_ACCESSES(16)
EMU_UNALIGNED_ACCESSES(2)
EMU_UNALIGNED_ACCESSES(4)
EMU_UNALIGNED_ACCESSES(8)
EMU_UNALIGNED_ACCESSES(16)
EMU_CALLBACK __tsan_read_range(void* p, unsigned long n) { ::emu::check(p, n, ::emu::READ, __builtin_return_address(0)); }
EMU_CALLBACK __tsan_write_range(void* p, unsigned long n) { ::emu::check(p, n, ::emu::WRITE, __builtin_return_address(0)); }
EMU_CALLBACK __tsan_func_entry(void*) {}
EMU_CALLBACK __tsan_func_exit() {}
EMU_CALLBACK __tsan_init() {}

// g++ -fsanitize=alignment calls this where an address is not what its type needs: on the device such a vector is an error.
struct EmuMisaligned { const char* file; unsigned line; };  // the first of what g++ says
EMU_CALLBACK __ubsan_handle_type_mismatch_v1(EmuMisaligned* place, unsigned long) {
  if (emu::block == nullptr) return;
  static thread_local char what[emu::MESSAGE];
  snprintf(what, sizeof what, "an access at %s:%u to an address that is not aligned as its type needs", place->file, place->line);
  emu::fail(what);
}
#else
namespace emu {
inline void check(const void*, unsigned, Kind, const void*) {}
inline void check(const void*, unsigned, Kind, const void*, unsigned) {}
}  // namespace emu
#endif

#define EMU_ACCESS(p, bytes, kind) ::emu::check(p, bytes, kind, __builtin_return_address(0))
