//! How long a generation would take on a card that is not here: the plan's operations on two streams, each as long as its
//! tiles, its FLOPs or its bytes take. A prediction, to compare plans by; nothing is measured, and nothing is decided by it.

use std::collections::BTreeMap;

use crate::device::{Capability, Config, StreamId};
use crate::program::{Op, Origin, Run, Stage, What};

use super::Plan;

/// What a prediction takes of a card.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Card {
    /// `rtx3060`, ...
    pub name: &'static str,
    /// Compute capability: 86, 89, 90.
    pub arch: u32,
    /// Streaming multiprocessors.
    pub num_sms: u32,
    /// bf16 with f32 accumulation, dense, as published.
    pub flops_per_s: f64,
    /// Of these, what matrix products and attention reach of which the cycle model (`scripts/sass`) says nothing: kernels that it
    /// cannot run. What it says of the others is in `src/pipeline/loops.tsv`.
    pub share: f64,
    /// Device memory, published.
    pub memory_bytes_per_s: f64,
    /// Host to device from pinned memory, in the slot that it usually has.
    pub pcie_bytes_per_s: f64,
    /// Of the disk beside it, for weights that stay there.
    pub disk_bytes_per_s: f64,
}

/// What SSDs on PCIe 3.0 x4 are sold with, about.
const DISK_BYTES_PER_S: f64 = 3e9;

/// From one operation's end to the next one's begin on a stream, and what a launch costs; by the same cycle model.
const GAP_S: f64 = 4e-6;

/// What `scripts/sass --write` predicts of the kernels with products on each card, from their machine code and what an H200 has kept
/// of such predictions.
const LOOPS: &str = include_str!("loops.tsv");

/// A line of it.
#[derive(Clone, Copy, Debug)]
struct Loop {
    /// On one SM, and SMs.
    ctas: f64,
    sms: f64,
    /// Of one turn of one CTA.
    flops: f64,
    /// A turn of a CTA alone on its SM; of one of as many as fit, per turn of each; and what is around the turns.
    alone_s: f64,
    together_s: f64,
    around_s: f64,
}

impl Loop {
    /// Those of a card, by entry point.
    fn on(card: &str) -> BTreeMap<&'static str, Loop> {
        let lines = LOOPS.lines().filter(|line| !line.starts_with('#')).skip(1);
        let fields =
            lines.map(|line| line.split('\t').collect::<Vec<_>>()).filter(|fields| fields[0] == card);
        fields
            .map(|fields| {
                let number = |i: usize| fields[i].parse::<f64>().expect("a test reads every line");
                let seconds = |i: usize| number(i) * 1e-9;
                let (alone_s, together_s, around_s) = (seconds(5), seconds(6), seconds(7));
                (
                    fields[1],
                    Loop { ctas: number(2), sms: number(3), flops: number(4), alone_s, together_s, around_s },
                )
            })
            .collect()
    }

    /// Of a launch: waves of as many CTAs as fit, and what is left over, spread over the SMs, as in
    /// `scripts/machine_code/launches.py`. That knows which CTAs of the second problem have no tile, and tiles that are not
    /// full; here all have a like share of the FLOPs.
    fn seconds(&self, config: &Config, flops: f64) -> f64 {
        let ctas = config.grid.iter().map(|&n| f64::from(n)).product::<f64>().max(1.0);
        let turns = flops / (ctas * self.flops);
        let at_once = self.ctas * self.sms;
        let (full, rest) = ((ctas / at_once).floor(), ctas % at_once);
        let together = self.together_s * self.ctas;
        let pace = |residents: f64| {
            self.alone_s + (together - self.alone_s) * (residents - 1.0) / (self.ctas - 1.0).max(1.0)
        };
        let last = if rest > 0.0 { self.around_s + turns * pace((rest / self.sms).ceil()) } else { 0.0 };
        full * (self.around_s + turns * pace(self.ctas)) + last
    }
}

