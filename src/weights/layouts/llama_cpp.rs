//! T5 in GGUF files, as llama.cpp calls its tensors.

use super::Stored;

/// Modules outside the layers: as they are needed, as they are stored.
const GLOBAL: [(&str, &str); 2] =
    [("shared.weight", "token_embd.weight"), ("encoder.final_layer_norm.weight", "enc.output_norm.weight")];

/// Of a layer.
const LAYER: [(&str, &str); 10] = [
    ("layer.0.SelfAttention.q.weight", "attn_q.weight"),
    ("layer.0.SelfAttention.k.weight", "attn_k.weight"),
    ("layer.0.SelfAttention.v.weight", "attn_v.weight"),
    ("layer.0.SelfAttention.o.weight", "attn_o.weight"),
    ("layer.0.SelfAttention.relative_attention_bias.weight", "attn_rel_b.weight"),
    ("layer.0.layer_norm.weight", "attn_norm.weight"),
    ("layer.1.DenseReluDense.wi_0.weight", "ffn_gate.weight"),
    ("layer.1.DenseReluDense.wi_1.weight", "ffn_up.weight"),
    ("layer.1.DenseReluDense.wo.weight", "ffn_down.weight"),
    ("layer.1.layer_norm.weight", "ffn_norm.weight"),
];

/// What holds the tensor `name` of T5.
pub fn stored(name: &str) -> Option<Stored> {
    let of = |table: &[(&str, &'static str)], name: &str| {
        table.iter().find(|(ours, _)| *ours == name).map(|(_, theirs)| *theirs)
    };
    match name.strip_prefix("encoder.block.").and_then(|rest| rest.split_once('.')) {
        Some((layer, rest)) => Some(Stored::whole(format!("enc.blk.{layer}.{}", of(&LAYER, rest)?))),
        None => Some(Stored::whole(of(&GLOBAL, name)?)),
    }
}

/// Whether real files have a tensor of this name beside the encoder's.
pub fn is_harmless(name: &str) -> bool {
    ["dec.", "output."].iter().any(|prefix| name.starts_with(prefix))
}
