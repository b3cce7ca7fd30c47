//! The plan as Graphviz text. Hand-written, because petgraph's writer supports neither clusters nor tasks.
//!
//! One box a task, one cluster a phase, one colour a lane. Solid edges carry values, dashed red ones cotangents,
//! dotted ones what a cell holds in the next step; a thin grey edge is what a forward keeps for its backward.

use std::fmt;

use prefgraph_ops::words::count;

use super::{Phase, Place, Plan, PlannedTask, Rates, Task, TaskId, explain};
use crate::graph::{Endpoint, Graph, NodeId, Tap};

pub(super) struct Dot<'a> {
    pub plan: &'a Plan,
    pub graph: &'a Graph,
}

/// Fill and border, one pair a lane.
const LANES: [(&str, &str); 8] = [
    ("#dbeafe", "#1d4ed8"),
    ("#dcfce7", "#15803d"),
    ("#fef3c7", "#b45309"),
    ("#f3e8ff", "#7e22ce"),
    ("#ffe4e6", "#be123c"),
    ("#cffafe", "#0e7490"),
    ("#fae8ff", "#a21caf"),
    ("#ecfccb", "#4d7c0f"),
];
const RED: &str = "#dc2626";

const PHASES: [(Phase, &str); 5] = [
    (Phase::Ahead, "runs ahead: no cell reaches it"),
    (Phase::Forward, "forward"),
    (Phase::Backward, "backward"),
    (Phase::Update, "update"),
    (Phase::Effects, "effects"),
];

impl fmt::Display for Dot<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "digraph {} {{", quoted(&self.graph.name))?;
        writeln!(
            f,
            "  graph [rankdir=TB, compound=true, ranksep=0.45, nodesep=0.25, fontname=\"Helvetica\","
        )?;
        writeln!(f, "    labelloc=t, fontsize=14, label={}]", quoted(&self.title()))?;
        writeln!(f, "  node [shape=plain, fontname=\"Helvetica\", fontsize=10]")?;
        writeln!(
            f,
            "  edge [fontname=\"Helvetica\", fontsize=8, color=\"#475569\", fontcolor=\"#475569\", arrowsize=0.6]"
        )?;
        for (phase, label) in PHASES {
            self.cluster(f, phase, label)?;
        }
        self.edges(f)?;
        writeln!(f, "}}")
    }
}

