//! The FLUX transformer: noisy latents, text and time to a velocity.
//!
//! Token order is text, then image, in every buffer, so that the joint attention of a double block and the stream of
//! the single blocks are the same memory. Modulation vectors depend on time and prompt only: all steps' are computed
//! once, in the first step, each block's ahead of the block ([`Modulations`]), so that their weights are copied behind its kernels
//! where they do not stay on the device. Every other step takes its row of them ([`Transformer::select`]), and its operations are
//! the same as any other's ([`Transformer::velocity`]).
//!
//! Source: diffusers `FluxTransformer2DModel`. Residual streams are f32, which is more than the reference keeps.

use half::bf16;

use crate::config::FluxConfig;
use crate::device::View;
use crate::kernels::FloatOut;
use crate::kernels::attention::{Attention, Heads};
use crate::kernels::gemm::{Activation, Epilogue, HEAD_WIDTH, Segment};
use crate::kernels::head_norm_rope::HeadNormRope;
use crate::kernels::layer_norm_mod::{LayerNormMod, Rest};
use crate::kernels::select_row::SelectRow;
use crate::models::layers::{FewRows, Linear, Network, Precision, Product, Rope, Tokens};
use crate::program::{STREAM, Tier};
use crate::{Error, Result};

/// Width of the sinusoid of a timestep or guidance scale.
pub(crate) const SINUSOID_WIDTH: usize = 256;
const NORM_EPS: f32 = 1e-6;

/// How much a [`Transformer`] is recorded for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Extent {
    /// T5 tokens.
    pub text_tokens: usize,
    /// Packed latents.
    pub image_tokens: usize,
    /// Denoising steps.
    pub steps: usize,
}

/// The buffers that a transformer works in. `L` is text plus image tokens, `D` the width.
pub(crate) struct Transformer<'c> {
    config: &'c FluxConfig,
    extent: Extent,
    /// f32 `[L, head_dim / 2]`: cosines of the positions.
    pub rope_cos: View<f32>,
    /// f32 `[L, head_dim / 2]`: sines.
    pub rope_sin: View<f32>,
    /// f32 `[modulation width]`: of the branch that runs.
    modulation: View<f32>,
    x: View<f32>,
    h: View<bf16>,
    q: View<bf16>,
    k: View<bf16>,
    v: View<bf16>,
    wide: View<bf16>,
    /// f32 `[L]`: of tokens that are fp16.
    x_scale: Option<View<f32>>,
}

/// How the names of a double block's tensors begin.
fn double_block(block: usize) -> String {
    format!("transformer_blocks.{block}")
}

/// The same of a single block.
fn single_block(block: usize) -> String {
    format!("single_transformer_blocks.{block}")
}

/// What the tensors are called that make heads of tokens.
struct HeadNames {
    qkv: [String; 3],
    /// Of q and k.
    norms: [String; 2],
}

impl HeadNames {
    /// Of a double block's text.
    fn of_text(block: &str) -> HeadNames {
        HeadNames {
            qkv: [
                format!("{block}.attn.add_q_proj"),
                format!("{block}.attn.add_k_proj"),
                format!("{block}.attn.add_v_proj"),
            ],
            norms: [format!("{block}.attn.norm_added_q.weight"), format!("{block}.attn.norm_added_k.weight")],
        }
    }

    /// Of a double block's image, and of all tokens in a single block.
    fn of_image(block: &str) -> HeadNames {
        HeadNames {
            qkv: [format!("{block}.attn.to_q"), format!("{block}.attn.to_k"), format!("{block}.attn.to_v")],
            norms: [format!("{block}.attn.norm_q.weight"), format!("{block}.attn.norm_k.weight")],
        }
    }
}

/// The vectors of width `D` that one Linear of a modulation yields, behind each other in a row of all modulations.
#[derive(Clone, Copy)]
struct Vectors {
    column: usize,
    width: usize,
}

/// How modulation vectors come about: what they are computed from, and by which Linears.
pub(crate) struct Modulations {
    /// Of each branch, f32 `[steps, D]`: the sum of what is embedded.
    embedded: Vec<View<f32>>,
    steps: usize,
    /// Of each block, double ones first, and of the last norm.
    linears: Vec<Vec<(Linear, Vectors)>>,
}

