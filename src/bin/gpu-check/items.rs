//! The list of what there is to do, and the worker that does it.

use std::time::Duration;

use schnell::check::bench::{self, flux_shapes, upload_rate};
use schnell::check::{Case, Fill, cases, compare};
use schnell::device::{AsyncCopies, Device, EmulatorOptions, Order};
use schnell::pipeline::{DumpValues, Model, Output, Pipeline, Plan, Quantize, Request, Shape, gib};
use schnell::{Error, Result};

use super::finding::{Finding, Machine, Row, Time};
use super::{Arguments, Part, full, sanitize};

/// One thing to do, by itself: what it does to the GPU's context ends with the process.
pub(super) struct Item {
    pub part: Part,
    pub name: String,
    pub job: Job,
    /// After so long without a word it hangs: ten times what it should take, or more.
    pub deadline: Duration,
}

pub(super) enum Job {
    Case(Case),
    Image,
    /// Of compute-sanitizer's, by its place.
    Tool(usize),
    Time(bench::Subject),
    Upload,
    /// Pixels each way; the budget, or everything resident.
    Full(usize, Option<u64>),
    Limits,
}

const REPETITIONS: usize = 30;
const UPLOAD_BYTES: usize = 256 << 20;

/// What the arguments ask for, in order. A worker makes the same list.
pub(super) fn list(arguments: &Arguments) -> Result<Vec<Item>> {
    let on_emulator = arguments.device.starts_with("emulator");
    let parts = match &arguments.parts[..] {
        [] if on_emulator => &[Part::Probe, Part::Kernels, Part::Image][..],
        [] => {
            &[Part::Probe, Part::Kernels, Part::Image, Part::Sanitize, Part::Bench, Part::Full, Part::Limits]
        }
        chosen => chosen,
    };
    let mut items = Vec::new();
    let mut add = |part, name: String, job| {
        // Of the tools none is left out: `only` picks the cases under them.
        if name.contains(&arguments.only) || matches!(job, Job::Tool(_)) {
            let seconds = match job {
                Job::Case(_) | Job::Time(_) | Job::Upload | Job::Limits => 60,
                Job::Image => 120,
                Job::Tool(_) | Job::Full(..) => 240,
            };
            items.push(Item { part, name, job, deadline: Duration::from_secs(seconds) });
        }
    };
    for &part in parts {
        if on_emulator && matches!(part, Part::Sanitize | Part::Bench | Part::Full | Part::Limits) {
            return Err(Error::Unsupported(format!(
                "{part:?} needs a GPU; on the emulator there are scripts/sanitize and cargo bench"
            )));
        }
        match part {
            Part::Probe | Part::Kernels => {
                let name = if part == Part::Probe { "probe" } else { "kernels" };
                for case in cases() {
                    if case.part == name && (case.small || !arguments.small) {
                        add(part, case.name.clone(), Job::Case(case));
                    }
                }
            }
            Part::Image => add(part, "demo image".to_string(), Job::Image),
            Part::Sanitize => {
                for (i, tool) in sanitize::TOOLS.iter().enumerate() {
                    add(part, tool.0.to_string(), Job::Tool(i));
                }
            }
            Part::Bench => {
                for subject in flux_shapes() {
                    add(part, subject.to_string(), Job::Time(subject));
                }
                add(part, "upload".to_string(), Job::Upload);
            }
            Part::Limits => add(part, "limits".to_string(), Job::Limits),
            Part::Full => {
                for side in [512, 1024] {
                    add(part, format!("{side}x{side}"), Job::Full(side, None));
                }
                // Blocks on the device, and everything streamed.
                for budget in [5.0, 0.9] {
                    add(part, format!("512x512 in {budget} GiB"), Job::Full(512, Some(gib(budget))));
                }
            }
        }
    }
    Ok(items)
}

/// The machine under test, by its name on the command line.
pub(super) fn open(name: &str) -> Result<Device> {
    match name.split_once(':') {
        None if name == "emulator" => open("emulator:80"),
        Some(("emulator", arch @ ("80" | "90"))) => {
            let (order, async_copies) = (Order::Random, AsyncCopies::Random);
            let arch = arch.parse().unwrap_or_default();
            Ok(Device::emulator(EmulatorOptions { order, async_copies, seed: 1, arch, ..Default::default() }))
        }
        Some(("cuda", ordinal)) if ordinal.parse::<usize>().is_ok() => {
            Device::cuda(ordinal.parse().unwrap_or_default())
        }
        _ => Err(Error::Input(format!("no such device: {name:?}; cuda:N, emulator or emulator:90"))),
    }
}

/// Does the items from `first` on, and ends behind one that failed.
pub(super) fn work(arguments: &Arguments, first: usize) -> Result<()> {
    let device = open(&arguments.device)?;
    Finding::Machine(Machine::from(device.capability())).say();
    for (i, item) in list(arguments)?.iter().enumerate().skip(first) {
        Finding::Begin(i).say();
        let result = item.run(arguments, &device);
        if let Err(error) = &result {
            Finding::Row(Row::fault(item.part, &item.name, error.to_string())).say();
        }
        Finding::Done(i).say();
        if result.is_err() {
            break;
        }
    }
    Ok(())
}

