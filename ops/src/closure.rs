//! Closures over dfdx tensors as operators: a new loss in five lines, with its gradient.

use std::marker::PhantomData;

use dfdx::{
    tensor::SplitTape,
    tensor_ops::{Backward, SumTo},
};

use prefgraph_nn::size;

use crate::{
    guard,
    inputs::{Arity, InputSpec, OutputSpec},
    operator::{Cost, Ctx, DynOperator, OpError, Residuals, Wanted},
    port::{PortType, T, Value, take},
    shape::{Axes, ErasedShape},
    vjp::{Traceable, Traced},
};

/// A function of a tuple of traced tensors, implemented for closures of one to six arguments.
pub trait Function<In>: Send + Sync + 'static {
    /// Axes of the result.
    type Out: Axes;

    #[doc(hidden)]
    fn types() -> Vec<PortType>;
    #[doc(hidden)]
    fn result(&self, inputs: &[Value]) -> T<Self::Out>;
    #[doc(hidden)]
    fn gradients(
        &self,
        wanted: Wanted<'_>,
        inputs: &[Value],
        cotangent: T<Self::Out>,
    ) -> Result<Vec<Option<Value>>, OpError>;
    #[doc(hidden)]
    fn dummies(shapes: &[ErasedShape]) -> Vec<Value>;
}

macro_rules! functions {
    ($($P:ident $i:tt),*) => {
        #[allow(non_snake_case, reason = "type parameters name the arguments")]
        impl<Func, Y: Axes, $($P: Traceable),*> Function<($($P,)*)> for Func
        where
            Func: Fn($($P::Traced),*) -> Traced<Y> + Send + Sync + 'static,
        {
            type Out = Y;

            fn types() -> Vec<PortType> {
                vec![$(PortType::of::<$P>()),*]
            }
            fn result(&self, inputs: &[Value]) -> T<Y> {
                self($(Traceable::trace(&take::<$P>(&inputs[$i])).0),*).split_tape().0
            }
            fn gradients(
                &self,
                wanted: Wanted<'_>,
                inputs: &[Value],
                cotangent: T<Y>,
            ) -> Result<Vec<Option<Value>>, OpError> {
                $(let $P = Traceable::trace(&take::<$P>(&inputs[$i]));)*
                let y = self($($P.0),*);
                // Re-leafed, since a cotangent that is also an input would share its identity.
                let cotangent = Traceable::trace(&cotangent).1;
                let mut gradients = (y * cotangent).sum::<(), Y::AllAxes>().try_backward()?;
                Ok(vec![$(
                    if wanted[$i] {
                        $P::gradient(&$P.1, &mut gradients).map(|g| std::sync::Arc::new(g) as Value)
                    } else {
                        None
                    }
                ),*])
            }
            fn dummies(shapes: &[ErasedShape]) -> Vec<Value> {
                vec![$({
                    let shape = shapes[$i].get::<$P::Shape>().expect("edge types are checked");
                    $P::dummy(shape).erase()
                }),*]
            }
        }
    };
}
functions!(A 0);
functions!(A 0, B 1);
functions!(A 0, B 1, C 2);
functions!(A 0, B 1, C 2, D 3);
functions!(A 0, B 1, C 2, D 3, E 4);
functions!(A 0, B 1, C 2, D 3, E 4, F 5);

/// An operator whose forward is a closure and whose backward is dfdx's tape.
pub struct Closure<In, F> {
    name: String,
    function: F,
    inputs: PhantomData<fn(In)>,
}

impl<In, F: Function<In>> Closure<In, F> {
    /// Name a closure.
    pub fn new(name: impl Into<String>, function: F) -> Self {
        Self { name: name.into(), function, inputs: PhantomData }
    }
}

const ARGUMENTS: [&str; 6] = ["a", "b", "c", "d", "e", "f"];

impl<In: 'static, F: Function<In>> DynOperator for Closure<In, F> {
    fn name(&self) -> &str {
        &self.name
    }
    fn inputs(&self) -> Vec<InputSpec> {
        let named = ARGUMENTS.into_iter().zip(F::types());
        named.map(|(name, ty)| InputSpec { name, ty, arity: Arity::One }).collect()
    }
    fn outputs(&self) -> Vec<OutputSpec> {
        vec![OutputSpec { name: "out", ty: PortType::of::<T<F::Out>>() }]
    }
    fn differentiable(&self) -> bool {
        true
    }
    fn variants(&self) -> usize {
        1
    }
    /// By a dry run on zeros: dfdx panics on run-time axes that differ, and the panic is the message.
    fn shapes(&self, inputs: &[Vec<ErasedShape>], _: usize) -> Result<Vec<ErasedShape>, OpError> {
        let shapes: Vec<ErasedShape> = inputs.iter().map(|s| s[0].clone()).collect();
        let out = guard::catch(|| self.function.result(&F::dummies(&shapes)));
        let out = out.map_err(|panic| {
            let given: Vec<_> = shapes.iter().map(ErasedShape::describe).collect();
            OpError::new(format!("the closure does not accept ({}): {panic}", given.join(", ")))
        })?;
        Ok(vec![ErasedShape::new(*dfdx::shapes::HasShape::shape(&out))])
    }
    fn cost(&self, inputs: &[Vec<ErasedShape>], outputs: &[ErasedShape]) -> Cost {
        let bytes = size::sum(inputs.iter().flatten().chain(outputs).map(ErasedShape::bytes));
        Cost {
            // A guess until the first steps have been timed: a few operations a value.
            forward_flops: bytes as f64,
            backward_flops: 2.0 * bytes as f64,
            moved_bytes: 4.0 * bytes as f64,
            scratch_bytes: bytes.saturating_mul(2),
            ..Cost::default()
        }
    }
    fn notes(&self, _: &[Vec<ErasedShape>]) -> Vec<String> {
        Vec::new()
    }
    fn exports(&self) -> Vec<(String, serde_json::Value)> {
        Vec::new()
    }
    fn forward(&self, _: &Ctx<'_>, inputs: &[Vec<Value>]) -> Result<(Vec<Value>, Residuals), OpError> {
        let inputs: Vec<Value> = inputs.iter().map(|v| v[0].clone()).collect();
        let out = self.function.result(&inputs);
        Ok((vec![std::sync::Arc::new(out)], Box::new(inputs)))
    }
    fn backward(
        &self,
        _: &Ctx<'_>,
        wanted: Wanted<'_>,
        saved: Residuals,
        grads: &[Option<Value>],
    ) -> Result<Vec<Vec<Option<Value>>>, OpError> {
        let inputs = *saved
            .downcast::<Vec<Value>>()
            .map_err(|_| OpError::internal("residuals of another operator"))?;
        let Some(cotangent) = &grads[0] else { return Ok(vec![vec![None]; inputs.len()]) };
        let cotangent = take::<T<F::Out>>(cotangent);
        let grads = self.function.gradients(wanted, &inputs, cotangent)?;
        Ok(grads.into_iter().map(|g| vec![g]).collect())
    }
}
