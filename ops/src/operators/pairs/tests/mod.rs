//! Data sets in a temporary folder, good ones and broken ones.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use image::{
    DynamicImage, GrayImage, ImageBuffer, ImageFormat, Luma, Rgb as Pixel, RgbImage, Rgba, RgbaImage,
};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;

mod checked;
mod unusable;

use crate::{operators::testing::Bench, settings::DataPath};

/// A folder with pictures of 32x48 pixels and rows that name them.
struct Data {
    folder: TempDir,
    rows: Vec<Value>,
}

fn plain(height: u32, width: u32, colour: [u8; 3]) -> RgbImage {
    RgbImage::from_pixel(width, height, Pixel(colour))
}

/// Foreground in the left half.
fn left_half(height: u32, width: u32) -> GrayImage {
    GrayImage::from_fn(width, height, |x, _| Luma([if x < width / 2 { 255 } else { 0 }]))
}

impl Data {
    fn new() -> Self {
        let data = Self { folder: tempfile::tempdir().unwrap(), rows: Vec::new() };
        plain(32, 48, [200, 100, 50]).save(data.path("win.png")).unwrap();
        plain(32, 48, [10, 20, 30]).save(data.path("lose.png")).unwrap();
        plain(16, 16, [1, 2, 3]).save(data.path("ref.png")).unwrap();
        left_half(32, 48).save(data.path("prior.png")).unwrap();
        left_half(16, 16).save(data.path("mask.png")).unwrap();
        data
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A row with that many references, with priors or without.
    fn row(&mut self, references: usize, priors: bool) -> &mut Value {
        let refs = vec![json!({"image": "ref.png", "subject": "dog", "mask": "mask.png"}); references];
        let prior = vec!["prior.png"; if priors { references } else { 0 }];
        self.rows.push(json!({
            "id": format!("row-{}", self.rows.len()),
            "prompt": "a dog",
            "refs": refs,
            "win": {"image": "win.png", "prior": prior},
            "lose": {"image": "lose.png"},
        }));
        self.rows.last_mut().unwrap()
    }

    fn settings(&self) -> PairsSettings {
        let text: String = self.rows.iter().map(|r| format!("{r}\n")).collect();
        fs::write(self.path("pairs.jsonl"), text).unwrap();
        PairsSettings {
            path: DataPath(self.path("pairs.jsonl")),
            height: 32,
            width: 48,
            reference_height: Some(16),
            reference_width: Some(16),
            shuffle: false,
            ..Default::default()
        }
    }

    fn pairs(&self) -> Pairs {
        Pairs::new(self.settings()).unwrap()
    }

    fn refusal(&self) -> String {
        Pairs::new(self.settings()).err().expect("a refusal").to_string()
    }

    /// The error of the first step.
    fn failure(&self) -> String {
        self.pairs().forward(&Bench::new().ctx(), ()).err().unwrap().to_string()
    }
}

#[test]
fn a_batch_holds_pictures_masks_prompts_and_ids() {
    let mut data = Data::new();
    data.row(2, true);
    data.row(2, false);
    let op = Pairs::new(PairsSettings { batch: 2, ..data.settings() }).unwrap();
    let shapes = Operator::shapes(&op, (), 0).unwrap();
    let (out, ()) = op.forward(&Bench::new().ctx(), ()).unwrap();
    let (winner, loser, references, masks, priors, prompts, ids, has_prior, crops, _) = out;
    assert_eq!(crate::Port::shape(&winner), shapes.0);
    assert_eq!(crate::Port::shape(&references), shapes.2);
    assert_eq!(crate::Port::shape(&masks), shapes.3);
    assert_eq!(crate::Port::shape(&priors), shapes.4);
    assert_eq!((winner.rgb[..3].to_vec(), loser.rgb[..3].to_vec()), (vec![200, 100, 50], vec![10, 20, 30]));
    assert_eq!(references.0[1].picture(1)[..3], [1, 2, 3]);
    // Two by three cells: the middle column is half inside.
    assert_eq!(priors.0[0].as_vec(), [1., 1., 0., 1., 1., 0., 1., 1., 1., 1., 1., 1.]);
    assert_eq!(masks.0[0].as_vec(), [1.0, 1.0]);
    assert_eq!(has_prior.as_vec(), [1.0, 0.0]);
    let (height, width) = (winner.height as f32, winner.width as f32);
    assert_eq!(crops.as_vec(), [height, width, 0.0, 0.0].repeat(2));
    assert_eq!((prompts.0[0].as_str(), ids.0[1].as_str()), ("a dog", "row-1"));
}

#[test]
fn groups_of_reference_counts_are_variants_and_can_be_chosen() {
    let mut data = Data::new();
    for references in [1, 2, 1, 0] {
        data.row(references, true);
    }
    let op = data.pairs();
    assert_eq!(op.variants(), 3);
    let counts: Vec<usize> = (0..3).map(|v| Operator::shapes(&op, (), v).unwrap().2.0.len()).collect();
    assert_eq!(counts, [0, 1, 2]);
    let one = Pairs::new(PairsSettings { reference_counts: vec![1], ..data.settings() }).unwrap();
    assert_eq!((one.variants(), one.left_out, one.rows.len()), (1, 2, 2));
    let none = Pairs::new(PairsSettings { reference_counts: vec![5], ..data.settings() });
    assert!(none.err().unwrap().to_string().contains("none of 4 samples has 5 references"));
}

#[test]
fn a_picture_is_turned_as_its_exif_says() {
    let mut data = Data::new();
    data.row(0, true)["win"]["image"] = json!("win.jpg");
    // Stored as 48 rows whose upper half is bright, to be turned clockwise by 90 degrees.
    let stored = RgbImage::from_fn(32, 48, |_, y| Pixel([if y < 24 { 240 } else { 10 }; 3]));
    stored.save_with_format(data.path("win.jpg"), ImageFormat::Jpeg).unwrap();
    let bytes = fs::read(data.path("win.jpg")).unwrap();
    // One entry: orientation (0x0112), a short, 6.
    let mut exif = b"Exif\0\0MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0".to_vec();
    let mut turned = vec![0xff, 0xd8, 0xff, 0xe1, 0, exif.len() as u8 + 2];
    turned.append(&mut exif);
    turned.extend(&bytes[2..]);
    fs::write(data.path("win.jpg"), turned).unwrap();
    let (out, ()) = data.pairs().forward(&Bench::new().ctx(), ()).unwrap();
    // 48 columns, 32 rows: what was at the top is now at the right.
    let pixel = |y: usize, x: usize| out.0.rgb[(y * 48 + x) * 3];
    assert!(pixel(16, 2) < 40 && pixel(16, 45) > 200, "{} {}", pixel(16, 2), pixel(16, 45));
}

#[test]
fn grey_deep_and_transparent_pictures_become_rgb() {
    let mut data = Data::new();
    for (name, picture, expected) in [
        ("grey.png", DynamicImage::ImageLuma8(GrayImage::from_pixel(48, 32, Luma([77]))), [77, 77, 77]),
        (
            "deep.png",
            DynamicImage::ImageRgb16(ImageBuffer::from_pixel(48, 32, Pixel([257 * 200, 257 * 3, 0u16]))),
            [200, 3, 0],
        ),
        (
            "clear.png",
            DynamicImage::ImageRgba8(RgbaImage::from_pixel(48, 32, Rgba([10, 20, 30, 0]))),
            [255, 255, 255],
        ),
    ] {
        picture.save(data.path(name)).unwrap();
        data.rows.clear();
        data.row(0, true)["win"]["image"] = json!(name);
        let (out, ()) = data.pairs().forward(&Bench::new().ctx(), ()).unwrap();
        assert_eq!(out.0.rgb[..3], expected, "{name}");
    }
}

#[test]
fn the_first_samples_alone_are_the_same_batch_at_every_step() {
    let mut data = Data::new();
    for references in [2, 1, 1, 2, 1] {
        data.row(references, false);
    }
    let settings = PairsSettings { reference_counts: vec![1], first: Some(2), batch: 2, ..data.settings() };
    let pairs = Pairs::new(settings.clone()).unwrap();
    let bench = Bench::new();
    for step in 0..3 {
        let ids = pairs.forward(&bench.at(step), ()).unwrap().0.6;
        assert_eq!(&ids.0[..], ["row-1", "row-2"]);
    }
    let error = Pairs::new(PairsSettings { first: Some(0), ..settings }).err().unwrap().to_string();
    assert!(error.contains("first: at least 1"), "{error}");
}

#[test]
fn samples_are_listed_in_the_order_of_the_file_and_read_in_any_number() {
    let mut data = Data::new();
    for references in [1, 2, 1] {
        data.row(references, true);
    }
    let op = Pairs::new(PairsSettings { batch: 2, shuffle: true, ..data.settings() }).unwrap();
    let listed = Operator::samples(&op).unwrap();
    assert_eq!(listed.iter().map(|s| s.variant).collect::<Vec<_>>(), [0, 1, 0]);
    assert!(listed[1].files.contains(&data.path("mask.png")) && listed[1].facts.contains("a dog"));
    let bench = Bench::new();
    let (read, out) = Operator::read(&op, &bench.at(5), &[2, 0, 2]).unwrap().unwrap();
    assert_eq!((read, &out.6.0[..]), (vec![2, 0, 2], &["row-2", "row-0", "row-2"].map(String::from)[..]));
    assert_eq!(out.0.batch, 3);
}

#[test]
fn pictures_as_they_are_in_their_files_are_counted_in_memory_before_one_is_decoded() {
    let mut data = Data::new();
    for _ in 0..20 {
        data.row(1, true);
    }
    let scratch = |settings| {
        let op = Pairs::new(settings).unwrap();
        let shapes = Operator::shapes(&op, (), 0).unwrap();
        Operator::cost(&op, &(), &shapes).scratch_bytes
    };
    assert_eq!(scratch(data.settings()), 32 * 48 * 8);
    plain(300, 200, [1, 2, 3]).save(data.path("lose.png")).unwrap();
    assert_eq!(scratch(data.settings()), 300 * 200 * 8);
    assert_eq!(
        scratch(PairsSettings { max_pixels: 2000, ..data.settings() }),
        2000 * 8,
        "a larger one is not decoded"
    );
}

#[test]
fn lines_in_the_names_of_other_preference_data_are_read_and_need_no_id() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pairs.jsonl");
    let lines = [
        r#"{"prompt": "a dog", "chosen": "w.png", "rejected": "l.png"}"#,
        r#"{"id": 7, "prompt": "", "refs": ["r.png"], "win": {"image": "w.png", "prior": ["p.png"]}, "lose": "l.png"}"#,
        r#"{"id": 7, "prompt": "", "chosen": "w.png", "win": "w.png", "lose": "l.png"}"#,
        r#"{"id": [1], "prompt": "", "win": "w.png", "lose": "l.png"}"#,
        r#"{"prompt": "", "win": 3, "lose": "l.png"}"#,
        r#""w.png""#,
    ];
    fs::write(&path, lines.join("\n")).unwrap();
    let (rows, bad) = read(&path).unwrap();
    let names: Vec<(&str, &Path)> = rows.iter().map(|r| (r.id.as_str(), r.winner.as_path())).collect();
    let winner = folder.path().join("w.png");
    assert_eq!(names, [("line-1", &*winner), ("7", &*winner)]);
    assert_eq!(rows[0].loser.as_deref(), Some(&*folder.path().join("l.png")));
    assert_eq!(rows[1].references[0].image, folder.path().join("r.png"));
    let said: Vec<String> = bad.iter().map(ToString::to_string).collect();
    for (said, part) in said.iter().zip([
        "line 3: duplicate field `win`",
        "line 4: invalid type: sequence, expected a text or a whole number",
        "line 5: invalid type: integer `3`, expected an object such as",
        "line 6: invalid type: string \"w.png\", expected an object such as",
    ]) {
        assert!(said.contains(part), "{said}");
    }
    assert_eq!(said.len(), 4);
}

