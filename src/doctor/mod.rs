//! What `schnell doctor` finds out and says, for the command alone: what a build and a machine have (`machine.rs`), whether
//! kernels compute what they should (`self_test.rs`), and what an error means (`diagnose.rs`).

mod diagnose;
mod machine;
mod self_test;

pub use diagnose::{Diagnosis, diagnose};
pub use machine::{CompiledBy, PcieLink, compiled_by, driver_release, ready_kernels};
pub use self_test::{SelfTest, self_test};
