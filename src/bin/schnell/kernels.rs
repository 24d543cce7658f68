//! `schnell bench kernels`: how long the kernels take in which pictures spend their time.

use std::path::{Path, PathBuf};

use indicatif::ProgressBar;
use schnell::check::bench::{Measured, Subject, shapes};
use schnell::{Capability, Card, Error, Result};
use serde::Serialize;

use crate::options::DeviceOption;
use crate::outputs;
use crate::terminal::{self, say};

#[derive(clap::Args)]
pub struct Args {
    /// Those alone whose line begins so, such as `nf4_gemm` or `conv2d 64`
    #[arg(long, value_name = "NAME")]
    only: Option<String>,
    /// Launches that count, of each
    #[arg(long, short = 'n', value_name = "N", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    iterations: u32,
    /// auto, cuda:N or emulator, where shapes are small
    #[arg(long, default_value = "auto")]
    device: DeviceOption,
    /// Write every time as JSON; - is standard output, in place of the table
    #[arg(long, value_name = "FILE.json")]
    json: Option<PathBuf>,
}

#[derive(Serialize)]
struct Report {
    version: &'static str,
    device: String,
    driver: String,
    kernels: Vec<Row>,
}

#[derive(Serialize)]
struct Row {
    /// Kernel and shape.
    kernel: String,
    /// Milliseconds of every launch, ascending.
    ms: Vec<f64>,
    /// Multiply-adds times two; 0 of kernels that are not made of them.
    flops: f64,
    /// That must cross the memory's bus at least.
    bytes: usize,
    /// What the card's tensor cores or its memory would take at least, by its published rates; nothing for a card that is not known.
    floor_ms: Option<f64>,
}

/// Whether there were any: what computes something wrong is an error.
pub fn run(args: &Args) -> Result<bool> {
    let json = args.json.as_deref().map(outputs::target).transpose()?;
    let (device, why) = args.device.bare()?;
    let machine = device.capability();
    if machine.is_emulator {
        let why = why.map(|why| format!("no GPU ({why}): ")).unwrap_or_default();
        say(format!("{why}small shapes on the emulator, whose times say nothing of a GPU's"));
    }
    let chosen =
        |subject: &Subject| subject.to_string().starts_with(args.only.as_deref().unwrap_or_default());
    let all = shapes(&device);
    let subjects: Vec<Subject> = all.iter().copied().filter(chosen).collect();
    if subjects.is_empty() {
        let names: Vec<String> = all.iter().map(Subject::to_string).collect();
        return Err(Error::Input(format!("--only: nothing begins so; there are {}", names.join(", "))));
    }
    let card = Card::of(machine);
    let bar = ProgressBar::new(subjects.len() as u64);
    let mut report = Report {
        version: env!("CARGO_PKG_VERSION"),
        device: machine.name.clone(),
        driver: machine.driver.clone(),
        kernels: Vec::new(),
    };
    for subject in subjects {
        let measured = subject.measure(&device, args.iterations as usize).map_err(|error| match error {
            Error::Mismatch(said) => Error::Mismatch(format!("{subject}: {said}")),
            other => other,
        })?;
        report.kernels.push(Row::of(measured, card));
        bar.inc(1);
    }
    bar.finish_and_clear();
    if args.json.as_deref() != Some(Path::new("-")) {
        terminal::print(&table(&report, machine))?;
    }
    if let Some(mut json) = json {
        let text = serde_json::to_string(&report).map_err(|e| Error::Internal(e.to_string()))?;
        json.write((text + "\n").as_bytes())?;
    }
    Ok(true)
}

impl Row {
    fn of(measured: Measured, card: Option<Card>) -> Row {
        let subject = measured.subject;
        Row {
            kernel: subject.to_string(),
            ms: measured.ms,
            flops: subject.flops(),
            bytes: subject.bytes(),
            floor_ms: card.map(|card| subject.floor_ms(card)),
        }
    }

    fn median_ms(&self) -> f64 {
        self.ms[self.ms.len() / 2]
    }
}

fn table(report: &Report, machine: &Capability) -> String {
    let mut text = format!(
        "{} (driver {}), {} SMs; operands in no cache, ms between two events; of the floor: what the published rates would take at least\n\
         {:34} {:>10} {:>10} {:>10} {:>9} {:>9} {:>12}\n",
        report.device,
        report.driver,
        machine.num_sms,
        "",
        "median",
        "least",
        "most",
        "GFLOP/s",
        "GB/s",
        "of the floor"
    );
    for row in &report.kernels {
        let median = row.median_ms();
        let rate = match row.flops > 0.0 {
            true => format!("{:.0}", row.flops / median / 1e6),
            false => "-".to_string(),
        };
        let share = row.floor_ms.map_or("-".to_string(), |floor| format!("{:.2}", floor / median));
        text += &format!(
            "{:34} {median:>10.4} {:>10.4} {:>10.4} {rate:>9} {:>9.0} {share:>12}\n",
            row.kernel,
            row.ms[0],
            row.ms[row.ms.len() - 1],
            row.bytes as f64 / median / 1e6,
        );
    }
    text
}
