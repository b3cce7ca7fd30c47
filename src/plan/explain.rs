//! The plan as a listing, like `EXPLAIN` for a query.

use std::fmt;

use prefgraph_ops::words::count;

use super::{Memory, Place, Plan, PlannedTask, Task, memory};
use crate::graph::Graph;

pub(super) struct Explain<'a> {
    pub plan: &'a Plan,
    pub graph: &'a Graph,
}

const HEADS: [&str; 10] =
    ["phase", "lane", "place", "task", "operator", "FLOP", "bytes", "gives", "reads", "freed after"];
/// The column that is left out where all work is the processor's.
const PLACE: usize = 2;
/// Wider cells overflow: one node that gives nine ports must not push every other line off the screen.
const WIDEST: usize = 44;

impl fmt::Display for Explain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.head(f)?;
        let freed = memory::all_freed(&self.plan.items, &self.plan.tasks, self.plan.slots.len());
        let mut rows = vec![HEADS.map(str::to_owned)];
        rows.extend(self.plan.order.iter().map(|&id| self.row(&self.plan.tasks[id], &freed)));
        let widths: Vec<usize> = (0..HEADS.len())
            .map(|c| rows.iter().map(|r| r[c].chars().count()).max().unwrap_or(0).min(WIDEST))
            .collect();
        for row in &rows {
            let mut line = String::new();
            for (column, (cell, &width)) in row.iter().zip(&widths).enumerate() {
                if column == PLACE && self.plan.options.gpu.is_none() {
                    continue;
                }
                // Numbers stand right, so that their sizes can be compared at a glance.
                let number = matches!(column, 1 | 5 | 6);
                line += &if number { format!("{cell:>width$}  ") } else { format!("{cell:<width$}  ") };
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

impl Explain<'_> {
    fn head(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plan = self.plan;
        writeln!(
            f,
            "{}: {}, {}, {}, up to {} ahead{}",
            self.graph.name,
            count(self.graph.len(), "node"),
            count(plan.tasks.len(), "task"),
            count(plan.options.lanes, "lane"),
            count(plan.options.ahead, "step"),
            match plan.options.made_ahead() {
                made if made == plan.options.ahead => String::new(),
                made => format!(", data {made}"),
            },
        )?;
        match plan.is_timed() {
            true => writeln!(
                f,
                "a step: {} by {}, longest path {}",
                seconds(plan.seconds),
                match plan.measured {
                    true => "measured times",
                    false if plan.options.rates == super::Rates::default() => "declared costs",
                    false => "declared costs at the measured rates of this machine",
                },
                seconds(plan.critical),
            )?,
            false => {
                writeln!(f, "a step: no times, since the speed of {} is unknown", plan.options.networks())?
            }
        }
        for (place, memory) in &plan.memory {
            self.memory(f, *place, memory)?;
        }
        if plan.variants.len() > 1 {
            writeln!(f, "shapes: the largest of {} variants", plan.variants.len())?;
        }
        writeln!(f)
    }

    fn memory(&self, f: &mut fmt::Formatter<'_>, place: Place, memory: &Memory) -> fmt::Result {
        match place {
            Place::Cpu => write!(f, "memory: peak {}", bytes(memory.peak))?,
            Place::Cuda(_) => write!(f, "memory of {place}: peak {}", bytes(memory.peak))?,
        }
        if let Some(at) = memory.at {
            write!(f, " at `{}`", memory::task_name(self.graph, self.plan.tasks[at].task))?;
        }
        write!(f, ", of which weights {}, cells {}", bytes(memory.resident), bytes(memory.cells))?;
        if memory.queues > 0 {
            let what = if place == Place::Cpu { "pinned buffers" } else { "workspaces" };
            write!(f, ", {what} {}", bytes(memory.queues))?;
        }
        writeln!(f, ", made ahead {}", bytes(memory.ahead))?;
        match (memory.process, place) {
            (0, _) => Ok(()),
            (process, Place::Cpu) => {
                writeln!(
                    f,
                    "  and {} of the process itself: code, stacks of threads, allocator",
                    bytes(process)
                )
            }
            (driver, Place::Cuda(_)) => {
                writeln!(f, "  and about {} of the driver: context, kernels, libraries", bytes(driver))
            }
        }
    }

    fn row(&self, planned: &PlannedTask, freed: &[Option<usize>]) -> [String; 10] {
        let (plan, graph, id) = (self.plan, self.graph, planned.task.node());
        let node = &graph[id];
        let (reads, gives, held, free) = match planned.task {
            Task::Forward(_) => {
                let outputs = plan.largest().outputs(id);
                let several = outputs.len() > 1;
                let gives = node.outputs.iter().zip(outputs).map(|(o, shape)| {
                    let shape = o.ty.describe(shape);
                    // `target target f32[...]` would say it twice.
                    let named = o.ty.role == Some(o.name);
                    if several && !named { format!("{} {shape}", o.name) } else { shape }
                });
                let mut free: Vec<String> = plan
                    .slots
                    .all(id)
                    .map(|slot| {
                        freed[slot].map_or("end".into(), |t| memory::task_name(graph, plan.tasks[t].task))
                    })
                    .collect();
                if free.windows(2).all(|w| w[0] == w[1]) {
                    free.truncate(1);
                }
                if plan.is_cell(id) {
                    free = vec!["carried".into()];
                }
                let held = prefgraph_nn::size::sum(outputs.iter().map(prefgraph_ops::ErasedShape::bytes));
                (self.reads(planned), gives.collect::<Vec<_>>().join(", "), bytes(held), free.join(", "))
            }
            Task::Backward(_) => {
                (self.cotangents(planned), self.gives_back(planned), String::new(), String::new())
            }
        };
        [
            planned.phase.to_string(),
            planned.lane.to_string(),
            planned.place.to_string(),
            memory::task_name(graph, planned.task),
            node.op.name().to_owned(),
            if planned.flops > 0.0 {
                scaled(planned.flops, ["", "k", "M", "G", "T", "P"], 1000.0)
            } else {
                "".into()
            },
            held,
            gives,
            reads,
            free,
        ]
    }

    fn reads(&self, planned: &PlannedTask) -> String {
        let node = &self.graph[planned.task.node()];
        let mut parts = Vec::new();
        for (spec, wires) in node.inputs.iter().zip(&node.wires) {
            if !wires.is_empty() {
                let from: Vec<String> = wires.iter().map(|&w| self.graph.path(w)).collect();
                parts.push(format!("{}={}", spec.name, from.join("+")));
            }
        }
        if parts.is_empty() { "-".into() } else { parts.join(" ") }
    }

    /// The wires that cotangents come along.
    fn cotangents(&self, planned: &PlannedTask) -> String {
        let id = planned.task.node();
        let edges = self.graph.edges_from(id).into_iter();
        let mut from: Vec<String> = edges
            .filter(|(index, ..)| self.plan.gradient.along(*index))
            .map(|(_, target, edge)| {
                let target = &self.graph[target];
                format!("{}.{}", target.id, target.inputs[edge.input].name)
            })
            .collect();
        if self.graph.losses().iter().any(|l| l.node == id) {
            from.insert(0, "1".into());
        }
        from.join(" + ")
    }

    fn gives_back(&self, planned: &PlannedTask) -> String {
        let id = planned.task.node();
        let wanted = self.plan.gradient.wanted(id).unwrap_or_default();
        let names: Vec<&str> =
            self.graph[id].inputs.iter().zip(wanted).filter(|(_, w)| **w).map(|(i, _)| i.name).collect();
        if names.is_empty() { "the sum".into() } else { format!("to {}", names.join(", ")) }
    }
}

/// A number with a prefix: three digits are enough to compare.
fn scaled(value: f64, units: [&str; 6], base: f64) -> String {
    let mut value = value;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < units.len() {
        value /= base;
        unit += 1;
    }
    let digits = if unit == 0 || value >= 99.95 {
        0
    } else if value >= 9.995 {
        1
    } else {
        2
    };
    let space = if units[unit].is_empty() { "" } else { " " };
    format!("{value:.digits$}{space}{}", units[unit])
}

pub(super) fn bytes(bytes: usize) -> String {
    super::bytes(bytes as u64)
}

pub(super) fn seconds(seconds: f64) -> String {
    scaled(seconds * 1e6, ["us", "ms", "s", "ks", "Ms", "Gs"], 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short_and_have_units() {
        assert_eq!(seconds(0.0123), "12.3 ms");
        assert_eq!(seconds(2.0), "2.00 s");
    }
}
