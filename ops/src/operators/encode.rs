//! `encode` and `encode-references`: from pictures to latents.
//!
//! Shape letters: `B` batch, `C` latent channels, `H` `W` latent grid.

use prefgraph_nn::{
    self as nn,
    autoencoders::{Half, Posterior},
};

use super::{
    autoencoder::{self, AutoencoderKind, Coder, on_host},
    tensors::tensor,
    weights::configuration,
};
use crate::{
    choices,
    identity::Identity,
    operator::{Cost, Ctx, InShapes, OpError, Operator, OutShapes},
    part::Part,
    ports::{Clean, ImageShape, Images, Latents, List, ListShape},
    settings,
    settings::DataPath,
};

choices! {
    /// Which latents of a picture, where an encoder gives a distribution of them.
    pub enum LatentsKind {
        /// Its mean: the same picture always gives the same latents.
        Mean = "mean",
        /// A random one, another at every step.
        Sample = "sample",
    }
}

settings! {
    /// Settings of [`Encode`] and [`EncodeReferences`].
    pub struct EncodeSettings {
        /// Kind of autoencoder: that of the backbone.
        pub kind: AutoencoderKind = AutoencoderKind::Dct,
        /// Of kinds `kl` and `tiny`: the folder with `config.json` and the weights, the folder above its `vae`, or one
        /// safetensors file.
        pub weights: DataPath = DataPath::default(),
        /// The mean of the latents or a random sample of them; only kind `kl` can be sampled.
        pub latents: LatentsKind = LatentsKind::Mean,
        /// Is kind `dct` meant, even under a network of FLUX.1's shapes?
        pub allow_toy: bool = false,
    }
}

/// The autoencoder of both operators.
struct Encoder {
    kind: AutoencoderKind,
    coder: Coder,
    weights: DataPath,
    sampled: bool,
    allow_toy: bool,
}

impl Encoder {
    fn new(settings: EncodeSettings) -> Result<Self, OpError> {
        let coder = Coder::open(settings.kind, &settings.weights)?;
        let sampled = settings.latents == LatentsKind::Sample;
        if sampled && !coder.about().has_posterior() {
            return Err(OpError::new(format!(
                "latents: kind `{}` gives latents, not a distribution of them: expected `mean`",
                coder.about().kind()
            )));
        }
        Ok(Self {
            kind: settings.kind,
            coder,
            weights: settings.weights,
            sampled,
            allow_toy: settings.allow_toy,
        })
    }

    fn shape(&self, images: &ImageShape) -> Result<(usize, usize, usize, usize), OpError> {
        let cell = self.coder.about().cell();
        let whole = |side: usize| side > 0 && side.is_multiple_of(cell);
        if !whole(images.height) || !whole(images.width) {
            return Err(OpError::new(format!(
                "pictures of {} x {} pixels (width x height): a latent cell covers {cell} x {cell}, and each side must be a \
                 multiple of that",
                images.width, images.height
            )));
        }
        Ok((images.batch, self.coder.about().channels(), images.height / cell, images.width / cell))
    }

    fn part(&self) -> Part {
        autoencoder::part(self.kind, self.allow_toy)
    }

    /// What latents depend on besides the pictures.
    fn identity(&self) -> Identity {
        let identity = Identity::new().setting("kind", self.kind);
        if self.weights.is_empty() {
            identity
        } else {
            let place = autoencoder::place(&self.weights);
            let identity = identity.file("weights", &place).on_device();
            let beside = configuration(&place);
            beside.iter().fold(identity, |identity, path| identity.file("config", path))
        }
    }

    /// Why they are random, if they are.
    fn random(&self) -> Option<String> {
        self.sampled.then(|| "`latents: sample` draws latents from the autoencoder's distribution".into())
    }

