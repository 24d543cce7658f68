//! Deadlines: what is refused, given up, drawn in fewer steps or as an estimate, and that nothing of it is left in the next picture.
//! When that happens is tested on a simulated clock, in `src/pipeline/deadline.rs`.

#[path = "common/command.rs"]
mod command;
mod common;
#[path = "common/golden.rs"]
mod golden;

use std::ops::ControlFlow::Continue;
use std::time::Duration;

use command::{Sandbox, bytes};
use common::*;
use schnell::device::Device;
use schnell::pipeline::{
    DumpValues, Late, Model, Output, Pipeline, Plan, Progress, Quantize, Request, Shape,
};
use schnell::{Error, Recipe};

const STEPS: usize = 3;
const SHAPE: Shape = Shape { width: 64, height: 64, steps: STEPS, t5_length: 16, true_cfg: false };
const LONG: Duration = Duration::from_secs(3600);

fn pipeline(model: &Model, device: &Device) -> Pipeline {
    let builder = Pipeline::builder(model).quantize(Quantize::Nf4).warm_up([SHAPE]);
    builder.device(device).dumps().load().unwrap()
}

fn request() -> Request {
    Request::new("a red circle").seed(1)
}

fn stage<'a>(output: &'a Output, name: &str) -> &'a [f32] {
    let dump = output.dumps.iter().find(|dump| dump.stage == name).unwrap();
    let DumpValues::F32(values) = &dump.values else { panic!("{name} has ids") };
    values
}

/// By the definition of rectified flow: x = (1 - sigma) clean + sigma noise, and velocity = noise - clean.
#[test]
fn an_estimate_is_where_the_velocity_leads() {
    let (_dir, model) = demo();
    let mut pipeline = pipeline(&model, &emulator());
    let plain = pipeline.generate(&request().dump()).unwrap();
    assert_eq!(plain.estimate, None);
    let sigmas = stage(&plain, "sigmas");
    for steps in 1..=STEPS {
        let output = pipeline.generate(&request().dump().estimate_after(steps)).unwrap();
        let last = steps - 1;
        assert_eq!(output.estimate, (steps < STEPS).then_some(steps));
        let name = format!("noise_pred_{last}");
        let velocity = stage(&output, &name);
        assert_eq!(velocity, stage(&plain, &name), "another step {last}");
        let before = if last == 0 { "noise".to_string() } else { format!("latents_{}", last - 1) };
        let before = stage(&plain, &before);
        let want = before.iter().zip(velocity).map(|(x, v)| x + -sigmas[last] * v);
        let got = stage(&output, &format!("latents_{last}"));
        assert!(got.iter().copied().eq(want), "after {steps} steps");
        assert_eq!(output.rgb == plain.rgb, steps == STEPS);
        let told = output
            .notes
            .iter()
            .any(|(keyword, text)| *keyword == "estimate_after" && *text == steps.to_string());
        assert_eq!(told, steps < STEPS);
    }
    assert_eq!(pipeline.generate(&request()).unwrap().rgb, plain.rgb);
    for steps in [0, STEPS + 1] {
        let error = pipeline.generate(&request().estimate_after(steps)).map(|_| ()).unwrap_err();
        assert!(matches!(error, Error::Input(_)), "{error}");
    }
}

/// Wherever the weights are, and whatever the order on the device; and the picture behind it is undisturbed.
#[test]
fn an_estimate_is_the_same_wherever_weights_are() {
    let (dir, model) = demo();
    let plan = Plan::new(model.config(), SHAPE, Quantize::Nf4).unwrap();
    let mut resident = pipeline(&model, &emulator());
    let wants = [1, 2].map(|steps| resident.generate(&request().estimate_after(steps)).unwrap().rgb);
    let whole = resident.generate(&request()).unwrap().rgb;
    let least = plan.least_bytes().unwrap();
    let streamed = plan.clone().within(least).unwrap();
    let (loading, generating) = streamed.host_bytes();
    let on_disk = streamed.clone().within_host(loading + generating).unwrap();
    assert!(on_disk.traffic().on_disk > 0);
    for (seed, plan) in [plan, streamed, on_disk].into_iter().enumerate() {
        for graphs in [false, true] {
            let device = random_emulator(seed as u64, 2);
            let builder = Pipeline::builder(&model).with_plan(plan.clone()).device(&device).graphs(graphs);
            let mut pipeline = builder.cache(dir.path().join("cache")).load().unwrap();
            for again in 0..2 {
                for (steps, want) in [1, 2].into_iter().zip(&wants) {
                    let got = pipeline.generate(&request().estimate_after(steps)).unwrap().rgb;
                    assert!(got == *want, "plan {seed}, after {steps} steps, {again}");
                }
                assert!(pipeline.generate(&request()).unwrap().rgb == whole, "plan {seed}: disturbed");
            }
        }
    }
}

