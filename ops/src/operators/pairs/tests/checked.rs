//! What is counted before a run, by the check and by the notes.

use super::*;

#[test]
fn the_check_counts_what_there_is_and_lists_what_is_broken() {
    let mut data = Data::new();
    data.row(1, true);
    data.row(2, true);
    data.row(1, false)["refs"][0].as_object_mut().unwrap().remove("mask");
    data.row(1, true)["win"]["image"] = json!("gone.png");
    data.row(1, true)["lose"]["prior"] = json!(["tall.png"]);
    left_half(48, 32).save(data.path("tall.png")).unwrap();
    data.row(1, true)["win"]["prior"] = json!([]);
    data.row(1, true)["id"] = json!("");
    let path = data.settings().path;
    let report = check(path.as_path(), MAX_PIXELS).unwrap();
    assert_eq!(report.good, 4);
    assert_eq!(report.references, BTreeMap::from([(1, 3), (2, 1)]));
    assert_eq!(report.sizes, BTreeMap::from([((32, 48), 4)]));
    assert_eq!((report.without_prior, report.without_mask), (2, 1));
    assert_eq!((report.coverage[5], report.coverage.iter().sum::<usize>()), (3, 3));
    let lines: Vec<usize> = report.bad.iter().map(|b| b.line).collect();
    assert_eq!(lines, [4, 5, 7]);
    assert!(report.bad[0].reason.contains("gone.png"));
    assert!(report.bad[1].reason.contains("is 32 x 48, its picture 48 x 32"), "{}", report.bad[1]);
}

#[test]
fn the_demos_pairs_are_all_usable() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../data/demo/pairs.jsonl");
    let report = check(&path, MAX_PIXELS).unwrap();
    assert_eq!(report.bad, []);
    assert!(report.good > 0 && report.references.len() > 1, "{report:?}");
}

fn checked(data: &Data) -> Report {
    check(data.settings().path.as_path(), MAX_PIXELS).unwrap()
}

#[test]
fn pairs_that_teach_nothing_and_priors_that_say_nothing_are_counted() {
    let mut data = Data::new();
    data.row(1, true);
    data.row(1, true)["lose"]["image"] = json!("win.png");
    data.row(1, true)["lose"]["image"] = json!("copy.webp");
    data.row(1, true)["win"]["prior"] = json!(["white.png"]);
    data.row(0, false);
    data.row(1, true)["win"]["prior"] = json!(["dot.png"]);
    let dot = GrayImage::from_fn(48, 32, |x, y| Luma([if x < 3 && y < 3 { 255 } else { 0 }]));
    dot.save(data.path("dot.png")).unwrap();
    plain(32, 48, [200, 100, 50]).save(data.path("copy.webp")).unwrap();
    GrayImage::from_pixel(48, 32, Luma([255])).save(data.path("white.png")).unwrap();
    let report = checked(&data);
    assert_eq!(
        (report.identical, report.whole_priors, report.without_references, report.tiny_priors),
        (vec![2, 3], vec![4], vec![5], vec![6])
    );
    assert!(report.bad.is_empty() && report.refusal.is_none());
    // A run reads no picture before its first step: it knows of those that share a file.
    let notes = data.pairs().notes(&()).join("\n");
    assert!(notes.contains("warning: 1 sample whose winner and loser are one file (line 2)"), "{notes}");
    assert!(notes.contains("1 sample without references: line 5"), "{notes}");
}

#[test]
fn inverted_priors_winners_as_references_and_winners_that_are_mostly_cut_off_are_counted() {
    let mut data = Data::new();
    data.row(1, true);
    data.row(1, true)["win"]["prior"] = json!(["outside.png"]);
    data.row(1, true)["refs"][0] = json!({"image": "win.png"});
    for prior in ["frame.png", "all.png", "corner.png"] {
        data.row(1, true)["win"]["prior"] = json!([prior]);
    }
    let rim = |x: u32, y: u32, wide: u32| x < wide || y < wide || x >= 48 - wide || y >= 32 - wide;
    let mask = |name: &str, wide: u32| {
        let picture = GrayImage::from_fn(48, 32, |x, y| Luma([if rim(x, y, wide) { 255 } else { 0 }]));
        picture.save(data.path(name)).unwrap();
    };
    mask("outside.png", 10);
    // A subject may touch three sides, fill the picture, or stand in a corner, away from its middle.
    let save = |name: &str, inside: &dyn Fn(u32, u32) -> bool| {
        let picture = GrayImage::from_fn(48, 32, |x, y| Luma([if inside(x, y) { 255 } else { 0 }]));
        picture.save(data.path(name)).unwrap();
    };
    save("frame.png", &|x, _| x < 40);
    save("all.png", &|x, y| (x, y) != (24, 0));
    save("corner.png", &|x, y| x < 14 && y < 9);
    let report = checked(&data);
    assert_eq!((&report.inverted_priors, &report.own_references, &report.cut), (&vec![2], &vec![3], &vec![]));
    let said = report.remarks().join("\n");
    assert!(said.contains("is it inverted? The subject is white (line 2)"), "{said}");
    // Of 48 x 32 pixels a square keeps two thirds.
    let square = PairsSettings { height: 32, width: 32, ..data.settings() };
    assert_eq!(check_settings(&square).unwrap().cut, [1, 2, 3, 4, 5, 6]);
    assert!(check_settings(&data.settings()).unwrap().cut.is_empty());
}

