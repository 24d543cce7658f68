//! x
#[allow(unsafe_code)]
pub mod abi;
#[allow(unsafe_code)]
pub mod device;
pub mod error;
#[allow(unsafe_code)]
pub mod kernels;
pub use error::{Error, Result};
