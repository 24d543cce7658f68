//! What is asked of a pipeline, and what it says while it works.

use std::time::Duration;

use crate::config::PipelineConfig;
use crate::pipeline::{Late, Shape};
use crate::sampling::{NoiseKind, TimeRounding};

/// Of the command line and of diffusers.
pub(super) const DEFAULT_GUIDANCE: f32 = 3.5;

/// Where the starting noise comes from.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Noise {
    /// torch's CPU generator, seeded.
    Seeded(NoiseKind),
    /// Given, packed: f32 `[image tokens, channels]`.
    Given(Vec<f32>),
}

/// What to draw: a prompt, and what differs from the defaults.
///
/// ```
/// let request = schnell::Request::new("a cat holding a sign").size(512, 512).seed(42);
/// assert_eq!(request.seed, 42);
/// ```
#[derive(Clone, Debug)]
#[cfg_attr(not(feature = "check"), non_exhaustive)]
pub struct Request {
    /// For CLIP, and for T5 unless `prompt_2` is given.
    pub prompt: String,
    /// For T5.
    pub prompt_2: Option<String>,
    /// What the picture should lead away from; takes effect with a `true_cfg_scale` above 1, and doubles the time.
    pub negative_prompt: Option<String>,
    /// How strongly: `v = v_negative + scale (v - v_negative)`.
    pub true_cfg_scale: f32,
    /// Accept a prompt without a word.
    pub allow_empty_prompt: bool,
    /// Width and height in pixels; those of the pipeline's first shape if nothing is said. Another shape is planned and bound
    /// when it first comes, within the memory that there is.
    pub size: Option<(usize, usize)>,
    /// Denoising steps; as above.
    pub steps: Option<usize>,
    /// T5 tokens, padding included; as above.
    pub t5_length: Option<usize>,
    /// Same seed, same bytes. Its lowest 32 bits count, as in torch's CPU generator.
    pub seed: u64,
    /// How the seed becomes noise.
    pub noise: Noise,
    /// In which precision the network's time is formed.
    pub timesteps: TimeRounding,
    /// For models with a guidance embedder, 3.5 if nothing is said; ignored by others.
    pub guidance: Option<f32>,
    /// When the picture has to be there, from the call on that asks for it. What it is held against is what pictures of its size took on
    /// this pipeline: see [`PipelineBuilder::calibrate`](crate::pipeline::PipelineBuilder::calibrate).
    pub deadline: Option<Duration>,
    /// What becomes of a picture that would be late.
    pub late: Late,
    /// Decode the estimate of the clean picture that so many steps of the schedule give; what a picture that was
    /// [late](Late::Estimate) is drawn again by.
    pub estimate_after: Option<usize>,
    /// Keep every stage's tensor ([`Output::dumps`](crate::pipeline::Output::dumps)); needs
    /// [`PipelineBuilder::dumps`](crate::pipeline::PipelineBuilder::dumps).
    pub dump: bool,
    /// Keep what ran when ([`Output::trace`](crate::pipeline::Output::trace)).
    pub trace: bool,
}

impl Request {
    /// A request with the defaults of the command line, and seed 0.
    pub fn new(prompt: impl Into<String>) -> Request {
        Request {
            prompt: prompt.into(),
            prompt_2: None,
            negative_prompt: None,
            true_cfg_scale: 1.0,
            allow_empty_prompt: false,
            size: None,
            steps: None,
            t5_length: None,
            seed: 0,
            noise: Noise::Seeded(NoiseKind::F32),
            timesteps: TimeRounding::Exact,
            guidance: None,
            deadline: None,
            late: Late::Fail,
            estimate_after: None,
            dump: false,
            trace: false,
        }
    }

    /// Sets a prompt of its own for T5.
    pub fn prompt_2(self, prompt: impl Into<String>) -> Request {
        Request { prompt_2: Some(prompt.into()), ..self }
    }

    /// Sets what to lead away from, and how strongly (above 1).
    pub fn negative_prompt(self, prompt: impl Into<String>, true_cfg_scale: f32) -> Request {
        Request { negative_prompt: Some(prompt.into()), true_cfg_scale, ..self }
    }

    /// Accepts a prompt without a word.
    pub fn allow_empty_prompt(self) -> Request {
        Request { allow_empty_prompt: true, ..self }
    }

    /// Sets width and height in pixels.
    pub fn size(self, width: usize, height: usize) -> Request {
        Request { size: Some((width, height)), ..self }
    }

