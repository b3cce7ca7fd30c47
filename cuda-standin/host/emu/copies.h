// Asynchronous copies to shared memory (cp.async): done as late as they may be, or at once, by seed.
#pragma once
#include "checks.h"

namespace emu {
constexpr unsigned COPY_BYTES = 16;

EMU_RUNTIME void perform(Copy& c) {
  if (c.done) return;
  if (c.valid) memcpy(c.to, c.from, COPY_BYTES);
  else memset(c.to, 0, COPY_BYTES);
  c.done = true;
}
EMU_RUNTIME void copy_async(void* to, const void* from, bool valid, const void* pc) {
  if ((reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from)) % COPY_BYTES) fail("cp.async of an address that is not aligned to 16 bytes");
  check(to, COPY_BYTES, BEGIN, pc);
  if (valid) check(from, COPY_BYTES, READ, pc);
  if (self->copies == self->capacity) {
    self->capacity = 2 * self->capacity + 64;
    self->copy = static_cast<Copy*>(realloc(self->copy, self->capacity * sizeof(Copy)));
  }
  Copy& c = self->copy[self->copies++] = {to, from, valid, false, self->group};
  if (!block->late_copies) perform(c);
}
EMU_RUNTIME void copy_wait(unsigned pending, const void* pc) {
  unsigned kept = 0;
  for (unsigned i = 0; i < self->copies; ++i) {
    Copy c = self->copy[i];
    if (c.group + pending >= self->group) self->copy[kept++] = c;
    else {
      check(c.to, COPY_BYTES, WRITE, pc);
      perform(c);
      note_written(c.to, COPY_BYTES);
    }
  }
  self->copies = kept;
}
}  // namespace emu

EMU_RUNTIME void copy_async_16(void* shared, const void* global, bool valid) { emu::copy_async(shared, global, valid, __builtin_return_address(0)); }
EMU_RUNTIME void copy_async_commit() { ++emu::self->group; }
template <int Pending> EMU_RUNTIME void copy_async_wait() { emu::copy_wait(Pending, __builtin_return_address(0)); }
