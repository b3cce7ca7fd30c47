//! The graph that draws one picture, made of the networks of another graph.
//!
//! ```text
//!  prompts ─► prompt ───────────────┐   (the negative prompt likewise, under classifier-free guidance)
//!     └─► encode-references ────────┤
//!  backbone ─► lora (the adapter) ──┼─► sample ─► decode
//!  blank (the size) ────────────────┘
//! ```

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
    sync::Arc,
};

use prefgraph_nn::{BackboneLayout, Linears, lora::AdapterFile};
use prefgraph_ops::{
    DataPath, OpError, Operator,
    operators::{
        backbone::Backbone,
        blank::{Blank, BlankSettings},
        decode::{Decode, DecodeSettings},
        encode::EncodeReferences,
        image_prompt::{ImagePromptSettings, ImagePrompts},
        lora::{Lora, LoraSettings},
        pairs::{Asked, Prompts, PromptsSettings},
        prompt::Prompt,
        sample::{Sample, SampleSettings},
        sizes::{PIXELS_OF_A_CELL, PictureSizes},
    },
    ports::{Crops, Images},
    words::count,
};

use super::parts::{Parts, Size};
use crate::{
    cli::Failure,
    graph::{Graph, Wire},
};

/// The prompts, one a step.
#[derive(Clone, Copy)]
pub(super) enum Prompted<'a> {
    /// One, of the command line.
    One { prompt: &'a str, references: &'a [PathBuf] },
    /// A list, and what messages call it.
    Listed { origin: &'a str, asked: &'a [Asked] },
}

impl Prompted<'_> {
    fn has_references(self) -> bool {
        match self {
            Self::One { references, .. } => !references.is_empty(),
            Self::Listed { asked, .. } => asked.iter().any(|asked| !asked.references.is_empty()),
        }
    }

    fn op(self, (reference_height, reference_width): Size) -> Result<Prompts, OpError> {
        let sizes = PromptsSettings { reference_height, reference_width, ..Default::default() };
        match self {
            Self::One { prompt, references } => Prompts::new(PromptsSettings {
                prompt: Some(prompt.to_owned()),
                references: references.iter().map(|path| DataPath(path.clone())).collect(),
                ..sizes
            }),
            Self::Listed { origin, asked } => Prompts::listed(sizes, origin, asked.to_vec()),
        }
    }
}

/// What is to be drawn.
pub(super) struct Wanted<'a> {
    pub prompts: Prompted<'a>,
    pub adapter: Option<&'a Path>,
    pub lora_scale: Option<f64>,
    pub size: Size,
    pub reference_size: Size,
    pub steps: Option<usize>,
    pub guidance: Option<f64>,
    pub negative: Option<&'a str>,
    pub cfg: Option<f64>,
}

/// A graph whose every step is one picture.
pub(super) struct Drawing {
    pub graph: Arc<Graph>,
    pub images: Wire<Images>,
    /// Passes for a picture.
    pub steps: usize,
    pub guidance: Option<f64>,
    pub cfg: f64,
    pub lora_scale: f64,
    /// Of image tokens, where the graph states it.
    pub ip_scale: Option<f64>,
    /// What was chosen that nobody stated.
    pub notes: Vec<String>,
}

/// Ids that the new graph has: those of the nodes that settings come from, so that what is refused names what can be set.
#[derive(Default)]
struct Ids(HashSet<String>);

impl Ids {
    fn take(&mut self, wanted: &str) -> String {
        let mut id = wanted.to_owned();
        while !self.0.insert(id.clone()) {
            id.push('_');
        }
        id
    }
}

/// Build an operator; what it refuses names the node.
fn op<O: Operator>(node: &str, settings: O::Settings) -> Result<O, Failure> {
    O::new(settings).map_err(|e| refused(node, &e))
}

fn refused(node: &str, e: &OpError) -> Failure {
    Failure::new(format!("node `{node}`: {e}"))
}

