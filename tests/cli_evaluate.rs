//! `graph-run evaluate`: scores of folders of pictures on small encoders in the published layouts.

mod benchmark;

use std::fs;

use benchmark::{Folders, run, values};
use prefgraph_nn::{
    Cpu, Tensor,
    text::{Clip, ClipModel, ClipTokenizer},
    vision::{Middle, Preprocess, Vit},
};
use serde_json::Value;

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("a number and not {value}"))
}

fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let all: Vec<f64> = values.collect();
    all.iter().sum::<f64>() / all.len() as f64
}

#[track_caller]
fn near(found: &Value, expected: f64) {
    assert!((number(found) - expected).abs() < 1e-6, "{found} {expected}");
}

/// The embedding of a picture by the encoder itself, without a graph.
fn embedding(folders: &Folders, clip: bool, picture: &std::path::Path) -> Vec<f32> {
    let (cpu, rgb) = (Cpu::new(1).unwrap(), image::open(picture).unwrap().into_rgb8());
    let vit = Vit::open(&folders.encoder(if clip { "clip" } else { "dino" })).unwrap();
    let side = vit.config().picture;
    let preprocess = match clip {
        true => Preprocess { middle: Middle::Even, ..Preprocess::clip(side) },
        false => Preprocess::imagenet(256, side),
    };
    let planes = preprocess.planes(rgb.as_raw(), (rgb.height() as usize, rgb.width() as usize));
    let square = Tensor::new(&cpu, (1, 3, side, side), planes).unwrap();
    match clip {
        true => vit.embed(&cpu, &cpu, &square).unwrap().into_values(),
        false => vit.tokens(&cpu, &cpu, &square).unwrap().values()[..vit.config().width].to_vec(),
    }
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| f64::from(x * y)).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

#[test]
fn scores_are_cosines_of_embeddings_and_totals_are_means_over_subjects_whatever_the_threads() {
    let folders = Folders::new();
    folders.draw("ours", "dreambench/uno-single", 0);
    let (code, out, err) = run(&folders.command("single", &["--pictures", "ours", "--threads", "1"]));
    assert_eq!(code, 0, "{err}");
    assert!(out.contains("DINO") && out.contains("CLIP-I") && out.contains("CLIP-T"), "{out}");
    assert!(out.contains("NOT COMPARABLE: `dino` is not DINO ViT-S/16"), "{out}");
    let text = fs::read(folders.at("scores.json")).unwrap();
    let report: Value = serde_json::from_slice(&text).unwrap();
    assert_eq!(report["preset"], "dreambench/uno-single");
    let scores = report["scores"].as_array().unwrap();
    assert_eq!((scores.len(), &report["complete"]), (750, &Value::Bool(true)));

    // One picture by hand: number 151 of the list is the second of the seventh subject.
    let picture = &scores[151];
    assert_eq!(picture["id"], "cat/a cat in the snow/0");
    for (metric, clip) in [("dino", false), ("clip_i", true)] {
        let ours = embedding(&folders, clip, &folders.at("ours/151_0.png"));
        let photographs = folders.photographs("cat");
        let expected = mean(photographs.iter().map(|p| cosine(&ours, &embedding(&folders, clip, p))));
        near(&picture[metric], expected);
    }
    // Totals by hand.
    for metric in ["dino", "clip_i", "clip_t"] {
        let subjects: Vec<f64> =
            scores.chunks(25).map(|s| mean(s.iter().map(|s| number(&s[metric])))).collect();
        near(&report["total"][metric]["mean"], mean(subjects.iter().copied()));
        let lowest = subjects.iter().copied().fold(f64::INFINITY, f64::min);
        near(&report["total"][metric]["lowest"]["mean"], lowest);
        let interval = &report["total"][metric]["interval"];
        assert!(number(&interval[0]) <= number(&report["total"][metric]["mean"]), "{interval}");
        for (subject, expected) in report["subjects"].as_array().unwrap().iter().zip(&subjects) {
            near(&subject[metric]["mean"], *expected);
            assert_eq!(subject["pictures"], 25);
        }
    }
    assert!(scores.iter().all(|s| number(&s["clip_t"]) >= 0.0), "this script counts no negative cosine");
    assert!(report["encoders"]["dino"]["files"][1]["blake3"].as_str().unwrap().len() == 64);

    let (code, out, err) = run(&folders.command(
        "single",
        &["--pictures", "ours", "--threads", "3", "--json", "--set", "benchmark.batch=5"],
    ));
    assert_eq!(code, 0, "{err}");
    assert_eq!(out.as_bytes(), text, "to the last digit");
    assert_eq!(fs::read(folders.at("scores.json")).unwrap(), text);
}

