//! `schnell generate --batch`: many requests of one file, by one pipeline, with a manifest that says how far it has come.
//!
//! The manifest has one line of JSON a picture, in the order of the file, and is replaced as a whole after each: whenever the command ends, it and
//! the pictures are whole. A picture whose line says what would be drawn now, and whose file has the digest that it says, is not
//! drawn again.

use std::collections::{BTreeMap, HashSet};
use std::io::Read;
use std::path::{Component, Path, PathBuf};

use schnell::files::{self, Kind, Target};
use schnell::image::Note;
use schnell::{Error, ImageFormat, Output, Pipeline, PipelineConfig, Plan, Request, Result, Shape};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{Args, Bars, DEMO_NOTICE, request};
use crate::inputs::{self, NoiseSource};
use crate::options::{Seed, check_disk};
use crate::outputs::{self, is_of_model};
use crate::signals;
use crate::terminal::{hex, say};

/// The manifest is written anew after each picture.
const MOST_LINES: usize = 10_000;
/// As many as a pipeline keeps ready.
const MOST_SHAPES: usize = 8;

/// A line that is an object. What it does not say, the flags say.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    prompt: String,
    prompt_2: Option<String>,
    negative_prompt: Option<String>,
    true_cfg_scale: Option<f32>,
    seed: Option<u64>,
    width: Option<usize>,
    height: Option<usize>,
    steps: Option<usize>,
    guidance: Option<f32>,
    /// In the folder of --output.
    output: Option<String>,
}

/// A picture to draw.
struct Picture {
    /// Of the batch file, from 1.
    line: usize,
    request: Request,
    shape: Shape,
    /// As the manifest has it.
    file: String,
    target: Target,
    format: ImageFormat,
    /// All that decides its pixels, but for the model.
    asked: Value,
}

/// A line of the manifest.
#[derive(Clone, Serialize, Deserialize)]
struct Entry {
    line: usize,
    request: Value,
    /// Its digest, and its LoRAs.
    model: String,
    file: String,
    /// SHA-256 of u8 `[height, width, 3]`, and of the file.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pixels_sha256: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    file_sha256: Option<String>,
    #[serde(skip_serializing_if = "Value::is_null", default)]
    timings: Value,
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    warnings: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    error: Option<String>,
}

pub(super) fn run(args: &Args, batch: &Path) -> Result<()> {
    // All that can be refused is refused before any work.
    check_flags(args)?;
    let lines = inputs::lines(batch)?;
    if lines.is_empty() || lines.len() > MOST_LINES {
        let text =
            format!("{}: {} prompts; expected 1 to {MOST_LINES}, one per line", batch.display(), lines.len());
        return Err(Error::Input(text));
    }
    let mut manifest = Manifest::open(args)?;
    if args.plan.model.is_demo() {
        say(DEMO_NOTICE);
    }
    let folder = args.plan.model.folder()?;
    let config = args.plan.model.config(&folder)?;
    let pictures = pictures(args, batch, &lines, &config)?;
    if let Some(picture) = pictures.iter().find(|picture| picture.target.is_same(&manifest.target)) {
        let text = format!(
            "{} is a picture of the batch; name another file with --manifest",
            picture.target.name().display()
        );
        return Err(Error::Input(text));
    }
    let written = || pictures.iter().map(|picture| &picture.target).chain([&manifest.target]);
    let inputs: Vec<&Path> = args.plan.model.files().chain([batch]).collect();
    outputs::refuse_inputs(written(), inputs.iter().copied())?;
    if let Some(target) = written().find(|target| is_of_model(target, folder.path())) {
        let text = format!("{} is a file of the model; name another", target.name().display());
        return Err(Error::Input(text));
    }
    let plan = plan(args, &config, &pictures)?;
    let model = args.plan.model.model(&folder)?;
    let digest = [model.digest()?, model.loras()].join(" ").trim_end().to_string();
    let (done, left): (Vec<&Picture>, Vec<&Picture>) =
        pictures.iter().partition(|picture| manifest.has(picture, &digest));
    manifest.keep(&done);
    if left.is_empty() {
        say(format_args!(
            "all {} pictures are there already; {} says of what",
            pictures.len(),
            manifest.name()
        ));
        return Ok(());
    }
    let (device, note) = args.device.open(&plan, left.len())?;
    let plan = plan.on(device.capability())?;
    for warning in model.warnings() {
        say(format_args!("warning: {warning}"));
    }
    if let Some(note) = note {
        say(note);
    }
    if !done.is_empty() {
        say(format_args!("{} of {} pictures are there already", done.len(), pictures.len()));
    }
    signals::say_before_the_end(
        "interrupted; the same command goes on with the pictures that are not there".to_string(),
    );
    let mut builder = Pipeline::builder(&model).with_plan(plan).device(&device).graphs(!args.no_graphs);
    if let Some(cache) = &args.cache {
        builder = builder.cache(cache);
    }
    if let Some(file) = &args.calibrate {
        builder = builder.calibrate(file);
    }
    let bar = Bars::default();
    let mut pipeline = builder.load_with(&mut |progress| bar.show(progress, ""))?;
    let numbers: Vec<usize> = left.iter().map(|picture| picture.line).collect();
    let failed = draw(args, &mut pipeline, pictures, &numbers, &mut manifest, &digest, &bar)?;
    bar.0.finish_and_clear();
    let drawn = numbers.len() - failed.len();
    say(format_args!("{drawn} pictures drawn, {} failed; {} says of what", failed.len(), manifest.name()));
    failed.into_iter().next().map_or(Ok(()), Err)
}

