//! Divergence, full disks, files that are cut.

use crate::*;

const FAR: [&str; 4] = ["--set", "update.warmup=0", "--set", "update.max_grad_norm=0"];

/// Every value of a checkpoint and of the adapter is of use.
fn nothing_is_spoilt(out: &Path) {
    use prefgraph_nn::files::TensorFiles;
    let steps =
        checkpoints(out).into_iter().map(|s| out.join(format!("checkpoints/step-{s}/cells.safetensors")));
    for path in steps.chain([out.join("adapter.safetensors")]).filter(|p| p.exists()) {
        let file = TensorFiles::open(&path).unwrap();
        for name in file.names() {
            assert!(file.read(name).unwrap().iter().all(|v| v.abs() < 1e18), "{name} of {}", path.display());
        }
    }
}

#[test]
fn a_run_that_diverges_writes_nothing_of_it_and_can_be_gone_on_with_at_a_lower_rate() {
    for rate in ["1e30", "3e38"] {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("r");
        let constant = ["--set", "update.schedule=constant", "--set", "run.checkpoint_every=1"];
        runs(&out, &[&DEMO, &FAR, &constant, &["--steps", "2"]]);
        let lr = format!("update.lr={rate}");
        let more = ["--resume", "--steps", "6", "--set", &lr, "--accept-changes"];
        let failed = graph_run(&out, &[&["graphs/sft.ron"], &more]);
        let said = stderr(&failed);
        assert_eq!(failed.status.code(), Some(1), "{said}");
        assert!(said.contains("the training has diverged: a lower learning rate helps"), "{said}");
        assert!(said.contains("--set update.lr=LOWER"), "{said}");
        assert!(said.contains("the checkpoint of step 2"), "{said}");
        nothing_is_spoilt(&out);
        assert_eq!(adapter_step(&out), 2, "the last good one stays");
        let more = ["--resume", "--set", "update.lr=1e-3", "--accept-changes"];
        runs(&out, &[&["graphs/sft.ron"], &more]);
        assert_eq!((metrics(&out).len(), adapter_step(&out)), (6, 6));
    }
}

/// The state is within range, and the next step is not.
#[test]
fn a_checkpoint_from_which_the_next_step_diverges_is_set_aside() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("r");
    let more =
        ["--set", "update.lr=1e15", "--set", "run.checkpoint_every=1", "--set", "run.keep_checkpoints=1"];
    // Held-out pairs would show it a step earlier.
    let alone = ["--set", "held_out.first=2", "--steps", "6"];
    let failed = graph_run(&out, &[&DEMO, &FAR, &more, &alone]);
    let said = stderr(&failed);
    assert_eq!(failed.status.code(), Some(1), "{said}");
    assert!(
        said.contains("diverges; that checkpoint is now `") && said.contains("step-1.diverged"),
        "{said}"
    );
    assert_eq!(checkpoints(&out), [0], "one that is not proven does not push the one before out");
    let more = ["--resume", "--set", "update.lr=1e-3", "--accept-changes"];
    runs(&out, &[&["graphs/sft.ron"], &more]);
    assert_eq!((metrics(&out).len(), checkpoints(&out)), (6, vec![6]));
    assert!(!out.join("checkpoints/step-1.diverged").exists());
}

/// There the scores of the policy are looked at before its error is.
#[test]
fn a_checkpoint_from_which_a_focus_mask_diverges_is_set_aside_too() {
    let dir = tempfile::tempdir().unwrap();
    let (graph, out) = (dir.path().join("alone.ron"), dir.path().join("r"));
    let parent = root().join("graphs/focusdpo.ron");
    let text = format!("Graph(extends: {parent:?}, name: \"alone\", remove: [\"held_out*\", \"preview\"])");
    fs::write(&graph, text).unwrap();
    let graph = graph.to_str().unwrap();
    let small = [
        "--set",
        "pairs.batch=2",
        "--set",
        "run.checkpoint_every=1",
        "--set",
        "update.lr=1e12",
        "--steps",
        "6",
    ];
    let failed = graph_run(&out, &[&[graph], &small, &FAR]);
    let said = stderr(&failed);
    assert_eq!(failed.status.code(), Some(1), "{said}");
    assert!(said.contains("the score of reference 0") && said.contains("step-1.diverged"), "{said}");
    runs(&out, &[&[graph, "--resume", "--set", "update.lr=1e-4", "--accept-changes"]]);
    assert_eq!(metrics(&out).len(), 6);
}

/// A shell's limit would end the process by a signal.
#[cfg(unix)]
#[test]
fn a_file_that_outgrows_the_limit_of_the_process_ends_the_run_with_a_sentence_and_it_goes_on_later() {
    let dir = tempfile::tempdir().unwrap();
    let (whole, out) = (dir.path().join("whole"), dir.path().join("r"));
    runs(&whole, &[&[CASE], &EVERY]);
    let limited = std::process::Command::new("sh")
        .args(["-c", "ulimit -f 8 && exec \"$@\"", "sh"])
        .arg(cargo_bin!("graph-run"))
        .args([CASE, "--out"])
        .arg(&out)
        .args(EVERY)
        .current_dir(root())
        .output()
        .unwrap();
    let said = stderr(&limited);
    assert_eq!(limited.status.code(), Some(1), "{said}");
    assert!(said.contains("File too large") && !said.contains(".writing"), "{said}");
    runs(&out, &[&[CASE, "--resume"], &EVERY]);
    assert!(adapter(&out) == adapter(&whole));
}

