//! Prompt in, picture out: [`Model`] (a folder, opened and checked), [`Plan`] (what it takes), [`Pipeline`] (bound to a
//! device, weights loaded), [`Pipeline::generate`].
//!
//! ```no_run
//! use schnell::device::{Device, EmulatorOptions};
//! use schnell::pipeline::{Model, Pipeline, Request};
//! use schnell::plan::{Plan, Shape};
//! # fn main() -> schnell::Result<()> {
//! let model = Model::open("FLUX.1-schnell".as_ref())?;
//! let shape = Shape { width: 512, height: 512, ..Shape::default() };
//! let plan = Plan::new(model.config(), shape, Default::default())?;
//! println!("{plan}");
//! let mut pipeline = Pipeline::bind(&model, plan, &Device::cuda(0)?, Default::default(), &mut |_| {})?;
//! let image = pipeline.generate(&Request::new("a cat holding a sign", 42), &mut |_| {})?;
//! image.save("cat.png".as_ref())?;
//! # Ok(()) }
//! ```

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use half::bf16;

use crate::arena::{Arena, Phase, Slot};
use crate::config::PipelineConfig;
use crate::device::{Device, HostBuffer, StreamId, View};
use crate::image::Note;
use crate::kernels::count_nonfinite::CountNonfinite;
use crate::kernels::euler_step::EulerStep;
use crate::nn::Run;
use crate::plan::{HostLayout, Plan};
use crate::sampling::{self, NoiseKind, TimeRounding};
use crate::text::tokenizer::{ClipTokenizer, T5Tokenizer, Tokens};
use crate::timing::{Clock, Timings};
use crate::vae::OUT_PITCH;
use crate::weights::upload::{EmbeddingTable, upload};
use crate::weights::{Part, Source};
use crate::{Error, Result};

/// A model folder in the diffusers layout: configs read, tokenizers loaded, every tensor found and checked.
#[derive(Debug)]
pub struct Model {
    config: PipelineConfig,
    source: Source,
    clip_tokenizer: Arc<ClipTokenizer>,
    t5_tokenizer: Arc<T5Tokenizer>,
}

impl Model {
    /// Opens a folder that holds `model_index.json`.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Weights`] or [`Error::Unsupported`], naming the file and tensor; nothing is loaded yet.
    pub fn open(dir: &Path) -> Result<Model> {
        Model::with(PipelineConfig::open(dir)?, dir, |config| Source::open(dir, config))
    }

    /// A model of any size without weight files: see [`Source::generated`]. `tokenizers` is a folder with `tokenizer` and
    /// `tokenizer_2`.
    ///
    /// # Errors
    /// Those of [`Model::open`] that concern tokenizers.
    pub fn generated(config: PipelineConfig, tokenizers: &Path) -> Result<Model> {
        Model::with(config, tokenizers, |config| Ok(Source::generated(config)))
    }

    fn with(
        config: PipelineConfig,
        dir: &Path,
        source: impl FnOnce(&PipelineConfig) -> Result<Source>,
    ) -> Result<Model> {
        let clip_tokenizer = Arc::new(ClipTokenizer::open(&dir.join("tokenizer"))?);
        let t5_tokenizer = Arc::new(T5Tokenizer::open(&dir.join("tokenizer_2"))?);
        for (what, ids, rows) in [
            ("tokenizer", clip_tokenizer.vocab_size(), config.clip.vocab_rows),
            ("tokenizer_2", t5_tokenizer.vocab_size(), config.t5.vocab_rows),
        ] {
            if ids > rows {
                let text = format!("has {ids} ids, but the embedding table of its encoder only {rows} rows");
                return Err(Error::weights(dir.join(what), text));
            }
        }
        let source = source(&config)?;
        Ok(Model { config, source, clip_tokenizer, t5_tokenizer })
    }

    /// What the config files say.
    pub fn config(&self) -> &PipelineConfig {
        &self.config
    }

    /// Tells models apart: see [`Source::digest`].
    ///
    /// # Errors
    /// [`Error::Io`] when a weight file cannot be read.
    pub fn digest(&self) -> Result<String> {
        self.source.digest()
    }
}

/// Where the starting noise comes from.
#[derive(Clone, Debug)]
pub enum Noise {
    /// torch's CPU generator, seeded.
    Seeded(NoiseKind),
    /// Given, packed: f32 `[image tokens, channels]`.
    Given(Vec<f32>),
}

