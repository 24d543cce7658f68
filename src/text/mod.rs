//! From words to numbers the image model understands.

pub mod tokenizer;
