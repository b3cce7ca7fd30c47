//! Checkpoints of FLUX in every published layout: each tensor by its diffusers name.
//!
//! ```text
//!  a folder of diffusers     config.json and diffusion_pytorch_model.safetensors, or its shards
//!  one file, original names  flux1-dev.safetensors; no configuration: sizes come from the shapes of tensors
//!  one file, diffusers names the same, by the other names
//! ```
//!
//! In the original layout linears with one input stand in one tensor, and the last modulation has its halves the other
//! way round (shift above scale). Both are other orders of the same rows, so a tensor is a [`TensorView`].

use std::{
    collections::{BTreeSet, HashMap},
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    config::{CLASS, FluxConfig},
    linears::{DOUBLE_STACK, NAMES, SINGLE_STACK},
};
use crate::{
    error::{Error, Result},
    files::{TensorFiles, TensorView, config_beside, nearest, no_model},
    naming::{Outside, Place, Stack, block_number},
};

/// What other programs put before the names of a transformer, longest first.
const PREFIXES: [&str; 3] = ["model.diffusion_model.", "diffusion_model.", ""];

/// What a path to weights may lead to.
const EXPECTED: &str = "the transformer of FLUX: its folder with config.json and weights, the folder above its `transformer`, \
                        or one safetensors file";

/// The norms of queries and keys within a block: original name, diffusers name.
const DOUBLE_NORMS: [(&str, &str); 4] = [
    ("img_attn.norm.query_norm", "attn.norm_q"),
    ("img_attn.norm.key_norm", "attn.norm_k"),
    ("txt_attn.norm.query_norm", "attn.norm_added_q"),
    ("txt_attn.norm.key_norm", "attn.norm_added_k"),
];
const SINGLE_NORMS: [(&str, &str); 2] =
    [("norm.query_norm", "attn.norm_q"), ("norm.key_norm", "attn.norm_k")];

/// How the tensors of a file are called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FluxLayout {
    /// As diffusers calls them.
    Diffusers,
    /// As the original release calls them.
    Original,
}

/// A checkpoint whose names and shapes have been compared with its sizes; values are read through views.
#[derive(Debug)]
pub struct FluxFiles {
    files: Arc<TensorFiles>,
    layout: FluxLayout,
    views: HashMap<String, TensorView>,
}

/// Rows of a tensor of the file that are a tensor of diffusers' layout.
struct FileRows {
    diffusers: String,
    shape: Vec<usize>,
    /// Without the prefix.
    file: String,
    rows: RowOrder,
}

enum RowOrder {
    All,
    /// The part of a fused linear.
    Part(Place, usize),
    SwappedHalves,
}

impl FluxFiles {
    /// Open a diffusers folder (the transformer's, or the one above its `transformer`), or one `.safetensors` file in
    /// either layout, with or without a prefix.
    ///
    /// Sizes are those of `config.json`; a single file has none and is measured: 128 values a head turned by
    /// `[16, 56, 56]` as in the published models, unless a `config.json` of a FLUX transformer lies beside it.
    ///
    /// # Errors
    /// If files are missing or torn; if it is another kind of file; if the sizes are none that can be run; if tensors
    /// are missing, surplus or of another shape (all are named as the file names them).
    pub fn open(path: &Path) -> Result<(FluxConfig, Self)> {
        if path.is_dir() {
            return Self::open_folder(path);
        }
        if !path.exists() {
            return Err(no_model(path, EXPECTED));
        }
        let files = TensorFiles::open(path)?;
        let (layout, prefix) = recognise(&files)?;
        let (config, stated) = match config_beside(path, |kind| kind == CLASS)? {
            Some(beside) => (FluxConfig::read(&beside)?, beside),
            None => (measure(&files, layout, prefix)?, path.to_owned()),
        };
        config.bound(&stated, &files)?;
        let files = Self::new(files, layout, prefix, &config)?;
        Ok((config, files))
    }

    fn open_folder(folder: &Path) -> Result<(FluxConfig, Self)> {
        let below = folder.join("transformer");
        let folder = if !folder.join("config.json").exists() && below.is_dir() { &below } else { folder };
        if !folder.join("config.json").exists()
            && let Some(file) = safetensors_in(folder)
        {
            return Err(Error::file(
                folder,
                format!(
                    "has no config.json, so it is no folder of diffusers; if `{}` is the transformer in one file, name \
                     that file itself",
                    file.display()
                ),
            ));
        }
        let stated = folder.join("config.json");
        if !stated.exists() {
            return Err(no_model(folder, EXPECTED));
        }
        let config = FluxConfig::read(&stated)?;
        let files = TensorFiles::open_in(folder, "diffusion_pytorch_model")?;
        let (layout, prefix) = recognise(&files)?;
        config.bound(&stated, &files)?;
        let files = Self::new(files, layout, prefix, &config)?;
        Ok((config, files))
    }

