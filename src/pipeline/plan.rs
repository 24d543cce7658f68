//! What generations will need, computed before anything loads: every region of the arena with its bytes, the pinned host
//! memory, the work. Pure: no device, no weights, only configs and shapes.

use std::fmt;
use std::sync::Arc;

use crate::config::PipelineConfig;
use crate::device::{Capability, Device};
use crate::models::flux::{self, How, Inputs, Outputs};
use crate::models::layers::{Precision, Quantize, Weights};
use crate::program::residency::{self, UNIT_IN_THE_MAKING, Unit};
use crate::program::{HomePlace, Kind, Placed, Program, Recorder, Stage, Streamed, Tier, show};
use crate::weights::Part;
use crate::weights::upload::Staging;
use crate::{Error, Result};

use super::predict::Card;
use super::preview;
use super::shape::Shape;

/// Generations of one shape: their program, placed.
#[derive(Debug)]
pub(crate) struct ShapePlan {
    pub shape: Shape,
    pub placed: Placed,
    pub inputs: Inputs,
    pub outputs: Outputs,
    /// Size of the pinned buffer that inputs and outputs lie in.
    pub host_bytes: usize,
    /// Where loading stages what it quantizes.
    pub staging: Staging,
    /// Byte of the arena from which on loading puts streamed units together.
    pub unit_in_the_making: usize,
}

/// What networks record of a shape, before it has places.
struct Recorded {
    program: Program,
    weights: Weights,
    inputs: Inputs,
    outputs: Outputs,
    host_bytes: usize,
    /// By number.
    staging: usize,
}

impl Recorded {
    fn new(config: &PipelineConfig, shape: &Shape, how: How, capability: &Capability) -> Result<Recorded> {
        let (mut recorder, mut weights) = (Recorder::fresh(capability), Weights::default());
        let (inputs, outputs) = flux::record(&mut recorder, &mut weights, config, shape, how)?;
        let staging_len = Staging::new(&weights.list, 0).num_bytes();
        let (staging, _) = recorder.resident::<u8>("load.staging", staging_len, Kind::Load)?;
        let (program, host_bytes) = recorder.finish()?;
        Ok(Recorded { program, weights, inputs, outputs, host_bytes, staging })
    }
}

impl ShapePlan {
    /// With `streamed` weights in pinned memory; the weights that were asked for come beside it.
    fn record(
        config: &PipelineConfig,
        shape: Shape,
        how: How,
        capability: &Capability,
        streamed: &Streamed,
        guard: usize,
    ) -> Result<(ShapePlan, Weights)> {
        let recorded = Recorded::new(config, &shape, how, capability)?;
        let Recorded { program, weights, inputs, outputs, host_bytes, staging } = recorded;
        let placed = Placed::new(program, streamed, guard)?;
        if placed.homes.last().map_or(0, |home| home.unit.image.end) != weights.image_bytes {
            return Err(Error::Internal("weights do not lie as they were asked for".to_string()));
        }
        let staging = Staging::new(&weights.list, placed.offsets[staging]);
        let buffers = placed.program.buffers.iter().zip(&placed.offsets);
        let making = buffers.rev().find(|(buffer, _)| buffer.name == UNIT_IN_THE_MAKING);
        let unit_in_the_making = making.map_or(0, |(_, &offset)| offset);
        Ok((ShapePlan { shape, placed, inputs, outputs, host_bytes, staging, unit_in_the_making }, weights))
    }

    /// The same program with the params that it has when the arena begins at `address` of `device`.
    pub(crate) fn record_at(
        &self,
        config: &PipelineConfig,
        how: How,
        device: &Device,
        address: u64,
    ) -> Result<crate::program::Program> {
        let addresses = self.placed.offsets.iter().map(|&offset| address + offset as u64).collect();
        let (mut recorder, mut weights) = (Recorder::placed(device, addresses), Weights::default());
        flux::record(&mut recorder, &mut weights, config, &self.shape, how)?;
        Ok(recorder.finish()?.0)
    }

    /// Bytes of the buffer through which stages are read back for dumps.
    pub(crate) fn dump_bytes(&self) -> usize {
        let stages = &self.placed.program.stages;
        let kept = stages.iter().flat_map(|stage| &stage.kept);
        kept.map(|kept| kept.touch.hull().len()).max().unwrap_or(0)
    }
}

