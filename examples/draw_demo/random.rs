//! Random numbers as a pure function of a key and a counter, and noise over the plane made of them.

/// A stream of numbers: the same key gives the same stream.
pub struct Random {
    key: u64,
    counter: u64,
}

impl Random {
    /// The stream of this key, e.g. `[seed, sample, purpose]`.
    pub fn new(key: &[u64]) -> Self {
        Self { key: key.iter().fold(0x5eed, |state, &part| mix(state ^ mix(part))), counter: 0 }
    }

    fn next(&mut self) -> u64 {
        self.counter += 1;
        mix(self.key.wrapping_add(self.counter.wrapping_mul(0x9e37_79b9_7f4a_7c15)))
    }

    /// Uniform in [low, high).
    pub fn between(&mut self, low: f32, high: f32) -> f32 {
        low + (high - low) * unit(self.next())
    }

    /// Uniform in 0..count.
    pub fn below(&mut self, count: usize) -> usize {
        (((self.next() >> 32) * count as u64) >> 32) as usize
    }

    /// One of these.
    pub fn choice<T: Copy>(&mut self, items: &[T]) -> T {
        items[self.below(items.len())]
    }

    /// A key for noise over the plane.
    pub fn key(&mut self) -> u64 {
        self.next()
    }
}

/// Smooth noise in [0, 1) with one lattice point in each unit square.
pub fn noise(x: f32, y: f32, key: u64) -> f32 {
    let (left, top) = (x.floor(), y.floor());
    let ease = |t: f32| t * t * (3.0 - 2.0 * t);
    let (across, down) = (ease(x - left), ease(y - top));
    let corner = |dx: i64, dy: i64| lattice(left as i64 + dx, top as i64 + dy, key);
    let upper = corner(0, 0) + (corner(1, 0) - corner(0, 0)) * across;
    let lower = corner(0, 1) + (corner(1, 1) - corner(0, 1)) * across;
    upper + (lower - upper) * down
}

/// The number in [0, 1) of a lattice point.
pub fn lattice(x: i64, y: i64, key: u64) -> f32 {
    unit(mix(key ^ mix(x as u64 ^ mix(y as u64))))
}

/// The 24 highest bits as a number in [0, 1).
fn unit(bits: u64) -> f32 {
    (bits >> 40) as f32 / (1u64 << 24) as f32
}

/// The finaliser of SplitMix64.
fn mix(z: u64) -> u64 {
    let z = z.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