/// What makes no sense for many pictures, or could not be gone on with.
fn check_flags(args: &Args) -> Result<()> {
    let refuse = |what: &str| Err(Error::Input(what.to_string()));
    if args.seed == Seed::Random {
        return refuse(
            "--batch goes on where it was by the seeds: name a number with --seed, or seeds in the file",
        );
    }
    if !matches!(NoiseSource::open(&args.noise)?, NoiseSource::Seeded(_)) {
        return refuse("--batch makes its own noise from the seeds; drop --noise FILE");
    }
    if args.output == Path::new("-") {
        return refuse(
            "--batch writes files: name one with --output, such as pictures/cat.png for pictures/cat-0001.png",
        );
    }
    if !args.true_cfg_scale.is_finite() || !args.guidance.is_none_or(f32::is_finite) {
        return refuse("--true-cfg-scale and --guidance take finite numbers");
    }
    Ok(())
}

/// Of every line, or what is wrong with the first that is.
fn pictures(
    args: &Args,
    batch: &Path,
    lines: &[(usize, String)],
    config: &PipelineConfig,
) -> Result<Vec<Picture>> {
    let read = lines.iter().map(|(number, text)| (*number, picture(args, *number, text, config)));
    let (mut pictures, mut wrong) = (Vec::new(), Vec::new());
    let mut names: BTreeMap<PathBuf, usize> = BTreeMap::new();
    for (number, read) in read {
        let checked = read.and_then(|picture| {
            let path = picture.target.path().map_or(PathBuf::from(&picture.file), Path::to_path_buf);
            match names.insert(path, number) {
                None => Ok(picture),
                Some(other) => Err(Error::Input(format!(
                    "{} is the picture of line {other}, too; name another",
                    picture.file
                ))),
            }
        });
        match checked {
            Ok(picture) => pictures.push(picture),
            Err(error) => wrong.push((number, error)),
        }
    }
    let count = wrong.len();
    if let Some((number, error)) = wrong.into_iter().next() {
        let more = match count {
            1 => String::new(),
            n => format!(" ({} more lines are wrong, too)", n - 1),
        };
        return Err(match error {
            Error::Io { .. } => error,
            error => Error::Input(format!("{}: line {number}: {error}{more}", batch.display())),
        });
    }
    let shapes: HashSet<Shape> = pictures.iter().map(|picture| picture.shape).collect();
    match shapes.len() {
        0..=MOST_SHAPES => Ok(pictures),
        n => Err(Error::Input(format!(
            "{}: pictures of {n} shapes (width, height, steps, with or without a negative prompt); at most {MOST_SHAPES} are kept ready: \
             split the file",
            batch.display()
        ))),
    }
}

