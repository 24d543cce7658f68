//! The FLUX transformer: noisy latents, text and time to a velocity.
//!
//! Token order is text, then image, in every buffer, so that the joint attention of a double block and the stream of
//! the single blocks are the same memory. Modulation vectors depend on time and prompt only: all steps' are computed
//! once, before the first step.
//!
//! Source: diffusers `FluxTransformer2DModel`. Residual streams are f32, which is more than the reference keeps.

use half::bf16;

use crate::arena::{Layout, Lifetime, Phase, Slot};
use crate::config::FluxConfig;
use crate::device::View;
use crate::kernels::FloatOut;
use crate::kernels::attention::{Attention, Heads};
use crate::kernels::gemm::{Activation, Epilogue, HEAD_WIDTH, Segment};
use crate::kernels::head_norm_rope::HeadNormRope;
use crate::kernels::layer_norm_mod::LayerNormMod;
use crate::nn::{Builder, FewRows, Linear, Product, Quantize, Rope, Rows, Run, Tokens};
use crate::weights::Part;
use crate::weights::upload::Job;
use crate::{Error, Result};

/// Width of the sinusoid of a timestep or guidance scale.
pub const SINUSOID_WIDTH: usize = 256;
const NORM_EPS: f32 = 1e-6;

/// The planned transformer.
#[derive(Debug)]
pub struct Flux {
    config: FluxConfig,
    text_tokens: usize,
    image_tokens: usize,
    steps: usize,
    x_embedder: Linear,
    context_embedder: Linear,
    time: Embedder,
    guidance: Option<Embedder>,
    pooled: Embedder,
    doubles: Vec<Double>,
    singles: Vec<Single>,
    norm_out: Modulation,
    proj_out: Linear,
    modulation_width: usize,
    nf4_bytes: u64,
    /// Buffers.
    pub buffers: Buffers,
}

/// A two-layer embedder.
#[derive(Debug)]
struct Embedder {
    linear_1: Linear,
    linear_2: Linear,
}

/// A modulation Linear and the columns of the modulation table that it fills.
#[derive(Debug)]
struct Modulation {
    linear: Linear,
    column: usize,
}

/// One side, image or text, of a double block.
#[derive(Debug)]
struct Side {
    modulation: Modulation,
    qkv: Linear,
    norm_q: Slot<f32>,
    norm_k: Slot<f32>,
    out: Linear,
    mlp_in: Linear,
    mlp_out: Linear,
}

#[derive(Debug)]
struct Double {
    text: Side,
    image: Side,
}

#[derive(Debug)]
struct Single {
    modulation: Modulation,
    linear1: Linear,
    norm_q: Slot<f32>,
    norm_k: Slot<f32>,
    linear2: Linear,
}

/// What the transformer works in. `L` is text plus image tokens, `D` the width.
#[derive(Debug)]
pub struct Buffers {
    /// f32 `[L, head_dim / 2]`: cosines of the positions.
    pub rope_cos: Slot<f32>,
    /// f32 `[L, head_dim / 2]`: sines.
    pub rope_sin: Slot<f32>,
    /// f32 `[steps, 256]`: sinusoids of the steps' times.
    pub sinusoids: Slot<f32>,
    /// f32 `[256]`: sinusoid of the guidance scale.
    pub guidance: Slot<f32>,
    /// f32 `[image tokens, in_channels]`.
    pub latents: Slot<f32>,
    /// bf16 copy of `latents`.
    pub latents_bf16: Slot<bf16>,
    /// f32 `[branches, image tokens, out_channels]`.
    pub velocity: Slot<f32>,
    hidden: Slot<f32>,
    vec: Slot<f32>,
    vec_pooled: Slot<f32>,
    modulation: Slot<f32>,
    x: Slot<f32>,
    h: Slot<bf16>,
    q: Slot<bf16>,
    k: Slot<bf16>,
    v: Slot<bf16>,
    wide: Slot<bf16>,
}

/// How much a [`Flux`] is planned for.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    /// T5 tokens.
    pub text_tokens: usize,
    /// Packed latents.
    pub image_tokens: usize,
    /// Denoising steps.
    pub steps: usize,
    /// 1, or 2 with a negative prompt.
    pub branches: usize,
}

