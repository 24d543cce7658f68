//! What is said of a picture beside its file.

use schnell::{ImageFormat, Output, Request};
use serde_json::{Value, json};

/// Ending and media type.
pub fn names(format: ImageFormat) -> (&'static str, &'static str) {
    match format {
        ImageFormat::Jpeg => ("jpeg", "image/jpeg"),
        ImageFormat::WebP => ("webp", "image/webp"),
        _ => ("png", "image/png"),
    }
}

/// Steps that it took.
pub fn num_steps(output: &Output) -> usize {
    output.timings.stages.iter().filter(|stage| stage.stage.starts_with("step ")).count()
}

/// Seed, size, steps, warnings, receipt and times.
pub fn details(output: &Output, request: &Request) -> Value {
    let receipt = &output.receipt;
    let stages: serde_json::Map<String, Value> =
        output.timings.stages.iter().map(|stage| (stage.stage.clone(), json!(stage.ms))).collect();
    json!({
        "seed": request.seed,
        "size": format!("{}x{}", output.width, output.height),
        "steps": num_steps(output),
        "estimate_after": output.estimate,
        "warnings": output.warnings,
        "receipt": {
            "latents": receipt.latents.first(),
            "pixels": receipt.pixels,
            "model": receipt.model,
            "loras": receipt.loras,
            "weights": receipt.weights.to_string(),
            "precision": receipt.precision.to_string(),
            "machine": receipt.machine,
            "kernels": receipt.kernels,
            "software": receipt.software,
        },
        "timings_ms": stages,
    })
}