/// What the arena would take of a plan's shapes with this or that streamed.
struct Sizes {
    programs: Vec<Program>,
    units: Vec<Unit>,
}

impl Sizes {
    fn new(plan: &Plan) -> Result<Sizes> {
        let record = |planned: &Arc<ShapePlan>| {
            let recorded = Recorded::new(&plan.config, &planned.shape, plan.how(), &plan.capability);
            recorded.map(|recorded| recorded.program)
        };
        let programs: Vec<Program> = plan.shapes.iter().map(record).collect::<Result<_>>()?;
        let units = residency::units(&programs[0]);
        Ok(Sizes { programs, units })
    }

    fn bytes(&self, streamed: &Streamed) -> Result<u64> {
        let mut sizes = self.programs.iter().map(|program| Placed::bytes_of(program.clone(), streamed));
        sizes.try_fold(0, |most, bytes| Ok(most.max(bytes? as u64)))
    }

    fn least(&self) -> Result<u64> {
        self.bytes(&Streamed::of(&Streamed::order(&self.units, Tier::ONE_BY_ONE)).tight())
    }
}

/// Multiply-adds times two of one generation, by stage, as the recorded operations say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(not(feature = "check"), non_exhaustive)]
pub struct Work {
    /// CLIP.
    pub clip: u64,
    /// T5.
    pub t5: u64,
    /// Modulation of all steps, and the text's embedding, which they share.
    pub modulation: u64,
    /// One step.
    pub step: u64,
    /// VAE decode.
    pub decode: u64,
}

impl Work {
    /// All of one generation.
    pub fn total(&self, steps: usize) -> u64 {
        let once = [self.clip, self.t5, self.modulation, self.decode];
        once.into_iter().fold(self.step.saturating_mul(steps as u64), u64::saturating_add)
    }
}

/// See the module's text.
#[derive(Clone, Debug)]
pub struct Plan {
    config: PipelineConfig,
    quantize: Quantize,
    precision: Precision,
    /// Whether pictures come as floats, too.
    floats: bool,
    /// Whether there is pinned memory for previews.
    pub(super) previews: bool,
    /// Of the machine that it is for.
    pub(super) capability: Capability,
    streamed: Streamed,
    /// Of device memory.
    pub(super) budget: Option<u64>,
    /// Of pinned memory.
    pub(super) host_budget: Option<u64>,
    /// Bytes between regions: a test's wish.
    guard: usize,
    pub(crate) weights: Arc<Weights>,
    /// The first is that of [`Plan::shape`].
    pub(crate) shapes: Vec<Arc<ShapePlan>>,
}

/// A named piece of the arena, for people: see [`Plan::regions`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(not(feature = "check"), non_exhaustive)]
pub struct Region {
    /// `transformer.double.3`, `vae.map`, ...
    pub name: String,
    /// Of its first byte in the arena.
    pub offset: usize,
    /// Of all buffers of the name; those that are not resident may share bytes.
    pub bytes: usize,
    /// Whether it holds weights, which stay.
    pub is_resident: bool,
}

impl Plan {
    /// Plans generations of one shape, for the first [`Card`] until [`Plan::on`] names another machine.
    ///
    /// # Errors
    /// [`Error::Input`] for a shape that cannot be, [`Error::Unsupported`] for a model that the kernels cannot run.
    pub fn new(config: &PipelineConfig, shape: Shape, quantize: Quantize) -> Result<Plan> {
        shape.check(config)?;
        let streamed = Streamed::default();
        let capability = Card::ALL[0].capability();
        let how = How { quantize, precision: Precision::Full, floats: false };
        let (first, weights) = ShapePlan::record(config, shape, how, &capability, &streamed, 0)?;
        Ok(Plan {
            config: config.clone(),
            quantize,
            precision: Precision::Full,
            floats: false,
            previews: false,
            capability,
            streamed,
            budget: None,
            host_budget: None,
            guard: 0,
            weights: Arc::new(weights),
            shapes: vec![Arc::new(first)],
        })
    }

    /// The same computed with another precision, [`Precision::Full`] until this is called.
    ///
    /// # Errors
    /// Those of [`Plan::within`], for a plan that has a budget.
    pub fn with_precision(mut self, precision: Precision) -> Result<Plan> {
        if self.precision == precision {
            return Ok(self);
        }
        self.precision = precision;
        self.with_other_buffers()
    }