/// What to draw. Sizes and steps are the plan's.
#[derive(Clone, Debug)]
pub struct Request {
    /// For CLIP, and for T5 unless `prompt_2` is given.
    pub prompt: String,
    /// For T5.
    pub prompt_2: Option<String>,
    /// What the picture should lead away from, for plans with [`Shape::true_cfg`](crate::plan::Shape::true_cfg).
    pub negative_prompt: String,
    /// How strongly: `v = v_negative + scale (v - v_negative)`.
    pub true_cfg_scale: f32,
    /// Accept a prompt without a word.
    pub allow_empty_prompt: bool,
    /// Same seed, same bytes.
    pub seed: u64,
    /// How the seed becomes noise.
    pub noise: Noise,
    /// In which precision the network's time is formed.
    pub timesteps: TimeRounding,
    /// For models with a guidance embedder; ignored by others.
    pub guidance: f32,
    /// Keep every stage's tensor ([`Output::dumps`]); needs [`BindOptions::dump`].
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

/// What a pipeline is doing.
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
    /// A step has been handed to the device.
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

/// A tensor of a stage, for comparison with other implementations.
#[derive(Clone, Debug)]
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
    /// What made the picture: prompts, seed and noise, steps and other settings, model digest, version; [`Output::save`]
    /// writes them into the file.
    pub notes: Vec<Note>,
}

impl Output {
    /// Writes the picture as PNG, with its `notes`.
    ///
    /// # Errors
    /// [`Error::Io`] when the file cannot be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        crate::image::write_png(path, self.width as u32, self.height as u32, &self.rgb, &self.notes)
    }
}

/// A plan bound to a device, with all weights in place. Generates one picture after another without allocating.
#[derive(Debug)]
pub struct Pipeline {
    device: Device,
    plan: Plan,
    arena: Arena,
    host: HostBuffer,
    host_layout: HostLayout,
    dump_host: Option<HostBuffer>,
    clock: Clock,
    text: TextInput,
    digest: String,
}

/// How the stages of the prompt and of the negative prompt are called in dumps.
const BRANCHES: [&str; 2] = ["", "neg_"];

/// A prompt as the two encoders see it.
#[derive(Debug)]
struct Prompt {
    clip: Tokens,
    t5: Tokens,
}

/// What turns prompts into the encoders' inputs, on the host.
#[derive(Debug)]
struct TextInput {
    clip_tokenizer: Arc<ClipTokenizer>,
    t5_tokenizer: Arc<T5Tokenizer>,
    clip_embeddings: EmbeddingTable,
    /// f32 `[positions, width]`.
    clip_positions: Vec<f32>,
    t5_embeddings: EmbeddingTable,
}

impl TextInput {
    fn encode(&self, plan: &Plan, for_clip: &str, for_t5: &str) -> Result<Prompt> {
        Ok(Prompt {
            clip: self.clip_tokenizer.encode(for_clip, plan.config.clip.positions)?,
            t5: self.t5_tokenizer.encode(for_t5, plan.shape.t5_length)?,
        })
    }
}

