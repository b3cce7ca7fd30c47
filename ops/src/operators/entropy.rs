//! `entropy`: how much detail each patch of a picture has (FocusDPO, Eq. 7 and 8).
//!
//! Shape letters: `B` batch, `h` `w` patches, one patch a cell of the focus grid.

use dfdx::shapes::Const;
use prefgraph_nn::{Cpu, cpu::exp, size};

use super::tensors::mask;
use crate::{
    choices,
    operator::{Cost, Ctx, InShapes, OpError, Operator, OutShapes},
    ports::{Detail, Images},
    settings,
};

choices! {
    /// How grey values are counted.
    pub enum Counting {
        /// A Gaussian of each value on centres spread over [-1, 1].
        Gaussian = "gaussian",
        /// 256 hard bins.
        Histogram = "histogram",
    }
}

settings! {
    /// Settings of [`Entropy`].
    pub struct EntropySettings {
        /// How grey values are counted.
        pub kind: Counting = Counting::Gaussian,
        /// Side of a patch in pixels: 16 is one token of a FLUX transformer.
        pub patch: usize = 16,
        /// Side in pixels of a cell of the focus grid, of which a patch covers whole ones: 8 is a latent cell, as a U-Net takes it; the patch itself
        /// where it is not given.
        pub cell: Option<usize> = None,
        /// Number of centres of `gaussian`.
        pub bins: usize = 32,
        /// Standard deviation of `gaussian`, where the grey values span [-1, 1].
        pub sigma: f64 = 0.01,
    }
}

/// `M_d`: the entropy of the grey values of each patch, stretched to [0, 1] over the whole picture.
pub struct Entropy(EntropySettings);

/// A Gaussian this many sigmas away is below 1e-34 and counts as zero.
const REACH: f64 = 12.6;
/// About how many Gaussians are computed together.
const TOGETHER: usize = 1024;

impl Entropy {
    /// Side of a cell of the focus grid in pixels.
    fn cell(&self) -> usize {
        self.0.cell.unwrap_or(self.0.patch)
    }

    fn bins(&self) -> usize {
        match self.0.kind {
            Counting::Gaussian => self.0.bins,
            Counting::Histogram => 256,
        }
    }

    fn of_patch(&self, cpu: &Cpu, gray: &[f64]) -> f64 {
        let counts = match self.0.kind {
            Counting::Gaussian => self.gaussians(cpu, gray),
            Counting::Histogram => {
                let mut counts = vec![0f64; self.bins()];
                for value in gray {
                    counts[((value + 1.0) * 127.5 + 0.5).floor().clamp(0.0, 255.0) as usize] += 1.0;
                }
                counts
            }
        };
        let total: f64 = counts.iter().sum();
        if total <= 0.0 {
            return 0.0;
        }
        -counts.iter().map(|c| c / total).filter(|p| *p > 0.0).map(|p| p * libm::log(p)).sum::<f64>()
    }

    /// The sum over all values of a Gaussian of each on every centre.
    fn gaussians(&self, cpu: &Cpu, gray: &[f64]) -> Vec<f64> {
        let EntropySettings { bins, sigma, .. } = self.0;
        let mut counts = vec![0f64; bins];
        let (spacing, last) = (2.0 / (bins - 1) as f64, (bins - 1) as f64);
        let (mut reached, mut gaussians) = (Vec::new(), Vec::new());
        for some in gray.chunks(TOGETHER.div_ceil(bins)) {
            reached.clear();
            gaussians.clear();
            for value in some {
                let first = ((value + 1.0 - REACH * sigma) / spacing).ceil().clamp(0.0, last) as usize;
                let end = ((value + 1.0 + REACH * sigma) / spacing).floor().clamp(0.0, last) as usize + 1;
                reached.push(first..end);
                gaussians.extend((first..end).map(|bin| value - (-1.0 + bin as f64 * spacing)));
            }
            for distance in &mut gaussians {
                let z = *distance / sigma;
                *distance = -0.5 * z * z;
            }
            exp(cpu, &mut gaussians);
            let mut left = &gaussians[..];
            for bins in &reached {
                let (own, others) = left.split_at(bins.len());
                counts[bins.clone()].iter_mut().zip(own).for_each(|(count, gaussian)| *count += gaussian);
                left = others;
            }
        }
        counts
    }

    /// Entropies in nats of the patches of one picture of 8-bit RGB, row by row.
    fn of_picture(&self, cpu: &Cpu, rgb: &[u8], height: usize, width: usize) -> Vec<f64> {
        let channel = |byte: u8| f64::from(byte) / 127.5 - 1.0;
        let gray: Vec<f64> = rgb
            .as_chunks::<3>()
            .0
            .iter()
            .map(|p| 0.2989 * channel(p[0]) + 0.5870 * channel(p[1]) + 0.1140 * channel(p[2]))
            .collect();
        let side = self.0.patch;
        let mut patch = Vec::with_capacity(side * side);
        let mut out = Vec::with_capacity(height * width / (side * side));
        for y in (0..height).step_by(side) {
            for x in (0..width).step_by(side) {
                patch.clear();
                (y..y + side).for_each(|row| patch.extend_from_slice(&gray[row * width + x..][..side]));
                out.push(self.of_patch(cpu, &patch));
            }
        }
        out
    }
}

