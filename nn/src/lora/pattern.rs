//! Which linears a list of patterns names.
//!
//! A pattern names every linear whose path it is, or ends with at a dot, as PEFT's `target_modules` does: `attn.to_q`
//! names `transformer_blocks.0.attn.to_q`. In it `*` stands for any run of characters: `attn.to_*`,
//! `single_transformer_blocks.*.attn.to_*`. No pattern at all names every linear but the modulations, which are made
//! from the time alone: published adapters leave them out. Convolutions are named by patterns whose last part begins with `conv`: `conv1`,
//! `*.downsamplers.0.conv`, `*.conv*`.

use std::collections::BTreeSet;

use super::adapter::AdapterLayout;
use crate::{
    error::{Error, Result},
    linears::{LinearLayout, Linears},
};

/// What one pattern named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PatternMatch {
    /// As it was given; without patterns a kind of linear, as `graph-run plan` lists them.
    pub pattern: String,
    /// Number of linears it names.
    pub linears: usize,
}

impl AdapterLayout {
    /// The layout of an adapter for the linears that any pattern names, in the order of the model, and what each
    /// pattern named. Without patterns every linear but the modulations is adapted.
    ///
    /// # Errors
    /// If a pattern names nothing (the nearest names are given); if the rank is zero or wider than a named linear; if
    /// alpha is not a positive number.
    pub fn matching<S: AsRef<str>>(
        linears: &Linears,
        patterns: &[S],
        rank: usize,
        alpha: f32,
    ) -> Result<(Self, Vec<PatternMatch>)> {
        if rank == 0 || !alpha.is_finite() || alpha <= 0.0 {
            return Err(Error::Setting(format!(
                "rank {rank} and alpha {alpha}: expected a rank of at least 1 and a positive alpha"
            )));
        }
        let mut matches = Vec::new();
        for pattern in patterns.iter().map(AsRef::as_ref) {
            let count = linears.iter().filter(|l| names_linear(pattern, l)).count();
            if count == 0 {
                return Err(Error::Setting(format!(
                    "target `{pattern}` names no linear of the model; nearest: {}",
                    nearest_kinds(pattern, linears)
                )));
            }
            matches.push(PatternMatch { pattern: pattern.into(), linears: count });
        }
        let named = |l: &&LinearLayout| match patterns {
            [] => l.window.is_none() && !is_modulation(&l.name),
            patterns => patterns.iter().any(|p| names_linear(p.as_ref(), l)),
        };
        let modules: Vec<LinearLayout> = linears.iter().filter(named).cloned().collect();
        if patterns.is_empty() {
            let kinds = count_kinds(modules.iter().map(|m| kind(&m.name)));
            matches = kinds.into_iter().map(|(pattern, linears)| PatternMatch { pattern, linears }).collect();
        }
        if let Some(narrow) = modules.iter().find(|m| rank > m.inputs.min(m.outputs)) {
            return Err(Error::Setting(format!(
                "rank {rank} is more than `{}` can use: it has {} inputs and {} outputs",
                narrow.name, narrow.inputs, narrow.outputs
            )));
        }
        let ip_adapter = linears.ip_adapter.clone();
        Ok((Self { ip_adapter, ..Self::of_factors(linears.names, modules, rank, alpha) }, matches))
    }

