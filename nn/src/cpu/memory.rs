//! Memory for kernels: aligned to cache lines, and on huge pages if it is large.
//!
//! A vector that straddles two cache lines costs two reads, and activations of a few megabytes span more pages than a
//! processor's TLB holds: a step takes about 5 % longer on ordinary memory.

use std::{
    fmt,
    ops::{Deref, DerefMut},
};

#[cfg(target_os = "linux")]
use memmap2::{Advice, MmapMut};

/// Bytes of a cache line.
const LINE: usize = 64;
/// Bytes of a huge page on x86-64 and on 64-bit Arm with pages of 4 kB.
#[cfg(target_os = "linux")]
const HUGE: usize = 2 << 20;

/// A run of values that starts on a cache line.
pub struct Memory {
    place: Place,
    len: usize,
}

enum Place {
    /// The values from this one on.
    Heap(Vec<f32>, usize),
    /// The bytes from this one on.
    #[cfg(target_os = "linux")]
    Mapped(MmapMut, usize),
}

impl Memory {
    /// This many zeros.
    pub fn zeros(len: usize) -> Self {
        #[cfg(target_os = "linux")]
        if let Some(place) = mapped(len * size_of::<f32>()) {
            return Self { place, len };
        }
        let values = vec![0.0; len + LINE / size_of::<f32>()];
        let first = values.as_ptr().align_offset(LINE);
        Self { place: Place::Heap(values, first), len }
    }
}

impl Deref for Memory {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match &self.place {
            Place::Heap(values, first) => &values[*first..][..self.len],
            #[cfg(target_os = "linux")]
            Place::Mapped(map, first) => bytemuck::cast_slice(&map[*first..][..self.len * size_of::<f32>()]),
        }
    }
}

impl DerefMut for Memory {
    fn deref_mut(&mut self) -> &mut [f32] {
        match &mut self.place {
            Place::Heap(values, first) => &mut values[*first..][..self.len],
            #[cfg(target_os = "linux")]
            Place::Mapped(map, first) => {
                bytemuck::cast_slice_mut(&mut map[*first..][..self.len * size_of::<f32>()])
            }
        }
    }
}

/// Memory that starts on a huge page, if it fills one. What is left at its end has common pages, so that no byte more is
/// held than was asked for.
#[cfg(target_os = "linux")]
fn mapped(bytes: usize) -> Option<Place> {
    let whole = bytes / HUGE * HUGE;
    if whole == 0 {
        return None;
    }
    // Where the system maps nothing more, the heap reports it.
    let map = MmapMut::map_anon(bytes + HUGE).ok()?;
    let first = map.as_ptr().align_offset(HUGE);
    // It is advice: a system without huge pages gives common ones.
    let _ = map.advise_range(Advice::HugePage, first, whole);
    Some(Place::Mapped(map, first))
}

/// None, without asking for any.
impl Default for Memory {
    fn default() -> Self {
        Self { place: Place::Heap(Vec::new(), 0), len: 0 }
    }
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Memory of {} values", self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_of_every_size_starts_on_a_cache_line_and_is_zero() {
        for len in [0, 1, 15, 16, 17, 1 << 19, (1 << 19) - 1, (1 << 20) + 5] {
            let mut memory = Memory::zeros(len);
            assert_eq!(memory.len(), len);
            assert!(len == 0 || memory.as_ptr().align_offset(LINE) == 0, "{len}");
            assert!(memory.iter().all(|v| *v == 0.0));
            memory.fill(1.0);
            assert!(memory.iter().all(|v| *v == 1.0));
        }
    }
}