    /// The same with room for pictures as floats on the host: see [`PipelineBuilder::f32_pixels`](super::PipelineBuilder::f32_pixels).
    ///
    /// # Errors
    /// Those of [`Plan::within`] and [`Plan::within_host`], for a plan that has a budget.
    pub fn with_f32_pixels(mut self) -> Result<Plan> {
        if self.floats {
            return Ok(self);
        }
        self.floats = true;
        self.with_other_buffers()
    }

    /// The same with room for previews: see [`PipelineBuilder::previews`](super::PipelineBuilder::previews).
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a VAE of which no colors are known; those of [`Plan::within_host`].
    pub fn with_previews(mut self) -> Result<Plan> {
        preview::colors_of(&self.config.vae)?;
        self.previews = true;
        self.fit_host()
    }

    /// The same, recorded anew, within its budgets.
    fn with_other_buffers(self) -> Result<Plan> {
        let plan = self.again()?;
        match plan.budget {
            Some(budget) => plan.within(budget),
            None => plan.fit_host(),
        }
    }

    /// The same within `budget_bytes` of device memory: as many weights as fit stay there, the others lie in pinned memory and are
    /// copied when they are needed. First to leave are layers of the text encoders, which run once a prompt, then the modulations,
    /// then blocks. Where blocks must leave, all of them do if that is faster, by [`Plan::predict`] on the [`Card`] that the plan is for,
    /// or the slowest where that is none of them: their copies hide behind a step's kernels, and what would have left before them may
    /// stay. Pictures are the same, bit for bit.
    ///
    /// ```
    /// # use schnell::{Model, Plan, Quantize, Shape};
    /// # fn main() -> schnell::Result<()> {
    /// let plan = Plan::new(Model::demo()?.config(), Shape::square(64), Quantize::Nf4)?;
    /// let smaller = plan.clone().within(plan.arena_bytes() - 1)?;
    /// assert!(smaller.arena_bytes() < plan.arena_bytes() && smaller.traffic().pinned > 0);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::Capacity`] with the least it takes, when that is more.
    pub fn within(mut self, budget_bytes: u64) -> Result<Plan> {
        self.budget = Some(budget_bytes);
        let sizes = Sizes::new(&self)?;
        let (units, bytes) = (&sizes.units, |streamed: &Streamed| sizes.bytes(streamed));
        let least = sizes.least()?;
        if least > budget_bytes {
            let Shape { width, height, .. } = self.shape();
            return Err(Error::Capacity {
                what: format!("a {width} x {height} image with {} weights, streamed", self.quantize),
                needed_bytes: least,
                available_bytes: budget_bytes,
                advice: "allow more, or ask for a smaller image; the plan lists every region".to_string(),
            });
        }
        if bytes(&Streamed::default())? <= budget_bytes {
            return self.with_streamed(Streamed::default())?.fit_host();
        }
        // The fewest that are enough: bytes fall as more are streamed.
        let fewest = |tiers: [Tier; 3]| -> Result<Streamed> {
            let order = Streamed::order(units, tiers);
            let is_tight = bytes(&Streamed::of(&order))? > budget_bytes;
            let first = |number: usize| match Streamed::of(&order[..number]) {
                streamed if is_tight => streamed.tight(),
                streamed => streamed,
            };
            let (mut too_few, mut enough) = (0, order.len());
            while enough - too_few > 1 {
                let middle = usize::midpoint(too_few, enough);
                let fits = bytes(&first(middle))? <= budget_bytes;
                *(if fits { &mut enough } else { &mut too_few }) = middle;
            }
            Ok(first(enough))
        };
        let plan = self.clone().with_streamed(fewest(Tier::ONE_BY_ONE)?)?;
        if plan.traffic().step == 0 {
            return plan.fit_host();
        }
        let other = self.with_streamed(fewest(Tier::BLOCKS_FIRST)?)?;
        let ms = |plan: &Plan| plan.predict(Card::like(&plan.capability)).total_ms;
        if ms(&other) < ms(&plan) { other.fit_host() } else { plan.fit_host() }
    }

    /// The least budget that there is a plan for: everything that can be streamed is.
    ///
    /// # Errors
    /// [`Error::Internal`].
    pub fn least_bytes(&self) -> Result<u64> {
        Sizes::new(self)?.least()
    }