/// No file may grow beyond some kilobytes: a full disk, as far as one can be had without being root.
#[cfg(unix)]
#[test]
fn a_disk_that_is_full_when_the_adapter_is_written_costs_the_adapter_only_and_it_is_written_later() {
    let dir = tempfile::tempdir().unwrap();
    let (whole, out) = (dir.path().join("whole"), dir.path().join("r"));
    // Without the moments in the checkpoint the adapter is the largest file.
    runs(&whole, &[&[CASE], &EVERY]);
    killed_at(&whole, &out, 5);
    fs::remove_file(out.join("adapter.safetensors")).unwrap();
    fs::create_dir(out.join("adapter.safetensors")).unwrap();
    let failed = graph_run(&out, &[&[CASE, "--resume"], &EVERY]);
    let said = stderr(&failed);
    assert_eq!(failed.status.code(), Some(1), "{said}");
    assert!(said.contains("adapter.safetensors") && said.contains("--resume continues from there"), "{said}");
    fs::remove_dir(out.join("adapter.safetensors")).unwrap();
    runs(&out, &[&[CASE, "--resume"], &EVERY]);
    assert!(adapter(&out) == adapter(&whole));
    assert_eq!(metrics(&out), metrics(&whole));
}

#[test]
fn weights_that_are_cut_while_a_run_uses_them_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let (weights, out) = (dir.path().join("backbone"), dir.path().join("r"));
    copy(&root().join("data/demo/backbone"), &weights);
    let set = format!("backbone.weights={}", weights.display());
    // Packed weights are read once; streamed ones at every step.
    let more = ["--set", &set, "--steps", "100000", "--set", "backbone.packing=resident"];
    let run = Living::start(command(&out, &[&DEMO, &more])).until(&out, 2);
    let file = weights.join("diffusion_pytorch_model.safetensors");
    fs::File::options().write(true).open(&file).unwrap().set_len(4096).unwrap();
    let ended = run.end();
    let said = stderr(&ended);
    assert_eq!(ended.status.code(), Some(1), "{said}");
    assert!(said.contains("diffusion_pytorch_model.safetensors: was truncated from"), "{said}");
    assert!(said.contains("while in use"), "{said}");
}

#[test]
fn a_graph_that_trains_nothing_or_no_adapter_says_so_before_it_starts() {
    let dir = tempfile::tempdir().unwrap();
    let said = |name: &str, graph: &str| {
        let path = dir.path().join(format!("{name}.ron"));
        let text = graph.replace("PARENT", root().join("graphs/sft.ron").to_str().unwrap());
        fs::write(&path, text).unwrap();
        runs(&dir.path().join(name), &[&[path.to_str().unwrap(), "--steps", "1"], &DEMO[1..]])
    };
    let nothing = said(
        "nothing",
        r#"Graph(extends: "PARENT", carry: {"lora": None}, remove: ["update", "moments", "export", "held_out*"],
            nodes: [(id: "log", in: (metrics: ["loss.metrics"]))])"#,
    );
    let warning = nothing.find("warning: the graph carries nothing from step to step, so nothing is trained");
    assert!(warning.unwrap() < nothing.find("step 1/1").unwrap(), "{nothing}");
    let idle = said(
        "idle",
        r#"Graph(extends: "PARENT", carry: {"lora": "other"}, remove: ["update", "moments", "export", "held_out*"],
            nodes: [
                (id: "other", op: "lora", in: (backbone: "backbone"), with: (rank: 8)),
                (id: "log", in: (metrics: ["loss.metrics"])),
            ])"#,
    );
    assert!(idle.contains("warning: nothing reads a gradient of what the graph carries"), "{idle}");
    let sampled = runs(
        &dir.path().join("sampled"),
        &[&["graphs/sample.ron", "--steps", "1", "--set", "reference.steps=1"]],
    );
    assert!(sampled.contains("note: the graph carries nothing"), "{sampled}");
}

#[test]
fn steps_before_a_picture_that_cannot_be_read_are_not_lost() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("r");
    let picture = |name: &str, value: u8| {
        let path = dir.path().join(name);
        image::RgbImage::from_fn(64, 64, |x, y| image::Rgb([x as u8, y as u8, value])).save(&path).unwrap();
        path
    };
    let mut lines = String::new();
    for sample in 0..4u8 {
        let (win, lose) = (format!("w{sample}.png"), format!("l{sample}.png"));
        picture(&win, sample);
        picture(&lose, 100 + sample);
        lines += &format!(r#"{{"prompt": "", "refs": ["{win}"], "win": "{win}", "lose": "{lose}"}}"#);
        lines += "\n";
    }
    let pairs = dir.path().join("pairs.jsonl");
    fs::write(&pairs, lines).unwrap();
    // Cut short: its name is there, and what it is shows when it is read.
    let third = dir.path().join("w2.png");
    let whole = fs::read(&third).unwrap();
    fs::write(&third, &whole[..whole.len() / 2]).unwrap();
    let path = format!("pairs.path={}", pairs.display());
    let one_by_one =
        ["--set", &path, "--set", "pairs.batch=1", "--set", "pairs.shuffle=false", "--steps", "4"];
    let failed = graph_run(&out, &[&DEMO, &one_by_one]);
    let said = stderr(&failed);
    assert!(failed.status.code() == Some(1) && said.contains("w2.png"), "{said}");
    assert!(
        said.contains("the checkpoint of step 2") && said.contains("--resume continues from there"),
        "{said}"
    );
    assert_eq!((checkpoints(&out), metrics(&out).len()), (vec![0, 2], 2));
    fs::write(&third, whole).unwrap();
    // The picture is another one now.
    runs(&out, &[&["graphs/sft.ron", "--resume", "--accept-changes"]]);
    assert_eq!(metrics(&out).len(), 4);
}
