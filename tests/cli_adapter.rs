//! Adapter files from a run: in the formats that a graph asks for, shown, converted and refused.

mod copy;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use assert_cmd::cargo::cargo_bin;
use copy::copy;
use prefgraph_nn::files::{NamedTensor, TensorFiles, write_safetensors};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn graph_run(args: &[&str]) -> Output {
    Command::new(cargo_bin("graph-run")).current_dir(root()).args(args).env("NO_COLOR", "1").output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[track_caller]
fn succeeds(args: &[&str]) -> Output {
    let output = graph_run(args);
    assert!(output.status.success(), "{}", text(&output.stderr));
    output
}

#[track_caller]
fn refused(args: &[&str]) -> String {
    let output = graph_run(args);
    assert!(!output.status.success());
    text(&output.stderr)
}

/// A graph that extends a golden replay by an export after every step.
fn graph(folder: &Path, formats: &str) -> PathBuf {
    let path = folder.join("exporting.ron");
    let parent = root().join("graphs/replay/sft.ron");
    let text = format!(
        "Graph(extends: {:?}, name: \"exporting\", nodes: [(id: \"export\", op: \"export\", in: (adapter: \"update.adapter\"), \
         with: (every: 1, formats: {formats}))])",
        parent.to_str().unwrap()
    );
    fs::write(&path, text).unwrap();
    path
}

/// Copy a file with other names for its tensors, without its header, and with further tensors.
fn renamed(from: &str, to: &str, name: impl Fn(&str) -> String, more: Vec<NamedTensor<'static>>) {
    let files = TensorFiles::open(Path::new(from)).unwrap();
    let mut tensors: Vec<NamedTensor<'_>> = files
        .names()
        .map(|n| {
            let info = files.info(n).unwrap();
            let bytes = files.bytes(n).unwrap().into();
            NamedTensor { name: name(n), dtype: info.dtype, shape: info.shape.clone(), bytes }
        })
        .collect();
    tensors.extend(more);
    write_safetensors(Path::new(to), &tensors, &[]).unwrap();
}

/// Names and bytes of all tensors.
fn tensors(path: &str) -> Vec<(String, Vec<u8>)> {
    let files = TensorFiles::open(Path::new(path)).unwrap();
    files.names().map(|n| (n.to_owned(), files.bytes(n).unwrap().to_vec())).collect()
}

#[test]
fn a_run_leaves_a_file_in_each_format_and_conversion_leads_from_one_to_the_other() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let file = graph(dir.path(), "[diffusers, kohya]");
    succeeds(&[file.to_str().unwrap(), "--out", &at("run"), "--steps", "1"]);
    let (ours, kohya) = (at("run/adapter.safetensors"), at("run/adapter.kohya.safetensors"));
    let names = TensorFiles::open(Path::new(&kohya)).unwrap();
    assert_eq!(
        names.info("lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight").unwrap().shape,
        [12, 32]
    );
    let header = TensorFiles::open(Path::new(&ours)).unwrap().metadata().clone();
    assert_eq!(header["prefgraph.graph"], "exporting");
    assert_eq!(header["prefgraph.step"], "1");
    assert!(header["prefgraph.base"].contains("4 blocks"), "{header:?}");

    // To the other names and back: the same bytes, header and all.
    let weights = "tests/fixtures/flux_uno/transformer";
    succeeds(&["adapter", "convert", &ours, &at("k"), "--to", "kohya", "--weights", weights]);
    assert!(fs::read(at("k")).unwrap() == fs::read(&kohya).unwrap());
    succeeds(&["adapter", "convert", &kohya, &at("d"), "--to", "diffusers"]);
    assert!(fs::read(at("d")).unwrap() == fs::read(&ours).unwrap());

    let shown = text(&succeeds(&["adapter", "show", &kohya]).stdout);
    for part in [
        "kohya names, 34 linears of 14 kinds",
        "rank 4, alpha 4",
        "   4  attn.to_q",
        "prefgraph.graph: exporting",
    ] {
        assert!(shown.contains(part), "{shown}");
    }

    // q, k and v were trained apart.
    let error = refused(&["adapter", "convert", &ours, &at("u"), "--to", "uno"]);
    assert!(error.contains("UNO's names cannot hold this adapter"), "{error}");
    assert!(!Path::new(&at("u")).exists());
    let error = refused(&["adapter", "convert", &ours, &at("u"), "--to", "peft"]);
    assert!(error.contains("the formats are: diffusers, kohya, uno"), "{error}");
    let error = refused(&["adapter", "show", "tests/fixtures/flux_uno/forward.safetensors"]);
    assert!(error.contains("holds no factors"), "{error}");
    let other = "data/demo/backbone";
    let error = refused(&["adapter", "convert", &ours, &at("u"), "--to", "kohya", "--weights", other]);
    assert!(error.contains("adapter.safetensors"), "{error}");
}

