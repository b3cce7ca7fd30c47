//! Products of matrices as a layer on cuBLASLt asks for them, and their sums in f64.

use super::{Gpu, bf16, noise};
use cudarc::{
    cublaslt::{
        result::{self, CublasError},
        sys::{
            self as lt, cublasComputeType_t as Compute, cublasLtEpilogue_t as Epilogue,
            cublasLtMatmulDescAttributes_t as Attribute, cublasLtMatmulPreferenceAttributes_t as Preference,
            cudaDataType as Type,
        },
    },
    driver::{CudaSlice, CudaStream, DevicePtr},
};
use std::{ffi::c_void, sync::Arc};

/// What a product is, by columns: D[m, n] = epilogue(op(A)[m, k] op(B)[k, n] + beta C).
#[derive(Clone, Copy)]
pub struct Case {
    pub size: [usize; 3],
    pub turned: [bool; 2],
    pub input: Type,
    pub output: Type,
    pub beta: f32,
    pub epilogue: Epilogue,
    pub bias: Type,
    /// Values between the end of a column and the next.
    pub gap: usize,
    pub compute: Compute,
}

pub const PLAIN: Case = Case {
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
pub enum Values {
    F32(CudaSlice<f32>),
    Bf16(CudaSlice<bf16>),
}

impl Values {
    pub fn new(stream: &Arc<CudaStream>, kind: Type, values: &[bf16]) -> Values {
        if kind == Type::CUDA_R_32F {
            let wide: Vec<f32> = values.iter().map(|value| value.to_f32()).collect();
            Values::F32(stream.clone_htod(&wide).expect("memory"))
        } else {
            Values::Bf16(stream.clone_htod(values).expect("memory"))
        }
    }
    pub fn at(&self, stream: &CudaStream) -> u64 {
        match self {
            Values::F32(values) => values.device_ptr(stream).0,
            Values::Bf16(values) => values.device_ptr(stream).0,
        }
    }
    pub fn read(&self, stream: &Arc<CudaStream>) -> Vec<f32> {
        match self {
            Values::F32(values) => stream.clone_dtoh(values).expect("a copy"),
            Values::Bf16(values) => {
                stream.clone_dtoh(values).expect("a copy").iter().map(|value| value.to_f32()).collect()
            }
        }
    }
}

/// Inputs on the host, as they are on the device: rounded to bf16, so that both types hold them.
pub struct Inputs {
    pub a: Vec<bf16>,
    pub b: Vec<bf16>,
    pub c: Vec<bf16>,
    pub bias: Vec<bf16>,
    pub auxiliary: Vec<bf16>,
}

impl Case {
    pub fn layout(&self, matrix: usize) -> (usize, usize, usize) {
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
    pub fn values(&self, matrix: usize) -> usize {
        let (_, cols, leading) = self.layout(matrix);
        cols * leading
    }
    pub fn inputs(&self) -> Inputs {
        let [m, n, _] = self.size;
        Inputs {
            a: noise(self.values(0), 1),
            b: noise(self.values(1), 2),
            c: noise(self.values(2), 3),
            bias: noise(m, 4),
            auxiliary: noise(m * n, 5),
        }
    }
    pub fn adds_bias(&self) -> bool {
        self.epilogue as u32 & Epilogue::CUBLASLT_EPILOGUE_BIAS as u32 != 0
    }
}

/// Descriptors of one product, closed at the end.
pub struct Described {
    pub library: lt::cublasLtHandle_t,
    pub product: lt::cublasLtMatmulDesc_t,
    pub layouts: [lt::cublasLtMatrixLayout_t; 4],
    pub preference: lt::cublasLtMatmulPreference_t,
}

impl Described {
    pub fn new(case: &Case) -> Described {
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

    pub fn set<T>(&self, attribute: Attribute, value: T) {
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

    pub fn algorithm(&self) -> Result<lt::cublasLtMatmulHeuristicResult_t, CublasError> {
        let [a, b, c, d] = self.layouts;
        // SAFETY: all of them are open.
        unsafe { result::get_matmul_algo_heuristic(self.library, self.product, a, b, c, d, self.preference) }
    }

    pub fn run(&self, addresses: [u64; 4], beta: f32, stream: lt::cudaStream_t) -> Result<(), CublasError> {
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
pub fn product(case: &Case, inputs: &Inputs) -> (Vec<f32>, Vec<f32>) {
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
pub fn reference(case: &Case, inputs: &Inputs) -> (Vec<f64>, Vec<f64>) {
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