    fn new(files: TensorFiles, layout: FluxLayout, prefix: &str, config: &FluxConfig) -> Result<Self> {
        let sources = sources(config, layout);
        let mut expected: Vec<(String, Vec<usize>)> = Vec::with_capacity(sources.len());
        for source in &sources {
            let name = format!("{prefix}{}", source.file);
            match (&source.rows, expected.last_mut()) {
                // The parts of a fused tensor follow each other.
                (RowOrder::Part(..), Some((last, shape))) if *last == name => shape[0] += source.shape[0],
                _ => expected.push((name, source.shape.clone())),
            }
        }
        // Of a whole pipeline in one file, what stands outside the prefix is none of the transformer's business.
        let under = if other_parts(&files, prefix) { prefix } else { "" };
        files.expect_exactly_under(under, &expected)?;
        let files = Arc::new(files);
        let mut views = HashMap::with_capacity(sources.len());
        for FileRows { diffusers, shape, file, rows } in sources {
            let whole = TensorView::whole(&files, &format!("{prefix}{file}"))?;
            let view = match rows {
                RowOrder::All => whole,
                RowOrder::SwappedHalves => whole.swapped_halves()?,
                RowOrder::Part(place, part) => {
                    let rows = whole.shape().first().copied().unwrap_or(0);
                    let ranges = place.rows(rows).ok_or_else(|| {
                        Error::Internal(format!("{rows} rows of `{file}` cannot be shared out"))
                    })?;
                    whole.rows(ranges[part].clone())?
                }
            };
            if view.shape() != shape {
                return Err(Error::Internal(format!("a view of `{diffusers}` has another shape")));
            }
            views.insert(diffusers, view);
        }
        Ok(Self { files, layout, views })
    }

    /// A model whose tensors the caller has found, by their names in diffusers' layout. Tensors may share rows of a file, as
    /// random ones do that only measure a machine; on a device each has memory of its own.
    ///
    /// # Errors
    /// If the sizes are none that can be run; if a tensor is missing or has another shape; if there is one that no such model has.
    pub fn of_views(config: &FluxConfig, views: HashMap<String, TensorView>) -> Result<Self> {
        config.check().map_err(Error::Setting)?;
        let expected = config.tensors();
        for (name, shape) in &expected {
            let view =
                views.get(name).ok_or_else(|| Error::Setting(format!("there is no view of `{name}`")))?;
            if view.shape() != shape {
                return Err(Error::shape(format!("a view of `{name}`"), shape, view.shape()));
            }
        }
        let Some(first) = views.values().next().filter(|_| views.len() == expected.len()) else {
            let message = format!("{} views: the model has {} tensors", views.len(), expected.len());
            return Err(Error::Setting(message));
        };
        Ok(Self { files: Arc::clone(first.files()), layout: FluxLayout::Diffusers, views })
    }

    /// The rows of the file that are the tensor of this name in diffusers' layout, e.g.
    /// `transformer_blocks.0.attn.to_q.weight`.
    ///
    /// # Errors
    /// If the model has no tensor of this name.
    pub fn view(&self, diffusers_name: &str) -> Result<TensorView> {
        self.views.get(diffusers_name).cloned().ok_or_else(|| {
            let near = nearest(diffusers_name, self.views.keys().map(String::as_str));
            let hint = near.map_or(String::new(), |n| format!("; nearest: `{n}`"));
            Error::file(self.files.path(), format!("the model has no tensor `{diffusers_name}`{hint}"))
        })
    }

    /// Names in diffusers' layout, in no order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.views.keys().map(String::as_str)
    }

    /// The mapped files.
    pub fn files(&self) -> &Arc<TensorFiles> {
        &self.files
    }

    /// How the file calls its tensors.
    pub fn layout(&self) -> FluxLayout {
        self.layout
    }
}

