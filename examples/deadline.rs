//! A picture by a deadline, or in what there is time for: `cargo run --release --example deadline`.

use std::time::Duration;

use schnell::{Error, Late, Model, Pipeline, Request, Shape};

fn main() -> schnell::Result<()> {
    let times = std::env::temp_dir().join(format!("schnell-times-{}.json", std::process::id()));
    let model = Model::demo()?;
    // Draws three pictures to know how long they take; a program that starts again with this file does not.
    let shape = Shape::square(64).steps(2);
    let mut pipeline = Pipeline::builder(&model).warm_up([shape]).calibrate(&times).load()?;
    let request = Request::new("a blue triangle").seed(7);
    if let Some(expected) = pipeline.expected(&request, false) {
        println!("{:.0} ms are expected", expected.as_secs_f64() * 1e3);
    }
    match pipeline.generate(&request.clone().deadline(Duration::from_micros(50), Late::Fail)) {
        Err(Error::Deadline { needed, deadline, .. }) => {
            println!("refused: {needed:.1?} are more than {deadline:?}");
        }
        other => println!("drawn in {:.0} ms", other?.timings.total_ms),
    }
    let image = pipeline.generate(&request.deadline(Duration::from_secs(60), Late::Estimate))?;
    match image.estimate {
        Some(steps) => println!("an estimate after {steps} steps"),
        None => println!("a whole picture, in {:.0} ms", image.timings.total_ms),
    }
    std::fs::remove_file(&times).map_err(|source| Error::Io { action: "remove", path: times, source })
}
