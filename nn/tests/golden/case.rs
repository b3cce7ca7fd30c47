//! Golden cases: where they are, and what their files mean.

use std::{
    io::Write,
    path::{Path, PathBuf},
    sync::Arc,
};

use prefgraph_nn::{
    Adapter, Backbone, BackboneLayout, Cpu, Inputs, Tensor,
    backbone::{BlockTokens, Latents},
    cuda,
    device::{Device, Precision},
    files::TensorFiles,
    layers::Loading,
    lora::AdapterLayout,
    models::{
        FluxUno, SdxlUNet,
        flux::{Flux, FluxOptions},
        unet::{ImagePrompt, ResamplerUse, UNet, UNetOptions},
    },
};

use crate::image_tokens::image_tokens;

/// Which network a case is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    Flux,
    UNet,
}

/// One folder of golden values.
pub struct Case {
    pub network: Network,
    pub name: String,
    /// Of a U-Net: is the resampler inside, so that it takes the image encoder's tokens?
    pub resampler: bool,
    pub folder: PathBuf,
    pub constants: serde_json::Value,
}

/// Every case of a network that is there.
pub fn cases(network: Network) -> Vec<Case> {
    let root = Case::root();
    let names: &[&str] = match network {
        Network::Flux => &["flux_uno", "flux_uno_multi"],
        Network::UNet => &["sdxl_ipa"],
    };
    let folders = names.iter().map(|name| (*name, root.join(name)));
    let found: Vec<Case> = folders
        .filter(|(_, folder)| folder.is_dir())
        .map(|(name, folder)| Case {
            network,
            name: name.into(),
            resampler: false,
            constants: serde_json::from_str(&std::fs::read_to_string(folder.join("case.json")).unwrap())
                .unwrap(),
            folder,
        })
        .collect();
    // FLUX's are among the project's own.
    assert!(network == Network::UNet || !found.is_empty(), "no golden case {names:?} in {}", root.display());
    if found.is_empty() {
        skipped(&format!("no golden case {names:?} in {}", root.display()));
    }
    found
}

/// Straight to the stream: the test harness swallows what `eprintln` writes in a test that passes.
fn skipped(what: &str) {
    std::io::stderr().write_all(format!("SKIPPED: {what}\n").as_bytes()).unwrap();
}

impl Case {
    /// The folder of cases.
    pub fn root() -> PathBuf {
        std::env::var_os("PREFGRAPH_FIXTURES")
            .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures"), PathBuf::from)
    }

    pub fn model(&self, threads: usize) -> FluxUno {
        FluxUno::open(Cpu::new(threads).unwrap(), &self.folder.join("transformer")).unwrap()
    }

    /// The model on the processor and, where there is one, on the first GPU; with the names of the devices.
    pub fn on_every_device(&self) -> Vec<(String, Box<dyn Backbone>)> {
        self.on_every_device_in(Precision::F32)
    }

    /// The same with products in this precision.
    pub fn on_every_device_in(&self, precision: Precision) -> Vec<(String, Box<dyn Backbone>)> {
        let loading = Loading { precision, ..Loading::default() };
        let host = Cpu::new(2).unwrap();
        let mut models = vec![("cpu".to_owned(), self.open(host.clone(), host.clone(), loading))];
        match cuda::is_there() {
            Ok(()) => {
                models.push(("cuda:0".into(), self.open(cuda::Cuda::open(0).unwrap(), host, loading)));
            }
            Err(why) => skipped(&format!("{} on a GPU: {why}", self.name)),
        }
        models
    }

    /// The model on a device.
    pub fn open<D: Device>(&self, device: D, host: Cpu, loading: Loading) -> Box<dyn Backbone> {
        match self.network {
            Network::Flux => {
                let options = FluxOptions { loading, ..FluxOptions::default() };
                Box::new(Flux::open_on(device, host, &self.folder.join("transformer"), options).unwrap())
            }
            Network::UNet => {
                let options = UNetOptions { loading, ..self.unet_options() };
                Box::new(UNet::open_on(device, host, &self.folder, options).unwrap())
            }
        }
    }

