//! `noise`: from clean latents to noised latents and the target of the prediction.
//!
//! Shape letters: `B` pairs, `N` rows (`2B` with a loser), `C` channels, `H` `W` latent grid.

use dfdx::shapes::{HasShape, Shape};
use prefgraph_nn::sampling::scaled_linear::{self, Terminal};

use super::tensors::{Fixed, same, tensor};
use crate::{
    operator::{Ctx, InGrads, InShapes, OpError, Operator, OutGrads, OutShapes, Wanted},
    ports::{self, Clean, Noised, Process, Target, TimeShape, Timesteps},
    role::As,
    row_major::RowMajor,
    settings,
    shape::Axis,
};

/// Timesteps of SDXL's schedule.
pub(crate) const DDPM_STEPS: usize = scaled_linear::TIMESTEPS;

settings! {
    /// Settings of [`Noise`].
    pub struct NoiseSettings {
        /// How latents become noise and what is predicted. The times must be of the same process.
        pub process: Process = Process::Flow,
        /// Of `ddpm_v`: no signal is left at the last timestep (arXiv 2305.08891), for networks that were trained so.
        pub zero_snr: bool = false,
        /// The noise repeats after so many steps: a held-out batch then gets the same noise whenever it is measured. 0 means never.
        pub repeat: u64 = 0,
    }
}

/// `x_t` and target of a batch: winners first, then losers, with the same noise and the same time for both.
pub struct Noise<C = usize, H = usize, W = usize> {
    settings: NoiseSettings,
    axes: Fixed<C, H, W>,
}

/// `x_t = keep x_0 + add eps`, `target = target_x x_0 + target_eps eps`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mix {
    keep: f32,
    add: f32,
    target_x: f32,
    target_eps: f32,
}

impl Mix {
    fn at(process: Process, terminal: Terminal, t: f32) -> Result<Self, OpError> {
        if process == Process::Flow {
            if !(0.0..=1.0).contains(&t) {
                return Err(OpError::new(format!("sigma {t} is outside [0, 1]")));
            }
            return Ok(Self { keep: 1.0 - t, add: t, target_x: -1.0, target_eps: 1.0 });
        }
        if t.fract() != 0.0 || !(0.0..DDPM_STEPS as f32).contains(&t) {
            return Err(OpError::new(format!("timestep {t} is not a whole number in 0..{DDPM_STEPS}")));
        }
        let kept = terminal.kept()[t as usize];
        let (keep, add) = (kept.sqrt() as f32, (1.0 - kept).sqrt() as f32);
        Ok(match process {
            Process::DdpmV => Self { keep, add, target_x: -add, target_eps: keep },
            _ => Self { keep, add, target_x: 0.0, target_eps: 1.0 },
        })
    }
}

/// The top-left corner of every plane of `eps`, for a picture smaller than the noise.
fn corner(eps: &[f32], (rows, columns): (usize, usize), (height, width): (usize, usize)) -> Vec<f32> {
    let planes = eps.chunks_exact(rows * columns);
    let corner = planes.flat_map(|p| p.chunks_exact(columns).take(height).flat_map(|row| &row[..width]));
    corner.copied().collect()
}

