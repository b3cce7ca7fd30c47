//! Training longer, at another rate, in micro-batches.

use crate::*;

#[test]
fn a_finished_run_goes_on_for_more_steps_and_the_next_resume_knows_them() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("r");
    runs(&out, &[&DEMO, &["--set", "update.warmup=0", "--steps", "4"]]);
    // The recipe's cosine has ended: its end moves, and the rate with it, which is said.
    let said = runs(&out, &[&DEMO, &["--steps", "6", "--resume"]]);
    for part in
        ["run.steps: 4 -> 6", "update.steps: 4 -> 6", "schedule had ended at update 4", "jumps from 0 to"]
    {
        assert!(said.contains(part), "{part} in {said}");
    }
    assert_eq!((metrics(&out).len(), adapter_step(&out), checkpoints(&out).last()), (6, 6, Some(&6)));

    // Without `--steps`, and without any other word of the first command line.
    let said = runs(&out, &[&["graphs/sft.ron", "--resume"]]);
    assert!(said.contains("complete: it has 6 steps of 6"), "{said}");
    assert!(said.contains("--set run.steps=6") && said.contains("--set pairs.batch=2"), "{said}");
    let said = runs(&out, &[&["graphs/sft.ron", "--resume", "--steps", "7"]]);
    assert!(said.contains("complete: 7 steps"), "{said}");
}

/// The graph of the folder states all values, in the place of `@run.steps`, too.
#[test]
fn a_run_that_goes_on_by_its_folder_is_the_run_that_goes_on_by_its_recipe() {
    let dir = tempfile::tempdir().unwrap();
    let (by_recipe, by_folder) = (dir.path().join("recipe"), dir.path().join("folder"));
    for (out, graph) in [(&by_recipe, "graphs/sft.ron"), (&by_folder, by_folder.to_str().unwrap())] {
        runs(out, &[&DEMO, &["--set", "update.warmup=0", "--steps", "4"]]);
        let said = runs(out, &[&[graph, "--resume", "--steps", "6"]]);
        assert!(!said.contains("of another run"), "{said}");
    }
    assert!(metrics(&by_folder) == metrics(&by_recipe));
    assert!(adapter(&by_folder) == adapter(&by_recipe));
}

#[test]
fn a_run_with_a_constant_rate_that_goes_on_is_the_longer_run() {
    let dir = tempfile::tempdir().unwrap();
    let (whole, out) = (dir.path().join("whole"), dir.path().join("r"));
    let constant = ["--set", "update.schedule=constant"];
    runs(&whole, &[&DEMO, &constant, &["--steps", "14"]]);
    runs(&out, &[&DEMO, &constant, &["--steps", "11"]]);
    let said = runs(&out, &[&DEMO, &constant, &["--steps", "14", "--resume"]]);
    assert!(said.contains("the learning rate stays 1.000e-4"), "{said}");
    // Held-out pairs are measured when a run ends, and the shorter one ended earlier.
    let trained = |out: &Path| {
        let mut lines = metrics(out);
        for line in &mut lines {
            line.as_object_mut().unwrap().retain(|name, _| !name.starts_with("held_out."));
        }
        lines
    };
    assert!(trained(&out) == trained(&whole), "the longer run has other metrics");
    assert!(adapter(&out) == adapter(&whole));
}

#[test]
fn another_rate_is_shown_with_both_values_and_goes_on_only_if_it_is_accepted() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("r");
    let constant = ["--set", "update.schedule=constant", "--set", "update.warmup=0", "--steps", "4"];
    runs(&out, &[&DEMO, &constant, &EVERY]);
    fs::remove_dir_all(out.join("checkpoints/step-4")).unwrap();
    let rate = ["--resume", "--set", "update.lr=2e-4"];
    let said = refused(&out, &[&DEMO, &rate]);
    for part in ["update.lr: 0.0001 -> 0.0002", "jumps from 1.000e-4 to 2.000e-4", "--accept-changes"] {
        assert!(said.contains(part), "{part} in {said}");
    }
    let said = runs(&out, &[&DEMO, &rate, &["--accept-changes"]]);
    assert!(said.contains("and accepted"), "{said}");
    assert_eq!(metrics(&out)[3]["lr"], 2e-4);
    // From now on this is how the run is trained.
    let said = runs(&out, &[&["graphs/sft.ron", "--resume", "--steps", "5"]]);
    assert!(!said.contains("accepted"), "{said}");
    assert_eq!(metrics(&out)[4]["lr"], 2e-4);
}

