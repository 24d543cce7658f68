//! `schnell quantize`: a model's folder in NF4, from one in 16 or 32 bits.

use std::ops::ControlFlow;
use std::path::PathBuf;

use indicatif::{ProgressBar, ProgressStyle};
use schnell::{Model, ModelFolder, Progress, QuantizedLinear, Quantizer, Result, human_bytes};
use serde_json::json;

use crate::terminal;

/// What bitsandbytes leaves wide (T5's `wo`, embeddings, norms) and CLIP, the VAE and the tokenizers are copied. The folder is
/// there when all of it is.
#[derive(clap::Args)]
pub struct Args {
    /// Model folder in the diffusers layout, bf16, f16 or f32, or org/name of one in the Hugging Face cache
    #[arg(value_name = "MODEL")]
    model: String,
    /// Folder to make
    #[arg(value_name = "FOLDER")]
    folder: PathBuf,
    /// Quantize the scales of quant blocks, too: 8 % smaller
    #[arg(long)]
    double_quant: bool,
    /// Print JSON in place of the table
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> Result<()> {
    let model = Model::open_folder(&ModelFolder::find(&args.model)?)?;
    for warning in model.warnings() {
        terminal::say(format_args!("warning: {warning}"));
    }
    let bar = ProgressBar::new(0);
    if let Ok(style) = ProgressStyle::with_template("quantizing {bar:30} {bytes}/{total_bytes}, {eta} left") {
        bar.set_style(style);
    }
    let quantizer = Quantizer::new(&model).double_quant(args.double_quant);
    let linears = quantizer.write_with(&args.folder, &mut |progress| {
        if let Progress::Loading { done, total } = progress {
            bar.set_length(total);
            bar.set_position(done);
        }
        ControlFlow::Continue(())
    });
    bar.finish_and_clear();
    let linears = linears?;
    terminal::print(&if args.json { format!("{:#}\n", as_json(&linears)) } else { table(&linears) })?;
    let (before, after) = bytes(&linears);
    terminal::say(format_args!(
        "{}: {} Linear layers, {} in place of {}",
        args.folder.display(),
        linears.len(),
        human_bytes(after),
        human_bytes(before)
    ));
    Ok(())
}

/// Of all Linears, before and after.
fn bytes(linears: &[QuantizedLinear]) -> (u64, u64) {
    let sum = |of: fn(&QuantizedLinear) -> u64| linears.iter().map(of).sum();
    (sum(|linear| linear.bytes_before), sum(|linear| linear.bytes_after))
}

fn path(linear: &QuantizedLinear) -> String {
    format!("{}/{}", linear.folder, linear.name)
}

fn table(linears: &[QuantizedLinear]) -> String {
    let width = linears.iter().map(|linear| path(linear).len()).max().unwrap_or(0);
    let mut text = format!(
        "{:width$} {:>14} {:>12} {:>12} {:>10} {:>12}\n",
        "Linear", "shape", "before", "after", "error, rms", "largest"
    );
    for linear in linears {
        let [rows, columns] = linear.shape;
        text += &format!(
            "{:width$} {:>14} {:>12} {:>12} {:>8.3} % {:>12.3e}\n",
            path(linear),
            format!("{rows} x {columns}"),
            human_bytes(linear.bytes_before),
            human_bytes(linear.bytes_after),
            100.0 * linear.relative_rms_error,
            linear.max_abs_error
        );
    }
    text
}

fn as_json(linears: &[QuantizedLinear]) -> serde_json::Value {
    let (before, after) = bytes(linears);
    let linears: Vec<_> = linears
        .iter()
        .map(|linear| {
            json!({
                "folder": linear.folder,
                "name": linear.name,
                "shape": linear.shape,
                "bytes_before": linear.bytes_before,
                "bytes_after": linear.bytes_after,
                "relative_rms_error": linear.relative_rms_error,
                "max_abs_error": linear.max_abs_error,
            })
        })
        .collect();
    json!({"linears": linears, "bytes_before": before, "bytes_after": after})
}
