//! `schnell bench`: how long pictures take, one after the other, as a service draws them; `vram.rs` has what memory they take,
//! `kernels.rs` how long single kernels do.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Subcommand;
use indicatif::{ProgressBar, ProgressStyle};
use schnell::files::{self, Kind, Target};
use schnell::{Device, Error, Model, Output, Pipeline, PipelineBuilder, Plan, Request, Result, human_bytes};
use serde::{Deserialize, Serialize};

use crate::options::{DeviceOption, PlanOptions, parse_time};
use crate::statistics::{Interval, PERCENTILES, Summary, change_of_median};
use crate::terminal::{self, say};
use crate::{inputs, kernels, outputs, plot, vram};

#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Time picture after picture: percentiles of the whole and of every stage.
    Latency(Box<LatencyArgs>),
    /// Read what memory is held, stage by stage, and compare it with the plan.
    Vram(Box<vram::Args>),
    /// Time the kernels that pictures spend their time in, each alone, its result looked at first.
    Kernels(kernels::Args),
}

/// What pictures are drawn, and how.
#[derive(clap::Args)]
pub struct Subject {
    #[command(flatten)]
    pub plan: PlanOptions,
    /// A prompt per line of UTF-8, in turn [default: eight of different lengths]
    #[arg(long, value_name = "FILE")]
    prompts: Option<PathBuf>,
    /// A folder for weights as the device holds them, as for `generate`
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
    /// auto, cuda:N or emulator
    #[arg(long, default_value = "auto")]
    device: DeviceOption,
    /// Launch kernel by kernel, and not CUDA graphs
    #[arg(long)]
    no_graphs: bool,
}

impl Subject {
    /// Those of the file, or the usual ones.
    pub fn prompts(&self) -> Result<Vec<String>> {
        let prompts = match &self.prompts {
            Some(path) => inputs::prompts(path)?,
            None => PROMPTS.map(str::to_string).to_vec(),
        };
        match prompts.is_empty() {
            true => Err(Error::Input("--prompts: the file has no prompt".to_string())),
            false => Ok(prompts),
        }
    }

    /// Refuses files to be written that are read.
    pub fn check_outputs<'a>(&'a self, outputs: impl IntoIterator<Item = &'a Target>) -> Result<()> {
        let inputs: Vec<&Path> = self.plan.model.files().chain(self.prompts.as_deref()).collect();
        outputs::refuse_inputs(outputs, inputs.iter().copied())
    }

    /// The plan for so many pictures and the machine that it is for; the model; and what a person should know of the choice.
    pub fn open(&self, pictures: u32) -> Result<(Plan, Device, Model, Option<String>)> {
        let folder = self.plan.model.folder()?;
        let config = self.plan.model.config(&folder)?;
        let plan = self.plan.budgets.within_budget(self.plan.plan(&config, false)?)?;
        let (device, note) = self.device.open(&plan, pictures as usize)?;
        Ok((plan.on(device.capability())?, device, self.plan.model.model(&folder)?, note))
    }

    /// How it is loaded.
    pub fn builder<'a>(&self, model: &'a Model, plan: Plan, device: &Device) -> PipelineBuilder<'a> {
        let builder = Pipeline::builder(model).with_plan(plan).device(device).graphs(!self.no_graphs);
        match &self.cache {
            Some(cache) => builder.cache(cache),
            None => builder,
        }
    }
}

#[derive(clap::Args)]
struct LatencyArgs {
    #[command(flatten)]
    subject: Subject,
    /// Pictures that count
    #[arg(long, short = 'n', value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    iterations: u32,
    /// Pictures before those that count
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(0..=1000))]
    warm_up: u32,
    /// Remember so many prompts' encodings; with as many as there are prompts no encoder runs after the first round
    #[arg(long, value_name = "N", default_value_t = 0)]
    prompt_cache: usize,
    /// Write every time as JSON, for --compare; - is standard output, in place of the table
    #[arg(long, value_name = "FILE.json")]
    json: Option<PathBuf>,
    /// Draw how often a picture took how long
    #[arg(long, value_name = "FILE.svg")]
    histogram: Option<PathBuf>,
    /// What --json wrote before, on the same machine and of the same pictures: ends with exit code 1 when pictures take longer
    /// now, by more than --tolerance and more than chance explains
    #[arg(long, value_name = "FILE.json")]
    compare: Option<PathBuf>,
    /// Per cent that the median may be above that of --compare
    #[arg(long, value_name = "PERCENT", default_value_t = 1.0, requires = "compare")]
    tolerance: f64,
    /// Ends with exit code 1 when one picture of a hundred takes longer, such as 12s or 800ms
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    max_p99: Option<Duration>,
}

