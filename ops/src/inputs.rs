//! Tuples of ports: the inputs and outputs of a node.
//!
//! An element of an input tuple is a port `P` (required), `Option<P>` (may be left unconnected) or `Vec<P>` (any
//! number of wires). Erased, each is a list of values: one, none or one, any number.

use std::sync::Arc;

use crate::{
    port::{Port, PortType, Value, take, take_grad},
    shape::ErasedShape,
};

/// How many wires an input takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arity {
    /// Exactly one.
    One,
    /// None or one.
    Optional,
    /// Any number.
    Many,
}

/// Name, type and arity of an input.
#[derive(Clone, Debug)]
pub struct InputSpec {
    /// Unique in its operator.
    pub name: &'static str,
    /// Of each wire.
    pub ty: PortType,
    /// How many wires.
    pub arity: Arity,
}

/// Name and type of an output.
#[derive(Clone, Debug)]
pub struct OutputSpec {
    /// Unique in its operator.
    pub name: &'static str,
    /// Of the value.
    pub ty: PortType,
}

/// One element of an input tuple.
pub trait Input: Sized + Send + 'static {
    /// The port that each wire carries.
    type Port: Port;
    /// The shape, the optional shape, or the list of shapes.
    type Shape: Clone;
    /// The cotangent, or the list of cotangents; `None` is zero.
    type Grad;
    /// How many wires.
    const ARITY: Arity;

    #[doc(hidden)]
    fn erase(self) -> Vec<Value>;
    #[doc(hidden)]
    fn unerase(values: &[Value]) -> Self;
    #[doc(hidden)]
    fn unerase_shape(shapes: &[ErasedShape]) -> Self::Shape;
    #[doc(hidden)]
    fn erase_grad(grad: Self::Grad) -> Vec<Option<Value>>;
    #[doc(hidden)]
    fn no_grad() -> Self::Grad;
}

fn typed<P: Port>(shape: &ErasedShape) -> P::Shape {
    shape.get::<P::Shape>().expect("edge types are checked when an edge is added").clone()
}

fn erased<G: Clone + Send + Sync + 'static>(grad: Option<G>) -> Option<Value> {
    grad.map(|g| Arc::new(g) as Value)
}

impl<P: Port> Input for P {
    type Port = P;
    type Shape = P::Shape;
    type Grad = Option<P::Grad>;
    const ARITY: Arity = Arity::One;

    fn erase(self) -> Vec<Value> {
        vec![Port::erase(self)]
    }
    fn unerase(values: &[Value]) -> Self {
        take(&values[0])
    }
    fn unerase_shape(shapes: &[ErasedShape]) -> P::Shape {
        typed::<P>(&shapes[0])
    }
    fn erase_grad(grad: Self::Grad) -> Vec<Option<Value>> {
        vec![erased(grad)]
    }
    fn no_grad() -> Self::Grad {
        None
    }
}

impl<P: Port> Input for Option<P> {
    type Port = P;
    type Shape = Option<P::Shape>;
    type Grad = Option<P::Grad>;
    const ARITY: Arity = Arity::Optional;

    fn erase(self) -> Vec<Value> {
        self.into_iter().map(Port::erase).collect()
    }
    fn unerase(values: &[Value]) -> Self {
        values.first().map(take)
    }
    fn unerase_shape(shapes: &[ErasedShape]) -> Self::Shape {
        shapes.first().map(typed::<P>)
    }
    fn erase_grad(grad: Self::Grad) -> Vec<Option<Value>> {
        vec![erased(grad)]
    }
    fn no_grad() -> Self::Grad {
        None
    }
}

impl<P: Port> Input for Vec<P> {
    type Port = P;
    type Shape = Vec<P::Shape>;
    type Grad = Vec<Option<P::Grad>>;
    const ARITY: Arity = Arity::Many;

    fn erase(self) -> Vec<Value> {
        self.into_iter().map(Port::erase).collect()
    }
    fn unerase(values: &[Value]) -> Self {
        values.iter().map(take).collect()
    }
    fn unerase_shape(shapes: &[ErasedShape]) -> Self::Shape {
        shapes.iter().map(typed::<P>).collect()
    }
    fn erase_grad(grad: Self::Grad) -> Vec<Option<Value>> {
        grad.into_iter().map(erased).collect()
    }
    fn no_grad() -> Self::Grad {
        Vec::new()
    }
}

/// A tuple of [`Input`]s.
pub trait Inputs: Sized + Send + 'static {
    /// `[&str; N]`, so that a name too many or too few is a type error.
    type Names: IntoIterator<Item = &'static str>;
    /// The same tuple with every element replaced by its shape.
    type Shapes;
    /// The same tuple with every element replaced by its cotangent.
    type Grads;

    /// Types and arities, under these names.
    fn specs(names: Self::Names) -> Vec<InputSpec>;
    /// Cotangents that are all zero.
    fn no_grads() -> Self::Grads;
    #[doc(hidden)]
    fn erase(self) -> Vec<Vec<Value>>;
    #[doc(hidden)]
    fn unerase(values: &[Vec<Value>]) -> Self;
    #[doc(hidden)]
    fn unerase_shapes(shapes: &[Vec<ErasedShape>]) -> Self::Shapes;
    #[doc(hidden)]
    fn erase_grads(grads: Self::Grads) -> Vec<Vec<Option<Value>>>;
}

