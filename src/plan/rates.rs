//! Speeds that turn declared costs into seconds.

use prefgraph_nn::cpu::Precision;

/// Speeds of a machine: rough ones, or measured ones. A schedule needs only their ratio, and only until the first steps have
/// been timed; a forecast of a run needs them as they are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rates {
    /// Floating-point operations a second, of all cores.
    pub flops: f64,
    /// The same where operands of products are rounded to bf16.
    pub flops_bf16: f64,
    /// Bytes read or written a second.
    pub bytes: f64,
    /// Seconds that starting a task takes.
    pub start: f64,
}

impl Default for Rates {
    fn default() -> Self {
        Self { flops: 5e10, flops_bf16: 5e10, bytes: 1e10, start: 1e-5 }
    }
}

impl Rates {
    pub(super) fn seconds(&self, flops: f64, precision: Precision, bytes: f64) -> f64 {
        let rate = match precision {
            Precision::F32 => self.flops,
            Precision::Bf16 => self.flops_bf16,
        };
        // A pass waits for the slower of arithmetic and memory.
        (flops / rate).max(bytes / self.bytes) + self.start
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_takes_as_long_as_the_slower_of_arithmetic_and_memory() {
        let rates = Rates { flops: 10.0, flops_bf16: 20.0, bytes: 4.0, start: 0.5 };
        assert_eq!(rates.seconds(100.0, Precision::F32, 8.0), 10.5);
        assert_eq!(rates.seconds(100.0, Precision::Bf16, 8.0), 5.5);
        assert_eq!(rates.seconds(100.0, Precision::Bf16, 80.0), 20.5);
    }
}