#[test]
fn a_format_that_cannot_hold_what_is_trained_is_refused_before_the_run() {
    let dir = tempfile::tempdir().unwrap();
    let file = graph(dir.path(), "[uno]");
    let error = refused(&["plan", file.to_str().unwrap()]);
    assert!(error.contains("UNO's names cannot hold") && error.contains("diffusers' or kohya's"), "{error}");
}

#[test]
fn the_adapter_of_a_checkpoint_is_exported_and_its_cells_are_no_adapter() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let file = graph(dir.path(), "[diffusers, kohya]");
    let run = |alpha: &str| {
        let _ = fs::remove_dir_all(at("run"));
        let set = format!("lora.alpha={alpha}");
        succeeds(&[file.to_str().unwrap(), "--out", &at("run"), "--steps", "2", "--set", &set]);
    };
    // Half of the rank, a third of it, and the rank.
    for (alpha, said) in [
        ("2", "2 / 4, is multiplied into B, without rounding"),
        ("3", "3 / 4, is multiplied into B, which rounds"),
        ("4", ""),
    ] {
        run(alpha);
        let step = at("run/checkpoints/step-2");
        for from in [step.clone(), format!("{step}/cells.safetensors"), at("run"), at("run/checkpoints")] {
            let stderr = text(&succeeds(&["adapter", "export", &from, &at("d")]).stderr);
            assert!(stderr.contains(said), "{stderr}");
            assert_eq!(tensors(&at("d")), tensors(&at("run/adapter.safetensors")));
        }
        succeeds(&["adapter", "export", &step, &at("k"), "--to", "kohya", "--cell", "lora"]);
        assert_eq!(tensors(&at("k")), tensors(&at("run/adapter.kohya.safetensors")));
        let header = TensorFiles::open(Path::new(&at("d"))).unwrap().metadata().clone();
        assert_eq!(
            (header["prefgraph.graph"].as_str(), header["prefgraph.step"].as_str()),
            ("exporting", "2")
        );
    }
    let step = at("run/checkpoints/step-2");
    let cells = format!("{step}/cells.safetensors");
    fs::copy(&cells, at("renamed.safetensors")).unwrap();
    for (path, command) in [
        (&cells, format!("graph-run adapter export {step} OUT")),
        (&step, format!("graph-run adapter export {step} OUT")),
        (&at("renamed.safetensors"), "graph-run adapter export CHECKPOINT OUT".into()),
    ] {
        for args in
            [vec!["adapter", "show", path], vec!["adapter", "convert", path, &at("u"), "--to", "diffusers"]]
        {
            let error = refused(&args);
            assert!(error.contains("cells of a checkpoint") && error.contains(&command), "{error}");
        }
    }
    assert!(!Path::new(&at("u")).exists());
    let error = refused(&["adapter", "export", &step, &cells]);
    assert!(error.contains("is read, as"), "{error}");
    let error = refused(&["adapter", "export", &step, &at("u"), "--cell", "moments"]);
    assert!(error.contains("`moments` is no cell with an adapter; those are `lora`"), "{error}");
    let error = refused(&["adapter", "export", dir.path().to_str().unwrap(), &at("u")]);
    assert!(error.contains("is no checkpoint: expected the folder `checkpoints/step-N`"), "{error}");
    fs::write(&cells, "torn").unwrap();
    assert!(refused(&["adapter", "export", &step, &at("u")]).contains("checksum"));
}