impl Flux {
    /// Plans weights and buffers.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for widths that the kernels cannot take.
    pub fn plan(
        config: &FluxConfig,
        extent: Extent,
        quantize: Quantize,
        layout: &mut Layout,
        jobs: &mut Vec<Job>,
    ) -> Result<Flux> {
        let Extent { text_tokens, image_tokens, steps, branches } = extent;
        let (d, ff, head_dim) = (config.width(), config.ff(), config.head_dim);
        if head_dim % 8 != 0 || head_dim > 128 || config.in_channels % 8 != 0 {
            return Err(Error::Unsupported(format!(
                "a transformer with heads of {head_dim} and {} input channels: both must be multiples of 8, heads at \
                 most 128 wide",
                config.in_channels
            )));
        }
        let mut b = Builder::new(layout, jobs, Part::Transformer, quantize);
        b.weights_region("flux.embedders".to_string());
        let x_embedder = b.linear(&[("x_embedder", d)], config.in_channels, true, Rows::Many);
        let context_embedder = b.linear(&[("context_embedder", d)], config.joint_width, true, Rows::Many);
        let mut embedder = |name: &str, k: usize| Embedder {
            linear_1: b.linear(&[(&format!("time_text_embed.{name}.linear_1"), d)], k, true, Rows::Few),
            linear_2: b.linear(&[(&format!("time_text_embed.{name}.linear_2"), d)], d, true, Rows::Few),
        };
        let time = embedder("timestep_embedder", SINUSOID_WIDTH);
        let guidance = config.guidance.then(|| embedder("guidance_embedder", SINUSOID_WIDTH));
        let pooled = embedder("text_embedder", config.pooled_width);

        // Modulation Linears run once per prompt, blocks once per step: regions of their own, so that a smaller budget
        // can stream the one kind and keep the other.
        b.weights_region("flux.modulation".to_string());
        let mut column = 0;
        let mut modulation = |b: &mut Builder<'_>, name: String, vectors: usize| {
            let linear = b.linear(&[(&name, vectors * d)], d, true, Rows::Few);
            column += vectors * d;
            Modulation { linear, column: column - vectors * d }
        };
        let mut double_modulation = Vec::new();
        for i in 0..config.layers {
            let name = |norm: &str| format!("transformer_blocks.{i}.{norm}.linear");
            let text = modulation(&mut b, name("norm1_context"), 6);
            double_modulation.push((text, modulation(&mut b, name("norm1"), 6)));
        }
        let single_modulation: Vec<Modulation> = (0..config.single_layers)
            .map(|i| modulation(&mut b, format!("single_transformer_blocks.{i}.norm.linear"), 3))
            .collect();
        let norm_out = modulation(&mut b, "norm_out.linear".to_string(), 2);
        let modulation_width = column;

        let mut doubles = Vec::new();
        for (i, (text, image)) in double_modulation.into_iter().enumerate() {
            b.weights_region(format!("flux.double.{i}"));
            let name = |part: &str| format!("transformer_blocks.{i}.{part}");
            let mut side = |modulation: Modulation,
                            qkv: [&str; 3],
                            norms: [&str; 2],
                            out: &str,
                            ff_name: &str| {
                let [q, k, v] = qkv.map(|p| name(&format!("attn.{p}")));
                Side {
                    modulation,
                    qkv: b.linear(&[(&q, d), (&k, d), (&v, d)], d, true, Rows::Many),
                    norm_q: b.vector(&name(&format!("attn.{}.weight", norms[0])), head_dim),
                    norm_k: b.vector(&name(&format!("attn.{}.weight", norms[1])), head_dim),
                    out: b.linear(&[(&name(&format!("attn.{out}")), d)], d, true, Rows::Many),
                    mlp_in: b.linear(&[(&name(&format!("{ff_name}.net.0.proj")), ff)], d, true, Rows::Many),
                    mlp_out: b.linear(&[(&name(&format!("{ff_name}.net.2")), d)], ff, true, Rows::Many),
                }
            };
            let added = ["add_q_proj", "add_k_proj", "add_v_proj"];
            let text = side(text, added, ["norm_added_q", "norm_added_k"], "to_add_out", "ff_context");
            let image = side(image, ["to_q", "to_k", "to_v"], ["norm_q", "norm_k"], "to_out.0", "ff");
            doubles.push(Double { text, image });
        }
        let mut singles = Vec::new();
        for (i, modulation) in single_modulation.into_iter().enumerate() {
            b.weights_region(format!("flux.single.{i}"));
            let name = |part: &str| format!("single_transformer_blocks.{i}.{part}");
            let [q, k, v] = ["to_q", "to_k", "to_v"].map(|p| name(&format!("attn.{p}")));
            singles.push(Single {
                modulation,
                linear1: b.linear(&[(&q, d), (&k, d), (&v, d), (&name("proj_mlp"), ff)], d, true, Rows::Many),
                norm_q: b.vector(&name("attn.norm_q.weight"), head_dim),
                norm_k: b.vector(&name("attn.norm_k.weight"), head_dim),
                linear2: b.linear(&[(&name("proj_out"), d)], d + ff, true, Rows::Many),
            });
        }
        b.weights_region("flux.final".to_string());
        let proj_out = b.linear(&[("proj_out", config.out_channels)], d, true, Rows::Many);
        let nf4_bytes = b.nf4_bytes();

