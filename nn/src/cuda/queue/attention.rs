//! Attention.
//!
//! `B` samples, `H` heads, `T` tokens, `U` keys, `D` width of a head.

use super::{CudaQueue, rows::Rows};
use crate::{
    cuda::{
        Cuda,
        launch::{Argument, Grid, flag, float, int, pointer},
        modules::Source,
        values::Element,
    },
    device::{Attention, AttentionBackward, AttentionShape, Kind, Queue},
};

/// Rows of a block of the plain attention, and rows of a tile (`attention_plain.cu`).
const ROWS: usize = 4;
const TILE: usize = 32;
/// Threads of a block of the kernel of delta (`attention_backward.cu`).
const THREADS: usize = 128;
/// Queries of a part of the backward of keys, for each block of a head's keys.
const QUERIES_OF_A_PART: usize = 256;

/// A block for four rows of every head.
fn plain_grid(shape: AttentionShape, rows: usize) -> Grid {
    let shared = (TILE * (shape.dim + 1) + 2 * ROWS * shape.dim + ROWS * TILE) * 4;
    Grid { blocks: (rows.div_ceil(ROWS), shape.batch * shape.heads), threads: 128, shared }
}

/// A kernel of attention on tensor cores.
struct Kernel {
    source: Source,
    name: &'static str,
    warps: usize,
    /// Rows that a block has.
    rows: usize,
    /// Rows of a tile of the other side.
    tile: usize,
    /// Tiles of the other side that are in shared memory at once.
    tiles: usize,
}

/// The kernels of attention for one width of a head, on tensor cores.
struct TensorCores {
    dim: usize,
    delta: &'static str,
    forward: Kernel,
    queries: Kernel,
    keys: Kernel,
    backward: Halves,
    /// Bytes of shared memory that it takes to begin tiles where they must begin.
    alignment: usize,
}

/// How the halves of the backward pass run.
enum Halves {
    /// One kernel has both: blocks of keys first, and as many of queries.
    Joint(&'static str),
    /// Each has its kernel, and there is one of keys over parts of the queries.
    Apart { parts: &'static str },
}

/// By `mma.sync`, for every GPU.
const BY_WARPS: [TensorCores; 2] = {
    const fn kernel(
        source: Source,
        name: &'static str,
        (rows, tile, tiles): (usize, usize, usize),
    ) -> Kernel {
        Kernel { source, name, warps: 4, rows, tile, tiles }
    }
    use Source::{AttentionBackward as Backward, AttentionForward as Forward};
    [
        TensorCores {
            dim: 64,
            delta: "attention_delta_64",
            forward: kernel(Forward, "attention_64", (128, 64, 2)),
            queries: kernel(Backward, "attention_queries_64", (128, 32, 4)),
            keys: kernel(Backward, "attention_keys_64", (128, 32, 4)),
            backward: Halves::Apart { parts: "attention_key_parts_64" },
            alignment: 0,
        },
        TensorCores {
            dim: 128,
            delta: "attention_delta_128",
            forward: kernel(Forward, "attention_128", (128, 64, 2)),
            queries: kernel(Backward, "attention_queries_128", (128, 32, 4)),
            keys: kernel(Backward, "attention_keys_128", (64, 64, 4)),
            backward: Halves::Apart { parts: "attention_key_parts_128" },
            alignment: 0,
        },
    ]
};

/// By `wgmma`, which Hopper has and no other GPU: for tokens over themselves.
const BY_WARPGROUPS: [TensorCores; 2] = {
    const fn kernel(source: Source, name: &'static str, (tile, tiles): (usize, usize)) -> Kernel {
        Kernel { source, name, warps: 8, rows: 128, tile, tiles }
    }
    use Source::{AttentionWgmmaBackward as Backward, AttentionWgmmaForward as Forward};
    [
        TensorCores {
            dim: 64,
            delta: "attention_delta_64",
            forward: kernel(Forward, "attention_wgmma_64", (128, 6)),
            queries: kernel(Backward, "attention_wgmma_backward_64", (128, 7)),
            keys: kernel(Backward, "attention_wgmma_backward_64", (64, 8)),
            backward: Halves::Joint("attention_wgmma_backward_64"),
            alignment: 1024,
        },
        TensorCores {
            dim: 128,
            delta: "attention_delta_128",
            forward: kernel(Forward, "attention_wgmma_128", (128, 6)),
            queries: kernel(Backward, "attention_wgmma_backward_128", (80, 7)),
            keys: kernel(Backward, "attention_wgmma_backward_128", (64, 8)),
            backward: Halves::Joint("attention_wgmma_backward_128"),
            alignment: 1024,
        },
    ]
};

/// The GPU whose kernels are by `wgmma`.
const HOPPER: (i32, i32) = (9, 0);

impl TensorCores {
    /// Where tensor cores can do it: bf16, a width that there are kernels for, and rows of whole sixteen bytes.
    fn for_rows(capability: (i32, i32), shape: AttentionShape, rows: &[Rows]) -> Option<&'static Self> {
        let fit = |r: &Rows| r.element == Element::Bf16 && r.is_wide();
        let over_themselves = shape.keys == shape.tokens;
        let kernels = if capability == HOPPER && over_themselves { &BY_WARPGROUPS } else { &BY_WARPS };
        kernels.iter().find(|t| t.dim == shape.dim && rows.iter().all(fit))
    }

    /// Heads, tokens and keys as the kernels take them: those by `wgmma` have as many keys as tokens.
    fn sizes(&self, shape: AttentionShape) -> Vec<Argument> {
        let sizes = [shape.heads, shape.tokens, shape.keys].map(int);
        match self.backward {
            Halves::Joint(_) => sizes[..2].to_vec(),
            Halves::Apart { .. } => sizes.to_vec(),
        }
    }

    /// Blocks for `rows` of every head, with `own` tiles of a block's rows in shared memory, and `more` bytes.
    fn grid(&self, shape: AttentionShape, rows: usize, kernel: &Kernel, own: usize, more: usize) -> Grid {
        let tiles = (own * kernel.rows + kernel.tiles * kernel.tile) * 2 * self.dim;
        let blocks = (rows.div_ceil(kernel.rows), shape.batch * shape.heads);
        Grid { blocks, threads: 32 * kernel.warps as u32, shared: tiles + more + self.alignment }
    }
}

impl AttentionShape {
    /// Numbers of the queries.
    fn query_values(&self) -> usize {
        self.batch * self.heads * self.tokens * self.dim
    }

