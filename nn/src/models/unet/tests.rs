//! What blocks that run again for their backward leave out: parts that do not fit are not missed there.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::Arc,
};

use serde_json::json;
use tempfile::TempDir;

use super::{
    UNetConfig,
    attention::Sizes,
    block,
    context::{Pass, Tokens},
    files::UNetFiles,
    resnet::{self, Inputs},
    weights::{StageWeights, Weights},
};
use crate::{
    Cpu,
    backbone::LinearLayout,
    device::{Device, Kind, Precision, Queue, View},
    files::{NamedTensor, TensorFiles, TensorView, write_safetensors},
    layers::{Branches, Context, FactorGroups, Linear, Loading, Map},
    lora::{Adapter, AdapterLayout},
    models::checkpointing::Keep,
};

/// Width of the time's embedding, and of a text token.
const TIME: usize = 32;
const TEXT: usize = 12;

fn write(path: &Path, tensors: &[(String, Vec<usize>)]) {
    let values: Vec<_> = tensors.iter().map(|(_, shape)| vec![0.1f32; shape.iter().product()]).collect();
    let all = tensors.iter().zip(&values);
    let named: Vec<_> = all.map(|((name, shape), v)| NamedTensor::f32(name, shape.clone(), v)).collect();
    write_safetensors(path, &named, &[]).unwrap();
}

/// A U-Net with two levels, of 8 channels and of 16, and transformers on the lower one.
struct Network {
    cpu: Cpu,
    folder: TempDir,
    config: UNetConfig,
}

impl Network {
    fn new() -> Self {
        let config = json!({
            "_class_name": "UNet2DConditionModel", "in_channels": 4, "out_channels": 4, "layers_per_block": 1,
            "block_out_channels": [8, 16], "transformer_layers_per_block": 1, "attention_head_dim": [1, 2],
            "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
            "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
            "cross_attention_dim": TEXT, "norm_num_groups": 4, "use_linear_projection": true,
            "addition_embed_type": "text_time", "addition_time_embed_dim": 4,
            "projection_class_embeddings_input_dim": 30,
        });
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
        let config: UNetConfig = serde_json::from_value(config).unwrap();
        write(&folder.path().join("diffusion_pytorch_model.safetensors"), &config.tensors());
        Self { cpu: Cpu::new(1).unwrap(), folder, config }
    }

    /// What the steps of a pass read.
    fn stages(&self) -> Vec<StageWeights<Cpu>> {
        let (config, files) = UNetFiles::open(self.folder.path()).unwrap();
        let weights = Weights::read(&self.cpu, &files, (None, None), &config, Loading::default()).unwrap();
        weights.steps.into_iter().map(|step| step.stage).collect()
    }

    /// The linear of this name, with results that are twice as wide.
    fn doubled(&self, name: &str) -> Linear<Cpu> {
        let all = self.config.linears(false);
        let index = all.iter().position(|l| l.name == name).unwrap();
        let layout = LinearLayout { outputs: 2 * all[index].outputs, ..all[index].clone() };
        let path = self.folder.path().join("doubled.safetensors");
        write(&path, &[("w".into(), vec![layout.outputs, layout.inputs])]);
        let files = Arc::new(TensorFiles::open(&path).unwrap());
        let weight = TensorView::whole(&files, "w").unwrap();
        Linear::new(&self.cpu, (weight, None), &layout, Some(index), None, None, Loading::default()).unwrap()
    }

    /// In a pass over one picture, with factors for what this pattern names.
    fn in_a_pass(&self, pattern: Option<&str>, run: impl FnOnce(Pass<'_, Cpu>)) {
        let queue = self.cpu.queue(Precision::F32).unwrap();
        let linears = self.config.layout(false).linears;
        let branches = pattern.map(|pattern| {
            let layout = Arc::new(AdapterLayout::matching(&linears, &[pattern], 2, 2.0).unwrap().0);
            let values = vec![0.1; layout.len()].into();
            let groups = Arc::new(FactorGroups::default());
            Branches::new(&queue, &Adapter { layout, values }, &linears, &groups).unwrap()
        });
        let condition = queue.upload(&[0.1; TIME], Kind::Activation);
        let text = queue.upload(&[0.1; 3 * TEXT], Kind::Activation);
        run(Pass {
            ctx: Context { queue: &queue, branches: branches.as_ref() },
            batch: 1,
            condition: &condition,
            text: Tokens { values: View::new(&text, TEXT), count: 3 },
            image: None,
            image_scale: 0.0,
            keep: Keep::Products,
        });
    }
}

#[test]
fn a_transformers_block_that_runs_again_does_not_come_to_its_result() {
    let network = Network::new();
    let transformer = network.stages().into_iter().find_map(|stage| match stage {
        StageWeights::Transformer(transformer) => Some(transformer),
        _ => None,
    });
    let mut block = transformer.unwrap().blocks.remove(0);
    block.down = network.doubled("down_blocks.1.attentions.0.transformer_blocks.0.ff.net.2");
    for pattern in [None, Some("attn1.to_q"), Some("ff.net.2")] {
        network.in_a_pass(pattern, |pass| {
            let sizes = Sizes { heads: 2, pixels: 4, channels: 16 };
            let x = || Arc::new(pass.ctx.queue.upload(&[0.3; 4 * 16], Kind::Activation));
            let whole = || block::forward(pass, &block, sizes, x(), false).map(drop);
            assert!(catch_unwind(AssertUnwindSafe(whole)).is_err(), "{pattern:?}: the result fits");
            block::again(pass, &block, sizes, x()).map(drop).unwrap();
        });
    }
}

#[test]
fn a_residual_block_that_runs_again_comes_to_its_first_convolution_only() {
    let network = Network::new();
    let resnets = || {
        let all = network.stages().into_iter().filter_map(|stage| match stage {
            StageWeights::Resnet(resnet) => Some(*resnet),
            _ => None,
        });
        let [first, second, third, ..] = <[_; 8]>::try_from(all.collect::<Vec<_>>()).unwrap();
        (first, second, third)
    };
    // The second one makes 16 channels of 8.
    let (first, mut of_second, _) = resnets();
    let [_, narrow] = first.convs;
    of_second.convs[1] = narrow;
    let (_, mut of_shortcut, third) = resnets();
    let [_, wide] = third.convs;
    of_shortcut.shortcut = Some(wide);
    for (misfit, what) in [(of_second, "conv2"), (of_shortcut, "conv_shortcut")] {
        for pattern in [None, Some("*.conv1"), Some("*.conv*")] {
            network.in_a_pass(pattern, |pass| {
                let x = Map::from_planes(pass.ctx.queue, &[0.3; 4 * 8], (8, 2, 2), |v| v);
                let inputs = Inputs { x: Arc::new(x), skip: None };
                let error = resnet::forward(pass, &misfit, inputs.clone()).unwrap_err().to_string();
                assert!(error.contains("channels for"), "{what} {pattern:?}: {error}");
                resnet::again(pass, &misfit, inputs).unwrap();
            });
        }
    }
}
