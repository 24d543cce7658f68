//! `schnell plan`: every region, byte by byte, from config files alone; and what to expect of a card that is not here.

use std::path::{Path, PathBuf};

use schnell::files::Target;
use schnell::{Card, Error, Plan, Prediction, Region, Result, human_bytes};
use serde_json::json;

use crate::options::{PlanOptions, parse_bytes};
use crate::{plot, terminal};

/// Config files suffice: the weights need not be there.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    options: PlanOptions,
    /// Plan for a negative prompt
    #[arg(long)]
    true_cfg: bool,
    /// Print every operation, too: kernel, grid, multiply-adds, what it reads (<) and writes (>)
    #[arg(long)]
    launches: bool,
    /// Plan for a card, and predict times on it: rtx3060, rtx4090, a100, h100 or h200
    #[arg(long, value_parser = parse_card)]
    card: Option<Card>,
    /// The card's slot, generation and lanes, such as 3x16 or 4x8
    #[arg(long, requires = "card", value_name = "GENxLANES")]
    pcie: Option<String>,
    /// What the disk reads in a second, for weights that --host-budget leaves there, such as 7GB [default: 3GB]
    #[arg(long, requires = "card", value_name = "BYTES", value_parser = parse_bytes)]
    disk: Option<u64>,
    /// Print JSON in place of the table
    #[arg(long, conflicts_with_all = ["launches", "sweep"])]
    json: bool,
    /// Draw what the kernels and the copies beside them would do when
    #[arg(long, requires = "card", value_name = "FILE.svg")]
    timeline: Option<PathBuf>,
    /// Print, and draw, the time of a picture against the budget
    #[arg(long, requires = "card", value_name = "FILE.svg", conflicts_with = "budget")]
    sweep: Option<PathBuf>,
}

/// Budgets that a sweep tries.
const SWEEP: u64 = 24;

fn parse_card(name: &str) -> std::result::Result<Card, String> {
    let known = || Card::ALL.map(|card| card.name).join(", ");
    Card::named(name).ok_or_else(|| format!("no card that is known: {}", known()))
}

impl Args {
    /// In the slot that was named.
    fn card(&self) -> Result<Option<Card>> {
        let card = self.card.map(|card| self.disk.map_or(card, |rate| card.with_disk(rate as f64)));
        let (Some(card), Some(slot)) = (card, &self.pcie) else { return Ok(card) };
        let numbers = slot.split_once('x').and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
        let placed = numbers.and_then(|(generation, lanes)| card.in_slot(generation, lanes));
        let what = || format!("--pcie {slot} is no slot; name generation and lanes, such as 3x16 or 4x8");
        placed.map(Some).ok_or_else(|| Error::Input(what()))
    }
}

pub fn run(args: &Args) -> Result<()> {
    let card = args.card()?;
    let files = [&args.timeline, &args.sweep].map(|path| path.as_deref().map(open_svg).transpose());
    let [mut timeline, mut sweep] = match files {
        [Ok(timeline), Ok(sweep)] => [timeline, sweep],
        [Err(error), _] | [_, Err(error)] => return Err(error),
    };
    if let (Some(timeline), Some(sweep)) = (&timeline, &sweep)
        && timeline.is_same(sweep)
    {
        return Err(Error::Input("--timeline and --sweep are the same file; name two".to_string()));
    }
    let config = args.options.model.config(&args.options.model.folder()?)?;
    let all = args.options.plan(&config, args.true_cfg)?;
    let all = match card {
        Some(card) => all.on(&card.capability())?,
        None => all,
    };
    let plan = args.options.budgets.within_budget(all.clone())?;
    let prediction = card.map(|card| plan.predict(card));
    if args.json {
        terminal::print(&format!("{:#}\n", as_json(&plan, prediction.as_ref())))?;
    } else {
        terminal::print(&plan.to_string())?;
        if let Some(prediction) = &prediction {
            terminal::print(&in_words(prediction, &all.predict(prediction.card)))?;
        }
    }
    if args.launches {
        terminal::print(&format!("\n{}", plan.launches()))?;
    }
    if let (Some(target), Some(prediction)) = (&mut timeline, &prediction) {
        target.write(plot::timeline(prediction)?.as_bytes())?;
    }
    if let (Some(target), Some(card)) = (&mut sweep, card) {
        let points = try_budgets(&all, card)?;
        terminal::print(&table(&points))?;
        target.write(plot::sweep(card, &points)?.as_bytes())?;
    }
    Ok(())
}

