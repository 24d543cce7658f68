//! How long pictures take on this machine, learnt from those that it has drawn: what a deadline is held against.
//!
//! Nothing here is predicted from a card's published numbers (`predict.rs` does that, and nothing is decided by it), and nothing is
//! taken from another card, driver, plan or release: a file of times has a key that tells them apart.

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::files::{self, Kind};
use crate::program::Run;
use crate::{Error, Result};

use super::timing::Timings;
use super::{OnProgress, Pipeline, Request, Shape, Traffic, receipt};

/// So many of each part are remembered, the last ones.
const WINDOW: usize = 16;
/// Sizes of pictures that are remembered, and machines with a plan in a file.
const MOST: usize = 64;

/// Milliseconds that a picture's parts took, or are expected to take.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Parts {
    /// Until the first step begins: the host's work, and text encoders.
    pub before: f64,
    /// The first step, and the modulation vectors of all.
    pub first: f64,
    /// Each step behind it.
    pub step: f64,
    /// What is behind the last step: decoder and copies.
    pub after: f64,
}

impl Parts {
    /// Of a picture in so many steps.
    pub fn total(&self, steps: usize) -> f64 {
        self.before + self.first + self.step * steps.saturating_sub(1) as f64 + self.after
    }

    /// Of a picture that took `wall_ms`, and of which stages were timed; with the other steps' times, if there were any.
    fn of(timings: &Timings, wall_ms: f64) -> Option<(Parts, Vec<f64>)> {
        let steps = timings.stages.iter().filter(|stage| stage.stage.starts_with("step "));
        let steps: Vec<f64> = steps.map(|stage| stage.ms).collect();
        let (&first, others) = steps.split_first()?;
        let behind = timings.stages.iter().rev().take_while(|stage| !stage.stage.starts_with("step "));
        let after: f64 = behind.map(|stage| stage.ms).sum();
        let before = (wall_ms - after - steps.iter().sum::<f64>()).max(0.0);
        Some((Parts { before, first, step: first, after }, others.to_vec()))
    }
}

/// The last of many times.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Window(VecDeque<f64>);

impl Window {
    fn push(&mut self, ms: f64) {
        if self.0.len() >= WINDOW {
            self.0.pop_front();
        }
        self.0.push_back(ms);
    }

    /// What three of four did not exceed.
    fn usual(&self) -> Option<f64> {
        let mut sorted: Vec<f64> = self.0.iter().copied().collect();
        sorted.sort_by(f64::total_cmp);
        sorted.get((sorted.len() * 3).div_ceil(4).saturating_sub(1)).copied()
    }

    fn is_sound(&self) -> bool {
        self.0.len() <= WINDOW && self.0.iter().all(|ms| ms.is_finite() && *ms >= 0.0)
    }
}

/// Of pictures of a size, in runs of one kind.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Entry {
    before: Window,
    first: Window,
    after: Window,
}

/// Of pictures of a size. Steps are alike, however many there are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Size {
    width: usize,
    height: usize,
    t5_length: usize,
    true_cfg: bool,
    /// By the kind of run, in the order of [`Run::ALL`].
    runs: [Entry; 3],
    step: Window,
}

impl Size {
    fn new(shape: &Shape) -> Size {
        let Shape { width, height, t5_length, true_cfg, steps: _ } = *shape;
        Size { width, height, t5_length, true_cfg, runs: Default::default(), step: Window::default() }
    }

    fn is_of(&self, shape: &Shape) -> bool {
        (self.width, self.height, self.t5_length, self.true_cfg)
            == (shape.width, shape.height, shape.t5_length, shape.true_cfg)
    }

    fn expected(&self, run: Run) -> Option<Parts> {
        let [fresh, encoded, modulated] = &self.runs;
        // A kind of run that has not been seen is put together of those that have what it has.
        let (before, first, after) = match run {
            Run::Fresh => ([fresh, fresh], [fresh, fresh], [fresh, encoded]),
            Run::Encoded => ([encoded, modulated], [encoded, fresh], [encoded, fresh]),
            Run::Modulated => ([modulated, encoded], [modulated, encoded], [modulated, fresh]),
        };
        let usual = |of: [&Entry; 2], part: fn(&Entry) -> &Window| {
            of.into_iter().chain([fresh]).find_map(|entry| part(entry).usual())
        };
        let first = usual(first, |entry| &entry.first)?;
        Some(Parts {
            before: usual(before, |entry| &entry.before)?,
            first,
            step: self.step.usual().unwrap_or(first),
            after: usual(after, |entry| &entry.after)?,
        })
    }

    fn is_sound(&self) -> bool {
        let windows = self.runs.iter().flat_map(|entry| [&entry.before, &entry.first, &entry.after]);
        windows.chain([&self.step]).all(Window::is_sound)
    }
}