    /// Sets the denoising steps.
    pub fn steps(self, steps: usize) -> Request {
        Request { steps: Some(steps), ..self }
    }

    /// Sets the T5 tokens, padding included.
    pub fn t5_length(self, tokens: usize) -> Request {
        Request { t5_length: Some(tokens), ..self }
    }

    /// Sets the seed: the same one gives the same bytes.
    pub fn seed(self, seed: u64) -> Request {
        Request { seed, ..self }
    }

    /// Sets how the seed becomes noise, or noise of the caller's own.
    pub fn noise(self, noise: Noise) -> Request {
        Request { noise, ..self }
    }

    /// Sets the precision in which the network's time is formed.
    pub fn timesteps(self, timesteps: TimeRounding) -> Request {
        Request { timesteps, ..self }
    }

    /// Sets the guidance scale, for models with a guidance embedder.
    pub fn guidance(self, guidance: f32) -> Request {
        Request { guidance: Some(guidance), ..self }
    }

    /// Sets when the picture has to be there, from the call on that asks for it, and what becomes of one that would be late.
    pub fn deadline(self, deadline: Duration, late: Late) -> Request {
        Request { deadline: Some(deadline), late, ..self }
    }

    /// Decodes the estimate of the clean picture that so many steps of the schedule give.
    pub fn estimate_after(self, steps: usize) -> Request {
        Request { estimate_after: Some(steps), ..self }
    }

    /// Keeps every stage's tensor.
    pub fn dump(self) -> Request {
        Request { dump: true, ..self }
    }

    /// Keeps what ran when: two more events for each copy of streamed weights.
    pub fn trace(self) -> Request {
        Request { trace: true, ..self }
    }

    /// Whether the negative prompt takes effect: by diffusers' rule.
    pub fn true_cfg(&self) -> bool {
        self.negative_prompt.is_some() && self.true_cfg_scale > 1.0
    }

    /// What of it has no effect on a picture by a model of this config; [`Output::warnings`](crate::Output::warnings) has it,
    /// too.
    pub fn warnings(&self, config: &PipelineConfig) -> Vec<String> {
        let mut warnings = Vec::new();
        let scaled = self.true_cfg_scale != 1.0;
        if (self.negative_prompt.is_some() || scaled) && !self.true_cfg() {
            let text = "a negative prompt and a true CFG scale above 1 take effect only together";
            warnings.push(text.to_string());
        }
        if let Some(guidance) = self.guidance.filter(|_| !config.flux.guidance) {
            warnings.push(format!("guidance {guidance} has no effect: this model has no guidance embedder"));
        }
        let low = self.seed & u64::from(u32::MAX);
        match &self.noise {
            Noise::Given(_) if self.seed != 0 => {
                warnings.push(format!("seed {} has no effect: the noise is given", self.seed));
            }
            Noise::Seeded(_) if self.seed != low => warnings.push(format!(
                "seed {} draws the same picture as seed {low}: torch's CPU generator uses 32 bits of it",
                self.seed
            )),
            _ => {}
        }
        warnings
    }

    /// The guidance scale that counts.
    pub(super) fn guidance_scale(&self) -> f32 {
        self.guidance.unwrap_or(DEFAULT_GUIDANCE)
    }

    /// The shape it asks for, of a pipeline whose first one is `first`.
    pub(super) fn shape(&self, first: Shape) -> Shape {
        let (width, height) = self.size.unwrap_or((first.width, first.height));
        Shape {
            width,
            height,
            steps: self.steps.unwrap_or(first.steps),
            t5_length: self.t5_length.unwrap_or(first.t5_length),
            true_cfg: self.true_cfg(),
        }
    }
}

/// What a pipeline is doing. Who is told may answer [`ControlFlow::Break`](std::ops::ControlFlow::Break): the generation (or
/// the loading) stops there, and the pipeline can draw others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Progress {
    /// Bytes of weights read, and all there are; those that the files hold in 4 bits by what they take there.
    Loading {
        /// So far.
        done: u64,
        /// In all.
        total: u64,
    },
    /// Prompt to vectors; not told of a prompt seen before.
    TextEncoding,
    /// A step has been handed to the device, which may be a step behind.
    Step {
        /// From 0.
        index: usize,
        /// In all.
        total: usize,
    },
    /// Latents to pixels.
    Decoding,
    /// The picture is there.
    Done,
}
