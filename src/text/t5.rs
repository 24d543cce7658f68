//! The T5 encoder: prompt ids to one vector per token, padding included.
//!
//! Source: transformers `T5EncoderModel`. No attention mask: the reference lets padding be attended to, and images
//! change without it. The scores are not scaled; positions enter by a relative bias that all layers share.

use half::bf16;

use crate::Error;
use crate::Result;
use crate::arena::{Layout, Lifetime, Phase, Slot};
use crate::config::T5Config;
use crate::kernels::FloatOut;
use crate::kernels::attention::{Attention, Heads, RelativeBias};
use crate::kernels::gemm::{Activation, Epilogue};
use crate::kernels::rms_norm::RmsNorm;
use crate::nn::{Builder, Linear, Product, Quantize, Rows, Run, Tokens};
use crate::sampling::t5_bucket;
use crate::weights::upload::Job;
use crate::weights::{Part, Source};

/// The planned encoder.
#[derive(Debug)]
pub struct T5 {
    config: T5Config,
    tokens: usize,
    layers: Vec<Layer>,
    final_norm: Slot<f32>,
    /// f32 `[heads, 2 tokens - 1]`; see [`T5::relative_bias`].
    pub bias: Slot<f32>,
    /// f32 `[tokens, width]`: embeddings, then the residual stream.
    pub x: Slot<f32>,
    h: Slot<bf16>,
    qkv: Slot<bf16>,
    attended: Slot<bf16>,
    ff: Slot<bf16>,
    /// bf16 `[branches, tokens, width]`.
    pub context: Slot<bf16>,
    nf4_bytes: u64,
}

#[derive(Debug)]
struct Layer {
    norm1: Slot<f32>,
    qkv: Linear,
    out: Linear,
    norm2: Slot<f32>,
    wi_0: Linear,
    wi_1: Linear,
    wo: Linear,
}

impl T5 {
    /// Plans weights and buffers for prompts of `tokens` tokens; `branches` is 1, or 2 with a negative prompt.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for widths that the kernels cannot take.
    pub fn plan(
        config: &T5Config,
        tokens: usize,
        branches: usize,
        quantize: Quantize,
        layout: &mut Layout,
        jobs: &mut Vec<Job>,
    ) -> Result<T5> {
        let (width, inner, ff) = (config.width, config.inner(), config.ff);
        if config.head_dim % 8 != 0 || width % 8 != 0 || config.head_dim > 128 {
            return Err(Error::Unsupported(format!(
                "T5 with {} heads of {}: heads must be a multiple of 8 wide, at most 128",
                config.heads, config.head_dim
            )));
        }
        let mut b = Builder::new(layout, jobs, Part::T5, quantize);
        let layers = (0..config.layers)
            .map(|i| {
                let attention = |part: &str| format!("encoder.block.{i}.layer.0.{part}");
                let mlp = |part: &str| format!("encoder.block.{i}.layer.1.{part}");
                let qkv = ["q", "k", "v"].map(|p| attention(&format!("SelfAttention.{p}")));
                let wide = |part: &str| mlp(&format!("DenseReluDense.{part}"));
                Layer {
                    norm1: b.vector(&attention("layer_norm.weight"), width),
                    qkv: b.linear(
                        &[(&qkv[0], inner), (&qkv[1], inner), (&qkv[2], inner)],
                        width,
                        false,
                        Rows::Many,
                    ),
                    out: b.linear(&[(&attention("SelfAttention.o"), width)], inner, false, Rows::Many),
                    norm2: b.vector(&mlp("layer_norm.weight"), width),
                    wi_0: b.linear(&[(&wide("wi_0"), ff)], width, false, Rows::Many),
                    wi_1: b.linear(&[(&wide("wi_1"), ff)], width, false, Rows::Many),
                    wo: b.linear(&[(&wide("wo"), width)], ff, false, Rows::Many),
                }
            })
            .collect();
        let final_norm = b.vector("encoder.final_layer_norm.weight", width);
        let nf4_bytes = b.nf4_bytes();
        let here = Lifetime::only(Phase::T5);
        Ok(T5 {
            config: config.clone(),
            tokens,
            layers,
            final_norm,
            bias: layout.region("t5.bias", config.heads * (2 * tokens - 1), Lifetime::ALWAYS),
            x: layout.region("t5.x", tokens * width, here),
            h: layout.region("t5.h", tokens * width, here),
            qkv: layout.region("t5.qkv", tokens * 3 * inner, here),
            attended: layout.region("t5.attended", tokens * inner, here),
            ff: layout.region("t5.ff", tokens * ff.next_multiple_of(8), here),
            context: layout.region(
                "t5.context",
                branches * tokens * width,
                Lifetime::span(Phase::T5, Phase::Steps),
            ),
            nf4_bytes,
        })
    }

