//! What is found where a model's folder should be: a file, a part of a model, or a folder without its index.

use std::path::{Path, PathBuf};

use super::fields::read_json;
use crate::error::shown;
use crate::files;
use crate::weights::SafeTensors;
use crate::{Error, Result};

/// The end of every refusal here.
const EXPECTED: &str = "a model is a folder with model_index.json (diffusers layout)";

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
        false => file(dir),
    }
}

/// What a file is, by what it begins with or by the names of its tensors.
fn file(path: &Path) -> Error {
    if path.file_name().is_some_and(|name| name == "model_index.json") {
        let parent = path.parent().unwrap_or(Path::new("."));
        return Error::weights(path, format!("{EXPECTED}; name it: {}", parent.display()));
    }
    // Names what it is when it is none.
    let file = match SafeTensors::open(path) {
        Ok(file) => file,
        Err(Error::Weights { path, what, source }) => {
            return Error::Weights { path, what: format!("{what}; {EXPECTED}"), source };
        }
        Err(other) => return other,
    };
    let has = |start: &str| file.iter().any(|tensor| tensor.name.starts_with(start));
    // A sound model, for which there is no code yet.
    let whole = if has("model.diffusion_model.") && (has("text_encoders.") || has("vae.")) {
        Some(
            "one checkpoint with transformer, text encoders and VAE (model.diffusion_model.*, text_encoders.*, vae.*)",
        )
    } else if has("model.diffusion_model.") || has("double_blocks.") {
        Some("a checkpoint of the transformer alone (double_blocks.*), without text encoders and VAE")
    } else {
        None
    };
    if let Some(what) = whole {
        return Error::Unsupported(format!(
            "{}: this is {what}; checkpoints in one file are not read yet: {EXPECTED}",
            path.display()
        ));
    }
    let part = [
        ("transformer_blocks.", "the weights of a transformer, which belong into transformer/"),
        ("single_transformer_blocks.", "a shard of a transformer, which belongs into transformer/"),
        ("encoder.block.", "the weights of a T5 encoder, which belong into text_encoder_2/"),
        ("text_model.", "the weights of a CLIP text encoder, which belong into text_encoder/"),
        ("decoder.", "the weights of a VAE, which belong into vae/"),
        ("lora_", "a LoRA, which cannot be used yet"),
        ("transformer.", "a LoRA or a part of a model"),
    ];
    let what = match part.iter().find(|(start, _)| has(start)) {
        Some((_, what)) => what.to_string(),
        None => {
            let names: Vec<&str> = file.iter().map(|tensor| tensor.name.as_str()).take(2).collect();
            match names[..] {
                [name] => format!("a file of one tensor, {}, as noise and dumps are", shown(name)),
                _ => "a safetensors file of no model that is known here".to_string(),
            }
        }
    };
    Error::weights(path, format!("this is {what}; {EXPECTED}"))
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
        return Ok(file(found));
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
