//! `gpu-check`: does a GPU compute what the emulator computes? One self-contained binary for machines with a GPU and
//! nothing else; `scripts/gpu-check pack` builds it, `scripts/gpu-check run` calls it.
//!
//! Runs every case of [`schnell::check`] on the emulator and on the machine under test, prints one table, and writes it
//! with all that a record needs (GPU, driver, clocks, commit) as JSON and as text.
//!
//! Exit code 0: all agree. 6: a difference or a failed launch. Others: the library's (no GPU: 5).

mod full;
mod sanitize;

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use clap::{Parser, ValueEnum};
use schnell::check::bench::{Measured, flux_shapes, upload_rate};
use schnell::check::{Case, Fill, cases, compare, mismatch};
use schnell::device::{AsyncCopies, Device, EmulatorOptions, Order};
use schnell::nn::Quantize;
use schnell::pipeline::{BindOptions, DumpValues, Model, Output, Pipeline, Request};
use schnell::plan::{Plan, Shape};
use schnell::{Error, Result};
use serde_json::json;

/// The commit that was packed, which `scripts/gpu-check` passes.
const COMMIT: &str = match option_env!("SCHNELL_COMMIT") {
    Some(commit) => commit,
    None => "unknown",
};
const NVCC: &str = env!("SCHNELL_NVCC_VERSION");

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
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
}

/// Compares a GPU with the emulator, computation by computation.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// What to run; everything by default (on the emulator, without sanitize, bench and full).
    parts: Vec<Part>,
    /// The machine under test: `cuda:N`, or `emulator` to compare two schedules of the emulator (no GPU needed).
    #[arg(long, default_value = "cuda:0")]
    device: String,
    /// Only cases whose name contains this.
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
}