#[test]
fn names_of_other_tools_are_converted_or_refused_and_never_passed_on() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let file = graph(dir.path(), "[diffusers]");
    succeeds(&[file.to_str().unwrap(), "--out", &at("run"), "--steps", "1"]);
    let ours = at("run/adapter.safetensors");
    let (foreign, out) = (at("foreign.safetensors"), at("out.safetensors"));
    let with_prefix = |prefix: &'static str| move |n: &str| n.replacen("transformer.", prefix, 1);
    for prefix in ["diffusion_model.", "base_model.model.", "transformer.base_model.model."] {
        renamed(&ours, &foreign, with_prefix(prefix), Vec::new());
        succeeds(&["adapter", "convert", &foreign, &out, "--to", "diffusers"]);
        assert_eq!(tensors(&out), tensors(&ours));
        let shown = text(&succeeds(&["adapter", "show", &foreign]).stdout);
        assert!(
            shown.contains(&format!("diffusers names (`{prefix}`, `.lora_A.weight`), 34 linears")),
            "{shown}"
        );
    }
    fs::remove_file(&out).unwrap();
    renamed(&ours, &foreign, with_prefix("transformer.module."), Vec::new());
    let error = refused(&["adapter", "convert", &foreign, &out, "--to", "diffusers"]);
    assert!(error.contains("which is not a linear of a FLUX transformer"), "{error}");

    let text_encoder = |side: &str| {
        let name = format!("text_encoder.text_model.encoder.layers.0.self_attn.q_proj.{side}.weight");
        NamedTensor::f32(name, vec![1], &[1.0])
    };
    renamed(&ours, &foreign, str::to_owned, vec![text_encoder("lora_A"), text_encoder("lora_B")]);
    let error = refused(&["adapter", "convert", &foreign, &out, "--to", "diffusers"]);
    assert!(
        error.contains("2 tensors of text encoders") && error.contains("--drop-text-encoders"),
        "{error}"
    );
    assert!(!Path::new(&out).exists());
    let shown = text(&succeeds(&["adapter", "show", &foreign]).stdout);
    assert!(shown.contains("2 tensors of text encoders, which are not read"), "{shown}");
    let output =
        succeeds(&["adapter", "convert", &foreign, &out, "--to", "diffusers", "--drop-text-encoders"]);
    assert!(text(&output.stderr).contains("2 tensors of text encoders were left out"));
    assert_eq!(tensors(&out), tensors(&ours));

    // A folder as PEFT saves it; a power of two goes into the factors, another scale is rounded with a word.
    let folder = at("peft");
    fs::create_dir(&folder).unwrap();
    renamed(&ours, &at("peft/adapter_model.safetensors"), with_prefix("base_model.model."), Vec::new());
    for (alpha, said) in
        [(8, "8 / 4, is multiplied into B, without rounding"), (5, "which rounds its values by up to")]
    {
        let config = format!("{{\"peft_type\": \"LORA\", \"r\": 4, \"lora_alpha\": {alpha}}}");
        fs::write(at("peft/adapter_config.json"), config).unwrap();
        let shown = text(&succeeds(&["adapter", "show", &folder]).stdout);
        assert!(shown.contains(&format!("rank 4, alpha {alpha}")), "{shown}");
        let output = succeeds(&["adapter", "convert", &folder, &out, "--to", "diffusers"]);
        assert!(text(&output.stderr).contains(said), "{}", text(&output.stderr));
    }
    let config = "{\"r\": 4, \"lora_alpha\": 8, \"use_dora\": true}";
    fs::write(at("peft/adapter_config.json"), config).unwrap();
    assert!(refused(&["adapter", "show", &folder]).contains("use_dora is true: a DoRA"));

    fs::write(&foreign, "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 344386744\n")
        .unwrap();
    assert!(refused(&["adapter", "show", &foreign]).contains("a pointer of Git LFS"));
}

