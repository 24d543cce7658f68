//! What [`nf4_gemm`](super::nf4_gemm), [`bf16_gemm`](super::bf16_gemm) and [`conv2d`](super::conv2d) have in common:
//! the problem `out[m, n] = epilogue(x[m, k] . w[n, k]^T + bias)` and the epilogues, one per range of columns.

use half::bf16;

use super::{check_len, matrix_len, refuse, to_i32, volume};
use crate::abi;
use crate::device::{Footprint, View};
use crate::{Error, Result};

/// Columns of one FLUX head and of one CTA tile.
pub const HEAD_WIDTH: usize = abi::GEMM_BLOCK_N as usize;

/// Applied to `acc + bias` before the epilogue stores it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Activation {
    /// The identity.
    #[default]
    None,
    /// `0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))`
    GeluTanh,
    /// `0.5 x (1 + erf(x / sqrt(2)))`
    GeluErf,
    /// `x sigmoid(1.702 x)`
    QuickGelu,
    /// `x sigmoid(x)`
    Silu,
}

impl Activation {
    fn code(self) -> i32 {
        (match self {
            Activation::None => abi::GEMM_ACT_NONE,
            Activation::GeluTanh => abi::GEMM_ACT_GELU_TANH,
            Activation::GeluErf => abi::GEMM_ACT_GELU_ERF,
            Activation::QuickGelu => abi::GEMM_ACT_QUICK_GELU,
            Activation::Silu => abi::GEMM_ACT_SILU,
        }) as i32
    }
}

/// Where a range of columns goes; `y` is the activated `acc + bias`.
#[derive(Clone, Copy, Debug)]
pub enum Epilogue<'a> {
    /// `out = y`, rounded to bf16.
    Store(&'a View<bf16>),
    /// `out = y` in f32.
    StoreF32(&'a View<f32>),
    /// `out += gate * y`: the f32 residual stream. `gate` f32 `[columns]`, or 1.
    Add(&'a View<f32>, Option<&'a View<f32>>),
    /// `out = y + other`, one rounding to bf16; `other` has `out`'s pitch and may be `out` itself.
    AddBf16(&'a View<bf16>, &'a View<bf16>),
    /// `out = y * other`, likewise.
    MulBf16(&'a View<bf16>, &'a View<bf16>),
    /// Per 128 columns: RMSNorm with `weight` f32 `[128]`, then RoPE by the problem's tables, rounded to bf16.
    NormRope {
        /// Destination.
        out: &'a View<bf16>,
        /// Norm weights of one head.
        weight: &'a View<f32>,
    },
}

/// Columns `begin..end` and what becomes of them. Column `begin` lands at column 0 of the destination.
#[derive(Clone, Copy, Debug)]
pub struct Segment<'a> {
    /// First column; a multiple of 8 (of 128 for [`Epilogue::NormRope`]).
    pub begin: usize,
    /// One past the last column; a multiple of 8 or the problem's `n`.
    pub end: usize,
    /// Elements from one row of the destination to the next.
    pub pitch: usize,
    /// Applied first.
    pub activation: Activation,
    /// Applied second.
    pub epilogue: Epilogue<'a>,
}

/// One matrix product with its epilogues.
#[derive(Clone, Debug)]
pub struct Problem<'a> {
    /// bf16 `[m, x_pitch]`; rows 16-byte aligned.
    pub x: &'a View<bf16>,
    /// Elements from row to row; a multiple of 8, at least `k`.
    pub x_pitch: usize,
    /// Rows: tokens or pixels.
    pub m: usize,
    /// Columns: features or channels.
    pub n: usize,
    /// Inner width.
    pub k: usize,
    /// f32 `[n]`.
    pub bias: Option<&'a View<f32>>,
    /// cos and sin, f32 `[m, 64]` each, for [`Epilogue::NormRope`].
    pub rope: Option<(&'a View<f32>, &'a View<f32>)>,
    /// Epsilon of that RMSNorm.
    pub norm_eps: f32,
    /// Disjoint, at most 4.
    pub segments: Vec<Segment<'a>>,
}

