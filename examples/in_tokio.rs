//! A server's way: one thread owns the pipeline, tasks send it requests and await pictures; a task that has gone away stops
//! its picture. `cargo run --release --example in_tokio`.

use std::ops::ControlFlow::{Break, Continue};

use schnell::{Error, Model, Output, Pipeline, Request, Result, Shape};
use tokio::sync::{mpsc, oneshot};

struct Job {
    request: Request,
    done: oneshot::Sender<Result<Output>>,
}

/// Loads, then draws until nobody can send any more.
fn work(mut jobs: mpsc::Receiver<Job>) -> Result<()> {
    let model = Model::demo()?;
    let mut pipeline = Pipeline::builder(&model).warm_up([Shape::square(64)]).load()?;
    while let Some(Job { request, done }) = jobs.blocking_recv() {
        let drawn = pipeline.generate_with(&request, &mut |_| match done.is_closed() {
            true => Break(()),
            false => Continue(()),
        });
        // Nobody may be waiting any more.
        let _ = done.send(drawn);
    }
    Ok(())
}

async fn draw(jobs: &mpsc::Sender<Job>, request: Request) -> Result<Output> {
    let (done, drawn) = oneshot::channel();
    let gone = || Error::Input("the drawing thread has ended; its own error says why".to_string());
    jobs.send(Job { request, done }).await.map_err(|_| gone())?;
    drawn.await.map_err(|_| gone())?
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let (jobs, received) = mpsc::channel(8);
    let worker = tokio::task::spawn_blocking(move || work(received));
    let prompt = "a red star on a white background";
    let (a, b) =
        tokio::join!(draw(&jobs, Request::new(prompt).seed(1)), draw(&jobs, Request::new(prompt).seed(2)),);
    drop(jobs);
    // Why the thread ended says more than that it has.
    worker.await.expect("the drawing thread does not panic")?;
    a?.save("star_1.png")?;
    b?.save("star_2.png")?;
    println!("star_1.png and star_2.png");
    Ok(())
}
