//! What a generation will need, computed before anything loads: every region of the arena with its bytes and lifetime,
//! the pinned host memory, the work. Pure: no device, no weights, only configs and a shape.

use std::fmt;

use crate::arena::{Layout, Lifetime, Phase, Slot};
use crate::config::PipelineConfig;
use crate::flux::{Extent, Flux, SINUSOID_WIDTH};
use crate::nn::Quantize;
use crate::text::clip::Clip;
use crate::text::t5::T5;
use crate::vae::Vae;
use crate::weights::upload::{Job, Staging};
use crate::weights::{Needed, Part};
use crate::{Error, Result};

/// Longest side of an image in pixels: position tables and 32-bit pixel counts stay far from their limits.
pub const MAX_SIDE: usize = 8192;
/// Most steps of one generation.
pub const MAX_STEPS: usize = 1000;
/// Longest T5 prompt in tokens.
pub const MAX_T5_LENGTH: usize = 512;

/// What decides the sizes of all buffers. One pipeline serves one shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Pixels; a multiple of 16.
    pub width: usize,
    /// Pixels; a multiple of 16.
    pub height: usize,
    /// Denoising steps.
    pub steps: usize,
    /// T5 tokens, padding included.
    pub t5_length: usize,
    /// Whether a negative prompt takes part: a second pass of everything but the VAE.
    pub true_cfg: bool,
}

impl Default for Shape {
    fn default() -> Self {
        Shape { width: 1024, height: 1024, steps: 4, t5_length: 256, true_cfg: false }
    }
}

impl Shape {
    /// Refuses what no plan can be made for.
    ///
    /// # Errors
    /// [`Error::Input`] naming the number and its range.
    pub fn check(&self, config: &PipelineConfig) -> Result<()> {
        let multiple = 2 * config.vae.pixels_per_latent();
        for (what, side) in [("width", self.width), ("height", self.height)] {
            if side == 0 || side % multiple != 0 || side > MAX_SIDE {
                return Err(Error::Input(format!(
                    "{what} {side} is not a multiple of {multiple} between {multiple} and {MAX_SIDE}; the nearest are \
                     {} and {}",
                    (side / multiple * multiple).clamp(multiple, MAX_SIDE),
                    (side / multiple * multiple + multiple).clamp(multiple, MAX_SIDE)
                )));
            }
        }
        if self.steps == 0 || self.steps > MAX_STEPS {
            return Err(Error::Input(format!("{} steps; it takes 1 to {MAX_STEPS}", self.steps)));
        }
        if self.t5_length == 0 || self.t5_length > MAX_T5_LENGTH {
            return Err(Error::Input(format!(
                "a T5 length of {}; it takes 1 to {MAX_T5_LENGTH}",
                self.t5_length
            )));
        }
        Ok(())
    }

    /// Passes: 1, or 2 with a negative prompt.
    pub fn branches(&self) -> usize {
        1 + self.true_cfg as usize
    }

    /// Height and width in image tokens.
    pub fn token_grid(&self, config: &PipelineConfig) -> (usize, usize) {
        let pixels = 2 * config.vae.pixels_per_latent();
        (self.height / pixels, self.width / pixels)
    }

    /// Image tokens.
    pub fn image_tokens(&self, config: &PipelineConfig) -> usize {
        let (height, width) = self.token_grid(config);
        height * width
    }
}

/// Multiply-adds times two of one generation, by phase.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// CLIP.
    pub clip: u64,
    /// T5.
    pub t5: u64,
    /// Modulation of all steps.
    pub modulation: u64,
    /// One step.
    pub step: u64,
    /// VAE decode.
    pub decode: u64,
}

