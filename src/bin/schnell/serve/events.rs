//! An answer bit by bit, as server-sent events: `image_generation.completed` and `error` as OpenAI's clients know them, and before them
//! ours, `image_generation.queued` and `image_generation.progress`.
//!
//! What a client reads too slowly is left out, but for pictures. What a picture looks like so far comes as OpenAI's
//! `image_generation.partial_image`, where that was asked for.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::http::{HeaderName, HeaderValue};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::stream;
use schnell::{ImageFormat, Preview};
use serde_json::{Map, Value, json};
use tokio::sync::watch;

use super::http::Server;
use super::images::{Answer, Waiter, common};
use super::queue::{Job, Seen, Stage, Status};
use super::refused::Code;
use crate::service::refusal::Refusal;

/// A comment so often keeps proxies from closing.
const HEARTBEAT: Duration = Duration::from_secs(15);

/// From one event to the next.
struct Telling {
    waiter: Waiter,
    answer: Answer,
    server: Arc<Server>,
    status: watch::Receiver<Status>,
    /// What was told last.
    stage: Option<Stage>,
    /// Picture and number of the last that was shown.
    seen: Option<(usize, usize)>,
    /// Pictures that were told of.
    done: usize,
    ready: VecDeque<Event>,
    has_ended: bool,
}

/// The stream of a job; when the client goes, the stream goes, and the waiter with it.
pub fn stream(waiter: Waiter, answer: Answer, server: Arc<Server>) -> Response {
    let mut status = waiter.job.status();
    // What there is by now counts as new.
    status.mark_changed();
    let telling = Telling {
        waiter,
        answer,
        server,
        status,
        stage: None,
        seen: None,
        done: 0,
        ready: VecDeque::new(),
        has_ended: false,
    };
    let events = stream::unfold(telling, |mut telling| async move {
        let event = telling.next().await?;
        Some((Ok::<_, Infallible>(event), telling))
    });
    let mut response = Sse::new(events).keep_alive(KeepAlive::new().interval(HEARTBEAT)).into_response();
    // Proxies must not collect it.
    let unbuffered = HeaderName::from_static("x-accel-buffering");
    response.headers_mut().insert(unbuffered, HeaderValue::from_static("no"));
    response
}

impl Telling {
    async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(event);
            }
            if self.has_ended {
                return None;
            }
            // The waiter has the other end.
            self.status.changed().await.ok()?;
            let status = self.status.borrow_and_update().clone();
            self.tell(&status);
        }
    }

    /// What is new.
    fn tell(&mut self, status: &Status) {
        for picture in status.done.iter().skip(self.done) {
            let mut fields = self.answer.of(picture, &self.server);
            fields.insert("index".to_string(), json!(self.done));
            fields.insert("created_at".to_string(), json!(self.waiter.job.created));
            fields.extend(common(&self.waiter.job).map(|(name, value)| (name.to_string(), value)));
            self.ready.push_back(event("image_generation.completed", fields));
            self.done += 1;
        }
        if let Some(end) = &status.end {
            self.has_ended = true;
            if let Err(refusal) = end {
                self.server.metrics.refused(Code(refusal.code));
                self.ready.push_back(error(refusal));
            }
            return;
        }
        if self.stage != Some(status.stage) {
            self.stage = Some(status.stage);
            self.ready.extend(told(status.stage));
        }
        // Of a picture that is there nobody wants to know what it looked like.
        if let Some(seen) = status.preview.as_ref().filter(|seen| seen.picture >= self.done)
            && self.seen != Some((seen.picture, seen.number))
        {
            self.seen = Some((seen.picture, seen.number));
            self.ready.extend(shown(seen, &self.waiter.job));
        }
    }
}

/// What is said of a stage.
fn told(stage: Stage) -> Option<Event> {
    let (name, fields) = match stage {
        Stage::Waiting(ahead) => ("image_generation.queued", json!({ "ahead": ahead })),
        Stage::Begun => return None,
        Stage::Text { picture } => {
            ("image_generation.progress", json!({ "index": picture, "stage": "text" }))
        }
        Stage::Step { picture, step, steps } => (
            "image_generation.progress",
            json!({ "index": picture, "stage": "step", "step": step, "steps": steps }),
        ),
        Stage::Decoding { picture } => {
            ("image_generation.progress", json!({ "index": picture, "stage": "decoding" }))
        }
    };
    match fields {
        Value::Object(fields) => Some(event(name, fields)),
        _ => None,
    }
}

/// What a picture looks like so far, as a small PNG.
fn shown(seen: &Seen, job: &Job) -> Option<Event> {
    let Preview { width, height, rgb, .. } = &*seen.preview;
    // A step that is not shown costs no picture.
    let file = schnell::image::encode(ImageFormat::Png, *width, *height, rgb, &[]).ok()?;
    let mut fields = Map::new();
    fields.insert("index".to_string(), json!(seen.picture));
    fields.insert("partial_image_index".to_string(), json!(seen.number));
    fields.insert("b64_json".to_string(), json!(STANDARD.encode(file)));
    fields.insert("created_at".to_string(), json!(job.created));
    fields.insert("size".to_string(), json!(format!("{}x{}", job.shape.width, job.shape.height)));
    fields.insert("output_format".to_string(), json!("png"));
    Some(event("image_generation.partial_image", fields))
}

fn event(name: &str, mut fields: Map<String, Value>) -> Event {
    fields.insert("type".to_string(), json!(name));
    Event::default().event(name).data(Value::Object(fields).to_string())
}

fn error(refusal: &Refusal) -> Event {
    let mut body = refusal.body();
    body["type"] = json!("error");
    Event::default().event("error").data(body.to_string())
}
