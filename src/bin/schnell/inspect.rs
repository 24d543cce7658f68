//! `schnell inspect`: what a file or a folder is, and whether it loads.

use schnell::{Inspection, ModelFolder, Result, StoredType, Use};
use serde_json::json;

use crate::terminal;

/// Reads headers and configs alone. What cannot be used is no error: it is said why, and what to do.
#[derive(clap::Args)]
pub struct Args {
    /// A file (safetensors or GGUF), a folder in the diffusers layout, or org/name of one in the Hugging Face cache
    #[arg(value_name = "FILE|DIR|HF-ID")]
    path: String,
    /// Beside which model a LoRA is looked at, or `demo` for the bundled one [default: FLUX.1-schnell]
    #[arg(long, value_name = "DIR|HF-ID|FILE|demo")]
    model: Option<String>,
    /// Print JSON in place of text
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> Result<()> {
    let inspection = match args.model.as_deref() {
        None => Inspection::of(&args.path),
        Some("demo") => Inspection::beside(&args.path, &ModelFolder::demo()?.config()?),
        Some(model) => Inspection::beside(&args.path, &ModelFolder::find(model)?.config()?),
    }?;
    terminal::print(&if args.json { format!("{:#}\n", as_json(&inspection)) } else { inspection.to_string() })
}

fn types(stored: &[StoredType]) -> serde_json::Value {
    let each =
        |stored: &StoredType| json!({"type": stored.name, "tensors": stored.tensors, "bytes": stored.bytes});
    stored.iter().map(each).collect()
}

fn as_json(inspection: &Inspection) -> serde_json::Value {
    let parts: Vec<_> = inspection
        .parts
        .iter()
        .map(|part| json!({"part": part.name, "what": part.what, "names": part.names, "stored": types(&part.stored)}))
        .collect();
    let lora = inspection.lora.as_ref().map(|lora| {
        let changes: serde_json::Map<_, _> =
            inspection.changes.iter().map(|(part, count)| (part.clone(), json!(count))).collect();
        json!({
            "kind": lora.kind, "names": lora.family, "targets": lora.targets, "ranks": lora.ranks,
            "changes": changes,
        })
    });
    let device: serde_json::Map<_, _> =
        inspection.device_bytes.iter().map(|(how, bytes)| (how.to_string(), json!(bytes))).collect();
    let (loads, said) = match &inspection.usage {
        Use::Loads(flags) => (true, json!({"flags": flags})),
        Use::Lacks(what) => (false, json!({"lacks": what})),
        Use::No(why) => (false, json!({"why": why})),
        _ => (false, json!({})),
    };
    json!({
        "path": inspection.path.to_string_lossy(),
        "container": inspection.container,
        "parts": parts,
        "stored": types(&inspection.stored),
        "lora": lora,
        "device_bytes_at_1024": device,
        "warnings": inspection.warnings,
        "loads": loads,
        "usage": said,
    })
}