impl Work {
    fn of(config: &PipelineConfig, shape: &Shape) -> Work {
        let n = |x: usize| x as u64;
        let (text, image) = (n(shape.t5_length), n(shape.image_tokens(config)));
        let linear = |needed: &Needed| -> u64 { if needed.shape.len() == 2 { needed.elements() } else { 0 } };
        let sum = |list: &[Needed], wanted: &dyn Fn(&str) -> bool| -> u64 {
            list.iter().filter(|t| wanted(&t.name)).map(linear).sum()
        };
        let attention = |tokens: u64, width: usize| 4 * tokens * tokens * n(width);

        let clip_tokens = n(config.clip.positions);
        let clip = sum(&Part::Clip.inventory(config), &|name| !name.contains("embedding"));
        let t5 =
            sum(&Part::T5.inventory(config), &|name| name.contains("block") && !name.contains("relative"));
        let flux = Part::Transformer.inventory(config);
        let few = |name: &str| {
            name.contains("norm1")
                || name.contains(".norm.linear")
                || name.contains("norm_out")
                || name.contains("time_text")
        };
        let text_only = |name: &str| ["add_", "context"].iter().any(|part| name.contains(part)) && !few(name);
        let single = |name: &str| name.starts_with("single_") && !few(name);
        let image_only = |name: &str| !few(name) && !text_only(name) && !single(name);
        let joint = n(config.flux.layers + config.flux.single_layers);
        let step = 2 * (text * sum(&flux, &text_only) + image * sum(&flux, &image_only))
            + 2 * (text + image) * sum(&flux, &single)
            + joint * attention(text + image, config.flux.width());
        let branches = n(shape.branches());
        Work {
            clip: branches
                * (2 * clip_tokens * clip
                    + n(config.clip.layers) * attention(clip_tokens, config.clip.width)),
            t5: branches * (2 * text * t5 + n(config.t5.layers) * attention(text, config.t5.inner())),
            modulation: branches * 2 * n(shape.steps) * sum(&flux, &few),
            step: branches * step,
            decode: Self::decode(config, 4 * image),
        }
    }

    fn decode(config: &PipelineConfig, latent_pixels: u64) -> u64 {
        let mut flops = 0;
        for needed in Part::Vae.inventory(config) {
            let level = needed
                .name
                .strip_prefix("decoder.up_blocks.")
                .and_then(|rest| rest.split('.').next()?.parse::<u32>().ok())
                .unwrap_or(if needed.name.contains("conv_out") {
                    config.vae.block_channels.len() as u32 - 1
                } else {
                    0
                });
            // The convolution behind an upsampling runs at the size above.
            let level = level + needed.name.contains("upsamplers") as u32;
            if needed.shape.len() >= 2 {
                flops += 2 * (latent_pixels << (2 * level)) * needed.elements();
            }
        }
        let mid = config.vae.mid_attention as u64;
        flops + mid * 4 * latent_pixels * latent_pixels * config.vae.top_channels() as u64
    }

    /// All of one generation.
    pub fn total(&self, steps: usize) -> u64 {
        self.clip + self.t5 + self.modulation + self.step * steps as u64 + self.decode
    }
}

/// See the module's text.
#[derive(Debug)]
pub struct Plan {
    /// The model.
    pub config: PipelineConfig,
    /// The request's shape.
    pub shape: Shape,
    /// How Linear layers are kept.
    pub quantize: Quantize,
    /// Every region of the arena.
    pub layout: Layout,
    /// Multiply-adds.
    pub work: Work,
    pub(crate) jobs: Vec<Job>,
    pub(crate) staging: Staging,
    pub(crate) clip: Clip,
    pub(crate) t5: T5,
    pub(crate) flux: Flux,
    pub(crate) vae: Vae,
    /// Counts non-finite latents.
    pub(crate) nonfinite: Slot<u32>,
}

impl Plan {
    /// Plans a generation.
    ///
    /// # Errors
    /// [`Error::Input`] for a shape that cannot be, [`Error::Unsupported`] for a model that the kernels cannot run.
    pub fn new(config: &PipelineConfig, shape: Shape, quantize: Quantize) -> Result<Plan> {
        shape.check(config)?;
        let (mut layout, mut jobs) = (Layout::default(), Vec::new());
        let (height, width) = shape.token_grid(config);
        let clip = Clip::plan(&config.clip, shape.branches(), &mut layout, &mut jobs)?;
        let t5 = T5::plan(&config.t5, shape.t5_length, shape.branches(), quantize, &mut layout, &mut jobs)?;
        let extent = Extent {
            text_tokens: shape.t5_length,
            image_tokens: shape.image_tokens(config),
            steps: shape.steps,
            branches: shape.branches(),
        };
        let flux = Flux::plan(&config.flux, extent, quantize, &mut layout, &mut jobs)?;
        let vae = Vae::plan(&config.vae, 2 * height, 2 * width, &mut layout, &mut jobs)?;
        let nonfinite = layout.region("nonfinite", 1, Lifetime::span(Phase::Steps, Phase::Decode));
        // Embedding tables stay on disk; no other tensor is larger than the ones that have jobs.
        let largest = Part::ALL
            .iter()
            .flat_map(|part| part.inventory(config))
            .filter(|t| !t.name.contains("embedding") && !t.name.contains("shared"))
            .map(|t| t.elements() as usize / t.shape[0] * t.shape[0].next_multiple_of(8) * 4)
            .max()
            .unwrap_or(0);
        let staging = Staging::plan(&mut layout, largest);
        layout.place();
        let work = Work::of(config, &shape);
        Ok(Plan {
            config: config.clone(),
            shape,
            quantize,
            layout,
            work,
            jobs,
            staging,
            clip,
            t5,
            flux,
            vae,
            nonfinite,
        })
    }

