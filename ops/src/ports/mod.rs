//! The kinds of value that the shipped operators exchange.
//!
//! Shape letters, for this folder: `B` batch, `C` latent channels, `H` `W` latent grid, `h` `w` focus grid (the token
//! grid of a transformer), `R` references, `L` text tokens, `E` text width, `P` pooled width, `T` tokens.

mod adapter;
mod backbone;
mod effects;
mod images;
mod list;
mod metrics;
mod texts;
mod time;

use dfdx::shapes::Const;

use crate::port::T;

pub use adapter::{AdapterShape, Moments, MomentsShape, saved_layout};
pub use backbone::{BackboneHandle, BackboneShape};
pub use effects::{Effect, Effects, EffectsShape, Picture};
pub use images::{ImageShape, Images};
pub use list::{List, ListShape};
pub use metrics::{Metric, MetricDoc, MetricKind, Metrics, MetricsShape};
pub use texts::{Texts, TextsShape};
pub use time::{Process, TimeShape, Timesteps};

/// Latents `[B, C, H, W]`; `C`, `H` and `W` may be fixed by the type.
pub type Latents<C = usize, H = usize, W = usize> = T<(usize, C, H, W)>;
/// One weight in [0, 1] a cell of the focus grid, `[B, 1, h, w]`.
pub type Mask<H = usize, W = usize> = T<(usize, Const<1>, H, W)>;
/// One value a token, `[B, T]`.
pub type Scores = T<(usize, usize)>;
/// Text tokens `[B, L, E]`.
pub type TextTokens = T<(usize, usize, usize)>;
/// Pooled text `[B, P]`.
pub type Pooled = T<(usize, usize)>;
/// One value a sample, `[B]`.
pub type PerSample = T<(usize,)>;
