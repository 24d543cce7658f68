//! The Python package `schnell`: its classes in Rust. What Python sees of them, with its documentation, is in
//! `python/schnell/_schnell.pyi`; what is Python's own in `python/schnell/__init__.py`.
//!
//! Nothing here draws: a call takes its arguments apart, lets the interpreter go on with other threads, and calls the library.

mod errors;
mod image;
mod output;
mod pipeline;
mod request;

use pyo3::prelude::*;

#[pymodule]
fn _schnell(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add_class::<pipeline::Pipeline>()?;
    module.add_class::<request::Request>()?;
    module.add_class::<image::Image>()?;
    errors::register(module)
}