impl<C: Axis, H: Axis, W: Axis> Operator for Noise<C, H, W> {
    const NAME: &'static str = "noise";
    const DOC: &'static str = "Mix clean latents with noise: x_t and target, winners first, one eps and one time for \
                               a pair. A connected eps of a larger grid gives its top-left corner.";
    const IN: [&'static str; 4] = ["x0_w", "x0_l", "t", "eps"];
    const OUT: [&'static str; 4] = ["x_t", "target", "t", "eps"];
    type Settings = NoiseSettings;
    type In = (Clean<C, H, W>, Option<Clean<C, H, W>>, Timesteps, Option<ports::Noise>);
    type Out = (Noised<C, H, W>, Target<C, H, W>, Timesteps, ports::Noise<C, H, W>);
    type Saved = Vec<Mix>;
    const DIFFERENTIABLE: bool = true;

    fn new(settings: NoiseSettings) -> Result<Self, OpError> {
        if settings.zero_snr && settings.process != Process::DdpmV {
            return Err(OpError::new(
                "zero_snr: where no signal is left, only v says something of the picture; set `process: ddpm_v`",
            ));
        }
        Ok(Self { settings, axes: Fixed::default() })
    }

    fn shapes(
        &self,
        (winner, loser, time, eps): InShapes<Self>,
        _: usize,
    ) -> Result<OutShapes<Self>, OpError> {
        let (batch, channels, height, width) = winner;
        if let Some(loser) = loser {
            same("x0_l", loser.concrete(), "x0_w", winner.concrete())?;
        }
        same("the batch of t", time.batch, "that of x0_w", batch)?;
        same(
            "the process of t",
            time.process.name(),
            "the process of this node",
            self.settings.process.name(),
        )?;
        if let Some(eps) = eps {
            same("batch and channels of eps", (eps.0, eps.1), "those of x0_w", (batch, channels.size()))?;
            if eps.2 < height.size() || eps.3 < width.size() {
                return Err(OpError::new(format!(
                    "eps has a grid of {} x {}, x0_w of {} x {} (width x height): eps must be at least as large",
                    eps.3,
                    eps.2,
                    width.size(),
                    height.size()
                )));
            }
        }
        let rows = if loser.is_some() { 2 * batch } else { batch };
        let out = (rows, channels, height, width);
        Ok((out, out, TimeShape { batch: rows, process: time.process }, winner))
    }

    fn random(&self) -> Option<String> {
        Some("it draws the noise of every sample where `eps` is not connected".into())
    }

    fn forward(
        &self,
        ctx: &Ctx<'_>,
        (As(_, winner), loser, time, eps): Self::In,
    ) -> Result<(Self::Out, Self::Saved), OpError> {
        let shape @ (batch, channels, height, width) = *HasShape::shape(&winner);
        let size = winner_size(&shape);
        let eps = match eps {
            Some(As(_, eps)) => {
                let &(_, _, rows, columns) = HasShape::shape(&eps);
                corner(&eps.row_major(), (rows, columns), (height.size(), width.size()))
            }
            None => ctx.random_repeating(self.settings.repeat, "eps").normals(batch * size),
        };
        let terminal = Terminal::new(self.settings.zero_snr);
        let mixes: Vec<Mix> = time
            .values
            .iter()
            .enumerate()
            .map(|(i, t)| {
                Mix::at(self.settings.process, terminal, *t)
                    .map_err(|e| OpError::new(format!("sample {i}: {e}")))
            })
            .collect::<Result<_, _>>()?;
        let sides: Vec<_> = std::iter::once(winner).chain(loser.map(|As(_, loser)| loser)).collect();
        let mut x_t = Vec::with_capacity(sides.len() * batch * size);
        let mut target = Vec::with_capacity(x_t.capacity());
        for side in &sides {
            let samples = side.row_major();
            for ((x0, eps), mix) in samples.chunks_exact(size).zip(eps.chunks_exact(size)).zip(&mixes) {
                x_t.extend(x0.iter().zip(eps).map(|(x, e)| mix.keep * x + mix.add * e));
                target.extend(x0.iter().zip(eps).map(|(x, e)| mix.target_x * x + mix.target_eps * e));
            }
        }
        let times = Timesteps::new(time.process, time.values.repeat(sides.len()));
        let rows = (sides.len() * batch, channels, height, width);
        let (x_t, target) = (tensor(ctx, rows, x_t)?, tensor(ctx, rows, target)?);
        Ok(((x_t.into(), target.into(), times, tensor(ctx, shape, eps)?.into()), mixes))
    }

    fn backward(
        &self,
        ctx: &Ctx<'_>,
        wanted: Wanted<'_>,
        mixes: Self::Saved,
        (x_t, target, _, eps): OutGrads<Self>,
    ) -> Result<InGrads<Self>, OpError> {
        let Some(shape) = x_t.as_ref().or(target.as_ref()).map(|g| *HasShape::shape(g)) else {
            return if wanted[3] && eps.is_some() {
                Err(no_gradient_of_eps())
            } else {
                Ok((None, None, None, None))
            };
        };
        if wanted[3] {
            return Err(no_gradient_of_eps());
        }
        let batch = mixes.len();
        let (rows, channels, height, width) = shape;
        let size = winner_size(&shape);
        let zeros = || vec![0.0; rows * size];
        let (x_t, target) =
            (x_t.map_or_else(zeros, |g| g.row_major()), target.map_or_else(zeros, |g| g.row_major()));
        let side = |side: usize| {
            let mut grad = Vec::with_capacity(batch * size);
            for (i, mix) in mixes.iter().enumerate() {
                let at = (side * batch + i) * size..(side * batch + i + 1) * size;
                let pairs = x_t[at.clone()].iter().zip(&target[at]);
                grad.extend(pairs.map(|(x, t)| mix.keep * x + mix.target_x * t));
            }
            tensor(ctx, (batch, channels, height, width), grad)
        };
        let winner = wanted[0].then(|| side(0)).transpose()?;
        let loser = (wanted[1] && rows == 2 * batch).then(|| side(1)).transpose()?;
        Ok((winner, loser, None, None))
    }
}

fn no_gradient_of_eps() -> OpError {
    OpError::new("no gradient is computed into eps: noise is drawn, not learned")
}

/// Values of one sample.
fn winner_size<C: Axis, H: Axis, W: Axis>(&(_, c, h, w): &(usize, C, H, W)) -> usize {
    c.size() * h.size() * w.size()
}

#[cfg(test)]
mod tests {
    use dfdx::shapes::Const;

    use super::*;
    use crate::{
        operators::testing::{Bench, assert_close, latents},
        testing::check_gradients,
    };

    fn noise(process: Process) -> Noise {
        Noise::new(NoiseSettings { process, ..Default::default() }).unwrap()
    }

    #[test]
    fn the_ddpm_schedule_is_that_of_sdxl() {
        let kept = scaled_linear::kept();
        assert!((kept[0] - 0.99915).abs() < 1e-9, "{}", kept[0]);
        assert!((kept[999] - 0.004_660).abs() < 5e-7, "{}", kept[999]);
    }

    #[test]
    fn without_signal_at_the_end_the_schedule_begins_as_it_did_and_v_is_needed() {
        let kept = Terminal::ZeroSnr.kept();
        assert!((kept[0] - 0.99915).abs() < 1e-9, "{}", kept[0]);
        assert!(kept[999] < 1e-30 && kept.array_windows().all(|[a, b]| a > b), "{}", kept[999]);
        let settings = |process| NoiseSettings { process, zero_snr: true, ..Default::default() };
        assert!(Noise::<usize, usize, usize>::new(settings(Process::DdpmV)).is_ok());
        let error = Noise::<usize, usize, usize>::new(settings(Process::DdpmEps)).err().unwrap().to_string();
        assert!(error.contains("process: ddpm_v"), "{error}");
    }

    #[test]
    fn a_pair_shares_noise_and_time_and_the_winner_comes_first() {
        let bench = Bench::new();
        let ctx = bench.ctx();
        let (w, l): (Clean, Clean) = (latents(&ctx, (2, 3, 2, 2), 1), latents(&ctx, (2, 3, 2, 2), 2));
        let t = Timesteps::new(Process::Flow, vec![0.25, 0.75]);
        let ((x_t, target, times, eps), _) =
            noise(Process::Flow).forward(&ctx, (w.clone(), Some(l.clone()), t, None)).unwrap();
        assert_eq!(&times.values[..], [0.25, 0.75, 0.25, 0.75]);
        let (w, l, eps, x_t, target) = (w.as_vec(), l.as_vec(), eps.as_vec(), x_t.as_vec(), target.as_vec());
        for i in 0..24 {
            let sigma = if i < 12 { 0.25 } else { 0.75 };
            assert_close(x_t[i], (1.0 - sigma) * w[i] + sigma * eps[i], 1e-6);
            assert_close(x_t[24 + i], (1.0 - sigma) * l[i] + sigma * eps[i], 1e-6);
            assert_close(target[24 + i], eps[i] - l[i], 1e-6);
        }
    }

    #[test]
    fn what_is_predicted_gives_back_the_clean_latents_in_every_process() {
        use Terminal::{Published, ZeroSnr};
        for (process, terminal, t) in [
            (Process::Flow, Published, 0.3),
            (Process::DdpmEps, Published, 400.0),
            (Process::DdpmV, Published, 400.0),
            (Process::DdpmV, ZeroSnr, 400.0),
            (Process::DdpmV, ZeroSnr, 999.0),
        ] {
            let m = Mix::at(process, terminal, t).unwrap();
            let (x0, eps) = (0.7f32, -1.3f32);
            let (x_t, target) = (m.keep * x0 + m.add * eps, m.target_x * x0 + m.target_eps * eps);
            let back = match process {
                Process::Flow => x_t - t * target,
                Process::DdpmEps => (x_t - m.add * target) / m.keep,
                Process::DdpmV => m.keep * x_t - m.add * target,
            };
            assert_close(back, x0, 1e-5);
        }
    }

    #[test]
    fn the_gradient_into_clean_latents_is_that_of_finite_differences() {
        let bench = Bench::new();
        let ctx = bench.ctx();
        let op = noise(Process::DdpmV);
        let t = Timesteps::new(Process::DdpmV, vec![100.0, 900.0]);
        let pair = (latents(&ctx, (2, 1, 2, 2), 1), Some(latents(&ctx, (2, 1, 2, 2), 2)), t, None);
        check_gradients(&op, pair).unwrap();
    }

    #[test]
    fn a_larger_eps_gives_its_corner_and_a_smaller_one_is_refused() {
        let bench = Bench::new();
        let ctx = bench.ctx();
        let op = noise(Process::Flow);
        let t = Timesteps::new(Process::Flow, vec![1.0]);
        let eps = tensor(&ctx, (1, 1, 3, 3), (0..9u8).map(f32::from).collect()).unwrap();
        let ((x_t, ..), _) =
            op.forward(&ctx, (latents(&ctx, (1, 1, 2, 2), 1), None, t, Some(eps.into()))).unwrap();
        assert_eq!(x_t.as_vec(), [0.0, 1.0, 3.0, 4.0]);
        let time = TimeShape { batch: 1, process: Process::Flow };
        let small = op.shapes(((1, 1, 2, 2), None, time, Some((1, 1, 2, 1))), 0).unwrap_err();
        assert!(small.to_string().contains("at least as large"), "{small}");
    }

    #[test]
    fn noise_repeats_after_its_period_and_never_without_one() {
        let bench = Bench::new();
        let eps = |repeat, step| {
            let op: Noise = Noise::new(NoiseSettings { repeat, ..Default::default() }).unwrap();
            let t = Timesteps::new(Process::Flow, vec![0.5]);
            let x0 = latents(&bench.ctx(), (1, 1, 2, 2), 1);
            op.forward(&bench.at(step), (x0, None, t, None)).unwrap().0.3.as_vec()
        };
        assert_eq!(eps(3, 1), eps(3, 7));
        assert_eq!(eps(3, 1), eps(0, 1), "the first period is drawn as it is without a period");
        assert_ne!(eps(3, 1), eps(3, 2));
        assert_ne!(eps(0, 1), eps(0, 7));
    }

    #[test]
    fn a_time_of_another_process_is_refused_by_name() {
        let time = TimeShape { batch: 1, process: Process::DdpmEps };
        let error = noise(Process::Flow).shapes(((1, 1, 2, 2), None, time, None), 0).unwrap_err().to_string();
        assert!(error.contains("ddpm_eps") && error.contains("flow"), "{error}");
    }

    #[test]
    fn constant_axes_are_part_of_the_type() {
        type Small = Noise<Const<16>, Const<2>, Const<2>>;
        let op = Small::new(NoiseSettings::default()).unwrap();
        let shape = (3, Const::<16>, Const::<2>, Const::<2>);
        let time = TimeShape { batch: 3, process: Process::Flow };
        let (x_t, ..) = op.shapes((shape, Some(shape), time, None), 0).unwrap();
        assert_eq!(x_t.concrete(), [6, 16, 2, 2]);
    }
}