    /// The options of a U-Net with the case's IP-Adapter.
    pub fn unet_options(&self) -> UNetOptions {
        let path = self.folder.join("ip-adapter-plus_sdxl.safetensors");
        let resampler = match self.resampler {
            true => ResamplerUse::Inside { tokens: self.embeds(&self.file("forward.safetensors"), "").1 },
            false => ResamplerUse::Outside,
        };
        UNetOptions {
            image_prompt: Some(ImagePrompt { path, scale: 1.0, resampler }),
            ..UNetOptions::default()
        }
    }

    pub fn unet(&self, options: UNetOptions) -> SdxlUNet {
        SdxlUNet::open_with(Cpu::new(2).unwrap(), &self.folder, options).unwrap()
    }

    /// A file of the case, if it was copied with it.
    pub fn try_file(&self, name: &str) -> Option<TensorFiles> {
        let path = self.folder.join(name);
        if !path.exists() {
            skipped(&format!("{} is not there", path.display()));
            return None;
        }
        Some(TensorFiles::open(&path).unwrap())
    }

    pub fn file(&self, name: &str) -> TensorFiles {
        TensorFiles::open(&self.folder.join(name)).unwrap()
    }

    pub fn number(&self, key: &str) -> f64 {
        self.constants[key].as_f64().unwrap_or_else(|| panic!("{key} of case.json"))
    }

    pub fn strings(&self, key: &str) -> Vec<String> {
        if let Some(line) = self.constants[key].as_str() {
            return line.split_whitespace().map(str::to_owned).collect();
        }
        let list = self.constants[key].as_array().unwrap_or_else(|| panic!("{key} of case.json"));
        list.iter().map(|v| v.as_str().unwrap().to_owned()).collect()
    }

    /// The inputs of a pass over these latents, one after the other in the batch; conditions are repeated for each.
    pub fn inputs(&self, file: &TensorFiles, prefix: &str, latents: &[&str]) -> Inputs {
        let device = Cpu::new(1).unwrap();
        let times = latents.len();
        let tensor = |name: &str| {
            let name = format!("{prefix}{name}");
            let mut shape = file.info(&name).unwrap().shape.clone();
            shape[0] *= times;
            (shape, file.read(&name).unwrap().repeat(times))
        };
        let four = |shape: &[usize], values| {
            Tensor::new(&device, (shape[0], shape[1], shape[2], shape[3]), values).unwrap()
        };
        let (shape, _) = tensor(latents[0]);
        let x_t = latents.iter().flat_map(|name| file.read(&format!("{prefix}{name}")).unwrap()).collect();
        let (text_shape, text) = tensor("prompt_embeds");
        let (pooled_shape, pooled) = tensor("pooled");
        let image_tokens = (self.network == Network::UNet).then(|| {
            let (values, count, width) = match self.resampler {
                true => self.embeds(file, prefix),
                false => {
                    let tokens = image_tokens(&self.file("ip-adapter-plus_sdxl.safetensors"), file, prefix);
                    (tokens.values, tokens.count, tokens.width)
                }
            };
            Tensor::new(&device, (shape[0], count, width), values.repeat(times)).unwrap()
        });
        let sizes =
            image_tokens.as_ref().map_or_else(Vec::new, |_| tensor("time_ids").1.as_chunks().0.to_vec());
        let t = match self.network {
            Network::Flux => tensor("sigma").1,
            Network::UNet => {
                let (steps, _) = file.bytes(&format!("{prefix}timestep")).unwrap().as_chunks();
                let steps: Vec<f32> = steps.iter().map(|t| i64::from_le_bytes(*t) as f32).collect();
                steps.repeat(times)
            }
        };
        let references = (0..self.constants["refs"].as_u64().unwrap_or(0))
            .map(|k| {
                let (shape, values) = tensor(&format!("x_r{k}"));
                four(&shape, values)
            })
            .collect();
        Inputs {
            x_t: four(&shape, x_t),
            t,
            text: Tensor::new(&device, (text_shape[0], text_shape[1], text_shape[2]), text).unwrap(),
            pooled: Tensor::new(&device, (pooled_shape[0], pooled_shape[1]), pooled).unwrap(),
            references,
            guidance: self.constants["guidance"].as_f64().map(|g| g as f32),
            sizes,
            image_tokens,
            image_scale: None,
        }
    }

