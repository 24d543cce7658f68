//! Several pictures of one request: each is that of its seed alone, and the prompt is encoded once.

mod common;
use std::ops::ControlFlow::{Break, Continue};

use common::*;
use schnell::Error;
use schnell::pipeline::{Noise, Output, Pipeline, Progress, Request, Shape};

const SHAPE: Shape = Shape { width: 64, height: 64, steps: 2, t5_length: 16, true_cfg: false };

fn draw(pipeline: &mut Pipeline, request: &Request, seeds: &[u64]) -> Vec<Output> {
    let mut outputs = Vec::new();
    let drawn = pipeline.generate_seeds(request, seeds.iter().copied(), &mut |_| Continue(()), |output| {
        outputs.push(output);
        Continue(())
    });
    drawn.unwrap();
    outputs
}

fn has_encoded(output: &Output) -> bool {
    output.timings.stages.iter().any(|stage| stage.stage == "clip")
}

#[test]
fn each_picture_is_that_of_its_seed_and_the_prompt_is_encoded_once() {
    let (_dir, model) = demo();
    let plain = Request::new("a red circle");
    for request in [plain.clone(), plain.negative_prompt("a blue square", 2.0)] {
        for prompts in [0, 16] {
            let shape = Shape { true_cfg: request.true_cfg(), ..SHAPE };
            let load = || {
                let builder = Pipeline::builder(&model).warm_up([shape]).prompt_cache(prompts);
                builder.device(&random_emulator(1, 2)).load().unwrap()
            };
            let (mut pipeline, mut alone) = (load(), load());
            let seeds = [7, 0, 7, u64::from(u32::MAX)];
            let outputs = draw(&mut pipeline, &request, &seeds);
            assert_eq!(outputs.len(), seeds.len());
            for (i, (output, seed)) in outputs.iter().zip(seeds).enumerate() {
                let single = alone.generate(&request.clone().seed(seed)).unwrap();
                assert!(output.rgb == single.rgb && output.receipt == single.receipt, "seed {seed}");
                assert_eq!(output.notes, single.notes);
                assert_eq!(has_encoded(output), i == 0, "{prompts} prompts, picture {i}");
            }
            assert!(outputs[0].rgb != outputs[1].rgb && outputs[0].rgb == outputs[2].rgb);
            // Nobody has asked to remember more for longer.
            let next = pipeline.generate(&request).unwrap();
            assert_eq!(has_encoded(&next), prompts == 0);
        }
    }
}

#[test]
fn who_gets_the_pictures_may_end_them_and_errors_come_through() {
    let (_dir, model) = demo();
    let builder = Pipeline::builder(&model).warm_up([SHAPE]).prompt_cache(0);
    let mut pipeline = builder.device(&emulator()).load().unwrap();
    let request = Request::new("a red circle");
    let mut count = 0;
    let ended = pipeline.generate_seeds(&request, 0.., &mut |_| Continue(()), |_| {
        count += 1;
        if count == 2 { Break(()) } else { Continue(()) }
    });
    ended.unwrap();
    assert_eq!(count, 2);
    let (mut begun, mut given) = (0, 0);
    let mut stop = |p| {
        begun += usize::from(p == Progress::Decoding);
        if begun == 2 { Break(()) } else { Continue(()) }
    };
    let stopped = pipeline.generate_seeds(&request, 0..5, &mut stop, |_| {
        given += 1;
        Continue(())
    });
    assert!(matches!(stopped, Err(Error::Stopped)), "{stopped:?}");
    assert_eq!(given, 1);
    assert!(has_encoded(&pipeline.generate(&request).unwrap()), "an error leaves nothing remembered, either");
    let given = request.noise(Noise::Given(vec![0.0; 16 * 64]));
    let error = pipeline.generate_seeds(&given, [1], &mut |_| Continue(()), |_| panic!("of what?"));
    assert!(matches!(error.unwrap_err(), Error::Input(text) if text.contains("noise is given")));
}
