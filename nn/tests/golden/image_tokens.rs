//! Image tokens of a golden case, which states them or what an image encoder saw.
//!
//! The resampler of an IP-Adapter-Plus in f64, by its definition: queries that look at the encoder's tokens and at themselves.

#![allow(clippy::disallowed_methods, reason = "expected values: their last bits do not matter")]

use prefgraph_nn::files::TensorFiles;

/// Tokens `[N, count, width]`.
pub struct ImageTokens {
    pub count: usize,
    pub width: usize,
    pub values: Vec<f32>,
}

/// Rows of f64.
struct Rows {
    width: usize,
    values: Vec<f64>,
}

impl Rows {
    fn of(width: usize, values: Vec<f32>) -> Self {
        Self { width, values: values.into_iter().map(f64::from).collect() }
    }

    fn rows(&self) -> impl Iterator<Item = &[f64]> {
        self.values.chunks_exact(self.width)
    }

    fn map(&self, width: usize, f: impl Fn(&[f64]) -> Vec<f64>) -> Self {
        Self { width, values: self.rows().flat_map(f).collect() }
    }

    fn plus(mut self, other: &Self) -> Self {
        self.values.iter_mut().zip(&other.values).for_each(|(a, b)| *a += b);
        self
    }
}

/// Tensors of the file under `image_proj.`.
struct Weights<'a>(&'a TensorFiles);

impl Weights<'_> {
    fn read(&self, name: &str) -> Rows {
        let name = format!("image_proj.{name}");
        let width = *self.0.info(&name).unwrap().shape.last().unwrap();
        Rows::of(width, self.0.read(&name).unwrap())
    }

    fn linear(&self, name: &str, x: &Rows) -> Rows {
        let weight = self.read(&format!("{name}.weight"));
        let bias = format!("image_proj.{name}.bias");
        let outputs = weight.values.len() / weight.width;
        let bias = self.0.info(&bias).map_or(vec![0.0; outputs], |_| self.0.read(&bias).unwrap());
        let dot = |x: &[f64], w: &[f64]| x.iter().zip(w).map(|(x, w)| x * w).sum::<f64>();
        x.map(outputs, |x| weight.rows().zip(&bias).map(|(w, b)| dot(x, w) + f64::from(*b)).collect())
    }

    fn norm(&self, name: &str, x: &Rows) -> Rows {
        let [weight, bias] = ["weight", "bias"].map(|what| self.read(&format!("{name}.{what}")).values);
        x.map(x.width, |x| {
            let count = x.len() as f64;
            let mean = x.iter().sum::<f64>() / count;
            let variance = x.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / count;
            let scale = 1.0 / (variance + 1e-5).sqrt();
            x.iter().zip(&weight).zip(&bias).map(|((x, w), b)| (x - mean) * scale * w + b).collect()
        })
    }
}

/// The tokens of a batch from what the image encoder saw, `[N, 1, T, width]`.
pub fn image_tokens(adapter: &TensorFiles, file: &TensorFiles, prefix: &str) -> ImageTokens {
    let weights = Weights(adapter);
    let name = format!("{prefix}image_embeds");
    let shape = &file.info(&name).unwrap().shape;
    assert_eq!(shape[1], 1, "one picture a sample");
    let width = shape[3];
    let embeds = file.read(&name).unwrap();
    let samples = embeds
        .chunks_exact(shape[2] * width)
        .map(|sample| resampled(&weights, Rows::of(width, sample.to_vec())));
    let samples: Vec<Rows> = samples.collect();
    let (count, width) = (samples[0].rows().count(), samples[0].width);
    let values: Vec<f32> = samples.into_iter().flat_map(|s| s.values).map(|v| v as f32).collect();
    ImageTokens { count, width, values }
}

fn resampled(weights: &Weights<'_>, embeds: Rows) -> Rows {
    let x = weights.linear("proj_in", &embeds);
    let mut latents = weights.read("latents");
    for layer in 0.. {
        let at = |what: &str| format!("layers.{layer}.{what}");
        if weights.0.info(&format!("image_proj.{}", at("0.norm1.weight"))).is_none() {
            break;
        }
        let (seen, own) = (weights.norm(&at("0.norm1"), &x), weights.norm(&at("0.norm2"), &latents));
        let all = Rows { width: seen.width, values: [seen.values, own.values.clone()].concat() };
        let (q, kv) = (weights.linear(&at("0.to_q"), &own), weights.linear(&at("0.to_kv"), &all));
        latents = latents.plus(&weights.linear(&at("0.to_out"), &attention(&q, &kv)));
        let hidden = weights.linear(&at("1.1"), &weights.norm(&at("1.0"), &latents));
        let gelu = |x: &f64| x / 2.0 * (1.0 + libm::erf(x / 2f64.sqrt()));
        let active = hidden.map(hidden.width, |row| row.iter().map(gelu).collect());
        latents = latents.plus(&weights.linear(&at("1.3"), &active));
    }
    weights.norm("norm_out", &weights.linear("proj_out", &latents))
}

/// Attention in heads of 64, whose keys stand before the values in a row.
fn attention(q: &Rows, kv: &Rows) -> Rows {
    const HEAD: usize = 64;
    q.map(q.width, |q| {
        let of_head = |head: usize| {
            let part = head * HEAD..(head + 1) * HEAD;
            let score = |row: &[f64]| -> f64 {
                q[part.clone()].iter().zip(&row[part.clone()]).map(|(q, k)| q * k).sum::<f64>()
                    / (HEAD as f64).sqrt()
            };
            let weights: Vec<f64> = kv.rows().map(|row| score(row).exp()).collect();
            let sum: f64 = weights.iter().sum();
            let mut out = vec![0.0; HEAD];
            for (row, weight) in kv.rows().zip(&weights) {
                let values = &row[kv.width / 2..][part.clone()];
                out.iter_mut().zip(values).for_each(|(out, v)| *out += weight / sum * v);
            }
            out
        };
        (0..q.len() / HEAD).flat_map(of_head).collect()
    })
}
