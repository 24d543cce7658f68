//! How long each stage of a generation took, by the device's own clock.

use std::sync::Arc;
use std::time::Instant;

use serde::Serialize;

use crate::Result;
use crate::device::{Device, Event, StreamId};
use crate::pipeline::Shape;
use crate::pipeline::ranges::Range;
use crate::pipeline::trace::Tracer;

/// One stage.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct StageTime {
    /// `tokenize`, `inputs`, `clip`, `t5`, `prepare`, `modulation`, `step 0`, ..., `vae`, `copy`, `receipt`; for a prompt seen before `recall` in place of
    /// `clip` and `t5`; `bind` before `inputs` for a shape that was not ready, `pixels` behind `copy` for a buffer on the device.
    /// Modulation vectors are computed in `step 0`, or sent in `modulation` where they are known.
    pub stage: String,
    /// Milliseconds: of the host for `tokenize`, `bind`, `inputs` (noise, tables, embeddings, which are read from their files) and `receipt`
    /// (hashes, and pixels to where the caller wants them), between two events of the device for all others.
    pub ms: f64,
}

/// All stages of one generation.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Timings {
    /// The GPU's name, or `emulator`.
    pub device: String,
    /// Driver version, or `none`.
    pub driver: String,
    /// In order.
    pub stages: Vec<StageTime>,
    /// Sum of the stages.
    pub total_ms: f64,
}

impl Timings {
    /// Adds a phase of the host behind all others.
    pub(crate) fn push(&mut self, stage: &str, ms: f64) {
        self.stages.push(StageTime { stage: stage.to_string(), ms });
        self.total_ms += ms;
    }

    /// Tells whoever listens through `tracing`: of each stage at level `debug`, of the picture at level `info`.
    pub(crate) fn tell(&self, shape: &Shape, seed: u64) {
        for StageTime { stage, ms } in &self.stages {
            tracing::debug!(stage, ms, "stage");
        }
        let Shape { width, height, steps, .. } = shape;
        tracing::info!(width, height, steps, seed, total_ms = self.total_ms, device = self.device, "picture");
    }

    /// In a few words: `text 12 ms, 4 steps 900 ms, vae 300 ms`.
    pub fn summary(&self) -> String {
        let sum = |stages: &[&str]| -> f64 {
            let matches = |s: &&StageTime| stages.iter().any(|name| s.stage.starts_with(name));
            // Not sum(), whose sum of nothing is -0.
            self.stages.iter().filter(matches).fold(0.0, |sum, s| sum + s.ms)
        };
        let steps = self.stages.iter().filter(|s| s.stage.starts_with("step")).count();
        format!(
            "text {:.0} ms, {steps} step{} {:.0} ms, vae {:.0} ms",
            sum(&["tokenize", "bind", "inputs", "clip", "t5", "recall"]),
            if steps == 1 { "" } else { "s" },
            sum(&["modulation", "prepare", "step"]),
            sum(&["vae", "copy", "pixels", "receipt"])
        )
    }
}

/// What the host does before and after a run, phase by phase.
#[derive(Debug)]
pub(super) struct HostClock {
    /// What goes on, since when.
    phase: Option<(&'static str, Instant, Range)>,
    phases: Vec<(&'static str, f64)>,
    /// Of a picture that wants a trace.
    pub tracer: Option<Tracer>,
}

impl HostClock {
    /// In the phase `first`, which began at `started`.
    pub fn new(started: Instant, trace: bool, first: &'static str) -> HostClock {
        let phase = Some((first, started, Range::begin(format_args!("{first}"))));
        HostClock { phase, phases: Vec::new(), tracer: trace.then(|| Tracer::new(started)) }
    }

    /// Begins a phase after one has ended.
    pub fn begin(&mut self, name: &'static str) {
        self.phase = Some((name, Instant::now(), Range::begin(format_args!("{name}"))));
    }

    /// Ends the phase; its milliseconds.
    pub fn end(&mut self) -> f64 {
        let Some((name, begun, _range)) = self.phase.take() else { return 0.0 };
        let now = Instant::now();
        let ms = now.saturating_duration_since(begun).as_secs_f64() * 1e3;
        self.phases.push((name, ms));
        if let Some(tracer) = &mut self.tracer {
            tracer.host_between(name, begun, now);
        }
        ms
    }

    /// Those that have ended.
    pub fn phases(&self) -> &[(&'static str, f64)] {
        &self.phases
    }
}

/// Events at the boundaries of stages, created before the run.
#[derive(Debug)]
pub(super) struct Clock {
    events: Vec<Event>,
    names: Vec<Arc<str>>,
}

impl Clock {
    /// A clock for at most `stages` stages.
    pub fn new(device: &Device, stages: usize) -> Result<Clock> {
        let events = (0..=stages).map(|_| device.create_event()).collect::<Result<_>>()?;
        Ok(Clock { events, names: Vec::with_capacity(stages) })
    }

    pub fn start(&mut self, device: &Device) -> Result<()> {
        self.names.clear();
        device.record(StreamId::Compute, &self.events[0])
    }

    /// Ends the stage that began at the last call.
    pub fn stage(&mut self, device: &Device, name: Arc<str>) -> Result<()> {
        self.names.push(name);
        device.record(StreamId::Compute, &self.events[self.names.len()])
    }

    /// Blocks until the stage before the last ended one is over: the host runs at most one stage ahead.
    pub fn keep_pace(&self, device: &Device) -> Result<()> {
        device.synchronize_event(&self.events[self.names.len().saturating_sub(1)])
    }

    /// As soon as the stream is empty.
    pub fn trace(&self, tracer: &mut Tracer) -> Result<()> {
        let end = tracer.now();
        tracer.read_device(&self.events[..=self.names.len()], &self.names, end)
    }

    /// Once the stream is empty; the host's stages come first.
    pub fn read(&self, device: &Device, host: &[(&str, f64)]) -> Result<Timings> {
        let of_host = host.iter().map(|&(stage, ms)| StageTime { stage: stage.to_string(), ms });
        let mut stages: Vec<StageTime> = of_host.collect();
        for (name, pair) in self.names.iter().zip(self.events.windows(2)) {
            stages
                .push(StageTime { stage: name.to_string(), ms: pair[1].elapsed_ms_since(&pair[0])?.into() });
        }
        let capability = device.capability();
        Ok(Timings {
            device: capability.name.clone(),
            driver: capability.driver.clone(),
            total_ms: stages.iter().map(|s| s.ms).sum(),
            stages,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_counts_every_stage_once() {
        let timings = |names: &[&str]| Timings {
            device: String::new(),
            driver: String::new(),
            stages: (0..)
                .zip(names)
                .map(|(i, s)| StageTime { stage: s.to_string(), ms: f64::from(1 << i) })
                .collect(),
            total_ms: 0.0,
        };
        let all = ["tokenize", "clip", "t5", "modulation", "step 0", "step 1", "vae", "copy", "receipt"];
        assert_eq!(timings(&all).summary(), "text 7 ms, 2 steps 56 ms, vae 448 ms");
        assert_eq!(timings(&["tokenize", "inputs", "clip"]).summary(), "text 7 ms, 0 steps 0 ms, vae 0 ms");
        assert_eq!(timings(&["tokenize", "step 0"]).summary(), "text 1 ms, 1 step 2 ms, vae 0 ms");
    }
}
