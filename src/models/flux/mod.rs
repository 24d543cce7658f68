//! FLUX.1: two text encoders, a transformer, a decoder, and how they make one generation (`record`).
//!
//! Values that change from request to request or from step to step (times, seeds' noise, guidance, the row of a pooled vector)
//! lie in device memory: the program sends them first, and one step's operations are those of every step.
//!
//! Tensors are called as diffusers and transformers publish them, and each name is written at one place: the path of a block
//! (`"transformer_blocks.{block}"`), and what follows it, behind the path filled in (`"{block}.attn.to_q"`). Whoever looks for a
//! published name finds it. `tests/published.rs` holds the sources to that.

pub(crate) mod clip;
pub(crate) mod t5;
pub(crate) mod transformer;
pub(crate) mod vae;

use half::bf16;

use crate::config::PipelineConfig;
use crate::device::{Capability, View};
use crate::kernels::count_nonfinite::CountNonfinite;
use crate::kernels::euler_step::EulerStep;
use crate::kernels::next_step::NextStep;
use crate::models::layers::{Network, Precision, Quantize, Weight, Weights};
use crate::pipeline::Shape;
use crate::program::{HostRange, Recorder, STREAM, When};
use crate::weights::{Needed, Part};
use crate::{Error, Result};

use transformer::{Extent, Modulated, Modulations, SINUSOID_WIDTH, Transformer};

/// How the stages of the prompt and of the negative prompt are called in dumps.
pub(crate) const BRANCHES: [&str; 2] = ["", "neg_"];

/// How dumps call what the decoder leaves.
pub(crate) const IMAGE: &str = "vae_out";
/// How dumps call what a step leaves.
pub(crate) const LATENTS: &str = "latents";

/// What a program depends on, beside config, shape and machine.
#[derive(Clone, Copy, Debug)]
pub(crate) struct How {
    pub quantize: Quantize,
    pub precision: Precision,
    /// Whether the host gets pixels as floats, too.
    pub floats: bool,
}

/// What the host fills in before a run, in the pinned buffer. By branch where there may be two.
#[derive(Clone, Debug, Default)]
pub(crate) struct Inputs {
    /// f32 `[positions, width]`: token plus position embeddings.
    pub clip: Vec<HostRange>,
    /// i32 `[1]`: at which token CLIP is pooled.
    pub clip_index: Vec<HostRange>,
    /// f32 `[tokens, width]`: embeddings.
    pub t5: Vec<HostRange>,
    /// f32: [`t5::relative_bias`].
    pub t5_bias: HostRange,
    /// f32 `[text + image tokens, head_dim / 2]` each.
    pub rope_cos: HostRange,
    pub rope_sin: HostRange,
    /// f32 `[steps, 256]`: sinusoids of the steps' times.
    pub sinusoids: HostRange,
    /// f32 `[256]`: sinusoid of the guidance scale, where the model takes one.
    pub guidance: Option<HostRange>,
    /// f32 `[image tokens, in_channels]`: the noise.
    pub latents: HostRange,
    /// The same, rounded to bf16.
    pub latents_bf16: HostRange,
    /// f32 `[steps]`: every step's length in sigma.
    pub dt: HostRange,
    /// f32 `[1]`, with two branches.
    pub true_cfg_scale: Option<HostRange>,
    /// f32 `[branches, steps, modulation width]`: what modulation gives, as long as it is not too large.
    pub modulations: Option<HostRange>,
    /// What the encoders give: the host fills it in when it has it, and finds it here when it had not.
    pub pooled: Vec<HostRange>,
    pub context: Vec<HostRange>,
}

/// What the host reads after a run, in the pinned buffer.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outputs {
    /// u8 `[height, width, 3]`.
    pub rgb: HostRange,
    /// f32 of the same, in [0, 1], if it is wanted.
    pub unit_rgb: Option<HostRange>,
    /// f32 `[image tokens, in_channels]`: what the last step gives.
    pub latents: HostRange,
    /// u32, one for each of `places`: how many numbers were not finite.
    pub nonfinite: HostRange,
    pub places: Vec<String>,
}

