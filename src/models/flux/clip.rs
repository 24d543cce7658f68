//! The CLIP text encoder: embedded prompts to one pooled vector each.
//!
//! Source: transformers `CLIPTextModel`. The attention is causal, so what pads the prompt behind its end token cannot
//! reach the pooled vector.

use half::bf16;

use crate::config::{ClipActivation, ClipConfig};
use crate::device::View;
use crate::kernels::FloatOut;
use crate::kernels::attention::{Attention, Heads};
use crate::kernels::gemm::{Activation, Epilogue};
use crate::kernels::layer_norm_mod::LayerNormMod;
use crate::kernels::select_row::SelectRow;
use crate::models::layers::{Affine, Network, Product, Tokens};
use crate::program::{STREAM, Tier};
use crate::{Error, Result};

/// Token embeddings: they stay in their file, of which a prompt needs some rows.
pub(crate) const TOKENS: &str = "text_model.embeddings.token_embedding.weight";
/// Position embeddings, added on the host.
pub(crate) const POSITIONS: &str = "text_model.embeddings.position_embedding.weight";

/// Records the encoder on `x` f32 `[positions, width]`, token plus position embeddings, which becomes the residual stream.
/// The vector at token `index[0]`, an i32 on the device, goes to `pooled` f32 `[width]`.
///
/// # Errors
/// [`Error::Unsupported`] for widths that the kernels cannot take.
pub(crate) fn record(
    net: &mut Network<'_>,
    config: &ClipConfig,
    x: &View<f32>,
    index: &View<i32>,
    pooled: &View<f32>,
) -> Result<()> {
    let (width, tokens, heads, head_dim) = (config.width, config.positions, config.heads, config.head_dim());
    if head_dim % 8 != 0 || width % 8 != 0 || head_dim > 64 {
        return Err(Error::Unsupported(format!(
            "CLIP with {heads} heads of {head_dim}: heads must be a multiple of 8 wide, at most 64"
        )));
    }
    let ff_pitch = config.ff.next_multiple_of(8);
    net.host_tensor(TOKENS, &[config.vocab_rows, width]);
    net.host_tensor(POSITIONS, &[config.positions, width]);
    let h = net.buffer::<bf16>("h", tokens * width)?;
    let qkv = net.buffer::<bf16>("qkv", tokens * 3 * width)?;
    let attended = net.buffer::<bf16>("attended", tokens * width)?;
    let ff = net.buffer::<bf16>("ff", tokens * ff_pitch)?;
    let activation = match config.activation {
        ClipActivation::QuickGelu => Activation::QuickGelu,
        ClipActivation::Gelu => Activation::GeluErf,
    };
    let none = Activation::None;
    let h_tokens = Tokens { view: &h, pitch: width, rows: tokens };
    let attended_tokens = Tokens { view: &attended, pitch: width, rows: tokens };
    let ff_tokens = Tokens { view: &ff, pitch: ff_pitch, rows: tokens };
    let add = Epilogue::Add(x, None);
    let [q, k, v] = [0, 1, 2].map(|i| qkv.slice(i * width, qkv.len() - i * width));
    let (q, k, v) = (q?, k?, v?);
    let part = |view| Heads { view, pitch: 3 * width, head_stride: head_dim };
    for i in 0..config.layers {
        let layer = format!("text_model.encoder.layers.{i}");
        net.unit(format!("clip.{i}"), Tier::Encoder);

        let norm1 = net.affine(&format!("{layer}.layer_norm1"), width)?;
        norm(net, config, &norm1, x, tokens, FloatOut::Bf16(&h))?;
        let parts = [
            (&format!("{layer}.self_attn.q_proj")[..], width),
            (&format!("{layer}.self_attn.k_proj"), width),
            (&format!("{layer}.self_attn.v_proj"), width),
        ];
        let linear = net.linear(&parts, width, true)?;
        net.gemm(&[Product::new(h_tokens, &linear, 3 * width, none, Epilogue::Store(&qkv))])?;
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
        .launch(net.device(), STREAM)?;
        let linear = net.linear(&[(&format!("{layer}.self_attn.out_proj"), width)], width, true)?;
        net.gemm(&[Product::new(attended_tokens, &linear, width, none, add)])?;

        let norm2 = net.affine(&format!("{layer}.layer_norm2"), width)?;
        norm(net, config, &norm2, x, tokens, FloatOut::Bf16(&h))?;
        let linear = net.linear(&[(&format!("{layer}.mlp.fc1"), config.ff)], width, true)?;
        net.gemm(&[Product::new(h_tokens, &linear, ff_pitch, activation, Epilogue::Store(&ff))])?;
        let linear = net.linear(&[(&format!("{layer}.mlp.fc2"), width)], config.ff, true)?;
        net.gemm(&[Product::new(ff_tokens, &linear, width, none, add)])?;
    }
    net.unit("clip.final".to_string(), Tier::Fixed);
    let row = net.buffer::<f32>("row", width)?;
    SelectRow { table: x, pitch: width, rows: tokens, width, index, out: &row }
        .launch(net.device(), STREAM)?;
    let final_norm = net.affine("text_model.final_layer_norm", width)?;
    norm(net, config, &final_norm, &row, 1, FloatOut::F32(pooled))
}

fn norm(
    net: &mut Network<'_>,
    config: &ClipConfig,
    affine: &Affine,
    x: &View<f32>,
    rows: usize,
    out: FloatOut<'_>,
) -> Result<()> {
    LayerNormMod {
        x,
        pitch: config.width,
        rows,
        width: config.width,
        scale: &affine.weight,
        shift: &affine.bias,
        rest: None,
        scale_offset: 0.0,
        eps: config.eps,
        out,
        out_pitch: config.width,
    }
    .launch(net.device(), STREAM)
}
