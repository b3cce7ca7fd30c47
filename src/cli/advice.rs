//! What to do after a run has stopped early.

use super::{
    Failure,
    session::{Saved, Session},
    stop::Stop,
};
use crate::checkpoint::set_aside;

impl Session {
    /// The error, with advice on how to continue.
    pub fn explain(&mut self, stop: Stop) -> Failure {
        Failure::new(match stop {
            Stop::Failed(message) => format!("{message}\n{}", self.after_failure()),
            Stop::Lost(message) => format!("{message}\n{}", self.whereabouts()),
            Stop::Diverged(step, message) => format!("{message}\n{}", self.after_divergence(step)),
        })
    }

    fn after_failure(&self) -> String {
        match self.saved.newest {
            0 => "no step has been checkpointed yet; --resume starts over".into(),
            step => format!("{}; --resume continues from there", self.intact(step)),
        }
    }

    fn intact(&self, step: u64) -> String {
        format!("the checkpoint of step {step} in `{}` is intact", self.folder.checkpoints().display())
    }

    fn whereabouts(&self) -> String {
        match (self.folder.whereabouts(), self.saved.newest) {
            (None, _) => "the run stops, and everything it saved went with the folder".into(),
            (Some(_), 0) => "the run stops; no step had been checkpointed yet".into(),
            (Some(place), step) => format!(
                "the run stops; the checkpoint of step {step} is in `{}`, and --resume --out {} continues from there",
                place.join("checkpoints").display(),
                place.display()
            ),
        }
    }

    /// Advice after `step` has diverged. A checkpoint that diverges at once is set aside.
    fn after_divergence(&mut self, step: u64) -> String {
        let Saved { newest, proven, .. } = self.saved;
        let mut advice = match step {
            0 => "if a lower learning rate or a longer warm-up does not help, it is not the training that is at fault".to_owned(),
            _ => "the training has diverged: a lower learning rate helps, or a longer warm-up".to_owned(),
        };
        if newest != proven {
            // No step from it has succeeded, and the next attempt would fail in the same way.
            advice += &match set_aside(&self.folder.checkpoints(), newest) {
                Ok(place) => {
                    format!(
                        "\nthe step after the checkpoint of step {newest} diverges; that checkpoint is now `{}`",
                        place.display()
                    )
                }
                Err(e) => format!(
                    "\nthe step after the checkpoint of step {newest} diverges; remove that checkpoint, since {e}"
                ),
            };
            self.saved.newest = proven;
        }
        let sets: Vec<String> = self.rates.iter().map(|rate| format!(" --set {rate}=LOWER")).collect();
        let again = format!("--resume{} --accept-changes", sets.concat());
        advice += &match proven {
            0 => format!("\nno earlier step has been checkpointed: {again} starts over"),
            good => format!("\n{}: {again} continues from there", self.intact(good)),
        };
        if proven == step && step > 0 {
            advice += &format!(
                "; if it diverges at any rate, remove `step-{step}` to continue from the checkpoint before it"
            );
        }
        advice
    }
}
