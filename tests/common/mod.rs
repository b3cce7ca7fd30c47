//! Small operators for tests of graphs, plans and runs.
#![allow(dead_code, unreachable_pub, reason = "every test file uses some of it")]

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use dfdx::{
    tensor::{AsArray, TensorFromVec},
    tensor_ops::{TryAdd, TryMul, TrySub},
};
use prefgraph::{Endpoint, Graph, Plan, PlanOptions, RunOptions, Runner, Wire};
use prefgraph_ops::{
    Cost, Ctx, Grad, NoGrad, OpError, Operator, Port, PortShape, Scalar, T, Wanted,
    operator::{InGrads, InShapes, OutGrads, OutShapes},
    ports::{Effect, Effects, EffectsShape, Metrics},
    tensor::host,
};

/// Rows and columns that only a run knows.
pub type Matrix = T<(usize, usize)>;

pub fn matrix(values: Vec<f32>, rows: usize, columns: usize) -> Matrix {
    host().tensor_from_vec(values, (rows, columns))
}

pub fn cpu() -> prefgraph_nn::Cpu {
    prefgraph_nn::Cpu::new(2).unwrap()
}

pub fn options(lanes: usize, ahead: usize) -> PlanOptions {
    PlanOptions { lanes, ahead, ..PlanOptions::default() }
}

pub fn runner(graph: &Arc<Graph>, lanes: usize, ahead: usize, seed: u64) -> Runner {
    let plan = Plan::new(graph, &options(lanes, ahead)).unwrap();
    Runner::new(graph.clone(), plan, RunOptions::new(seed, cpu())).unwrap()
}

/// Everything of an operator that is the same for all of these.
#[macro_export]
macro_rules! operator {
    ($type:ty, $name:literal, $in:tt: [$($ins:literal),*] -> $out:tt: [$($outs:literal),*], $diff:literal) => {
        const NAME: &'static str = $name;
        const DOC: &'static str = "For tests.";
        const IN: prefgraph_ops::operator::InNames<Self> = [$($ins),*];
        const OUT: prefgraph_ops::operator::OutNames<Self> = [$($outs),*];
        const DIFFERENTIABLE: bool = $diff;
        type Settings = prefgraph_ops::settings::Nothing;
        type In = $in;
        type Out = $out;
        fn new(_: prefgraph_ops::settings::Nothing) -> Result<Self, OpError> {
            Err(OpError::new("made by tests only"))
        }
    };
}

/// Normal numbers, other ones at every step.
pub struct Data(pub usize, pub usize);
impl Operator for Data {
    operator!(Data, "data", (): [] -> (Matrix,): ["x"], false);
    type Saved = ();
    fn shapes(&self, (): (), _: usize) -> Result<OutShapes<Self>, OpError> {
        Ok(((self.0, self.1),))
    }
    fn cost(&self, (): &(), _: &OutShapes<Self>) -> Cost {
        Cost { forward_flops: 1e6, ..Cost::default() }
    }
    fn forward(&self, ctx: &Ctx<'_>, (): ()) -> Result<((Matrix,), ()), OpError> {
        Ok(((matrix(ctx.random("x").normals(self.0 * self.1), self.0, self.1),), ()))
    }
}

/// A cell of normal numbers.
pub struct Weights(pub usize, pub usize);
impl Operator for Weights {
    operator!(Weights, "weights", (): [] -> (Matrix,): ["w"], false);
    type Saved = ();
    fn shapes(&self, (): (), _: usize) -> Result<OutShapes<Self>, OpError> {
        Ok(((self.0, self.1),))
    }
    fn forward(&self, ctx: &Ctx<'_>, (): ()) -> Result<((Matrix,), ()), OpError> {
        if ctx.step > 0 {
            return Err(OpError::new("a cell runs once"));
        }
        Ok(((matrix(ctx.random_of_node("w").normals(self.0 * self.1), self.0, self.1),), ()))
    }
}

/// `w - 0.1 g`.
pub struct Descend;
impl Operator for Descend {
    operator!(Descend, "descend", (Matrix, Grad<Matrix>): ["w", "g"] -> (Matrix,): ["w"], false);
    type Saved = ();
    fn shapes(&self, (w, _): InShapes<Self>, _: usize) -> Result<OutShapes<Self>, OpError> {
        Ok((w,))
    }
    fn forward(&self, _: &Ctx<'_>, (w, g): Self::In) -> Result<((Matrix,), ()), OpError> {
        let Some(g) = g.0 else { return Ok(((w,), ())) };
        Ok(((w.try_sub(g.try_mul(0.1)?)?,), ()))
    }
}

