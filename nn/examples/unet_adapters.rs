//! Writes adapters of a golden U-Net in every format, and what the network predicts with each: `tests/peers/load_unet_adapter.py` loads
//! them into diffusers and compares.
//!
//! ```sh
//! cargo run -p prefgraph-nn --example unet_adapters -- tests/fixtures/sdxl_ipa OUT
//! ```

use std::{path::Path, sync::Arc};

use prefgraph_nn::{
    Adapter, Backbone, Cpu, Inputs, Probe, Tensor,
    files::{NamedTensor, TensorFiles, write_safetensors},
    lora::{AdapterFormat, AdapterLayout},
    models::{
        SdxlUNet, UNetOptions,
        unet::{ImagePrompt, ResamplerUse},
    },
};

type Failure = Box<dyn std::error::Error>;

/// An adapter: its name, the patterns of its factors, those of what is trained whole, and the formats it is written in.
type Variant = (&'static str, &'static [&'static str], &'static [&'static str], &'static [AdapterFormat]);

const VARIANTS: [Variant; 4] = [
    (
        "resampler",
        &["to_q", "to_k", "to_v", "to_out.0", "encoder_hid_proj.*"],
        &[],
        &[AdapterFormat::Diffusers],
    ),
    (
        "blocks",
        &["attn1.*", "attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0", "ff.net.*"],
        &[],
        &[AdapterFormat::Diffusers, AdapterFormat::Kohya],
    ),
    ("convolutions", &["conv*", "attn1.to_q"], &[], &[AdapterFormat::Diffusers, AdapterFormat::Kohya]),
    ("keys", &["encoder_hid_proj.*"], &["*.to_k_ip", "*.to_v_ip"], &[AdapterFormat::IpAdapter]),
];

fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let (Some(case), Some(out)) = (arguments.next(), arguments.next()) else {
        return Err("expected the folder of a case, and one to write to".into());
    };
    let (case, out) = (Path::new(&case), Path::new(&out));
    std::fs::create_dir_all(out)?;
    let values = TensorFiles::open(&case.join("forward.safetensors"))?;
    let (inputs, tokens) = inputs(&values)?;
    let image_prompt = ImagePrompt {
        path: case.join("ip-adapter-plus_sdxl.safetensors"),
        scale: 1.0,
        resampler: ResamplerUse::Inside { tokens },
    };
    let options = UNetOptions { image_prompt: Some(image_prompt), ..UNetOptions::default() };
    let model = SdxlUNet::open_with(Cpu::new(2)?, case, options)?;
    let mut expected = vec![("frozen".to_owned(), model.predict(&inputs, None, &Probe::NOTHING)?.latents)];
    for (name, targets, whole, formats) in VARIANTS {
        let linears = &model.layout().linears;
        let (layout, _) = AdapterLayout::matching(linears, targets, 4, 2.0)?;
        let (layout, _) = layout.with_whole(linears, whole)?;
        let values: Vec<f32> =
            (0..layout.len()).map(|i| 0.1 * ((i * 7919 % 1000) as f32 / 500.0 - 1.0)).collect();
        let adapter = Adapter { layout: Arc::new(layout), values: values.into() };
        for format in formats {
            adapter.write(&out.join(format.file_name(name)), *format, &[])?;
        }
        expected.push((name.into(), model.predict(&inputs, Some(&adapter), &Probe::NOTHING)?.latents));
    }
    let tensors: Vec<NamedTensor<'_>> =
        expected.iter().map(|(name, of)| NamedTensor::f32(name, of.dims(), of.values())).collect();
    write_safetensors(&out.join("expected.safetensors"), &tensors, &[])?;
    Ok(())
}

/// The inputs of the case's pass, and how many tokens the image encoder makes of a picture.
fn inputs(values: &TensorFiles) -> Result<(Inputs, usize), Failure> {
    let cpu = Cpu::new(1)?;
    let axes = |name: &str| values.info(name).map(|info| info.shape.clone()).ok_or(format!("no `{name}`"));
    let (x, text, pooled, embeds) =
        (axes("x_t")?, axes("prompt_embeds")?, axes("pooled")?, axes("image_embeds")?);
    let (steps, _) = values.bytes("timestep")?.as_chunks();
    let inputs = Inputs {
        x_t: Tensor::new(&cpu, (x[0], x[1], x[2], x[3]), values.read("x_t")?)?,
        t: steps.iter().map(|t| i64::from_le_bytes(*t) as f32).collect(),
        text: Tensor::new(&cpu, (text[0], text[1], text[2]), values.read("prompt_embeds")?)?,
        pooled: Tensor::new(&cpu, (pooled[0], pooled[1]), values.read("pooled")?)?,
        references: Vec::new(),
        guidance: None,
        sizes: values.read("time_ids")?.as_chunks().0.to_vec(),
        image_tokens: Some(Tensor::new(
            &cpu,
            (embeds[0], embeds[1] * embeds[2], embeds[3]),
            values.read("image_embeds")?,
        )?),
        image_scale: None,
    };
    Ok((inputs, embeds[2]))
}