#[test]
fn of_two_subjects_the_minimum_is_told_beside_the_mean() {
    let folders = Folders::new();
    folders.draw("ours", "dreambench/uno-multi", 1);
    let (code, out, err) = run(&folders.command("multi", &["--pictures", "ours"]));
    assert_eq!(code, 0, "{err}");
    assert!(out.contains("minimum over subjects"), "{out}");
    let report = folders.report();
    let scores = report["scores"].as_array().unwrap();
    assert_eq!(scores[275]["id"], "cat+dog6/a cat and a dog in the jungle/0");
    let of = |score: &Value| ["cat", "dog6"].map(|subject| number(&score["dino"]["by_subject"][subject]));
    near(&scores[275]["dino"]["mean"], mean(of(&scores[275]).into_iter()));
    near(&scores[275]["dino"]["minimum"], of(&scores[275]).into_iter().fold(1.0, f64::min));
    let ours = embedding(&folders, false, &folders.at("ours/275_0.png"));
    let photographs = folders.photographs("dog6");
    near(
        &scores[275]["dino"]["by_subject"]["dog6"],
        mean(photographs.iter().map(|p| cosine(&ours, &embedding(&folders, false, p)))),
    );
    let pairs = scores.chunks(25).map(|pair| mean(pair.iter().map(|s| number(&s["dino"]["minimum"]))));
    near(&report["total"]["dino"]["minimum_over_subjects"]["mean"], mean(pairs));
    assert!(report["total"]["clip_t"].get("minimum_over_subjects").is_none(), "a prompt is one");
}

#[test]
fn where_scores_cannot_be_written_is_said_before_anything_is_scored_and_only_scores_are_replaced() {
    let folders = Folders::new();
    folders.draw("ours", "dreambench/uno-single", 0);
    fs::write(folders.at("notes.json"), "{}").unwrap();
    for (out, why) in [
        ("gone/scores.json", "make its folder first"),
        ("ours", "is a folder"),
        ("notes.json", "holds no scores"),
        ("ours/0_0.png", "holds no scores"),
    ] {
        let out = folders.at(out);
        let mut command = folders.command("single", &["--pictures", "ours"]);
        let stated = command.iter().position(|word| word == "--out").unwrap();
        command[stated + 1] = out.display().to_string();
        let (code, printed, err) = run(&command);
        assert_eq!((code, &printed[..]), (1, ""), "{err}");
        assert!(err.contains("--out") && err.contains(why), "{err}");
    }
    assert_eq!(fs::read(folders.at("notes.json")).unwrap(), b"{}");
    folders.scored("single", &["--pictures", "ours"]);
    folders.scored("single", &["--pictures", "ours"]);
}