#[test]
fn lines_without_losers_are_refused_unless_the_winner_may_stand_in_their_place() {
    let mut data = Data::new();
    data.row(1, true);
    data.row(1, true).as_object_mut().unwrap().remove("lose");
    let settings = data.settings();
    let error = Pairs::new(settings.clone()).err().unwrap().to_string();
    assert!(
        error.contains("line 2 (`row-1`): missing field `lose`") && error.contains("without_loser"),
        "{error}"
    );
    let report = check_settings(&settings).unwrap();
    assert_eq!((report.good, report.bad.len()), (1, 1));
    let unasked = check(settings.path.as_path(), MAX_PIXELS).unwrap();
    assert!(unasked.is_good() && unasked.without_loser == [2], "{unasked:?}");
    let said = unasked.remarks().join("\n");
    assert!(said.contains("only a graph with `without_loser: winner` takes them (line 2)"), "{said}");
    let alone =
        PairsSettings { without_loser: settings::WithoutLoser::Winner, batch: 2, shuffle: false, ..settings };
    let op = Pairs::new(alone.clone()).unwrap();
    let bench = Bench::new();
    let ((winner, loser, ..), ()) = op.forward(&bench.ctx(), ()).unwrap();
    assert_ne!(winner.picture(0), loser.picture(0));
    assert_eq!(winner.picture(1), loser.picture(1));
    let notes = op.notes(&()).join("\n");
    assert!(notes.contains("1 sample without a loser: the winner stands in its place"), "{notes}");
    assert!(!notes.contains("are one file"), "{notes}");
    let report = check_settings(&alone).unwrap();
    assert!(report.is_good() && report.identical.is_empty(), "{report:?}");
}
