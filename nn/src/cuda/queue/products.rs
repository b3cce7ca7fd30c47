//! Matrix products, and factors made of an adapter's values.
//!
//! `M` rows, `K` summed axis, `N` columns of a result, `R` rank.

#![allow(unsafe_code, reason = "products on memory of the stream")]

use std::sync::Arc;

use super::{CudaQueue, rows::Rows};
use crate::{
    cuda::{
        Cuda,
        launch::{Grid, flag, float, int},
        modules::Source,
        products::{Operand, Product},
        values::{CudaBuffer, CudaMatrix, Element, MatrixMemory},
    },
    device::{Direction, FactorParts, Gemm, GemmTn, Kind, Left, Queue, View, ViewMut, WindowRows, Windows},
};

/// A product with at most so many columns is narrow: it reads far more than it multiplies.
const NARROW: usize = 256;
/// The most that a narrow product sums at once. cuBLASLt may not split a sum, since the order would be its own, and has no good algorithm for
/// a longer one: [3872, 12288] by [12288, 32] took 0.28 ms on an H200, which is the tenth part of its memory's rate.
const SUMMED: usize = 3072;
/// Parts of a sum begin at a multiple of so many values: of sixteen bytes, and of what a tensor core takes at once.
const PART_MULTIPLE: usize = 16;

/// Bytes that a factor's place is a multiple of: what an allocation's is.
const FACTOR_ALIGNMENT: usize = 256;
/// Blocks that share a factor.
const BLOCKS_OF_A_FACTOR: usize = 16;

impl Rows {
    fn operand(self, transposed: bool) -> Operand {
        Operand { pointer: self.pointer, stride: self.stride, transposed }
    }
}

impl Operand {
    /// From the value `along` of the summed axis on.
    fn from(self, along: usize, summed_in_rows: bool, element: Element) -> Self {
        let values = if summed_in_rows { along } else { along * self.stride };
        Self { pointer: self.pointer + (values * element.size()) as u64, ..self }
    }
}

impl CudaMatrix {
    /// As the right factor of a product of one direction: its sizes K and N, and where it lies.
    fn right(&self, direction: Direction) -> (usize, usize, Operand) {
        let pointer = self.memory.pointer();
        let operand = |transposed| Operand { pointer, stride: self.columns, transposed };
        match direction {
            Direction::Forward => (self.columns, self.rows, operand(true)),
            Direction::Backward => (self.rows, self.columns, operand(false)),
        }
    }
}

impl CudaQueue {
    fn product(&self, call: &Product) {
        let (m, n, k) = call.sizes;
        if self.has_failed() || m == 0 || n == 0 || k == 0 {
            return;
        }
        let run = || {
            let stream = &self.lane.stream;
            stream.context().bind_to_thread().map_err(|e| self.cuda.0.failed("multiply", e))?;
            // SAFETY: views were checked against the sizes; memory is of this stream or of the model; the workspace is this
            // stream's.
            let done =
                unsafe { self.cuda.0.products.run(call, &self.lane.workspace, stream.cu_stream().cast()) };
            // The library says the same of a call that it refuses and of a GPU that was lost before: the driver knows which.
            done.map_err(|refused| match stream.synchronize() {
                Err(lost) => self.cuda.0.failed("multiply", lost),
                Ok(()) => self
                    .cuda
                    .0
                    .error(format!("cuBLASLt does not multiply [{m}, {k}] by [{k}, {n}]: {:?}", refused.0)),
            })
        };
        self.note(run());
    }

