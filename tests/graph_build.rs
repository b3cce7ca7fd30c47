//! Building a graph: what is refused, and the error messages.

mod common;

use common::*;
use prefgraph::{Endpoint, Graph, GraphError, NodeId};
use prefgraph_ops::{DynOperator, ports::Timesteps};

fn boxed(op: impl DynOperator + 'static) -> Box<dyn DynOperator> {
    Box::new(op)
}

fn two() -> Graph {
    let mut g = Graph::new("two");
    let (x,) = g.add("x", Data(2, 3), ());
    g.add("y", Multiply, (x, x));
    g
}

#[test]
fn an_id_is_one_word_and_unique() {
    let mut g = two();
    let error = |g: &mut Graph, id| g.insert(id, boxed(Data(1, 1)), &[]).unwrap_err().to_string();
    assert_eq!(error(&mut g, "x"), "node `x` is defined twice; ids are unique in a graph");
    assert_eq!(
        error(&mut g, "Step W.1"),
        "`Step W.1` cannot be the id of a node: lower-case letters, digits, `_` and `-` can, e.g. `step_w_1`"
    );
    assert_eq!(g.len(), 2, "a refused node is not in the graph");
}

#[test]
fn a_wire_too_many_or_too_few_is_counted_and_named() {
    let mut g = two();
    let x = at(&g, "x");
    let error = |g: &mut Graph, wires: &[Vec<Endpoint>]| {
        g.insert("z", boxed(Multiply), wires).unwrap_err().to_string()
    };
    assert_eq!(error(&mut g, &[vec![x]]), "node `z` (`multiply`) takes 2 inputs (a, b), got 1");
    assert_eq!(
        error(&mut g, &[vec![x], vec![]]),
        "input `b` of node `z` (`multiply`) takes exactly one wire, got 0"
    );
    let error = g.insert("z", boxed(Total), &[vec![x], vec![x, x]]).unwrap_err().to_string();
    assert_eq!(error, "input `bias` of node `z` (`total`) takes one wire or none, got 2");
    g.insert("z", boxed(Total), &[vec![x, x, x], vec![]]).unwrap();
}

#[test]
fn a_wire_of_another_type_is_refused_with_both_types() {
    let mut g = two();
    let x = at(&g, "x");
    let grad = Endpoint::cotangent(x.node, 0);
    let message = |e: GraphError| e.to_string();
    assert_eq!(
        g.insert("r", boxed(Record), &[vec![x]]).map_err(message),
        Err("input `loss` of node `r` (`record`) takes f32[], but `x` carries f32[_,_]".into())
    );
    assert_eq!(
        g.insert("z", boxed(Multiply), &[vec![x], vec![grad]]).map_err(message),
        Err("input `b` of node `z` (`multiply`) takes f32[_,_], but `grad:x` carries grad f32[_,_]".into())
    );
    assert_eq!(
        g.insert("d", boxed(Descend), &[vec![x], vec![x]]).map_err(message),
        Err("input `g` of node `d` (`descend`) takes grad f32[_,_], but `x` carries f32[_,_]".into())
    );
}

#[test]
fn a_discrete_port_has_no_cotangent() {
    use prefgraph_ops::{
        Ctx, OpError, Operator,
        operator::OutShapes,
        ports::{Process, TimeShape},
    };
    struct Times;
    impl Operator for Times {
        operator!(Times, "times", (): [] -> (Timesteps,): ["t"], false);
        type Saved = ();
        fn shapes(&self, (): (), _: usize) -> Result<OutShapes<Self>, OpError> {
            Ok((TimeShape { batch: 1, process: Process::Flow },))
        }
        fn forward(&self, _: &Ctx<'_>, (): ()) -> Result<((Timesteps,), ()), OpError> {
            Ok(((Timesteps::new(Process::Flow, vec![0.5]),), ()))
        }
    }
    let mut g = two();
    let (t,) = g.add("t", Times, ());
    let inputs = [vec![at(&g, "x")], vec![t.cotangent().endpoint()]];
    assert_eq!(
        g.insert("d", boxed(Descend), &inputs).unwrap_err().to_string(),
        "`grad:t` does not exist: the port carries times[_], and that has no derivative"
    );
    assert_eq!(
        g.set_loss_at(t.endpoint()).unwrap_err().to_string(),
        "the loss must carry f32[], one number, but `t` carries times[_]"
    );
    assert_eq!(
        g.carry_at(t.endpoint(), t.endpoint()).unwrap_err().to_string(),
        "`t` cannot be carried to the next step: times[_] has no form in a checkpoint; tensors, adapters and moments \
         have one"
    );
}

#[test]
fn a_cell_has_one_next_value_of_its_own_type() {
    let mut g = everything();
    let (w, v, loss) = (at(&g, "w"), at(&g, "v"), at(&g, "loss"));
    assert_eq!(
        g.carry_at(w, v).unwrap_err().to_string(),
        "cell `w` is carried twice: from `step_w` and from `v`"
    );
    let mut fresh = two();
    let x = at(&fresh, "x");
    let itself = fresh.carry_at(x, x).unwrap_err().to_string();
    assert!(itself.starts_with("cell `x` is carried from itself: it would never change"), "{itself}");
    let x = at(&g, "x");
    assert_eq!(
        g.carry_at(x, loss).unwrap_err().to_string(),
        "cell `x` holds f32[_,_], but `loss`, its next value, carries f32[]"
    );
}

#[test]
fn paths_name_ports_and_unknown_ones_list_what_there_is() {
    let g = everything();
    for path in ["w", "grad:w", "loss"] {
        assert_eq!(g.path(g.endpoint(path).unwrap()), path);
    }
    assert_eq!(g.endpoint("w.w").unwrap(), g.endpoint("w").unwrap());
    let error = |path: &str| g.endpoint(path).unwrap_err().to_string();
    assert_eq!(
        error("lose"),
        "there is no node `lose`; the graph has loss, miss, x, w, v, xw, bent, sum and 5 more"
    );
    assert_eq!(error("w.m"), "node `w` (`weights`) has no output `m`; it has w");
    let foreign = Endpoint::value(NodeId::new(99), 0);
    assert_eq!(
        g.port_type(foreign).unwrap_err().to_string(),
        "output 0 of node number 99 is not in this graph, which has 13 nodes"
    );
}

#[test]
#[should_panic(expected = "node `x` is defined twice")]
fn a_typo_in_rust_code_panics_where_it_stands() {
    two().add("x", Data(2, 3), ());
}
