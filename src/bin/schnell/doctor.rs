//! `schnell doctor`: what would stop a picture here, and what to do about it; what an error means.

use std::path::{Path, PathBuf};

use indicatif::{ProgressBar, ProgressStyle};
use schnell::doctor::{self, CompiledBy, Diagnosis, PcieLink};
use schnell::{
    Card, Device, Error, Inspection, Model, ModelFolder, PipelineConfig, Plan, Quantize, Result, human_bytes,
};
use serde::Serialize;

use crate::options::DeviceOption;
use crate::terminal;

/// Changes nothing. Ends with exit code 1 when something would stop a picture.
#[derive(clap::Args)]
pub struct Args {
    /// A model to look at, as for `generate`: opens its files, and plans a picture by it; may be given several times
    #[arg(long, value_name = "DIR|HF-ID|FILE|demo")]
    model: Vec<String>,
    /// auto, cuda:N or emulator
    #[arg(long, default_value = "auto")]
    device: DeviceOption,
    /// The folder of --cache: whether the weights of each --model would find room there
    #[arg(long, value_name = "DIR", requires = "model")]
    cache: Option<PathBuf>,
    /// Leave out the test of every kernel
    #[arg(long)]
    no_self_test: bool,
    /// Look at nothing; say what an error means, ours or the CUDA driver's, and what to do
    #[arg(long, value_name = "ERROR TEXT", conflicts_with_all = ["model", "device", "cache", "no_self_test"])]
    diagnose: Option<String>,
    /// Print JSON in place of text
    #[arg(long)]
    json: bool,
}

/// How it stands.
#[derive(Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    Ok,
    /// Not as good as it might be, or not to be told.
    Note,
    /// It would stop a picture.
    Problem,
}

/// One thing that was looked at.
#[derive(Serialize)]
struct Finding {
    what: String,
    state: State,
    found: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    advice: Option<String>,
}

/// All of them, in order.
#[derive(Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn add(
        &mut self,
        what: impl Into<String>,
        state: State,
        found: impl Into<String>,
        advice: Option<String>,
    ) {
        self.0.push(Finding { what: what.into(), state, found: found.into(), advice });
    }

    fn ok(&mut self, what: &str, found: impl Into<String>) {
        self.add(what, State::Ok, found, None);
    }

    fn note(&mut self, what: &str, found: impl Into<String>, advice: &str) {
        self.add(what, State::Note, found, Some(advice.to_string()));
    }

    fn problem(&mut self, what: &str, found: impl Into<String>, advice: impl Into<String>) {
        self.add(what, State::Problem, found, Some(advice.into()));
    }

    /// An error, and what is known of its kind.
    fn error(&mut self, what: &str, error: &Error) {
        let text = error.to_string();
        let advice = doctor::diagnose(&text).into_iter().next().map(|known| known.advice);
        self.add(what, State::Problem, text, advice);
    }
}

/// Whether nothing would stop a picture; of a diagnosis, whether something is known.
pub fn run(args: &Args) -> Result<bool> {
    if let Some(text) = &args.diagnose {
        return diagnose(text, args.json);
    }
    let mut findings = Findings::default();
    build(&mut findings);
    let device = machine(args.device, &mut findings);
    if let Some(device) = &device {
        kernels(device, &mut findings);
        if !args.no_self_test {
            self_test(device, &mut findings);
        }
        if args.model.is_empty() && !device.capability().is_emulator {
            usual_picture(device, &mut findings);
        }
    }
    for name in &args.model {
        model(name, args, device.as_ref(), &mut findings);
    }
    let problems = findings.0.iter().filter(|finding| finding.state == State::Problem).count();
    if args.json {
        let all = serde_json::json!({
            "version": env!("CARGO_PKG_VERSION"), "problems": problems, "findings": findings.0,
        });
        terminal::print(&format!("{all:#}\n"))?;
    } else {
        terminal::print(&in_words(&findings.0, problems))?;
    }
    Ok(problems == 0)
}

