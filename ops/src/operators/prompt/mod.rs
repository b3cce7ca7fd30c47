//! `prompt`: from prompts to text tokens and a pooled vector.
//!
//! Shape letters: `B` batch, `L` text tokens, `E` text width, `P` pooled width.

mod clip_bigg;
mod clip_t5;
mod encoders;
mod files;

use prefgraph_nn::text::hash::Hash;

use self::{
    clip_bigg::ClipBigG,
    clip_t5::ClipT5,
    encoders::{TextEncoders, encode_distinct},
};
use super::{autoencoder::on_gpu, tensors::tensor};
use crate::{
    choices,
    identity::Identity,
    operator::{Cost, Ctx, InShapes, OpError, Operator, OutShapes},
    part::{Part, Toy},
    ports::{BackboneHandle, Pooled, TextTokens, Texts},
    settings,
    settings::DataPath,
};

choices! {
    /// Kinds of text encoder.
    pub enum TextKind {
        /// Feature hashing of words: nothing trained.
        Hash = "hash",
        /// The encoders of FLUX: T5 for the tokens, CLIP-L for the pooled vector.
        ClipT5 = "clip_t5",
        /// The encoders of SDXL: CLIP-L and OpenCLIP ViT-bigG side by side for the tokens, ViT-bigG for the pooled vector.
        ClipBigG = "clip_bigg",
    }
}

settings! {
    /// Settings of [`Prompt`].
    pub struct PromptSettings {
        /// Kind of text encoder: the one that the backbone was trained with.
        pub kind: TextKind = TextKind::Hash,
        /// Text tokens; what comes later is cut off. 16 of kind `hash`, 512 of kind `clip_t5` where it is not given; those of kind `clip_bigg` are what its encoders take, 77.
        pub length: Option<usize> = None,
        /// Width of a token of kind `hash`; that of the connected backbone where it is not given.
        pub width: Option<usize> = None,
        /// Width of the pooled vector of kind `hash`; likewise.
        pub pooled: Option<usize> = None,
        /// Of kinds `clip_t5` and `clip_bigg`: the folder of the CLIP text encoder, the folder above its `text_encoder`, or its single file, e.g. `clip_l.safetensors`.
        pub clip: DataPath = DataPath::default(),
        /// Of kind `clip_t5`: the folder of the T5 encoder, the folder above its `text_encoder_2`, or its single file, e.g. `t5xxl_fp16.safetensors`.
        pub t5: DataPath = DataPath::default(),
        /// Of kind `clip_bigg`: the folder of the text encoder of OpenCLIP ViT-bigG, the folder above its `text_encoder_2`, or its single file, e.g. `clip_g.safetensors`.
        pub bigg: DataPath = DataPath::default(),
        /// Folder of CLIP's tokeniser; the neighbour `tokenizer` of its encoder where it is not given. Needed where the encoder is a single file without that neighbour.
        pub clip_tokenizer: DataPath = DataPath::default(),
        /// Folder of T5's tokeniser; the neighbour `tokenizer_2` of its encoder where it is not given. Needed where the encoder is a single file without that neighbour.
        pub t5_tokenizer: DataPath = DataPath::default(),
        /// Folder of ViT-bigG's tokeniser; likewise.
        pub bigg_tokenizer: DataPath = DataPath::default(),
        /// Is kind `hash` meant, even under a network of FLUX.1's shapes?
        pub allow_toy: bool = false,
    }
}