/// Where every tensor of the model stands in a file of this layout; parts of one tensor follow each other.
fn sources(config: &FluxConfig, layout: FluxLayout) -> Vec<FileRows> {
    let shapes = config.tensors();
    if layout == FluxLayout::Diffusers {
        let same = |(name, shape): (String, Vec<usize>)| FileRows {
            diffusers: name.clone(),
            shape,
            file: name,
            rows: RowOrder::All,
        };
        return shapes.into_iter().map(same).collect();
    }
    let shapes: HashMap<String, Vec<usize>> = shapes.into_iter().collect();
    let mut sources = Vec::with_capacity(shapes.len());
    // The order of the tables, so that parts follow each other; tensors that this model lacks are left out.
    let mut add = |diffusers: String, file: String, rows: RowOrder| {
        if let Some(shape) = shapes.get(&diffusers) {
            sources.push(FileRows { shape: shape.clone(), diffusers, file, rows });
        }
    };
    for Outside { original, diffusers, swapped } in NAMES.outside {
        for kind in ["weight", "bias"] {
            let rows = if *swapped { RowOrder::SwappedHalves } else { RowOrder::All };
            add(format!("{diffusers}.{kind}"), format!("{original}.{kind}"), rows);
        }
    }
    let counted = [
        (DOUBLE_STACK, config.num_layers, &DOUBLE_NORMS[..]),
        (SINGLE_STACK, config.num_single_layers, &SINGLE_NORMS[..]),
    ];
    for (number, blocks, norms) in counted {
        let stack = &NAMES.stacks[number];
        for block in 0..blocks {
            for linear in 0..stack.linears.len() {
                let place = NAMES.place(number, block, linear);
                for kind in ["weight", "bias"] {
                    for (part, name) in place.diffusers().iter().enumerate() {
                        let file = format!("{}.{kind}", place.original());
                        add(format!("{name}.{kind}"), file, RowOrder::Part(place, part));
                    }
                }
            }
            for (original, diffusers) in norms {
                let file = format!("{}.{block}.{original}.scale", stack.original);
                add(format!("{}.{block}.{diffusers}.weight", stack.diffusers), file, RowOrder::All);
            }
        }
    }
    sources
}

/// The layout of a file and the prefix of its names.
fn recognise(files: &TensorFiles) -> Result<(FluxLayout, &'static str)> {
    if let Some(name) = files.names().find(|n| n.contains(".lora_") || n.contains("_lora")) {
        return Err(Error::file(
            files.path(),
            format!(
                "is an adapter (it has `{name}`), not a FLUX transformer: expected the weights that it is for"
            ),
        ));
    }
    for prefix in PREFIXES {
        let starts = |stack: &str| {
            files.names().any(|n| n.strip_prefix(prefix).is_some_and(|n| starts_block(n, stack)))
        };
        for (layout, name) in [
            (FluxLayout::Original, (|stack| stack.original) as fn(&Stack) -> &'static str),
            (FluxLayout::Diffusers, |stack| stack.diffusers),
        ] {
            if NAMES.stacks.iter().any(|stack| starts(name(stack))) {
                return Ok((layout, prefix));
            }
        }
    }
    let shown: Vec<&str> = files.names().take(3).collect();
    Err(Error::file(
        files.path(),
        format!(
            "is no FLUX transformer: expected tensors called `double_blocks.0...` (original) or \
             `transformer_blocks.0...` (diffusers){}, the file has {}",
            kind_of(files).map_or(String::new(), |kind| format!("; it looks like {kind}")),
            if shown.is_empty() { "none".into() } else { format!("{}, ...", shown.join(", ")) }
        ),
    ))
}

fn starts_block(name: &str, stack: &str) -> bool {
    name.strip_prefix(stack).is_some_and(|rest| rest.starts_with('.'))
}

/// What a file that is no FLUX transformer is, where its names give it away.
fn kind_of(files: &TensorFiles) -> Option<&'static str> {
    const SIGNS: [(&str, &str); 7] = [
        ("encoder.block.0.layer.0.SelfAttention", "a T5 text encoder"),
        ("text_model.encoder.layers.0", "a CLIP text encoder"),
        ("decoder.conv_in", "an autoencoder"),
        ("input_blocks.0", "a U-Net (Stable Diffusion, original names)"),
        ("down_blocks.0", "a U-Net (Stable Diffusion, diffusers names)"),
        ("joint_blocks.0", "a transformer of Stable Diffusion 3"),
        ("image_proj.", "an IP-Adapter"),
    ];
    SIGNS.iter().find(|(sign, _)| files.names().any(|n| n.contains(sign))).map(|(_, kind)| *kind)
}

/// Does the file hold other parts of a pipeline, outside the prefix?
fn other_parts(files: &TensorFiles, prefix: &str) -> bool {
    const PARTS: [&str; 5] =
        ["vae.", "text_encoders.", "first_stage_model.", "conditioner.", "cond_stage_model."];
    !prefix.is_empty() && files.names().any(|n| PARTS.iter().any(|p| n.starts_with(p)))
}

/// A safetensors file of a folder, if there is one.
fn safetensors_in(folder: &Path) -> Option<PathBuf> {
    let mut found: Vec<PathBuf> = std::fs::read_dir(folder)
        .ok()?
        .flatten()
        .map(|e| e.path())
        .filter(|p| p.extension().is_some_and(|e| e == "safetensors"))
        .collect();
    found.sort();
    found.into_iter().next()
}

