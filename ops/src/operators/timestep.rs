//! `timestep`: one time a sample, drawn at random or evenly spread.
//!
//! Shape letters: `B` batch, `H` `W` latent grid.

use prefgraph_nn::sampling::flow;

use super::noise::DDPM_STEPS;
use crate::{
    choices,
    operator::{Ctx, InShapes, OpError, Operator, OutShapes},
    ports::{Latents, Process, TimeShape, Timesteps},
    random::Random,
    settings,
};

choices! {
    /// How times are spread.
    pub enum Spread {
        /// Every time is as likely; for DDPM, every whole timestep.
        Uniform = "uniform",
        /// sigma = shift u / (1 + (shift - 1) u) of a uniform u: more noise the larger the shift.
        Shifted = "shifted",
        /// As UNO trains: a uniform index into a schedule of 1000 points whose shift grows with the number of tokens.
        Uno = "uno",
        /// sigma = sigmoid(mean + std n) of a standard normal n.
        LogitNormal = "logit_normal",
    }
}

settings! {
    /// Settings of [`Timestep`].
    pub struct TimestepSettings {
        /// Which scale the times are on: sigmas in [0, 1] for a flow, whole timesteps for DDPM.
        pub process: Process = Process::Flow,
        /// How they are spread. DDPM takes `uniform` only.
        pub spread: Spread = Spread::Uniform,
        /// Take fixed times in the place of random ones, evenly spread over the same distribution: what is measured at them again and again can be compared.
        pub even: bool = false,
        /// The times repeat after so many steps; 0 means never for random ones, and at every step for even ones. Even times differ between the steps of a period, so that together they are as many as its samples.
        pub repeat: u64 = 0,
        /// Samples in a batch, where no `x0` is connected.
        pub batch: usize = 1,
        /// The smallest sigma, or for DDPM the smallest timestep divided by 1000: draws of [0, 1] are squeezed into [min, max], and none is left out.
        pub min: f64 = 0.0,
        /// The largest sigma, or for DDPM the end of the timesteps divided by 1000; likewise.
        pub max: f64 = 1.0,
        /// Of `shifted`: 3 for a picture of 1024 pixels a side.
        pub shift: f64 = 3.0,
        /// Of `logit_normal`.
        pub mean: f64 = 0.0,
        /// Of `logit_normal`.
        pub std: f64 = 1.0,
    }
}

/// Times of a batch, drawn by (seed, node, step, sample).
pub struct Timestep(TimestepSettings);

/// Points of UNO's schedule.
const UNO_POINTS: u64 = 1000;

/// What a time is made from.
enum Draw {
    Random(Box<Random>),
    /// The share of all draws that are smaller, in (0, 1).
    Quantile(f64),
}

impl Draw {
    fn uniform(&mut self) -> f64 {
        match self {
            Self::Random(random) => random.uniform(),
            Self::Quantile(q) => *q,
        }
    }

    /// Uniform among `0..n`.
    fn below(&mut self, n: u64) -> u64 {
        match self {
            Self::Random(random) => random.below(n),
            Self::Quantile(q) => ((*q * n as f64) as u64).min(n - 1),
        }
    }

    /// Standard normal.
    fn normal(&mut self) -> f64 {
        match self {
            Self::Random(random) => random.normal_pair().0,
            Self::Quantile(q) => normal_quantile(*q),
        }
    }
}

/// The number below which a standard normal one lies with probability `q`, to the last bits by bisection.
fn normal_quantile(q: f64) -> f64 {
    // Beyond 9 on either side there is less than the smallest share that a batch could ask for.
    let (mut low, mut high) = (-9.0, 9.0);
    for _ in 0..64 {
        let middle = 0.5 * (low + high);
        let below = 0.5 * libm::erfc(-middle * std::f64::consts::FRAC_1_SQRT_2);
        if below < q { low = middle } else { high = middle }
    }
    0.5 * (low + high)
}

/// The first DDPM timestep of a range that begins at `min`.
fn first_step(min: f64) -> u64 {
    (min * DDPM_STEPS as f64).round() as u64
}

impl Timestep {
    /// A draw before it is mapped into [min, max].
    fn draw(&self, draw: &mut Draw, tokens: usize) -> f64 {
        match self.0.spread {
            Spread::Uniform => draw.uniform(),
            Spread::Shifted => flow::shifted(draw.uniform(), self.0.shift),
            Spread::Uno => {
                let t = 1.0 - draw.below(UNO_POINTS) as f64 / (UNO_POINTS - 1) as f64;
                flow::shifted(t, flow::dynamic_shift(tokens))
            }
            Spread::LogitNormal => 1.0 / (1.0 + libm::exp(-(self.0.mean + self.0.std * draw.normal()))),
        }
    }

