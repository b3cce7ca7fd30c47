//! How long a run will take, and when it will have ended.

use std::{
    collections::HashMap,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use crate::{
    graph::Graph,
    plan::{Plan, due},
};

/// Seconds by the rates of a plan.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Forecast {
    /// Of a step at which nothing is due that is drawn or measured every so many steps.
    pub step: f64,
    /// Of all steps, with what is due at some of them.
    pub run: f64,
}

/// Looks at so many nodes at most; the rest of a run is taken to be like its beginning.
const LOOKED_AT: usize = 200_000;

impl Forecast {
    /// `None` where the plan has no times.
    pub(super) fn of(graph: &Graph, plan: &Plan, steps: u64) -> Option<Self> {
        let looked_at = steps.min((LOOKED_AT / graph.len().max(1)).max(1) as u64);
        // Few different sets of nodes are due, and a step is played through for each.
        let mut known: HashMap<Vec<bool>, f64> = HashMap::new();
        let mut seconds = |step| {
            let due = due(graph, step, []);
            if let Some(&seconds) = known.get(&due) {
                return Some(seconds);
            }
            let seconds = plan.seconds_of(&due)?;
            known.insert(due, seconds);
            Some(seconds)
        };
        let all = (0..looked_at).map(&mut seconds).sum::<Option<f64>>()?;
        let run = all * steps as f64 / looked_at.max(1) as f64;
        Some(Self { step: seconds(1)?, run })
    }
}

/// When something ends that takes so many seconds from now on, in UTC; `None` beyond all calendars.
pub(super) fn end(seconds: f64) -> Option<String> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
    let end = now.checked_add(Duration::try_from_secs_f64(seconds).ok()?)?;
    // A date in a hundred thousand years is no news.
    (end.as_secs() < 3_000_000_000_000).then(|| date(end.as_secs()))
}

/// Seconds since 1970 as a date and a time, by the Gregorian calendar.
fn date(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Years begin in March, so that the leap day is their last; eras are 400 years.
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year + era * 400 + u64::from(month <= 2);
    format!("{year}-{month:02}-{day:02} {:02}:{:02} UTC", rest / 3600, rest / 60 % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (seconds, expected) in [
            (0, "1970-01-01 00:00 UTC"),
            (951_782_399, "2000-02-28 23:59 UTC"),
            (951_782_400, "2000-02-29 00:00 UTC"),
            (1_709_164_800, "2024-02-29 00:00 UTC"),
            (1_767_225_599, "2025-12-31 23:59 UTC"),
            (4_107_542_400, "2100-03-01 00:00 UTC"),
        ] {
            assert_eq!(date(seconds), expected);
        }
        assert!(end(1e30).is_none() && end(f64::NAN).is_none() && end(60.0).is_some());
    }
}
