//! The example of a training in Rust keeps what it promises.

#[path = "../examples/own_training.rs"]
mod own_training;

use std::fs;

use own_training::train;

#[test]
fn a_training_in_rust_goes_on_where_it_was_interrupted_with_the_same_bits() {
    let dir = tempfile::tempdir().unwrap();
    let (whole, parts) = (dir.path().join("whole"), dir.path().join("parts"));
    train(&whole, 7).unwrap();
    train(&parts, 3).unwrap();
    train(&parts, 7).unwrap();
    let file = "adapter.safetensors";
    assert!(fs::read(whole.join(file)).unwrap() == fs::read(parts.join(file)).unwrap());
    // Nothing is left to do.
    train(&parts, 7).unwrap();
}
