//! Promises of the whole pipeline: one allocation, the same bytes, refusals before work.

mod common;
#[path = "common/golden.rs"]
mod golden;
use common::*;
use golden::Golden;
use schnell::Error;
use schnell::device::{AsyncCopies, Device, EmulatorOptions, Order};
use schnell::pipeline::{DumpValues, Model, Noise, Pipeline, Plan, Progress, Quantize, Request, Shape};
use std::ops::ControlFlow::{Break, Continue};

/// 64 image tokens and 256 text tokens: at least 4 CTAs for every hot kernel.
const SHAPE: Shape = Shape { width: 128, height: 128, steps: 2, t5_length: 256, true_cfg: false };

fn bind(model: &Model, shape: Shape, device: &Device) -> Pipeline {
    let plan = Plan::new(model.config(), shape, Quantize::Nf4).unwrap();
    Pipeline::builder(model).with_plan(plan).device(device).load().unwrap()
}

fn asks_for(shape: Shape) -> Request {
    let Shape { width, height, steps, t5_length, .. } = shape;
    Request::new("a red circle").seed(1).size(width, height).steps(steps).t5_length(t5_length)
}

fn draw(pipeline: &mut Pipeline, prompt: &str, seed: u64) -> Vec<u8> {
    pipeline.generate(&Request::new(prompt).seed(seed)).unwrap().rgb
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
fn only_kernels_that_a_plan_uses_are_readied() {
    let (_dir, model) = demo();
    let readied = |quantize| {
        let device = emulator();
        let plan = Plan::new(model.config(), SHAPE, quantize).unwrap();
        let launches = plan.launches();
        Pipeline::builder(&model).with_plan(plan).device(&device).load().unwrap();
        let (used, other): (Vec<_>, Vec<_>) =
            device.prepared().into_iter().partition(|name| launches.contains(name));
        assert_eq!(other, [""; 0], "not in the plan");
        used
    };
    let (nf4, dense) = (readied(Quantize::Nf4), readied(Quantize::None));
    assert!(nf4.contains(&"nf4_gemm_store_sm80") && nf4.contains(&"gemv_nf4_m2"), "{nf4:?}");
    assert!(dense.contains(&"bf16_gemm_residual_sm80"), "{dense:?}");
    assert!(dense.iter().all(|name| !name.contains("nf4")), "{dense:?}");
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
    // As many at once as there are cores: one after the other they would be the last to end of all tests.
    let at_once = std::thread::available_parallelism().map_or(1, |n| n.get()) as u64;
    std::thread::scope(|scope| {
        for first in 0..at_once {
            let (model, want) = (&model, &want);
            scope.spawn(move || {
                for seed in (first..21).step_by(at_once as usize) {
                    let device = random_emulator(seed, [1, 2, 4][seed as usize % 3]);
                    assert_eq!(
                        draw(&mut bind(model, shape, &device), "a red circle", 1),
                        *want,
                        "schedule {seed}"
                    );
                }
            });
        }
    });
}

/// Every stage's every number, of all ways to hold the weights.
#[test]
fn graphs_draw_what_launches_one_by_one_draw() {
    let (_dir, model) = demo();
    let shape = Shape { width: 64, height: 64, steps: 2, t5_length: 16, true_cfg: false };
    let all = Plan::new(model.config(), shape, Quantize::Nf4).unwrap();
    let (least, most) = (all.least_bytes().unwrap(), all.arena_bytes());
    let bits = |values: DumpValues| match values {
        DumpValues::Ids(ids) => ids,
        DumpValues::F32(values) => values.iter().map(|value| value.to_bits()).collect(),
    };
    let mut drawn: Vec<Vec<(String, Vec<u32>)>> = Vec::new();
    for (budget, graphs) in [(most, false), (most, true), (least, true)] {
        let plan = all.clone().within(budget).unwrap();
        let device = if graphs { random_emulator(budget, 2) } else { emulator() };
        let builder = Pipeline::builder(&model).with_plan(plan).device(&device).dumps();
        let mut pipeline = builder.graphs(graphs).load().unwrap();
        let request = Request { dump: true, ..Request::new("a red circle").seed(3) };
        let dumps = pipeline.generate(&request).unwrap().dumps;
        drawn.push(dumps.into_iter().map(|dump| (dump.stage, bits(dump.values))).collect());
    }
    assert!(drawn[0].len() > 10);
    for other in &drawn[1..] {
        assert!(*other == drawn[0]);
    }
}

#[test]
fn given_noise_replaces_the_seed() {
    let (_dir, model) = demo();
    let mut pipeline = bind(&model, Shape { steps: 1, ..SHAPE }, &emulator());
    let noise = |value: f32| Request {
        noise: Noise::Given((0..64 * 64).map(|i| value * (i % 7) as f32).collect()),
        ..Request::new("a red circle").seed(1)
    };
    let a = pipeline.generate(&noise(0.3)).unwrap().rgb;
    let b = pipeline.generate(&Request { seed: 9, ..noise(0.3) }).unwrap().rgb;
    let c = pipeline.generate(&noise(0.1)).unwrap().rgb;
    assert_eq!(a, b);
    assert_ne!(a, c);
    let short = Request { noise: Noise::Given(vec![0.0; 5]), ..Request::new("x") };
    assert!(matches!(pipeline.generate(&short), Err(Error::Input(_))));
    let nan = Request { noise: Noise::Given(vec![f32::NAN; 64 * 64]), ..Request::new("x") };
    assert!(pipeline.generate(&nan).unwrap_err().to_string().contains("not finite"));
    // A failed picture leaves the pipeline usable.
    assert_eq!(pipeline.generate(&noise(0.3)).unwrap().rgb, a);
}

#[test]
fn progress_and_timings_name_every_stage_in_order() {
    let (_dir, model) = demo();
    let mut pipeline = bind(&model, SHAPE, &emulator());
    let (mut seen, begun) = (Vec::new(), std::time::Instant::now());
    let output = pipeline.generate_with(&Request::new("a red circle").seed(1), &mut |p| {
        seen.push(p);
        Continue(())
    });
    let passed = begun.elapsed().as_secs_f64() * 1e3;
    let output = output.unwrap();
    let step = |index| Progress::Step { index, total: 2 };
    assert_eq!(seen, [Progress::TextEncoding, step(0), step(1), Progress::Decoding, Progress::Done]);
    let stages: Vec<&str> = output.timings.stages.iter().map(|s| s.stage.as_str()).collect();
    assert_eq!(
        stages,
        [
            "tokenize",
            "inputs",
            "clip",
            "t5",
            "prepare",
            "modulation",
            "step 0",
            "step 1",
            "vae",
            "copy",
            "receipt"
        ]
    );
    // Every stage takes some time, and all of them together no more than passed.
    assert!(output.timings.stages.iter().all(|s| s.ms > 0.0), "{:?}", output.timings.stages);
    let total: f64 = output.timings.stages.iter().map(|s| s.ms).sum();
    assert!(total <= passed, "{total} ms in {passed}");
}

#[test]
fn refuses_before_it_works() {
    let (_dir, model) = demo();
    let device = emulator();
    let mut pipeline = bind(&model, Shape { steps: 1, ..SHAPE }, &device);
    let empty = pipeline.generate(&Request::new("  ")).unwrap_err();
    assert!(matches!(&empty, Error::Input(text) if text.contains("empty")), "{empty}");
    let dump = Request { dump: true, ..Request::new("x") };
    assert!(matches!(pipeline.generate(&dump), Err(Error::Input(_))));
    let golden = Golden::open("b");
    let other = Model::open(golden.dir()).unwrap();
    let plan = Plan::new(model.config(), SHAPE, Quantize::Nf4).unwrap();
    let error = Pipeline::builder(&other).with_plan(plan).device(&device).load().unwrap_err();
    assert!(error.to_string().contains("another model"), "{error}");
}

#[test]
fn truncated_prompts_are_counted() {
    let (_dir, model) = demo();
    let mut pipeline = bind(&model, Shape { steps: 1, t5_length: 16, ..SHAPE }, &emulator());
    let output = pipeline.generate(&Request::new("red circle ".repeat(60))).unwrap();
    assert!(output.clip_tokens_dropped > 0 && output.t5_tokens_dropped > 0);
    let output = pipeline.generate(&Request::new("red")).unwrap();
    assert_eq!((output.clip_tokens_dropped, output.t5_tokens_dropped), (0, 0));
}

/// Weights are read once, memory is allocated once, and every shape draws what a pipeline of its own would.
#[test]
fn several_shapes_on_one_load() {
    let (_dir, model) = demo();
    let of = |width, height| Shape { width, height, t5_length: 32, ..SHAPE };
    let shapes = [of(64, 64), of(96, 64), of(128, 128), of(64, 64)];
    let device = emulator();
    let plan = Plan::new(model.config(), shapes[2], Quantize::Nf4).unwrap();
    let planned = plan.arena_bytes();
    let mut loaded = 0;
    let mut pipeline = Pipeline::builder(&model)
        .with_plan(plan)
        .device(&device)
        .load_with(&mut |p| {
            loaded += matches!(p, Progress::Loading { done: 0, .. }) as usize;
            Continue(())
        })
        .unwrap();
    pipeline.warm_up(shapes[1]).unwrap();
    for shape in shapes {
        let request = asks_for(shape);
        let output = pipeline.generate_with(&request, &mut |p| {
            assert!(!matches!(p, Progress::Loading { .. }), "{p:?}");
            Continue(())
        });
        let output = output.unwrap();
        assert_eq!((output.width, output.height), (shape.width, shape.height));
        let alone = draw(&mut bind(&model, shape, &emulator()), "a red circle", 1);
        assert!(output.rgb == alone, "{shape:?} differs from a pipeline of its own");
    }
    assert_eq!((device.num_allocations(), loaded), (1, 1));
    assert_eq!(pipeline.plan().arena_bytes(), planned);

    // One that does not fit is refused in bytes, and does no harm.
    match pipeline.warm_up(of(512, 512)).unwrap_err() {
        Error::Capacity { needed_bytes, available_bytes, .. } => {
            assert!(needed_bytes > available_bytes && available_bytes == planned);
        }
        other => panic!("{other:?}"),
    }
    let again = asks_for(shapes[0]);
    pipeline.generate(&again).unwrap();
    // Planned for both, there is room for both.
    let plan = Plan::new(model.config(), shapes[0], Quantize::Nf4).unwrap().with_shape(shapes[2]).unwrap();
    assert_eq!(plan.arena_bytes(), planned);
    assert_eq!(plan.shape(), shapes[0]);
}

#[test]
fn a_generation_can_be_stopped_and_another_follows() {
    let (_dir, model) = demo();
    let mut pipeline = bind(&model, SHAPE, &emulator());
    let want = draw(&mut pipeline, "a red circle", 1);
    for stop_at in [Progress::TextEncoding, Progress::Step { index: 0, total: 2 }, Progress::Decoding] {
        let mut seen = Vec::new();
        let stopped = pipeline.generate_with(&Request::new("a blue square").seed(2), &mut |p| {
            seen.push(p);
            if p == stop_at { Break(()) } else { Continue(()) }
        });
        assert!(matches!(stopped, Err(Error::Stopped)), "{stopped:?}");
        assert_eq!(seen.last(), Some(&stop_at));
        assert_eq!(draw(&mut pipeline, "a red circle", 1), want);
    }
    let plan = Plan::new(model.config(), SHAPE, Quantize::Nf4).unwrap();
    let loading = Pipeline::builder(&model).with_plan(plan).device(&emulator()).load_with(&mut |_| Break(()));
    assert!(matches!(loading, Err(Error::Stopped)));
}

/// The host waits once a step, so as not to run ahead further than one, and at the end.
#[test]
fn the_host_waits_once_a_step_and_at_the_end() {
    let (_dir, model) = demo();
    let device = emulator();
    let mut pipeline = bind(&model, Shape { steps: 3, ..SHAPE }, &device);
    draw(&mut pipeline, "a red circle", 1);
    let before = device.num_waits();
    draw(&mut pipeline, "a red circle", 1);
    // The pinned buffer is looked at twice, each time with copies of one stream behind it: before it is filled, and read.
    assert_eq!(device.num_waits() - before, 3 + 1 + 1);
}

/// Numbers that are not finite are found where they arise, and the place is named.
#[test]
fn the_place_of_numbers_that_are_not_finite_is_named() {
    let (_dir, model) = demo();
    let mut pipeline = bind(&model, Shape { steps: 2, ..SHAPE }, &emulator());
    let mut refusal = |noise: f32| {
        let request = Request { noise: Noise::Given(vec![noise; 64 * 64]), ..Request::new("x") };
        pipeline.generate(&request).unwrap_err()
    };
    let given = refusal(f32::NAN);
    assert!(matches!(given, Error::Input(_)) && given.to_string().contains("noise value 0"), "{given}");
    // Beyond what bf16 can hold.
    let message = refusal(f32::MAX).to_string();
    assert!(message.contains("the latents of step 0 are not finite"), "{message}");
}

/// How many SMs there are decides which products are split along k, and so in what order sums are added: the picture is the same
/// but for roundings, and the same bytes on every schedule of one machine.
#[test]
fn machines_of_other_sizes_draw_the_same_picture() {
    let (_dir, model) = demo();
    let draw_on = |num_sms, seed: Option<u64>| {
        let random =
            EmulatorOptions { order: Order::Random, async_copies: AsyncCopies::Random, ..Default::default() };
        let options =
            seed.map_or_else(Default::default, |seed| EmulatorOptions { seed, threads: 3, ..random });
        let device = Device::emulator(EmulatorOptions { num_sms, ..options });
        let mut pipeline = bind(&model, Shape { steps: 1, ..SHAPE }, &device);
        let is_split = pipeline.plan().launches().contains("partials");
        (is_split, draw(&mut pipeline, "a red circle on a blue background", 1))
    };
    let (_, want) = draw_on(28, None);
    for num_sms in [1, 3, 108] {
        let (is_split, got) = draw_on(num_sms, None);
        assert!(is_split, "{num_sms} SMs");
        assert!(psnr(&got, &want) > 40.0, "{num_sms} SMs: {:.1} dB", psnr(&got, &want));
        assert_eq!(draw_on(num_sms, Some(num_sms.into())).1, got, "{num_sms} SMs, at random");
    }
}

/// A plan made for one card draws on another: loading makes it again, within the same budget.
#[test]
fn a_plan_goes_to_another_machine() {
    let (_dir, model) = demo();
    let device = Device::emulator(EmulatorOptions { num_sms: 3, ..Default::default() });
    let plan = Plan::new(model.config(), SHAPE, Quantize::Nf4).unwrap();
    let budget = plan.arena_bytes() - 1;
    let plan = plan.within(budget).unwrap();
    let there = plan.clone().on(device.capability()).unwrap();
    assert!(plan.launches() != there.launches(), "products are split otherwise");
    assert!(there.arena_bytes() <= budget);
    let pipeline = Pipeline::builder(&model).with_plan(plan).device(&device).load().unwrap();
    assert!(pipeline.plan().launches() == there.launches());
}