#[test]
fn a_batch_larger_than_its_group_is_said() {
    let mut data = Data::new();
    for references in [1, 1, 1, 2, 2, 2, 2, 2] {
        data.row(references, true);
    }
    let settings = PairsSettings { batch: 4, ..data.settings() };
    let notes = Pairs::new(settings.clone()).unwrap().notes(&()).join("\n");
    assert!(notes.contains("8 samples, 3 batches of 4 an epoch, pictures of 48 x 32 pixels"), "{notes}");
    assert!(
        notes.contains("warning: a batch of 4 is larger than the 3 samples with 1 reference:"),
        "{notes}"
    );
    assert_eq!(check_settings(&settings).unwrap().below_batch, BTreeMap::from([(1, 3)]));
}

#[test]
fn data_without_a_sample_are_refused() {
    let data = Data::new();
    let report = checked(&data);
    assert_eq!((report.is_good(), report.refusal.as_deref()), (false, Some("holds no samples")));
    assert!(data.refusal().contains("holds no samples"));
    fs::write(data.path("pairs.jsonl"), "nonsense\n").unwrap();
    let report = check(&data.path("pairs.jsonl"), MAX_PIXELS).unwrap();
    assert!(report.refusal.unwrap().contains("its only line cannot be used"));
}

#[test]
fn the_check_of_a_run_refuses_what_the_run_would_refuse() {
    let mut data = Data::new();
    data.row(1, true);
    data.row(2, true)["win"]["prior"] = json!(["prior.png", "left.png"]);
    GrayImage::from_fn(48, 32, |x, _| Luma([if x < 8 { 255 } else { 0 }]))
        .save(data.path("left.png"))
        .unwrap();
    let settings = data.settings();
    assert!(checked(&data).is_good() && check_settings(&settings).unwrap().is_good());
    // Cut to a square, the second prior has nothing left.
    let square = PairsSettings { width: 32, ..settings.clone() };
    let report = check_settings(&square).unwrap();
    assert_eq!(report.bad.iter().map(|b| b.line).collect::<Vec<_>>(), [2]);
    assert!(check_settings(&PairsSettings { reference_counts: vec![1], ..square }).unwrap().is_good());
    let none = check_settings(&PairsSettings { reference_counts: vec![7], ..settings.clone() }).unwrap();
    assert!(none.refusal.unwrap().contains("none of 2 samples has 7 references"));
    assert!(check_settings(&PairsSettings { height: 7, ..settings }).unwrap_err().contains("height is 7"));
}

#[test]
fn masks_of_pictures_that_exif_turns_are_counted_where_they_are_not_turned_themselves() {
    let mut data = Data::new();
    data.row(1, true)["win"]["image"] = json!("turned.webp");
    fs::copy(crate::operators::testing::case("pictures").join("turned.webp"), data.path("turned.webp"))
        .unwrap();
    assert_eq!(checked(&data).turned, [1]);
    // Made from the picture as it is stored.
    left_half(48, 32).save(data.path("prior.png")).unwrap();
    let report = checked(&data);
    assert!(report.bad[0].reason.contains("EXIF turns the picture"), "{}", report.bad[0]);
}

#[test]
fn a_folder_of_data_is_its_pairs_and_paths_may_begin_at_home() {
    let mut data = Data::new();
    data.row(1, true)["win"]["image"] = json!("~/no/such/picture.png");
    data.settings();
    let home = std::env::home_dir().unwrap();
    let report = check(data.folder.path(), MAX_PIXELS).unwrap();
    let path = home.join("no/such/picture.png").display().to_string();
    assert!(report.bad[0].reason.contains(&path), "{}", report.bad[0]);
    data.rows[0]["win"]["image"] = json!("win.png");
    let settings = PairsSettings { path: DataPath(data.folder.path().to_owned()), ..data.settings() };
    Pairs::new(settings).unwrap().forward(&Bench::new().ctx(), ()).unwrap();
}
