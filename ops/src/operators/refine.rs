//! `refine`: from axes that a run finds out to axes that the graph states.
//!
//! Shape letters: `B` batch, `C` latent channels, `H` `W` latent grid.

use std::marker::PhantomData;

use dfdx::{
    shapes::{HasShape, Shape},
    tensor_ops::RealizeTo,
};

use super::tensors::Fixed;
use crate::{
    operator::{Ctx, InGrads, InShapes, OpError, Operator, OutGrads, OutShapes, Wanted},
    ports::{Latents, role},
    role::{As, Role},
    settings,
    shape::Axis,
};

settings! {
    /// Settings of [`Refine`].
    pub struct RefineSettings {
        /// Channels of the latents, where they are stated.
        pub channels: Option<usize> = None,
        /// Rows of the latent grid, where they are stated.
        pub height: Option<usize> = None,
        /// Columns of the latent grid, where they are stated.
        pub width: Option<usize> = None,
    }
}

/// The same latents in the same role, with the axes that the type and the settings state.
///
/// Latents that a file or a network makes have run-time axes. From here on an axis `Const<N>` is a constant: the plan
/// checks it once, at this node, and the compiler at everything that reads it.
pub struct Refine<R = role::Clean, C = usize, H = usize, W = usize> {
    stated: [Option<usize>; 3],
    role: PhantomData<fn() -> R>,
    axes: Fixed<C, H, W>,
}

const AXES: [&str; 3] = ["channels", "height", "width"];

type Grid = (usize, usize, usize, usize);

impl<R: Role, C: Axis, H: Axis, W: Axis> Operator for Refine<R, C, H, W> {
    const NAME: &'static str = "refine";
    const DOC: &'static str = "State axes of clean latents: a graph whose latents have other axes is refused when it is \
                               planned. In Rust, the axes that the type states are constants from here on.";
    const IN: [&'static str; 1] = ["latents"];
    const OUT: [&'static str; 1] = ["latents"];
    type Settings = RefineSettings;
    type In = (As<R, Latents>,);
    type Out = (As<R, Latents<C, H, W>>,);
    type Saved = ();
    const DIFFERENTIABLE: bool = true;

    fn new(settings: RefineSettings) -> Result<Self, OpError> {
        let types = [C::EXTENT, H::EXTENT, W::EXTENT];
        let mut stated = [settings.channels, settings.height, settings.width];
        for ((axis, stated), constant) in AXES.iter().zip(&mut stated).zip(types) {
            match (*stated, constant) {
                (Some(0), _) => return Err(OpError::new(format!("{axis} 0: at least 1 is needed"))),
                (Some(setting), Some(constant)) if setting != constant => {
                    return Err(OpError::new(format!(
                        "{axis} {setting}: the type of this operator states {constant}"
                    )));
                }
                _ => *stated = stated.or(constant),
            }
        }
        Ok(Self { stated, role: PhantomData, axes: PhantomData })
    }

    fn shapes(&self, (latents,): InShapes<Self>, _: usize) -> Result<OutShapes<Self>, OpError> {
        let found = [latents.1, latents.2, latents.3];
        for ((axis, found), stated) in AXES.iter().zip(found).zip(self.stated) {
            if let Some(stated) = stated.filter(|stated| *stated != found) {
                return Err(OpError::new(format!(
                    "the latents have {axis} {found}, this node states {stated}"
                )));
            }
        }
        let refined = <(usize, C, H, W)>::from_concrete(&latents.concrete());
        Ok((refined.ok_or_else(|| OpError::internal("constant axes that the settings do not know"))?,))
    }

    fn forward(&self, _: &Ctx<'_>, (As(_, latents),): Self::In) -> Result<(Self::Out, ()), OpError> {
        let refined = latents.try_realize::<(usize, C, H, W)>();
        let refined = refined.map_err(|l| {
            OpError::internal(format!("latents of {:?} after another plan", HasShape::shape(&l)))
        })?;
        Ok(((refined.into(),), ()))
    }

    fn backward(
        &self,
        _: &Ctx<'_>,
        wanted: Wanted<'_>,
        (): (),
        (grad,): OutGrads<Self>,
    ) -> Result<InGrads<Self>, OpError> {
        let grad = grad.filter(|_| wanted[0]).map(RealizeTo::try_realize::<Grid>).transpose();
        Ok((grad.map_err(|_| OpError::internal("a constant axis is a run-time axis, too"))?,))
    }
}

#[cfg(test)]
mod tests {
    use dfdx::shapes::Const;

    use super::*;
    use crate::{
        operators::testing::{Bench, latents},
        ports::Clean,
        testing::check_gradients,
    };

    type Sixteen = Refine<role::Clean, Const<16>>;

    fn refused<O>(result: Result<O, OpError>) -> String {
        result.err().expect("a refusal").to_string()
    }

    #[test]
    fn an_axis_is_stated_by_the_type_or_by_a_setting_and_both_are_checked_when_planned() {
        let op = Sixteen::new(RefineSettings { height: Some(3), ..Default::default() }).unwrap();
        assert_eq!(op.shapes(((2, 16, 3, 5),), 0).unwrap().0, (2, Const::<16>, 3, 5));
        let error = refused(op.shapes(((2, 4, 3, 5),), 0));
        assert_eq!(error, "the latents have channels 4, this node states 16");
        let error = refused(op.shapes(((2, 16, 4, 5),), 0));
        assert_eq!(error, "the latents have height 4, this node states 3");
    }

    #[test]
    fn a_setting_that_contradicts_the_type_and_an_empty_axis_are_refused() {
        let set = |channels| Sixteen::new(RefineSettings { channels: Some(channels), ..Default::default() });
        assert!(set(16).is_ok());
        assert!(refused(set(4)).contains("channels 4: the type of this operator states 16"));
        let empty = Refine::<role::Clean>::new(RefineSettings { width: Some(0), ..Default::default() });
        assert!(refused(empty).contains("width 0"));
    }

    #[test]
    fn values_and_gradient_pass_as_they_are() {
        let bench = Bench::new();
        let ctx = bench.ctx();
        let (x, op): (Clean, _) =
            (latents(&ctx, (2, 16, 2, 2), 1), Sixteen::new(Default::default()).unwrap());
        let ((refined,), ()) = op.forward(&ctx, (x.clone(),)).unwrap();
        assert_eq!(refined.as_vec(), x.as_vec());
        check_gradients(&op, (x,)).unwrap();
    }
}
