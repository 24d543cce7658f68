//! Numbers for Prometheus; docs/serve.md lists them. Labels have few values, whatever clients send.

use std::sync::atomic::{AtomicI64, AtomicU64};
use std::time::Duration;

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use schnell::{Plan, Timings};

use super::http::Server;
use super::queue::Phase;
use super::refused::Code;

type Labels<const N: usize> = [(&'static str, String); N];
type Counters<const N: usize> = Family<Labels<N>, Counter<u64, AtomicU64>>;
type Gauges = Family<Labels<1>, Gauge<i64, AtomicI64>>;
type Histograms = Family<Labels<1>, Histogram, fn() -> Histogram>;

/// From a millisecond to four and a half minutes.
fn histogram() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.0, 19))
}

#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    requests: Counters<2>,
    refusals: Counters<1>,
    pictures: Counter,
    cancelled: Counter,
    prompts: Counters<1>,
    stages: Histograms,
    wait: Histogram,
    picture: Histogram,
    answer: Histogram,
    queue: Gauges,
    plan: Gauges,
    kept: Gauges,
    state: Gauges,
    pub connections: Gauge,
}

impl Metrics {
    pub fn new(plan: &Plan, queue: usize) -> Metrics {
        let mut registry = Registry::with_prefix("schnell");
        let metrics = Metrics {
            requests: Family::default(),
            refusals: Family::default(),
            pictures: Counter::default(),
            cancelled: Counter::default(),
            prompts: Family::default(),
            stages: Family::new_with_constructor(histogram),
            wait: histogram(),
            picture: histogram(),
            answer: histogram(),
            queue: Family::default(),
            plan: Family::default(),
            kept: Family::default(),
            state: Family::default(),
            connections: Gauge::default(),
            registry: Registry::default(),
        };
        let m = &metrics;
        registry.register("http_requests", "Answers, by endpoint and status", m.requests.clone());
        registry.register("refusals", "Refusals, by the code that clients are told", m.refusals.clone());
        registry.register("pictures", "Pictures drawn", m.pictures.clone());
        registry.register("cancelled", "Jobs stopped since nobody waited for them", m.cancelled.clone());
        registry.register(
            "prompts",
            "Pictures, by whether their prompts were encoded before",
            m.prompts.clone(),
        );
        let seconds = |registry: &mut Registry, name, help, histogram: &Histogram| {
            registry.register_with_unit(name, help, Unit::Seconds, histogram.clone());
        };
        registry.register_with_unit("stage", "Of one stage of one picture", Unit::Seconds, m.stages.clone());
        seconds(&mut registry, "wait", "From a request's arrival to its first picture's begin", &m.wait);
        seconds(&mut registry, "picture", "Of one picture, without its file", &m.picture);
        seconds(&mut registry, "answer", "From a request's arrival to its last picture's file", &m.answer);
        registry.register("queue_pictures", "Pictures that wait, are drawn, and may wait", m.queue.clone());
        registry.register_with_unit("plan", "Memory that was planned or taken", Unit::Bytes, m.plan.clone());
        registry.register("kept", "Pictures behind links, and their bytes", m.kept.clone());
        registry.register("state", "1 for what the server is", m.state.clone());
        registry.register("connections", "Open connections", m.connections.clone());
        m.queue.get_or_create(&label("kind", "limit")).set(queue as i64);
        m.plan.get_or_create(&label("kind", "arena")).set(plan.arena_bytes() as i64);
        let (loading, drawing) = plan.host_bytes();
        m.plan.get_or_create(&label("kind", "pinned_loading")).set(loading as i64);
        m.plan.get_or_create(&label("kind", "pinned_drawing")).set(drawing as i64);
        Metrics { registry, ..metrics }
    }

    /// What the driver took beside the arena; nothing on the emulator.
    pub fn set_driver_bytes(&self, bytes: Option<u64>) {
        if let Some(bytes) = bytes {
            self.plan.get_or_create(&label("kind", "driver")).set(bytes as i64);
        }
    }

    pub fn answered_http(&self, endpoint: &str, status: u16) {
        let labels = [("endpoint", endpoint.to_string()), ("status", status.to_string())];
        self.requests.get_or_create(&labels).inc();
    }

    pub fn refused(&self, code: Code) {
        self.refusals.get_or_create(&label("reason", code.0)).inc();
    }

    pub fn waited(&self, time: Duration) {
        self.wait.observe(time.as_secs_f64());
    }

    pub fn cancelled(&self) {
        self.cancelled.inc();
    }

    /// A picture, stage by stage; steps are one stage here.
    pub fn drawn(&self, timings: &Timings, whole: Duration) {
        self.pictures.inc();
        self.picture.observe(whole.as_secs_f64());
        let mut was_known = "miss";
        for stage in &timings.stages {
            let name = stage.stage.split(' ').next().unwrap_or_default();
            if name == "recall" {
                was_known = "hit";
            }
            self.stages.get_or_create(&label("stage", name)).observe(stage.ms / 1e3);
        }
        self.prompts.get_or_create(&label("cache", was_known)).inc();
    }

    /// A picture has become a file.
    pub fn encoded(&self, time: Duration) {
        self.stages.get_or_create(&label("stage", "file")).observe(time.as_secs_f64());
    }

    /// All pictures of a request are there.
    pub fn answered(&self, time: Duration) {
        self.answer.observe(time.as_secs_f64());
    }

    /// All of it, as of now.
    pub fn text(&self, server: &Server) -> String {
        let (waiting, is_drawing) = server.queue.load();
        self.queue.get_or_create(&label("kind", "waiting")).set(waiting as i64);
        self.queue.get_or_create(&label("kind", "drawing")).set(is_drawing.into());
        let (pictures, bytes) = server.kept.size();
        self.kept.get_or_create(&label("kind", "pictures")).set(pictures as i64);
        self.kept.get_or_create(&label("kind", "bytes")).set(bytes as i64);
        let phase = server.queue.phase();
        for (name, is) in
            [("loading", Phase::Loading), ("ready", Phase::Ready), ("draining", Phase::Draining)]
        {
            self.state.get_or_create(&label("state", name)).set((phase == is).into());
        }
        let mut text = String::new();
        // Writing into memory does not fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

fn label(name: &'static str, value: &str) -> Labels<1> {
    [(name, value.to_string())]
}