    /// Numbers of the keys, and of the values.
    fn values(&self) -> usize {
        self.batch * self.heads * self.keys * self.dim
    }

    /// Rows of the result, and values of each.
    fn result(&self) -> (usize, usize) {
        (self.batch * self.tokens, self.heads * self.dim)
    }

    fn scale(&self) -> f32 {
        1.0 / (self.dim as f32).sqrt()
    }
}

impl CudaQueue {
    pub(super) fn attend(&self, call: Attention<'_, Cuda>) {
        let Attention { shape, query_rows, scores, q, k, v, out, lse } = call;
        let q = Rows::flat(q, shape.query_values());
        let [k, v] = [k, v].map(|b| Rows::flat(b, shape.values()));
        let (rows, width) = shape.result();
        let out = Rows::of_mut(&out, rows, width);
        let lse = Rows::flat(lse, shape.batch * shape.heads * shape.tokens);
        let (tokens, keys) = (shape.heads * shape.tokens, shape.keys);
        let bias = scores.bias.map_or(pointer(0), |bias| Rows::flat(bias, tokens * keys).argument());
        self.expect_activations("attention", [q, k, v, out]);
        let rows = [q, k, v, out, lse].map(Rows::argument);
        let queries = [query_rows.start, query_rows.len()].map(int);
        let end = [int(out.stride), float(scores.scale.unwrap_or(shape.scale()))];
        let Some(tensor_cores) = TensorCores::for_rows(self.cuda.info().capability, shape, &[q, k, v, out])
            .filter(|_| scores.are_plain())
        else {
            let sizes = [shape.heads, shape.tokens, shape.keys, shape.dim].map(int);
            let more = [bias, flag(scores.causal)];
            let arguments = [&rows[..], &sizes, &queries, &end, &more].concat();
            let grid = plain_grid(shape, query_rows.len());
            return self.launch(Source::AttentionPlain, "attention_plain", grid, &arguments);
        };
        let kernel = &tensor_cores.forward;
        let grid = tensor_cores.grid(shape, query_rows.len(), kernel, 1, 0);
        let arguments = [&rows[..], &tensor_cores.sizes(shape), &queries, &end].concat();
        self.launch(kernel.source, kernel.name, grid, &arguments);
    }

