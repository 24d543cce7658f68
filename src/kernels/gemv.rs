//! A Linear over few rows: modulations and embedders.

use half::bf16;

use super::kept::{Format, KeptLayout};
use super::{all_aligned, check_len, check_pitch, kernel, matrix_len, refuse, to_i32, volume};
use crate::abi;
use crate::device::{Capability, Config, Device, Footprint, StreamId, View};
use crate::{Error, Result};

kernel!(
    /// bf16 weights, 1 row.
    GEMV_BF16_M1, "gemv", gemv_bf16_m1, abi::GEMV_THREADS, abi::GEMV_SMEM_BYTES_M1
);
kernel!(
    /// bf16 weights, 2 rows.
    GEMV_BF16_M2, "gemv", gemv_bf16_m2, abi::GEMV_THREADS, abi::GEMV_SMEM_BYTES_M2
);
kernel!(
    /// bf16 weights, up to 4 rows.
    GEMV_BF16_M4, "gemv", gemv_bf16_m4, abi::GEMV_THREADS, abi::GEMV_SMEM_BYTES_M4
);
kernel!(
    /// bf16 weights, up to 8 rows.
    GEMV_BF16_M8, "gemv", gemv_bf16_m8, abi::GEMV_THREADS, abi::GEMV_SMEM_BYTES_M8
);
kernel!(
    /// NF4 weights, 1 row.
    GEMV_NF4_M1, "gemv", gemv_nf4_m1, abi::GEMV_THREADS, abi::GEMV_SMEM_BYTES_M1
);
kernel!(
    /// NF4 weights, 2 rows.
    GEMV_NF4_M2, "gemv", gemv_nf4_m2, abi::GEMV_THREADS, abi::GEMV_SMEM_BYTES_M2
);
kernel!(
    /// NF4 weights, up to 4 rows.
    GEMV_NF4_M4, "gemv", gemv_nf4_m4, abi::GEMV_THREADS, abi::GEMV_SMEM_BYTES_M4
);
kernel!(
    /// NF4 weights, up to 8 rows.
    GEMV_NF4_M8, "gemv", gemv_nf4_m8, abi::GEMV_THREADS, abi::GEMV_SMEM_BYTES_M8
);

/// The weight of a [`Gemv`], `[n, k]`.
#[derive(Clone, Copy, Debug)]
pub enum GemvWeight<'a> {
    /// bf16 rows.
    Bf16 {
        /// `[n, k]` with row pitch `pitch`.
        weight: &'a View<bf16>,
        /// Elements from one row to the next.
        pitch: usize,
    },
    /// NF4 rows as [`Nf4Layout::Rows`](super::nf4_quantize::Nf4Layout::Rows) writes them; `k` is a multiple of 64.
    Nf4 {
        /// `[n, k / 2]`, the even weight in the high nibble; 16-byte aligned.
        codes: &'a View<u8>,
        /// `[n, k / 64]`.
        absmax: &'a View<f32>,
    },
    /// Rows in the few bits of their file, in [`KeptLayout::Rows`]; `k` as [`Format::takes`] has it.
    Kept {
        /// Which bits.
        format: Format,
        /// [`Format::kept_len`] bytes; 16-byte aligned.
        bytes: &'a View<u8>,
    },
}

/// What is applied to an input or a sum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GemvActivation {
    /// Nothing.
    None,
    /// `x * sigmoid(x)`.
    Silu,
}

impl GemvActivation {
    fn code(self) -> i32 {
        match self {
            GemvActivation::None => abi::GEMV_NONE as i32,
            GemvActivation::Silu => abi::GEMV_SILU as i32,
        }
    }
}

/// What is added to a [`Gemv`]'s result.
#[derive(Clone, Copy, Debug)]
pub struct GemvAddend<'a> {
    /// f32 `[m, n]`, or `[n]` with pitch 0; may be the output.
    pub rows: &'a View<f32>,
    /// Elements from one row to the next; 0 adds the one row to all.
    pub pitch: usize,
}

/// What a LoRA adds to a [`Gemv`]'s sums: `t . up^T`.
#[derive(Clone, Copy, Debug)]
pub struct GemvLowRank<'a> {
    /// f32 `[m, rank]`: `act_in(x) . down^T`, computed before; 16-byte aligned.
    pub t: &'a View<f32>,
    /// bf16 `[n, rank]`, 16-byte aligned.
    pub up: &'a View<bf16>,
    /// A multiple of 8.
    pub rank: usize,
}

