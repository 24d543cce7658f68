//! `tokenizer.json` as CLIP and T5 have it; any other model, normalizer or pre-tokenizer is refused by name.
//!
//! The file can describe every tokenizer that the `tokenizers` crate has, among them some that never end, give other
//! ids each time or panic. So it is read here, as parts, and put together by `parts.rs` like the older files. `version`,
//! `truncation`, `padding` and `decoder` have no part in ids.

use std::path::Path;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokenizers::pre_tokenizers::metaspace::PrependScheme;

use super::bounds::{MOST_PIECES, short};
use super::charsmap;
use super::parts::{Bpe, CLIP_SPLIT, CLIP_WORD_END, Ids, SPACE, Unigram};
use super::settings::{Added, added_token};
use crate::{Error, Result};

/// Of all tokens and merges; the parts have their own limits, with better words.
const LIMITS: crate::json::Limits =
    crate::json::Limits { names: 2 * MOST_PIECES, values: 2 * MOST_PIECES, name_bytes: 1 << 24 };

/// What a file holds: the parts of the tokenizer, its added tokens, and the special tokens it sets around a prompt.
pub(super) struct Contents<P> {
    pub parts: P,
    pub added: Vec<Added>,
    /// The ids before and after a prompt.
    pub frame: [Vec<u32>; 2],
}

