//! Softmax attention without a score matrix in memory.

use half::bf16;

use super::gemm::check_aligned;
use super::{check_len, extent, kernel, refuse, to_i32, volume};
use crate::Result;
use crate::abi;
use crate::device::{Capability, Config, Device, Footprint, StreamId, View};

kernel!(
    /// Heads up to 64 wide: CLIP.
    ATTENTION_D64, "attention", attention_d64_bf16_sm80, abi::ATTENTION_D64_THREADS, abi::ATTENTION_D64_SMEM_BYTES
);
kernel!(
    /// The same with a position bias: T5.
    ATTENTION_D64_BIAS, "attention", attention_d64_bias_bf16_sm80, abi::ATTENTION_D64_THREADS,
    abi::ATTENTION_D64_BIAS_SMEM_BYTES
);
kernel!(
    /// Heads up to 128 wide: FLUX.
    ATTENTION_D128, "attention", attention_d128_bf16_sm80, abi::ATTENTION_D128_THREADS, abi::ATTENTION_D128_SMEM_BYTES
);
kernel!(
    /// The same with a position bias.
    ATTENTION_D128_BIAS, "attention", attention_d128_bias_bf16_sm80, abi::ATTENTION_D128_THREADS,
    abi::ATTENTION_D128_BIAS_SMEM_BYTES
);
kernel!(
    /// Heads up to 256 wide.
    ATTENTION_D256, "attention", attention_d256_bf16_sm80, abi::ATTENTION_D256_THREADS, abi::ATTENTION_D256_SMEM_BYTES
);
kernel!(
    /// The same with a position bias.
    ATTENTION_D256_BIAS, "attention", attention_d256_bias_bf16_sm80, abi::ATTENTION_D256_THREADS,
    abi::ATTENTION_D256_BIAS_SMEM_BYTES
);
kernel!(
    /// Heads up to 512 wide: the VAE's one head.
    ATTENTION_D512, "attention", attention_d512_bf16_sm80, abi::ATTENTION_D512_THREADS, abi::ATTENTION_D512_SMEM_BYTES
);
kernel!(
    /// The same with a position bias.
    ATTENTION_D512_BIAS, "attention", attention_d512_bias_bf16_sm80, abi::ATTENTION_D512_THREADS,
    abi::ATTENTION_D512_BIAS_SMEM_BYTES
);

/// The widest head that any entry takes.
pub const MAX_HEAD_DIM: usize = 512;

/// Tokens x heads inside a buffer: element `(token, head, d)` is at `token * pitch + head * head_stride + d`.
#[derive(Clone, Copy, Debug)]
pub struct Heads<'a> {
    /// 16-byte aligned.
    pub view: &'a View<bf16>,
    /// Elements from token to token; a multiple of 8.
    pub pitch: usize,
    /// Elements from head to head; a multiple of 8.
    pub head_stride: usize,
}

/// Added to the scaled scores: `bias[head, key - query + len - 1]`, f32 `[heads, 2 len - 1]`.
#[derive(Clone, Copy, Debug)]
pub struct RelativeBias<'a> {
    /// The table.
    pub view: &'a View<f32>,
    /// At least the number of queries and of keys.
    pub len: usize,
}

/// `out = softmax(q . k^T * softmax_scale + bias) . v` per head; `kernels/attention.cu` says how.
///
/// - `q`, `out`: bf16, `q_len` tokens; `k`, `v`: bf16, `kv_len` tokens; `heads` heads of `head_dim` each
/// - numerics: f32 scores and sums, probabilities rounded to bf16 for the second product, one rounding at the store;
///   a query whose every key a bias of -inf masks gets zeros
/// - source: FlashAttention-2, arXiv:2307.08691
#[derive(Debug)]
pub struct Attention<'a> {
    /// Queries.
    pub q: Heads<'a>,
    /// Keys.
    pub k: Heads<'a>,
    /// Values.
    pub v: Heads<'a>,
    /// Destination; may be `q`'s own place.
    pub out: Heads<'a>,
    /// T5's position bias.
    pub bias: Option<RelativeBias<'a>>,
    /// Keys after the query are masked (CLIP).
    pub causal: bool,
    /// 1 / sqrt(head_dim), or 1 for T5; positive.
    pub softmax_scale: f32,
    /// Number of queries.
    pub q_len: usize,
    /// Number of keys.
    pub kv_len: usize,
    /// Number of heads.
    pub heads: usize,
    /// Width of a head; a multiple of 8, at most 512.
    pub head_dim: usize,
}

const NAME: &str = "attention";

