//! Adapters for a golden network.

use std::sync::Arc;

use super::*;
use crate::{
    operators::{
        backbone::{Backbone, BackboneSettings},
        testing::{Bench, case},
    },
    ports::BackboneHandle,
};

fn handle(bench: &Bench) -> BackboneHandle {
    let settings = BackboneSettings { weights: DataPath(case("flux_uno")), ..Default::default() };
    Backbone::new(settings).unwrap().forward(&bench.ctx(), ()).unwrap().0.0
}

fn lora(settings: LoraSettings) -> Lora {
    Lora::new(settings).unwrap()
}

fn shape_of(handle: &BackboneHandle) -> crate::ports::BackboneShape {
    crate::Port::shape(handle)
}

#[test]
fn without_targets_every_linear_but_the_modulations_is_adapted() {
    let bench = Bench::new();
    let handle = handle(&bench);
    let text = std::fs::read_to_string(case("flux_uno").join("case.json")).unwrap();
    let constants: serde_json::Value = serde_json::from_str(&text).unwrap();
    let targets = serde_json::from_value(constants["lora_targets"].clone()).unwrap();
    let layouts = [Vec::new(), targets].map(|targets| {
        let op = lora(LoraSettings { rank: 4, targets, ..Default::default() });
        op.shapes((shape_of(&handle),), 0).unwrap().0.0
    });
    assert_eq!(layouts[0], layouts[1]);
    assert_eq!(layouts[0].modules.len(), 2 * 12 + 2 * 5);
}

#[test]
fn a_target_that_matches_nothing_is_named_with_what_there_is() {
    let bench = Bench::new();
    let op = lora(LoraSettings { targets: vec!["to_q".into(), "attn.to_qq".into()], ..Default::default() });
    let error = op.shapes((shape_of(&handle(&bench)),), 0).unwrap_err().to_string();
    assert!(error.contains("`attn.to_qq`") && error.contains("nearest: `attn.to_q`"), "{error}");
}

#[test]
fn b_is_zero_and_a_is_drawn_by_the_linears_name() {
    let bench = Bench::new();
    let handle = handle(&bench);
    for (init, spread) in [(Init::Gaussian, 0.25), (Init::Kaiming, 1.0 / (3.0 * 32.0f64).sqrt())] {
        let adapter = |targets: &[&str]| {
            let targets = targets.iter().map(|t| (*t).to_owned()).collect();
            let op = lora(LoraSettings { rank: 4, init, targets, ..Default::default() });
            op.forward(&bench.ctx(), (handle.clone(),)).unwrap().0.0
        };
        let (all, one) = (adapter(&[]), adapter(&["transformer_blocks.1.attn.to_q"]));
        let ranges = all.layout.ranges();
        assert!(ranges.iter().all(|(_, b)| all.values.host().unwrap()[b.clone()].iter().all(|v| *v == 0.0)));
        let at = all.layout.modules.iter().position(|m| m.name == "transformer_blocks.1.attn.to_q").unwrap();
        assert_eq!(
            all.values.host().unwrap()[ranges[at].0.clone()],
            one.values.host().unwrap()[one.layout.ranges()[0].0.clone()]
        );
        if init == Init::Gaussian {
            // Runs begin with these bits: normal numbers of the linear's name, rounded and then scaled.
            let normals = bench.ctx().random_of_node("transformer_blocks.1.attn.to_q").normals(4 * 32);
            let expected: Vec<f32> = normals.iter().map(|x| 0.25 * x).collect();
            assert_eq!(all.values.host().unwrap()[ranges[at].0.clone()], expected);
        }
        // Inputs of the attention are 32 wide.
        let attention: Vec<f64> = all
            .layout
            .modules
            .iter()
            .zip(&ranges)
            .filter(|(m, _)| m.inputs == 32)
            .flat_map(|(_, (a, _))| all.values.host().unwrap()[a.clone()].to_vec())
            .map(f64::from)
            .collect();
        let std = (attention.iter().map(|v| v * v).sum::<f64>() / attention.len() as f64).sqrt();
        assert!((std / spread - 1.0).abs() < 0.05, "{init:?}: {std}");
    }
}