/// The network's own grid, which is coarser than that of the latents: said before a node refuses the half of it.
fn check_size(layout: &BackboneLayout, (height, width): Size) -> Result<(), Failure> {
    let whole = layout.whole * PIXELS_OF_A_CELL;
    let nearest = |side: usize| (side / whole).max(1) * whole;
    if [height, width].iter().all(|side| *side > 0 && side.is_multiple_of(whole)) {
        return Ok(());
    }
    Err(Failure::new(format!(
        "pictures of {width} x {height} pixels (width x height): the sides of what the {} draws are multiples of {whole} pixels, such as --size {}x{}",
        layout.kind,
        nearest(width),
        nearest(height)
    )))
}

pub(super) fn build(parts: &Parts, wanted: &Wanted<'_>) -> Result<Drawing, Failure> {
    let (mut graph, mut ids) = (Graph::new("sample"), Ids::default());
    let mut notes = Vec::new();

    let id = ids.take(&parts.backbone.0);
    let backbone: Backbone = op(&id, parts.backbone.1.clone())?;
    let network = Operator::shapes(&backbone, (), 0).map_err(|e| refused(&id, &e))?.0;
    let layout = network.layout().clone();
    check_size(&layout, wanted.size)?;
    let (backbone,) = graph.add(&id, backbone, ());

    let id = ids.take(&parts.prompt.0);
    let prompt: Prompt = op(&id, parts.prompt.1.clone())?;
    let asked = ids.take("asked");
    // Without its name: what is wrong with a prompt was said on the command line, not at a node.
    let asked_op = wanted.prompts.op(wanted.reference_size).map_err(Failure::new)?;
    let (pictures, prompts, _) = graph.add(&asked, asked_op, ());
    let (text, pooled) = graph.add(&id, prompt, (prompts, backbone));

    let cfg = wanted.cfg.unwrap_or(parts.sample.cfg);
    // The rules of a list are for networks of several kinds, and each takes what it knows; a flag is meant.
    let is_list = matches!(wanted.prompts, Prompted::Listed { .. });
    let avoided = if cfg != 1.0 {
        // The empty prompt where nothing is to be avoided, as classifier-free guidance was trained.
        let negative = Some(wanted.negative.unwrap_or("").to_owned());
        let negative =
            Prompts::new(PromptsSettings { prompt: negative, ..Default::default() }).map_err(Failure::new)?;
        let (_, prompts, _) = graph.add(&ids.take("avoided"), negative, ());
        let prompt: Prompt = op(&id, parts.prompt.1.clone())?;
        Some(graph.add(&ids.take("negative"), prompt, (prompts, backbone)))
    } else if wanted.negative.is_some() && !is_list {
        return Err(Failure::new(
            "--negative: without classifier-free guidance nothing is avoided; set --cfg, as in --cfg 5",
        ));
    } else {
        None
    };

    let decode = ids.take(&parts.autoencoder.0);
    let (mut references, mut image_prompt, mut negative_image_prompt) = (None, None, None);
    if layout.image_tokens {
        let (id, settings) = parts.image_prompt.as_ref().ok_or_else(|| {
            Failure::new(
                "the network has an IP-Adapter, but the graph has no node `image-prompt` for its references",
            )
        })?;
        if !wanted.prompts.has_references() {
            return Err(Failure::new(format!(
                "the network has an IP-Adapter, which needs a reference: name one with --ref, or draw without it: --set {}.ip_adapter=\"\"",
                parts.backbone.0
            )));
        }
        let mut encode = |id: &str, negative| -> Result<_, Failure> {
            let id = ids.take(id);
            let encode: ImagePrompts = op(&id, ImagePromptSettings { negative, ..settings.clone() })?;
            Ok(graph.add(&id, encode, (pictures, Some(backbone))).0)
        };
        image_prompt = Some(encode(id, false)?);
        if cfg != 1.0 {
            negative_image_prompt = Some(encode("no_picture", true)?);
        }
    } else if wanted.prompts.has_references() {
        if layout.sizes {
            return Err(Failure::new(format!(
                "--ref: SDXL sees references through an IP-Adapter only, as in {}.ip_adapter",
                parts.backbone.0
            )));
        }
        let id = ids.take(&parts.references.0);
        let encode: EncodeReferences = op(&id, parts.references.1.clone())?;
        references = Some(graph.add(&id, encode, (pictures,)).0);
    }
    let adapter = match wanted.adapter {
        None => None,
        Some(path) => {
            let settings = of_file(path, &layout.linears)?;
            notes.push(format!("{} of rank {}", count(settings.targets.len(), "linear"), settings.rank));
            let lora = Lora::new(settings).map_err(Failure::new)?;
            Some(graph.add(&ids.take("adapter"), lora, (backbone,)).0)
        }
    };

    let (kind, weights) = (parts.autoencoder.1.kind, parts.autoencoder.1.weights.clone());
    let (height, width) = wanted.size;
    let blank = BlankSettings { height, width, kind, weights: weights.clone() };
    let blank = Blank::new(blank).map_err(|e| Failure::new(format!("the size: {e}")))?;
    let (like,) = graph.add(&ids.take("blank"), blank, (prompts,));
    let sizes = match layout.sizes {
        true => {
            let sizes = PictureSizes::new(Default::default()).map_err(Failure::new)?;
            Some(
                graph
                    .add(&ids.take("sizes"), sizes, (None::<Wire<Images>>, None::<Wire<Crops>>, Some(like)))
                    .0,
            )
        }
        false => None,
    };

    let stated = wanted.guidance.filter(|_| layout.guidance || !is_list);
    let guidance = stated.or(parts.sample.guidance).or_else(|| {
        let published = parts.published_guidance();
        layout.guidance.then(|| {
            notes
                .push(format!("guidance {published}: the graph says nothing, and this is the published one"));
            published
        })
    });
    let steps = wanted.steps.unwrap_or(parts.sample.steps);
    if !parts.states_sample && wanted.steps.is_none() {
        notes
            .push(format!("{}: the graph says nothing of sampling; --steps N sets it", count(steps, "step")));
    }
    // Of a network without its IP-Adapter there is nothing to scale.
    let ip_scale = parts.sample.ip_scale.filter(|_| layout.image_tokens);
    // Without an adapter there is none either.
    let lora_scale = wanted.adapter.map_or(1.0, |_| wanted.lora_scale.unwrap_or(parts.sample.lora_scale));
    let settings =
        SampleSettings { steps, guidance, cfg, lora_scale, ip_scale, seed: None, ..parts.sample.clone() };
    let sample = Sample::<usize, usize, usize>::new(settings).map_err(Failure::new)?;
    let (negative_text, negative_pooled) = avoided.unzip();
    let wires = (
        backbone,
        adapter,
        like,
        text,
        pooled,
        references,
        negative_text,
        negative_pooled,
        sizes,
        image_prompt,
        negative_image_prompt,
    );
    let (latents,) = graph.add(&ids.take("sample"), sample, wires);
    let settings = DecodeSettings { kind, weights, allow_toy: parts.autoencoder.1.allow_toy };
    let (images,) = graph.add(&decode, op::<Decode>(&decode, settings)?, (latents,));
    Ok(Drawing { graph: Arc::new(graph), images, steps, guidance, cfg, lora_scale, ip_scale, notes })
}

/// The adapter in a file, as it is: its linears, its rank and its scale.
fn of_file(path: &Path, linears: &Linears) -> Result<LoraSettings, Failure> {
    let file = AdapterFile::open(path, "", linears.names).map_err(Failure::new)?;
    let layout = file.layout(Some(linears)).map_err(Failure::new)?;
    Ok(LoraSettings {
        rank: layout.rank,
        alpha: Some(f64::from(layout.alpha)),
        targets: layout.modules.into_iter().map(|m| m.name).collect(),
        from: Some(DataPath(path.to_owned())),
        ..Default::default()
    })
}
