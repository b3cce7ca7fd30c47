//! The `run` section of a graph file.

use crate::plan::MOST_LANES;

prefgraph_ops::settings! {
    /// Settings of a run: the `run` field of a graph file.
    pub struct RunSettings {
        /// Steps until the run is complete.
        pub steps: u64 = 100,
        /// Seed of all random numbers.
        pub seed: u64 = 0,
        /// Steps from one checkpoint to the next; 0 counts none.
        pub checkpoint_every: u64 = 50,
        /// Minutes from one checkpoint to the next, at most: what a crash can cost; 0 counts none.
        pub checkpoint_minutes: f64 = 15.0,
        /// Write `adapter.safetensors` with every checkpoint, too; at the end and on interruption it is written in any case.
        pub checkpoint_adapter: bool = true,
        /// Checkpoints that are kept, at least 1; older ones are removed.
        pub keep_checkpoints: usize = 3,
        /// Steps by which nodes that read no carried state may run ahead; the data of networks on a GPU are made one step further ahead.
        pub ahead: usize = 1,
        /// Lanes, i.e. nodes that run at the same time; 0 chooses.
        pub lanes: usize = 0,
        /// Worker threads of the kernels; 0 is one a core.
        pub threads: usize = 0,
        /// Where networks run: `cpu`, or a GPU such as `cuda:0`.
        pub device: String = "cpu".to_owned(),
        /// Steps from one line on the terminal to the next, where there is no progress bar; 0 is as 1.
        pub log_every: u64 = 1,
    }
}

/// The most steps that a run may be ahead: every one of them holds its values.
const MOST_AHEAD: usize = 1024;

/// The name of the processor.
pub(crate) const CPU: &str = "cpu";
/// What a device may be.
pub(crate) const DEVICES: &str = "the devices are cpu, and cuda:0, cuda:1 and so on";

/// The number of the GPU of this name; none of another device.
pub(crate) fn gpu_number(device: &str) -> Option<usize> {
    let number = device.strip_prefix("cuda:")?;
    number.parse().ok().filter(|n: &usize| n.to_string() == number)
}

/// Is it the name of a device, whether or not that is there?
pub(crate) fn is_device(name: &str) -> bool {
    name == CPU || gpu_number(name).is_some()
}

impl RunSettings {
    /// The name of a setting that no run can have, and what it may be.
    pub(super) fn fault(&self) -> Option<(&'static str, String)> {
        let minutes = self.checkpoint_minutes;
        let (name, accepted) = if self.steps == 0 {
            ("steps", "a run has at least 1 step".to_owned())
        } else if !(minutes >= 0.0 && minutes.is_finite()) {
            ("checkpoint_minutes", "0 or a positive number of minutes is needed".to_owned())
        } else if self.keep_checkpoints == 0 {
            ("keep_checkpoints", "at least 1 is kept, or a run could not go on".to_owned())
        } else if !is_device(&self.device) {
            ("device", DEVICES.to_owned())
        } else if self.lanes > MOST_LANES {
            ("lanes", format!("at most {MOST_LANES} nodes can run at the same time; 0 chooses"))
        } else if self.ahead > MOST_AHEAD {
            (
                "ahead",
                format!(
                    "at most {MOST_AHEAD} steps can be made ahead; 1 or 2 are enough to hide the reading of data"
                ),
            )
        } else {
            return None;
        };
        Some((name, accepted))
    }
}

prefgraph_ops::settings! {
    /// Settings of the cache: the `cache` field of a graph file.
    pub struct CacheSettings {
        /// Folder of the cache; it may serve any number of graphs at once.
        pub path: prefgraph_ops::DataPath = prefgraph_ops::DataPath::default(),
        /// Nodes whose outputs are kept there; none is no cache.
        pub nodes: Vec<String> = Vec::new(),
    }
}

/// Run settings that change how a run goes, but no bit of what it computes.
pub(crate) const FREE: [&str; 9] = [
    "steps",
    "checkpoint_every",
    "checkpoint_minutes",
    "checkpoint_adapter",
    "keep_checkpoints",
    "ahead",
    "lanes",
    "threads",
    "log_every",
];
