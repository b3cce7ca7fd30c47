//! Launches, and how many blocks of a kernel fit.

use std::ffi::{c_int, c_uint, c_void};

use super::{
    Handle, api,
    limits::{MOST_BLOCKS_ASIDE, RESERVED_SHARED, THREADS_PER_MULTIPROCESSOR, most_shared},
    modules::named,
    unsigned,
};
use crate::{
    codes::{Answer, Code},
    device::Device,
    foreign::{In, Out},
    kernels::Dim3,
    work::Work,
};

const MOST_BLOCKS_PER_MULTIPROCESSOR: u32 = 32;

struct Shape {
    grid: Dim3,
    block: Dim3,
    shared: u32,
}

fn volume(size: Dim3) -> u64 {
    u64::from(size.0) * u64::from(size.1) * u64::from(size.2)
}

fn launch(
    device: &mut Device,
    function: Handle,
    shape: Shape,
    stream: Handle,
    parameters: In<In<u64>>,
) -> Answer {
    let stream = device.stream(stream)?;
    let function = named(device, function)?;
    let (kernel, Shape { grid, block, shared }) = (function.kernel, shape);
    let (blocks, threads) = (volume(grid), volume(block));
    let aside = grid.1.max(grid.2) > MOST_BLOCKS_ASIDE;
    // The real limit in x is 2^31 - 1; more than 2^32 in all takes years here.
    let far = blocks > u64::from(u32::MAX) || grid.0 > i32::MAX as u32;
    if blocks == 0 || threads == 0 || aside || far || shared > function.shared_limit {
        eprintln!(
            "standin: {}: a grid of {}x{}x{} blocks with {threads} threads and {shared} of {} bytes of shared memory is refused",
            kernel.name(),
            grid.0,
            grid.1,
            grid.2,
            function.shared_limit
        );
        return Err(Code::INVALID_VALUE);
    }
    if threads > u64::from(kernel.max_threads) {
        eprintln!(
            "standin: {}: {threads} threads, and the launch bound is {}",
            kernel.name(),
            kernel.max_threads
        );
        return Err(Code::LAUNCH_OUT_OF_RESOURCES);
    }
    if parameters.is_null() && !kernel.sizes().is_empty() {
        return Err(Code::INVALID_VALUE);
    }
    let places = parameters.list(kernel.sizes().len());
    let parameters =
        places.iter().zip(kernel.sizes()).map(|(place, bytes)| place.words(*bytes as usize)).collect();
    device.enqueue(
        stream,
        || kernel.name().to_owned(),
        Work::Kernel { kernel, grid, block, shared, parameters },
    );
    device.launched();
    Ok(())
}

fn blocks_per_multiprocessor(
    device: &Device,
    function: Handle,
    threads: c_int,
    shared: usize,
) -> Result<c_int, Code> {
    let function = named(device, function)?;
    let threads = u32::try_from(threads).ok().filter(|threads| *threads > 0).ok_or(Code::INVALID_VALUE)?;
    if threads > function.kernel.max_threads || shared > function.shared_limit as usize {
        return Ok(0);
    }
    let whole = unsigned(most_shared() + RESERVED_SHARED)?;
    let by_shared = whole / (shared + unsigned(RESERVED_SHARED)?);
    let by_threads = (THREADS_PER_MULTIPROCESSOR / threads).min(MOST_BLOCKS_PER_MULTIPROCESSOR);
    Ok(by_threads.min(by_shared as u32) as c_int)
}

api! {
    fn cuLaunchKernel(
        device; function: Handle, grid_x: c_uint, grid_y: c_uint, grid_z: c_uint, block_x: c_uint, block_y: c_uint, block_z: c_uint,
        shared: c_uint, stream: Handle, parameters: In<In<u64>>, _extra: In<c_void>,
    ) {
        let shape = Shape { grid: Dim3(grid_x, grid_y, grid_z), block: Dim3(block_x, block_y, block_z), shared };
        launch(device, function, shape, stream, parameters)
    }
    fn cuOccupancyMaxActiveBlocksPerMultiprocessor(
        device; out: Out<c_int>, function: Handle, threads: c_int, shared: usize,
    ) {
        out.set(blocks_per_multiprocessor(device, function, threads, shared)?)
    }
    fn cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(
        device; out: Out<c_int>, function: Handle, threads: c_int, shared: usize, _flags: c_uint,
    ) {
        out.set(blocks_per_multiprocessor(device, function, threads, shared)?)
    }
}
