//! What those share that draw for others, `serve` and `worker`: a pipeline that is ready before the first request (`mod.rs`), what may be
//! asked for (`limits.rs`), requests as bodies of JSON (`asked.rs`), and what comes back: details of a picture (`answer.rs`) or a refusal
//! (`refusal.rs`).

pub mod answer;
pub mod asked;
pub mod limits;
pub mod refusal;

use std::ops::ControlFlow::{self, Break};
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use schnell::{
    Device, Error, Model, Output, Pipeline, PipelineBuilder, PipelineConfig, Plan, Progress, Request, Result,
    Shape,
};

use tokio::signal::unix::{SignalKind, signal};

use crate::generate::Bars;
use crate::options::{DeviceOption, PlanOptions, check_disk};
use crate::terminal::say;
use limits::{Limits, Size, parse_size};

/// Signals that drain rather than end the process.
pub const HEARD: [i32; 2] = [libc::SIGTERM, libc::SIGINT];

/// Seconds since 1970.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

/// For connections alone: what is drawn is drawn elsewhere.
pub fn runtime(name: &str) -> Result<tokio::runtime::Runtime> {
    let built = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(2)
        .thread_name(name)
        .enable_all()
        .build();
    built.map_err(|error| Error::Internal(format!("no threads for connections: {error}")))
}

/// What is drawn, and on what.
#[derive(clap::Args)]
pub struct DrawingOptions {
    #[command(flatten)]
    plan: PlanOptions,
    /// A further size that pictures may have, planned and made ready; as often as there are sizes. Any smaller one is drawn, too, bound when it
    /// first comes
    #[arg(long, value_name = "WIDTHxHEIGHT", value_parser = parse_size)]
    size: Vec<Size>,
    /// Plan for negative prompts, too
    #[arg(long)]
    negative_prompts: bool,
    /// A folder for weights as the device holds them, as for `generate`
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
    /// auto, cuda:N or emulator
    #[arg(long, default_value = "auto")]
    device: DeviceOption,
    /// A file of the times that pictures take on this machine, by which deadlines are judged, as for `generate`. Without it they are learnt from
    /// the pictures that are drawn
    #[arg(long, value_name = "FILE.json")]
    calibrate: Option<PathBuf>,
    /// Launch kernel by kernel, and not CUDA graphs
    #[arg(long)]
    no_graphs: bool,
    /// What the model is called; the first of several is how it calls itself, the others are taken, too [default: by --model]
    #[arg(long, value_name = "NAME")]
    model_name: Vec<String>,
    /// Pictures of one request
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=64))]
    max_n: u16,
    /// Steps of one picture [default: 50, or those of --steps if more]
    #[arg(long, value_name = "N")]
    max_steps: Option<usize>,
    /// Characters of a prompt
    #[arg(long, value_name = "N", default_value_t = 4000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    max_prompt: u32,
}

/// All that can be refused has been looked at; nothing is loaded.
pub struct Opened<'a> {
    options: &'a DrawingOptions,
    pub plan: Plan,
    pub device: Device,
    model: Model,
    /// Each of which a picture is drawn of before the first request.
    pub shapes: Vec<Shape>,
}

impl DrawingOptions {
    /// What may be asked for and what it is drawn by, checked by `check` as soon as it is known; with `previews`, if there are any of the model's
    /// pictures.
    ///
    /// # Errors
    /// Those of flags, of the model's files, and of the device.
    pub fn open<T>(
        &self,
        previews: bool,
        check: impl FnOnce(Limits) -> Result<T>,
    ) -> Result<(Opened<'_>, T)> {
        let folder = self.plan.model.folder()?;
        let config = self.plan.model.config(&folder)?;
        let (plan, shapes) = self.plan(&config)?;
        let (plan, previews) = match plan.clone().with_previews() {
            Ok(plan) if previews => (plan, true),
            Err(error) if previews && !matches!(error, Error::Unsupported(_)) => return Err(error),
            _ => (plan, false),
        };
        let plan = self.plan.budgets.within_budget(plan)?;
        check_disk(&plan, self.cache.as_deref())?;
        let checked = check(Limits::new(self, &config, &shapes, previews)?)?;
        let (device, note) = self.device.open(&plan, 1)?;
        let plan = plan.on(device.capability())?;
        let model = self.plan.model.model(&folder)?;
        for warning in model.warnings() {
            say(format_args!("warning: {warning}"));
        }
        note.into_iter().for_each(say);
        Ok((Opened { options: self, plan, device, model, shapes }, checked))
    }

