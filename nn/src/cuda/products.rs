//! Matrix products, by cuBLASLt.
//!
//! ```text
//! M  rows    N  columns of the result    K  summed axis
//! ```
//!
//! A row of a result has the same bits whatever the number of rows: an algorithm is chosen for (N, K), element types and
//! alignments, as if there were [`TYPICAL_ROWS`] rows, or [`TYPICAL_SAMPLES`] where rows are samples, and used for every M. Sums
//! are in f32, and f32 operands are not rounded to TF32. Nothing is split over K, except in sums over rows, where a fixed order of the parts is asked for.

#![allow(unsafe_code, reason = "calls of cuBLASLt")]

use std::{
    collections::HashMap,
    ffi::c_void,
    sync::{Mutex, PoisonError},
};

use cudarc::{
    cublaslt::{
        result::{self, CublasError},
        sys,
    },
    driver::sys::CUdeviceptr,
};

use super::{memory::Memory, values::Element};

/// Bytes that an algorithm may use beside its operands: what cuBLAS asks for on the largest GPUs.
pub(crate) const WORKSPACE: usize = 32 << 20;
/// The number of rows for which an algorithm is chosen.
const TYPICAL_ROWS: usize = 4096;
/// The same where each row is a sample of the batch: with tiles for many rows, an H200 read the weight at half of its memory's rate.
const TYPICAL_SAMPLES: usize = 8;

/// A factor or a result: row-major rows that stand `stride` values apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Operand {
    pub pointer: CUdeviceptr,
    pub stride: usize,
    /// It is stored the other way round: `[K, M]` for a left factor, `[N, K]` for a right one.
    pub transposed: bool,
}

/// `out [M, N] = scale left [M, K] right [K, N] + bias`, or with `accumulate` added to what is there.
#[derive(Clone, Copy, Debug)]
pub(super) struct Product {
    pub sizes: (usize, usize, usize),
    pub left: Operand,
    pub right: Operand,
    pub out: Operand,
    /// `[N]`, stored as the result is.
    pub bias: Option<CUdeviceptr>,
    pub scale: f32,
    pub accumulate: bool,
    /// How many runs of K values are summed apart: of both factors one behind the other, of the result each `M` rows further.
    pub parts: usize,
    /// Rows are samples of a batch: there are few.
    pub of_samples: bool,
    /// How both factors are stored.
    pub factors: Element,
    /// How the result is stored.
    pub result: Element,
}

/// All that the call is prepared from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    sizes: (usize, usize, usize),
    strides: [usize; 3],
    transposed: [bool; 2],
    /// Bytes that pointers and strides of left, right and out are multiples of, at most 16.
    alignments: [u32; 3],
    bias: bool,
    accumulate: bool,
    parts: usize,
    of_samples: bool,
    elements: (Element, Element),
}

impl Key {
    fn new(call: &Product) -> Self {
        let alignment = |operand: Operand, element: Element| {
            let bits = operand.pointer | (operand.stride * element.size()) as u64 | 16;
            1 << bits.trailing_zeros()
        };
        Self {
            sizes: call.sizes,
            strides: [call.left.stride, call.right.stride, call.out.stride],
            transposed: [call.left.transposed, call.right.transposed],
            alignments: [
                alignment(call.left, call.factors),
                alignment(call.right, call.factors),
                alignment(call.out, call.result),
            ],
            bias: call.bias.is_some(),
            accumulate: call.accumulate,
            parts: call.parts,
            of_samples: call.of_samples,
            elements: (call.factors, call.result),
        }
    }

    /// The key of the algorithm: rows do not count, and a left factor that is stored the other way round is summed over them.
    fn algorithm(self) -> Self {
        let (m, n, k) = self.sizes;
        let rows = if self.of_samples { TYPICAL_SAMPLES } else { TYPICAL_ROWS };
        let sizes = if self.transposed[0] { (m, n, rows) } else { (rows, n, k) };
        // Strides of whole rows, with the alignments of the true ones.
        let [left, right, out] = self.alignments;
        let stride = |width: usize, alignment: u32, element: Element| {
            let values = (alignment as usize / element.size()).max(1);
            width.next_multiple_of(values)
        };
        let (factors, result) = self.elements;
        let left_width = if self.transposed[0] { sizes.0 } else { sizes.2 * self.parts };
        let right_width = if self.transposed[1] { sizes.2 * self.parts } else { sizes.1 };
        let strides =
            [stride(left_width, left, factors), stride(right_width, right, factors), stride(n, out, result)];
        // A policy adds to what its adapter gave, and the reference, which has none, must get the same bits from the same weight.
        Self { sizes, strides, accumulate: false, ..self }
    }
}

