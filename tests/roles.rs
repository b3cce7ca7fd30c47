//! Roles and stated axes in graph files: what is refused, with which words, and where roles are shown.

use std::{fs, path::Path};

use miette::Diagnostic;
use prefgraph::{
    Graph, Plan, PlanError, PlanOptions, Registry,
    spec::{SpecError, load},
};

/// A graph that extends a shipped one by these nodes.
fn extended(parent: &str, nodes: &str) -> Result<Graph, Box<SpecError>> {
    let parent = Path::new(env!("CARGO_MANIFEST_DIR")).join("graphs").join(parent);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("child.ron");
    fs::write(&file, format!("Graph(extends: {:?}, nodes: [{nodes}])", parent.display().to_string()))
        .unwrap();
    load(&file, &[], &Registry::standard()).map(|loaded| loaded.graph)
}

fn planned(graph: &Graph) -> Result<Plan, PlanError> {
    Plan::new(graph, &PlanOptions::default())
}

#[track_caller]
fn refused(parent: &str, nodes: &str, parts: &[&str]) {
    let Err(error) = extended(parent, nodes) else { panic!("`{nodes}` was accepted") };
    let help = error.help().map(|help| help.to_string()).unwrap_or_default();
    let text = format!("{error} {help}");
    for part in parts {
        assert!(text.contains(part), "`{part}` in {text}");
    }
}

#[test]
fn a_prediction_where_a_target_is_due_is_refused_with_both_roles_and_what_would_fit() {
    let message = "input `target` of node `loss` (`masked-loss`) takes target f32[_,_,_,_], but `policy.prediction` carries \
                   prediction f32[_,_,_,_]";
    let help = "the axes agree, the roles do not; `noise.target`, `held_out_noise.target` would fit";
    refused("diffusion_dpo.ron", r#"(id: "loss", in: (target: "policy.prediction"))"#, &[message, help]);
}

#[test]
fn other_roles_are_told_apart_as_well() {
    let target = r#"(id: "loss", in: (policy: "noise.target"))"#;
    refused("sft.ron", target, &["takes prediction f32", "carries target f32"]);
    let noise = r#"(id: "policy", in: (x_t: "noise.eps"))"#;
    refused(
        "sft.ron",
        noise,
        &["takes noised f32", "carries noise f32", "`noise.x_t`, `held_out_noise.x_t` would fit"],
    );
    let clean = r#"(id: "policy", in: (x_t: "winner"))"#;
    refused("sft.ron", clean, &["takes noised f32", "carries clean f32"]);
    let masks = r#"(id: "fuse", in: (structure: "detail"))"#;
    refused("focusdpo.ron", masks, &["takes structure f32[_,1,_,_]", "carries detail f32[_,1,_,_]"]);
}

#[test]
fn a_prediction_becomes_a_target_where_the_graph_says_so() {
    let nodes = r#"(id: "as_target", op: "as-target", in: (prediction: "reference")), (id: "loss", in: (target: "as_target"))"#;
    planned(&extended("diffusion_dpo.ron", nodes).unwrap()).unwrap();
}

#[test]
fn an_input_without_a_role_takes_any() {
    let nodes = r#"(id: "drawn", op: "decode", in: (latents: "policy.prediction"))"#;
    planned(&extended("sft.ron", nodes).unwrap()).unwrap();
}

#[test]
fn stated_axes_are_checked_when_the_graph_is_planned() {
    let stated = |axes: &str| {
        let refine = format!(r#"(id: "stated", op: "refine", in: (latents: "winner"), with: ({axes}))"#);
        let graph =
            extended("sft.ron", &format!(r#"{refine}, (id: "noise", in: (x0_w: "stated"))"#)).unwrap();
        planned(&graph).map(drop).map_err(|e| e.to_string())
    };
    stated("channels: 16, height: 24, width: 24").unwrap();
    let error = stated("channels: 4").unwrap_err();
    for part in ["`stated`", "channels 16, this node states 4", "`winner` clean f32[4,16,24,24]"] {
        assert!(error.contains(part), "`{part}` in {error}");
    }
}

#[test]
fn plans_and_drawings_name_roles() {
    let graph = extended("diffusion_dpo.ron", "").unwrap();
    let plan = planned(&graph).unwrap();
    let (explained, drawn) = (plan.explain(&graph).to_string(), plan.to_dot(&graph).to_string());
    for text in [&explained, &drawn] {
        for role in [
            "clean f32[4,16,24,24]",
            "noised f32[8,16,24,24]",
            "prediction f32[8,16,24,24]",
            "target f32[8,16,24,24]",
        ] {
            assert!(text.contains(role), "`{role}` in {text}");
        }
    }
}