impl<'a> Problem<'a> {
    /// A product whose columns all share one epilogue.
    pub fn simple(
        x: &'a View<bf16>,
        [m, n, k]: [usize; 3],
        bias: Option<&'a View<f32>>,
        activation: Activation,
        epilogue: Epilogue<'a>,
    ) -> Self {
        let segments = vec![Segment { begin: 0, end: n, pitch: n, activation, epilogue }];
        Problem { x, x_pitch: k, m, n, k, bias, rope: None, norm_eps: 0.0, segments }
    }

    /// Multiply-adds times two.
    pub fn flops(&self) -> u64 {
        volume(&[2, self.m, self.n, self.k]) as u64
    }

    /// Checks that `x` is a plain `[m, k]` matrix (for conv2d it is a map).
    pub(super) fn check_tokens(&self, kernel: &str) -> Result<()> {
        if self.x_pitch < self.k {
            return Err(refuse(kernel, format!("x_pitch {} is less than k = {}", self.x_pitch, self.k)));
        }
        check_len(kernel, "x", self.x, matrix_len(self.m, self.x_pitch, self.k))
    }

    /// The address of `x`, a plain matrix.
    pub(super) fn tokens(&self, footprint: &mut Footprint<'_>) -> Result<u64> {
        footprint.computes(self.flops());
        footprint.reads_rows(self.x, self.m, self.x_pitch, self.k)
    }

    /// Checks every view but `x` against the shapes; `x`, `w`, `absmax` and `w_pitch` are the caller's.
    pub(super) fn params(&self, kernel: &str, footprint: &mut Footprint<'_>) -> Result<abi::gemm_problem> {
        if self.m == 0 || self.n == 0 || self.k == 0 {
            return Err(refuse(kernel, format!("empty product {} x {} x {}", self.m, self.n, self.k)));
        }
        if self.x_pitch % 8 != 0 {
            return Err(refuse(kernel, format!("x_pitch {} is no multiple of 8", self.x_pitch)));
        }
        check_aligned(kernel, "x", self.x.address())?;
        if let Some(bias) = self.bias {
            check_len(kernel, "bias", bias, self.n)?;
        }
        if self.segments.len() > abi::GEMM_MAX_SEGMENTS as usize {
            return Err(refuse(kernel, format!("{} segments", self.segments.len())));
        }
        let mut params = abi::gemm_problem {
            bias: footprint.reads_optional(self.bias)?,
            x_pitch: self.x_pitch as i64,
            m: to_i32(kernel, "m", self.m)?,
            n: to_i32(kernel, "n", self.n)?,
            k: to_i32(kernel, "k", self.k)?,
            num_segments: self.segments.len() as i32,
            norm_eps: self.norm_eps,
            ..Default::default()
        };
        let mut covered = 0;
        for (segment, out) in self.segments.iter().zip(&mut params.segment) {
            if segment.begin != covered {
                return Err(refuse(
                    kernel,
                    format!("segment {}..{} does not follow on", segment.begin, segment.end),
                ));
            }
            covered = segment.end;
            *out = self.segment_params(kernel, segment, footprint)?;
        }
        if covered != self.n {
            return Err(refuse(kernel, format!("segments cover {covered} of {} columns", self.n)));
        }
        if let Some((cos, sin)) = self.rope {
            let table_len = volume(&[self.m, HEAD_WIDTH / 2]);
            check_len(kernel, "rope cos", cos, table_len)?;
            check_len(kernel, "rope sin", sin, table_len)?;
            check_aligned(kernel, "rope cos", cos.address())?;
            check_aligned(kernel, "rope sin", sin.address())?;
            let half = HEAD_WIDTH / 2;
            params.rope_cos = footprint.reads_rows(cos, self.m, half, half)?;
            params.rope_sin = footprint.reads_rows(sin, self.m, half, half)?;
        }
        Ok(params)
    }

