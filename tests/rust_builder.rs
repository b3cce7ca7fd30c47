//! A graph built in Rust and the same graph from its file: the same plan, the same bits of the loss.

use std::{path::Path, sync::Arc};

use prefgraph::{Graph, Plan, PlanOptions, Registry, RunOptions, Runner, Wire, spec};
use prefgraph_nn::Cpu;
use prefgraph_ops::{
    DataPath, Operator,
    operators::{
        backbone::{Backbone, BackboneSettings},
        forward::Forward,
        lora::{Lora, LoraSettings},
        lora_update::{LoraUpdate, LoraUpdateSettings},
        masked_loss::{MaskedLoss, MaskedLossSettings},
        moments::ZeroMoments,
        noise::Noise,
        reference::Reference,
        replay::{Replay, ReplaySettings},
    },
    ports::{List, Mask, Prediction, Texts},
};

const FILE: &str = r#"Graph(
    name: "pairs",
    nodes: [
        (id: "case", op: "replay", with: (path: "tests/fixtures/flux_uno")),
        (id: "noise", op: "noise", in: (x0_w: "case.x0_w", x0_l: "case.x0_l", t: "case.t", eps: "case.eps")),
        (id: "backbone", op: "backbone", with: (weights: "@case.weights")),
        (id: "lora", op: "lora", in: (backbone: "backbone"), with: (rank: 4)),
        (id: "moments", op: "moments", in: (adapter: "lora")),
        (id: "policy", op: "forward", in: (
            backbone: "backbone", adapter: "lora", x_t: "noise.x_t", t: "noise.t", text: "case.text", pooled: "case.pooled",
            references: "case.references",
        )),
        (id: "reference", op: "reference", in: (
            backbone: "backbone", x_t: "noise.x_t", t: "noise.t", text: "case.text", pooled: "case.pooled",
            references: "case.references",
        )),
        (id: "loss", op: "masked-loss", with: (beta: 500.0), in: (
            policy: "policy.prediction", target: "noise.target", reference: "reference", t: "case.t",
        )),
        (id: "update", op: "lora-update", in: (adapter: "lora", grad: "grad:lora", moments: "moments"), with: (lr: 1e-3)),
    ],
    loss: "loss.loss",
    carry: {"lora": "update.adapter", "moments": "update.moments"},
)"#;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn from_rust() -> Graph {
    let case = root().join("tests/fixtures/flux_uno");
    let mut g = Graph::new("pairs");
    let path = DataPath(case.clone());
    let replay = Replay::new(ReplaySettings { path, ..Default::default() }).unwrap();
    let (x0_w, x0_l, references, eps, t, text, pooled, ..) = g.add("case", replay, ());
    let (x_t, target, times, _) =
        g.add("noise", Noise::new(Default::default()).unwrap(), (x0_w, x0_l, t, Some(eps)));
    let weights = DataPath(case.join("transformer"));
    let backbone = Backbone::new(BackboneSettings { weights, ..Default::default() }).unwrap();
    let (backbone,) = g.add("backbone", backbone, ());
    let lora = Lora::new(LoraSettings { rank: 4, ..Default::default() }).unwrap();
    let (lora,) = g.add("lora", lora, (backbone,));
    let (moments,) = g.add("moments", ZeroMoments, (lora,));
    let (policy, _) = g.add(
        "policy",
        Forward::new(Default::default()).unwrap(),
        (backbone, lora, x_t, times, text, pooled, references, None::<Wire<List<Mask>>>, None, None),
    );
    let (reference,) = g.add(
        "reference",
        Reference::new(Default::default()).unwrap(),
        (backbone, x_t, times, text, pooled, references, None, None),
    );
    let loss = MaskedLoss::new(MaskedLossSettings { beta: 500.0, ..Default::default() }).unwrap();
    let (none, no_ids) = (None::<Wire<Mask>>, None::<Wire<Texts>>);
    let policy: Wire<Prediction> = policy;
    let (loss, _) = g.add("loss", loss, (policy, target, reference, none, t, no_ids));
    let update = LoraUpdate::new(LoraUpdateSettings { lr: 1e-3, ..Default::default() }).unwrap();
    let (next, next_moments, _) = g.add("update", update, (lora, lora.cotangent(), moments));
    g.set_loss(loss);
    g.carry(lora, next);
    g.carry(moments, next_moments);
    g
}

fn from_file() -> Graph {
    spec::load_text("pairs.ron", FILE, root(), &[], &Registry::standard())
        .unwrap_or_else(|e| panic!("{e:?}"))
        .graph
}

fn losses(graph: Graph) -> Vec<u32> {
    let plan = Plan::new(&graph, &PlanOptions::default()).unwrap();
    let mut runner = Runner::new(Arc::new(graph), plan, RunOptions::new(5, Cpu::new(2).unwrap())).unwrap();
    (0..3).map(|_| runner.step().unwrap().loss.unwrap().to_bits()).collect()
}

#[test]
fn a_file_and_the_builder_give_the_same_plan_and_the_same_bits() {
    let (file, rust) = (from_file(), from_rust());
    let explain = |g: &Graph| {
        let plan = Plan::new(g, &PlanOptions::default()).unwrap();
        let mut lines: Vec<String> = plan.explain(g).to_string().lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    assert_eq!(explain(&file), explain(&rust));
    let bits = losses(rust);
    assert_eq!(losses(file), bits);
    assert_eq!(bits[0], std::f32::consts::LN_2.to_bits(), "B is zero: policy and reference agree");
    assert_ne!(bits[1], bits[0]);
}
