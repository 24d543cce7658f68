//! The thread that owns the pipeline: loads, warms up, draws job after job. Behind it a thread that makes files of pictures, so that the
//! device does not wait for them.

use std::ops::ControlFlow::{self, Break, Continue};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use axum::http::StatusCode;
use schnell::{Error, Output, Pipeline, Progress, Request, Result};

use super::http::Server;
use super::images::Picture;
use super::queue::{Job, Phase, Stage};
use crate::service::Opened;
use crate::service::refusal::Refusal;
use crate::terminal::say;

/// What the thread of files is sent.
enum Made {
    Picture(Arc<Job>, Box<Output>, Request),
    End(Arc<Job>, Result<(), Refusal>),
}

/// Loads and draws until the queue is drained.
///
/// # Errors
/// Those of loading; and those of drawing that would come again for every picture, as of the device.
pub fn run(opened: &Opened<'_>, server: &Arc<Server>) -> Result<()> {
    let is_ending = || server.queue.phase() == Phase::Draining;
    let mut pipeline = match opened.load(is_ending, |pipeline, shape, _| server.times.learn(pipeline, shape))
    {
        // It was told to end.
        Err(Error::Stopped) => return Ok(()),
        Err(error) => {
            server.queue.drain();
            return Err(error);
        }
        Ok(pipeline) => pipeline,
    };
    server.metrics.set_driver_bytes(pipeline.overhead_bytes());
    server.queue.set_ready();
    say("ready");
    // One picture may wait to become a file while another is drawn.
    let (sender, receiver) = sync_channel(1);
    std::thread::scope(|scope| {
        let files = std::thread::Builder::new().name("files".to_string());
        files
            .spawn_scoped(scope, move || make_files(&receiver, server))
            .map_err(|e| Error::Internal(format!("no thread for files of pictures: {e}")))?;
        // Dropped at the end, which ends that thread.
        let sender = sender;
        while let Some(job) = server.queue.next() {
            let drawn = draw(&mut pipeline, &job, server, &sender);
            let end = drawn.as_ref().map_err(Refusal::of).copied();
            let lost = sender.send(Made::End(job, end)).is_err();
            if lost {
                return Err(Error::Internal("the thread of files has ended".to_string()));
            }
            match drawn {
                Err(error @ (Error::Device { .. } | Error::Poisoned { .. } | Error::Internal(_))) => {
                    // The next picture would meet it, too. Whoever starts the process again gets a sound one.
                    server.queue.drain();
                    let text =
                        "the device has failed, and the server ends; send it again once it has started";
                    let refusal = Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "device_failed", text);
                    server.queue.refuse_all(&refusal.retry_after(Duration::from_secs(10)));
                    return Err(error);
                }
                _ => continue,
            }
        }
        Ok(())
    })
}

/// All pictures of a job.
fn draw(pipeline: &mut Pipeline, job: &Arc<Job>, server: &Server, files: &SyncSender<Made>) -> Result<()> {
    server.metrics.waited(job.arrived.elapsed());
    for (picture, request) in job.requests.iter().enumerate() {
        let mut timed = request.clone();
        // Of the time that there was some is gone.
        timed.deadline = job.deadline.map(|deadline| deadline.saturating_sub(job.arrived.elapsed()));
        let begun = Instant::now();
        let mut tell = |progress| tell(job, picture, progress);
        let output = match job.previews > 0 {
            true => pipeline.generate_previewed(&timed, &mut tell, &mut |preview| job.show(picture, preview)),
            false => pipeline.generate_with(&timed, &mut tell),
        }?;
        server.metrics.drawn(&output.timings, begun.elapsed());
        server.times.learn(pipeline, &job.shape);
        let made = Made::Picture(job.clone(), Box::new(output), request.clone());
        files.send(made).map_err(|_| Error::Internal("the thread of files has ended".to_string()))?;
    }
    Ok(())
}

fn tell(job: &Job, picture: usize, progress: Progress) -> ControlFlow<()> {
    match progress {
        Progress::TextEncoding => job.set_stage(Stage::Text { picture }),
        Progress::Step { index, total } => {
            job.set_stage(Stage::Step { picture, step: index + 1, steps: total });
        }
        Progress::Decoding => job.set_stage(Stage::Decoding { picture }),
        _ => {}
    }
    if job.is_cancelled() { Break(()) } else { Continue(()) }
}

/// Until there will be no more.
fn make_files(receiver: &Receiver<Made>, server: &Server) {
    for made in receiver {
        match made {
            Made::Picture(job, output, request) => {
                let begun = Instant::now();
                match Picture::new(&output, &request, job.format) {
                    Ok(picture) => job.add(Arc::new(picture)),
                    Err(error) => job.end(Err(Refusal::of(&error))),
                }
                server.metrics.encoded(begun.elapsed());
            }
            Made::End(job, end) => {
                if end.is_ok() {
                    server.metrics.answered(job.arrived.elapsed());
                }
                job.end(end);
            }
        }
    }
}