/// `out[m, n] = act_out(sum_k act_in(x[m, k]) w[n, k] + low_rank[m, n] + bias[n]) + add[m, n]` for 1 to 8 rows.
///
/// - `x`: f32 `[m, k]`; `out`: f32 `[m, n]`; `bias`: f32 `[n]`; each matrix with a row pitch
/// - numerics: f32 products and sums in a fixed order; an NF4 weight is `bf16(code * absmax)`, one kept in few bits what its file means, in bf16
/// - source: ours
#[derive(Debug)]
pub struct Gemv<'a> {
    /// The input rows.
    pub x: &'a View<f32>,
    /// Elements from one row of `x` to the next.
    pub pitch: usize,
    /// Rows of `x`, at most [`abi::GEMV_MAX_M`].
    pub m: usize,
    /// Rows of the weight.
    pub n: usize,
    /// Columns of both.
    pub k: usize,
    /// `[n, k]`.
    pub weight: GemvWeight<'a>,
    /// What a LoRA adds.
    pub low_rank: Option<GemvLowRank<'a>>,
    /// f32 `[n]`.
    pub bias: Option<&'a View<f32>>,
    /// Applied to `x`.
    pub act_in: GemvActivation,
    /// Applied to the sum with its bias.
    pub act_out: GemvActivation,
    /// Added after `act_out`.
    pub add: Option<GemvAddend<'a>>,
    /// The result; may not overlap `x`.
    pub out: &'a View<f32>,
    /// Elements from one row of `out` to the next.
    pub out_pitch: usize,
}

const NAME: &str = "gemv";