    pub(super) fn attend_backward(&self, call: AttentionBackward<'_, Cuda>) {
        let AttentionBackward { shape, query_rows, q, k, v, out, lse, d_out, dq, dk, dv } = call;
        let [q, dq] = [q, &*dq].map(|b| Rows::flat(b, shape.query_values()));
        let [k, v, dk, dv] = [k, v, &*dk, &*dv].map(|b| Rows::flat(b, shape.values()));
        let (rows, width) = shape.result();
        let (out, d_out) = (Rows::of(out, rows, width), Rows::of(d_out, rows, width));
        let sums = shape.batch * shape.heads * shape.tokens;
        let lse = Rows::flat(lse, sums);
        self.expect_activations("attention_backward", [q, k, v, out, d_out, dq, dk, dv]);
        let delta = self.take(sums, Kind::Exact);
        let delta = Rows::flat(&delta, sums);
        let queries = [query_rows.start, query_rows.len()].map(int);
        let sums = [out, d_out, delta].map(Rows::argument);
        let strides = [out.stride, d_out.stride].map(int);
        let inputs = [q, k, v, d_out, lse, delta].map(Rows::argument);
        let end = [int(d_out.stride), float(shape.scale())];
        let to_queries = [dq.argument()];
        let to_keys = [dk.argument(), dv.argument()];
        let operands = [q, k, v, out, d_out, dq, dk, dv];
        let Some(tensor_cores) = TensorCores::for_rows(self.cuda.info().capability, shape, &operands) else {
            let [heads, tokens, keys, dim] = [shape.heads, shape.tokens, shape.keys, shape.dim].map(int);
            let sizes = [&[heads, tokens, keys, dim][..], &queries].concat();
            let launch = |name, grid, arguments: &[&[Argument]]| {
                self.launch(Source::AttentionPlain, name, grid, &arguments.concat());
            };
            let delta_grid = Grid { shared: 0, ..plain_grid(shape, query_rows.len()) };
            launch("attention_delta", delta_grid, &[&sums, &[heads, tokens, dim], &queries, &strides]);
            let grid = plain_grid(shape, shape.tokens);
            launch("attention_plain_queries", grid, &[&inputs, &to_queries, &sizes, &end]);
            let grid = plain_grid(shape, shape.keys);
            launch("attention_plain_keys", grid, &[&inputs, &to_keys, &sizes, &end]);
            return;
        };
        let delta_rows = THREADS / (shape.dim / 8);
        let blocks = (query_rows.len().div_ceil(delta_rows), shape.batch * shape.heads);
        let grid = Grid { blocks, threads: THREADS as u32, shared: 0 };
        let tokens = [shape.heads, shape.tokens].map(int);
        let arguments = [&sums[..], &tokens, &queries, &strides].concat();
        self.launch(Source::AttentionBackward, tensor_cores.delta, grid, &arguments);
        let sizes = [&tensor_cores.sizes(shape)[..], &queries].concat();
        let TensorCores { queries, keys, .. } = tensor_cores;
        // The keys' with lse and delta of their queries, of which there are a tile and one of cotangents.
        let sums = keys.tiles / 2 * keys.tile * 2 * size_of::<f32>();
        let queries_grid = tensor_cores.grid(shape, shape.tokens, queries, 2, 0);
        let keys_grid = tensor_cores.grid(shape, shape.keys, keys, 2, sums);
        let parts_kernel = match tensor_cores.backward {
            Halves::Joint(name) => {
                let (x, y) = queries_grid.blocks;
                let shared = queries_grid.shared.max(keys_grid.shared);
                let grid = Grid { blocks: (2 * x, y), shared, ..queries_grid };
                let arguments = [&inputs[..], &to_queries, &to_keys, &sizes, &end].concat();
                return self.launch(queries.source, name, grid, &arguments);
            }
            Halves::Apart { parts } => parts,
        };
        let arguments = [&inputs[..], &to_queries, &sizes, &end].concat();
        self.launch(queries.source, queries.name, queries_grid, &arguments);
        // A block of keys goes over all queries. Where these are many more than the keys, so few blocks would leave most of a GPU idle:
        // each part of the queries has such blocks then, but never those of tokens over themselves. Bits depend on neither the number of
        // samples nor the GPU, which have no say in this.
        let (blocks, heads) = keys_grid.blocks;
        let each = QUERIES_OF_A_PART * blocks.max(1);
        let parts = query_rows.len().div_ceil(each);
        if parts <= 1 {
            let arguments = [&inputs[..], &to_keys, &sizes, &end].concat();
            return self.launch(keys.source, keys.name, keys_grid, &arguments);
        }
        let values = shape.values();
        let of_parts = self.take(parts * 2 * values, Kind::Exact);
        let of_parts = [Rows::flat(&of_parts, parts * 2 * values).argument()];
        let arguments = [&inputs[..], &of_parts, &sizes, &[int(each)], &end].concat();
        let grid = Grid { blocks: (parts * blocks, heads), ..keys_grid };
        self.launch(keys.source, parts_kernel, grid, &arguments);
        let sizes = [int(values), int(parts), float(shape.scale())];
        let grid = Grid { blocks: (values.div_ceil(8 * THREADS), 2), threads: THREADS as u32, shared: 0 };
        self.launch(keys.source, "attention_sum_parts", grid, &[&of_parts[..], &to_keys, &sizes].concat());
    }
}
