//! Counts and lists of lines, for people.

/// Numbers that a list names.
const LISTED: usize = 5;

/// Numbers of lines for people.
pub(super) fn lines(numbers: impl ExactSizeIterator<Item = usize>) -> String {
    let (count, plural) = (numbers.len(), if numbers.len() == 1 { "line" } else { "lines" });
    let shown: Vec<String> = numbers.take(LISTED).map(|n| n.to_string()).collect();
    let more = if count > LISTED { format!(" and {} more", count - LISTED) } else { String::new() };
    format!("{plural} {}{more}", shown.join(", "))
}

/// `1 sample`, `2 samples`, `3 batches`.
pub(super) fn count(n: usize, what: &str) -> String {
    let ending = match n {
        1 => "",
        _ if what.ends_with("ch") => "es",
        _ => "s",
    };
    format!("{n} {what}{ending}")
}
