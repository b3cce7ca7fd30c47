//! Who is in a picture? An identity encoder ranks the references of held-out subjects by how near they are to drawn pictures.

use std::{
    io::{self, Write},
    path::Path,
};

use crate::{
    Failure,
    encoder::Encoder,
    held::{Held, Ranking},
};

/// Print which share of subjects have, of `among` references, their own nearest to their picture: the winner, or
/// `pictures/reference-...-ID.png`, as the operator `pictures` writes it.
pub fn rank(folder: &Path, pictures: Option<&Path>, encoder: &Path, among: usize) -> Result<(), Failure> {
    let (held, encoder) = (Held::read(folder)?, Encoder::open(encoder)?);
    let ranking = Ranking::new(&held, &encoder, among)?;
    let (mut counts, mut out) = ([[0usize; 2]; 2], io::stdout().lock());
    for pair in &held.pairs {
        let picture = held.picture(pair, pictures, "reference")?;
        for &own in &pair.shown {
            let rank = ranking.rank(&picture, pair, own)?;
            counts[pair.shown.len() - 1][usize::from(rank.is_first())] += 1;
            let place = match rank.is_first() {
                true => "first".to_owned(),
                false => format!("behind {}", held.subjects[rank.nearest.1].name),
            };
            writeln!(out, "{}\t{}\t{place}", pair.id, held.subjects[own].name)?;
        }
    }
    for (of, [behind, first]) in ["pictures of one subject", "pictures of two"].iter().zip(counts) {
        let all = behind + first;
        if all > 0 {
            let share = first as f64 / all as f64;
            writeln!(
                out,
                "{of}: {first} of {all} subjects first of {among} ({share:.2}; chance {:.2})",
                1.0 / among as f64
            )?;
        }
    }
    Ok(())
}
