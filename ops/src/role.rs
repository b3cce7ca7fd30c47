//! Roles: what a value is for, where its axes do not tell.
//!
//! A prediction, its target and the noised latents that both belong to have the same axes; a graph that mixed them up
//! would train. [`As<R, P>`](As) is a port `P` in the role `R`. A wire with a role fits inputs of that role and inputs
//! without one. A value without a role, such as a closure's result, fits any input of its axes: that is how to use a
//! value in another role on purpose.

use std::ops::Deref;

use crate::{
    error::OpError,
    port::{Carried, Carry, NamedState, Port, PortType, Value},
    rows::SampleRows,
};

/// What a value is for. The shipped ones are in [`ports::role`](crate::ports::role); one of your own is three lines:
///
/// ```
/// use prefgraph_ops::{As, Port, PortType, Role, ports::Latents};
///
/// #[derive(Clone, Copy, Default)]
/// struct Velocity;
/// impl Role for Velocity {
///     const NAME: &'static str = "velocity";
/// }
///
/// assert_eq!(As::<Velocity, Latents>::label(), "velocity f32[_,_,_,_]");
/// assert!(!PortType::of::<As<Velocity, Latents>>().fits(&PortType::of::<prefgraph_ops::ports::Target>()));
/// assert!(PortType::of::<As<Velocity, Latents>>().fits(&PortType::of::<Latents>()));
/// ```
pub trait Role: Copy + Default + Send + Sync + 'static {
    /// What errors, listings and plans call it: lower case, in front of the axes.
    const NAME: &'static str;
}

/// A port `P` in the role `R`. Its shape and its cotangent are those of `P`, and so are the bytes it is kept as.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct As<R, P>(pub R, pub P);

impl<R: Role, P> From<P> for As<R, P> {
    fn from(value: P) -> Self {
        Self(R::default(), value)
    }
}

/// What can be done with a value does not depend on its role.
impl<R, P> Deref for As<R, P> {
    type Target = P;

    fn deref(&self) -> &P {
        &self.1
    }
}

impl<R: Role, P: Port> Port for As<R, P> {
    type Grad = P::Grad;
    type Shape = P::Shape;

    fn label() -> String {
        format!("{} {}", R::NAME, P::label())
    }
    fn shape(&self) -> P::Shape {
        self.1.shape()
    }
    fn carry() -> Option<Carry> {
        P::carry()
    }
    fn rows() -> Option<SampleRows> {
        P::rows()
    }
    fn hollow(shape: &P::Shape) -> Option<Self> {
        P::hollow(shape).map(Self::from)
    }

    // Erased, it is a `P`: an input without a role reads it as it is.
    fn port_type() -> PortType {
        P::port_type().in_role(R::NAME, Self::label())
    }
    fn erase(self) -> Value {
        self.1.erase()
    }
    fn unerase(value: &Value) -> Self {
        P::unerase(value).into()
    }
}

impl<R: Role, P: Carried> Carried for As<R, P> {
    fn save(&self) -> Result<NamedState, OpError> {
        self.1.save()
    }
    fn restore(shape: &P::Shape, state: &NamedState) -> Result<Self, OpError> {
        P::restore(shape, state).map(Self::from)
    }
}
