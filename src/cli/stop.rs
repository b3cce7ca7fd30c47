//! Why a run stops before its end, and how that is to be followed up.

use super::{
    Failure,
    session::{Saved, Session},
};
use crate::checkpoint::set_aside;

/// Why a run cannot go on.
pub(super) enum Stop {
    /// Something failed.
    Failed(String),
    /// What is trained is out of range, as this step has shown.
    Diverged(u64, String),
    /// The folder is not where it was.
    Lost(String),
}

impl Stop {
    pub fn failed(e: impl std::fmt::Display) -> Self {
        Self::Failed(e.to_string())
    }

    /// A step has left something that may not be written.
    pub fn spoilt(step: u64, what: &str) -> Self {
        Self::Diverged(step, format!("step {step}: after its update {what}, which is not written"))
    }
}

impl Session {
    /// How a run that has stopped is to be followed up.
    pub fn explain(&mut self, stop: Stop) -> Failure {
        Failure::new(match stop {
            Stop::Failed(message) => format!("{message}\n{}", self.after_failure()),
            Stop::Lost(message) => format!("{message}\n{}", self.whereabouts()),
            Stop::Diverged(step, message) => format!("{message}\n{}", self.after_divergence(step)),
        })
    }

    fn after_failure(&self) -> String {
        match self.saved.newest {
            0 => "no step is in a checkpoint yet; --resume begins again".into(),
            step => format!("{}; --resume goes on from there", self.whole(step)),
        }
    }

    fn whole(&self, step: u64) -> String {
        format!("the checkpoint of step {step} in `{}` is whole", self.folder.checkpoints().display())
    }

    fn whereabouts(&self) -> String {
        match (self.folder.whereabouts(), self.saved.newest) {
            (None, _) => "what was saved went with it; the run stops".into(),
            (Some(_), 0) => "no step is in a checkpoint yet; the run stops".into(),
            (Some(place), step) => format!(
                "the run stops; the checkpoint of step {step} is in `{}`, and --resume --out {} goes on from there",
                place.join("checkpoints").display(),
                place.display()
            ),
        }
    }

    /// What is good after `step` has shown that the training has diverged.
    fn after_divergence(&mut self, step: u64) -> String {
        let Saved { newest, proven, .. } = self.saved;
        let mut advice =
            "the training has diverged: a lower learning rate helps, or a longer warm-up".to_owned();
        if newest != proven {
            // No step has been made from it, and the first one would fail again.
            advice += &match set_aside(&self.folder.checkpoints(), newest) {
                Ok(place) => {
                    format!(
                        "\nthe checkpoint of step {newest} diverges at once; it is now `{}`",
                        place.display()
                    )
                }
                Err(e) => format!("\nthe checkpoint of step {newest} diverges at once; remove it, since {e}"),
            };
            self.saved.newest = proven;
        }
        let sets: Vec<String> = self.rates.iter().map(|rate| format!(" --set {rate}=LOWER")).collect();
        let again = format!("--resume{} --accept-changes", sets.concat());
        advice += &match proven {
            0 => format!("\nno step before is in a checkpoint: {again} begins again"),
            good => format!("\n{}: {again} goes on from there", self.whole(good)),
        };
        if proven == step && step > 0 {
            advice += &format!(
                "; if it diverges whatever the rate, remove `step-{step}` to go on from the one before"
            );
        }
        advice
    }
}
