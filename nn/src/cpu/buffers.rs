//! Pooled working memory: a buffer returns to its pool when it is dropped.

use std::{
    collections::BTreeMap,
    ops::{Deref, DerefMut},
    sync::{Arc, Mutex, PoisonError},
};

use super::Memory;

/// Values that a pool holds beyond the most that were ever lent: what is needed at one moment of a step does not fit what
/// idles then, and without some room every step would ask the system for fresh pages. 32 MB: nothing beside a large model, and
/// all that a small one needs.
const SPARE: usize = 8 << 20;

/// A pool of buffers. Cloning gives another handle on the same pool.
#[derive(Clone, Debug, Default)]
pub struct Buffers(Arc<Mutex<Free>>);

#[derive(Debug, Default)]
struct Free {
    /// No list is empty.
    by_length: BTreeMap<usize, Vec<Memory>>,
    idle: usize,
    lent: usize,
    most_lent: usize,
}

impl Free {
    fn pop(&mut self, length: usize) -> Option<Memory> {
        let list = self.by_length.get_mut(&length)?;
        let memory = list.pop();
        if list.is_empty() {
            self.by_length.remove(&length);
        }
        self.idle -= memory.as_ref().map_or(0, |m| m.len());
        memory
    }
}

/// A run of `f32` values in the host's memory.
#[derive(Clone, Debug)]
pub struct Buffer(Store);

/// Whose the memory is.
#[derive(Clone, Debug)]
enum Store {
    /// Lent by a pool.
    Lent(Lent),
    /// Shared with others, so that nothing is copied to be read.
    Shared(Arc<Vec<f32>>),
    /// The buffer's own, so that nothing is copied to be kept.
    Owned(Vec<f32>),
}

#[derive(Debug)]
struct Lent {
    memory: Memory,
    len: usize,
    pool: Buffers,
}

impl Buffer {
    /// These values, shared: they are copied only if somebody writes to the buffer.
    pub fn shared(values: Arc<Vec<f32>>) -> Self {
        Self(Store::Shared(values))
    }

    /// These values.
    pub fn owned(values: Vec<f32>) -> Self {
        Self(Store::Owned(values))
    }

    /// The values; those of an [`owned`](Self::owned) or a [`shared`](Self::shared) buffer are not copied.
    pub fn into_values(self) -> Arc<Vec<f32>> {
        match self.0 {
            Store::Owned(values) => Arc::new(values),
            Store::Shared(values) => values,
            lent => Arc::new(Self(lent).to_vec()),
        }
    }
}

impl Buffers {
    /// A buffer whose values are unspecified: whoever takes it writes before reading.
    pub fn take(&self, len: usize) -> Buffer {
        Buffer(Store::Lent(Lent { memory: self.memory(len), len, pool: self.clone() }))
    }

    fn memory(&self, len: usize) -> Memory {
        let mut free = self.lock();
        // A buffer of up to twice the length will do: it is better than asking the system for fresh pages.
        let fitting = free.by_length.range(len..=2 * len).next().map(|(length, _)| *length);
        let mut memory = fitting.and_then(|l| free.pop(l)).unwrap_or_else(|| Memory::zeros(len));
        free.lent += memory.len();
        free.most_lent = free.most_lent.max(free.lent);
        drop(free);
        if cfg!(debug_assertions) {
            // So that a value read before it is written shows.
            memory.fill(f32::NAN);
        }
        memory
    }

    /// A buffer of zeros.
    pub fn zeros(&self, len: usize) -> Buffer {
        let mut buffer = self.take(len);
        buffer.fill(0.0);
        buffer
    }

    /// The values that are lent now.
    pub fn lent(&self) -> usize {
        self.lock().lent
    }

    /// The most values that were lent at one time.
    pub fn most_lent(&self) -> usize {
        self.lock().most_lent
    }

    fn give_back(&self, memory: Memory) {
        let mut free = self.lock();
        free.lent -= memory.len();
        free.idle += memory.len();
        free.by_length.entry(memory.len()).or_default().push(memory);
        // What idles never exceeds what was once needed at the same time by more than a little, so that passes of many sizes
        // in turn do not add up.
        loop {
            let excess = (free.idle + free.lent).saturating_sub(free.most_lent + SPARE);
            // The shortest that is enough, or else the longest.
            let mut enough = free.by_length.range(excess..).chain(free.by_length.iter().next_back());
            match enough.next().map(|(length, _)| *length) {
                Some(length) if excess > 0 => drop(free.pop(length)),
                _ => break,
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Free> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Deref for Buffer {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        match &self.0 {
            Store::Lent(lent) => &lent.memory[..lent.len],
            Store::Shared(values) => values,
            Store::Owned(values) => values,
        }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        match &mut self.0 {
            Store::Lent(lent) => &mut lent.memory[..lent.len],
            Store::Shared(values) => Arc::make_mut(values).as_mut_slice(),
            Store::Owned(values) => values,
        }
    }
}

impl Clone for Lent {
    fn clone(&self) -> Self {
        let mut memory = self.pool.memory(self.len);
        memory[..self.len].copy_from_slice(&self.memory[..self.len]);
        Self { memory, len: self.len, pool: self.pool.clone() }
    }
}

impl PartialEq for Buffer {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.pool.give_back(std::mem::take(&mut self.memory));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_that_went_back_is_lent_again() {
        let pool = Buffers::default();
        let first = pool.take(100);
        let place = first.as_ptr();
        drop(first);
        let again = pool.take(60);
        assert_eq!((again.as_ptr(), again.len()), (place, 60));
        assert_eq!(pool.most_lent(), 100);
    }

    #[test]
    fn idle_memory_never_exceeds_what_was_in_use_at_one_time_by_more_than_the_spare_room() {
        let pool = Buffers::default();
        for len in [SPARE, 10, 2 * SPARE, SPARE / 2, 20] {
            drop(pool.take(len));
        }
        assert!((2 * SPARE..=3 * SPARE).contains(&pool.lock().idle), "{:?}", pool.lock().idle);
    }

    #[test]
    fn shared_values_are_read_in_place_and_copied_before_they_are_written() {
        let values = Arc::new(vec![1.0, 2.0]);
        let mut buffer = Buffer::shared(values.clone());
        assert_eq!(buffer.as_ptr(), values.as_ptr());
        buffer[0] = 3.0;
        assert_eq!((values.as_slice(), &*buffer), (&[1.0, 2.0][..], &[3.0, 2.0][..]));
    }

    #[test]
    fn owned_and_shared_values_come_back_without_a_copy() {
        let values = vec![1.0, 2.0];
        let place = values.as_ptr();
        let back = Buffer::owned(values).into_values();
        assert_eq!(back.as_ptr(), place);
        assert!(Arc::ptr_eq(&Buffer::shared(back.clone()).into_values(), &back));
        let pool = Buffers::default();
        let mut lent = pool.take(2);
        lent.copy_from_slice(&[4.0, 5.0]);
        assert_eq!(*lent.clone().into_values(), [4.0, 5.0]);
        assert_eq!(*lent.into_values(), [4.0, 5.0]);
        assert_eq!(pool.lent(), 0);
    }

    #[test]
    fn zeros_are_zero_also_in_used_memory() {
        let pool = Buffers::default();
        pool.take(8).fill(1.0);
        assert_eq!(*pool.zeros(8), [0.0; 8]);
    }
}
