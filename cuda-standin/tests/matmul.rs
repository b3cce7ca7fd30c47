//! Products of matrices by cuBLASLt against sums in f64: each transpose, pair of types, beta and epilogue. They hold on a device
//! too, but for those that ask what is refused.
#![allow(unsafe_code, reason = "cuBLASLt is called as a layer on it would")]

mod common;

use common::{Gpu, bf16, difference, noise};
use cudarc::{
    cublaslt::{
        result::{self, CublasError},
        sys::{
            self as lt, cublasComputeType_t as Compute, cublasLtEpilogue_t as Epilogue,
            cublasLtMatmulDescAttributes_t as Attribute, cublasLtMatmulPreferenceAttributes_t as Preference,
            cublasStatus_t as Status, cudaDataType as Type,
        },
    },
    driver::{CudaSlice, CudaStream, DevicePtr},
};
use std::{ffi::c_void, sync::Arc};

/// What a product is, by columns: D[m, n] = epilogue(op(A)[m, k] op(B)[k, n] + beta C).
#[derive(Clone, Copy)]
struct Case {
    size: [usize; 3],
    turned: [bool; 2],
    input: Type,
    output: Type,
    beta: f32,
    epilogue: Epilogue,
    bias: Type,
    /// Values between the end of a column and the next.
    gap: usize,
    compute: Compute,
}

const PLAIN: Case = Case {
    size: [40, 24, 56],
    turned: [true, false],
    input: Type::CUDA_R_16BF,
    output: Type::CUDA_R_16BF,
    beta: 0.0,
    epilogue: Epilogue::CUBLASLT_EPILOGUE_DEFAULT,
    bias: Type::CUDA_R_16BF,
    gap: 0,
    compute: Compute::CUBLAS_COMPUTE_32F,
};

/// Values on the device, of either type.
enum Values {
    F32(CudaSlice<f32>),
    Bf16(CudaSlice<bf16>),
}

impl Values {
    fn new(stream: &Arc<CudaStream>, kind: Type, values: &[bf16]) -> Values {
        if kind == Type::CUDA_R_32F {
            let wide: Vec<f32> = values.iter().map(|value| value.to_f32()).collect();
            Values::F32(stream.clone_htod(&wide).expect("memory"))
        } else {
            Values::Bf16(stream.clone_htod(values).expect("memory"))
        }
    }
    fn at(&self, stream: &CudaStream) -> u64 {
        match self {
            Values::F32(values) => values.device_ptr(stream).0,
            Values::Bf16(values) => values.device_ptr(stream).0,
        }
    }
    fn read(&self, stream: &Arc<CudaStream>) -> Vec<f32> {
        match self {
            Values::F32(values) => stream.clone_dtoh(values).expect("a copy"),
            Values::Bf16(values) => {
                stream.clone_dtoh(values).expect("a copy").iter().map(|value| value.to_f32()).collect()
            }
        }
    }
}

/// Inputs on the host, as they are on the device: rounded to bf16, so that both types hold them.
struct Inputs {
    a: Vec<bf16>,
    b: Vec<bf16>,
    c: Vec<bf16>,
    bias: Vec<bf16>,
    auxiliary: Vec<bf16>,
}

impl Case {
    fn layout(&self, matrix: usize) -> (usize, usize, usize) {
        let [m, n, k] = self.size;
        let (rows, cols) = match (matrix, self.turned) {
            (0, [false, _]) => (m, k),
            (0, [true, _]) => (k, m),
            (1, [_, false]) => (k, n),
            (1, [_, true]) => (n, k),
            _ => (m, n),
        };
        (rows, cols, rows + self.gap)
    }
    fn values(&self, matrix: usize) -> usize {
        let (_, cols, leading) = self.layout(matrix);
        cols * leading
    }
    fn inputs(&self) -> Inputs {
        let [m, n, _] = self.size;
        Inputs {
            a: noise(self.values(0), 1),
            b: noise(self.values(1), 2),
            c: noise(self.values(2), 3),
            bias: noise(m, 4),
            auxiliary: noise(m * n, 5),
        }
    }
    fn adds_bias(&self) -> bool {
        self.epilogue as u32 & Epilogue::CUBLASLT_EPILOGUE_BIAS as u32 != 0
    }
}

/// Descriptors of one product, closed at the end.
struct Described {
    library: lt::cublasLtHandle_t,
    product: lt::cublasLtMatmulDesc_t,
    layouts: [lt::cublasLtMatrixLayout_t; 4],
    preference: lt::cublasLtMatmulPreference_t,
}

impl Described {
    fn new(case: &Case) -> Described {
        let kinds = [case.input, case.input, case.output, case.output];
        let layouts = std::array::from_fn(|matrix| {
            let (rows, cols, leading) = case.layout(matrix);
            result::create_matrix_layout(kinds[matrix], rows as u64, cols as u64, leading as i64)
                .expect("a layout")
        });
        let described = Described {
            library: result::create_handle().expect("a handle"),
            product: result::create_matmul_desc(case.compute, Type::CUDA_R_32F).expect("a description"),
            layouts,
            preference: result::create_matmul_pref().expect("a preference"),
        };
        for (attribute, turned) in
            [Attribute::CUBLASLT_MATMUL_DESC_TRANSA, Attribute::CUBLASLT_MATMUL_DESC_TRANSB]
                .into_iter()
                .zip(case.turned)
        {
            described.set(attribute, i32::from(turned));
        }
        described.set(Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE, case.epilogue as u32);
        for attribute in [
            Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
            Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
            Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
            Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
        ] {
            let alignment = 16u32;
            // SAFETY: a number of 32 bits, as the attribute wants.
            unsafe {
                result::set_matmul_pref_attribute(
                    described.preference,
                    attribute,
                    (&raw const alignment).cast(),
                    size_of_val(&alignment),
                )
            }
            .expect("an attribute");
        }
        described
    }