#[test]
fn what_would_be_late_is_refused_before_any_work() {
    let (_dir, model) = demo();
    let mut pipeline = pipeline(&model, &emulator());
    assert_eq!(pipeline.expected(&request(), false), None);
    let plain = pipeline.generate(&request().deadline(LONG, Late::Fail)).unwrap();
    let expected = pipeline.expected(&request(), false).unwrap();
    assert!(expected.as_secs_f64() * 1e3 >= plain.timings.total_ms * 0.9, "{expected:?}");
    for late in [Late::Fail, Late::FewerSteps, Late::Estimate] {
        let mut told = 0;
        let deadline = Duration::from_micros(1);
        let result = pipeline.generate_with(&request().deadline(deadline, late), &mut |_| {
            told += 1;
            Continue(())
        });
        let error = result.map(|_| ()).unwrap_err();
        let Error::Deadline { needed, deadline: of, .. } = &error else { panic!("{error}") };
        assert!(*of == deadline && *needed > deadline && told == 0, "{error}, told of {told}");
        assert!(error.to_string().contains("before it was begun"), "{error}");
    }
    let in_time = pipeline.generate(&request().deadline(LONG, Late::Estimate)).unwrap();
    assert!(in_time.rgb == plain.rgb && in_time.estimate.is_none() && in_time.warnings.is_empty());
}

#[test]
fn fewer_steps_are_a_schedule_of_their_own() {
    let (_dir, model) = demo();
    let mut pipeline = pipeline(&model, &emulator());
    let one = pipeline.generate(&request().steps(1)).unwrap();
    let _ = pipeline.generate(&request()).unwrap();
    let of = |steps| pipeline.expected(&request().steps(steps), false).unwrap();
    let between = (of(1) + of(2)) / 2;
    // Fresh again, so that what is expected is what was asked for.
    let mut again = Request::new("a blue square").seed(1).deadline(between, Late::FewerSteps);
    let output = pipeline.generate(&again).unwrap();
    again.deadline = None;
    let want = pipeline.generate(&again.steps(1)).unwrap();
    assert!(output.rgb == want.rgb && output.estimate.is_none());
    assert!(output.warnings.iter().any(|text| text.contains("in 1 steps, not 3")), "{:?}", output.warnings);
    assert!(output.notes.contains(&("steps", "1".to_string())));
    assert!(one.rgb != output.rgb);
}

/// Whoever is told of the progress takes its time.
#[test]
fn what_becomes_late_is_given_up_or_estimated() {
    let (_dir, model) = demo();
    let mut pipeline = pipeline(&model, &emulator());
    let plain = pipeline.generate(&request()).unwrap();
    let want = pipeline.generate(&request().estimate_after(2)).unwrap();
    let deadline = pipeline.expected(&request(), false).unwrap() * 3;
    let mut draw = |late| {
        pipeline.generate_with(&request().deadline(deadline, late), &mut |progress| {
            if matches!(progress, Progress::Step { index: 0, .. }) {
                std::thread::sleep(deadline * 3 / 2);
            }
            Continue(())
        })
    };
    let error = draw(Late::Fail).map(|_| ()).unwrap_err();
    assert!(
        matches!(error, Error::Deadline { .. }) && error.to_string().contains("before step 2"),
        "{error}"
    );
    let output = draw(Late::Estimate).unwrap();
    assert!(output.estimate == Some(2) && output.rgb == want.rgb, "{:?}", output.estimate);
    assert!(output.warnings.iter().any(|text| text.contains("an estimate after 2 of 3 steps")));
    // Neither is in the next one, nor in what is expected of it.
    assert_eq!(pipeline.generate(&request()).unwrap().rgb, plain.rgb);
    assert!(pipeline.expected(&request(), true).unwrap() < deadline);
}

