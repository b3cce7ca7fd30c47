//! A product as it is described: whether cuBLASLt does such a one.
//!
//! D = epilogue(alpha * op(A) op(B) + beta * C). What the library refuses is refused here, so that a layer above meets it.

use std::ffi::c_int;

use super::{
    INVALID_VALUE, NOT_SUPPORTED, Status, Type,
    layouts::Layout,
    objects::{self, Kind, Object},
    product::{Epilogue, Product},
    refuse,
};

// cublasComputeType_t
const COMPUTE_F32: c_int = 68;
const COMPUTE_F32_PEDANTIC: c_int = 69;
const COMPUTE_F32_FAST_TF32: c_int = 77;

// cublasLtMatmulDescAttributes_t
const POINTER_MODE: c_int = 2;
const TRANSPOSE_A: c_int = 3;
const TRANSPOSE_B: c_int = 4;
const TRANSPOSE_C: c_int = 5;
const EPILOGUE: c_int = 7;
const BIAS_BATCH_STRIDE: c_int = 10;
const AUXILIARY_LEADING: c_int = 12;
const AUXILIARY_BATCH_STRIDE: c_int = 13;
const AUXILIARY_TYPE: c_int = 22;
const BIAS_TYPE: c_int = 26;

/// Scalars in the host's memory.
const POINTER_MODE_HOST: i64 = 0;
/// What a GELU's input is aligned to, in values.
const AUXILIARY_LEADING_MULTIPLE: usize = 8;

/// A product without its addresses.
pub struct Matmul {
    pub product: Product,
    pub description: Object,
}

/// Whether cuBLASLt multiplies such types, and whether as TF32. The table is that of `cublasLtMatmul`.
pub fn supported(compute: c_int, scale: c_int, types: [c_int; 4]) -> Result<bool, Status> {
    let tf32 = compute == COMPUTE_F32_FAST_TF32;
    if !tf32 && compute != COMPUTE_F32 && compute != COMPUTE_F32_PEDANTIC {
        return refuse(NOT_SUPPORTED, &format!("compute type {compute}: only sums in f32"));
    }
    if Type::from_number(scale) != Some(Type::F32) {
        return refuse(NOT_SUPPORTED, &format!("scale type {scale}: only f32"));
    }
    match types.map(Type::from_number) {
        [Some(a), Some(b), Some(c), Some(d)] if a == b && c == d && (a == Type::Bf16 || d == Type::F32) => {
            Ok(tf32 && a == Type::F32)
        }
        [a, b, c, d] => refuse(
            NOT_SUPPORTED,
            &format!(
                "A {a:?}, B {b:?}, C {c:?}, D {d:?}: A and B must be of one type, C and D too, and D of f32 A is f32"
            ),
        ),
    }
}

impl Matmul {
    pub fn of(description: usize, layouts: [usize; 4]) -> Result<Matmul, Status> {
        let description = objects::object(description)?;
        let Kind::Description { compute, scale } = description.kind else { return Err(INVALID_VALUE) };
        let mut types = [0; 4];
        for (number, layout) in types.iter_mut().zip(layouts) {
            let Kind::Layout { kind, .. } = objects::object(layout)?.kind else { return Err(INVALID_VALUE) };
            *number = kind;
        }
        let tf32 = supported(compute, scale, types)?;
        let [a, b, c, d] = [
            Layout::of(layouts[0])?,
            Layout::of(layouts[1])?,
            Layout::of(layouts[2])?,
            Layout::of(layouts[3])?,
        ];
        let set = &description.attributes;
        if set.number(POINTER_MODE).unwrap_or(POINTER_MODE_HOST) != POINTER_MODE_HOST {
            return refuse(NOT_SUPPORTED, "scalars on the device");
        }
        if set.count(TRANSPOSE_C) != 0 {
            return refuse(NOT_SUPPORTED, "a transposed C");
        }
        let [transpose_a, transpose_b] = [TRANSPOSE_A, TRANSPOSE_B].map(|key| set.count(key) != 0);
        let turned = |layout: &Layout, turned: bool| {
            if turned { (layout.cols, layout.rows) } else { (layout.rows, layout.cols) }
        };
        let ((rows, inner), (inner_b, cols)) = (turned(&a, transpose_a), turned(&b, transpose_b));
        if inner != inner_b || (rows, cols) != (d.rows, d.cols) || (rows, cols) != (c.rows, c.cols) {
            return refuse(
                INVALID_VALUE,
                &format!(
                    "op(A) is {rows} x {inner}, op(B) {inner_b} x {cols}, C {} x {}, D {} x {}",
                    c.rows, c.cols, d.rows, d.cols
                ),
            );
        }
        if [a.batch, b.batch, c.batch].iter().any(|batch| *batch != d.batch) {
            return refuse(INVALID_VALUE, "batches of different sizes");
        }
        let number = set.number(EPILOGUE).unwrap_or(1);
        let Some(epilogue) = Epilogue::from_number(number) else {
            return refuse(NOT_SUPPORTED, &format!("epilogue {number}"));
        };
        // A type that is not set, or is -1, is that of D.
        let type_of = |key| match set.number(key).unwrap_or(-1) {
            -1 => Ok(d.kind),
            number => Type::from_number(number as c_int).ok_or(NOT_SUPPORTED),
        };
        let product = Product {
            a,
            b,
            c,
            d,
            transpose_a,
            transpose_b,
            inner,
            tf32,
            epilogue,
            bias_type: type_of(BIAS_TYPE)?,
            auxiliary_type: type_of(AUXILIARY_TYPE)?,
            auxiliary_leading: set.count(AUXILIARY_LEADING),
            bias_stride: set.count(BIAS_BATCH_STRIDE),
            auxiliary_stride: set.count(AUXILIARY_BATCH_STRIDE),
            alpha: 1.0,
            beta: 0.0,
            a_at: 0,
            b_at: 0,
            c_at: 0,
            d_at: 0,
            bias_at: 0,
            auxiliary_at: 0,
        };
        if epilogue.auxiliary() {
            let leading = product.auxiliary_leading;
            if leading < rows || !leading.is_multiple_of(AUXILIARY_LEADING_MULTIPLE) {
                return refuse(
                    INVALID_VALUE,
                    &format!(
                        "an auxiliary matrix with a column each {leading} values: at least {rows}, and a multiple of 8"
                    ),
                );
            }
        }
        Ok(Matmul { product, description })
    }
}