/// A tuple of [`Port`]s.
pub trait Outputs: Sized + Send + 'static {
    /// `[&str; N]`, so that a name too many or too few is a type error.
    type Names: IntoIterator<Item = &'static str>;
    /// The same tuple with every port replaced by its shape.
    type Shapes;
    /// The same tuple with every port replaced by its cotangent, if it is not zero.
    type Grads;

    /// Types, under these names.
    fn specs(names: Self::Names) -> Vec<OutputSpec>;
    #[doc(hidden)]
    fn erase(self) -> Vec<Value>;
    #[doc(hidden)]
    fn erase_shapes(shapes: Self::Shapes) -> Vec<ErasedShape>;
    #[doc(hidden)]
    fn unerase_shapes(shapes: &[ErasedShape]) -> Self::Shapes;
    #[doc(hidden)]
    fn unerase_grads(grads: &[Option<Value>]) -> Self::Grads;
}

macro_rules! tuples {
    ($len:literal; $($P:ident $i:tt),*) => {
        #[allow(unused_variables, non_snake_case, clippy::unused_unit, reason = "the tuple of no ports")]
        impl<$($P: Input),*> Inputs for ($($P,)*) {
            type Names = [&'static str; $len];
            type Shapes = ($($P::Shape,)*);
            type Grads = ($($P::Grad,)*);

            fn specs(names: Self::Names) -> Vec<InputSpec> {
                vec![$(InputSpec { name: names[$i], ty: PortType::of::<$P::Port>(), arity: $P::ARITY }),*]
            }
            fn no_grads() -> Self::Grads {
                ($($P::no_grad(),)*)
            }
            fn erase(self) -> Vec<Vec<Value>> {
                let ($($P,)*) = self;
                vec![$(Input::erase($P)),*]
            }
            fn unerase(values: &[Vec<Value>]) -> Self {
                ($(<$P as Input>::unerase(&values[$i]),)*)
            }
            fn unerase_shapes(shapes: &[Vec<ErasedShape>]) -> Self::Shapes {
                ($($P::unerase_shape(&shapes[$i]),)*)
            }
            fn erase_grads(grads: Self::Grads) -> Vec<Vec<Option<Value>>> {
                let ($($P,)*) = grads;
                vec![$(<$P as Input>::erase_grad($P)),*]
            }
        }

        #[allow(unused_variables, non_snake_case, clippy::unused_unit, reason = "the tuple of no ports")]
        impl<$($P: Port),*> Outputs for ($($P,)*) {
            type Names = [&'static str; $len];
            type Shapes = ($($P::Shape,)*);
            type Grads = ($(Option<$P::Grad>,)*);

            fn specs(names: Self::Names) -> Vec<OutputSpec> {
                vec![$(OutputSpec { name: names[$i], ty: PortType::of::<$P>() }),*]
            }
            fn erase(self) -> Vec<Value> {
                let ($($P,)*) = self;
                vec![$(Port::erase($P)),*]
            }
            fn erase_shapes(shapes: Self::Shapes) -> Vec<ErasedShape> {
                let ($($P,)*) = shapes;
                vec![$(ErasedShape::new($P)),*]
            }
            fn unerase_shapes(shapes: &[ErasedShape]) -> Self::Shapes {
                ($(typed::<$P>(&shapes[$i]),)*)
            }
            fn unerase_grads(grads: &[Option<Value>]) -> Self::Grads {
                ($(grads[$i].as_ref().map(take_grad::<$P>),)*)
            }
        }
    };
}
tuples!(0;);
tuples!(1; A 0);
tuples!(2; A 0, B 1);
tuples!(3; A 0, B 1, C 2);
tuples!(4; A 0, B 1, C 2, D 3);
tuples!(5; A 0, B 1, C 2, D 3, E 4);
tuples!(6; A 0, B 1, C 2, D 3, E 4, F 5);
tuples!(7; A 0, B 1, C 2, D 3, E 4, F 5, G 6);
tuples!(8; A 0, B 1, C 2, D 3, E 4, F 5, G 6, H 7);
tuples!(9; A 0, B 1, C 2, D 3, E 4, F 5, G 6, H 7, I 8);
tuples!(10; A 0, B 1, C 2, D 3, E 4, F 5, G 6, H 7, I 8, J 9);
tuples!(11; A 0, B 1, C 2, D 3, E 4, F 5, G 6, H 7, I 8, J 9, K 10);
tuples!(12; A 0, B 1, C 2, D 3, E 4, F 5, G 6, H 7, I 8, J 9, K 10, L 11);
tuples!(13; A 0, B 1, C 2, D 3, E 4, F 5, G 6, H 7, I 8, J 9, K 10, L 11, M 12);