/// What pictures of each size took; the last used size comes last.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Times(VecDeque<Size>);

impl Times {
    /// Takes in a picture of this shape.
    pub fn learn(&mut self, shape: &Shape, run: Run, timings: &Timings, wall_ms: f64) {
        let Some((parts, others)) = Parts::of(timings, wall_ms) else { return };
        let known = self.0.iter().position(|size| size.is_of(shape));
        let mut size = known.and_then(|at| self.0.remove(at)).unwrap_or_else(|| Size::new(shape));
        let which = Run::ALL.iter().position(|kind| *kind == run).unwrap_or(0);
        let entry = &mut size.runs[which];
        entry.before.push(parts.before);
        entry.first.push(parts.first);
        entry.after.push(parts.after);
        others.into_iter().for_each(|ms| size.step.push(ms));
        if self.0.len() >= MOST {
            self.0.pop_front();
        }
        self.0.push_back(size);
    }

    /// What a picture of this shape is expected to take, if any of its size has been drawn.
    pub fn expected(&self, shape: &Shape, run: Run) -> Option<Parts> {
        self.0.iter().find(|size| size.is_of(shape))?.expected(run)
    }

    /// Those that the file has under this key. None where there is no file, or none of this key.
    ///
    /// # Errors
    /// [`Error::Input`] for a file that is no such file, [`Error::Io`] for one that cannot be read.
    pub fn read(path: &Path, key: &str) -> Result<Option<Times>> {
        Ok(read(path)?.remove(key))
    }

    /// Puts them into the file under this key; other machines' and plans' stay, as many as there is room for.
    ///
    /// # Errors
    /// Those of [`Times::read`], and of [`files::write`].
    pub fn write(&self, path: &Path, key: &str) -> Result<()> {
        let mut all = read(path)?;
        while all.len() >= MOST && !all.contains_key(key) {
            all.pop_first();
        }
        all.insert(key.to_string(), self.clone());
        let text = serde_json::to_vec_pretty(&all).map_err(|e| Error::Internal(e.to_string()))?;
        files::write(path, &text)
    }
}

impl Pipeline {
    /// See [`PipelineBuilder::calibrate`](super::PipelineBuilder::calibrate).
    pub(super) fn calibrate(
        &mut self,
        file: &Path,
        graphs: bool,
        progress: &mut OnProgress<'_>,
    ) -> Result<()> {
        let key = self.times_key(graphs);
        if let Some(known) = Times::read(file, &key)? {
            self.times = known;
        }
        let shapes: Vec<Shape> = self.plan.shapes.iter().map(|planned| planned.shape).collect();
        let unknown: Vec<Shape> =
            shapes.into_iter().filter(|shape| self.times.expected(shape, Run::Fresh).is_none()).collect();
        for shape in &unknown {
            let before = self.times.clone();
            let request = |prompt: &str| {
                let mut request = Request::new(prompt).size(shape.width, shape.height).steps(shape.steps);
                request = request.t5_length(shape.t5_length);
                if shape.true_cfg { request.negative_prompt("what it is not", 2.0) } else { request }
            };
            // The first finds caches cold and clocks low, and does not count.
            self.generate_with(&request("a picture to begin with"), progress)?;
            self.times = before;
            self.generate_with(&request("a picture to measure"), progress)?;
            self.generate_with(&request("a picture to measure"), progress)?;
        }
        // As if they had not been.
        self.cache.clear();
        if !unknown.is_empty() {
            self.times.write(file, &key)?;
        }
        Ok(())
    }

    /// All that times depend on, but for what else is running.
    fn times_key(&self, graphs: bool) -> String {
        let (capability, plan) = (self.device.capability(), &self.plan);
        let Traffic { on_disk, .. } = plan.traffic();
        format!(
            "{} at {}, {}, {} threads, driver {}; schnell {}, kernels {}; model {} {}, {}, {}; {} bytes, {} pinned, {on_disk} on disk; \
             {}",
            capability.name,
            capability.pci_bus_id.as_deref().unwrap_or("no slot"),
            receipt::machine(capability),
            capability.threads,
            capability.driver,
            env!("CARGO_PKG_VERSION"),
            env!("SCHNELL_KERNELS"),
            self.digest,
            self.loras,
            plan.quantize(),
            plan.precision(),
            plan.arena_bytes(),
            plan.pinned_weights(),
            if graphs { "graphs" } else { "launches" },
        )
    }
}

