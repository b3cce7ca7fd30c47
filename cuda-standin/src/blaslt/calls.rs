//! The call of a product: what it reads and writes, and its place in a stream.

use std::ffi::c_int;

use super::{
    EXECUTION_FAILED, INVALID_VALUE, Status, algorithms::Algorithm, matmul::Matmul, objects, refuse, status,
};
use crate::{
    device,
    foreign::In,
    memory,
    work::{Range, Work},
};

// cublasLtMatmulDescAttributes_t: addresses, which a description may have before they are known.
const BIAS: c_int = 8;
const AUXILIARY: c_int = 11;

/// As much of the workspace as the stand-in spoils: enough to show that two streams share one.
const WORKSPACE_TOUCHED: usize = 256;

/// The call, with its parameters by name.
struct Call {
    library: usize,
    description: usize,
    layouts: [usize; 4],
    addresses: [usize; 4],
    alpha: In<f32>,
    beta: In<f32>,
    algorithm: In<Algorithm>,
    workspace: Range,
    stream: usize,
}

fn run(call: Call) -> Result<(), Status> {
    objects::open(call.library)?;
    let Matmul { mut product, description } = Matmul::of(call.description, call.layouts)?;
    product.alpha = call.alpha.get().map_err(|_| INVALID_VALUE)?;
    product.beta = call.beta.get().map_err(|_| INVALID_VALUE)?;
    [product.a_at, product.b_at, product.c_at, product.d_at] = call.addresses;
    product.bias_at = description.attributes.count(BIAS);
    product.auxiliary_at = description.attributes.count(AUXILIARY);
    let alignments = Algorithm::alignments(call.algorithm)?;
    for ((name, at), alignment) in ["A", "B", "C", "D"].iter().zip(call.addresses).zip(alignments) {
        if !at.is_multiple_of((alignment as usize).max(1)) {
            return refuse(
                INVALID_VALUE,
                &format!("{name} is not aligned to {alignment} bytes, as was promised"),
            );
        }
    }
    let mut device = device::current().map_err(|_| EXECUTION_FAILED)?;
    device.usable().map_err(|_| EXECUTION_FAILED)?;
    let Ok(stream) = device.stream(call.stream) else {
        return refuse(EXECUTION_FAILED, "a stream that is not open");
    };
    let (reads, mut writes) = product.ranges();
    if call.workspace.0 != 0 && call.workspace.1 > 0 {
        writes.push((call.workspace.0, call.workspace.1.min(WORKSPACE_TOUCHED)));
    }
    if let Some((at, bytes)) =
        reads.iter().chain(&writes).find(|(at, bytes)| !device.memory.holds(*at, *bytes))
    {
        return refuse(INVALID_VALUE, &format!("{bytes} bytes at {at:#x} are not in one allocation"));
    }
    let name = format!("matmul {}x{}x{}", product.d.rows, product.d.cols, product.inner);
    let spoiled =
        (call.workspace.0 != 0).then(|| (call.workspace.0, call.workspace.1.min(WORKSPACE_TOUCHED)));
    let run = Box::new(move || {
        if let Some((at, bytes)) = spoiled {
            memory::fill_undefined(at, bytes);
        }
        product.run();
    });
    device.enqueue(stream, || name, Work::Task { reads, writes, run });
    device.launched();
    Ok(())
}

#[unsafe(no_mangle)]
pub extern "C" fn cublasLtMatmul(
    library: usize,
    description: usize,
    alpha: In<f32>,
    a: usize,
    a_layout: usize,
    b: usize,
    b_layout: usize,
    beta: In<f32>,
    c: usize,
    c_layout: usize,
    d: usize,
    d_layout: usize,
    algorithm: In<Algorithm>,
    workspace: usize,
    workspace_bytes: usize,
    stream: usize,
) -> Status {
    status(run(Call {
        library,
        description,
        layouts: [a_layout, b_layout, c_layout, d_layout],
        addresses: [a, b, c, d],
        alpha,
        beta,
        algorithm,
        workspace: (workspace, workspace_bytes),
        stream,
    }))
}