impl Card {
    /// All that are known. PCIe: 12.3 and 25 GB/s are what nvbandwidth finds in 3.0 x16 and 4.0 x16, 55 was measured on the H200.
    pub const ALL: [Card; 5] = [
        Card::new("rtx3060", [86, 28], [25.5e12, 0.86], 360e9, 12.3e9),
        Card::new("rtx4090", [89, 128], [165.2e12, 0.86], 1008e9, 25e9),
        Card::new("h100", [90, 132], [989e12, 0.27], 3350e9, 55e9),
        Card::new("h200", [90, 132], [989e12, 0.27], 4800e9, 55e9),
        // Of 40 GB.
        Card::new("a100", [80, 108], [312e12, 0.65], 1555e9, 25e9),
    ];

    const fn new(
        name: &'static str,
        [arch, num_sms]: [u32; 2],
        [flops_per_s, share]: [f64; 2],
        memory: f64,
        pcie: f64,
    ) -> Card {
        Card {
            name,
            arch,
            num_sms,
            flops_per_s,
            share,
            memory_bytes_per_s: memory,
            pcie_bytes_per_s: pcie,
            disk_bytes_per_s: DISK_BYTES_PER_S,
        }
    }

    /// The one of this name.
    pub fn named(name: &str) -> Option<Card> {
        Card::ALL.into_iter().find(|card| card.name == name)
    }

    /// The first that is like this machine: of its architecture, and with as many SMs. Nothing for a machine that is none of
    /// [`Card::ALL`], and for the emulator.
    pub fn of(machine: &Capability) -> Option<Card> {
        let is_like = |card: &Card| (card.arch, card.num_sms) == (machine.arch, machine.num_sms);
        Card::ALL.into_iter().find(is_like).filter(|_| !machine.is_emulator)
    }

    /// The one that is most like this machine, to choose by; the first where there is none.
    pub(super) fn like(machine: &Capability) -> Card {
        Card::of(machine).unwrap_or(Card::ALL[0])
    }

    /// What a plan for it depends on.
    pub fn capability(&self) -> Capability {
        Capability {
            name: self.name.to_string(),
            arch: self.arch,
            num_sms: self.num_sms,
            smem_per_cta_bytes: match self.arch {
                80 => 163 << 10,
                90 => 227 << 10,
                _ => 99 << 10,
            },
            ..Capability::unknown()
        }
    }

    /// Beside a disk that reads so fast.
    pub fn with_disk(self, bytes_per_s: f64) -> Card {
        Card { disk_bytes_per_s: bytes_per_s, ..self }
    }

    /// In another slot: PCIe `generation` (3, 4 or 5) with so many `lanes`. Nothing for a slot that there is not.
    pub fn in_slot(self, generation: u32, lanes: u32) -> Option<Card> {
        let full = match generation {
            3 => 12.3e9,
            4 => 25e9,
            5 => 55e9,
            _ => return None,
        };
        let is_width = [1, 2, 4, 8, 16].contains(&lanes);
        is_width.then(|| Card { pcie_bytes_per_s: full * f64::from(lanes) / 16.0, ..self })
    }
}

/// When an operation would run, in milliseconds from the begin of the generation.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Interval {
    /// Whether it is a copy of streamed weights, beside the kernels.
    pub is_upload: bool,
    /// The unit of weights, or the stage.
    pub name: String,
    /// In milliseconds.
    pub start: f64,
    /// In milliseconds.
    pub end: f64,
}

/// See [`Plan::predict`].
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Prediction {
    /// On which card.
    pub card: Card,
    /// Each stage's name (`step 0`, ...) and milliseconds.
    pub stages: Vec<(String, f64)>,
    /// All of them.
    pub total_ms: f64,
    /// What each stream does when, for a timeline.
    pub intervals: Vec<Interval>,
}

/// What its FLOPs take.
fn compute_seconds(op: &Op, loops: &BTreeMap<&str, Loop>, card: Card) -> f64 {
    let flops = op.work.flops as f64;
    match &op.what {
        What::Launch { config, .. } if loops.contains_key(config.kernel.name()) => {
            loops[config.kernel.name()].seconds(config, flops)
        }
        _ => flops / (card.flops_per_s * card.share),
    }
}