#[derive(Deserialize)]
struct File<M> {
    #[serde(default)]
    added_tokens: Vec<Value>,
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    post_processor: Value,
    model: M,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BpeModel {
    #[serde(rename = "type")]
    _type: Option<String>,
    dropout: Option<f64>,
    unk_token: Option<String>,
    continuing_subword_prefix: Option<String>,
    end_of_word_suffix: Option<String>,
    fuse_unk: Option<bool>,
    byte_fallback: Option<bool>,
    ignore_merges: Option<bool>,
    vocab: Ids,
    merges: Vec<Merge>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Merge {
    Pair(String, String),
    Line(String),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct UnigramModel {
    #[serde(rename = "type")]
    _type: Option<String>,
    unk_id: usize,
    byte_fallback: Option<bool>,
    vocab: Vec<(String, f64)>,
}

pub(super) fn clip(path: &Path, bytes: &[u8]) -> Result<Contents<Bpe>> {
    let refused = |what: String| Error::weights(path, format!("is no tokenizer of CLIP's kind: {what}"));
    let file: File<BpeModel> = read(path, bytes, "BPE")?;
    let model = file.model;
    let absent = |text: &Option<String>| text.as_deref().unwrap_or("").is_empty();
    for (field, right, expected) in [
        ("dropout", model.dropout.unwrap_or(0.0) == 0.0, "none"),
        ("continuing_subword_prefix", absent(&model.continuing_subword_prefix), "none"),
        ("end_of_word_suffix", model.end_of_word_suffix.as_deref() == Some(CLIP_WORD_END), CLIP_WORD_END),
        ("fuse_unk", model.fuse_unk != Some(true), "false"),
        ("byte_fallback", model.byte_fallback != Some(true), "false"),
        ("ignore_merges", model.ignore_merges != Some(true), "false"),
    ] {
        if !right {
            return Err(refused(format!("the model's {field}: expected {expected}")));
        }
    }
    let normalizer = json!({"type": "Sequence", "normalizers": [
        {"type": "NFC"},
        {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "},
        {"type": "Lowercase"},
    ]});
    if file.normalizer != normalizer {
        return Err(refused(differs(
            "normalizer",
            &file.normalizer,
            "NFC, white space to one space, Lowercase",
        )));
    }
    let split = clip_split(&file.pre_tokenizer).ok_or_else(|| {
        refused(differs("pre_tokenizer", &file.pre_tokenizer, "a Split by CLIP's expression, ByteLevel"))
    })?;
    let merges = model.merges.into_iter().map(|merge| match merge {
        Merge::Pair(left, right) => Ok((left, right)),
        Merge::Line(line) => {
            pair(&line).ok_or_else(|| refused(format!("merge {:?}: expected two tokens", short(&line))))
        }
    });
    let merges = merges.collect::<Result<_>>()?;
    Ok(Contents {
        parts: Bpe { vocab: model.vocab, merges, unk: model.unk_token, split },
        added: added(path, &file.added_tokens)?,
        frame: frame(path, &file.post_processor)?,
    })
}

pub(super) fn t5(path: &Path, bytes: &[u8]) -> Result<Contents<Unigram>> {
    let refused = |what: String| Error::weights(path, format!("is no tokenizer of T5's kind: {what}"));
    let file: File<UnigramModel> = read(path, bytes, "Unigram")?;
    let model = file.model;
    if model.byte_fallback == Some(true) {
        return Err(refused("the model's byte_fallback: expected false".to_string()));
    }
    let mut parts = Unigram {
        pieces: model.vocab,
        unk_id: model.unk_id,
        charsmap: None,
        strip: false,
        squeeze: false,
        split_white: false,
        prepend: PrependScheme::Always,
    };
    let mut steps = sequence(&file.normalizer, "normalizers").into_iter().peekable();
    if let Some(map) = steps.next_if(|step| step["type"] == "Precompiled") {
        let map = map["precompiled_charsmap"].as_str().ok_or("without text");
        let map = map.and_then(charsmap::from_base64);
        let malformed = |what| Error::weights(path, format!("malformed tokenizer: character map {what}"));
        parts.charsmap = Some(map.map_err(malformed)?);
    }
    let strip = json!({"type": "Strip", "strip_left": false, "strip_right": true});
    parts.strip = steps.next_if(|step| **step == strip).is_some();
    let squeeze = json!({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": SPACE});
    parts.squeeze = steps.next_if(|step| **step == squeeze).is_some();
    if let Some(step) = steps.next() {
        return Err(refused(differs("normalizer", step, "Precompiled, Strip, spaces to one mark")));
    }
    let mut steps = sequence(&file.pre_tokenizer, "pretokenizers").into_iter().peekable();
    parts.split_white = steps.next_if(|step| **step == json!({"type": "WhitespaceSplit"})).is_some();
    let prepend = steps.next().and_then(metaspace).filter(|_| steps.next().is_none());
    parts.prepend = prepend.ok_or_else(|| {
        refused(differs("pre_tokenizer", &file.pre_tokenizer, "WhitespaceSplit or nothing, Metaspace"))
    })?;
    Ok(Contents { parts, added: added(path, &file.added_tokens)?, frame: frame(path, &file.post_processor)? })
}

/// Two tokens and a space between them.
pub(super) fn pair(line: &str) -> Option<(String, String)> {
    let (left, right) = line.split_once(' ')?;
    let one = |token: &str| !token.is_empty() && !token.contains(' ');
    (one(left) && one(right)).then(|| (left.to_string(), right.to_string()))
}

/// The file, if its model is of the kind `expected`.
fn read<M: DeserializeOwned>(path: &Path, bytes: &[u8], expected: &str) -> Result<File<M>> {
    #[derive(Deserialize)]
    struct OfSomeKind {
        model: Kind,
    }
    #[derive(Deserialize)]
    struct Kind {
        #[serde(rename = "type")]
        name: Option<String>,
    }
    let malformed =
        |e: serde_json::Error| Error::weights(path, format!("malformed tokenizer: {e}")).because(e);
    crate::json::check(bytes, &LIMITS).map_err(malformed)?;
    let kind = serde_json::from_slice::<OfSomeKind>(bytes).map_err(malformed)?.model.name;
    // Old files do not name it.
    match kind {
        Some(name) if name != expected => {
            let text = format!("is a tokenizer of model type {}: expected {expected}", short(&name));
            Err(Error::weights(path, text))
        }
        _ => serde_json::from_slice(bytes).map_err(malformed),
    }
}

/// The steps of a normalizer or pre-tokenizer: of a sequence, of a single one, or of none.
fn sequence<'a>(value: &'a Value, steps: &str) -> Vec<&'a Value> {
    match &value[steps] {
        Value::Array(steps) if value["type"] == "Sequence" => steps.iter().collect(),
        _ if value.is_null() => Vec::new(),
        _ => vec![value],
    }
}

/// The expression that CLIP's pre-tokenizer splits by. Some list the special tokens first.
fn clip_split(value: &Value) -> Option<String> {
    let [split, bytes] = sequence(value, "pretokenizers")[..] else { return None };
    let pattern = split["pattern"]["Regex"].as_str()?;
    let special = r"<\|startoftext\|>|<\|endoftext\|>|";
    let known = pattern.strip_prefix(special).unwrap_or(pattern) == CLIP_SPLIT;
    let whole =
        json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Removed", "invert": true});
    let bytes_right = bytes["type"] == "ByteLevel"
        && bytes["add_prefix_space"] == false
        && matches!(bytes["use_regex"], Value::Null | Value::Bool(true))
        && only(bytes, &["type", "add_prefix_space", "trim_offsets", "use_regex"]);
    (known && *split == whole && bytes_right).then(|| pattern.to_string())
}

/// Where T5's Metaspace puts a space before the prompt; old files say it with `add_prefix_space`.
fn metaspace(value: &Value) -> Option<PrependScheme> {
    let right = value["type"] == "Metaspace"
        && value["replacement"] == json!(SPACE)
        && matches!(value["split"], Value::Null | Value::Bool(true))
        && only(value, &["type", "replacement", "add_prefix_space", "prepend_scheme", "split", "str_rep"]);
    let scheme = match (&value["prepend_scheme"], &value["add_prefix_space"]) {
        (Value::Null, Value::Null | Value::Bool(true)) => PrependScheme::Always,
        (Value::Null, Value::Bool(false)) => PrependScheme::Never,
        (Value::String(scheme), Value::Null | Value::Bool(_)) => match scheme.as_str() {
            "always" => PrependScheme::Always,
            "first" => PrependScheme::First,
            "never" => PrependScheme::Never,
            _ => return None,
        },
        _ => return None,
    };
    right.then_some(scheme)
}

fn only(value: &Value, fields: &[&str]) -> bool {
    value.as_object().is_some_and(|object| object.keys().all(|key| fields.contains(&key.as_str())))
}

fn differs(field: &str, value: &Value, expected: &str) -> String {
    format!("{field} {}: expected {expected}", short(&value.to_string()))
}

fn added(path: &Path, entries: &[Value]) -> Result<Vec<Added>> {
    entries
        .iter()
        .map(|entry| {
            let id = number(&entry["id"]);
            let token = added_token(entry).filter(|_| id.is_some());
            let token = token.ok_or_else(|| {
                let entry = entry.to_string();
                Error::weights(path, format!("added token {}: expected an id and a content", short(&entry)))
            })?;
            Ok((id, token))
        })
        .collect()
}

/// The ids before and after a prompt.
fn frame(path: &Path, processor: &Value) -> Result<[Vec<u32>; 2]> {
    let frame = match processor["type"].as_str() {
        _ if processor.is_null() => Some([Vec::new(), Vec::new()]),
        Some("RobertaProcessing") => number(&processor["cls"][1])
            .zip(number(&processor["sep"][1]))
            .map(|(start, end)| [vec![start], vec![end]]),
        Some("TemplateProcessing") => template(processor),
        _ => None,
    };
    frame.ok_or_else(|| {
        Error::weights(path, differs("post_processor", processor, "RobertaProcessing or TemplateProcessing"))
    })
}

/// Special tokens and the prompt, once: anything else gives `None`.
fn template(processor: &Value) -> Option<[Vec<u32>; 2]> {
    let (mut frame, mut side) = ([Vec::new(), Vec::new()], 0);
    for part in processor["single"].as_array()? {
        if let Some(token) = part["SpecialToken"]["id"].as_str() {
            for id in processor["special_tokens"][token]["ids"].as_array()? {
                frame[side].push(number(id)?);
            }
        } else if part["Sequence"]["id"] == "A" && side == 0 {
            side = 1;
        } else {
            return None;
        }
    }
    (side == 1).then_some(frame)
}

fn number(value: &Value) -> Option<u32> {
    u32::try_from(value.as_u64()?).ok()
}