fn read(path: &Path) -> Result<BTreeMap<String, Times>> {
    if !path.exists() {
        return Ok(BTreeMap::new());
    }
    let wrong = || {
        let text = "is no file of times that this release has written; name another, or remove it";
        Error::Input(format!("{} {text}", path.display()))
    };
    let all: BTreeMap<String, Times> =
        serde_json::from_slice(&files::read(path, Kind::Times)?).map_err(|_| wrong())?;
    let is_sound = |times: &Times| times.0.len() <= MOST && times.0.iter().all(Size::is_sound);
    if all.len() > MOST || !all.values().all(is_sound) {
        return Err(wrong());
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::timing::StageTime;

    const SHAPE: Shape = Shape { width: 64, height: 64, steps: 3, t5_length: 16, true_cfg: false };

    pub(crate) fn timings(stages: &[(&str, f64)]) -> Timings {
        Timings {
            device: String::new(),
            driver: String::new(),
            stages: stages
                .iter()
                .map(|(stage, ms)| StageTime { stage: stage.to_string(), ms: *ms })
                .collect(),
            total_ms: stages.iter().map(|(_, ms)| ms).sum(),
        }
    }

    #[test]
    fn parts_are_what_was_measured_and_sum_to_the_wall_clock() {
        let mut times = Times::default();
        assert_eq!(times.expected(&SHAPE, Run::Fresh), None);
        let fresh = timings(&[
            ("tokenize", 1.0),
            ("clip", 4.0),
            ("t5", 20.0),
            ("prepare", 1.0),
            ("step 0", 12.0),
            ("step 1", 10.0),
            ("step 2", 10.0),
            ("vae", 30.0),
            ("copy", 1.0),
        ]);
        times.learn(&SHAPE, Run::Fresh, &fresh, 95.0);
        let parts = times.expected(&SHAPE, Run::Fresh).unwrap();
        assert_eq!(parts, Parts { before: 32.0, first: 12.0, step: 10.0, after: 31.0 });
        assert_eq!((parts.total(3), parts.total(1)), (95.0, 75.0));
        // Another number of steps is the same size, another side is not.
        assert_eq!(times.expected(&Shape { steps: 8, ..SHAPE }, Run::Fresh), Some(parts));
        assert_eq!(times.expected(&Shape { width: 128, ..SHAPE }, Run::Fresh), None);
        // What has not been seen takes what is most like it.
        assert_eq!(times.expected(&SHAPE, Run::Modulated), Some(parts));
        let again = timings(&[("recall", 1.0), ("modulation", 1.0), ("step 0", 10.0), ("vae", 30.0)]);
        times.learn(&SHAPE, Run::Modulated, &again, 43.0);
        let encoded = times.expected(&SHAPE, Run::Encoded).unwrap();
        assert_eq!((encoded.before, encoded.first), (3.0, 12.0));
        assert_eq!(times.expected(&SHAPE, Run::Fresh), Some(parts));
    }

    #[test]
    fn the_last_times_count_and_rare_outliers_do_not() {
        let mut times = Times::default();
        let mut draw = |ms: f64| {
            times.learn(&SHAPE, Run::Fresh, &timings(&[("step 0", ms), ("vae", 1.0)]), ms + 2.0);
            times.expected(&SHAPE, Run::Fresh).unwrap().first
        };
        assert_eq!(draw(100.0), 100.0);
        (0..7).for_each(|_| assert!(draw(10.0) <= 100.0));
        assert_eq!(draw(10.0), 10.0);
        assert_eq!(draw(1000.0), 10.0);
        (0..WINDOW).for_each(|_| _ = draw(20.0));
        assert_eq!(draw(20.0), 20.0);
    }

    #[test]
    fn files_keep_machines_apart_and_are_not_believed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("times.json");
        let mut times = Times::default();
        times.learn(&SHAPE, Run::Fresh, &timings(&[("step 0", 2.0), ("vae", 1.0)]), 4.0);
        assert_eq!(Times::read(&path, "a").unwrap(), None);
        times.write(&path, "a").unwrap();
        Times::default().write(&path, "b").unwrap();
        assert_eq!(Times::read(&path, "a").unwrap(), Some(times.clone()));
        assert_eq!(Times::read(&path, "b").unwrap(), Some(Times::default()));
        assert_eq!(Times::read(&path, "c").unwrap(), None);
        for other in 0..2 * MOST {
            times.write(&path, &format!("{other:03}")).unwrap();
        }
        assert_eq!(read(&path).unwrap().len(), MOST);
        let text = std::fs::read_to_string(&path).unwrap();
        for bad in ["", "{", "[]", "null", "{\"a\": 1}", &text.replacen("2.0", "-2.0", 1)] {
            std::fs::write(&path, bad).unwrap();
            let error = Times::read(&path, "a").unwrap_err();
            assert!(matches!(error, Error::Input(_)), "{error}");
            assert!(times.write(&path, "a").is_err(), "it was overwritten");
        }
        // Sizes are few, too.
        for side in 1..=2 * MOST {
            let shape = Shape { width: 16 * side, ..SHAPE };
            times.learn(&shape, Run::Fresh, &timings(&[("step 0", 2.0)]), 4.0);
        }
        assert_eq!(times.0.len(), MOST);
    }
}
