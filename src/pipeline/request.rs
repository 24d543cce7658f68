//! What is asked of a pipeline, and what it says while it works.

use crate::pipeline::plan::Shape;
use crate::sampling::{NoiseKind, TimeRounding};

/// Where the starting noise comes from.
#[derive(Clone, Debug)]
pub enum Noise {
    /// torch's CPU generator, seeded.
    Seeded(NoiseKind),
    /// Given, packed: f32 `[image tokens, channels]`.
    Given(Vec<f32>),
}

/// What to draw.
#[derive(Clone, Debug)]
pub struct Request {
    /// For CLIP, and for T5 unless `prompt_2` is given.
    pub prompt: String,
    /// For T5.
    pub prompt_2: Option<String>,
    /// What the picture should lead away from, for plans with [`Shape::true_cfg`].
    pub negative_prompt: String,
    /// How strongly: `v = v_negative + scale (v - v_negative)`.
    pub true_cfg_scale: f32,
    /// Accept a prompt without a word.
    pub allow_empty_prompt: bool,
    /// Its size, steps and prompt length; that of the plan if nothing is said. Another one is planned and bound when it first
    /// comes, within the memory that there is.
    pub shape: Option<Shape>,
    /// Same seed, same bytes.
    pub seed: u64,
    /// How the seed becomes noise.
    pub noise: Noise,
    /// In which precision the network's time is formed.
    pub timesteps: TimeRounding,
    /// For models with a guidance embedder; ignored by others.
    pub guidance: f32,
    /// Keep every stage's tensor ([`Output::dumps`](crate::pipeline::Output::dumps)); needs [`BindOptions::dump`].
    pub dump: bool,
}

impl Request {
    /// A request with the defaults of the command line.
    pub fn new(prompt: impl Into<String>, seed: u64) -> Request {
        Request {
            prompt: prompt.into(),
            prompt_2: None,
            negative_prompt: String::new(),
            true_cfg_scale: 1.0,
            allow_empty_prompt: false,
            shape: None,
            seed,
            noise: Noise::Seeded(NoiseKind::F32),
            timesteps: TimeRounding::Exact,
            guidance: 3.5,
            dump: false,
        }
    }
}

/// How to bind.
#[derive(Clone, Copy, Debug, Default)]
pub struct BindOptions {
    /// Allocate what [`Request::dump`] needs: one more pinned buffer.
    pub dump: bool,
}

/// What a pipeline is doing. Who is told may answer [`ControlFlow::Break`](std::ops::ControlFlow::Break): the generation (or
/// the loading) stops there, and the pipeline can draw others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Bytes of weights read, and all there are; weights that the files hold in 4 bits count as the f32 they read as.
    Loading {
        /// So far.
        done: u64,
        /// In all.
        total: u64,
    },
    /// Prompt to vectors.
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