/// Entropies that differ by less are those of one picture without detail, as in the reference implementation: what is left of them is rounding.
const LEAST_SPAN: f64 = 1e-5;

/// Stretched to [0, 1]; about zero where all are equal.
fn stretched(values: &[f64]) -> impl Iterator<Item = f32> {
    let low = values.iter().copied().fold(f64::INFINITY, f64::min);
    let span = values.iter().copied().fold(f64::NEG_INFINITY, f64::max) - low;
    values.iter().map(move |v| ((v - low) / span.max(LEAST_SPAN)) as f32)
}

impl Operator for Entropy {
    const NAME: &'static str = "entropy";
    const DOC: &'static str = "Entropy of the grey values of each patch, stretched to [0, 1] over the picture (M_d, \
                               FocusDPO Eq. 7 and 8); a picture of one colour gives zeros.";
    const IN: [&'static str; 1] = ["images"];
    const OUT: [&'static str; 1] = ["detail"];
    type Settings = EntropySettings;
    type In = (Images,);
    type Out = (Detail,);
    type Saved = ();
    const DIFFERENTIABLE: bool = false;

    fn new(s: EntropySettings) -> Result<Self, OpError> {
        if s.patch == 0 || s.bins < 2 || !(s.sigma > 0.0 && s.sigma.is_finite()) {
            return Err(OpError::new(format!(
                "patch {}, bins {}, sigma {}: at least 1, at least 2 and a positive number are needed",
                s.patch, s.bins, s.sigma
            )));
        }
        let op = Self(s);
        if op.cell() == 0 || !op.0.patch.is_multiple_of(op.cell()) {
            return Err(OpError::new(format!(
                "cell {}: a patch of {side} x {side} pixels must be whole cells",
                op.cell(),
                side = op.0.patch
            )));
        }
        Ok(op)
    }

    fn shapes(&self, (images,): InShapes<Self>, _: usize) -> Result<OutShapes<Self>, OpError> {
        let side = self.0.patch;
        if !images.height.is_multiple_of(side) || !images.width.is_multiple_of(side) {
            return Err(OpError::new(format!(
                "pictures of {} x {} pixels (width x height) are not made of whole patches of {side} x {side}",
                images.width, images.height
            )));
        }
        let cell = self.cell();
        Ok(((images.batch, Const::<1>, images.height / cell, images.width / cell),))
    }

    fn cost(&self, (images,): &InShapes<Self>, _: &OutShapes<Self>) -> Cost {
        let one = images.height * images.width;
        let pixels = (images.batch * one) as f64;
        let (side, bins) = (self.0.patch, self.bins());
        let patches = pixels / side as f64 / side as f64;
        // The grey values of a picture and of a patch, the counts, the entropies of the patches, and what is computed together.
        let together = size::sum([TOGETHER, bins]);
        let values = [one, side * side, bins, images.height / side * (images.width / side), together];
        Cost {
            // A few exponentials a pixel, and a logarithm a bin, at some twenty operations each.
            forward_flops: 100.0 * pixels + 20.0 * patches * bins as f64,
            moved_bytes: 11.0 * pixels,
            scratch_bytes: size::product([size::sum(values), size_of::<f64>()]),
            ..Cost::default()
        }
    }

    fn forward(&self, ctx: &Ctx<'_>, (images,): Self::In) -> Result<(Self::Out, ()), OpError> {
        let (height, width) = (images.height, images.width);
        let (rows, columns) = (height / self.cell(), width / self.cell());
        // Cells along a patch, and patches along a row.
        let (covered, patches) = (self.0.patch / self.cell(), width / self.0.patch);
        let mut out = Vec::with_capacity(images.batch * rows * columns);
        for b in 0..images.batch {
            let entropies = self.of_picture(ctx.cpu, images.picture(b), height, width);
            let values: Vec<f32> = stretched(&entropies).collect();
            for y in 0..rows {
                out.extend((0..columns).map(|x| values[y / covered * patches + x / covered]));
            }
        }
        Ok(((mask(ctx, (images.batch, rows, columns), out)?.into(),), ()))
    }
}

#[cfg(test)]
mod tests {
    use prefgraph_nn::files::TensorFiles;

    use super::*;
    use crate::operators::testing::{Bench, assert_close, case, worst};
    use crate::ports::ImageShape;

    fn picture(batch: usize, height: usize, width: usize, rgb: Vec<u8>) -> Images {
        Images { batch, height, width, rgb: rgb.into() }
    }

    #[test]
    fn entropies_and_detail_masks_are_those_of_the_golden_cases() {
        let cpu = Cpu::new(1).unwrap();
        for name in ["flux_uno", "flux_uno_multi"] {
            let files = TensorFiles::open(&case(name).join("forward.safetensors")).unwrap();
            let dims = files.info("rgb_w").unwrap().shape.clone();
            let rgb = files.bytes("rgb_w").unwrap().to_vec();
            let images = picture(dims[0], dims[1], dims[2], rgb);
            for (kind, golden) in
                [(Counting::Gaussian, "entropy_gaussian"), (Counting::Histogram, "entropy_histogram")]
            {
                let op = Entropy::new(EntropySettings { kind, ..Default::default() }).unwrap();
                let found: Vec<f32> = (0..dims[0])
                    .flat_map(|b| op.of_picture(&cpu, images.picture(b), dims[1], dims[2]))
                    .map(|e| e as f32)
                    .collect();
                assert!(worst(&found, &files.read(golden).unwrap()) < 2e-6, "{name} {golden}");
            }
            let bench = Bench::new();
            let op = Entropy::new(EntropySettings::default()).unwrap();
            let ((detail,), ()) = op.forward(&bench.ctx(), (images,)).unwrap();
            assert!(worst(&detail.as_vec(), &files.read("m_d").unwrap()) < 2e-6, "{name}");
        }
    }

    #[test]
    fn entropies_of_simple_patches_are_known() {
        let cpu = Cpu::new(1).unwrap();
        let op = Entropy::new(EntropySettings::default()).unwrap();
        // At a centre one bin counts almost alone; midway between two centres two do.
        assert_close(op.of_patch(&cpu, &[1.0; 256]) as f32, 0.0, 1e-6);
        let midway = -1.0 + 1.0 / 31.0;
        assert_close(op.of_patch(&cpu, &[midway; 256]) as f32, std::f32::consts::LN_2, 1e-4);
        let ramp: Vec<f64> = (0..4096).map(|i| -1.0 + 2.0 * f64::from(i) / 4095.0).collect();
        assert_close(op.of_patch(&cpu, &ramp) as f32, 3.459, 1e-3);
    }

    #[test]
    fn the_counts_are_part_of_the_memory_that_is_predicted() {
        let scratch = |bins| {
            let op = Entropy::new(EntropySettings { bins, ..Default::default() }).unwrap();
            let images = ImageShape { batch: 2, height: 32, width: 32 };
            let outputs = op.shapes((images.clone(),), 0).unwrap();
            op.cost(&(images,), &outputs).scratch_bytes
        };
        assert_eq!(scratch(1_000_032) - scratch(32), 2 * 8_000_000);
        assert_eq!(scratch(usize::MAX), usize::MAX);
    }

    #[test]
    fn what_rounding_leaves_between_flat_patches_is_no_detail() {
        let bench = Bench::new();
        // Two patches of one grey each, whose entropies differ by less than 1e-5.
        for (left, right) in [(12, 243), (8, 9)] {
            let rgb = (0..16 * 32).flat_map(|i| [if i % 32 < 16 { left } else { right }; 3]).collect();
            let op = Entropy::new(EntropySettings::default()).unwrap();
            let ((detail,), ()) = op.forward(&bench.ctx(), (picture(1, 16, 32, rgb),)).unwrap();
            assert!(detail.as_vec().iter().all(|v| *v < 0.1), "{:?}", detail.as_vec());
        }
    }

    #[test]
    fn a_patch_gives_its_value_to_every_cell_that_it_covers() {
        let bench = Bench::new();
        // Three patches: grey, noise, grey.
        let noise = |i: usize| (i * 7919 % 251) as u8;
        let rgb =
            (0..16 * 48).flat_map(|i| [if (16..32).contains(&(i % 48)) { noise(i) } else { 9 }; 3]).collect();
        let op = Entropy::new(EntropySettings { cell: Some(8), ..Default::default() }).unwrap();
        let images = picture(1, 16, 48, rgb);
        assert_eq!(
            op.shapes((ImageShape { batch: 1, height: 16, width: 48 },), 0).unwrap().0,
            (1, Const, 2, 6)
        );
        let ((detail,), ()) = op.forward(&bench.ctx(), (images,)).unwrap();
        assert_eq!(detail.as_vec(), [0.0, 0.0, 1.0, 1.0, 0.0, 0.0].repeat(2));
        let odd = Entropy::new(EntropySettings { cell: Some(5), ..Default::default() });
        assert!(odd.err().unwrap().to_string().contains("whole cells"));
    }

    #[test]
    fn a_picture_of_one_colour_has_no_detail() {
        let bench = Bench::new();
        let op = Entropy::new(EntropySettings::default()).unwrap();
        let ((detail,), ()) = op.forward(&bench.ctx(), (picture(1, 32, 32, vec![77; 32 * 32 * 3]),)).unwrap();
        assert_eq!(detail.as_vec(), [0.0; 4]);
    }
}
