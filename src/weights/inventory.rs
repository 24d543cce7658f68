//! Which tensors each network needs, from its config alone: names as in the diffusers-layout files, shapes, and
//! the other names that the same tensor goes by.
//!
//! Linear weights are `[out, in]`, convolutions `[out, in, height, width]`, both row-major.

use crate::config::{ClipConfig, FluxConfig, T5Config, VaeConfig};

/// A tensor that a network cannot do without. (None is optional: what a model lacks by its config is not listed.)
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Needed {
    /// The name used throughout this crate.
    pub name: String,
    /// Its shape; a 1x1 convolution may be stored as a matrix and the other way round.
    pub shape: Vec<usize>,
    /// Other names to look for, in this order, when `name` is not there.
    pub aliases: Vec<String>,
}

impl Needed {
    /// Number of elements.
    pub fn elements(&self) -> u64 {
        self.shape.iter().map(|&n| n as u64).product()
    }
}

/// Number of parameters in `inventory`.
pub fn parameters(inventory: &[Needed]) -> u64 {
    inventory.iter().map(Needed::elements).sum()
}

/// A list in the making.
#[derive(Default)]
struct List(Vec<Needed>);

impl List {
    fn tensor(&mut self, name: impl Into<String>, shape: &[usize]) -> &mut Needed {
        let index = self.0.len();
        self.0.push(Needed { name: name.into(), shape: shape.to_vec(), aliases: Vec::new() });
        &mut self.0[index]
    }

    /// A weight of `shape` and a bias as long as its first axis.
    fn affine(&mut self, name: &str, shape: &[usize]) {
        self.tensor(format!("{name}.weight"), shape);
        self.tensor(format!("{name}.bias"), &shape[..1]);
    }
}

/// The FLUX transformer.
pub fn transformer(config: &FluxConfig) -> Vec<Needed> {
    let (d, ff) = (config.width(), config.ff());
    /// Width of the sinusoid of a timestep. Fixed in the reference.
    const SINUSOID: usize = 256;
    let mut list = List::default();

    list.affine("x_embedder", &[d, config.in_channels]);
    list.affine("context_embedder", &[d, config.joint_width]);
    let mut embedder = |name: &str, input: usize| {
        list.affine(&format!("time_text_embed.{name}.linear_1"), &[d, input]);
        list.affine(&format!("time_text_embed.{name}.linear_2"), &[d, d]);
    };
    embedder("timestep_embedder", SINUSOID);
    if config.guidance {
        embedder("guidance_embedder", SINUSOID);
    }
    embedder("text_embedder", config.pooled_width);

    for i in 0..config.layers {
        let block = format!("transformer_blocks.{i}");
        for (norm, ff_name) in [("norm1", "ff"), ("norm1_context", "ff_context")] {
            list.affine(&format!("{block}.{norm}.linear"), &[6 * d, d]);
            list.affine(&format!("{block}.{ff_name}.net.0.proj"), &[ff, d]);
            list.affine(&format!("{block}.{ff_name}.net.2"), &[d, ff]);
        }
        for linear in
            ["to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"]
        {
            list.affine(&format!("{block}.attn.{linear}"), &[d, d]);
        }
        for norm in ["norm_q", "norm_k", "norm_added_q", "norm_added_k"] {
            list.tensor(format!("{block}.attn.{norm}.weight"), &[config.head_dim]);
        }
    }
    for i in 0..config.single_layers {
        let block = format!("single_transformer_blocks.{i}");
        list.affine(&format!("{block}.norm.linear"), &[3 * d, d]);
        for linear in ["to_q", "to_k", "to_v"] {
            list.affine(&format!("{block}.attn.{linear}"), &[d, d]);
        }
        for norm in ["norm_q", "norm_k"] {
            list.tensor(format!("{block}.attn.{norm}.weight"), &[config.head_dim]);
        }
        list.affine(&format!("{block}.proj_mlp"), &[ff, d]);
        list.affine(&format!("{block}.proj_out"), &[d, d + ff]);
    }
    list.affine("norm_out.linear", &[2 * d, d]);
    list.affine("proj_out", &[config.out_channels, d]);
    list.0
}

