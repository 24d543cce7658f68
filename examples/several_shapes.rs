//! Several sizes on one load of the weights, within one allocation: `cargo run --release --example several_shapes`.

use schnell::{Error, Model, Pipeline, Request, Shape, human_bytes};

fn main() -> schnell::Result<()> {
    let model = Model::demo()?;
    // What is named here is planned and made ready; the allocation is as large as the largest of them needs.
    let shapes = [Shape::new(64, 64), Shape::new(96, 64)];
    let builder = Pipeline::builder(&model).warm_up(shapes);
    println!("it takes {}", human_bytes(builder.plan()?.arena_bytes()));
    let mut pipeline = builder.load()?;

    let request = Request::new("a small green ring above a yellow square").seed(7);
    for Shape { width, height, .. } in shapes {
        let image = pipeline.generate(&request.clone().size(width, height))?;
        let name = format!("ring_{width}x{height}.png");
        image.save(&name)?;
        println!("{name}: {}", image.timings.summary());
    }
    // What does not fit is refused with the bytes that are missing; the pipeline stays usable.
    match pipeline.generate(&request.size(1024, 1024)) {
        Err(Error::Capacity { needed_bytes, available_bytes, .. }) => {
            println!("1024 x 1024 would need {} more bytes", needed_bytes - available_bytes);
        }
        Err(error) => return Err(error),
        Ok(_) => println!("1024 x 1024 fits, too"),
    }
    Ok(())
}
