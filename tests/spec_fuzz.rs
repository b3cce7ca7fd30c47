//! Random edits of a graph file: an error or a graph, never a panic.

mod small_ops;

use proptest::prelude::*;
use small_ops::{GRAPH, load};

/// What people type by mistake, and what parsers trip over.
const PIECES: [&str; 32] = [
    "(",
    ")",
    "[",
    "]",
    "{",
    "}",
    ",",
    ":",
    "\"",
    "'",
    "//",
    "/*",
    "*/",
    "@",
    "@x.size",
    "None",
    "Some(",
    "r#\"",
    "\\",
    "\n",
    "grad:",
    ".",
    "-1",
    "1e999",
    "NaN",
    "..",
    "0x",
    "_",
    "é",
    "#![enable(implicit_some)]",
    "extends: \"x\",",
    "\u{0}",
];

fn boundary(text: &str, at: usize) -> usize {
    let mut at = at % (text.len() + 1);
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_edits_of_a_graph_never_panic(
        edits in prop::collection::vec((any::<prop::sample::Index>(), 0usize..12, 0usize..40), 1..5)
    ) {
        let mut text = GRAPH.to_owned();
        for (at, length, piece) in edits {
            let start = boundary(&text, at.index(text.len() + 1));
            let end = boundary(&text, (start + length).min(text.len())).max(start);
            text.replace_range(start..end, PIECES.get(piece).copied().unwrap_or_default());
        }
        if let Err(error) = load(&text, &[]) {
            prop_assert!(!error.message().is_empty());
            prop_assert!(!error.message().contains("internal error") || error.message().contains("a panic"));
            // Every error but that of a missing file shows where it is.
            prop_assert!(!error.places().is_empty(), "{}", error.message());
            for (place, _) in error.places() {
                prop_assert!(place.starts_with("test.ron:"));
            }
        }
    }

    #[test]
    fn random_settings_of_the_command_line_never_panic(set in ".{0,24}", node in "[a-z]{0,3}", value in ".{0,12}") {
        for set in [set, format!("x.{node}={value}"), format!("noise.words={value}")] {
            let _ = load(GRAPH, &[&set]);
        }
    }
}
