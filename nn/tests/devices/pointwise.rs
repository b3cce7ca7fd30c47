//! Copies, sums, activation functions and gates.

use prefgraph_nn::device::{
    Activation::{Gelu, GeluErf, QuickGelu, Relu, Silu, Tanh},
    CopyTokens, Device, GateGrad, JointOrder, Kind, Precision, Queue, TokenRows, View, ViewMut,
};

use crate::{
    agree,
    cases::{
        self, SMALL,
        numbers::{activations, numbers},
    },
    devices, read,
};

fn copies<D: Device>(device: &D, precision: Precision, rows: TokenRows) -> Vec<Vec<f32>> {
    let queue = device.queue(precision).unwrap();
    let TokenRows { batch, tokens, width } = rows;
    let (more, stride) = (tokens + 2, width + 8);
    let x = activations::<D>(&queue, batch * tokens * width, 1);
    let mut y = queue.zeros(batch * more * stride, Kind::Activation);
    queue.copy_tokens(CopyTokens {
        rows,
        from: (View::new(&x, width), tokens),
        to: (ViewMut::new(&mut y, stride).skip(stride), more),
    });
    // As the factors of a convolution are: f32 in both precisions, one value of a token at a time.
    let exact = queue.copy(View::new(&x, width), rows.len(), Kind::Exact);
    let mut turned = queue.zeros(rows.len(), Kind::Exact);
    for column in 0..width {
        queue.copy_tokens(CopyTokens {
            rows: TokenRows { batch, tokens, width: 1 },
            from: (View::new(&exact, width).skip(column), tokens),
            to: (ViewMut::new(&mut turned, 1).skip(column * tokens), width * tokens),
        });
    }
    let mut wide = queue.zeros(batch * more * stride, Kind::Exact);
    queue.copy_tokens(CopyTokens {
        rows,
        from: (View::new(&exact, width), tokens),
        to: (ViewMut::new(&mut wide, stride).skip(stride), more),
    });
    let copied = queue.copy(View::new(&x, width).skip(1), rows.len() - 1, Kind::Activation);
    let as_exact = queue.copy(View::new(&x, width), rows.len(), Kind::Exact);
    let back = queue.copy(View::new(&as_exact, width), rows.len(), Kind::Activation);
    read::<D>(
        &queue,
        &[
            (&y, batch * more * stride),
            (&turned, rows.len()),
            (&wide, batch * more * stride),
            (&copied, rows.len() - 1),
            (&as_exact, rows.len()),
            (&back, rows.len()),
        ],
    )
}

/// Rows of streams in the joint order, among tokens that are left alone, and back.
fn joint_copies<D: Device>(
    device: &D,
    precision: Precision,
    rows: &[TokenRows],
    gap: usize,
) -> Vec<Vec<f32>> {
    let queue = device.queue(precision).unwrap();
    let (batch, width) = (rows[0].batch, rows[0].width);
    let tokens = rows.iter().map(|r| r.tokens).sum::<usize>() + 3;
    let count = rows.iter().map(TokenRows::count).sum::<usize>();
    let order = JointOrder { rows, tokens, offset: 2 };
    let (stride, joint_stride) = (width + gap, width + 2 * gap);
    let x = activations::<D>(&queue, count * stride, 1);
    let mut joint = activations::<D>(&queue, batch * tokens * joint_stride, 2);
    queue.rows_to_joint(order, View::new(&x, stride), ViewMut::new(&mut joint, joint_stride));
    let mut back = activations::<D>(&queue, count * stride, 3);
    queue.rows_from_joint(order, View::new(&joint, joint_stride), ViewMut::new(&mut back, stride));
    read::<D>(&queue, &[(&joint, batch * tokens * joint_stride), (&back, count * stride)])
}

#[test]
fn streams_go_to_the_joint_order_and_back_exactly() {
    let Some(devices) = devices() else { return };
    for &rows in SMALL.rows {
        for gap in [0, 3] {
            for count in 1..4 {
                agree!(devices, [0.0, 0.0], joint_copies(&cases::streams(rows)[..count], gap));
            }
        }
    }
}

#[test]
fn copies_are_exact() {
    let Some(devices) = devices() else { return };
    for &rows in SMALL.rows {
        agree!(devices, [0.0, 0.0], copies(rows));
    }
}

fn sums<D: Device>(device: &D, precision: Precision, len: usize) -> Vec<Vec<f32>> {
    let queue = device.queue(precision).unwrap();
    let mut results = Vec::new();
    for kind in [Kind::Activation, Kind::Exact] {
        let x = queue.upload(&numbers(len + 3, 1), kind);
        let mut y = queue.upload(&numbers(len + 3, 2), kind);
        queue.add_scaled(0.75, View::new(&x, 1).skip(1), ViewMut::new(&mut y, 1).skip(2), len);
        queue.scale(-1.5, ViewMut::new(&mut y, 1).skip(1), len);
        results.extend(read::<D>(&queue, &[(&y, len + 3)]));
        // From the first value to the last one, sixteen bytes at a time.
        let x = queue.upload(&numbers(len, 3), kind);
        let mut y = queue.upload(&numbers(len, 4), kind);
        queue.add_scaled(0.75, View::new(&x, 1), ViewMut::new(&mut y, 1), len);
        queue.scale(-1.5, ViewMut::new(&mut y, 1), len);
        results.extend(read::<D>(&queue, &[(&y, len)]));
    }
    let zeros = queue.zeros(len, Kind::Exact);
    results.extend(read::<D>(&queue, &[(&zeros, len)]));
    results
}

