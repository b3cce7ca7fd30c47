//! Values that are made when they are first asked for, and whose making can fail.

use std::sync::OnceLock;

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
