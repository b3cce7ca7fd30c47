//! Embeddings of pictures and photographs as measured pictures.

use prefgraph_ops::operators::cosine::cosine;

use super::scores::Measured;

/// A picture of a group, compared with the photographs of each subject of that group; every cosine times `scale`. `None` where an
/// embedding has no direction, or a subject no photographs.
pub fn against_photographs(
    group: usize,
    picture: &[f32],
    photographs: &[Vec<&[f32]>],
    scale: f64,
) -> Option<Measured> {
    let of_subject = |photographs: &Vec<&[f32]>| -> Option<f64> {
        let cosines = photographs.iter().map(|p| cosine(picture, p)).collect::<Option<Vec<f64>>>()?;
        (!cosines.is_empty()).then(|| scale * cosines.iter().sum::<f64>() / cosines.len() as f64)
    };
    Some(Measured {
        group,
        by_subject: photographs.iter().map(of_subject).collect::<Option<_>>()?,
        comparisons: photographs.iter().map(Vec::len).sum(),
    })
}

/// Each photograph of a subject, compared with the others of that subject.
pub fn against_each_other(group: usize, photographs: &[&[f32]], scale: f64) -> Option<Vec<Measured>> {
    let one = |number: usize| {
        let others = photographs.iter().enumerate().filter(|(other, _)| *other != number);
        let others = others.map(|(_, photograph)| *photograph).collect();
        against_photographs(group, photographs[number], &[others], scale)
    };
    (0..photographs.len()).map(one).collect()
}

/// For each photograph, given with its subject: is the one that resembles it most, of all others, of its subject? Of equal ones the
/// first counts.
pub fn nearest_is_of_the_same_subject(photographs: &[(usize, &[f32])]) -> Option<Vec<bool>> {
    let one = |number: usize| {
        let (subject, this) = photographs[number];
        let mut best: Option<(f64, usize)> = None;
        for (other, (theirs, that)) in photographs.iter().enumerate() {
            if other == number {
                continue;
            }
            let found = cosine(this, that)?;
            if best.is_none_or(|(most, _)| found > most) {
                best = Some((found, *theirs));
            }
        }
        best.map(|(_, theirs)| theirs == subject)
    };
    (0..photographs.len()).map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_is_compared_with_every_photograph_of_each_of_its_subjects() {
        let (first, second) = ([[1.0, 0.0].as_slice(), &[0.0, 2.0]], [[-3.0, 0.0].as_slice()]);
        let found = against_photographs(4, &[5.0, 0.0], &[first.into(), second.into()], 100.0).unwrap();
        assert_eq!(found, Measured { group: 4, by_subject: vec![50.0, -100.0], comparisons: 3 });
        assert_eq!((found.mean(), found.minimum()), (-25.0, -100.0));
        assert_eq!(against_photographs(0, &[0.0, 0.0], &[first.into()], 1.0), None);
        assert_eq!(against_photographs(0, &[1.0, 0.0], &[Vec::new()], 1.0), None);
    }

    #[test]
    fn a_photograph_is_not_compared_with_itself() {
        let found = against_each_other(1, &[&[1.0, 0.0], &[2.0, 0.0], &[0.0, 1.0]], 1.0).unwrap();
        let means: Vec<f64> = found.iter().map(Measured::mean).collect();
        assert_eq!(means, [0.5, 0.5, 0.0]);
    }

    #[test]
    fn the_nearest_photograph_is_found_among_all_others() {
        let all: [(usize, &[f32]); 4] =
            [(0, &[1.0, 0.0]), (0, &[1.0, 0.1]), (1, &[0.0, 1.0]), (1, &[1.0, 0.5])];
        assert_eq!(nearest_is_of_the_same_subject(&all).unwrap(), [true, true, true, false]);
    }
}
