//! Exact time: stages sum to what a clock on the wall shows, and a trace has them where they ran.

mod common;
use std::time::Instant;

use common::*;
use schnell::pipeline::{Output, Pipeline, Plan, Quantize, Request, Shape};
use serde_json::Value;

const SHAPE: Shape = Shape { width: 128, height: 128, steps: 2, t5_length: 256, true_cfg: false };

/// All but the reading of weights is in a picture's stages: what passes between asking for it and having it.
#[test]
fn stages_sum_to_the_clock_on_the_wall() {
    let (_dir, model) = demo();
    let mut pipeline = Pipeline::builder(&model).warm_up([SHAPE]).device(&emulator()).load().unwrap();
    let mut measure = |prompt: &str| {
        let begun = Instant::now();
        let output = pipeline.generate(&Request::new(prompt)).unwrap();
        let wall = begun.elapsed().as_secs_f64() * 1e3;
        let stages: f64 = output.timings.stages.iter().map(|stage| stage.ms).sum();
        assert!((output.timings.total_ms - stages).abs() < 1e-6);
        (stages, wall)
    };
    // Other programs may take the machine between two stages: the best of a few pictures counts, of a new prompt and of one seen before.
    for same in [false, true] {
        let mut seen = Vec::new();
        let is_close = (0..10).any(|i| {
            let prompt =
                if same { "a red circle".to_string() } else { format!("a red circle and {i} others") };
            let (stages, wall) = measure(&prompt);
            seen.push((stages, wall));
            assert!(stages <= wall, "{seen:?}");
            stages >= 0.97 * wall
        });
        assert!(is_close, "stages and wall: {seen:?}");
    }
}

#[test]
fn a_shape_that_was_not_ready_is_bound_in_a_stage_of_its_own() {
    let (_dir, model) = demo();
    let mut pipeline = Pipeline::builder(&model).warm_up([SHAPE]).device(&emulator()).load().unwrap();
    let request = Request::new("a red circle").size(64, 64).steps(1).t5_length(16);
    let mut names = || -> Vec<String> {
        let timings = pipeline.generate(&request).unwrap().timings;
        timings.stages.into_iter().map(|stage| stage.stage).collect()
    };
    assert_eq!(names()[..3], ["tokenize", "bind", "inputs"]);
    assert_eq!(names()[..2], ["tokenize", "inputs"]);
}

/// The events of a lane: name, begin and end, in microseconds.
fn lane(trace: &Value, name: &str) -> Vec<(String, f64, f64)> {
    let events = trace["traceEvents"].as_array().unwrap();
    let lane = events.iter().find(|e| e["name"] == "thread_name" && e["args"]["name"] == name).unwrap();
    let of_it = events.iter().filter(|e| e["ph"] == "X" && e["tid"] == lane["tid"]);
    of_it
        .map(|e| {
            let (begin, length) = (e["ts"].as_f64().unwrap(), e["dur"].as_f64().unwrap());
            assert!(length >= 0.0, "{e}");
            (e["name"].as_str().unwrap().to_string(), begin, begin + length)
        })
        .collect()
}

fn traced(pipeline: &mut Pipeline) -> (Output, Value, f64) {
    let begun = Instant::now();
    let mut output = pipeline.generate(&Request::new("a red circle").trace()).unwrap();
    let mut trace = output.trace.take().unwrap();
    trace.push("encode", Instant::now());
    let wall = begun.elapsed().as_secs_f64() * 1e6;
    let json = serde_json::from_str(&trace.to_json()).unwrap();
    (output, json, wall)
}

#[test]
fn a_trace_has_both_streams_and_the_host() {
    let (_dir, model) = demo();
    let whole = Plan::new(model.config(), SHAPE, Quantize::Nf4).unwrap();
    let least = whole.least_bytes().unwrap();
    for budget in [whole.arena_bytes(), least] {
        let builder = Pipeline::builder(&model).warm_up([SHAPE]).device(&emulator());
        let mut pipeline = builder.budget(budget).load().unwrap();
        let (output, trace, wall) = traced(&mut pipeline);
        let (host, kernels, copies) =
            (lane(&trace, "host"), lane(&trace, "stream of kernels"), lane(&trace, "stream of copies"));
        // A begin may be off by what the host took to learn of the end.
        let inside = |(name, begin, end): &(String, f64, f64)| {
            assert!(*begin >= -5e3 && *end <= wall + 5e3, "{name}: {begin} to {end} of {wall}");
        };
        host.iter().chain(&kernels).chain(&copies).for_each(inside);
        let on_device =
            output.timings.stages.iter().filter(|stage| kernels.iter().any(|k| k.0 == stage.stage));
        let on_device: Vec<_> = on_device.collect();
        assert_eq!(on_device.len(), kernels.len());
        assert!(kernels.len() >= 7 && kernels.windows(2).all(|pair| (pair[0].2 - pair[1].1).abs() < 1.0));
        for (stage, (name, begin, end)) in on_device.iter().zip(&kernels) {
            assert_eq!(stage.stage, *name);
            assert!((stage.ms * 1e3 - (end - begin)).abs() < 10.0 + 1e-3 * stage.ms, "{name}");
        }
        let names: Vec<&str> = host.iter().map(|span| span.0.as_str()).collect();
        for name in ["tokenize", "inputs", "enqueue clip", "enqueue step 1", "wait", "receipt", "encode"] {
            assert!(names.contains(&name), "{name} is not of {names:?}");
        }
        let alone: f64 = host.iter().filter(|span| span.0 == "tokenize").map(|span| span.2 - span.1).sum();
        assert!((alone - 1e3 * output.timings.stages[0].ms).abs() < 1.0);
        assert_eq!(copies.is_empty(), budget != least);
        // The transformer's blocks are copied once a step.
        let blocks = copies.iter().filter(|copy| copy.0.contains("double")).count();
        assert!(budget != least || blocks > 0 && blocks % SHAPE.steps == 0, "{blocks}: {copies:?}");

        let plain = pipeline.generate(&Request::new("a red circle")).unwrap();
        assert!(plain.trace.is_none() && plain.rgb == output.rgb);
    }
}
