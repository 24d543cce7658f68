//! Pixels into memory of the caller's, picture after picture without an allocation for them:
//! `cargo run --release --example own_buffer`.

use schnell::{Model, Pipeline, Request, Shape};

const SIDE: usize = 64;

fn main() -> schnell::Result<()> {
    let model = Model::demo()?;
    let mut pipeline = Pipeline::builder(&model).warm_up([Shape::square(SIDE)]).load()?;
    let mut rgb = vec![0; SIDE * SIDE * 3];
    for seed in 0..2 {
        let image = pipeline.generate_into(&Request::new("a blue triangle").seed(seed), &mut rgb)?;
        let sum: u64 = rgb.iter().map(|&byte| u64::from(byte)).sum();
        let mean = sum as f64 / rgb.len() as f64;
        println!("seed {seed}: {:.0} ms, mean brightness {mean:.1}", image.timings.total_ms);
    }
    Ok(())
}
