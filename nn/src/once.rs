//! Values that are made when they are first asked for, and whose making can fail.

use std::sync::{Mutex, OnceLock, PoisonError};

/// What the cell holds; where it holds nothing yet, what `make` gives.
///
/// Nothing is locked while the value is made. Making one may use the pool, and a thread of the pool that waits there may take up
/// other work, which comes here, too: inside `get_or_init` it would wait for itself. Two that come at once make the value twice,
/// and both get the one that was ready first.
///
/// # Errors
/// That of `make`; the cell then stays empty.
pub fn get_or_try_init<T, E>(cell: &OnceLock<T>, make: impl FnOnce() -> Result<T, E>) -> Result<&T, E> {
    if let Some(value) = cell.get() {
        return Ok(value);
    }
    let value = make()?;
    Ok(cell.get_or_init(|| value))
}

/// A value that is made once only: who asks while it is made waits for it.
///
/// For what is too large to be made twice. It holds a lock while the value is made, and so is never asked for on a thread of the
/// pool: one that waits for the pool while it makes the value may take up other work, which would wait for the lock on the same
/// thread for ever.
#[derive(Debug)]
pub(crate) struct MadeOnce<T> {
    value: OnceLock<T>,
    making: Mutex<()>,
}

impl<T> MadeOnce<T> {
    /// Nothing is made yet.
    pub const fn new() -> Self {
        Self { value: OnceLock::new(), making: Mutex::new(()) }
    }

    /// The value; where there is none yet, what `make` gives.
    ///
    /// # Errors
    /// That of `make`; who asks next makes it anew.
    pub fn get_or_try_init<E>(&self, make: impl FnOnce() -> Result<T, E>) -> Result<&T, E> {
        if let Some(value) = self.value.get() {
            return Ok(value);
        }
        let _one_at_a_time = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        get_or_try_init(&self.value, make)
    }
}
