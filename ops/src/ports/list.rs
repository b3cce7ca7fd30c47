//! A run-time number of values of one kind, as one value: references, their masks, priors of several subjects.

use prefgraph_nn::size;

use crate::{
    port::{NoGrad, Port},
    rows::Rows,
    shape::PortShape,
};

/// A list of `P`; no gradient crosses it.
#[derive(Clone, Debug)]
pub struct List<P>(pub Vec<P>);

/// Shape of a [`List`].
#[derive(Clone, Debug, PartialEq)]
pub struct ListShape<S>(pub Vec<S>);

impl<S: PortShape> PortShape for ListShape<S> {
    fn describe(&self) -> String {
        let mut parts: Vec<String> = Vec::new();
        let mut items = self.0.iter().map(PortShape::describe).peekable();
        while let Some(item) = items.next() {
            let mut count = 1;
            while items.next_if_eq(&item).is_some() {
                count += 1;
            }
            parts.push(if count > 1 { format!("{count} x {item}") } else { item });
        }
        format!("[{}]", parts.join(", "))
    }
    fn bytes(&self) -> usize {
        size::sum(self.0.iter().map(PortShape::bytes))
    }
}

impl<P: Port> Port for List<P> {
    type Grad = NoGrad;
    type Shape = ListShape<P::Shape>;

    fn label() -> String {
        format!("[{}]", P::label())
    }
    fn shape(&self) -> Self::Shape {
        ListShape(self.0.iter().map(Port::shape).collect())
    }
    fn rows() -> Option<Rows> {
        Rows::of_list::<P>()
    }
}
