//! The contents of an adapter file before it is written.

use crate::files::NamedTensor;

/// Tensors, and what the header says in the format's own keys.
pub(super) struct Contents<'a> {
    pub tensors: Vec<NamedTensor<'a>>,
    pub header: Vec<(String, String)>,
}
