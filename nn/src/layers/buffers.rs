//! Working memory that is used again: a buffer goes back to its pool when it is dropped.

use std::{
    collections::BTreeMap,
    ops::{Deref, DerefMut},
    sync::{Arc, Mutex, PoisonError},
};

/// A pool of buffers. Cloning gives another handle on the same pool.
#[derive(Clone, Debug, Default)]
pub struct Buffers(Arc<Mutex<Free>>);

#[derive(Debug, Default)]
struct Free {
    by_length: BTreeMap<usize, Vec<Vec<f32>>>,
    idle: usize,
    lent: usize,
    most_lent: usize,
}

/// A run of `f32` values that is lent by a [`Buffers`].
#[derive(Debug)]
pub struct Buffer {
    values: Vec<f32>,
    len: usize,
    pool: Buffers,
}

impl Buffers {
    /// A buffer whose values are unspecified: whoever takes it writes before reading.
    pub fn take(&self, len: usize) -> Buffer {
        let mut free = self.lock();
        // A buffer of up to twice the length will do: it is better than asking the system for fresh pages.
        let found = free.by_length.range_mut(len..=2 * len).find_map(|(_, list)| list.pop());
        let mut values = match found {
            Some(values) => {
                free.idle -= values.len();
                values
            }
            None => vec![0.0; len],
        };
        free.lent += values.len();
        free.most_lent = free.most_lent.max(free.lent);
        drop(free);
        if cfg!(debug_assertions) {
            // So that a value read before it is written shows.
            values.fill(f32::NAN);
        }
        Buffer { values, len, pool: self.clone() }
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

    fn give_back(&self, values: Vec<f32>) {
        let mut free = self.lock();
        free.lent -= values.len();
        free.idle += values.len();
        free.by_length.entry(values.len()).or_default().push(values);
        // What idles never exceeds what was once needed at the same time, so that passes of many sizes in turn do
        // not add up.
        while free.idle + free.lent > free.most_lent {
            let Some(mut longest) = free.by_length.last_entry() else { break };
            match longest.get_mut().pop() {
                Some(values) => free.idle -= values.len(),
                None => drop(longest.remove()),
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
        &self.values[..self.len]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.values[..self.len]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.pool.give_back(std::mem::take(&mut self.values));
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
    fn idle_memory_never_exceeds_what_was_in_use_at_one_time() {
        let pool = Buffers::default();
        for len in [1000, 10, 3000, 100, 20] {
            drop(pool.take(len));
        }
        assert!(pool.lock().idle <= 3000, "{:?}", pool.lock().idle);
    }

    #[test]
    fn zeros_are_zero_also_in_used_memory() {
        let pool = Buffers::default();
        pool.take(8).fill(1.0);
        assert_eq!(*pool.zeros(8), [0.0; 8]);
    }
}
