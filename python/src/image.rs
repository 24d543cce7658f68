//! `schnell.Image`: a picture and what is known of it.

use std::path::PathBuf;

use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};

use crate::errors::{InputError, to_python};

/// A picture and what is known of it: `rgb`, `timings`, `warnings`, `notes` with the receipt, `save`.
#[pyclass(frozen, module = "schnell")]
pub struct Image {
    pub inner: schnell::Output,
}

#[pymethods]
impl Image {
    #[getter]
    fn width(&self) -> usize {
        self.inner.width
    }

    #[getter]
    fn height(&self) -> usize {
        self.inner.height
    }

    #[getter]
    fn rgb<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        self.has_pixels()?;
        Ok(PyBytes::new(py, &self.inner.rgb))
    }

    #[getter]
    fn warnings(&self) -> Vec<String> {
        self.inner.warnings.clone()
    }

    #[getter]
    fn tokens_dropped<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let dropped = PyDict::new(py);
        dropped.set_item("clip", self.inner.clip_tokens_dropped)?;
        dropped.set_item("t5", self.inner.t5_tokens_dropped)?;
        Ok(dropped)
    }

    /// Milliseconds by the device's clock.
    #[getter]
    fn timings<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let stages = PyDict::new(py);
        for stage in &self.inner.timings.stages {
            stages.set_item(&stage.stage, stage.ms)?;
        }
        Ok(stages)
    }

    #[getter]
    fn total_ms(&self) -> f64 {
        self.inner.timings.total_ms
    }

    #[getter]
    fn device(&self) -> &str {
        &self.inner.timings.device
    }

    #[getter]
    fn estimate(&self) -> Option<usize> {
        self.inner.estimate
    }

    /// What the picture's file would say of how it was made, the receipt included.
    #[getter]
    fn notes<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let notes = PyDict::new(py);
        for (name, value) in &self.inner.notes {
            notes.set_item(name, value)?;
        }
        Ok(notes)
    }

    fn save(&self, path: PathBuf) -> PyResult<()> {
        self.has_pixels()?;
        self.inner.save(path).map_err(to_python)
    }

    fn __repr__(&self) -> String {
        format!("<schnell.Image {} x {}>", self.inner.width, self.inner.height)
    }
}

impl Image {
    fn has_pixels(&self) -> PyResult<()> {
        match self.inner.rgb.is_empty() {
            true => Err(InputError::new_err(
                "the pixels are in the caller's output; without one they would be here",
            )),
            false => Ok(()),
        }
    }
}