/// Of the shortest to one that fills CLIP's 77 tokens.
const PROMPTS: [&str; 8] = [
    "a fox",
    "a red circle on a blue background",
    "a lighthouse at dusk, long exposure",
    "portrait of an old sailor with a pipe, oil on canvas",
    "a small house in a snowy forest, smoke from the chimney, warm light in the windows",
    "macro photograph of a dew drop on a blade of grass, the sun rising behind it, shallow depth of field",
    "a busy market street in the rain, neon signs reflected in puddles, people with umbrellas, seen from a first floor window, \
     cinematic",
    "an astronaut who reads a newspaper on a bench in a botanical garden full of palm trees and orchids, a robot dog asleep at \
     her feet, morning haze, soft light from a glass roof, many small details, in the manner of a painted film poster of the \
     nineteen seventies",
];

/// What was measured, of what: all that two runs must have in common to be compared, and every time.
#[derive(Serialize, Deserialize)]
struct Latency {
    of: Conditions,
    version: String,
    driver: String,
    /// Milliseconds of each picture, from the request to its pixels, by the host's clock.
    picture_ms: Vec<f64>,
    /// Of each stage in each picture, by the device's clock.
    stages: Vec<StageTimes>,
}

#[derive(Serialize, Deserialize, PartialEq, Debug)]
struct Conditions {
    device: String,
    model: String,
    quantize: String,
    precision: String,
    /// What a picture says of them.
    loras: String,
    width: usize,
    height: usize,
    steps: usize,
    t5_length: usize,
    budget: Option<u64>,
    prompts: Vec<String>,
    prompt_cache: usize,
    graphs: bool,
}

#[derive(Serialize, Deserialize)]
struct StageTimes {
    stage: String,
    ms: Vec<f64>,
}

/// Whether all verdicts are yes.
pub fn run(args: &Args) -> Result<bool> {
    match &args.what {
        What::Latency(args) => latency(args),
        What::Vram(args) => vram::run(args),
        What::Kernels(args) => kernels::run(args),
    }
}

fn latency(args: &LatencyArgs) -> Result<bool> {
    let prompts = args.subject.prompts()?;
    if !(0.0..=1000.0).contains(&args.tolerance) {
        return Err(Error::Input("--tolerance takes per cent, from 0 to 1000".to_string()));
    }
    let json = args.json.as_deref().map(outputs::target).transpose()?;
    let histogram = args.histogram.as_deref().map(crate::plan::open_svg).transpose()?;
    let read = |target: &Target| args.compare.as_deref().is_some_and(|path| target.is_file(path));
    if json.iter().chain(&histogram).any(read) {
        return Err(Error::Input("--json and --histogram: not the file of --compare".to_string()));
    }
    args.subject.check_outputs(json.iter().chain(&histogram))?;
    let before = args.compare.as_deref().map(Latency::read).transpose()?;
    let (measured, arena) = measure(args, prompts, before.as_ref())?;
    let verdicts = verdicts(args, &measured, before.as_ref());
    if args.json.as_deref() != Some(Path::new("-")) {
        terminal::print(&table(&measured, arena))?;
    }
    for (_, verdict) in &verdicts {
        say(verdict);
    }
    if let Some(mut json) = json {
        let text = serde_json::to_string(&measured).map_err(|e| Error::Internal(e.to_string()))?;
        json.write((text + "\n").as_bytes())?;
    }
    if let Some(mut histogram) = histogram {
        histogram.write(plot::histogram(&measured.of.device, &measured.picture_ms)?.as_bytes())?;
    }
    Ok(verdicts.iter().all(|(holds, _)| *holds))
}

/// Refuses what cannot be compared before it has taken hours.
fn comparable(before: &Latency, now: &Conditions) -> Result<()> {
    let [before, now] = [&before.of, now].map(serde_json::to_value);
    let (Ok(serde_json::Value::Object(before)), Ok(serde_json::Value::Object(now))) = (before, now) else {
        return Err(Error::Internal("conditions are an object".to_string()));
    };
    match now.iter().find(|(name, value)| before.get(*name) != Some(value)) {
        None => Ok(()),
        Some((name, value)) => Err(Error::Input(format!(
            "--compare: its {name} was {}, now it is {value}: times of different work say nothing of each other",
            before.get(name).unwrap_or(&serde_json::Value::Null)
        ))),
    }
}

