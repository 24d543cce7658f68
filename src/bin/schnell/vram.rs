//! `schnell bench vram`: what memory is held when, against the plan.

use std::ops::ControlFlow;
use std::path::PathBuf;

use schnell::files::Target;
use schnell::{Device, Error, Plan, Progress, Request, Result, human_bytes};
use serde::Serialize;

use crate::bench::Subject;
use crate::options::parse_bytes;
use crate::outputs;
use crate::terminal::{self, say};

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    subject: Subject,
    /// Pictures to draw
    #[arg(long, short = 'n', value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    iterations: u32,
    /// Ends with exit code 1 when more device memory is taken, all that the driver takes for it included
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    max_bytes: Option<u64>,
    /// Write all of it as JSON; - is standard output, in place of the table
    #[arg(long, value_name = "FILE.json")]
    json: Option<PathBuf>,
}

/// A driver gives memory away in pieces of this size, to whoever asks: a part of one is no growth.
const GRANULE: u64 = 2 << 20;

/// What was held at one time, or the most while something went on.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
struct Row {
    /// `baseline`, `loading`, `loaded`, a stage of the pictures, `peak`, `after`.
    stage: String,
    /// Of the device, by what the driver has free; on the emulator what is allocated there. Beyond the baseline.
    device_bytes: u64,
    /// Of those, what this program has allocated: the arena.
    allocated_bytes: u64,
    /// Of the host, pinned.
    pinned_bytes: u64,
    /// Of the process: pages that are in memory, the pinned ones included.
    resident_set_bytes: u64,
}

/// What the plan says.
#[derive(Serialize)]
struct Planned {
    arena_bytes: u64,
    pinned_loading_bytes: u64,
    pinned_generating_bytes: u64,
    pinned_weights_bytes: u64,
}

impl Planned {
    fn of(plan: &Plan) -> Planned {
        let (loading, generating) = plan.host_bytes();
        Planned {
            arena_bytes: plan.arena_bytes(),
            pinned_loading_bytes: loading,
            pinned_generating_bytes: generating,
            pinned_weights_bytes: plan.traffic().pinned,
        }
    }

    /// The ring for weights on disk takes the place of the buffers for loading.
    fn pinned_bytes(&self) -> u64 {
        self.pinned_loading_bytes + self.pinned_generating_bytes + self.pinned_weights_bytes
    }
}

#[derive(Serialize)]
struct Verdict {
    holds: bool,
    says: String,
}

#[derive(Serialize)]
struct Report {
    device: String,
    driver: String,
    version: String,
    pictures: u32,
    plan: Planned,
    /// What the driver has taken while loading, beside the arena; nothing on the emulator.
    driver_bytes: Option<u64>,
    rows: Vec<Row>,
    verdicts: Vec<Verdict>,
}

/// Reads the counters.
struct Gauge<'a> {
    device: &'a Device,
    /// Free bytes when nothing was loaded.
    free: u64,
    rows: Vec<Row>,
}

impl<'a> Gauge<'a> {
    fn new(device: &'a Device) -> Result<Gauge<'a>> {
        let mut gauge = Gauge { device, free: device.free_bytes()?, rows: Vec::new() };
        gauge.note("baseline")?;
        Ok(gauge)
    }

    /// Takes down what is held now; of what is allocated, the most since the last time. A stage that comes again keeps the most of each.
    fn note(&mut self, stage: &str) -> Result<()> {
        let (held, host) = (self.device.held_bytes(), self.device.held_host_bytes());
        let allocated_bytes = held.most;
        let device_bytes = match self.device.capability().is_emulator {
            true => allocated_bytes,
            // What was allocated and given back in between the driver does not tell any more.
            false => self.free.saturating_sub(self.device.free_bytes()?).max(allocated_bytes),
        };
        let row = Row {
            stage: stage.to_string(),
            device_bytes,
            allocated_bytes,
            pinned_bytes: host.most,
            resident_set_bytes: resident_set_bytes(),
        };
        match self.rows.iter_mut().find(|known| known.stage == stage) {
            Some(known) => *known = most(known, &row),
            None => self.rows.push(row),
        }
        Ok(())
    }

    fn row(&self, stage: &str) -> Row {
        self.rows.iter().find(|row| row.stage == stage).cloned().unwrap_or_default()
    }

    /// The most of each number in any row.
    fn peak(&self) -> Row {
        let peak = self.rows.iter().fold(Row::default(), |peak, row| most(&peak, row));
        Row { stage: "peak".to_string(), ..peak }
    }
}

fn most(a: &Row, b: &Row) -> Row {
    Row {
        stage: a.stage.clone(),
        device_bytes: a.device_bytes.max(b.device_bytes),
        allocated_bytes: a.allocated_bytes.max(b.allocated_bytes),
        pinned_bytes: a.pinned_bytes.max(b.pinned_bytes),
        resident_set_bytes: a.resident_set_bytes.max(b.resident_set_bytes),
    }
}

/// Of this process; 0 where the system does not tell.
fn resident_set_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) << 10
}

