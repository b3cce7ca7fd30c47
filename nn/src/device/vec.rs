//! Values that outlive a pass: those of an adapter, of its gradient, of the moments.
//!
//! They live where their network runs. At FLUX's size they are hundreds of megabytes each, which must not cross the bus in
//! every step.

use std::{any::Any, fmt, sync::Arc};

use super::Update;
use crate::error::{Error, Result};

/// A run of f32 values in the host's memory or in that of another device. Cloning shares it; whoever changes values that
/// others hold too changes a copy.
#[derive(Clone, Debug)]
pub enum DeviceVec {
    /// In the host's memory.
    Host(Arc<Vec<f32>>),
    /// In the memory of another device.
    Remote(Arc<dyn Remote>),
}

/// What another device does with its [`DeviceVec`]s. An operation is complete when it returns: any queue may then read the
/// values, and whoever drops them frees memory that nobody uses.
///
/// # Errors
/// All operations fail if the device does, or has no room.
pub trait Remote: Any + fmt::Debug + Send + Sync {
    /// Number of values.
    fn len(&self) -> usize;

    /// Are there none?
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A copy in the host's memory.
    fn read(&self) -> Result<Vec<f32>>;

    /// A copy on the same device.
    fn copy(&self) -> Result<Arc<dyn Remote>>;

    /// These values on the same device.
    fn beside(&self, values: &[f32]) -> Result<Arc<dyn Remote>>;

    /// Does somebody else read the same memory?
    fn is_shared(&self) -> bool;

    /// Does `other` live on the same device?
    fn is_beside(&self, other: &dyn Remote) -> bool;

    /// The sum of squares, in f64 and in a fixed order.
    fn sum_of_squares(&self) -> Result<f64>;

    /// The place of the first value that is not finite.
    fn find_not_finite(&self) -> Result<Option<usize>>;

    /// `self += other`, which lives on the same device.
    fn add(&mut self, other: &dyn Remote) -> Result<()>;

    /// `self *= factor`.
    fn scale(&mut self, factor: f32) -> Result<()>;

    /// An update of AdamW with this gradient, on values and both moments, which live on the same device. They change in place, or are
    /// replaced where others hold them too.
    fn adamw(&self, update: &Update, state: [&mut Arc<dyn Remote>; 3]) -> Result<()>;
}

impl DeviceVec {
    /// Number of values.
    pub fn len(&self) -> usize {
        match self {
            Self::Host(values) => values.len(),
            Self::Remote(values) => values.len(),
        }
    }

    /// Are there none?
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The values in the host's memory: themselves, or a copy of those of another device.
    ///
    /// # Errors
    /// If the other device fails.
    pub fn host(&self) -> Result<Arc<Vec<f32>>> {
        match self {
            Self::Host(values) => Ok(Arc::clone(values)),
            Self::Remote(values) => values.read().map(Arc::new),
        }
    }

    /// The values to change on the host: they move there, and are copied if others hold them.
    ///
    /// # Errors
    /// If the other device fails.
    pub fn host_mut(&mut self) -> Result<&mut [f32]> {
        if let Self::Remote(values) = self {
            *self = Self::from(values.read()?);
        }
        match self {
            Self::Host(values) => Ok(Arc::make_mut(values).as_mut_slice()),
            Self::Remote(_) => Err(Error::Internal("values on the host are elsewhere".into())),
        }
    }

    /// Are both the same values, bit for bit? What is shared is not read.
    ///
    /// # Errors
    /// If another device fails.
    pub fn equals(&self, other: &Self) -> Result<bool> {
        let shared = match (self, other) {
            (Self::Host(a), Self::Host(b)) => Arc::ptr_eq(a, b),
            (Self::Remote(a), Self::Remote(b)) => Arc::ptr_eq(a, b),
            _ => false,
        };
        if shared {
            return Ok(true);
        }
        let (own, others) = (self.host()?, other.host()?);
        Ok(own.iter().map(|v| v.to_bits()).eq(others.iter().map(|v| v.to_bits())))
    }

    /// Move the values to where `other` lives, if they live elsewhere.
    ///
    /// # Errors
    /// If a device fails or has no room.
    pub fn move_beside(&mut self, other: &Self) -> Result<()> {
        match (&*self, other) {
            (Self::Host(_), Self::Host(_)) => {}
            (Self::Remote(_), Self::Host(_)) => *self = Self::Host(self.host()?),
            (Self::Remote(here), Self::Remote(there)) if here.is_beside(&**there) => {}
            (_, Self::Remote(there)) => *self = Self::Remote(there.beside(&self.host()?)?),
        }
        Ok(())
    }

    /// Zeros, as many as there are here, in the same place.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn zeros_beside(&self) -> Result<Self> {
        let mut zeros = Self::from(vec![0.0; self.len()]);
        zeros.move_beside(self)?;
        Ok(zeros)
    }
}

impl Default for DeviceVec {
    /// No values.
    fn default() -> Self {
        Self::from(Vec::new())
    }
}

impl From<Vec<f32>> for DeviceVec {
    fn from(values: Vec<f32>) -> Self {
        Self::Host(Arc::new(values))
    }
}

impl From<Arc<Vec<f32>>> for DeviceVec {
    fn from(values: Arc<Vec<f32>>) -> Self {
        Self::Host(values)
    }
}
