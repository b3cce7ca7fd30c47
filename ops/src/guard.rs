//! A panic in an operator becomes an error with a message, and prints nothing on the way.

use std::{
    any::Any,
    cell::Cell,
    panic::{self, AssertUnwindSafe},
    sync::{
        Once,
        atomic::{AtomicUsize, Ordering},
    },
};

use prefgraph_nn::cpu::is_worker;

thread_local! {
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// How many bodies are running now, on all threads.
static RUNNING: AtomicUsize = AtomicUsize::new(0);

/// Run `body`; a panic inside, or in work that it gave to a pool of threads, is returned as its message.
///
/// # Errors
/// If `body` panics.
pub fn catch<R>(body: impl FnOnce() -> R) -> Result<R, String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            // A worker panics for somebody who waits for it and gets the panic; that is a guarded body, if there is one.
            let guarded = GUARDED.get() || (is_worker() && RUNNING.load(Ordering::SeqCst) > 0);
            if !guarded {
                before(info);
            }
        }));
    });
    RUNNING.fetch_add(1, Ordering::SeqCst);
    let outer = GUARDED.replace(true);
    let result = panic::catch_unwind(AssertUnwindSafe(body));
    GUARDED.set(outer);
    RUNNING.fetch_sub(1, Ordering::SeqCst);
    result.map_err(|payload| message(&*payload))
}

/// The same for a body that gives reasons: a panic is one that says whose fault it is.
///
/// # Errors
/// If `body` fails or panics.
pub(crate) fn reason<T>(body: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    catch(body).unwrap_or_else(|panic| Err(format!("internal error, please report it: {panic}")))
}

fn message(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("(no message)").to_owned()
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_panic_is_its_message() {
        assert_eq!(super::catch(|| 7), Ok(7));
        assert_eq!(super::catch(|| panic!("boom {}", 1)).unwrap_err(), "boom 1");
    }
}
