//! What a graph says of its networks, whatever else it does.
//!
//! Everything is found from the pass that has an adapter: what a recipe trains, or what a sampling graph draws with. Data are
//! not touched, so that a recipe can be sampled on a machine that has none of its pairs.

use prefgraph_ops::{
    Operator,
    operators::{
        backbone::{Backbone, BackboneKind, BackboneSettings},
        blank::Blank,
        decode::Decode,
        dropout::DropText,
        encode::{Encode, EncodeReferences, EncodeSettings},
        forward::Forward,
        image_prompt::{ImagePromptSettings, ImagePrompts},
        pairs::{Pairs, Prompts},
        prompt::{Prompt, PromptSettings},
        sample::{Sample, SampleSchedule, SampleSettings},
    },
    ports::Process,
};

use crate::{
    cli::Failure,
    spec::{Outline, text},
};

/// Settings, and the id of the node that states them.
pub(super) type Stated<S> = (String, S);

/// Rows and columns of pixels.
pub(super) type Size = (usize, usize);

/// See the head of the file.
pub(super) struct Parts {
    pub backbone: Stated<BackboneSettings>,
    pub prompt: Stated<PromptSettings>,
    /// What pictures are decoded with.
    pub autoencoder: Stated<EncodeSettings>,
    /// What references are encoded with.
    pub references: Stated<EncodeSettings>,
    /// What references are encoded with where the network sees them as image tokens.
    pub image_prompt: Option<Stated<ImagePromptSettings>>,
    pub sample: SampleSettings,
    /// Does the graph itself say how to sample?
    pub states_sample: bool,
    pub size: Size,
    pub reference_size: Size,
}

/// Pixels along each side where a graph says nothing of it.
const SIDE: usize = 512;

/// Classifier-free guidance of SDXL's pipeline in diffusers.
const SDXL_CFG: f64 = 5.0;

impl Parts {
    pub(super) fn of(outline: &Outline<'_>) -> Result<Self, Failure> {
        let samples = outline.settings_of::<Sample>()?;
        let forwards = outline.settings_of::<Forward>()?;
        let adapted = |id: &&String| outline.source(id, "adapter").is_some();
        let sampled = samples.iter().map(|(id, _)| id);
        let sample = sampled.clone().find(adapted).or_else(|| sampled.clone().next());
        let pass = forwards.iter().map(|(id, _)| id).find(adapted).or(sample).ok_or_else(|| {
            Failure::new(format!(
                "`{}` has no node that trains a network (`forward`) or draws with one (`sample`)",
                outline.name()
            ))
        })?;
        let backbone = read_by::<Backbone>(outline, pass, "backbone")?;
        let prompt = read_by::<Prompt>(outline, pass, "text")?;

        let decoders = outline.settings_of::<Decode>()?.into_iter().map(|(id, s)| {
            (
                id,
                EncodeSettings {
                    kind: s.kind,
                    weights: s.weights,
                    allow_toy: s.allow_toy,
                    ..Default::default()
                },
            )
        });
        let (encoders, decoders) = (outline.settings_of::<Encode>()?, decoders.collect());
        let of_references = outline.settings_of::<EncodeReferences>()?;
        let autoencoder = [encoders, decoders, of_references.clone()].into_iter().find(|all| !all.is_empty());
        let autoencoder = one_autoencoder(autoencoder.unwrap_or_default())?;
        let references = match of_references.is_empty() {
            true => autoencoder.clone(),
            false => one_autoencoder(of_references)?,
        };
        let (size, reference_size) = sizes(outline)?;
        let states_sample = sample.is_some();
        let stated = sample.and_then(|id| samples.iter().find(|(other, _)| other == id));
        let sample = match stated {
            Some((_, settings)) => settings.clone(),
            None => published(outline, pass, &backbone.1)?,
        };
        let image_prompt = outline.settings_of::<ImagePrompts>()?.into_iter().find(|(_, s)| !s.negative);
        Ok(Self {
            backbone,
            prompt,
            autoencoder,
            references,
            image_prompt,
            sample,
            states_sample,
            size,
            reference_size,
        })
    }

