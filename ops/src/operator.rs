//! The operator trait, typed and erased.

use std::any::Any;

use prefgraph_nn as nn;

pub use crate::error::OpError;
use crate::{
    identity::{Identity, ReadBatch, Sample},
    inputs::{InputSpec, Inputs, OutputSpec, Outputs},
    part::Part,
    port::Value,
    ports::MetricDoc,
    random::Random,
    resume::{External, Restart, Restated},
    settings::Settings,
    shape::ErasedShape,
};

/// What an operator may read besides its inputs.
pub struct Ctx<'a> {
    /// Step number, from zero; a micro-batch is a step.
    pub step: u64,
    /// Seed of the run.
    pub seed: u64,
    /// Name of the node that is running.
    pub node: &'a str,
    /// Whether a backward follows. Where none does, nobody reads what a forward returns for it.
    pub backward_follows: bool,
    /// Kernels and worker threads, shared by all nodes.
    pub cpu: &'a nn::Cpu,
    /// The GPU that networks run on; without one they run on the processor.
    pub gpu: Option<&'a nn::cuda::Cuda>,
    /// Where dfdx tensors live.
    pub host: &'a dfdx::tensor::Cpu,
}

impl Ctx<'_> {
    /// Random numbers of this node at this step; `purpose` tells two uses in one node apart.
    pub fn random(&self, purpose: &str) -> Random {
        Random::new(self.seed, self.node, self.step, purpose)
    }

    /// The same, again and again: step `period` draws what step 0 drew, and so on. With a period of 0 no step repeats another.
    pub fn random_repeating(&self, period: u64, purpose: &str) -> Random {
        Random::new(self.seed, self.node, self.step_in(period), purpose)
    }

    /// The number of the step within its period; the number of the step itself where the period is 0.
    pub fn step_in(&self, period: u64) -> u64 {
        if period == 0 { self.step } else { self.step % period }
    }

    /// Random numbers of this node that are the same at every step.
    pub fn random_of_node(&self, purpose: &str) -> Random {
        Random::new(self.seed, self.node, u64::MAX, purpose)
    }
}

/// What a node costs, for scheduling and for the prediction of memory.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cost {
    /// Floating-point operations of the forward.
    pub forward_flops: f64,
    /// Floating-point operations of the backward.
    pub backward_flops: f64,
    /// What the operands of most of these operations are rounded to, which decides how fast they are.
    pub precision: nn::cpu::Precision,
    /// Bytes read and written by a forward.
    pub moved_bytes: f64,
    /// Bytes held from forward to backward, besides the inputs and outputs.
    pub saved_bytes: usize,
    /// Bytes held while a forward runs, and a backward if it needs no more.
    pub scratch_bytes: usize,
    /// Bytes held while a backward runs, where it needs more than a forward.
    pub backward_scratch_bytes: usize,
    /// Bytes held while a forward runs that [no backward follows](Ctx::backward_follows), by an operator that keeps nothing then. Others
    /// hold `saved_bytes` and `scratch_bytes` while any forward runs.
    pub alone_bytes: Option<usize>,
    /// Bytes held from the first run on, e.g. weights.
    pub resident_bytes: usize,
    /// Bytes that values of cells hold from the first run on beyond what their shapes say, such as gradients that wait for more.
    pub cell_bytes: usize,
    /// Bytes held while a forward runs and until the backward has, by what all such nodes lend each other in turn: a queue of a
    /// GPU with its workspace. As many are kept as were ever used at once.
    pub queue_bytes: usize,
    /// Whether that queue is an [urgent](nn::Device::urgent_queue) one: urgent queues and others are lent and kept apart.
    pub urgent: bool,
    /// Bytes held for as long in the host's memory, by a node that works on a GPU.
    pub host_bytes: usize,
    /// What a value that the node reads holds once the node has run.
    pub shared: Option<Shared>,
}

/// Bytes that the value of an input holds from the first run of its readers on, such as a backbone's weights packed for
/// backward passes. Nodes that read one value share them: the largest of their numbers counts, once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shared {
    /// Index of the input.
    pub input: usize,
    /// Bytes.
    pub bytes: usize,
}

impl Cost {
    /// What the forward costs where no backward follows. An operator that keeps nothing then does not hold others up, and packs nothing for
    /// a backward.
    #[must_use]
    pub fn without_backward(self) -> Self {
        let alone =
            |bytes| Self { saved_bytes: 0, scratch_bytes: bytes, urgent: false, shared: None, ..self };
        let forward = self.alone_bytes.map_or(self, alone);
        Self { backward_flops: 0.0, backward_scratch_bytes: 0, ..forward }
    }
}

