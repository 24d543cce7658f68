//! The two tokenizers, put together from their parts as transformers' converters do. Nothing else can be put together:
//! what a `tokenizer.json` says beyond these parts is refused where it is read.

use std::collections::HashSet;
use std::path::Path;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::models::unigram;
use tokenizers::normalizers::replace::ReplacePattern;
use tokenizers::normalizers::{
    Lowercase, NFC, NormalizerWrapper, Precompiled, Replace, Sequence as Normalizers, Strip,
};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::metaspace::{Metaspace, PrependScheme};
use tokenizers::pre_tokenizers::sequence::Sequence as PreTokenizers;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::pre_tokenizers::whitespace::WhitespaceSplit;
use tokenizers::{SplitDelimiterBehavior, Tokenizer};

use super::bounds::{check_pieces, short};
use crate::{Error, Result};

/// Contractions, words, single digits, runs of anything else; white space falls out.
pub(super) const CLIP_SPLIT: &str = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";

/// What every token of CLIP that ends a word ends with.
pub(super) const CLIP_WORD_END: &str = "</w>";

/// SentencePiece's mark for a space.
pub(super) const SPACE: char = '\u{2581}';

/// CLIP's byte pairs.
pub(super) struct Bpe {
    pub vocab: Ids,
    pub merges: Vec<(String, String)>,
    pub unk: Option<String>,
    /// The regular expression that splits a prompt.
    pub split: String,
}

/// T5's pieces.
pub(super) struct Unigram {
    pub pieces: Vec<(String, f64)>,
    pub unk_id: usize,
    /// In this order, each if there.
    pub charsmap: Option<Precompiled>,
    pub strip: bool,
    pub squeeze: bool,
    /// Words are split at white space of any kind first.
    pub split_white: bool,
    pub prepend: PrependScheme,
}

/// Ids by token: each a `u32`, no token and no id twice.
#[derive(Debug)]
pub(super) struct Ids(pub Vocab);

impl<'de> Deserialize<'de> for Ids {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Ids;

            fn expecting(&self, out: &mut std::fmt::Formatter) -> std::fmt::Result {
                out.write_str("ids by token")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Ids, A::Error> {
                let (mut vocab, mut ids) = (Vocab::default(), HashSet::new());
                while let Some((token, id)) = map.next_entry::<String, u32>()? {
                    if !ids.insert(id) {
                        return Err(A::Error::custom(format!("id {id} stands twice")));
                    }
                    if vocab.contains_key(&token) {
                        return Err(A::Error::custom(format!("token {:?} stands twice", short(&token))));
                    }
                    vocab.insert(token, id);
                }
                Ok(Ids(vocab))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

/// Source: transformers `CLIPConverter`.
pub(super) fn clip(path: &Path, parts: Bpe) -> Result<Tokenizer> {
    let wrong = |e: tokenizers::Error| Error::weights(path, e.to_string()).because(e);
    let Bpe { vocab: Ids(vocab), merges, unk, split } = parts;
    check_pieces(path, vocab.keys().map(String::as_str))?;
    let mut model = BPE::builder().end_of_word_suffix(CLIP_WORD_END.to_string());
    if let Some(unk) = unk {
        if !vocab.contains_key(&unk) {
            let text = format!("unk_token {} is not in the vocabulary", short(&unk));
            return Err(Error::weights(path, text));
        }
        model = model.unk_token(unk);
    }
    let model = model.vocab_and_merges(vocab, merges).build().map_err(wrong)?;
    let mut tokenizer = Tokenizer::new(model);
    tokenizer.with_normalizer(Some(Normalizers::new(vec![
        NFC.into(),
        Replace::new(regex(r"\s+"), " ").map_err(wrong)?.into(),
        Lowercase.into(),
    ])));
    let split = Split::new(SplitPattern::Regex(split), SplitDelimiterBehavior::Removed, true);
    tokenizer.with_pre_tokenizer(Some(PreTokenizers::new(vec![
        split.map_err(wrong)?.into(),
        ByteLevel::default().add_prefix_space(false).into(),
    ])));
    Ok(tokenizer)
}

/// Source: transformers 4 `SpmConverter` and `T5Converter`, which made the published tokenizer.json.
pub(super) fn t5(path: &Path, parts: Unigram) -> Result<Tokenizer> {
    let wrong = |e: tokenizers::Error| Error::weights(path, e.to_string()).because(e);
    check_pieces(path, parts.pieces.iter().map(|(piece, _)| piece.as_str()))?;
    if let Some((piece, score)) = parts.pieces.iter().find(|(_, score)| !(*score as f32).is_finite()) {
        let text = format!("piece {piece:?} has score {score}: expected a finite number");
        return Err(Error::weights(path, text));
    }
    let model = unigram::Unigram::from(parts.pieces, Some(parts.unk_id), false).map_err(wrong)?;
    let mut tokenizer = Tokenizer::new(model);
    let mut normalizers: Vec<NormalizerWrapper> = Vec::new();
    normalizers.extend(parts.charsmap.map(Into::into));
    if parts.strip {
        normalizers.push(Strip::new(false, true).into());
    }
    if parts.squeeze {
        normalizers.push(Replace::new(regex(" {2,}"), SPACE.to_string()).map_err(wrong)?.into());
    }
    tokenizer.with_normalizer(Some(Normalizers::new(normalizers)));
    let mut splits: Vec<PreTokenizerWrapper> = Vec::new();
    if parts.split_white {
        splits.push(WhitespaceSplit.into());
    }
    splits.push(Metaspace::new(SPACE, parts.prepend, true).into());
    tokenizer.with_pre_tokenizer(Some(PreTokenizers::new(splits)));
    Ok(tokenizer)
}

fn regex(pattern: &str) -> ReplacePattern {
    ReplacePattern::Regex(pattern.to_string())
}
