//! Where the tensors of each layout of files lie, and under which names: one file a layout, each in terms of the names that
//! the networks use, which are those of diffusers.

pub mod diffusers;