    fn with_streamed(mut self, streamed: Streamed) -> Result<Plan> {
        if self.streamed == streamed {
            return Ok(self);
        }
        self.streamed = streamed;
        self.again()
    }

    /// The same with `bytes`, a multiple of 256, between regions, of which none shares memory with another:
    /// [`Pipeline::check_guards`](super::Pipeline::check_guards) then sees what was written beside its place.
    ///
    /// # Errors
    /// [`Error::Internal`].
    #[cfg(feature = "check")]
    pub fn with_guards(mut self, bytes: usize) -> Result<Plan> {
        self.guard = bytes;
        self.again()
    }

    pub(super) fn again(mut self) -> Result<Plan> {
        let shapes = self.shapes.iter().map(|planned| self.plan_shape(planned.shape).map(Arc::new));
        self.shapes = shapes.collect::<Result<_>>()?;
        Ok(self)
    }

    /// The same with room for another shape, too: both use the same weights and the same memory, one at a time.
    ///
    /// # Errors
    /// Those of [`Plan::new`].
    pub fn with_shape(mut self, shape: Shape) -> Result<Plan> {
        let also = self.plan_shape(shape)?;
        self.shapes.push(Arc::new(also));
        self.fit_host()
    }

    /// A shape that uses this plan's weights.
    pub(crate) fn plan_shape(&self, shape: Shape) -> Result<ShapePlan> {
        shape.check(&self.config)?;
        let (planned, weights) =
            ShapePlan::record(&self.config, shape, self.how(), &self.capability, &self.streamed, self.guard)?;
        if weights.image_bytes != self.weights.image_bytes {
            return Err(Error::Internal("weights differ from shape to shape".to_string()));
        }
        Ok(planned)
    }

    fn first(&self) -> &ShapePlan {
        &self.shapes[0]
    }

    /// The model.
    pub fn config(&self) -> &PipelineConfig {
        &self.config
    }

    /// The shape it was made for.
    pub fn shape(&self) -> Shape {
        self.first().shape
    }

    /// How Linear layers are kept.
    pub fn quantize(&self) -> Quantize {
        self.quantize
    }

    /// How it is computed.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// What a program is recorded by, beside config and shape.
    pub(crate) fn how(&self) -> How {
        How { quantize: self.quantize, precision: self.precision, floats: self.floats }
    }

    /// Size of the one device allocation.
    pub fn arena_bytes(&self) -> u64 {
        self.shapes.iter().map(|shape| shape.placed.bytes as u64).max().unwrap_or(0)
    }

    /// What the arena consists of for [`Plan::shape`].
    pub fn regions(&self) -> Vec<Region> {
        show::regions(&self.first().placed)
            .into_iter()
            .map(|region| Region {
                is_resident: region.kind.is_resident(),
                name: region.name,
                offset: region.offset,
                bytes: region.bytes,
            })
            .collect()
    }

    /// Bytes of NF4 codes and absmax of the transformer and of T5.
    pub fn nf4_bytes(&self) -> (u64, u64) {
        let of = |part: Part| self.weights.nf4_bytes[part as usize];
        (of(Part::Transformer), of(Part::T5))
    }

    /// Bytes of the transformer's and T5's Linears that stay in fp8 or in types of GGUF: codes and scales, without those in NF4.
    pub fn kept_bytes(&self) -> (u64, u64) {
        let of = |part: Part| self.weights.kept_bytes[part as usize];
        (of(Part::Transformer), of(Part::T5))
    }

    /// Bytes of room for LoRAs, beside the matrices that they change.
    pub fn lora_bytes(&self) -> u64 {
        self.weights.low_rank_bytes
    }

    /// Pinned host memory: while loading, and while generating.
    pub fn host_bytes(&self) -> (u64, u64) {
        let loading = self.first().staging.host_bytes() as u64;
        let previews: u64 = if self.previews { preview::bytes(&self.shapes) } else { 0 };
        (loading, self.buffer_bytes() as u64 + previews)
    }

    /// Of the pinned buffer that inputs and outputs lie in.
    pub(crate) fn buffer_bytes(&self) -> usize {
        self.shapes.iter().map(|shape| shape.host_bytes).max().unwrap_or(0)
    }