        let tokens = text_tokens + image_tokens;
        let (steps_only, ahead) = (Lifetime::only(Phase::Steps), Lifetime::only(Phase::Modulation));
        let to_decode = Lifetime::span(Phase::Steps, Phase::Decode);
        let buffers = Buffers {
            rope_cos: layout.region("flux.rope_cos", tokens * head_dim / 2, Lifetime::ALWAYS),
            rope_sin: layout.region("flux.rope_sin", tokens * head_dim / 2, Lifetime::ALWAYS),
            sinusoids: layout.region("flux.sinusoids", steps * SINUSOID_WIDTH, ahead),
            guidance: layout.region("flux.guidance", SINUSOID_WIDTH, ahead),
            hidden: layout.region("flux.hidden", steps * d, ahead),
            vec: layout.region("flux.vec", steps * d, ahead),
            vec_pooled: layout.region("flux.vec_pooled", d, ahead),
            modulation: layout.region(
                "flux.modulations",
                branches * steps * modulation_width,
                Lifetime::span(Phase::Modulation, Phase::Steps),
            ),
            latents: layout.region("flux.latents", image_tokens * config.in_channels, to_decode),
            latents_bf16: layout.region("flux.latents_bf16", image_tokens * config.in_channels, steps_only),
            velocity: layout.region(
                "flux.velocity",
                branches * image_tokens * config.out_channels,
                steps_only,
            ),
            x: layout.region("flux.x", tokens * d, steps_only),
            h: layout.region("flux.h", tokens * d, steps_only),
            q: layout.region("flux.q", tokens * d, steps_only),
            k: layout.region("flux.k", tokens * d, steps_only),
            v: layout.region("flux.v", tokens * d, steps_only),
            wide: layout.region("flux.wide", tokens * (d + ff), steps_only),
        };
        Ok(Flux {
            config: config.clone(),
            text_tokens,
            image_tokens,
            steps,
            x_embedder,
            context_embedder,
            time,
            guidance,
            pooled,
            doubles,
            singles,
            norm_out,
            proj_out,
            modulation_width,
            nf4_bytes,
            buffers,
        })
    }

    /// Bytes of NF4 codes and absmax.
    pub fn nf4_bytes(&self) -> u64 {
        self.nf4_bytes
    }

    /// Enqueues the modulation vectors of all steps for a branch, from `pooled` f32 `[pooled_width]` and the sinusoids in the
    /// buffers.
    ///
    /// # Errors
    /// Those of the launches.
    pub fn modulate(&self, run: &Run<'_>, branch: usize, pooled: &View<f32>) -> Result<()> {
        let (b, d) = (&self.buffers, self.config.width());
        let (hidden, vec) = (run.view(&b.hidden)?, run.view(&b.vec)?);
        let vec_pooled = run.view(&b.vec_pooled)?;
        let embed = |embedder: &Embedder, x: &View<f32>, rows, add: Option<&View<f32>>, out: &View<f32>| {
            let base =
                FewRows { x, rows, silu_in: false, silu_out: true, add: None, out: &hidden, out_pitch: d };
            run.gemv(&embedder.linear_1, &base)?;
            run.gemv(&embedder.linear_2, &FewRows { x: &hidden, silu_out: false, add, out, ..base })
        };
        embed(&self.pooled, pooled, 1, None, &vec_pooled)?;
        if let Some(guidance) = &self.guidance {
            // The sum may be written in place: each element is read by the thread that writes it.
            embed(guidance, &run.view(&b.guidance)?, 1, Some(&vec_pooled), &vec_pooled)?;
        }
        embed(&self.time, &run.view(&b.sinusoids)?, self.steps, Some(&vec_pooled), &vec)?;
        let table = run.view(&b.modulation)?;
        let doubles = self.doubles.iter().flat_map(|b| [&b.text.modulation, &b.image.modulation]);
        let all = doubles.chain(self.singles.iter().map(|b| &b.modulation)).chain([&self.norm_out]);
        for modulation in all {
            let first = branch * self.steps * self.modulation_width + modulation.column;
            let out = table.slice(first, table.len() - first)?;
            let out_pitch = self.modulation_width;
            let few = FewRows {
                x: &vec,
                rows: self.steps,
                silu_in: true,
                silu_out: false,
                add: None,
                out: &out,
                out_pitch,
            };
            run.gemv(&modulation.linear, &few)?;
        }
        Ok(())
    }

    /// Where the velocity of a branch is, f32 `[image tokens, out_channels]`.
    ///
    /// # Errors
    /// [`Error::Input`] when there is no such branch.
    pub fn velocity_of(&self, run: &Run<'_>, branch: usize) -> Result<View<f32>> {
        let len = self.image_tokens * self.config.out_channels;
        run.view(&self.buffers.velocity)?.slice(branch * len, len)
    }

    /// Enqueues the velocity of step `step` for a branch from `latents_bf16` and the text `context` bf16 `[text tokens, joint_width]`.
    ///
    /// # Errors
    /// Those of the launches.
    pub fn velocity(&self, run: &Run<'_>, branch: usize, step: usize, context: &View<bf16>) -> Result<()> {
        // A row of the modulation table.
        let step = branch * self.steps + step;
        let (b, d) = (&self.buffers, self.config.width());
        let (lt, li) = (self.text_tokens, self.image_tokens);
        let x = run.view(&b.x)?;
        let (x_text, x_image) = (x.slice(0, lt * d)?, x.slice(lt * d, li * d)?);
        let latents = run.view(&b.latents_bf16)?;
        let text = Tokens { view: context, pitch: self.config.joint_width, rows: lt };
        let image = Tokens { view: &latents, pitch: self.config.in_channels, rows: li };
        let none = Activation::None;
        run.gemm(&[Product::new(text, &self.context_embedder, d, none, Epilogue::StoreF32(&x_text))])?;
        run.gemm(&[Product::new(image, &self.x_embedder, d, none, Epilogue::StoreF32(&x_image))])?;
        for block in &self.doubles {
            self.double(run, step, block, &x_text, &x_image)?;
        }
        for block in &self.singles {
            self.single(run, step, block, &x)?;
        }
        let h = run.view(&b.h)?;
        // diffusers' order for the last norm: scale, then shift.
        let [scale, shift] = self.vectors(run, step, &self.norm_out)?;
        self.norm(run, &x_image, li, &scale, &shift, &h)?;
        let velocity = self.velocity_of(run, branch)?;
        let h = Tokens { view: &h, pitch: d, rows: li };
        let store = Epilogue::StoreF32(&velocity);
        run.gemm(&[Product::new(h, &self.proj_out, self.config.out_channels, none, store)])
    }

    /// The `N` vectors of width `D` that a modulation yields for a step.
    fn vectors<const N: usize>(
        &self,
        run: &Run<'_>,
        step: usize,
        modulation: &Modulation,
    ) -> Result<[View<f32>; N]> {
        let d = self.config.width();
        let table = run.view(&self.buffers.modulation)?;
        let first = step * self.modulation_width + modulation.column;
        let views: Vec<View<f32>> = (0..N).map(|i| table.slice(first + i * d, d)).collect::<Result<_>>()?;
        views.try_into().map_err(|_| Error::Input("a modulation of another width".to_string()))
    }

    /// `out = (1 + scale) * LayerNorm(x) + shift`
    fn norm(
        &self,
        run: &Run<'_>,
        x: &View<f32>,
        rows: usize,
        scale: &View<f32>,
        shift: &View<f32>,
        out: &View<bf16>,
    ) -> Result<()> {
        let d = self.config.width();
        LayerNormMod {
            x,
            pitch: d,
            rows,
            width: d,
            scale,
            shift,
            scale_offset: 1.0,
            eps: NORM_EPS,
            out: FloatOut::Bf16(out),
            out_pitch: d,
        }
        .launch(run.device, Run::STREAM)
    }

    fn double(
        &self,
        run: &Run<'_>,
        step: usize,
        block: &Double,
        x_text: &View<f32>,
        x_image: &View<f32>,
    ) -> Result<()> {
        let (b, d, ff) = (&self.buffers, self.config.width(), self.config.ff());
        let (lt, li) = (self.text_tokens, self.image_tokens);
        let [t_shift1, t_scale1, t_gate1, t_shift2, t_scale2, t_gate2] =
            self.vectors(run, step, &block.text.modulation)?;
        let [i_shift1, i_scale1, i_gate1, i_shift2, i_scale2, i_gate2] =
            self.vectors(run, step, &block.image.modulation)?;
        let h = run.view(&b.h)?;
        let (h_text, h_image) = (h.slice(0, lt * d)?, h.slice(lt * d, li * d)?);
        self.norm(run, x_text, lt, &t_scale1, &t_shift1, &h_text)?;
        self.norm(run, x_image, li, &i_scale1, &i_shift1, &h_image)?;

        let tokens = |view, rows| Tokens { view, pitch: d, rows };
        let text = self.heads(run, &block.text.norm_q, &block.text.norm_k, 0, lt)?;
        let image = self.heads(run, &block.image.norm_q, &block.image.norm_k, lt, li)?;
        run.gemm(&[
            text.product(tokens(&h_text, lt), &block.text.qkv, None),
            image.product(tokens(&h_image, li), &block.image.qkv, None),
        ])?;
        text.finish(run)?;
        image.finish(run)?;
        self.attend(run)?;

        let pitch = d + ff;
        let wide = run.view(&b.wide)?;
        let rows_of = |first: usize, column: usize| {
            wide.slice(first * pitch + column, wide.len() - first * pitch - column)
        };
        let (attended_text, attended_image) = (rows_of(0, 0)?, rows_of(lt, 0)?);
        let (mlp_text, mlp_image) = (rows_of(0, d)?, rows_of(lt, d)?);
        let wide_tokens = |view, rows| Tokens { view, pitch, rows };
        let none = Activation::None;
        run.gemm(&[
            Product::new(
                wide_tokens(&attended_text, lt),
                &block.text.out,
                d,
                none,
                Epilogue::Add(x_text, Some(&t_gate1)),
            ),
            Product::new(
                wide_tokens(&attended_image, li),
                &block.image.out,
                d,
                none,
                Epilogue::Add(x_image, Some(&i_gate1)),
            ),
        ])?;
        self.norm(run, x_text, lt, &t_scale2, &t_shift2, &h_text)?;
        self.norm(run, x_image, li, &i_scale2, &i_shift2, &h_image)?;
        let gelu = Activation::GeluTanh;
        run.gemm(&[
            Product::new(tokens(&h_text, lt), &block.text.mlp_in, pitch, gelu, Epilogue::Store(&mlp_text)),
            Product::new(tokens(&h_image, li), &block.image.mlp_in, pitch, gelu, Epilogue::Store(&mlp_image)),
        ])?;
        run.gemm(&[
            Product::new(
                wide_tokens(&mlp_text, lt),
                &block.text.mlp_out,
                d,
                none,
                Epilogue::Add(x_text, Some(&t_gate2)),
            ),
            Product::new(
                wide_tokens(&mlp_image, li),
                &block.image.mlp_out,
                d,
                none,
                Epilogue::Add(x_image, Some(&i_gate2)),
            ),
        ])
    }

    fn single(&self, run: &Run<'_>, step: usize, block: &Single, x: &View<f32>) -> Result<()> {
        let (b, d, ff) = (&self.buffers, self.config.width(), self.config.ff());
        let rows = self.text_tokens + self.image_tokens;
        let [shift, scale, gate] = self.vectors(run, step, &block.modulation)?;
        let h = run.view(&b.h)?;
        self.norm(run, x, rows, &scale, &shift, &h)?;
        let wide = run.view(&b.wide)?;
        let mlp = wide.slice(d, wide.len() - d)?;
        let heads = self.heads(run, &block.norm_q, &block.norm_k, 0, rows)?;
        let mlp_segment = Segment {
            begin: 3 * d,
            end: 3 * d + ff,
            pitch: d + ff,
            activation: Activation::GeluTanh,
            epilogue: Epilogue::Store(&mlp),
        };
        let h = Tokens { view: &h, pitch: d, rows };
        run.gemm(&[heads.product(h, &block.linear1, Some(mlp_segment))])?;
        heads.finish(run)?;
        self.attend(run)?;
        let all = Tokens { view: &wide, pitch: d + ff, rows };
        let add = Epilogue::Add(x, Some(&gate));
        run.gemm(&[Product::new(all, &block.linear2, d, Activation::None, add)])
    }

    /// Joint attention of all tokens, into the first `D` columns of the wide buffer.
    fn attend(&self, run: &Run<'_>) -> Result<()> {
        let (b, d) = (&self.buffers, self.config.width());
        let (q, k, v) = (run.view(&b.q)?, run.view(&b.k)?, run.view(&b.v)?);
        let wide = run.view(&b.wide)?;
        let head_dim = self.config.head_dim;
        let part = |view| Heads { view, pitch: d, head_stride: head_dim };
        let tokens = self.text_tokens + self.image_tokens;
        Attention {
            q: part(&q),
            k: part(&k),
            v: part(&v),
            out: Heads { view: &wide, pitch: d + self.config.ff(), head_stride: head_dim },
            bias: None,
            causal: false,
            softmax_scale: 1.0 / (head_dim as f32).sqrt(),
            q_len: tokens,
            kv_len: tokens,
            heads: self.config.heads,
            head_dim,
        }
        .launch(run.device, Run::STREAM)
    }

    /// Where the heads of tokens `first..first + rows` go, and how they are normalised and rotated.
    fn heads(
        &self,
        run: &Run<'_>,
        norm_q: &Slot<f32>,
        norm_k: &Slot<f32>,
        first: usize,
        rows: usize,
    ) -> Result<QkvHeads> {
        let (b, d, half) = (&self.buffers, self.config.width(), self.config.head_dim / 2);
        Ok(QkvHeads {
            q: run.view(&b.q)?.slice(first * d, rows * d)?,
            k: run.view(&b.k)?.slice(first * d, rows * d)?,
            v: run.view(&b.v)?.slice(first * d, rows * d)?,
            norm_q: run.view(norm_q)?,
            norm_k: run.view(norm_k)?,
            cos: run.view(&b.rope_cos)?.slice(first * half, rows * half)?,
            sin: run.view(&b.rope_sin)?.slice(first * half, rows * half)?,
            rows,
            heads: self.config.heads,
            head_dim: self.config.head_dim,
        })
    }
}