fn in_words(findings: &[Finding], problems: usize) -> String {
    let width = findings.iter().map(|finding| finding.what.chars().count()).max().unwrap_or(0);
    let mut text = String::new();
    for Finding { what, state, found, advice } in findings {
        let mark = match state {
            State::Ok => "ok     ",
            State::Note => "note   ",
            State::Problem => "problem",
        };
        text += &format!("{mark}  {what:width$}  {found}\n");
        if let Some(advice) = advice {
            text += &format!("{:width$}           -> {advice}\n", "");
        }
    }
    text + &match problems {
        0 => "nothing that would stop a picture was found\n".to_string(),
        1 => "1 problem\n".to_string(),
        n => format!("{n} problems\n"),
    }
}

/// Who is told what an error means; false when nothing is known.
fn diagnose(text: &str, json: bool) -> Result<bool> {
    let known = doctor::diagnose(text);
    if json {
        let each = |Diagnosis { what, exit_code, means, advice }: &Diagnosis| serde_json::json!({"what": what, "exit_code": exit_code, "means": means, "advice": advice});
        let all: Vec<_> = known.iter().map(each).collect();
        terminal::print(&format!("{:#}\n", serde_json::json!({"known": all})))?;
    } else if known.is_empty() {
        terminal::print(
            "unknown: neither an error of this program nor one of the CUDA driver's that it knows\n-> look whether all of the line \
             was given; `schnell doctor` looks at the machine\n",
        )?;
    } else {
        for Diagnosis { what, exit_code, means, advice } in &known {
            let code = exit_code.map_or(String::new(), |code| format!(" (exit code {code})"));
            terminal::print(&format!("{what}{code}: {means}\n-> {advice}\n"))?;
        }
    }
    Ok(!known.is_empty())
}

fn build(findings: &mut Findings) {
    let version = env!("CARGO_PKG_VERSION");
    match doctor::compiled_by() {
        CompiledBy::Nvcc(nvcc) => {
            let driver = nvcc.split_once('.').map_or(nvcc, |(major, _)| major);
            findings.ok(
                "build",
                format!("schnell {version}, CUDA kernels by nvcc {nvcc}: a driver for CUDA {driver}.0 or newer is needed"),
            );
        }
        CompiledBy::Nobody => findings.note(
            "build",
            format!("schnell {version}, without CUDA kernels: there was no nvcc"),
            "for a GPU run scripts/get-nvcc, or set NVCC or CUDA_HOME, and build again",
        ),
        CompiledBy::WithoutCuda => findings.note(
            "build",
            format!("schnell {version}, without the feature cuda"),
            "for a GPU build again with the default features",
        ),
    }
}

/// The machine that pictures would be drawn on, opened.
fn machine(option: DeviceOption, findings: &mut Findings) -> Option<Device> {
    let device = match option.bare() {
        Ok((device, None)) => device,
        // As `generate` does without a GPU.
        Ok((device, Some(why))) => {
            let known = doctor::diagnose(&why.to_string()).into_iter().next();
            let advice = known.map_or(String::new(), |known| known.advice);
            findings.note("driver", why.to_string(), &advice);
            device
        }
        Err(error) => {
            findings.error("driver", &error);
            return None;
        }
    };
    let capability = device.capability();
    if capability.is_emulator {
        let found = format!("emulator, {} threads: small pictures alone", capability.threads);
        findings.note(
            "card",
            found,
            "pictures by FLUX.1 itself take a GPU of compute capability 8.0 or newer",
        );
        return Some(device);
    }
    let release = std::fs::read_to_string("/proc/driver/nvidia/version").unwrap_or_default();
    let release =
        doctor::driver_release(&release).map_or(String::new(), |release| format!(", release {release}"));
    findings.ok("driver", format!("knows CUDA {}{release}", capability.driver));
    let (major, minor) = (capability.arch / 10, capability.arch % 10);
    let found =
        format!("{}, compute capability {major}.{minor}, {} SMs", capability.name, capability.num_sms);
    findings.ok("card", found);
    memory(&device, findings);
    link(capability.pci_bus_id.as_deref(), findings);
    Some(device)
}

