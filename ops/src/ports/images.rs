//! Pictures.

use std::sync::Arc;

use prefgraph_nn::size;

use crate::{
    batched::Batched,
    port::{NoGrad, Port},
    rows::{Digest, SampleRows, digest},
    shape::PortShape,
};

/// Pictures of one size, 8-bit RGB, `[B, height, width, 3]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Images {
    /// `B`.
    pub batch: usize,
    /// Rows of pixels.
    pub height: usize,
    /// Columns of pixels.
    pub width: usize,
    /// Row-major, channels last.
    pub rgb: Arc<Vec<u8>>,
}

impl Images {
    /// The pixels of one picture.
    pub fn picture(&self, index: usize) -> &[u8] {
        let size = self.height * self.width * 3;
        &self.rgb[index * size..(index + 1) * size]
    }

    /// A byte as the networks see it: 0 is -1, 255 is 1.
    pub fn signed(byte: u8) -> f32 {
        f32::from(byte) / 127.5 - 1.0
    }
}

/// Shape of [`Images`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageShape {
    /// `B`.
    pub batch: usize,
    /// Rows of pixels.
    pub height: usize,
    /// Columns of pixels.
    pub width: usize,
}

impl PortShape for ImageShape {
    fn describe(&self) -> String {
        format!("rgb8[{},{},{}]", self.batch, self.height, self.width)
    }
    fn bytes(&self) -> usize {
        size::product([self.batch, self.height, self.width, 3])
    }
}

impl Port for Images {
    type Grad = NoGrad;
    type Shape = ImageShape;

    fn label() -> String {
        "rgb8[_,_,_]".into()
    }
    fn shape(&self) -> ImageShape {
        ImageShape { batch: self.batch, height: self.height, width: self.width }
    }
    fn rows() -> Option<SampleRows> {
        Some(SampleRows::of::<Self>())
    }
}

impl Batched for Images {
    fn digests(&self) -> Vec<Digest> {
        let axes = [self.height, self.width, 3];
        (0..self.batch).map(|i| digest("rgb8", &axes, [self.picture(i)])).collect()
    }
}
