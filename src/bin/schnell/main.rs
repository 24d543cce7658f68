//! The `schnell` command: flags in, calls to the library, files and messages out. Human output goes to stderr, machine
//! output to stdout or files. One file per subcommand.

mod bench;
mod doctor;
#[cfg(feature = "fetch")]
mod fetch;
mod generate;
mod inputs;
mod inspect;
mod kernels;
mod options;
mod outputs;
mod plan;
mod plot;
mod quantize;
mod reproduce;
#[cfg(feature = "serve")]
mod serve;
#[cfg(any(feature = "serve", feature = "worker"))]
mod service;
mod signals;
mod statistics;
mod terminal;
mod vram;
#[cfg(feature = "worker")]
mod worker;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Text to image with FLUX.1-schnell: planned memory, exact timings, the same bytes for the same seed.
#[derive(Parser)]
#[command(
    version,
    after_help = "Exit codes: 0 done, 1 a verdict is no (bench, doctor, reproduce), 2 bad input or flags, 3 bad model files, 4 not enough memory or disk, \
                                 5 unsupported machine or model, 6 the device failed, 7 a file cannot be read or written, \
                                 11 the network failed, 12 the picture would be late, 13 the device is lost since an earlier failure."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Draw a picture from a prompt.
    Generate(Box<generate::Args>),
    /// Print every region of memory that a generation would use, without loading anything.
    Plan(Box<plan::Args>),
    /// Say what a file or a folder is, what it would take, and whether it loads.
    Inspect(inspect::Args),
    /// Measure pictures, one after the other, as a service draws them: time, or memory.
    Bench(bench::Args),
    /// Look at driver, card, kernels, models and disk, test every kernel, and say what to do about each problem.
    Doctor(doctor::Args),
    /// Draw a picture again from what its file says, and compare.
    Reproduce(Box<reproduce::Args>),
    /// Write a model's folder anew in 4 bits (NF4), as bitsandbytes does it; diffusers loads it, too.
    Quantize(Box<quantize::Args>),
    /// Draw pictures over HTTP, as OpenAI's images API asks for them, and show a page.
    #[cfg(feature = "serve")]
    Serve(Box<serve::Args>),
    /// Draw pictures for whoever asks a NATS server, beside as many other workers as there are.
    #[cfg(feature = "worker")]
    Worker(Box<worker::Args>),
    /// Fetch a model from the Hugging Face hub: the files needed, checked, going on where it was interrupted.
    #[cfg(feature = "fetch")]
    Fetch(Box<fetch::Args>),
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        // Its words hold the flag's value as it is.
        Err(error) if error.use_stderr() && !terminal::fits(&error.to_string()) => {
            terminal::say(error.to_string().trim_end());
            return ExitCode::from(2);
        }
        Err(error) => error.exit(),
    };
    let filter = tracing_subscriber::EnvFilter::try_from_env("SCHNELL_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(|| terminal::Stderr)
        .with_ansi(terminal::has_colors())
        .without_time()
        .init();
    match &cli.command {
        #[cfg(feature = "serve")]
        Command::Serve(_) => signals::watch(&service::HEARD),
        #[cfg(feature = "worker")]
        Command::Worker(_) => signals::watch(&service::HEARD),
        _ => signals::watch(&[]),
    }
    let result = match &cli.command {
        Command::Generate(args) => generate::run(args),
        Command::Plan(args) => plan::run(args),
        Command::Inspect(args) => inspect::run(args),
        Command::Bench(args) => match bench::run(args) {
            Ok(false) => return ExitCode::from(1),
            result => result.map(|_| ()),
        },
        Command::Doctor(args) => match doctor::run(args) {
            Ok(false) => return ExitCode::from(1),
            result => result.map(|_| ()),
        },
        Command::Reproduce(args) => match reproduce::run(args) {
            Ok(false) => return ExitCode::from(1),
            result => result.map(|_| ()),
        },
        Command::Quantize(args) => quantize::run(args),
        #[cfg(feature = "serve")]
        Command::Serve(args) => serve::run(args),
        #[cfg(feature = "worker")]
        Command::Worker(args) => worker::run(args),
        #[cfg(feature = "fetch")]
        Command::Fetch(args) => fetch::run(args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            terminal::say(format_args!("error: {error}"));
            ExitCode::from(error.exit_code())
        }
    }
}
