//! The settings, read once from the environment. `README.md` has the same table.

use std::{env, path::PathBuf, process, str::FromStr, sync::OnceLock};

/// Memory of a device where `STANDIN_MEMORY` says nothing.
const DEFAULT_MEMORY: usize = 8 << 30;
/// What `cuDriverGetVersion` says where `STANDIN_DRIVER` says nothing: CUDA 13.0.
pub const DEFAULT_DRIVER: i32 = 13_000;
/// Compute capability 9.0 where `STANDIN_CAPABILITY` says nothing.
const DEFAULT_CAPABILITY: u32 = 90;

/// When queued work runs.
#[derive(Clone, Copy, PartialEq)]
pub enum Order {
    /// Inside the call that queues it.
    Eager,
    /// Only when something waits for it, and no more than it needs.
    Latest,
    /// At random calls, in a random order of those that the events allow.
    Random(u64),
}

pub struct Settings {
    pub order: Order,
    pub check: bool,
    /// Chooses the order of a block's threads, and when asynchronous copies land.
    pub seed: u32,
    /// OS threads that run the blocks of a launch. One with checks: the checker sees one access after the other.
    pub threads: usize,
    pub cache: PathBuf,
    pub memory: usize,
    /// Bytes of it that other processes hold.
    pub held: usize,
    /// Where processes that share the devices tell each other what they hold.
    pub shared: Option<PathBuf>,
    pub driver: i32,
    pub devices: usize,
    pub lose_after: Option<u64>,
    pub capability: u32,
    /// The real NVRTC, where sources go through it first.
    pub nvrtc: Option<PathBuf>,
}

pub fn settings() -> &'static Settings {
    static SETTINGS: OnceLock<Settings> = OnceLock::new();
    SETTINGS.get_or_init(read)
}

fn read() -> Settings {
    let check = text("STANDIN_CHECK").is_some_and(|value| value != "0");
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    Settings {
        order: match text("STANDIN_ORDER").as_deref() {
            None | Some("eager") => Order::Eager,
            Some("latest") => Order::Latest,
            Some(other) => match other.strip_prefix("random:").and_then(|seed| seed.parse().ok()) {
                Some(seed) => Order::Random(seed),
                None => refuse("STANDIN_ORDER", other, "eager, latest or random:SEED"),
            },
        },
        check,
        seed: number("STANDIN_SEED").unwrap_or(0),
        threads: if check { 1 } else { number("STANDIN_THREADS").unwrap_or(cores).max(1) },
        cache: text("STANDIN_CACHE").map_or_else(|| env::temp_dir().join("standin-kernels"), PathBuf::from),
        memory: number("STANDIN_MEMORY").unwrap_or(DEFAULT_MEMORY),
        held: number("STANDIN_HELD").unwrap_or(0),
        shared: text("STANDIN_SHARED").map(PathBuf::from),
        driver: number("STANDIN_DRIVER").unwrap_or(DEFAULT_DRIVER),
        devices: number("STANDIN_DEVICES").unwrap_or(1),
        lose_after: number("STANDIN_LOSE_AFTER"),
        capability: number("STANDIN_CAPABILITY").unwrap_or(DEFAULT_CAPABILITY),
        nvrtc: text("STANDIN_NVRTC").map(PathBuf::from),
    }
}

fn text(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}

fn number<T: FromStr>(name: &str) -> Option<T> {
    text(name).map(|value| value.parse().unwrap_or_else(|_| refuse(name, &value, "a whole number")))
}

/// A setting with a slip would test something else than was meant.
fn refuse(name: &str, value: &str, wanted: &str) -> ! {
    eprintln!("standin: {name} is `{value}`, and not {wanted}");
    process::exit(2)
}
