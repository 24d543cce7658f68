//! Months of a node in a minute: thousands of pictures in one process, with prompts, shapes and LoRAs changing. Nothing grows, and
//! what was drawn before is drawn again. A binary of its own, since it looks at the process.
//!
//! Kernels have stand-ins, which pass on every byte; `SCHNELL_SOAK=2000` draws as many with the kernels themselves, in some minutes.
//! Without them no prompt is remembered: what stand-ins make of a buffer depends on more of it than what a prompt's encodings fill.

mod common;
#[path = "common/loras.rs"]
mod loras;
#[path = "common/smallest.rs"]
mod smallest;

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use common::*;
use schnell::device::injection::Faults;
use schnell::device::{Device, EmulatorOptions};
use schnell::pipeline::{Model, Pipeline, Plan, Quantize, Request, Shape};
use schnell::weights::Part;
use schnell::{Lora, Result};
use smallest::{SHAPE, smallest_in};

/// Pictures, and after how many of them the process is measured first.
const PICTURES: u64 = 2000;
const FIRST: u64 = 50;
/// What the allocator and the system may do with pages that are free, in a fifth of the time.
const SLACK_BYTES: u64 = 1 << 18;
/// What planning a shape takes for a moment, and a buffer for LoRAs of 4 MiB, which glibc keeps the memory of after a while.
const PLANNING_BYTES: u64 = 8 << 20;

/// One test at a time: what one takes would be found by the other.
static ALONE: Mutex<()> = Mutex::new(());

/// Of the process: resident bytes, open files, threads.
fn process() -> (u64, usize, usize) {
    let count = |folder: &str| std::fs::read_dir(folder).unwrap().count();
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = statm.split_whitespace().nth(1).unwrap().parse().unwrap();
    (pages * 4096, count("/proc/self/fd"), count("/proc/self/task"))
}

/// What is asked for, by a number below that: by the first [`FIRST`] each prompt, shape and set of LoRAs; more shapes than stay bound.
const KINDS: u64 = 60;

fn asked(kind: u64) -> (Request, usize) {
    let kind = kind as usize;
    let prompt = ["a red circle", "a blue square", "a green hill under a grey sky", "two of them", "x"];
    let (width, height, steps) = (16 + 16 * (kind % 2), 16 + 16 * (kind / 2 % 2), 1 + kind / 4 % 3);
    let request = Request::new(prompt[kind % 5]).seed(kind as u64 % 7);
    (request.size(width, height).steps(steps), kind % 3)
}

fn loras_of(model: &Model, dir: &std::path::Path) -> Vec<Vec<(Lora, f32)>> {
    let lora = |seed| {
        let changes = loras::changes(model.config(), (4, 0.3), seed, |part, name| {
            part == Part::Transformer && name.contains("attn")
        });
        Lora::open(loras::write(dir, &format!("{seed}.safetensors"), &changes), model.config()).unwrap()
    };
    vec![vec![], vec![(lora(1), 1.0)], vec![(lora(1), 0.5), (lora(2), -0.5)]]
}

/// One pipeline, what it has drawn, and with which LoRAs it draws.
struct Node {
    pipeline: Pipeline,
    loras: Vec<Vec<(Lora, f32)>>,
    in_use: usize,
    drawn: HashMap<u64, Vec<u8>>,
}

impl Node {
    /// Of weights that stay, or that come from pinned memory or from disk.
    fn new(
        model: &Model,
        dir: &std::path::Path,
        device: &Device,
        (is_streamed, prompts): (bool, usize),
    ) -> Node {
        let shape = Shape { width: 32, height: 32, steps: 3, ..SHAPE };
        let plan = Plan::new(model.config(), shape, Quantize::Nf4).unwrap();
        let least = plan.least_bytes().unwrap();
        let plan = if is_streamed { plan.within(least).unwrap() } else { plan };
        let builder = Pipeline::builder(model).with_plan(plan).device(device).prompt_cache(prompts);
        let pipeline = builder.load().unwrap();
        Node { pipeline, loras: loras_of(model, dir), in_use: 0, drawn: HashMap::new() }
    }

    /// Whether it is what it was before.
    fn draw(&mut self, kind: u64) -> Result<()> {
        let (request, loras) = asked(kind);
        if self.in_use != loras {
            self.pipeline.set_loras(&self.loras[loras])?;
            self.in_use = loras;
        }
        let rgb = self.pipeline.generate(&request)?.rgb;
        let before = self.drawn.entry(kind).or_insert_with(|| rgb.clone());
        assert!(*before == rgb, "request {kind} is another picture");
        Ok(())
    }
}