#[test]
fn sums_and_factors_agree_and_touch_nothing_else() {
    let Some(devices) = devices() else { return };
    for len in [1, 16, 100, 1031] {
        agree!(devices, [1e-6, 6e-3], sums(len));
    }
}

fn functions<D: Device>(device: &D, precision: Precision, rows: usize, width: usize) -> Vec<Vec<f32>> {
    let queue = device.queue(precision).unwrap();
    let stride = width + 16;
    let x = queue
        .upload(&numbers(rows * stride, 1).iter().map(|v| v * 8.0).collect::<Vec<_>>(), Kind::Activation);
    let dy = activations::<D>(&queue, rows * width, 2);
    let mut y = queue.zeros(rows * stride, Kind::Activation);

    let (x, dy) = (View::new(&x, stride), View::new(&dy, width));
    let mut results = Vec::new();
    for f in [Silu, Gelu, GeluErf, QuickGelu, Relu, Tanh] {
        queue.activate(f, (rows, width), x, ViewMut::new(&mut y, stride));
        results.extend(read::<D>(&queue, &[(&y, rows * stride)]));
    }
    queue.multiply((rows, width), x, ViewMut::new(&mut y, stride));
    let mut dx = queue.copy(x, rows * stride, Kind::Activation);
    queue.gelu_backward((rows, width), dy, ViewMut::new(&mut dx, stride));
    results.extend(read::<D>(&queue, &[(&y, rows * stride), (&dx, rows * stride)]));
    results
}

#[test]
fn activation_functions_agree() {
    let Some(devices) = devices() else { return };
    for &(rows, width) in SMALL.functions {
        agree!(devices, [2e-6, 6e-3], functions(rows, width));
    }
}

fn gates<D: Device>(device: &D, precision: Precision, rows: &[TokenRows]) -> Vec<Vec<f32>> {
    let queue = device.queue(precision).unwrap();
    let (batch, width, len) = (rows[0].batch, rows[0].width, rows.iter().map(TokenRows::len).sum());
    let x = activations::<D>(&queue, len, 1);
    let y = activations::<D>(&queue, len, 2);
    let gate = activations::<D>(&queue, batch * 3 * width, 3);
    let gate = View::new(&gate, 3 * width).skip(width);
    let mut sum = queue.copy(View::new(&y, width), len, Kind::Activation);
    queue.gated_add(rows, View::new(&x, width), gate, ViewMut::new(&mut sum, width));
    let mut dy = queue.zeros(len, Kind::Activation);
    let mut d_gate = queue.zeros(batch * 2 * width, Kind::Exact);
    // The gate's cotangent is that of one stream.
    let gate_grad = (rows.len() == 1).then(|| GateGrad {
        y: View::new(&y, width),
        d_gate: ViewMut::new(&mut d_gate, 2 * width).skip(width),
    });
    queue.gated_add_backward(rows, View::new(&x, width), gate, ViewMut::new(&mut dy, width), gate_grad);
    read::<D>(&queue, &[(&sum, len), (&dy, len), (&d_gate, batch * 2 * width)])
}

#[test]
fn gates_and_their_cotangents_agree() {
    let Some(devices) = devices() else { return };
    for &rows in SMALL.rows {
        agree!(devices, [2e-6, 1.2e-2], gates(&[rows]));
        agree!(devices, [2e-6, 1.2e-2], gates(&cases::streams(rows)));
    }
}

fn gated_functions<D: Device>(device: &D, precision: Precision, rows: usize, width: usize) -> Vec<Vec<f32>> {
    let queue = device.queue(precision).unwrap();
    let stride = 2 * width + 8;
    let steep: Vec<f32> = numbers(rows * stride, 1).iter().map(|v| v * 8.0).collect();
    let x = queue.upload(&steep, Kind::Activation);
    let dy = activations::<D>(&queue, rows * width, 2);
    let mut y = queue.zeros(rows * (width + 8), Kind::Activation);
    let mut dx = queue.zeros(rows * stride, Kind::Activation);
    let (x, dy) = (View::new(&x, stride), View::new(&dy, width));
    queue.gated_gelu((rows, width), x, ViewMut::new(&mut y, width + 8));
    queue.gated_gelu_backward((rows, width), x, dy, ViewMut::new(&mut dx, stride));
    read::<D>(&queue, &[(&y, rows * (width + 8)), (&dx, rows * stride)])
}

#[test]
fn gated_activation_functions_agree() {
    let Some(devices) = devices() else { return };
    for &(rows, width) in SMALL.functions {
        agree!(devices, [2e-6, 6e-3], gated_functions(rows, width));
    }
}

fn sums_with_tokens<D: Device>(device: &D, precision: Precision, rows: TokenRows) -> Vec<Vec<f32>> {
    let queue = device.queue(precision).unwrap();
    let TokenRows { batch, width, .. } = rows;
    let mut x = activations::<D>(&queue, rows.len(), 1);
    let v = activations::<D>(&queue, batch * 3 * width, 2);
    let v = View::new(&v, 3 * width).skip(width);
    queue.add_to_tokens(rows, v, ViewMut::new(&mut x, width));
    read::<D>(&queue, &[(&x, rows.len())])
}

#[test]
fn sums_of_tokens_and_a_vector_of_their_sample_agree() {
    let Some(devices) = devices() else { return };
    for &rows in SMALL.rows {
        agree!(devices, [0.0, 6e-3], sums_with_tokens(rows));
    }
}