impl PromptSettings {
    /// Refuse settings of other kinds, which would be passed over in silence.
    fn check(&self) -> Result<(), OpError> {
        use TextKind::{ClipBigG, ClipT5, Hash};
        let stated: [(&str, bool, &[TextKind]); 9] = [
            ("length", self.length.is_some(), &[Hash, ClipT5]),
            ("width", self.width.is_some(), &[Hash]),
            ("pooled", self.pooled.is_some(), &[Hash]),
            ("clip", !self.clip.is_empty(), &[ClipT5, ClipBigG]),
            ("clip_tokenizer", !self.clip_tokenizer.is_empty(), &[ClipT5, ClipBigG]),
            ("t5", !self.t5.is_empty(), &[ClipT5]),
            ("t5_tokenizer", !self.t5_tokenizer.is_empty(), &[ClipT5]),
            ("bigg", !self.bigg.is_empty(), &[ClipBigG]),
            ("bigg_tokenizer", !self.bigg_tokenizer.is_empty(), &[ClipBigG]),
        ];
        let surplus =
            stated.into_iter().find(|(_, is_stated, kinds)| *is_stated && !kinds.contains(&self.kind));
        let Some((name, _, kinds)) = surplus else { return Ok(()) };
        let kinds: Vec<String> = kinds.iter().map(|kind| format!("kind `{}`", kind.name())).collect();
        Err(OpError::new(format!("{name} is a setting of {}, which this node is not", kinds.join(" or "))))
    }
}

/// Words of kind `hash` where nothing else is stated.
const HASHED_WORDS: usize = 16;

/// Encoded prompts.
pub struct Prompt {
    settings: PromptSettings,
    /// Of all kinds but `hash`.
    encoders: Option<Box<dyn TextEncoders>>,
}

impl Prompt {
    /// The hashing that fits the settings and the backbone's widths.
    fn hash(&self, backbone: Option<(usize, usize)>) -> Result<Hash, OpError> {
        let of = |stated: Option<usize>, found: Option<usize>, name: &str| match (stated, found) {
            (Some(stated), Some(found)) if stated != found => {
                Err(OpError::new(format!("{name} is {stated}, but the backbone takes {found}")))
            }
            (stated, found) => stated
                .or(found)
                .ok_or_else(|| OpError::new(format!("{name} is not known: set it, or connect `backbone`"))),
        };
        let width = of(self.settings.width, backbone.map(|b| b.0), "width")?;
        let pooled = of(self.settings.pooled, backbone.map(|b| b.1), "pooled")?;
        Ok(Hash::new(self.settings.length.unwrap_or(HASHED_WORDS), width, pooled)?)
    }

    /// `L`, `E` and `P`, which must be what the backbone takes.
    fn shape(&self, backbone: Option<(usize, usize)>) -> Result<(usize, usize, usize), OpError> {
        let Some(encoders) = &self.encoders else { return Ok(self.hash(backbone)?.shape()) };
        let (length, width, pooled) = encoders.shape();
        let [tokens, vectors] = encoders.sources();
        let found = [("text tokens", tokens, width), ("pooled vectors", vectors, pooled)];
        for ((what, setting, found), taken) in
            found.into_iter().zip(backbone.into_iter().flat_map(|b| [b.0, b.1]))
        {
            if found != taken {
                return Err(OpError::new(format!(
                    "{what} of `{setting}` are {found} wide, but the backbone takes {taken}: another encoder is needed"
                )));
            }
        }
        Ok((length, width, pooled))
    }
}

