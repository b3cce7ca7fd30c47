//! Sizes that settings and files state, multiplied: the result may be larger than any number of the machine.

/// The product of sizes; `usize::MAX` where it is larger than that, so that it is still too large for any memory.
pub fn product(sizes: impl IntoIterator<Item = usize>) -> usize {
    // A zero counts also behind a product that has overflowed.
    let mut all = 1usize;
    for size in sizes {
        all = if size == 0 { return 0 } else { all.saturating_mul(size) };
    }
    all
}

/// The sum of sizes; `usize::MAX` where it is larger than that.
pub fn sum(sizes: impl IntoIterator<Item = usize>) -> usize {
    sizes.into_iter().fold(0, usize::saturating_add)
}

/// A number of bytes that was computed in floating point, rounded down; `usize::MAX` where it is larger than that.
pub fn bytes(bytes: f64) -> usize {
    bytes as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_product_stops_at_the_largest_number_and_a_zero_makes_it_zero() {
        assert_eq!(product([2, 3, 4]), 24);
        assert_eq!(product([]), 1);
        assert_eq!(product([usize::MAX, 2]), usize::MAX);
        assert_eq!((sum([1, 2]), sum([usize::MAX, 1])), (3, usize::MAX));
        assert_eq!(product([1 << 40, 1 << 40, 0]), 0);
        assert_eq!((bytes(7.9), bytes(1e30), bytes(f64::INFINITY)), (7, usize::MAX, usize::MAX));
    }
}
