//! A picture inside a network.

use crate::{
    device::{Device, Kind, Queue, View},
    error::Result,
};

/// One picture inside a network, `[H, W, channels]`.
#[derive(Debug)]
pub struct Map<D: Device> {
    /// H.
    pub height: usize,
    /// W.
    pub width: usize,
    /// Values of a pixel.
    pub channels: usize,
    /// Row-major, channels last.
    pub values: D::Buffer,
}

impl<D: Device> Map<D> {
    /// From planes `[channels, H, W]`, every value as `change` makes it.
    ///
    /// # Panics
    /// If the number of values is another.
    pub fn from_planes(
        queue: &D::Queue,
        planes: &[f32],
        (channels, height, width): (usize, usize, usize),
        change: impl Fn(f32) -> f32,
    ) -> Self {
        assert_eq!(planes.len(), channels * height * width, "values of {channels} planes");
        let values = queue.fill(planes.len(), Kind::Activation, |values| {
            for (channel, plane) in planes.chunks_exact((height * width).max(1)).enumerate() {
                for (to, from) in values[channel..].iter_mut().step_by(channels).zip(plane) {
                    *to = change(*from);
                }
            }
        });
        Self { height, width, channels, values }
    }

    /// Write the planes `[channels, H, W]`.
    ///
    /// # Errors
    /// The first one of the queue.
    ///
    /// # Panics
    /// If `planes` has another number of values.
    pub fn write_planes(&self, queue: &D::Queue, planes: &mut [f32]) -> Result<()> {
        assert_eq!(planes.len(), self.len(), "values of {} planes", self.channels);
        let values = queue.download(&self.values, 0, self.len())?;
        for (channel, plane) in planes.chunks_exact_mut(self.pixels().max(1)).enumerate() {
            for (to, from) in plane.iter_mut().zip(values[channel..].iter().step_by(self.channels)) {
                *to = *from;
            }
        }
        Ok(())
    }

    /// H * W.
    pub fn pixels(&self) -> usize {
        self.height * self.width
    }

    /// Number of values.
    pub fn len(&self) -> usize {
        self.pixels() * self.channels
    }

    /// Are there none?
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// One row a pixel.
    pub fn view(&self) -> View<'_, D> {
        View::new(&self.values, self.channels)
    }

    /// A picture of the same size with these values.
    #[must_use]
    pub fn with(&self, channels: usize, values: D::Buffer) -> Self {
        Self { height: self.height, width: self.width, channels, values }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Cpu, device::Precision};

    #[test]
    fn planes_become_pixels_and_planes_again() {
        let planes: Vec<f32> = (0..3 * 4 * 5).map(|i| i as f32).collect();
        let queue = Cpu::new(1).unwrap().queue(Precision::F32).unwrap();
        let map = Map::<Cpu>::from_planes(&queue, &planes, (3, 4, 5), |v| v + 1.0);
        assert_eq!(map.values[..3], [1.0, 21.0, 41.0]);
        let mut back = vec![0.0; planes.len()];
        map.write_planes(&queue, &mut back).unwrap();
        assert!(back.iter().zip(&planes).all(|(back, plane)| *back == plane + 1.0));
    }
}
