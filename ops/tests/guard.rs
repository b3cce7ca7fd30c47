//! A guarded panic prints nothing, on whatever thread it happens.

use std::{
    panic,
    sync::atomic::{AtomicUsize, Ordering},
};

use prefgraph_ops::guard;

/// Panics that were printed.
static PRINTED: AtomicUsize = AtomicUsize::new(0);

#[test]
fn a_panic_of_a_worker_is_printed_only_where_nobody_guards_it() {
    panic::set_hook(Box::new(|_| {
        PRINTED.fetch_add(1, Ordering::SeqCst);
    }));
    let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().expect("threads");
    let work = || pool.install(|| panic!("in the pool"));
    assert_eq!(guard::catch(work), Err::<(), _>("in the pool".to_owned()));
    assert_eq!(guard::catch(|| panic!("here")), Err::<(), _>("here".to_owned()));
    assert_eq!(PRINTED.load(Ordering::SeqCst), 0);
    assert!(panic::catch_unwind(panic::AssertUnwindSafe(work)).is_err());
    assert_eq!(PRINTED.load(Ordering::SeqCst), 1);
}
