//! `gpu-check`: does a GPU compute what the emulator computes? One self-contained binary for machines with a GPU and
//! nothing else; `scripts/gpu-check pack` builds it, `scripts/gpu-check run` calls it.
//!
//! The work is a list of items (`items.rs`). A worker process does one after the other and says what it finds
//! (`finding.rs`); this process watches it, and starts another behind an item that failed, hung or killed it
//! (`supervise.rs`): after a fault a CUDA context answers nothing any more. After every item the record of what was found
//! so far is written (`record.rs`), with all that a record needs: GPU, driver, clocks, commit.
//!
//! Exit code 0: all agree. 6: a difference or a failed launch. Others: the library's (no GPU: 5).

mod finding;
mod full;
mod items;
mod record;
mod sanitize;
mod supervise;

use std::path::PathBuf;
use std::process::{Command, ExitCode};

use clap::{Parser, ValueEnum};
use schnell::check::{cases, mismatch};
use schnell::{Error, Result};
use serde::{Deserialize, Serialize};

use record::Record;
use supervise::supervise;

/// The commit that was packed, which `scripts/gpu-check` passes.
const COMMIT: &str = match option_env!("SCHNELL_COMMIT") {
    Some(commit) => commit,
    None => "unknown",
};
const NVCC: &str = env!("SCHNELL_NVCC_VERSION");

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Part {
    /// Every primitive of gpu.cuh.
    Probe,
    /// Every kernel.
    Kernels,
    /// The demo model's image.
    Image,
    /// The small cases of probe and kernels under each tool of compute-sanitizer.
    Sanitize,
    /// Times of the kernels at FLUX's shapes, and the rate of uploads.
    Bench,
    /// The whole pipeline at full size, with generated weights, at 512x512 and 1024x1024.
    Full,
    /// What a Hopper GPU can do at most, unit by unit: the program beside this one, of `benches/limits.cu`.
    Limits,
}

/// Compares a GPU with the emulator, computation by computation.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// What to run; everything by default (on the emulator, only probe, kernels and image).
    parts: Vec<Part>,
    /// The machine under test: `cuda:N`, or `emulator` to compare two schedules of the emulator (no GPU needed), or
    /// `emulator:90` to have it pose as a Hopper GPU, for the cases that need one.
    #[arg(long, default_value = "cuda:0")]
    device: String,
    /// Only what has this in its name.
    #[arg(long, default_value = "")]
    only: String,
    /// Only the cases that are made for slow tools.
    #[arg(long)]
    small: bool,
    /// Leave memory as it is allocated instead of filling it with NaN patterns.
    #[arg(long)]
    unfilled: bool,
    /// Where `<date>-<gpu>.json` and `.txt` go.
    #[arg(long, default_value = "benches/record")]
    out: PathBuf,
    /// Print the cases (part, name, small or large), and exit.
    #[arg(long)]
    list: bool,
    /// Print what the binary was built from, and exit.
    #[arg(long)]
    about: bool,
    /// Do the items from this one on and print findings, a line each: what a run starts itself as.
    #[arg(long, hide = true)]
    work_from: Option<usize>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.about {
        let nvcc = if NVCC.is_empty() { "none" } else { NVCC };
        println!("commit {COMMIT}, nvcc {nvcc}");
        return ExitCode::SUCCESS;
    }
    if arguments.list {
        for case in cases() {
            println!("{} {} {}", case.part, case.name, if case.small { "small" } else { "large" });
        }
        return ExitCode::SUCCESS;
    }
    let result = match arguments.work_from {
        Some(first) => items::work(&arguments, first),
        None => run(&arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("gpu-check: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    // Opened here, too: no GPU, or a name that means none, is said once and before anything else.
    drop(items::open(&arguments.device)?);
    let items = items::list(arguments)?;
    let binary = std::env::current_exe().map_err(Error::io("find", "gpu-check"))?;
    let worker = |first: usize| {
        let mut command = Command::new(&binary);
        command.args(std::env::args_os().skip(1)).arg("--work-from").arg(first.to_string());
        command
    };
    let mut record = Record::new(arguments, items.len());
    supervise(&items, &worker, &mut |finding| record.take(finding))?;
    print!("{}", record.ending());
    for path in record.write()? {
        eprintln!("gpu-check: wrote {}", path.display());
    }
    match record.num_faults() {
        0 => Ok(()),
        faults => Err(mismatch(faults)),
    }
}
