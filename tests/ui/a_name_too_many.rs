use prefgraph::Graph;
use prefgraph_ops::{Ctx, OpError, Operator, T, operator::{InShapes, OutShapes}, settings::Nothing};
use dfdx::shapes::Const;

type Narrow = T<(usize, Const<3>)>;
type Wide = T<(usize, Const<4>)>;

macro_rules! operator {
    ($name:ident, ($($in:ty),*), [$($i:literal),*], ($($out:ty),*), [$($o:literal),*]) => {
        struct $name;
        impl Operator for $name {
            const NAME: &'static str = "op";
            const DOC: &'static str = "";
            const IN: prefgraph_ops::operator::InNames<Self> = [$($i),*];
            const OUT: prefgraph_ops::operator::OutNames<Self> = [$($o),*];
            const DIFFERENTIABLE: bool = false;
            type Settings = Nothing;
            type In = ($($in,)*);
            type Out = ($($out,)*);
            type Saved = ();
            fn new(_: Nothing) -> Result<Self, OpError> {
                Ok(Self)
            }
            fn shapes(&self, _: InShapes<Self>, _: usize) -> Result<OutShapes<Self>, OpError> {
                unimplemented!()
            }
            fn forward(&self, _: &Ctx<'_>, _: Self::In) -> Result<(Self::Out, ()), OpError> {
                unimplemented!()
            }
        }
    };
}

operator!(Source, (), [], (Narrow), ["x", "y"]);

fn main() {
    Graph::new("bad").add("x", Source, ());
}