/// One line of the table.
struct Row {
    part: Part,
    case: String,
    output: String,
    count: usize,
    worst: f64,
    allowed: f64,
    fault: Option<String>,
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
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("gpu-check: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    let started = Instant::now();
    let mut under_test = UnderTest::open(&arguments.device)?;
    let parts = match &arguments.parts[..] {
        [] if under_test.device.capability().is_emulator => &[Part::Probe, Part::Kernels, Part::Image][..],
        [] => &[Part::Probe, Part::Kernels, Part::Image, Part::Sanitize, Part::Bench, Part::Full],
        chosen => chosen,
    };
    let (mut rows, mut times, mut sizes) = (Vec::new(), None, Vec::new());
    for &part in parts {
        match part {
            Part::Probe => run_cases("probe", part, arguments, &mut under_test, &mut rows),
            Part::Kernels => run_cases("kernels", part, arguments, &mut under_test, &mut rows),
            Part::Image => run_image(&mut under_test, &mut rows)?,
            Part::Bench => times = Some(Times::take(&under_test.device, &arguments.only)?),
            Part::Full => {
                sizes = full::run(&under_test.device)?;
                rows.extend(sizes.iter().flat_map(|size| {
                    size.faults().into_iter().map(|fault| Row {
                        part,
                        case: format!("{0}x{0}", size.side()),
                        output: "-".to_string(),
                        count: 0,
                        worst: f64::NAN,
                        allowed: 0.0,
                        fault: Some(fault),
                    })
                }));
            }
            Part::Sanitize => rows.extend(sanitize::run(&arguments.device, &arguments.only, &arguments.out)?),
        }
    }
    let num_faults = rows.iter().filter(|row| row.fault.is_some()).count();
    let record =
        Record::take(arguments, &under_test, &rows, times.as_ref(), &sizes, started.elapsed().as_secs_f64());
    print!("{}", record.text);
    record.write(&arguments.out)?;
    if num_faults > 0 { Err(mismatch(num_faults)) } else { Ok(()) }
}

/// The machine under test, opened anew after a failure: a context that has seen a fault answers nothing any more.
struct UnderTest {
    name: String,
    device: Device,
}

impl UnderTest {
    fn open(name: &str) -> Result<Self> {
        Ok(UnderTest { name: name.to_string(), device: open(name)? })
    }
}

fn open(name: &str) -> Result<Device> {
    match name.split_once(':') {
        None if name == "emulator" => {
            let (order, async_copies) = (Order::Random, AsyncCopies::Random);
            Ok(Device::emulator(EmulatorOptions {
                threads: 0,
                order,
                async_copies,
                seed: 1,
                ..EmulatorOptions::default()
            }))
        }
        Some(("cuda", ordinal)) if ordinal.parse::<usize>().is_ok() => {
            Device::cuda(ordinal.parse().unwrap_or_default())
        }
        _ => Err(Error::Input(format!("no such device: {name:?}; cuda:N or emulator"))),
    }
}

fn run_cases(name: &str, part: Part, arguments: &Arguments, under_test: &mut UnderTest, rows: &mut Vec<Row>) {
    let reference = Device::emulator(EmulatorOptions::default());
    let chosen = |case: &Case| {
        case.part == name && case.name.contains(&arguments.only) && (case.small || !arguments.small)
    };
    let fill = if arguments.unfilled { Fill::Nothing } else { Fill::Nan };
    for case in cases().into_iter().filter(chosen) {
        let row = |output: String, count, worst, allowed, fault| Row {
            part,
            case: case.name.clone(),
            output,
            count,
            worst,
            allowed,
            fault,
        };
        let outputs =
            case.run(&reference, Fill::Nan).and_then(|want| Ok((want, case.run(&under_test.device, fill)?)));
        match outputs {
            Ok((want, got)) => rows.extend(
                compare(&want, &got).into_iter().map(|c| row(c.name, c.count, c.worst, c.allowed, c.fault)),
            ),
            Err(error) => {
                rows.push(row("-".to_string(), 0, f64::NAN, 0.0, Some(error.to_string())));
                if let Ok(device) = open(&under_test.name) {
                    under_test.device = device;
                }
            }
        }
    }
}

/// The bundled model's picture on both machines, stage by stage, and twice on the one under test.
fn run_image(under_test: &mut UnderTest, rows: &mut Vec<Row>) -> Result<()> {
    let dir = std::env::temp_dir().join(format!("schnell-gpu-check-{}", std::process::id()));
    schnell::demo::write(&dir)?;
    let result = compare_images(&dir, under_test, rows);
    std::fs::remove_dir_all(&dir).map_err(|source| Error::Io { action: "remove", path: dir, source })?;
    result
}

/// What bf16 allows two machines whose tensor cores round differently: the limit of the golden tests.
const STAGE_LIMIT: f64 = 2e-2;

fn compare_images(dir: &std::path::Path, under_test: &mut UnderTest, rows: &mut Vec<Row>) -> Result<()> {
    let model = Model::open(dir)?;
    let request = Request {
        dump: true,
        negative_prompt: "a green square".to_string(),
        true_cfg_scale: 2.0,
        ..Request::new("a red circle on a blue background", 1)
    };
    let shape = Shape { width: 128, height: 128, steps: 4, t5_length: 64, true_cfg: true };
    let draw = |device: &Device| -> Result<(Output, Output)> {
        let plan = Plan::new(model.config(), shape, Quantize::Nf4)?;
        let mut pipeline = Pipeline::bind(&model, plan, device, BindOptions { dump: true }, &mut |_| {})?;
        let first = pipeline.generate(&request, &mut |_| {})?;
        Ok((first, pipeline.generate(&request, &mut |_| {})?))
    };
    let (expected, _) = draw(&Device::emulator(EmulatorOptions::default()))?;
    let (got, again) = draw(&under_test.device)?;
    let mut row = |output: &str, count: usize, worst: f64, allowed: f64| {
        let fault = (worst.is_nan() || worst > allowed).then(|| format!("{worst:.2e} exceeds {allowed:.2e}"));
        let case = "demo image".to_string();
        rows.push(Row { part: Part::Image, case, output: output.to_string(), count, worst, allowed, fault });
    };
    for (want, got) in expected.dumps.iter().zip(&got.dumps) {
        match (&want.values, &got.values) {
            (DumpValues::F32(want), DumpValues::F32(values)) => {
                row(&got.stage, values.len(), relative_l2(values, want), STAGE_LIMIT);
            }
            (DumpValues::Ids(want), DumpValues::Ids(ids)) => {
                let differ = want.iter().zip(ids).filter(|(a, b)| a != b).count();
                row(&got.stage, ids.len(), differ as f64, 0.0);
            }
            _ => row(&got.stage, 0, f64::NAN, 0.0),
        }
    }
    let differ = got.rgb.iter().zip(&again.rgb).filter(|(a, b)| a != b).count();
    row("bytes that differ when drawn twice", got.rgb.len(), differ as f64, 0.0);
    Ok(())
}

fn relative_l2(got: &[f32], want: &[f32]) -> f64 {
    let sum = |f: &dyn Fn(f64, f64) -> f64| -> f64 {
        got.iter().zip(want).map(|(g, w)| f(f64::from(*g), f64::from(*w))).sum()
    };
    (sum(&|g, w| (g - w).powi(2)) / sum(&|_, w| w * w)).sqrt()
}

/// What `bench` measured.
struct Times {
    kernels: Vec<Measured>,
    upload_gb_per_s: f64,
}

const REPETITIONS: usize = 30;
const UPLOAD_BYTES: usize = 256 << 20;

impl Times {
    fn take(device: &Device, only: &str) -> Result<Times> {
        if device.capability().is_emulator {
            return Err(Error::Unsupported("times of kernels need a GPU".to_string()));
        }
        let works = flux_shapes().into_iter().filter(|work| work.to_string().contains(only));
        let kernels = works.map(|work| work.measure(device, REPETITIONS)).collect::<Result<_>>()?;
        Ok(Times { kernels, upload_gb_per_s: upload_rate(device, UPLOAD_BYTES, 10)? })
    }

