//! Adapter files in and out, in every format.

use std::{path::Path, sync::Arc};

use half::bf16;

use super::*;
use crate::{
    files::{Dtype, NamedTensor, TensorFiles, write_safetensors},
    linears::{LinearLayout, Linears},
    models::flux::NAMES,
    naming::Place,
};

/// Width of the stream.
const D: usize = 6;

/// The linears of a FLUX of two blocks of each kind.
fn flux() -> Linears {
    let mut all = Vec::new();
    for (stack, of_stack) in NAMES.stacks.iter().enumerate() {
        for block in 0..2 {
            for linear in 0..of_stack.linears.len() {
                let place = NAMES.place(stack, block, linear);
                for name in place.diffusers() {
                    let inputs = match place.fused().original {
                        "img_mlp.2" | "txt_mlp.2" => 4 * D,
                        "linear2" => 5 * D,
                        _ => D,
                    };
                    let outputs = match name.split_once(&format!(".{block}.")).unwrap().1 {
                        "norm1.linear" | "norm1_context.linear" => 6 * D,
                        "norm.linear" => 3 * D,
                        "ff.net.0.proj" | "ff_context.net.0.proj" | "proj_mlp" => 4 * D,
                        _ => D,
                    };
                    all.push(LinearLayout { name, inputs, outputs, window: None });
                }
            }
        }
    }
    Linears::new(&NAMES, all)
}

/// An adapter whose values are all different.
fn adapter(targets: &[&str], rank: usize, alpha: f32) -> Adapter {
    let (layout, _) = AdapterLayout::matching(&flux(), targets, rank, alpha).unwrap();
    let values = (0..layout.len()).map(|i| (i as f32 + 1.0) / 7.0).collect::<Vec<_>>();
    Adapter { layout: Arc::new(layout), values: values.into() }
}

/// The same adapter with one A for q, k and v of a block.
fn with_shared_a(mut adapter: Adapter) -> Adapter {
    let ranges = adapter.layout.ranges();
    let values = adapter.values.host_mut().unwrap();
    let mut shared: std::collections::BTreeMap<Place, Vec<f32>> = Default::default();
    for (module, (a, _)) in adapter.layout.modules.iter().zip(ranges) {
        let (place, _) = NAMES.of_diffusers(&module.name).unwrap();
        let first = shared.entry(place).or_insert_with(|| values[a.clone()].to_vec()).clone();
        values[a].copy_from_slice(&first);
    }
    adapter
}

const QKV: [&str; 6] =
    ["attn.to_q", "attn.to_k", "attn.to_v", "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"];
const OUT: [&str; 3] = ["attn.to_out.0", "attn.to_add_out", "proj_out"];

fn uno_targets() -> Vec<&'static str> {
    [&QKV[..], &OUT].concat()
}

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }
    fn path(&self) -> std::path::PathBuf {
        self.0.path().join("adapter.safetensors")
    }
    fn write(&self, tensors: &[(&str, &[usize], &[f32])]) -> std::path::PathBuf {
        let tensors: Vec<_> =
            tensors.iter().map(|(n, shape, v)| NamedTensor::f32(*n, shape.to_vec(), v)).collect();
        write_safetensors(&self.path(), &tensors, &[]).unwrap();
        self.path()
    }
}

fn ones(shape: &[usize]) -> Vec<f32> {
    vec![0.5; shape.iter().product()]
}

/// `scale up down` of one linear.
fn branch(down: &[f32], up: &[f32], rank: usize, scale: f32) -> Vec<f64> {
    let inputs = down.len() / rank;
    let product = |u: &[f32], k: usize| {
        let terms = u.iter().zip(down[k..].iter().step_by(inputs));
        terms.map(|(u, d)| f64::from(*u) * f64::from(*d)).sum::<f64>() * f64::from(scale)
    };
    up.chunks(rank).flat_map(|u| (0..inputs).map(move |k| (u, k))).map(|(u, k)| product(u, k)).collect()
}