    fn segment_params(
        &self,
        kernel: &str,
        s: &Segment<'_>,
        footprint: &mut Footprint<'_>,
    ) -> Result<abi::gemm_segment> {
        let columns = s.end.saturating_sub(s.begin);
        if columns == 0 || s.begin % 8 != 0 || (s.end % 8 != 0 && s.end != self.n) || s.pitch < columns {
            return Err(refuse(kernel, format!("segment {}..{} with pitch {}", s.begin, s.end, s.pitch)));
        }
        let extent = matrix_len(self.m, s.pitch, columns);
        let (kind, out, aux) = match s.epilogue {
            Epilogue::Store(out) => {
                check_len(kernel, "out", out, extent)?;
                (abi::GEMM_STORE_BF16, footprint.writes_rows(out, self.m, s.pitch, columns)?, 0)
            }
            Epilogue::StoreF32(out) => {
                check_len(kernel, "out", out, extent)?;
                (abi::GEMM_STORE_F32, footprint.writes_rows(out, self.m, s.pitch, columns)?, 0)
            }
            Epilogue::Add(out, gate) => {
                check_len(kernel, "out", out, extent)?;
                if let Some(gate) = gate {
                    check_len(kernel, "gate", gate, columns)?;
                }
                let gate = footprint.reads_optional(gate)?;
                (abi::GEMM_ADD_F32, footprint.updates_rows(out, self.m, s.pitch, columns)?, gate)
            }
            Epilogue::AddBf16(out, other) | Epilogue::MulBf16(out, other) => {
                check_len(kernel, "out", out, extent)?;
                check_len(kernel, "other operand", other, extent)?;
                check_aligned(kernel, "other operand", other.address())?;
                let add = matches!(s.epilogue, Epilogue::AddBf16(..));
                (
                    if add { abi::GEMM_ADD_BF16 } else { abi::GEMM_MUL_BF16 },
                    footprint.writes_rows(out, self.m, s.pitch, columns)?,
                    footprint.reads_rows(other, self.m, s.pitch, columns)?,
                )
            }
            Epilogue::NormRope { out, weight } => {
                if s.begin % HEAD_WIDTH != 0
                    || s.end % HEAD_WIDTH != 0
                    || s.pitch % 8 != 0
                    || self.rope.is_none()
                {
                    return Err(refuse(kernel, format!("norm and RoPE over columns {}..{}", s.begin, s.end)));
                }
                if s.activation != Activation::None {
                    return Err(refuse(kernel, "an activation before norm and RoPE"));
                }
                check_len(kernel, "out", out, extent)?;
                check_len(kernel, "norm weight", weight, HEAD_WIDTH)?;
                check_aligned(kernel, "norm weight", weight.address())?;
                let weight = footprint.reads_rows(weight, 1, HEAD_WIDTH, HEAD_WIDTH)?;
                (abi::GEMM_NORM_ROPE, footprint.writes_rows(out, self.m, s.pitch, columns)?, weight)
            }
        };
        check_aligned(kernel, "out", out)?;
        Ok(abi::gemm_segment {
            out,
            aux,
            out_pitch: s.pitch as i64,
            n_begin: to_i32(kernel, "segment begin", s.begin)?,
            n_end: to_i32(kernel, "segment end", s.end)?,
            kind: kind as i32,
            act: s.activation.code(),
        })
    }
}

/// 16-byte vector accesses start at this address.
pub(super) fn check_aligned(kernel: &str, what: &str, address: u64) -> Result<()> {
    if address % 16 != 0 {
        return Err(Error::Input(format!("{kernel}: `{what}` is not 16-byte aligned")));
    }
    Ok(())
}

/// One CTA per 128 rows (x: pixels may be millions), 128 columns (y) and problem (z); smaller problems leave their
/// surplus CTAs idle.
pub fn grid<'a>(problems: impl Iterator<Item = &'a Problem<'a>>) -> [u32; 3] {
    let mut grid = [0u32; 3];
    for p in problems {
        grid[0] = grid[0].max(p.m.div_ceil(abi::GEMM_BLOCK_M as usize) as u32);
        grid[1] = grid[1].max(p.n.div_ceil(abi::GEMM_BLOCK_N as usize) as u32);
        grid[2] += 1;
    }
    grid
}