#[test]
fn changes_that_were_accepted_need_not_be_accepted_again_before_there_is_another_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("r");
    let more = [
        "--steps",
        "100000",
        "--set",
        "update.schedule=constant",
        "--set",
        "update.warmup=0",
        "--set",
        "run.checkpoint_every=0",
    ];
    let mut run = Living::start(command(&out, &[&DEMO, &more])).until(&out, 2);
    run.send("INT");
    run.end();
    let made = metrics(&out).len();
    let changed = ["--resume", "--set", "update.lr=5e-4"];
    let mut run = Living::start(command(&out, &[&DEMO, &more, &changed, &["--accept-changes"]]));
    run = run.until(&out, made + 2);
    run.send("KILL");
    run.end();
    let mut run = Living::start(command(&out, &[&["graphs/sft.ron", "--resume"]])).until(&out, made + 4);
    run.send("INT");
    let said = stderr(&run.end());
    assert!(said.contains("accepted before") && said.contains("did not end by itself"), "{said}");
    assert_eq!(metrics(&out).last().unwrap()["lr"], 5e-4);
}

#[test]
fn a_schedule_that_has_ended_before_the_run_has_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("r");
    let cosine = ["--set", "update.steps=3", "--set", "update.warmup=0"];
    runs(&out, &[&DEMO, &cosine, &["--steps", "3"]]);
    let said = runs(&out, &[&DEMO, &cosine, &["--steps", "4", "--resume"]]);
    assert!(said.contains("the learning rate stays 0"), "{said}");
}

#[test]
fn micro_batches_that_make_no_update_are_said_and_are_not_lost() {
    let dir = tempfile::tempdir().unwrap();
    let (whole, out) = (dir.path().join("whole"), dir.path().join("r"));
    let more = ["--set", "update.schedule=constant", "--set", "update.accumulate=3"];
    let said = runs(&whole, &[&DEMO, &more, &["--steps", "6"]]);
    assert!(!said.contains("left over"), "{said}");
    let said = runs(&out, &[&DEMO, &more, &["--steps", "5"]]);
    assert!(said.contains("5 steps make 1 update of 3 micro-batches, with 2 left over"), "{said}");
    assert!(said.contains("ends 2 micro-batches into an update of 3"), "{said}");
    runs(&out, &[&DEMO, &more, &["--steps", "6", "--resume"]]);
    let lines = metrics(&out);
    assert_eq!(lines, metrics(&whole));
    assert!(adapter(&out) == adapter(&whole));

    let numbers = |name: &str| lines.iter().map(|l| l[name].as_f64()).collect::<Vec<_>>();
    assert_eq!(numbers("micro_batch"), [1., 2., 3., 1., 2., 3.].map(Some));
    assert_eq!(numbers("update"), [0., 0., 1., 1., 1., 2.].map(Some));
    let (loss, update) = (numbers("loss"), numbers("update_loss"));
    assert_eq!((update[0], update[1], update[3]), (None, None, None));
    let mean = |at: usize| loss[at - 2..=at].iter().map(|l| l.unwrap()).sum::<f64>() / 3.0;
    assert_eq!((update[2], update[5]), (Some(mean(2)), Some(mean(5))));
}

#[test]
fn what_changes_no_bit_need_not_be_accepted_and_what_changes_nothing_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let (whole, out) = (dir.path().join("whole"), dir.path().join("r"));
    let constant = ["--set", "update.schedule=constant", "--steps"];
    runs(&whole, &[&DEMO, &constant, &["4"]]);
    runs(&out, &[&DEMO, &constant, &["2"]]);
    let free = ["--set", "backbone.checkpointing=blocks", "--set", "backbone.packing=streamed"];
    let said = runs(&out, &[&["graphs/sft.ron", "--resume", "--steps", "4"], &free]);
    assert!(
        said.contains("without effect on what is trained") && said.contains("checkpointing: none -> blocks"),
        "{said}"
    );
    assert!(adapter(&out) == adapter(&whole));

    // A run's folder stands for its graph, and with `--resume` for the run.
    let mut command = Command::new(cargo_bin("graph-run"));
    command.current_dir(root()).args([out.to_str().unwrap(), "--resume"]).stdin(Stdio::null());
    let said = String::from_utf8(command.output().unwrap().stderr).unwrap();
    assert!(said.contains("the run is complete: it has 4 steps of 4"), "{said}");

    let from = format!("lora.from={}", whole.join("adapter.safetensors").display());
    for start in [&*from, "lora.init=kaiming"] {
        let said = refused(&out, &[&["graphs/sft.ron", "--resume", "--steps", "5", "--set", start]]);
        assert!(said.contains("read when a run begins") && said.contains("so there is no effect"), "{said}");
    }
}

#[test]
fn targets_that_were_trained_cannot_be_taken_away() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("r");
    runs(&out, &[&DEMO, &["--steps", "2"]]);
    let before = adapter(&out);
    for targets in [r#"["attn.to_q"]"#, r#"["attn.to_q", "ff.net.0.proj", "attn.to_out.0"]"#] {
        let targets = format!("lora.targets={targets}");
        let fewer = ["graphs/sft.ron", "--resume", "--steps", "3", "--accept-changes", "--set", &targets];
        let said = refused(&out, &[&fewer]);
        assert!(
            said.contains("cell `lora` cannot be restored")
                && said.contains("which the graph's adapter has not"),
            "{said}"
        );
        assert!(said.contains("--out starts a new run elsewhere"), "{said}");
    }
    assert!(adapter(&out) == before);
}