#[test]
fn an_adapter_file_is_read_by_name_and_a_wrong_one_is_explained() {
    let bench = Bench::new();
    let handle = handle(&bench);
    let from = |prefix: &str| LoraSettings {
        rank: 4,
        from: Some(DataPath(case("flux_uno").join("train_focusdpo.safetensors"))),
        from_prefix: prefix.into(),
        ..Default::default()
    };
    let adapter = lora(from("init.")).forward(&bench.ctx(), (handle.clone(),)).unwrap().0.0;
    let (a, _) = adapter.layout.ranges()[3].clone();
    let file =
        prefgraph_nn::files::TensorFiles::open(&case("flux_uno").join("train_focusdpo.safetensors")).unwrap();
    let name = format!("init.{}.lora_A.weight", adapter.layout.modules[3].name);
    assert_eq!(adapter.values.host().unwrap()[a], file.read(&name).unwrap());

    let refuse =
        |settings: LoraSettings| lora(settings).shapes((shape_of(&handle),), 0).unwrap_err().to_string();
    let error = Lora::new(from("start.")).err().unwrap().to_string();
    assert!(error.contains("no factors under `start.`") && error.contains("from_prefix"), "{error}");
    let error = refuse(LoraSettings { rank: 8, ..from("init.") });
    assert!(error.contains("of rank 4, the graph wants 8: set `rank`"), "{error}");
    let error = refuse(LoraSettings { targets: vec!["attn.to_q".into()], ..from("init.") });
    assert!(error.contains("`targets` does not match"), "{error}");
}

#[test]
fn a_run_starts_from_a_file_in_any_format_that_holds_its_adapter() {
    let bench = Bench::new();
    let handle = handle(&bench);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("adapter.safetensors");
    let targets = vec!["to_out.0".to_owned(), "to_add_out".to_owned()];
    let settings = LoraSettings { rank: 4, targets, ..Default::default() };
    let drawn = lora(settings.clone()).forward(&bench.ctx(), (handle.clone(),)).unwrap().0.0;
    for format in prefgraph_nn::lora::AdapterFormat::ALL {
        drawn.write(&path, format, &[]).unwrap();
        let from = LoraSettings { from: Some(DataPath(path.clone())), ..settings.clone() };
        let read = lora(from.clone()).forward(&bench.ctx(), (handle.clone(),)).unwrap().0.0;
        assert_eq!(read.values.host().unwrap(), drawn.values.host().unwrap(), "{format:?}");
        let other = lora(LoraSettings { alpha: Some(2.0), ..from });
        let error = other.shapes((shape_of(&handle),), 0).unwrap_err().to_string();
        assert!(error.contains("has factors for alpha 4, the graph says 2: set `alpha` to 4"), "{error}");
    }
}

/// A frozen network takes such factors as they are.
#[test]
fn a_plan_says_where_a_file_that_states_no_alpha_starts_a_run_at_another_strength() {
    let bench = Bench::new();
    let handle = handle(&bench);
    let settings = LoraSettings {
        rank: 4,
        from: Some(DataPath(case("flux_uno").join("train_focusdpo.safetensors"))),
        from_prefix: "init.".into(),
        ..Default::default()
    };
    for (alpha, said) in [(None, None), (Some(4.0), None), (Some(8.0), Some("count 2 times what they count"))]
    {
        let notes = lora(LoraSettings { alpha, ..settings.clone() }).notes(&(shape_of(&handle),));
        let warning = notes.iter().find(|note| note.contains("states no alpha"));
        match said {
            Some(said) => assert!(warning.is_some_and(|w| w.contains(said)), "{notes:?}"),
            None => assert_eq!(warning, None),
        }
    }
}

#[test]
fn a_file_with_factors_out_of_range_is_refused_before_it_is_trained() {
    let bench = Bench::new();
    let handle = handle(&bench);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("adapter.safetensors");
    let settings = LoraSettings { rank: 4, targets: vec!["to_out.0".into()], ..Default::default() };
    let drawn = lora(settings.clone()).forward(&bench.ctx(), (handle.clone(),)).unwrap().0.0;
    let mut values = drawn.values.host().unwrap().to_vec();
    values[1] = 3e38;
    Adapter { values: values.into(), ..drawn }
        .write(&path, prefgraph_nn::lora::AdapterFormat::Kohya, &[])
        .unwrap();
    let from = LoraSettings { from: Some(DataPath(path)), ..settings };
    let error = lora(from).forward(&bench.ctx(), (handle,)).err().unwrap().to_string();
    assert!(error.contains("holds 3e38 among the factors of `") && error.contains("to_out.0`"), "{error}");
}

