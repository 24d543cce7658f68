//! Pipelines whose machine is lost: what recovers them, with what, and what does not. That it works wherever the machine was lost says
//! `tests/faults.rs`.

mod common;
#[path = "common/loras.rs"]
mod loras;
#[path = "common/smallest.rs"]
mod smallest;

use common::*;
use schnell::device::injection::{Fault, Faults, Operation};
use schnell::device::{Device, EmulatorOptions};
use schnell::kernels::probe;
use schnell::pipeline::{Model, Pipeline, Plan, Quantize};
use schnell::weights::Part;
use schnell::{Error, Lora};
use smallest::{SHAPE, request, smallest};

fn options() -> EmulatorOptions {
    EmulatorOptions { threads: 1, stand_in: true, ..EmulatorOptions::default() }
}

fn machine() -> (Faults, Device) {
    let faults = Faults::default();
    let device = Device::failing(options(), &faults);
    (faults, device)
}

fn load(model: &Model, device: &Device) -> Pipeline {
    Pipeline::builder(model).warm_up([SHAPE]).device(device).dumps().load().unwrap()
}

fn draw(pipeline: &mut Pipeline) -> Vec<u8> {
    pipeline.generate(&request()).unwrap().rgb
}

fn lose(faults: &Faults, pipeline: &mut Pipeline) {
    faults.arm(Some(Operation::Fill), 3, Fault::Lost, false);
    pipeline.generate(&request().seed(9)).map(drop).unwrap_err();
    faults.clear();
    assert!(pipeline.is_poisoned());
}

/// Nothing is loaded beside what is lost: the memory of both at once may be more than there is.
#[test]
fn nothing_is_there_twice() {
    let (_dir, model) = smallest(1);
    let (faults, device) = machine();
    let mut pipeline = load(&model, &device);
    let want = draw(&mut pipeline);
    let expected = pipeline.expected(&request(), false);
    assert!(expected.is_some());
    lose(&faults, &mut pipeline);
    let (held, handles) = (device.held_bytes().now, faults.num_handles());
    assert_eq!((held, device.num_allocations()), (pipeline.plan().arena_bytes(), 1));
    device.held_host_bytes();
    let pinned = device.held_host_bytes().now;
    let loading = pipeline.plan().host_bytes().0;
    pipeline.recover(&model).unwrap();
    assert_eq!(
        (device.held_bytes().most, device.num_allocations(), faults.num_handles()),
        (held, 2, handles)
    );
    assert!(device.held_host_bytes().most <= pinned + loading, "staging, beside what stays");
    assert!(draw(&mut pipeline) == want);
    // What has been learnt is still known; there is nothing to recover from any more.
    assert!(pipeline.expected(&request(), false).is_some() && !pipeline.is_poisoned());
    pipeline.recover(&model).unwrap();
    assert_eq!(device.num_allocations(), 2);
    // It has what it was loaded with.
    pipeline.generate(&schnell::Request { dump: true, ..request() }).unwrap();
}

/// A fault of a kernel, which the emulator finds itself.
#[test]
fn a_kernel_that_fails_loses_the_machine() {
    let (_dir, model) = smallest(1);
    let device = Device::emulator(EmulatorOptions { threads: 1, ..EmulatorOptions::default() });
    let mut pipeline = load(&model, &device);
    let want = draw(&mut pipeline);
    {
        let bench = Bench::with_bytes(device.clone(), 1 << 20);
        let (input, output) = (bench.upload(&[1u32; 256]), bench.alloc::<u32>(256));
        probe::Fault::Misaligned.launch(&device, 2, &input, &output).unwrap();
        let error = pipeline.generate(&request()).map(drop).unwrap_err();
        assert!(matches!(&error, Error::Device { .. }), "{error}");
        let error = pipeline.generate(&request()).map(drop).unwrap_err();
        assert!(
            matches!(&error, Error::Poisoned { cause, .. } if cause.contains("kernel probe_fault_misaligned")),
            "{error}"
        );
        // Somebody still holds memory there.
        let error = pipeline.recover(&model).unwrap_err();
        assert!(error.to_string().contains("something else still holds memory"), "{error}");
    }
    pipeline.recover(&model).unwrap();
    assert!(draw(&mut pipeline) == want);
}

