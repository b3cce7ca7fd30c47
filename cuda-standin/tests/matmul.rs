//! Products of matrices by cuBLASLt against sums in f64: each transpose, pair of types, beta and epilogue.
#![allow(unsafe_code, reason = "cuBLASLt is called as a layer on it would")]

mod common;

use common::{
    Gpu, difference,
    products::{Case, Described, Inputs, PLAIN, Values, product, reference},
};
use cudarc::cublaslt::sys::{
    cublasComputeType_t as Compute, cublasLtEpilogue_t as Epilogue, cudaDataType as Type,
};

#[track_caller]
fn right(case: Case) {
    let inputs = case.inputs();
    let (got, auxiliary) = product(&case, &inputs);
    let (wanted, input) = reference(&case, &inputs);
    let tolerance = if case.output == Type::CUDA_R_32F { 2e-6 } else { 4e-3 };
    let (rows, _, leading) = case.layout(3);
    let inside = got.chunks(leading).flat_map(|col| &col[..rows]).map(|value| f64::from(*value));
    let told = format!(
        "{:?} {:?} {:?} to {:?}, {:?}",
        case.size, case.turned, case.input, case.output, case.epilogue
    );
    assert!(difference(inside, &wanted) < tolerance, "{told}");
    for (col, kept) in got.chunks(leading).zip(inputs.c.chunks(leading)) {
        assert!(
            col[rows..].iter().zip(&kept[rows..]).all(|(got, kept)| *got == kept.to_f32()),
            "{told}: the gap"
        );
    }
    if matches!(
        case.epilogue,
        Epilogue::CUBLASLT_EPILOGUE_GELU_AUX | Epilogue::CUBLASLT_EPILOGUE_GELU_AUX_BIAS
    ) {
        assert!(
            difference(auxiliary.into_iter().map(f64::from), &input) < tolerance,
            "{told}: the GELU's input"
        );
    }
}

const TYPES: [(Type, Type); 3] = [
    (Type::CUDA_R_32F, Type::CUDA_R_32F),
    (Type::CUDA_R_16BF, Type::CUDA_R_32F),
    (Type::CUDA_R_16BF, Type::CUDA_R_16BF),
];

#[test]
fn each_transpose_of_each_pair_of_types_is_right() {
    if !common::driver() {
        return;
    }
    for (input, output) in TYPES {
        for turned in [[false, false], [false, true], [true, false], [true, true]] {
            for (beta, gap) in [(0.0, 0), (1.0, 8)] {
                right(Case { turned, input, output, beta, gap, ..PLAIN });
            }
        }
    }
}

#[test]
fn each_epilogue_is_right() {
    if !common::driver() {
        return;
    }
    for (input, output) in TYPES {
        for epilogue in [
            Epilogue::CUBLASLT_EPILOGUE_RELU,
            Epilogue::CUBLASLT_EPILOGUE_RELU_BIAS,
            Epilogue::CUBLASLT_EPILOGUE_BIAS,
            Epilogue::CUBLASLT_EPILOGUE_GELU,
            Epilogue::CUBLASLT_EPILOGUE_GELU_BIAS,
            Epilogue::CUBLASLT_EPILOGUE_GELU_AUX,
            Epilogue::CUBLASLT_EPILOGUE_GELU_AUX_BIAS,
            Epilogue::CUBLASLT_EPILOGUE_DGELU,
        ] {
            right(Case { input, output, epilogue, bias: output, ..PLAIN });
        }
    }
}

#[test]
fn a_bias_may_have_a_type_of_its_own() {
    if common::standin() {
        let (input, output) = (Type::CUDA_R_16BF, Type::CUDA_R_32F);
        right(Case {
            input,
            output,
            epilogue: Epilogue::CUBLASLT_EPILOGUE_BIAS,
            bias: Type::CUDA_R_16BF,
            ..PLAIN
        });
    }
}

#[test]
fn a_product_on_several_threads_is_right() {
    if common::driver() {
        right(Case { size: [160, 200, 304], ..PLAIN });
        right(Case { size: [160, 200, 304], turned: [false, true], ..PLAIN });
    }
}

/// The rows of a batch are the columns of D. On a device this holds for one algorithm; there is but one here.
#[test]
fn a_row_has_the_same_bits_whatever_the_number_of_rows() {
    if !common::standin() {
        return;
    }
    for (input, output) in TYPES {
        for turned in [[true, false], [false, false]] {
            // More inner values than one block of the sum has.
            let all = Case { size: [72, 130, 700], turned, input, output, ..PLAIN };
            let inputs = all.inputs();
            let whole = product(&all, &inputs).0;
            for rows in [1, 2, 7, 16, 33, 129] {
                let part = Case { size: [72, rows, 700], ..all };
                let some = Inputs {
                    a: inputs.a.clone(),
                    b: inputs.b[..part.values(1)].to_vec(),
                    c: inputs.c[..part.values(2)].to_vec(),
                    bias: inputs.bias.clone(),
                    auxiliary: inputs.auxiliary.clone(),
                };
                let got = product(&part, &some).0;
                assert!(
                    got.iter().zip(&whole).all(|(got, whole)| got.to_bits() == whole.to_bits()),
                    "{rows} rows"
                );
            }
        }
    }
}

#[test]
fn a_sum_in_tf32_is_not_one_in_f32() {
    if !common::standin() {
        return;
    }
    let exact = Case { input: Type::CUDA_R_32F, output: Type::CUDA_R_32F, ..PLAIN };
    let inputs = exact.inputs();
    // bf16 values have the same bits in TF32: both agree.
    let fast = Case { compute: Compute::CUBLAS_COMPUTE_32F_FAST_TF32, ..exact };
    assert_eq!(product(&exact, &inputs).0, product(&fast, &inputs).0);
    let gpu = Gpu::device();
    let stream = gpu.stream();
    let case = Case { size: [8, 8, 8], ..exact };
    let thirds = Values::F32(stream.clone_htod(&vec![1.0f32 / 3.0; 64]).expect("memory"));
    let ones = Values::F32(stream.clone_htod(&vec![1.0f32; 64]).expect("memory"));
    let d = Values::F32(stream.alloc_zeros(64).expect("memory"));
    let addresses = [&thirds, &ones, &d, &d].map(|values| values.at(&stream));
    let mut results = Vec::new();
    for compute in [Compute::CUBLAS_COMPUTE_32F, Compute::CUBLAS_COMPUTE_32F_FAST_TF32] {
        Described::new(&Case { compute, ..case })
            .run(addresses, 0.0, stream.cu_stream().cast())
            .expect("a product");
        results.push(d.read(&stream)[0]);
    }
    assert!((results[0] - 8.0 / 3.0).abs() < 1e-6 && (results[1] - 8.0 / 3.0).abs() > 1e-4, "{results:?}");
}
