//! A picture and what is known of it.

use std::path::{Path, PathBuf};

use crate::error::shown;
use crate::files::Target;
use crate::image::{ImageFormat, Note};
use crate::models::flux::BRANCHES;
use crate::pipeline::Shape;
use crate::pipeline::load::Prompt;
use crate::pipeline::plan::Plan;
use crate::pipeline::receipt::Receipt;
use crate::pipeline::request::{Noise, Request};
use crate::pipeline::timing::Timings;
use crate::pipeline::trace::Trace;
use crate::sampling::TimeRounding;
use crate::{Error, Result};

/// A tensor of a stage, for comparison with other implementations.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Dump {
    /// `clip_pooled`, `noise_pred_0`, ...
    pub stage: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its values.
    pub values: DumpValues,
}

/// See [`Dump`].
#[derive(Clone, Debug)]
pub enum DumpValues {
    /// Token ids.
    Ids(Vec<u32>),
    /// Everything else.
    F32(Vec<f32>),
}

/// A picture and how it came about.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Output {
    /// Pixels.
    pub width: usize,
    /// Pixels.
    pub height: usize,
    /// u8 `[height, width, 3]`.
    pub rgb: Vec<u8>,
    /// Tokens of the prompt that CLIP did not see.
    pub clip_tokens_dropped: usize,
    /// Tokens of the prompt that T5 did not see.
    pub t5_tokens_dropped: usize,
    /// By stage.
    pub timings: Timings,
    /// Empty unless asked for.
    pub dumps: Vec<Dump>,
    /// None unless asked for.
    pub trace: Option<Trace>,
    /// What a person should know: tokens that an encoder did not see, settings without effect.
    pub warnings: Vec<String>,
    /// What made the picture: prompts, seed and noise, steps and other settings, and `receipt`; [`Output::save`] writes them
    /// into the file, and [`Recipe::of`](super::Recipe::of) reads them there.
    pub notes: Vec<Note>,
    /// By what the picture is recognized.
    pub receipt: Receipt,
    /// Steps of the schedule that were done, where it is not all of them: what was decoded is an estimate of the clean picture, as a
    /// deadline left no time for more, or as [`Request::estimate_after`] wanted it.
    pub estimate: Option<usize>,
}

/// The file's metadata: what another run needs to draw the same picture (but for noise that was given).
pub(super) fn notes(
    request: &Request,
    plan: &Plan,
    shape: &Shape,
    estimate: Option<usize>,
    receipt: &Receipt,
) -> Vec<Note> {
    let mut notes = vec![("prompt", request.prompt.clone())];
    notes.extend(request.prompt_2.clone().map(|text| ("prompt_2", text)));
    if shape.true_cfg {
        notes.push(("negative_prompt", request.negative_prompt.clone().unwrap_or_default()));
        notes.push(("true_cfg_scale", request.true_cfg_scale.to_string()));
    }
    match &request.noise {
        Noise::Seeded(kind) => {
            notes.push(("seed", request.seed.to_string()));
            notes.push(("noise", kind.to_string()));
        }
        Noise::Given(_) => notes.push(("noise", "given".to_string())),
    }
    if plan.config().flux.guidance {
        notes.push(("guidance", request.guidance_scale().to_string()));
    }
    if request.timesteps == TimeRounding::Bf16 {
        notes.push(("timesteps", "bf16".to_string()));
    }
    notes.extend([
        ("size", format!("{}x{}", shape.width, shape.height)),
        ("steps", shape.steps.to_string()),
        ("t5_length", shape.t5_length.to_string()),
    ]);
    notes.extend(estimate.map(|steps| ("estimate_after", steps.to_string())));
    notes.extend(receipt.notes());
    notes
}

