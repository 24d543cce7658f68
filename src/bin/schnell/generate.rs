//! `schnell generate`: prompt in, picture out.

#[path = "batch.rs"]
mod batch;

use std::collections::HashSet;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::ValueEnum;
use indicatif::{ProgressBar, ProgressStyle};
use schnell::image::Note;
use schnell::{
    Device, Error, ImageFormat, Late, Model, Noise, NoiseKind, Output, Pipeline, PipelineConfig, Plan,
    Progress, Receipt, Request, Result, Shape, TimeRounding, Timings, human_bytes,
};

use crate::inputs::{self, NoiseSource};
use crate::options::{DeviceOption, PlanOptions, Seed, check_disk, parse_time};
use crate::outputs::{Names, Outputs};
use crate::terminal::say;

#[derive(clap::Args)]
pub struct Args {
    /// What to draw
    #[arg(required_unless_present_any = ["prompts", "batch"])]
    prompt: Option<String>,
    /// A file with one prompt per line, at most as many as --grid has cells; blank lines do not count
    #[arg(long, value_name = "FILE", requires = "grid", conflicts_with_all = ["prompt", "prompt_2"])]
    prompts: Option<PathBuf>,
    /// Columns and rows of one contact sheet, such as 3x3: prompt after prompt, then the same with the next seed. Nothing
    /// is written before the last picture is done
    #[arg(long, value_name = "CxR", conflicts_with = "dump")]
    grid: Option<Grid>,
    /// A file with a request per line: a prompt, or JSON as {"prompt": "a cat", "seed": 7, "width": 512, "output": "cat.png"}, also with
    /// prompt_2, negative_prompt, true_cfg_scale, guidance, height and steps. Pictures are numbered by their line (cat-0001.png with
    /// --output cat.png); those that are there already are not drawn again
    #[arg(long, value_name = "FILE", conflicts_with_all = ["prompt", "prompts", "grid", "dump", "timings", "trace", "preview"])]
    batch: Option<PathBuf>,
    /// What --batch has drawn, a line of JSON a picture [default: --output, ending in .jsonl]
    #[arg(long, value_name = "FILE.jsonl", requires = "batch")]
    manifest: Option<PathBuf>,
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
    /// Same seed, same bytes: a number, of which torch's CPU generator uses 32 bits, or random, which draws one and says which
    #[arg(long, default_value = "0")]
    seed: Seed,
    /// Starting noise: f32, bf16, bf16-legacy (torch up to 2.11), or a safetensors file with one f32 tensor
    #[arg(long, value_name = "KIND|FILE", default_value = "f32")]
    noise: String,
    /// Network time exact, or rounded as diffusers does in bf16 (0.75 becomes 752 instead of 750)
    #[arg(long, value_enum, default_value_t = TimestepsOption::Exact)]
    timesteps: TimestepsOption,
    /// Guidance scale, for models with a guidance embedder (schnell has none) [default: 3.5]
    #[arg(long, value_name = "G")]
    guidance: Option<f32>,
    /// A folder for weights as the device holds them: the first run writes a file as large as they are, later ones load from it,
    /// which is faster
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
    /// auto, cuda:N or emulator
    #[arg(long, default_value = "auto")]
    device: DeviceOption,
    /// Where the picture goes: a PNG, JPEG or WebP by the name's ending; - is standard output, which gets a PNG
    #[arg(long, short, value_name = "FILE.png|.jpg|.webp", default_value = "out.png")]
    output: PathBuf,
    /// Leave out of the file what made the picture: prompts, seed, steps and other settings, model digest, version
    #[arg(long)]
    no_metadata: bool,
    /// Write the time of every stage as JSON; with --grid a list, picture by picture
    #[arg(long, value_name = "FILE.json")]
    timings: Option<PathBuf>,
    /// Write what ran when as a trace for Perfetto or chrome://tracing: stages, copies of streamed weights, and what the host did
    #[arg(long, value_name = "FILE.json", conflicts_with = "grid")]
    trace: Option<PathBuf>,
    /// Write what each step takes for the picture, an eighth as wide and high and in approximate colors, each in place of the one before
    #[arg(long, value_name = "FILE.png|.jpg|.webp", conflicts_with = "grid")]
    preview: Option<PathBuf>,
    /// Write every stage's tensor as one safetensors file each, into a folder without those of other runs
    #[arg(long, value_name = "DIR")]
    dump: Option<PathBuf>,
    /// When the picture has to be there, from the end of loading on, such as 12s or 800ms; of --batch each picture, from the one before
    #[arg(long, value_name = "TIME", value_parser = parse_time, conflicts_with = "grid")]
    deadline: Option<Duration>,
    /// What becomes of a picture that would be late
    #[arg(long, value_enum, default_value_t = LateOption::Fail, requires = "deadline")]
    late: LateOption,
    /// A file of the times that pictures take on this machine, by which --deadline is judged: where it says nothing of this card, driver
    /// and plan, three pictures are drawn to measure it. Without it a deadline is watched, but nothing is refused at once
    #[arg(long, value_name = "FILE.json", requires = "deadline")]
    calibrate: Option<PathBuf>,
    /// Launch kernel by kernel, and not CUDA graphs: for profilers and debuggers that see only launches; the picture is the same
    #[arg(long)]
    no_graphs: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum TimestepsOption {
    Exact,
    Bf16,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LateOption {
    /// None is drawn; exit code 12
    Fail,
    /// Drawn in as many steps as there is time for; needs --calibrate to know
    FewerSteps,
    /// What the last step that there is time for takes for the picture is drawn; it says so
    Estimate,
}

/// Columns and rows of a contact sheet.
#[derive(Clone, Copy)]
struct Grid {
    columns: usize,
    rows: usize,
}

impl Grid {
    fn cells(self) -> usize {
        self.columns * self.rows
    }
}

impl std::str::FromStr for Grid {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let sizes = text.split_once('x').and_then(|(c, r)| Some((c.parse().ok()?, r.parse().ok()?)));
        match sizes {
            Some((columns @ 1..=16, rows @ 1..=16)) => Ok(Grid { columns, rows }),
            _ => Err(format!("`{text}` is no grid; use COLUMNSxROWS, such as 3x3, 16x16 at most")),
        }
    }
}

/// What a user should be told of the bundled model.
const DEMO_NOTICE: &str = "using the bundled model: it draws one or two colored shapes (try \"a small red star left of \
                           a big blue ring on a yellow background\")";

pub fn run(args: &Args) -> Result<()> {
    if let Some(file) = &args.batch {
        return batch::run(args, file);
    }
    // All that can be refused is refused before any work.
    let prompts = prompts(args)?;
    let texts = prompts.iter().chain(&args.prompt_2);
    if !args.allow_empty_prompt && texts.into_iter().any(|prompt| prompt.trim().is_empty()) {
        return Err(Error::Input(
            "the prompt is empty; say what to draw, or pass --allow-empty-prompt".to_string(),
        ));
    }
    let outputs = Outputs::open(&Names {
        picture: &args.output,
        timings: args.timings.as_deref(),
        trace: args.trace.as_deref(),
        preview: args.preview.as_deref(),
        dump: args.dump.as_deref(),
    })?;
    // As in diffusers; what it ignores silently is said aloud.
    let true_cfg = args.negative_prompt.is_some() && args.true_cfg_scale > 1.0;
    if !args.true_cfg_scale.is_finite() || !args.guidance.is_none_or(f32::is_finite) {
        return Err(Error::Input("--true-cfg-scale and --guidance take finite numbers".to_string()));
    }
    if args.grid.is_some() && args.noise.parse::<NoiseKind>().is_err() {
        return Err(Error::Input(
            "--grid makes its own noise from the seed; drop --noise FILE or --grid".to_string(),
        ));
    }
    let noise = NoiseSource::open(&args.noise)?;
    let inputs = args.prompts.as_deref().into_iter().chain(noise.path()).chain(args.plan.model.files());
    let inputs: Vec<&Path> = inputs.collect();
    outputs.check_inputs(&inputs, None)?;
    if args.plan.model.is_demo() {
        say(DEMO_NOTICE);
    }
    let folder = args.plan.model.folder()?;
    outputs.check_inputs(&[], Some(folder.path()))?;
    // Config files say what cannot be; weights are opened, not yet read, when it can.
    let config = args.plan.model.config(&folder)?;
    let plan = args.plan.plan(&config, true_cfg)?;
    outputs.check_dump(&plan, &inputs, folder.path())?;
    drop(inputs);
    let noise = noise.read(&plan)?;
    let plan = if args.preview.is_some() { plan.with_previews()? } else { plan };
    let plan = args.plan.budgets.within_budget(plan)?;
    check_disk(&plan, args.cache.as_deref())?;
    let cells = args.grid.map_or(1, Grid::cells);
    check_picture(args, outputs.format(), plan.shape(), &prompts)?;
    let (device, note) = args.device.open(&plan, cells)?;
    let plan = plan.on(device.capability())?;
    let model = args.plan.model.model(&folder)?;
    for warning in model.warnings() {
        say(format!("warning: {warning}"));
    }
    let request = request(args, noise);
    let first_seed = args.seed.number();
    // Prompt after prompt; when all had their turn, again with the next seed.
    let requests: Vec<Request> = (0..cells)
        .map(|cell| {
            let mut request = request.clone();
            request.prompt = prompts[cell % prompts.len()].clone();
            request.seed(first_seed.wrapping_add((cell / prompts.len()) as u64))
        })
        .collect();
    if args.seed == Seed::Random {
        say(format_args!("--seed random: {first_seed}"));
    }
    let warned = warn(&requests, &config);
    if let Some(note) = note {
        say(note);
    }
    draw(args, outputs, &model, plan, &device, &requests, warned)
}

/// Says of what was asked for in vain, once, before the work; returns all that has been said with that.
fn warn(requests: &[Request], config: &PipelineConfig) -> HashSet<String> {
    // The last has the largest seed; in all else they are alike.
    for warning in requests.last().map(|request| request.warnings(config)).unwrap_or_default() {
        say(format_args!("warning: {warning}"));
    }
    requests.iter().flat_map(|request| request.warnings(config)).collect()
}

/// Refuses now, rather than after everything has been drawn, what the file cannot be.
fn check_picture(args: &Args, format: ImageFormat, shape: Shape, prompts: &[String]) -> Result<()> {
    let (mut width, mut height, mut cells) = (shape.width, shape.height, 1);
    if let Some(grid) = args.grid {
        cells = grid.cells();
        (width, height) = schnell::image::sheet_size(grid.columns, cells, width, height)?;
    }
    let mut notes: Vec<Note> = Vec::new();
    if !args.no_metadata {
        let each: Vec<&str> = (0..cells).map(|cell| prompts[cell % prompts.len()].as_str()).collect();
        notes.push(("prompt", each.join("\n")));
        notes.extend(args.prompt_2.clone().map(|text| ("prompt_2", text)));
        notes.extend(args.negative_prompt.clone().map(|text| ("negative_prompt", text)));
        // Seeds of 20 digits, hashes of 64, and more than the rest ever takes.
        notes.push(("seed", "0".repeat((21 + 65) * cells + 1000)));
    }
    format.check(width, height, &notes)
}

/// What all pictures have in common.
fn request(args: &Args, noise: Noise) -> Request {
    let mut request = Request::new("").noise(noise).timesteps(match args.timesteps {
        TimestepsOption::Exact => TimeRounding::Exact,
        TimestepsOption::Bf16 => TimeRounding::Bf16,
    });
    request.guidance = args.guidance;
    request.deadline = args.deadline;
    request.late = match args.late {
        LateOption::Fail => Late::Fail,
        LateOption::FewerSteps => Late::FewerSteps,
        LateOption::Estimate => Late::Estimate,
    };
    request.prompt_2 = args.prompt_2.clone();
    request.negative_prompt = args.negative_prompt.clone();
    request.true_cfg_scale = args.true_cfg_scale;
    request.allow_empty_prompt = args.allow_empty_prompt;
    request.dump = args.dump.is_some();
    request.trace = args.trace.is_some();
    request
}

/// The one prompt, or those of the file.
fn prompts(args: &Args) -> Result<Vec<String>> {
    let Some(path) = &args.prompts else {
        return Ok(args.prompt.iter().cloned().collect());
    };
    let prompts = inputs::prompts(path)?;
    let cells = args.grid.map_or(1, Grid::cells);
    if prompts.is_empty() || prompts.len() > cells {
        return Err(Error::Input(format!(
            "{}: {} prompts for the {cells} pictures of --grid; expected 1 to {cells}, one per line",
            path.display(),
            prompts.len()
        )));
    }
    Ok(prompts)
}

fn draw(
    args: &Args,
    mut files: Outputs,
    model: &Model,
    plan: Plan,
    device: &Device,
    requests: &[Request],
    mut warned: HashSet<String>,
) -> Result<()> {
    let name = files.name().to_path_buf();
    let arena = plan.arena_bytes();
    let bar = Bars::default();
    let mut builder = Pipeline::builder(model).with_plan(plan).device(device).graphs(!args.no_graphs);
    if args.dump.is_some() {
        builder = builder.dumps();
    }
    if let Some(cache) = &args.cache {
        builder = builder.cache(cache);
    }
    if let Some(file) = &args.calibrate {
        builder = builder.calibrate(file);
    }
    let mut pipeline = builder.load_with(&mut |p| bar.show(p, ""))?;
    let overhead =
        pipeline.overhead_bytes().map(|bytes| format!(" (and {} of the driver's)", human_bytes(bytes)));
    let mut preview = files.take_preview();
    let mut outputs = Vec::with_capacity(requests.len());
    for (i, request) in requests.iter().enumerate() {
        let which = match requests.len() {
            1 => String::new(),
            all => format!("{} of {all}: ", i + 1),
        };
        let mut progress = |p| bar.show(p, &which);
        let mut output = match &mut preview {
            Some(file) => pipeline.generate_previewed(request, &mut progress, &mut |p| file.show(&p)),
            None => pipeline.generate_with(request, &mut progress),
        }?;
        if args.no_metadata {
            output.notes.clear();
        }
        outputs.push(output);
    }
    bar.clear();
    let what = match args.grid {
        None => save_one(files, &outputs[0], requests[0].seed)?,
        Some(grid) => save_sheet(files, grid, &outputs, requests[0].seed)?,
    };
    for warning in outputs.iter().flat_map(|output| &output.warnings) {
        if warned.insert(warning.clone()) {
            say(format_args!("warning: {warning}"));
        }
    }
    let (arena, overhead) = (human_bytes(arena), overhead.unwrap_or_default());
    say(format_args!("{}: {what}, {arena} of device memory{overhead}", name.display()));
    Ok(())
}

/// Writes the picture and what else was asked for; says what it is.
fn save_one(files: Outputs, output: &Output, seed: u64) -> Result<String> {
    let (begun, mut trace) = (Instant::now(), output.trace.clone());
    let file = output.encode(files.format())?;
    if let Some(trace) = &mut trace {
        trace.push("encode", begun);
    }
    files.write(&file, output, trace.map(|trace| trace.to_json()))?;
    let timings = &output.timings;
    Ok(format!(
        "{} x {}, seed {seed}, {:.2} s on {} ({})",
        output.width,
        output.height,
        timings.total_ms * 1e-3,
        timings.device,
        timings.summary()
    ))
}

/// Writes one sheet of all pictures; says what it is.
fn save_sheet(files: Outputs, grid: Grid, outputs: &[Output], seed: u64) -> Result<String> {
    let first = &outputs[0];
    let pictures: Vec<&[u8]> = outputs.iter().map(|output| output.rgb.as_slice()).collect();
    let (width, height, rgb) =
        schnell::image::contact_sheet(grid.columns, first.width, first.height, &pictures)?;
    let notes = sheet_notes(grid, outputs, &rgb);
    let file = schnell::image::encode(files.format(), width, height, &rgb, &notes)?;
    let timings: Vec<&Timings> = outputs.iter().map(|output| &output.timings).collect();
    files.write_sheet(&file, &timings)?;
    let total: f64 = timings.iter().map(|t| t.total_ms * 1e-3).sum();
    Ok(format!(
        "{width} x {height}, {} picture{} of {} x {}, from seed {seed}, {total:.2} s on {} (the first: {})",
        outputs.len(),
        if outputs.len() == 1 { "" } else { "s" },
        first.width,
        first.height,
        first.timings.device,
        first.timings.summary()
    ))
}

/// Those of all pictures of a sheet: what differs from picture to picture comes as a list, the rest once.
fn sheet_notes(grid: Grid, outputs: &[Output], rgb: &[u8]) -> Vec<Note> {
    let first = &outputs[0];
    let Some(receipt) = Receipt::of_sheet(outputs.iter().map(|output| &output.receipt), rgb) else {
        return Vec::new();
    };
    let note = |(i, (keyword, text)): (usize, &Note)| match *keyword {
        "prompt" | "seed" | "latents" => {
            let each: Vec<&str> = outputs.iter().map(|output| output.notes[i].1.as_str()).collect();
            (*keyword, each.join("\n"))
        }
        "pixels" => ("pixels", receipt.pixels.clone()),
        _ => (*keyword, text.clone()),
    };
    let mut notes: Vec<Note> = first.notes.iter().enumerate().map(note).collect();
    if !notes.is_empty() {
        notes.push(("grid", format!("{}x{}", grid.columns, grid.rows)));
    }
    notes
}

/// One line that changes: loading by bytes, then steps.
pub struct Bars(ProgressBar);

impl Default for Bars {
    fn default() -> Self {
        Bars(ProgressBar::new(0))
    }
}

impl Bars {
    /// Leaves the line empty.
    pub fn clear(&self) {
        self.0.finish_and_clear();
    }

    /// `which` comes before what is said of a stage.
    pub fn show(&self, progress: Progress, which: &str) -> ControlFlow<()> {
        let style = |template: &str| {
            ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
        };
        match progress {
            Progress::Loading { done, total } => {
                if done == 0 {
                    self.0.set_style(style("{msg} {bar:30} {bytes}/{total_bytes}, {bytes_per_sec}"));
                    self.0.set_message("loading");
                    self.0.set_length(total);
                }
                self.0.set_position(done);
            }
            Progress::TextEncoding => {
                self.0.set_style(style("{msg}"));
                self.0.set_message(format!("{which}encoding the prompt"));
            }
            Progress::Step { index, total } => {
                self.0.set_style(style("{msg} {bar:30} {pos}/{len}"));
                self.0.set_message(format!("{which}denoising"));
                self.0.set_length(total as u64);
                self.0.set_position(index as u64 + 1);
            }
            Progress::Decoding => {
                self.0.set_style(style("{msg}"));
                self.0.set_message(format!("{which}decoding"));
            }
            _ => {}
        }
        ControlFlow::Continue(())
    }
}
