//! Settings of `pairs`, and their checks.

use super::{geometry::CELL, picture::MAX_PIXELS};
use crate::{choices, error::OpError, settings, settings::DataPath};

choices! {
    /// What becomes of a sample that cannot be used, because of its line or its pictures.
    pub enum OnBad {
        /// The run stops and names it.
        Fail = "fail",
        /// The next usable sample of its group takes its place, and it is counted; bad lines are left out.
        Skip = "skip",
    }
}

choices! {
    /// What becomes of a line without a loser.
    pub enum WithoutLoser {
        /// It cannot be used.
        Refuse = "refuse",
        /// The winner stands in its place: for graphs that train on winners alone.
        Winner = "winner",
    }
}

settings! {
    /// Settings of [`Pairs`](super::Pairs).
    pub struct PairsSettings {
        /// The `pairs.jsonl`, or the folder that holds it; paths in it are relative to it.
        pub path: DataPath = DataPath::default(),
        /// Rows of pixels of winner and loser, a multiple of 16.
        pub height: usize = 512,
        /// Columns of pixels of winner and loser, a multiple of 16.
        pub width: usize = 512,
        /// Rows of pixels of a reference, a multiple of 16; `height` where it is not given.
        pub reference_height: Option<usize> = None,
        /// Columns of pixels of a reference, a multiple of 16; `width` where it is not given.
        pub reference_width: Option<usize> = None,
        /// Pixels along each side of a cell of the focus grid: 16 are a token of a FLUX transformer, 8 a latent cell, as a U-Net takes it.
        pub cell: usize = CELL,
        /// Pairs in a batch.
        pub batch: usize = 1,
        /// Is the order drawn anew in every epoch?
        pub shuffle: bool = true,
        /// Use only samples with these numbers of references; all where it is empty.
        pub reference_counts: Vec<usize> = Vec::new(),
        /// Use only the first so many of these samples, e.g. always the same ones for previews.
        pub first: Option<usize> = None,
        /// What becomes of a sample that cannot be used, because of its line or its pictures.
        pub on_bad: OnBad = OnBad::Fail,
        /// What becomes of a line without a loser: it cannot be used, or the winner stands in its place, for graphs that train on winners alone.
        pub without_loser: WithoutLoser = WithoutLoser::Refuse,
        /// Most pixels of a picture or a mask in a file; a larger one cannot be used, and no memory is asked for it.
        pub max_pixels: usize = MAX_PIXELS,
        /// For held-out pairs: the file that is trained on. A sample that shares a winner with it is refused.
        pub apart_from: Option<DataPath> = None,
    }
}

/// Rows and columns of pixels.
pub(super) type Size = (usize, usize);

impl PairsSettings {
    pub(super) fn size(&self) -> Size {
        (self.height, self.width)
    }

    pub(super) fn reference_size(&self) -> Size {
        (self.reference_height.unwrap_or(self.height), self.reference_width.unwrap_or(self.width))
    }

    /// Refuse what no data could satisfy.
    ///
    /// # Errors
    /// Naming the setting.
    pub(super) fn check(&self) -> Result<(), OpError> {
        if self.path.is_empty() {
            return Err(OpError::new("path: a pairs.jsonl is needed"));
        }
        for (name, count) in
            [("batch", Some(self.batch)), ("first", self.first), ("max_pixels", Some(self.max_pixels))]
        {
            if count == Some(0) {
                return Err(OpError::new(format!("{name}: at least 1 is needed")));
            }
        }
        for (name, side) in [
            ("height", Some(self.height)),
            ("width", Some(self.width)),
            ("reference_height", self.reference_height),
            ("reference_width", self.reference_width),
        ] {
            side.map_or(Ok(()), |side| whole_cells(name, side))?;
            if self.cell == 0 || side.is_some_and(|side| !side.is_multiple_of(self.cell)) {
                return Err(OpError::new(format!(
                    "cell {}: {name} must be whole cells of it; 16 or 8 pixels are what networks take",
                    self.cell
                )));
            }
        }
        for (height, width) in [self.size(), self.reference_size()] {
            if !is_possible(self.batch, (height, width)) {
                return Err(OpError::new(format!(
                    "a batch of {} pictures of {width} x {height} pixels (width x height) is larger than any memory",
                    self.batch
                )));
            }
        }
        Ok(())
    }
}

/// A side of a picture is made of whole cells.
///
/// # Errors
/// Naming the setting.
pub(super) fn whole_cells(name: &str, side: usize) -> Result<(), OpError> {
    if side == 0 || !side.is_multiple_of(CELL) {
        return Err(OpError::new(format!("{name} is {side}: a positive multiple of {CELL} is needed")));
    }
    Ok(())
}

/// Could any memory hold a batch of pictures of this size?
pub(super) fn is_possible(batch: usize, (height, width): Size) -> bool {
    let bytes = [height, width, 3].iter().try_fold(batch, |bytes, n| bytes.checked_mul(*n));
    bytes.is_some_and(|bytes| isize::try_from(bytes).is_ok())
}

/// Height and width in cells of the focus grid.
pub(super) fn grid((height, width): Size, cell: usize) -> (usize, usize) {
    (height / cell, width / cell)
}