impl Attention<'_> {
    /// The entry for a head width, with or without a position bias.
    ///
    /// # Errors
    /// [`crate::Error::Unsupported`] for heads wider than any entry takes.
    pub fn select(&self, _: &Capability) -> Result<Config> {
        let [plain, with_bias] = match self.head_dim {
            1..=64 => [&ATTENTION_D64, &ATTENTION_D64_BIAS],
            65..=128 => [&ATTENTION_D128, &ATTENTION_D128_BIAS],
            129..=256 => [&ATTENTION_D256, &ATTENTION_D256_BIAS],
            257..=MAX_HEAD_DIM => [&ATTENTION_D512, &ATTENTION_D512_BIAS],
            _ => {
                let why = format!("heads {} wide; the widest is {MAX_HEAD_DIM}", self.head_dim);
                return Err(refuse(NAME, why));
            }
        };
        let num_q_tiles = self.q_len.div_ceil(abi::ATTENTION_BLOCK_Q as usize);
        Ok(Config {
            kernel: if self.bias.is_some() { with_bias } else { plain },
            grid: [num_q_tiles as u32, self.heads as u32, 1],
        })
    }

    /// Elements of a token, from its first head's first to its last head's last.
    fn row(&self, heads: &Heads<'_>) -> usize {
        (self.heads - 1) * heads.head_stride + self.head_dim
    }

    fn reads(&self, footprint: &mut Footprint<'_>, heads: &Heads<'_>, tokens: usize) -> Result<u64> {
        footprint.reads_rows(heads.view, tokens, heads.pitch, self.row(heads))
    }

    /// Enqueues the attention of all heads.
    ///
    /// # Errors
    /// [`crate::Error::Unsupported`] for shapes that the kernel cannot take, [`crate::Error::Internal`] for views that
    /// are too small or misaligned.
    pub fn launch(&self, device: &Device, stream: StreamId) -> Result<()> {
        if self.head_dim % 8 != 0 || self.q_len == 0 || self.kv_len == 0 || self.heads == 0 {
            return Err(refuse(
                NAME,
                format!("{} heads of {}, {} x {} tokens", self.heads, self.head_dim, self.q_len, self.kv_len),
            ));
        }
        // The largest score is also the largest scaled one.
        if !(self.softmax_scale > 0.0 && self.softmax_scale.is_finite()) {
            return Err(refuse(NAME, format!("softmax_scale = {}: not positive", self.softmax_scale)));
        }
        to_i32(NAME, "heads", self.heads)?;
        let config = self.select(device.capability())?;
        let operands = [
            ("q", self.q, self.q_len),
            ("k", self.k, self.kv_len),
            ("v", self.v, self.kv_len),
            ("out", self.out, self.q_len),
        ];
        for (what, heads, tokens) in operands {
            if heads.pitch % 8 != 0 || heads.head_stride % 8 != 0 {
                return Err(refuse(
                    NAME,
                    format!("{what}: strides {} and {}", heads.pitch, heads.head_stride),
                ));
            }
            let strides = [(tokens, heads.pitch), (self.heads, heads.head_stride), (self.head_dim, 1)];
            check_len(NAME, what, heads.view, extent(&strides))?;
            check_aligned(NAME, what, heads.view.address())?;
        }
        if let Some(bias) = self.bias {
            if bias.len < self.q_len.max(self.kv_len) {
                return Err(refuse(NAME, format!("a bias for {} tokens", bias.len)));
            }
            let distances = bias.len.saturating_mul(2) - 1;
            check_len(NAME, "bias", bias.view, volume(&[self.heads, distances]))?;
        }
        let mut footprint = Footprint::new(device);
        footprint.computes(volume(&[4, self.q_len, self.kv_len, self.heads, self.head_dim]) as u64);
        let params = abi::attention_params {
            q: self.reads(&mut footprint, &self.q, self.q_len)?,
            k: self.reads(&mut footprint, &self.k, self.kv_len)?,
            v: self.reads(&mut footprint, &self.v, self.kv_len)?,
            out: footprint.writes_rows(self.out.view, self.q_len, self.out.pitch, self.row(&self.out))?,
            bias: footprint.reads_optional(self.bias.map(|b| b.view))?,
            q_pitch: self.q.pitch as i64,
            k_pitch: self.k.pitch as i64,
            v_pitch: self.v.pitch as i64,
            out_pitch: self.out.pitch as i64,
            q_head_stride: to_i32(NAME, "q head stride", self.q.head_stride)?,
            k_head_stride: to_i32(NAME, "k head stride", self.k.head_stride)?,
            v_head_stride: to_i32(NAME, "v head stride", self.v.head_stride)?,
            out_head_stride: to_i32(NAME, "out head stride", self.out.head_stride)?,
            q_len: to_i32(NAME, "queries", self.q_len)?,
            kv_len: to_i32(NAME, "keys", self.kv_len)?,
            head_dim: self.head_dim as i32,
            bias_len: to_i32(NAME, "bias length", self.bias.map_or(0, |b| b.len))?,
            causal: self.causal as i32,
            softmax_scale: self.softmax_scale,
        };
        // SAFETY: params is this entry's generated type; every operand was checked for its extent, and the grid covers
        // exactly the queries and heads.
        unsafe { device.launch(stream, config, &params, &footprint) }
    }
}
