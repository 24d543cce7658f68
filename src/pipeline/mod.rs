//! Prompt in, picture out: [`Model`] (a folder, opened and checked), [`Plan`] (what it takes), [`Pipeline`] (on a device,
//! weights loaded), [`Pipeline::generate`].
//!
//! Reading order: `folder.rs`, `model.rs`, `plan.rs`, `predict.rs`, `machine.rs`, `builder.rs`, `request.rs` (`noise_file.rs` beside it),
//! `load.rs` (binding), `disk.rs` (weights that stay there), `cache.rs` (prompts seen before), `run.rs` (the one loop that enqueues),
//! `dumps.rs`, `preview.rs` and `trace.rs` (who looks on), `pixels.rs` (where a picture goes), `output.rs`, `receipt.rs`, `seeds.rs`, `timing.rs`,
//! `times.rs` (what is learnt of them), `deadline.rs`, `recover.rs`. Beside them `loras.rs`: what may be changed of a model; `quantize.rs`: a folder from another;
//! `inspect.rs`: what files are.
//!
//! ```
//! use schnell::{Model, Pipeline, Request, Shape, gib};
//! # fn main() -> schnell::Result<()> {
//! let model = Model::demo()?;
//! let mut pipeline = Pipeline::builder(&model).budget(gib(0.5)).warm_up([Shape::square(64)]).load()?;
//! println!("{}", pipeline.plan());
//! let image = pipeline.generate(&Request::new("a red circle").seed(42))?;
//! assert_eq!(image.rgb.len(), 64 * 64 * 3);
//! # Ok(()) }
//! ```

mod builder;
mod cache;
mod deadline;
mod disk;
mod dumps;
mod folder;
mod inspect;
mod load;
mod loras;
mod machine;
mod model;
mod noise_file;
mod output;
mod pixels;
pub mod plan;
mod predict;
mod preview;
mod quantize;
mod ranges;
mod receipt;
mod recover;
mod request;
mod run;
mod seeds;
mod shape;
mod times;
pub mod timing;
mod trace;
mod traffic;

use std::ops::ControlFlow::{self, Continue};
use std::sync::Arc;
use std::time::{Duration, Instant};

use half::bf16;

use crate::device::{Capability, Device, HostBuffer};
use crate::memory::arena::Arena;
use crate::models::flux::t5;
use crate::program::{HostRange, Run};
use crate::sampling;
use crate::weights::lora::Lora;
use crate::{Error, Result};

pub use crate::models::layers::{Precision, Quantize};
pub use builder::PipelineBuilder;
use cache::{Encoding, Modulated, PromptCache};
pub use deadline::Late;
use deadline::{Pace, Watch};
use disk::Disk;
use dumps::Dumps;
pub use folder::ModelFolder;
pub use inspect::{InspectedPart, Inspection, StoredType, Use};
use load::{Binding, Prompt, TextInput};
pub use model::Model;
pub use noise_file::NoiseFile;
pub use output::{Dump, DumpValues, Output};
use pixels::Destination;
pub use pixels::{OutputBuffer, Pixels};
use plan::ShapePlan;
pub use plan::{Plan, Region, Work, gib, human_bytes};
pub use predict::{Card, Interval, Prediction};
pub use preview::Preview;
use preview::{Slots, Viewer};
pub use quantize::{QuantizedLinear, Quantizer};
use ranges::Range;
pub use receipt::{Receipt, Recipe};
pub use request::{Noise, Progress, Request};
use run::{Bound, Pinned, Watchers};
pub use shape::Shape;
use times::Times;
use timing::HostClock;
pub use trace::Trace;
pub use traffic::Traffic;

/// Whether to go on: see [`Progress`].
pub type OnProgress<'a> = dyn FnMut(Progress) -> ControlFlow<()> + 'a;

/// Shapes that stay bound; the one that was used longest ago goes when another comes.
const MAX_BOUND: usize = 8;

