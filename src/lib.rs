//! x
pub mod config;
pub mod error;
pub use error::{Error, Result};