impl Plan {
    /// What a generation of [`Plan::shape`] with a new prompt would take on `card`.
    ///
    /// ```
    /// # use schnell::{Card, Model, Plan, Quantize, Shape};
    /// # fn main() -> schnell::Result<()> {
    /// let plan = Plan::new(Model::demo()?.config(), Shape::square(64), Quantize::Nf4)?;
    /// assert!(plan.predict(Card::ALL[0]).total_ms < 100.0);
    /// # Ok(()) }
    /// ```
    pub fn predict(&self, card: Card) -> Prediction {
        let placed = &self.shapes[0].placed;
        let program = &placed.program;
        let mut waits = vec![Vec::new(); program.ops.len()];
        for wait in &placed.waits {
            waits[wait.waiter].push(wait.signal);
        }
        // When each operation last ended, and each stream.
        let (mut done, mut free) = (vec![0.0_f64; program.ops.len()], [0.0_f64; StreamId::COUNT]);
        let (mut stages, mut intervals) = (Vec::new(), Vec::<Interval>::new());
        let loops = Loop::on(card.name);
        let turns = |stage| Stage::turns(stage, Run::Fresh).map(move |turn| (stage, turn));
        for (stage, turn) in program.stages.iter().flat_map(turns) {
            let (name, begin) = (stage.label(turn), free[StreamId::Compute.index()]);
            for i in stage.ops.clone() {
                let (op, stream) = (&program.ops[i], program.ops[i].stream.index());
                let bytes = op.bytes() as f64;
                let seconds = match op.what {
                    // Its pieces are read while others are copied.
                    What::Upload { from: Origin::Disk(_) } => {
                        bytes / card.pcie_bytes_per_s.min(card.disk_bytes_per_s)
                    }
                    What::Send { .. } | What::Fetch { .. } | What::Upload { .. } => {
                        bytes / card.pcie_bytes_per_s
                    }
                    _ => compute_seconds(op, &loops, card).max(bytes / card.memory_bytes_per_s),
                };
                let ready = waits[i].iter().map(|&signal| done[signal]).fold(free[stream], f64::max);
                done[i] = ready + GAP_S + seconds;
                free[stream] = done[i];
                let is_upload = matches!(op.what, What::Upload { .. });
                let name = match op.touches.first().filter(|_| is_upload) {
                    Some(touch) => program.buffers[touch.buffer].name.clone(),
                    None => name.clone(),
                };
                let (start, end) = (ready * 1e3, done[i] * 1e3);
                match intervals.iter_mut().rev().find(|last| last.is_upload == is_upload) {
                    // Kernels of a stage that do not wait for anything are one piece.
                    Some(last) if last.name == name && start - last.end < 1e-3 => last.end = end,
                    _ => intervals.push(Interval { is_upload, name, start, end }),
                }
            }
            stages.push((name, (free[StreamId::Compute.index()] - begin) * 1e3));
        }
        let total_ms = stages.iter().map(|(_, ms)| ms).sum();
        Prediction { card, stages, total_ms, intervals }
    }
}

