//! Guesses the name that was meant.

/// The candidate nearest to `name`, if it is near: a third of its letters, at least one.
pub(super) fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // A name as long as a file is no slip of the finger, and comparing it would take long.
    if name.len() > 100 {
        return None;
    }
    let folded = name.to_lowercase().replace('_', "-");
    candidates
        .into_iter()
        .map(|c| (strsim::osa_distance(&folded, &c.to_lowercase().replace('_', "-")), c))
        .filter(|(d, c)| *d <= (c.chars().count() / 3).max(1))
        .min()
        .map(|(_, c)| c)
}

/// Advice for an unknown `name`: what was probably meant, and all there is.
pub(crate) fn advice<'a>(what: &str, name: &str, candidates: impl IntoIterator<Item = &'a str>) -> String {
    let candidates: Vec<&str> = candidates.into_iter().collect();
    let meant = nearest(name, candidates.iter().copied());
    let meant = meant.map(|m| format!("did you mean `{m}`? ")).unwrap_or_default();
    const SHOWN: usize = 24;
    let more = candidates.len().saturating_sub(SHOWN);
    let mut all: Vec<String> = candidates.iter().take(SHOWN).map(|c| format!("`{c}`")).collect();
    if more > 0 {
        all.push(format!("{more} more"));
    }
    if all.is_empty() { format!("there are no {what}") } else { format!("{meant}{what}: {}", all.join(", ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_swap_of_neighbours_is_one_slip() {
        assert_eq!(nearest("niose", ["pairs", "noise"]), Some("noise"));
        assert_eq!(nearest("lora_update", ["lora-update"]), Some("lora-update"));
        assert_eq!(nearest("xyz", ["pairs", "noise"]), None);
    }
}
