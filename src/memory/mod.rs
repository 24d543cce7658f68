//! Memory on the device: the one allocation.

pub(crate) mod arena;