/// The frozen adapter in a file does to every linear what the adapter does.
fn assert_same_branches(path: &Path, adapter: &Adapter) {
    let frozen = FrozenAdapter::open(path, &flux()).unwrap();
    let layout = &adapter.layout;
    for (module, (a, b)) in layout.modules.iter().zip(layout.ranges()) {
        let own = branch(
            &adapter.values.host().unwrap()[a],
            &adapter.values.host().unwrap()[b],
            layout.rank,
            layout.scale(),
        );
        let found = frozen.get(&module.name).unwrap();
        let theirs = branch(&found.down.read(), &found.up.read(), found.rank(), found.scale);
        assert_eq!(own.len(), theirs.len(), "{}", module.name);
        for (x, y) in own.iter().zip(&theirs) {
            assert!((x - y).abs() <= 1e-6 * x.abs().max(1.0), "{}: {x} and {y}", module.name);
        }
    }
    for name in frozen.names().filter(|n| !layout.modules.iter().any(|m| m.name == *n)) {
        assert!(frozen.get(name).unwrap().up.read().iter().all(|v| *v == 0.0), "{name}");
    }
}

fn assert_equal(found: &Adapter, expected: &Adapter) {
    assert_eq!(found.layout, expected.layout);
    assert_eq!(found.values.host().unwrap(), expected.values.host().unwrap());
}

#[test]
fn every_format_that_holds_an_adapter_gives_it_back_bit_by_bit_and_the_frozen_branch_is_the_same() {
    let folder = Folder::new();
    let path = folder.path();
    let all: [&str; 0] = [];
    let some = ["attn.to_q", "attn.to_v", "proj_mlp", "ff.net.2", "norm.linear"];
    // An alpha that three times itself, rounded, does not give back.
    for (targets, rank, alpha) in
        [(&all[..], 3, 3.0), (&some, 2, 0.1), (&QKV, 4, 6.5), (&["proj_mlp"], 1, 2.0)]
    {
        for adapter in [adapter(targets, rank, alpha), with_shared_a(adapter(targets, rank, alpha))] {
            for format in [AdapterFormat::Diffusers, AdapterFormat::Kohya] {
                let written = adapter.write(&path, format, &[]).unwrap();
                let file = AdapterFile::open(&path, "", &NAMES).unwrap();
                assert_eq!(file.format(), Some(format));
                assert_same_branches(&path, &adapter);
                if written.rounding > 0.0 {
                    // diffusers' names have alpha / rank in the factors, which is exact for powers of two.
                    assert!(format == AdapterFormat::Diffusers && ![3.0, 2.0].contains(&alpha));
                    continue;
                }
                assert_equal(&file.adapter(Some(&flux())).unwrap(), &adapter);
                assert_equal(&file.adapter(None).unwrap(), &adapter);
            }
        }
    }
    let adapter = with_shared_a(adapter(&uno_targets(), 3, 3.0));
    adapter.write(&path, AdapterFormat::Uno, &[]).unwrap();
    assert_equal(&Adapter::read(&path, &flux()).unwrap(), &adapter);
    assert_same_branches(&path, &adapter);
    let files = TensorFiles::open(&path).unwrap();
    // Four pairs a block with two streams, two a block with one.
    assert_eq!(files.len(), 2 * (2 * 4 + 2 * 2));
    assert_eq!(files.info("double_blocks.1.processor.qkv_lora2.up.weight").unwrap().shape, [3 * D, 3]);
    assert_eq!(files.info("single_blocks.0.processor.qkv_lora.down.weight").unwrap().shape, [3, D]);
    assert_eq!(files.info("single_blocks.0.processor.proj_lora.down.weight").unwrap().shape, [3, 5 * D]);
}