/// `a * b`, element by element, with a gradient by hand that honours what is wanted.
pub struct Multiply;
impl Operator for Multiply {
    operator!(Multiply, "multiply", (Matrix, Matrix): ["a", "b"] -> (Matrix,): ["y"], true);
    type Saved = (Matrix, Matrix);
    fn shapes(&self, (a, b): InShapes<Self>, _: usize) -> Result<OutShapes<Self>, OpError> {
        if a != b {
            return Err(OpError::new(format!("`a` is {} and `b` is {}", a.describe(), b.describe())));
        }
        Ok((a,))
    }
    fn cost(&self, (a, _): &InShapes<Self>, _: &OutShapes<Self>) -> Cost {
        Cost { forward_flops: a.0 as f64 * 1e6, backward_flops: a.0 as f64 * 2e6, ..Cost::default() }
    }
    fn forward(&self, _: &Ctx<'_>, (a, b): Self::In) -> Result<((Matrix,), Self::Saved), OpError> {
        Ok(((a.clone().try_mul(b.clone())?,), (a, b)))
    }
    fn backward(
        &self,
        _: &Ctx<'_>,
        wanted: Wanted<'_>,
        (a, b): Self::Saved,
        (g,): OutGrads<Self>,
    ) -> Result<InGrads<Self>, OpError> {
        let Some(g) = g else { return Ok((None, None)) };
        let times = |on: bool, x: Matrix| on.then(|| g.clone().try_mul(x)).transpose();
        Ok((times(wanted[0], b)?, times(wanted[1], a)?))
    }
}

/// The sum of any number of matrices and, if there is one, twice a bias.
pub struct Total;
impl Operator for Total {
    operator!(Total, "total", (Vec<Matrix>, Option<Matrix>): ["terms", "bias"] -> (Matrix,): ["y"], true);
    type Saved = usize;
    fn shapes(&self, (terms, bias): InShapes<Self>, _: usize) -> Result<OutShapes<Self>, OpError> {
        let first = *terms.first().ok_or_else(|| OpError::new("it needs a term"))?;
        match terms.iter().chain(&bias).find(|s| **s != first) {
            None => Ok((first,)),
            Some(s) => Err(OpError::new(format!("a term is {}, another {}", first.describe(), s.describe()))),
        }
    }
    fn forward(&self, _: &Ctx<'_>, (terms, bias): Self::In) -> Result<((Matrix,), usize), OpError> {
        let count = terms.len();
        let mut terms = terms.into_iter();
        let mut sum = terms.next().ok_or_else(|| OpError::internal("no term"))?;
        for term in terms {
            sum = sum.try_add(term)?;
        }
        if let Some(bias) = bias {
            sum = sum.try_add(bias.try_mul(2.0)?)?;
        }
        Ok(((sum,), count))
    }
    fn backward(
        &self,
        _: &Ctx<'_>,
        wanted: Wanted<'_>,
        count: usize,
        (g,): OutGrads<Self>,
    ) -> Result<InGrads<Self>, OpError> {
        let terms = if wanted[0] { vec![g.clone(); count] } else { Vec::new() };
        let bias = g.filter(|_| wanted[1]).map(|g| g.try_mul(2.0)).transpose()?;
        Ok((terms, bias))
    }
}

/// Asks that the loss be recorded.
pub struct Record;
impl Operator for Record {
    operator!(Record, "record", (Scalar,): ["loss"] -> (Effects,): ["effects"], false);
    type Saved = ();
    fn shapes(&self, _: InShapes<Self>, _: usize) -> Result<OutShapes<Self>, OpError> {
        Ok((EffectsShape { bytes: 64 },))
    }
    fn forward(&self, _: &Ctx<'_>, (loss,): Self::In) -> Result<((Effects,), ()), OpError> {
        let mut metrics = Metrics::default();
        metrics.number("loss", f64::from(loss.array()));
        Ok(((Effects(vec![Effect::Record(metrics)]),), ()))
    }
}

/// Passes a matrix on, until it does not.
pub struct Bomb {
    pub forward_at: u64,
    pub backward_at: u64,
}
impl Operator for Bomb {
    operator!(Bomb, "bomb", (Matrix,): ["x"] -> (Matrix,): ["y"], true);
    type Saved = ();
    fn shapes(&self, (x,): InShapes<Self>, _: usize) -> Result<OutShapes<Self>, OpError> {
        Ok((x,))
    }
    fn forward(&self, ctx: &Ctx<'_>, (x,): Self::In) -> Result<((Matrix,), ()), OpError> {
        assert_ne!(ctx.step, self.forward_at, "boom");
        Ok(((x,), ()))
    }
    fn backward(
        &self,
        ctx: &Ctx<'_>,
        _: Wanted<'_>,
        (): (),
        (g,): OutGrads<Self>,
    ) -> Result<InGrads<Self>, OpError> {
        if ctx.step == self.backward_at {
            return Err(OpError::new("no way back"));
        }
        Ok((g,))
    }
}

/// A value whose copies are counted while they live.
#[derive(Debug)]
pub struct Counted(pub Arc<AtomicUsize>);
impl Clone for Counted {
    fn clone(&self) -> Self {
        self.0.fetch_add(1, Ordering::SeqCst);
        Self(self.0.clone())
    }
}
impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct CountedShape;
impl PortShape for CountedShape {
    fn describe(&self) -> String {
        "counted".into()
    }
    fn bytes(&self) -> usize {
        1_000_000
    }
}
impl Port for Counted {
    type Grad = NoGrad;
    type Shape = CountedShape;
    fn label() -> String {
        "counted".into()
    }
    fn shape(&self) -> CountedShape {
        CountedShape
    }
}

