//! A picture into device memory of the caller's, as floats, color by color, which is how networks take pictures: the next model on
//! the card reads it where it lies. `cargo run --release --example device_buffer`.

use schnell::{DeviceBuffer, Model, OutputBuffer, Pipeline, Pixels, Request, Shape};

const SIDE: usize = 64;

fn main() -> schnell::Result<()> {
    let model = Model::demo()?;
    let mut pipeline = Pipeline::builder(&model).warm_up([Shape::square(SIDE)]).load()?;
    // Memory of another library comes by `DeviceBuffer::from_raw`, with its address and size.
    let mut buffer = DeviceBuffer::new(pipeline.device(), SIDE * SIDE * 3 * size_of::<f32>())?;
    for seed in 0..2 {
        let request = Request::new("a blue triangle").seed(seed);
        let image = pipeline.generate_into(&request, OutputBuffer::Device(&mut buffer, Pixels::F32Chw))?;
        // Here another model would be launched on `buffer.address()`, on any stream. This one looks at it from the host.
        let floats: Vec<f32> =
            buffer.read()?.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        let means = floats.chunks(SIDE * SIDE).map(|color| color.iter().sum::<f32>() / color.len() as f32);
        let means: Vec<String> = means.map(|mean| format!("{mean:.3}")).collect();
        println!("seed {seed}: {:.0} ms, mean red, green, blue {}", image.timings.total_ms, means.join(", "));
    }
    Ok(())
}
