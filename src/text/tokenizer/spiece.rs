//! The parts of a SentencePiece model file that a unigram tokenizer needs.
//!
//! The file is a protocol buffer, `ModelProto` of sentencepiece_model.proto; a message is a run of fields, each a
//! varint tag (`number << 3 | wire type`) and a value: varint (0), 8 bytes (1), length and bytes (2), 4 bytes (5).
//! ```text
//! ModelProto      1: SentencePiece, repeated   2: TrainerSpec   3: NormalizerSpec
//! SentencePiece   1: piece, text   2: score, f32   3: type, enum Kind + 1 (default normal)
//! TrainerSpec     3: model_type, 1 = unigram (default)   40: unk_id (default 0)
//! NormalizerSpec  2: precompiled_charsmap, bytes
//! ```
//! The character map is read by `charsmap.rs`.

use std::path::Path;

use tokenizers::normalizers::Precompiled;

use super::charsmap;
use crate::{Error, Result};

pub(super) struct Model {
    pub pieces: Vec<Piece>,
    pub unk_id: usize,
    pub charsmap: Option<Precompiled>,
}

#[derive(Debug)]
pub(super) struct Piece {
    pub text: String,
    pub score: f32,
    pub kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Normal,
    Unknown,
    Control,
    UserDefined,
}

pub(super) fn parse(path: &Path, bytes: &[u8]) -> Result<Model> {
    parse_model(bytes).map_err(|reason| match reason {
        Fault::Malformed(what) => Error::weights(path, format!("malformed SentencePiece model: {what}")),
        Fault::NotUnigram(kind) => Error::Unsupported(format!(
            "{}: model type {kind}: only unigram (1) is supported",
            path.display()
        )),
    })
}

enum Fault {
    Malformed(String),
    NotUnigram(u64),
}

impl From<&str> for Fault {
    fn from(what: &str) -> Self {
        Fault::Malformed(what.to_string())
    }
}

fn parse_model(bytes: &[u8]) -> Result<Model, Fault> {
    let mut model = Model { pieces: Vec::new(), unk_id: 0, charsmap: None };
    let mut trained = false;
    let mut fields = Fields(bytes);
    while let Some((number, value)) = fields.next()? {
        match (number, value) {
            (1, Value::Bytes(message)) => model.pieces.push(parse_piece(message)?),
            (2, Value::Bytes(message)) => {
                trained = true;
                let mut fields = Fields(message);
                while let Some((number, value)) = fields.next()? {
                    match (number, value) {
                        (3, Value::Varint(kind)) if kind != 1 => return Err(Fault::NotUnigram(kind)),
                        (40, Value::Varint(id)) => model.unk_id = id as usize,
                        _ => {}
                    }
                }
            }
            (3, Value::Bytes(message)) => {
                let mut fields = Fields(message);
                while let Some((number, value)) = fields.next()? {
                    if let (2, Value::Bytes(map)) = (number, value)
                        && !map.is_empty()
                    {
                        let map = charsmap::parse(map);
                        let map = map.map_err(|what| Fault::Malformed(format!("character map {what}")))?;
                        model.charsmap = Some(map);
                    }
                }
            }
            _ => {}
        }
    }
    if model.pieces.is_empty() {
        return Err("no pieces".into());
    }
    // Every trainer writes it, after the pieces.
    if !trained {
        return Err("no TrainerSpec: the file is cut off".into());
    }
    Ok(model)
}

fn parse_piece(message: &[u8]) -> Result<Piece, Fault> {
    let mut piece = Piece { text: String::new(), score: 0.0, kind: Kind::Normal };
    let mut fields = Fields(message);
    while let Some((number, value)) = fields.next()? {
        match (number, value) {
            (1, Value::Bytes(text)) => {
                piece.text = String::from_utf8(text.to_vec()).map_err(|_| "a piece that is no UTF-8")?;
            }
            (2, Value::Fixed32(bits)) => piece.score = f32::from_bits(bits),
            (3, Value::Varint(kind)) => {
                piece.kind = match kind {
                    2 => Kind::Unknown,
                    3 => Kind::Control,
                    4 => Kind::UserDefined,
                    // 5 (unused) and 6 (byte) are matched like any other.
                    _ => Kind::Normal,
                };
            }
            _ => {}
        }
    }
    if !piece.score.is_finite() {
        return Err("a piece whose score is not finite".into());
    }
    Ok(piece)
}

enum Value<'a> {
    Varint(u64),
    Fixed32(u32),
    Bytes(&'a [u8]),
    Skipped,
}

/// The fields of a message, front to back.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn next(&mut self) -> Result<Option<(u64, Value<'a>)>, Fault> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let tag = self.varint()?;
        let value = match tag & 7 {
            0 => Value::Varint(self.varint()?),
            1 => {
                self.take(8)?;
                Value::Skipped
            }
            2 => {
                let length = self.varint()?;
                Value::Bytes(self.take(usize::try_from(length).map_err(|_| "a length beyond memory")?)?)
            }
            5 => {
                let (bits, rest) = self.0.split_first_chunk::<4>().ok_or("truncated number")?;
                self.0 = rest;
                Value::Fixed32(u32::from_le_bytes(*bits))
            }
            _ => return Err("a field of unknown wire type".into()),
        };
        Ok(Some((tag >> 3, value)))
    }

    fn varint(&mut self) -> Result<u64, Fault> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let (&byte, rest) = self.0.split_first().ok_or("truncated varint")?;
            self.0 = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err("an endless varint".into())
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], Fault> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or("truncated message")?;
        self.0 = rest;
        Ok(taken)
    }
}
