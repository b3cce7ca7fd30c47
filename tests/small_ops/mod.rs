//! A handful of cheap operators, to test what is around operators. `N` is the number of values of a vector.
#![allow(dead_code, missing_docs, reason = "every test file uses another part of it")]

use std::path::Path;

use dfdx::{
    shapes::HasShape,
    tensor::{AsArray, TensorFromVec},
};
use prefgraph::{
    Registry,
    spec::{Loaded, SpecError, load_text},
};
use prefgraph_ops::{
    Ctx, DataPath, Grad, Nothing, OpError, Operator, Scalar, T, Wanted, choices,
    operator::{InGrads, InShapes, OutGrads, OutShapes},
    ports::{Effect, Effects, EffectsShape, Metrics, MetricsShape},
    settings,
    tensor::host,
};

/// `[N]`.
pub type Vector = T<(usize,)>;

fn vector(values: Vec<f32>) -> Vector {
    let n = values.len();
    host().tensor_from_vec(values, (n,))
}

choices! {
    /// Where numbers come from.
    pub enum Kind {
        /// All alike.
        Same = "same",
        /// Standard normal, new in every step.
        Random = "random",
    }
}

settings! {
    /// Settings of [`Source`].
    pub struct SourceSettings {
        /// Number of values.
        pub size: usize = 3,
        /// Value, where all are alike.
        pub level: f32 = 1.0,
        /// Where the numbers come from.
        pub kind: Kind = Kind::Same,
        /// A file; it is not read.
        pub file: DataPath = DataPath::default(),
        /// Files; they are not read.
        pub files: Option<Vec<DataPath>> = None,
        /// Words.
        pub words: Vec<String> = vec!["a".into()],
    }
}

pub struct Source(SourceSettings);

