//! Data and weights that have changed since a checkpoint.

use std::{
    io::Write,
    time::{Duration, SystemTime},
};

use crate::*;

/// A run of four steps on a copy of the demo, without its last checkpoint.
struct Case {
    dir: tempfile::TempDir,
    data: PathBuf,
    out: PathBuf,
}

impl Case {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (data, out) = (dir.path().join("demo"), dir.path().join("r"));
        copy(&root().join("data/demo"), &data);
        let case = Self { dir, data, out };
        runs(&case.out, &[&DEMO, &case.sets(&case.data).each(), &EVERY, &["--steps", "4"]]);
        fs::remove_dir_all(case.out.join("checkpoints/step-4")).unwrap();
        case
    }

    fn sets(&self, data: &Path) -> Sets {
        let path = format!("pairs.path={}", data.join("pairs.jsonl").display());
        let weights = format!("backbone.weights={}", data.join("backbone").display());
        Sets(["--set".into(), path, "--set".into(), weights])
    }

    /// Resume, which must be refused; what was said.
    fn refused(&self) -> String {
        refused(&self.out, &[&["graphs/sft.ron", "--resume"]])
    }

    fn resumes(&self) -> String {
        runs(&self.out, &[&["graphs/sft.ron", "--resume"]])
    }
}

struct Sets([String; 4]);

impl Sets {
    fn each(&self) -> [&str; 4] {
        self.0.each_ref().map(String::as_str)
    }
}

/// All files below a folder get another modification time.
fn touch(folder: &Path) {
    for path in files(folder).into_keys() {
        let file = fs::File::options().write(true).open(path).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(3600)).unwrap();
    }
}

#[test]
fn a_pair_more_or_less_or_with_another_prompt_is_named_and_has_to_be_accepted() {
    let case = Case::new();
    let list = case.data.join("pairs.jsonl");
    let text = fs::read_to_string(&list).unwrap();
    let first = text.lines().next().unwrap();
    let more = format!("{text}{}\n", first.replace("\"demo-000\"", "\"new\""));
    fs::write(&list, more).unwrap();
    let said = case.refused();
    assert!(said.contains("pairs.path: 1 sample was added: `new`"), "{said}");
    assert!(said.contains("--accept-changes"), "{said}");

    fs::write(&list, text.lines().skip(7).map(|l| format!("{l}\n")).collect::<String>()).unwrap();
    let said = case.refused();
    assert!(said.contains("7 samples were removed: `demo-000`, ") && said.contains("and 2 more"), "{said}");

    fs::write(
        &list,
        text.replace("photo of", "drawing of").replacen("\"prompt\": \"", "\"prompt\": \"A ", 1),
    )
    .unwrap();
    let said = case.refused();
    assert!(said.contains("has another prompt") || said.contains("have other prompts"), "{said}");

    let turned: Vec<String> = text.lines().rev().map(|l| format!("{l}\n")).collect();
    fs::write(&list, turned.concat()).unwrap();
    assert!(case.refused().contains("in another order"));
    let said = runs(&case.out, &[&["graphs/sft.ron", "--resume", "--accept-changes"]]);
    assert!(said.contains("and accepted"), "{said}");

    // Other white space is no other data.
    fs::remove_dir_all(case.out.join("checkpoints/step-4")).unwrap();
    fs::write(&list, text.replace("\n", "\n\n")).unwrap();
    assert!(case.resumes().contains("complete: 4 steps"));
}

#[test]
fn another_picture_is_noticed_and_one_that_was_only_touched_is_not_another() {
    let case = Case::new();
    touch(&case.data);
    let said = case.resumes();
    assert!(!said.contains("accepted") && said.contains("complete: 4 steps"), "{said}");

    let case = Case::new();
    let images = case.data.join("images");
    fs::copy(images.join("demo-005-win.jpg"), images.join("demo-003-win.jpg")).unwrap();
    fs::File::options()
        .append(true)
        .open(images.join("demo-004-lose.jpg"))
        .unwrap()
        .write_all(b"\n")
        .unwrap();
    let said = case.refused();
    assert!(said.contains("2 samples have other pictures or masks: `demo-003`, `demo-004`"), "{said}");
}

