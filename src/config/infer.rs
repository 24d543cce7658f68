//! Configs of parts that lie in a file without one: sizes are what the shapes of tensors say, the rest is what the folder says
//! that the file is used with.
//!
//! What shapes cannot say is taken from that folder's config as it is: epsilons, the VAE's scaling, how CLIP pools. The sampler
//! belongs to the transformer: one that is distilled (schnell) or not (dev), told by the guidance embedder, has its own.

use std::path::Path;

use super::{ClipConfig, FluxConfig, PipelineConfig, SchedulerConfig, T5Config, VaeConfig};
use crate::weights::{ModelFiles, Part, PartFiles};
use crate::{Error, Result};

/// As [`super::fields`] has it of layers.
const MOST_LAYERS: usize = 1 << 9;

/// Channels of a head in every CLIP.
const CLIP_HEAD: usize = 64;

impl PipelineConfig {
    /// This config of a folder with its parts as they are in `files`, where these lie elsewhere.
    ///
    /// # Errors
    /// [`Error::Weights`] for a file that lacks a tensor, and for parts that do not fit together; [`Error::Unsupported`] for a
    /// model with no code here.
    pub(crate) fn with_files(self, files: &ModelFiles) -> Result<Self> {
        let config = self.sized(files)?;
        config.check_agreement_in(files)?;
        Ok(config)
    }

    /// That the parts in `files` fit together.
    pub(crate) fn check_agreement_in(&self, files: &ModelFiles) -> Result<()> {
        let in_folder = || files.dir().join("transformer/config.json");
        let path = files.instead(Part::Transformer).map_or_else(in_folder, |file| file.path().to_path_buf());
        self.check_agreement(&path)
    }

    /// The same, whether or not they fit together.
    pub(crate) fn sized(mut self, files: &ModelFiles) -> Result<Self> {
        let dir = files.dir();
        if let Some(file) = files.instead(Part::Transformer) {
            let flux = Shapes(file).flux(&self.flux)?;
            tracing::info!("{}: {}", file.path().display(), flux.in_words());
            if flux.guidance != self.flux.guidance {
                self.scheduler = SchedulerConfig::published(flux.guidance);
                tracing::info!("the sampler is that of {}", flux.family());
            }
            let (steps, tokens) = flux.usual();
            self.steps = steps;
            self.t5_length = super::t5_length(&dir.join("tokenizer_2/tokenizer_config.json"), tokens)?;
            self.flux = flux;
        }
        if let Some(file) = files.instead(Part::T5) {
            self.t5 = Shapes(file).t5(&self.t5)?;
        }
        if let Some(file) = files.instead(Part::Clip) {
            self.clip = Shapes(file).clip(&self.clip)?;
        }
        if let Some(file) = files.instead(Part::Vae) {
            self.vae = Shapes(file).vae(&self.vae)?;
        }
        Ok(self)
    }
}

impl FluxConfig {
    /// The model of this family that most are made from.
    pub(crate) fn family(&self) -> &'static str {
        if self.guidance { "FLUX.1-dev" } else { "FLUX.1-schnell" }
    }

    /// What it is, for people.
    #[doc(hidden)]
    pub fn in_words(&self) -> String {
        let published = PipelineConfig::schnell().flux;
        let of_its_size = FluxConfig { guidance: self.guidance, ..published } == *self;
        let kind = if self.guidance { "with" } else { "without" };
        let name = if of_its_size { self.family() } else { "a FLUX transformer of another size" };
        format!(
            "{name}: {} double and {} single blocks of width {}, {kind} guidance embedder",
            self.layers,
            self.single_layers,
            self.width()
        )
    }
}

impl SchedulerConfig {
    /// Of FLUX.1-dev, or of FLUX.1-schnell.
    fn published(guidance: bool) -> SchedulerConfig {
        let schnell = PipelineConfig::schnell().scheduler;
        match guidance {
            true => SchedulerConfig { shift: 3.0, dynamic_shifting: true, ..schnell },
            false => schnell,
        }
    }
}

/// The shapes of a file's tensors, by the names that the networks use.
struct Shapes<'a>(&'a PartFiles);

