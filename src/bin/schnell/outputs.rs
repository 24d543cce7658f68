//! Files that the command writes: picture, timings, trace, previews, dump. All are tried before the work, and compared with each other and
//! with what the command reads.
//!
//! A dump goes into a folder that holds no other stages: files of this run's stages are replaced, but where any other
//! `.safetensors` lies, the folder is refused, since nobody could tell later which belong together.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use schnell::ImageFormat;
use schnell::files::{self, Target};
use schnell::{Dump, Error, Output, Plan, Preview, Result, Timings};

use crate::terminal::say;

/// The file of that name, tried; `-` is standard output.
pub fn target(path: &Path) -> Result<Target> {
    if path == Path::new("-") { Ok(Target::stdout()) } else { Target::new(path) }
}

/// Refuses to write over what is read.
pub fn refuse_inputs<'a>(
    targets: impl IntoIterator<Item = &'a Target>,
    inputs: impl IntoIterator<Item = &'a Path> + Clone,
) -> Result<()> {
    for target in targets {
        if let Some(input) = inputs.clone().into_iter().find(|input| target.is_file(input)) {
            return Err(taken(target, &input.display().to_string()));
        }
    }
    Ok(())
}

fn taken(target: &Target, by: &str) -> Error {
    let name = target.name().display();
    Error::Input(format!("{name} is {by}, which this run reads; name another file"))
}

/// As the flags say.
pub struct Names<'a> {
    pub picture: &'a Path,
    pub timings: Option<&'a Path>,
    pub trace: Option<&'a Path>,
    pub preview: Option<&'a Path>,
    pub dump: Option<&'a Path>,
}

/// Where everything goes.
pub struct Outputs {
    picture: Target,
    format: ImageFormat,
    timings: Option<Target>,
    trace: Option<Target>,
    preview: Option<PreviewFile>,
    dump: Option<PathBuf>,
}

impl Outputs {
    /// Tries the files. `-` is standard output.
    pub fn open(names: &Names) -> Result<Outputs> {
        let to_stdout = names.picture == Path::new("-");
        if to_stdout && std::io::stdout().is_terminal() {
            return Err(Error::Input(
                "--output - would write a PNG to the terminal; redirect it".to_string(),
            ));
        }
        let picture = target(names.picture)?;
        let outputs = Outputs {
            format: picture.image_format()?,
            picture,
            timings: names.timings.map(target).transpose()?,
            trace: names.trace.map(target).transpose()?,
            preview: names.preview.map(PreviewFile::open).transpose()?,
            dump: names.dump.map(Path::to_path_buf),
        };
        let targets = outputs.targets();
        for (i, (flag, target)) in targets.iter().enumerate() {
            if let Some((other, _)) = targets[i + 1..].iter().find(|(_, other)| other.is_same(target)) {
                return Err(Error::Input(format!(
                    "{flag} and {other} are the same file, {}; name two",
                    target.name().display()
                )));
            }
        }
        Ok(outputs)
    }

    /// Single files, with their flags.
    fn targets(&self) -> Vec<(&'static str, &Target)> {
        let preview = self.preview.as_ref().map(|preview| &preview.target);
        let others =
            [("--timings", self.timings.as_ref()), ("--trace", self.trace.as_ref()), ("--preview", preview)];
        let others = others.into_iter().filter_map(|(flag, target)| Some((flag, target?)));
        [("--output", &self.picture)].into_iter().chain(others).collect()
    }

    /// Refuses to write over what is read: `inputs`, and the files of the model in `model`.
    pub fn check_inputs(&self, inputs: &[&Path], model: Option<&Path>) -> Result<()> {
        let targets: Vec<&Target> = self.targets().into_iter().map(|(_, target)| target).collect();
        refuse_inputs(targets.iter().copied(), inputs.iter().copied())?;
        match model.and_then(|model| targets.into_iter().find(|target| is_of_model(target, model))) {
            Some(target) => Err(taken(target, "a file of the model")),
            None => Ok(()),
        }
    }

    /// The file of previews, if there shall be one.
    pub fn take_preview(&mut self) -> Option<PreviewFile> {
        self.preview.take()
    }

    /// Tries the dump's files for the stages of `plan`, a picture by the model in `model`.
    pub fn check_dump(&self, plan: &Plan, inputs: &[&Path], model: &Path) -> Result<()> {
        let Some(dir) = &self.dump else { return Ok(()) };
        let names: Vec<String> = plan.dump_stages().iter().map(|stage| Dump::file_name(stage)).collect();
        let made = make_folder(dir)?;
        let checked = self.check_stages(dir, &names, inputs, model);
        // Nothing is there before there is something to put into it.
        for folder in made.iter().rev() {
            let _ = std::fs::remove_dir(folder);
        }
        checked
    }

