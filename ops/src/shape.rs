//! Shapes: what a plan knows about a value before it exists.
//!
//! A port's shape is a typed value: for a tensor it is the dfdx shape itself, so constant axes cost nothing and
//! cannot be wrong, and run-time axes are inferred for the whole graph before the first step.

use std::{any::Any, fmt, sync::Arc};

use dfdx::shapes::{Const, Dim, Shape};
use prefgraph_nn::size;

/// The shape of one kind of port.
pub trait PortShape: Clone + fmt::Debug + PartialEq + Send + Sync + 'static {
    /// For people, e.g. `f32[2,16,32,32]`.
    fn describe(&self) -> String;
    /// Bytes that a value of this shape holds; `usize::MAX` where there are more than that.
    fn bytes(&self) -> usize;
}

impl<S: Shape> PortShape for S {
    fn describe(&self) -> String {
        let axes: Vec<usize> = self.concrete().into();
        format!("f32{axes:?}").replace(' ', "")
    }
    fn bytes(&self) -> usize {
        let axes: Vec<usize> = self.concrete().into();
        size::product(axes.into_iter().chain([size_of::<f32>()]))
    }
}

/// An axis whose extent may be known to the compiler.
pub trait Axis: Dim {
    /// The extent, if the type fixes it.
    const EXTENT: Option<usize>;
}

impl Axis for usize {
    const EXTENT: Option<usize> = None;
}

impl<const N: usize> Axis for Const<N> {
    const EXTENT: Option<usize> = Some(N);
}

/// A dfdx shape whose axes can be listed as far as the type fixes them.
pub trait Axes: Shape {
    /// One entry an axis; `None` where it is known at run time only.
    fn extents() -> Vec<Option<usize>>;

    /// The type as people write it: `f32[_,16,_,_]`.
    fn label() -> String {
        let axes: Vec<String> =
            Self::extents().iter().map(|e| e.map_or("_".into(), |n| n.to_string())).collect();
        format!("f32[{}]", axes.join(","))
    }
}

macro_rules! axes {
    ($($D:ident),*) => {
        impl<$($D: Axis),*> Axes for ($($D,)*) {
            fn extents() -> Vec<Option<usize>> {
                vec![$($D::EXTENT),*]
            }
        }
    };
}
axes!();
axes!(A);
axes!(A, B);
axes!(A, B, C);
axes!(A, B, C, D);
axes!(A, B, C, D, E);
axes!(A, B, C, D, E, F);

/// A [`PortShape`] whose type is known at run time only. Cloning is cheap.
#[derive(Clone)]
pub struct ErasedShape(Arc<dyn AnyShape>);

trait AnyShape: Any + Send + Sync {
    fn describe(&self) -> String;
    fn bytes(&self) -> usize;
    fn same(&self, other: &dyn Any) -> bool;
    fn any(&self) -> &dyn Any;
}

impl<P: PortShape> AnyShape for P {
    fn describe(&self) -> String {
        PortShape::describe(self)
    }
    fn bytes(&self) -> usize {
        PortShape::bytes(self)
    }
    fn same(&self, other: &dyn Any) -> bool {
        other.downcast_ref::<P>() == Some(self)
    }
    fn any(&self) -> &dyn Any {
        self
    }
}

impl ErasedShape {
    /// Forget the type.
    pub fn new<P: PortShape>(shape: P) -> Self {
        Self(Arc::new(shape))
    }

    /// See [`PortShape::describe`].
    pub fn describe(&self) -> String {
        self.0.as_ref().describe()
    }

    /// See [`PortShape::bytes`].
    pub fn bytes(&self) -> usize {
        self.0.as_ref().bytes()
    }

    /// The typed shape, if this is one.
    pub fn get<P: PortShape>(&self) -> Option<&P> {
        self.0.as_ref().any().downcast_ref()
    }
}

impl PartialEq for ErasedShape {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_ref().same(other.0.as_ref().any())
    }
}

impl fmt::Debug for ErasedShape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.describe())
    }
}