/// Draws, and keeps the times; and how large the arena is.
fn measure(args: &LatencyArgs, prompts: Vec<String>, before: Option<&Latency>) -> Result<(Latency, u64)> {
    let (plan, device, model, note) = args.subject.open(args.iterations + args.warm_up)?;
    let (shape, arena) = (plan.shape(), plan.arena_bytes());
    let of = Conditions {
        device: device.capability().name.clone(),
        model: model.digest()?,
        quantize: plan.quantize().to_string(),
        precision: plan.precision().to_string(),
        loras: model.loras(),
        width: shape.width,
        height: shape.height,
        steps: shape.steps,
        t5_length: shape.t5_length,
        budget: args.subject.plan.budgets.budget,
        prompts,
        prompt_cache: args.prompt_cache,
        graphs: !args.subject.no_graphs,
    };
    if let Some(before) = before {
        comparable(before, &of)?;
    }
    if let Some(note) = note {
        say(note);
    }
    let builder = args.subject.builder(&model, plan, &device).prompt_cache(args.prompt_cache);
    let mut pipeline = builder.load()?;
    let bar = ProgressBar::new(u64::from(args.warm_up + args.iterations));
    bar.set_style(
        ProgressStyle::with_template("{bar:30} {pos}/{len} pictures, {eta} left")
            .unwrap_or_else(|_| ProgressStyle::default_bar()),
    );
    let mut measured = Latency {
        of,
        version: env!("CARGO_PKG_VERSION").to_string(),
        driver: device.capability().driver.clone(),
        picture_ms: Vec::new(),
        stages: Vec::new(),
    };
    for i in 0..args.warm_up + args.iterations {
        let prompts = &measured.of.prompts;
        let request = Request::new(prompts[i as usize % prompts.len()].clone()).seed(u64::from(i));
        let begun = Instant::now();
        let output = pipeline.generate_with(&request, &mut |_| ControlFlow::Continue(()))?;
        let ms = begun.elapsed().as_secs_f64() * 1e3;
        if i >= args.warm_up {
            measured.add(ms, &output);
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok((measured, arena))
}

impl Latency {
    /// What --json wrote.
    fn read(path: &Path) -> Result<Latency> {
        let bytes = files::read(path, Kind::Times)?;
        let wrong = |what: &dyn std::fmt::Display| {
            Error::Input(format!(
                "{}: not what `schnell bench latency --json` writes: {what}",
                path.display()
            ))
        };
        let read: Latency = serde_json::from_slice(&bytes).map_err(|e| wrong(&e))?;
        match read.picture_ms.iter().all(|ms| ms.is_finite() && *ms > 0.0) && !read.picture_ms.is_empty() {
            true => Ok(read),
            false => Err(wrong(&"times above 0 are expected")),
        }
    }

    fn add(&mut self, ms: f64, output: &Output) {
        self.picture_ms.push(ms);
        for stage in &output.timings.stages {
            match self.stages.iter_mut().find(|times| times.stage == stage.stage) {
                Some(times) => times.ms.push(stage.ms),
                None => self.stages.push(StageTimes { stage: stage.stage.clone(), ms: vec![stage.ms] }),
            }
        }
    }
}

fn table(measured: &Latency, arena: u64) -> String {
    let of = &measured.of;
    let mut text = format!(
        "{} pictures of {} x {}, {} steps, {}, on {} (driver {}), {} of device memory; ms, percentiles by nearest rank\n{:14} {:>10} \
         {:>9}",
        measured.picture_ms.len(),
        of.width,
        of.height,
        of.steps,
        of.quantize,
        of.device,
        measured.driver,
        human_bytes(arena),
        "",
        "mean",
        "deviation"
    );
    for (name, _) in PERCENTILES {
        text += &format!(" {name:>10}");
    }
    text += &format!(" {:>10} {:>8}\n", "slowest", "outliers");
    let rows = measured.stages.iter().map(|times| (&times.stage[..], &times.ms));
    for (name, ms) in rows.chain([("picture", &measured.picture_ms)]) {
        let Some(summary) = Summary::of(ms) else { continue };
        text += &format!("{name:14} {:>10.3} {:>9.3}", summary.mean, summary.deviation);
        for value in summary.percentiles {
            text += &format!(" {value:>10.3}");
        }
        text += &format!(" {:>10.3} {:>8}\n", summary.slowest, summary.outliers);
    }
    text
}

/// Each with whether it holds.
fn verdicts(args: &LatencyArgs, measured: &Latency, before: Option<&Latency>) -> Vec<(bool, String)> {
    let mut verdicts = Vec::new();
    if let (Some(most), Some(summary)) = (args.max_p99, Summary::of(&measured.picture_ms)) {
        let (p99, most) = (summary.p99(), most.as_secs_f64() * 1e3);
        let holds = p99 <= most;
        let word = if holds { "within" } else { "above" };
        verdicts.push((holds, format!("P99 of {p99:.1} ms is {word} --max-p99 of {most:.1} ms")));
    }
    if let Some(Interval { low, middle, high }) =
        before.and_then(|before| change_of_median(&before.picture_ms, &measured.picture_ms))
    {
        let per_cent = |ratio: f64| (ratio - 1.0) * 100.0;
        let [low, middle, high] = [low, middle, high].map(per_cent);
        let holds = low <= args.tolerance;
        let verdict = match (holds, high < 0.0) {
            (false, _) => "slower than before",
            (true, true) => "faster than before",
            (true, false) => "as fast as before, as far as these pictures tell",
        };
        verdicts.push((
            holds,
            format!(
                "{verdict}: the median by {middle:+.2} %, with 95 % confidence {low:+.2} to {high:+.2} %"
            ),
        ));
    }
    verdicts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_parse() {
        assert_eq!(parse_time("12s"), Ok(Duration::from_secs(12)));
        assert_eq!(parse_time("1.5s"), Ok(Duration::from_millis(1500)));
        assert_eq!(parse_time("800ms"), Ok(Duration::from_millis(800)));
        for bad in ["", "12", "s", "-1s", "1m", "infs", "NaNms"] {
            assert!(parse_time(bad).is_err(), "{bad}");
        }
    }
}