    pub(super) fn scaled_factor(
        &self,
        parts: &[View<'_, Cuda>],
        rows: usize,
        columns: usize,
        scale: f32,
    ) -> CudaMatrix {
        let each = rows * columns;
        let element = self.activation();
        let all = self.buffer(parts.len() * each, element);
        for (i, part) in parts.iter().enumerate() {
            let from = Rows::of(*part, 1, each);
            let to = Rows::of(View::new(&all, each).skip(i * each), 1, each);
            debug_assert_eq!(from.element, Element::F32, "factors are made of an adapter's values");
            let wide = flag(from.is_aligned() && to.is_aligned());
            let arguments = [float(scale), from.argument(), to.argument(), int(each), wide];
            self.launch(Source::Pointwise, "scaled_factor", self.chunks(1, each), &arguments);
        }
        CudaMatrix { memory: all.memory.into(), rows: parts.len() * rows, columns, element }
    }

    /// Factors that stand one after the other in one run of memory, by one kernel.
    pub(super) fn scaled_factors(&self, values: &CudaBuffer, wanted: &[FactorParts]) -> Vec<CudaMatrix> {
        let element = self.activation();
        let (mut table, mut places, mut len) = (Vec::<u64>::new(), Vec::new(), 0usize);
        for FactorParts { starts, rows, columns, scale } in wanted {
            len = len.next_multiple_of(FACTOR_ALIGNMENT / element.size());
            places.push(len);
            for start in starts {
                let count = rows * columns;
                assert!(start + count <= values.len, "a factor ends at {} of {}", start + count, values.len);
                let count_and_scale =
                    [u32::try_from(count).expect("a factor below 2^31 values"), scale.to_bits()];
                table.extend([*start as u64, len as u64, bytemuck::cast(count_and_scale)]);
                len += count;
            }
        }
        let all = self.buffer(len, element);
        let parts = table.len() / 3;
        // A number of eight bytes takes the place of two values.
        let listed = self.take(2 * table.len(), Kind::Exact);
        self.write(bytemuck::cast_slice(&table), &listed);
        let (from, to) = (Rows::flat(values, values.len), Rows::flat(&all, len));
        debug_assert_eq!(from.element, Element::F32, "factors are made of an adapter's values");
        let listed = Rows::flat(&listed, 2 * table.len()).argument();
        let arguments = [from.argument(), to.argument(), listed, flag(from.is_aligned() && to.is_aligned())];
        let grid = Grid { blocks: (BLOCKS_OF_A_FACTOR, parts), threads: 256, shared: 0 };
        self.launch(Source::Pointwise, "scaled_factors", grid, &arguments);
        let matrix = |(FactorParts { starts, rows, columns, .. }, place): (&FactorParts, usize)| CudaMatrix {
            memory: all.memory.as_ref().map_or(MatrixMemory::Nowhere, |memory| {
                MatrixMemory::Part(Arc::clone(memory), (place * element.size()) as u64)
            }),
            rows: starts.len() * rows,
            columns: *columns,
            element,
        };
        wanted.iter().zip(places).map(matrix).collect()
    }

    /// `of_samples`: rows are samples of a batch.
    pub(super) fn product_with_weight(&self, call: Gemm<'_, Cuda>, of_samples: bool) {
        let Gemm { m, x, weight, direction, extra, bias, accumulate, out } = call;
        let (k, n, right) = weight.right(direction);
        let (x, _copy) = self.left_factor(x, m, k);
        let result = Rows::of_mut(&out, m, n);
        // The epilogue's bias is stored as the result is; another one is where the sum begins.
        let bias = bias.map(|bias| Rows::flat(bias, n));
        let (bias, begun) = match bias {
            Some(bias) if bias.element == result.element => (Some(bias.pointer), false),
            Some(bias) => {
                self.convert(Rows { stride: 0, ..bias }, result, m, n);
                (None, true)
            }
            None => (None, false),
        };
        let product = Product {
            sizes: (m, n, k),
            left: x.operand(false),
            right,
            out: result.operand(false),
            bias,
            scale: 1.0,
            accumulate: accumulate || begun,
            parts: 1,
            // In f32 an algorithm for few rows gives one row other bits than several.
            of_samples: of_samples && weight.element == Element::Bf16,
            factors: weight.element,
            result: result.element,
        };
        let fresh = !product.accumulate && product.bias.is_none();
        let narrow = fresh && n <= NARROW && k > SUMMED && result.element == Element::Bf16;
        if narrow {
            self.narrow_product(&product, result);
        }
        // The small product comes first: it only writes, and the large one reads that while it multiplies. The other way round the small
        // one would read and write all, and it does nothing else for as long.
        let begun = narrow || product.accumulate;
        // A product over nothing writes nothing.
        let extra = extra.filter(|extra| extra.weight.right(extra.direction).0 > 0);
        if let Some(extra) = extra {
            let (k, _, right) = extra.weight.right(extra.direction);
            let (x, _copy) = self.left_factor(extra.x, m, k);
            let sizes = (m, n, k);
            let left = x.operand(false);
            let factors = extra.weight.element;
            let extra = Product { sizes, left, right, bias: None, accumulate: begun, factors, ..product };
            if !self.expand(&extra) {
                self.product(&extra);
            }
        }
        if !narrow {
            self.product(&Product { accumulate: begun || extra.is_some(), ..product });
        }
    }

    /// Rows of activations; windows are copied.
    fn left_factor(&self, x: Left<'_, Cuda>, m: usize, k: usize) -> (Rows, Option<CudaBuffer>) {
        let WindowRows { window, size, channels, x } = match x {
            Left::Rows(x) => return self.as_activations(Rows::of(x, m, k), m, k),
            Left::Windows(windows) => windows,
        };
        let mut copy = self.buffer(m * k, self.activation());
        let outputs = window.output(size.0) * window.output(size.1);
        for sample in 0..m / outputs.max(1) {
            let x = x.skip(sample * size.0 * size.1 * channels);
            let out = ViewMut::new(&mut copy, k).skip(sample * outputs * k);
            self.windows(Windows { window, size, channels, pixels: 0..outputs, x, out });
        }
        (Rows::of(View::new(&copy, k), m, k), Some(copy))
    }

    /// A narrow product, in parts of the summed axis that are added in their order, in f32. One call makes all of one length: a part alone
    /// has too few rows for all multiprocessors.
    fn narrow_product(&self, product: &Product, result: Rows) {
        let (m, n, k) = product.sizes;
        let each = k.div_ceil(k.div_ceil(SUMMED)).next_multiple_of(PART_MULTIPLE);
        let (whole, parts) = (k / each, k.div_ceil(each));
        let sums = self.buffer(parts * m * n, Element::F32);
        let sums = View::new(&sums, n);
        for (first, count, length) in [(0, whole, each), (whole, parts - whole, k % each)] {
            let along = first * each;
            if count > 0 {
                self.product(&Product {
                    sizes: (m, n, length),
                    left: product.left.from(along, true, product.factors),
                    right: product.right.from(along, product.right.transposed, product.factors),
                    out: Rows::of(sums.skip(first * m * n), count * m, n).operand(false),
                    parts: count,
                    result: Element::F32,
                    ..*product
                });
            }
        }
        let sums = Rows::of(sums, parts * m, n);
        self.launch(
            Source::Pointwise,
            "add_parts",
            self.chunks(m, n),
            &[
                sums.argument(),
                result.argument(),
                int(m),
                int(n),
                int(parts),
                int(m * n),
                int(result.stride),
                flag(sums.is_wide() && result.is_wide()),
            ],
        );
    }

    pub(super) fn sum_of_products(&self, call: GemmTn<'_, Cuda>) {
        let GemmTn { m, p, q, a, b, scale, out } = call;
        let (a, _copy_a) = self.as_activations(Rows::of(a, m, p), m, p);
        let (b, _copy_b) = self.as_activations(Rows::of(b, m, q), m, q);
        let out = Rows { stride: q, ..Rows::of_mut(&out, 1, p * q) };
        if self.factor_sums(m, (a, p), (b, q), scale, out) {
            return;
        }
        self.product(&Product {
            sizes: (p, q, m),
            left: a.operand(true),
            right: b.operand(false),
            out: out.operand(false),
            bias: None,
            scale,
            accumulate: false,
            parts: 1,
            of_samples: false,
            factors: self.activation(),
            result: out.element,
        });
    }
}
