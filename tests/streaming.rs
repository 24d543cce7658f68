//! Budgets: whatever stays on the device and whatever is streamed, the picture is the same, and no budget is exceeded.

mod common;
use common::*;
use schnell::Error;
use schnell::device::Device;
use schnell::pipeline::{Model, Pipeline, Plan, Quantize, Request, Shape};

/// Two blocks of each kind are the least that a ring is for; the bundled model has five in all, and three layers of T5.
const SHAPE: Shape = Shape { width: 64, height: 64, steps: 2, t5_length: 16, true_cfg: false };

fn request(shape: Shape) -> Request {
    let request = Request::new("a red circle").seed(3);
    if shape.true_cfg { request.negative_prompt("a blue square", 2.0) } else { request }
}

fn draw(model: &Model, plan: &Plan, device: &Device) -> Vec<u8> {
    let mut pipeline = Pipeline::builder(model).with_plan(plan.clone()).device(device).load().unwrap();
    let rgb = pipeline.generate(&request(plan.shape())).unwrap().rgb;
    assert_eq!(device.num_allocations(), 1);
    rgb
}

/// Plans that differ, from that of the least budget to the one where everything stays.
fn plans(model: &Model, shape: Shape, quantize: Quantize) -> Vec<Plan> {
    let all = Plan::new(model.config(), shape, quantize).unwrap();
    let needed_bytes = all.least_bytes().unwrap();
    let mut plans: Vec<Plan> = Vec::new();
    let most = all.arena_bytes();
    for i in 0..=20 {
        let budget = needed_bytes + (most - needed_bytes) * i / 20;
        let plan = all.clone().within(budget).unwrap();
        assert!(plan.arena_bytes() <= budget);
        if plans.last().is_none_or(|last| last.arena_bytes() != plan.arena_bytes()) {
            plans.push(plan);
        }
    }
    assert_eq!(plans[0].arena_bytes(), needed_bytes);
    assert_eq!(plans.last().unwrap().arena_bytes(), most);
    let below = all.within(needed_bytes - 1).unwrap_err();
    assert!(matches!(below, Error::Capacity { needed_bytes: again, .. } if again == needed_bytes), "{below}");
    plans
}

#[test]
fn every_budget_gives_the_same_picture() {
    let (_dir, model) = demo();
    for (shape, quantize) in
        [(SHAPE, Quantize::Nf4), (SHAPE, Quantize::None), (Shape { true_cfg: true, ..SHAPE }, Quantize::Nf4)]
    {
        let plans = plans(&model, shape, quantize);
        assert!(plans.len() >= 12, "{} plans", plans.len());
        // All of the first, some of the others.
        let every = if (shape, quantize) == (SHAPE, Quantize::Nf4) { 1 } else { 3 };
        let want = draw(&model, plans.last().unwrap(), &emulator());
        for (seed, plan) in plans.iter().enumerate().step_by(every) {
            let got = draw(&model, plan, &random_emulator(seed as u64, 2));
            assert!(got == want, "{quantize}, {} bytes: another picture", plan.arena_bytes());
            let traffic = plan.traffic();
            println!("{quantize} {:>10} {traffic:?}", plan.arena_bytes());
            assert_eq!(traffic.pinned == 0, plan.arena_bytes() == plans.last().unwrap().arena_bytes());
        }
        // From the least on all is copied that can be, and what is copied each step goes last.
        assert!(plans[0].traffic().step > 0 && plans[plans.len() - 2].traffic().step == 0);
    }
}

/// Params of Hopper's products hold maps of where x lies, which is elsewhere in every budget.
#[test]
fn a_hopper_draws_the_same_in_every_budget() {
    let (_dir, model) = demo();
    let plans = plans(&model, SHAPE, Quantize::Nf4);
    let want = draw(&model, plans.last().unwrap(), &emulator_of(90));
    for plan in plans.iter().step_by(4) {
        let device = emulator_of(90);
        assert!(draw(&model, plan, &device) == want, "{} bytes: another picture", plan.arena_bytes());
        assert!(device.launched().contains(&"nf4_gemm_heads_sm90"));
    }
}

