//! Levels of noise: equal parts of the scale of times.

use crate::operators::noise::DDPM_STEPS;
use crate::ports::Process;

/// Levels that a scale may be cut into: names of edges would collide beyond.
pub const MOST: usize = 100;

/// The level of a time: its number, from 0 for the least noise. Of two levels, an edge belongs to the one with more noise; the last
/// level ends with the scale. A time beside the scale counts as the end that it is near to.
pub fn level_of(process: Process, levels: usize, time: f32) -> usize {
    let end = if process.is_discrete() { DDPM_STEPS as f64 } else { 1.0 };
    let at = (f64::from(time) * levels as f64 / end).floor();
    (at.max(0.0) as usize).min(levels.saturating_sub(1))
}

/// The name of a level, with its edges: `sigma_0.25-0.5` holds a sigma from 0.25 to below 0.5, `timestep_250-499` the whole timesteps from 250 to 499.
pub fn name_of(process: Process, levels: usize, level: usize) -> String {
    let name = process.time_name();
    if process.is_discrete() {
        let first = |level: usize| (level * DDPM_STEPS).div_ceil(levels);
        format!("{name}_{}-{}", first(level), first(level + 1) - 1)
    } else {
        let edge = |level: usize| (level as f64 / levels as f64 * 1e4).round() / 1e4;
        format!("{name}_{}-{}", edge(level), edge(level + 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_in_one_level_and_its_name_says_so() {
        for levels in 1..=MOST {
            for timestep in 0..DDPM_STEPS as u16 {
                let level = level_of(Process::DdpmEps, levels, f32::from(timestep));
                let name = name_of(Process::DdpmEps, levels, level);
                let (first, last) = name.strip_prefix("timestep_").unwrap().split_once('-').unwrap();
                let (first, last): (u16, u16) = (first.parse().unwrap(), last.parse().unwrap());
                assert!((first..=last).contains(&timestep), "{timestep} in {name}");
            }
        }
        let sigma = |sigma| name_of(Process::Flow, 4, level_of(Process::Flow, 4, sigma));
        assert_eq!(sigma(0.0), "sigma_0-0.25");
        assert_eq!(sigma(0.25_f32.next_down()), "sigma_0-0.25");
        assert_eq!(sigma(0.25), "sigma_0.25-0.5");
        assert_eq!(sigma(0.75), "sigma_0.75-1");
        assert_eq!(sigma(1.0), "sigma_0.75-1", "the last level ends with the scale");
        assert_eq!(name_of(Process::Flow, 3, 1), "sigma_0.3333-0.6667");
    }

    #[test]
    fn names_of_levels_differ_however_many_there_are() {
        for process in [Process::Flow, Process::DdpmV] {
            let names: std::collections::BTreeSet<String> =
                (0..MOST).map(|level| name_of(process, MOST, level)).collect();
            assert_eq!(names.len(), MOST);
        }
    }
}