impl Dot<'_> {
    fn title(&self) -> String {
        let plan = self.plan;
        let time = match (plan.is_timed(), plan.measured) {
            (false, _) => String::new(),
            (true, true) => format!("; {} a step by measured times", explain::seconds(plan.seconds)),
            // The speeds are no machine's unless somebody measured them.
            (true, false) if plan.options.rates == Rates::default() => String::new(),
            (true, false) => format!("; {} a step by declared costs", explain::seconds(plan.seconds)),
        };
        let of = |place| if place == Place::Cpu { String::new() } else { format!(" of {place}") };
        let memory = plan
            .memory
            .iter()
            .map(|(place, memory)| format!("; peak memory{} {}", of(*place), explain::bytes(memory.peak)));
        format!(
            "{}: {}, {} on {}{time}{}",
            self.graph.name,
            count(self.graph.len(), "node"),
            count(plan.tasks.len(), "task"),
            count(plan.options.lanes, "lane"),
            memory.collect::<String>(),
        )
    }

    fn cluster(&self, f: &mut fmt::Formatter<'_>, phase: Phase, label: &str) -> fmt::Result {
        let ids: Vec<TaskId> =
            self.plan.order.iter().copied().filter(|&id| self.plan.tasks[id].phase == phase).collect();
        if ids.is_empty() {
            return Ok(());
        }
        writeln!(f, "  subgraph cluster_{phase} {{")?;
        writeln!(
            f,
            "    label={}; labeljust=l; style=\"rounded,filled\"; color=\"#cbd5e1\"; fillcolor=\"#f8fafc\"; \
             fontcolor=\"#334155\"; fontsize=12",
            quoted(label)
        )?;
        for id in ids {
            self.task(f, &self.plan.tasks[id])?;
        }
        writeln!(f, "  }}")
    }

    fn task(&self, f: &mut fmt::Formatter<'_>, planned: &PlannedTask) -> fmt::Result {
        let id = planned.task.node();
        let node = &self.graph[id];
        let (fill, border) = LANES[planned.lane % LANES.len()];
        let names = |names: &mut dyn Iterator<Item = (usize, &str)>, side: char| {
            let cells: String = names
                .map(|(i, name)| {
                    format!("<TD PORT=\"{side}{i}\"><FONT POINT-SIZE=\"8\">{}</FONT></TD>", html(name))
                })
                .collect();
            if cells.is_empty() {
                String::new()
            } else {
                let table = "<TABLE BORDER=\"0\" CELLBORDER=\"0\" CELLSPACING=\"4\" CELLPADDING=\"0\">";
                format!("<TR><TD>{table}<TR>{cells}</TR></TABLE></TD></TR>")
            }
        };
        let mut inputs = node.inputs.iter().enumerate().map(|(i, spec)| (i, spec.name));
        let mut outputs = node.outputs.iter().enumerate().map(|(i, spec)| (i, spec.name));
        // A backward runs against the arrows: cotangents of the outputs come in on top.
        let (top, bottom, title, detail) = match planned.task {
            Task::Forward(_) => {
                (names(&mut inputs, 'i'), names(&mut outputs, 'o'), html(&node.id), node.op.name())
            }
            Task::Backward(_) => {
                let wanted = self.plan.gradient.wanted(id).unwrap_or_default();
                let mut inputs = inputs.filter(|(i, _)| wanted[*i]);
                let title = format!("<I>grad</I> {}", html(&node.id));
                let detail = if self.plan.gradient.runs_operator(id) { node.op.name() } else { "sum" };
                (names(&mut outputs, 'o'), names(&mut inputs, 'i'), title, detail)
            }
        };
        let cell = if self.plan.is_cell(id) && matches!(planned.task, Task::Forward(_)) {
            " STYLE=\"ROUNDED\""
        } else {
            ""
        };
        let weight = if cell.is_empty() { 1 } else { 2 };
        writeln!(
            f,
            "    {} [label=<<TABLE BORDER=\"{weight}\"{cell} CELLBORDER=\"0\" CELLSPACING=\"0\" CELLPADDING=\"2\" \
             BGCOLOR=\"{fill}\" COLOR=\"{border}\">{top}<TR><TD><B>{title}</B></TD></TR><TR><TD><FONT \
             POINT-SIZE=\"8\" COLOR=\"#475569\">{} | lane {}{}{}</FONT></TD></TR>{bottom}</TABLE>>]",
            name(planned.task),
            html(detail),
            planned.lane,
            if planned.place == Place::Cpu { String::new() } else { format!(" | {}", planned.place) },
            self.time(planned),
        )
    }

    fn time(&self, planned: &PlannedTask) -> String {
        if !self.plan.is_timed() {
            return String::new();
        }
        let share = 100.0 * planned.seconds / self.plan.seconds.max(f64::MIN_POSITIVE);
        if self.plan.measured || share >= 0.5 {
            format!(" | {} ({share:.0}%)", explain::seconds(planned.seconds))
        } else {
            String::new()
        }
    }

    fn edges(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (id, node) in self.graph.nodes() {
            for (input, wires) in node.wires.iter().enumerate() {
                for &from in wires {
                    self.wire(f, from, id, input)?;
                }
            }
        }
        for (id, _) in self.graph.nodes().filter(|(id, _)| self.plan.gradient.reaches(*id)) {
            let (forward, backward) = (Task::Forward(id), Task::Backward(id));
            if self.plan.gradient.runs_operator(id) {
                writeln!(
                    f,
                    "  {} -> {} [color=\"#94a3b8\", penwidth=0.6, arrowhead=none, tooltip=\"kept for backward\"]",
                    name(forward),
                    name(backward)
                )?;
            }
            let edges = self.graph.edges_from(id).into_iter();
            for (_, target, edge) in edges.filter(|(index, ..)| self.plan.gradient.along(*index)) {
                writeln!(
                    f,
                    "  {}:i{}:s -> {}:o{}:n [style=dashed, color=\"{RED}\"]",
                    name(Task::Backward(target)),
                    edge.input,
                    name(backward),
                    edge.port
                )?;
            }
        }
        for carry in self.graph.carries() {
            writeln!(
                f,
                "  {}:o{} -> {}:e [style=dotted, constraint=false, penwidth=1.4, color=\"#0f172a\", label=\"next step\"]",
                name(Task::Forward(carry.next.node)),
                carry.next.port,
                name(Task::Forward(carry.cell.node)),
            )?;
        }
        Ok(())
    }

    fn wire(&self, f: &mut fmt::Formatter<'_>, from: Endpoint, to: NodeId, input: usize) -> fmt::Result {
        let to = format!("{}:i{input}:n", name(Task::Forward(to)));
        match from.tap {
            Tap::Value => {
                let ty = &self.graph[from.node].outputs[from.port].ty;
                let shape = ty.describe(&self.plan.shape(self.graph, from));
                writeln!(
                    f,
                    "  {}:o{}:s -> {to} [label={}]",
                    name(Task::Forward(from.node)),
                    from.port,
                    quoted(&shape)
                )
            }
            Tap::Cotangent => {
                let task = name(Task::Backward(from.node));
                writeln!(
                    f,
                    "  {task} -> {to} [style=dashed, color=\"{RED}\", fontcolor=\"{RED}\", label=\"gradient\"]"
                )
            }
        }
    }
}

fn name(task: Task) -> String {
    let letter = if matches!(task, Task::Forward(_)) { 'f' } else { 'b' };
    format!("{letter}{}", task.node().index())
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

fn html(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
