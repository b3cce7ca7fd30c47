//! `replay`: batches from a file instead of data, for golden cases and parity with other frameworks.
//!
//! Shape letters: `B` batch, `C` latent channels, `H` `W` latent grid, `R` references, `h` `w` focus grid, `F` feature
//! width, `T` tokens of an image encoder, `I` their width.
//!
//! A case is of FLUX, with references as latents and sigmas as times, or of a U-Net with an IP-Adapter, with timesteps, sizes and the
//! tokens that an image encoder makes of one reference. What a case does not have, it gives as tensors without values.

mod expect;
#[cfg(test)]
mod tests;

use std::path::PathBuf;

use dfdx::shapes::Const;
use prefgraph_nn::files::{Dtype, TensorFiles};
use serde_json::{Map, Value, json};

use super::{
    entropy::Counting,
    masked_loss::Reduction,
    scores::Hooks,
    tensors::{mask, tensor},
};
use crate::{
    operator::{Ctx, InShapes, OpError, Operator, OutShapes},
    ports::{
        Clean, Features, ImagePrompt, ImageShape, Images, Latents, List, ListShape, Mask, Noise, Pooled,
        Process, Sizes, TextTokens, TimeShape, Timesteps,
    },
    resume::External,
    settings,
    settings::DataPath,
    words::count,
};

settings! {
    /// Settings of [`Replay`]. All but `path` state what the graph fixes, most simply by reference, e.g.
    /// `reduction: @loss.reduction`: where `case.json` says otherwise, the run is refused.
    pub struct ReplaySettings {
        /// Folder with `case.json`, `batches.safetensors` and `transformer`, or `unet` and an IP-Adapter.
        pub path: DataPath = DataPath::default(),
        /// The graph's reduction of errors.
        pub reduction: Option<Reduction> = None,
        /// The graph's way of counting grey values.
        pub entropy: Option<Counting> = None,
        /// The graph's hooks.
        pub hooks: Option<Hooks> = None,
        /// The graph's beta.
        pub beta: Option<f64> = None,
        /// The graph's learning rate.
        pub lr: Option<f64> = None,
        /// The graph's decays of moments.
        pub betas: Option<[f64; 2]> = None,
        /// The graph's eps of AdamW.
        pub eps: Option<f64> = None,
        /// The graph's weight decay.
        pub weight_decay: Option<f64> = None,
        /// The graph's tau.
        pub tau: Option<f64> = None,
        /// The graph's gamma.
        pub gamma: Option<f64> = None,
    }
}

/// The tensors `step{k}.{name}` of a case, for step k.
pub struct Replay {
    folder: PathBuf,
    files: TensorFiles,
    constants: Map<String, Value>,
    references: usize,
    kind: Kind,
    steps: u64,
}

/// Which network a case is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Flux,
    UNet,
}

impl Kind {
    /// What a file calls the latents of a reference.
    fn reference(self, number: usize) -> String {
        match self {
            Self::Flux => format!("x_r{number}"),
            Self::UNet => "x_ref".into(),
        }
    }

    /// And where the subject is in it.
    fn prior(self, number: usize) -> String {
        match self {
            Self::Flux => format!("m_prior{number}"),
            Self::UNet => "m_prior".into(),
        }
    }

    /// The tensor of times.
    fn time(self) -> &'static str {
        match self {
            Self::Flux => "sigma",
            Self::UNet => "timestep",
        }
    }

    fn process(self) -> Process {
        match self {
            Self::Flux => Process::Flow,
            Self::UNet => Process::DdpmEps,
        }
    }
}

/// The IP-Adapter of a U-Net's case.
const IP_ADAPTER: &str = "ip-adapter-plus_sdxl.safetensors";

/// Names that every step has, beside references and priors.
const LATENTS: [&str; 3] = ["x0_w", "x0_l", "eps"];

impl Replay {
    fn dims<const N: usize>(&self, name: &str) -> Result<[usize; N], OpError> {
        let name = format!("step0.{name}");
        let info = self.files.info(&name).ok_or_else(|| self.fault(format!("has no tensor `{name}`")))?;
        info.shape
            .clone()
            .try_into()
            .map_err(|found| self.fault(format!("`{name}` has axes {found:?}: {N} axes are needed")))
    }

