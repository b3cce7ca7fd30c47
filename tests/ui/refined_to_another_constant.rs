use dfdx::shapes::Const;
use prefgraph::{Graph, Wire};
use prefgraph_ops::{
    Operator,
    operators::{noise::Noise, refine::Refine},
    ports::{self, Clean, Timesteps},
};

fn wired(graph: &mut Graph, winner: Wire<Clean>, time: Wire<Timesteps>) {
    let sixteen = Refine::<ports::role::Clean, Const<16>>::new(Default::default()).unwrap();
    let (winner,) = graph.add("winner16", sixteen, (winner,));
    let four = Noise::<Const<4>>::new(Default::default()).unwrap();
    graph.add("noise", four, (winner, None, time, None));
}

fn main() {}