/// Lost for both, and opened again when both have let go, in whichever order.
#[test]
fn pipelines_of_one_device_recover_together() {
    let (_dir, model) = smallest(1);
    for first in 0..2 {
        let (faults, device) = machine();
        let mut both = [load(&model, &device), load(&model, &device)];
        let want = draw(&mut both[0]);
        assert!(draw(&mut both[1]) == want);
        lose(&faults, &mut both[0]);
        let refused = both[1].generate(&request()).map(drop).unwrap_err();
        assert!(matches!(refused, Error::Poisoned { .. }), "{refused:?}");
        let held = device.held_bytes().now;
        let error = both[first].recover(&model).unwrap_err();
        assert!(
            matches!(error, Error::Poisoned { .. }) && error.to_string().contains("other pipelines"),
            "{error}"
        );
        assert_eq!(device.held_bytes().now, held / 2, "it has let go");
        let error = both[first].generate(&request()).map(drop).unwrap_err();
        assert!(matches!(error, Error::Poisoned { .. }), "{error:?}");
        both[1 - first].recover(&model).unwrap();
        assert!(both[first].is_poisoned(), "it has nothing to draw with");
        assert!(matches!(both[first].warm_up(SHAPE), Err(Error::Poisoned { .. })));
        both[first].recover(&model).unwrap();
        for pipeline in &mut both {
            assert!(draw(pipeline) == want);
        }
        // What is dropped holds nothing either.
        lose(&faults, &mut both[0]);
        let [mut left, dropped] = both;
        drop(dropped);
        left.recover(&model).unwrap();
        assert!(draw(&mut left) == want);
    }
}

/// As a GPU that has fallen off, or whose context something else holds: it is said, and tried again.
#[test]
fn what_stays_lost_is_said() {
    let (_dir, model) = smallest(1);
    let (faults, device) = machine();
    let mut pipeline = load(&model, &device);
    let want = draw(&mut pipeline);
    faults.arm(Some(Operation::Fill), 3, Fault::Lost, true);
    pipeline.generate(&request().seed(9)).map(drop).unwrap_err();
    for _ in 0..2 {
        let error = pipeline.recover(&model).unwrap_err();
        assert!(
            matches!(error, Error::Poisoned { .. }) && error.to_string().contains("restart the process"),
            "{error}"
        );
        assert!(pipeline.is_poisoned());
        assert_eq!((device.held_bytes().now, device.held_host_bytes().now, faults.num_handles()), (0, 0, 0));
    }
    let error = Pipeline::builder(&model).warm_up([SHAPE]).device(&device).load().map(drop).unwrap_err();
    assert!(matches!(error, Error::Poisoned { .. }), "{error:?}");
    faults.clear();
    // Nor is a load that fails on the way the end of it.
    faults.arm(Some(Operation::Prepare), 5, Fault::Refused, false);
    assert!(matches!(pipeline.recover(&model), Err(Error::Device { .. })));
    assert_eq!((device.held_bytes().now, faults.num_handles()), (0, 0));
    faults.clear();
    let error = pipeline.generate(&request()).map(drop).unwrap_err();
    assert!(matches!(error, Error::Poisoned { .. }), "{error:?}");
    pipeline.recover(&model).unwrap();
    assert!(draw(&mut pipeline) == want);
}

