//! What a node says of itself, for whoever sizes or watches: an entry in a bucket, gone soon after the node is.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_nats::jetstream::kv::Store;
use schnell::{Capability, Pipeline, Request, Shape};
use serde_json::{Map, Value, json};

use super::config::Config;
use crate::service::{Opened, now};

/// An entry that is not renewed for so long is of a node that is lost.
pub const LOST: Duration = Duration::from_secs(30);
/// How often it is.
const BEAT: Duration = Duration::from_secs(10);
/// Pictures of which times are remembered.
const WINDOW: usize = 512;

/// Of a planned shape: what its pictures took.
struct Known {
    shape: Shape,
    expected: Option<Duration>,
    /// Milliseconds, the newest last.
    took: VecDeque<f64>,
}

impl Known {
    /// What `share` of the remembered did not exceed.
    fn quantile(&self, share: f64) -> Option<f64> {
        let mut sorted: Vec<f64> = self.took.iter().copied().collect();
        sorted.sort_by(f64::total_cmp);
        let rank = (sorted.len() as f64 * share).ceil() as usize;
        sorted.get(rank.saturating_sub(1)).copied()
    }

    fn told(&self) -> Value {
        let Shape { width, height, steps, true_cfg, .. } = self.shape;
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        json!({
            "size": format!("{width}x{height}"),
            "steps": steps,
            "negative_prompts": true_cfg,
            "expected_ms": self.expected.map(ms),
            "pictures": self.took.len(),
            "p50_ms": self.quantile(0.5),
            "p99_ms": self.quantile(0.99),
        })
    }
}

struct State {
    state: &'static str,
    known: Vec<Known>,
    counts: Map<String, Value>,
}

pub struct Node {
    pub name: String,
    machine: Capability,
    arena_bytes: u64,
    started: u64,
    state: Mutex<State>,
    changed: tokio::sync::Notify,
}

impl Node {
    pub fn new(config: &Config, opened: &Opened<'_>) -> Node {
        let known =
            opened.shapes.iter().map(|shape| Known { shape: *shape, expected: None, took: VecDeque::new() });
        let counts = ["answered", "refused", "given_up", "audited", "disagreed"];
        let counts = counts.map(|what| (what.to_string(), json!(0))).into_iter().collect();
        Node {
            name: config.node.clone(),
            machine: opened.device.capability().clone(),
            arena_bytes: opened.plan.arena_bytes(),
            started: now(),
            state: Mutex::new(State { state: "loading", known: known.collect(), counts }),
            changed: tokio::sync::Notify::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn set_state(&self, state: &'static str) {
        self.lock().state = state;
        self.changed.notify_one();
    }

    pub fn count(&self, what: &str) {
        if let Some(count) = self.lock().counts.get_mut(what) {
            *count = json!(count.as_u64().unwrap_or_default() + 1);
        }
    }

    /// A picture of this shape took so long; with what the pipeline has learnt by now.
    pub fn drawn(&self, pipeline: &Pipeline, shape: &Shape, took: Duration) {
        for known in self.lock().known.iter_mut().filter(|known| known.shape == *shape) {
            let mut request = Request::new("").size(shape.width, shape.height).steps(shape.steps);
            request = request.t5_length(shape.t5_length);
            if shape.true_cfg {
                request = request.negative_prompt("", 2.0);
            }
            known.expected = pipeline.expected(&request, false);
            if known.took.len() >= WINDOW {
                known.took.pop_front();
            }
            known.took.push_back(took.as_secs_f64() * 1e3);
        }
    }

    fn entry(&self) -> Value {
        let state = self.lock();
        let shapes: Vec<Value> = state.known.iter().map(Known::told).collect();
        json!({
            "node": self.name,
            "state": state.state,
            "software": concat!("schnell ", env!("CARGO_PKG_VERSION")),
            "card": self.machine.name,
            "arch": format!("sm_{}", self.machine.arch),
            "sms": self.machine.num_sms,
            "pci_bus_id": self.machine.pci_bus_id,
            "arena_bytes": self.arena_bytes,
            "shapes": shapes,
            "counts": state.counts,
            "started": self.started,
            "seen": now(),
        })
    }

    /// Renews the entry; never ends.
    pub async fn keep(self: Arc<Node>, store: Store) {
        loop {
            if let Err(error) = store.put(self.name.as_str(), self.entry().to_string().into()).await {
                tracing::warn!("this node's entry is not renewed: {error}");
            }
            let _ = tokio::time::timeout(BEAT, self.changed.notified()).await;
        }
    }

    /// It is not lost, it has gone.
    pub async fn leave(&self, store: &Store) {
        if let Err(error) = store.purge(self.name.as_str()).await {
            tracing::warn!("this node's entry stays for a while: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_of_what_was_seen() {
        let of = |took: &[f64]| Known {
            shape: Shape::square(64),
            expected: None,
            took: took.iter().copied().collect(),
        };
        assert_eq!(of(&[]).quantile(0.99), None);
        assert_eq!(of(&[3.0, 1.0, 2.0]).quantile(0.5), Some(2.0));
        let hundred: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!(
            (of(&hundred).quantile(0.99), of(&hundred[..50]).quantile(0.99)),
            (Some(99.0), Some(50.0))
        );
    }
}
