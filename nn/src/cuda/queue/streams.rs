//! Token rows of several streams, one after the other, as kernels take them.

use super::rows::Rows;
use crate::{
    cuda::{
        Cuda,
        launch::{Argument, int},
    },
    device::{MOST_STREAMS, TokenRows, View},
};

/// Samples, and the tokens of each stream, as `Streams` of values.cuh.
///
/// # Panics
/// If there are more streams than kernels take.
pub(super) fn stream_sizes(
    batch: usize,
    tokens: impl ExactSizeIterator<Item = usize>,
) -> [Argument; 1 + MOST_STREAMS] {
    assert!(
        tokens.len() <= MOST_STREAMS,
        "{} streams of tokens, where {MOST_STREAMS} are the most",
        tokens.len()
    );
    let mut counts = std::iter::once(batch).chain(tokens);
    [(); 1 + MOST_STREAMS].map(|()| int(counts.next().unwrap_or(0)))
}

/// The rows of some streams.
#[derive(Clone, Copy, Debug)]
pub(super) struct Streams<'a> {
    rows: &'a [TokenRows],
    pub batch: usize,
    pub width: usize,
    /// Rows of all streams.
    pub count: usize,
}

impl<'a> Streams<'a> {
    /// Nothing where there is no stream.
    ///
    /// # Panics
    /// If they are not of the same samples and width: a defect of the layer that calls.
    pub fn new(rows: &'a [TokenRows]) -> Option<Self> {
        let TokenRows { batch, width, .. } = *rows.first()?;
        let alike = rows.iter().all(|r| (r.batch, r.width) == (batch, width));
        assert!(alike, "streams of other samples or widths: {rows:?}");
        Some(Self { rows, batch, width, count: rows.iter().map(TokenRows::count).sum() })
    }

    pub fn sizes(&self) -> [Argument; 1 + MOST_STREAMS] {
        stream_sizes(self.batch, self.rows.iter().map(|r| r.tokens))
    }

    /// Tokens of a sample in all streams.
    pub fn tokens(&self) -> usize {
        self.rows.iter().map(|r| r.tokens).sum()
    }

    /// Tokens of the only stream.
    ///
    /// # Panics
    /// If there are more.
    pub fn tokens_of_one(&self) -> usize {
        assert_eq!(self.rows.len(), 1, "sums over tokens are those of one stream");
        self.rows[0].tokens
    }

    /// Their rows in a view, [without gaps](Rows::dense).
    pub fn dense(&self, view: View<'_, Cuda>) -> Rows {
        Rows::dense(view, self.count, self.width)
    }
}