    fn text(&self) -> String {
        let mut text = format!(
            "\n{:34} {:>10} {:>10} {:>10} {:>9} {:>9}\n",
            "kernel, alone, cold caches", "median ms", "least", "most", "TFLOP/s", "GB/s"
        );
        for times in &self.kernels {
            let (median, last) = (times.median_ms(), times.ms.len() - 1);
            let _ = writeln!(
                text,
                "{:34} {median:>10.4} {:>10.4} {:>10.4} {:>9.1} {:>9.0}",
                times.work.to_string(),
                times.ms[0],
                times.ms[last],
                times.work.flops() / median / 1e9,
                times.work.bytes() as f64 / median / 1e6,
            );
        }
        let _ = writeln!(text, "\nuploads from pinned memory: {:.1} GB/s", self.upload_gb_per_s);
        text
    }

    fn json(&self) -> serde_json::Value {
        let kernels = self.kernels.iter().map(|times| {
            json!({"kernel": times.work.to_string(), "ms": times.ms, "flops": times.work.flops(),
                   "bytes": times.work.bytes()})
        });
        json!({"kernels": kernels.collect::<Vec<_>>(), "upload_gb_per_s": self.upload_gb_per_s})
    }
}

/// What is kept of a run.
struct Record {
    text: String,
    json: String,
    /// `<date>-<gpu>`.
    stem: String,
}

impl Record {
    fn take(
        arguments: &Arguments,
        under_test: &UnderTest,
        rows: &[Row],
        times: Option<&Times>,
        sizes: &[full::Size],
        seconds: f64,
    ) -> Record {
        let capability = under_test.device.capability();
        let date = today();
        let clocks = clocks(&arguments.device);
        let num_faults = rows.iter().filter(|row| row.fault.is_some()).count();
        let mut text = format!(
            "gpu-check {date}  {} (compute capability {}.{}, {} SMs, {} MiB), driver {}, nvcc {}, commit {COMMIT}\n",
            capability.name,
            capability.arch / 10,
            capability.arch % 10,
            capability.num_sms,
            capability.total_bytes >> 20,
            capability.driver,
            if NVCC.is_empty() { "none" } else { NVCC },
        );
        let _ = writeln!(text, "clocks, temperature, power: {}\n", clocks.as_deref().unwrap_or("not read"));
        let _ = writeln!(
            text,
            "{:8} {:24} {:14} {:>9} {:>9} {:>9}  verdict",
            "part", "case", "output", "count", "worst", "allowed"
        );
        for row in rows {
            let part = format!("{:?}", row.part).to_lowercase();
            let _ = writeln!(
                text,
                "{part:8} {:24} {:14} {:>9} {:>9} {:>9}  {}",
                row.case,
                row.output,
                row.count,
                short(row.worst),
                short(row.allowed),
                row.fault.as_deref().unwrap_or("ok"),
            );
        }
        let _ = writeln!(text, "\n{} outputs, {num_faults} faults, {seconds:.1} s", rows.len());
        text.extend(times.map(Times::text));
        text.extend(sizes.iter().map(full::Size::text));
        let json = json!({
            "full": sizes.iter().map(full::Size::json).collect::<Vec<_>>(),
            "times": times.map(Times::json),
            "date": date,
            "device": arguments.device,
            "gpu": capability.name,
            "arch": capability.arch,
            "num_sms": capability.num_sms,
            "total_bytes": capability.total_bytes,
            "driver": capability.driver,
            "clocks": clocks,
            "nvcc": NVCC,
            "commit": COMMIT,
            "seconds": seconds,
            "num_faults": num_faults,
            "outputs": rows.iter().map(|row| json!({
                "part": format!("{:?}", row.part).to_lowercase(),
                "case": row.case,
                "output": row.output,
                "count": row.count,
                "worst": row.worst,
                "allowed": row.allowed,
                "fault": row.fault,
            })).collect::<Vec<_>>(),
        });
        let gpu: String = capability
            .name
            .to_lowercase()
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
            .collect();
        Record { text, json: format!("{json:#}\n"), stem: format!("{date}-{gpu}") }
    }