impl Prediction {
    /// Milliseconds of the stages whose names begin so.
    pub fn ms(&self, name: &str) -> f64 {
        // Not sum(), whose sum of nothing is -0.
        self.stages.iter().filter(|(stage, _)| stage.starts_with(name)).fold(0.0, |sum, (_, ms)| sum + ms)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::config::PipelineConfig;
    use crate::kernels::kept::Format;
    use crate::kernels::kept_gemm;
    use crate::pipeline::{Precision, Quantize, Shape, gib};

    fn schnell(side: usize) -> Plan {
        Plan::new(&PipelineConfig::schnell(), Shape::square(side), Quantize::Nf4).unwrap()
    }

    /// On the card of most users blocks and modulations are copied while the blocks before compute: 0.9 GiB cost less than a tenth,
    /// nearly all of it before the steps, where T5's weights have little to hide behind: less where these are small.
    #[test]
    fn streaming_hides_behind_the_kernels_of_an_rtx_3060() {
        let card = Card::named("rtx3060").unwrap().in_slot(3, 16).unwrap();
        let (resident, plan) = (schnell(512), schnell(512).within(gib(0.9)).unwrap());
        assert!(plan.traffic().step > 4 << 30);
        let (resident, streamed) = (resident.predict(card), plan.predict(card));
        let slowed = streamed.total_ms / resident.total_ms;
        println!("{:.0} ms, streamed {:.0} ms", resident.total_ms, streamed.total_ms);
        assert!((1.0..1.10).contains(&slowed), "{slowed}");
        let small = |budget| {
            let plan = Plan::new(&PipelineConfig::schnell(), Shape::square(512), Quantize::Nf4All).unwrap();
            plan.within(budget).unwrap().predict(card).total_ms
        };
        let slowed = small(gib(0.9)) / small(u64::MAX);
        assert!((1.0..1.06).contains(&slowed), "{slowed}, all of it in NF4");
        let slowed = |stage| streamed.ms(stage) / resident.ms(stage);
        assert!(slowed("step 1") < 1.001 && slowed("step 0") < 1.08, "a step waits for its weights");
        // A slot of a quarter of the lanes is too narrow, and that shows.
        let narrow = plan.predict(card.in_slot(3, 4).unwrap());
        assert!(narrow.ms("step") > 1.5 * streamed.ms("step"));
        // Blocks from a disk take as long as that reads, and no pinned memory.
        let (loading, generating) = plan.host_bytes();
        let from_disk = plan.clone().within_host(loading + generating).unwrap();
        assert_eq!((from_disk.traffic().pinned, from_disk.traffic().on_disk), (0, plan.traffic().pinned));
        let read = |rate: f64| from_disk.predict(card.with_disk(rate)).ms("step 1");
        let least = plan.traffic().step as f64 / 3e9 * 1e3;
        assert!((least..1.05 * least).contains(&read(3e9)), "{} ms, at least {least}", read(3e9));
        assert_eq!(read(1e12), streamed.ms("step 1"));
        // In its timeline, a block's copy ends before the block begins to compute, and copies do not overlap.
        let uploads: Vec<&Interval> = streamed.intervals.iter().filter(|i| i.is_upload).collect();
        assert!(uploads.len() > 4 * 57 && uploads.windows(2).all(|pair| pair[0].end <= pair[1].start));
        assert!(uploads.iter().any(|i| i.name == "transformer.single.37"));
    }

    /// What is known of real and modelled runs, all resident.
    #[test]
    fn predictions_are_near_what_is_known() {
        let near =
            |got: f64, known: f64| assert!((got / known - 1.0).abs() < 0.15, "{got} ms, known {known}");
        let h200 = Card::named("h200").unwrap();
        near(schnell(512).predict(h200).ms("step") / 4.0, 65.9);
        near(schnell(1024).predict(h200).ms("step") / 4.0, 250.9);
        // As `scripts/sass --launches` predicts.
        near(schnell(512).predict(Card::named("rtx3060").unwrap()).ms("step") / 4.0, 745.0);
        assert!(
            Card::named("rtx1060").is_none() && h200.in_slot(4, 5).is_none() && h200.in_slot(2, 16).is_none()
        );
    }

    /// Every product and attention of a step, and of T5, against the tensor cores of an RTX 3060.
    #[test]
    fn launches_reach_their_share() {
        let card = Card::named("rtx3060").unwrap();
        let loops = Loop::on(card.name);
        for (side, stage, least) in [(512, "step", 0.92), (1024, "step", 0.92), (512, "t5", 0.80)] {
            let plan = schnell(side);
            let program = &plan.shapes[0].placed.program;
            let stage = program.stages.iter().rfind(|other| other.name == stage).unwrap();
            let mut seen = 0;
            for op in program.ops[stage.ops.clone()].iter().filter(|op| op.work.flops > 5_000_000_000) {
                let share = op.work.flops as f64 / compute_seconds(op, &loops, card) / card.flops_per_s;
                assert!((least..1.0).contains(&share), "{side}, {}: {:?} {share:.3}", stage.name, op.what);
                seen += 1;
            }
            assert!(seen >= 4 * 24, "{seen}");
        }
    }

    /// What GeForce is asked to be by fast precision, and that others are told apart.
    #[test]
    fn fast_precision_is_for_geforce() {
        for (side, most) in [(512, 2200.0), (1024, 8400.0)] {
            let (full, fast) = (schnell(side), schnell(side).with_precision(Precision::Fast).unwrap());
            for card in Card::ALL {
                let plan = |plan: &Plan| plan.clone().on(&card.capability()).unwrap().predict(card).total_ms;
                let gained = plan(&full) / plan(&fast);
                println!("{side} on {}: {:.0} ms, fast {:.0} ms", card.name, plan(&full), plan(&fast));
                // Hopper's own kernels are those of full precision.
                let range = match card.arch {
                    arch if Precision::Fast.gains_on(arch) => 1.4..2.0,
                    90 => 0.3..0.6,
                    _ => 0.6..1.0,
                };
                assert!(range.contains(&gained), "{side} on {}: {gained:.2}", card.name);
            }
            let rtx3060 = fast.predict(Card::named("rtx3060").unwrap());
            assert!(rtx3060.total_ms <= most, "{:.0} ms at {side}", rtx3060.total_ms);
        }
    }

    /// `scripts/sass` sees to it that the lines are those of the kernels; here, that they are read, and as what they are.
    #[test]
    fn kernels_with_products_have_lines_for_every_card() {
        for card in Card::ALL {
            let loops = Loop::on(card.name);
            let stem_of = |entry: &str| {
                let kernel = crate::kernels::all().into_iter().find(|kernel| kernel.name() == entry);
                kernel.unwrap_or_else(|| panic!("there is no kernel {entry}")).stem()
            };
            let stems: BTreeSet<&str> = loops.keys().map(|entry| stem_of(entry)).collect();
            let kept = Format::ALL.map(|format| kept_gemm::entries(format)[0].1.stem());
            let others = ["attention", "bf16_gemm", "conv2d", "nf4_gemm", "nf4_half_gemm"];
            let own = (card.arch == 90).then_some("nf4_gemm_sm90");
            assert_eq!(stems, kept.into_iter().chain(others).chain(own).collect(), "{}", card.name);
            for (entry, found) in &loops {
                let Loop { ctas, sms, flops, alone_s, together_s, around_s } = *found;
                assert!(
                    ctas >= 1.0 && sms > 1.0 && flops > 0.0 && around_s > 0.0,
                    "{entry} on {}",
                    card.name
                );
                // Together CTAs are never slower than one after the other, by more than the model's last digits.
                assert!(together_s > 0.0 && together_s < 1.05 * alone_s, "{entry} on {}", card.name);
            }
        }
    }

    /// A CTA more than fit at once costs another wave, of one CTA to an SM.
    #[test]
    fn a_launch_takes_whole_waves() {
        let loops = Loop::on("rtx3060");
        let (kernel, found) = crate::kernels::all()
            .iter()
            .find_map(|kernel| Some((*kernel, loops.get(kernel.name()).filter(|found| found.ctas == 2.0)?)))
            .unwrap();
        let seconds = |x: u32| {
            let turns = f64::from(x) * 10.0 * found.flops;
            found.seconds(&Config { kernel, grid: [x, 1, 1] }, turns)
        };
        let near = |a: f64, b: f64| assert!((a / b - 1.0).abs() < 1e-9, "{a} {b}");
        near(seconds(28), found.around_s + 10.0 * found.alone_s);
        near(seconds(56), found.around_s + 20.0 * found.together_s);
        near(seconds(29), seconds(56));
        near(seconds(57), seconds(56) + seconds(1));
        near(seconds(560), 10.0 * seconds(56));
    }
}
