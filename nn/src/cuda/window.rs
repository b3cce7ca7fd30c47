//! Streamed weights: a window of a few blocks that moves over a model while a pass does.
//!
//! ```text
//! host       write block 2 into pinned buffers | ask for block 0's work | write block 3 ...
//! copies     block 0 | block 1 | block 2 | wait: block 0 is used | block 3 ...
//! compute              wait: block 0 is there | block 0 | wait: block 1 is there | block 1 ...
//! ```
//!
//! Both waits are events between streams: the host goes on.

#![allow(unsafe_code, reason = "copies into memory of a stream")]

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use cudarc::driver::{CudaContext, CudaEvent, CudaStream, DriverError, sys::CUdeviceptr};

use super::{memory::Memory, staging::Staging, values::Element};
use crate::device::Passing;

/// Groups of matrices that are brought before their use.
pub(crate) const AHEAD: usize = 2;
/// Groups that are on the device at once: the one in use, and those ahead.
pub(crate) const GROUPS: usize = 1 + AHEAD;
/// Bytes that every matrix begins at a multiple of.
const ALIGNMENT: usize = 256;

/// A matrix of a group.
#[derive(Debug)]
struct Staged {
    pointer: CUdeviceptr,
    /// Its copy is done.
    ready: CudaEvent,
}

/// Matrices that are brought together and dropped together. Their memory is allocated and freed in the order of the copies.
#[derive(Debug)]
struct Group {
    staged: HashMap<u64, Staged>,
    memory: Option<Memory>,
}

impl Group {
    fn holds(&self, wanted: &[Passing<'_>]) -> bool {
        !wanted.is_empty() && wanted.iter().all(|matrix| self.staged.contains_key(&matrix.id))
    }
}

/// The window of one compute stream.
#[derive(Debug)]
pub(super) struct Window {
    /// The oldest first.
    groups: VecDeque<Group>,
    staging: Staging,
    copies: Arc<CudaStream>,
}

impl Window {
    pub fn new(context: &Arc<CudaContext>) -> Result<Self, DriverError> {
        let (staging, copies) = (Staging::new(context)?, context.new_stream()?);
        Ok(Self { groups: VecDeque::with_capacity(GROUPS), staging, copies })
    }

    /// Begin to bring a group, and drop the oldest where there are too many: what uses that has been asked for on `compute`.
    pub fn bring(
        &mut self,
        group: &[Passing<'_>],
        element: Element,
        compute: &CudaStream,
    ) -> Result<(), DriverError> {
        if let Some(at) = self.groups.iter().position(|held| held.holds(group)) {
            let held = self.groups.remove(at);
            self.groups.extend(held);
            return Ok(());
        }
        if self.groups.len() == GROUPS {
            self.drop_oldest(compute)?;
        }
        let bytes = |matrix: &Passing<'_>| matrix.values.rows() * matrix.values.columns() * element.size();
        let room = |matrix: &Passing<'_>| bytes(matrix).next_multiple_of(ALIGNMENT);
        let mut wanted: Vec<&Passing<'_>> = group.iter().collect();
        wanted.sort_by_key(|matrix| matrix.id);
        wanted.dedup_by_key(|matrix| matrix.id);
        let mut group = Group { staged: HashMap::with_capacity(wanted.len()), memory: None };
        if !wanted.is_empty() {
            let memory = Memory::new(&self.copies, wanted.iter().copied().map(room).sum())?;
            let mut pointer = memory.pointer();
            group.memory = Some(memory);
            for matrix in wanted {
                // SAFETY: the group's memory has room for all of its matrices, and is of this stream.
                unsafe { self.staging.send(&matrix.values, element, pointer, &self.copies) }?;
                let ready = self.copies.record_event(None)?;
                group.staged.insert(matrix.id, Staged { pointer, ready });
                pointer += room(matrix) as u64;
            }
        }
        self.groups.push_back(group);
        Ok(())
    }

    /// Where a matrix lies, for work that is asked for on `compute` before the next group is brought; nothing if it was not
    /// brought.
    pub fn find(&self, id: u64, compute: &CudaStream) -> Result<Option<CUdeviceptr>, DriverError> {
        let Some(staged) = self.groups.iter().find_map(|group| group.staged.get(&id)) else {
            return Ok(None);
        };
        compute.wait(&staged.ready)?;
        Ok(Some(staged.pointer))
    }

    /// A matrix that nothing brought, in memory of the stream that uses it.
    pub fn fetch(
        &mut self,
        matrix: &Passing<'_>,
        element: Element,
        compute: &Arc<CudaStream>,
    ) -> Result<Memory, DriverError> {
        let bytes = matrix.values.rows() * matrix.values.columns() * element.size();
        let memory = Memory::new(compute, bytes)?;
        // SAFETY: as long as the matrix, and of this stream.
        unsafe { self.staging.send(&matrix.values, element, memory.pointer(), compute) }?;
        Ok(memory)
    }

    /// Drop all groups: what uses them has been asked for on `compute`.
    pub fn clear(&mut self, compute: &CudaStream) -> Result<(), DriverError> {
        while !self.groups.is_empty() {
            self.drop_oldest(compute)?;
        }
        Ok(())
    }

    fn drop_oldest(&mut self, compute: &CudaStream) -> Result<(), DriverError> {
        // The group's memory is freed in the order of the copies: behind its last use.
        self.copies.wait(&compute.record_event(None)?)?;
        drop(self.groups.pop_front());
        Ok(())
    }
}