/// The tensors that a model of this config needs, in the order in which the networks ask for them.
///
/// # Errors
/// [`Error::Unsupported`] for a model that the kernels cannot run.
pub(crate) fn needed(config: &PipelineConfig) -> Result<Vec<(Part, Needed)>> {
    Ok(weights(config)?.into_iter().map(|weight| (weight.part, weight.needed)).collect())
}

/// The same, and what becomes of each on a device, where Linears are in NF4.
///
/// # Errors
/// As [`needed`].
pub(crate) fn weights(config: &PipelineConfig) -> Result<Vec<Weight>> {
    // Of the smallest picture: weights do not depend on the shape.
    let side = 2 * config.vae.pixels_per_latent();
    let shape = Shape { width: side, height: side, steps: 1, t5_length: 1, true_cfg: false };
    let how = How { quantize: Quantize::Nf4, precision: Precision::Full, floats: false };
    let (mut recorder, mut weights) = (Recorder::fresh(&Capability::unknown()), Weights::default());
    record(&mut recorder, &mut weights, config, &shape, how)?;
    Ok(weights.list)
}

/// Records a generation.
///
/// # Errors
/// [`Error::Unsupported`] for a model that the kernels cannot run.
pub(crate) fn record(
    recorder: &mut Recorder,
    weights: &mut Weights,
    config: &PipelineConfig,
    shape: &Shape,
    How { quantize, precision, floats }: How,
) -> Result<(Inputs, Outputs)> {
    let mut inputs = Inputs::default();
    let mut guards = Guards::new(recorder, shape)?;

    let encoded = Encoded::new(recorder, config, shape)?;
    recorder.stage_when(When::Encoded, "recall", 1)?;
    recorder.fill(&guards.counters, 0)?;
    encoded.send(recorder, &mut inputs, shape.branches())?;
    recorder.stage_when(When::Encoding, "clip", 1)?;
    recorder.fill(&guards.counters, 0)?;
    // CLIP is small and sensitive: never quantized, as in the reference.
    let mut net = Network::new(recorder, weights, Part::Clip, Quantize::None, config);
    clip_stage(&mut net, config, shape, &encoded, &mut inputs, &mut guards)?;
    recorder.stage_when(When::Encoding, "t5", 1)?;
    let mut net = Network::new(recorder, weights, Part::T5, quantize, config);
    t5_stage(&mut net, config, shape, &encoded, &mut inputs, &mut guards)?;
    encoded.fetch(recorder, &inputs)?;
    let Encoded { pooled, context } = encoded;
    let mut net =
        Network::new(recorder, weights, Part::Transformer, quantize, config).with_precision(precision);
    let steps = Steps::new(&mut net, config, shape)?;
    net.recorder.stage("prepare", 1)?;
    steps.send(&mut net, &mut inputs)?;
    let texts = steps.embed_texts(&mut net, &context)?;
    net.recorder.stage_when(steps.modulating(), "modulation", 1)?;
    let modulations = steps.embed(&mut net, &pooled, &mut inputs)?;
    if steps.can_remember() {
        net.recorder.stage_when(When::Modulated, "modulation", 1)?;
        inputs.modulations = Some(net.recorder.send(&steps.table)?);
    }
    let counted = guards.steps(shape.steps)?;
    net.recorder.stage_when(steps.modulating(), "step", 1)?;
    steps.step(&mut net, &texts, &counted, Some(&modulations))?;
    if let Some(range) = inputs.modulations {
        net.recorder.fetch_to(range, &steps.table)?;
    }
    if shape.steps > 1 || steps.can_remember() {
        net.recorder.stage_begun(steps.modulating(), "step", shape.steps)?;
        steps.step(&mut net, &texts, &counted, None)?;
    }

    recorder.stage("vae", 1)?;
    // Here and not with the picture: they would lie beside the decoder's largest maps.
    let latents = recorder.fetch(&steps.latents)?;
    let (height, width) = shape.token_grid(config);
    let mut net = Network::new(recorder, weights, Part::Vae, Quantize::None, config);
    let picture = vae::record(&mut net, &config.vae, [2 * height, 2 * width], &steps.latents)?;
    guards.all(recorder, "the decoded picture", &picture.image)?;

    recorder.stage("copy", 1)?;
    let rgb = recorder.fetch(&picture.rgb)?;
    let nonfinite = recorder.fetch(&guards.counters)?;
    let unit_rgb = floats.then(|| vae::fetch_floats(recorder, &picture)).transpose()?;
    // To the end: a caller's own memory on the device is filled from it.
    recorder.keep_f32(IMAGE.to_string(), &picture.image, &[shape.height, shape.width, 3])?;
    Ok((inputs, Outputs { rgb, unit_rgb, latents, nonfinite, places: guards.places }))
}