    /// For all sizes, and for the largest in as many steps as may be; and what is made ready before the first request.
    fn plan(&self, config: &PipelineConfig) -> Result<(Plan, Vec<Shape>)> {
        let first = self.plan.shape(config, false);
        let mut shapes = vec![first];
        for Size { width, height } in &self.size {
            shapes.push(Shape::new(*width, *height).steps(first.steps).t5_length(first.t5_length));
        }
        if self.negative_prompts {
            let with: Vec<Shape> = shapes.iter().map(|shape| shape.true_cfg()).collect();
            shapes.extend(with);
        }
        let mut plan = self.plan.plan_for(config, first)?;
        let most = Limits::most_steps(self, first.steps)?;
        let largest = shapes.iter().max_by_key(|shape| (shape.width * shape.height, shape.true_cfg)).copied();
        let with_most = largest.map(|shape| shape.steps(most));
        for shape in shapes.iter().skip(1).chain(&with_most) {
            shape.check(config)?;
            plan = plan.with_shape(*shape)?;
        }
        Ok((plan, shapes))
    }
}

impl Opened<'_> {
    /// Loads, and draws a picture of every shape, so that the first that is asked for finds all warm; `drawn` sees each. Until `is_ending`.
    ///
    /// # Errors
    /// Those of loading and drawing; [`schnell::Error::Stopped`] if `is_ending`.
    pub fn load(
        &self,
        is_ending: impl Fn() -> bool,
        mut drawn: impl FnMut(&Pipeline, &Shape, &Output),
    ) -> Result<Pipeline> {
        let bar = Bars::default();
        let mut show = |progress: Progress| -> ControlFlow<()> {
            match is_ending() {
                true => Break(()),
                false => bar.show(progress, "warming up: "),
            }
        };
        let mut pipeline = self.builder().load_with(&mut show)?;
        for shape in &self.shapes {
            let output = pipeline.generate_with(&warm(shape), &mut show)?;
            drawn(&pipeline, shape, &output);
        }
        bar.clear();
        Ok(pipeline)
    }

    fn builder(&self) -> PipelineBuilder<'_> {
        let DrawingOptions { cache, calibrate, no_graphs, .. } = self.options;
        let builder = Pipeline::builder(&self.model).with_plan(self.plan.clone()).device(&self.device);
        let mut builder = builder.graphs(!no_graphs);
        if let Some(cache) = cache {
            builder = builder.cache(cache);
        }
        if let Some(file) = calibrate {
            builder = builder.calibrate(file);
        }
        builder
    }
}

/// The first signal drains; the second ends the process as it would have without being heard.
pub async fn hear(is_draining: impl Fn() -> bool, drain: impl Fn()) {
    let kinds = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()));
    let (Ok(mut terminate), Ok(mut interrupt)) = kinds else {
        return say("warning: signals cannot be heard, and will not drain the queue");
    };
    loop {
        let number = tokio::select! {
            _ = terminate.recv() => libc::SIGTERM,
            _ = interrupt.recv() => libc::SIGINT,
        };
        if is_draining() {
            schnell::files::remove_temporaries();
            let _ = signal_hook::low_level::emulate_default_handler(number);
        }
        drain();
        say(
            "draining: what was accepted is drawn, nothing else is taken; the same signal again ends at once",
        );
    }
}

fn warm(shape: &Shape) -> Request {
    let request = Request::new("a picture to begin with").size(shape.width, shape.height);
    let request = request.steps(shape.steps).t5_length(shape.t5_length);
    if shape.true_cfg { request.negative_prompt("what it is not", 2.0) } else { request }
}