    fn latents(&self, name: &str) -> Result<(usize, usize, usize, usize), OpError> {
        Ok(self.dims::<4>(name)?.into())
    }

    fn features(&self, name: &str) -> Result<(usize, usize, usize, usize), OpError> {
        let there = self.files.info(&format!("step0.{name}")).is_some();
        if there { self.latents(name) } else { Ok((0, 0, 0, 0)) }
    }

    fn fault(&self, message: impl std::fmt::Display) -> OpError {
        OpError::new(format!("{}: {message}", self.files.path().display()))
    }

    /// Every step must hold the tensors of the first, with the same axes.
    fn check(&self) -> Result<(), OpError> {
        let batch = self.latents("x0_w")?.0;
        for name in self.files.names() {
            let Some((step, rest)) = name.split_once('.') else {
                return Err(self.fault(format!("`{name}` is not named `step{{k}}.{{name}}`")));
            };
            let found = &self.files.info(name).expect("a name of the file").shape;
            match self.files.info(&format!("step0.{rest}")) {
                None => return Err(self.fault(format!("`{name}` is there, but no `step0.{rest}`"))),
                Some(first) if first.shape != *found => {
                    return Err(self.fault(format!(
                        "`{name}` has axes {found:?}, `step0.{rest}` has {:?}: all steps must be alike",
                        first.shape
                    )));
                }
                Some(_) if found.first() != Some(&batch) => {
                    return Err(self.fault(format!(
                        "`{name}` has axes {found:?}: the first must be the batch of `step0.x0_w`, {batch}"
                    )));
                }
                Some(_) => {}
            }
            let number = step.strip_prefix("step").and_then(|s| s.parse::<u64>().ok());
            if number.is_none_or(|n| n >= self.steps) {
                return Err(self.fault(format!("`{name}`: steps are numbered from 0 without gaps")));
            }
        }
        for k in 0..self.steps {
            for name in self.files.names().filter_map(|n| n.strip_prefix("step0.")) {
                if self.files.info(&format!("step{k}.{name}")).is_none() {
                    return Err(self.fault(format!("has `step0.{name}`, but no `step{k}.{name}`")));
                }
            }
        }
        match self.files.info("step0.rgb_w") {
            Some(info) if info.dtype != Dtype::U8 => {
                Err(self.fault(format!("`step0.rgb_w` is {}: expected U8", info.dtype)))
            }
            _ => Ok(()),
        }
    }

    /// The first file of a training run: all runs of a case start from one adapter, `init.*`.
    fn trajectory(&self) -> Option<PathBuf> {
        let entries = std::fs::read_dir(&self.folder).ok()?;
        let is_run = |path: &PathBuf| {
            let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
            name.starts_with("train_") && name.ends_with(".safetensors")
        };
        entries.filter_map(|e| Some(e.ok()?.path())).filter(is_run).min()
    }

    /// How many tensors there are of those that are named by the reference they belong to.
    fn number_of(&self, name: impl Fn(Kind, usize) -> String) -> usize {
        let most = if self.kind == Kind::UNet { 1 } else { usize::MAX };
        let there = |r: &usize| self.files.info(&format!("step0.{}", name(self.kind, *r))).is_some();
        (0..most).take_while(there).count()
    }

    /// The tokens of the image encoder, `[B, T, I]`, all zero without one.
    fn image_prompt(&self) -> Result<(usize, usize, usize), OpError> {
        if self.kind == Kind::Flux {
            return Ok((0, 0, 0));
        }
        let [batch, references, tokens, width] = self.dims("image_embeds")?;
        Ok((batch, references * tokens, width))
    }