    fn check_stages(&self, dir: &Path, names: &[String], inputs: &[&Path], model: &Path) -> Result<()> {
        for entry in std::fs::read_dir(dir).map_err(Error::io("read", dir))? {
            let name = entry.map_err(Error::io("read", dir))?.file_name();
            let is_stage = Path::new(&name).extension().is_some_and(|e| e == "safetensors");
            if is_stage && !names.iter().any(|known| name == known.as_str()) {
                return Err(Error::Input(format!(
                    "--dump {}: {} there is of another run; name an empty folder, or clear this one",
                    dir.display(),
                    name.display()
                )));
            }
        }
        for name in names {
            let path = dir.join(name);
            let target = Target::new(&path)?;
            if self.targets().iter().any(|(_, other)| other.is_same(&target)) {
                return Err(Error::Input(format!("--dump writes {}, too; name two files", path.display())));
            }
            if is_of_model(&target, model) {
                return Err(Error::Input(format!(
                    "--dump {}: a folder of the model; name another",
                    dir.display()
                )));
            }
            if let Some(input) = inputs.iter().find(|input| target.is_file(input)) {
                return Err(Error::Input(format!(
                    "--dump would write over {}, which this run reads; name another folder",
                    input.display()
                )));
            }
        }
        Ok(())
    }

    /// What the picture becomes.
    pub fn format(&self) -> ImageFormat {
        self.format
    }

    /// As the user says it.
    pub fn name(&self) -> &Path {
        self.picture.name()
    }

    /// Writes everything; the picture first, which nothing else may cost.
    pub fn write(mut self, picture: &[u8], output: &Output, trace: Option<String>) -> Result<()> {
        self.picture.write(picture)?;
        let dumped = self.dump.as_ref().map_or(Ok(()), |dir| write_dumps(dir, &output.dumps));
        self.write_timings(&output.timings)?;
        if let Some((target, trace)) = self.trace.as_mut().zip(trace) {
            target.write(trace.as_bytes())?;
        }
        dumped
    }

    /// Writes a picture made of several, and how long each of them took.
    pub fn write_sheet(mut self, picture: &[u8], timings: &[&Timings]) -> Result<()> {
        self.picture.write(picture)?;
        self.write_timings(&timings)
    }

    fn write_timings(&mut self, timings: &impl serde::Serialize) -> Result<()> {
        let Some(target) = &mut self.timings else { return Ok(()) };
        let json = serde_json::to_vec_pretty(timings)
            .map_err(|e| Error::Input(format!("timings cannot be written as JSON: {e}")))?;
        target.write(&json)
    }
}

/// Where previews go, each in place of the one before.
pub struct PreviewFile {
    target: Target,
    format: ImageFormat,
    has_failed: bool,
}

impl PreviewFile {
    fn open(path: &Path) -> Result<PreviewFile> {
        let target = target(path)?;
        Ok(PreviewFile { format: target.image_format()?, target, has_failed: false })
    }

    /// Writes one. That it cannot be is said once: it costs no picture.
    pub fn show(&mut self, preview: &Preview) {
        let Preview { width, height, rgb, .. } = preview;
        let file = schnell::image::encode(self.format, *width, *height, rgb, &[]);
        if let Err(error) = file.and_then(|file| self.target.write(&file))
            && !std::mem::replace(&mut self.has_failed, true)
        {
            say(format_args!("warning: no preview: {error}"));
        }
    }
}

fn write_dumps(dir: &Path, dumps: &[Dump]) -> Result<()> {
    make_folder(dir)?;
    let mut outputs = Vec::with_capacity(dumps.len());
    for dump in dumps {
        outputs.push((Target::new(&dir.join(Dump::file_name(&dump.stage)))?, dump.encode()?));
    }
    Target::write_all(&mut outputs)
}

/// Makes `dir` and what leads to it; returns what was not there.
fn make_folder(dir: &Path) -> Result<Vec<PathBuf>> {
    let missing = |dir: &&Path| !dir.as_os_str().is_empty() && matches!(files::exists(dir), Ok(false));
    let mut made: Vec<PathBuf> = dir.ancestors().take_while(missing).map(Path::to_path_buf).collect();
    made.reverse();
    std::fs::create_dir_all(dir).map_err(|source| {
        for folder in made.iter().rev() {
            let _ = std::fs::remove_dir(folder);
        }
        Error::io("create", dir)(source)
    })?;
    Ok(made)
}

/// Whether `target` is one of the model's files, or would be a new one in the folder of a component.
pub fn is_of_model(target: &Target, model: &Path) -> bool {
    let here = target.path().and_then(Path::parent);
    let inside = model
        .canonicalize()
        .ok()
        .zip(here)
        .is_some_and(|(model, here)| here != model && here.starts_with(&model));
    let entries = |dir: &Path| -> Vec<PathBuf> {
        std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
    };
    let files = |path: PathBuf| if path.is_dir() { entries(&path) } else { vec![path] };
    inside || entries(model).into_iter().flat_map(files).any(|file| target.is_file(&file))
}