impl Operator for Prompt {
    const NAME: &'static str = "prompt";
    const DOC: &'static str = "Encode prompts as text tokens and a pooled vector, sized for the backbone.";
    const IN: [&'static str; 2] = ["prompts", "backbone"];
    const OUT: [&'static str; 2] = ["text", "pooled"];
    type Settings = PromptSettings;
    type In = (Texts, Option<BackboneHandle>);
    type Out = (TextTokens, Pooled);
    type Saved = ();
    const DIFFERENTIABLE: bool = false;

    fn new(settings: PromptSettings) -> Result<Self, OpError> {
        settings.check()?;
        let encoders: Option<Box<dyn TextEncoders>> = match settings.kind {
            TextKind::Hash => None,
            TextKind::ClipT5 => Some(Box::new(ClipT5::open(&settings)?)),
            TextKind::ClipBigG => Some(Box::new(ClipBigG::open(&settings)?)),
        };
        Ok(Self { settings, encoders })
    }

    fn shapes(&self, (prompts, backbone): InShapes<Self>, _: usize) -> Result<OutShapes<Self>, OpError> {
        let widths = backbone.as_ref().map(|b| (b.layout().text_width, b.layout().pooled_width));
        let (length, width, pooled) = self.shape(widths)?;
        Ok(((prompts.batch, length, width), (prompts.batch, pooled)))
    }

    fn cost(&self, (prompts, _): &InShapes<Self>, _: &OutShapes<Self>) -> Cost {
        self.encoders.as_ref().map_or_else(Cost::default, |e| e.cost(prompts.batch))
    }

    fn gpu_cost(&self, (prompts, _): &InShapes<Self>, _: &OutShapes<Self>) -> Option<Cost> {
        self.encoders.as_ref().map(|encoders| on_gpu(encoders.cost(prompts.batch)))
    }

    fn notes(&self, _: &InShapes<Self>) -> Vec<String> {
        self.encoders.iter().map(|e| e.note()).collect()
    }

    fn part(&self) -> Part {
        match self.settings.kind {
            TextKind::Hash => {
                let instead = &["kind=clip_t5", "clip=FOLDER_OF_CLIP", "t5=FOLDER_OF_T5"];
                Part::of_toy(Toy { chosen_by: "kind: hash", instead }, self.settings.allow_toy)
            }
            TextKind::ClipT5 | TextKind::ClipBigG => Part::Ordinary,
        }
    }

    fn cacheable(&self) -> Option<Identity> {
        // Of the backbone only the widths are asked for, and they are the outputs' own.
        let length = match &self.encoders {
            Some(encoders) => encoders.shape().0,
            None => self.settings.length.unwrap_or(HASHED_WORDS),
        };
        let identity = Identity::of(&self.settings)
            .ok()?
            .without("allow_toy")
            .setting("length", length)
            .shape_only("backbone");
        let identity = if self.encoders.is_some() { identity.on_device() } else { identity };
        let paths = self.encoders.iter().flat_map(|e| e.paths());
        Some(paths.fold(identity, |identity, (name, path)| identity.file(name, path)))
    }

    fn forward(&self, ctx: &Ctx<'_>, (prompts, backbone): Self::In) -> Result<(Self::Out, ()), OpError> {
        let (text, pooled) = match &self.encoders {
            Some(encoders) => encode_distinct(&**encoders, ctx, &prompts.0)?,
            None => {
                let widths = backbone.as_ref().map(|b| (b.0.layout().text_width, b.0.layout().pooled_width));
                let found = self.hash(widths)?.encode(ctx.cpu, &prompts.0)?;
                (found.tokens, found.pooled)
            }
        };
        let out = (
            tensor(ctx, text.shape(), text.into_values())?,
            tensor(ctx, pooled.shape(), pooled.into_values())?,
        );
        Ok((out, ()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{operators::testing::Bench, ports::TextsShape};

    #[test]
    fn widths_come_from_the_settings_or_the_backbone_and_must_agree() {
        let free = Prompt::new(Default::default()).unwrap();
        let error = free.shapes((TextsShape { batch: 2 }, None), 0).unwrap_err().to_string();
        assert!(error.contains("connect `backbone`"), "{error}");
        let fixed = Prompt::new(PromptSettings { width: Some(64), ..Default::default() }).unwrap();
        assert_eq!(fixed.hash(Some((64, 32))).unwrap().shape(), (16, 64, 32));
        assert!(fixed.hash(Some((48, 32))).unwrap_err().to_string().contains("takes 48"));
    }

    #[test]
    fn equal_prompts_get_equal_text() {
        let bench = Bench::new();
        let settings =
            PromptSettings { width: Some(64), pooled: Some(32), length: Some(4), ..Default::default() };
        let op = Prompt::new(settings).unwrap();
        let prompts = ["a dog", "a cat", "a dog"].map(String::from).to_vec();
        let ((text, pooled), ()) = op.forward(&bench.ctx(), (Texts(prompts.into()), None)).unwrap();
        let (text, pooled) = (text.as_vec(), pooled.as_vec());
        let size = text.len() / 3;
        assert_eq!(text[..size], text[2 * size..]);
        assert_ne!(text[..size], text[size..2 * size]);
        assert_ne!(pooled[..32], pooled[32..64]);
    }
}