    fn times(&self, name: &str) -> Result<Vec<f32>, OpError> {
        if self.kind == Kind::Flux {
            let [batch] = self.dims("sigma")?;
            return Ok(self.files.read_finite(name, &[batch])?);
        }
        match self.files.info(name) {
            Some(info) if info.dtype == Dtype::I64 => {}
            _ => return Err(self.fault(format!("`{name}` is no tensor of I64"))),
        }
        let (steps, _) = self.files.bytes(name)?.as_chunks();
        Ok(steps.iter().map(|t| i64::from_le_bytes(*t) as f32).collect())
    }
}

impl Operator for Replay {
    const NAME: &'static str = "replay";
    const DOC: &'static str = "Read the batch of step k from the tensors `step{k}.{name}` of a case; everything in its \
                               case.json, and its `weights`, can be referred to.";
    const IN: [&'static str; 0] = [];
    const OUT: [&'static str; 13] = [
        "x0_w",
        "x0_l",
        "references",
        "eps",
        "t",
        "text",
        "pooled",
        "priors",
        "winner",
        "f_gen",
        "f_ref",
        "sizes",
        "image_prompt",
    ];
    type Settings = ReplaySettings;
    type In = ();
    type Out = (
        Clean,
        Clean,
        List<Latents>,
        Noise,
        Timesteps,
        TextTokens,
        Pooled,
        List<Mask>,
        Images,
        Features,
        Features,
        Sizes,
        ImagePrompt,
    );
    type Saved = ();
    const DIFFERENTIABLE: bool = false;

    fn new(settings: ReplaySettings) -> Result<Self, OpError> {
        if settings.path.is_empty() {
            return Err(OpError::new("path: the folder of a case is needed"));
        }
        let folder = settings.path.0.clone();
        let file = folder.join("case.json");
        let text =
            std::fs::read_to_string(&file).map_err(|e| OpError::new(format!("{}: {e}", file.display())))?;
        let constants: Map<String, Value> =
            serde_json::from_str(&text).map_err(|e| OpError::new(format!("{}: {e}", file.display())))?;
        expect::check(&settings, &constants).map_err(|e| OpError::new(format!("{}: {e}", file.display())))?;
        let files = TensorFiles::open(&folder.join("batches.safetensors"))?;
        let step = |n: &str| n.strip_prefix("step")?.split_once('.')?.0.parse::<u64>().ok();
        let steps = files.names().filter_map(step).max().map_or(0, |last| last + 1);
        let kind = if files.info("step0.timestep").is_some() { Kind::UNet } else { Kind::Flux };
        let mut replay = Self { folder, files, constants, references: 0, kind, steps };
        replay.references = replay.number_of(Kind::reference);
        if replay.steps == 0 {
            return Err(replay.fault("has no tensor named `step0.{name}`"));
        }
        if replay.number_of(Kind::prior) != replay.references {
            return Err(replay.fault(format!(
                "has {} (`{}`, ...) but {} (`{}`, ...)",
                count(replay.references, "reference"),
                kind.reference(0),
                count(replay.number_of(Kind::prior), "prior"),
                kind.prior(0)
            )));
        }
        replay.check()?;
        Ok(replay)
    }

    fn shapes(&self, (): InShapes<Self>, _: usize) -> Result<OutShapes<Self>, OpError> {
        let [x0_w, x0_l, eps] = LATENTS.map(|name| self.latents(name));
        let references = (0..self.references).map(|r| self.latents(&self.kind.reference(r)));
        let priors = (0..self.references).map(|r| {
            let [b, _, h, w] = self.dims(&self.kind.prior(r))?;
            Ok::<_, OpError>((b, Const::<1>, h, w))
        });
        let [batch] = self.dims(self.kind.time())?;
        let [_, height, width, _] = self.dims("rgb_w")?;
        Ok((
            x0_w?,
            x0_l?,
            ListShape(references.collect::<Result<_, _>>()?),
            eps?,
            TimeShape { batch, process: self.kind.process() },
            self.dims::<3>("prompt_embeds")?.into(),
            self.dims::<2>("pooled")?.into(),
            ListShape(priors.collect::<Result<_, _>>()?),
            ImageShape { batch, height, width },
            self.features("f_gen")?,
            self.features("f_ref")?,
            (if self.kind == Kind::UNet { batch } else { 0 }, Const::<6>),
            self.image_prompt()?,
        ))
    }

    fn notes(&self, (): &InShapes<Self>) -> Vec<String> {
        vec![format!(
            "{} of {} from {}",
            count(self.steps, "step"),
            count(self.references, "reference"),
            self.folder.display()
        )]
    }

    fn exports(&self) -> Vec<(String, Value)> {
        let mut all: Vec<(String, Value)> =
            self.constants.iter().map(|(key, value)| (key.clone(), value.clone())).collect();
        all.retain(|(key, _)| !["weights", "init", "refs", "steps"].contains(&key.as_str()));
        let folder = if self.kind == Kind::UNet { "unet" } else { "transformer" };
        all.push(("weights".into(), json!(self.folder.join(folder))));
        if self.kind == Kind::UNet {
            all.push(("ip_adapter".into(), json!(self.folder.join(IP_ADAPTER))));
            let tokens = self.image_prompt().map_or(0, |(_, tokens, _)| tokens);
            all.push(("picture_tokens".into(), json!(tokens / self.references.max(1))));
        }
        if let Some(targets) = self.constants.get("targets").and_then(Value::as_str) {
            all.push(("lora_targets".into(), json!(targets.split_whitespace().collect::<Vec<_>>())));
        }
        all.push(("init".into(), json!(self.trajectory())));
        all.push(("refs".into(), json!(self.references)));
        all.push(("steps".into(), json!(self.steps)));
        all
    }

    fn external(&self) -> Vec<External> {
        let constants = self.folder.join("case.json");
        vec![External::files("path", self.files.paths().into_iter().chain([constants]).collect())]
    }

    fn forward(&self, ctx: &Ctx<'_>, (): Self::In) -> Result<(Self::Out, ()), OpError> {
        if ctx.step >= self.steps {
            return Err(self.fault(format!(
                "the case has {}, step {} is asked for: run it with --steps {}",
                count(self.steps, "step"),
                ctx.step,
                self.steps
            )));
        }
        let shapes = Operator::shapes(self, (), 0)?;
        let name = |name: &str| format!("step{}.{name}", ctx.step);
        let read = |n: &str| -> Result<Vec<f32>, OpError> {
            let info =
                self.files.info(&name(n)).ok_or_else(|| self.fault(format!("has no `{}`", name(n))))?;
            Ok(self.files.read_finite(&name(n), &info.shape)?)
        };
        let features = |shape: (usize, usize, usize, usize), n: &str| {
            tensor(ctx, shape, if shape.0 == 0 { Vec::new() } else { read(n)? })
        };
        let references = shapes.2.0.iter().enumerate();
        let references = references.map(|(r, shape)| tensor(ctx, *shape, read(&self.kind.reference(r))?));
        let priors = shapes.7.0.iter().enumerate();
        let priors = priors.map(|(r, s)| mask(ctx, (s.0, s.2, s.3), read(&self.kind.prior(r))?));
        let ImageShape { batch, height, width } = shapes.8;
        let rgb = self.files.bytes(&name("rgb_w"))?.to_vec();
        let out = (
            tensor(ctx, shapes.0, read("x0_w")?)?.into(),
            tensor(ctx, shapes.1, read("x0_l")?)?.into(),
            List(references.collect::<Result<_, _>>()?),
            tensor(ctx, shapes.3, read("eps")?)?.into(),
            Timesteps::new(self.kind.process(), self.times(&name(self.kind.time()))?),
            tensor(ctx, shapes.5, read("prompt_embeds")?)?,
            tensor(ctx, shapes.6, read("pooled")?)?,
            List(priors.collect::<Result<_, _>>()?),
            Images { batch, height, width, rgb: rgb.into() },
            features(shapes.9, "f_gen")?.into(),
            features(shapes.10, "f_ref")?.into(),
            tensor(ctx, shapes.11, if shapes.11.0 == 0 { Vec::new() } else { read("time_ids")? })?,
            tensor(ctx, shapes.12, if shapes.12.0 == 0 { Vec::new() } else { read("image_embeds")? })?.into(),
        );
        Ok((out, ()))
    }
}
