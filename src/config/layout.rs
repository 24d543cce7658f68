//! What is found where a model's folder should be: a file, a part of a model, or a folder without its index.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::fields::read_json;
use crate::error::shown;
use crate::files;
use crate::weights::lora::LoraFile;
use crate::weights::{Component, PartFiles};
use crate::{Error, Result};

/// The end of every refusal here.
const EXPECTED: &str =
    "a model is a folder with model_index.json (diffusers layout), or a file that holds a transformer";

/// The refusal of `dir`, which has no `model_index.json`.
pub(super) fn no_model(dir: &Path) -> Error {
    let Ok(metadata) = dir.metadata() else {
        return match dir.read_link() {
            Ok(to) => Error::weights(dir, format!("a link to {}, which is missing", to.display())),
            Err(_) => Error::io("read", dir)(std::io::ErrorKind::NotFound.into()),
        };
    };
    match metadata.is_dir() {
        true => folder(dir).unwrap_or_else(|error| error),
        false => match file_parts(dir) {
            Ok(parts) => files_of_parts(dir, &parts),
            Err(error) => error,
        },
    }
}

/// The parts that a file holds, of which there is one at least.
///
/// # Errors
/// Those of opening it; [`Error::Weights`] for what holds none, saying what it is.
pub(crate) fn file_parts(path: &Path) -> Result<Vec<PartFiles>> {
    if path.file_name().is_some_and(|name| name == "model_index.json") {
        let parent = path.parent().unwrap_or(Path::new("."));
        return Err(Error::weights(path, format!("{EXPECTED}; name it: {}", parent.display())));
    }
    // Names what it is when it is none.
    let component = Component::file(path).map_err(|error| match error {
        Error::Weights { path, what, source } => {
            Error::Weights { path, what: format!("{what}; {EXPECTED}"), source }
        }
        other => other,
    })?;
    let component = Arc::new(component);
    let parts = PartFiles::all(&component);
    // Control LoRAs have norms of their own, by which transformers are known.
    match parts.is_empty() || LoraFile::of(&component).is_some() {
        true => Err(refusal(&component)),
        false => Ok(parts),
    }
}

/// The refusal of a file that holds no part of a model.
pub(crate) fn refusal(file: &Component) -> Error {
    Error::weights(file.path(), format!("this is {}; {EXPECTED}", no_part(file)))
}

/// What a file is that holds no part of a model, or not the beginning of one.
fn no_part(file: &Component) -> String {
    if let Some(lora) = LoraFile::of(file) {
        return format!("{lora}: name it beside a model, with --lora FILE");
    }
    let has = |start: &str| file.iter().any(|tensor| tensor.name.starts_with(start));
    let part = [
        ("transformer_blocks.", "a shard of a transformer, which belongs into transformer/"),
        ("single_transformer_blocks.", "a shard of a transformer, which belongs into transformer/"),
        ("encoder.block.", "a shard of a T5 encoder, which belongs into text_encoder_2/"),
        ("text_model.", "a shard of a CLIP text encoder, which belongs into text_encoder/"),
        ("decoder.", "a shard of a VAE, which belongs into vae/"),
    ];
    if let Some((_, what)) = part.iter().find(|(start, _)| has(start)) {
        return what.to_string();
    }
    let architecture = file.metadata().get("general.architecture").filter(|_| file.gguf_version().is_some());
    let names: Vec<&str> = file.iter().map(|tensor| tensor.name.as_str()).take(2).collect();
    match (architecture, &names[..]) {
        (Some(architecture), _) => format!(
            "a GGUF file of the architecture {} without the tensors of a FLUX transformer or a T5 encoder",
            shown(architecture)
        ),
        (_, [name]) => format!("a file of one tensor, {}, as noise and dumps are", shown(name)),
        _ => "a file of no model that is known here".to_string(),
    }
}

/// The refusal of what holds parts where a folder should be.
fn files_of_parts(path: &Path, parts: &[PartFiles]) -> Error {
    let held: Vec<String> =
        parts.iter().map(|files| format!("{} ({})", files.part(), files.layout())).collect();
    let flags: Vec<String> = parts.iter().map(|files| format!("--{} FILE", files.part())).collect();
    let what = format!("this holds {}: name the file itself, by {}", held.join(", "), flags.join(" "));
    Error::weights(path, what)
}

fn folder(dir: &Path) -> Result<Error> {
    let mut entries: Vec<PathBuf> = std::fs::read_dir(dir)
        .map_err(Error::io("read", dir))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect();
    entries.sort();
    let holds = |name: &str| dir.join(name).exists();
    let refusal = |what: String| Ok(Error::weights(dir, format!("this is {what}; {EXPECTED}")));
    let above = match dir.canonicalize().ok().as_deref().and_then(Path::parent) {
        Some(parent) if parent.join("model_index.json").exists() => {
            format!(", a part of the model {}", parent.display())
        }
        _ => String::new(),
    };
    if holds("config.json") {
        return refusal(format!("the folder of one component, {}{above}", class(&dir.join("config.json"))));
    }
    if holds("scheduler_config.json") {
        return refusal(format!("the folder of a scheduler{above}"));
    }
    if ["tokenizer_config.json", "tokenizer.json", "spiece.model", "vocab.json"].into_iter().any(holds) {
        return refusal(format!("the folder of a tokenizer{above}"));
    }
    if let Some(model) = entries.iter().find(|entry| entry.join("model_index.json").exists()) {
        return refusal(format!("a folder above a model, {}", model.display()));
    }
    if holds("snapshots") {
        let model = entries.iter().find(|entry| entry.ends_with("snapshots"));
        let snapshots = model.and_then(|model| std::fs::read_dir(model).ok()).into_iter().flatten();
        let names: Vec<String> =
            snapshots.flatten().map(|entry| shown(&entry.path().to_string_lossy())).collect();
        return refusal(format!(
            "a model in the Hugging Face cache, whose folders are {}; org/name finds it, too",
            names.join(" and ")
        ));
    }
    let parts = ["transformer", "text_encoder", "text_encoder_2", "vae", "scheduler"];
    let present: Vec<&str> = parts.into_iter().filter(|part| holds(part)).collect();
    if !present.is_empty() {
        return refusal(format!("a folder with {}, but without its index", present.join(", ")));
    }
    let is_weights = |path: &&PathBuf| {
        path.extension().is_some_and(|e| ["safetensors", "gguf", "ckpt", "pt", "bin"].iter().any(|w| e == *w))
    };
    if let Some(found) = entries.iter().find(is_weights) {
        return Ok(match file_parts(found) {
            Ok(parts) => files_of_parts(found, &parts),
            Err(error) => error,
        });
    }
    let names: Vec<String> = entries
        .iter()
        .take(3)
        .filter_map(|entry| Some(shown(&entry.file_name()?.to_string_lossy())))
        .collect();
    match names.is_empty() {
        true => refusal("an empty folder".to_string()),
        false => refusal(format!("a folder that holds {} and nothing of a model", names.join(", "))),
    }
}

/// What a component's config says that it is.
fn class(config: &Path) -> String {
    let Ok(config) = read_json::<serde_json::Value>(config) else {
        return "whose config.json cannot be read".to_string();
    };
    let name = [&config["_class_name"], &config["architectures"][0], &config["model_type"]];
    let name = name.iter().find_map(|name| name.as_str());
    name.map_or("which its config.json does not name".to_string(), shown)
}

/// Refuses what has no index, saying what it is.
pub(super) fn check(dir: &Path) -> Result<()> {
    match files::exists(&dir.join("model_index.json"))? {
        true => Ok(()),
        false => Err(no_model(dir)),
    }
}