    /// The tokens of the image encoder, one picture a sample, with their number and width.
    fn embeds(&self, file: &TensorFiles, prefix: &str) -> (Vec<f32>, usize, usize) {
        let name = format!("{prefix}image_embeds");
        let shape = &file.info(&name).unwrap().shape;
        assert_eq!(shape[1], 1, "one picture a sample");
        (file.read(&name).unwrap(), shape[2], shape[3])
    }

    /// A U-Net's case with the resampler inside.
    pub fn with_resampler(self) -> Self {
        Self { name: format!("{} with its resampler", self.name), resampler: true, ..self }
    }

    /// The layout that the case's targets name.
    pub fn adapter_layout(&self, model: &dyn Backbone) -> Arc<AdapterLayout> {
        let (layout, _) = AdapterLayout::matching(
            &model.layout().linears,
            &self.strings(if self.network == Network::Flux { "lora_targets" } else { "targets" }),
            self.number("rank") as usize,
            self.number("alpha") as f32,
        )
        .unwrap();
        Arc::new(layout)
    }

    /// Factors of a file, e.g. those whose names start with `init.`.
    pub fn factors(&self, layout: &AdapterLayout, file: &TensorFiles, prefix: &str) -> Vec<f32> {
        let names = layout.modules.iter().flat_map(|m| {
            [format!("{prefix}{}.lora_A.weight", m.name), format!("{prefix}{}.lora_B.weight", m.name)]
        });
        let count = file.names().filter(|n| n.starts_with(prefix)).count();
        assert_eq!(count, 2 * layout.modules.len(), "factors of {prefix} that no module of the model takes");
        names.flat_map(|name| file.read(&name).unwrap()).collect()
    }

    pub fn adapter_with_zero_b(&self, model: &dyn Backbone) -> Adapter {
        let layout = self.adapter_layout(model);
        let mut values: Vec<f32> =
            (0..layout.len()).map(|i| ((i * 37 % 101) as f32 - 50.0) / 100.0).collect();
        for (_, b) in layout.ranges() {
            values[b].fill(0.0);
        }
        Adapter { layout, values: values.into() }
    }
}

/// The image tokens after a block, targets before references in each sample.
pub fn by_sample(tokens: &BlockTokens, samples: usize) -> Vec<f32> {
    let (target, reference) = (tokens.targets.len() / samples, tokens.references.len() / samples);
    let of_sample = |sample: usize| {
        [&tokens.targets[sample * target..][..target], &tokens.references[sample * reference..][..reference]]
    };
    (0..samples).flat_map(of_sample).flatten().copied().collect()
}

/// Masks that take every token of every reference.
pub fn whole_references(layout: &BackboneLayout, inputs: &Inputs) -> Vec<Vec<f32>> {
    if let Some(tokens) = &inputs.image_tokens {
        let (samples, given, _) = tokens.shape();
        let tokens = layout.prompt_tokens(given).unwrap();
        return vec![vec![1.0; samples * tokens]];
    }
    let tokens = |r: &Latents| r.shape().0 * (r.shape().2 / 2) * (r.shape().3 / 2);
    inputs.references.iter().map(|r| vec![1.0; tokens(r)]).collect()
}

/// Every value within `bar` of the largest expected one, or of 1 where that is smaller.
pub fn assert_near(what: &str, found: &[f32], expected: &[f32], bar: f64) {
    assert_eq!(found.len(), expected.len(), "{what}: number of values");
    let scale = expected.iter().fold(1.0f64, |s, v| s.max(f64::from(v.abs())));
    let (at, worst) = found
        .iter()
        .zip(expected)
        .map(|(f, e)| (f64::from(*f) - f64::from(*e)).abs())
        .enumerate()
        .fold((0, 0.0), |best, (i, d)| if d > best.1 || d.is_nan() { (i, d) } else { best });
    eprintln!("{what}: worst {:.1e} of the scale {scale:.1e}", worst / scale);
    assert!(
        worst <= bar * scale,
        "{what}: element {at} is {}, expected {} (scale {scale})",
        found[at],
        expected[at]
    );
}

/// `|found - expected| / |expected|` in the L2 norm.
pub fn relative(found: &[f32], expected: &[f32]) -> f64 {
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    assert_eq!(found.len(), expected.len());
    norm(&mut found.iter().zip(expected).map(|(f, e)| f64::from(*f) - f64::from(*e)))
        / norm(&mut expected.iter().map(|e| f64::from(*e)))
}
