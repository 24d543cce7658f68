//! The transformer in one file, as Black Forest Labs publish it (`flux1-schnell.safetensors`) and most others do, GGUF among
//! them.
//!
//! Query, key and value of a double block are one matrix there, in this order; those of a single block and the MLP's first
//! one, too. The modulation of the last layer gives shift, then scale; diffusers wants scale, then shift.

use super::{Cut, Stored};

/// Of a fused query, key and value.
const QKV: [Cut; 3] =
    [Cut { runs: &[(0, 1)], of: 3 }, Cut { runs: &[(1, 1)], of: 3 }, Cut { runs: &[(2, 1)], of: 3 }];

/// Of a single block's `linear1`: query, key, value, and the MLP, which is four times as wide.
const LINEAR1: [Cut; 4] = [
    Cut { runs: &[(0, 1)], of: 7 },
    Cut { runs: &[(1, 1)], of: 7 },
    Cut { runs: &[(2, 1)], of: 7 },
    Cut { runs: &[(3, 4)], of: 7 },
];

const HALVES_SWAPPED: Cut = Cut { runs: &[(1, 1), (0, 1)], of: 2 };

/// Modules outside the blocks: as they are needed, as they are stored.
const GLOBAL: [(&str, &str, Cut); 10] = [
    ("x_embedder", "img_in", Cut::WHOLE),
    ("context_embedder", "txt_in", Cut::WHOLE),
    ("time_text_embed.timestep_embedder.linear_1", "time_in.in_layer", Cut::WHOLE),
    ("time_text_embed.timestep_embedder.linear_2", "time_in.out_layer", Cut::WHOLE),
    ("time_text_embed.text_embedder.linear_1", "vector_in.in_layer", Cut::WHOLE),
    ("time_text_embed.text_embedder.linear_2", "vector_in.out_layer", Cut::WHOLE),
    ("time_text_embed.guidance_embedder.linear_1", "guidance_in.in_layer", Cut::WHOLE),
    ("time_text_embed.guidance_embedder.linear_2", "guidance_in.out_layer", Cut::WHOLE),
    ("norm_out.linear", "final_layer.adaLN_modulation.1", HALVES_SWAPPED),
    ("proj_out", "final_layer.linear", Cut::WHOLE),
];

/// Linears of a double block.
const DOUBLE: [(&str, &str, Cut); 14] = [
    ("norm1.linear", "img_mod.lin", Cut::WHOLE),
    ("norm1_context.linear", "txt_mod.lin", Cut::WHOLE),
    ("attn.to_q", "img_attn.qkv", QKV[0]),
    ("attn.to_k", "img_attn.qkv", QKV[1]),
    ("attn.to_v", "img_attn.qkv", QKV[2]),
    ("attn.add_q_proj", "txt_attn.qkv", QKV[0]),
    ("attn.add_k_proj", "txt_attn.qkv", QKV[1]),
    ("attn.add_v_proj", "txt_attn.qkv", QKV[2]),
    ("attn.to_out.0", "img_attn.proj", Cut::WHOLE),
    ("attn.to_add_out", "txt_attn.proj", Cut::WHOLE),
    ("ff.net.0.proj", "img_mlp.0", Cut::WHOLE),
    ("ff.net.2", "img_mlp.2", Cut::WHOLE),
    ("ff_context.net.0.proj", "txt_mlp.0", Cut::WHOLE),
    ("ff_context.net.2", "txt_mlp.2", Cut::WHOLE),
];

/// Linears of a single block.
const SINGLE: [(&str, &str, Cut); 6] = [
    ("norm.linear", "modulation.lin", Cut::WHOLE),
    ("attn.to_q", "linear1", LINEAR1[0]),
    ("attn.to_k", "linear1", LINEAR1[1]),
    ("attn.to_v", "linear1", LINEAR1[2]),
    ("proj_mlp", "linear1", LINEAR1[3]),
    ("proj_out", "linear2", Cut::WHOLE),
];

/// RMSNorms of heads, whose weight is called scale.
const DOUBLE_NORMS: [(&str, &str); 4] = [
    ("attn.norm_q.weight", "img_attn.norm.query_norm.scale"),
    ("attn.norm_k.weight", "img_attn.norm.key_norm.scale"),
    ("attn.norm_added_q.weight", "txt_attn.norm.query_norm.scale"),
    ("attn.norm_added_k.weight", "txt_attn.norm.key_norm.scale"),
];
const SINGLE_NORMS: [(&str, &str); 2] =
    [("attn.norm_q.weight", "norm.query_norm.scale"), ("attn.norm_k.weight", "norm.key_norm.scale")];

/// What holds the tensor `name` of the transformer.
pub fn stored(name: &str) -> Option<Stored> {
    for (theirs, ours, linears, norms) in [
        ("double_blocks", "transformer_blocks.", &DOUBLE[..], &DOUBLE_NORMS[..]),
        ("single_blocks", "single_transformer_blocks.", &SINGLE[..], &SINGLE_NORMS[..]),
    ] {
        let Some((block, rest)) = name.strip_prefix(ours).and_then(|rest| rest.split_once('.')) else {
            continue;
        };
        if let Some((_, norm)) = norms.iter().find(|(norm, _)| *norm == rest) {
            return Some(Stored::whole(format!("{theirs}.{block}.{norm}")));
        }
        let stored = linear(linears, rest)?;
        return Some(Stored { name: format!("{theirs}.{block}.{}", stored.name), cut: stored.cut });
    }
    linear(&GLOBAL, name)
}

/// Weight and bias are cut alike.
fn linear(table: &[(&str, &str, Cut)], name: &str) -> Option<Stored> {
    let (module, kind) = name.rsplit_once('.')?;
    let (_, theirs, cut) = table.iter().find(|(ours, ..)| *ours == module)?;
    Some(Stored { name: format!("{theirs}.{kind}"), cut: *cut })
}
