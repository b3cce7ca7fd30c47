//! The blocks of a launch, spread over OS threads: blocks are independent.

use std::{
    ffi::{CStr, c_char},
    sync::{Mutex, OnceLock, mpsc},
};

use super::{Kernel, Launch, crash::Running};
use crate::settings::settings;

/// Room for what went wrong in a kernel, as `host/emu/runner.h` has it.
const MESSAGE_BYTES: usize = 256;
/// What a kernel's runner answers when the checker refused an access.
const FOREIGN: i32 = 2;
/// Fewer blocks than this are not worth another thread.
const BLOCKS_PER_THREAD: u32 = 4;

/// Why a kernel stopped.
pub struct Stop {
    /// It touched memory that is not its own.
    pub foreign: bool,
    pub why: String,
}

/// Some blocks of a launch, and where the answer goes.
struct Share {
    kernel: &'static Kernel,
    launch: Launch,
    answer: mpsc::Sender<Result<(), Stop>>,
}
// SAFETY: the launch points to parameters that outlive the run, which waits for all shares; kernels only read them.
unsafe impl Send for Share {}

/// Threads that wait for shares, one fewer than the settings allow: the caller works too.
fn helpers() -> &'static [Mutex<mpsc::Sender<Share>>] {
    static HELPERS: OnceLock<Vec<Mutex<mpsc::Sender<Share>>>> = OnceLock::new();
    HELPERS.get_or_init(|| {
        let start = |_| {
            let (send, shares) = mpsc::channel::<Share>();
            std::thread::spawn(move || {
                for Share { kernel, launch, answer } in shares {
                    // Nobody listens where the caller's own share has panicked.
                    let _ = answer.send(run_share(kernel, launch));
                }
            });
            Mutex::new(send)
        };
        (1..settings().threads).map(start).collect()
    })
}

fn run_share(kernel: &Kernel, mut launch: Launch) -> Result<(), Stop> {
    let mut message = [0 as c_char; MESSAGE_BYTES];
    launch.message = message.as_mut_ptr();
    let _running = Running::new(kernel.name);
    // SAFETY: the runner of `host/emu/runner.h`, with a launch that fits the kernel's parameters.
    match unsafe { (kernel.run)(&launch) } {
        0 => Ok(()),
        code => {
            // SAFETY: the runner ends what it wrote with a zero.
            let why = unsafe { CStr::from_ptr(message.as_ptr()) }.to_string_lossy().into_owned();
            Err(Stop { foreign: code == FOREIGN, why })
        }
    }
}

/// Runs all blocks of a launch on up to `threads` OS threads.
pub fn run(kernel: &'static Kernel, launch: Launch, threads: usize) -> Result<(), Stop> {
    let blocks = launch.grid.0 * launch.grid.1 * launch.grid.2;
    let parts = (threads as u32).min(blocks.div_ceil(BLOCKS_PER_THREAD)).max(1);
    let border = |part: u32| (u64::from(blocks) * u64::from(part) / u64::from(parts)) as u32;
    let share = |part: u32| {
        let first_block = border(part);
        Launch { first_block, blocks: border(part + 1) - first_block, ..launch }
    };
    let (answer, answers) = mpsc::channel();
    for (part, helper) in (1..parts).zip(helpers()) {
        let work = Share { kernel, launch: share(part), answer: answer.clone() };
        let helper = helper.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        helper.send(work).map_err(|_| Stop { foreign: false, why: "a helper thread has ended".into() })?;
    }
    drop(answer);
    let own = run_share(kernel, share(0));
    // All shares must have ended: they use the caller's parameters.
    let others: Vec<Result<(), Stop>> = answers.iter().collect();
    others.into_iter().fold(own, Result::and)
}