    /// The guidance where nobody states one: what FLUX.1 and UNO were published with.
    pub(super) fn published_guidance(&self) -> f64 {
        if self.backbone.1.adapter.is_empty() { 3.5 } else { 4.0 }
    }
}

/// How a network is sampled where the graph says nothing of it: as it was published.
fn published(
    outline: &Outline<'_>,
    pass: &str,
    backbone: &BackboneSettings,
) -> Result<SampleSettings, Failure> {
    Ok(match backbone.kind {
        // UNO, where its adapter is part of the network.
        BackboneKind::FluxUno if !backbone.adapter.is_empty() => {
            SampleSettings { schedule: SampleSchedule::Uno, ..Default::default() }
        }
        BackboneKind::FluxUno => SampleSettings::default(),
        BackboneKind::Sdxl => {
            // What it predicts is what it is trained on. Only these two settings: others may follow from data.
            let facts = outline.facts()?;
            let of_noise = |setting: &str| facts.get(&format!("{}.{setting}", outline.source(pass, "x_t")?));
            let process = of_noise("process").and_then(|text| text::read::<Process>(text).ok());
            SampleSettings {
                schedule: SampleSchedule::Euler,
                cfg: SDXL_CFG,
                process: process.filter(|process| *process != Process::Flow),
                zero_snr: of_noise("zero_snr").is_some_and(|text| text == "true"),
                ..Default::default()
            }
        }
    })
}

/// The settings of the node, of operator `O`, that `pass` reads as `input`.
fn read_by<O: Operator>(
    outline: &Outline<'_>,
    pass: &str,
    input: &str,
) -> Result<Stated<O::Settings>, Failure> {
    let mut source = outline.source(pass, input);
    // What training leaves out at random is drawn with.
    let drops = outline.settings_of::<DropText>()?;
    while let Some(id) = source.filter(|source| drops.iter().any(|(id, _)| id == source)) {
        source = outline.source(id, input);
    }
    let found = outline.settings_of::<O>()?.into_iter().find(|(id, _)| Some(id.as_str()) == source);
    found.ok_or_else(|| {
        Failure::new(format!(
            "`{pass}` of `{}` does not read its `{input}` from a node with the operator `{}`, so there is nowhere to put a \
             prompt: use a recipe or a sampling graph",
            outline.name(),
            O::NAME
        ))
    })
}

/// The autoencoder that all of these nodes have.
fn one_autoencoder(all: Vec<Stated<EncodeSettings>>) -> Result<Stated<EncodeSettings>, Failure> {
    let mut all = all.into_iter();
    let first =
        all.next().ok_or_else(|| Failure::new("the graph has no autoencoder (`encode` or `decode`)"))?;
    let same = |s: &EncodeSettings| s.kind == first.1.kind && s.weights == first.1.weights;
    match all.find(|(_, settings)| !same(settings)) {
        Some((other, _)) => Err(Failure::new(format!(
            "`{}` and `{other}` have different autoencoders: set `kind` and `weights` of both alike; a star sets several nodes at once, as in \
             --set '*winner.kind=tiny'",
            first.0
        ))),
        None => Ok(first),
    }
}

/// The size of a picture and that of a reference.
fn sizes(outline: &Outline<'_>) -> Result<(Size, Size), Failure> {
    if let Some((_, pairs)) = outline.settings_of::<Pairs>()?.into_iter().next() {
        let size = (pairs.height, pairs.width);
        let reference =
            (pairs.reference_height.unwrap_or(pairs.height), pairs.reference_width.unwrap_or(pairs.width));
        return Ok((size, reference));
    }
    let blank = outline.settings_of::<Blank>()?.into_iter().next();
    let size = blank.map_or((SIDE, SIDE), |(_, blank)| (blank.height, blank.width));
    let prompts = outline.settings_of::<Prompts>()?.into_iter().next();
    Ok((size, prompts.map_or(size, |(_, p)| (p.reference_height, p.reference_width))))
}