impl Item {
    fn run(&self, arguments: &Arguments, device: &Device) -> Result<()> {
        match &self.job {
            Job::Case(case) => self.compare(case, arguments, device),
            Job::Image => image(device),
            Job::Tool(tool) => sanitize::run(*tool, arguments).map(|row| Finding::Row(row).say()),
            Job::Time(subject) => {
                let ms = subject.measure(device, REPETITIONS)?.ms;
                let (flops, bytes) = (subject.flops(), subject.bytes());
                Finding::Time(Time { kernel: self.name.clone(), ms, flops, bytes }).say();
                Ok(())
            }
            Job::Upload => {
                Finding::UploadGbPerS(upload_rate(device, UPLOAD_BYTES, 10)?).say();
                Ok(())
            }
            Job::Full(side, budget) => full::run(device, *side, *budget),
            Job::Limits if device.capability().arch / 10 != 9 => Ok(()),
            Job::Limits => limits(),
        }
    }

    /// One case on the emulator and on the machine under test.
    fn compare(&self, case: &Case, arguments: &Arguments, device: &Device) -> Result<()> {
        // Posing as the machine under test, so that both choose the same kernels.
        let arch = device.capability().arch;
        let reference = Device::emulator(EmulatorOptions { arch, ..EmulatorOptions::default() });
        if !case.runs_on(&reference) {
            return Ok(());
        }
        let fill = if arguments.unfilled { Fill::Nothing } else { Fill::Nan };
        let (want, got) = (case.run(&reference, Fill::Nan)?, case.run(device, fill)?);
        for c in compare(&want, &got) {
            Finding::Row(Row {
                part: self.part,
                case: self.name.clone(),
                output: c.name,
                count: c.count,
                worst: Some(c.worst).filter(|worst| worst.is_finite()),
                allowed: c.allowed,
                fault: c.fault,
            })
            .say();
        }
        Ok(())
    }
}

/// The program beside this one says its findings itself, to the same reader.
fn limits() -> Result<()> {
    let program = std::env::current_exe().map_err(Error::io("find", "gpu-check"))?.with_file_name("limits");
    let status = std::process::Command::new(&program).status().map_err(Error::io("run", &program))?;
    match status.success() {
        true => Ok(()),
        false => Err(Error::Mismatch(format!("the program ended with {status}"))),
    }
}

/// The bundled model's picture on both machines, stage by stage, and twice on the one under test.
fn image(under_test: &Device) -> Result<()> {
    let dir = std::env::temp_dir().join(format!("schnell-gpu-check-{}", std::process::id()));
    schnell::demo::write(&dir)?;
    let result = compare_images(&dir, under_test);
    std::fs::remove_dir_all(&dir).map_err(|source| Error::Io { action: "remove", path: dir, source })?;
    result
}

/// What bf16 allows two machines whose tensor cores round differently: the limit of the golden tests.
const STAGE_LIMIT: f64 = 2e-2;

fn compare_images(dir: &std::path::Path, under_test: &Device) -> Result<()> {
    let model = Model::open(dir)?;
    let request = Request {
        dump: true,
        negative_prompt: Some("a green square".to_string()),
        true_cfg_scale: 2.0,
        ..Request::new("a red circle on a blue background").seed(1)
    };
    let shape = Shape { width: 128, height: 128, steps: 4, t5_length: 64, true_cfg: true };
    let plan = Plan::new(model.config(), shape, Quantize::Nf4)?;
    let draw_as = |device: &Device, plan: Plan, graphs: bool| -> Result<(Output, Output)> {
        let builder = Pipeline::builder(&model).with_plan(plan.clone()).device(device);
        let mut builder = builder.graphs(graphs).dumps();
        if plan.traffic().on_disk > 0 {
            builder = builder.cache(dir.join("cache"));
        }
        let mut pipeline = builder.prompt_cache(0).load()?;
        let first = pipeline.generate(&request)?;
        Ok((first, pipeline.generate(&request)?))
    };
    let draw = |device: &Device, plan: Plan| draw_as(device, plan, true);
    let least = plan.least_bytes()?;
    let (expected, _) = draw(&Device::emulator(EmulatorOptions::default()), plan.clone())?;
    let (got, again) = draw(under_test, plan.clone())?;
    let (launched, _) = draw_as(under_test, plan.clone(), false)?;
    let plan = plan.within(least)?;
    let (streamed, streamed_again) = draw(under_test, plan.clone())?;
    let (loading, generating) = plan.host_bytes();
    // Made, then loaded.
    let plan = plan.within_host(loading + generating)?;
    let (from_disk, from_disk_again) = draw(under_test, plan.clone())?;
    let (packed, _) = draw(under_test, plan)?;
    let row = |output: &str, count: usize, worst: f64, allowed: f64| {
        Finding::Row(Row {
            part: Part::Image,
            case: "demo image".to_string(),
            output: output.to_string(),
            count,
            worst: Some(worst).filter(|worst| worst.is_finite()),
            allowed,
            fault: (worst.is_nan() || worst > allowed).then(|| format!("{worst:.2e} exceeds {allowed:.2e}")),
        })
        .say();
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
    for (what, other) in [
        ("drawn twice", again),
        ("launched kernel by kernel", launched),
        ("weights are streamed", streamed),
        ("weights are streamed, drawn twice", streamed_again),
        ("weights are read from disk", from_disk),
        ("weights are read from disk, drawn twice", from_disk_again),
        ("weights are read from disk, loaded from the cache", packed),
    ] {
        let differ = got.rgb.iter().zip(&other.rgb).filter(|(a, b)| a != b).count();
        row(&format!("bytes that differ when {what}"), got.rgb.len(), differ as f64, 0.0);
    }
    Ok(())
}

fn relative_l2(got: &[f32], want: &[f32]) -> f64 {
    let sum = |f: &dyn Fn(f64, f64) -> f64| -> f64 {
        got.iter().zip(want).map(|(g, w)| f(f64::from(*g), f64::from(*w))).sum()
    };
    (sum(&|g, w| (g - w).powi(2)) / sum(&|_, w| w * w)).sqrt()
}
