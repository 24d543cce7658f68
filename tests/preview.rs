//! Previews: what each step takes for the picture, small, and the picture is the same for it.

mod common;
use std::ops::ControlFlow::Continue;

use common::*;
use schnell::Error;
use schnell::device::Device;
use schnell::pipeline::{Model, Output, Pipeline, Plan, Preview, Progress, Quantize, Request, Shape};

const SIDE: usize = 128;
/// Of the preview, and of the latents.
const SMALL: usize = SIDE / 8;
const STEPS: usize = 4;
const CHANNELS: usize = 16;
/// The rest is edges, which lie within a preview's pixel, and what is not linear.
const LEAST_EXPLAINED: f32 = 0.6;
const SHAPE: Shape = Shape { width: SIDE, height: SIDE, steps: STEPS, t5_length: 32, true_cfg: false };

fn load(model: &Model, device: &Device) -> Pipeline {
    Pipeline::builder(model).warm_up([SHAPE]).device(device).previews().load().unwrap()
}

fn draw(pipeline: &mut Pipeline, request: &Request) -> (Output, Vec<Preview>) {
    let mut previews = Vec::new();
    let output = pipeline.generate_previewed(request, &mut |_| Continue(()), &mut |p| previews.push(p));
    (output.unwrap(), previews)
}

/// Means of 8 x 8 pixels each, f32 `[height / 8, width / 8, 3]`.
fn reduced(rgb: &[u8], [height, width]: [usize; 2]) -> Vec<f32> {
    let mean = |y: usize, x: usize, color: usize| {
        let pixels = (0..64).map(|i| rgb[((8 * y + i / 8) * width + 8 * x + i % 8) * 3 + color]);
        pixels.map(f32::from).sum::<f32>() / 64.0
    };
    let places = (0..height / 8).flat_map(|y| (0..width / 8).map(move |x| (y, x)));
    places.flat_map(|(y, x)| [0, 1, 2].map(|color| mean(y, x, color))).collect()
}

/// Root of the mean square.
fn rms(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    (a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum::<f32>() / a.len() as f32).sqrt()
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.iter().copied().map(f32::from).collect()
}

#[test]
fn every_step_is_shown_and_the_picture_is_the_same() {
    let (_dir, model) = demo();
    let device = random_emulator(3, 2);
    let mut pipeline = load(&model, &device);
    let request = Request::new("a small red star left of a big blue ring on a yellow background").seed(3);
    let plain = pipeline.generate(&request).unwrap();
    let before = device.num_waits();
    let again = pipeline.generate(&request).unwrap();
    let waits = device.num_waits() - before;
    let before = device.num_waits();
    let (output, previews) = draw(&mut pipeline, &request);
    // A step's copy is looked at when the step is over: these waits find nothing to wait for, but for the last, and the decoder is at
    // work then.
    assert_eq!(device.num_waits() - before, waits + STEPS);
    assert!(output.rgb == plain.rgb && again.rgb == plain.rgb && output.receipt == plain.receipt);
    let steps: Vec<usize> = previews.iter().map(|preview| preview.step).collect();
    assert_eq!(steps, [0, 1, 2, 3]);
    let picture = reduced(&output.rgb, [SIDE, SIDE]);
    let errors: Vec<f32> = previews.iter().map(|preview| rms(&floats(&preview.rgb), &picture)).collect();
    assert!(previews.iter().all(|p| (p.width, p.height, p.rgb.len()) == (SMALL, SMALL, SMALL * SMALL * 3)));
    // Of 255.
    assert!(errors[STEPS - 1] < 60.0, "{errors:?}");
}

/// The clean picture that a step is heading for is what the decoder would get if it went all the way.
#[test]
fn a_preview_is_of_the_estimate() {
    let (_dir, model) = demo();
    let mut pipeline = load(&model, &emulator());
    let request = Request::new("a blue triangle").seed(4);
    let (_, all) = draw(&mut pipeline, &request);
    for steps in 1..STEPS {
        let (output, previews) = draw(&mut pipeline, &request.clone().estimate_after(steps));
        assert_eq!((output.estimate, previews.len()), (Some(steps), steps));
        let (estimate, preview) = (&previews[steps - 1], &all[steps - 1]);
        let most = estimate.rgb.iter().zip(&preview.rgb).map(|(a, b)| a.abs_diff(*b)).max();
        assert!(most <= Some(1), "after {steps}: {most:?}");
    }
    assert!(rms(&floats(&all[0].rgb), &floats(&all[1].rgb)) > 1.0, "steps differ");
}