/// Counters of numbers that are not finite, one for every place where they are looked for.
struct Guards {
    counters: View<u32>,
    places: Vec<String>,
}

impl Guards {
    fn new(recorder: &mut Recorder, shape: &Shape) -> Result<Guards> {
        // Two encoders a branch, the steps, the picture.
        let counters = recorder.buffer("nonfinite", 2 * shape.branches() + shape.steps + 1)?;
        Ok(Guards { counters, places: Vec::new() })
    }

    /// Counts in all of `x`, which is called `place`.
    fn all(&mut self, recorder: &Recorder, place: &str, x: &View<f32>) -> Result<()> {
        let counter = &self.counters.slice(self.places.len(), 1)?;
        self.places.push(place.to_string());
        CountNonfinite::all(x, counter).launch(recorder.device(), STREAM)
    }

    /// The counters of the latents of all steps: u32 `[steps]`.
    fn steps(&mut self, steps: usize) -> Result<View<u32>> {
        let counters = self.counters.slice(self.places.len(), steps);
        self.places.extend((0..steps).map(|step| format!("the latents of step {step}")));
        counters
    }
}

/// What the encoders give, of every branch.
struct Encoded {
    /// f32 `[branches, width]`.
    pooled: View<f32>,
    /// bf16 `[branches, tokens, width]`.
    context: View<bf16>,
}

impl Encoded {
    fn new(recorder: &mut Recorder, config: &PipelineConfig, shape: &Shape) -> Result<Encoded> {
        let branches = shape.branches();
        Ok(Encoded {
            pooled: recorder.buffer("clip.pooled", branches * config.clip.width)?,
            context: recorder.buffer("t5.context", branches * shape.t5_length * config.t5.width)?,
        })
    }

    /// A branch's part.
    fn of(&self, branch: usize, branches: usize) -> Result<(View<f32>, View<bf16>)> {
        let (pooled, context) = (self.pooled.len() / branches, self.context.len() / branches);
        Ok((self.pooled.slice(branch * pooled, pooled)?, self.context.slice(branch * context, context)?))
    }

    /// Records that the host has it.
    fn send(&self, recorder: &mut Recorder, inputs: &mut Inputs, branches: usize) -> Result<()> {
        for branch in 0..branches {
            let (pooled, context) = self.of(branch, branches)?;
            inputs.pooled.push(recorder.send(&pooled)?);
            inputs.context.push(recorder.send(&context)?);
        }
        Ok(())
    }

    /// Records that the host gets it, where it would send it from.
    fn fetch(&self, recorder: &mut Recorder, inputs: &Inputs) -> Result<()> {
        for (branch, ranges) in inputs.pooled.iter().zip(&inputs.context).enumerate() {
            let (pooled, context) = self.of(branch, inputs.pooled.len())?;
            recorder.fetch_to(*ranges.0, &pooled)?;
            recorder.fetch_to(*ranges.1, &context)?;
        }
        Ok(())
    }
}