/// For every input, in order: does anybody need its cotangent?
pub type Wanted<'a> = &'a [bool];
/// The input shapes of an operator.
pub type InShapes<O> = <<O as Operator>::In as Inputs>::Shapes;
/// The output shapes of an operator.
pub type OutShapes<O> = <<O as Operator>::Out as Outputs>::Shapes;
/// The input cotangents of an operator.
pub type InGrads<O> = <<O as Operator>::In as Inputs>::Grads;
/// The output cotangents of an operator; `None` is zero.
pub type OutGrads<O> = <<O as Operator>::Out as Outputs>::Grads;
/// The names of an operator's inputs.
pub type InNames<O> = <<O as Operator>::In as Inputs>::Names;
/// The names of an operator's outputs.
pub type OutNames<O> = <<O as Operator>::Out as Outputs>::Names;

/// One step of a training recipe: a differentiable function from ports to ports.
///
/// `forward` returns, next to its outputs, what [`backward`](Self::backward) needs, as `jax.custom_vjp` does.
///
/// # Contract
///
/// * `forward` is a pure function of its inputs, its settings and [`Ctx`]: no clocks, no global random numbers.
/// * `backward` returns `None` exactly where the cotangent is zero or not wanted.
pub trait Operator: Send + Sync + Sized + 'static {
    /// Name in a graph file: lower case, words joined by `-`.
    const NAME: &'static str;
    /// One sentence, shown by `graph-run ops`.
    const DOC: &'static str;
    /// Names of the inputs, one for each element of [`In`](Self::In), or it does not compile. An implementation writes the
    /// array out: `const IN: [&'static str; 2] = ["latents", "text"];`.
    const IN: <Self::In as Inputs>::Names;
    /// Names of the outputs, likewise: `const OUT: [&'static str; 1] = ["latents"];`.
    const OUT: <Self::Out as Outputs>::Names;
    /// Every metric that it may measure, in the order in which it does.
    const METRICS: &'static [MetricDoc] = &[];
    /// Settings that change how it works, but no bit of what it computes: a run may be resumed with others.
    const FREE_SETTINGS: &'static [&'static str] = &[];

    /// What a graph file may say about this operator.
    type Settings: Settings;
    /// Inputs, as a tuple of `P`, `Option<P>` and `Vec<P>`.
    type In: Inputs;
    /// Output ports, as a tuple.
    type Out: Outputs;
    /// What forward keeps for backward. `Send`, because backward may run on another lane.
    type Saved: Send + 'static;

    /// Build from settings; files that are named there are opened and checked here, cheaply.
    ///
    /// # Errors
    /// If a setting is out of range or a file is missing or malformed.
    fn new(settings: Self::Settings) -> Result<Self, OpError>;

    /// Number of alternative sets of output shapes: more than one only for sources whose batches differ, e.g. in
    /// the number of references.
    fn variants(&self) -> usize {
        1
    }

    /// Output shapes, from input shapes; `variant` is below [`variants`](Self::variants).
    ///
    /// # Errors
    /// If the inputs do not go together; the message names both sides.
    fn shapes(&self, inputs: InShapes<Self>, variant: usize) -> Result<OutShapes<Self>, OpError>;

    /// What the node costs at these shapes. The default counts nothing but the outputs.
    fn cost(&self, inputs: &InShapes<Self>, outputs: &OutShapes<Self>) -> Cost {
        let _ = (inputs, outputs);
        Cost::default()
    }

    /// What the node costs in a run whose networks are on a GPU, if it works there: times, and bytes of the GPU's memory. `None`,
    /// the default, for a node that works on the processor in every run.
    fn gpu_cost(&self, inputs: &InShapes<Self>, outputs: &OutShapes<Self>) -> Option<Cost> {
        let _ = (inputs, outputs);
        None
    }

    /// Lines for people, shown by `plan` and at the start of a run, e.g. what a pattern matched.
    fn notes(&self, inputs: &InShapes<Self>) -> Vec<String> {
        let _ = inputs;
        Vec::new()
    }

    /// What other nodes may refer to as `@node.key`, beside the settings themselves.
    fn exports(&self) -> Vec<(String, serde_json::Value)> {
        Vec::new()
    }

    /// Is anything wanted of this node at `step`? A runner asks a node that nobody reads, and where it is not due leaves it
    /// out, with all that only such nodes read: pictures every so many steps cost nothing at the steps between.
    ///
    /// [`forward`](Self::forward) must still be right at every step.
    fn due(&self, step: u64) -> bool {
        let _ = step;
        true
    }

    /// What the rows of the outputs depend on, if each depends on the same row of the inputs only: then they can be
    /// kept on the disk. `None` where rows depend on each other, or on anything that is not said here.
    fn cacheable(&self) -> Option<Identity> {
        None
    }

    /// What the operator draws random numbers for, if it does. The order of samples does not count: it selects them and
    /// does not change them.
    fn random(&self) -> Option<String> {
        None
    }

    /// For sources: all samples, in an order that depends on neither seed nor step. `None` where they cannot be listed.
    fn samples(&self) -> Option<Vec<Sample>> {
        None
    }

    /// For sources that list [`samples`](Self::samples): these of them, of one variant, as a batch of any size.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    fn read(&self, ctx: &Ctx<'_>, samples: &[usize]) -> Result<ReadBatch<Self::Out>, OpError> {
        let _ = (ctx, samples);
        Err(OpError::internal(format!("`{}` lists no samples", Self::NAME)))
    }

    /// The data and weights that it reads, so that a resumed run can tell whether they have changed. By default the files that
    /// [`cacheable`](Self::cacheable) names.
    fn external(&self) -> Vec<External> {
        External::of(self.cacheable())
    }

    /// What a plan checks between this node and others.
    fn part(&self) -> Part {
        Part::default()
    }

    /// The effect of resuming a run with these settings after `old` ones. Called for every node when a run is resumed; `None` if
    /// nothing is worth saying.
    fn restated(&self, old: &Self::Settings, restart: &Restart<'_>) -> Option<Restated> {
        let _ = (old, restart);
        None
    }

    /// Compute the outputs and what `backward` will need.
    ///
    /// # Errors
    /// If the inputs cannot be processed; the message names the sample where there is one.
    fn forward(&self, ctx: &Ctx<'_>, inputs: Self::In) -> Result<(Self::Out, Self::Saved), OpError>;

    /// Vector-Jacobian product. The default is right for operators that no gradient crosses.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    fn backward(
        &self,
        ctx: &Ctx<'_>,
        wanted: Wanted<'_>,
        saved: Self::Saved,
        grads: OutGrads<Self>,
    ) -> Result<InGrads<Self>, OpError> {
        let _ = (ctx, wanted, saved, grads);
        Ok(Self::In::no_grads())
    }

    /// Can a cotangent of an output give one of an input?
    const DIFFERENTIABLE: bool;
}

