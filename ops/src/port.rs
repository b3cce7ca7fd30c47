//! Ports: the kinds of values that edges carry.

use std::{any::TypeId, fmt, sync::Arc};

use dfdx::tensor::{Cpu, Tensor};

use crate::{
    error::OpError,
    rows::SampleRows,
    shape::{ErasedShape, PortShape},
};

pub use crate::state::{NamedState, NamedTensor, Value};

/// A tensor whose axes are part of its type: dfdx's, on the host.
pub type T<S> = Tensor<S, f32, Cpu>;
/// The type of a loss.
pub type Scalar = T<()>;

/// A value that can travel along an edge. The type is the port's contract; its [`Shape`](Port::Shape) holds what
/// only a run knows.
pub trait Port: Clone + Send + Sync + 'static {
    /// Cotangent of this value; [`NoGrad`] where a derivative makes no sense.
    type Grad: Cotangent;
    /// What is known of a value before it exists.
    type Shape: PortShape;

    /// The type as people read it in errors and listings, e.g. `f32[_,16,_,_]`.
    fn label() -> String;
    /// The shape of this value.
    fn shape(&self) -> Self::Shape;
    /// How a value is kept from step to step and in checkpoints, for kinds that can be.
    fn carry() -> Option<Carry> {
        None
    }
    /// The rows of a value, one a sample, for kinds that have them.
    fn rows() -> Option<SampleRows> {
        None
    }
    /// A value that can answer what its shape says and nothing else, for kinds where that is possible.
    fn hollow(shape: &Self::Shape) -> Option<Self> {
        let _ = shape;
        None
    }

    #[doc(hidden)]
    fn port_type() -> PortType {
        PortType::without_role::<Self>()
    }
    #[doc(hidden)]
    fn erase(self) -> Value {
        Arc::new(self)
    }
    #[doc(hidden)]
    fn unerase(value: &Value) -> Self {
        downcast(value)
    }
}

/// An element of the dual space: all that reverse mode asks of it is addition.
pub trait Cotangent: Clone + Send + Sync + 'static {
    /// `self + other`.
    ///
    /// # Errors
    /// If the two have different shapes, which is a defect of the operator that made one of them.
    fn add(self, other: Self) -> Result<Self, OpError>;
    /// Bytes held.
    fn bytes(&self) -> usize;
    /// Its components, in the order in which [`Carried::save`] lists those of the value.
    ///
    /// # Errors
    /// If it lives on a device that fails.
    fn components(&self) -> Result<Vec<f32>, OpError>;
}

/// Cotangent of a discrete port. It has no values, so that no gradient crosses such an edge is a theorem.
#[derive(Clone, Debug)]
pub enum NoGrad {}

impl Cotangent for NoGrad {
    fn add(self, _: Self) -> Result<Self, OpError> {
        match self {}
    }
    fn bytes(&self) -> usize {
        match *self {}
    }
    fn components(&self) -> Result<Vec<f32>, OpError> {
        match *self {}
    }
}

/// The cotangent of a `P` as an input of an update operator; `None` is zero.
#[derive(Clone)]
pub struct Grad<P: Port>(pub Option<P::Grad>);

/// The shape of a [`Grad`]: that of the value.
#[derive(Clone, Debug, PartialEq)]
pub struct GradShape<S>(pub S);

impl<S: PortShape> PortShape for GradShape<S> {
    fn describe(&self) -> String {
        format!("grad {}", self.0.describe())
    }
    fn bytes(&self) -> usize {
        self.0.bytes()
    }
}

impl<P: Port> Port for Grad<P> {
    type Grad = NoGrad;
    type Shape = GradShape<P::Shape>;

    fn label() -> String {
        format!("grad {}", P::label())
    }
    fn shape(&self) -> Self::Shape {
        unreachable!("a cotangent is an input only, and inputs are described by their producers")
    }
    // A role names the value, not its cotangent's type: with and without one, the edge carries the same `P::Grad`.
    fn port_type() -> PortType {
        let of = P::port_type();
        PortType { id: of.grad_id, role: of.role, ..PortType::without_role::<Self>() }
    }
    fn erase(self) -> Value {
        grad_value(self.0.map(|grad| Arc::new(grad) as Value))
    }
    fn unerase(value: &Value) -> Self {
        Self(downcast::<Option<Value>>(value).as_ref().map(downcast::<P::Grad>))
    }
}

/// A cotangent, or zero, as the value of a [`Grad`] input.
pub fn grad_value(cotangent: Option<Value>) -> Value {
    Arc::new(cotangent)
}

/// A port whose values can outlive a step.
pub trait Carried: Port {
    /// As named tensors and counters.
    ///
    /// # Errors
    /// If the value lives on a device that fails.
    fn save(&self) -> Result<NamedState, OpError>;
    /// The value of this shape that [`save`](Self::save) gave.
    ///
    /// # Errors
    /// If the state is of another kind or shape.
    fn restore(shape: &Self::Shape, state: &NamedState) -> Result<Self, OpError>;
}

/// [`Carried`] for a type known at run time only.
#[derive(Clone, Copy)]
pub struct Carry {
    /// See [`Carried::save`].
    pub save: fn(&Value) -> Result<NamedState, OpError>,
    /// See [`Carried::restore`].
    pub restore: fn(&ErasedShape, &NamedState) -> Result<Value, OpError>,
}