impl Shapes<'_> {
    fn path(&self) -> &Path {
        self.0.path()
    }

    /// Of a tensor of `N` dimensions that there must be.
    fn of<const N: usize>(&self, name: &str) -> Result<[usize; N]> {
        let found = self.0.shape(name)?;
        let expected = || format!("expected {N} dimensions");
        let wrong =
            |what: String| Error::weights(self.path(), format!("tensor {name} {what}: {}", expected()));
        match found {
            None => Err(wrong("is missing, by which its size is told".to_string())),
            // Trailing ones count for nothing.
            Some(mut shape) => {
                while shape.len() > N && shape.last() == Some(&1) {
                    shape.pop();
                }
                match <[usize; N]>::try_from(shape) {
                    Ok(shape) if !shape.contains(&0) => Ok(shape),
                    Ok(shape) => Err(wrong(format!("has the shape {shape:?}"))),
                    Err(shape) => Err(wrong(format!("has the shape {shape:?}"))),
                }
            }
        }
    }

    /// How many layers there are, by tensors of which each has all: one that is missing makes the model no smaller.
    fn count<const N: usize>(&self, names: impl Fn(usize) -> [String; N]) -> Result<usize> {
        let is_there = |i: &usize| names(*i).iter().any(|name| self.0.has(name));
        match (0..=MOST_LAYERS).rev().find(is_there) {
            None => Ok(0),
            Some(last) if last < MOST_LAYERS => Ok(last + 1),
            Some(last) => {
                Err(self.wrong(format!("a layer of the number {last}: expected at most {MOST_LAYERS}")))
            }
        }
    }

    fn wrong(&self, what: String) -> Error {
        Error::weights(self.path(), what)
    }

    /// `whole` in parts of `part`.
    fn quotient(&self, whole: usize, part: usize, what: &str) -> Result<usize> {
        match whole.is_multiple_of(part) {
            true => Ok(whole / part),
            false => Err(self.wrong(format!("{what}: {whole} is no multiple of {part}"))),
        }
    }

    fn flux(&self, base: &FluxConfig) -> Result<FluxConfig> {
        if self.0.has_module("distilled_guidance_layer") {
            let what = "Chroma, whose modulations come from a network of their own, is not supported; FLUX.1-schnell and -dev are";
            return Err(Error::Unsupported(format!("{}: {what}", self.path().display())));
        }
        let [width, in_channels] = self.of("x_embedder.weight")?;
        let [_, joint_width] = self.of("context_embedder.weight")?;
        let [_, pooled_width] = self.of("time_text_embed.text_embedder.linear_1.weight")?;
        let [out_channels, _] = self.of("proj_out.weight")?;
        let count = |blocks: &str, out: &str| {
            let names =
                |i| ["attn.norm_q", "attn.to_q", out].map(|name| format!("{blocks}.{i}.{name}.weight"));
            self.count(names)
        };
        let layers = count("transformer_blocks", "attn.to_out.0")?;
        let single_layers = count("single_transformer_blocks", "proj_out")?;
        if layers == 0 || single_layers == 0 {
            let what = format!("{layers} double and {single_layers} single blocks: a part of a transformer");
            return Err(self.wrong(what));
        }
        let [head_dim] = self.of("transformer_blocks.0.attn.norm_q.weight")?;
        let published = PipelineConfig::schnell().flux;
        let sum = |axes: [usize; 3]| axes.iter().sum::<usize>();
        let axes = [base.axes, published.axes].into_iter().find(|axes| sum(*axes) == head_dim);
        let Some(axes) = axes else {
            return Err(Error::Unsupported(format!(
                "{}: heads of {head_dim} channels, of which no file says how positions turn them; name its folder in the \
                 diffusers layout with --model",
                self.path().display()
            )));
        };
        Ok(FluxConfig {
            heads: self.quotient(width, head_dim, "the width of heads")?,
            head_dim,
            layers,
            single_layers,
            in_channels,
            out_channels,
            joint_width,
            pooled_width,
            axes,
            theta: published.theta,
            guidance: self.0.has("time_text_embed.guidance_embedder.linear_1.weight"),
        })
    }

    fn t5(&self, base: &T5Config) -> Result<T5Config> {
        let first = |name: &str| format!("encoder.block.0.layer.{name}.weight");
        let [vocab_rows, width] = self.of("shared.weight")?;
        let [inner, _] = self.of(&first("0.SelfAttention.q"))?;
        let [buckets, heads] = self.of(&first("0.SelfAttention.relative_attention_bias"))?;
        let [ff, _] = self.of(&first("1.DenseReluDense.wi_0"))?;
        let names = ["0.layer_norm", "0.SelfAttention.q", "1.layer_norm", "1.DenseReluDense.wo"];
        let layers = self.count(|i| names.map(|name| format!("encoder.block.{i}.layer.{name}.weight")))?;
        if buckets != base.buckets {
            return Err(self.wrong(format!("{buckets} buckets of positions: expected {}", base.buckets)));
        }
        let head_dim = self.quotient(inner, heads, "the width of T5's heads")?;
        Ok(T5Config { width, head_dim, heads, ff, layers, vocab_rows, ..base.clone() })
    }

    fn clip(&self, base: &ClipConfig) -> Result<ClipConfig> {
        let first = |name: &str| format!("text_model.encoder.layers.0.{name}.weight");
        let [vocab_rows, width] = self.of("text_model.embeddings.token_embedding.weight")?;
        let [positions, _] = self.of("text_model.embeddings.position_embedding.weight")?;
        let [ff, _] = self.of(&first("mlp.fc1"))?;
        let names = ["layer_norm1", "self_attn.q_proj", "mlp.fc2"];
        let layers =
            self.count(|i| names.map(|name| format!("text_model.encoder.layers.{i}.{name}.weight")))?;
        let heads = match base.width == width {
            true => base.heads,
            false => self.quotient(width, CLIP_HEAD, "the width of CLIP's heads")?,
        };
        Ok(ClipConfig { width, heads, ff, layers, positions, vocab_rows, ..base.clone() })
    }

    fn vae(&self, base: &VaeConfig) -> Result<VaeConfig> {
        let resnet = |level: usize, i: usize| format!("decoder.up_blocks.{level}.resnets.{i}.conv1.weight");
        let [_, latent_channels, _, _] = self.of("decoder.conv_in.weight")?;
        let levels = self.count(|level| [resnet(level, 0), resnet(level, 1)])?;
        let channels = |level: usize| self.of::<4>(&resnet(level, 0)).map(|[out, ..]| out);
        let block_channels = (0..levels).rev().map(channels).collect::<Result<Vec<_>>>()?;
        if let Some(channels) = block_channels.iter().find(|channels| *channels % base.groups != 0) {
            let groups = base.groups;
            return Err(
                self.wrong(format!("{channels} channels are no multiple of the {groups} groups of norms"))
            );
        }
        let resnets = self.count(|i| [resnet(0, i), resnet(levels.saturating_sub(1), i)])?;
        Ok(VaeConfig {
            latent_channels,
            block_channels,
            layers_per_block: resnets.saturating_sub(1),
            mid_attention: self.0.has("decoder.mid_block.attentions.0.to_q.weight"),
            use_post_quant_conv: self.0.has("post_quant_conv.weight"),
            ..base.clone()
        })
    }
}