/// Object-safe image of [`Operator`]; the blanket implementation serves all operators but closures.
pub trait DynOperator: Send + Sync {
    /// See [`Operator::NAME`].
    fn name(&self) -> &str;
    /// Names, types and arities of the inputs.
    fn inputs(&self) -> Vec<InputSpec>;
    /// Names and types of the outputs.
    fn outputs(&self) -> Vec<OutputSpec>;
    /// See [`Operator::METRICS`]; none where they are not known.
    fn metrics(&self) -> &'static [MetricDoc] {
        &[]
    }
    /// See [`Operator::DIFFERENTIABLE`].
    fn differentiable(&self) -> bool;
    /// See [`Operator::variants`].
    fn variants(&self) -> usize;
    /// See [`Operator::shapes`].
    ///
    /// # Errors
    /// As there.
    fn shapes(&self, inputs: &[Vec<ErasedShape>], variant: usize) -> Result<Vec<ErasedShape>, OpError>;
    /// See [`Operator::cost`].
    fn cost(&self, inputs: &[Vec<ErasedShape>], outputs: &[ErasedShape]) -> Cost;
    /// See [`Operator::gpu_cost`].
    fn gpu_cost(&self, inputs: &[Vec<ErasedShape>], outputs: &[ErasedShape]) -> Option<Cost> {
        let _ = (inputs, outputs);
        None
    }
    /// See [`Operator::notes`].
    fn notes(&self, inputs: &[Vec<ErasedShape>]) -> Vec<String>;
    /// See [`Operator::exports`].
    fn exports(&self) -> Vec<(String, serde_json::Value)>;
    /// See [`Operator::due`].
    fn due(&self, step: u64) -> bool {
        let _ = step;
        true
    }

    /// See [`Operator::cacheable`].
    fn cacheable(&self) -> Option<Identity> {
        None
    }
    /// See [`Operator::random`].
    fn random(&self) -> Option<String> {
        None
    }
    /// See [`Operator::samples`].
    fn samples(&self) -> Option<Vec<Sample>> {
        None
    }
    /// See [`Operator::read`].
    ///
    /// # Errors
    /// As there.
    fn read(&self, ctx: &Ctx<'_>, samples: &[usize]) -> Result<ReadBatch<Vec<Value>>, OpError> {
        let _ = (ctx, samples);
        Err(OpError::internal(format!("`{}` lists no samples", self.name())))
    }
    /// See [`Operator::external`].
    fn external(&self) -> Vec<External> {
        Vec::new()
    }
    /// See [`Operator::part`].
    fn part(&self) -> Part {
        Part::default()
    }
    /// See [`Operator::restated`]; the old settings as JSON.
    fn restated(&self, old: &serde_json::Value, restart: &Restart<'_>) -> Option<Restated> {
        let _ = (old, restart);
        None
    }
    /// See [`Operator::forward`].
    ///
    /// # Errors
    /// As there.
    fn forward(&self, ctx: &Ctx<'_>, inputs: &[Vec<Value>]) -> Result<(Vec<Value>, Residuals), OpError>;
    /// See [`Operator::backward`]; one list of cotangents for every input, one entry a wire.
    ///
    /// # Errors
    /// As there.
    fn backward(
        &self,
        ctx: &Ctx<'_>,
        wanted: Wanted<'_>,
        saved: Residuals,
        grads: &[Option<Value>],
    ) -> Result<Vec<Vec<Option<Value>>>, OpError>;
}

