//! Embeddings as scores: every picture by every metric.

use std::collections::BTreeMap;

use prefgraph_ops::operators::benchmark::Survey;

use super::collect::Collected;
use crate::{
    cli::Failure,
    evaluate::{Measured, Score, against_each_other, against_photographs, nearest_is_of_the_same_subject},
};

/// What a picture was compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Against {
    Photographs,
    Prompt,
}

/// One metric over all pictures.
pub(super) struct Metric {
    /// The node that it comes from.
    pub name: String,
    pub against: Against,
    /// Of every picture that was scored, in the order of the lists.
    pub pictures: Vec<Measured>,
    pub score: Score,
    /// Of photographs against photographs: how many have their nearest neighbour in their own subject.
    pub nearest: Option<usize>,
}

/// All metrics, in the order of the graph.
pub(super) struct Measurement {
    /// Ids of the pictures that were scored.
    pub ids: Vec<String>,
    pub metrics: Vec<Metric>,
}

/// A length of zero has no direction, and neither has what is not finite.
fn damaged(node: &str, embeddings: &BTreeMap<String, Vec<f32>>) -> Failure {
    let directed = |e: &[f32]| e.iter().all(|v| v.is_finite()) && e.iter().any(|v| *v != 0.0);
    let id = embeddings.iter().find(|(_, e)| !directed(e)).map(|(id, _)| format!(" of `{id}`"));
    Failure::new(format!(
        "node `{node}`: the embedding{} has no direction: it is all zeros or out of range, so that nothing can be compared with it; look \
         at the weights or the file that it comes from",
        id.unwrap_or_default()
    ))
}

fn lost(id: &str) -> Failure {
    Failure::new(format!("internal error, please report it: {id:?} was not read"))
}

impl Measurement {
    /// Of what was collected.
    pub fn of(survey: &Survey, collected: &Collected, real: bool) -> Result<Self, Failure> {
        if real { Self::of_photographs(survey, collected) } else { Self::of_pictures(survey, collected) }
    }

    fn of_pictures(survey: &Survey, collected: &Collected) -> Result<Self, Failure> {
        let preset = survey.preset;
        let cases: Vec<_> = survey.present.iter().map(|(number, _)| &survey.cases[*number]).collect();
        let mut metrics = Vec::new();
        for (node, embeddings) in &collected.embeddings {
            let by_subject = photographs(survey, embeddings)?;
            let measure = |case: &&prefgraph_ops::operators::benchmark::Case| {
                let picture = embeddings.get(&case.id).ok_or_else(|| lost(&case.id))?;
                let subjects = survey.groups[case.group].subjects.iter();
                let compared: Vec<Vec<&[f32]>> =
                    subjects.map(|s| by_subject.get(s).cloned().unwrap_or_default()).collect();
                against_photographs(case.group, picture, &compared, preset.scale)
                    .ok_or_else(|| damaged(node, embeddings))
            };
            let pictures = cases.iter().map(measure).collect::<Result<Vec<_>, _>>()?;
            let score = Score::of(&pictures, preset.mean);
            let against = Against::Photographs;
            metrics.push(Metric { name: node.clone(), against, pictures, score, nearest: None });
        }
        for (node, cosines) in &collected.prompts {
            let measure = |case: &&prefgraph_ops::operators::benchmark::Case| {
                let cosine = *cosines.get(&case.id).ok_or_else(|| lost(&case.id))?;
                let counted = if preset.floor { cosine.max(0.0) } else { cosine };
                Ok(Measured { group: case.group, by_subject: vec![preset.scale * counted], comparisons: 1 })
            };
            let pictures = cases.iter().map(measure).collect::<Result<Vec<_>, Failure>>()?;
            let score = Score::of(&pictures, preset.mean);
            let against = Against::Prompt;
            metrics.push(Metric { name: node.clone(), against, pictures, score, nearest: None });
        }
        Ok(Self { ids: cases.iter().map(|case| case.id.clone()).collect(), metrics })
    }

    fn of_photographs(survey: &Survey, collected: &Collected) -> Result<Self, Failure> {
        let mut metrics = Vec::new();
        for (node, embeddings) in &collected.embeddings {
            let by_subject = photographs(survey, embeddings)?;
            let mut pictures = Vec::new();
            for (number, group) in survey.groups.iter().enumerate() {
                let of_group = by_subject.get(&group.subjects[0]).map_or(&[][..], Vec::as_slice);
                let scale = survey.preset.scale;
                pictures.extend(
                    against_each_other(number, of_group, scale).ok_or_else(|| damaged(node, embeddings))?,
                );
            }
            let all: Vec<(usize, &[f32])> =
                by_subject.iter().flat_map(|(s, all)| all.iter().map(|e| (*s, *e))).collect();
            let nearest = nearest_is_of_the_same_subject(&all).ok_or_else(|| damaged(node, embeddings))?;
            let nearest = Some(nearest.into_iter().filter(|same| *same).count());
            let score = Score::of(&pictures, survey.preset.mean);
            let against = Against::Photographs;
            metrics.push(Metric { name: node.clone(), against, pictures, score, nearest });
        }
        Ok(Self { ids: survey.photographs.iter().map(|photograph| photograph.id.clone()).collect(), metrics })
    }
}

/// Embeddings of photographs, by subject.
fn photographs<'a>(
    survey: &Survey,
    embeddings: &'a BTreeMap<String, Vec<f32>>,
) -> Result<BTreeMap<usize, Vec<&'a [f32]>>, Failure> {
    let mut all: BTreeMap<usize, Vec<&[f32]>> = BTreeMap::new();
    for photograph in &survey.photographs {
        let embedding = embeddings.get(&photograph.id).ok_or_else(|| lost(&photograph.id))?;
        all.entry(photograph.subject).or_default().push(embedding);
    }
    Ok(all)
}