/// The destination of a q|k|v projection: heads with norm and RoPE, within the product's epilogue where a head is as
/// wide as its tile, by a kernel of their own otherwise.
struct QkvHeads {
    q: View<bf16>,
    k: View<bf16>,
    v: View<bf16>,
    norm_q: View<f32>,
    norm_k: View<f32>,
    cos: View<f32>,
    sin: View<f32>,
    rows: usize,
    heads: usize,
    head_dim: usize,
}

impl QkvHeads {
    fn fused(&self) -> bool {
        self.head_dim == HEAD_WIDTH
    }

    fn product<'a>(&'a self, x: Tokens<'a>, linear: &'a Linear, rest: Option<Segment<'a>>) -> Product<'a> {
        let d = self.heads * self.head_dim;
        let segment = |i: usize, epilogue| Segment {
            begin: i * d,
            end: (i + 1) * d,
            pitch: d,
            activation: Activation::None,
            epilogue,
        };
        let head = |out, weight| {
            if self.fused() { Epilogue::NormRope { out, weight } } else { Epilogue::Store(out) }
        };
        let mut segments = vec![
            segment(0, head(&self.q, &self.norm_q)),
            segment(1, head(&self.k, &self.norm_k)),
            segment(2, Epilogue::Store(&self.v)),
        ];
        segments.extend(rest);
        let rope = self.fused().then_some(Rope { cos: &self.cos, sin: &self.sin, eps: NORM_EPS });
        Product { x, linear, rope, segments }
    }

    /// Normalises and rotates what the product's epilogue could not.
    fn finish(&self, run: &Run<'_>) -> Result<()> {
        if self.fused() {
            return Ok(());
        }
        for (x, weight) in [(&self.q, &self.norm_q), (&self.k, &self.norm_k)] {
            HeadNormRope {
                x,
                pitch: self.heads * self.head_dim,
                rows: self.rows,
                heads: self.heads,
                head_dim: self.head_dim,
                weight,
                eps: NORM_EPS,
                cos: &self.cos,
                sin: &self.sin,
                rope_row: 0,
            }
            .launch(run.device, Run::STREAM)?;
        }
        Ok(())
    }
}