/// The factors of one linear, as small as they can be.
fn factors() -> [NamedTensor<'static>; 2] {
    let name = |side: &str| format!("transformer.transformer_blocks.0.attn.to_q.{side}.weight");
    ["lora_A", "lora_B"].map(|side| NamedTensor::f32(name(side), vec![1, 1], &[1.0]))
}

#[test]
fn an_adapter_replaces_an_adapter_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let input = at("adapter.safetensors");
    write_safetensors(Path::new(&input), &factors(), &[]).unwrap();
    let weights = at("backbone");
    copy(Path::new("data/demo/backbone"), Path::new(&weights));
    let network = at("backbone/diffusion_pytorch_model.safetensors");
    fs::write(at("state.bin"), "state").unwrap();
    fs::copy(&network, at("other.safetensors")).unwrap();
    fs::write(at("cells.safetensors"), fs::read(&input).unwrap()).unwrap();
    let convert = |output: &str| {
        ["adapter", "convert", &input, output, "--to", "kohya", "--weights", &weights].map(str::to_owned)
    };
    for (output, why) in [
        (&network, "is read, as"),
        (&at("state.bin"), "is there and is no adapter"),
        (&at("other.safetensors"), "is there and is no adapter"),
        (&at("cells.safetensors"), "is there and is no adapter"),
        (&"/dev/null".to_owned(), "is there and is no adapter"),
    ] {
        let before = fs::read(output).unwrap();
        let error = refused(&convert(output).each_ref().map(String::as_str));
        assert!(error.contains(why), "{output}: {error}");
        assert!(fs::read(output).unwrap() == before, "{output}");
    }
}

#[test]
fn a_conversion_never_writes_over_what_it_reads() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let input = at("adapter.safetensors");
    write_safetensors(Path::new(&input), &factors(), &[]).unwrap();
    let before = fs::read(&input).unwrap();
    fs::hard_link(&input, at("hard.safetensors")).unwrap();
    let mut others = vec![input.clone(), at("./adapter.safetensors"), at("hard.safetensors")];
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink(&input, at("link.safetensors")).unwrap();
        others.push(at("link.safetensors"));
    }
    for from in [input.clone(), dir.path().to_str().unwrap().to_owned()] {
        for output in &others {
            let error = refused(&["adapter", "convert", &from, output, "--to", "kohya"]);
            assert!(error.contains("is read, as"), "{error}");
        }
    }
    let error = refused(&["adapter", "convert", &input, dir.path().to_str().unwrap(), "--to", "kohya"]);
    assert!(error.contains("is a folder: name the file"), "{error}");
    assert!(fs::read(&input).unwrap() == before);
}

#[test]
fn a_folder_that_holds_an_ip_adapter_alone_is_called_that_and_a_folder_to_write_into_is_not_made() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let matrices = ["to_k_ip", "to_v_ip"]
        .map(|part| NamedTensor::f32(format!("ip_adapter.1.{part}.weight"), vec![2, 2], &[1.0; 4]));
    fs::create_dir(at("run")).unwrap();
    write_safetensors(Path::new(&at("run/adapter.ip_adapter.safetensors")), &matrices, &[]).unwrap();
    for path in [at("run"), at("run/adapter.ip_adapter.safetensors")] {
        let error = refused(&["adapter", "show", &path]);
        assert!(error.contains("an IP-Adapter") && error.contains("set as `ip_adapter`"), "{error}");
    }
    let input = at("adapter.safetensors");
    write_safetensors(Path::new(&input), &factors(), &[]).unwrap();
    let error = refused(&["adapter", "convert", &input, &at("no/such/a.safetensors"), "--to", "kohya"]);
    assert!(error.contains("cannot be written: make its folder first, `"), "{error}");
    assert!(!dir.path().join("no").exists());
}