    fn cost<'a>(&self, images: impl Iterator<Item = &'a ImageShape>) -> Cost {
        let resident_bytes = self.coder.about().resident_bytes(Half::Encoder);
        let mut all = Cost { resident_bytes, ..Cost::default() };
        for image in images {
            let one = self.coder.about().encode_cost(image.height, image.width);
            let pixels = image.batch * image.height * image.width;
            all.forward_flops += image.batch as f64 * one.forward_flops;
            // Bytes to planes and on to latents; the weights once for every picture.
            all.moved_bytes +=
                20.0 * pixels as f64 + image.batch as f64 * self.coder.about().weight_bytes() as f64;
            // The network takes the pictures one after the other; all of them wait as planes on the host.
            all.scratch_bytes = all.scratch_bytes.max(one.scratch_bytes);
            all.host_bytes = all.host_bytes.max(12 * pixels);
        }
        all
    }

    fn notes(&self) -> Vec<String> {
        autoencoder::note(self.coder.about(), &self.weights)
    }

    /// `which` tells the references of one node apart.
    fn encode(&self, ctx: &Ctx<'_>, images: &Images, which: usize) -> Result<Latents, OpError> {
        let Images { batch, height, width, .. } = *images;
        let mut planes = Vec::with_capacity(batch * 3 * height * width);
        for picture in (0..batch).map(|b| images.picture(b)) {
            for channel in 0..3 {
                planes.extend(picture.as_chunks::<3>().0.iter().map(|p| Images::signed(p[channel])));
            }
        }
        let pictures = nn::Tensor::new(ctx.cpu, (batch, 3, height, width), planes)?;
        let (b, c, h, w) = self.shape(&ImageShape { batch, height, width })?;
        let normals = self.sampled.then(|| ctx.random(&format!("posterior {which}")).normals(b * c * h * w));
        let posterior = normals.as_deref().map_or(Posterior::Mean, Posterior::Sample);
        let latents = self.coder.encode(ctx, &pictures, posterior)?;
        tensor(ctx, latents.shape(), latents.into_values())
    }
}

/// Latents of a batch of pictures.
pub struct Encode(Encoder);