/// The T5 encoder.
pub fn t5(config: &T5Config) -> Vec<Needed> {
    let (width, inner) = (config.width, config.inner());
    let mut list = List::default();
    list.tensor("shared.weight", &[config.vocab_rows, width]).aliases =
        vec!["encoder.embed_tokens.weight".to_string()];
    for i in 0..config.layers {
        let attention = format!("encoder.block.{i}.layer.0");
        list.tensor(format!("{attention}.layer_norm.weight"), &[width]);
        for linear in ["q", "k", "v"] {
            list.tensor(format!("{attention}.SelfAttention.{linear}.weight"), &[inner, width]);
        }
        list.tensor(format!("{attention}.SelfAttention.o.weight"), &[width, inner]);
        if i == 0 {
            // One table for all layers.
            list.tensor(
                format!("{attention}.SelfAttention.relative_attention_bias.weight"),
                &[config.buckets, config.heads],
            );
        }
        let mlp = format!("encoder.block.{i}.layer.1");
        list.tensor(format!("{mlp}.layer_norm.weight"), &[width]);
        list.tensor(format!("{mlp}.DenseReluDense.wi_0.weight"), &[config.ff, width]);
        list.tensor(format!("{mlp}.DenseReluDense.wi_1.weight"), &[config.ff, width]);
        list.tensor(format!("{mlp}.DenseReluDense.wo.weight"), &[width, config.ff]);
    }
    list.tensor("encoder.final_layer_norm.weight", &[width]);
    list.0
}

/// The CLIP text encoder. Its projection is not used by FLUX.
pub fn clip(config: &ClipConfig) -> Vec<Needed> {
    /// What transformers 5 no longer writes before every name.
    const PREFIX: &str = "text_model.";
    let width = config.width;
    let mut list = List::default();
    list.tensor("text_model.embeddings.token_embedding.weight", &[config.vocab_rows, width]);
    list.tensor("text_model.embeddings.position_embedding.weight", &[config.positions, width]);
    for i in 0..config.layers {
        let layer = format!("text_model.encoder.layers.{i}");
        for norm in ["layer_norm1", "layer_norm2"] {
            list.affine(&format!("{layer}.{norm}"), &[width]);
        }
        for linear in ["q_proj", "k_proj", "v_proj", "out_proj"] {
            list.affine(&format!("{layer}.self_attn.{linear}"), &[width, width]);
        }
        list.affine(&format!("{layer}.mlp.fc1"), &[config.ff, width]);
        list.affine(&format!("{layer}.mlp.fc2"), &[width, config.ff]);
    }
    list.affine("text_model.final_layer_norm", &[width]);
    for needed in &mut list.0 {
        needed.aliases.extend(needed.name.strip_prefix(PREFIX).map(str::to_string));
    }
    list.0
}

/// The decoder of the VAE.
pub fn vae_decoder(config: &VaeConfig) -> Vec<Needed> {
    let mut list = List::default();
    let latent = config.latent_channels;
    if config.use_post_quant_conv {
        list.affine("post_quant_conv", &[latent, latent, 1, 1]);
    }
    let top = config.top_channels();
    list.affine("decoder.conv_in", &[top, latent, 3, 3]);

    resnet(&mut list, "decoder.mid_block.resnets.0", top, top);
    if config.mid_attention {
        let attention = "decoder.mid_block.attentions.0";
        list.affine(&format!("{attention}.group_norm"), &[top]);
        // Files from before diffusers 0.17 have the second name.
        for (name, old) in [("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")]
        {
            list.tensor(format!("{attention}.{name}.weight"), &[top, top]).aliases =
                vec![format!("{attention}.{old}.weight")];
            list.tensor(format!("{attention}.{name}.bias"), &[top]).aliases =
                vec![format!("{attention}.{old}.bias")];
        }
    }
    resnet(&mut list, "decoder.mid_block.resnets.1", top, top);

    let mut channels = top;
    for (i, &next) in config.block_channels.iter().rev().enumerate() {
        for k in 0..=config.layers_per_block {
            resnet(&mut list, &format!("decoder.up_blocks.{i}.resnets.{k}"), channels, next);
            channels = next;
        }
        if i + 1 < config.block_channels.len() {
            list.affine(&format!("decoder.up_blocks.{i}.upsamplers.0.conv"), &[next, next, 3, 3]);
        }
    }
    list.affine("decoder.conv_norm_out", &[channels]);
    list.affine("decoder.conv_out", &[config.out_channels, channels, 3, 3]);
    list.0
}

fn resnet(list: &mut List, name: &str, input: usize, output: usize) {
    list.affine(&format!("{name}.norm1"), &[input]);
    list.affine(&format!("{name}.conv1"), &[output, input, 3, 3]);
    list.affine(&format!("{name}.norm2"), &[output]);
    list.affine(&format!("{name}.conv2"), &[output, output, 3, 3]);
    if input != output {
        list.affine(&format!("{name}.conv_shortcut"), &[output, input, 1, 1]);
    }
}
