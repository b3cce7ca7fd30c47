//! Tests of `benchmark`: what it finds in folders, and what it reads.

use std::{collections::BTreeSet, fs, path::Path};

use super::*;
use crate::{operators::testing::Bench, settings::DataPath};

/// A picture of one colour.
fn picture(path: &Path, (height, width): (u32, u32), colour: [u8; 3]) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    image::RgbImage::from_pixel(width, height, image::Rgb(colour)).save(path).unwrap();
}

/// Photographs of every subject, of two sizes, and the pictures of a preset.
struct Folders(tempfile::TempDir);

impl Folders {
    fn new(preset: &str) -> Self {
        let folders = Self(tempfile::tempdir().unwrap());
        let preset = Preset::of(preset).unwrap();
        for (number, subject) in preset.subjects().iter().enumerate() {
            for (name, size) in [(subject.listed.to_owned(), (20, 20)), ("99".to_owned(), (24, 18))] {
                let file = folders.photographs().join(subject.name).join(format!("{name}.jpg"));
                picture(&file, size, [number as u8 * 8, 10, 200]);
            }
        }
        for case in cases(preset, &preset.groups(), |relative, _| folders.pictures().join(relative)) {
            picture(&case.path, (16, 16), [case.group as u8, case.copy as u8, 9]);
        }
        folders
    }

    fn photographs(&self) -> PathBuf {
        self.0.path().join("dataset")
    }

    fn pictures(&self) -> PathBuf {
        self.0.path().join("out")
    }

    fn settings(&self, preset: &str) -> BenchmarkSettings {
        BenchmarkSettings {
            preset: preset.into(),
            photographs: DataPath(self.photographs()),
            pictures: DataPath(self.pictures()),
            height: Some(16),
            width: Some(16),
            ..Default::default()
        }
    }
}

fn refused(settings: BenchmarkSettings) -> String {
    Benchmark::new(settings).err().expect("a refusal").to_string()
}

/// Ids and prompts of all rows, in the order of the steps.
fn all(op: &Benchmark) -> Vec<(String, String)> {
    let bench = Bench::new();
    let steps = op.exports().into_iter().find(|(name, _)| name == "batches_per_epoch").unwrap().1;
    let mut rows = Vec::new();
    for step in 0..steps.as_u64().unwrap() {
        let ((images, prompts, ids), ()) = op.forward(&bench.at(step), ()).unwrap();
        let shape = ImageShape { batch: images.batch, height: images.height, width: images.width };
        assert!((0..op.variants()).any(|v| op.shapes((), v).unwrap().0 == shape), "a shape that is planned");
        rows.extend(ids.0.iter().cloned().zip(prompts.0.iter().cloned()));
    }
    rows
}

#[test]
fn every_row_is_read_once_whatever_the_sizes() {
    let folders = Folders::new("dreambench/uno-single");
    for preset in ["dreambench/uno-single", "dreambench/uno-multi"] {
        let op = Benchmark::new(folders.settings(preset)).unwrap();
        let rows = all(&op);
        let ids: BTreeSet<&String> = rows.iter().map(|(id, _)| id).collect();
        assert_eq!((rows.len(), ids.len()), (750 + 60, 750 + 60), "{preset}");
        assert!(rows.iter().all(|(id, prompt)| id.starts_with("photograph/") == prompt.is_empty()));
    }
    let op = Benchmark::new(folders.settings("dreambench/uno-single")).unwrap();
    assert!(all(&op).contains(&("cat2/a wet cat/0".into(), "a wet cat".into())));
}

#[test]
fn layouts_are_those_of_the_scripts() {
    let paths = |preset: &str| -> Vec<String> {
        let preset = Preset::of(preset).unwrap();
        let all = cases(preset, &preset.groups(), |relative, _| relative);
        all.into_iter().map(|case| case.path.display().to_string()).collect()
    };
    let patchdpo = paths("dreambench/patchdpo-original");
    assert_eq!((patchdpo.len(), &patchdpo[0][..]), (750, "backpack/a backpack in the jungle.png"));
    let uno = paths("dreambench/uno-multi");
    assert_eq!((uno.len(), &uno[26][..]), (750, "26_0.png"));
    let four = paths("dreambench/dreambooth-4x");
    assert_eq!((four.len(), &four[3][..]), (3000, "backpack/a backpack in the jungle/3.png"));
    assert!(Preset::of("dreambench").unwrap_err().to_string().contains("dreambench/uno-multi"));
}

#[test]
fn listed_photographs_alone_are_read_where_the_preset_says_so() {
    let folders = Folders::new("dreambench/patchdpo-kosmos");
    let survey = Survey::of(&folders.settings("dreambench/patchdpo-kosmos")).unwrap();
    assert_eq!(survey.photographs.len(), 30);
    assert_eq!(survey.photographs[0].id, "photograph/backpack/02.jpg");
    assert!(survey.is_complete(), "{}", survey.faults());
    fs::remove_file(folders.photographs().join("can/01.jpg")).unwrap();
    let error = refused(folders.settings("dreambench/patchdpo-kosmos"));
    assert!(error.contains("0 files `01.*`") && error.contains("can"), "{error}");
    let others = Survey::of(&folders.settings("dreambench/patchdpo-original")).unwrap();
    assert_eq!(others.photographs.len(), 59);
}

