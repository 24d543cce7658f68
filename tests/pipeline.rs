//! Promises of the whole pipeline: one allocation, the same bytes, refusals before work.

mod common;
#[path = "common/golden.rs"]
mod golden;
use common::*;
use golden::Golden;
use schnell::Error;
use schnell::device::Device;
use schnell::pipeline::{BindOptions, Model, Noise, Pipeline, Plan, Progress, Quantize, Request, Shape};
use std::ops::ControlFlow::Continue;

/// 64 image tokens and 256 text tokens: at least 4 CTAs for every hot kernel.
const SHAPE: Shape = Shape { width: 128, height: 128, steps: 2, t5_length: 256, true_cfg: false };

fn demo() -> (tempfile::TempDir, Model) {
    let dir = tempfile::tempdir().unwrap();
    schnell::demo::write(dir.path()).unwrap();
    let model = Model::open(dir.path()).unwrap();
    (dir, model)
}

fn bind(model: &Model, shape: Shape, device: &Device) -> Pipeline {
    let plan = Plan::new(model.config(), shape, Quantize::Nf4).unwrap();
    Pipeline::bind(model, plan, device, BindOptions::default(), &mut |_| Continue(())).unwrap()
}

fn draw(pipeline: &mut Pipeline, prompt: &str, seed: u64) -> Vec<u8> {
    pipeline.generate(&Request::new(prompt, seed), &mut |_| Continue(())).unwrap().rgb
}

#[test]
fn one_device_allocation_of_the_planned_size_and_none_while_generating() {
    let (_dir, model) = demo();
    let device = emulator();
    let mut pipeline = bind(&model, SHAPE, &device);
    assert_eq!(device.num_allocations(), 1);
    for seed in 0..3 {
        draw(&mut pipeline, "a red circle", seed);
    }
    assert_eq!(device.num_allocations(), 1);
}

#[test]
fn the_same_request_gives_the_same_bytes_whatever_went_before() {
    let (_dir, model) = demo();
    let mut pipeline = bind(&model, SHAPE, &emulator());
    let first = draw(&mut pipeline, "a red circle", 1);
    let other = draw(&mut pipeline, "a blue square on a hill", 2);
    assert_ne!(first, other);
    assert_ne!(first, draw(&mut pipeline, "a red circle", 2), "the seed matters");
    assert_ne!(first, draw(&mut pipeline, "a blue square", 1), "the prompt matters");
    assert_eq!(first, draw(&mut pipeline, "a red circle", 1));
}

#[test]
fn schedules_and_thread_counts_do_not_change_a_bit() {
    let (_dir, model) = demo();
    let shape = Shape { steps: 1, ..SHAPE };
    let want = draw(&mut bind(&model, shape, &emulator()), "a red circle", 1);
    for seed in 0..21 {
        let device = random_emulator(seed, [1, 2, 4][seed as usize % 3]);
        assert_eq!(draw(&mut bind(&model, shape, &device), "a red circle", 1), want, "schedule {seed}");
    }
}

#[test]
fn given_noise_replaces_the_seed() {
    let (_dir, model) = demo();
    let mut pipeline = bind(&model, Shape { steps: 1, ..SHAPE }, &emulator());
    let noise = |value: f32| Request {
        noise: Noise::Given((0..64 * 64).map(|i| value * (i % 7) as f32).collect()),
        ..Request::new("a red circle", 1)
    };
    let a = pipeline.generate(&noise(0.3), &mut |_| Continue(())).unwrap().rgb;
    let b = pipeline.generate(&Request { seed: 9, ..noise(0.3) }, &mut |_| Continue(())).unwrap().rgb;
    let c = pipeline.generate(&noise(0.1), &mut |_| Continue(())).unwrap().rgb;
    assert_eq!(a, b);
    assert_ne!(a, c);
    let short = Request { noise: Noise::Given(vec![0.0; 5]), ..Request::new("x", 0) };
    assert!(matches!(pipeline.generate(&short, &mut |_| Continue(())), Err(Error::Input(_))));
    let nan = Request { noise: Noise::Given(vec![f32::NAN; 64 * 64]), ..Request::new("x", 0) };
    assert!(pipeline.generate(&nan, &mut |_| Continue(())).unwrap_err().to_string().contains("not finite"));
    // A failed picture leaves the pipeline usable.
    assert_eq!(pipeline.generate(&noise(0.3), &mut |_| Continue(())).unwrap().rgb, a);
}

#[test]
fn progress_and_timings_name_every_stage_in_order() {
    let (_dir, model) = demo();
    let mut pipeline = bind(&model, SHAPE, &emulator());
    let mut seen = Vec::new();
    let output = pipeline.generate(&Request::new("a red circle", 1), &mut |p| {
        seen.push(p);
        Continue(())
    });
    let output = output.unwrap();
    let step = |index| Progress::Step { index, total: 2 };
    assert_eq!(seen, [Progress::TextEncoding, step(0), step(1), Progress::Decoding, Progress::Done]);
    let stages: Vec<&str> = output.timings.stages.iter().map(|s| s.stage.as_str()).collect();
    assert_eq!(stages, ["tokenize", "inputs", "clip", "t5", "modulation", "step 0", "step 1", "vae", "copy"]);
    assert!(output.timings.stages.iter().all(|s| s.ms >= 0.0));
    assert!(output.timings.stages[5].ms > 0.0);
}

#[test]
fn refuses_before_it_works() {
    let (_dir, model) = demo();
    let device = emulator();
    let mut pipeline = bind(&model, Shape { steps: 1, ..SHAPE }, &device);
    let empty = pipeline.generate(&Request::new("  ", 0), &mut |_| Continue(())).unwrap_err();
    assert!(matches!(&empty, Error::Input(text) if text.contains("empty")), "{empty}");
    let dump = Request { dump: true, ..Request::new("x", 0) };
    assert!(matches!(pipeline.generate(&dump, &mut |_| Continue(())), Err(Error::Input(_))));
    let golden = Golden::open("b");
    let other = Model::open(golden.dir()).unwrap();
    let plan = Plan::new(model.config(), SHAPE, Quantize::Nf4).unwrap();
    let error =
        Pipeline::bind(&other, plan, &device, BindOptions::default(), &mut |_| Continue(())).unwrap_err();
    assert!(error.to_string().contains("another model"), "{error}");
}

#[test]
fn truncated_prompts_are_counted() {
    let (_dir, model) = demo();
    let mut pipeline = bind(&model, Shape { steps: 1, t5_length: 16, ..SHAPE }, &emulator());
    let output =
        pipeline.generate(&Request::new("red circle ".repeat(60), 0), &mut |_| Continue(())).unwrap();
    assert!(output.clip_tokens_dropped > 0 && output.t5_tokens_dropped > 0);
    let output = pipeline.generate(&Request::new("red", 0), &mut |_| Continue(())).unwrap();
    assert_eq!((output.clip_tokens_dropped, output.t5_tokens_dropped), (0, 0));
}
