//! Weights that stay on disk, since neither the device nor pinned memory has room for them.

mod common;
use std::ops::ControlFlow::{Break, Continue};
use std::panic::{AssertUnwindSafe, catch_unwind};

use common::*;
use schnell::Error;
use schnell::device::Device;
use schnell::pipeline::{Model, Pipeline, Plan, Progress, Quantize, Request, Shape};

const SHAPE: Shape = Shape { width: 64, height: 64, steps: 2, t5_length: 16, true_cfg: false };

fn request() -> Request {
    Request::new("a red circle").seed(3)
}

fn least(all: &Plan) -> Plan {
    all.clone().within(all.least_bytes().unwrap()).unwrap()
}

/// With the least of both memories.
fn on_disk(model: &Model) -> Plan {
    let plan = least(&Plan::new(model.config(), SHAPE, Quantize::Nf4).unwrap());
    let (loading, generating) = plan.host_bytes();
    plan.within_host(loading + generating).unwrap()
}

fn draw(model: &Model, plan: &Plan, device: &Device) -> Vec<u8> {
    let mut pipeline = Pipeline::builder(model).with_plan(plan.clone()).device(device).load().unwrap();
    pipeline.generate(&request()).unwrap().rgb
}

/// What pinned memory has no room for is read from the cache's file, and the picture is the same: whatever is on disk, in any order
/// of the streams, for prompts new and old, after a stop, and for another shape.
#[test]
fn weights_that_stay_on_disk_draw_the_same() {
    let (dir, model) = demo();
    let cache = dir.path().join("cache");
    let all = Plan::new(model.config(), SHAPE, Quantize::Nf4).unwrap();
    let want = draw(&model, &all, &emulator());
    let least = &least(&all);
    let (loading, generating) = least.host_bytes();
    let pinned = least.traffic().pinned;
    let error = least.clone().within_host(loading + generating - 1).unwrap_err();
    assert!(
        matches!(error, Error::Capacity { needed_bytes, .. } if needed_bytes == loading + generating),
        "{error}"
    );
    let mut on_disk = Vec::new();
    for i in 0..=3 {
        let plan = least.clone().within_host(loading + generating + pinned * i / 3).unwrap();
        let traffic = plan.traffic();
        assert_eq!(traffic.on_disk + traffic.pinned, pinned);
        assert!(traffic.pinned <= pinned * i / 3);
        assert_eq!((traffic.encoders, traffic.step), (least.traffic().encoders, least.traffic().step));
        assert_eq!(plan.arena_bytes(), least.arena_bytes());
        on_disk.push(traffic.on_disk);
        // Without a cache there is nothing to read from, which is said before anything is loaded.
        let without = Pipeline::builder(&model).with_plan(plan.clone()).device(&emulator()).load();
        assert_eq!(traffic.on_disk > 0, matches!(without, Err(Error::Input(_))));
        for seed in 0..4 {
            let device = random_emulator(seed, 2);
            let builder = Pipeline::builder(&model).with_plan(plan.clone()).cache(&cache).device(&device);
            let mut pipeline = builder.load().unwrap();
            for again in 0..if seed == 0 { 2 } else { 1 } {
                let rgb = pipeline.generate(&request()).unwrap().rgb;
                assert!(rgb == want, "{} bytes on disk, seed {seed}, {again}", traffic.on_disk);
            }
            if seed > 1 {
                continue;
            }
            let mut left = 2 * seed;
            let stopped = pipeline.generate_with(&request(), &mut |_| match left {
                0 => Break(()),
                _ => {
                    left -= 1;
                    Continue(())
                }
            });
            assert!(matches!(stopped, Err(Error::Stopped)), "seed {seed}");
            assert!(pipeline.generate(&request()).unwrap().rgb == want);
            assert_eq!(device.num_allocations(), 1);
        }
    }
    assert!(on_disk[0] == pinned && on_disk[3] == 0 && on_disk.windows(2).all(|pair| pair[1] <= pair[0]));
}

/// What is damaged while it is in use gives an error, not a picture, and is made again by the next load.
#[test]
fn what_is_damaged_meanwhile_is_no_weight() {
    let (dir, model) = demo();
    let cache = dir.path().join("cache");
    let plan = on_disk(&model);
    let request = || request().steps(4);
    let load = || {
        let builder = Pipeline::builder(&model).with_plan(plan.clone()).cache(&cache).prompt_cache(0);
        builder.device(&emulator()).load().unwrap()
    };
    let want = load().generate(&request()).unwrap().rgb;
    let path = only_file(&cache);
    let whole = std::fs::read(&path).unwrap();
    let header = u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize + 8;
    let mut rng = Rng(5);
    let mut refused = 0;
    for _ in 0..6 {
        let mut pipeline = load();
        let mut damaged = whole.clone();
        let at = header + rng.bits() as usize % (whole.len() - header);
        damaged[at] ^= 1 << (rng.bits() % 8);
        // In place, as no writer of the cache does it.
        std::fs::write(&path, &damaged).unwrap();
        let mut steps = 0;
        let result = pipeline.generate_with(&request(), &mut |progress| {
            steps += usize::from(matches!(progress, Progress::Step { .. }));
            Continue(())
        });
        match result {
            Err(error @ Error::Weights { .. }) => {
                assert!(error.to_string().contains("are damaged; the next load makes it again"), "{error}");
                // Enqueued is a step ahead of what has been read, and a last block is read at a step's end.
                assert!(!path.exists() && steps <= 2, "{steps} steps of nothing: {error}");
                refused += 1;
            }
            // A byte of what stays on the device.
            Ok(image) => {
                assert!(image.rgb == want);
                std::fs::write(&path, &whole).unwrap();
            }
            Err(other) => panic!("{other}"),
        }
        assert!(load().generate(&request()).unwrap().rgb == want);
        assert!(std::fs::read(&path).unwrap() == whole);
    }
    assert!(refused > 2, "{refused}");
    // Cut off, it cannot be read; whole again, it can.
    let mut pipeline = load();
    std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    let error = pipeline.generate(&request()).unwrap_err();
    assert!(matches!(error, Error::Io { .. }), "{error}");
    std::fs::write(&path, &whole).unwrap();
    assert!(pipeline.generate(&request()).unwrap().rgb == want);
}

