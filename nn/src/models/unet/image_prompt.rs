//! Keys and values of image tokens: the part of an IP-Adapter file (Ye et al. 2023) that belongs to the U-Net.
//!
//! The file numbers its modules by attention, two to a block, on the way down, on the way up, and in the middle: so those of the
//! cross-attentions are odd, from 1 on.

use std::{collections::HashMap, ops::Range, path::Path, sync::Arc};

use super::{
    config::UNetConfig,
    stages::{IMAGE_PROMPT, numbered_crossings},
};
use crate::{
    error::{Error, Result},
    files::{TensorFiles, TensorView},
};

/// What the modules of a file are called, in the order of [`IMAGE_PROMPT`].
const MODULES: [&str; 2] = ["to_k_ip", "to_v_ip"];
/// The queries of a resampler, `[1, Q, E]`.
const LATENTS: &str = "image_proj.latents";
/// What stands before the number of an attention.
const PREFIX: &str = "ip_adapter.";

/// The keys and values of an IP-Adapter, compared with the U-Net that they are for.
#[derive(Debug)]
pub(super) struct ImagePromptFiles {
    /// By the name of the linear.
    views: HashMap<String, TensorView>,
    queries: Option<usize>,
}

impl ImagePromptFiles {
    /// Read the headers of a file.
    ///
    /// # Errors
    /// If it is missing or torn, no IP-Adapter, or one for another network.
    pub fn open(path: &Path, config: &UNetConfig) -> Result<Self> {
        let files = Arc::new(TensorFiles::open(path)?);
        if !files.names().any(|n| n.starts_with(PREFIX)) {
            let shown: Vec<&str> = files.names().take(3).collect();
            return Err(Error::file(
                path,
                format!(
                    "is no IP-Adapter: expected tensors called `{PREFIX}1.to_k_ip.weight`, the file has {}",
                    if shown.is_empty() { "none".into() } else { format!("{}, ...", shown.join(", ")) }
                ),
            ));
        }
        let (names, expected): (Vec<String>, Vec<_>) = keys_and_values(config).into_iter().unzip();
        fits(&files, path, &expected, config)?;
        files.expect_exactly_under(PREFIX, &expected)?;
        let views = names.into_iter().zip(&expected);
        let views = views.map(|(linear, (name, _))| Ok((linear, TensorView::whole(&files, name)?)));
        let queries = files.info(LATENTS).and_then(|info| info.shape.get(1).copied());
        Ok(Self { views: views.collect::<Result<_>>()?, queries })
    }

    /// Image tokens that the file's resampler makes of a picture, if it has one.
    pub fn queries(&self) -> Option<usize> {
        self.queries
    }

    /// Where the linears stand in the file.
    pub fn places(&self) -> impl Iterator<Item = (String, (String, Range<usize>))> {
        self.views.iter().map(|(linear, view)| {
            let rows = 0..view.shape().first().copied().unwrap_or(0);
            (linear.clone(), (view.name().to_owned(), rows))
        })
    }

    /// The weight of a linear.
    ///
    /// # Errors
    /// If it is none of image tokens.
    pub fn view(&self, linear: &str) -> Result<TensorView> {
        let view = self.views.get(linear).cloned();
        view.ok_or_else(|| Error::Internal(format!("`{linear}` is not among the IP-Adapter's linears")))
    }
}

/// The linears of keys and values, each with the tensor of the file and its shape.
pub(super) fn keys_and_values(config: &UNetConfig) -> Vec<(String, (String, Vec<usize>))> {
    let linears: HashMap<String, Vec<usize>> =
        config.linears(true).into_iter().map(|l| (l.name, vec![l.outputs, l.inputs])).collect();
    let of_block = |(number, block): (usize, String)| {
        let linears = &linears;
        MODULES.iter().zip(IMAGE_PROMPT).map(move |(module, part)| {
            let linear = format!("{block}.{part}");
            let shape = linears.get(&linear).cloned().unwrap_or_default();
            (linear, (format!("{PREFIX}{}.{module}.weight", 2 * number + 1), shape))
        })
    };
    numbered_crossings(config).into_iter().enumerate().flat_map(of_block).collect()
}

/// Refuse a file for another network, by the width of its image tokens and the number of its attentions.
fn fits(
    files: &TensorFiles,
    path: &Path,
    expected: &[(String, Vec<usize>)],
    config: &UNetConfig,
) -> Result<()> {
    let found = files.names().filter(|n| n.starts_with(PREFIX)).count();
    let width = expected.first().and_then(|(name, _)| files.info(name)?.shape.get(1).copied());
    let text = config.cross_attention_dim;
    let other = match width {
        Some(768) if text != 768 => " (768 is the width of Stable Diffusion 1)",
        _ => "",
    };
    if let Some(width) = width.filter(|w| *w != text) {
        return Err(Error::file(
            path,
            format!(
                "is an IP-Adapter for another network: its image tokens are {width} wide{other}, those of this U-Net {text}"
            ),
        ));
    }
    if found != expected.len() {
        return Err(Error::file(
            path,
            format!(
                "is an IP-Adapter for another network: it has {found} tensors of keys and values, this U-Net has {} \
                 cross-attentions and takes {}",
                expected.len() / 2,
                expected.len()
            ),
        ));
    }
    Ok(())
}
