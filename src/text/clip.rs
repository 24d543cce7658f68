//! The CLIP text encoder: prompt ids to one pooled vector.
//!
//! Source: transformers `CLIPTextModel`. The attention is causal, so what pads the prompt behind its end token cannot
//! reach the pooled vector.

use half::bf16;

use crate::arena::{Layout, Lifetime, Phase, Slot};
use crate::config::{ClipActivation, ClipConfig};
use crate::kernels::FloatOut;
use crate::kernels::attention::{Attention, Heads};
use crate::kernels::gemm::{Activation, Epilogue};
use crate::kernels::layer_norm_mod::LayerNormMod;
use crate::nn::{Affine, Builder, Linear, Product, Quantize, Rows, Run, Tokens};
use crate::weights::Part;
use crate::weights::upload::Job;
use crate::{Error, Result};

/// The planned encoder.
#[derive(Debug)]
pub struct Clip {
    config: ClipConfig,
    layers: Vec<Layer>,
    final_norm: Affine,
    /// f32 `[positions, width]`: token plus position embeddings, then the residual stream.
    pub x: Slot<f32>,
    h: Slot<bf16>,
    qkv: Slot<bf16>,
    attended: Slot<bf16>,
    ff: Slot<bf16>,
    /// f32 `[branches, width]`.
    pub pooled: Slot<f32>,
}

#[derive(Debug)]
struct Layer {
    norm1: Affine,
    qkv: Linear,
    out: Linear,
    norm2: Affine,
    fc1: Linear,
    fc2: Linear,
}

impl Clip {
    /// Plans weights and buffers; `branches` is 1, or 2 with a negative prompt.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for widths that the kernels cannot take.
    pub fn plan(
        config: &ClipConfig,
        branches: usize,
        layout: &mut Layout,
        jobs: &mut Vec<Job>,
    ) -> Result<Clip> {
        let (width, tokens) = (config.width, config.positions);
        if config.head_dim() % 8 != 0 || width % 8 != 0 || config.head_dim() > 64 {
            return Err(Error::Unsupported(format!(
                "CLIP with {} heads of {}: heads must be a multiple of 8 wide, at most 64",
                config.heads,
                config.head_dim()
            )));
        }
        // CLIP is small and sensitive: never quantised, as in the reference.
        let mut b = Builder::new(layout, jobs, Part::Clip, Quantize::None);
        let layers = (0..config.layers)
            .map(|i| {
                let name = |part: &str| format!("text_model.encoder.layers.{i}.{part}");
                let (q, k, v) =
                    (name("self_attn.q_proj"), name("self_attn.k_proj"), name("self_attn.v_proj"));
                Layer {
                    norm1: b.affine(&name("layer_norm1"), width),
                    qkv: b.linear(&[(&q, width), (&k, width), (&v, width)], width, true, Rows::Many),
                    out: b.linear(&[(&name("self_attn.out_proj"), width)], width, true, Rows::Many),
                    norm2: b.affine(&name("layer_norm2"), width),
                    fc1: b.linear(&[(&name("mlp.fc1"), config.ff)], width, true, Rows::Many),
                    fc2: b.linear(&[(&name("mlp.fc2"), width)], config.ff, true, Rows::Many),
                }
            })
            .collect();
        let final_norm = b.affine("text_model.final_layer_norm", width);
        let here = Lifetime::only(Phase::Clip);
        Ok(Clip {
            config: config.clone(),
            layers,
            final_norm,
            x: layout.region("clip.x", tokens * width, here),
            h: layout.region("clip.h", tokens * width, here),
            qkv: layout.region("clip.qkv", tokens * 3 * width, here),
            attended: layout.region("clip.attended", tokens * width, here),
            ff: layout.region("clip.ff", tokens * config.ff.next_multiple_of(8), here),
            pooled: layout.region(
                "clip.pooled",
                branches * width,
                Lifetime::span(Phase::Clip, Phase::Modulation),
            ),
        })
    }

    /// Enqueues the encoder on what lies in `x`; the vector at token `pooled_index` becomes row `branch` of
    /// `pooled`.
    ///
    /// # Errors
    /// Those of the launches.
    pub fn run(&self, run: &Run<'_>, branch: usize, pooled_index: usize) -> Result<()> {
        let (width, tokens) = (self.config.width, self.config.positions);
        let (heads, head_dim) = (self.config.heads, self.config.head_dim());
        let ff_pitch = self.config.ff.next_multiple_of(8);
        let x = run.view(&self.x)?;
        let (h, qkv) = (run.view(&self.h)?, run.view(&self.qkv)?);
        let (attended, ff) = (run.view(&self.attended)?, run.view(&self.ff)?);
        let activation = match self.config.activation {
            ClipActivation::QuickGelu => Activation::QuickGelu,
            ClipActivation::Gelu => Activation::GeluErf,
        };
        let h_tokens = Tokens { view: &h, pitch: width, rows: tokens };
        for layer in &self.layers {
            self.norm(run, &layer.norm1, &x, tokens, FloatOut::Bf16(&h))?;
            let store = Epilogue::Store(&qkv);
            run.gemm(&[Product::new(h_tokens, &layer.qkv, 3 * width, Activation::None, store)])?;
            let parts = [0, 1, 2].map(|i| qkv.slice(i * width, qkv.len() - i * width));
            let [q, k, v] = parts;
            let (q, k, v) = (q?, k?, v?);
            let part = |view| Heads { view, pitch: 3 * width, head_stride: head_dim };
            Attention {
                q: part(&q),
                k: part(&k),
                v: part(&v),
                out: Heads { view: &attended, pitch: width, head_stride: head_dim },
                bias: None,
                causal: true,
                softmax_scale: 1.0 / (head_dim as f32).sqrt(),
                q_len: tokens,
                kv_len: tokens,
                heads,
                head_dim,
            }
            .launch(run.device, Run::STREAM)?;
            let attended = Tokens { view: &attended, pitch: width, rows: tokens };
            let add = Epilogue::Add(&x, None);
            run.gemm(&[Product::new(attended, &layer.out, width, Activation::None, add)])?;
            self.norm(run, &layer.norm2, &x, tokens, FloatOut::Bf16(&h))?;
            run.gemm(&[Product::new(h_tokens, &layer.fc1, ff_pitch, activation, Epilogue::Store(&ff))])?;
            let ff = Tokens { view: &ff, pitch: ff_pitch, rows: tokens };
            run.gemm(&[Product::new(ff, &layer.fc2, width, Activation::None, add)])?;
        }
        let row = x.slice(pooled_index * width, width)?;
        self.norm(run, &self.final_norm, &row, 1, FloatOut::F32(&self.pooled(run, branch)?))
    }

    /// The vector of a branch, f32 `[width]`.
    ///
    /// # Errors
    /// [`Error::Input`] when there is no such branch.
    pub fn pooled(&self, run: &Run<'_>, branch: usize) -> Result<crate::device::View<f32>> {
        run.view(&self.pooled)?.slice(branch * self.config.width, self.config.width)
    }

    fn norm(
        &self,
        run: &Run<'_>,
        affine: &Affine,
        x: &crate::device::View<f32>,
        rows: usize,
        out: FloatOut<'_>,
    ) -> Result<()> {
        let width = self.config.width;
        LayerNormMod {
            x,
            pitch: width,
            rows,
            width,
            scale: &run.view(&affine.weight)?,
            shift: &run.view(&affine.bias)?,
            scale_offset: 0.0,
            eps: self.config.eps,
            out,
            out_pitch: width,
        }
        .launch(run.device, Run::STREAM)
    }
}