/// As for a picture: shape after shape, and stopped in between.
#[test]
fn previews_of_other_shapes_and_after_a_stop() {
    let (_dir, model) = demo();
    let least = Plan::new(model.config(), SHAPE, Quantize::Nf4).unwrap().least_bytes().unwrap();
    let small = Shape { width: 64, height: 96, ..SHAPE };
    let builder = Pipeline::builder(&model).device(&random_emulator(9, 2)).previews();
    let mut pipeline = builder.warm_up([SHAPE]).budget(least).load().unwrap();
    let request = Request::new("a red circle").size(small.width, small.height).steps(3);
    let (_, previews) = draw(&mut pipeline, &request);
    assert_eq!(previews.len(), 3);
    assert!(previews.iter().all(|p| (p.width, p.height) == (8, 12)));
    let mut seen = 0;
    let mut stop = |p| match p {
        Progress::Step { index: 1, .. } => std::ops::ControlFlow::Break(()),
        _ => Continue(()),
    };
    let stopped = pipeline.generate_previewed(&request, &mut stop, &mut |_| seen += 1);
    assert!(matches!(stopped, Err(Error::Stopped)));
    assert!(seen <= 1);
    let (_, again) = draw(&mut pipeline, &request);
    assert_eq!(again, previews);
}

#[test]
fn previews_are_planned_and_refused_without_room() {
    let (_dir, model) = demo();
    let plain = Plan::new(model.config(), SHAPE, Quantize::Nf4).unwrap();
    let with = plain.clone().with_previews().unwrap();
    assert_eq!(with.host_bytes().1 - plain.host_bytes().1, 2 * 4 * (SMALL * SMALL * CHANNELS) as u64);
    assert_eq!((with.arena_bytes(), with.launches()), (plain.arena_bytes(), plain.launches()));
    let (loading, generating) = with.host_bytes();
    let error = with.clone().within_host(loading + generating - 1).unwrap_err();
    assert!(matches!(error, Error::Capacity { needed_bytes, .. } if needed_bytes == loading + generating));
    let device = emulator();
    let mut pipeline = Pipeline::builder(&model).with_plan(plain).device(&device).load().unwrap();
    let waits = device.num_waits();
    let request = Request::new("a red circle");
    let error = pipeline.generate_previewed(&request, &mut |_| Continue(()), &mut |_| panic!("no room"));
    let error = error.unwrap_err();
    assert!(matches!(&error, Error::Input(text) if text.contains("`previews`")), "{error}");
    assert_eq!(device.num_waits(), waits);
    // Of a VAE that nobody has fitted, which its scale tells.
    let dir = tempfile::tempdir().unwrap();
    schnell::demo::write(dir.path()).unwrap();
    let config = dir.path().join("vae/config.json");
    let text = std::fs::read_to_string(&config).unwrap().replace("1.153256438187536", "0.5");
    std::fs::write(&config, text).unwrap();
    let other = Model::open(dir.path()).unwrap();
    let refused = Pipeline::builder(&other).warm_up([SHAPE]).device(&device).previews().load();
    match refused.map(|_| "loaded") {
        Err(Error::Unsupported(text)) => assert!(text.contains("scaling 0.5"), "{text}"),
        other => panic!("{other:?}"),
    }
}

/// The bundled model's colors are a fit to its own pictures (`models/demo/fit_preview.py`): they explain others, too.
#[test]
fn the_bundled_models_colors_are_those_of_its_pictures() {
    let (_dir, model) = demo();
    let mut pipeline = load(&model, &emulator());
    let prompts = [
        "a small red star left of a big blue ring on a yellow background",
        "a big green square on a black background",
        "a white circle above a purple triangle on an orange background",
    ];
    let (mut ours, mut pictures) = (Vec::new(), Vec::new());
    for (seed, prompt) in prompts.iter().enumerate() {
        let (output, previews) = draw(&mut pipeline, &Request::new(*prompt).seed(seed as u64));
        ours.extend(floats(&previews[STEPS - 1].rgb));
        pictures.extend(reduced(&output.rgb, [SIDE, SIDE]));
    }
    let mean = pictures.iter().sum::<f32>() / pictures.len() as f32;
    let spread = rms(&pictures, &vec![mean; pictures.len()]);
    let explained = 1.0 - (rms(&ours, &pictures) / spread).powi(2);
    assert!(explained > LEAST_EXPLAINED, "{explained} of the variance");
}
