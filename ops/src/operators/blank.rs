//! `blank`: latents that state a size and show nothing.
//!
//! Shape letters: `B` batch, `C` latent channels, `H` `W` latent grid.

use super::{
    autoencoder::{AutoencoderKind, Coder},
    tensors::tensor,
};
use crate::{
    operator::{Ctx, InShapes, OpError, Operator, OutShapes},
    ports::{Latents, Texts},
    settings,
    settings::DataPath,
};

settings! {
    /// Settings of [`Blank`].
    pub struct BlankSettings {
        /// Rows of pixels of the pictures to draw.
        pub height: usize = 512,
        /// Columns of pixels of the pictures to draw.
        pub width: usize = 512,
        /// Kind of autoencoder that will decode them: it says how many channels there are and how many pixels a cell covers.
        pub kind: AutoencoderKind = AutoencoderKind::Dct,
        /// Of kinds `kl` and `tiny`: where it is, as for `decode`.
        pub weights: DataPath = DataPath::default(),
    }
}

/// Zeros of the shape that pictures of a size have as latents, one for each prompt.
pub struct Blank {
    /// C.
    channels: usize,
    grid: (usize, usize),
}

impl Operator for Blank {
    const NAME: &'static str = "blank";
    const DOC: &'static str = "Latents of a size that show nothing, one for each prompt: the `like` of `sample` where there \
                               is no picture to take the size from.";
    const IN: [&'static str; 1] = ["prompts"];
    const OUT: [&'static str; 1] = ["latents"];
    type Settings = BlankSettings;
    type In = (Texts,);
    type Out = (Latents,);
    type Saved = ();
    const DIFFERENTIABLE: bool = false;

    fn new(settings: BlankSettings) -> Result<Self, OpError> {
        let coder = Coder::open(settings.kind, &settings.weights)?;
        let (BlankSettings { height, width, .. }, cell) = (&settings, coder.about().cell());
        let channels = coder.about().channels();
        let whole = |side: usize| side > 0 && side.is_multiple_of(cell);
        if !whole(*height) || !whole(*width) {
            return Err(OpError::new(format!(
                "{width} x {height} pixels (width x height): a latent cell covers {cell} x {cell}, and each side must be a \
                 multiple of that"
            )));
        }
        let grid = (height / cell, width / cell);
        if channels.checked_mul(grid.0).and_then(|n| n.checked_mul(grid.1)).is_none() {
            return Err(OpError::new(format!("{width} x {height} pixels are more than any memory holds")));
        }
        Ok(Self { channels, grid })
    }

    fn shapes(&self, (prompts,): InShapes<Self>, _: usize) -> Result<OutShapes<Self>, OpError> {
        Ok(((prompts.batch, self.channels, self.grid.0, self.grid.1),))
    }

    fn forward(&self, ctx: &Ctx<'_>, (prompts,): Self::In) -> Result<(Self::Out, ()), OpError> {
        let shape = (prompts.0.len(), self.channels, self.grid.0, self.grid.1);
        Ok(((tensor(ctx, shape, vec![0.0; shape.0 * shape.1 * shape.2 * shape.3])?,), ()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{operators::testing::Bench, ports::TextsShape};

    #[test]
    fn the_size_is_that_of_an_encoded_picture_and_odd_ones_are_refused() {
        let op = Blank::new(BlankSettings { height: 48, width: 64, ..Default::default() }).unwrap();
        let shape = op.shapes((TextsShape { batch: 2 },), 0).unwrap().0;
        assert_eq!(shape, (2, 16, 6, 8));
        let prompts = Texts(vec![String::new(); 2].into());
        let ((latents,), ()) = op.forward(&Bench::new().ctx(), (prompts,)).unwrap();
        assert_eq!(*dfdx::shapes::HasShape::shape(&latents), shape);
        let error = Blank::new(BlankSettings { width: 60, ..Default::default() }).err().unwrap().to_string();
        assert!(error.contains("60 x 512 pixels (width x height)"), "{error}");
    }
}
