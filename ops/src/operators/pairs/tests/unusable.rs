//! Unusable lines, pictures and settings, and the messages about them.

use proptest::prelude::*;

use super::*;

#[test]
fn every_bad_line_is_listed_with_its_number() {
    let mut data = Data::new();
    data.row(1, true);
    data.row(1, true)["win"]["prior"] = json!(["prior.png", "prior.png"]);
    data.row(1, true)["id"] = json!("row-0");
    data.row(1, true)["lose"]["image"] = json!("gone.png");
    data.row(1, true).as_object_mut().unwrap().remove("win");
    data.row(1, true)["wim"] = json!({});
    let error = data.refusal();
    for expected in [
        "5 bad rows",
        "line 2 (`row-1`): win has 2 priors for 1 reference:",
        "line 3 (`row-0`): the id was used in line 1",
        "line 4 (`row-3`): ",
        "gone.png: there is no such file",
        "line 5 (`row-4`): missing field `win`",
        "line 6: unknown field `wim`",
    ] {
        assert!(error.contains(expected), "{expected} is not in:\n{error}");
    }
}

#[test]
fn a_picture_that_cannot_be_used_is_named_with_its_line() {
    type Break = fn(&Path);
    let cases: [(&str, &str, Break); 6] = [
        ("win.png", "is a GIF; PNG, JPEG and WebP are read", |p| fs::write(p, b"GIF89a........").unwrap()),
        ("win.png", "is neither a PNG nor a JPEG nor a WebP", |p| fs::write(p, b"hello").unwrap()),
        ("win.png", "is cut short", |p| {
            let bytes = fs::read(p).unwrap();
            fs::write(p, &bytes[..bytes.len() / 2]).unwrap();
        }),
        ("prior.png", "is 32 x 32, its picture 48 x 32 (width x height)", |p| {
            left_half(32, 32).save(p).unwrap()
        }),
        ("prior.png", "black everywhere", |p| GrayImage::new(48, 32).save(p).unwrap()),
        ("mask.png", "has no foreground", |p| GrayImage::new(16, 16).save(p).unwrap()),
    ];
    for (name, expected, break_it) in cases {
        let mut data = Data::new();
        data.row(1, true);
        break_it(&data.path(name));
        let error = data.failure();
        assert!(error.contains(expected) && error.contains("line 1 (`row-0`)"), "{expected}:\n{error}");
        assert!(error.contains("on_bad: skip"), "{error}");
    }
}

#[test]
fn a_truncated_jpeg_is_refused_though_the_decoder_would_fill_it() {
    let mut data = Data::new();
    data.row(1, true)["win"]["image"] = json!("win.JPG");
    let noise =
        RgbImage::from_fn(48, 32, |x, y| Pixel([(x * 37 + y * 91) as u8, (x * y) as u8, (x ^ y) as u8]));
    noise.save_with_format(data.path("win.JPG"), ImageFormat::Jpeg).unwrap();
    // An upper-case suffix is fine.
    data.pairs().forward(&Bench::new().ctx(), ()).unwrap();
    let bytes = fs::read(data.path("win.JPG")).unwrap();
    fs::write(data.path("win.JPG"), &bytes[..bytes.len() - 200]).unwrap();
    assert!(data.failure().contains("cut short"));
}

#[test]
fn a_cmyk_jpeg_is_refused_by_name() {
    let mut data = Data::new();
    data.row(1, true)["win"]["image"] = json!("win.jpg");
    // Start, a frame of four components, start of scan, end.
    let mut bytes = vec![0xff, 0xd8, 0xff, 0xc0, 0, 20, 8, 0, 32, 0, 48, 4];
    bytes.extend([1, 0x11, 0, 2, 0x11, 0, 3, 0x11, 0, 4, 0x11, 0, 0xff, 0xda, 0, 2, 0xff, 0xd9]);
    fs::write(data.path("win.jpg"), bytes).unwrap();
    assert!(data.failure().contains("CMYK"));
}