impl Operator for Encode {
    const NAME: &'static str = "encode";
    const DOC: &'static str = "Encode pictures as clean latents.";
    const IN: [&'static str; 1] = ["images"];
    const OUT: [&'static str; 1] = ["latents"];
    type Settings = EncodeSettings;
    type In = (Images,);
    type Out = (Clean,);
    type Saved = ();
    const DIFFERENTIABLE: bool = false;

    fn new(settings: EncodeSettings) -> Result<Self, OpError> {
        Ok(Self(Encoder::new(settings)?))
    }

    fn shapes(&self, (images,): InShapes<Self>, _: usize) -> Result<OutShapes<Self>, OpError> {
        Ok((self.0.shape(&images)?,))
    }

    fn cost(&self, (images,): &InShapes<Self>, _: &OutShapes<Self>) -> Cost {
        on_host(self.0.cost(std::iter::once(images)))
    }

    fn gpu_cost(&self, (images,): &InShapes<Self>, _: &OutShapes<Self>) -> Option<Cost> {
        self.0.coder.on_gpu_costs(self.0.cost(std::iter::once(images)))
    }

    fn notes(&self, _: &InShapes<Self>) -> Vec<String> {
        self.0.notes()
    }

    fn cacheable(&self) -> Option<Identity> {
        Some(self.0.identity())
    }

    fn random(&self) -> Option<String> {
        self.0.random()
    }

    fn part(&self) -> Part {
        self.0.part()
    }

    fn forward(&self, ctx: &Ctx<'_>, (images,): Self::In) -> Result<(Self::Out, ()), OpError> {
        Ok(((self.0.encode(ctx, &images, 0)?.into(),), ()))
    }
}

/// Latents of every reference.
pub struct EncodeReferences(Encoder);

impl Operator for EncodeReferences {
    const NAME: &'static str = "encode-references";
    const DOC: &'static str = "Encode the pictures of every reference as clean latents.";
    const IN: [&'static str; 1] = ["images"];
    const OUT: [&'static str; 1] = ["latents"];
    type Settings = EncodeSettings;
    type In = (List<Images>,);
    type Out = (List<Latents>,);
    type Saved = ();
    const DIFFERENTIABLE: bool = false;

    fn new(settings: EncodeSettings) -> Result<Self, OpError> {
        Ok(Self(Encoder::new(settings)?))
    }

    fn shapes(&self, (images,): InShapes<Self>, _: usize) -> Result<OutShapes<Self>, OpError> {
        Ok((ListShape(images.0.iter().map(|i| self.0.shape(i)).collect::<Result<_, _>>()?),))
    }

    fn cost(&self, (images,): &InShapes<Self>, _: &OutShapes<Self>) -> Cost {
        on_host(self.0.cost(images.0.iter()))
    }

    fn gpu_cost(&self, (images,): &InShapes<Self>, _: &OutShapes<Self>) -> Option<Cost> {
        self.0.coder.on_gpu_costs(self.0.cost(images.0.iter()))
    }

    fn notes(&self, _: &InShapes<Self>) -> Vec<String> {
        self.0.notes()
    }

    fn cacheable(&self) -> Option<Identity> {
        Some(self.0.identity())
    }

    fn random(&self) -> Option<String> {
        self.0.random()
    }

    fn part(&self) -> Part {
        self.0.part()
    }

    fn forward(&self, ctx: &Ctx<'_>, (images,): Self::In) -> Result<(Self::Out, ()), OpError> {
        let latents = images.0.iter().enumerate().map(|(which, i)| self.0.encode(ctx, i, which));
        Ok(((List(latents.collect::<Result<_, _>>()?),), ()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operators::testing::{Bench, case};

    #[test]
    fn a_list_of_pictures_is_encoded_as_each_alone_and_channels_come_first() {
        let bench = Bench::new();
        let ctx = bench.ctx();
        // The left half white, the right half black.
        let rgb: Vec<u8> = (0..8 * 16).flat_map(|i| [if i % 16 < 8 { 255 } else { 0 }; 3]).collect();
        let images = Images { batch: 1, height: 8, width: 16, rgb: rgb.into() };
        let ((alone,), ()) =
            Encode::new(Default::default()).unwrap().forward(&ctx, (images.clone(),)).unwrap();
        let op = EncodeReferences::new(Default::default()).unwrap();
        let ((list,), ()) = op.forward(&ctx, (List(vec![images.clone(), images]),)).unwrap();
        assert_eq!(list.0.len(), 2);
        assert_eq!(list.0[1].as_vec(), alone.as_vec());
        // The first channel is brightness: it alone tells the two cells apart.
        let values = alone.as_vec();
        assert!(values[0] > 0.5 && values[1] < -0.5, "{values:?}");
        assert!(values[2..].iter().all(|v| v.abs() < 1e-4), "{values:?}");
    }

    fn kl(latents: LatentsKind) -> EncodeSettings {
        let weights = DataPath(case("encoders/vae_flux"));
        EncodeSettings { kind: AutoencoderKind::Kl, weights, latents, ..Default::default() }
    }

    #[test]
    fn a_sample_differs_from_step_to_step_and_from_reference_to_reference_around_the_mean() {
        let bench = Bench::new();
        let images = Images { batch: 1, height: 16, width: 16, rgb: vec![90; 16 * 16 * 3].into() };
        let list = || (List(vec![images.clone(), images.clone()]),);
        let run = |latents, step| {
            let op = EncodeReferences::new(kl(latents)).unwrap();
            let ((found,), ()) = op.forward(&bench.at(step), list()).unwrap();
            found.0.iter().map(|l| l.as_vec()).collect::<Vec<_>>()
        };
        let means = run(LatentsKind::Mean, 0);
        assert_eq!((&means[0], &means), (&means[1], &run(LatentsKind::Mean, 1)));
        let samples = run(LatentsKind::Sample, 0);
        assert_eq!(samples, run(LatentsKind::Sample, 0));
        assert_ne!(samples[0], samples[1]);
        assert_ne!(samples, run(LatentsKind::Sample, 1));
        assert_ne!(samples[0], means[0]);
    }

    #[test]
    fn the_shape_and_the_cost_are_known_before_a_picture_is_encoded() {
        let op = Encode::new(kl(LatentsKind::Mean)).unwrap();
        let images = (ImageShape { batch: 2, height: 48, width: 64 },);
        assert_eq!(op.shapes(images.clone(), 0).unwrap().0, (2, 16, 6, 8));
        let cost = op.cost(&images, &((2, 16, 6, 8),));
        // More than the first convolution alone, and its windows.
        let first = 2.0 * (48 * 64 * 9 * 3 * 8) as f64;
        assert!(cost.forward_flops > 2.0 * first && cost.scratch_bytes > 48 * 64 * 27 * 4, "{cost:?}");
        assert!(op.notes(&images)[0].contains("16 channels"));
    }

    #[test]
    fn settings_that_contradict_each_other_are_refused() {
        let refused = |settings| Encode::new(settings).err().expect("a refusal").to_string();
        let tiny = EncodeSettings {
            kind: AutoencoderKind::Tiny,
            weights: DataPath(case("encoders/vae_tiny")),
            latents: LatentsKind::Sample,
            ..Default::default()
        };
        assert!(refused(tiny).contains("kind `tiny`"));
        let without = EncodeSettings { kind: AutoencoderKind::Kl, ..Default::default() };
        assert!(refused(without).contains("weights"));
        let surplus = EncodeSettings { kind: AutoencoderKind::Dct, ..kl(LatentsKind::Mean) };
        assert!(refused(surplus).contains("kind `dct` has none"));
        let other = EncodeSettings { weights: DataPath(case("encoders/vae_tiny")), ..kl(LatentsKind::Mean) };
        assert!(refused(other).contains("expected AutoencoderKL"));
    }

    #[test]
    fn a_side_that_is_no_multiple_of_a_cell_is_refused() {
        let op = Encode::new(Default::default()).unwrap();
        let error = op.shapes((ImageShape { batch: 1, height: 12, width: 16 },), 0).unwrap_err();
        assert!(error.to_string().contains("16 x 12 pixels (width x height)"), "{error}");
    }
}