#[test]
fn what_is_missing_surplus_of_another_size_or_no_picture_is_told_apart_and_never_read() {
    let folders = Folders::new("dreambench/uno-single");
    let at = |name: &str| folders.pictures().join(name);
    fs::remove_file(at("3_0.png")).unwrap();
    picture(&at("7_0.png"), (16, 17), [0; 3]);
    picture(&at("7_1.png"), (16, 16), [0; 3]);
    fs::write(at("9_0.png"), "no picture").unwrap();
    fs::write(at("9_0.json"), "{}").unwrap();
    let settings = folders.settings("dreambench/uno-single");
    let survey = Survey::of(&settings).unwrap();
    assert_eq!(survey.missing, [3]);
    assert_eq!(survey.surplus, [at("7_1.png")]);
    assert_eq!(survey.wrong_size, [(at("7_0.png"), (16, 17))]);
    assert_eq!(survey.unreadable.len(), 1);
    assert_eq!(survey.present.len(), 747);
    let error = refused(settings.clone());
    assert!(error.contains("1 missing, 1 surplus, 1 of another size, 1 unreadable"), "{error}");
    let op = Benchmark::new(BenchmarkSettings { incomplete: true, ..settings.clone() }).unwrap();
    assert_eq!(all(&op).len(), 747 + 60);
    // Where nothing states a size, it is that of the first picture.
    let free = BenchmarkSettings {
        preset: "dreambench/dreambooth-4x".into(),
        incomplete: true,
        height: None,
        width: None,
        ..settings
    };
    picture(&at("backpack/a backpack in the jungle/0.png"), (9, 9), [0; 3]);
    picture(&at("backpack/a backpack in the jungle/2.png"), (9, 8), [0; 3]);
    let survey = Survey::of(&free).unwrap();
    assert_eq!((survey.size, survey.present.len(), survey.wrong_size.len()), (Some((9, 9)), 1, 1));
    assert_eq!(survey.photographs.len(), 2, "of subjects that are scored");
}

#[test]
fn photographs_against_photographs_need_no_pictures() {
    let folders = Folders::new("dreambench/uno-multi");
    let settings = BenchmarkSettings {
        real: true,
        pictures: DataPath::default(),
        ..folders.settings("dreambench/uno-multi")
    };
    let survey = Survey::of(&settings).unwrap();
    assert_eq!((survey.groups.len(), survey.photographs.len(), survey.cases.len()), (30, 60, 0));
    assert_eq!(all(&Benchmark::new(settings.clone()).unwrap()).len(), 60);
    fs::remove_file(folders.photographs().join("can/01.jpg")).unwrap();
    let error = refused(settings.clone());
    assert!(error.contains("1 in `") && error.contains("at least 2 needed"), "{error}");
    fs::remove_dir_all(folders.photographs().join("can")).unwrap();
    assert!(refused(settings.clone()).contains("can"));
    let some = Survey::of(&BenchmarkSettings { incomplete: true, ..settings }).unwrap();
    assert_eq!((some.groups.len(), some.photographs.len()), (29, 58));
}

#[test]
fn a_mapping_stands_for_any_other_layout() {
    let folders = Folders::new("dreambench/uno-single");
    let mapping = folders.0.path().join("mapping.jsonl");
    let preset = Preset::of("dreambench/uno-single").unwrap();
    let ids = cases(preset, &preset.groups(), |relative, _| relative);
    let line = |case: &Case| {
        serde_json::json!({"id": case.id, "picture": format!("out/{}", case.path.display())}).to_string()
    };
    let mut lines: Vec<String> = ids.iter().map(line).collect();
    let settings = BenchmarkSettings {
        pictures: DataPath::default(),
        mapping: DataPath(mapping.clone()),
        ..folders.settings("dreambench/uno-single")
    };
    fs::write(&mapping, lines.join("\n")).unwrap();
    assert!(Survey::of(&settings).unwrap().is_complete());
    lines[5] = r#"{"id": "somebody else", "picture": "out/5_0.png"}"#.into();
    fs::write(&mapping, lines.join("\n")).unwrap();
    let survey = Survey::of(&settings).unwrap();
    assert_eq!((survey.missing, survey.surplus.len()), (vec![5], 1));
    lines[6] = lines[7].clone();
    fs::write(&mapping, lines.join("\n")).unwrap();
    assert!(refused(settings.clone()).contains("line 8"), "an id that occurs twice");
    fs::write(&mapping, "{\"picture\": 3}").unwrap();
    assert!(refused(settings).contains("line 1"));
}