impl Pipeline {
    /// Makes the one allocation, readies every kernel and loads the weights.
    ///
    /// # Errors
    /// [`Error::Capacity`] when the device has too little memory, [`Error::Weights`] and [`Error::Io`] from the files,
    /// [`Error::Device`] from the machine.
    pub fn bind(
        model: &Model,
        plan: Plan,
        device: &Device,
        options: BindOptions,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Pipeline> {
        if *model.config() != plan.config {
            return Err(Error::Input("the plan was made for another model".to_string()));
        }
        for kernel in crate::kernels::product() {
            device.prepare(kernel)?;
        }
        let arena = Arena::bind(&plan.layout, device)?;
        let host_layout = HostLayout::of(&plan);
        let host = device.allocate_host(host_layout.total)?;
        let dump_host =
            options.dump.then(|| device.allocate_host(HostLayout::dump_bytes(&plan))).transpose()?;
        // clip, t5, modulation, the steps, vae, copy
        let clock = Clock::new(device, plan.shape.steps + 5)?;
        upload(device, &arena, &plan.staging, &model.source, &plan.jobs, &mut |done, total| {
            progress(Progress::Loading { done, total });
        })?;
        let digest = model.digest()?;
        let clip =
            |name: &str| model.source.tensor(Part::Clip, &format!("text_model.embeddings.{name}.weight"));
        let text = TextInput {
            clip_tokenizer: model.clip_tokenizer.clone(),
            t5_tokenizer: model.t5_tokenizer.clone(),
            clip_embeddings: EmbeddingTable::new(clip("token_embedding")?),
            clip_positions: clip("position_embedding")?.read_f32()?,
            t5_embeddings: EmbeddingTable::new(model.source.tensor(Part::T5, "shared.weight")?),
        };
        let mut pipeline = Pipeline {
            device: device.clone(),
            plan,
            arena,
            host,
            host_layout,
            dump_host,
            clock,
            text,
            digest,
        };
        pipeline.upload_tables(&model.source)?;
        Ok(pipeline)
    }

    /// What this pipeline was planned as.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The tables that depend on the shape alone.
    fn upload_tables(&mut self, source: &Source) -> Result<()> {
        let (config, shape) = (&self.plan.config, &self.plan.shape);
        let (height, width) = shape.token_grid(config);
        let (cos, sin) =
            sampling::rope_tables(config.flux.axes, config.flux.theta, shape.t5_length, height, width);
        let bias = self.plan.t5.relative_bias(source)?;
        let buffers = &self.plan.flux.buffers;
        let tables = [(cos, buffers.rope_cos), (sin, buffers.rope_sin), (bias, self.plan.t5.bias)];
        for (values, slot) in tables {
            let mut host = self.device.allocate_host(slot.num_bytes())?;
            host.as_mut_slice().copy_from_slice(bytemuck::cast_slice(&values));
            self.device.copy_to_device(StreamId::Compute, &self.arena.view(&slot)?, &host, 0)?;
            self.device.synchronize(StreamId::Compute)?;
        }
        Ok(())
    }

    /// Draws one picture.
    ///
    /// # Errors
    /// [`Error::Input`] for an empty prompt or noise of the wrong size, before any work; [`Error::Device`] from the
    /// machine, or when the latents are not finite.
    pub fn generate(&mut self, request: &Request, progress: &mut dyn FnMut(Progress)) -> Result<Output> {
        let started = Instant::now();
        let prompt_2 = request.prompt_2.as_ref().unwrap_or(&request.prompt);
        if !request.allow_empty_prompt && (request.prompt.trim().is_empty() || prompt_2.trim().is_empty()) {
            return Err(Error::Input(
                "the prompt is empty; say what to draw, or allow an empty prompt".to_string(),
            ));
        }
        if request.dump && self.dump_host.is_none() {
            return Err(Error::Input("this pipeline was bound without room for dumps".to_string()));
        }
        let noise = self.noise(request)?;
        let sigmas = self.sigmas()?;
        progress(Progress::TextEncoding);
        let mut prompts = vec![self.text.encode(&self.plan, &request.prompt, prompt_2)?];
        if self.plan.shape.true_cfg {
            prompts.push(self.text.encode(&self.plan, &request.negative_prompt, &request.negative_prompt)?);
        }
        self.fill_inputs(request, &noise, &sigmas, &prompts)?;
        let tokenise_ms = started.elapsed().as_secs_f64() * 1e3;

        let mut dumps = Dumps { on: request.dump, all: Vec::new() };
        for (prefix, prompt) in BRANCHES.iter().zip(&prompts) {
            dumps.ids(&format!("{prefix}tokens_clip"), &prompt.clip.ids);
            dumps.ids(&format!("{prefix}tokens_t5"), &prompt.t5.ids);
        }
        dumps.push("noise", vec![1, self.image_tokens(), self.channels()], noise);
        dumps.push("sigmas", vec![sigmas.len()], sigmas.clone());

        let generation = Generation {
            device: &self.device,
            plan: &self.plan,
            arena: &self.arena,
            host: &mut self.host,
            at: self.host_layout,
            dump_host: self.dump_host.as_mut(),
            clock: &mut self.clock,
        };
        generation.run(&prompts, request.true_cfg_scale, &sigmas, &mut dumps, progress)?;
        let timings = self.clock.read(&self.device, tokenise_ms)?;
        let at = self.host_layout;
        let bytes = self.host.as_slice();
        let nonfinite = u32::from_ne_bytes([0, 1, 2, 3].map(|i| bytes[at.nonfinite + i]));
        if nonfinite > 0 {
            return Err(Error::Device {
                device: self.device.capability().name.clone(),
                operation: "denoising".to_string(),
                reason: format!("{nonfinite} latents are not finite: the weights overflow bf16 or f32"),
            });
        }
        progress(Progress::Done);
        Ok(Output {
            width: self.plan.shape.width,
            height: self.plan.shape.height,
            rgb: bytes[at.rgb..at.rgb + self.plan.vae.rgb.num_bytes()].to_vec(),
            clip_tokens_dropped: prompts[0].clip.dropped,
            t5_tokens_dropped: prompts[0].t5.dropped,
            timings,
            dumps: dumps.all,
            notes: self.notes(request),
        })
    }

    /// What another run needs to draw the same picture (but for noise that was given).
    fn notes(&self, request: &Request) -> Vec<Note> {
        let mut notes = vec![("prompt", request.prompt.clone())];
        notes.extend(request.prompt_2.clone().map(|text| ("prompt_2", text)));
        if self.plan.shape.true_cfg {
            notes.push(("negative_prompt", request.negative_prompt.clone()));
            notes.push(("true_cfg_scale", request.true_cfg_scale.to_string()));
        }
        match &request.noise {
            Noise::Seeded(kind) => {
                notes.push(("seed", request.seed.to_string()));
                notes.push(("noise", kind.to_string()));
            }
            Noise::Given(_) => notes.push(("noise", "given".to_string())),
        }
        if self.plan.config.flux.guidance {
            notes.push(("guidance", request.guidance.to_string()));
        }
        if request.timesteps == TimeRounding::Bf16 {
            notes.push(("timesteps", "bf16".to_string()));
        }
        notes.extend([
            ("steps", self.plan.shape.steps.to_string()),
            ("t5_length", self.plan.shape.t5_length.to_string()),
            ("weights", self.plan.quantize.to_string()),
            ("model", self.digest.clone()),
            ("Software", concat!("schnell ", env!("CARGO_PKG_VERSION")).to_string()),
        ]);
        notes
    }

    fn image_tokens(&self) -> usize {
        self.plan.shape.image_tokens(&self.plan.config)
    }

    fn channels(&self) -> usize {
        self.plan.config.flux.in_channels
    }

    /// Packed noise, f32 `[image tokens, channels]`.
    fn noise(&self, request: &Request) -> Result<Vec<f32>> {
        let (height, width) = self.plan.shape.token_grid(&self.plan.config);
        let channels = self.plan.config.vae.latent_channels;
        match &request.noise {
            Noise::Seeded(kind) => {
                let shape = [1, channels, 2 * height, 2 * width];
                sampling::pack(&sampling::noise(*kind, request.seed, &shape), channels, 2 * height, 2 * width)
            }
            Noise::Given(noise) if noise.len() == self.image_tokens() * self.channels() => Ok(noise.clone()),
            Noise::Given(noise) => Err(Error::Input(format!(
                "noise of {} values; this size takes {} tokens x {} channels",
                noise.len(),
                self.image_tokens(),
                self.channels()
            ))),
        }
    }

    fn sigmas(&self) -> Result<Vec<f32>> {
        sampling::sigmas(&self.plan.config.scheduler, self.plan.shape.steps, self.image_tokens())
    }

    /// Everything that travels to the device, into the pinned buffer.
    fn fill_inputs(
        &mut self,
        request: &Request,
        noise: &[f32],
        sigmas: &[f32],
        prompts: &[Prompt],
    ) -> Result<()> {
        let at = self.host_layout;
        let (clip_bytes, t5_bytes) = (self.plan.clip.x.num_bytes(), self.plan.t5.x.num_bytes());
        let bytes = self.host.as_mut_slice();
        for (branch, prompt) in prompts.iter().enumerate() {
            let first = at.clip + branch * clip_bytes;
            let embedded: &mut [f32] = bytemuck::cast_slice_mut(&mut bytes[first..first + clip_bytes]);
            self.text.clip_embeddings.gather(&prompt.clip.ids, embedded)?;
            for (x, position) in embedded.iter_mut().zip(&self.text.clip_positions) {
                *x += position;
            }
            let first = at.t5 + branch * t5_bytes;
            let embedded: &mut [f32] = bytemuck::cast_slice_mut(&mut bytes[first..first + t5_bytes]);
            self.text.t5_embeddings.gather(&prompt.t5.ids, embedded)?;
        }
        let mut put = |at: usize, values: &[u8]| bytes[at..at + values.len()].copy_from_slice(values);
        for (step, sigma) in sigmas[..self.plan.shape.steps].iter().enumerate() {
            let sinusoid = sampling::timestep_embedding(*sigma, request.timesteps);
            put(at.sinusoids + step * size_of_val(&sinusoid), bytemuck::cast_slice(&sinusoid));
        }
        put(
            at.guidance,
            bytemuck::cast_slice(&sampling::guidance_embedding(request.guidance, request.timesteps)),
        );
        put(at.latents, bytemuck::cast_slice(noise));
        let rounded: Vec<bf16> = noise.iter().map(|v| bf16::from_f32(*v)).collect();
        put(at.latents_bf16, bytemuck::cast_slice(&rounded));
        put(at.nonfinite, &[0; 4]);
        Ok(())
    }
}

/// The parts of a [`Pipeline`] that a run uses, borrowed apart.
struct Generation<'a> {
    device: &'a Device,
    plan: &'a Plan,
    arena: &'a Arena,
    host: &'a mut HostBuffer,
    at: HostLayout,
    dump_host: Option<&'a mut HostBuffer>,
    clock: &'a mut Clock,
}