#[test]
fn a_skipped_sample_keeps_its_number_and_is_counted() {
    let mut data = Data::new();
    for i in 0..4 {
        data.row(1, true)["win"]["image"] = json!(format!("win{i}.png"));
        plain(32, 48, [i, 0, 0]).save(data.path(&format!("win{i}.png"))).unwrap();
    }
    fs::write(data.path("win1.png"), b"broken").unwrap();
    let op = Pairs::new(PairsSettings { batch: 2, on_bad: OnBad::Skip, ..data.settings() }).unwrap();
    let bench = Bench::new();
    let at = |step| {
        let (out, ()) = op.forward(&bench.at(step), ()).unwrap();
        (out.6.0.to_vec(), out.9.get("skipped").unwrap().mean().unwrap())
    };
    assert_eq!(at(0), (vec!["row-0".to_owned(), "row-2".to_owned()], 1.0));
    assert_eq!(at(1), (vec!["row-2".to_owned(), "row-3".to_owned()], 0.0));
    for i in 0..4 {
        fs::write(data.path(&format!("win{i}.png")), b"broken").unwrap();
    }
    let error = op.forward(&bench.ctx(), ()).err().unwrap().to_string();
    assert!(error.contains("no sample of the group is left"), "{error}");
}

#[test]
fn settings_out_of_range_are_refused() {
    let mut data = Data::new();
    data.row(1, true);
    let good = data.settings();
    for (settings, expected) in [
        (PairsSettings { height: 40, ..good.clone() }, "height is 40"),
        (PairsSettings { batch: 0, ..good.clone() }, "batch"),
        (PairsSettings { reference_width: Some(0), ..good.clone() }, "reference_width is 0"),
        (PairsSettings { path: DataPath::default(), ..good.clone() }, "a pairs.jsonl is needed"),
        (PairsSettings { path: DataPath("/nowhere/pairs.jsonl".into()), ..good }, "/nowhere/pairs.jsonl"),
    ] {
        let error = Pairs::new(settings).err().unwrap().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn a_listed_sample_that_cannot_be_used_is_left_out_or_named() {
    let mut data = Data::new();
    data.row(1, true);
    data.row(1, true)["win"]["image"] = json!("torn.png");
    fs::write(data.path("torn.png"), b"\x89PNG").unwrap();
    let bench = Bench::new();
    let op = Pairs::new(PairsSettings { on_bad: OnBad::Skip, ..data.settings() }).unwrap();
    assert_eq!(Operator::read(&op, &bench.ctx(), &[0, 1]).unwrap().unwrap().0, [0]);
    assert!(Operator::read(&op, &bench.ctx(), &[1]).unwrap().is_none());
    let error = Operator::read(&data.pairs(), &bench.ctx(), &[0, 1]).err().unwrap().to_string();
    assert!(error.contains("line 2") && error.contains("torn.png"), "{error}");
}

#[test]
fn bad_lines_stop_a_run_or_are_skipped_and_said() {
    let mut data = Data::new();
    data.row(1, true);
    data.row(1, true);
    let settings = data.settings();
    let mut text = fs::read(data.path("pairs.jsonl")).unwrap();
    text.extend(b"{\"id\": \"caf\xe9\"}\nnonsense\n");
    fs::write(data.path("pairs.jsonl"), text).unwrap();
    let error = Pairs::new(settings.clone()).err().unwrap().to_string();
    assert!(error.contains("line 3: is not UTF-8") && error.contains("line 4: expected"), "{error}");
    let op = Pairs::new(PairsSettings { on_bad: OnBad::Skip, ..settings.clone() }).unwrap();
    let notes = op.notes(&()).join("\n");
    assert!(notes.contains("warning: 2 bad lines left out by `on_bad: skip` (lines 3, 4)"), "{notes}");
    assert!(notes.contains("line 3: is not UTF-8"), "{notes}");
    fs::write(data.path("pairs.jsonl"), "nonsense").unwrap();
    let error = Pairs::new(PairsSettings { on_bad: OnBad::Skip, ..settings }).err().unwrap().to_string();
    assert!(error.contains("its only line cannot be used"), "{error}");
}

#[test]
fn what_cannot_be_used_of_a_file_system_is_named_before_the_first_step() {
    let mut data = Data::new();
    data.row(1, true)["win"]["image"] = json!("folder");
    data.row(1, true)["lose"]["image"] = json!("empty.png");
    data.row(1, true)["refs"][0]["mask"] = json!("~nobody/mask.png");
    data.row(1, true)["refs"][0]["image"] = json!("");
    fs::create_dir(data.path("folder")).unwrap();
    fs::write(data.path("empty.png"), []).unwrap();
    let error = data.refusal();
    for expected in [
        "4 bad rows",
        "folder: is a folder, not a file",
        "empty.png: is empty",
        "`~` means your home folder only",
        "line 4 (`row-3`): the path of a file is empty",
    ] {
        assert!(error.contains(expected), "{expected} is not in:\n{error}");
    }
}

#[test]
fn an_oversized_picture_is_skipped_or_named_and_the_setting_admits_it() {
    let mut data = Data::new();
    data.row(1, true);
    data.row(1, true)["win"]["image"] = json!("large.png");
    plain(320, 480, [9; 3]).save(data.path("large.png")).unwrap();
    let small = PairsSettings { max_pixels: 48 * 32, batch: 2, ..data.settings() };
    let first = |settings: &PairsSettings| {
        let done = Pairs::new(settings.clone()).unwrap().forward(&Bench::new().ctx(), ());
        done.map(|(out, ())| out.6.0.to_vec()).map_err(|e| e.to_string())
    };
    let error = first(&small).unwrap_err();
    for expected in ["line 2 (`row-1`)", "large.png: has 480 x 320 pixels (width x height)", "allows 1536"] {
        assert!(error.contains(expected), "{error}");
    }
    assert_eq!(first(&PairsSettings { on_bad: OnBad::Skip, ..small.clone() }).unwrap(), ["row-0", "row-0"]);
    assert_eq!(first(&PairsSettings { max_pixels: 480 * 320, ..small }).unwrap(), ["row-0", "row-1"]);
}

#[test]
fn a_mask_cut_away_by_the_crop_says_which_part_is_kept() {
    let mut data = Data::new();
    data.row(1, true);
    // The middle third of 48 columns is kept; the subject is left of it.
    GrayImage::from_fn(48, 32, |x, _| Luma([if x < 8 { 255 } else { 0 }]))
        .save(data.path("prior.png"))
        .unwrap();
    let square = PairsSettings { width: 32, ..data.settings() };
    let error = Pairs::new(square).unwrap().forward(&Bench::new().ctx(), ()).err().unwrap().to_string();
    assert!(
        error.contains("outside the part that is kept") && error.contains("x 8 to 40, y 0 to 32"),
        "{error}"
    );
    let lying = Data { rows: data.rows.clone(), ..Data::new() };
    left_half(48, 32).save(lying.path("prior.png")).unwrap();
    assert!(lying.failure().contains("it lies on its side"), "{}", lying.failure());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn a_picture_cut_anywhere_is_reported_by_file_and_line(
        format in prop::sample::select(vec![ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::WebP]),
        keep in any::<prop::sample::Index>(),
        which in prop::sample::select(vec!["win.png", "lose.png", "ref.png"]),
    ) {
        let mut data = Data::new();
        data.row(1, true);
        let picture = image::open(data.path(which)).unwrap();
        picture.save_with_format(data.path(which), format).unwrap();
        let bytes = fs::read(data.path(which)).unwrap();
        fs::write(data.path(which), &bytes[..1 + keep.index(bytes.len() - 1)]).unwrap();
        let error = data.failure();
        prop_assert!(error.contains("line 1 (`row-0`)") && error.contains(which), "{error}");
    }
}
