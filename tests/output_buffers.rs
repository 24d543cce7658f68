//! Pixels where and as the caller wants them: every kind of buffer holds the picture that a file would have.

mod common;
use common::*;
use schnell::device::{Device, StreamId};
use schnell::pipeline::{DumpValues, Model, OutputBuffer, Pipeline, Pixels, Plan, Quantize, Request, Shape};
use schnell::{DeviceBuffer, Error, Result};

const WIDTH: usize = 96;
const HEIGHT: usize = 64;
const LEN: usize = WIDTH * HEIGHT * 3;
const SHAPE: Shape = Shape { width: WIDTH, height: HEIGHT, steps: 1, t5_length: 16, true_cfg: false };
const ALL: [Pixels; 4] = [Pixels::U8Hwc, Pixels::U8Chw, Pixels::F32Hwc, Pixels::F32Chw];

fn load(model: &Model, device: &Device) -> Pipeline {
    Pipeline::builder(model).warm_up([SHAPE]).device(device).f32_pixels().dumps().load().unwrap()
}

fn request() -> Request {
    Request::new("a red circle").seed(5)
}

/// `[pixels, 3]` as `[3, pixels]`.
fn planar<T: Copy>(pixels: &[T]) -> Vec<T> {
    (0..3).flat_map(|color| pixels.chunks(3).map(move |pixel| pixel[color])).collect()
}

/// What each kind of pixels is of a picture, as bytes: by the decoder's own numbers and by the bytes of its file.
fn expected(pipeline: &mut Pipeline) -> [Vec<u8>; 4] {
    let output = pipeline.generate(&Request { dump: true, ..request() }).unwrap();
    let image = output.dumps.into_iter().find(|dump| dump.stage == "vae_out").unwrap();
    assert_eq!(image.shape, [1, 3, HEIGHT, WIDTH]);
    let DumpValues::F32(values) = image.values else { panic!("no floats") };
    let chw: Vec<f32> = values.iter().map(|x| (x / 2.0 + 0.5).clamp(0.0, 1.0)).collect();
    let hwc: Vec<f32> =
        (0..WIDTH * HEIGHT).flat_map(|pixel| [0, 1, 2].map(|c| chw[c * WIDTH * HEIGHT + pixel])).collect();
    let bytes: Vec<u8> = hwc.iter().map(|unit| (unit * 255.0).round_ties_even() as u8).collect();
    assert_eq!(bytes, output.rgb, "bytes are those of the floats");
    assert!(chw.iter().any(|x| x * 255.0 != (x * 255.0).round()), "floats say more than bytes");
    let floats = |values: &[f32]| bytemuck::cast_slice(values).to_vec();
    [output.rgb.clone(), planar(&output.rgb), floats(&hwc), floats(&chw)]
}

fn on_host(pipeline: &mut Pipeline, pixels: Pixels) -> Vec<u8> {
    let (mut bytes, mut floats) = (vec![7u8; LEN], vec![f32::NAN; LEN]);
    let buffer = match pixels {
        Pixels::U8Hwc => OutputBuffer::U8Hwc(&mut bytes),
        Pixels::U8Chw => OutputBuffer::U8Chw(&mut bytes),
        Pixels::F32Hwc => OutputBuffer::F32Hwc(&mut floats),
        _ => OutputBuffer::F32Chw(&mut floats),
    };
    assert_eq!(buffer.pixels(), pixels);
    let is_bytes = matches!(pixels, Pixels::U8Hwc | Pixels::U8Chw);
    let output = pipeline.generate_into(&request(), buffer).unwrap();
    assert!(output.rgb.is_empty());
    if is_bytes { bytes } else { bytemuck::cast_slice(&floats).to_vec() }
}

/// Memory of somebody else's, which is a part of theirs: what lies beside it is left alone.
fn in_foreign_memory(pipeline: &mut Pipeline, pixels: Pixels) -> Vec<u8> {
    const BESIDE: usize = 256;
    let device = pipeline.device().clone();
    let len = pixels.num_bytes(WIDTH, HEIGHT).unwrap();
    let theirs = DeviceBuffer::new(&device, len + 2 * BESIDE).unwrap();
    let before = theirs.read().unwrap();
    // SAFETY: `theirs` outlives the buffer, and nothing else uses it meanwhile.
    #[allow(unsafe_code)]
    let buffer = unsafe { DeviceBuffer::from_raw(&device, theirs.address() + BESIDE as u64, len) };
    let mut buffer = buffer.unwrap();
    let output = OutputBuffer::Device(&mut buffer, pixels);
    let timings = pipeline.generate_into(&request(), output).unwrap().timings;
    assert!(timings.stages.iter().any(|stage| stage.stage == "pixels" && stage.ms > 0.0));
    drop(buffer);
    let after = theirs.read().unwrap();
    assert!(after[..BESIDE] == before[..BESIDE] && after[BESIDE + len..] == before[BESIDE + len..]);
    after[BESIDE..BESIDE + len].to_vec()
}

#[test]
fn every_buffer_holds_the_same_picture() {
    let (_dir, model) = demo();
    let device = random_emulator(3, 2);
    let mut pipeline = load(&model, &device);
    let expected = expected(&mut pipeline);
    let hashes = pipeline.generate(&request()).unwrap().receipt;
    for (pixels, expected) in ALL.into_iter().zip(&expected) {
        let allocations = device.num_allocations();
        assert!(on_host(&mut pipeline, pixels) == *expected, "{pixels:?} on the host");
        assert_eq!(device.num_allocations(), allocations);
        assert!(in_foreign_memory(&mut pipeline, pixels) == *expected, "{pixels:?} on the device");
    }
    let mut pinned = device.allocate_host(4 * LEN).unwrap();
    let floats: &mut [f32] = bytemuck::cast_slice_mut(pinned.as_mut_slice());
    let output = pipeline.generate_into(&request(), OutputBuffer::F32Hwc(floats)).unwrap();
    assert!(pinned.as_slice() == expected[2], "in pinned memory");
    assert_eq!(output.receipt, hashes, "a receipt does not depend on where pixels go");
}