fn picture(args: &Args, number: usize, text: &str, config: &PipelineConfig) -> Result<Picture> {
    let wrong = |what: String| Error::Input(what);
    let line: Line = match text.starts_with('{') {
        true => serde_json::from_str(text)
            .map_err(|e| wrong(format!("{e}; a prompt that begins with {{ is written as JSON")))?,
        false => Line {
            prompt: text.to_string(),
            prompt_2: None,
            negative_prompt: None,
            true_cfg_scale: None,
            seed: None,
            width: None,
            height: None,
            steps: None,
            guidance: None,
            output: None,
        },
    };
    let mut request = request(args, NoiseSource::open(&args.noise).and_then(kind)?);
    request.prompt = line.prompt;
    request.prompt_2 = line.prompt_2.or(request.prompt_2);
    request.negative_prompt = line.negative_prompt.or(request.negative_prompt);
    request.true_cfg_scale = line.true_cfg_scale.unwrap_or(request.true_cfg_scale);
    request.guidance = line.guidance.or(request.guidance);
    request.seed = line.seed.unwrap_or(args.seed.number());
    let empty = |text: &str| text.trim().is_empty() && !args.allow_empty_prompt;
    if empty(&request.prompt) || request.prompt_2.as_deref().is_some_and(empty) {
        return Err(wrong("the prompt is empty; say what to draw, or pass --allow-empty-prompt".to_string()));
    }
    if !request.true_cfg_scale.is_finite() || !request.guidance.is_none_or(f32::is_finite) {
        return Err(wrong("true_cfg_scale and guidance take finite numbers".to_string()));
    }
    let mut shape = args.plan.shape(config, request.true_cfg());
    shape.width = line.width.unwrap_or(shape.width);
    shape.height = line.height.unwrap_or(shape.height);
    shape.steps = line.steps.unwrap_or(shape.steps);
    shape.check(config)?;
    request.size = Some((shape.width, shape.height));
    (request.steps, request.t5_length) = (Some(shape.steps), Some(shape.t5_length));
    let file = match line.output {
        Some(name) => name,
        None => numbered(&args.output, number)?,
    };
    let path = within(&args.output, &file)?;
    let target = Target::new(&path)?;
    let format = target.image_format()?;
    if !args.no_metadata {
        let texts = [Some(&request.prompt), request.prompt_2.as_ref(), request.negative_prompt.as_ref()];
        // As much as all else that is noted ever takes.
        let rest = std::iter::once(("seed", "0".repeat(1000)));
        let notes: Vec<Note> =
            texts.into_iter().flatten().map(|text| ("prompt", text.clone())).chain(rest).collect();
        format.check(shape.width, shape.height, &notes)?;
    } else {
        format.check(shape.width, shape.height, &[])?;
    }
    let asked = asked(args, &request, &shape);
    Ok(Picture { line: number, request, shape, file, target, format, asked })
}

fn kind(noise: NoiseSource) -> Result<schnell::Noise> {
    match noise {
        NoiseSource::Seeded(kind) => Ok(schnell::Noise::Seeded(kind)),
        NoiseSource::File(_) => Err(Error::Internal("noise of a file was refused before".to_string())),
    }
}

/// `cat-0007.png` of `cat.png`.
fn numbered(output: &Path, number: usize) -> Result<String> {
    let parts = output
        .file_stem()
        .zip(output.extension())
        .and_then(|(stem, end)| Some((stem.to_str()?, end.to_str()?)));
    let (stem, end) = parts.ok_or_else(|| {
        Error::Input(format!("--output {}: name a file, such as pictures/cat.png", output.display()))
    })?;
    Ok(format!("{stem}-{number:04}.{end}"))
}

