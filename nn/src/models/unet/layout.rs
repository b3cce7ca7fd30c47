//! What follows from a U-Net's sizes: its tensors, the linears that adapters attach to, and what is known before a weight is read.

use std::path::Path;

use super::{
    config::{CLASS, UNetConfig},
    image_prompt::keys_and_values,
    linears::NAMES,
    stages::{Stage, Step, conv, is_of_image_prompt, steps},
};
use crate::{
    backbone::{BackboneLayout, LinearLayout, Linears, Time},
    cpu::WIDEST,
    error::{Error, Result},
    files::read_model_config,
};

impl UNetConfig {
    /// Read and check `config.json`.
    ///
    /// # Errors
    /// If the file is missing, is no such configuration, or describes a model that this library does not run.
    pub fn read(path: &Path) -> Result<Self> {
        let config: Self = read_model_config(path, CLASS, "a U-Net of Stable Diffusion XL")?;
        config.check().map_err(|message| Error::file(path, message))?;
        Ok(config)
    }

    /// Whether a model of these sizes can be run, or what is wrong with them.
    pub(super) fn check(&self) -> Result<(), String> {
        self.check_fields()?;
        self.check_steps()
    }

    /// Whether groups and heads share out the channels of every step.
    fn check_steps(&self) -> Result<(), String> {
        let groups = self.norm_num_groups;
        for Step { stage, .. } in steps(self) {
            let (normed, heads) = match stage {
                Stage::Resnet { inputs, skip, outputs, .. } => (vec![inputs + skip, outputs], None),
                Stage::Transformer { channels, heads, .. } => (vec![channels], Some((channels, heads))),
                Stage::Down { .. } | Stage::Up { .. } => continue,
            };
            if let Some(width) = normed.into_iter().find(|w| groups == 0 || !w.is_multiple_of(groups)) {
                return Err(format!("norm_num_groups is {groups}, which does not divide {width} channels"));
            }
            if let Some((channels, heads)) = heads
                && (!channels.is_multiple_of(heads) || channels / heads > WIDEST)
            {
                return Err(format!(
                    "{channels} channels in {heads} heads: expected heads of at most {WIDEST}"
                ));
            }
        }
        Ok(())
    }

    /// The linears and convolutions that an adapter may have factors for, in the order of the model. With `image_prompt` those of an IP-Adapter are
    /// among them.
    pub(super) fn linears(&self, image_prompt: bool) -> Vec<LinearLayout> {
        let first = self.sinusoid();
        let mut all = vec![conv("conv_in".into(), 3, self.in_channels, first)];
        for Step { stage, .. } in steps(self) {
            all.extend(stage.convs());
            all.extend(stage.linears(self, image_prompt).into_iter().map(|(layout, _)| layout));
        }
        all.push(conv("conv_out".into(), 3, first, self.out_channels));
        all
    }