impl Modulations {
    /// Records the vectors of all steps and branches for block number `block`, or for the last norm, which follows the
    /// blocks, into the `tables` f32 `[steps, modulation width]`, one a branch.
    fn record(&self, net: &mut Network<'_>, block: usize, tables: &[View<f32>]) -> Result<()> {
        for (linear, at) in &self.linears[block] {
            for (embedded, table) in self.embedded.iter().zip(tables) {
                let out = table.slice(at.column, table.len() - at.column)?;
                let few = FewRows {
                    x: embedded,
                    rows: self.steps,
                    silu_in: true,
                    silu_out: false,
                    add: None,
                    out: &out,
                    out_pitch: table.len() / self.steps,
                };
                net.gemv(linear, &few)?;
            }
        }
        Ok(())
    }
}

/// Where a pass takes its modulation vectors from.
pub(crate) struct Modulated<'a> {
    /// f32 `[modulation width]`.
    pub row: &'a View<f32>,
    /// Where they are computed on the way, and the tables of all branches, of which `row` is a row.
    pub ahead: Option<(&'a Modulations, &'a [View<f32>])>,
}

impl Modulated<'_> {
    /// Block number `block` comes next.
    fn come_to(&self, net: &mut Network<'_>, block: usize) -> Result<()> {
        self.ahead.map_or(Ok(()), |(modulations, tables)| modulations.record(net, block, tables))
    }

    /// The first `N` vectors of those at `at`.
    fn vectors<const N: usize>(&self, at: Vectors) -> Result<[View<f32>; N]> {
        let views: Vec<View<f32>> =
            (0..N).map(|i| self.row.slice(at.column + i * at.width, at.width)).collect::<Result<_>>()?;
        views.try_into().map_err(|_| Error::Internal("a modulation of another width".to_string()))
    }
}