impl Carry {
    /// That of `P`.
    pub fn of<P: Carried>() -> Self {
        Self {
            save: |value| take::<P>(value).save(),
            restore: |shape, state| {
                let shape =
                    shape.get::<P::Shape>().ok_or_else(|| OpError::internal("shape of another port"))?;
                Ok(P::restore(shape, state)?.erase())
            },
        }
    }
}

/// Run-time image of a [`Port`] type.
#[derive(Clone)]
pub struct PortType {
    id: TypeId,
    grad_id: TypeId,
    /// Is a cotangent of it a value of it, as with tensors?
    pub(crate) self_dual: bool,
    /// What the value is for, where the type says so: see [`Role`](crate::Role).
    pub role: Option<&'static str>,
    /// See [`Port::label`].
    pub label: String,
    /// See [`Port::carry`].
    pub carry: Option<Carry>,
    /// See [`Port::rows`].
    pub rows: Option<SampleRows>,
    /// See [`Port::hollow`].
    pub hollow: fn(&ErasedShape) -> Option<Value>,
    /// Can a cotangent of it exist?
    pub differentiable: bool,
    /// Sum of two cotangents.
    pub add: fn(Value, Value) -> Result<Value, OpError>,
    /// Shape of a value.
    pub shape_of: fn(&Value) -> ErasedShape,
    /// Shape of a [`Grad`] input, from the shape of the value.
    pub grad_shape: fn(&ErasedShape) -> ErasedShape,
    /// Bytes of a cotangent.
    pub grad_bytes: fn(&Value) -> usize,
    /// See [`Cotangent::components`].
    pub grad_components: fn(&Value) -> Result<Vec<f32>, OpError>,
}

impl PortType {
    /// The image of `P`.
    pub fn of<P: Port>() -> Self {
        P::port_type()
    }

    fn without_role<P: Port>() -> Self {
        Self {
            id: TypeId::of::<P>(),
            grad_id: TypeId::of::<Grad<P>>(),
            self_dual: TypeId::of::<P>() == TypeId::of::<P::Grad>(),
            role: None,
            label: P::label(),
            carry: P::carry(),
            rows: P::rows(),
            hollow: |s| P::hollow(s.get::<P::Shape>()?).map(P::erase),
            differentiable: TypeId::of::<P::Grad>() != TypeId::of::<NoGrad>(),
            add: |a, b| Ok(Arc::new(downcast::<P::Grad>(&a).add(downcast::<P::Grad>(&b))?)),
            shape_of: |v| ErasedShape::new(take::<P>(v).shape()),
            grad_shape: |s| {
                ErasedShape::new(GradShape(s.get::<P::Shape>().expect("a port has its own shape").clone()))
            },
            grad_bytes: |g| downcast::<P::Grad>(g).bytes(),
            grad_components: |g| downcast::<P::Grad>(g).components(),
        }
    }

    /// The same type with a role; `label` names both.
    pub(crate) fn in_role(self, role: &'static str, label: String) -> Self {
        Self { role: Some(role), label, ..self }
    }

    /// A shape of this type as people read it, after its role: `target f32[8,16,24,24]`.
    pub fn describe(&self, shape: &ErasedShape) -> String {
        match self.role {
            Some(role) => format!("{role} {}", shape.describe()),
            None => shape.describe(),
        }
    }

    /// Is this the port type of a loss?
    pub fn is_scalar(&self) -> bool {
        self.id == TypeId::of::<Scalar>()
    }

    /// Does a value of type `self` fit an input of type `input`? Roles must agree where both have one.
    pub fn fits(&self, input: &Self) -> bool {
        self.id == input.id && self.role_fits(input)
    }

    /// Does the cotangent of a value of type `self` fit an input of type `input`?
    pub fn cotangent_fits(&self, input: &Self) -> bool {
        self.grad_id == input.id && self.role_fits(input)
    }

    /// Would a value of type `self` fit an input of type `input`, were it not for their roles?
    pub fn differs_in_role(&self, input: &Self) -> bool {
        self.id == input.id && !self.role_fits(input)
    }

    fn role_fits(&self, input: &Self) -> bool {
        self.role.is_none() || input.role.is_none() || self.role == input.role
    }
}

/// The same type and the same role.
impl PartialEq for PortType {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id && self.role == other.role
    }
}

impl fmt::Display for PortType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.label)
    }
}

impl fmt::Debug for PortType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.label)
    }
}

/// The typed value: a downcast that edges have already proved to succeed.
///
/// # Panics
/// If `value` is no `P`, which is a defect of this library.
pub fn take<P: Port>(value: &Value) -> P {
    P::unerase(value)
}

/// The typed cotangent of a `P`, likewise.
///
/// # Panics
/// If `value` is no cotangent of a `P`, which is a defect of this library.
pub fn take_grad<P: Port>(value: &Value) -> P::Grad {
    downcast(value)
}

fn downcast<V: Clone + 'static>(value: &Value) -> V {
    value.downcast_ref::<V>().expect("edge types are checked when an edge is added").clone()
}