impl Operator for Source {
    const NAME: &'static str = "source";
    const DOC: &'static str = "Numbers.";
    const IN: [&'static str; 0] = [];
    const OUT: [&'static str; 1] = ["out"];
    type Settings = SourceSettings;
    type In = ();
    type Out = (Vector,);
    type Saved = ();
    const DIFFERENTIABLE: bool = false;

    fn new(settings: SourceSettings) -> Result<Self, OpError> {
        match settings.size {
            0 => Err(OpError::new("`size` is 0, it must be at least 1")),
            666 => panic!("a defect of this operator"),
            _ => Ok(Self(settings)),
        }
    }
    fn shapes(&self, (): InShapes<Self>, _: usize) -> Result<OutShapes<Self>, OpError> {
        Ok(((self.0.size,),))
    }
    fn exports(&self) -> Vec<(String, serde_json::Value)> {
        vec![
            ("double".into(), (2 * self.0.size).into()),
            ("title".into(), "it's".into()),
            ("way".into(), "random".into()),
            ("no_files".into(), serde_json::Value::Null),
        ]
    }
    fn forward(&self, ctx: &Ctx<'_>, (): ()) -> Result<((Vector,), ()), OpError> {
        let values = match self.0.kind {
            Kind::Same => vec![self.0.level; self.0.size],
            Kind::Random => ctx.random("values").normals(self.0.size),
        };
        Ok(((vector(values),), ()))
    }
}

/// Sum of one to three vectors.
pub struct Add;

impl Operator for Add {
    const NAME: &'static str = "add";
    const DOC: &'static str = "Sum of vectors.";
    const IN: [&'static str; 3] = ["a", "b", "more"];
    const OUT: [&'static str; 1] = ["out"];
    type Settings = Nothing;
    type In = (Vector, Option<Vector>, Vec<Vector>);
    type Out = (Vector,);
    type Saved = (bool, usize);
    const DIFFERENTIABLE: bool = true;

    fn new(_: Nothing) -> Result<Self, OpError> {
        Ok(Self)
    }
    fn shapes(&self, (a, b, more): InShapes<Self>, _: usize) -> Result<OutShapes<Self>, OpError> {
        for other in b.iter().chain(&more) {
            if *other != a {
                return Err(OpError::new(format!("`a` has {} values, another input {}", a.0, other.0)));
            }
        }
        Ok((a,))
    }
    fn forward(&self, _: &Ctx<'_>, (a, b, more): Self::In) -> Result<((Vector,), (bool, usize)), OpError> {
        let mut sum = a.as_vec();
        for other in b.iter().chain(&more) {
            sum.iter_mut().zip(other.as_vec()).for_each(|(s, o)| *s += o);
        }
        Ok(((vector(sum),), (b.is_some(), more.len())))
    }
    fn backward(
        &self,
        _: &Ctx<'_>,
        _: Wanted<'_>,
        (b, more): (bool, usize),
        (g,): OutGrads<Self>,
    ) -> Result<InGrads<Self>, OpError> {
        Ok((g.clone(), g.clone().filter(|_| b), vec![g; more]))
    }
}

/// Half the squared length of a vector.
pub struct Loss;

impl Operator for Loss {
    const NAME: &'static str = "square-loss";
    const DOC: &'static str = "Half the squared length.";
    const IN: [&'static str; 1] = ["x"];
    const OUT: [&'static str; 2] = ["loss", "metrics"];
    type Settings = Nothing;
    type In = (Vector,);
    type Out = (Scalar, Metrics);
    type Saved = Vector;
    const DIFFERENTIABLE: bool = true;

    fn new(_: Nothing) -> Result<Self, OpError> {
        Ok(Self)
    }
    fn shapes(&self, _: InShapes<Self>, _: usize) -> Result<OutShapes<Self>, OpError> {
        Ok(((), MetricsShape))
    }
    fn forward(&self, _: &Ctx<'_>, (x,): (Vector,)) -> Result<((Scalar, Metrics), Vector), OpError> {
        let loss: f32 = x.as_vec().iter().map(|v| v * v / 2.0).sum();
        let mut metrics = Metrics::default();
        metrics.number("loss", f64::from(loss));
        metrics.per_sample("values", x.as_vec().iter().map(|v| f64::from(*v)).collect());
        Ok(((host().tensor_from_vec(vec![loss], ()), metrics), x))
    }
    fn backward(
        &self,
        _: &Ctx<'_>,
        _: Wanted<'_>,
        x: Vector,
        (g, _): OutGrads<Self>,
    ) -> Result<InGrads<Self>, OpError> {
        Ok((g.map(|g| vector(x.as_vec().iter().map(|v| v * g.array()).collect())),))
    }
}

settings! {
    /// Settings of [`Descend`].
    pub struct DescendSettings {
        /// Learning rate.
        pub lr: f32 = 0.1,
        /// Steps of the run.
        pub steps: u64 = 1,
    }
}

/// One step downhill.
pub struct Descend(DescendSettings);

impl Operator for Descend {
    const NAME: &'static str = "descend";
    const DOC: &'static str = "One step downhill.";
    const IN: [&'static str; 2] = ["x", "grad"];
    const OUT: [&'static str; 2] = ["x", "metrics"];
    type Settings = DescendSettings;
    type In = (Vector, Grad<Vector>);
    type Out = (Vector, Metrics);
    type Saved = ();
    const DIFFERENTIABLE: bool = false;

    fn new(settings: DescendSettings) -> Result<Self, OpError> {
        Ok(Self(settings))
    }
    fn shapes(&self, (x, _): InShapes<Self>, _: usize) -> Result<OutShapes<Self>, OpError> {
        Ok((x, MetricsShape))
    }
    fn forward(&self, _: &Ctx<'_>, (x, g): Self::In) -> Result<((Vector, Metrics), ()), OpError> {
        let mut values = x.as_vec();
        if let Some(g) = g.0 {
            values.iter_mut().zip(g.as_vec()).for_each(|(v, g)| *v -= self.0.lr * g);
        }
        let mut metrics = Metrics::default();
        metrics.number("lr", f64::from(self.0.lr));
        metrics.number("length", HasShape::shape(&x).0 as f64);
        Ok(((vector(values), metrics), ()))
    }
}

/// Everything measured, as a line of the log.
pub struct Log;

impl Operator for Log {
    const NAME: &'static str = "note";
    const DOC: &'static str = "A line of the log.";
    const IN: [&'static str; 1] = ["metrics"];
    const OUT: [&'static str; 1] = ["effects"];
    type Settings = Nothing;
    type In = (Vec<Metrics>,);
    type Out = (Effects,);
    type Saved = ();
    const DIFFERENTIABLE: bool = false;

    fn new(_: Nothing) -> Result<Self, OpError> {
        Ok(Self)
    }
    fn shapes(&self, _: InShapes<Self>, _: usize) -> Result<OutShapes<Self>, OpError> {
        Ok((EffectsShape::default(),))
    }
    fn forward(&self, _: &Ctx<'_>, (all,): Self::In) -> Result<((Effects,), ()), OpError> {
        let all = Metrics(all.into_iter().flat_map(|m| m.0).collect());
        Ok(((Effects(vec![Effect::Record(all)]),), ()))
    }
}

pub fn registry() -> Registry {
    let mut registry = Registry::empty();
    registry
        .register::<Source>()
        .register::<Add>()
        .register::<Loss>()
        .register::<Descend>()
        .register::<Log>();
    registry
}

pub fn load(text: &str, sets: &[&str]) -> Result<Loaded, Box<SpecError>> {
    let sets: Vec<String> = sets.iter().map(|s| (*s).to_owned()).collect();
    load_text("test.ron", text, Path::new("/data"), &sets, &registry())
}

/// A graph that learns: `x` goes to minus `noise`.
pub const GRAPH: &str = r#"// Downhill.
Graph(
    name: "downhill",
    nodes: [
        (id: "x", op: "source", with: (size: 4, level: 2.0)),
        (id: "noise", op: "source", with: (size: "@x.size", kind: random)),
        (id: "sum", op: "add", in: (a: "x", b: "noise")),
        (id: "loss", op: "square-loss", in: (x: "sum")),
        (id: "update", op: "descend", in: (x: "x", grad: "grad:x"), with: (lr: 0.5, steps: "@run.steps")),
        (id: "log", op: "note", in: (metrics: ["loss.metrics", "update.metrics"])),
    ],
    loss: "loss.loss",
    carry: {"x": "update.x"},
    run: (steps: 7, checkpoint_every: 2),
)
"#;

/// A graph of this many nodes, at least eight: a chain, half of whose links are cells of their own, and a star.
pub fn large(nodes: usize) -> String {
    let mut text = String::from("Graph(name: \"large\", nodes: [\n(id: \"y0\", op: \"source\"),\n");
    let mut carry = String::new();
    let links = (nodes - 4) / 2;
    for k in 1..=links {
        let before = k - 1;
        text += &format!("(id: \"c{k}\", op: \"source\", with: (size: \"@y0.size\", level: {k})),\n");
        text += &format!("(id: \"y{k}\", op: \"add\", in: (a: \"y{before}\", b: \"c{k}\")),\n");
        if k % 2 == 0 {
            carry += &format!("\"c{k}\": \"y{k}\", ");
        }
    }
    let star: Vec<String> = (1..=links).map(|k| format!("\"c{k}\"")).collect();
    text += &format!("(id: \"star\", op: \"add\", in: (a: \"y{links}\", more: [{}])),\n", star.join(", "));
    text += "(id: \"loss\", op: \"square-loss\", in: (x: \"star\")),\n";
    text += "(id: \"update\", op: \"descend\", in: (x: \"y0\", grad: \"grad:y0\")),\n";
    text + &format!("], loss: \"loss.loss\", carry: {{{carry}\"y0\": \"update.x\"}})")
}

/// The same nodes over again, as a graph that extends `parent`: every second one is changed, and the star is removed.
pub fn large_child(nodes: usize, parent: &str) -> String {
    let links = (nodes - 4) / 2;
    let changed: String = (1..=links).map(|k| format!("(id: \"c{k}\", with: (level: 2.0)),\n")).collect();
    format!(
        "Graph(extends: {parent:?}, remove: [\"star\"], nodes: [\n{changed}(id: \"loss\", in: (x: \"y{links}\"))])"
    )
}
