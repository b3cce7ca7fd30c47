//! Amounts of memory for people: powers of 1024, everywhere.

/// Bytes with a unit and three digits or so, e.g. `1.5 GiB`.
pub fn bytes(n: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut value = n as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{n} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_have_units_of_1024() {
        let amounts = [0, 12, 1536, 123_456_789, 3 << 30].map(bytes);
        assert_eq!(amounts, ["0 B", "12 B", "1.5 KiB", "117.7 MiB", "3.0 GiB"]);
    }
}