/// The sizes of a model, from the shapes of its tensors.
fn measure(files: &TensorFiles, layout: FluxLayout, prefix: &str) -> Result<FluxConfig> {
    let pick = |original: &'static str, diffusers: &'static str| match layout {
        FluxLayout::Original => original,
        FluxLayout::Diffusers => diffusers,
    };
    let axis = |name: &str, axis: usize| {
        let found = files.info(&format!("{prefix}{name}")).and_then(|i| i.shape.get(axis).copied());
        found.ok_or_else(|| {
            Error::file(
                files.path(),
                format!(
                    "has no `{prefix}{name}` with {} axes, from which the sizes of the model follow",
                    axis + 1
                ),
            )
        })
    };
    let blocks = |stack: usize| {
        let Stack { original, diffusers, .. } = &NAMES.stacks[stack];
        let stem = format!("{prefix}{}.", pick(original, diffusers));
        let number = |n: &str| block_number(n.strip_prefix(&stem)?.split('.').next()?);
        // Their count, not the largest number: a number that is no block's must not make a model.
        files.names().filter_map(number).collect::<BTreeSet<_>>().len()
    };
    let (double, single) = (blocks(DOUBLE_STACK), blocks(SINGLE_STACK));
    let norm = match (layout, double) {
        (FluxLayout::Original, 0) => "single_blocks.0.norm.query_norm.scale",
        (FluxLayout::Original, _) => "double_blocks.0.img_attn.norm.query_norm.scale",
        (FluxLayout::Diffusers, 0) => "single_transformer_blocks.0.attn.norm_q.weight",
        (FluxLayout::Diffusers, _) => "transformer_blocks.0.attn.norm_q.weight",
    };
    let image = pick("img_in.weight", "x_embedder.weight");
    let (width, head) = (axis(image, 0)?, axis(norm, 0)?);
    if head != PUBLISHED_HEAD {
        return Err(Error::file(
            files.path(),
            format!(
                "has heads of {head} values, and no tensor says how positions turn them; the published models have \
                 {PUBLISHED_HEAD}. Put the config.json of the model (`_class_name`: `FluxTransformer2DModel`, with \
                 `axes_dims_rope`) beside the file"
            ),
        ));
    }
    if !width.is_multiple_of(head) {
        return Err(Error::file(
            files.path(),
            format!("is {width} wide, which is no multiple of {head}, a head"),
        ));
    }
    let guidance = pick("guidance_in.in_layer.weight", "time_text_embed.guidance_embedder.linear_1.weight");
    let config = FluxConfig {
        class_name: None,
        patch_size: 1,
        in_channels: axis(image, 1)?,
        out_channels: Some(axis(pick("final_layer.linear.weight", "proj_out.weight"), 0)?),
        num_layers: double,
        num_single_layers: single,
        attention_head_dim: head,
        num_attention_heads: width / head,
        joint_attention_dim: axis(pick("txt_in.weight", "context_embedder.weight"), 1)?,
        pooled_projection_dim: axis(
            pick("vector_in.in_layer.weight", "time_text_embed.text_embedder.linear_1.weight"),
            1,
        )?,
        guidance_embeds: files.info(&format!("{prefix}{guidance}")).is_some(),
        axes_dims_rope: vec![16, 56, 56],
    };
    config.check().map_err(|message| Error::file(files.path(), message))?;
    Ok(config)
}

/// Values of a head in the published models.
const PUBLISHED_HEAD: usize = 128;

#[cfg(test)]
mod tests {
    use super::*;

    fn published() -> FluxConfig {
        FluxConfig {
            class_name: None,
            patch_size: 1,
            in_channels: 64,
            out_channels: None,
            num_layers: 19,
            num_single_layers: 38,
            attention_head_dim: 128,
            num_attention_heads: 24,
            joint_attention_dim: 4096,
            pooled_projection_dim: 768,
            guidance_embeds: true,
            axes_dims_rope: vec![16, 56, 56],
        }
    }

    #[test]
    fn the_published_model_has_1160_tensors_in_one_layout_and_780_in_the_other() {
        let config = published();
        let count = |layout| {
            let sources = sources(&config, layout);
            let diffusers: BTreeSet<&String> = sources.iter().map(|s| &s.diffusers).collect();
            let file: BTreeSet<&String> = sources.iter().map(|s| &s.file).collect();
            (diffusers.len(), file.len())
        };
        assert_eq!(count(FluxLayout::Diffusers), (1160, 1160));
        assert_eq!(count(FluxLayout::Original), (1160, 780));
    }

    #[test]
    fn every_name_of_the_model_has_one_source() {
        let config = published();
        let mut found: Vec<_> =
            sources(&config, FluxLayout::Original).into_iter().map(|s| (s.diffusers, s.shape)).collect();
        let mut all = config.tensors();
        found.sort();
        all.sort();
        assert_eq!(found, all);
    }
}
