//! From a model to a pipeline, with what the caller wants to say about it.

use std::ops::ControlFlow::Continue;
use std::path::PathBuf;

use crate::device::Device;
use crate::{Error, Result};

use super::cache::DEFAULT_PROMPTS;
use super::load::Binding;
use super::ranges::Range;
use super::times::Times;
use super::{Model, OnProgress, Pipeline, Plan, Precision, Quantize, Shape};

/// How a [`Pipeline`] is loaded: see [`Pipeline::builder`].
#[derive(Debug)]
#[must_use = "nothing is loaded before `load`"]
pub struct PipelineBuilder<'a> {
    model: &'a Model,
    plan: Option<Plan>,
    shapes: Vec<Shape>,
    quantize: Option<Quantize>,
    precision: Precision,
    budget: Option<u64>,
    host_budget: Option<u64>,
    device: Option<Device>,
    dumps: bool,
    floats: bool,
    previews: bool,
    prompts: usize,
    cache: Option<PathBuf>,
    graphs: bool,
    calibrate: Option<PathBuf>,
}

impl<'a> PipelineBuilder<'a> {
    pub(super) fn new(model: &'a Model) -> PipelineBuilder<'a> {
        PipelineBuilder {
            model,
            plan: None,
            shapes: Vec::new(),
            quantize: None,
            precision: Precision::Full,
            budget: None,
            host_budget: None,
            device: None,
            dumps: false,
            floats: false,
            previews: false,
            prompts: DEFAULT_PROMPTS,
            cache: None,
            graphs: true,
            calibrate: None,
        }
    }

    /// Bytes of device memory that may be used at most: see [`Plan::within`].
    pub fn budget(self, bytes: u64) -> Self {
        PipelineBuilder { budget: Some(bytes), ..self }
    }

    /// Bytes of pinned host memory that may be used at most; streamed weights for which they do not suffice are read from the
    /// [cache](PipelineBuilder::cache), which there must then be: see [`Plan::within_host`].
    pub fn host_budget(self, bytes: u64) -> Self {
        PipelineBuilder { host_budget: Some(bytes), ..self }
    }

    /// Shapes to plan and make ready, so that their first pictures need no preparation. The first is what a request gets that
    /// says nothing of its size; it is [`Model::shape`] of 1024 x 1024 unless given here.
    pub fn warm_up(mut self, shapes: impl IntoIterator<Item = Shape>) -> Self {
        self.shapes.extend(shapes);
        self
    }

    /// How Linear layers of the transformer and T5 are kept; [`Quantize::usual`] unless told otherwise.
    pub fn quantize(self, quantize: Quantize) -> Self {
        PipelineBuilder { quantize: Some(quantize), ..self }
    }

    /// How the transformer is computed; [`Precision::Full`] unless told otherwise.
    pub fn precision(self, precision: Precision) -> Self {
        PipelineBuilder { precision, ..self }
    }

    /// The machine; the first GPU unless told otherwise, or the emulator where there is none.
    pub fn device(self, device: &Device) -> Self {
        PipelineBuilder { device: Some(device.clone()), ..self }
    }

    /// Makes room for the stages' tensors that [`Request::dump`](super::Request::dump) asks for: one more pinned buffer, which the
    /// host budget does not count.
    pub fn dumps(self) -> Self {
        PipelineBuilder { dumps: true, ..self }
    }

    /// Makes room for pictures as floats in memory of the host ([`Pixels::F32Hwc`](super::Pixels::F32Hwc) and
    /// [`F32Chw`](super::Pixels::F32Chw)): 12 bytes a pixel of pinned memory, which is planned, and a copy of as many with each picture.
    /// A buffer on the device needs nothing of it.
    pub fn f32_pixels(self) -> Self {
        PipelineBuilder { floats: true, ..self }
    }

    /// Makes room for what [`Pipeline::generate_previewed`] shows: pinned memory for the latents of two steps, which is planned, 2 MiB at 1024 x
    /// 1024.
    pub fn previews(self) -> Self {
        PipelineBuilder { previews: true, ..self }
    }

    /// How many prompts' encodings are remembered, the last used ones: a prompt that is among them runs neither text encoder, and
    /// draws the same. 16 unless told otherwise, of 2 MB (256 T5 tokens) in host memory each; 0 remembers none. Of the last two that differ
    /// in their words, steps or guidance the modulation vectors are remembered, too: 4 MB a step.
    pub fn prompt_cache(self, prompts: usize) -> Self {
        PipelineBuilder { prompts, ..self }
    }

    /// A folder in which weights are kept as the device holds them, in a file as large as they are there: the first load writes
    /// it, later ones only read it. A file that does not fit the model's files any more, or is damaged, is made again with a
    /// warning. Several processes may share the folder. Nobody removes files of models that are gone.
    pub fn cache(self, dir: impl Into<PathBuf>) -> Self {
        PipelineBuilder { cache: Some(dir.into()), ..self }
    }

    /// Whether what a stage launches is handed to the GPU at once, as a CUDA graph that loading has made, rather than one by one:
    /// the same bytes, with less work for the host and less time between kernels. True unless told otherwise; false shows each
    /// kernel to tools that see only launches, and each one's failure (with the feature `sync-launch`, which implies it).
    pub fn graphs(self, graphs: bool) -> Self {
        PipelineBuilder { graphs, ..self }
    }

    /// Measures how long pictures of the shapes to warm up take, which is what [`Request::deadline`](super::Request::deadline) is held
    /// against, and keeps it in a file: three pictures a shape are drawn before loading is through, unless the file says it already of
    /// this very card, slot, driver, kernels, model and plan. Without it a pipeline learns from the pictures that it is asked for.
    /// Several pipelines may share the file; of those that write it at once one is the last.
    pub fn calibrate(self, file: impl Into<PathBuf>) -> Self {
        PipelineBuilder { calibrate: Some(file.into()), ..self }
    }

    /// A plan made before, in place of one made of `warm_up`, `quantize` and `precision`.
    pub fn with_plan(self, plan: Plan) -> Self {
        PipelineBuilder { plan: Some(plan), ..self }
    }

    /// What loading would take; nothing is loaded.
    ///
    /// # Errors
    /// [`Error::Input`] for a shape that cannot be, [`Error::Unsupported`] for a model that the kernels cannot run,
    /// [`Error::Capacity`] when it exceeds the budget.
    pub fn plan(&self) -> Result<Plan> {
        let plan = match &self.plan {
            Some(plan) => plan.clone(),
            None => {
                let first = self.shapes.first().copied().unwrap_or(self.model.shape(1024, 1024));
                let config = self.model.config();
                let quantize = self.quantize.unwrap_or_else(|| Quantize::usual(config));
                let mut plan = Plan::new(config, first, quantize)?.with_precision(self.precision)?;
                for shape in self.shapes.iter().skip(1) {
                    plan = plan.with_shape(*shape)?;
                }
                plan
            }
        };
        let plan = match &self.device {
            Some(device) => plan.on(device.capability())?,
            None => plan,
        };
        let plan = if self.floats { plan.with_f32_pixels()? } else { plan };
        let plan = if self.previews { plan.with_previews()? } else { plan };
        let plan = match self.budget {
            Some(budget) => plan.within(budget)?,
            None => plan,
        };
        match self.host_budget {
            Some(budget) => plan.within_host(budget),
            None => Ok(plan),
        }
    }

    /// Makes the one allocation, readies the kernels that the plan uses and loads the weights.
    ///
    /// # Errors
    /// Those of [`PipelineBuilder::plan`]; [`Error::Input`] when weights shall stay in a cache and none was named;
    /// [`Error::Capacity`] when the device has too little memory, [`Error::Weights`] and
    /// [`Error::Io`] from the files, [`Error::Device`] from the machine, [`Error::Unsupported`] without one that would do;
    /// [`Error::Input`] when the file of times is none.
    pub fn load(self) -> Result<Pipeline> {
        self.load_with(&mut |_| Continue(()))
    }

    /// As [`PipelineBuilder::load`], telling how far it has come.
    ///
    /// # Errors
    /// Its own, and [`Error::Stopped`] when `progress` says so.
    pub fn load_with(self, progress: &mut OnProgress<'_>) -> Result<Pipeline> {
        let _range = Range::of(tracing::info_span!("load"), format_args!("load"));
        let plan = self.plan()?;
        if self.model.config() != plan.config() {
            return Err(Error::Input("the plan was made for another model".to_string()));
        }
        if let Some(file) = &self.calibrate {
            Times::read(file, "")?;
        }
        let on_disk = plan.traffic().on_disk;
        if on_disk > 0 && self.cache.is_none() {
            return Err(Error::Input(format!(
                "the host budget leaves {} of weights on disk: name a cache folder to read them from, or allow more",
                super::human_bytes(on_disk)
            )));
        }
        let device = match &self.device {
            Some(device) => device.clone(),
            None => {
                let (device, note) = plan.first_device(1)?;
                if let Some(note) = note {
                    tracing::warn!("{note}");
                }
                device
            }
        };
        let plan = plan.on(device.capability())?;
        // Only on a GPU is there anything to tell apart.
        let one_by_one = cfg!(feature = "sync-launch") && !device.capability().is_emulator;
        let graphs = self.graphs && !one_by_one;
        let bound = Binding { dumps: self.dumps, prompts: self.prompts, cache: self.cache.clone(), graphs };
        let mut pipeline = Pipeline::bind(self.model, plan, &device, bound, progress)?;
        if let Some(file) = &self.calibrate {
            pipeline.calibrate(file, graphs, progress)?;
        }
        Ok(pipeline)
    }
}