#[test]
fn a_file_that_neither_network_takes_is_refused_for_what_is_wrong_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("with_text_encoder.safetensors");
    let linear = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q";
    let text = "lora_te1_text_model_encoder_layers_0_self_attn_q_proj";
    let values = [0.5f32; 16];
    let tensors: Vec<_> = [linear, text]
        .into_iter()
        .flat_map(|module| {
            [("lora_down", vec![1, 16]), ("lora_up", vec![16, 1])].map(|(side, dims)| {
                prefgraph_nn::files::NamedTensor::borrowed(format!("{module}.{side}.weight"), dims, &values)
            })
        })
        .collect();
    prefgraph_nn::files::write_safetensors(&path, &tensors, &[]).unwrap();
    let settings = LoraSettings { rank: 1, from: Some(DataPath(path)), ..Default::default() };
    let error = Lora::new(settings).err().unwrap().to_string();
    assert!(error.contains("text encoder") && !error.contains("FLUX"), "{error}");
}

#[test]
fn all_adapters_of_a_run_share_one_layout() {
    let bench = Bench::new();
    let handle = handle(&bench);
    let op = lora(LoraSettings::default());
    let shape = op.shapes((shape_of(&handle),), 0).unwrap().0;
    let adapter = op.forward(&bench.ctx(), (handle,)).unwrap().0.0;
    assert!(Arc::ptr_eq(&shape.0, &adapter.layout));
}

#[test]
fn what_is_trained_whole_is_of_an_ip_adapter_and_other_patterns_are_explained() {
    let bench = Bench::new();
    let flux = handle(&bench);
    let whole = |patterns: &[&str]| LoraSettings {
        whole: patterns.iter().map(|p| (*p).to_owned()).collect(),
        ..Default::default()
    };
    let refused =
        |patterns: &[&str]| lora(whole(patterns)).shapes((shape_of(&flux),), 0).unwrap_err().to_string();
    let error = refused(&["*.to_k_ip"]);
    assert!(error.contains("which has no IP-Adapter"), "{error}");
    let error = refused(&["attn.to_q"]);
    assert!(error.contains("which is no linear of an IP-Adapter"), "{error}");
    let from = LoraSettings { from: Some(DataPath("adapter.safetensors".into())), ..whole(&["*.to_k_ip"]) };
    let error = Lora::new(from).err().unwrap().to_string();
    assert!(error.contains("without `targets` there are no factors"), "{error}");

    let folder = case("sdxl_ipa");
    let settings = BackboneSettings {
        kind: crate::operators::backbone::BackboneKind::Sdxl,
        weights: DataPath(folder.clone()),
        ip_adapter: DataPath(folder.join("ip-adapter-plus_sdxl.safetensors")),
        ..Default::default()
    };
    let unet = Backbone::new(settings).unwrap().forward(&bench.ctx(), ()).unwrap().0.0;
    let op = lora(whole(&["*.to_k_ip", "*.to_v_ip"]));
    let shape = op.shapes((shape_of(&unet),), 0).unwrap().0;
    let (layout, blocks) = (&shape.0, unet.0.layout().blocks);
    assert_eq!((layout.modules.len(), layout.whole.len()), (0, 2 * blocks));
    let values: usize = layout.whole.iter().map(|l| l.inputs * l.outputs).sum();
    assert_eq!(crate::PortShape::bytes(&shape), 4 * values);
    let notes = op.notes(&(shape_of(&unet),));
    assert!(notes[0].contains("linears whole") && notes[0].contains(&values.to_string()), "{notes:?}");

    // A checkpoint gives the same values back.
    let start = op.forward(&bench.ctx(), (unet,)).unwrap().0.0;
    let moved: Vec<f32> = (0..values).map(|i| i as f32).collect();
    let moved = Adapter { values: moved.into(), ..start };
    let state = crate::Carried::save(&moved).unwrap();
    assert!(state.tensors.iter().all(|t| t.name.ends_with("_ip.diff")));
    let back = <Adapter as crate::Carried>::restore(&shape, &state).unwrap();
    assert_eq!(back.values.host().unwrap(), moved.values.host().unwrap());
    let saved = crate::ports::saved_layout(&state, moved.layout.names, 1.0).unwrap();
    assert_eq!(saved.whole, moved.layout.whole);
}
