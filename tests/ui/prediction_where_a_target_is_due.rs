use prefgraph::{Graph, Wire};
use prefgraph_ops::{
    Operator,
    operators::masked_loss::MaskedLoss,
    ports::{Mask, Prediction, Texts, Timesteps},
};

fn wired(graph: &mut Graph, policy: Wire<Prediction>, reference: Wire<Prediction>) {
    let loss: MaskedLoss = MaskedLoss::new(Default::default()).unwrap();
    let rest = (None::<Wire<Mask>>, None::<Wire<Timesteps>>, None::<Wire<Texts>>);
    graph.add("loss", loss, (policy, policy, reference, rest.0, rest.1, rest.2));
}

fn main() {}
