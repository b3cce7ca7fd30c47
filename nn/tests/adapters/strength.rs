//! An alpha other than the rank, for programs that read only the factors.

use prefgraph_nn::{
    Adapter, AdapterLayout,
    files::TensorFiles,
    lora::{AdapterFile, AdapterFormat},
    models::flux::NAMES,
};

use crate::files::{Folder, adapter, assert_equal, matrix_product, product};

const Q: &str = "transformer_blocks.0.attn.to_q";

/// `alpha / rank B A` of a linear.
fn own(adapter: &Adapter, name: &str) -> Vec<f64> {
    let layout = &adapter.layout;
    let at = layout.modules.iter().position(|m| m.name == name).unwrap();
    let (a, b) = layout.ranges()[at].clone();
    let scale = f64::from(layout.alpha) / layout.rank as f64;
    matrix_product(&adapter.values.host().unwrap()[a], &adapter.values.host().unwrap()[b], layout.rank)
        .iter()
        .map(|v| v * scale)
        .collect()
}

#[test]
fn a_program_that_reads_no_alpha_gets_the_whole_strength_from_diffusers_names_exactly_for_powers_of_two() {
    let (folder, names) =
        (Folder::new(), ["A", "B"].map(|side| format!("transformer.{Q}.lora_{side}.weight")));
    let path = folder.at("adapter.safetensors");
    for alpha in [0.25, 2.0, 8.0, 4.0] {
        let adapter = adapter(4, alpha);
        assert_eq!(adapter.write(&path, AdapterFormat::Diffusers, &[]).unwrap().rounding, 0.0);
        assert_eq!(product(&path, [&names[0], &names[1]]), own(&adapter, Q));
        let files = TensorFiles::open(&path).unwrap();
        // Nothing but factors: other loaders take files with `.alpha` beside a header for damaged.
        assert!(files.names().all(|n| n.ends_with(".lora_A.weight") || n.ends_with(".lora_B.weight")));
        let config: serde_json::Value =
            serde_json::from_str(&files.metadata()["lora_adapter_metadata"]).unwrap();
        assert_eq!((&config["transformer.r"], &config["transformer.lora_alpha"]), (&4.into(), &4.into()));
        assert_eq!(files.metadata().contains_key("prefgraph.trained_alpha"), alpha != 4.0);
        let file = AdapterFile::open(&path, "", &NAMES).unwrap();
        assert_equal(&file.adapter(None).unwrap(), &adapter);
        assert_eq!(file.trained_alpha(), (alpha != 4.0).then_some(alpha));
    }
}

#[test]
fn another_scale_is_rounded_by_less_than_a_bit_and_how_much_is_said() {
    let (folder, names) =
        (Folder::new(), ["A", "B"].map(|side| format!("transformer.{Q}.lora_{side}.weight")));
    let path = folder.at("adapter.safetensors");
    let trained = adapter(3, 1.0);
    let rounding = trained.write(&path, AdapterFormat::Diffusers, &[]).unwrap().rounding;
    assert!(rounding > 1e-9 && rounding <= 1.0 / f64::from(1 << 24), "{rounding}");
    let (found, expected) = (product(&path, [&names[0], &names[1]]), own(&trained, Q));
    let worst = found.iter().zip(&expected).map(|(x, y)| ((x - y) / y).abs()).fold(0.0, f64::max);
    assert!(worst > 0.0 && worst <= rounding, "{worst} {rounding}");
    // What is read back is what stands in the file.
    let back = AdapterFile::open(&path, "", &NAMES).unwrap();
    assert_eq!((back.alpha().unwrap(), back.trained_alpha()), (Some(3.0), None));
    assert!(trained.layout.is_rounded_in(AdapterFormat::Diffusers));
    assert!(!trained.layout.is_rounded_in(AdapterFormat::Kohya));
    assert!(!adapter(4, 8.0).layout.is_rounded_in(AdapterFormat::Diffusers));
    // kohya's names keep both.
    assert_eq!(trained.write(&path, AdapterFormat::Kohya, &[]).unwrap().rounding, 0.0);
    assert_equal(&AdapterFile::open(&path, "", &NAMES).unwrap().adapter(None).unwrap(), &trained);
}

#[test]
fn a_strength_that_f32_cannot_hold_is_refused_and_one_that_loses_bits_is_not_divided_out_again() {
    let folder = Folder::new();
    let path = folder.at("adapter.safetensors");
    let with = |value: f32, alpha: f32| {
        let mut adapter = adapter(4, alpha);
        let (_, b) = adapter.layout.ranges()[0].clone();
        adapter.values.host_mut().unwrap()[b.start] = value;
        adapter
    };
    let error = with(f32::MAX, 8.0).write(&path, AdapterFormat::Diffusers, &[]).unwrap_err().to_string();
    assert!(error.contains("times alpha / rank, 8 / 4, is too large for f32"), "{error}");
    assert!(!path.exists());
    let tiny = with(f32::from_bits(3), 2.0);
    assert!(tiny.write(&path, AdapterFormat::Diffusers, &[]).unwrap().rounding > 0.1);
    let back = AdapterFile::open(&path, "", &NAMES).unwrap();
    assert_eq!(back.adapter(None).unwrap().layout.alpha, 4.0);
    assert_eq!(*back.adapter(None).unwrap().layout, AdapterLayout { alpha: 4.0, ..(*tiny.layout).clone() });
}