#[test]
fn kohya_has_one_linear_for_q_k_and_v_at_three_times_the_rank_and_alpha_unless_they_share_a() {
    let folder = Folder::new();
    let path = folder.path();
    let apart = adapter(&QKV[..3], 2, 3.0);
    apart.write(&path, AdapterFormat::Kohya, &[]).unwrap();
    let files = TensorFiles::open(&path).unwrap();
    let qkv = "lora_unet_double_blocks_0_img_attn_qkv";
    assert_eq!(files.info(&format!("{qkv}.lora_down.weight")).unwrap().shape, [6, D]);
    assert_eq!(files.info(&format!("{qkv}.lora_up.weight")).unwrap().shape, [3 * D, 6]);
    assert_eq!(files.read(&format!("{qkv}.alpha")).unwrap(), [9.0]);
    // The MLP is a part of this one, with factors of zeros.
    let linear1 = "lora_unet_single_blocks_1_linear1";
    assert_eq!(files.info(&format!("{linear1}.lora_up.weight")).unwrap().shape, [7 * D, 8]);
    assert_eq!(files.read(&format!("{linear1}.alpha")).unwrap(), [12.0]);
    assert_eq!(files.metadata()["ss_network_dim"], "2");
    let up = files.read(&format!("{qkv}.lora_up.weight")).unwrap();
    assert!(up[..2].iter().all(|v| *v != 0.0) && up[2..6].iter().all(|v| *v == 0.0));

    with_shared_a(apart).write(&path, AdapterFormat::Kohya, &[]).unwrap();
    let files = TensorFiles::open(&path).unwrap();
    assert_eq!(files.info(&format!("{qkv}.lora_down.weight")).unwrap().shape, [2, D]);
    assert_eq!(files.read(&format!("{qkv}.alpha")).unwrap(), [3.0]);
}

#[test]
fn a_fused_pair_from_elsewhere_is_copied_to_its_parts_in_either_spelling() {
    let folder = Folder::new();
    let down: Vec<f32> = (0..2 * D).map(|v| v as f32).collect();
    let up: Vec<f32> = (0..3 * D * 2).map(|v| 1.0 + v as f32).collect();
    let half = |values: &[f32]| values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect();
    let tensor = |name: &str, shape: &[usize], bytes: Vec<u8>| NamedTensor {
        name: name.into(),
        dtype: Dtype::BF16,
        shape: shape.to_vec(),
        bytes: bytes.into(),
    };
    let qkv = "lora_unet_double_blocks_1_txt_attn_qkv";
    let tensors = [
        tensor(&format!("{qkv}.lora_down.weight"), &[2, D], half(&down)),
        tensor(&format!("{qkv}.lora_up.weight"), &[3 * D, 2], half(&up)),
        tensor(&format!("{qkv}.alpha"), &[1], half(&[1.0])),
        tensor("lora_transformer_transformer_blocks_0_attn_to_out_0.lora_down.weight", &[2, D], half(&down)),
        tensor(
            "lora_transformer_transformer_blocks_0_attn_to_out_0.lora_up.weight",
            &[D, 2],
            half(&up[..2 * D]),
        ),
        tensor("lora_transformer_transformer_blocks_0_attn_to_out_0.alpha", &[], half(&[1.0])),
    ];
    write_safetensors(&folder.path(), &tensors, &[]).unwrap();
    let adapter = Adapter::read(&folder.path(), &flux()).unwrap();
    let layout = &adapter.layout;
    assert_eq!((layout.rank, layout.alpha), (2, 1.0));
    let names: Vec<_> = layout.modules.iter().map(|m| m.name.as_str()).collect();
    let parts = ["add_q_proj", "add_k_proj", "add_v_proj"].map(|p| format!("transformer_blocks.1.attn.{p}"));
    assert_eq!(names[0], "transformer_blocks.0.attn.to_out.0");
    assert_eq!(names[1..], parts);
    for (part, (a, b)) in layout.ranges()[1..].iter().enumerate() {
        assert_eq!(adapter.values.host().unwrap()[a.clone()], down);
        assert_eq!(adapter.values.host().unwrap()[b.clone()], up[part * 2 * D..(part + 1) * 2 * D]);
    }
    // Frozen, the parts are views into one mapped pair.
    let frozen = FrozenAdapter::open(&folder.path(), &flux()).unwrap();
    let [q, v] = [0, 2].map(|part| frozen.get(&parts[part]).unwrap());
    let start = |view: &crate::files::TensorView| view.pieces().next().unwrap().bytes.as_ptr();
    assert_eq!(q.down.dtype(), Dtype::BF16);
    assert_eq!(start(&q.down), start(&v.down));
    assert_eq!((v.up.read(), v.scale), (up[4 * D..].to_vec(), 0.5));
    // And back: shared factors are one pair again.
    adapter.write(&folder.path(), AdapterFormat::Kohya, &[]).unwrap();
    let files = TensorFiles::open(&folder.path()).unwrap();
    assert_eq!(files.read(&format!("{qkv}.lora_up.weight")).unwrap(), up);
    assert_eq!(files.len(), 6);
}