    /// Every tensor of the checkpoint, with its shape.
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let mut all = Vec::new();
        let mut both = |name: &str, shape: Vec<usize>| {
            all.push((format!("{name}.bias"), vec![shape[0]]));
            all.push((format!("{name}.weight"), shape));
        };
        let (first, time) = (self.sinusoid(), self.time_width());
        both("conv_in", vec![first, self.in_channels, 3, 3]);
        both("time_embedding.linear_1", vec![time, first]);
        both("time_embedding.linear_2", vec![time, time]);
        both("add_embedding.linear_1", vec![time, self.projection_class_embeddings_input_dim.unwrap_or(0)]);
        both("add_embedding.linear_2", vec![time, time]);
        both("conv_norm_out", vec![first]);
        both("conv_out", vec![self.out_channels, first, 3, 3]);
        all.extend(steps(self).iter().flat_map(|step| step.stage.tensors(self)));
        all
    }

    /// Latent cells along each side of a pixel at each cross-attention.
    fn block_cells(&self) -> Vec<usize> {
        let (mut cells, mut all) = (1, Vec::new());
        for step in steps(self) {
            match step.stage {
                Stage::Transformer { depth, .. } => all.extend(std::iter::repeat_n(cells, depth)),
                Stage::Down { .. } => cells *= 2,
                Stage::Up { .. } => cells /= 2,
                Stage::Resnet { .. } => {}
            }
        }
        all
    }

    /// The tensors of keys and values of image tokens, as an IP-Adapter's file names them.
    pub(crate) fn image_prompt_tensors(&self) -> Vec<(String, Vec<usize>)> {
        keys_and_values(self).into_iter().map(|(_, tensor)| tensor).collect()
    }

    /// What is known of a model of these sizes before a weight is read.
    pub fn layout(&self, image_prompt: bool) -> BackboneLayout {
        let linears = self.linears(image_prompt);
        let of_image_prompt = linears.iter().filter(|l| is_of_image_prompt(&l.name));
        let image_parameters: usize = of_image_prompt.map(|l| l.inputs * l.outputs).sum();
        let parameters: usize = self.tensors().iter().map(|(_, s)| s.iter().product::<usize>()).sum();
        let block_cells = self.block_cells();
        BackboneLayout {
            kind: if image_prompt { "sdxl-ip-adapter" } else { "sdxl" }.into(),
            channels: self.in_channels,
            patch: 1,
            whole: self.cell(),
            text_width: self.cross_attention_dim,
            pooled_width: self.pooled_width().unwrap_or(0),
            width: self.sinusoid(),
            blocks: block_cells.len(),
            heads: self.heads_per_block().of(0).unwrap_or(0),
            time: Time::Step,
            guidance: false,
            sizes: true,
            image_tokens: image_prompt,
            queries: None,
            block_cells,
            pictures: None,
            linears: Linears::new(&NAMES, linears),
            parameters: parameters + image_parameters,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{config::PerBlock, original::originals},
        *,
    };

    #[test]
    fn the_published_model_has_its_published_tensors_and_parameters() {
        let config = UNetConfig::sdxl();
        config.check().unwrap();
        assert_eq!(config.tensors().len(), 1680);
        let mut original: Vec<String> = originals(&config).into_iter().map(|(_, name, _)| name).collect();
        original.sort();
        original.dedup();
        assert_eq!(original.len(), 1680);
        assert!(!original.iter().any(|name| name.contains("resnets") || name.contains("down_blocks")));
        let layout = config.layout(false);
        assert_eq!(layout.parameters, 2_567_463_684);
        let linears = layout.linears.iter().filter(|l| l.window.is_none()).count();
        assert_eq!((layout.blocks, layout.pooled_width, linears), (70, 1280, 722));
        // Four at the second level on the way down and six on the way up, all others at the third.
        let at = |cells: usize| layout.block_cells.iter().filter(|c| **c == cells).count();
        assert_eq!((at(1), at(2), at(4)), (0, 10, 60));
        // 17 residual blocks, 11 of which change their channels, two halvings, two doublings, the first and the last.
        assert_eq!(layout.linears.len(), 722 + 2 * 17 + 11 + 2 + 2 + 2);
        // 340.8 million of the IP-Adapter's keys and values.
        let with_images = config.layout(true);
        assert_eq!(with_images.linears.len(), layout.linears.len() + 140);
        assert_eq!(with_images.parameters - layout.parameters, 340_787_200);
    }

    #[test]
    fn a_configuration_that_cannot_be_run_is_refused_with_what_was_expected() {
        type Fault = (fn(&mut UNetConfig), &'static str);
        let faults: [Fault; 13] = [
            (|c| c.in_channels = 9, "an inpainting U-Net (9 channels"),
            (|c| c.in_channels = 8, "a U-Net that edits pictures"),
            (
                |c| (c.cross_attention_dim, c.addition_embed_type) = (768, None),
                "the U-Net of Stable Diffusion 1 (its text is 768 wide",
            ),
            (|c| (c.cross_attention_dim, c.addition_embed_type) = (1024, None), "Stable Diffusion 2"),
            (|c| c.cross_attention_dim = 1280, "SDXL's refiner"),
            (|c| c.addition_embed_type = None, "expected \"text_time\""),
            (|c| c.class_name = Some("FluxTransformer2DModel".into()), "expected UNet2DConditionModel"),
            (|c| c.norm_num_groups = 33, "does not divide 320 channels"),
            (|c| c.attention_head_dim = PerBlock::All(7), "640 channels in 7 heads"),
            (|c| c.transformer_layers_per_block = PerBlock::Each(vec![1, 2]), "one for each of 3 blocks"),
            (|c| c.down_block_types[1] = "AttnDownBlock2D".into(), "expected 3 of CrossAttnDownBlock2D"),
            (|c| c.projection_class_embeddings_input_dim = Some(1536), "more than 6 of the second"),
            (
                |c| drop(c.others.insert("time_cond_proj_dim".into(), 256.into())),
                "time_cond_proj_dim is 256: only null",
            ),
        ];
        for (break_it, message) in faults {
            let mut config = UNetConfig::sdxl();
            break_it(&mut config);
            let error = config.check().unwrap_err();
            assert!(error.contains(message), "{error}");
        }
    }

    #[test]
    fn every_linear_of_the_published_model_has_one_place_in_both_layouts() {
        let mut places = Vec::new();
        for linear in UNetConfig::sdxl().linears(true) {
            if let Some(outside) = NAMES.outside_of_diffusers(&linear.name) {
                places.push(outside.original.to_owned());
                continue;
            }
            let (place, part) = NAMES.of_diffusers(&linear.name).unwrap();
            assert_eq!((place.diffusers(), part), (vec![linear.name.clone()], 0));
            let underscored = linear.name.replace('.', "_");
            assert_eq!(NAMES.of_underscored_diffusers(&underscored), Some((place, 0)));
            let original = place.original();
            assert_eq!(NAMES.of_original(&original), Some(place));
            assert_eq!(NAMES.of_underscored_original(&original.replace('.', "_")), Some(place));
            places.push(original);
        }
        let all = places.len();
        places.sort();
        places.dedup();
        assert_eq!((places.len(), all), (862 + 51, 862 + 51));
        let (place, _) =
            NAMES.of_diffusers("down_blocks.2.attentions.1.transformer_blocks.9.attn2.to_k").unwrap();
        assert_eq!(place.original(), "input_blocks.8.1.transformer_blocks.9.attn2.to_k");
    }
}