impl Generation<'_> {
    /// The run: copies, launches and events; waits only to stay at most one stage ahead, and at the end.
    fn run(
        mut self,
        prompts: &[Prompt],
        true_cfg_scale: f32,
        sigmas: &[f32],
        dumps: &mut Dumps,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<()> {
        let (plan, at, device) = (self.plan, self.at, self.device);
        let buffers = &plan.flux.buffers;
        let run = Run { device, arena: self.arena };
        self.clock.start(device)?;
        let branches = plan.shape.branches();
        self.arena.enter(Phase::Clip)?;
        for (branch, prompt) in prompts.iter().enumerate() {
            self.send(&plan.clip.x, at.clip + branch * plan.clip.x.num_bytes())?;
            plan.clip.run(&run, branch, prompt.clip.pooled_index(plan.config.clip.pooling))?;
        }
        self.clock.stage(device, "clip")?;
        for (branch, prefix) in BRANCHES.iter().enumerate().take(branches) {
            let shape = vec![1, plan.config.clip.width];
            self.dump(dumps, &format!("{prefix}clip_pooled"), &plan.clip.pooled(&run, branch)?, shape)?;
        }

        self.arena.enter(Phase::T5)?;
        for branch in 0..branches {
            self.send(&plan.t5.x, at.t5 + branch * plan.t5.x.num_bytes())?;
            plan.t5.run(&run, branch)?;
        }
        self.clock.stage(device, "t5")?;
        for (branch, prefix) in BRANCHES.iter().enumerate().take(branches) {
            let shape = vec![1, plan.shape.t5_length, plan.config.t5.width];
            self.dump(dumps, &format!("{prefix}t5_embeds"), &plan.t5.context(&run, branch)?, shape)?;
        }

        self.arena.enter(Phase::Modulation)?;
        self.send(&buffers.sinusoids, at.sinusoids)?;
        self.send(&buffers.guidance, at.guidance)?;
        for branch in 0..branches {
            plan.flux.modulate(&run, branch, &plan.clip.pooled(&run, branch)?)?;
        }
        self.clock.stage(device, "modulation")?;

        self.arena.enter(Phase::Steps)?;
        self.send(&buffers.latents, at.latents)?;
        self.send(&buffers.latents_bf16, at.latents_bf16)?;
        self.send(&plan.nonfinite, at.nonfinite)?;
        let (latents, latents_bf16) = (run.view(&buffers.latents)?, run.view(&buffers.latents_bf16)?);
        let velocity = plan.flux.velocity_of(&run, 0)?;
        let negative = (branches > 1).then(|| plan.flux.velocity_of(&run, 1)).transpose()?;
        let packed = vec![1, plan.shape.image_tokens(&plan.config), plan.config.flux.in_channels];
        for step in 0..plan.shape.steps {
            progress(Progress::Step { index: step, total: plan.shape.steps });
            for branch in 0..branches {
                plan.flux.velocity(&run, branch, step, &plan.t5.context(&run, branch)?)?;
            }
            EulerStep {
                latents: &latents,
                velocity: &velocity,
                negative: negative.as_ref().map(|view| (view, true_cfg_scale)),
                latents_bf16: &latents_bf16,
                dt: sigmas[step + 1] - sigmas[step],
            }
            .launch(device, Run::STREAM)?;
            self.clock.stage(device, format!("step {step}"))?;
            self.clock.keep_pace(device)?;
            for (branch, prefix) in BRANCHES.iter().enumerate().take(branches) {
                let velocity = plan.flux.velocity_of(&run, branch)?;
                self.dump(dumps, &format!("{prefix}noise_pred_{step}"), &velocity, packed.clone())?;
            }
            self.dump(dumps, &format!("latents_{step}"), &latents, packed.clone())?;
        }
        let nonfinite = run.view(&plan.nonfinite)?;
        CountNonfinite { x: &latents, counter: &nonfinite }.launch(device, Run::STREAM)?;

        progress(Progress::Decoding);
        self.arena.enter(Phase::Decode)?;
        plan.vae.run(&run, &latents)?;
        self.clock.stage(device, "vae")?;
        device.copy_to_host(Run::STREAM, self.host, at.rgb, &run.view(&plan.vae.rgb)?)?;
        device.copy_to_host(Run::STREAM, self.host, at.nonfinite, &nonfinite)?;
        self.clock.stage(device, "copy")?;
        device.synchronize(Run::STREAM)?;
        let (height, width) = (plan.shape.height, plan.shape.width);
        if dumps.on {
            let pixels = self.read_back(&run.view(&plan.vae.image)?)?;
            // [h, w, 4] to [1, 3, h, w]
            let planar = (0..3).flat_map(|c| pixels.chunks(OUT_PITCH).map(move |pixel| pixel[c])).collect();
            dumps.push("vae_out", vec![1, 3, height, width], planar);
        }
        Ok(())
    }

    fn send<T>(&self, slot: &Slot<T>, at: usize) -> Result<()> {
        self.device.copy_to_device(Run::STREAM, &self.arena.view(slot)?, self.host, at)
    }

    fn dump<T: ToF32>(
        &mut self,
        dumps: &mut Dumps,
        stage: &str,
        view: &View<T>,
        shape: Vec<usize>,
    ) -> Result<()> {
        if dumps.on {
            dumps.push(stage, shape, self.read_back(view)?);
        }
        Ok(())
    }

    fn read_back<T: ToF32>(&mut self, view: &View<T>) -> Result<Vec<f32>> {
        let Some(host) = self.dump_host.as_deref_mut() else { return Ok(Vec::new()) };
        self.device.copy_to_host(Run::STREAM, host, 0, view)?;
        self.device.synchronize(Run::STREAM)?;
        Ok(T::to_f32s(&host.as_slice()[..view.num_bytes()]))
    }
}