#[test]
fn other_weights_are_noticed_and_have_to_be_accepted() {
    let case = Case::new();
    let file = case.data.join("backbone/diffusion_pytorch_model.safetensors");
    let mut bytes = fs::read(&file).unwrap();
    let last = bytes.len() - 2;
    bytes[last] ^= 1;
    fs::write(&file, bytes).unwrap();
    let said = case.refused();
    assert!(said.contains("backbone.weights: the contents differ"), "{said}");
}

#[test]
fn what_is_moved_unchanged_is_the_same() {
    let case = Case::new();
    let moved = case.dir.path().join("moved");
    copy(&case.data, &moved);
    fs::remove_dir_all(&case.data).unwrap();
    let said = runs(&case.out, &[&["graphs/sft.ron", "--resume"], &case.sets(&moved).each()]);
    assert_eq!(said.matches("(moved: same contents)").count(), 2, "{said}");
    // From now on it is known to be there.
    fs::remove_dir_all(case.out.join("checkpoints/step-4")).unwrap();
    let said = case.resumes();
    assert!(said.contains("complete: 4 steps"), "{said}");
}

#[test]
fn settings_of_what_is_written_beside_training_need_no_word() {
    let case = Case::new();
    let said = runs(&case.out, &[&["graphs/sft.ron", "--resume", "--set", "export.formats=[diffusers]"]]);
    assert!(said.contains("without effect on what is trained"), "{said}");
    assert!(said.contains("export.formats: "), "{said}");
}

#[test]
fn other_held_out_pairs_are_shown_and_need_not_be_accepted() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("r");
    runs(&out, &[&DEMO, &["--steps", "2", "--set", "held_out.first=4"]]);
    let said = runs(&out, &[&DEMO, &["--steps", "3", "--set", "held_out.first=8", "--resume"]]);
    let (_, harmless) = said.split_once("without effect on what is trained").unwrap();
    for part in ["held_out.first: 4 -> 8", "held_out.path: 4 samples were added"] {
        assert!(harmless.contains(part), "{part} in {said}");
    }
}

#[test]
fn a_remembered_setting_of_a_node_that_was_removed_is_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("r");
    runs(&out, &[&DEMO, &["--steps", "2", "--set", "held_out_log.every=40"]]);
    let graph = dir.path().join("sft.ron");
    let parent = root().join("graphs/sft.ron");
    let text = format!("Graph(extends: {parent:?}, name: \"sft\", remove: [\"held_out*\"])");
    fs::write(&graph, text).unwrap();
    let resume = [graph.to_str().unwrap(), "--resume", "--accept-changes", "--steps"];
    let said = runs(&out, &[&resume, &["3"]]);
    assert!(said.contains("`--set held_out_log.every=40` of this run is forgotten"), "{said}");
    assert!(said.contains("complete: 3 steps"), "{said}");
    let again = runs(&out, &[&resume, &["4"]]);
    assert!(!again.contains("forgotten"), "{again}");
}

#[test]
fn what_no_acceptance_can_mend_is_said_before_it_is_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("r");
    runs(&out, &[&DEMO, &["--steps", "2"]]);
    for change in ["lora.rank=4", r#"lora.targets=["attn.to_q"]"#] {
        for accepted in [&[][..], &["--accept-changes"]] {
            let said =
                refused(&out, &[&["graphs/sft.ron", "--resume", "--steps", "4", "--set", change], accepted]);
            assert!(said.contains("it cannot go on, accepted or not") && said.contains("lora."), "{said}");
            assert!(!said.contains("--accept-changes continues"), "{said}");
        }
    }
}