#[test]
fn uno_refuses_what_its_names_cannot_hold_and_says_what_to_do() {
    let folder = Folder::new();
    let path = folder.path();
    let uno = uno_targets();
    for (adapter, message) in [
        (adapter(&uno, 2, 2.0), "share one A"),
        (adapter(&["attn.to_out.0", "ff.net.2"], 2, 2.0), "factors for `transformer_blocks.0.ff.net.2`"),
        (adapter(&["proj_mlp"], 2, 2.0), "factors for `single_transformer_blocks.0.proj_mlp`"),
        (
            with_shared_a(adapter(&["attn.to_q", "attn.to_v"], 2, 2.0)),
            "no factors for `transformer_blocks.0.attn.to_k`",
        ),
        (adapter(&["attn.to_out.0"], 3, 1.0), "1 / 3, is not exact"),
    ] {
        let error = adapter.write(&path, AdapterFormat::Uno, &[]).unwrap_err().to_string();
        assert!(error.contains(message) && error.contains("diffusers' or kohya's"), "{error}");
        assert!(!path.exists());
    }
    let layout = |targets: &[&str]| adapter(targets, 2, 2.0).layout;
    assert!(layout(&OUT[..2]).writable(AdapterFormat::Uno).is_ok());
    assert!(layout(&uno).writable(AdapterFormat::Uno).unwrap_err().to_string().contains("moves them apart"));
    assert!(layout(&uno).writable(AdapterFormat::Kohya).is_ok());
    let scaled = |alpha: f32| adapter(&OUT, 3, alpha).layout.writable(AdapterFormat::Uno);
    assert!(scaled(1.5).is_ok() && scaled(3.0).is_ok());
    assert!(scaled(2.0).unwrap_err().to_string().contains("no power of two"));
    // A scale that multiplies exactly goes into B.
    let scaled = adapter(&["attn.to_out.0"], 4, 2.0);
    scaled.write(&path, AdapterFormat::Uno, &[]).unwrap();
    assert_same_branches(&path, &scaled);
    assert_equal(&Adapter::read(&path, &flux()).unwrap(), &scaled);
}

#[test]
fn different_ranks_and_scales_are_refused_for_training_and_taken_as_they_are_when_frozen() {
    let folder = Folder::new();
    let a = "lora_unet_double_blocks_0_img_attn_proj";
    let b = "lora_unet_double_blocks_0_img_mlp_0";
    let name = |module: &str, side: &str| format!("{module}.{side}");
    let write = |rank: usize, alpha: f32| {
        let shapes = [[2, D], [D, 2], [rank, D], [4 * D, rank]];
        let values = shapes.map(|s| ones(&s));
        let alphas = [2.0, alpha];
        folder.write(&[
            (&name(a, "lora_down.weight"), &shapes[0], &values[0]),
            (&name(a, "lora_up.weight"), &shapes[1], &values[1]),
            (&name(a, "alpha"), &[], &alphas[..1]),
            (&name(b, "lora_down.weight"), &shapes[2], &values[2]),
            (&name(b, "lora_up.weight"), &shapes[3], &values[3]),
            (&name(b, "alpha"), &[], &alphas[1..]),
        ])
    };
    for (rank, alpha, message) in
        [(3, 3.0, "2 for `lora_unet_double_blocks_0_img_attn_proj`, 3 for"), (2, 1.5, "scales its modules")]
    {
        let path = write(rank, alpha);
        let error = Adapter::read(&path, &flux()).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
        let frozen = FrozenAdapter::open(&path, &flux()).unwrap();
        let module = frozen.get("transformer_blocks.0.ff.net.0.proj").unwrap();
        assert_eq!((module.rank(), module.scale), (rank, alpha / rank as f32));
    }
}

