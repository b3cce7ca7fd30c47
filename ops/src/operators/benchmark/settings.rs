//! What a graph says of a benchmark.

use crate::{operators::pairs::MAX_PIXELS, settings, settings::DataPath};

settings! {
    /// Settings of [`Benchmark`](super::Benchmark).
    pub struct BenchmarkSettings {
        /// Whose rules: `dreambench/patchdpo-original`, `dreambench/patchdpo-kosmos`, `dreambench/kosmos-single`, `dreambench/uno-single`, `dreambench/uno-multi` or `dreambench/dreambooth-4x`.
        pub preset: String = "dreambench/uno-single".to_owned(),
        /// The folder with a folder of photographs for each subject: `dataset` of google/dreambooth.
        pub photographs: DataPath = DataPath::default(),
        /// The folder of a method's pictures, laid out as the preset says.
        pub pictures: DataPath = DataPath::default(),
        /// Pictures that are laid out otherwise: a file with a JSON object a line, `id` of the case and `picture`, a path relative to the file. In place of `pictures`.
        pub mapping: DataPath = DataPath::default(),
        /// Are photographs compared with the other photographs of their subject, in place of pictures?
        pub real: bool = false,
        /// Score only what is there, where pictures are missing, surplus or of another size?
        pub incomplete: bool = false,
        /// Rows of pixels that every picture must have; the preset's where it is not given, and those of the first picture where that states none.
        pub height: Option<usize> = None,
        /// Columns of pixels, likewise.
        pub width: Option<usize> = None,
        /// Most pictures in a batch; those of one size share one.
        pub batch: usize = 8,
        /// Most pixels of a picture in a file; a larger one is refused, and no memory is asked for it.
        pub max_pixels: usize = MAX_PIXELS,
    }
}