#[test]
fn another_model_recovers_nothing() {
    let (dir, model) = smallest(1);
    let (faults, device) = machine();
    let mut pipeline = load(&model, &device);
    lose(&faults, &mut pipeline);
    let held = device.held_bytes().now;
    let (_other_dir, larger) = smallest(2);
    // The same sizes, and one weight that is another.
    let path = dir.path().join("vae/diffusion_pytorch_model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let changed = Model::open_as(model.config().clone(), dir.path()).unwrap();
    for other in [&larger, &changed] {
        assert!(matches!(pipeline.recover(other), Err(Error::Input(_))));
        assert_eq!(device.held_bytes().now, held, "before anything has changed");
    }
}

/// A LoRA of the transformer.
fn lora(model: &Model, dir: &std::path::Path, seed: u64) -> Lora {
    let changes = loras::changes(model.config(), (4, 0.3), seed, |part, name| {
        part == Part::Transformer && name.contains("attn")
    });
    Lora::open(loras::write(dir, &format!("{seed}.safetensors"), &changes), model.config()).unwrap()
}

/// Those in use come back, whatever the model says; and where they cannot be changed, it is known what there is.
#[test]
fn loras_are_those_that_were_in_use() {
    let (dir, model) = smallest(1);
    let [a, b] = [1, 2].map(|seed| lora(&model, dir.path(), seed));
    let model = model.with_room_for_loras(16).unwrap().with_loras(&[(a.clone(), 1.0)]).unwrap();
    let model = model.with_room_for_loras(16).unwrap();
    let (faults, device) = machine();
    let mut pipeline = load(&model, &device);
    let with_a = draw(&mut pipeline);
    let mut with = |loras: &[(Lora, f32)]| {
        pipeline.set_loras(loras).unwrap();
        draw(&mut pipeline)
    };
    let (with_b, without) = (with(&[(b.clone(), 0.5)]), with(&[]));
    assert!(with_a != with_b && with_b != without && with_a != without);
    for (set, want) in
        [(vec![(b.clone(), 0.5)], &with_b), (vec![], &without), (vec![(a.clone(), 1.0)], &with_a)]
    {
        pipeline.set_loras(&set).unwrap();
        lose(&faults, &mut pipeline);
        pipeline.recover(&model).unwrap();
        assert!(draw(&mut pipeline) == *want, "{} LoRAs", set.len());
    }
    // Each operation of a change fails.
    let change = [(b.clone(), 0.5)];
    faults.clear();
    pipeline.set_loras(&change).unwrap();
    let counts = Operation::ALL.map(|operation| (operation, faults.count(operation)));
    let (mut poisoned, mut without_any) = (0, 0);
    for (operation, count) in counts {
        for place in 0..count {
            for lasts in [false, true] {
                let at = format!("{operation:?} {place} of {count}, {lasts}");
                pipeline.set_loras(&[(a.clone(), 1.0)]).unwrap();
                faults.arm(Some(operation), place, Fault::Refused, lasts);
                let error = pipeline.set_loras(&change).expect_err(&at);
                let named = if operation.is_awaited() { "(injected)" } else { operation.words() };
                assert!(error.to_string().contains(named), "{at}: {error}");
                faults.clear();
                if pipeline.is_poisoned() {
                    poisoned += 1;
                    pipeline.recover(&model).unwrap();
                }
                // Before anything has changed they are what they were.
                let got = draw(&mut pipeline);
                without_any += usize::from(got == without);
                assert!(
                    got == without || got == with_a && operation != Operation::CopyToDevice,
                    "{at}: another picture"
                );
            }
        }
    }
    assert!(poisoned > 4 && without_any > 4, "{poisoned}, {without_any}");
}

/// Need, have, and a budget with which it loads.
#[test]
fn lack_of_memory_names_a_budget_that_would_fit() {
    let (_dir, model) = smallest(2);
    let plan = Plan::new(model.config(), SHAPE, Quantize::Nf4).unwrap();
    let least = plan.least_bytes().unwrap();
    assert!(least < plan.arena_bytes() / 4 * 3);
    // Stand-ins read what is between rows, which is another byte in another plan.
    let faults = Faults::default();
    let device = Device::failing(EmulatorOptions::default(), &faults);
    let load = |plan: &Plan| Pipeline::builder(&model).with_plan(plan.clone()).device(&device).load();
    let refusal = |plan: &Plan| {
        faults.arm(Some(Operation::Allocate), 0, Fault::Refused, true);
        let error = load(plan).map(drop).unwrap_err();
        faults.clear();
        let Error::Capacity { needed_bytes, available_bytes, advice, .. } = error else {
            panic!("{error:?}")
        };
        assert_eq!((needed_bytes, available_bytes), (plan.arena_bytes(), plan.arena_bytes() / 4 * 3));
        advice
    };
    let advice = refusal(&plan);
    let budget = advice.split_once("within a budget of ").unwrap().1.split(' ').next().unwrap();
    let budget: u64 = budget.parse().unwrap();
    assert!((least..=plan.arena_bytes() / 4 * 3).contains(&budget), "{advice}");
    let fits = plan.clone().within(budget).unwrap();
    assert_eq!(fits.arena_bytes(), budget);
    let want = draw(&mut load(&plan).unwrap());
    assert!(draw(&mut load(&fits).unwrap()) == want, "another picture");
    let advice = refusal(&plan.within(least).unwrap());
    assert!(
        advice.contains(&format!("no budget below {least} ")) && advice.contains("smaller image"),
        "{advice}"
    );
}