    fn write(&self, folder: &PathBuf) -> Result<()> {
        std::fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
        for (ending, content) in [("json", &self.json), ("txt", &self.text)] {
            let path = folder.join(format!("{}.{ending}", self.stem));
            std::fs::write(&path, content).map_err(Error::io("write", &path))?;
            eprintln!("gpu-check: wrote {}", path.display());
        }
        Ok(())
    }
}

/// A count as a count, a fraction as a power of ten.
fn short(number: f64) -> String {
    if number.is_nan() {
        "-".to_string()
    } else if number.fract() == 0.0 {
        format!("{number}")
    } else {
        format!("{number:.1e}")
    }
}

/// As nvidia-smi reads them now, just after the work; `None` without it or without a GPU.
fn clocks(device: &str) -> Option<String> {
    let ordinal = device.strip_prefix("cuda:")?;
    let query = "driver_version,clocks.sm,clocks.mem,clocks.max.sm,temperature.gpu,power.draw";
    let output = Command::new("nvidia-smi")
        .args(["-i", ordinal, "--format=csv,noheader", &format!("--query-gpu={query}")])
        .output()
        .ok()?;
    let line = String::from_utf8_lossy(&output.stdout).trim().to_string();
    (output.status.success() && !line.is_empty()).then(|| format!("{line} ({query})"))
}

/// Year, month and day in UTC: days since 1970 to the proleptic Gregorian calendar (Howard Hinnant, "chrono-compatible
/// low-level date algorithms").
fn today() -> String {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let day = (seconds / 86_400) as i64 + 719_468;
    let (era, day_of_era) = (day / 146_097, day % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = era * 400 + year_of_era + i64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}