    /// Multiply-adds of one generation of [`Plan::shape`].
    pub fn work(&self) -> Work {
        let program = &self.first().placed.program;
        let flops = |stage: &Stage| {
            program.ops[stage.ops.clone()].iter().map(|op| op.work.flops).fold(0, u64::saturating_add)
        };
        let of = |name: &str| {
            program.stages.iter().filter(|stage| stage.name == name).map(flops).fold(0, u64::saturating_add)
        };
        let steps: Vec<u64> = program.stages.iter().filter(|stage| stage.name == "step").map(flops).collect();
        let (first, step) = steps.first().zip(steps.last()).map_or((0, 0), |(first, last)| (*first, *last));
        // The first step computes them, beside what each does.
        let modulation = of("prepare") + of("modulation") + first.saturating_sub(step);
        Work { clip: of("clip"), t5: of("t5"), modulation, step, decode: of("vae") }
    }

    /// Every operation of a generation of [`Plan::shape`], a line each.
    pub fn launches(&self) -> String {
        show::launches(&self.first().placed)
    }

    /// The same within `budget_bytes` of pinned host memory: as many streamed weights as fit lie there, the others stay in the
    /// [cache's](super::PipelineBuilder::cache) file and are read whenever they are needed, through a ring of pinned buffers. First
    /// those of the text encoders, then the modulations, then blocks. Pictures are the same, bit for bit.
    ///
    /// # Errors
    /// [`Error::Capacity`] with the least it takes, when that is more.
    pub fn within_host(mut self, budget_bytes: u64) -> Result<Plan> {
        self.host_budget = Some(budget_bytes);
        self.fit_host()
    }

    /// As many of the streamed weights on disk as the budget of pinned memory asks for.
    pub(super) fn fit_host(self) -> Result<Plan> {
        let Some(budget_bytes) = self.host_budget else { return Ok(self) };
        let (loading, generating) = self.host_bytes();
        // The ring takes the place of the buffers for loading, which are more.
        let needed = loading + generating;
        if needed > budget_bytes {
            return Err(Error::Capacity {
                what: "pinned host memory, with all streamed weights on disk,".to_string(),
                needed_bytes: needed,
                available_bytes: budget_bytes,
                advice: "allow more of it".to_string(),
            });
        }
        let homes = self.first().placed.homes.iter();
        let units = homes.filter(|home| !matches!(home.place, HomePlace::Arena(_)));
        let units: Vec<Unit> = units.map(|home| home.unit.clone()).collect();
        let mut weights: u64 = units.iter().map(|unit| unit.image.len() as u64).sum();
        let mut on_disk = Vec::new();
        for name in Streamed::order(&units, Tier::ONE_BY_ONE) {
            if weights + needed <= budget_bytes {
                break;
            }
            let of_name = units.iter().filter(|unit| unit.name == name);
            weights -= of_name.map(|unit| unit.image.len() as u64).sum::<u64>();
            on_disk.push(name);
        }
        let streamed = self.streamed.clone().with_on_disk(on_disk);
        self.with_streamed(streamed)
    }
}

/// Bytes of so many GiB: `gib(6.5)`. Nothing for what is no amount.
pub fn gib(gib: f64) -> u64 {
    (gib * 1_073_741_824.0) as u64
}