impl Gemv<'_> {
    fn check<'d>(&self, device: &'d Device) -> Result<(abi::gemv_params, Footprint<'d>)> {
        let (m, n, k) = (self.m, self.n, self.k);
        if m == 0 || m > abi::GEMV_MAX_M as usize {
            return Err(refuse(NAME, format!("m = {m} is not in 1..={}", abi::GEMV_MAX_M)));
        }
        if k == 0 {
            return Err(Error::Internal(format!("{NAME}: k = 0, nothing to sum")));
        }
        check_pitch(NAME, "pitch", self.pitch, k)?;
        check_pitch(NAME, "out_pitch", self.out_pitch, n)?;
        check_len(NAME, "x", self.x, matrix_len(m, self.pitch, k))?;
        check_len(NAME, "out", self.out, matrix_len(m, self.out_pitch, n))?;
        if let Some(bias) = self.bias {
            check_len(NAME, "bias", bias, n)?;
        }
        if let Some(add) = self.add {
            if add.pitch != 0 {
                check_pitch(NAME, "add.pitch", add.pitch, n)?;
            }
            check_len(NAME, "add", add.rows, matrix_len(m, add.pitch, n))?;
        }
        let mut footprint = Footprint::new(device);
        footprint.computes(volume(&[2, m, n, k]) as u64);
        let mut params = abi::gemv_params {
            x: footprint.reads_rows(self.x, m, self.pitch, k)?,
            bias: footprint.reads_optional(self.bias)?,
            add: footprint.reads_optional(self.add.map(|add| add.rows))?,
            out: footprint.writes_rows(self.out, m, self.out_pitch, n)?,
            pitch: self.pitch as i64,
            add_pitch: self.add.map_or(0, |add| add.pitch as i64),
            out_pitch: self.out_pitch as i64,
            m: m as i32,
            n: to_i32(NAME, "n", n)?,
            // The kernel rounds k up to whole chunks of 1024 in 32 bits.
            k: to_i32(NAME, "k", k.saturating_add(1024)).map(|_| k as i32)?,
            act_in: self.act_in.code(),
            act_out: self.act_out.code(),
            x_vectors: i32::from(self.pitch.is_multiple_of(4) && all_aligned(&[self.x.address()], 16)),
            ..Default::default()
        };
        if let Some(GemvLowRank { t, up, rank }) = self.low_rank {
            if rank == 0 || rank % 8 != 0 {
                return Err(refuse(NAME, format!("a rank of {rank} is no multiple of 8")));
            }
            if !all_aligned(&[t.address(), up.address()], 16) {
                return Err(Error::Internal(format!("{NAME}: `t` or `up` is not 16-byte aligned")));
            }
            check_len(NAME, "t", t, volume(&[m, rank]))?;
            check_len(NAME, "up", up, volume(&[n, rank]))?;
            footprint.computes(volume(&[2, m, n, rank]) as u64);
            params.low_t = footprint.reads_rows(t, m, rank, rank)?;
            params.low_up = footprint.reads_rows(up, n, rank, rank)?;
            params.low_rank = to_i32(NAME, "rank", rank)?;
        }
        self.weight_params(&mut params, &mut footprint)?;
        Ok((params, footprint))
    }

    /// Checks the weight, and fills in where it lies.
    fn weight_params(&self, params: &mut abi::gemv_params, footprint: &mut Footprint<'_>) -> Result<()> {
        let (n, k) = (self.n, self.k);
        match self.weight {
            GemvWeight::Bf16 { weight, pitch } => {
                check_pitch(NAME, "weight.pitch", pitch, k)?;
                check_len(NAME, "weight", weight, matrix_len(n, pitch, k))?;
                params.weight = footprint.reads_rows(weight, n, pitch, k)?;
                params.weight_pitch = pitch as i64;
                params.weight_vectors = i32::from(pitch % 8 == 0 && all_aligned(&[weight.address()], 16));
            }
            GemvWeight::Nf4 { codes, absmax } => {
                if k % 64 != 0 {
                    return Err(refuse(
                        NAME,
                        format!("k = {k} is not a multiple of 64, as NF4 weights need"),
                    ));
                }
                if !all_aligned(&[codes.address()], 16) {
                    return Err(Error::Internal(format!("{NAME}: `codes` is not 16-byte aligned")));
                }
                check_len(NAME, "codes", codes, volume(&[n, k / 2]))?;
                check_len(NAME, "absmax", absmax, volume(&[n, k / 64]))?;
                params.codes = footprint.reads(codes)?;
                params.absmax = footprint.reads(absmax)?;
            }
            GemvWeight::Kept { format, bytes } => {
                if !format.takes(k) {
                    let of = format.values().max(super::kept::WORD_K);
                    let what = format!("k = {k} is not a multiple of {of}, as {format} weights need");
                    return Err(refuse(NAME, what));
                }
                if !all_aligned(&[bytes.address()], 16) {
                    return Err(Error::Internal(format!("{NAME}: `bytes` is not 16-byte aligned")));
                }
                check_len(NAME, "bytes", bytes, format.kept_len(KeptLayout::Rows, n, k))?;
                params.codes = footprint.reads(bytes)?;
            }
        }
        Ok(())
    }

    /// The entry for this weight and number of rows.
    pub fn select(&self, _: &Capability) -> Config {
        let kernel = match (self.weight, self.m) {
            (GemvWeight::Bf16 { .. }, 1) => &GEMV_BF16_M1,
            (GemvWeight::Bf16 { .. }, 2) => &GEMV_BF16_M2,
            (GemvWeight::Bf16 { .. }, 3..=4) => &GEMV_BF16_M4,
            (GemvWeight::Bf16 { .. }, _) => &GEMV_BF16_M8,
            (GemvWeight::Nf4 { .. }, 1) => &GEMV_NF4_M1,
            (GemvWeight::Nf4 { .. }, 2) => &GEMV_NF4_M2,
            (GemvWeight::Nf4 { .. }, 3..=4) => &GEMV_NF4_M4,
            (GemvWeight::Nf4 { .. }, _) => &GEMV_NF4_M8,
            (GemvWeight::Kept { format, .. }, m) => super::kept_gemv::entry(format, m),
        };
        Config { kernel, grid: [self.n.div_ceil(abi::GEMV_ROWS as usize) as u32, 1, 1] }
    }

    /// Enqueues the product.
    ///
    /// # Errors
    /// [`Error::Internal`] when a view is shorter than its shape, a pitch is less than its row, `k` is 0, or codes are
    /// not 16-byte aligned; [`Error::Unsupported`] for more rows than 8, a rank that is no multiple of 8, or codes with a `k` that is not whole blocks of 64 (of the
    /// K-quants of GGUF 256).
    pub fn launch(&self, device: &Device, stream: StreamId) -> Result<()> {
        let (params, footprint) = self.check(device)?;
        let config = self.select(device.capability());
        // SAFETY: params is this entry's generated type; all views cover `m`, `n` and `k` at their pitches (checked
        // above), beyond which no lane reaches; the vector flags say what is aligned; `select` returns an entry for at
        // least `m` rows and for this kind of weight.
        unsafe { device.launch(stream, config, &params, &footprint) }
    }
}