    /// The time of a sample.
    fn time(&self, draw: &mut Draw, tokens: usize) -> f32 {
        if self.0.process.is_discrete() {
            let first = first_step(self.0.min);
            let end = ((self.0.max * DDPM_STEPS as f64).round() as u64).max(first + 1);
            (first + draw.below(end - first)) as f32
        } else {
            (self.0.min + (self.0.max - self.0.min) * self.draw(draw, tokens)) as f32
        }
    }
}

impl Operator for Timestep {
    const NAME: &'static str = "timestep";
    const DOC: &'static str =
        "One time a sample, at random or evenly spread; the batch is that of x0 where it is connected.";
    const IN: [&'static str; 1] = ["x0"];
    const OUT: [&'static str; 1] = ["t"];
    type Settings = TimestepSettings;
    type In = (Option<Latents>,);
    type Out = (Timesteps,);
    type Saved = ();
    const DIFFERENTIABLE: bool = false;

    fn new(s: TimestepSettings) -> Result<Self, OpError> {
        let fault = if !(0.0 <= s.min && s.min < s.max && s.max <= 1.0) {
            format!("min {} and max {}: 0 <= min < max <= 1 is needed", s.min, s.max)
        } else if s.process.is_discrete() && first_step(s.min) as usize >= DDPM_STEPS {
            format!(
                "min {}: that is timestep {} of 0..{DDPM_STEPS}: below 0.9995 is needed",
                s.min,
                first_step(s.min)
            )
        } else if s.process.is_discrete() && s.spread != Spread::Uniform {
            "DDPM times are whole numbers: they can only be spread by `uniform`".into()
        } else if s.batch == 0 {
            "batch: at least 1 is needed".into()
        } else if !(s.shift > 0.0 && s.shift.is_finite()) {
            format!("shift {}: a positive number is needed", s.shift)
        } else if !(s.mean.is_finite() && s.std >= 0.0 && s.std.is_finite()) {
            format!("mean {} and std {}: finite numbers, and std not below 0, are needed", s.mean, s.std)
        } else {
            return Ok(Self(s));
        };
        Err(OpError::new(fault))
    }

    fn shapes(&self, (x0,): InShapes<Self>, _: usize) -> Result<OutShapes<Self>, OpError> {
        if self.0.spread == Spread::Uno && x0.is_none() {
            return Err(OpError::new("`spread: uno` depends on the number of tokens: connect x0"));
        }
        Ok((TimeShape { batch: x0.map_or(self.0.batch, |x| x.0), process: self.0.process },))
    }

    fn notes(&self, (x0,): &InShapes<Self>) -> Vec<String> {
        match x0 {
            Some(x0) if self.0.spread == Spread::Uno => {
                let tokens = x0.2 * x0.3 / 4;
                vec![format!(
                    "{tokens} target tokens: sigma is shifted by exp({:.3})",
                    flow::mu(tokens as f64)
                )]
            }
            _ => Vec::new(),
        }
    }

    fn random(&self) -> Option<String> {
        (!self.0.even).then(|| "it draws the time of every sample".into())
    }

    fn forward(&self, ctx: &Ctx<'_>, (x0,): Self::In) -> Result<(Self::Out, ()), OpError> {
        let dims = x0.as_ref().map(super::tensors::dims);
        let (batch, tokens) = dims.map_or((self.0.batch, 0), |d| (d[0], d[2] * d[3] / 4));
        let times: Vec<f32> = if self.0.even {
            // Sample i of a batch takes its part of the whole, and step s of a period its part of that.
            let period = self.0.repeat.max(1);
            let (parts, step) = (batch as f64 * period as f64, ctx.step_in(period) as f64);
            let quantile = |i: usize| (i as f64 * period as f64 + step + 0.5) / parts;
            (0..batch).map(|i| self.time(&mut Draw::Quantile(quantile(i)), tokens)).collect()
        } else {
            let mut draw = Draw::Random(Box::new(ctx.random_repeating(self.0.repeat, "t")));
            (0..batch).map(|_| self.time(&mut draw, tokens)).collect()
        };
        Ok(((Timesteps::new(self.0.process, times),), ()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operators::testing::{Bench, latents};

    fn draws(settings: TimestepSettings, steps: u64) -> Vec<f32> {
        let bench = Bench::new();
        let op = Timestep::new(settings).unwrap();
        let x0: Latents = latents(&bench.ctx(), (8, 1, 64, 64), 0);
        let drawn = |step| op.forward(&bench.at(step), (Some(x0.clone()),)).unwrap().0.0;
        (0..steps).flat_map(|step| drawn(step).values.to_vec()).collect()
    }

    fn mean(x: &[f32]) -> f64 {
        x.iter().map(|x| f64::from(*x)).sum::<f64>() / x.len() as f64
    }

    #[test]
    fn every_spread_has_its_mean() {
        // UNO at 1024 tokens: mu = 0.63, mean 0.604. Shifted by 3: the integral of 3u / (1 + 2u).
        let expected = [
            (Spread::Uniform, 0.5),
            (Spread::Shifted, 1.5 - 0.75 * libm::log(3.0)),
            (Spread::Uno, 0.604),
            (Spread::LogitNormal, 0.5),
        ];
        for (spread, expected) in expected {
            let t = draws(TimestepSettings { spread, ..Default::default() }, 1500);
            assert!((mean(&t) - expected).abs() < 0.01, "{spread:?}: {}", mean(&t));
            assert!(t.iter().all(|t| (0.0..=1.0).contains(t)));
        }
    }

    #[test]
    fn ddpm_times_are_whole_and_reach_both_ends_of_their_range() {
        let settings =
            TimestepSettings { process: Process::DdpmEps, min: 0.5, max: 0.51, ..Default::default() };
        let t = draws(settings, 40);
        assert!(t.iter().all(|t| t.fract() == 0.0 && (500.0..510.0).contains(t)), "{t:?}");
        assert!(t.contains(&500.0) && t.contains(&509.0));
    }

    #[test]
    fn even_times_are_the_middles_of_equal_parts_and_differ_within_a_period() {
        let even = TimestepSettings { even: true, ..Default::default() };
        // 8 samples: a batch alone, and two batches that take turns.
        let alone: Vec<f32> = (0..8u8).map(|i| (f32::from(i) + 0.5) / 8.0).collect();
        assert_eq!(draws(even.clone(), 2), [&alone[..], &alone].concat());
        let turns = draws(TimestepSettings { repeat: 2, ..even.clone() }, 3);
        assert_eq!(turns[..8], turns[16..]);
        let mut both = turns[..16].to_vec();
        both.sort_by(f32::total_cmp);
        assert_eq!(both, (0..16u8).map(|i| (f32::from(i) + 0.5) / 16.0).collect::<Vec<_>>());
        let range = TimestepSettings { min: 0.5, max: 0.75, ..even.clone() };
        assert_eq!(draws(range, 1)[0], 0.5 + 0.25 / 16.0);
        let ddpm = TimestepSettings { process: Process::DdpmEps, ..even };
        assert_eq!(draws(ddpm, 1), [62.0, 187.0, 312.0, 437.0, 562.0, 687.0, 812.0, 937.0]);
    }

    #[test]
    fn even_times_are_those_of_their_spread() {
        for spread in [Spread::Uniform, Spread::Shifted, Spread::Uno, Spread::LogitNormal] {
            let settings = TimestepSettings { spread, ..Default::default() };
            let random = draws(settings.clone(), 1500);
            let even = draws(TimestepSettings { even: true, repeat: 40, ..settings }, 40);
            assert!((mean(&random) - mean(&even)).abs() < 0.01, "{spread:?}");
            let square = |t: &[f32]| mean(&t.iter().map(|t| t * t).collect::<Vec<_>>());
            assert!((square(&random) - square(&even)).abs() < 0.01, "{spread:?}");
        }
        assert!((normal_quantile(0.975) - 1.959_963_984_540_054).abs() < 1e-12);
    }

    #[test]
    fn random_times_repeat_after_their_period_and_never_without_one() {
        let times = |repeat| draws(TimestepSettings { repeat, ..Default::default() }, 6);
        let (three, never) = (times(3), times(0));
        assert_eq!(three[..24], three[24..]);
        assert_eq!(three[..24], never[..24]);
        assert_ne!(never[..24], never[24..]);
    }

    #[test]
    fn settings_out_of_range_are_refused() {
        let bad = [
            TimestepSettings { min: 0.6, max: 0.5, ..Default::default() },
            TimestepSettings { process: Process::DdpmV, min: 0.9996, max: 1.0, ..Default::default() },
            TimestepSettings { process: Process::DdpmV, spread: Spread::Uno, ..Default::default() },
            TimestepSettings { shift: f64::NAN, ..Default::default() },
        ];
        for settings in bad {
            assert!(Timestep::new(settings.clone()).is_err(), "{settings:?}");
        }
    }
}
