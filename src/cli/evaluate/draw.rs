//! Draws the pictures of a benchmark that are missing, with the networks of another graph and an adapter.

use std::path::Path;

use prefgraph_ops::{
    operators::{
        benchmark::{BenchmarkSettings, Compared, Drawn, Survey, photographs_of},
        pairs::Asked,
    },
    words::{count, form},
};

use crate::{
    cli::{
        Failure, args,
        sample::{Listed, Many},
        say::say,
    },
    registry::Registry,
};

/// Draw what is missing in the folder of pictures, as the preset says; what is there stays as it is.
pub(super) fn missing(
    args: &args::Evaluate,
    graph: &Path,
    settings: &BenchmarkSettings,
    registry: &Registry,
) -> Result<(), Failure> {
    if settings.pictures.is_empty() || !settings.mapping.is_empty() {
        return Err(Failure::new(
            "--sample: pictures are drawn into a folder, --pictures FOLDER, and not by a mapping",
        ));
    }
    let folder = settings.pictures.as_path();
    std::fs::create_dir_all(folder)
        .map_err(|e| Failure::new(format!("cannot make the folder `{}`: {e}", folder.display())))?;
    let survey =
        Survey::of(&BenchmarkSettings { incomplete: true, ..settings.clone() }).map_err(Failure::new)?;
    let preset = survey.preset;
    let Drawn { seed, steps, guidance, negative, side, reference } = preset.drawn.ok_or_else(|| {
        Failure::new(format!(
            "--sample: `{}` does not say how one network draws all pictures from one photograph of each subject",
            preset.name
        ))
    })?;
    let mut by_copy: Vec<Vec<Listed>> = (0..preset.per_prompt).map(|_| Vec::new()).collect();
    for case in survey.missing.iter().map(|number| &survey.cases[*number]) {
        let subjects = survey.groups[case.group].subjects.iter().map(|number| preset.subjects()[*number]);
        let listed = subjects.map(|s| photographs_of(settings.photographs.as_path(), s, Compared::Listed));
        let references = listed.collect::<Result<Vec<_>, _>>().map_err(Failure::new)?.concat();
        let asked = Asked { id: case.id.clone(), prompt: case.prompt.clone(), references };
        by_copy[case.copy].push(Listed { asked, file: case.path.clone() });
    }
    let many = Many {
        graph,
        sets: &args.sample_sets,
        adapter: args.adapter.as_deref(),
        size: survey.size.unwrap_or((side, side)),
        reference_size: (reference, reference),
        steps,
        guidance,
        negative,
        threads: args.threads,
        device: args.device.as_deref(),
        origin: preset.name,
    };
    for (copy, pictures) in by_copy.iter().enumerate().filter(|(_, pictures)| !pictures.is_empty()) {
        say!(
            "{} of `{}` {} missing and drawn at seed {}",
            count(pictures.len(), "picture"),
            preset.name,
            form(pictures.len(), "is", "are"),
            seed + copy as u64
        );
        many.draw(seed + copy as u64, pictures, registry)?;
    }
    Ok(())
}
