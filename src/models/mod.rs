//! Networks, as recorded operations: what a network records *is* the inventory of tensors it needs, its buffers, its launches
//! and its work. A second family of models is a folder beside [`flux`].

pub mod flux;
pub(crate) mod layers;
