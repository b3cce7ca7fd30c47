//! Which linears of a network a list of patterns means.

use prefgraph_nn::{BackboneLayout, backbone::LinearLayout};

use crate::operator::OpError;

/// What patterns matched.
pub(super) struct Matches<'a> {
    /// Each once, in the order of the model.
    pub linears: Vec<&'a LinearLayout>,
    /// For each pattern, how many linears it matched.
    pub counts: Vec<(String, usize)>,
}

/// Does `name` end, at a dot or as a whole, in what `pattern` means?
fn fits(pattern: &str, name: &str) -> bool {
    let starts = std::iter::once(0).chain(name.match_indices('.').map(|(i, _)| i + 1));
    starts.into_iter().any(|start| glob(pattern.as_bytes(), &name.as_bytes()[start..]))
}

/// `*` stands for any run of characters.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    match pattern.split_first() {
        None => text.is_empty(),
        Some((b'*', rest)) => (0..=text.len()).any(|skip| glob(rest, &text[skip..])),
        Some((first, rest)) => text.split_first().is_some_and(|(c, text)| c == first && glob(rest, text)),
    }
}

/// A modulation is made from the time alone; published adapters leave it out.
fn is_modulation(name: &str) -> bool {
    name.split('.').any(|part| part.starts_with("norm"))
}

/// The last parts of a name after its block's number: what it is called in every block.
fn kind_of(name: &str) -> &str {
    let number = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    let mut at = 0;
    for part in name.split('.') {
        at += part.len() + 1;
        if number(part) {
            return &name[at.min(name.len())..];
        }
    }
    name
}

/// The linears that the patterns mean; without patterns, all but the modulations.
pub(super) fn matches<'a>(patterns: &[String], backbone: &'a BackboneLayout) -> Result<Matches<'a>, OpError> {
    let mut counts: Vec<(String, usize)> = patterns.iter().map(|p| (p.clone(), 0)).collect();
    let mut linears = Vec::new();
    for linear in &backbone.linears {
        let mut hit = false;
        if patterns.is_empty() && !is_modulation(&linear.name) {
            hit = true;
            let kind = kind_of(&linear.name);
            match counts.iter_mut().find(|(k, _)| k == kind) {
                Some((_, count)) => *count += 1,
                None => counts.push((kind.into(), 1)),
            }
        }
        for (pattern, count) in patterns.iter().zip(counts.iter_mut()) {
            if fits(pattern, &linear.name) {
                hit = true;
                count.1 += 1;
            }
        }
        if hit {
            linears.push(linear);
        }
    }
    let kinds = || {
        let mut kinds: Vec<&str> = backbone.linears.iter().map(|l| kind_of(&l.name)).collect();
        kinds.sort_unstable();
        kinds.dedup();
        kinds.join(", ")
    };
    if let Some((pattern, _)) = counts.iter().find(|(_, count)| *count == 0) {
        return Err(OpError::new(format!(
            "target `{pattern}` matches no linear of the network; there are {}",
            kinds()
        )));
    }
    if linears.is_empty() {
        return Err(OpError::new(format!("no linear of the network is matched; there are {}", kinds())));
    }
    Ok(Matches { linears, counts })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_is_the_end_of_a_name_at_a_dot() {
        assert!(fits("attn.to_q", "transformer_blocks.0.attn.to_q"));
        assert!(fits("proj_out", "single_transformer_blocks.3.proj_out"));
        assert!(!fits("to_q", "transformer_blocks.0.attn.not_to_q"));
        assert!(!fits("attn.to", "transformer_blocks.0.attn.to_q"));
        assert!(fits("transformer_blocks.0.*", "transformer_blocks.0.attn.to_q"));
        assert!(!fits("transformer_blocks.0.*", "single_transformer_blocks.0.attn.to_q"));
        assert!(fits("attn.to_*", "transformer_blocks.12.attn.to_out.0"));
    }

    #[test]
    fn a_kind_is_what_a_linear_is_called_in_every_block() {
        assert_eq!(kind_of("transformer_blocks.12.attn.to_out.0"), "attn.to_out.0");
        assert_eq!(kind_of("proj_out"), "proj_out");
    }
}