/// CLIP of every branch.
fn clip_stage(
    net: &mut Network<'_>,
    config: &PipelineConfig,
    shape: &Shape,
    encoded: &Encoded,
    inputs: &mut Inputs,
    guards: &mut Guards,
) -> Result<()> {
    let (width, tokens) = (config.clip.width, config.clip.positions);
    let x = net.buffer::<f32>("x", tokens * width)?;
    let index = net.buffer::<i32>("index", 1)?;
    for (branch, prefix) in BRANCHES.iter().enumerate().take(shape.branches()) {
        inputs.clip.push(net.recorder.send(&x)?);
        inputs.clip_index.push(net.recorder.send(&index)?);
        let (out, _) = encoded.of(branch, shape.branches())?;
        clip::record(net, &config.clip, &x, &index, &out)?;
        guards.all(net.recorder, &format!("CLIP's vector ({prefix}prompt)"), &out)?;
        net.recorder.keep_f32(format!("{prefix}clip_pooled"), &out, &[1, width])?;
    }
    Ok(())
}

/// T5 of every branch.
fn t5_stage(
    net: &mut Network<'_>,
    config: &PipelineConfig,
    shape: &Shape,
    encoded: &Encoded,
    inputs: &mut Inputs,
    guards: &mut Guards,
) -> Result<()> {
    let (width, tokens) = (config.t5.width, shape.t5_length);
    let bias = net.buffer::<f32>("bias", config.t5.heads * (2 * tokens - 1))?;
    inputs.t5_bias = net.recorder.send(&bias)?;
    let x = net.buffer::<f32>("x", tokens * width)?;
    for (branch, prefix) in BRANCHES.iter().enumerate().take(shape.branches()) {
        inputs.t5.push(net.recorder.send(&x)?);
        let (_, out) = encoded.of(branch, shape.branches())?;
        t5::record(net, &config.t5, tokens, &x, &bias, &out)?;
        guards.all(net.recorder, &format!("T5's residual stream ({prefix}prompt)"), &x)?;
        net.recorder.keep_bf16(format!("{prefix}t5_embeds"), &out, &[1, tokens, width])?;
    }
    Ok(())
}

/// Bytes of modulation vectors that the host remembers at most: 28 steps of FLUX.1 take 114 MiB, and as much pinned memory.
const MAX_REMEMBERED: usize = 128 << 20;

/// What the steps work on.
struct Steps<'c> {
    config: &'c PipelineConfig,
    shape: &'c Shape,
    transformer: Transformer<'c>,
    /// f32 `[branches, steps, modulation width]`.
    table: View<f32>,
    latents: View<f32>,
    latents_bf16: View<bf16>,
    dt: View<f32>,
    step: View<i32>,
    true_cfg_scale: Option<View<f32>>,
}