/// The file `name` in the folder of --output, or below it: a batch file from elsewhere writes nowhere else.
fn within(output: &Path, name: &str) -> Result<PathBuf> {
    let is_plain = Path::new(name).components().all(|part| matches!(part, Component::Normal(_)));
    match is_plain && !name.is_empty() {
        true => Ok(output.parent().unwrap_or(Path::new("")).join(name)),
        false => Err(Error::Input(format!("output {name}: name a file in the folder of --output"))),
    }
}

/// What two runs must have in common to draw the same picture, beside the model and the card.
fn asked(args: &Args, request: &Request, shape: &Shape) -> Value {
    json!({
        "prompt": request.prompt,
        "prompt_2": request.prompt_2,
        "negative_prompt": request.negative_prompt,
        "true_cfg_scale": request.true_cfg_scale,
        "guidance": request.guidance,
        "deadline_ms": request.deadline.map(|deadline| deadline.as_secs_f64() * 1e3),
        "late": request.deadline.map(|_| format!("{:?}", args.late)),
        "seed": request.seed,
        "width": shape.width,
        "height": shape.height,
        "steps": shape.steps,
        "t5_length": shape.t5_length,
        "noise": args.noise,
        "timesteps": format!("{:?}", request.timesteps).to_lowercase(),
        "quantize": args.plan.quantize.map(|quantize| format!("{quantize:?}")),
        "precision": format!("{:?}", args.plan.precision).to_lowercase(),
        "metadata": !args.no_metadata,
    })
}

/// For all shapes that there are, in the order of the file.
fn plan(args: &Args, config: &PipelineConfig, pictures: &[Picture]) -> Result<Plan> {
    let mut shapes: Vec<Shape> = Vec::new();
    for picture in pictures {
        if !shapes.contains(&picture.shape) {
            shapes.push(picture.shape);
        }
    }
    let mut plan = args.plan.plan_for(config, shapes[0])?;
    for shape in &shapes[1..] {
        plan = plan.with_shape(*shape)?;
    }
    let plan = args.plan.budgets.within_budget(plan)?;
    check_disk(&plan, args.cache.as_deref())?;
    Ok(plan)
}

/// Draws the lines of these numbers; what the pictures were refused for that could not be drawn.
fn draw(
    args: &Args,
    pipeline: &mut Pipeline,
    pictures: Vec<Picture>,
    numbers: &[usize],
    manifest: &mut Manifest,
    model: &str,
    bar: &Bars,
) -> Result<Vec<Error>> {
    let (mut failed, mut said) = (Vec::new(), HashSet::new());
    let left = pictures.into_iter().filter(|picture| numbers.contains(&picture.line));
    for (i, mut picture) in left.enumerate() {
        let which = format!("{} of {}: ", i + 1, numbers.len());
        let drawn = pipeline.generate_with(&picture.request, &mut |progress| bar.show(progress, &which));
        match drawn.and_then(|output| Ok((save(args, &mut picture, &output)?, output))) {
            Ok((digests, output)) => {
                for warning in output.warnings.iter().filter(|warning| said.insert((*warning).clone())) {
                    bar.0.suspend(|| say(format_args!("warning: line {}: {warning}", picture.line)));
                }
                manifest.add(Entry::drawn(&picture, model, digests, &output)?)?;
            }
            Err(error) => {
                manifest.add(Entry::failed(&picture, model, &error))?;
                bar.0.suspend(|| say(format_args!("line {}: {error}", picture.line)));
                // The next picture may be drawn after these alone.
                match error {
                    Error::NotFinite { .. } | Error::Input(_) | Error::Deadline { .. } => failed.push(error),
                    other => return Err(other),
                }
            }
        }
    }
    Ok(failed)
}

