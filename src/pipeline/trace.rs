//! What ran when, of one picture: stages on the stream of kernels, weights on the stream of copies, and what the host did meanwhile.
//!
//! Device times are those of events on the stream that did the work. They are set beside the host's clock by the end of the run, for
//! which the host has waited: what it learns of that late is all that they are off by.

use std::sync::Arc;
use std::time::Instant;

use serde_json::{Value, json};

use super::ranges::Range;
use crate::Result;
use crate::device::{Device, Event, StreamId};

/// Who did something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lane {
    Host,
    Compute,
    Copy,
}

impl Lane {
    const ALL: [(Lane, &'static str); 3] =
        [(Lane::Host, "host"), (Lane::Compute, "stream of kernels"), (Lane::Copy, "stream of copies")];

    fn id(self) -> usize {
        Lane::ALL.iter().position(|(lane, _)| *lane == self).unwrap_or(0) + 1
    }
}

/// Milliseconds from when the picture was asked for.
#[derive(Clone, Debug)]
struct Span {
    lane: Lane,
    name: Arc<str>,
    begin: f64,
    end: f64,
}

/// What ran when, of one picture: see [`Request::trace`](super::Request::trace) and [`Trace::to_json`].
#[derive(Clone, Debug)]
pub struct Trace {
    /// When the picture was asked for.
    started: Instant,
    device: String,
    spans: Vec<Span>,
}

impl Trace {
    /// Adds what the caller's own program did with the picture, from `begun` until now.
    pub fn push(&mut self, name: &str, begun: Instant) {
        let (begin, end) = (ms_since(self.started, begun), ms_since(self.started, Instant::now()));
        self.spans.push(Span { lane: Lane::Host, name: name.into(), begin, end });
    }

    /// A file in the trace event format (<https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU>), which
    /// Perfetto and chrome://tracing show: complete events in microseconds, a thread for the host and one for each stream.
    pub fn to_json(&self) -> String {
        let names = Lane::ALL.map(|(lane, name)| {
            json!({"ph": "M", "name": "thread_name", "pid": 1, "tid": lane.id(), "args": {"name": name}})
        });
        let process = json!({"ph": "M", "name": "process_name", "pid": 1, "args": {"name": format!("schnell on {}", self.device)}});
        let span = |span: &Span| {
            let (ts, dur) = (1e3 * span.begin, 1e3 * (span.end - span.begin));
            json!({"ph": "X", "name": &*span.name, "pid": 1, "tid": span.lane.id(), "ts": ts, "dur": dur})
        };
        let events: Vec<Value> =
            [process].into_iter().chain(names).chain(self.spans.iter().map(span)).collect();
        json!({"displayTimeUnit": "ms", "traceEvents": events}).to_string()
    }
}

fn ms_since(start: Instant, at: Instant) -> f64 {
    at.saturating_duration_since(start).as_secs_f64() * 1e3
}

/// Does `work` in a [`Range`], and writes down that the host did it, if anybody wants to know.
pub(super) fn traced<R>(
    tracer: &mut Option<Tracer>,
    (verb, what): (&str, &str),
    work: impl FnOnce(Option<&mut Tracer>) -> R,
) -> R {
    let _range = match what {
        "" => Range::begin(format_args!("{verb}")),
        _ => Range::begin(format_args!("{verb} {what}")),
    };
    let Some(tracer) = tracer else { return work(None) };
    let begin = tracer.now();
    let result = work(Some(tracer));
    tracer.host(format!("{verb} {what}").trim_end(), begin);
    result
}

/// A copy on the stream of copies, between two events there.
#[derive(Debug)]
struct Transfer {
    name: Arc<str>,
    begin: Event,
    end: Option<Event>,
}

/// Writes a [`Trace`] while a run goes.
#[derive(Debug)]
pub(super) struct Tracer {
    started: Instant,
    spans: Vec<Span>,
    transfers: Vec<Transfer>,
}

impl Tracer {
    /// Of a picture that was asked for then.
    pub fn new(started: Instant) -> Tracer {
        Tracer { started, spans: Vec::new(), transfers: Vec::new() }
    }

    /// Milliseconds from when the picture was asked for.
    pub fn now(&self) -> f64 {
        ms_since(self.started, Instant::now())
    }

    /// What the host did from `begin` until now.
    pub fn host(&mut self, name: &str, begin: f64) {
        let end = self.now();
        self.spans.push(Span { lane: Lane::Host, name: name.into(), begin, end });
    }

    /// The same, by the clock.
    pub fn host_between(&mut self, name: &str, begun: Instant, ended: Instant) {
        let (begin, end) = (ms_since(self.started, begun), ms_since(self.started, ended));
        self.spans.push(Span { lane: Lane::Host, name: name.into(), begin, end });
    }

    /// Marks where a copy begins that is enqueued next.
    pub fn begin_transfer(&mut self, device: &Device, stream: StreamId, name: &Arc<str>) -> Result<()> {
        let begin = device.create_event()?;
        device.record(stream, &begin)?;
        self.transfers.push(Transfer { name: name.clone(), begin, end: None });
        Ok(())
    }

    /// Marks where it ends.
    pub fn end_transfer(&mut self, device: &Device, stream: StreamId) -> Result<()> {
        let end = device.create_event()?;
        device.record(stream, &end)?;
        if let Some(transfer) = self.transfers.last_mut() {
            transfer.end = Some(end);
        }
        Ok(())
    }

    /// Adds what the device did, between `events` that begin and end the stages of these names; the last of them was reached at `end`,
    /// in milliseconds as of [`Tracer::now`].
    pub fn read_device(&mut self, events: &[Event], names: &[Arc<str>], end: f64) -> Result<()> {
        let Some((first, last)) = events.first().zip(events.last()) else { return Ok(()) };
        let origin = end - f64::from(last.elapsed_ms_since(first)?);
        let at = |event: &Event| Ok::<f64, crate::Error>(origin + f64::from(event.elapsed_ms_since(first)?));
        for (name, pair) in names.iter().zip(events.windows(2)) {
            let (begin, end) = (at(&pair[0])?, at(&pair[1])?);
            self.spans.push(Span { lane: Lane::Compute, name: name.clone(), begin, end });
        }
        for Transfer { name, begin, end } in &self.transfers {
            let Some(end) = end else { continue };
            let (begin, end) = (at(begin)?, at(end)?);
            self.spans.push(Span { lane: Lane::Copy, name: name.clone(), begin, end });
        }
        Ok(())
    }

    /// What there is now.
    pub fn finish(self, device: &Device) -> Trace {
        Trace { started: self.started, device: device.capability().name.clone(), spans: self.spans }
    }
}
