//! x
pub mod config;
pub mod error;
pub mod image;
pub mod sampling;
pub mod text;
pub mod weights;
pub use error::{Error, Result};
