//! `schnell.Request`.

use std::time::Duration;

use pyo3::prelude::*;
use schnell::Late;

use crate::errors::InputError;

/// What to draw: a prompt, and what differs from the pipeline's defaults. Same seed, same bytes.
#[pyclass(frozen, module = "schnell")]
pub struct Request {
    pub inner: schnell::Request,
}

#[pymethods]
impl Request {
    #[new]
    #[pyo3(signature = (prompt, *, prompt_2=None, negative_prompt=None, true_cfg_scale=1.0, size=None, steps=None, t5_length=None, seed=0,
        guidance=None, deadline=None, late="fail"))]
    #[expect(clippy::too_many_arguments, reason = "each is a keyword in Python")]
    fn new(
        prompt: String,
        prompt_2: Option<String>,
        negative_prompt: Option<String>,
        true_cfg_scale: f32,
        size: Option<(usize, usize)>,
        steps: Option<usize>,
        t5_length: Option<usize>,
        seed: u64,
        guidance: Option<f32>,
        deadline: Option<f64>,
        late: &str,
    ) -> PyResult<Request> {
        let mut inner = schnell::Request::new(prompt).seed(seed);
        inner.prompt_2 = prompt_2;
        inner.negative_prompt = negative_prompt;
        inner.true_cfg_scale = true_cfg_scale;
        inner.size = size;
        inner.steps = steps;
        inner.t5_length = t5_length;
        inner.guidance = guidance;
        inner.deadline = deadline.map(seconds).transpose()?;
        inner.late = match late {
            "fail" => Late::Fail,
            "fewer_steps" => Late::FewerSteps,
            "estimate" => Late::Estimate,
            _ => return Err(InputError::new_err(format!("late={late:?}: fail, fewer_steps or estimate"))),
        };
        Ok(Request { inner })
    }

    #[getter]
    fn prompt(&self) -> &str {
        &self.inner.prompt
    }

    #[getter]
    fn seed(&self) -> u64 {
        self.inner.seed
    }

    #[getter]
    fn steps(&self) -> Option<usize> {
        self.inner.steps
    }

    #[getter]
    fn size(&self) -> Option<(usize, usize)> {
        self.inner.size
    }

    fn __repr__(&self) -> String {
        format!("Request({:?}, seed={})", self.inner.prompt, self.inner.seed)
    }
}

fn seconds(seconds: f64) -> PyResult<Duration> {
    Duration::try_from_secs_f64(seconds)
        .map_err(|_| InputError::new_err(format!("deadline={seconds}: seconds from now, above 0")))
}