/// Nothing is written beside its place, whatever is streamed: bytes between all regions are what they were.
#[test]
fn guards_between_regions_stay_untouched() {
    let (_dir, model) = demo();
    let plans = plans(&model, SHAPE, Quantize::Nf4);
    let want = draw(&model, plans.last().unwrap(), &emulator());
    assert!(plans.len() >= 12);
    for plan in plans {
        let guarded = plan.clone().with_guards(1024).unwrap();
        let builder = Pipeline::builder(&model).with_plan(guarded).device(&emulator());
        let mut pipeline = builder.load().unwrap();
        let rgb = pipeline.generate(&request(SHAPE)).unwrap().rgb;
        let guards = pipeline.check_guards().unwrap();
        assert!(rgb == want);
        assert!(guards > 60, "{guards}");
    }
}

#[test]
fn no_timing_of_copies_changes_a_bit() {
    let (_dir, model) = demo();
    let plans = plans(&model, SHAPE, Quantize::Nf4);
    let want = draw(&model, plans.last().unwrap(), &emulator());
    let streams_some = plans.iter().find(|plan| plan.traffic().step < plans[0].traffic().step);
    let at_once = std::thread::available_parallelism().map_or(1, |n| n.get()) as u64;
    for (plan, seeds) in [(&plans[0], 50), (streams_some.unwrap(), 16)] {
        std::thread::scope(|scope| {
            for first in 0..at_once {
                let (model, want) = (&model, &want);
                scope.spawn(move || {
                    for seed in (first..seeds).step_by(at_once as usize) {
                        let device = random_emulator(seed, 1 + seed as usize % 3);
                        assert!(draw(model, plan, &device) == *want, "schedule {seed}");
                    }
                });
            }
        });
    }
}

/// What planted defects are held against.
#[test]
fn a_few_timings_of_copies_change_nothing() {
    let (_dir, model) = demo();
    let all = Plan::new(model.config(), SHAPE, Quantize::Nf4).unwrap();
    let want = draw(&model, &all, &emulator());
    let least = all.least_bytes().unwrap();
    let least = all.within(least).unwrap();
    for seed in 0..6 {
        assert!(draw(&model, &least, &random_emulator(seed, 2)) == want, "schedule {seed}");
    }
}

/// Other shapes use the weights as they are, resident or not.
#[test]
fn several_shapes_share_a_budget() {
    let (_dir, model) = demo();
    let other = Shape { width: 96, steps: 1, ..SHAPE };
    let all = Plan::new(model.config(), SHAPE, Quantize::Nf4).unwrap().with_shape(other).unwrap();
    let least = all.least_bytes().unwrap();
    let plan = all.within(least).unwrap();
    assert!(plan.traffic().step > 0);
    let device = random_emulator(7, 2);
    let mut pipeline = Pipeline::builder(&model).with_plan(plan).device(&device).load().unwrap();
    let asks_for = |shape: Shape| request(shape).size(shape.width, shape.height).steps(shape.steps);
    for shape in [SHAPE, other, SHAPE, Shape { width: 32, ..SHAPE }] {
        let got = pipeline.generate(&asks_for(shape)).unwrap().rgb;
        let resident = Plan::new(model.config(), shape, Quantize::Nf4).unwrap();
        let mut fresh = Pipeline::builder(&model).with_plan(resident).device(&emulator()).load().unwrap();
        assert!(got == fresh.generate(&asks_for(shape)).unwrap().rgb, "{shape:?}");
    }
    assert_eq!(device.num_allocations(), 1);
}

/// A run that is stopped leaves copies on their way; the next one must not meet them.
#[test]
fn a_streamed_generation_can_be_stopped() {
    use schnell::pipeline::Progress;
    use std::ops::ControlFlow::{Break, Continue};
    let (_dir, model) = demo();
    let plans = plans(&model, SHAPE, Quantize::Nf4);
    let want = draw(&model, plans.last().unwrap(), &emulator());
    for seed in 0..4 {
        let device = random_emulator(seed, 2);
        let mut pipeline =
            Pipeline::builder(&model).with_plan(plans[0].clone()).device(&device).load().unwrap();
        let stopped = pipeline.generate_with(&request(SHAPE), &mut |p| match p {
            Progress::Step { index: 1, .. } => Break(()),
            _ => Continue(()),
        });
        assert!(matches!(stopped, Err(Error::Stopped)));
        assert!(pipeline.generate(&request(SHAPE)).unwrap().rgb == want);
        let other = pipeline.generate(&request(SHAPE).seed(4)).unwrap().rgb;
        assert!(
            other != want && pipeline.generate(&request(SHAPE)).unwrap().rgb == want,
            "one after another"
        );
    }
}
