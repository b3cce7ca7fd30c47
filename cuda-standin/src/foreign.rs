//! Pointers that callers pass, each read or written in one place.
//!
//! A driver must believe its caller: a pointer that is not null points to what the function's documentation asks for, and stays
//! there during the call. All `SAFETY` arguments here rest on that.

use std::ffi::{CStr, c_char, c_void};

use crate::codes::{Answer, Code};

/// Where the caller wants a result.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct Out<T>(*mut T);

impl<T> Out<T> {
    pub fn set(self, value: T) -> Answer {
        if self.0.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        // SAFETY: a place for a result, by the head of this module.
        unsafe { self.0.write(value) };
        Ok(())
    }

    /// Changes what is there already. `missing`: the answer where there is no place.
    pub fn change<E>(self, missing: E, change: impl FnOnce(&mut T) -> Result<(), E>) -> Result<(), E> {
        if self.0.is_null() {
            return Err(missing);
        }
        // SAFETY: a value of the caller's, by the head of this module, which nobody else uses during the call.
        change(unsafe { &mut *self.0 })
    }

    /// Several results, one after the other.
    pub fn fill(self, values: &[T])
    where
        T: Copy,
    {
        // SAFETY: the caller said that there is room for as many.
        unsafe { std::ptr::copy_nonoverlapping(values.as_ptr(), self.0, values.len()) };
    }
}

impl Out<c_void> {
    /// A result whose type another parameter says.
    pub fn cast<T>(self) -> Out<T> {
        Out(self.0.cast())
    }
}

impl Out<c_char> {
    /// Text with its zero, cut to `room` bytes.
    pub fn text(self, text: &str, room: usize) -> Answer {
        let kept = text.len().min(room.checked_sub(1).ok_or(Code::INVALID_VALUE)?);
        let bytes: Vec<c_char> = text.bytes().take(kept).chain([0]).map(|byte| byte as c_char).collect();
        self.fill(&bytes);
        Ok(())
    }
}

/// What the caller hands over.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct In<T>(*const T);

impl In<c_void> {
    /// A value whose type another parameter says.
    pub fn cast<T>(self) -> In<T> {
        In(self.0.cast())
    }
    pub fn address(self) -> usize {
        self.0 as usize
    }
}

impl In<u8> {
    pub fn address(self) -> usize {
        self.0 as usize
    }
    pub fn bytes(self, count: usize) -> Vec<u8> {
        if count == 0 {
            return Vec::new();
        }
        // SAFETY: as many bytes, by the head of this module.
        unsafe { std::slice::from_raw_parts(self.0, count) }.to_vec()
    }
}

impl In<u64> {
    /// `bytes` bytes, in words so that any type is aligned there.
    pub fn words(self, bytes: usize) -> Vec<u64> {
        let mut words = vec![0u64; bytes.div_ceil(size_of::<u64>())];
        // SAFETY: the caller's value has as many bytes, by the head of this module, and so have the words.
        unsafe { std::ptr::copy_nonoverlapping(self.0.cast::<u8>(), words.as_mut_ptr().cast::<u8>(), bytes) };
        words
    }
}

impl<T: Copy> In<T> {
    pub fn is_null(self) -> bool {
        self.0.is_null()
    }
    pub fn get(self) -> Result<T, Code> {
        if self.0.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        // SAFETY: a value, by the head of this module; packed structures need no alignment.
        Ok(unsafe { self.0.read_unaligned() })
    }
    /// `count` values, one after the other.
    pub fn list(self, count: usize) -> Vec<T> {
        // SAFETY: the caller said how many there are.
        (0..count).map(|index| unsafe { self.0.add(index).read_unaligned() }).collect()
    }
}

impl In<c_char> {
    /// Text that ends with a zero.
    pub fn text(self) -> Result<String, Code> {
        if self.0.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        // SAFETY: a C string, by the head of this module.
        let text = unsafe { CStr::from_ptr(self.0) };
        text.to_str().map(str::to_owned).map_err(|_| Code::INVALID_VALUE)
    }
}
