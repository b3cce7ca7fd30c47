//! What is planned and what is refused, before anything runs.

use serde_json::Value;

use super::{DEMO, GAMMA, TAU, command, good, refused, stderr};

fn plan(args: &[&[&str]]) -> Value {
    let (text, _) = good(&[&["plan", "--json"], &args.concat()]);
    serde_json::from_str(&text).unwrap()
}

#[test]
fn a_plan_says_what_is_shared_and_what_that_saves() {
    let found = plan(&[&DEMO, &TAU, &GAMMA]);
    let of = |shared: bool| {
        let nodes = found["nodes"].as_array().unwrap().iter();
        let mut ids: Vec<&str> =
            nodes.filter(|n| n["shared"] == shared).map(|n| n["id"].as_str().unwrap()).collect();
        ids.sort_unstable();
        ids
    };
    let own = [
        "export",
        "found",
        "fuse",
        "held_out_errors",
        "held_out_found",
        "held_out_fuse",
        "held_out_log",
        "held_out_measure",
        "held_out_policy",
        "held_out_structure",
        "log",
        "lora",
        "loss",
        "moments",
        "policy",
        "preview",
        "structure",
        "update",
    ];
    assert_eq!(of(false), own);
    // The data, the encoders, the noise, the reference pass and the winner's detail.
    for id in ["pairs", "winner", "noise", "backbone", "reference", "detail", "held_out_reference"] {
        assert!(of(true).contains(&id), "{id}");
    }
    let alone = plan(&[&DEMO]);
    let flops =
        |node: &Value| node["forward_flops"].as_f64().unwrap() + node["backward_flops"].as_f64().unwrap();
    let reference = alone["nodes"].as_array().unwrap().iter().find(|n| n["id"] == "reference").unwrap();
    let (together, apart) = (&found["together"]["flops"], &found["apart"]["flops"]);
    let (together, apart) = (together.as_f64().unwrap(), apart.as_f64().unwrap());
    // At least three of four reference passes are saved in each of six steps.
    assert!(apart - together >= 0.999 * 6.0 * 3.0 * flops(reference), "{together} {apart}");
    assert!((found["flops_ratio"].as_f64().unwrap() - together / apart).abs() < 1e-12);
    let (text, _) = good(&[&["plan"], &DEMO, &TAU, &GAMMA]);
    assert!(text.contains("shared by all variants, 20 nodes") && text.contains("4 runs in turn"), "{text}");
}

#[test]
fn a_setting_that_reaches_less_shares_more() {
    let copies = |over: &[&str], id: &str| {
        let found = plan(&[&DEMO, over]);
        let nodes = found["nodes"].as_array().unwrap();
        nodes.iter().find(|n| n["id"] == id).unwrap()["copies"].as_u64().unwrap()
    };
    assert_eq!(copies(&["--over", "detail.bins=16,32", "--over", "update.lr=1e-4,1e-3"], "detail"), 2);
    assert_eq!(copies(&["--over", "time.shift=1,3", "--over", "update.lr=1e-4,1e-3"], "winner"), 1);
}

#[test]
fn what_cannot_be_swept_is_refused_in_its_place() {
    for (over, message, place) in [
        (&["fuse.tua=0.1,0.2"][..], "`fuse` has no setting `tua`", "did you mean `tau`"),
        (&["fues.tau=0.1,0.2"], "there is no node `fues`", "did you mean `fuse`"),
        (&["fuse.tau=0.1,much"], "`tau` of `fuse` cannot be", "much"),
        (&["fuse.tau=0.1,1.5"], "refuses its settings: tau 1.5", "1.5"),
        (&["fuse.tau=0.1,1e-1"], "variants 1 and 2 are the same", "leave one of them out"),
        (&["fuse.tau=0.1,0.2", "fuse.tau=0.3"], "`fuse.tau` is varied twice", "first here"),
        (&["fuse.tau=0.1,0.2; fuse.gamma=0.3"], "2 values and `fuse.gamma` has 1", "value by value"),
        (
            &["pairs.shuffle=true,false"],
            "this reaches the data: `pairs`",
            "the same samples in the same order",
        ),
        (
            &["fuse.tau=0.1,0.2", "held_out.shuffle=true,false"],
            "this reaches the data: `held_out`",
            "held_out.shuffle",
        ),
        (&["run.seed=0,1"], "`run.seed` cannot be varied", "--seed sets the seed of all"),
        (&["run.steps=5,6"], "`run.steps` cannot be varied", "all variants are one run"),
        (&["log.every=1,2"], "`log.every` changes nothing of what is trained", "one and the same adapter"),
        (&["fuse.tau"], "an equals sign and values are needed", "--over fuse.tau=V1,V2"),
        (&[], "nothing is varied", "--over fuse.tau="),
    ] {
        let lists: Vec<&str> = over.iter().flat_map(|list| ["--over", *list]).collect();
        let output =
            command(&[&["sweep"], &DEMO, &lists, &["--out", "/nonexistent/sweep"]]).output().unwrap();
        let said = stderr(&output);
        assert!(matches!(output.status.code(), Some(1 | 2)), "{over:?}: {said}");
        // Lines of a picture are broken.
        let flat = said.split_whitespace().collect::<Vec<_>>().join(" ").replace(" │ ", " ");
        assert!(flat.contains(message) && flat.contains(place), "{over:?}: {said}");
    }
    let said = refused(&[&["plan"], &DEMO, &TAU, &["--set", "fuse.tau=0.3"]]);
    assert!(said.contains("`fuse.tau` is set and varied at once"), "{said}");
}

#[test]
fn more_variants_than_memory_holds_are_refused_with_the_number_that_fits() {
    let gpu = ["--device", "cuda:0", "--over", "update.lr=1e-4,2e-4,3e-4,4e-4,5e-4,6e-4,7e-4,8e-4"];
    let needed = |count: usize| {
        let rates: Vec<String> = (1..=count).map(|n| format!("{n}e-4")).collect();
        let list = format!("update.lr={}", rates.join(","));
        let found = good(&[&["plan", "--json"], &DEMO, &gpu[..2], &["--over", &list]]).0;
        let found: Value = serde_json::from_str(&found).unwrap();
        found["together"]["gpu_peak_bytes"].as_u64().unwrap()
    };
    let (three, four) = (needed(3), needed(4));
    assert!(three < four, "{three} {four}");
    let room = format!("{}MB", (three + (four - three) / 2) as f64 / 1e6);
    let said = refused(&[&["plan"], &DEMO, &gpu, &["--gpu-memory", &room]]);
    assert!(said.contains("8 variants need") && said.contains("3 of them would fit"), "{said}");
}
