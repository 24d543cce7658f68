//! Weights that stay in the few bits that their file has them in: which formats there are, and how their codes and scales lie on the
//! device. What they mean is in `kernels/kept.cuh`; [`kept_gemm`](super::kept_gemm) and [`gemv`](super::gemv) multiply with them.

use super::{round_up, volume};
use crate::abi;

/// A format of few bits: fp8, or a block format of GGUF.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs, reason = "named as the files name them")]
pub enum Format {
    /// Sign, 4 bits of exponent (bias 7), 3 of mantissa: up to 448, NaN, no infinities.
    F8E4M3,
    /// Sign, 5 bits of exponent (bias 15), 2 of mantissa: the upper half of an f16.
    F8E5M2,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
}

/// In which order a weight `[n, k]` lies. Both have the same four [`Section`]s for some of its rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeptLayout {
    /// Panels of 64 rows, each with sections of its own, in fragment order: what the tensor-core GEMM reads. `n` is rounded up to
    /// whole panels. `kernels/operands/kept_tile.cuh` has the order.
    Panels,
    /// Sections of all rows, row by row: what [`gemv`](super::gemv) reads. `kernels/operands/kept_rows.cuh` has the order.
    Rows,
}

/// Rows of a panel.
pub const PANEL: usize = abi::KEPT_GEMM_PANEL as usize;
/// `k` that one word of scales is of.
pub const WORD_K: usize = 64;

/// What lies behind one another, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Section {
    /// The lower 8, 4 or 2 bits of codes.
    Low,
    /// Those above, 2, 1 or none.
    High,
    /// Four bytes of scales for 64 `k`; of fp8 for a row.
    Words,
    /// More of that, for 64 or 256 `k`.
    Extras,
}

impl Section {
    /// In their order.
    pub const ALL: [Section; 4] = [Section::Low, Section::High, Section::Words, Section::Extras];
}

impl Format {
    /// All of them.
    pub const ALL: [Format; 12] = [
        Format::F8E4M3,
        Format::F8E5M2,
        Format::Q8_0,
        Format::Q6K,
        Format::Q5K,
        Format::Q5_0,
        Format::Q5_1,
        Format::Q4K,
        Format::Q4_0,
        Format::Q4_1,
        Format::Q3K,
        Format::Q2K,
    ];

    /// Numbers in a block of a file.
    pub fn values(self) -> usize {
        match self {
            Format::F8E4M3 | Format::F8E5M2 => 1,
            Format::Q4_0 | Format::Q4_1 | Format::Q5_0 | Format::Q5_1 | Format::Q8_0 => 32,
            Format::Q2K | Format::Q3K | Format::Q4K | Format::Q5K | Format::Q6K => 256,
        }
    }

    /// Bytes of a block of a file.
    pub fn bytes(self) -> usize {
        match self {
            Format::F8E4M3 | Format::F8E5M2 => 1,
            Format::Q4_0 => 18,
            Format::Q4_1 => 20,
            Format::Q5_0 => 22,
            Format::Q5_1 => 24,
            Format::Q8_0 => 34,
            Format::Q2K => 84,
            Format::Q3K => 110,
            Format::Q4K => 144,
            Format::Q5K => 176,
            Format::Q6K => 210,
        }
    }

    /// Whether it is fp8, whose codes are numbers by themselves.
    pub fn is_fp8(self) -> bool {
        matches!(self, Format::F8E4M3 | Format::F8E5M2)
    }

    /// Bits of a code: in the plane of the lower ones, and in that of those above.
    pub fn planes(self) -> (usize, usize) {
        match self {
            Format::F8E4M3 | Format::F8E5M2 | Format::Q8_0 => (8, 0),
            Format::Q6K => (4, 2),
            Format::Q5K | Format::Q5_0 | Format::Q5_1 => (4, 1),
            Format::Q4K | Format::Q4_0 | Format::Q4_1 => (4, 0),
            Format::Q3K => (2, 1),
            Format::Q2K => (2, 0),
        }
    }

    /// Bytes of a row's extra scales, and for how many `k` they are; no bytes where there are none.
    pub fn extra(self) -> (usize, usize) {
        match self {
            Format::F8E4M3 | Format::F8E5M2 | Format::Q8_0 | Format::Q5_0 | Format::Q4_0 => (0, WORD_K),
            Format::Q5_1 | Format::Q4_1 => (4, WORD_K),
            Format::Q6K | Format::Q3K => (2, 256),
            Format::Q5K | Format::Q4K | Format::Q2K => (4, 256),
        }
    }

    /// Whether kernels take rows of `k`: whole k-steps, and whole blocks.
    pub fn takes(self, k: usize) -> bool {
        k > 0 && k.is_multiple_of(WORD_K) && k.is_multiple_of(self.values())
    }

    /// Bytes that a section takes of one row of `k`, which [`Format::takes`] allows.
    pub fn section_row(self, section: Section, k: usize) -> usize {
        let (low, high) = self.planes();
        match section {
            Section::Low => k / 8 * low,
            Section::High => k / 8 * high,
            Section::Words if self.is_fp8() => 4,
            Section::Words => k / WORD_K * 4,
            Section::Extras => {
                let (bytes, of) = self.extra();
                k / of * bytes
            }
        }
    }

    /// Bytes that one row of `k` takes.
    pub fn row_bytes(self, k: usize) -> usize {
        Section::ALL.into_iter().map(|section| self.section_row(section, k)).sum()
    }

    /// Bytes of a weight `[n, k]`.
    pub fn kept_len(self, layout: KeptLayout, n: usize, k: usize) -> usize {
        let n = match layout {
            KeptLayout::Panels => round_up(n, PANEL),
            KeptLayout::Rows => n,
        };
        volume(&[n, self.row_bytes(k)])
    }
}

impl std::fmt::Display for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Format::F8E4M3 => "F8_E4M3",
            Format::F8E5M2 => "F8_E5M2",
            Format::Q4_0 => "Q4_0",
            Format::Q4_1 => "Q4_1",
            Format::Q5_0 => "Q5_0",
            Format::Q5_1 => "Q5_1",
            Format::Q8_0 => "Q8_0",
            Format::Q2K => "Q2_K",
            Format::Q3K => "Q3_K",
            Format::Q4K => "Q4_K",
            Format::Q5K => "Q5_K",
            Format::Q6K => "Q6_K",
        })
    }
}
