//! Steps at which a set is measured that is read batch by batch.

use crate::operator::OpError;

/// Rows of steps: `over` of them up to every `every`th, counted from the first, and up to the last of the run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Due {
    /// 0 is only at the end of the run.
    pub every: u64,
    /// Steps of a row.
    pub over: u64,
    /// Steps of the run; 0 is unknown.
    pub steps: u64,
}

/// `every 50 steps`, `at every step`.
pub(super) fn often(every: u64) -> String {
    if every == 1 { "at every step".into() } else { format!("every {every} steps") }
}

impl Due {
    /// Refuse what is never due, or always.
    pub fn check(&self, done: &str) -> Result<(), OpError> {
        let Self { every, over, steps } = *self;
        if over == 0 {
            return Err(OpError::new("over: at least 1 is needed"));
        }
        if every == 0 && steps == 0 {
            return Err(OpError::new(format!(
                "nothing would be {done}: set `every`, or `steps` to those of the run"
            )));
        }
        if every > 0 && over > every {
            return Err(OpError::new(format!(
                "over {over} steps in a row, {}: that is all the time; use fewer samples (e.g. `first` of their pairs) or a larger \
                 `every`",
                often(every)
            )));
        }
        Ok(())
    }

    /// Is the step in a row?
    pub fn at(&self, step: u64) -> bool {
        let Self { every, over, steps } = *self;
        let done = step + 1;
        let at_end = done <= steps && steps - done < over;
        at_end || (every > 0 && (every - done % every) % every < over)
    }

    /// Is the step the last of a row?
    pub fn ends(&self, step: u64) -> bool {
        let done = step + 1;
        done == self.steps || (self.every > 0 && done.is_multiple_of(self.every))
    }
}
