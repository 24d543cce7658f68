//! From words to the numbers that text encoders understand: [`tokenizer`] makes ids.

pub mod tokenizer;
