//! Pictures inside a network.

use crate::{
    device::{Device, Kind, Queue, TokenRows, View},
    error::Result,
};

/// Pictures of one size inside a network, `[samples, H, W, channels]`.
#[derive(Debug)]
pub struct Map<D: Device> {
    /// Number of pictures.
    pub samples: usize,
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
    /// One picture from planes `[channels, H, W]`, every value as `change` makes it.
    ///
    /// # Panics
    /// If the number of values is another.
    pub fn from_planes(
        queue: &D::Queue,
        planes: &[f32],
        (channels, height, width): (usize, usize, usize),
        change: impl Fn(f32) -> f32,
    ) -> Self {
        Self::of_samples(queue, planes, (1, channels, height, width), change)
    }

    /// Pictures from planes `[samples, channels, H, W]`, every value as `change` makes it.
    ///
    /// # Panics
    /// If the number of values is another.
    pub fn of_samples(
        queue: &D::Queue,
        planes: &[f32],
        (samples, channels, height, width): (usize, usize, usize, usize),
        change: impl Fn(f32) -> f32,
    ) -> Self {
        assert_eq!(
            planes.len(),
            samples * channels * height * width,
            "values of {samples} x {channels} planes"
        );
        let each = (channels * height * width).max(1);
        let values = queue.fill(planes.len(), Kind::Activation, |values| {
            for (planes, values) in planes.chunks_exact(each).zip(values.chunks_exact_mut(each)) {
                for (channel, plane) in planes.chunks_exact((height * width).max(1)).enumerate() {
                    for (to, from) in values[channel..].iter_mut().step_by(channels).zip(plane) {
                        *to = change(*from);
                    }
                }
            }
        });
        Self { samples, height, width, channels, values }
    }

    /// Write the planes `[samples, channels, H, W]`.
    ///
    /// # Errors
    /// The first one of the queue.
    ///
    /// # Panics
    /// If `planes` has another number of values.
    pub fn write_planes(&self, queue: &D::Queue, planes: &mut [f32]) -> Result<()> {
        assert_eq!(planes.len(), self.len(), "values of {} planes", self.channels);
        let values = queue.download(&self.values, 0, self.len())?;
        let each = (self.pixels() * self.channels).max(1);
        for (planes, values) in planes.chunks_exact_mut(each).zip(values.chunks_exact(each)) {
            for (channel, plane) in planes.chunks_exact_mut(self.pixels().max(1)).enumerate() {
                for (to, from) in plane.iter_mut().zip(values[channel..].iter().step_by(self.channels)) {
                    *to = *from;
                }
            }
        }
        Ok(())
    }

    /// H * W, the pixels of one picture.
    pub fn pixels(&self) -> usize {
        self.height * self.width
    }

    /// The pixels of all pictures.
    pub fn rows(&self) -> usize {
        self.samples * self.pixels()
    }

    /// Number of values.
    pub fn len(&self) -> usize {
        self.rows() * self.channels
    }

    /// Are there none?
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// One row a pixel.
    pub fn view(&self) -> View<'_, D> {
        View::new(&self.values, self.channels)
    }

    /// Its sizes as token rows.
    pub fn token_rows(&self) -> TokenRows {
        TokenRows { batch: self.samples, tokens: self.pixels(), width: self.channels }
    }

    /// Pictures of the same size and number with these values.
    #[must_use]
    pub fn with(&self, channels: usize, values: D::Buffer) -> Self {
        Self { samples: self.samples, height: self.height, width: self.width, channels, values }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Cpu, device::Precision};

    #[test]
    fn planes_of_every_sample_become_pixels_and_planes_again() {
        let planes: Vec<f32> = (0..2 * 3 * 4 * 5).map(|i| i as f32).collect();
        let queue = Cpu::new(1).unwrap().queue(Precision::F32).unwrap();
        let map = Map::<Cpu>::of_samples(&queue, &planes, (2, 3, 4, 5), |v| v + 1.0);
        assert_eq!(map.values[..3], [1.0, 21.0, 41.0]);
        assert_eq!(map.values[60..63], [61.0, 81.0, 101.0]);
        let mut back = vec![0.0; planes.len()];
        map.write_planes(&queue, &mut back).unwrap();
        assert!(back.iter().zip(&planes).all(|(back, plane)| *back == plane + 1.0));
    }
}
