//! `schnell generate`: prompt in, PNG out.

use std::path::{Path, PathBuf};

use clap::ValueEnum;
use indicatif::{ProgressBar, ProgressStyle};
use schnell::config::PipelineConfig;
use schnell::device::Device;
use schnell::pipeline::{BindOptions, Model, Noise, Pipeline, Progress, Request};
use schnell::plan::{Plan, human_bytes};
use schnell::sampling::{NoiseKind, TimeRounding};
use schnell::weights::{Dtype, SafeTensors};
use schnell::{Error, Result};

use crate::options::{DeviceOption, PlanOptions};

#[derive(clap::Args)]
pub struct Args {
    /// What to draw
    prompt: String,
    /// A prompt of its own for T5 [default: the prompt]
    #[arg(long, value_name = "P")]
    prompt_2: Option<String>,
    /// What to lead away from; takes effect with --true-cfg-scale above 1, and doubles the time
    #[arg(long, value_name = "P")]
    negative_prompt: Option<String>,
    /// Strength of the negative prompt
    #[arg(long, value_name = "S", default_value_t = 1.0)]
    true_cfg_scale: f32,
    /// Accept an empty prompt
    #[arg(long)]
    allow_empty_prompt: bool,
    #[command(flatten)]
    plan: PlanOptions,
    /// Same seed, same bytes
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Starting noise: f32, bf16, bf16-legacy (torch up to 2.11), or a safetensors file with one f32 tensor
    #[arg(long, value_name = "KIND|FILE", default_value = "f32")]
    noise: String,
    /// Network time exact, or rounded as diffusers does in bf16 (0.75 becomes 752 instead of 750)
    #[arg(long, value_enum, default_value_t = TimestepsOption::Exact)]
    timesteps: TimestepsOption,
    /// Guidance scale, for models with a guidance embedder (schnell has none)
    #[arg(long, value_name = "G", default_value_t = 3.5)]
    guidance: f32,
    /// auto, cuda:N or emulator
    #[arg(long, default_value = "auto")]
    device: DeviceOption,
    /// Where the picture goes
    #[arg(long, short, value_name = "FILE.png", default_value = "out.png")]
    output: PathBuf,
    /// Write the time of every stage as JSON
    #[arg(long, value_name = "FILE.json")]
    timings: Option<PathBuf>,
    /// Write every stage's tensor as one safetensors file each
    #[arg(long, value_name = "DIR")]
    dump: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
enum TimestepsOption {
    Exact,
    Bf16,
}

pub fn run(args: &Args) -> Result<()> {
    // All that can be refused is refused before any work.
    let prompts = [Some(&args.prompt), args.prompt_2.as_ref()];
    if !args.allow_empty_prompt && prompts.into_iter().flatten().any(|prompt| prompt.trim().is_empty()) {
        return Err(Error::Input(
            "the prompt is empty; say what to draw, or pass --allow-empty-prompt".to_string(),
        ));
    }
    if args.output.extension().is_none_or(|e| !e.eq_ignore_ascii_case("png")) {
        return Err(Error::Input(format!(
            "{}: pictures are PNG; use a name that ends in .png",
            args.output.display()
        )));
    }
    for path in [Some(&args.output), args.timings.as_ref()].into_iter().flatten() {
        check_writable(path)?;
    }
    // As in diffusers; what it ignores silently is said aloud.
    let true_cfg = args.negative_prompt.is_some() && args.true_cfg_scale > 1.0;
    if args.negative_prompt.is_some() != (args.true_cfg_scale > 1.0) {
        eprintln!("warning: --negative-prompt and a --true-cfg-scale above 1 take effect only together");
    }
    if !args.true_cfg_scale.is_finite() || !args.guidance.is_finite() {
        return Err(Error::Input("--true-cfg-scale and --guidance take finite numbers".to_string()));
    }
    let noise = parse_noise(&args.noise)?;
    if args.plan.is_demo() {
        eprintln!("{}", schnell::demo::NOTICE);
    }
    let dir = args.plan.model_dir()?;
    // Config files say what cannot be; weights are opened, headers only, when it can.
    let config = PipelineConfig::open(dir.path())?;
    let plan = Plan::new(&config, args.plan.shape(true_cfg), args.plan.quantize())?;
    if let Noise::Given(values) = &noise {
        check_noise(values, &plan)?;
    }
    if let Some(budget) = args.plan.budget {
        plan.check_budget(budget)?;
    }
    let (device, note) = args.device.open(&plan)?;
    let model = Model::open(dir.path())?;
    if let Some(dir) = &args.dump {
        std::fs::create_dir_all(dir).map_err(Error::io("create", dir))?;
        check_writable(&dir.join("sigmas.safetensors"))?;
    }
    let request = Request {
        prompt_2: args.prompt_2.clone(),
        negative_prompt: args.negative_prompt.clone().unwrap_or_default(),
        true_cfg_scale: args.true_cfg_scale,
        allow_empty_prompt: args.allow_empty_prompt,
        noise,
        timesteps: match args.timesteps {
            TimestepsOption::Exact => TimeRounding::Exact,
            TimestepsOption::Bf16 => TimeRounding::Bf16,
        },
        guidance: args.guidance,
        dump: args.dump.is_some(),
        ..Request::new(&args.prompt, args.seed)
    };
    if let Some(note) = note {
        eprintln!("{note}");
    }
    draw(args, &model, plan, &device, &request)
}

fn draw(args: &Args, model: &Model, plan: Plan, device: &Device, request: &Request) -> Result<()> {
    let arena = plan.arena_bytes();
    let bar = Bars::default();
    let options = BindOptions { dump: request.dump };
    let mut pipeline = Pipeline::bind(model, plan, device, options, &mut |p| bar.show(p))?;
    let output = pipeline.generate(request, &mut |p| bar.show(p))?;
    bar.0.finish_and_clear();
    output.save(&args.output)?;
    if let Some(dir) = &args.dump {
        for dump in &output.dumps {
            dump.save(dir)?;
        }
    }
    if let Some(path) = &args.timings {
        let json = serde_json::to_vec_pretty(&output.timings)
            .map_err(|e| Error::Input(format!("timings cannot be written as JSON: {e}")))?;
        schnell::image::write_whole(path, &json)?;
    }
    for (encoder, dropped) in [("CLIP", output.clip_tokens_dropped), ("T5", output.t5_tokens_dropped)] {
        if dropped > 0 {
            eprintln!("warning: {encoder} did not see the last {dropped} tokens of the prompt");
        }
    }
    eprintln!(
        "{}: {} x {}, seed {}, {:.2} s on {}, {} of device memory",
        args.output.display(),
        output.width,
        output.height,
        args.seed,
        output.timings.total_ms * 1e-3,
        output.timings.device,
        human_bytes(arena)
    );
    Ok(())
}

/// Opens for writing what will be written, without touching what is there.
fn check_writable(path: &Path) -> Result<()> {
    if path.is_dir() {
        return Err(Error::Input(format!("{} is a folder; name a file", path.display())));
    }
    let existed = path.exists();
    std::fs::OpenOptions::new().append(true).create(true).open(path).map_err(Error::io("write", path))?;
    if !existed {
        std::fs::remove_file(path).map_err(Error::io("write", path))?;
    }
    Ok(())
}

fn parse_noise(text: &str) -> Result<Noise> {
    Ok(Noise::Seeded(match text {
        "f32" => NoiseKind::F32,
        "bf16" => NoiseKind::Bf16,
        "bf16-legacy" => NoiseKind::Bf16Legacy,
        file => return noise_from_file(Path::new(file)),
    }))
}

/// The one f32 tensor of a file, packed `[1, tokens, channels]`, as `--dump` writes it.
fn noise_from_file(path: &Path) -> Result<Noise> {
    let wrong =
        |what: &str| Error::weights(path, format!("{what}; expected one f32 tensor [1, tokens, channels]"));
    if !path.exists() {
        let text = format!("--noise {}: neither f32, bf16, bf16-legacy nor a file", path.display());
        return Err(Error::Input(text));
    }
    let file = SafeTensors::open(path)?;
    let mut tensors = file.iter();
    match (tensors.next(), tensors.next()) {
        (Some(tensor), None) if tensor.dtype == Dtype::F32 && tensor.shape.len() == 3 => {
            Ok(Noise::Given(tensor.read_f32()?))
        }
        (Some(tensor), None) => {
            Err(wrong(&format!("{} is {:?} {:?}", tensor.name, tensor.dtype, tensor.shape)))
        }
        _ => Err(wrong("not exactly one tensor")),
    }
}

/// Refuses noise of another size before the weights load.
fn check_noise(values: &[f32], plan: &Plan) -> Result<()> {
    let (tokens, channels) = (plan.shape.image_tokens(&plan.config), plan.config.flux.in_channels);
    if values.len() == tokens * channels {
        return Ok(());
    }
    Err(Error::Input(format!(
        "noise of {} values; this size takes {tokens} tokens x {channels} channels",
        values.len()
    )))
}

/// One line that changes: loading by bytes, then steps.
struct Bars(ProgressBar);

impl Default for Bars {
    fn default() -> Self {
        Bars(ProgressBar::new(0))
    }
}

impl Bars {
    fn show(&self, progress: Progress) {
        let style = |template: &str| {
            ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
        };
        match progress {
            Progress::Loading { done, total } => {
                if done == 0 {
                    self.0.set_style(style("{msg} {bar:30} {bytes}/{total_bytes}"));
                    self.0.set_message("loading");
                    self.0.set_length(total);
                }
                self.0.set_position(done);
            }
            Progress::TextEncoding => {
                self.0.set_style(style("{msg}"));
                self.0.set_message("encoding the prompt");
            }
            Progress::Step { index, total } => {
                self.0.set_style(style("{msg} {bar:30} {pos}/{len}"));
                self.0.set_message("denoising");
                self.0.set_length(total as u64);
                self.0.set_position(index as u64);
            }
            Progress::Decoding => {
                self.0.set_style(style("{msg}"));
                self.0.set_message("decoding");
            }
            Progress::Done => {}
        }
    }
}
