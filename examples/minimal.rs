//! A prompt, a picture: `cargo run --release --example minimal [MODEL]`. Without a model it is the bundled one, and without a
//! GPU the emulator.

use schnell::{Model, Pipeline, Request, Shape};

fn main() -> schnell::Result<()> {
    let (model, side) = match std::env::args().nth(1) {
        Some(model) => (Model::open(model)?, 512),
        None => (Model::demo()?, 64),
    };
    let mut pipeline = Pipeline::builder(&model).warm_up([Shape::square(side)]).load()?;
    let image = pipeline.generate(&Request::new("a red circle on a blue background").seed(42))?;
    image.save("minimal.png")?;
    println!("minimal.png: {}", image.timings.summary());
    Ok(())
}