/// Writes the picture; the digests of its pixels and of the file.
fn save(args: &Args, picture: &mut Picture, output: &Output) -> Result<[String; 2]> {
    let notes = if args.no_metadata { &[][..] } else { &output.notes };
    let file = schnell::image::encode(picture.format, output.width, output.height, &output.rgb, notes)?;
    picture.target.write(&file)?;
    Ok([output.receipt.pixels.clone(), hex(&Sha256::digest(&file))])
}

impl Entry {
    fn new(picture: &Picture, model: &str) -> Entry {
        Entry {
            line: picture.line,
            request: picture.asked.clone(),
            model: model.to_string(),
            file: picture.file.clone(),
            pixels_sha256: None,
            file_sha256: None,
            timings: Value::Null,
            warnings: Vec::new(),
            error: None,
        }
    }

    fn drawn(picture: &Picture, model: &str, [pixels, file]: [String; 2], output: &Output) -> Result<Entry> {
        Ok(Entry {
            pixels_sha256: Some(pixels),
            file_sha256: Some(file),
            timings: serde_json::to_value(&output.timings).map_err(|e| Error::Internal(e.to_string()))?,
            warnings: output.warnings.clone(),
            ..Entry::new(picture, model)
        })
    }

    fn failed(picture: &Picture, model: &str, error: &Error) -> Entry {
        Entry { error: Some(error.to_string()), ..Entry::new(picture, model) }
    }
}

/// The file, and what it says.
struct Manifest {
    target: Target,
    /// By the number of their line.
    entries: BTreeMap<usize, Entry>,
}

impl Manifest {
    /// `--manifest`, or beside the pictures; with what an earlier run has written.
    fn open(args: &Args) -> Result<Manifest> {
        let path = match &args.manifest {
            Some(path) => path.clone(),
            None => args.output.with_extension("jsonl"),
        };
        let target = Target::new(&path)?;
        if !target.is_regular() {
            return Err(Error::Input(format!("--manifest {}: name a regular file", path.display())));
        }
        let mut entries = BTreeMap::new();
        if files::exists(&path)? {
            let bytes = files::read(&path, Kind::Manifest)?;
            for (i, line) in bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).enumerate() {
                let entry: Entry = serde_json::from_slice(line).map_err(|e| {
                    let (path, line) = (path.display(), i + 1);
                    Error::Input(format!(
                        "{path}: line {line}: not what --batch writes ({e}); name another with --manifest"
                    ))
                })?;
                entries.insert(entry.line, entry);
            }
        }
        Ok(Manifest { target, entries })
    }

    fn name(&self) -> String {
        self.target.name().display().to_string()
    }

    /// Whether its picture is there, as this run would draw it.
    fn has(&self, picture: &Picture, model: &str) -> bool {
        let Some(entry) = self.entries.get(&picture.line) else { return false };
        let is_same = entry.request == picture.asked
            && entry.model == model
            && entry.file == picture.file
            && entry.error.is_none();
        let path = picture.target.path().filter(|_| is_same);
        path.and_then(digest_of).is_some_and(|digest| entry.file_sha256 == Some(digest))
    }

    /// Forgets all but these.
    fn keep(&mut self, pictures: &[&Picture]) {
        let lines: HashSet<usize> = pictures.iter().map(|picture| picture.line).collect();
        self.entries.retain(|line, _| lines.contains(line));
    }

    fn add(&mut self, entry: Entry) -> Result<()> {
        self.entries.insert(entry.line, entry);
        let mut text = String::new();
        for entry in self.entries.values() {
            text += &serde_json::to_string(entry).map_err(|e| Error::Internal(e.to_string()))?;
            text.push('\n');
        }
        self.target.write(text.as_bytes())
    }
}

/// Of a file that may be large; nothing of one that is not there.
fn digest_of(path: &Path) -> Option<String> {
    let (mut file, _) = files::open(path).ok()?;
    let (mut hash, mut piece) = (Sha256::new(), vec![0; 1 << 16]);
    loop {
        match file.read(&mut piece).ok()? {
            0 => return Some(hex(&hash.finalize())),
            n => hash.update(&piece[..n]),
        }
    }
}
