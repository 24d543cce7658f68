//! Room for LoRAs beside a model's matrices, and what is put there: the [factors](super::lora::Factor) of all LoRAs that are in
//! use, side by side, as two tensors of each matrix.
//!
//! ```text
//! W x + sum_i s_i up_i (down_i x)  =  W x + up (down x)
//!                                           down [rank, k]: rows of the first LoRA, of the second, .., zeros
//!                                           up   [n, rank]: columns likewise, times s_i
//! ```
//!
//! `s` is a LoRA's strength times its own scale. Nothing is put together before it is read: rows come from the LoRAs' files.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use super::lora::{Factor, Lora};
use super::tensor::TensorFile;
use super::{Dtype, Encoding, Needed, Part, TensorInfo, convert};
use crate::{Error, Result};

/// Ranks are multiples of this: a row is whole 16-byte vectors of bf16.
const RANK_MULTIPLE: usize = 8;

/// The two tensors that change a matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Half {
    /// `[rank, k]`, which comes first.
    Down,
    /// `[n, rank]`.
    Up,
}

impl Half {
    fn ending(self) -> &'static str {
        match self {
            Half::Down => ".lora_A",
            Half::Up => ".lora_B",
        }
    }

    /// The name of that of the matrix `name` (without `.weight`).
    pub fn of(self, name: &str) -> String {
        format!("{name}{}", self.ending())
    }

    /// Which one of which matrix that is, if it is one.
    pub fn told(name: &str) -> Option<(Half, &str)> {
        [Half::Down, Half::Up].into_iter().find_map(|half| Some((half, name.strip_suffix(half.ending())?)))
    }
}

/// LoRAs in use, and how strongly: 1 is as they were trained, 0 is without effect, less than 0 the other way.
pub type Strengths<'a> = &'a [(Lora, f32)];

/// Which matrices have room for LoRAs, and of what rank, in all LoRAs together.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Adapters {
    ranks: BTreeMap<(Part, String), usize>,
}

impl Adapters {
    /// Room for exactly these.
    pub fn of(loras: Strengths<'_>) -> Adapters {
        let mut ranks = BTreeMap::new();
        for factor in loras.iter().flat_map(|(lora, _)| lora.factors()) {
            *ranks.entry((factor.part, factor.target.clone())).or_insert(0) += rank(factor);
        }
        ranks.values_mut().for_each(|rank| *rank = rank.next_multiple_of(RANK_MULTIPLE));
        Adapters { ranks }
    }

    /// Room for `rank` beside each of `part`'s matrices.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a model that the kernels cannot run.
    pub fn everywhere(part: Part, rank: usize, config: &crate::config::PipelineConfig) -> Result<Adapters> {
        let needed = part.needed(config)?;
        let matrices =
            needed.into_iter().filter(|needed| needed.shape.len() == 2 && Half::told(&needed.name).is_none());
        let names = matrices.filter_map(|needed| Some(needed.name.strip_suffix(".weight")?.to_string()));
        let rank = rank.next_multiple_of(RANK_MULTIPLE);
        Ok(Adapters { ranks: names.map(|name| ((part, name), rank)).collect() })
    }

    /// Room for both of two sets, one after the other.
    #[must_use]
    pub fn or(mut self, other: Adapters) -> Adapters {
        for (matrix, rank) in other.ranks {
            let most = self.ranks.entry(matrix).or_insert(0);
            *most = rank.max(*most);
        }
        self
    }

    /// Of the matrix `name` (without `.weight`) of `part`; 0 where there is no room.
    pub(crate) fn rank(&self, part: Part, name: &str) -> usize {
        self.ranks.get(&(part, name.to_string())).copied().unwrap_or(0)
    }

    /// Whether no matrix has any.
    pub fn is_empty(&self) -> bool {
        self.ranks.is_empty()
    }

    /// Refuses LoRAs for which there is not enough.
    ///
    /// # Errors
    /// [`Error::Input`] naming a matrix and both ranks.
    pub fn check(&self, loras: Strengths<'_>) -> Result<()> {
        for ((part, name), needed) in Adapters::of(loras).ranks {
            let room = self.rank(part, &name);
            if needed > room {
                return Err(Error::Input(format!(
                    "these LoRAs change {name} of the {part} with a rank of {needed}, and there is room for {room}: load the model with them, or with more room"
                )));
            }
        }
        Ok(())
    }
}

fn rank(factor: &Factor) -> usize {
    factor.down.shape.first().copied().unwrap_or(0)
}

/// Strengths that are numbers.
///
/// # Errors
/// [`Error::Input`] naming the file of another.
pub(crate) fn check_strengths(loras: Strengths<'_>) -> Result<()> {
    match loras.iter().find(|(_, strength)| !strength.is_finite()) {
        None => Ok(()),
        Some((lora, strength)) => Err(Error::Input(format!(
            "{}: a strength of {strength}; take a number such as 0.8",
            crate::error::shown(&lora.path().to_string_lossy())
        ))),
    }
}