/// Whether all verdicts are yes.
pub fn run(args: &Args) -> Result<bool> {
    let prompts = args.subject.prompts()?;
    let json = args.json.as_deref().map(outputs::target).transpose()?;
    args.subject.check_outputs(&json)?;
    let report = measure(args, &prompts)?;
    if args.json.as_deref() != Some(std::path::Path::new("-")) {
        terminal::print(&table(&report))?;
    }
    for verdict in &report.verdicts {
        say(&verdict.says);
    }
    json.map_or(Ok(()), |json| write(json, &report))?;
    Ok(report.verdicts.iter().all(|verdict| verdict.holds))
}

fn write(mut json: Target, report: &Report) -> Result<()> {
    let text = serde_json::to_string_pretty(report).map_err(|e| Error::Internal(e.to_string()))?;
    json.write((text + "\n").as_bytes())
}

fn measure(args: &Args, prompts: &[String]) -> Result<Report> {
    let (plan, device, model, note) = args.subject.open(args.iterations)?;
    let planned = Planned::of(&plan);
    if let Some(note) = note {
        say(note);
    }
    let mut gauge = Gauge::new(&device)?;
    // Encoders run for each picture.
    let mut pipeline = args.subject.builder(&model, plan, &device).prompt_cache(0).load()?;
    let driver_bytes = pipeline.overhead_bytes();
    gauge.note("loading")?;
    gauge.note("loaded")?;
    for i in 0..args.iterations {
        let prompt = &prompts[i as usize % prompts.len()];
        let request = Request::new(prompt.clone()).seed(u64::from(i));
        // What is told begins; what was noted so far belongs to the stage before.
        let (mut stage, mut failed) = ("tokenize".to_string(), None);
        pipeline.generate_with(&request, &mut |progress| {
            failed = failed.take().or(gauge.note(&stage).err());
            stage = match progress {
                Progress::TextEncoding => "text encoders".to_string(),
                Progress::Step { index, .. } => format!("step {index}"),
                Progress::Decoding => "vae".to_string(),
                _ => stage.clone(),
            };
            ControlFlow::Continue(())
        })?;
        failed.map_or(Ok(()), Err)?;
        gauge.note(if i == 0 { "first picture" } else { "last picture" })?;
    }
    drop(pipeline);
    let peak = gauge.peak();
    gauge.rows.push(peak);
    // What was the most while it was dropped is no news.
    let _ = (device.held_bytes(), device.held_host_bytes());
    gauge.note("after")?;
    let verdicts = verdicts(args, &gauge, &planned, driver_bytes);
    Ok(Report {
        device: device.capability().name.clone(),
        driver: device.capability().driver.clone(),
        version: env!("CARGO_PKG_VERSION").to_string(),
        pictures: args.iterations,
        plan: planned,
        driver_bytes,
        rows: gauge.rows,
        verdicts,
    })
}

fn verdicts(args: &Args, gauge: &Gauge<'_>, planned: &Planned, driver_bytes: Option<u64>) -> Vec<Verdict> {
    let (loaded, peak, after) = (gauge.row("loaded"), gauge.row("peak"), gauge.row("after"));
    let mut verdicts = Vec::new();
    let mut within = |what: &str, got: u64, most: u64, of: &str| {
        let (holds, word) = if got <= most { (true, "within") } else { (false, "above") };
        let says = format!("{what} of {} is {word} {of} of {}", human_bytes(got), human_bytes(most));
        verdicts.push(Verdict { holds, says });
    };
    within("allocated device memory", peak.allocated_bytes, planned.arena_bytes, "the plan");
    within("pinned host memory", peak.pinned_bytes, planned.pinned_bytes(), "the plan");
    // The driver rounds up, and others may take some meanwhile.
    let slack = if driver_bytes.is_some() { GRANULE } else { 0 };
    let grown = peak.device_bytes.saturating_sub(loaded.device_bytes);
    within("growth of device memory while drawing", grown, slack, "what is no growth,");
    // A driver keeps the code of kernels as long as the device is open.
    let kept = driver_bytes.unwrap_or(0) + slack;
    within("device memory after the pipeline is gone", after.device_bytes, kept, "what the driver keeps,");
    if let Some(most) = args.max_bytes {
        within("device memory", peak.device_bytes, most, "--max-bytes");
    }
    verdicts
}

fn table(report: &Report) -> String {
    let planned = &report.plan;
    let mut text = format!(
        "{} pictures on {} (driver {}); planned: {} of device memory, {} pinned\n{:16} {:>12} {:>12} {:>12} {:>12}\n",
        report.pictures,
        report.device,
        report.driver,
        human_bytes(planned.arena_bytes),
        human_bytes(planned.pinned_bytes()),
        "",
        "device",
        "allocated",
        "pinned",
        "process"
    );
    for row in &report.rows {
        let Row { stage, device_bytes, allocated_bytes, pinned_bytes, resident_set_bytes } = row;
        let numbers = [device_bytes, allocated_bytes, pinned_bytes, resident_set_bytes];
        text += &format!("{stage:16}");
        for number in numbers {
            text += &format!(" {:>12}", human_bytes(*number));
        }
        text += "\n";
    }
    if let Some(bytes) = report.driver_bytes {
        text += &format!(
            "of the device's, {} are the driver's: code of kernels, graphs, streams\n",
            human_bytes(bytes)
        );
    }
    text
}
