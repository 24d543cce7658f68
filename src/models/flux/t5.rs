//! The T5 encoder: embedded prompts to one vector per token, padding included.
//!
//! Source: transformers `T5EncoderModel`. No attention mask: the reference lets padding be attended to, and images
//! change without it. The scores are not scaled; positions enter by a relative bias that all layers share.

use half::bf16;

use crate::config::T5Config;
use crate::device::View;
use crate::kernels::FloatOut;
use crate::kernels::attention::{Attention, Heads, RelativeBias};
use crate::kernels::gemm::{Activation, Epilogue, Segment};
use crate::kernels::rms_norm::RmsNorm;
use crate::models::layers::{Network, Product, Tokens};
use crate::program::{STREAM, Tier};
use crate::sampling::t5_bucket;
use crate::{Error, Result};

/// Token embeddings: they stay in their file, of which a prompt needs some rows.
pub(crate) const TOKENS: &str = "shared.weight";
/// f32 `[buckets, heads]`, from which [`relative_bias`] is made.
pub(crate) const BIAS: &str = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight";

/// Records the encoder on `x` f32 `[tokens, width]`, the embeddings, which becomes the residual stream; `bias` is
/// [`relative_bias`]'s. The vectors go to `context` bf16 `[tokens, width]`.
///
/// # Errors
/// [`Error::Unsupported`] for widths that the kernels cannot take.
pub(crate) fn record(
    net: &mut Network<'_>,
    config: &T5Config,
    tokens: usize,
    x: &View<f32>,
    bias: &View<f32>,
    context: &View<bf16>,
) -> Result<()> {
    let (width, inner, ff) = (config.width, config.inner(), config.ff);
    let (heads, head_dim, ff_pitch) = (config.heads, config.head_dim, config.ff.next_multiple_of(8));
    if head_dim % 8 != 0 || width % 8 != 0 || head_dim > 128 {
        return Err(Error::Unsupported(format!(
            "T5 with {heads} heads of {head_dim}: heads must be a multiple of 8 wide, at most 128"
        )));
    }
    net.host_tensor(TOKENS, &[config.vocab_rows, width]);
    net.host_tensor(BIAS, &[config.buckets, heads]);
    let h = net.buffer::<bf16>("h", tokens * width)?;
    let qkv = net.buffer::<bf16>("qkv", tokens * 3 * inner)?;
    let attended = net.buffer::<bf16>("attended", tokens * inner)?;
    let ff_buffer = net.buffer::<bf16>("ff", tokens * ff_pitch)?;
    let h_tokens = Tokens { view: &h, pitch: width, rows: tokens };
    let attended_tokens = Tokens { view: &attended, pitch: inner, rows: tokens };
    let ff_tokens = Tokens { view: &ff_buffer, pitch: ff_pitch, rows: tokens };
    let (none, gelu, add) = (Activation::None, Activation::GeluTanh, Epilogue::Add(x, None));
    let [q, k, v] = [0, 1, 2].map(|i| qkv.slice(i * inner, qkv.len() - i * inner));
    let (q, k, v) = (q?, k?, v?);
    let part = |view| Heads { view, pitch: 3 * inner, head_stride: head_dim };
    let norm = |net: &mut Network<'_>, name: &str, out: &View<bf16>| {
        let weight = net.vector(name, width)?;
        RmsNorm {
            x,
            pitch: width,
            rows: tokens,
            width,
            weight: &weight,
            eps: config.eps,
            out: FloatOut::Bf16(out),
            out_pitch: width,
        }
        .launch(net.device(), STREAM)
    };
    for i in 0..config.layers {
        let block = format!("encoder.block.{i}");
        net.unit(format!("t5.{i}"), Tier::Encoder);

        norm(net, &format!("{block}.layer.0.layer_norm.weight"), &h)?;
        let parts = [
            (&format!("{block}.layer.0.SelfAttention.q")[..], inner),
            (&format!("{block}.layer.0.SelfAttention.k"), inner),
            (&format!("{block}.layer.0.SelfAttention.v"), inner),
        ];
        let linear = net.linear(&parts, width, false)?;
        let segments = [0, 1, 2].map(|i| Segment {
            begin: i * inner,
            end: (i + 1) * inner,
            pitch: 3 * inner,
            activation: none,
            epilogue: Epilogue::Store([&q, &k, &v][i]),
        });
        let whole = Product::new(h_tokens, &linear, 3 * inner, none, add);
        net.gemm(&[Product { segments: segments.to_vec(), ..whole }])?;
        Attention {
            q: part(&q),
            k: part(&k),
            v: part(&v),
            out: Heads { view: &attended, pitch: inner, head_stride: head_dim },
            bias: Some(RelativeBias { view: bias, len: tokens }),
            causal: false,
            softmax_scale: 1.0,
            q_len: tokens,
            kv_len: tokens,
            heads,
            head_dim,
        }
        .launch(net.device(), STREAM)?;
        let linear = net.linear(&[(&format!("{block}.layer.0.SelfAttention.o"), width)], inner, false)?;
        net.gemm(&[Product::new(attended_tokens, &linear, width, none, add)])?;

        norm(net, &format!("{block}.layer.1.layer_norm.weight"), &h)?;
        let linear = net.linear(&[(&format!("{block}.layer.1.DenseReluDense.wi_0"), ff)], width, false)?;
        net.gemm(&[Product::new(h_tokens, &linear, ff_pitch, gelu, Epilogue::Store(&ff_buffer))])?;
        let linear = net.linear(&[(&format!("{block}.layer.1.DenseReluDense.wi_1"), ff)], width, false)?;
        let times = Epilogue::MulBf16(&ff_buffer, &ff_buffer);
        net.gemm(&[Product::new(h_tokens, &linear, ff_pitch, none, times)])?;
        let linear = net.linear_left_wide(&format!("{block}.layer.1.DenseReluDense.wo"), width, ff)?;
        net.gemm(&[Product::new(ff_tokens, &linear, width, none, add)])?;
    }
    net.unit("t5.final".to_string(), Tier::Fixed);
    norm(net, "encoder.final_layer_norm.weight", context)
}

/// The bias by distance: f32 `[heads, 2 tokens - 1]`, entry `key - query + tokens - 1`, from `by_bucket`, the tensor [`BIAS`].
pub(crate) fn relative_bias(config: &T5Config, tokens: usize, by_bucket: &[f32]) -> Vec<f32> {
    let (heads, tokens) = (config.heads, tokens as i64);
    let mut table = Vec::with_capacity(heads * (2 * tokens as usize - 1));
    for head in 0..heads {
        for distance in 1 - tokens..tokens {
            let bucket = t5_bucket(distance, config.buckets, config.max_distance);
            table.push(by_bucket[bucket * heads + head]);
        }
    }
    table
}