/// An [`Operator::Saved`] of a type known at run time only.
pub type Residuals = Box<dyn Any + Send>;

impl<O: Operator> DynOperator for O {
    fn name(&self) -> &str {
        O::NAME
    }
    fn inputs(&self) -> Vec<InputSpec> {
        O::In::specs(O::IN)
    }
    fn outputs(&self) -> Vec<OutputSpec> {
        O::Out::specs(O::OUT)
    }
    fn metrics(&self) -> &'static [MetricDoc] {
        O::METRICS
    }
    fn differentiable(&self) -> bool {
        O::DIFFERENTIABLE
    }
    fn variants(&self) -> usize {
        Operator::variants(self)
    }
    fn shapes(&self, inputs: &[Vec<ErasedShape>], variant: usize) -> Result<Vec<ErasedShape>, OpError> {
        Ok(O::Out::erase_shapes(Operator::shapes(self, O::In::unerase_shapes(inputs), variant)?))
    }
    fn cost(&self, inputs: &[Vec<ErasedShape>], outputs: &[ErasedShape]) -> Cost {
        Operator::cost(self, &O::In::unerase_shapes(inputs), &O::Out::unerase_shapes(outputs))
    }
    fn gpu_cost(&self, inputs: &[Vec<ErasedShape>], outputs: &[ErasedShape]) -> Option<Cost> {
        Operator::gpu_cost(self, &O::In::unerase_shapes(inputs), &O::Out::unerase_shapes(outputs))
    }
    fn notes(&self, inputs: &[Vec<ErasedShape>]) -> Vec<String> {
        Operator::notes(self, &O::In::unerase_shapes(inputs))
    }
    fn exports(&self) -> Vec<(String, serde_json::Value)> {
        Operator::exports(self)
    }
    fn due(&self, step: u64) -> bool {
        Operator::due(self, step)
    }

    fn cacheable(&self) -> Option<Identity> {
        Operator::cacheable(self)
    }
    fn random(&self) -> Option<String> {
        Operator::random(self)
    }
    fn samples(&self) -> Option<Vec<Sample>> {
        Operator::samples(self)
    }
    fn read(&self, ctx: &Ctx<'_>, samples: &[usize]) -> Result<ReadBatch<Vec<Value>>, OpError> {
        Ok(Operator::read(self, ctx, samples)?.map(|(read, out)| (read, out.erase())))
    }
    fn external(&self) -> Vec<External> {
        Operator::external(self)
    }
    fn part(&self) -> Part {
        Operator::part(self)
    }
    fn restated(&self, old: &serde_json::Value, restart: &Restart<'_>) -> Option<Restated> {
        let old = serde_json::from_value::<O::Settings>(old.clone()).ok()?;
        Operator::restated(self, &old, restart)
    }
    fn forward(&self, ctx: &Ctx<'_>, inputs: &[Vec<Value>]) -> Result<(Vec<Value>, Residuals), OpError> {
        let (out, saved) = Operator::forward(self, ctx, O::In::unerase(inputs))?;
        Ok((out.erase(), Box::new(saved)))
    }
    fn backward(
        &self,
        ctx: &Ctx<'_>,
        wanted: Wanted<'_>,
        saved: Residuals,
        grads: &[Option<Value>],
    ) -> Result<Vec<Vec<Option<Value>>>, OpError> {
        let saved =
            *saved.downcast::<O::Saved>().map_err(|_| OpError::internal("residuals of another operator"))?;
        Ok(O::In::erase_grads(Operator::backward(self, ctx, wanted, saved, O::Out::unerase_grads(grads))?))
    }
}
