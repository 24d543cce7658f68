//! The VAE in one file, as Black Forest Labs publish it (`ae.safetensors`): the same tensors as diffusers', but levels are
//! counted from the finest, and matrices of the attention are 1x1 convolutions.

use super::Stored;

/// As they are needed, as they are stored; whichever comes first in a name.
const MIDDLE: [(&str, &str); 7] = [
    ("mid_block.resnets.0.", "mid.block_1."),
    ("mid_block.resnets.1.", "mid.block_2."),
    ("mid_block.attentions.0.group_norm.", "mid.attn_1.norm."),
    ("mid_block.attentions.0.to_q.", "mid.attn_1.q."),
    ("mid_block.attentions.0.to_k.", "mid.attn_1.k."),
    ("mid_block.attentions.0.to_v.", "mid.attn_1.v."),
    ("mid_block.attentions.0.to_out.0.", "mid.attn_1.proj_out."),
];

/// What holds the tensor `name` of a decoder of so many levels.
pub fn stored(name: &str, levels: usize) -> Option<Stored> {
    let Some(rest) = name.strip_prefix("decoder.") else {
        return Some(Stored::whole(name));
    };
    let rest = match rest.strip_prefix("up_blocks.") {
        Some(rest) => {
            let (level, rest) = rest.split_once('.')?;
            let level = levels.checked_sub(1 + level.parse::<usize>().ok()?)?;
            let rest = rest.strip_prefix("resnets.").map_or_else(
                || rest.replacen("upsamplers.0.", "upsample.", 1),
                |rest| format!("block.{}", rest.replacen("conv_shortcut.", "nin_shortcut.", 1)),
            );
            format!("up.{level}.{rest}")
        }
        None => match MIDDLE.iter().find_map(|(ours, theirs)| Some((rest.strip_prefix(ours)?, theirs))) {
            Some((rest, theirs)) => format!("{theirs}{rest}"),
            None => rest.replacen("conv_norm_out.", "norm_out.", 1),
        },
    };
    Some(Stored::whole(format!("decoder.{rest}")))
}

/// Levels of the decoder in a file; nothing for one of another kind.
pub fn levels(has: impl Fn(&str) -> bool) -> Option<usize> {
    // As many as a config may have.
    let levels = (0..8).take_while(|level| has(&format!("decoder.up.{level}.block.0.conv1.weight"))).count();
    (levels > 0).then_some(levels)
}

/// Whether real files have a tensor of this name beside the decoder's.
pub fn is_harmless(name: &str) -> bool {
    ["encoder.", "quant_conv.", "loss."].iter().any(|prefix| name.starts_with(prefix))
}