fn model_in(dir: &std::path::Path) -> Model {
    smallest_in(dir, 2).with_room_for_loras(16).unwrap()
}

/// Two thousand requests, in an order of their own, on pipelines whose weights stay and are streamed.
#[test]
fn two_thousand_pictures_leave_nothing_behind() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let kernels = env_number("SCHNELL_SOAK");
    let (pictures, stand_in) = (kernels.unwrap_or(PICTURES), kernels.is_none());
    for is_streamed in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let model = model_in(dir.path());
        let faults = Faults::default();
        let device =
            Device::failing(EmulatorOptions { threads: 1, stand_in, ..EmulatorOptions::default() }, &faults);
        let mut node = Node::new(&model, dir.path(), &device, (is_streamed, if stand_in { 0 } else { 3 }));
        let held = || (device.held_bytes().now, device.held_host_bytes().now, device.num_allocations());
        let (mut rng, mut early, mut resident, mut handles) = (Rng(7), None, Vec::new(), Vec::new());
        for i in 0..pictures {
            // First each once.
            node.draw(if i < KINDS { i } else { rng.bits() % KINDS }).unwrap();
            let now = process();
            if i + 1 == FIRST {
                early = Some((now.1, now.2, held()));
            }
            if i + 1 >= FIRST {
                resident.push(now.0);
                handles.push(faults.num_handles());
            }
        }
        let now = process();
        assert_eq!(early, Some((now.1, now.2, held())), "files, threads, memory");
        // What is bound is now these shapes and now those, whose events are more or less.
        let (first, last) = handles.split_at(handles.len() / 2);
        assert!(
            last.iter().max() <= first.iter().max(),
            "{:?}, then {:?}",
            first.iter().max(),
            last.iter().max()
        );
        // Parts, one after the other: what leaks grows in each of them, what an allocator keeps comes once.
        let part = resident.len() / 5;
        let means: Vec<u64> =
            resident.chunks_exact(part).map(|part| part.iter().sum::<u64>() / part.len() as u64).collect();
        let steadily = means.windows(2).map(|pair| pair[1].saturating_sub(pair[0])).min().unwrap_or(0);
        let most = resident.iter().max().unwrap_or(&0) - resident[0];
        println!(
            "streamed {is_streamed}, {pictures} pictures: {} bytes resident after {FIRST}, {most} more at most, {means:?} on average; {} \
             files, {} threads",
            resident[0], now.1, now.2
        );
        assert!(steadily <= SLACK_BYTES, "it grows: {means:?}");
        assert!(most <= PLANNING_BYTES, "{most} bytes more than after {FIRST} pictures");
        assert_eq!(node.drawn.len() as u64, KINDS);
    }
}

/// Each draws what it would draw alone.
#[test]
fn two_pipelines_on_two_threads_do_not_touch_each_other() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let pictures = if env_number("SCHNELL_SOAK").is_some() { 200 } else { 8 };
    let dir = tempfile::tempdir().unwrap();
    let model = model_in(dir.path());
    for one_device in [true, false] {
        let device = || random_emulator(3, 1);
        let first = device();
        let second = if one_device { first.clone() } else { device() };
        let mut nodes = [(&first, false), (&second, true)]
            .map(|(device, streamed)| Node::new(&model, dir.path(), device, (streamed, 3)));
        let alone = [false, true].map(|streamed| Node::new(&model, dir.path(), &device(), (streamed, 3)));
        std::thread::scope(|scope| {
            for (seed, (node, mut alone)) in nodes.iter_mut().zip(alone).enumerate() {
                scope.spawn(move || {
                    let mut rng = Rng(seed as u64);
                    let kinds: Vec<u64> = (0..pictures).map(|_| rng.bits() % KINDS).collect();
                    for kind in &kinds {
                        node.draw(*kind).unwrap();
                    }
                    // What it draws alone is compared with that.
                    alone.drawn = std::mem::take(&mut node.drawn);
                    let mut again: Vec<u64> = alone.drawn.keys().copied().collect();
                    again.sort_unstable();
                    for kind in again {
                        alone.draw(kind).unwrap();
                    }
                });
            }
        });
    }
}