/// A file that a drawing may go to.
pub fn open_svg(path: &Path) -> Result<Target> {
    match path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("svg")) {
        true => Target::new(path),
        false => Err(Error::Input(format!("{}: name a file that ends in .svg", path.display()))),
    }
}

fn in_words(plan: &Prediction, resident: &Prediction) -> String {
    let ms = |name| plan.ms(name);
    let steps = plan.stages.iter().filter(|(name, _)| name.starts_with("step")).count().max(1);
    format!(
        "predicted on {} (not measured), {:.1} GB/s to it: text encoders {:.0} ms, modulation {:.0} ms, each step {:.0} ms, decode {:.0} \
         ms; in all {:.0} ms, {:+.1} % of everything resident\n",
        plan.card.name,
        plan.card.pcie_bytes_per_s * 1e-9,
        ms("clip") + ms("t5"),
        ms("modulation"),
        ms("step") / steps as f64,
        ms("vae"),
        plan.total_ms,
        (plan.total_ms / resident.total_ms - 1.0) * 100.0
    )
}

fn as_json(plan: &Plan, prediction: Option<&Prediction>) -> serde_json::Value {
    let (shape, traffic, work) = (plan.shape(), plan.traffic(), plan.work());
    let (loading, generating) = plan.host_bytes();
    let region = |region: Region| json!({"name": region.name, "offset": region.offset, "bytes": region.bytes, "resident": region.is_resident});
    let regions: Vec<_> = plan.regions().into_iter().map(region).collect();
    let predicted = prediction.map(|prediction| {
        let stages: Vec<_> =
            prediction.stages.iter().map(|(stage, ms)| json!({"stage": stage, "ms": ms})).collect();
        json!({
            "card": prediction.card.name,
            "pcie_bytes_per_s": prediction.card.pcie_bytes_per_s,
            "disk_bytes_per_s": prediction.card.disk_bytes_per_s,
            "stages": stages,
            "total_ms": prediction.total_ms,
        })
    });
    json!({
        "shape": {
            "width": shape.width, "height": shape.height, "steps": shape.steps, "t5_length": shape.t5_length,
            "true_cfg": shape.true_cfg,
        },
        "quantize": plan.quantize().to_string(),
        "precision": plan.precision().to_string(),
        "arena_bytes": plan.arena_bytes(),
        "regions": regions,
        "pinned_bytes": {"loading": loading, "generating": generating, "streamed_weights": traffic.pinned},
        "disk_bytes": {"streamed_weights": traffic.on_disk},
        "copied_bytes": {"encoders": traffic.encoders, "modulation": traffic.modulation, "each_step": traffic.step},
        "flops": {
            "clip": work.clip, "t5": work.t5, "modulation": work.modulation, "each_step": work.step, "decode": work.decode,
        },
        "predicted": predicted,
    })
}

/// A budget, what the plan takes of it, and what it would take.
pub struct Point {
    pub budget: u64,
    pub arena: u64,
    pub step_bytes: u64,
    pub step_ms: f64,
    pub total_ms: f64,
}

fn try_budgets(all: &Plan, card: Card) -> Result<Vec<Point>> {
    let (least, most) = (all.least_bytes()?, all.arena_bytes());
    let point = |i: u64| {
        let budget = least + (most - least) * i / SWEEP;
        let plan = all.clone().within(budget)?;
        let prediction = plan.predict(card);
        Ok(Point {
            budget,
            arena: plan.arena_bytes(),
            step_bytes: plan.traffic().step,
            step_ms: prediction.ms("step") / plan.shape().steps as f64,
            total_ms: prediction.total_ms,
        })
    };
    (0..=SWEEP).map(point).collect()
}

fn table(points: &[Point]) -> String {
    let mut text = format!(
        "\n{:>12} {:>12} {:>15} {:>12} {:>12}\n",
        "budget", "arena", "copied a step", "a step, ms", "picture, ms"
    );
    for point in points {
        text += &format!(
            "{:>12} {:>12} {:>15} {:>12.1} {:>12.0}\n",
            human_bytes(point.budget),
            human_bytes(point.arena),
            human_bytes(point.step_bytes),
            point.step_ms,
            point.total_ms
        );
    }
    text
}
