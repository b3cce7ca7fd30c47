//! Scores of pictures: similarities as numbers of pictures, of subjects and of a whole method.
//!
//! ```text
//!  similarity   embeddings of pictures and photographs as measured pictures
//!  scores       measured pictures as scores of subjects, and those as a total
//!  bootstrap    how far a total would move with other subjects
//! ```
//!
//! Everything is a pure function in f64, summed in the order of the lists: the same pictures give the same digits.

mod bootstrap;
mod scores;
mod similarity;

pub use bootstrap::{Interval, RESAMPLES, Resamples};
pub use scores::{GroupScore, Measured, Score, Tally};
pub use similarity::{against_each_other, against_photographs, nearest_is_of_the_same_subject};