/// What a dump can be read from.
trait ToF32 {
    fn to_f32s(bytes: &[u8]) -> Vec<f32>;
}

impl ToF32 for f32 {
    fn to_f32s(bytes: &[u8]) -> Vec<f32> {
        bytemuck::cast_slice(bytes).to_vec()
    }
}

impl ToF32 for bf16 {
    fn to_f32s(bytes: &[u8]) -> Vec<f32> {
        bytemuck::cast_slice::<u8, bf16>(bytes).iter().map(|v| v.to_f32()).collect()
    }
}

struct Dumps {
    on: bool,
    all: Vec<Dump>,
}

impl Dumps {
    fn push(&mut self, stage: &str, shape: Vec<usize>, values: Vec<f32>) {
        if self.on {
            self.all.push(Dump { stage: stage.to_string(), shape, values: DumpValues::F32(values) });
        }
    }

    fn ids(&mut self, stage: &str, ids: &[u32]) {
        if self.on {
            let values = DumpValues::Ids(ids.to_vec());
            self.all.push(Dump { stage: stage.to_string(), shape: vec![1, ids.len()], values });
        }
    }
}

impl Dump {
    /// Writes `<dir>/<stage>.safetensors` with this one tensor, named by its stage: f32, or i32 for ids.
    ///
    /// # Errors
    /// [`Error::Io`] when the file cannot be written.
    pub fn save(&self, dir: &Path) -> Result<PathBuf> {
        let (dtype, bytes): (_, Vec<u8>) = match &self.values {
            DumpValues::Ids(ids) => {
                (crate::weights::Dtype::I32, ids.iter().flat_map(|v| v.to_le_bytes()).collect())
            }
            DumpValues::F32(v) => {
                (crate::weights::Dtype::F32, v.iter().flat_map(|v| v.to_le_bytes()).collect())
            }
        };
        let path = dir.join(format!("{}.safetensors", self.stage));
        let bad = |e: safetensors::SafeTensorError| Error::weights(&path, e.to_string());
        let view = safetensors::tensor::TensorView::new(dtype, self.shape.clone(), &bytes).map_err(bad)?;
        let file = safetensors::serialize([(self.stage.as_str(), view)], None).map_err(bad)?;
        crate::image::write_whole(&path, &file)?;
        Ok(path)
    }
}
