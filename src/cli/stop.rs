//! Reasons for a run to stop early.

/// Why a run cannot continue.
pub(super) enum Stop {
    /// Something failed.
    Failed(String),
    /// Training has diverged, as this step has shown.
    Diverged(u64, String),
    /// The run's folder was moved, removed or replaced.
    Lost(String),
}

impl Stop {
    pub fn failed(e: impl std::fmt::Display) -> Self {
        Self::Failed(e.to_string())
    }

    /// The state after a step must not be written.
    pub fn spoilt(step: u64, what: &str) -> Self {
        Self::Diverged(step, format!("step {step}: after the update, {what}; nothing of it is written"))
    }
}