fn memory(device: &Device, findings: &mut Findings) {
    let total = device.capability().total_bytes;
    match device.free_bytes() {
        // Of a fifth and less even what is streamed may not fit.
        Ok(free) if free < total / 5 => findings.note(
            "memory",
            format!("{} free of {}", human_bytes(free), human_bytes(total)),
            "end other programs on this GPU (nvidia-smi lists them), or draw with --budget",
        ),
        Ok(free) => findings.ok("memory", format!("{} free of {}", human_bytes(free), human_bytes(total))),
        Err(error) => findings.error("memory", &error),
    }
}

fn link(bus_id: Option<&str>, findings: &mut Findings) {
    let link = bus_id.and_then(|bus_id| PcieLink::read(Path::new("/sys/bus/pci/devices"), bus_id));
    let Some(PcieLink { generation, most_generation, lanes, most_lanes }) = link else {
        findings.add("PCIe link", State::Note, "the system does not tell", None);
        return;
    };
    let found = format!(
        "{most_generation}.0 x{lanes} (now {generation}.0, which rises with work; the card has {most_lanes} lanes)"
    );
    match lanes < most_lanes {
        true => findings.note(
            "PCIe link",
            found,
            "fewer lanes than the card has: weights that are streamed (--budget) and loading take longer; another slot may be wider",
        ),
        false => findings.ok("PCIe link", found),
    }
}

fn kernels(device: &Device, findings: &mut Findings) {
    match doctor::ready_kernels(device) {
        Ok(count) if device.capability().is_emulator => {
            findings.ok("kernels", format!("{count} entry points, compiled for the emulator"));
        }
        Ok(count) => {
            findings.ok("kernels", format!("the driver takes all {count} entry points for this card"))
        }
        Err(error) => findings.error("kernels", &error),
    }
}

fn self_test(device: &Device, findings: &mut Findings) {
    let bar = ProgressBar::new(0);
    if let Ok(style) = ProgressStyle::with_template("testing kernels {bar:30} {pos}/{len}") {
        bar.set_style(style);
    }
    let tested = doctor::self_test(device, &mut |done, all| {
        bar.set_length(all as u64);
        bar.set_position(done as u64);
    });
    bar.finish_and_clear();
    let test = match tested {
        Ok(test) => test,
        Err(error) => {
            let advice = "build with the feature emulator, which is a default, to have it";
            findings.note("self-test", error.to_string(), advice);
            return;
        }
    };
    let (ran, all) = test.kernels;
    let how = match test.is_short {
        true => "a short one, of the emulator under two schedules",
        false => "against the emulator",
    };
    let found = format!("{} computations with {ran} of {all} entry points, {how}", test.cases);
    match test.faults.first() {
        None => findings.ok("self-test", format!("{found}: as they should be")),
        Some(first) => findings.problem(
            "self-test",
            format!("{found}: {} faults, the first: {first}", test.faults.len()),
            "do not trust pictures of this machine: cool it, take back overclocking, renew the driver, and report what remains, with \
             what gpu-check says",
        ),
    }
}

/// A prediction for what the machine is for, where no model was named.
fn usual_picture(device: &Device, findings: &mut Findings) {
    let config = PipelineConfig::schnell();
    match Plan::new(&config, schnell::Shape::default(), Quantize::usual(&config)) {
        Ok(plan) => picture("FLUX.1-schnell", plan, device, findings),
        Err(error) => findings.error("FLUX.1-schnell", &error),
    }
}

