//! Differences between the data and weights of today and those that a checkpoint records.

use std::collections::{BTreeSet, HashMap, HashSet};

use super::{Digest, SampleRecord, Source, Sources, Survey, survey::Contents};

/// Ids that a sentence names.
const NAMED: usize = 5;

/// How the data and weights compare.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Comparison {
    /// Settings with the same contents as before, whatever their paths.
    pub same: BTreeSet<String>,
    /// Sentences about differences, each starting with its setting.
    pub changes: Vec<String>,
}

impl Survey {
    /// Compare with what a checkpoint records, and adopt from it what need not be read again. Before each sample is read,
    /// `go_on` is called with the number read so far and the number to read; `None` if it returned false.
    pub fn compare(
        &mut self,
        old: &Sources,
        go_on: &mut dyn FnMut(usize, usize) -> bool,
    ) -> Option<Comparison> {
        let mut comparison = Comparison::default();
        let mut contents = Contents::default();
        for (key, found) in &mut self.found.0 {
            let changes = match (old.0.get(key), found) {
                // Not recorded: if the graph is another one, comparing the graphs shows it.
                (None, _) => continue,
                (Some(Source::Files(old)), Source::Files(new)) if old == new => Vec::new(),
                (Some(Source::Samples(old)), Source::Samples(new)) => {
                    let files = self.files.get(key).map_or(&[][..], Vec::as_slice);
                    let mut read =
                        |sample: usize| contents.of(files.get(sample).map_or(&[][..], Vec::as_slice));
                    samples(old, new, &mut read, go_on)?
                }
                _ => vec!["the contents differ from those that the checkpoint records".into()],
            };
            if changes.is_empty() {
                comparison.same.insert(key.clone());
            }
            comparison.changes.extend(changes.into_iter().map(|change| format!("{key}: {change}")));
        }
        Some(comparison)
    }
}

/// Differences of a data set; `read` reads the contents of a sample, by its number.
fn samples(
    old: &[SampleRecord],
    new: &mut [SampleRecord],
    read: &mut dyn FnMut(usize) -> Digest,
    go_on: &mut dyn FnMut(usize, usize) -> bool,
) -> Option<Vec<String>> {
    let before: HashMap<&str, &SampleRecord> = old.iter().map(|s| (s.id.as_str(), s)).collect();
    let touched = |s: &SampleRecord| before.get(s.id.as_str()).is_some_and(|b| b.stamp != s.stamp);
    let (mut done, all) = (0, new.iter().filter(|s| touched(s)).count());
    let (mut added, mut facts, mut files, mut unknown) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for (number, sample) in new.iter_mut().enumerate() {
        let Some(before) = before.get(sample.id.as_str()) else {
            added.push(sample.id.clone());
            continue;
        };
        if before.stamp == sample.stamp {
            sample.contents = before.contents;
        } else {
            if !go_on(done, all) {
                return None;
            }
            sample.contents = Some(read(number));
            done += 1;
        }
        if before.facts != sample.facts {
            facts.push(sample.id.clone());
        }
        if before.stamp != sample.stamp && before.contents != sample.contents {
            let known = before.contents.is_some();
            if known { &mut files } else { &mut unknown }.push(sample.id.clone());
        }
    }
    let after: HashSet<&str> = new.iter().map(|s| s.id.as_str()).collect();
    let removed: Vec<String> =
        old.iter().filter(|s| !after.contains(s.id.as_str())).map(|s| s.id.clone()).collect();
    let mut changes = Vec::new();
    let mut say = |ids: &[String], one: &str, many: &str| match ids {
        [] => {}
        [_] => changes.push(format!("1 sample {one}: {}", listed(ids))),
        _ => changes.push(format!("{} samples {many}: {}", ids.len(), listed(ids))),
    };
    say(&added, "was added", "were added");
    say(&removed, "was removed", "were removed");
    say(&facts, "has another prompt or other files", "have other prompts or other files");
    say(&files, "has other pictures or masks", "have other pictures or masks");
    let unread =
        "files of another length or time, and the checkpoint was written before their contents were read";
    say(&unknown, &format!("has {unread}"), &format!("have {unread}"));
    // With samples added or removed, the order differs anyway.
    if added.is_empty() && removed.is_empty() && !old.iter().map(|s| &s.id).eq(new.iter().map(|s| &s.id)) {
        changes.push("the samples are in another order".into());
    }
    Some(changes)
}

fn listed(ids: &[String]) -> String {
    let mut text = ids.iter().take(NAMED).map(|id| format!("`{id}`")).collect::<Vec<_>>().join(", ");
    if ids.len() > NAMED {
        text += &format!(" and {} more", ids.len() - NAMED);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(id: &str, facts: u8, stamp: u8, contents: Option<u8>) -> SampleRecord {
        let of = |byte| [byte; 16];
        SampleRecord { id: id.into(), facts: of(facts), stamp: of(stamp), contents: contents.map(of) }
    }

    fn compared(old: &[SampleRecord], new: &mut [SampleRecord], contents: u8) -> (Vec<String>, usize) {
        let mut reads = 0;
        let changes = samples(
            old,
            new,
            &mut |_| {
                reads += 1;
                [contents; 16]
            },
            &mut |_, _| true,
        );
        (changes.unwrap(), reads)
    }

    #[test]
    fn files_are_read_only_where_their_times_or_lengths_are_others() {
        let old = [record("a", 1, 1, Some(1)), record("b", 1, 1, Some(2))];
        let mut same = [record("a", 1, 1, None), record("b", 1, 1, None)];
        assert_eq!(compared(&old, &mut same, 9), (vec![], 0));
        assert_eq!(same, old, "what the checkpoint knew is taken over");
        let mut copied = [record("a", 1, 7, None), record("b", 1, 1, None)];
        assert_eq!(compared(&old, &mut copied, 1), (vec![], 1));
        let (changes, _) = compared(&old, &mut [record("a", 1, 7, None), record("b", 1, 1, None)], 5);
        assert_eq!(changes, ["1 sample has other pictures or masks: `a`"]);
        let (changes, _) = compared(&[record("a", 1, 1, None)], &mut [record("a", 1, 7, None)], 5);
        assert!(changes[0].contains("written before their contents were read: `a`"), "{changes:?}");
    }

    #[test]
    fn samples_that_come_go_change_or_move_are_named() {
        let old: Vec<_> = ["a", "b", "c", "d", "e", "f", "g", "h"].map(|id| record(id, 1, 1, None)).into();
        let (changes, _) = compared(&old, &mut [record("b", 2, 1, None), record("new", 1, 1, None)], 0);
        assert_eq!(
            changes,
            [
                "1 sample was added: `new`",
                "7 samples were removed: `a`, `c`, `d`, `e`, `f` and 2 more",
                "1 sample has another prompt or other files: `b`"
            ]
        );
        let mut turned: Vec<_> = old.iter().rev().cloned().collect();
        assert_eq!(compared(&old, &mut turned, 0).0, ["the samples are in another order"]);
    }

    #[test]
    fn whoever_is_asked_may_say_no() {
        let old = [record("a", 1, 1, Some(1))];
        let mut new = [record("a", 1, 2, None)];
        assert_eq!(samples(&old, &mut new, &mut |_| [0; 16], &mut |_, _| false), None);
    }
}
