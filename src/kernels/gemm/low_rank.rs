//! What a LoRA adds to a product, in the product's own accumulators; `kernels/gemm_low_rank.cuh` says how.

use half::bf16;

use super::check_aligned;
use crate::Result;
use crate::abi;
use crate::device::{Footprint, View};
use crate::kernels::{check_len, matrix_len, refuse, to_i32, volume};

/// `t . up^T`, added to `x . w^T` before bias and epilogues, where `t = x . down^T` has been computed before.
///
/// - numerics: bf16 operands, f32 accumulation, together with the product's own sums
/// - source: LoRA, arXiv:2106.09685
#[derive(Clone, Debug)]
pub struct LowRank<'a> {
    /// bf16 `[m, t_pitch]`; rows 16-byte aligned. Part i of the features has columns `i * rank` and following.
    pub t: &'a View<bf16>,
    /// Elements from row to row; a multiple of 8, at least the columns of all parts.
    pub t_pitch: usize,
    /// bf16 `[n, rank]`, 16-byte aligned.
    pub up: &'a View<bf16>,
    /// A multiple of 8.
    pub rank: usize,
    /// One past the last feature of each part, ascending, at most 4; the last is `n`.
    pub ends: Vec<usize>,
}

impl LowRank<'_> {
    /// Multiply-adds times two of a product of `m` tokens and `n` features.
    pub(super) fn flops(&self, m: usize, n: usize) -> u64 {
        volume(&[2, m, n, self.rank]) as u64
    }

    /// Checks it against a product of `m` tokens and `n` features.
    pub(super) fn params(
        &self,
        kernel: &str,
        m: usize,
        n: usize,
        footprint: &mut Footprint<'_>,
    ) -> Result<abi::gemm_low_rank> {
        let (rank, parts) = (self.rank, self.ends.len());
        if rank == 0 || rank % 8 != 0 {
            return Err(refuse(kernel, format!("a rank of {rank} is no multiple of 8")));
        }
        let ascends = self.ends.windows(2).all(|pair| pair[0] < pair[1]) && self.ends.first() > Some(&0);
        if !ascends || self.ends.last() != Some(&n) || parts > abi::GEMM_MAX_SEGMENTS as usize {
            return Err(refuse(
                kernel,
                format!("parts of low rank that end at {:?} of {n} features", self.ends),
            ));
        }
        let columns = volume(&[parts, rank]);
        if self.t_pitch % 8 != 0 || self.t_pitch < columns {
            return Err(refuse(kernel, format!("t_pitch {} for {columns} columns", self.t_pitch)));
        }
        check_len(kernel, "t", self.t, matrix_len(m, self.t_pitch, columns))?;
        check_len(kernel, "up", self.up, volume(&[n, rank]))?;
        check_aligned(kernel, "t", self.t.address())?;
        check_aligned(kernel, "up", self.up.address())?;
        footprint.computes(self.flops(m, n));
        let mut params = abi::gemm_low_rank {
            t: footprint.reads_rows(self.t, m, self.t_pitch, columns)?,
            up: footprint.reads_rows(self.up, n, rank, rank)?,
            t_pitch: self.t_pitch as i64,
            rank: to_i32(kernel, "rank", rank)?,
            num_parts: parts as i32,
            ..Default::default()
        };
        for (end, to) in self.ends.iter().zip(&mut params.end) {
            *to = to_i32(kernel, "the end of a part", *end)?;
        }
        Ok(params)
    }
}