/// `1.5 GiB`, `20.3 MiB`, `512 B`.
pub fn human_bytes(bytes: u64) -> String {
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..1_048_576 => format!("{:.1} KiB", bytes as f64 / 1024.0),
        1_048_576..1_073_741_824 => format!("{:.1} MiB", bytes as f64 / 1_048_576.0),
        _ => format!("{:.2} GiB", bytes as f64 / 1_073_741_824.0),
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Shape { width, height, steps, t5_length, .. } = self.shape();
        writeln!(f, "{width} x {height}, {steps} steps, {t5_length} T5 tokens, weights {}", self.quantize)?;
        if self.precision == Precision::Fast && self.nf4_bytes().0 == 0 {
            writeln!(f, "precision fast: without effect, no Linear of the transformer is in NF4")?;
        } else if self.precision == Precision::Fast {
            let arch = self.capability.arch;
            let here = if self.precision.gains_on(arch) { "faster" } else { "no faster" };
            writeln!(
                f,
                "precision fast: other pictures than full draws; {here} on sm_{arch}, GeForce alone gains"
            )?;
        }
        writeln!(f)?;
        writeln!(f, "{:<22} {:>14} {:>14}   alive", "region", "offset", "bytes")?;
        let regions = show::regions(&self.first().placed);
        for region in &regions {
            writeln!(f, "{region}")?;
        }
        let sum = |resident: bool| -> u64 {
            let kind = |kind: Kind| kind.is_resident() == resident;
            regions.iter().filter(|r| kind(r.kind)).map(|r| r.bytes as u64).sum()
        };
        let (flux, t5) = self.nf4_bytes();
        let (loading, running) = self.host_bytes();
        writeln!(f)?;
        let mut line =
            |what: &str, bytes: u64| writeln!(f, "{what:<37} {bytes:>14}   {}", human_bytes(bytes));
        line("always resident", sum(true))?;
        line("  of it NF4 of the transformer", flux)?;
        line("  of it NF4 of T5", t5)?;
        let (flux, t5) = self.kept_bytes();
        if flux + t5 > 0 {
            line("  of it as files hold the transformer", flux)?;
            line("  of it as files hold T5", t5)?;
        }
        if self.lora_bytes() > 0 {
            line("  of it room for LoRAs", self.lora_bytes())?;
        }
        line("buffers, if none shared bytes", sum(false))?;
        line("arena: the one device allocation", self.arena_bytes())?;
        line("pinned host memory while loading", loading)?;
        line("pinned host memory while generating", running)?;
        let super::Traffic { pinned, on_disk, encoders, modulation, step } = self.traffic();
        if pinned + on_disk > 0 {
            line("pinned host memory of streamed weights", pinned)?;
            line("streamed weights that stay on disk", on_disk)?;
            line("  copied while a prompt is encoded", encoders)?;
            line("  copied in the first step alone", modulation)?;
            line("  copied in each step", step)?;
        }
        writeln!(f)?;
        let tera = |flops: u64| flops as f64 * 1e-12;
        let work = self.work();
        writeln!(
            f,
            "work in TFLOP: clip {:.3}, t5 {:.3}, modulation {:.3}, each step {:.3}, decode {:.3}; in all {:.3}",
            tera(work.clip),
            tera(work.t5),
            tera(work.modulation),
            tera(work.step),
            tera(work.decode),
            tera(work.total(steps))
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schnell(side: usize) -> Plan {
        let shape = Shape { width: side, height: side, ..Shape::default() };
        Plan::new(&PipelineConfig::schnell(), shape, Quantize::Nf4).unwrap()
    }

    #[test]
    fn shapes_that_cannot_be_are_refused_with_the_nearest_that_can() {
        let config = PipelineConfig::schnell();
        let base = Shape::default();
        let refused = |shape: Shape| Plan::new(&config, shape, Quantize::Nf4).unwrap_err().to_string();
        assert!(refused(Shape { width: 500, ..base }).contains("496 and 512"));
        assert!(refused(Shape { height: 0, ..base }).contains("height 0"));
        assert!(refused(Shape { width: 8208, ..base }).contains("8192"));
        assert!(refused(Shape { height: usize::MAX, ..base }).contains("8192 and 8192"));
        assert!(refused(Shape { steps: 0, ..base }).contains("0 steps"));
        assert!(refused(Shape { t5_length: 513, ..base }).contains("513"));
    }

    #[test]
    fn a_budget_below_the_least_is_refused_with_both_numbers() {
        let plan = schnell(512);
        let needed_bytes = plan.least_bytes().unwrap();
        assert!(matches!(plan.clone().within(1), Err(Error::Capacity { available_bytes: 1, .. })));
        assert_eq!(plan.clone().within(needed_bytes).unwrap().arena_bytes(), needed_bytes);
        let error = plan.within(needed_bytes - 1).unwrap_err();
        assert!(matches!(error, Error::Capacity { needed_bytes: again, .. } if again == needed_bytes));
    }

    /// They lie where the decoder's maps have been.
    #[test]
    fn floats_on_the_host_take_nothing_of_the_device() {
        for side in [512, 1024] {
            let plan = schnell(side);
            assert_eq!(plan.clone().with_f32_pixels().unwrap().arena_bytes(), plan.arena_bytes(), "{side}");
        }
    }

    #[test]
    fn the_printed_plan_names_every_region() {
        let plan = schnell(1024);
        let text = plan.to_string();
        for region in plan.regions() {
            assert!(
                text.contains(&region.name) && text.contains(&region.bytes.to_string()),
                "{}",
                region.name
            );
        }
        assert!(text.contains(&plan.arena_bytes().to_string()));
    }
}