/// Descriptors of a call. cuBLASLt counts columns first: it computes the transposed result from the right factor by the left
/// one.
#[derive(Debug)]
struct Descriptors {
    product: sys::cublasLtMatmulDesc_t,
    left: sys::cublasLtMatrixLayout_t,
    right: sys::cublasLtMatrixLayout_t,
    out: sys::cublasLtMatrixLayout_t,
}

fn kind(element: Element) -> sys::cudaDataType_t {
    match element {
        Element::F32 => sys::cudaDataType_t::CUDA_R_32F,
        Element::Bf16 => sys::cudaDataType_t::CUDA_R_16BF,
    }
}

/// A matrix becomes so many, each `next` values behind the one before.
fn repeat(layout: sys::cublasLtMatrixLayout_t, count: usize, next: usize) -> Result<(), CublasError> {
    use sys::cublasLtMatrixLayoutAttribute_t::{
        CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET,
    };
    let (count, next) = (count as i32, next as i64);
    // SAFETY: the layout lives, and the values have the sizes that are said.
    unsafe {
        result::set_matrix_layout_attribute(
            layout,
            CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT,
            (&raw const count).cast(),
            size_of::<i32>(),
        )?;
        result::set_matrix_layout_attribute(
            layout,
            CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET,
            (&raw const next).cast(),
            size_of::<i64>(),
        )
    }
}

impl Descriptors {
    fn new(key: &Key) -> Result<Self, CublasError> {
        let (m, n, k) = key.sizes;
        let (factors, output) = key.elements;
        let layout = |element, columns: usize, rows: usize, stride: usize, next: usize| {
            let made =
                result::create_matrix_layout(kind(element), columns as u64, rows as u64, stride as i64)?;
            if key.parts > 1 {
                repeat(made, key.parts, next)?;
            }
            Ok(made)
        };
        let stored = |transposed, rows: usize, columns: usize| {
            if transposed { (rows, columns) } else { (columns, rows) }
        };
        // From a part to the next one: along a factor's rows, or from row to row.
        let along = |by_rows: bool, factor: usize| if by_rows { k * key.strides[factor] } else { k };
        let (left_columns, left_rows) = stored(key.transposed[0], m, k);
        let (right_columns, right_rows) = stored(key.transposed[1], k, n);
        let new = Self {
            product: result::create_matmul_desc(
                sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
                sys::cudaDataType_t::CUDA_R_32F,
            )?,
            left: layout(factors, left_columns, left_rows, key.strides[0], along(key.transposed[0], 0))?,
            right: layout(factors, right_columns, right_rows, key.strides[1], along(!key.transposed[1], 1))?,
            out: layout(output, n, m, key.strides[2], m * key.strides[2])?,
        };
        use sys::cublasLtMatmulDescAttributes_t::{
            CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_MATMUL_DESC_TRANSA, CUBLASLT_MATMUL_DESC_TRANSB,
        };
        let operation = |transposed: bool| i32::from(transposed);
        new.set(CUBLASLT_MATMUL_DESC_TRANSA, &operation(key.transposed[1]))?;
        new.set(CUBLASLT_MATMUL_DESC_TRANSB, &operation(key.transposed[0]))?;
        if key.bias {
            new.set(CUBLASLT_MATMUL_DESC_EPILOGUE, &sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS)?;
        }
        Ok(new)
    }

    fn set<T>(&self, attribute: sys::cublasLtMatmulDescAttributes_t, value: &T) -> Result<(), CublasError> {
        let value: *const T = value;
        // SAFETY: the descriptor lives, and the value has the size that is said.
        unsafe { result::set_matmul_desc_attribute(self.product, attribute, value.cast(), size_of::<T>()) }
    }

    fn algorithm(
        &self,
        handle: sys::cublasLtHandle_t,
        key: &Key,
    ) -> Result<sys::cublasLtMatmulAlgo_t, CublasError> {
        use sys::cublasLtMatmulPreferenceAttributes_t::{
            CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
            CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
            CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
        };
        use sys::cublasLtReductionScheme_t::{
            CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE, CUBLASLT_REDUCTION_SCHEME_NONE,
        };
        let scheme = if key.transposed[0] {
            CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE
        } else {
            CUBLASLT_REDUCTION_SCHEME_NONE
        } as u32;
        let [left, right, out] = key.alignments;
        let preference = result::create_matmul_pref()?;
        let set = |attribute, value: *const c_void, bytes| {
            // SAFETY: the preference lives, and the value has the size that is said.
            unsafe { result::set_matmul_pref_attribute(preference, attribute, value, bytes) }
        };
        let number = |attribute, value: u32| set(attribute, (&raw const value).cast(), size_of::<u32>());
        let workspace = WORKSPACE;
        let found =
            set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, (&raw const workspace).cast(), size_of::<usize>())
                .and_then(|()| number(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, scheme))
                .and_then(|()| number(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, right))
                .and_then(|()| number(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, left))
                .and_then(|()| number(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, out))
                .and_then(|()| number(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, out))
                // SAFETY: all descriptors live.
                .and_then(|()| unsafe {
                    result::get_matmul_algo_heuristic(
                        handle,
                        self.product,
                        self.right,
                        self.left,
                        self.out,
                        self.out,
                        preference,
                    )
                });
        // SAFETY: made above, and used no more.
        let gone = unsafe { result::destroy_matmul_pref(preference) };
        let found = found?;
        gone.map(|()| found.algo)
    }

    /// Whether an algorithm can do this call.
    fn takes(&self, handle: sys::cublasLtHandle_t, algorithm: &sys::cublasLtMatmulAlgo_t) -> bool {
        let mut found = std::mem::MaybeUninit::uninit();
        // SAFETY: all descriptors live; the answer is written where one has room.
        let checked = unsafe {
            sys::cublasLtMatmulAlgoCheck(
                handle,
                self.product,
                self.right,
                self.left,
                self.out,
                self.out,
                algorithm,
                found.as_mut_ptr(),
            )
        };
        // SAFETY: written, where the check says that it was done.
        checked.result().is_ok() && unsafe { found.assume_init() }.workspaceSize <= WORKSPACE
    }
}