/// The tensor `needed`, one [half](Half) of a matrix of `part`, with what `loras` say.
pub(crate) fn tensor(loras: Strengths<'_>, part: Part, needed: &Needed) -> Result<TensorInfo> {
    let (half, name) = Half::told(&needed.name)
        .ok_or_else(|| Error::Internal(format!("{} is no half of a LoRA", needed.name)))?;
    let (rows, row_len) = match needed.shape[..] {
        [rows, row_len] => (rows, row_len),
        _ => return Err(Error::Internal(format!("{} is no matrix", needed.name))),
    };
    let (mut terms, mut at) = (Vec::new(), 0);
    for (lora, strength) in loras {
        for factor in lora.factors().iter().filter(|factor| factor.part == part && factor.target == name) {
            let (tensor, scale) = match half {
                Half::Down => (factor.down.clone(), 1.0),
                Half::Up => (factor.up.clone(), factor.scale * strength),
            };
            terms.push(Term { tensor, scale, at });
            at += rank(factor);
        }
    }
    let room = if half == Half::Down { rows } else { row_len };
    if at > room {
        return Err(Error::Internal(format!(
            "{}: a rank of {at} where there is room for {room}",
            needed.name
        )));
    }
    let sum = Sum { half, row_len, terms };
    Ok(TensorInfo {
        name: needed.name.clone(),
        dtype: Dtype::F32,
        shape: needed.shape.clone(),
        bytes: 4 * needed.elements(),
        file: Arc::new(TensorFile::sum(sum)),
        offset: 0,
        encoding: Encoding::Plain,
        rows: None,
    })
}

/// A half of the LoRAs in use, of one matrix.
#[derive(Debug)]
pub(super) struct Sum {
    half: Half,
    row_len: usize,
    terms: Vec<Term>,
}

/// That of one LoRA.
#[derive(Debug)]
struct Term {
    tensor: TensorInfo,
    scale: f32,
    /// Its first row, or column.
    at: usize,
}

impl Sum {
    /// Its bytes, f32, from `start` on.
    pub fn read(&self, start: u64, buf: &mut [u8]) -> Result<()> {
        let row_bytes = 4 * self.row_len.max(1);
        let first = start as usize / row_bytes;
        let end = (start as usize + buf.len()).div_ceil(row_bytes);
        let mut values = vec![0.0; (end - first) * self.row_len];
        for term in &self.terms {
            match self.half {
                Half::Down => term.rows(first, end, self.row_len, &mut values)?,
                Half::Up => term.columns(first, end, self.row_len, &mut values)?,
            }
        }
        let skip = start as usize - first * row_bytes;
        buf.copy_from_slice(&bytemuck::cast_slice::<f32, u8>(&values)[skip..skip + buf.len()]);
        Ok(())
    }

    /// A line that is another when it may mean another: of the files, where the terms lie in them, and how much they count.
    pub fn stamp(&self) -> Result<String> {
        let mut stamp = String::new();
        for term in &self.terms {
            stamp += &term.tensor.file.stamp()?.unwrap_or_default();
            stamp += &format!("{} {:08x} {}\n", term.tensor.place(), term.scale.to_bits(), term.at);
        }
        Ok(stamp)
    }

    /// The file of the first.
    pub fn path(&self) -> &Path {
        self.terms.first().map_or(Path::new("LoRAs"), |term| term.tensor.file.path())
    }
}

impl Term {
    /// Rows `first..end` of the tensor of a LoRA.
    fn read(&self, first: usize, end: usize) -> Result<Vec<f32>> {
        let row_bytes = self.tensor.row_bytes();
        let mut bytes = vec![0; (end - first) * row_bytes];
        self.tensor.read_at((first * row_bytes) as u64, &mut bytes)?;
        let mut values = vec![0.0; bytes.len() * 8 / self.tensor.dtype.bitsize().max(1)];
        convert::to_f32(self.tensor.dtype, &bytes, &mut values)?;
        self.tensor.check_finite(&values)?;
        values.iter_mut().for_each(|value| *value *= self.scale);
        Ok(values)
    }

    /// Adds those of its rows that are among `first..end`.
    fn rows(&self, first: usize, end: usize, row_len: usize, out: &mut [f32]) -> Result<()> {
        let rank = self.tensor.shape.first().copied().unwrap_or(0);
        let (from, to) = (first.max(self.at), end.min(self.at + rank));
        if from < to {
            let values = self.read(from - self.at, to - self.at)?;
            out[(from - first) * row_len..(to - first) * row_len].copy_from_slice(&values);
        }
        Ok(())
    }

    /// Adds its columns of rows `first..end`.
    fn columns(&self, first: usize, end: usize, row_len: usize, out: &mut [f32]) -> Result<()> {
        let values = self.read(first, end)?;
        let rank = values.len() / (end - first).max(1);
        for (from, to) in values.chunks(rank.max(1)).zip(out.chunks_mut(row_len)) {
            to[self.at..self.at + rank].copy_from_slice(from);
        }
        Ok(())
    }
}
