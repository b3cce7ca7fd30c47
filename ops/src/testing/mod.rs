//! Is an operator's `backward` the derivative of its `forward`? For the tests of operators, shipped ones and your own.

mod error;
mod state;

use prefgraph_nn as nn;

pub use self::error::GradientError;
use self::state::Flat;
use crate::{
    inputs::{InputSpec, Inputs},
    operator::{Ctx, DynOperator, OpError, Operator},
    port::Value,
    random::Random,
    tensor::host,
};

/// Compares [`Operator::backward`] with central differences of [`Operator::forward`] at these inputs, for every input
/// that has a derivative; [`GradientCheck`] has the settings.
///
/// # Errors
/// If the two differ, or the operator breaks the contract of [`Operator`]: `forward` gives other values for the same
/// inputs, or `backward` a cotangent that nobody asked for or of another size than its input.
pub fn check_gradients<O: Operator>(op: &O, inputs: O::In) -> Result<(), GradientError> {
    GradientCheck::default().run(op, inputs)
}

/// How [`check_gradients`] compares.
///
/// The outputs are weighted by fixed random cotangents and summed. A component of an input is moved by one and by two
/// steps either way, which leaves an error of the fourth order in the step; up to 64 components of an input are
/// moved one by one, and all of them together along a random direction.
#[derive(Clone, Debug)]
pub struct GradientCheck {
    step: f32,
    tolerance: f32,
    at: u64,
    inputs: Option<Vec<String>>,
}

impl Default for GradientCheck {
    fn default() -> Self {
        Self { step: 0.05, tolerance: 1e-3, at: 0, inputs: None }
    }
}

/// How many components of an input are moved one by one.
const SINGLE: usize = 64;

/// Distance in steps, and weight, of the central difference of the fourth order.
const STENCIL: [(f32, f64); 4] =
    [(-2.0, 1.0 / 12.0), (-1.0, -8.0 / 12.0), (1.0, 8.0 / 12.0), (2.0, -1.0 / 12.0)];

impl GradientCheck {
    /// By how much a component is moved, 0.05 by default: larger where an output's rounding drowns the difference, smaller
    /// where the operator bends within a step.
    #[must_use]
    pub fn step(mut self, step: f32) -> Self {
        self.step = step;
        self
    }

    /// Largest error as a share of the input's largest derivative, 1e-3 by default.
    #[must_use]
    pub fn tolerance(mut self, tolerance: f32) -> Self {
        self.tolerance = tolerance;
        self
    }

    /// The step that [`Ctx`] tells, 0 by default: random numbers depend on it.
    #[must_use]
    pub fn at(mut self, step: u64) -> Self {
        self.at = step;
        self
    }

    /// Only these inputs; the others are constants, for which no cotangent is asked.
    #[must_use]
    pub fn inputs(mut self, names: &[&str]) -> Self {
        self.inputs = Some(names.iter().map(|name| (*name).to_owned()).collect());
        self
    }

    /// See [`check_gradients`].
    ///
    /// # Errors
    /// As there.
    pub fn run<O: Operator>(&self, op: &O, inputs: O::In) -> Result<(), GradientError> {
        let (cpu, host) = (nn::Cpu::new(1).map_err(OpError::from)?, host());
        let ctx = Ctx {
            step: self.at,
            seed: 0,
            node: "checked",
            backward_follows: true,
            cpu: &cpu,
            gpu: None,
            host: &host,
        };
        let inputs = inputs.erase();
        let wanted = self.wanted(op, &inputs)?;
        let probe = Probe::new(op, &ctx, inputs)?;
        let grads = probe.backward(&wanted)?;
        for (input, spec) in DynOperator::inputs(op).iter().enumerate().filter(|(i, _)| wanted[*i]) {
            for wire in 0..probe.inputs[input].len() {
                let carry = spec.ty.carry.ok_or(GradientError::Fixed { input: spec.name })?;
                let flat = Flat::of(carry, &spec.ty, &probe.inputs[input][wire])?;
                let grad = grads[input].get(wire).cloned().flatten();
                let grad = match grad {
                    Some(grad) => (spec.ty.grad_components)(&grad)?,
                    None => vec![0.0; flat.len()],
                };
                if grad.len() != flat.len() {
                    let (found, expected) = (grad.len(), flat.len());
                    return Err(GradientError::Size { input: spec.name, found, expected });
                }
                self.compare(&probe, (input, wire, spec.name), &flat, &grad)?;
            }
        }
        Ok(())
    }

    /// Which inputs are moved.
    fn wanted(&self, op: &dyn DynOperator, inputs: &[Vec<Value>]) -> Result<Vec<bool>, GradientError> {
        let specs = op.inputs();
        for name in self.inputs.iter().flatten() {
            let known =
                specs.iter().zip(inputs).filter(|(s, wires)| s.ty.differentiable && !wires.is_empty());
            let known: Vec<&str> = known.map(|(s, _)| s.name).collect();
            if !known.contains(&name.as_str()) {
                return Err(GradientError::Input { name: name.clone(), known: known.join(", ") });
            }
        }
        let is_asked = |name: &str| self.inputs.as_ref().is_none_or(|names| names.iter().any(|n| n == name));
        let moved = |(s, wires): (&InputSpec, &Vec<Value>)| {
            s.ty.differentiable && !wires.is_empty() && is_asked(s.name)
        };
        Ok(specs.iter().zip(inputs).map(moved).collect())
    }