#[test]
fn pictures_that_are_missing_surplus_or_of_another_size_are_listed_and_never_averaged_over() {
    let folders = Folders::new();
    folders.draw("ours", "dreambench/uno-single", 0);
    let whole = folders.scored("single", &["--pictures", "ours"]);
    fs::remove_file(folders.at("scores.json")).unwrap();
    for name in 0..25 {
        fs::remove_file(folders.at(&format!("ours/{name}_0.png"))).unwrap();
    }
    fs::rename(folders.at("ours/30_0.png"), folders.at("ours/30_1.png")).unwrap();
    image::RgbImage::new(24, 25).save(folders.at("ours/31_0.png")).unwrap();
    fs::write(folders.at("ours/32_0.png"), "no picture").unwrap();
    let (code, out, err) = run(&folders.command("single", &["--pictures", "ours"]));
    assert_eq!((code, &out[..]), (1, ""), "{err}");
    for said in [
        "missing: ",
        "9_0.png",
        "missing: 26 in all",
        "surplus: ",
        "30_1.png",
        "31_0.png: 24 x 25 pixels",
        "32_0.png",
    ] {
        assert!(err.contains(said), "{said} in {err}");
    }
    assert!(
        err.contains("26 missing, 1 surplus, 1 of another size, 1 unreadable; nothing was scored"),
        "{err}"
    );
    assert!(!folders.at("scores.json").exists());

    let (code, out, err) = run(&folders.command("single", &["--pictures", "ours", "--incomplete"]));
    assert_eq!(code, 0, "{err}");
    assert!(out.contains("INCOMPLETE: 722 of 750 pictures"), "{out}");
    let report = folders.report();
    assert_eq!(report["complete"], false);
    let left_out = &report["pictures"]["left_out"];
    assert_eq!(left_out["missing"].as_array().unwrap().len(), 26);
    assert_eq!(left_out["of_another_size"][0]["height"], 25);
    assert_eq!(report["pictures"]["subjects_without_pictures"], serde_json::json!(["backpack"]));
    let scores = report["scores"].as_array().unwrap();
    assert_eq!(scores.len(), 722);
    // What is scored is scored as before.
    let before = values(&whole, "dino");
    assert!(values(&report, "dino").iter().all(|(id, score)| before[id] == *score));
    let subjects = report["subjects"].as_array().unwrap();
    assert_eq!((subjects.len(), &subjects[0]["pictures"]), (29, &serde_json::json!(22)));
}

#[test]
fn two_methods_are_compared_picture_by_picture() {
    let folders = Folders::new();
    folders.draw("ours", "dreambench/uno-multi", 0);
    folders.draw("theirs", "dreambench/uno-multi", 9);
    let theirs = folders.scored("multi", &["--pictures", "theirs"]);
    let (code, out, err) = run(&folders.command("multi", &["--pictures", "ours", "--compare", "theirs"]));
    assert_eq!(code, 0, "{err}");
    assert!(out.contains("theirs`, over 750 pictures of both"), "{out}");
    let report = folders.report();
    for metric in ["dino", "clip_i", "clip_t"] {
        let found = &report["compare"]["total"][metric];
        let difference = number(&report["total"][metric]["mean"]) - number(&theirs["total"][metric]["mean"]);
        near(&found["difference"], difference);
        if difference != 0.0 {
            assert!(number(&found["interval"][0]) < number(&found["interval"][1]), "{metric}");
        }
        assert_eq!(found.get("minimum_over_subjects").is_some(), metric != "clip_t", "a prompt is one");
        let (ours, theirs) = (values(&report, metric), values(&theirs, metric));
        let by_picture = found["by_picture"].as_object().unwrap();
        assert_eq!(by_picture.len(), 750);
        by_picture.iter().for_each(|(id, d)| near(d, ours[id] - theirs[id]));
    }
    let same = folders.scored("multi", &["--pictures", "ours", "--compare", "ours"]);
    for metric in ["dino", "clip_t"] {
        let found = &same["compare"]["total"][metric];
        assert_eq!((number(&found["difference"]), &found["interval"]), (0.0, &serde_json::json!([0.0, 0.0])));
    }
    // Of what only one of them has nothing is compared.
    fs::remove_file(folders.at("theirs/5_0.png")).unwrap();
    let (code, _, err) = run(&folders.command("multi", &["--pictures", "ours", "--compare", "theirs"]));
    assert!(code == 1 && err.contains("5_0.png"), "{err}");
    let some = folders.scored("multi", &["--pictures", "ours", "--compare", "theirs", "--incomplete"]);
    assert_eq!(some["compare"]["pictures_of_both"], 749);
}

