//! The arithmetic of a product.
//!
//! Each value is a sum over the inner index in one order, which depends on neither the number of rows nor that of columns: a
//! row of a batch has the same bits whatever else is in the batch. One rounding to the type of D ends it.

use super::{
    Type,
    layouts::{Layout, get, put},
};
use crate::{settings::settings, work::Range};

/// Products smaller than this are not worth another thread.
const OPERATIONS_PER_THREAD: usize = 1 << 20;
/// sqrt(2 / pi), of the tanh form of GELU, which is cuBLAS's.
const GELU_SCALE: f32 = 0.797_884_6;
const GELU_CUBE: f32 = 0.044_715;
/// Bits of an f32's fraction that TF32 has not.
const TF32_LOST: u32 = 13;

/// `cublasLtEpilogue_t` is a sum of these, or 1 for none.
#[derive(Clone, Copy)]
pub struct Epilogue(i64);

impl Epilogue {
    const RELU: i64 = 2;
    const BIAS: i64 = 4;
    const GELU: i64 = 32;
    const GELU_SLOPE: i64 = 64;
    const AUXILIARY: i64 = 128;

    pub fn from_number(number: i64) -> Option<Epilogue> {
        const NONE: i64 = 1;
        let known = [
            NONE,
            Epilogue::RELU,
            Epilogue::BIAS,
            Epilogue::RELU | Epilogue::BIAS,
            Epilogue::GELU,
            Epilogue::GELU | Epilogue::BIAS,
            Epilogue::GELU | Epilogue::AUXILIARY,
            Epilogue::GELU | Epilogue::AUXILIARY | Epilogue::BIAS,
            Epilogue::GELU_SLOPE | Epilogue::AUXILIARY,
        ];
        known.contains(&number).then_some(Epilogue(number))
    }
    fn has(self, part: i64) -> bool {
        self.0 & part != 0
    }
    fn bias(self) -> bool {
        self.has(Epilogue::BIAS)
    }
    pub fn auxiliary(self) -> bool {
        self.has(Epilogue::AUXILIARY)
    }
    fn slope(self) -> bool {
        self.has(Epilogue::GELU_SLOPE)
    }
}

#[derive(Clone, Copy)]
pub struct Product {
    pub a: Layout,
    pub b: Layout,
    pub c: Layout,
    pub d: Layout,
    pub a_at: usize,
    pub b_at: usize,
    pub c_at: usize,
    pub d_at: usize,
    pub transpose_a: bool,
    pub transpose_b: bool,
    /// Products that are summed for each value.
    pub inner: usize,
    pub tf32: bool,
    pub alpha: f32,
    pub beta: f32,
    pub epilogue: Epilogue,
    pub bias_at: usize,
    pub bias_type: Type,
    pub bias_stride: usize,
    /// What a GELU's slope needs later: its input.
    pub auxiliary_at: usize,
    pub auxiliary_type: Type,
    pub auxiliary_leading: usize,
    pub auxiliary_stride: usize,
}

fn gelu(x: f32) -> f32 {
    0.5 * x * (1.0 + libm::tanhf(GELU_SCALE * (x + GELU_CUBE * x * x * x)))
}
fn gelu_slope(x: f32) -> f32 {
    let tanh = libm::tanhf(GELU_SCALE * (x + GELU_CUBE * x * x * x));
    0.5 * (1.0 + tanh) + 0.5 * x * (1.0 - tanh * tanh) * GELU_SCALE * (1.0 + 3.0 * GELU_CUBE * x * x)
}
fn to_tf32(value: f32) -> f32 {
    let half = 1 << (TF32_LOST - 1);
    f32::from_bits(value.to_bits().saturating_add(half) >> TF32_LOST << TF32_LOST)
}