    /// Bytes of NF4 codes and absmax.
    pub fn nf4_bytes(&self) -> u64 {
        self.nf4_bytes
    }

    /// The bias by distance: f32 `[heads, 2 tokens - 1]`, entry `key - query + tokens - 1`.
    ///
    /// # Errors
    /// Those of reading the file.
    pub fn relative_bias(&self, source: &Source) -> Result<Vec<f32>> {
        let name = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight";
        let by_bucket = source.tensor(Part::T5, name)?.read_f32()?;
        let (heads, tokens) = (self.config.heads, self.tokens as i64);
        let mut table = Vec::with_capacity(heads * (2 * self.tokens - 1));
        for head in 0..heads {
            for distance in 1 - tokens..tokens {
                let bucket = t5_bucket(distance, self.config.buckets, self.config.max_distance);
                table.push(by_bucket[bucket * heads + head]);
            }
        }
        Ok(table)
    }

    /// Enqueues the encoder on what lies in `x`; the result is part `branch` of `context`.
    ///
    /// # Errors
    /// Those of the launches.
    pub fn run(&self, run: &Run<'_>, branch: usize) -> Result<()> {
        let (width, inner, tokens) = (self.config.width, self.config.inner(), self.tokens);
        let (heads, head_dim) = (self.config.heads, self.config.head_dim);
        let ff_pitch = self.config.ff.next_multiple_of(8);
        let x = run.view(&self.x)?;
        let (h, qkv) = (run.view(&self.h)?, run.view(&self.qkv)?);
        let (attended, ff) = (run.view(&self.attended)?, run.view(&self.ff)?);
        let bias = run.view(&self.bias)?;
        let h_tokens = Tokens { view: &h, pitch: width, rows: tokens };
        let attended_tokens = Tokens { view: &attended, pitch: inner, rows: tokens };
        let ff_tokens = Tokens { view: &ff, pitch: ff_pitch, rows: tokens };
        let none = Activation::None;
        let add = Epilogue::Add(&x, None);
        let [q, k, v] = [0, 1, 2].map(|i| qkv.slice(i * inner, qkv.len() - i * inner));
        let (q, k, v) = (q?, k?, v?);
        let part = |view| Heads { view, pitch: 3 * inner, head_stride: head_dim };
        for layer in &self.layers {
            self.norm(run, &layer.norm1, &h)?;
            run.gemm(&[Product::new(h_tokens, &layer.qkv, 3 * inner, none, Epilogue::Store(&qkv))])?;
            Attention {
                q: part(&q),
                k: part(&k),
                v: part(&v),
                out: Heads { view: &attended, pitch: inner, head_stride: head_dim },
                bias: Some(RelativeBias { view: &bias, len: tokens }),
                causal: false,
                softmax_scale: 1.0,
                q_len: tokens,
                kv_len: tokens,
                heads,
                head_dim,
            }
            .launch(run.device, Run::STREAM)?;
            run.gemm(&[Product::new(attended_tokens, &layer.out, width, none, add)])?;
            self.norm(run, &layer.norm2, &h)?;
            let gelu = Activation::GeluTanh;
            run.gemm(&[Product::new(h_tokens, &layer.wi_0, ff_pitch, gelu, Epilogue::Store(&ff))])?;
            run.gemm(&[Product::new(h_tokens, &layer.wi_1, ff_pitch, none, Epilogue::MulBf16(&ff, &ff))])?;
            run.gemm(&[Product::new(ff_tokens, &layer.wo, width, none, add)])?;
        }
        self.norm(run, &self.final_norm, &self.context(run, branch)?)
    }

    /// The vectors of a branch, bf16 `[tokens, width]`.
    ///
    /// # Errors
    /// [`Error::Input`] when there is no such branch.
    pub fn context(&self, run: &Run<'_>, branch: usize) -> Result<crate::device::View<bf16>> {
        let len = self.tokens * self.config.width;
        run.view(&self.context)?.slice(branch * len, len)
    }

    fn norm(&self, run: &Run<'_>, weight: &Slot<f32>, out: &crate::device::View<bf16>) -> Result<()> {
        let width = self.config.width;
        RmsNorm {
            x: &run.view(&self.x)?,
            pitch: width,
            rows: self.tokens,
            width,
            weight: &run.view(weight)?,
            eps: self.config.eps,
            out: FloatOut::Bf16(out),
            out_pitch: width,
        }
        .launch(run.device, Run::STREAM)
    }
}
