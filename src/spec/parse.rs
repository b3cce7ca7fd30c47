//! Parses one graph file: names and texts with their places, nothing resolved yet.

use super::{
    nearest::advice,
    source::{At, Sources, Span, SpecError},
    syntax::{Form, Piece},
};

/// A name and the text of its value, e.g. of a setting.
pub(super) type Stated = (At<String>, At<String>);

/// What an input is connected to.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Wiring {
    /// `None`: nothing, whatever the parent says.
    Nothing(Span),
    /// `"node.port"`.
    One(At<String>),
    /// `["node.port", ...]`; the place is that of the list.
    List(Vec<At<String>>, Span),
}

/// A node, as far as one file states it.
#[derive(Clone, Debug)]
pub(super) struct NodeText {
    pub id: At<String>,
    pub op: Option<At<String>>,
    pub inputs: Vec<(At<String>, Wiring)>,
    pub settings: Vec<Stated>,
    /// Place of the value of `with`.
    pub with: Option<Span>,
}

/// A graph file.
#[derive(Clone, Debug, Default)]
pub(super) struct FileText {
    /// The parent, and files that are laid over it.
    pub extends: Vec<At<String>>,
    pub name: Option<At<String>>,
    pub remove: Vec<At<String>>,
    pub nodes: Vec<NodeText>,
    pub loss: Option<At<String>>,
    /// Cell, and the port that becomes its value; `None` takes the parent's away.
    pub carry: Vec<(At<String>, Option<At<String>>)>,
    pub run: Vec<Stated>,
    pub cache: Vec<Stated>,
}

const TOP: [&str; 8] = ["extends", "name", "remove", "nodes", "loss", "carry", "run", "cache"];
const NODE: [&str; 4] = ["id", "op", "in", "with"];

/// Read `file`.
pub(super) fn parse(sources: &Sources, file: usize) -> Result<FileText, Box<SpecError>> {
    let mut out = FileText::default();
    for (key, value) in Piece::whole(sources, file).fields("a graph", "Graph")? {
        match key.value {
            "extends" if value.form() == Form::Text => {
                out.extends = vec![value.string("the file that is extended")?];
            }
            "extends" => {
                for file in value.items("`extends`")? {
                    out.extends.push(file.string("a file that is extended")?);
                }
            }
            "name" => {
                let name = value.string("a name")?;
                check_name(sources, &name)?;
                out.name = Some(name);
            }
            "remove" => {
                for id in value.items("`remove`")? {
                    out.remove.push(id.string("the id of a node")?);
                }
            }
            "nodes" => {
                for node in value.items("`nodes`")? {
                    out.nodes.push(parse_node(sources, node)?);
                }
            }
            "loss" => out.loss = Some(value.string("the loss")?),
            "carry" => {
                for (cell, next) in value.entries("`carry`")? {
                    let next = match next.form() {
                        Form::None => None,
                        _ => Some(next.string("what a cell is carried to")?),
                    };
                    out.carry.push((cell, next));
                }
            }
            "run" => out.run = texts(value, "`run`")?,
            "cache" => out.cache = texts(value, "`cache`")?,
            _ => return Err(unknown(sources, "a graph", "fields of a graph", key, &TOP)),
        }
    }
    let mut seen = std::collections::HashMap::new();
    for node in &out.nodes {
        if let Some(first) = seen.insert(&node.id.value, node.id.span) {
            let message = format!("node `{}` is defined twice", node.id.value);
            let error = sources.error(message, node.id.span, "again here");
            return Err(sources.also(error, first, "first here"));
        }
    }
    Ok(out)
}

fn parse_node(sources: &Sources, piece: Piece<'_>) -> Result<NodeText, Box<SpecError>> {
    let (mut id, mut op, mut inputs, mut settings, mut with) = (None, None, Vec::new(), Vec::new(), None);
    let fields = piece.fields("a node", "")?;
    for (key, value) in fields {
        match key.value {
            "id" => id = Some(value.string("the id of a node")?),
            "op" => op = Some(value.string("the name of an operator")?),
            "in" => {
                for (name, wiring) in value.fields("`in`", "")? {
                    inputs.push((owned(name), parse_wiring(wiring)?));
                }
            }
            "with" => {
                settings = texts(value, "`with`")?;
                with = Some(value.span());
            }
            _ => return Err(unknown(sources, "a node", "fields of a node", key, &NODE)),
        }
    }
    let Some(id) = id else {
        return Err(sources.error("this node has no `id`", piece.span(), "every node has one"));
    };
    check_id(sources, &id)?;
    Ok(NodeText { id, op, inputs, settings, with })
}

fn parse_wiring(piece: Piece<'_>) -> Result<Wiring, Box<SpecError>> {
    const WHAT: &str = "what an input reads";
    match piece.form() {
        Form::None => Ok(Wiring::Nothing(piece.span())),
        Form::List => {
            let items = piece.items(WHAT)?.into_iter().map(|p| p.string(WHAT));
            Ok(Wiring::List(items.collect::<Result<_, _>>()?, piece.span()))
        }
        _ => {
            let accepted = "\"node\", \"node.port\", \"grad:node.port\", a list of these, or None";
            Ok(Wiring::One(piece.string(WHAT).map_err(|e| e.help(accepted))?))
        }
    }
}

/// The fields of a struct whose values stay text.
fn texts(piece: Piece<'_>, what: &str) -> Result<Vec<Stated>, Box<SpecError>> {
    let fields = piece.fields(what, "")?.into_iter();
    Ok(fields.map(|(k, v)| (owned(k), At { value: v.text().to_owned(), span: v.span() })).collect())
}

fn owned(name: At<&str>) -> At<String> {
    At { value: name.value.to_owned(), span: name.span }
}

fn unknown(sources: &Sources, owner: &str, what: &str, key: At<&str>, all: &[&str]) -> Box<SpecError> {
    let message = format!("{owner} has no field `{}`", key.value);
    sources.error(message, key.span, "not a field").help(advice(what, key.value, all.iter().copied()))
}

/// Can it be the name of a graph, and of a folder in another? One of several parts would lead elsewhere.
pub(super) fn is_name(name: &str) -> bool {
    let bad = |c: char| c == '/' || c == '\\' || c.is_control();
    !name.trim().is_empty() && !name.contains(bad) && name != "." && name != ".."
}

fn check_name(sources: &Sources, name: &At<String>) -> Result<(), Box<SpecError>> {
    if is_name(&name.value) {
        return Ok(());
    }
    let message = format!("`{}` cannot be the name of a graph", name.value.escape_debug());
    let error = sources.error(message, name.span, "not a name");
    Err(error.help("it names the run's folder in `runs`: text without `/` and `\\`, as in `my_run`; `--out` chooses a folder elsewhere"))
}

fn check_id(sources: &Sources, id: &At<String>) -> Result<(), Box<SpecError>> {
    let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == '-';
    if id.value.is_empty() || !id.value.chars().all(good) {
        let message = format!("`{}` cannot be the id of a node", id.value);
        let help = "lower-case letters, digits, `_` and `-` make an id, as in `encode_w`";
        return Err(sources.error(message, id.span, "not an id").help(help));
    }
    if let "run" | "cache" = id.value.as_str() {
        let error = sources.error(format!("no node can be called `{}`", id.value), id.span, "taken");
        let help = "`@run.steps`, `--set run.steps=1` and `--set cache.path=FOLDER` mean the settings of the run and of the cache";
        return Err(error.help(help));
    }
    Ok(())
}