#[test]
fn the_header_states_rank_alpha_and_targets_and_what_else_is_known() {
    let folder = Folder::new();
    let path = folder.path();
    let about = [("prefgraph.graph".to_owned(), "focusdpo".to_owned())];
    for format in AdapterFormat::ALL {
        adapter(&["attn.to_out.0"], 2, 4.0).write(&path, format, &about).unwrap();
        let metadata = TensorFiles::open(&path).unwrap().metadata().clone();
        assert_eq!(metadata["prefgraph.graph"], "focusdpo");
        assert_eq!(metadata["prefgraph.targets"], r#"["attn.to_out.0"]"#);
        assert_eq!(metadata["prefgraph.rank"], "2");
        match format {
            AdapterFormat::Diffusers => {
                let config: serde_json::Value =
                    serde_json::from_str(&metadata["lora_adapter_metadata"]).unwrap();
                assert_eq!(
                    (&config["transformer.r"], &config["transformer.lora_alpha"]),
                    (&2.into(), &2.into())
                );
                assert_eq!(config["transformer.target_modules"][1], "transformer_blocks.1.attn.to_out.0");
            }
            AdapterFormat::Kohya => assert_eq!(metadata["ss_network_alpha"], "4"),
            AdapterFormat::Uno | AdapterFormat::IpAdapter => {}
        }
        // Multiplied into B where there is no place for it.
        let inside = format != AdapterFormat::Kohya;
        assert_eq!(metadata["prefgraph.alpha"], if inside { "2" } else { "4" });
        assert_eq!(metadata.get("prefgraph.trained_alpha").map(String::as_str), inside.then_some("4"));
        let taken = [("format".to_owned(), "tf".to_owned())];
        assert!(adapter(&OUT[..1], 2, 4.0).write(&path, format, &taken).is_err());
    }
}

#[test]
fn names_of_any_model_are_read_with_or_without_prefixes_and_alpha_is_then_the_rank() {
    let folder = Folder::new();
    let linears = [("blocks.0.to_q", 3, 2), ("blocks.1.to_q", 3, 4)]
        .map(|(name, inputs, outputs)| LinearLayout { name: name.into(), inputs, outputs, window: None });
    let linears = Linears::new(&NAMES, linears.into());
    for prefix in ["", "transformer.", "base_model.model.", "base_model.model.transformer."] {
        let path = folder.write(&[
            (&format!("{prefix}blocks.1.to_q.lora_A.weight"), &[2, 3], &[0.5; 6]),
            (&format!("{prefix}blocks.1.to_q.lora_B.weight"), &[4, 2], &[0.5; 8]),
        ]);
        let adapter = Adapter::read(&path, &linears).unwrap();
        assert_eq!((adapter.layout.rank, adapter.layout.alpha), (2, 2.0));
        assert_eq!(adapter.layout.modules[0].name, "blocks.1.to_q");
    }
    // Only what is under a prefix is looked at.
    let path = folder.write(&[
        ("init.blocks.1.to_q.lora_A.weight", &[2, 3], &[0.5; 6]),
        ("init.blocks.1.to_q.lora_B.weight", &[4, 2], &[0.5; 8]),
        ("other", &[1], &[0.0]),
    ]);
    let file = AdapterFile::open(&path, "init.", &NAMES).unwrap();
    assert_eq!(file.layout(Some(&linears)).unwrap().modules[0].outputs, 4);
    let error = AdapterFile::open(&path, "start.", &NAMES).unwrap_err().to_string();
    assert!(error.contains("under `start.`") && error.contains("`init.blocks.1"), "{error}");
}

#[test]
fn files_that_are_no_adapter_of_the_model_are_refused_by_name() {
    let folder = Folder::new();
    let out = "transformer_blocks.0.attn.to_out.0";
    type Fault = (Vec<(String, Vec<usize>)>, &'static str);
    let pair = |module: &str, a: [usize; 2], b: [usize; 2]| {
        vec![(format!("{module}.lora_A.weight"), a.to_vec()), (format!("{module}.lora_B.weight"), b.to_vec())]
    };
    let kohya = |module: &str, a: [usize; 2], b: [usize; 2]| {
        vec![
            (format!("{module}.lora_down.weight"), a.to_vec()),
            (format!("{module}.lora_up.weight"), b.to_vec()),
        ]
    };
    let mut mixed = pair(out, [2, D], [D, 2]);
    mixed.push(("proj_out.weight".into(), vec![1]));
    let mut twice = pair(out, [2, D], [D, 2]);
    twice.extend(pair(&format!("transformer.{out}"), [2, D], [D, 2]));
    let mut spelled = kohya("lora_unet_double_blocks_0_img_attn_proj", [2, D], [D, 2]);
    spelled.extend(kohya("lora_transformer_transformer_blocks_0_attn_to_out_0", [2, D], [D, 2]));
    let faults: Vec<Fault> = vec![
        (pair(out, [2, D], [D, 2])[..1].to_vec(), "only one of its two factors"),
        (pair("transformer_blocks.0.attn.to_p", [2, D], [D, 2]), "nearest: `transformer_blocks.0.attn.to_"),
        (pair(out, [2, 5], [D, 2]), "expected (6, 6), got (5, 6)"),
        (pair(out, [2, D], [D, 3]), "ranks 2 and 3"),
        (mixed, "`proj_out.weight` is not a factor"),
        (twice, "are the same factor"),
        (spelled, "`transformer_blocks.0.attn.to_out.0` twice"),
        (
            kohya("lora_te1_text_model_encoder_layers_0_mlp_fc1", [2, D], [D, 2]),
            "an adapter of text encoders alone",
        ),
        (kohya("lora_unet_double_blocks_0_img_attn_kv", [2, D], [D, 2]), "is not a linear"),
        (kohya("lora_unet_double_blocks_0_img_attn_qkv", [2, D], [D + 1, 2]), "cannot be shared out"),
        (
            vec![("double_blocks.0.processor.qkv_lora3.down.weight".into(), vec![2, D])],
            "is not a linear of a FLUX transformer",
        ),
        (vec![("x.weight".into(), vec![1])], "holds no factors"),
    ];
    for (keys, message) in faults {
        let values: Vec<Vec<f32>> = keys.iter().map(|(_, s)| ones(s)).collect();
        let tensors: Vec<(&str, &[usize], &[f32])> =
            keys.iter().zip(&values).map(|((n, s), v)| (n.as_str(), &s[..], &v[..])).collect();
        let error = Adapter::read(&folder.write(&tensors), &flux()).unwrap_err().to_string();
        assert!(error.contains(message), "{message}: {error}");
    }
    for (config, message) in [
        (r#"{"transformer.r": 2}"#, "does not state lora_alpha"),
        (r#"{"transformer.lora_alpha": 3, "transformer.use_rslora": true}"#, "use_rslora"),
        (r#"{"lora_alpha": "much"}"#, "expected a positive number"),
    ] {
        let tensors: Vec<_> = pair(out, [2, D], [D, 2])
            .into_iter()
            .map(|(n, s)| NamedTensor::f32(n, s.clone(), &ones(&s)))
            .collect();
        write_safetensors(&folder.path(), &tensors, &[("lora_adapter_metadata", config)]).unwrap();
        let error = AdapterFile::open(&folder.path(), "", &NAMES).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }
}