impl Drop for Descriptors {
    fn drop(&mut self) {
        // SAFETY: made by `new`, and used no more. A failure leaves a few bytes behind.
        unsafe {
            let _ = result::destroy_matmul_desc(self.product);
            for layout in [self.left, self.right, self.out] {
                let _ = result::destroy_matrix_layout(layout);
            }
        }
    }
}

/// A call that is prepared.
#[derive(Debug)]
struct Plan {
    descriptors: Descriptors,
    algorithm: sys::cublasLtMatmulAlgo_t,
}

#[derive(Debug, Default)]
struct Plans {
    plans: HashMap<Key, Plan>,
    algorithms: HashMap<Key, sys::cublasLtMatmulAlgo_t>,
}

// SAFETY: descriptors are plain memory of the library, used by one thread at a time under the lock.
unsafe impl Send for Plans {}

/// cuBLASLt on one GPU.
#[derive(Debug)]
pub(super) struct Products {
    handle: sys::cublasLtHandle_t,
    plans: Mutex<Plans>,
}

// SAFETY: cuBLASLt's handle may be used by several threads at once.
unsafe impl Send for Products {}
// SAFETY: as above; plans are behind a lock.
unsafe impl Sync for Products {}

impl Products {
    /// For the GPU whose context is current.
    pub fn new() -> Result<Self, CublasError> {
        Ok(Self { handle: result::create_handle()?, plans: Mutex::default() })
    }

    /// Compute on a stream.
    ///
    /// # Safety
    /// The operands lie within memory of this stream or of the model; the workspace belongs to the stream.
    pub unsafe fn run(
        &self,
        call: &Product,
        workspace: &Memory,
        stream: sys::cudaStream_t,
    ) -> Result<(), CublasError> {
        let key = Key::new(call);
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        let Plans { plans, algorithms } = &mut *plans;
        let plan = match plans.entry(key) {
            std::collections::hash_map::Entry::Occupied(plan) => plan.into_mut(),
            std::collections::hash_map::Entry::Vacant(place) => {
                let descriptors = Descriptors::new(&key)?;
                let typical = key.algorithm();
                let known = match algorithms.get(&typical) {
                    Some(known) => *known,
                    None => {
                        let found = Descriptors::new(&typical)?.algorithm(self.handle, &typical)?;
                        algorithms.insert(typical, found);
                        found
                    }
                };
                // A number of rows that the algorithm cannot do gets one of its own: right, but perhaps with other bits.
                let algorithm = if descriptors.takes(self.handle, &known) {
                    known
                } else {
                    descriptors.algorithm(self.handle, &key)?
                };
                place.insert(Plan { descriptors, algorithm })
            }
        };
        let Descriptors { product, left, right, out } = plan.descriptors;
        if let Some(bias) = call.bias {
            plan.descriptors
                .set(sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias)?;
        }
        let (alpha, beta) = (call.scale, if call.accumulate { 1.0f32 } else { 0.0 });
        // SAFETY: descriptors live under the lock; operands by the caller.
        unsafe {
            result::matmul(
                self.handle,
                product,
                (&raw const alpha).cast(),
                (&raw const beta).cast(),
                call.right.pointer as *const c_void,
                right,
                call.left.pointer as *const c_void,
                left,
                call.out.pointer as *const c_void,
                out,
                call.out.pointer as *mut c_void,
                out,
                &raw const plan.algorithm,
                workspace.pointer() as *mut c_void,
                workspace.bytes(),
                stream,
            )
        }
    }
}

impl Drop for Products {
    fn drop(&mut self) {
        // SAFETY: made by `new`, and used no more.
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
}
