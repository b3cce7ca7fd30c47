//! The kinds of value that the shipped operators exchange.
//!
//! Shape letters, for this folder: `B` batch, `C` latent channels, `H` `W` latent grid, `h` `w` focus grid (the token
//! grid of a transformer), `R` references, `L` text tokens, `E` text width, `P` pooled width, `K` image tokens of all
//! references, `T` tokens, `F` feature width.

mod adapter;
mod backbone;
mod effects;
mod images;
mod list;
mod measured;
mod metrics;
pub mod role;
mod texts;
mod time;

use dfdx::shapes::Const;

use crate::{port::T, role::As};

pub use adapter::{AdapterShape, Moments, MomentsShape, saved_layout};
pub use backbone::{BackboneHandle, BackboneShape};
pub use effects::{Effect, Effects, EffectsShape, Picture};
pub use images::{ImageShape, Images};
pub use list::{List, ListShape};
pub use measured::{Candidate, Criterion, MeasuredPair, Measurement};
pub use metrics::{Metric, MetricDoc, MetricKind, Metrics, MetricsShape};
pub use texts::{Texts, TextsShape};
pub use time::{Process, TimeShape, Timesteps};

/// Latents `[B, C, H, W]`; `C`, `H` and `W` may be fixed by the type.
pub type Latents<C = usize, H = usize, W = usize> = T<(usize, C, H, W)>;
/// One weight in [0, 1] a cell of the focus grid, `[B, 1, h, w]`.
pub type Mask<H = usize, W = usize> = T<(usize, Const<1>, H, W)>;

/// Latents without noise, x_0.
pub type Clean<C = usize, H = usize, W = usize> = As<role::Clean, Latents<C, H, W>>;
/// Latents mixed with noise, x_t.
pub type Noised<C = usize, H = usize, W = usize> = As<role::Noised, Latents<C, H, W>>;
/// What was mixed into latents, eps.
pub type Noise<C = usize, H = usize, W = usize> = As<role::Noise, Latents<C, H, W>>;
/// What a network should predict for noised latents.
pub type Target<C = usize, H = usize, W = usize> = As<role::Target, Latents<C, H, W>>;
/// What a network predicts for noised latents, with an adapter or without.
pub type Prediction<C = usize, H = usize, W = usize> = As<role::Prediction, Latents<C, H, W>>;
/// What a network sees in a picture, one vector a token, `[B, h, w, F]`.
pub type Features = As<role::Features, T<(usize, usize, usize, usize)>>;
/// What a picture or a prompt is as a whole, one vector each, `[B, F]`.
pub type Embeddings = As<role::Embedding, T<(usize, usize)>>;
/// Where the subjects are, M_prior.
pub type Prior<H = usize, W = usize> = As<role::Prior, Mask<H, W>>;
/// What of the subjects was not found, M_s.
pub type Structure<H = usize, W = usize> = As<role::Structure, Mask<H, W>>;
/// Where the winner has detail, M_d.
pub type Detail<H = usize, W = usize> = As<role::Detail, Mask<H, W>>;
/// How well each patch was generated, in [-1, 1].
pub type Quality<H = usize, W = usize> = As<role::Quality, Mask<H, W>>;

/// One value a token, `[B, T]`.
pub type Scores = T<(usize, usize)>;
/// Text tokens `[B, L, E]`.
pub type TextTokens = T<(usize, usize, usize)>;
/// Pooled text `[B, P]`.
pub type Pooled = T<(usize, usize)>;
/// Pictures as tokens beside those of the text, reference after reference, `[B, K, E]`.
pub type ImagePrompt = As<role::ImagePrompt, T<(usize, usize, usize)>>;
/// What a network is told of each sample's picture, `[B, 6]`: height and width before it was scaled, the rows and columns that were
/// cut off above and left of it, and the height and width that are wanted, all in pixels. SDXL calls it `time_ids`.
pub type Sizes = T<(usize, Const<6>)>;
/// How each sample's picture came to its size, `[B, 4]`: height and width before it was scaled, and the rows and columns that were
/// cut off above and left of it then.
pub type Crops = T<(usize, Const<4>)>;
/// One value a sample, `[B]`.
pub type PerSample = T<(usize,)>;
/// 1 for each sample that goes without its prompt, 0 for the others.
pub type TextDrop = As<role::TextDrop, PerSample>;
/// 1 for each sample that goes without its reference pictures, 0 for the others.
pub type ImageDrop = As<role::ImageDrop, PerSample>;
