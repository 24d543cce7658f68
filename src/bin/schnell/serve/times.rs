//! How long pictures are expected to take, where requests are admitted: what the pipeline has learnt, copied out of it between pictures,
//! since it belongs to the thread that draws.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use schnell::{Pipeline, Request, Shape};

/// As many as the pipeline remembers.
const MOST: usize = 64;

/// All but the steps, in which times are linear.
type Size = (usize, usize, usize, bool);

fn size(shape: &Shape) -> Size {
    (shape.width, shape.height, shape.t5_length, shape.true_cfg)
}

/// Milliseconds.
#[derive(Clone, Copy, Debug)]
struct Line {
    one_step: f64,
    each_more: f64,
}

/// By size.
#[derive(Debug, Default)]
pub struct Times(Mutex<HashMap<Size, Line>>);

impl Times {
    /// Copies what is known of pictures of this shape.
    pub fn learn(&self, pipeline: &Pipeline, shape: &Shape) {
        let mut request = Request::new("").size(shape.width, shape.height).t5_length(shape.t5_length);
        if shape.true_cfg {
            request = request.negative_prompt("", 2.0);
        }
        // Of a prompt that has not been seen: whether one will have been nobody knows before it is tokenized.
        let expected = |steps: usize| {
            pipeline.expected(&request.clone().steps(steps), false).map(|time| time.as_secs_f64() * 1e3)
        };
        let Some((one_step, two_steps)) = expected(1).zip(expected(2)) else { return };
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() >= MOST && !lines.contains_key(&size(shape)) {
            lines.clear();
        }
        lines.insert(size(shape), Line { one_step, each_more: two_steps - one_step });
    }

    /// Of one picture; nothing where none of its size has been drawn.
    pub fn expected(&self, shape: &Shape) -> Option<Duration> {
        let lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let line = lines.get(&size(shape))?;
        let ms = line.one_step + line.each_more * shape.steps.saturating_sub(1) as f64;
        Duration::try_from_secs_f64(ms / 1e3).ok()
    }
}