#[test]
fn times_are_kept_and_believed_of_this_machine_alone() {
    let (dir, model) = demo();
    let file = dir.path().join("times.json");
    let load = |file: &std::path::Path| {
        let mut steps = 0;
        let builder = Pipeline::builder(&model).warm_up([SHAPE]).device(&emulator()).calibrate(file);
        let loaded = builder.load_with(&mut |progress| {
            steps += usize::from(matches!(progress, Progress::Step { .. }));
            Continue(())
        });
        (loaded, steps)
    };
    let (first, steps) = load(&file);
    assert_eq!(steps, 3 * STEPS);
    let first = first.unwrap().expected(&request(), false).unwrap();
    let (second, steps) = load(&file);
    let mut second = second.unwrap();
    assert_eq!((second.expected(&request(), false), steps), (Some(first), 0));
    let error =
        second.generate(&request().deadline(Duration::from_micros(1), Late::Fail)).map(|_| ()).unwrap_err();
    assert!(matches!(error, Error::Deadline { .. }), "{error}");
    let known = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, known.replace("driver none", "driver 13.1")).unwrap();
    assert_eq!(load(&file).1, 3 * STEPS, "times of another driver were believed");
    // Both are there now.
    assert_eq!(load(&file).1, 0);
    std::fs::write(&file, "no times").unwrap();
    let (refused, steps) = load(&file);
    assert!(matches!(refused, Err(Error::Input(_))) && steps == 0);
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "no times");
}

#[test]
fn the_command_says_what_it_could_not_do_in_time() {
    let sandbox = Sandbox::new();
    let run = |more: &[&str]| {
        let flags = ["generate", "a red circle", "--device", "emulator", "--width", "64", "--height", "64"];
        sandbox.run([&flags[..], more].concat())
    };
    // Nobody knows how long it takes until two steps have been seen.
    let ran = run(&["--steps", "4", "--deadline", "1ms", "--output", "late.png"]);
    assert!(ran.code == 12 && ran.stderr.contains("before step 3"), "{} {}", ran.code, ran.stderr);
    assert!(!sandbox.path("late.png").exists());
    let times = ["--steps", "2", "--calibrate", "times.json"];
    let ran = run(&[&times[..], &["--deadline", "1ms", "--output", "late.png"]].concat());
    assert!(ran.code == 12 && ran.stderr.contains("before it was begun"), "{} {}", ran.code, ran.stderr);
    assert!(sandbox.path("times.json").exists() && !sandbox.path("late.png").exists());
    let late = ["--steps", "4", "--deadline", "1ms", "--late", "estimate", "--output", "estimate.png"];
    let ran = run(&late);
    assert!(ran.code == 0 && ran.stderr.contains("an estimate after 3 of 4 steps"), "{}", ran.stderr);
    let recipe = Recipe::of(&schnell::image::decode(&bytes(&sandbox.path("estimate.png"))).unwrap()).unwrap();
    assert_eq!(recipe.requests[0].estimate_after, Some(3));
    let ran = sandbox.run(["reproduce", "estimate.png", "--device", "emulator"]);
    assert!(ran.code == 0 && ran.stderr.contains("the same, to the bit"), "{}", ran.stderr);
    for (bad, why) in [
        (&["--deadline", "soon"][..], "is no time"),
        (&["--late", "estimate"], "--deadline"),
        (&["--deadline", "1s", "--grid", "2x1"], "cannot be used"),
    ] {
        let ran = run(bad);
        assert!(ran.code == 2 && ran.stderr.contains(why), "{} {}", ran.code, ran.stderr);
    }
}