    /// Size of the one device allocation.
    pub fn arena_bytes(&self) -> u64 {
        self.layout.total_bytes() as u64
    }

    /// Bytes of NF4 codes and absmax of the transformer and of T5.
    pub fn nf4_bytes(&self) -> (u64, u64) {
        (self.flux.nf4_bytes(), self.t5.nf4_bytes())
    }

    /// Pinned host memory: while loading, and while generating.
    pub fn host_bytes(&self) -> (u64, u64) {
        (self.staging.host_bytes() as u64, HostLayout::of(self).total as u64)
    }

    /// Refuses a budget that the arena exceeds.
    ///
    /// # Errors
    /// [`Error::Capacity`] with both numbers.
    pub fn check_budget(&self, budget_bytes: u64) -> Result<()> {
        if self.arena_bytes() <= budget_bytes {
            return Ok(());
        }
        Err(Error::Capacity {
            what: format!("a {} x {} image with {} weights", self.shape.width, self.shape.height, self.quantize),
            needed_bytes: self.arena_bytes(),
            available_bytes: budget_bytes,
            advice: "raise --budget, ask for a smaller image, or keep --quantize nf4; `schnell plan` lists every region"
                .to_string(),
        })
    }
}

/// Where a generation's inputs and outputs lie in its one pinned host buffer, in bytes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct HostLayout {
    pub clip: usize,
    pub t5: usize,
    pub sinusoids: usize,
    pub guidance: usize,
    pub latents: usize,
    pub latents_bf16: usize,
    pub nonfinite: usize,
    pub rgb: usize,
    pub total: usize,
}

impl HostLayout {
    pub fn of(plan: &Plan) -> HostLayout {
        let mut total = 0;
        let mut take = |bytes: usize| {
            let at = total;
            total += bytes.next_multiple_of(crate::arena::ALIGNMENT);
            at
        };
        HostLayout {
            clip: take(plan.shape.branches() * plan.clip.x.num_bytes()),
            t5: take(plan.shape.branches() * plan.t5.x.num_bytes()),
            sinusoids: take(plan.shape.steps * SINUSOID_WIDTH * 4),
            guidance: take(SINUSOID_WIDTH * 4),
            latents: take(plan.flux.buffers.latents.num_bytes()),
            latents_bf16: take(plan.flux.buffers.latents_bf16.num_bytes()),
            nonfinite: take(4),
            rgb: take(plan.vae.rgb.num_bytes()),
            total: 0,
        }
        .with_total(total)
    }

    fn with_total(self, total: usize) -> Self {
        HostLayout { total, ..self }
    }

    /// Bytes of the buffer through which stages are read back for `--dump`.
    pub fn dump_bytes(plan: &Plan) -> usize {
        let image = plan.vae.image.num_bytes();
        let context = plan.t5.context.num_bytes();
        image.max(context).max(plan.flux.buffers.latents.num_bytes()).max(plan.clip.pooled.num_bytes())
    }
}

