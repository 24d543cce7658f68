//! The whole pipeline at the size of FLUX.1-schnell, with generated weights: time by stage, memory against the plan.

use std::fmt::Write as _;
use std::time::Instant;

use schnell::config::PipelineConfig;
use schnell::device::Device;
use schnell::pipeline::{Model, Pipeline, Plan, Quantize, Request, Shape};
use schnell::{Error, Result};

use super::Part;
use super::finding::{Finding, Row, Size};

/// Pictures per size; the first also warms the machine up.
const PICTURES: usize = 4;

pub(super) fn run(device: &Device, side: usize, budget: Option<u64>) -> Result<()> {
    Finding::Size(measure(device, PipelineConfig::schnell(), side, budget)?).say();
    Ok(())
}

fn measure(device: &Device, config: PipelineConfig, side: usize, budget: Option<u64>) -> Result<Size> {
    // The demo's tokenizers have fewer ids than the full vocabulary: every id has a row.
    let dir = std::env::temp_dir().join(format!("schnell-gpu-check-full-{}-{side}", std::process::id()));
    schnell::demo::write(&dir)?;
    let model = Model::generated(config, &dir);
    std::fs::remove_dir_all(&dir).map_err(|source| Error::Io { action: "remove", path: dir, source })?;
    let model = model?;
    let shape = Shape { width: side, height: side, ..Shape::default() };
    let plan = Plan::new(model.config(), shape, Quantize::Nf4)?.on(device.capability())?;
    let plan = match budget {
        Some(budget) => plan.within(budget)?,
        None => plan,
    };
    let (plan_bytes, streamed_bytes) = (plan.arena_bytes(), plan.traffic().pinned);
    let (free, allocations) = (device.free_bytes()?, device.num_allocations());
    let started = Instant::now();
    let mut pipeline = Pipeline::builder(&model).with_plan(plan).device(device).prompt_cache(0).load()?;
    let load_seconds = started.elapsed().as_secs_f64();
    let request = Request::new("a red circle on a blue background").seed(1);
    let mut pictures = Vec::new();
    for _ in 0..PICTURES {
        pictures.push(pipeline.generate(&request)?);
    }
    Ok(Size {
        side,
        streamed_bytes,
        plan_bytes,
        taken_bytes: free.saturating_sub(device.free_bytes()?),
        allocations: device.num_allocations() - allocations,
        load_seconds,
        same_bytes: pictures.iter().all(|picture| picture.rgb == pictures[0].rgb),
        pictures: pictures
            .into_iter()
            .map(|picture| picture.timings.stages.into_iter().map(|stage| (stage.stage, stage.ms)).collect())
            .collect(),
    })
}

impl Size {
    /// What must not be, a row each.
    pub fn faults(&self) -> Vec<Row> {
        let mut faults = Vec::new();
        if !self.same_bytes {
            faults.push("the same seed gave other bytes".to_string());
        }
        if self.allocations != 1 {
            faults.push(format!("{} device allocations instead of one", self.allocations));
        }
        let name = format!("{0}x{0}", self.side);
        faults.into_iter().map(|fault| Row::fault(Part::Full, &name, fault)).collect()
    }

    /// The middle picture's time of each stage, in the order of a run.
    fn medians(&self) -> Vec<(&str, f64)> {
        let warm = &self.pictures[1..];
        let stages = warm[0].iter().enumerate();
        stages
            .map(|(i, (stage, _))| {
                let mut ms: Vec<f64> = warm.iter().map(|picture| picture[i].1).collect();
                ms.sort_by(f64::total_cmp);
                (&stage[..], ms[ms.len() / 2])
            })
            .collect()
    }

    pub fn text(&self) -> String {
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let mut text = format!(
            "\n{0} x {0}, full size, generated weights: plan {1:.1} MiB, taken {2:.1} MiB, {4:.1} MiB streamed, loaded in \
             {3:.1} s\n",
            self.side,
            mib(self.plan_bytes),
            mib(self.taken_bytes),
            self.load_seconds,
            mib(self.streamed_bytes)
        );
        let medians = self.medians();
        for (stage, ms) in &medians {
            let _ = writeln!(text, "  {stage:12} {ms:>10.3} ms");
        }
        let total: f64 = medians.iter().map(|(_, ms)| ms).sum();
        let _ = writeln!(text, "  {:12} {total:>10.3} ms (medians of {} pictures)", "all", PICTURES - 1);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use schnell::device::EmulatorOptions;

    /// The same on the emulator, at the demo's size.
    #[test]
    fn a_generated_model_draws_the_same_picture_each_time() {
        let dir = tempfile::tempdir().unwrap();
        schnell::demo::write(dir.path()).unwrap();
        let config = PipelineConfig::open(dir.path()).unwrap();
        let emulator = Device::emulator(EmulatorOptions::default());
        let resident = measure(&emulator, config.clone(), 64, None).unwrap();
        let size = measure(&emulator, config, 64, Some(resident.plan_bytes - 1)).unwrap();
        for size in [&resident, &size] {
            assert!(size.faults().is_empty(), "{:?}", size.faults());
            assert_eq!(size.pictures.len(), PICTURES);
        }
        assert!(resident.streamed_bytes == 0 && size.streamed_bytes > 0);
        let text = size.text();
        for stage in ["clip", "t5", "step 3", "vae", "all"] {
            assert!(text.contains(&format!("  {stage} ")), "{text}");
        }
    }
}