    /// The same with the linears that any of these patterns names trained whole, and what each pattern named.
    ///
    /// # Errors
    /// If a pattern names nothing (the nearest names are given), a linear that has factors, or one that no IP-Adapter's file holds.
    pub fn with_whole<S: AsRef<str>>(
        mut self,
        linears: &Linears,
        patterns: &[S],
    ) -> Result<(Self, Vec<PatternMatch>)> {
        let mut matches = Vec::new();
        for pattern in patterns.iter().map(AsRef::as_ref) {
            let named: Vec<&LinearLayout> = linears.iter().filter(|l| names_linear(pattern, l)).collect();
            let refused = |why: String| Err(Error::Setting(format!("whole: `{pattern}` {why}")));
            if named.is_empty() && linears.ip_adapter.is_none() {
                return refused("names no linear of the model, which has no IP-Adapter".into());
            }
            if named.is_empty() {
                let nearest = nearest_kinds(pattern, linears);
                return refused(format!("names no linear of the model; nearest: {nearest}"));
            }
            let in_file = |l: &LinearLayout| {
                linears.ip_adapter.as_ref().is_some_and(|file| file.places.contains_key(&l.name))
            };
            if let Some(other) = named.iter().find(|l| !in_file(l)) {
                return refused(format!(
                    "names `{}`, which is no linear of an IP-Adapter: only its file can hold what is trained whole; name such \
                     linears among the targets",
                    other.name
                ));
            }
            if let Some(both) = named.iter().find(|l| self.modules.contains(l)) {
                return refused(format!(
                    "names `{}`, which the targets name, too: it is trained whole or by factors",
                    both.name
                ));
            }
            matches.push(PatternMatch { pattern: pattern.into(), linears: named.len() });
        }
        let named = |l: &&LinearLayout| patterns.iter().any(|p| names_linear(p.as_ref(), l));
        self.whole = linears.iter().filter(named).cloned().collect();
        self.ip_adapter.clone_from(&linears.ip_adapter);
        Ok((self, matches))
    }
}

/// Does the pattern name this linear? A convolution is named only by a pattern whose last part begins with `conv`: patterns of linears
/// mean what they mean where there are convolutions, too.
fn names_linear(pattern: &str, linear: &LinearLayout) -> bool {
    let of_convs = pattern.rsplit('.').next().is_some_and(|last| last.starts_with("conv"));
    (linear.window.is_none() || of_convs) && names(pattern, &linear.name)
}

/// Does the pattern name this path?
fn names(pattern: &str, path: &str) -> bool {
    let mut ends = std::iter::once(0).chain(path.match_indices('.').map(|(at, _)| at + 1));
    !pattern.is_empty() && ends.any(|at| glob(pattern, &path[at..]))
}

/// A modulation is made from the time alone.
fn is_modulation(path: &str) -> bool {
    path.split('.').any(|part| part.starts_with("norm"))
}

/// How many there are of each kind, in the order in which kinds first occur.
pub(super) fn count_kinds<'a>(kinds: impl Iterator<Item = &'a str>) -> Vec<(String, usize)> {
    let mut counts: Vec<(String, usize)> = Vec::new();
    for kind in kinds {
        match counts.iter_mut().find(|(k, _)| k == kind) {
            Some((_, count)) => *count += 1,
            None => counts.push((kind.into(), 1)),
        }
    }
    counts
}