/// Makes a counted value; notes how many live after it is made.
pub struct MakeCounted(pub Arc<AtomicUsize>);
impl Operator for MakeCounted {
    operator!(MakeCounted, "make-counted", (Option<Counted>,): ["before"] -> (Counted,): ["value"], false);
    type Saved = ();
    fn shapes(&self, _: InShapes<Self>, _: usize) -> Result<OutShapes<Self>, OpError> {
        Ok((CountedShape,))
    }
    fn forward(&self, _: &Ctx<'_>, before: Self::In) -> Result<((Counted,), ()), OpError> {
        drop(before);
        self.0.fetch_add(1, Ordering::SeqCst);
        Ok(((Counted(self.0.clone()),), ()))
    }
}

/// The number of counted values alive when it runs, its own input's copies included.
pub struct CountAlive;
impl Operator for CountAlive {
    operator!(CountAlive, "count-alive", (Counted,): ["value"] -> (Scalar,): ["alive"], false);
    type Saved = ();
    fn shapes(&self, _: InShapes<Self>, _: usize) -> Result<OutShapes<Self>, OpError> {
        Ok(((),))
    }
    fn forward(&self, _: &Ctx<'_>, (value,): Self::In) -> Result<((Scalar,), ()), OpError> {
        let alive = value.0.load(Ordering::SeqCst) as f32;
        Ok(((host().tensor_from_vec(vec![alive], ()),), ()))
    }
}

/// Batches of one shape or another, in turn; or, if `lies`, of a shape that was not promised.
pub struct Turns {
    pub rows: Vec<usize>,
    pub lies: bool,
}
impl Operator for Turns {
    operator!(Turns, "turns", (): [] -> (Matrix,): ["x"], false);
    type Saved = ();
    fn variants(&self) -> usize {
        self.rows.len()
    }
    fn shapes(&self, (): (), variant: usize) -> Result<OutShapes<Self>, OpError> {
        Ok(((self.rows[variant], 3),))
    }
    fn forward(&self, ctx: &Ctx<'_>, (): ()) -> Result<((Matrix,), ()), OpError> {
        let rows = self.rows[ctx.step as usize % self.rows.len()] + usize::from(self.lies);
        Ok(((matrix(ctx.random("x").normals(3 * rows), rows, 3),), ()))
    }
}

/// The mean of the squares of a matrix.
pub fn mean_square(g: &mut Graph, id: &str, x: Wire<Matrix>) -> Wire<Scalar> {
    use dfdx::{shapes::Axes2, tensor_ops::MeanTo};
    g.op(id, (x,), |x| x.square().mean::<(), Axes2<0, 1>>())
}

/// A little of everything: two data sources, a chain that runs ahead, two cells, a diamond, a list, an optional input,
/// closures, operators by hand, effects.
pub fn everything() -> Graph {
    let mut g = Graph::new("everything");
    let (x,) = g.add("x", Data(4, 3), ());
    let (target,) = g.add("target", Data(4, 3), ());
    let (scaled,) = g.add("scaled", Multiply, (x, x));
    let (w,) = g.add("w", Weights(4, 3), ());
    let (v,) = g.add("v", Weights(4, 3), ());
    let (xw,) = g.add("xw", Multiply, (scaled, w));
    let bent = g.op("bent", (xw, v), |a, b| (a * b).tanh());
    let (sum,) = g.add("sum", Total, (vec![bent, xw, bent], Some(v)));
    let miss = g.op("miss", (sum, target), |a, b| a - b);
    let loss = mean_square(&mut g, "loss", miss);
    let (w2,) = g.add("step_w", Descend, (w, w.cotangent()));
    let (v2,) = g.add("step_v", Descend, (v, v.cotangent()));
    g.add("record", Record, (loss,));
    g.set_loss(loss);
    g.carry(w, w2);
    g.carry(v, v2);
    g
}

/// A long chain with side branches, all of it differentiated.
pub fn chain(nodes: usize) -> Graph {
    let mut g = Graph::new("chain");
    let (w,) = g.add("w", Weights(2, 2), ());
    let mut y = w;
    for k in 0..(nodes - 4) / 2 {
        let (side,) = g.add(&format!("side{k}"), Data(2, 2), ());
        (y,) = g.add(&format!("y{k}"), Multiply, (y, side));
    }
    let loss = mean_square(&mut g, "loss", y);
    let (next,) = g.add("next", Descend, (w, w.cotangent()));
    g.add("record", Record, (loss,));
    g.set_loss(loss);
    g.carry(w, next);
    g
}

/// What a run leaves behind, to the bit.
pub fn bits(runner: &mut Runner, steps: usize) -> Vec<u32> {
    let mut all = Vec::new();
    for _ in 0..steps {
        all.push(runner.step().unwrap().loss.unwrap().to_bits());
    }
    for state in runner.cells().unwrap().values() {
        all.extend(state.tensors.iter().flat_map(|t| t.values.iter().map(|v| v.to_bits())));
    }
    all
}

pub fn at(g: &Graph, path: &str) -> Endpoint {
    g.endpoint(path).unwrap()
}