impl Product {
    /// What it reads and what it writes.
    pub fn ranges(&self) -> (Vec<Range>, Vec<Range>) {
        let mut reads = vec![(self.a_at, self.a.bytes()), (self.b_at, self.b.bytes())];
        let mut writes = vec![(self.d_at, self.d.bytes())];
        if self.beta != 0.0 {
            reads.push((self.c_at, self.c.bytes()));
        }
        let last = self.d.batch - 1;
        if self.epilogue.bias() {
            reads.push((self.bias_at, (last * self.bias_stride + self.d.rows) * self.bias_type.bytes()));
        }
        if self.epilogue.auxiliary() {
            let values = self.auxiliary(last, self.d.rows - 1, self.d.cols - 1) + 1;
            let list = if self.epilogue.slope() { &mut reads } else { &mut writes };
            list.push((self.auxiliary_at, values * self.auxiliary_type.bytes()));
        }
        (reads, writes)
    }

    fn auxiliary(&self, batch: usize, row: usize, col: usize) -> usize {
        batch * self.auxiliary_stride + col * self.auxiliary_leading + row
    }

    pub fn run(&self) {
        for batch in 0..self.d.batch {
            let sums = self.sums(batch);
            for col in 0..self.d.cols {
                for row in 0..self.d.rows {
                    self.finish(batch, row, col, sums[col * self.d.rows + row]);
                }
            }
        }
    }

    /// op(A) op(B), by columns.
    fn sums(&self, batch: usize) -> Vec<f32> {
        let (mut a, mut b) = (self.a.read(self.a_at, batch), self.b.read(self.b_at, batch));
        if self.tf32 {
            a.iter_mut().chain(&mut b).for_each(|value| *value = to_tf32(*value));
        }
        let (rows, cols, inner) = (self.d.rows, self.d.cols, self.inner);
        let mut sums = vec![0.0; rows * cols];
        let parts = (rows * cols * inner / OPERATIONS_PER_THREAD).clamp(1, settings().threads.min(cols));
        let cols_each = cols.div_ceil(parts);
        let b_step = if self.transpose_b { 1 } else { self.b.rows };
        std::thread::scope(|scope| {
            for (part, sums) in sums.chunks_mut(cols_each * rows).enumerate() {
                let (a, b) = (&a[..], &b[part * cols_each * b_step..]);
                let mut work = move || self.multiply(a, b, sums);
                if parts == 1 {
                    work();
                } else {
                    scope.spawn(work);
                }
            }
        });
        sums
    }

    fn multiply(&self, a: &[f32], b: &[f32], sums: &mut [f32]) {
        let rows = self.d.rows;
        let strides = |layout: &Layout, turned: bool| {
            let step = layout.rows as isize;
            if turned { (step, 1) } else { (1, step) }
        };
        let ((a_row, a_col), (b_row, b_col)) =
            (strides(&self.a, self.transpose_a), strides(&self.b, self.transpose_b));
        // SAFETY: `a` has rows * inner values and `b` those of as many columns as `sums`, with these steps.
        // Alpha 1 and beta 0: with others the edges of the result round otherwise than its middle.
        unsafe {
            matrixmultiply::sgemm(
                rows,
                self.inner,
                sums.len() / rows,
                1.0,
                a.as_ptr(),
                a_row,
                a_col,
                b.as_ptr(),
                b_row,
                b_col,
                0.0,
                sums.as_mut_ptr(),
                1,
                rows as isize,
            );
        }
    }

    /// From a sum to the value of D.
    fn finish(&self, batch: usize, row: usize, col: usize, sum: f32) {
        let mut value = self.alpha * sum;
        if self.beta != 0.0 {
            value += self.beta * get(self.c.kind, self.c_at, self.c.place(batch, row, col));
        }
        if self.epilogue.bias() {
            value += get(self.bias_type, self.bias_at, batch * self.bias_stride + row);
        }
        if self.epilogue.slope() {
            let input = get(self.auxiliary_type, self.auxiliary_at, self.auxiliary(batch, row, col));
            value *= gelu_slope(input);
        } else if self.epilogue.auxiliary() {
            put(self.auxiliary_type, self.auxiliary_at, self.auxiliary(batch, row, col), value);
        }
        if self.epilogue.has(Epilogue::GELU) {
            value = gelu(value);
        }
        if self.epilogue.has(Epilogue::RELU) {
            value = value.max(0.0);
        }
        put(self.d.kind, self.d_at, self.d.place(batch, row, col), value);
    }
}