    fn compare(
        &self,
        probe: &Probe<'_>,
        (input, wire, name): (usize, usize, &'static str),
        flat: &Flat,
        grad: &[f32],
    ) -> Result<(), GradientError> {
        let largest = grad.iter().fold(0f32, |most, g| most.max(g.abs()));
        let check = |place: String, direction: &dyn Fn(usize) -> f32, scale: f64| {
            let (mut found, mut expected, mut rounding) = (0.0, 0.0, 0.0);
            for (steps, weight) in STENCIL {
                let by = |i: usize| steps * self.step * direction(i);
                let moved: Vec<f32> = flat.values().iter().enumerate().map(|(i, x)| x + by(i)).collect();
                // By how far a component really moved is what rounding has left of the step.
                expected +=
                    weight * moved.iter().zip(grad).map(|(x, g)| f64::from(*x) * f64::from(*g)).sum::<f64>();
                let (value, size) = probe.value_with(input, wire, flat.with(moved)?)?;
                found += weight * value;
                rounding += weight.abs() * size * f64::from(f32::EPSILON);
            }
            let allowed = f64::from(self.tolerance) * f64::from(self.step) * scale;
            let allowed = if scale > 0.0 { allowed } else { rounding };
            // Not `>`: a difference that is no number is none that is allowed.
            if (found - expected).abs() <= allowed {
                return Ok(());
            }
            let by = f64::from(self.step);
            Err(GradientError::Differs {
                input: name,
                place,
                backward: expected / by,
                forward: found / by,
                step: self.step,
                rounding: rounding / by,
            })
        };
        let stride = grad.len().div_ceil(SINGLE).max(1);
        for i in (0..grad.len()).step_by(stride) {
            let place = format!(" at {}", flat.place(i));
            check(place, &|other| f32::from(u8::from(other == i)), f64::from(largest))?;
        }
        let mut random = Random::new(0, name, 0, "direction");
        let length = (grad.len() as f32).sqrt();
        let signs: Vec<f32> =
            random.normals(grad.len()).iter().map(|x| if *x < 0.0 { -1.0 } else { 1.0 } / length).collect();
        let norm = grad.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt();
        check(" along a direction through all its components".into(), &|i| signs[i], norm)
    }
}

/// An operator at one point, its outputs weighted and summed.
struct Probe<'a> {
    op: &'a dyn DynOperator,
    ctx: &'a Ctx<'a>,
    inputs: Vec<Vec<Value>>,
    /// Cotangents of the outputs.
    seeds: Vec<Option<Value>>,
}

impl<'a> Probe<'a> {
    fn new(
        op: &'a dyn DynOperator,
        ctx: &'a Ctx<'a>,
        inputs: Vec<Vec<Value>>,
    ) -> Result<Self, GradientError> {
        let (outputs, again) = (op.forward(ctx, &inputs)?.0, op.forward(ctx, &inputs)?.0);
        let mut seeds = Vec::with_capacity(outputs.len());
        for (k, ((spec, value), again)) in op.outputs().iter().zip(&outputs).zip(&again).enumerate() {
            let Some(carry) = spec.ty.carry else {
                seeds.push(None);
                continue;
            };
            let (flat, again) = (Flat::of(carry, &spec.ty, value)?, Flat::of(carry, &spec.ty, again)?);
            let bits = |flat: &Flat| flat.values().iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            if bits(&flat) != bits(&again) {
                return Err(GradientError::Impure { output: spec.name });
            }
            let seed = || flat.with(Random::new(0, "cotangent", k as u64, spec.name).normals(flat.len()));
            seeds.push((spec.ty.differentiable && spec.ty.self_dual).then(seed).transpose()?);
        }
        if seeds.iter().all(Option::is_none) {
            return Err(GradientError::NoOutput);
        }
        Ok(Self { op, ctx, inputs, seeds })
    }

    /// The sum of the weighted outputs, and of their sizes, with another value at one wire.
    fn value_with(&self, input: usize, wire: usize, value: Value) -> Result<(f64, f64), GradientError> {
        let mut inputs = self.inputs.clone();
        inputs[input][wire] = value;
        let outputs = self.op.forward(self.ctx, &inputs)?.0;
        let (mut sum, mut size) = (0.0, 0.0);
        for ((spec, value), seed) in self.op.outputs().iter().zip(&outputs).zip(&self.seeds) {
            if let (Some(carry), Some(seed)) = (spec.ty.carry, seed) {
                let (value, seed) = (Flat::of(carry, &spec.ty, value)?, Flat::of(carry, &spec.ty, seed)?);
                for (y, s) in value.values().iter().zip(seed.values()) {
                    let term = f64::from(*y) * f64::from(*s);
                    sum += term;
                    size += term.abs();
                }
            }
        }
        Ok((sum, size))
    }

    /// Cotangents of these inputs, and none of the others.
    fn backward(&self, wanted: &[bool]) -> Result<Vec<Vec<Option<Value>>>, GradientError> {
        let run = |wanted: &[bool]| -> Result<_, GradientError> {
            let saved = self.op.forward(self.ctx, &self.inputs)?.1;
            let grads = self.op.backward(self.ctx, wanted, saved, &self.seeds)?;
            let names = self.op.inputs();
            let unasked = |i: &usize| !wanted[*i] && grads[*i].iter().any(Option::is_some);
            match (0..grads.len()).find(unasked) {
                Some(input) => Err(GradientError::Unasked { input: names[input].name }),
                None => Ok(grads),
            }
        };
        run(&vec![false; wanted.len()])?;
        run(wanted)
    }
}