/// However a run ends, the next one finds nothing of it: here by a panic of who is told, with weights on disk and in pinned memory.
#[test]
fn a_callback_that_panics_harms_no_later_run() {
    let (dir, model) = demo();
    let cache = dir.path().join("cache");
    let pinned = least(&Plan::new(model.config(), SHAPE, Quantize::Nf4).unwrap());
    for plan in [on_disk(&model), pinned] {
        for device in [emulator(), random_emulator(1, 2)] {
            let builder = Pipeline::builder(&model).with_plan(plan.clone()).cache(&cache).prompt_cache(0);
            let mut pipeline = builder.device(&device).load().unwrap();
            let want = pipeline.generate(&request()).unwrap().rgb;
            for at in 0..2 {
                let panicked = catch_unwind(AssertUnwindSafe(|| {
                    pipeline.generate_with(&request(), &mut |progress| match progress {
                        Progress::Step { index, .. } if index == at => panic!("of the callback"),
                        _ => Continue(()),
                    })
                }));
                assert!(panicked.is_err());
                assert!(pipeline.generate(&request()).unwrap().rgb == want, "another picture");
            }
        }
    }
}

/// The budget of pinned memory holds whatever is asked for, and in whichever order budgets are given.
#[test]
fn the_host_budget_is_kept() {
    let (dir, model) = demo();
    let cache = dir.path().join("cache");
    let all = Plan::new(model.config(), SHAPE, Quantize::Nf4).unwrap();
    let budget = all.host_bytes().0 + all.host_bytes().1;
    let host_first = all.clone().within_host(budget).unwrap().within(all.least_bytes().unwrap()).unwrap();
    assert_eq!(host_first.traffic(), on_disk(&model).traffic());
    assert!(host_first.traffic().on_disk > 0 && host_first.traffic().pinned == 0);
    // Less streams, and what streams has room.
    let roomy = host_first.clone().within(all.arena_bytes()).unwrap();
    assert_eq!((roomy.traffic().on_disk, roomy.traffic().pinned), (0, 0));
    let mut pipeline =
        Pipeline::builder(&model).with_plan(host_first).cache(&cache).device(&emulator()).load().unwrap();
    // Device memory has room for so many steps; pinned memory has it until vectors of other numbers of steps are remembered.
    for steps in [28, 24] {
        pipeline.generate(&request().steps(steps)).unwrap();
    }
    let error = pipeline.generate(&request().steps(40)).unwrap_err();
    assert!(matches!(error, Error::Capacity { available_bytes, .. } if available_bytes == budget), "{error}");
    pipeline.generate(&request()).unwrap();
}

/// Requests of all kinds, one after the other, stopped or not: each as a pipeline draws it that has everything on the device.
#[test]
fn requests_of_all_kinds_draw_the_same() {
    let (dir, model) = demo();
    let cache = dir.path().join("cache");
    let shape = Shape { width: 96, true_cfg: true, ..SHAPE };
    let all = Plan::new(model.config(), shape, Quantize::Nf4).unwrap();
    let least = least(&all);
    let (loading, generating) = least.host_bytes();
    let half = loading + 2 * generating + least.traffic().pinned / 2;
    let plan = least.within_host(half).unwrap();
    assert!(plan.traffic().on_disk > 0 && plan.traffic().pinned > 0);
    let mut fresh =
        Pipeline::builder(&model).with_plan(all).prompt_cache(0).device(&emulator()).load().unwrap();
    let builder = Pipeline::builder(&model).with_plan(plan).cache(&cache).prompt_cache(2).dumps();
    let mut pipeline = builder.device(&random_emulator(3, 2)).load().unwrap();
    let prompts = ["a red circle", "a blue square", "a green hill"];
    let mut rng = Rng(77);
    for i in 0..10 {
        let mut below = |n: u64| (rng.bits() >> 3) % n;
        let mut request = Request::new(prompts[below(3) as usize]).seed(below(2));
        request = request.size(64 + 32 * below(2) as usize, 64).steps(1 + below(2) as usize);
        if let negative @ 1.. = below(4) {
            request = request.negative_prompt(prompts[negative as usize - 1], 2.0);
        }
        if below(3) == 0 {
            request = request.prompt_2(prompts[2]);
        }
        if i % 4 == 1 {
            let mut left = below(3);
            let stopped = pipeline.generate_with(&request, &mut |_| match left {
                0 => Break(()),
                _ => {
                    left -= 1;
                    Continue(())
                }
            });
            assert!(matches!(stopped, Ok(_) | Err(Error::Stopped)));
        }
        let want = fresh.generate(&request).unwrap().rgb;
        request.dump = i % 4 == 2;
        assert!(pipeline.generate(&request).unwrap().rgb == want, "request {i}");
    }
}
