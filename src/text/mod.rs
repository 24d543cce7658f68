//! From words to numbers the image model understands: [`tokenizer`] makes ids, [`clip`] and [`t5`] make vectors.

pub mod clip;
pub mod t5;
pub mod tokenizer;
