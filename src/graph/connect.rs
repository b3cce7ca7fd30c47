//! Tuples of wires for tuples of ports: how `Graph::add` and `Graph::op` check connections at compile time.

use prefgraph_ops::{
    As, DynOperator, Inputs, Outputs, Port, Role,
    closure::Closure,
    inputs::Input,
    shape::Axes,
    vjp::{Traceable, Traced},
};

use super::wire::{Endpoint, NodeId, Wire};

/// What can be connected to an input `I`: a wire to `P`; a wire or an `Option` of one to `Option<P>`; a `Vec` of
/// wires to `Vec<P>`. Two roles must be the same; a single wire without one fits an input with any, and the reverse.
#[diagnostic::on_unimplemented(
    message = "a `{Self}` cannot be connected to an input of type `{I}`",
    label = "this wire carries another type, or another role, than the input takes"
)]
pub trait Connect<I: Input> {
    #[doc(hidden)]
    fn endpoints(self) -> Vec<Endpoint>;
}

macro_rules! connect {
    ([$($role:tt)*] $wire:ty => $input:ty) => {
        impl<$($role)* P: Port> Connect<$input> for Wire<$wire> {
            fn endpoints(self) -> Vec<Endpoint> {
                vec![self.endpoint()]
            }
        }

        impl<$($role)* P: Port> Connect<Option<$input>> for Wire<$wire> {
            fn endpoints(self) -> Vec<Endpoint> {
                vec![self.endpoint()]
            }
        }
    };
}
connect!([] P => P);
connect!([R: Role,] As<R, P> => P);
connect!([R: Role,] P => As<R, P>);

// Of the same role only: one implementation each is what lets the compiler infer the type of a `None` or a `vec![]`.
impl<P: Port> Connect<Option<P>> for Option<Wire<P>> {
    fn endpoints(self) -> Vec<Endpoint> {
        self.into_iter().map(Wire::endpoint).collect()
    }
}

impl<P: Port> Connect<Vec<P>> for Vec<Wire<P>> {
    fn endpoints(self) -> Vec<Endpoint> {
        self.into_iter().map(Wire::endpoint).collect()
    }
}

/// A tuple of wires that fits a tuple of inputs.
#[diagnostic::on_unimplemented(
    message = "these wires do not fit the inputs `{I}`",
    label = "one wire for each input, as a tuple: `()`, `(a,)`, `(a, b)`"
)]
pub trait ConnectAll<I: Inputs> {
    #[doc(hidden)]
    fn endpoints(self) -> Vec<Vec<Endpoint>>;
}

/// A tuple of ports that a node gives, as a tuple of wires.
pub trait Wired: Outputs {
    /// The same tuple with every port replaced by a wire.
    type Wires;

    #[doc(hidden)]
    fn wires(node: NodeId) -> Self::Wires;
}

macro_rules! tuples {
    ($($P:ident $W:ident $i:tt),*) => {
        impl<$($P: Input, $W: Connect<$P>),*> ConnectAll<($($P,)*)> for ($($W,)*) {
            fn endpoints(self) -> Vec<Vec<Endpoint>> {
                vec![$(self.$i.endpoints()),*]
            }
        }

        #[allow(unused_variables, clippy::unused_unit, reason = "the tuple of no ports")]
        impl<$($P: Port),*> Wired for ($($P,)*) {
            type Wires = ($(Wire<$P>,)*);

            fn wires(node: NodeId) -> Self::Wires {
                ($(Wire::<$P>::new(Endpoint::value(node, $i)),)*)
            }
        }
    };
}
tuples!();
tuples!(A Wa 0);
tuples!(A Wa 0, B Wb 1);
tuples!(A Wa 0, B Wb 1, C Wc 2);
tuples!(A Wa 0, B Wb 1, C Wc 2, D Wd 3);
tuples!(A Wa 0, B Wb 1, C Wc 2, D Wd 3, E We 4);
tuples!(A Wa 0, B Wb 1, C Wc 2, D Wd 3, E We 4, F Wf 5);
tuples!(A Wa 0, B Wb 1, C Wc 2, D Wd 3, E We 4, F Wf 5, G Wg 6);
tuples!(A Wa 0, B Wb 1, C Wc 2, D Wd 3, E We 4, F Wf 5, G Wg 6, H Wh 7);
tuples!(A Wa 0, B Wb 1, C Wc 2, D Wd 3, E We 4, F Wf 5, G Wg 6, H Wh 7, I Wi 8);
tuples!(A Wa 0, B Wb 1, C Wc 2, D Wd 3, E We 4, F Wf 5, G Wg 6, H Wh 7, I Wi 8, J Wj 9);
tuples!(A Wa 0, B Wb 1, C Wc 2, D Wd 3, E We 4, F Wf 5, G Wg 6, H Wh 7, I Wi 8, J Wj 9, K Wk 10);
tuples!(A Wa 0, B Wb 1, C Wc 2, D Wd 3, E We 4, F Wf 5, G Wg 6, H Wh 7, I Wi 8, J Wj 9, K Wk 10, L Wl 11);
tuples!(A Wa 0, B Wb 1, C Wc 2, D Wd 3, E We 4, F Wf 5, G Wg 6, H Wh 7, I Wi 8, J Wj 9, K Wk 10, L Wl 11, M Wm 12);

/// A tuple of wires that are the arguments of the closure `F`.
///
/// The bound on `F` stands in the implementations, one a number of arguments: that is what lets the compiler infer
/// the types of the closure's arguments.
pub trait Arguments<F> {
    /// Axes of the result.
    type Out: Axes;

    #[doc(hidden)]
    fn operator(function: F) -> Box<dyn DynOperator>;
    #[doc(hidden)]
    fn endpoints(self) -> Vec<Vec<Endpoint>>;
}

macro_rules! arguments {
    ($($P:ident $i:tt),*) => {
        impl<Func, Y: Axes, $($P: Traceable),*> Arguments<Func> for ($(Wire<$P>,)*)
        where
            Func: Fn($($P::Traced),*) -> Traced<Y> + Send + Sync + 'static,
        {
            type Out = Y;

            fn operator(function: Func) -> Box<dyn DynOperator> {
                Box::new(Closure::<($($P,)*), Func>::new("closure", function))
            }
            fn endpoints(self) -> Vec<Vec<Endpoint>> {
                vec![$(vec![self.$i.endpoint()]),*]
            }
        }
    };
}
arguments!(A 0);
arguments!(A 0, B 1);
arguments!(A 0, B 1, C 2);
arguments!(A 0, B 1, C 2, D 3);
arguments!(A 0, B 1, C 2, D 3, E 4);
arguments!(A 0, B 1, C 2, D 3, E 4, F 5);