/// What a person should know of a picture.
pub(super) fn warnings(
    request: &Request,
    plan: &Plan,
    prompt: &Prompt,
    shape: &Shape,
    estimate: Option<usize>,
) -> Vec<String> {
    let start: String = request.prompt.chars().take(40).collect();
    let dropped = [("CLIP", prompt.clip.dropped), ("T5", prompt.t5.dropped)].into_iter();
    let mut warnings: Vec<String> = dropped
        .filter(|(_, tokens)| *tokens > 0)
        .map(|(encoder, tokens)| {
            format!("{encoder} did not see the last {tokens} tokens of the prompt `{}...`", shown(&start))
        })
        .collect();
    warnings.extend(request.warnings(plan.config()));
    if request.deadline.is_some() {
        let asked = request.shape(plan.shape()).steps;
        if shape.steps < asked {
            warnings.push(format!("drawn in {} steps, not {asked}, to be there in time", shape.steps));
        }
        if let Some(done) = estimate {
            warnings.push(format!(
                "an estimate after {done} of {} steps: there was no time for more",
                shape.steps
            ));
        }
    }
    warnings
}

impl Output {
    /// The picture as a file, with its `notes`.
    ///
    /// # Errors
    /// [`Error::Input`] when `rgb` or `notes` were changed to what no such file can be.
    pub fn encode(&self, format: ImageFormat) -> Result<Vec<u8>> {
        crate::image::encode(format, self.width, self.height, &self.rgb, &self.notes)
    }

    /// Writes [`Output::encode`], in the format that the name ends in: `.png`, `.jpg`, `.jpeg` or `.webp`. What is no regular
    /// file, as a FIFO, is sent a PNG unless it ends so.
    ///
    /// # Errors
    /// Its own, [`Error::Input`] for another ending, and those of [`crate::files::write`].
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let mut target = Target::new(path.as_ref())?;
        let format = target.image_format()?;
        target.write(&self.encode(format)?)
    }
}

impl Plan {
    /// The stages that a dump has: the names of its [`Dump`]s.
    pub fn dump_stages(&self) -> Vec<String> {
        let (steps, branches) = (self.shape().steps, self.shape().branches());
        let mut stages = ["noise", "sigmas", "vae_out"].map(str::to_string).to_vec();
        stages.extend((0..steps).map(|step| format!("latents_{step}")));
        for prefix in BRANCHES.iter().take(branches) {
            let once = ["tokens_clip", "tokens_t5", "clip_pooled", "t5_embeds"];
            stages.extend(once.map(|stage| format!("{prefix}{stage}")));
            stages.extend((0..steps).map(|step| format!("{prefix}noise_pred_{step}")));
        }
        stages
    }
}

impl Dump {
    /// The name of its file in a folder of dumps.
    pub fn file_name(stage: &str) -> String {
        format!("{stage}.safetensors")
    }

    /// A safetensors file with this one tensor, named by its stage: f32, or i32 for ids.
    ///
    /// # Errors
    /// [`Error::Input`] when `shape` was changed to what does not fit `values`.
    pub fn encode(&self) -> Result<Vec<u8>> {
        let (dtype, bytes): (_, Vec<u8>) = match &self.values {
            DumpValues::Ids(ids) => {
                (crate::weights::Dtype::I32, ids.iter().flat_map(|v| v.to_le_bytes()).collect())
            }
            DumpValues::F32(v) => {
                (crate::weights::Dtype::F32, v.iter().flat_map(|v| v.to_le_bytes()).collect())
            }
        };
        let bad = |e: safetensors::SafeTensorError| {
            Error::Input(format!("stage {} cannot be encoded: {e}", self.stage))
        };
        let view = safetensors::tensor::TensorView::new(dtype, self.shape.clone(), &bytes).map_err(bad)?;
        safetensors::serialize([(self.stage.as_str(), view)], None).map_err(bad)
    }

    /// Writes [`Dump::encode`] as `<dir>/<stage>.safetensors`.
    ///
    /// # Errors
    /// Its own, and those of [`crate::files::write`].
    pub fn save(&self, dir: impl AsRef<Path>) -> Result<PathBuf> {
        let path = dir.as_ref().join(Dump::file_name(&self.stage));
        crate::files::write(&path, &self.encode()?)?;
        Ok(path)
    }
}