/// A plan bound to a device, with all weights in place. Generates one picture after another without allocating.
#[derive(Debug)]
pub struct Pipeline {
    device: Device,
    plan: Plan,
    arena: Arena,
    /// The last was used last.
    bound: Vec<Bound>,
    /// Streamed weights.
    pinned: Option<HostBuffer>,
    /// Those for which pinned memory has no room.
    disk: Option<Disk>,
    host: HostBuffer,
    /// The shape whose tables `host` holds.
    filled: Option<Shape>,
    dump_host: Option<HostBuffer>,
    previews: Option<Slots>,
    text: TextInput,
    /// On a GPU.
    overhead: Option<u64>,
    cache: PromptCache,
    digest: String,
    /// In words.
    loras: String,
    /// The same, to put them back.
    loras_in_use: Vec<(Lora, f32)>,
    times: Times,
    /// How it was loaded.
    binding: Binding,
    /// Why nothing of it is to be trusted, or nothing of it is there.
    poisoned: Option<String>,
}

impl Pipeline {
    /// How to load `model`:
    ///
    /// ```
    /// # use schnell::{Model, Pipeline, Shape, gib};
    /// # fn main() -> schnell::Result<()> {
    /// let model = Model::demo()?;
    /// let pipeline = Pipeline::builder(&model).budget(gib(0.5)).warm_up([Shape::square(64)]).load()?;
    /// assert!(pipeline.plan().arena_bytes() < gib(0.5));
    /// # Ok(()) }
    /// ```
    pub fn builder(model: &Model) -> PipelineBuilder<'_> {
        PipelineBuilder::new(model)
    }

    /// The machine that it is on.
    pub fn capability(&self) -> &Capability {
        self.device.capability()
    }

    /// The machine itself, for [`DeviceBuffer`](crate::DeviceBuffer)s on it.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// What this pipeline was planned as.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Bytes of device memory that the driver has taken while this pipeline was loaded, beside the arena: for the code of kernels,
    /// for graphs, streams and events. Measured by what is free before and after, so that whoever else takes memory meanwhile counts, too. The
    /// context, which is there as soon as the device is open, does not. Nothing on the emulator, which has no driver.
    pub fn overhead_bytes(&self) -> Option<u64> {
        self.overhead
    }

    /// Binds another shape to the same weights and memory, so that the first picture of it needs no preparation. No device
    /// memory is allocated, nothing is loaded; which is why its launches are made one by one, and not as the
    /// [graphs](PipelineBuilder::graphs) that shapes have which the pipeline was loaded with.
    ///
    /// # Errors
    /// [`Error::Capacity`] with both numbers when it does not fit the arena, [`Error::Input`] for a shape that cannot be,
    /// [`Error::Poisoned`] after the device has been lost.
    pub fn warm_up(&mut self, shape: Shape) -> Result<()> {
        self.check_usable()?;
        if let Some(at) = self.bound.iter().position(|bound| bound.shape() == shape) {
            let bound = self.bound.remove(at);
            self.bound.push(bound);
            return Ok(());
        }
        let planned = self.plan.shapes.iter().find(|planned| planned.shape == shape).cloned();
        let planned = match planned {
            Some(planned) => planned,
            None => Arc::new(self.plan.plan_shape(shape)?),
        };
        if planned.placed.bytes > self.arena.num_bytes() {
            return Err(Error::Capacity {
                what: format!("a {} x {} image", shape.width, shape.height),
                needed_bytes: planned.placed.bytes as u64,
                available_bytes: self.arena.num_bytes() as u64,
                advice: "plan the pipeline with the largest shape that it shall draw".to_string(),
            });
        }
        let latent_bytes = planned.inputs.latents.bytes;
        let is_short = self.previews.as_ref().is_some_and(|slots| slots.is_short_of(latent_bytes));
        if is_short || planned.host_bytes > self.host.num_bytes() {
            self.check_host_budget(&planned)?;
        }
        if planned.host_bytes > self.host.num_bytes() {
            self.host = self.device.allocate_host(planned.host_bytes)?;
            self.filled = None;
        }
        if let Some(slots) = &mut self.previews {
            slots.fit(&self.device, latent_bytes)?;
        }
        if let Some(dump) = &mut self.dump_host
            && planned.dump_bytes() > dump.num_bytes()
        {
            *dump = self.device.allocate_host(planned.dump_bytes())?;
        }
        // No graphs: for them the driver would take memory.
        let bound = Bound::new(planned, &self.plan, &self.device, &self.arena, false)?;
        if self.bound.len() == MAX_BOUND {
            self.bound.remove(0);
        }
        self.bound.push(bound);
        Ok(())
    }

    /// Refuses a shape whose inputs and outputs the budget of pinned memory has no room for, beside all that is pinned now.
    fn check_host_budget(&self, planned: &Arc<ShapePlan>) -> Result<()> {
        let Some(budget) = self.plan.host_budget else { return Ok(()) };
        let needed = self.plan.pinned_weights()
            + self.disk.as_ref().map_or(0, Disk::pinned_bytes)
            + self.host.num_bytes() as u64
            + planned.host_bytes as u64
            + self
                .previews
                .as_ref()
                .map_or(0, |slots| slots.num_bytes() + preview::bytes(std::slice::from_ref(planned)));
        if needed <= budget {
            return Ok(());
        }
        let Shape { width, height, steps, .. } = planned.shape;
        Err(Error::Capacity {
            what: format!("pinned host memory, with a {width} x {height} image of {steps} steps,"),
            needed_bytes: needed,
            available_bytes: budget,
            advice: "plan the pipeline with that shape, too, or allow more".to_string(),
        })
    }

    /// Draws one picture.
    ///
    /// # Errors
    /// [`Error::Input`] for an empty prompt or noise of the wrong size, [`Error::Capacity`] for a shape that does not fit,
    /// before any work; [`Error::Device`] from the machine, and from then on [`Error::Poisoned`] if it is lost by that, until
    /// [`Pipeline::recover`]; [`Error::NotFinite`] when numbers are not, naming the place. After every error but that one the next
    /// picture is drawn as if nothing had been.
    pub fn generate(&mut self, request: &Request) -> Result<Output> {
        self.generate_with(request, &mut |_| Continue(()))
    }

    /// As [`Pipeline::generate`], the pixels into `buffer`, which may be on the host or on the device; [`Output::rgb`] is left empty. What
    /// is in the buffer after an error is not said.
    ///
    /// ```
    /// # use schnell::{Model, OutputBuffer, Pipeline, Request, Shape};
    /// # fn main() -> schnell::Result<()> {
    /// let model = Model::demo()?;
    /// let mut pipeline = Pipeline::builder(&model).warm_up([Shape::square(64)]).f32_pixels().load()?;
    /// let mut unit = vec![0.0; 3 * 64 * 64];
    /// pipeline.generate_into(&Request::new("a red circle"), OutputBuffer::F32Chw(&mut unit))?;
    /// assert!(unit.iter().all(|value| (0.0..=1.0).contains(value)));
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Its own, and before any work [`Error::Input`] when the buffer has not exactly the picture's size, is not on this pipeline's
    /// device, or is for floats that the pipeline has no room for.
    pub fn generate_into<'b>(
        &mut self,
        request: &Request,
        buffer: impl Into<OutputBuffer<'b>>,
    ) -> Result<Output> {
        self.generate_into_with(request, buffer, &mut |_| Continue(()))
    }

    /// As [`Pipeline::generate_into`], telling how far it has come.
    ///
    /// # Errors
    /// Its own, and [`Error::Stopped`] when `progress` says so.
    pub fn generate_into_with<'b>(
        &mut self,
        request: &Request,
        buffer: impl Into<OutputBuffer<'b>>,
        progress: &mut OnProgress<'_>,
    ) -> Result<Output> {
        self.draw(request, progress, None, Destination::Buffer(buffer.into()))
    }

    /// As [`Pipeline::generate`], telling how far it has come.
    ///
    /// # Errors
    /// Its own, and [`Error::Stopped`] when `progress` says so.
    pub fn generate_with(&mut self, request: &Request, progress: &mut OnProgress<'_>) -> Result<Output> {
        let mut rgb = Vec::new();
        let mut output = self.draw(request, progress, None, Destination::Own(&mut rgb))?;
        output.rgb = rgb;
        Ok(output)
    }

    /// As [`Pipeline::generate_with`], giving each step's [`Preview`] to `preview`: in order, as soon as the step after it is under way,
    /// and that of the last while the decoder is at work. Takes a pipeline with [`PipelineBuilder::previews`]. The device computes nothing
    /// more and the host waits no more often; the picture is the same.
    ///
    /// # Errors
    /// Those of [`Pipeline::generate_with`], and [`Error::Input`] for a pipeline without previews, before any work.
    pub fn generate_previewed(
        &mut self,
        request: &Request,
        progress: &mut OnProgress<'_>,
        preview: &mut dyn FnMut(Preview),
    ) -> Result<Output> {
        let mut rgb = Vec::new();
        let mut output = self.draw(request, progress, Some(preview), Destination::Own(&mut rgb))?;
        output.rgb = rgb;
        Ok(output)
    }

    /// [`Pipeline::warm_up`], in a phase of its own for a shape that was not ready.
    fn bind_in_time(&mut self, shape: Shape, clock: &mut HostClock) -> Result<()> {
        if self.bound.iter().any(|bound| bound.shape() == shape) {
            return self.warm_up(shape);
        }
        clock.begin("bind");
        self.warm_up(shape)?;
        clock.end();
        Ok(())
    }

    /// One picture, but for its pixels, which go to `destination`.
    fn draw(
        &mut self,
        request: &Request,
        progress: &mut OnProgress<'_>,
        preview: Option<&mut dyn FnMut(Preview)>,
        mut destination: Destination<'_>,
    ) -> Result<Output> {
        let started = Instant::now();
        let asked = request.shape(self.plan.shape());
        let (Shape { width, height, steps, .. }, seed) = (asked, request.seed);
        let span = tracing::info_span!("generate", width, height, steps, seed);
        let _range = Range::of(span, format_args!("generate {width}x{height}, {steps} steps, seed {seed}"));
        let mut clock = HostClock::new(started, request.trace, "tokenize");
        self.check(request)?;
        destination.check(&asked, &self.device, self.plan.how().floats)?;
        let _entered = self.device.enter()?;
        let mut shape = asked;
        shape.check(self.plan.config())?;
        let prompts = self.tokenize(request, &shape)?;
        if request.late == Late::FewerSteps {
            let run = if self.cache.get(&prompts).is_some() { Run::Encoded } else { Run::Fresh };
            shape.steps = self.admit(request, &shape, run)?;
        }
        clock.end();
        self.bind_in_time(shape, &mut clock)?;
        clock.begin("inputs");
        let noise = self.noise(request, &shape)?;
        let sigmas = self.sigmas(&shape)?;
        // What is dumped are the encoders' own results.
        let known = if request.dump { None } else { self.cache.get(&prompts) };
        self.fill_inputs(request, &shape, &noise, &sigmas)?;
        let modulated = self.modulated(&prompts)?;
        let run = match &known {
            Some(encodings) => self.fill_encodings(encodings, &modulated)?,
            None => self.fill_prompts(&prompts)?,
        };
        self.admit(request, &shape, run)?;
        let viewer =
            preview.map(|tell| Viewer::new(self.previews.as_mut(), &self.plan, &shape, noise.clone(), tell));
        let viewer = viewer.transpose()?;
        let mut dumps = Dumps { on: request.dump, all: Vec::new() };
        let config = self.plan.config();
        dumps.before(&prompts, noise, &sigmas, [shape.image_tokens(config), config.flux.in_channels]);
        clock.end();

        let bound = self.bound.last_mut().ok_or_else(|| Error::Internal("nothing is bound".to_string()))?;
        let pinned = Pinned {
            weights: self.pinned.as_ref(),
            disk: self.disk.as_mut(),
            host: &mut self.host,
            dumps: self.dump_host.as_mut(),
        };
        let last = request.estimate_after.unwrap_or(shape.steps).min(shape.steps);
        let watch = Watch::new(request.deadline, request.late, self.times.expected(&shape, run), last);
        let pace = Pace { watch, started, sigmas: &sigmas, done: 0 };
        let (tracer, on_device) = (clock.tracer.take(), destination.on_device());
        let mut watchers = Watchers { progress: &mut *progress, pace, dumps, viewer, tracer, on_device };
        bound.run(run, &self.device, pinned, &mut watchers)?;
        let Watchers { pace, dumps, tracer, .. } = watchers;
        clock.tracer = tracer;
        clock.begin("receipt");
        let estimate = Some(pace.done).filter(|done| *done < shape.steps);
        let mut timings = bound.timings(&self.device, clock.phases())?;
        // What waited for these bytes has told nobody.
        self.host.trusted()?;
        self.check_finite()?;
        self.remember(run, &prompts, modulated)?;
        let receipt = self.hand_over(&mut destination)?;
        timings.push("receipt", clock.end());
        timings.tell(&shape, request.seed);
        // Dumps take time that other pictures do not.
        if estimate.is_none() && !request.dump {
            self.times.learn(&shape, run, &timings, started.elapsed().as_secs_f64() * 1e3);
        }
        // There is nothing left to stop.
        let _ = progress(Progress::Done);
        Ok(Output {
            width: shape.width,
            height: shape.height,
            rgb: Vec::new(),
            warnings: output::warnings(request, &self.plan, &prompts[0], &shape, estimate),
            clip_tokens_dropped: prompts[0].clip.dropped,
            t5_tokens_dropped: prompts[0].t5.dropped,
            timings,
            dumps: dumps.all,
            trace: clock.tracer.map(|tracer| tracer.finish(&self.device)),
            notes: output::notes(request, &self.plan, &shape, estimate, &receipt),
            receipt,
            estimate,
        })
    }

    /// What a run has left in the pinned buffer.
    fn taken(&self, range: HostRange) -> &[u8] {
        &self.host.as_slice()[range.start..range.start + range.bytes]
    }

    fn used(&self) -> Result<&Bound> {
        self.bound.last().ok_or_else(|| Error::Internal("nothing is bound".to_string()))
    }

    /// Refuses a picture on whose way a number was not finite.
    fn check_finite(&self) -> Result<()> {
        let outputs = self.used()?.outputs();
        let counts: &[u32] = bytemuck::cast_slice(self.taken(outputs.nonfinite));
        match outputs.places.iter().zip(counts).find(|(_, count)| **count > 0) {
            Some((place, count)) => {
                Err(Error::NotFinite { place: place.to_string(), count: u64::from(*count) })
            }
            None => Ok(()),
        }
    }

    /// Keeps what was computed of these prompts, for the next picture of them.
    fn remember(&mut self, run: Run, prompts: &[Prompt], modulated: Modulated) -> Result<()> {
        let bound = self.bound.last().ok_or_else(|| Error::Internal("nothing is bound".to_string()))?;
        let (bytes, inputs) = (self.host.as_slice(), bound.inputs());
        let take = |range: HostRange| &bytes[range.start..range.start + range.bytes];
        if let Some(range) = inputs.modulations.filter(|_| run != Run::Modulated) {
            self.cache.put_modulations(modulated, || take(range).into());
        }
        if run == Run::Fresh {
            for (prompt, ranges) in prompts.iter().zip(inputs.pooled.iter().zip(&inputs.context)) {
                let (pooled, context) = (take(*ranges.0), take(*ranges.1));
                self.cache.put(prompt, || Encoding { pooled: pooled.into(), context: context.into() });
            }
        }
        Ok(())
    }

    /// Brings a run's pixels to where they are wanted.
    fn hand_over(&self, destination: &mut Destination<'_>) -> Result<Receipt> {
        let outputs = self.used()?.outputs();
        let (latents, rgb) = (self.taken(outputs.latents), self.taken(outputs.rgb));
        let unit_rgb = outputs.unit_rgb.map(|range| bytemuck::cast_slice(self.taken(range)));
        destination.keep(rgb, unit_rgb)?;
        Ok(Receipt::new(&self.plan, [&self.digest, &self.loras], latents, rgb))
    }

    /// Refuses what no picture can be drawn of.
    fn check(&self, request: &Request) -> Result<()> {
        self.check_usable()?;
        let prompt_2 = request.prompt_2.as_ref().unwrap_or(&request.prompt);
        if !request.allow_empty_prompt && (request.prompt.trim().is_empty() || prompt_2.trim().is_empty()) {
            return Err(Error::Input(
                "the prompt is empty; say what to draw, or allow an empty prompt".to_string(),
            ));
        }
        if request.dump && self.dump_host.is_none() {
            return Err(Error::Input("this pipeline was loaded without room for dumps".to_string()));
        }
        let steps = request.shape(self.plan.shape()).steps;
        match request.estimate_after {
            Some(last) if last == 0 || last > steps => {
                Err(Error::Input(format!("an estimate after {last} steps of {steps}; use 1 to {steps}")))
            }
            _ => Ok(()),
        }
    }

    /// The tokens of every branch.
    fn tokenize(&self, request: &Request, shape: &Shape) -> Result<Vec<Prompt>> {
        let prompt_2 = request.prompt_2.as_ref().unwrap_or(&request.prompt);
        let mut prompts = vec![self.text.encode(&self.plan, shape, &request.prompt, prompt_2)?];
        if shape.true_cfg {
            let negative = request.negative_prompt.as_deref().unwrap_or_default();
            prompts.push(self.text.encode(&self.plan, shape, negative, negative)?);
        }
        Ok(prompts)
    }

    /// In how many steps it is drawn, of those of `shape`.
    fn admit(&self, request: &Request, shape: &Shape, run: Run) -> Result<usize> {
        match request.deadline.zip(self.times.expected(shape, run)) {
            Some((deadline, expected)) => deadline::admit(deadline, request.late, shape.steps, &expected),
            None => Ok(shape.steps),
        }
    }

    /// How long a picture is expected to take, by what pictures of its size took on this pipeline, and by what
    /// [`PipelineBuilder::calibrate`] has of this machine; of a prompt seen before if `again`. Nothing if there were none.
    pub fn expected(&self, request: &Request, again: bool) -> Option<Duration> {
        let shape = request.shape(self.plan.shape());
        let run = if again { Run::Modulated } else { Run::Fresh };
        let ms = self.times.expected(&shape, run)?.total(shape.steps);
        Duration::try_from_secs_f64(ms / 1e3).ok()
    }

    /// Whether all bytes between regions are what they were, of a plan [with guards](Plan::with_guards); how many guards there are.
    ///
    /// # Errors
    /// [`Error::Mismatch`] naming the first region behind which something was written.
    #[cfg(feature = "check")]
    pub fn check_guards(&self) -> Result<usize> {
        self.check_usable()?;
        let placed = &self.plan.shapes[0].placed;
        for guard in &placed.guards {
            let mut host = self.device.allocate_host(guard.len())?;
            let view = self.arena.bytes(guard.start, guard.len())?;
            self.device.copy_to_host(crate::program::STREAM, &mut host, 0, &view)?;
            self.device.synchronize(crate::program::STREAM)?;
            if let Some(at) = host.as_slice().iter().position(|byte| *byte != load::GUARD) {
                let buffers = placed.program.buffers.iter().zip(&placed.offsets);
                let before = buffers.filter(|(_, offset)| **offset < guard.start);
                let before = before.max_by_key(|(_, offset)| **offset).map_or("", |(buffer, _)| &buffer.name);
                return Err(Error::Mismatch(format!("byte {at} behind {before} has been written")));
            }
        }
        Ok(placed.guards.len())
    }

    /// Noise levels, f32 `[steps + 1]`.
    fn sigmas(&self, shape: &Shape) -> Result<Vec<f32>> {
        let config = self.plan.config();
        let tokens = shape.image_tokens(config);
        let sigmas = sampling::sigmas(&config.scheduler, shape.steps, tokens)?;
        match sigmas.iter().find(|sigma| !sigma.is_finite()) {
            None => Ok(sigmas),
            Some(sigma) => Err(Error::Input(format!(
                "the scheduler's shifts make a sigma {sigma} of {tokens} image tokens: ask for a smaller image"
            ))),
        }
    }

    /// Packed noise, f32 `[image tokens, channels]`.
    fn noise(&self, request: &Request, shape: &Shape) -> Result<Vec<f32>> {
        let config = self.plan.config();
        let (height, width) = shape.token_grid(config);
        let channels = config.vae.latent_channels;
        let (tokens, packed_channels) = (shape.image_tokens(config), config.flux.in_channels);
        match &request.noise {
            Noise::Seeded(kind) => {
                let shape = [1, channels, 2 * height, 2 * width];
                sampling::pack(&sampling::noise(*kind, request.seed, &shape), channels, 2 * height, 2 * width)
            }
            Noise::Given(noise) if noise.len() == tokens * packed_channels => {
                match noise.iter().position(|value| !value.is_finite()) {
                    None => Ok(noise.clone()),
                    Some(i) => Err(Error::Input(format!("noise value {i} is {}: not finite", noise[i]))),
                }
            }
            Noise::Given(noise) => Err(Error::Input(format!(
                "noise of {} values; this size takes {tokens} tokens x {packed_channels} channels",
                noise.len(),
            ))),
        }
    }

    /// The prompts' embeddings, into the pinned buffer; which kind of run that makes.
    fn fill_prompts(&mut self, prompts: &[Prompt]) -> Result<Run> {
        let config = self.plan.config();
        let bound = self.bound.last().ok_or_else(|| Error::Internal("nothing is bound".to_string()))?;
        let inputs = bound.inputs();
        let bytes = self.host.as_mut_slice();
        for (branch, prompt) in prompts.iter().enumerate() {
            let embedded: &mut [f32] = bytemuck::cast_slice_mut(part(bytes, inputs.clip[branch]));
            self.text.clip_embeddings.gather(&prompt.clip.ids, embedded)?;
            for (x, position) in embedded.iter_mut().zip(&self.text.clip_positions) {
                *x += position;
            }
            let index = prompt.clip.pooled_index(config.clip.pooling) as i32;
            put(bytes, inputs.clip_index[branch], &[index]);
            let embedded: &mut [f32] = bytemuck::cast_slice_mut(part(bytes, inputs.t5[branch]));
            self.text.t5_embeddings.gather(&prompt.t5.ids, embedded)?;
        }
        Ok(Run::Fresh)
    }

    /// What modulation is computed of, in the pinned buffer and of these prompts.
    fn modulated(&self, prompts: &[Prompt]) -> Result<Modulated> {
        let bound = self.bound.last().ok_or_else(|| Error::Internal("nothing is bound".to_string()))?;
        let (bytes, inputs) = (self.host.as_slice(), bound.inputs());
        let ranges = [Some(inputs.sinusoids), inputs.guidance];
        let taken =
            ranges.into_iter().flatten().flat_map(|range| &bytes[range.start..range.start + range.bytes]);
        Ok(Modulated {
            prompts: prompts.iter().map(|prompt| prompt.clip.ids.clone()).collect(),
            times: taken.copied().collect(),
        })
    }

    /// What was computed before, into the pinned buffer; which kind of run that makes.
    fn fill_encodings(&mut self, encodings: &[Encoding], modulated: &Modulated) -> Result<Run> {
        let bound = self.bound.last().ok_or_else(|| Error::Internal("nothing is bound".to_string()))?;
        let inputs = bound.inputs();
        let bytes = self.host.as_mut_slice();
        for (encoding, ranges) in encodings.iter().zip(inputs.pooled.iter().zip(&inputs.context)) {
            put(bytes, *ranges.0, &encoding.pooled);
            put(bytes, *ranges.1, &encoding.context);
        }
        match inputs.modulations.zip(self.cache.modulations(modulated)) {
            Some((range, modulations)) => {
                put(bytes, range, modulations);
                Ok(Run::Modulated)
            }
            None => Ok(Run::Encoded),
        }
    }

    /// Everything else that travels to the device, into the pinned buffer.
    fn fill_inputs(&mut self, request: &Request, shape: &Shape, noise: &[f32], sigmas: &[f32]) -> Result<()> {
        let config = self.plan.config();
        let bound = self.bound.last().ok_or_else(|| Error::Internal("nothing is bound".to_string()))?;
        let inputs = bound.inputs();
        let bytes = self.host.as_mut_slice();
        if self.filled != Some(*shape) {
            let (height, width) = shape.token_grid(config);
            let (cos, sin) =
                sampling::rope_tables(config.flux.axes, config.flux.theta, shape.t5_length, height, width);
            put(bytes, inputs.rope_cos, &cos);
            put(bytes, inputs.rope_sin, &sin);
            let bias = t5::relative_bias(&config.t5, shape.t5_length, &self.text.t5_bias_by_bucket);
            put(bytes, inputs.t5_bias, &bias);
            self.filled = Some(*shape);
        }
        let mut sinusoids = Vec::with_capacity(shape.steps * sampling::tables::SINUSOID);
        for sigma in &sigmas[..shape.steps] {
            sinusoids.extend(sampling::timestep_embedding(*sigma, request.timesteps));
        }
        put(bytes, inputs.sinusoids, &sinusoids);
        if let Some(range) = inputs.guidance {
            put(bytes, range, &sampling::guidance_embedding(request.guidance_scale(), request.timesteps));
        }
        put(bytes, inputs.latents, noise);
        let rounded: Vec<bf16> = noise.iter().map(|v| bf16::from_f32(*v)).collect();
        put(bytes, inputs.latents_bf16, &rounded);
        let dt: Vec<f32> = sigmas.windows(2).map(|pair| pair[1] - pair[0]).collect();
        put(bytes, inputs.dt, &dt);
        if let Some(range) = inputs.true_cfg_scale {
            put(bytes, range, &[request.true_cfg_scale]);
        }
        Ok(())
    }
}

fn part(bytes: &mut [u8], range: HostRange) -> &mut [u8] {
    &mut bytes[range.start..range.start + range.bytes]
}

fn put<T: bytemuck::NoUninit>(bytes: &mut [u8], range: HostRange, values: &[T]) {
    part(bytes, range).copy_from_slice(bytemuck::cast_slice(values));
}
