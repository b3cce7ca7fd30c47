//! What the optimiser does with values, wherever they live.

use std::sync::Arc;

use crate::{
    cpu::{self, Cpu},
    device::{DeviceVec, Remote, Update},
    error::{Error, Result},
};

impl DeviceVec {
    /// The sum of squares, in f64 and in a fixed order.
    ///
    /// # Errors
    /// If the device of the values fails.
    pub fn sum_of_squares(&self, cpu: &Cpu) -> Result<f64> {
        match self {
            Self::Host(values) => Ok(cpu::sum_of_squares(cpu, values)),
            Self::Remote(values) => values.sum_of_squares(),
        }
    }

    /// The place of the first value that is not finite.
    ///
    /// # Errors
    /// If the device of the values fails.
    pub fn find_not_finite(&self) -> Result<Option<usize>> {
        match self {
            Self::Host(values) => Ok(values.iter().position(|v| !v.is_finite())),
            Self::Remote(values) => values.find_not_finite(),
        }
    }

    /// `self += other`. The sum lives where `other` does.
    ///
    /// # Errors
    /// If the two differ in length; if a device fails.
    pub fn add(&mut self, other: &Self) -> Result<()> {
        if self.len() != other.len() {
            return Err(Error::shape("values of a sum", self.len(), other.len()));
        }
        self.move_beside(other)?;
        match (self, other) {
            (Self::Host(sum), Self::Host(other)) => {
                Arc::make_mut(sum).iter_mut().zip(other.iter()).for_each(|(sum, value)| *sum += value);
                Ok(())
            }
            (Self::Remote(sum), Self::Remote(other)) => own(sum)?.add(&**other),
            _ => Err(apart()),
        }
    }

    /// `self *= factor`.
    ///
    /// # Errors
    /// If the device of the values fails.
    pub fn scale(&mut self, cpu: &Cpu, factor: f32) -> Result<()> {
        match self {
            Self::Host(values) => {
                cpu::scale(cpu, factor, Arc::make_mut(values).as_mut_slice());
                Ok(())
            }
            Self::Remote(values) => own(values)?.scale(factor),
        }
    }
}

/// An update of AdamW where the gradient lives: values and moments move there.
pub(super) fn adamw(
    cpu: &Cpu,
    update: &Update,
    values: &mut DeviceVec,
    gradient: &DeviceVec,
    moments: [&mut DeviceVec; 2],
) -> Result<()> {
    let [first, second] = moments;
    for moved in [&mut *values, &mut *first, &mut *second] {
        moved.move_beside(gradient)?;
    }
    match (values, gradient, first, second) {
        (DeviceVec::Host(values), DeviceVec::Host(gradient), DeviceVec::Host(m), DeviceVec::Host(v)) => {
            let [values, m, v] = [values, m, v].map(|v| Arc::make_mut(v).as_mut_slice());
            cpu::adamw(cpu, update, values, gradient, m, v);
            Ok(())
        }
        (
            DeviceVec::Remote(values),
            DeviceVec::Remote(gradient),
            DeviceVec::Remote(m),
            DeviceVec::Remote(v),
        ) => gradient.adamw(update, [values, m, v]),
        _ => Err(apart()),
    }
}

/// Values that nobody else holds: a copy where somebody does.
fn own(values: &mut Arc<dyn Remote>) -> Result<&mut dyn Remote> {
    if Arc::get_mut(values).is_none_or(|own| own.is_shared()) {
        *values = values.copy()?;
    }
    Arc::get_mut(values).ok_or_else(|| Error::Internal("a copy of values that others hold".into()))
}

fn apart() -> Error {
    Error::Internal("values of two devices in one operation".into())
}