/// `1.5 GiB`, `20.3 MiB`, `512 B`.
pub fn human_bytes(bytes: u64) -> String {
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..1_048_576 => format!("{:.1} KiB", bytes as f64 / 1024.0),
        1_048_576..1_073_741_824 => format!("{:.1} MiB", bytes as f64 / 1_048_576.0),
        _ => format!("{:.2} GiB", bytes as f64 / 1_073_741_824.0),
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Shape { width, height, steps, t5_length, .. } = self.shape;
        writeln!(f, "{width} x {height}, {steps} steps, {t5_length} T5 tokens, weights {}", self.quantize)?;
        writeln!(f)?;
        writeln!(f, "{:<22} {:>14} {:>14}   alive", "region", "offset", "bytes")?;
        let mut regions: Vec<_> = self.layout.regions().iter().filter(|r| r.bytes > 0).collect();
        regions.sort_by_key(|r| (r.lifetime != Lifetime::ALWAYS, r.offset, r.lifetime.first));
        for region in &regions {
            let alive = match region.lifetime {
                Lifetime::ALWAYS => "always".to_string(),
                Lifetime { first, last } if first == last => first.to_string(),
                Lifetime { first, last } => format!("{first} to {last}"),
            };
            writeln!(f, "{:<22} {:>14} {:>14}   {alive}", region.name, region.offset, region.bytes)?;
        }
        let kind = |always: bool| -> u64 {
            regions
                .iter()
                .filter(|r| (r.lifetime == Lifetime::ALWAYS) == always)
                .map(|r| r.bytes as u64)
                .sum()
        };
        let (flux, t5) = self.nf4_bytes();
        let (loading, running) = self.host_bytes();
        writeln!(f)?;
        let mut line =
            |what: &str, bytes: u64| writeln!(f, "{what:<37} {bytes:>14}   {}", human_bytes(bytes));
        line("always resident", kind(true))?;
        line("  of it NF4 of the transformer", flux)?;
        line("  of it NF4 of T5", t5)?;
        line("buffers, if none shared bytes", kind(false))?;
        line("arena: the one device allocation", self.arena_bytes())?;
        line("pinned host memory while loading", loading)?;
        line("pinned host memory while generating", running)?;
        writeln!(f)?;
        let tera = |flops: u64| flops as f64 * 1e-12;
        writeln!(
            f,
            "work in TFLOP: clip {:.3}, t5 {:.3}, modulation {:.3}, each step {:.3}, decode {:.3}; in all {:.3}",
            tera(self.work.clip),
            tera(self.work.t5),
            tera(self.work.modulation),
            tera(self.work.step),
            tera(self.work.decode),
            tera(self.work.total(self.shape.steps))
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schnell(side: usize) -> Plan {
        let shape = Shape { width: side, height: side, ..Shape::default() };
        Plan::new(&PipelineConfig::schnell(), shape, Quantize::Nf4).unwrap()
    }

    #[test]
    fn nf4_weights_of_schnell_have_the_published_size() {
        // Parameters of all Linears, packed two a byte, and an f32 absmax per 64.
        let size = |parameters: u64| parameters / 2 + parameters / 64 * 4;
        assert_eq!(schnell(512).nf4_bytes(), (size(11_888_099_328), size(4_630_511_616)));
        assert_eq!(size(11_888_099_328), 5_944_049_664 + 743_006_208);
        assert_eq!(size(4_630_511_616), 2_315_255_808 + 289_406_976);
    }

    #[test]
    fn work_of_a_step_is_what_the_literature_counts() {
        let tera = |side: usize| schnell(side).work.step as f64 * 1e-12;
        assert!((tera(1024) - 69.5).abs() < 0.7, "{}", tera(1024));
        assert!((tera(512) - 17.7).abs() < 0.3, "{}", tera(512));
        let decode = schnell(1024).work.decode as f64 * 1e-12;
        assert!((decode - 10.47).abs() < 0.2, "{decode}");
    }

    #[test]
    fn shapes_that_cannot_be_are_refused_with_the_nearest_that_can() {
        let config = PipelineConfig::schnell();
        let base = Shape::default();
        let refused = |shape: Shape| Plan::new(&config, shape, Quantize::Nf4).unwrap_err().to_string();
        assert!(refused(Shape { width: 500, ..base }).contains("496 and 512"));
        assert!(refused(Shape { height: 0, ..base }).contains("height 0"));
        assert!(refused(Shape { width: 8208, ..base }).contains("8192"));
        assert!(refused(Shape { steps: 0, ..base }).contains("0 steps"));
        assert!(refused(Shape { t5_length: 513, ..base }).contains("513"));
    }

    #[test]
    fn a_budget_below_the_arena_is_refused_with_both_numbers() {
        let plan = schnell(512);
        let need = plan.arena_bytes();
        plan.check_budget(need).unwrap();
        let error = plan.check_budget(need - 1).unwrap_err();
        assert!(matches!(error, Error::Capacity { needed_bytes, .. } if needed_bytes == need));
    }

    #[test]
    fn the_printed_plan_names_every_region() {
        let plan = schnell(1024);
        let text = plan.to_string();
        for region in plan.layout.regions().iter().filter(|r| r.bytes > 0) {
            assert!(
                text.contains(&region.name) && text.contains(&region.bytes.to_string()),
                "{}",
                region.name
            );
        }
        assert!(text.contains(&plan.arena_bytes().to_string()));
    }
}