    fn set<T>(&self, attribute: Attribute, value: T) {
        // SAFETY: callers pass the type that the attribute wants.
        unsafe {
            result::set_matmul_desc_attribute(
                self.product,
                attribute,
                (&raw const value).cast(),
                size_of::<T>(),
            )
        }
        .expect("an attribute");
    }

    fn algorithm(&self) -> Result<lt::cublasLtMatmulHeuristicResult_t, CublasError> {
        let [a, b, c, d] = self.layouts;
        // SAFETY: all of them are open.
        unsafe { result::get_matmul_algo_heuristic(self.library, self.product, a, b, c, d, self.preference) }
    }

    fn run(&self, addresses: [u64; 4], beta: f32, stream: lt::cudaStream_t) -> Result<(), CublasError> {
        let algorithm = self.algorithm()?;
        let alpha = 1.0f32;
        let [a, b, c, d] = addresses;
        // SAFETY: descriptors are open, and the matrices have the sizes that are described.
        unsafe {
            result::matmul(
                self.library,
                self.product,
                (&raw const alpha).cast(),
                (&raw const beta).cast(),
                a as *const c_void,
                self.layouts[0],
                b as *const c_void,
                self.layouts[1],
                c as *const c_void,
                self.layouts[2],
                d as *mut c_void,
                self.layouts[3],
                &algorithm.algo,
                std::ptr::null_mut(),
                0,
                stream,
            )
        }
    }
}

impl Drop for Described {
    fn drop(&mut self) {
        // SAFETY: each was made by `new` and is closed once.
        unsafe {
            for layout in self.layouts {
                result::destroy_matrix_layout(layout).expect("open");
            }
            result::destroy_matmul_pref(self.preference).expect("open");
            result::destroy_matmul_desc(self.product).expect("open");
            result::destroy_handle(self.library).expect("open");
        }
    }
}

/// D, and what was written to the auxiliary matrix.
fn product(case: &Case, inputs: &Inputs) -> (Vec<f32>, Vec<f32>) {
    let gpu = Gpu::device();
    let stream = gpu.stream();
    let a = Values::new(&stream, case.input, &inputs.a);
    let b = Values::new(&stream, case.input, &inputs.b);
    // C and D are one matrix, as in a sum that goes on.
    let d = Values::new(&stream, case.output, &inputs.c);
    let bias = Values::new(&stream, case.bias, &inputs.bias);
    let auxiliary = Values::new(&stream, case.output, &inputs.auxiliary);
    let described = Described::new(case);
    if case.adds_bias() {
        described.set(Attribute::CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias.at(&stream));
        described.set(Attribute::CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, case.bias as u32);
    }
    if case.epilogue as u32 & 128 != 0 {
        described.set(Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, auxiliary.at(&stream));
        described.set(Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, case.size[0] as i64);
    }
    let addresses = [a.at(&stream), b.at(&stream), d.at(&stream), d.at(&stream)];
    described.run(addresses, case.beta, stream.cu_stream().cast()).expect("a product");
    let values = (d.read(&stream), auxiliary.read(&stream));
    stream.synchronize().expect("no failure");
    values
}

#[allow(clippy::disallowed_methods, reason = "a reference with a tolerance, not bits")]
fn gelu(x: f64) -> (f64, f64) {
    let (scale, cube) = ((2.0 / std::f64::consts::PI).sqrt(), 0.044_715);
    let tanh = (scale * (x + cube * x * x * x)).tanh();
    let slope = 0.5 * (1.0 + tanh) + 0.5 * x * (1.0 - tanh * tanh) * scale * (1.0 + 3.0 * cube * x * x);
    (0.5 * x * (1.0 + tanh), slope)
}

/// The values of D and of the GELU's input, without gaps.
fn reference(case: &Case, inputs: &Inputs) -> (Vec<f64>, Vec<f64>) {
    let [m, n, k] = case.size;
    let get = |values: &[bf16], matrix: usize, row: usize, col: usize, turned: bool| {
        let leading = case.layout(matrix).2;
        let place = if turned { row * leading + col } else { col * leading + row };
        f64::from(values[place].to_f32())
    };
    let (mut d, mut input) = (Vec::new(), Vec::new());
    for (col, row) in (0..n).flat_map(|col| (0..m).map(move |row| (col, row))) {
        let mut value: f64 = (0..k)
            .map(|inner| {
                get(&inputs.a, 0, row, inner, case.turned[0]) * get(&inputs.b, 1, inner, col, case.turned[1])
            })
            .sum();
        value += f64::from(case.beta) * get(&inputs.c, 2, row, col, false);
        if case.adds_bias() {
            value += f64::from(inputs.bias[row].to_f32());
        }
        input.push(value);
        d.push(match case.epilogue {
            Epilogue::CUBLASLT_EPILOGUE_DEFAULT | Epilogue::CUBLASLT_EPILOGUE_BIAS => value,
            Epilogue::CUBLASLT_EPILOGUE_RELU | Epilogue::CUBLASLT_EPILOGUE_RELU_BIAS => value.max(0.0),
            Epilogue::CUBLASLT_EPILOGUE_DGELU => {
                value * gelu(f64::from(inputs.auxiliary[col * m + row].to_f32())).1
            }
            _ => gelu(value).0,
        });
    }
    (d, input)
}

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
