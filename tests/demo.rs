//! The demo data in the repository: consistent, and small.

use std::{
    collections::HashSet,
    fs,
    path::{Path, PathBuf},
};

use image::{GrayImage, RgbImage};
use serde_json::Value;

/// Pixels along each side of a JPEG block, inside which the codec spreads a difference.
const BLOCK: u32 = 8;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("data/demo")
}

/// What is trained on, and what is held out.
const LISTS: [&str; 2] = ["pairs.jsonl", "held_out.jsonl"];

fn pairs(list: &str) -> Vec<Value> {
    let text = fs::read_to_string(folder().join(list)).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Texture and shape of the subjects of a pair, as its prompt has them.
fn kinds(pair: &Value) -> Vec<String> {
    let prompt = pair["prompt"].as_str().unwrap();
    let subjects = prompt.strip_prefix("a photo of ").and_then(|p| p.split_once(" on a ")).unwrap().0;
    subjects.split(" and ").map(|s| s.strip_prefix("a ").unwrap().to_owned()).collect()
}

fn picture(name: &Value) -> RgbImage {
    image::open(folder().join(name.as_str().unwrap())).unwrap().to_rgb8()
}

fn mask(name: &Value) -> GrayImage {
    image::open(folder().join(name.as_str().unwrap())).unwrap().to_luma8()
}

fn bytes_under(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    entries
        .map(|e| if e.path().is_dir() { bytes_under(&e.path()) } else { e.metadata().unwrap().len() })
        .sum()
}

/// Mean difference of a channel, of 255, over the pixels that `chosen` holds of.
fn difference(a: &RgbImage, b: &RgbImage, chosen: impl Fn(u32, u32) -> bool) -> f64 {
    let (mut sum, mut count) = (0.0, 0);
    for ((x, y, a), b) in a.enumerate_pixels().zip(b.pixels()) {
        if chosen(x, y) {
            sum += a.0.iter().zip(b.0).map(|(a, b)| f64::from(a.abs_diff(b))).sum::<f64>();
            count += 3;
        }
    }
    assert!(count > 0);
    sum / f64::from(count)
}

#[test]
fn a_loser_is_its_winner_but_for_the_blocks_of_its_priors() {
    for pair in LISTS.into_iter().flat_map(pairs) {
        let (winner, loser) = (picture(&pair["win"]["image"]), picture(&pair["lose"]["image"]));
        let priors: Vec<GrayImage> = pair["lose"]["prior"].as_array().unwrap().iter().map(mask).collect();
        let blocks = winner.width() / BLOCK;
        let mut touched = vec![false; (blocks * winner.height() / BLOCK) as usize];
        let block_of = |x: u32, y: u32| (y / BLOCK * blocks + x / BLOCK) as usize;
        for (x, y, pixel) in priors.iter().flat_map(|prior| prior.enumerate_pixels()) {
            touched[block_of(x, y)] |= pixel.0[0] > 127;
        }
        let in_block = |x: u32, y: u32| touched[block_of(x, y)];
        let inside = difference(&winner, &loser, in_block);
        assert!(inside > 15.0, "{}: the subjects differ by {inside} only", pair["id"]);
        // A subject's edge may cover less than half of the last pixel of a block that no prior reaches.
        let outside = difference(&winner, &loser, |x, y| !in_block(x, y));
        assert!(outside < 0.05, "{}: the ground differs by {outside}", pair["id"]);
    }
}

#[test]
fn there_are_single_and_two_subject_pairs_with_a_prior_and_a_mask_for_every_reference() {
    for (list, [singles, doubles]) in LISTS.into_iter().zip([[22, 10], [12, 4]]) {
        let pairs = pairs(list);
        let count = |subjects: usize| {
            pairs.iter().filter(|p| p["refs"].as_array().unwrap().len() == subjects).count()
        };
        assert_eq!([count(1), count(2), pairs.len()], [singles, doubles, singles + doubles], "{list}");
    }
    for pair in LISTS.into_iter().flat_map(pairs) {
        let side = picture(&pair["win"]["image"]).dimensions();
        assert_eq!(side, picture(&pair["lose"]["image"]).dimensions());
        let references = pair["refs"].as_array().unwrap();
        for branch in ["win", "lose"] {
            let priors = pair[branch]["prior"].as_array().unwrap();
            assert_eq!(priors.len(), references.len(), "{}", pair["id"]);
            for prior in priors {
                let prior = mask(prior);
                let share = f64::from(prior.pixels().map(|p| u32::from(p.0[0] > 127)).sum::<u32>())
                    / f64::from(prior.width() * prior.height());
                assert_eq!(prior.dimensions(), side);
                assert!((0.02..0.5).contains(&share), "{}: a prior of {share}", pair["id"]);
            }
        }
        for reference in references {
            assert_eq!(mask(&reference["mask"]).dimensions(), picture(&reference["image"]).dimensions());
            assert!(pair["prompt"].as_str().unwrap().contains(reference["subject"].as_str().unwrap()));
        }
    }
}

#[test]
fn no_held_out_subject_is_trained_on() {
    let mut seen: HashSet<String> = pairs(LISTS[0]).iter().flat_map(kinds).collect();
    assert!(seen.len() > 30);
    for pair in pairs(LISTS[1]) {
        for kind in kinds(&pair) {
            assert!(seen.insert(kind.clone()), "{}: a {kind} is there already", pair["id"]);
        }
    }
}

#[test]
fn the_demo_stays_under_five_megabytes() {
    let bytes = bytes_under(&folder());
    assert!(bytes < 5_000_000, "{bytes} bytes");
}