/// When the call returns, whatever stream comes next finds the picture: none waits for another here.
#[test]
fn a_device_buffer_is_ready_for_any_stream() {
    let (_dir, model) = demo();
    for seed in 0..4 {
        let device = random_emulator(seed, 2);
        let mut pipeline = Pipeline::builder(&model).warm_up([SHAPE]).device(&device).load().unwrap();
        let rgb = pipeline.generate(&request()).unwrap().rgb;
        let mut buffer = DeviceBuffer::new(&device, LEN).unwrap();
        pipeline.generate_into(&request(), OutputBuffer::Device(&mut buffer, Pixels::U8Hwc)).unwrap();
        let mut host = device.allocate_host(LEN).unwrap();
        buffer.enqueue_read(StreamId::Copy, &mut host).unwrap();
        device.synchronize(StreamId::Copy).unwrap();
        assert!(host.as_slice() == rgb, "schedule {seed}");
    }
}

/// The refusal's words; nothing has been done when it comes.
fn refused(pipeline: &mut Pipeline, buffer: OutputBuffer<'_>) -> String {
    let waits = pipeline.device().num_waits();
    let result: Result<_> = pipeline.generate_into(&request(), buffer);
    assert_eq!(pipeline.device().num_waits(), waits);
    match result.unwrap_err() {
        Error::Input(text) => text,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_no_picture_fits_is_refused_before_any_work() {
    let (_dir, model) = demo();
    let device = emulator();
    let mut pipeline = Pipeline::builder(&model).warm_up([SHAPE]).device(&device).load().unwrap();
    for len in [0, 1, LEN - 1, LEN + 1] {
        let text = refused(&mut pipeline, OutputBuffer::U8Hwc(&mut vec![0; len]));
        assert_eq!(text, format!("a buffer of {len} bytes for a 96 x 64 picture; it takes 3 bytes a pixel"));
        assert!(refused(&mut pipeline, OutputBuffer::U8Chw(&mut vec![0; len])).contains("3 bytes a pixel"));
        let mut floats = vec![0.0; len];
        let text = refused(&mut pipeline, OutputBuffer::F32Chw(&mut floats));
        assert!(text.contains(&format!("{} bytes", 4 * len)) && text.contains("12 bytes a pixel"), "{text}");
    }
    let text = refused(&mut pipeline, OutputBuffer::F32Hwc(&mut vec![0.0; LEN]));
    assert!(text.contains("f32_pixels"), "{text}");
    let mut buffer = DeviceBuffer::new(&device, LEN).unwrap();
    assert!(refused(&mut pipeline, OutputBuffer::Device(&mut buffer, Pixels::F32Hwc)).contains("12 bytes"));
    let mut elsewhere = DeviceBuffer::new(&emulator(), LEN).unwrap();
    let text = refused(&mut pipeline, OutputBuffer::Device(&mut elsewhere, Pixels::U8Hwc));
    assert!(text.contains("another device"), "{text}");
    let theirs = DeviceBuffer::new(&device, 4 * LEN + 4).unwrap();
    // SAFETY: `theirs` outlives them, and nothing else uses it; the others are refused.
    #[allow(unsafe_code)]
    let raw = |address: u64, bytes: usize| unsafe { DeviceBuffer::from_raw(&device, address, bytes) };
    let mut odd = raw(theirs.address() + 2, 4 * LEN).unwrap();
    let text = refused(&mut pipeline, OutputBuffer::Device(&mut odd, Pixels::F32Hwc));
    assert!(text.contains("multiple of 4"), "{text}");
    for (address, bytes) in [(0, 4), (u64::MAX, 2)] {
        let error = raw(address, bytes).unwrap_err();
        assert!(matches!(&error, Error::Input(text) if text.contains("none can be there")), "{error}");
    }
    // Any size whose bytes cannot be counted is refused as that.
    let huge = request().size(usize::MAX, 3);
    let error = pipeline.generate_into(&huge, &mut [0u8; 3][..]).unwrap_err();
    assert!(matches!(error, Error::Input(_)), "{error}");
    // And the pipeline is as it was.
    pipeline.generate_into(&request(), &mut vec![0; LEN]).unwrap();
}

/// Floats take pinned memory where they are asked for, and nothing of it otherwise.
#[test]
fn floats_are_planned() {
    let (_dir, model) = demo();
    let plain = Plan::new(model.config(), SHAPE, Quantize::Nf4).unwrap();
    let with = plain.clone().with_f32_pixels().unwrap();
    assert_eq!(with.host_bytes().1 - plain.host_bytes().1, 4 * LEN as u64);
    assert_eq!(with.clone().with_f32_pixels().unwrap().host_bytes(), with.host_bytes());
    assert_eq!(with.launches().matches("to_rgb_f32").count(), 1);
    assert!(!plain.launches().contains("to_rgb_f32"));
    let (loading, generating) = with.host_bytes();
    let error = with.within_host(loading + generating - 1).unwrap_err();
    assert!(matches!(error, Error::Capacity { needed_bytes, .. } if needed_bytes == loading + generating));
    let device = emulator();
    let pipeline = Pipeline::builder(&model).warm_up([SHAPE]).device(&device).f32_pixels().load().unwrap();
    assert_eq!(pipeline.plan().host_bytes().1, generating);
}