#[test]
fn photographs_against_photographs_check_the_encoders() {
    let folders = Folders::new();
    let (code, out, err) = run(&folders.command("single", &["--real"]));
    assert_eq!(code, 0, "{err}");
    assert!(out.contains("nearest of the same subject") && !out.contains("CLIP-T"), "{out}");
    let report = folders.report();
    let can = folders.photographs("can");
    let embeddings: Vec<Vec<f32>> = can.iter().map(|p| embedding(&folders, false, p)).collect();
    let mut cosines = Vec::new();
    for (i, a) in embeddings.iter().enumerate() {
        cosines.extend(embeddings.iter().enumerate().filter(|(j, _)| *j != i).map(|(_, b)| cosine(a, b)));
    }
    near(&report["subjects"][4]["dino"]["mean"], mean(cosines.into_iter()));
    assert_eq!(report["subjects"][4]["subject"], "can");
    let hits = &report["total"]["dino"]["nearest_is_of_the_same_subject"];
    assert_eq!(hits["photographs"], 30 * can.len());
}

#[test]
fn the_rules_of_other_scripts_are_other_rules() {
    let folders = Folders::new();
    let preset = |name: &str| format!("benchmark.preset={name}");
    folders.draw("patchdpo", "dreambench/patchdpo-original", 3);
    let all = folders
        .scored("single", &["--pictures", "patchdpo", "--set", &preset("dreambench/patchdpo-original")]);
    let one =
        folders.scored("single", &["--pictures", "patchdpo", "--set", &preset("dreambench/patchdpo-kosmos")]);
    let ours = embedding(&folders, false, &folders.at("patchdpo/can/a red can.png"));
    let listed = embedding(&folders, false, &folders.at("dataset/can/01.png"));
    near(&serde_json::json!(values(&one, "dino")["can/a red can/0"]), cosine(&ours, &listed));
    assert_ne!(values(&all, "dino"), values(&one, "dino"));
    assert_eq!(values(&all, "clip_t"), values(&one, "clip_t"));
    let cosines = values(&all, "clip_t");
    assert!(cosines.values().any(|v| *v < 0.0), "cosines count as they are");
    let (cpu, clip) = (Cpu::new(1).unwrap(), folders.encoder("clip"));
    let text = Clip::open(&clip, ClipModel::Pair).unwrap();
    let ids = ClipTokenizer::open(&clip, 12, ClipModel::Pair).unwrap().encode("a red can").unwrap();
    let text = text.encode(&cpu, &cpu, 1, &ids).unwrap().pooled;
    let ours = embedding(&folders, true, &folders.at("patchdpo/can/a red can.png"));
    near(&serde_json::json!(cosines["can/a red can/0"]), cosine(&ours, text.values()));
    let (code, _, err) =
        run(&folders.command("single", &["--pictures", "patchdpo", "--set", &preset("dreambench/no")]));
    assert!(code == 1 && err.contains("dreambench/uno-multi"), "{err}");
}

#[test]
fn another_layout_needs_a_mapping_from_the_list_of_cases() {
    let folders = Folders::new();
    folders.draw("ours", "dreambench/uno-single", 0);
    let expected = folders.scored("single", &["--pictures", "ours"]);
    let (code, out, err) = run(&folders.command("single", &["--list"]));
    assert_eq!(code, 0, "{err}");
    let cases: Vec<Value> = out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((cases.len(), &cases[0]["listed_photographs"][0]), (750, &serde_json::json!("backpack/02")));
    let mut lines = String::new();
    fs::create_dir(folders.at("other")).unwrap();
    for (number, case) in cases.iter().enumerate() {
        let from = folders.at("ours").join(case["file"].as_str().unwrap());
        fs::copy(from, folders.at(&format!("other/x{number}.png"))).unwrap();
        lines +=
            &serde_json::json!({"id": case["id"], "picture": format!("other/x{number}.png")}).to_string();
        lines.push('\n');
    }
    fs::write(folders.at("mapping.jsonl"), lines).unwrap();
    let found = folders.scored("single", &["--set", "benchmark.mapping=mapping.jsonl"]);
    assert_eq!(values(&found, "clip_i"), values(&expected, "clip_i"));
    assert_eq!(found["total"], expected["total"]);
}