/// What a picture would take on this machine, and about how long.
fn picture(what: &str, plan: Plan, device: &Device, findings: &mut Findings) {
    let (capability, what) = (device.capability(), format!("{what}, picture"));
    let plan = match plan.on(capability) {
        Ok(plan) => plan,
        Err(error) => return findings.error(&what, &error),
    };
    let shape = plan.shape();
    let size = format!("{} x {}, {} steps", shape.width, shape.height, shape.steps);
    if capability.is_emulator {
        return match plan.emulator(1, None) {
            Ok((_, note)) => findings.ok(&what, format!("{size}: {}", note.unwrap_or_default())),
            Err(error) => findings.error(&what, &error),
        };
    }
    let (needed, free) = (plan.arena_bytes(), device.free_bytes().unwrap_or(0));
    if needed > free {
        let found =
            format!("{size}: {} of device memory, {} are free", human_bytes(needed), human_bytes(free));
        let advice = match plan.least_bytes() {
            Ok(least) if least <= free => {
                format!("draw with --budget {free}, which streams weights: the picture is the same")
            }
            Ok(least) => format!(
                "even streamed it takes {}: free device memory, or ask for a smaller picture",
                human_bytes(least)
            ),
            Err(error) => error.to_string(),
        };
        return findings.problem(&what, found, advice);
    }
    let size = format!("{size}: {} of device memory", human_bytes(needed));
    let slot = capability.pci_bus_id.as_deref();
    let slot = slot.and_then(|bus_id| PcieLink::read(Path::new("/sys/bus/pci/devices"), bus_id));
    match Card::of(capability) {
        None => findings.add(
            what,
            State::Ok,
            format!("{size}; no prediction of its time: none is made for this card"),
            None,
        ),
        Some(card) => {
            let placed = slot.and_then(|link| card.in_slot(link.most_generation, link.lanes));
            let prediction = plan.predict(placed.unwrap_or(card));
            let found = format!(
                "{size}; {:.0} ms by prediction, as of {} (not measured: `schnell bench latency` does)",
                prediction.total_ms, card.name
            );
            findings.add(what, State::Ok, found, None);
        }
    }
}

/// One of `--model`: files, layout, digest, what a picture takes, room for the cache.
fn model(name: &str, args: &Args, device: Option<&Device>, findings: &mut Findings) {
    let is_demo = name == "demo";
    let folder = match if is_demo { ModelFolder::demo() } else { ModelFolder::find(name) } {
        Ok(folder) => folder,
        Err(error) => return findings.error(name, &error),
    };
    if !is_demo {
        parts(name, findings);
    }
    let model = match Model::open_folder(&folder) {
        Ok(model) => model,
        Err(error) => return findings.error(name, &error),
    };
    match model.digest() {
        Ok(digest) => {
            findings.ok(name, format!("every tensor is there, of the expected shape; digest {digest}"))
        }
        Err(error) => findings.error(name, &error),
    }
    for warning in model.warnings() {
        findings.add(name, State::Note, warning, None);
    }
    let config = model.config();
    let side = if is_demo { 128 } else { 1024 };
    let plan = match Plan::new(config, model.shape(side, side), Quantize::usual(config)) {
        Ok(plan) => plan,
        Err(error) => return findings.error(name, &error),
    };
    if let Some(cache) = &args.cache {
        room(name, cache, &plan, findings);
    }
    if let Some(device) = device {
        picture(name, plan, device, findings);
    }
}

/// What its files hold, part by part.
fn parts(name: &str, findings: &mut Findings) {
    // What cannot be inspected cannot be opened, either, which is said then.
    let Ok(inspection) = Inspection::of(name) else { return };
    for part in inspection.parts {
        let stored: Vec<String> = part.stored.iter().map(|stored| stored.name.clone()).collect();
        findings.ok(name, format!("{}: {}, {}, in {}", part.name, part.what, part.names, stored.join(", ")));
    }
}

/// Whether the weights would fit beside what the folder's disk holds.
fn room(name: &str, cache: &Path, plan: &Plan, findings: &mut Findings) {
    let needed: u64 =
        plan.regions().iter().filter(|region| region.is_resident).map(|region| region.bytes as u64).sum();
    let what = format!("{name}, cache");
    let there = cache.ancestors().find(|folder| folder.is_dir()).unwrap_or(Path::new("."));
    match schnell::files::free_bytes(there) {
        Ok(free) if needed > free => findings.problem(
            &what,
            format!(
                "weights of {}, unless they are there already, but {} are free on its disk",
                human_bytes(needed),
                human_bytes(free)
            ),
            "free room there, name a folder on another disk, or draw without --cache",
        ),
        Ok(free) => {
            findings.ok(
                &what,
                format!("weights of {}, and {} are free on its disk", human_bytes(needed), human_bytes(free)),
            );
        }
        Err(error) => findings.error(&what, &error),
    }
}
