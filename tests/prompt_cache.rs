//! A prompt that was seen before runs neither text encoder, and draws the same.

mod common;
use common::*;
use schnell::device::{Device, EmulatorOptions};
use schnell::pipeline::{Model, Pipeline, Plan, Quantize, Request, Shape};

const SHAPE: Shape = Shape { width: 64, height: 64, steps: 1, t5_length: 16, true_cfg: false };

fn load(model: &Model, plan: Plan, device: &Device, prompts: usize) -> Pipeline {
    Pipeline::builder(model).with_plan(plan).device(device).prompt_cache(prompts).load().unwrap()
}

fn resident(model: &Model, shape: Shape) -> Plan {
    Plan::new(model.config(), shape, Quantize::Nf4).unwrap()
}

fn streamed(model: &Model, shape: Shape) -> Plan {
    let plan = resident(model, shape);
    let least = plan.least_bytes().unwrap();
    plan.within(least).unwrap()
}

/// With weights that are streamed and with weights that are not, after other prompts, shapes and seeds.
#[test]
fn a_prompt_seen_before_draws_the_same() {
    let (_dir, model) = demo();
    let shape = Shape { true_cfg: true, ..SHAPE };
    let prompts = ["a red circle", "a blue square", "a green hill"];
    let request = |prompt: usize, negative: Option<usize>, seed| {
        let request = Request::new(prompts[prompt]).seed(seed);
        match negative {
            Some(negative) => request.negative_prompt(prompts[negative], 2.0),
            None => request,
        }
    };
    let requests = [
        request(0, None, 1),
        request(0, None, 2),
        request(1, Some(0), 1), // one of the two is known
        request(0, Some(1), 1), // both are
        request(2, None, 1),    // forgets the oldest
        request(1, Some(0), 1),
        request(0, None, 1).size(96, 64),
        request(0, None, 1).t5_length(24), // other tokens
        request(0, None, 2).t5_length(24),
        request(0, None, 2).t5_length(24).steps(2), // modulated anew
        request(0, None, 2).t5_length(24),
    ];
    let mut fresh = load(&model, resident(&model, shape), &emulator(), 0);
    let want: Vec<Vec<u8>> = requests.iter().map(|r| fresh.generate(r).unwrap().rgb).collect();
    let wide = Shape { width: 96, ..shape };
    for seed in 0..2 {
        for plan in [resident(&model, wide), streamed(&model, wide)] {
            let mut pipeline = load(&model, plan, &random_emulator(seed, 2), 2);
            let mut recalled = Vec::new();
            for (i, (request, want)) in requests.iter().zip(&want).enumerate() {
                let sized =
                    if request.size.is_none() { request.clone().size(64, 64) } else { request.clone() };
                let output = pipeline.generate(&sized).unwrap();
                assert!(output.rgb == *want, "request {i}, schedule {seed}");
                if output.timings.stages.iter().any(|stage| stage.stage == "recall") {
                    assert!(output.timings.stages.iter().all(|s| s.stage != "clip" && s.stage != "t5"));
                    recalled.push(i);
                }
            }
            assert_eq!(recalled, [1, 3, 6, 8, 9, 10]);
        }
    }
}

/// Counted on a machine that carries nothing out: all launches but those of the encoders.
#[test]
fn a_prompt_seen_before_launches_no_encoder() {
    let (_dir, model) = demo();
    let plan = resident(&model, SHAPE);
    let launches = plan.launches();
    let mut of_stage = std::collections::BTreeMap::<&str, u64>::new();
    let mut stage = "";
    for line in launches.lines() {
        match line.starts_with(' ') {
            false if line.starts_with("step x 1, of new steps") => stage = "first step",
            false => stage = line.split(' ').next().unwrap(),
            true if !line.contains(" send ") && !line.contains(" fetch ") && !line.contains(" fill ") => {
                *of_stage.entry(stage).or_default() += 1;
            }
            true => {}
        }
    }
    let (encoders, step) = (of_stage["clip"] + of_stage["t5"], of_stage["step"]);
    let modulation = of_stage["modulation"] + of_stage["first step"] - step;
    // Of one step.
    let all: u64 = of_stage.values().sum::<u64>() - step;
    assert!(encoders > 40 && modulation > 5 && !of_stage.contains_key("recall"), "{of_stage:?}");
    let device = Device::emulator(EmulatorOptions { launches_nothing: true, ..EmulatorOptions::default() });
    let mut pipeline = load(&model, plan, &device, 4);
    let mut count = |prompt: &str, seed, steps: usize| {
        let before = device.num_skipped_launches();
        pipeline.generate(&Request::new(prompt).seed(seed).steps(steps)).unwrap();
        device.num_skipped_launches() - before - (steps as u64 - 1) * step
    };
    assert_eq!(count("a red circle", 1, 1), all);
    assert_eq!(count("a red circle", 2, 1), all - encoders - modulation);
    assert_eq!(count("a blue square", 1, 1), all);
    assert_eq!(count("a red circle", 3, 1), all - encoders - modulation);
    // Other steps are modulated anew, and of the last two prompts and steps it is known what that gave.
    assert_eq!(count("a red circle", 3, 2), all - encoders);
    assert_eq!(count("a red circle", 4, 1), all - encoders - modulation);
    assert_eq!(count("a red circle", 4, 2), all - encoders - modulation);
    assert_eq!(count("a blue square", 2, 1), all - encoders);
}

/// Two hundred prompts, of which eight are remembered.
#[test]
fn memory_stays_flat() {
    let resident_bytes = || {
        let status = std::fs::read_to_string("/proc/self/statm").unwrap();
        status.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 4096
    };
    let (_dir, model) = demo();
    let shape = Shape { t5_length: 512, ..SHAPE };
    let encoding = 512 * model.config().t5.width * 2;
    let device = Device::emulator(EmulatorOptions { launches_nothing: true, ..EmulatorOptions::default() });
    let mut pipeline = load(&model, resident(&model, shape), &device, 8);
    let mut early = 0;
    for i in 0..200_usize {
        let prompt: Vec<&str> = (0..8).map(|bit| ["red", "blue"][i >> bit & 1]).collect();
        let output = pipeline.generate(&Request::new(prompt.join(" "))).unwrap();
        assert!(output.timings.stages.iter().any(|stage| stage.stage == "t5"), "prompt {i} is a new one");
        if i == 20 {
            early = resident_bytes();
        }
    }
    let grown = resident_bytes().saturating_sub(early);
    assert!(grown < 20 * encoding, "{grown} bytes, of {} if all were remembered", 180 * encoding);
}