fn glob(pattern: &str, path: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = parts.next().and_then(|first| path.strip_prefix(first)) else { return false };
    let mut parts: Vec<&str> = parts.collect();
    let Some(last) = parts.pop() else { return rest.is_empty() };
    // Taking each part where it first occurs leaves the most room for those that follow.
    for part in parts {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

/// The kinds of linears nearest to a pattern: paths without the block.
fn nearest_kinds(pattern: &str, linears: &[LinearLayout]) -> String {
    const SHOWN: usize = 5;
    let kinds: BTreeSet<&str> = linears.iter().map(|l| kind(&l.name)).collect();
    let mut kinds: Vec<(usize, &str)> =
        kinds.into_iter().map(|k| (strsim::osa_distance(kind(pattern), k), k)).collect();
    kinds.sort_unstable();
    let shown: Vec<String> = kinds.iter().take(SHOWN).map(|(_, k)| format!("`{k}`")).collect();
    shown.join(", ")
}

/// What follows the block's number in a path: what a linear is called in every block.
pub(super) fn kind(path: &str) -> &str {
    let number = |part: &str| part == "*" || (!part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()));
    let mut at = 0;
    for part in path.split('.') {
        at += part.len() + 1;
        if number(part) && at < path.len() {
            return &path[at..];
        }
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::naming::Names;

    static NAMES: Names = Names {
        network: "a network",
        short: "network",
        part: "transformer",
        kohya: ("", ""),
        stacks: &[],
        outside: &[],
        pairs: &[],
    };

    fn linears() -> Linears {
        let all = [
            "transformer_blocks.0.norm1.linear",
            "transformer_blocks.0.attn.to_q",
            "transformer_blocks.0.attn.to_out.0",
            "transformer_blocks.1.attn.to_q",
            "single_transformer_blocks.0.attn.to_q",
            "single_transformer_blocks.0.norm.linear",
        ]
        .map(|name| LinearLayout { name: name.into(), inputs: 8, outputs: 8, window: None });
        Linears::new(&NAMES, all.into())
    }

    fn matched(patterns: &[&str]) -> Vec<String> {
        let (layout, _) = AdapterLayout::matching(&linears(), patterns, 2, 2.0).unwrap();
        layout.modules.into_iter().map(|m| m.name).collect()
    }

    #[test]
    fn a_plain_pattern_names_whole_ends_of_paths() {
        assert_eq!(matched(&["to_q"]).len(), 3);
        assert_eq!(matched(&["norm.linear"]), ["single_transformer_blocks.0.norm.linear"]);
        assert_eq!(matched(&["transformer_blocks.0.attn.to_q"]), ["transformer_blocks.0.attn.to_q"]);
    }

    #[test]
    fn a_star_stands_for_any_run_of_characters_from_a_dot_on() {
        assert_eq!(matched(&["transformer_blocks.*.attn.*"]).len(), 3);
        assert_eq!(matched(&["single_*"]).len(), 2);
        assert_eq!(matched(&["*to_*"]).len(), 4);
        assert_eq!(matched(&["attn.to_*"]).len(), 4);
        assert_eq!(matched(&["transformer_blocks.0.*"]).len(), 3);
        assert!(!glob("a*ab", "ab"));
    }

    #[test]
    fn the_end_of_a_name_that_is_no_whole_part_is_not_named() {
        assert!(!names("to_q", "transformer_blocks.0.attn.not_to_q"));
        assert!(!names("attn.to", "transformer_blocks.0.attn.to_q"));
        assert!(!names("transformer_blocks.0.*", "single_transformer_blocks.0.attn.to_q"));
        assert!(!names("", "to_q"));
    }

    #[test]
    fn without_patterns_all_but_the_modulations_are_adapted_and_counted_by_kind() {
        let (layout, report) = AdapterLayout::matching(&linears(), &[] as &[&str], 2, 2.0).unwrap();
        assert_eq!(layout.modules.len(), 4);
        let counts: Vec<_> = report.iter().map(|m| (m.pattern.as_str(), m.linears)).collect();
        assert_eq!(counts, [("attn.to_q", 3), ("attn.to_out.0", 1)]);
    }

    #[test]
    fn linears_named_twice_are_adapted_once_in_the_order_of_the_model() {
        let patterns = ["attn.to_out.0", "transformer_blocks.*.attn.*", "to_q"];
        assert_eq!(
            matched(&patterns),
            [
                "transformer_blocks.0.attn.to_q",
                "transformer_blocks.0.attn.to_out.0",
                "transformer_blocks.1.attn.to_q",
                "single_transformer_blocks.0.attn.to_q"
            ]
        );
        let (_, report) = AdapterLayout::matching(&linears(), &patterns, 2, 2.0).unwrap();
        assert_eq!(report.iter().map(|m| m.linears).collect::<Vec<_>>(), [1, 3, 3]);
    }

    #[test]
    fn a_pattern_that_names_nothing_is_answered_with_the_nearest_kinds() {
        let error =
            AdapterLayout::matching(&linears(), &["to_q", "atn.to_q"], 2, 2.0).unwrap_err().to_string();
        assert!(
            error.contains("`atn.to_q` names no linear") && error.contains("nearest: `attn.to_q`"),
            "{error}"
        );
    }

    #[test]
    fn ranks_and_alphas_that_make_no_sense_are_refused() {
        for (rank, alpha) in [(0, 1.0), (4, 0.0), (4, f32::NAN), (9, 1.0)] {
            assert!(AdapterLayout::matching(&linears(), &["to_q"], rank, alpha).is_err(), "{rank} {alpha}");
        }
    }
}
