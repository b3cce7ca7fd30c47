//! What cuBLASLt refuses, and how algorithms are listed, made and checked.
#![allow(unsafe_code, reason = "cuBLASLt is called as a layer on it would")]

mod common;

use common::{
    Gpu,
    products::{Case, Described, PLAIN, Values},
};
use cudarc::cublaslt::{
    result::CublasError,
    sys::{
        self as lt, cublasComputeType_t as Compute, cublasLtEpilogue_t as Epilogue, cublasStatus_t as Status,
        cudaDataType as Type,
    },
};

#[test]
fn what_cublas_does_not_do_is_refused() {
    if !common::standin() {
        return;
    }
    let _gpu = Gpu::device();
    let refused = |case: Case, status: Status| {
        let described = Described::new(&case);
        assert_eq!(described.algorithm().map(|_| ()), Err(CublasError(status)));
    };
    let unsupported = Status::CUBLAS_STATUS_NOT_SUPPORTED;
    refused(Case { input: Type::CUDA_R_32F, output: Type::CUDA_R_16BF, ..PLAIN }, unsupported);
    refused(Case { input: Type::CUDA_R_16F, ..PLAIN }, unsupported);
    refused(Case { epilogue: Epilogue::CUBLASLT_EPILOGUE_BGRADB, ..PLAIN }, unsupported);
    refused(Case { compute: Compute::CUBLAS_COMPUTE_16F, ..PLAIN }, unsupported);
    // A GELU's input without a place, or with columns that are not aligned.
    let gelu = Case { epilogue: Epilogue::CUBLASLT_EPILOGUE_GELU_AUX, ..PLAIN };
    refused(gelu, Status::CUBLAS_STATUS_INVALID_VALUE);
}

#[test]
fn a_product_of_a_closed_stream_or_of_memory_that_is_not_there_fails() {
    if !common::standin() {
        return;
    }
    let gpu = Gpu::device();
    let stream = gpu.stream();
    let inputs = PLAIN.inputs();
    let [a, b, d] =
        [&inputs.a, &inputs.b, &inputs.c].map(|values| Values::new(&stream, Type::CUDA_R_16BF, values));
    let [a, b, d] = [&a, &b, &d].map(|values| values.at(&stream));
    let described = Described::new(&PLAIN);
    let closed = {
        let closed = gpu.stream();
        closed.cu_stream()
    };
    let execution = Err(CublasError(Status::CUBLAS_STATUS_EXECUTION_FAILED));
    assert_eq!(described.run([a, b, d, d], 0.0, closed.cast()), execution);
    assert_eq!(described.run([a, b, d, d], 0.0, std::ptr::without_provenance_mut(0xdead)), execution);
    let value = Err(CublasError(Status::CUBLAS_STATUS_INVALID_VALUE));
    // Too short by what is before it, and not aligned as was promised.
    assert_eq!(described.run([a + 16, b, d, d], 0.0, stream.cu_stream().cast()), value);
    assert_eq!(described.run([a, b, d, d + 2], 0.0, stream.cu_stream().cast()), value);
    assert_eq!(described.run([a, b, d, d], 0.0, stream.cu_stream().cast()), Ok(()));
}

#[test]
fn algorithms_are_listed_made_and_checked() {
    if !common::standin() {
        return;
    }
    let _gpu = Gpu::device();
    let described = Described::new(&PLAIN);
    let (compute, scale, kind) = (PLAIN.compute, Type::CUDA_R_32F, PLAIN.input);
    let (mut ids, mut count) = ([0; 4], 0);
    // SAFETY: as many places as are named, and open descriptors.
    unsafe {
        lt::cublasLtMatmulAlgoGetIds(
            described.library,
            compute,
            scale,
            kind,
            kind,
            kind,
            kind,
            4,
            ids.as_mut_ptr(),
            &mut count,
        )
        .result()
        .expect("a list");
        assert_eq!(count, 1);
        let mut algorithm = std::mem::zeroed::<lt::cublasLtMatmulAlgo_t>();
        let init = |id, algorithm: &mut _| {
            lt::cublasLtMatmulAlgoInit(
                described.library,
                compute,
                scale,
                kind,
                kind,
                kind,
                kind,
                id,
                algorithm,
            )
            .result()
        };
        assert!(init(ids[0] + 1, &mut algorithm).is_err());
        let [a, b, c, d] = described.layouts;
        let mut found = std::mem::zeroed::<lt::cublasLtMatmulHeuristicResult_t>();
        let mut check = |algorithm: &_| {
            lt::cublasLtMatmulAlgoCheck(
                described.library,
                described.product,
                a,
                b,
                c,
                d,
                algorithm,
                &mut found,
            )
            .result()
        };
        assert!(check(&algorithm).is_err(), "zeros are no algorithm");
        init(ids[0], &mut algorithm).expect("an algorithm");
        check(&algorithm).expect("it does this product");
        let split = 1u32;
        lt::cublasLtMatmulAlgoConfigSetAttribute(
            &mut algorithm,
            lt::cublasLtMatmulAlgoConfigAttributes_t::CUBLASLT_ALGO_CONFIG_SPLITK_NUM,
            (&raw const split).cast(),
            size_of_val(&split),
        )
        .result()
        .expect("an attribute");
    }
}
