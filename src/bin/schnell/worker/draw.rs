//! All pictures of a job, which says at each stage that it goes on.

use std::ops::ControlFlow::Continue;
use std::sync::Arc;

use async_nats::jetstream::message::AckKind;
use schnell::{Output, Pipeline, Progress, Result};
use serde_json::json;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;

use super::bus::Bus;
use super::job::Job;
use crate::service::asked::Asked;

/// Draws; what comes too late is [`schnell::Error::Deadline`], counted from when the job was sent.
pub fn draw(
    pipeline: &mut Pipeline,
    asked: &Asked,
    job: &Arc<Job>,
    bus: &Arc<Bus>,
    runtime: &Runtime,
) -> Result<Vec<Output>> {
    let (sender, receiver) = mpsc::unbounded_channel();
    let telling = runtime.spawn(tell(job.clone(), bus.clone(), receiver));
    let drawn = asked.requests.iter().enumerate().map(|(picture, request)| {
        let mut timed = request.clone();
        timed.deadline = request.deadline.map(|deadline| deadline.saturating_sub(job.age()));
        pipeline.generate_with(&timed, &mut |progress| {
            // It is heard as long as the task is there.
            let _ = sender.send((picture, progress));
            Continue(())
        })
    });
    let drawn = drawn.collect();
    drop(sender);
    // What it says last comes before the answer.
    let _ = runtime.block_on(telling);
    drawn
}

/// Each stage extends the job's time; whoever wants to see it may listen.
async fn tell(job: Arc<Job>, bus: Arc<Bus>, mut stages: mpsc::UnboundedReceiver<(usize, Progress)>) {
    while let Some((picture, progress)) = stages.recv().await {
        if let Err(error) = job.acker.ack_with(AckKind::Progress).await {
            tracing::warn!("job {}: {error}", job.id);
        }
        let stage = match progress {
            Progress::TextEncoding => json!({ "stage": "text" }),
            Progress::Step { index, total } => json!({ "stage": "step", "step": index + 1, "steps": total }),
            Progress::Decoding => json!({ "stage": "decoding" }),
            _ => continue,
        };
        let mut told = stage;
        told["index"] = json!(picture);
        told["node"] = json!(bus.node);
        told["attempt"] = json!(job.attempt);
        bus.tell(&job.id, &told).await;
    }
}