#[test]
fn a_graph_that_scores_is_planned_like_any_other_and_is_not_a_run() {
    let folders = Folders::new();
    folders.draw("ours", "dreambench/uno-multi", 0);
    let mut plan = folders.command("multi", &[]);
    plan[0] = "plan".into();
    plan.extend(["--set".into(), "benchmark.pictures=ours".into()]);
    let plan: Vec<String> = plan.into_iter().filter(|word| word != "--out").collect();
    let plan: Vec<String> = plan
        .iter()
        .map(|word| word.replace("=ours", &format!("={}", folders.at("ours").display())))
        .collect();
    let plan: Vec<String> = plan.into_iter().filter(|word| !word.ends_with("scores.json")).collect();
    let (code, out, err) = run(&plan);
    assert!(code == 0 && out.contains("750 pictures and 90 photographs"), "{out} {err}");
    let (code, _, err) = run(&plan[1..]);
    assert!(code == 1 && err.contains("graph-run evaluate"), "{err}");
    let (code, _, err) = run(&["evaluate".into(), "graphs/sample.ron".into()]);
    assert!(code == 1 && err.contains("0 nodes with the operator `benchmark`"), "{err}");
    let (code, _, err) = run(&["evaluate".into(), "graphs/evaluate/dreambench_single.ron".into()]);
    assert!(code == 1 && err.contains("is no folder"), "{err}");
}

#[test]
fn pictures_that_are_missing_are_drawn_as_the_preset_says_and_those_that_are_there_stay() {
    let folders = Folders::new();
    folders.draw_sized("ours", "dreambench/uno-multi", 0, 32);
    let kept = fs::read(folders.at("ours/1_0.png")).unwrap();
    for name in ["0_0.png", "749_0.png"] {
        fs::remove_file(folders.at("ours").join(name)).unwrap();
    }
    let sizes = ["--set", "benchmark.height=32", "--set", "benchmark.width=32"];
    let draw = ["--pictures", "ours", "--sample", "graphs/sample.ron"];
    let (code, out, err) = run(&folders.command("multi", &[&sizes[..], &draw].concat()));
    assert_eq!(code, 0, "{err}");
    assert!(out.contains("dog6+teapot") && !out.contains("INCOMPLETE"), "{out}");
    assert!(err.contains("2 pictures of `dreambench/uno-multi` are missing and drawn at seed 3407"), "{err}");
    assert_eq!(fs::read(folders.at("ours/1_0.png")).unwrap(), kept);

    // What `sample` draws of the same prompt.
    let mut words: Vec<String> =
        ["sample", "graphs/sample.ron", "--seed", "3407", "--steps", "25", "--size", "32x32"]
            .map(String::from)
            .into();
    for set in ["pairs.reference_height=320", "pairs.reference_width=320"] {
        words.extend(["--set".into(), set.into()]);
    }
    words.extend(["--prompt".into(), "a cube shaped dog, next to it is a teapot".into()]);
    for photograph in ["dog6/02.png", "teapot/04.png"] {
        words.extend(["--ref".into(), folders.at("dataset").join(photograph).display().to_string()]);
    }
    words.extend(["--out".into(), folders.at("alone").display().to_string()]);
    let (code, _, err) = run(&words);
    assert_eq!(code, 0, "{err}");
    let alone = fs::read_dir(folders.at("alone")).unwrap().next().unwrap().unwrap().path();
    let pixels = |path: &std::path::Path| image::open(path).unwrap().into_rgb8().into_raw();
    assert_eq!(pixels(&folders.at("ours/749_0.png")), pixels(&alone));

    let original = ["--set", "benchmark.preset=dreambench/patchdpo-original"];
    let (code, _, err) = run(&folders.command("single", &[&original[..], &draw].concat()));
    assert!(code == 1 && err.contains("does not say how one network draws"), "{err}");
}
