//! Lists of lines, for people.

/// Numbers that a list names.
const LISTED: usize = 5;

/// Numbers of lines for people.
pub(super) fn lines(numbers: impl ExactSizeIterator<Item = usize>) -> String {
    let (count, plural) = (numbers.len(), if numbers.len() == 1 { "line" } else { "lines" });
    let shown: Vec<String> = numbers.take(LISTED).map(|n| n.to_string()).collect();
    let more = if count > LISTED { format!(" and {} more", count - LISTED) } else { String::new() };
    format!("{plural} {}{more}", shown.join(", "))
}