impl<'c> Steps<'c> {
    fn new(net: &mut Network<'_>, config: &'c PipelineConfig, shape: &'c Shape) -> Result<Steps<'c>> {
        let (flux, steps) = (&config.flux, shape.steps);
        let extent = Extent { text_tokens: shape.t5_length, image_tokens: shape.image_tokens(config), steps };
        let width = Transformer::modulation_width(flux);
        let len = extent.image_tokens * flux.in_channels;
        Ok(Steps {
            config,
            shape,
            transformer: Transformer::new(net, flux, extent)?,
            table: net.buffer("modulations", shape.branches() * steps * width)?,
            latents: net.buffer("latents", len)?,
            latents_bf16: net.buffer("latents_bf16", len)?,
            dt: net.buffer("dt", steps)?,
            step: net.buffer("step", 1)?,
            true_cfg_scale: shape.true_cfg.then(|| net.buffer("true_cfg_scale", 1)).transpose()?,
        })
    }

    /// Whether the host can remember the table.
    fn can_remember(&self) -> bool {
        self.table.num_bytes() <= MAX_REMEMBERED
    }

    /// When it is computed.
    fn modulating(&self) -> When {
        if self.can_remember() { When::Modulating } else { When::Always }
    }

    /// Records what modulation vectors are computed from, `pooled` f32 `[branches, pooled_width]` among it.
    fn embed(&self, net: &mut Network<'_>, pooled: &View<f32>, inputs: &mut Inputs) -> Result<Modulations> {
        let flux = &self.config.flux;
        let sinusoids = net.buffer::<f32>("sinusoids", self.shape.steps * SINUSOID_WIDTH)?;
        inputs.sinusoids = net.recorder.send(&sinusoids)?;
        let guidance = flux.guidance.then(|| net.buffer::<f32>("guidance", SINUSOID_WIDTH)).transpose()?;
        inputs.guidance = guidance.as_ref().map(|view| net.recorder.send(view)).transpose()?;
        self.transformer.embed(net, pooled, &sinusoids, guidance.as_ref())
    }

    /// Records what else comes before the first step.
    fn send(&self, net: &mut Network<'_>, inputs: &mut Inputs) -> Result<()> {
        inputs.rope_cos = net.recorder.send(&self.transformer.rope_cos)?;
        inputs.rope_sin = net.recorder.send(&self.transformer.rope_sin)?;
        inputs.latents = net.recorder.send(&self.latents)?;
        inputs.latents_bf16 = net.recorder.send(&self.latents_bf16)?;
        inputs.dt = net.recorder.send(&self.dt)?;
        inputs.true_cfg_scale =
            self.true_cfg_scale.as_ref().map(|view| net.recorder.send(view)).transpose()?;
        net.recorder.fill(&self.step, 0)
    }

    /// Records the embedded text of every branch, from `context` bf16 `[branches, tokens, joint_width]`.
    fn embed_texts(&self, net: &mut Network<'_>, context: &View<bf16>) -> Result<Vec<View<f32>>> {
        let len = context.len() / self.shape.branches();
        (0..self.shape.branches())
            .map(|branch| self.transformer.embed_text(net, &context.slice(branch * len, len)?))
            .collect()
    }

    /// Records a step from the embedded `texts` of all branches, which is every step; or the first, which computes the `modulations`
    /// of all. Counts what is not finite in the latents in its element of `counted` u32 `[steps]`.
    fn step(
        &self,
        net: &mut Network<'_>,
        texts: &[View<f32>],
        counted: &View<u32>,
        modulations: Option<&Modulations>,
    ) -> Result<()> {
        let (flux, branches) = (&self.config.flux, self.shape.branches());
        let tokens = self.shape.image_tokens(self.config);
        let rows_len = self.table.len() / branches;
        let table = |branch: usize| self.table.slice(branch * rows_len, rows_len);
        let tables: Vec<View<f32>> = (0..branches).map(table).collect::<Result<_>>()?;
        let mut velocities = Vec::new();
        for (branch, (table, text)) in tables.iter().zip(texts).enumerate() {
            let velocity = net.buffer::<f32>("velocity", tokens * flux.out_channels)?;
            let first = table.slice(0, Transformer::modulation_width(flux))?;
            let modulated = match modulations {
                Some(modulations) => {
                    Modulated { row: &first, ahead: (branch == 0).then_some((modulations, &tables[..])) }
                }
                None => Modulated { row: self.transformer.select(net, table, &self.step)?, ahead: None },
            };
            self.transformer.velocity(net, &self.latents_bf16, text, &modulated, &self.step, &velocity)?;
            velocities.push(velocity);
        }
        let negative = velocities.get(1).zip(self.true_cfg_scale.as_ref());
        let velocity = velocities.first().ok_or_else(|| Error::Internal("no branch".to_string()))?;
        EulerStep {
            latents: &self.latents,
            velocity,
            negative,
            latents_bf16: &self.latents_bf16,
            dt: &self.dt,
            step: &self.step,
        }
        .launch(net.device(), STREAM)?;
        CountNonfinite { index: Some(&self.step), ..CountNonfinite::all(&self.latents, counted) }
            .launch(net.device(), STREAM)?;
        NextStep { step: &self.step }.launch(net.device(), STREAM)?;
        let packed = [1, tokens, flux.in_channels];
        for (velocity, prefix) in velocities.iter().zip(BRANCHES) {
            net.recorder.keep_f32(format!("{prefix}noise_pred"), velocity, &packed)?;
        }
        net.recorder.keep_f32(LATENTS.to_string(), &self.latents, &packed)
    }
}