impl<'c> Transformer<'c> {
    /// Makes the buffers.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for widths that the kernels cannot take.
    pub fn new(net: &mut Network<'_>, config: &'c FluxConfig, extent: Extent) -> Result<Transformer<'c>> {
        let (d, ff, head_dim) = (config.width(), config.ff(), config.head_dim);
        if head_dim % 8 != 0 || head_dim > 128 || config.in_channels % 8 != 0 {
            return Err(Error::Unsupported(format!(
                "a transformer with heads of {head_dim} and {} input channels: both must be multiples of 8, heads at \
                 most 128 wide",
                config.in_channels
            )));
        }
        let tokens = extent.text_tokens + extent.image_tokens;
        Ok(Transformer {
            config,
            extent,
            rope_cos: net.buffer("rope_cos", tokens * head_dim / 2)?,
            rope_sin: net.buffer("rope_sin", tokens * head_dim / 2)?,
            modulation: net.buffer("modulation_row", Self::modulation_width(config))?,
            x: net.buffer("x", tokens * d)?,
            h: net.buffer("h", tokens * d)?,
            q: net.buffer("q", tokens * d)?,
            k: net.buffer("k", tokens * d)?,
            v: net.buffer("v", tokens * d)?,
            wide: net.buffer("wide", tokens * (d + ff))?,
            x_scale: (net.precision() == Precision::Fast)
                .then(|| net.buffer("x_scale", tokens))
                .transpose()?,
        })
    }

    /// f32 values of all vectors of one step.
    pub fn modulation_width(config: &FluxConfig) -> usize {
        (12 * config.layers + 3 * config.single_layers + 2) * config.width()
    }

    /// Of a double block, the text's or the image's: shift, scale, gate, shift, scale, gate.
    fn of_double(&self, block: usize, image: bool) -> Vectors {
        let width = self.config.width();
        Vectors { column: (12 * block + 6 * image as usize) * width, width }
    }

    /// Of a single block: shift, scale, gate.
    fn of_single(&self, block: usize) -> Vectors {
        let width = self.config.width();
        Vectors { column: (12 * self.config.layers + 3 * block) * width, width }
    }

    /// Of the last norm; in diffusers' order: scale, shift.
    fn of_norm_out(&self) -> Vectors {
        Vectors { column: self.of_single(self.config.single_layers).column, width: self.config.width() }
    }

    /// Records what modulation vectors are computed from, of each branch: `pooled` f32 `[branches, pooled_width]`, `sinusoids` f32
    /// `[steps, 256]` and that of the guidance scale, embedded and added.
    pub fn embed(
        &self,
        net: &mut Network<'_>,
        pooled: &View<f32>,
        sinusoids: &View<f32>,
        guidance: Option<&View<f32>>,
    ) -> Result<Modulations> {
        let (config, d, steps) = (self.config, self.config.width(), self.extent.steps);
        net.unit("transformer.embedders".to_string(), Tier::Fixed);
        let mut embedded = Vec::new();
        for branch in 0..pooled.len() / config.pooled_width {
            let pooled = &pooled.slice(branch * config.pooled_width, config.pooled_width)?;
            let hidden = net.buffer::<f32>("hidden", steps * d)?;
            let vec_pooled = net.buffer::<f32>("vec_pooled", d)?;
            let vec = net.buffer::<f32>("vec", steps * d)?;
            let mut embed = |name: &str, x: &View<f32>, k, rows, add: Option<&View<f32>>, out: &View<f32>| {
                let base = FewRows {
                    x,
                    rows,
                    silu_in: false,
                    silu_out: true,
                    add: None,
                    out: &hidden,
                    out_pitch: d,
                };
                let linear_1 = net.linear_of_rows(&format!("{name}.linear_1"), d, k)?;
                net.gemv(&linear_1, &base)?;
                let linear_2 = net.linear_of_rows(&format!("{name}.linear_2"), d, d)?;
                net.gemv(&linear_2, &FewRows { x: &hidden, silu_out: false, add, out, ..base })
            };
            embed("time_text_embed.text_embedder", pooled, config.pooled_width, 1, None, &vec_pooled)?;
            let add = Some(&vec_pooled);
            if let Some(guidance) = guidance {
                // The sum may be written in place: each element is read by the thread that writes it.
                let name = "time_text_embed.guidance_embedder";
                embed(name, guidance, SINUSOID_WIDTH, 1, add, &vec_pooled)?;
            }
            embed("time_text_embed.timestep_embedder", sinusoids, SINUSOID_WIDTH, steps, add, &vec)?;
            embedded.push(vec);
        }
        Ok(Modulations { embedded, steps, linears: self.modulation_linears(net)? })
    }

    /// Modulation Linears run once per prompt, blocks once per step: units of their own, so that a smaller budget can stream the
    /// one kind and keep the other.
    fn modulation_linears(&self, net: &mut Network<'_>) -> Result<Vec<Vec<(Linear, Vectors)>>> {
        let (config, d) = (self.config, self.config.width());
        let linear = |net: &mut Network<'_>, name: &str, vectors: usize, at: Vectors| -> Result<_> {
            Ok((net.linear_of_rows(name, vectors * d, d)?, at))
        };
        let mut linears = Vec::new();
        for i in 0..config.layers {
            let block = double_block(i);
            net.unit(format!("transformer.modulation.double.{i}"), Tier::Modulation);
            linears.push(vec![
                linear(net, &format!("{block}.norm1_context.linear"), 6, self.of_double(i, false))?,
                linear(net, &format!("{block}.norm1.linear"), 6, self.of_double(i, true))?,
            ]);
        }
        for i in 0..config.single_layers {
            let block = single_block(i);
            net.unit(format!("transformer.modulation.single.{i}"), Tier::Modulation);
            linears.push(vec![linear(net, &format!("{block}.norm.linear"), 3, self.of_single(i))?]);
        }
        net.unit("transformer.modulation.final".to_string(), Tier::Modulation);
        linears.push(vec![linear(net, "norm_out.linear", 2, self.of_norm_out())?]);
        Ok(linears)
    }

    /// Records that the row of `table` f32 `[steps, modulation width]` whose number is in `step` is taken, which it returns.
    pub fn select(&self, net: &Network<'_>, table: &View<f32>, step: &View<i32>) -> Result<&View<f32>> {
        let width = Self::modulation_width(self.config);
        let (rows, out) = (self.extent.steps, &self.modulation);
        SelectRow { table, pitch: width, rows, width, index: step, out }.launch(net.device(), STREAM)?;
        Ok(out)
    }

    /// Records the text as all steps begin with it, f32 `[text tokens, D]`, from `context` bf16 `[text tokens, joint_width]`.
    pub fn embed_text(&self, net: &mut Network<'_>, context: &View<bf16>) -> Result<View<f32>> {
        let (d, rows) = (self.config.width(), self.extent.text_tokens);
        let text = net.buffer("text", rows * d)?;
        net.unit("transformer.embedders".to_string(), Tier::Fixed);
        let linear = net.linear(&[("context_embedder", d)], self.config.joint_width, true)?;
        let context = Tokens { view: context, pitch: self.config.joint_width, rows };
        net.gemm(&[Product::new(context, &linear, d, Activation::None, Epilogue::StoreF32(&text))])?;
        Ok(text)
    }

    /// Records the velocity f32 `[image tokens, out_channels]` of `latents` bf16 `[image tokens, in_channels]` and the embedded
    /// `text`, `modulated` for a step, whose number is in `step`.
    pub fn velocity(
        &self,
        net: &mut Network<'_>,
        latents: &View<bf16>,
        text: &View<f32>,
        modulated: &Modulated<'_>,
        step: &View<i32>,
        velocity: &View<f32>,
    ) -> Result<()> {
        let (config, d) = (self.config, self.config.width());
        let (lt, li) = (self.extent.text_tokens, self.extent.image_tokens);
        let (x_text, x_image) = (self.x.slice(0, lt * d)?, self.x.slice(lt * d, li * d)?);
        // Of one row, whatever the step.
        SelectRow { table: text, pitch: lt * d, rows: 1, width: lt * d, index: step, out: &x_text }
            .launch(net.device(), STREAM)?;
        net.unit("transformer.embedders".to_string(), Tier::Fixed);
        let none = Activation::None;
        let image = Tokens { view: latents, pitch: config.in_channels, rows: li };
        let linear = net.linear(&[("x_embedder", d)], config.in_channels, true)?;
        net.gemm(&[Product::new(image, &linear, d, none, Epilogue::StoreF32(&x_image))])?;
        for i in 0..config.layers {
            modulated.come_to(net, i)?;
            net.unit(format!("transformer.double.{i}"), Tier::Block);
            self.double(net, i, &x_text, &x_image, modulated)?;
        }
        for i in 0..config.single_layers {
            modulated.come_to(net, config.layers + i)?;
            net.unit(format!("transformer.single.{i}"), Tier::Block);
            self.single(net, i, modulated)?;
        }
        modulated.come_to(net, config.layers + config.single_layers)?;
        net.unit("transformer.final".to_string(), Tier::Fixed);
        let [scale, shift] = modulated.vectors(self.of_norm_out())?;
        self.norm(net, &x_image, li, [&scale, &shift], None)?;
        let h = Tokens { view: &self.h, pitch: d, rows: li };
        let linear = net.linear(&[("proj_out", config.out_channels)], d, true)?;
        net.gemm(&[Product::new(h, &linear, config.out_channels, none, Epilogue::StoreF32(velocity))])
    }

    /// `h = (1 + scale) * LayerNorm(x) + shift`
    fn norm(
        &self,
        net: &Network<'_>,
        x: &View<f32>,
        rows: usize,
        [scale, shift]: [&View<f32>; 2],
        rest: Option<Rest<'_>>,
    ) -> Result<()> {
        let d = self.config.width();
        LayerNormMod {
            x,
            pitch: d,
            rows,
            width: d,
            scale,
            shift,
            rest,
            scale_offset: 1.0,
            eps: NORM_EPS,
            out: FloatOut::Bf16(&self.h),
            out_pitch: d,
        }
        .launch(net.device(), STREAM)
    }

    /// Products of tokens that nobody reads after them, whose rows are at most all there are.
    fn multiply<const N: usize>(&self, net: &mut Network<'_>, mut products: [Product<'_>; N]) -> Result<()> {
        net.lower(&mut products)?;
        if let Some(scales) = &self.x_scale {
            let mut row = 0;
            for product in products.iter_mut().filter(|product| net.multiplies_halves(product.linear)) {
                net.halve(product, scales.slice(row, product.x.rows)?)?;
                row += product.x.rows;
            }
        }
        net.gemm(&products)
    }

    fn double(
        &self,
        net: &mut Network<'_>,
        block: usize,
        x_text: &View<f32>,
        x_image: &View<f32>,
        modulated: &Modulated<'_>,
    ) -> Result<()> {
        let (d, ff) = (self.config.width(), self.config.ff());
        let (lt, li) = (self.extent.text_tokens, self.extent.image_tokens);
        let name = double_block(block);
        let [t_shift1, t_scale1, t_gate1, t_shift2, t_scale2, t_gate2] =
            modulated.vectors(self.of_double(block, false))?;
        let [i_shift1, i_scale1, i_gate1, i_shift2, i_scale2, i_gate2] =
            modulated.vectors(self.of_double(block, true))?;
        let (h_text, h_image) = (self.h.slice(0, lt * d)?, self.h.slice(lt * d, li * d)?);
        let norm = |net: &Network<'_>, text: [&View<f32>; 2], [scale, shift]: [&View<f32>; 2]| {
            let rest = Some(Rest { first_row: lt, scale, shift });
            self.norm(net, &self.x, lt + li, text, rest)
        };
        norm(net, [&t_scale1, &t_shift1], [&i_scale1, &i_shift1])?;

        let tokens = |view, rows| Tokens { view, pitch: d, rows };
        let (of_text, of_image) = (HeadNames::of_text(&name), HeadNames::of_image(&name));
        let qkv =
            |net: &mut Network<'_>, [q, k, v]: &[String; 3]| net.linear(&[(q, d), (k, d), (v, d)], d, true);
        let text_qkv = qkv(net, &of_text.qkv)?;
        let image_qkv = qkv(net, &of_image.qkv)?;
        let text = self.heads(net, &of_text.norms, 0, lt)?;
        let image = self.heads(net, &of_image.norms, lt, li)?;
        self.multiply(
            net,
            [
                text.product(tokens(&h_text, lt), &text_qkv, None),
                image.product(tokens(&h_image, li), &image_qkv, None),
            ],
        )?;
        text.finish(net)?;
        image.finish(net)?;
        self.attend(net)?;

        let pitch = d + ff;
        let rows_of = |first: usize, column: usize| {
            self.wide.slice(first * pitch + column, self.wide.len() - first * pitch - column)
        };
        let (attended_text, attended_image) = (rows_of(0, 0)?, rows_of(lt, 0)?);
        let (mlp_text, mlp_image) = (rows_of(0, d)?, rows_of(lt, d)?);
        let wide = |view, rows| Tokens { view, pitch, rows };
        let (none, gelu) = (Activation::None, Activation::GeluTanh);
        let text_out = net.linear(&[(&format!("{name}.attn.to_add_out"), d)], d, true)?;
        let image_out = net.linear(&[(&format!("{name}.attn.to_out.0"), d)], d, true)?;
        let (to_text, to_image) =
            (Epilogue::Add(x_text, Some(&t_gate1)), Epilogue::Add(x_image, Some(&i_gate1)));
        self.multiply(
            net,
            [
                Product::new(wide(&attended_text, lt), &text_out, d, none, to_text),
                Product::new(wide(&attended_image, li), &image_out, d, none, to_image),
            ],
        )?;
        norm(net, [&t_scale2, &t_shift2], [&i_scale2, &i_shift2])?;
        let text_in = net.linear(&[(&format!("{name}.ff_context.net.0.proj"), ff)], d, true)?;
        let image_in = net.linear(&[(&format!("{name}.ff.net.0.proj"), ff)], d, true)?;
        self.multiply(
            net,
            [
                Product::new(tokens(&h_text, lt), &text_in, pitch, gelu, Epilogue::Store(&mlp_text)),
                Product::new(tokens(&h_image, li), &image_in, pitch, gelu, Epilogue::Store(&mlp_image)),
            ],
        )?;
        let text_out = net.linear(&[(&format!("{name}.ff_context.net.2"), d)], ff, true)?;
        let image_out = net.linear(&[(&format!("{name}.ff.net.2"), d)], ff, true)?;
        let (to_text, to_image) =
            (Epilogue::Add(x_text, Some(&t_gate2)), Epilogue::Add(x_image, Some(&i_gate2)));
        self.multiply(
            net,
            [
                Product::new(wide(&mlp_text, lt), &text_out, d, none, to_text),
                Product::new(wide(&mlp_image, li), &image_out, d, none, to_image),
            ],
        )
    }

    fn single(&self, net: &mut Network<'_>, block: usize, modulated: &Modulated<'_>) -> Result<()> {
        let (d, ff) = (self.config.width(), self.config.ff());
        let rows = self.extent.text_tokens + self.extent.image_tokens;
        let name = single_block(block);
        let [shift, scale, gate] = modulated.vectors(self.of_single(block))?;
        self.norm(net, &self.x, rows, [&scale, &shift], None)?;
        let mlp = self.wide.slice(d, self.wide.len() - d)?;
        let HeadNames { qkv: [q, k, v], norms } = HeadNames::of_image(&name);
        let parts = [(&q[..], d), (&k, d), (&v, d), (&format!("{name}.proj_mlp"), ff)];
        let linear1 = net.linear(&parts, d, true)?;
        let heads = self.heads(net, &norms, 0, rows)?;
        let mlp_segment = Segment {
            begin: 3 * d,
            end: 3 * d + ff,
            pitch: d + ff,
            activation: Activation::GeluTanh,
            epilogue: Epilogue::Store(&mlp),
        };
        let h = Tokens { view: &self.h, pitch: d, rows };
        self.multiply(net, [heads.product(h, &linear1, Some(mlp_segment))])?;
        heads.finish(net)?;
        self.attend(net)?;
        let all = Tokens { view: &self.wide, pitch: d + ff, rows };
        let linear2 = net.linear(&[(&format!("{name}.proj_out"), d)], d + ff, true)?;
        self.multiply(
            net,
            [Product::new(all, &linear2, d, Activation::None, Epilogue::Add(&self.x, Some(&gate)))],
        )
    }

    /// Joint attention of all tokens, into the first `D` columns of the wide buffer.
    fn attend(&self, net: &mut Network<'_>) -> Result<()> {
        let (d, head_dim) = (self.config.width(), self.config.head_dim);
        let part = |view| Heads { view, pitch: d, head_stride: head_dim };
        let tokens = self.extent.text_tokens + self.extent.image_tokens;
        Attention {
            q: part(&self.q),
            k: part(&self.k),
            v: part(&self.v),
            out: Heads { view: &self.wide, pitch: d + self.config.ff(), head_stride: head_dim },
            bias: None,
            causal: false,
            softmax_scale: 1.0 / (head_dim as f32).sqrt(),
            q_len: tokens,
            kv_len: tokens,
            heads: self.config.heads,
            head_dim,
        }
        .launch(net.device(), STREAM)
    }

    /// Where the heads of tokens `first..first + rows` go, and how they are normalized and rotated.
    fn heads(
        &self,
        net: &mut Network<'_>,
        [norm_q, norm_k]: &[String; 2],
        first: usize,
        rows: usize,
    ) -> Result<QkvHeads> {
        let (d, head_dim) = (self.config.width(), self.config.head_dim);
        let half = head_dim / 2;
        Ok(QkvHeads {
            q: self.q.slice(first * d, rows * d)?,
            k: self.k.slice(first * d, rows * d)?,
            v: self.v.slice(first * d, rows * d)?,
            norm_q: net.vector(norm_q, head_dim)?,
            norm_k: net.vector(norm_k, head_dim)?,
            cos: self.rope_cos.slice(first * half, rows * half)?,
            sin: self.rope_sin.slice(first * half, rows * half)?,
            rows,
            heads: self.config.heads,
            head_dim,
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
        Product { x, linear, rope, segments, x_scale: None, lowered: None }
    }

    /// Normalizes and rotates what the product's epilogue could not.
    fn finish(&self, net: &mut Network<'_>) -> Result<()> {
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
            .launch(net.device(), STREAM)?;
        }
        Ok(())
    }
}
