//! Prompts as token ids, exactly as transformers' CLIP and T5 tokenizers give them.
//!
//! Both are the `tokenizers` crate underneath, which is also what transformers' fast tokenizers are. Where a folder
//! has a `tokenizer.json` it decides; where it has only the older files (FLUX.1 ships CLIP's that way), the same
//! tokenizer is put together from them as transformers' converter does.
//!
//! Truncation and padding are done here rather than there, so that what was cut off is counted: a prompt that
//! silently loses its end is a bug report.

mod spiece;

use std::path::{Path, PathBuf};

use serde_json::Value;
use tokenizers::models::bpe::BPE;
use tokenizers::normalizers::{Lowercase, NFC, NormalizerWrapper, Replace, Sequence as Normalizers, Strip};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::metaspace::{Metaspace, PrependScheme};
use tokenizers::pre_tokenizers::sequence::Sequence as PreTokenizers;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::processors::roberta::RobertaProcessing;
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{AddedToken, SplitDelimiterBehavior, Tokenizer};

use crate::config::{ClipPooling, read_json};
use crate::{Error, Result};

/// A prompt's ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tokens {
    /// The ids, padded to the length asked for.
    pub ids: Vec<u32>,
    /// How many come before the padding, the end token included.
    pub len: usize,
    /// Where the first end token is. Usually `len - 1`; a prompt may spell an end token out.
    pub eos_index: usize,
    /// How many of the prompt's own tokens were cut off because they did not fit.
    pub dropped: usize,
}

impl Tokens {
    /// The position whose hidden state is CLIP's pooled vector.
    pub fn pooled_index(&self, pooling: ClipPooling) -> usize {
        let wanted = match pooling {
            ClipPooling::LargestId => self.ids.iter().copied().max().unwrap_or(0),
            ClipPooling::FirstOf(id) => id,
        };
        // As transformers: an id that does not occur gives position 0.
        self.ids.iter().position(|&id| id == wanted).unwrap_or(0)
    }
}

/// CLIP's byte-level BPE.
#[derive(Debug)]
pub struct ClipTokenizer(Ready);

impl ClipTokenizer {
    /// Opens the folder `dir` (in the diffusers layout, `tokenizer`): `tokenizer.json`, or else `vocab.json` and
    /// `merges.txt`; either with `tokenizer_config.json` or `special_tokens_map.json` beside it, if special tokens
    /// are not CLIP's own.
    ///
    /// # Errors
    /// [`Error::Weights`] when files are missing or malformed, [`Error::Io`] when they cannot be read.
    pub fn open(dir: &Path) -> Result<Self> {
        let settings = Settings::read(dir)?;
        let bos = settings.special("bos_token").unwrap_or_else(|| "<|startoftext|>".to_string());
        let eos = settings.special("eos_token").unwrap_or_else(|| "<|endoftext|>".to_string());
        let pad = settings.special("pad_token").unwrap_or_else(|| eos.clone());
        let json = dir.join("tokenizer.json");
        let (vocab, merges) = (dir.join("vocab.json"), dir.join("merges.txt"));
        let (path, tokenizer) = if json.exists() {
            let tokenizer = read_tokenizer(&json)?;
            (json, tokenizer)
        } else if vocab.exists() && merges.exists() {
            let unk = settings.special("unk_token").unwrap_or_else(|| eos.clone());
            let tokenizer = clip_from_files(&vocab, &merges, &settings, [&bos, &eos, &unk, &pad])?;
            (vocab, tokenizer)
        } else {
            return Err(Error::weights(
                dir,
                "no CLIP tokenizer: expected tokenizer.json, or vocab.json and merges.txt",
            ));
        };
        Ready::new(path, tokenizer, Some(&bos), &eos, &pad).map(ClipTokenizer)
    }

    /// The ids of `text`: start token, text, end token, padded to `max_len` (77 for CLIP). Text that does not fit is
    /// cut and counted; the end token always stays.
    ///
    /// # Errors
    /// [`Error::Input`] when `max_len` has no room for the start and end tokens.
    pub fn encode(&self, text: &str, max_len: usize) -> Result<Tokens> {
        self.0.encode(text, max_len)
    }

    /// The largest id plus one: what the token table must have rows for.
    pub fn vocab_size(&self) -> usize {
        self.0.vocab_size()
    }
}

/// T5's unigram tokenizer.
#[derive(Debug)]
pub struct T5Tokenizer(Ready);

impl T5Tokenizer {
    /// Opens the folder `dir` (in the diffusers layout, `tokenizer_2`): `tokenizer.json`, or else `spiece.model`.
    ///
    /// # Errors
    /// [`Error::Weights`] when files are missing or malformed, [`Error::Io`] when they cannot be read,
    /// [`Error::Unsupported`] for a SentencePiece model that is not unigram.
    pub fn open(dir: &Path) -> Result<Self> {
        let settings = Settings::read(dir)?;
        let eos = settings.special("eos_token").unwrap_or_else(|| "</s>".to_string());
        let pad = settings.special("pad_token").unwrap_or_else(|| "<pad>".to_string());
        let json = dir.join("tokenizer.json");
        let model = dir.join("spiece.model");
        let (path, tokenizer) = if json.exists() {
            let tokenizer = read_tokenizer(&json)?;
            (json, tokenizer)
        } else if model.exists() {
            let tokenizer = t5_from_file(&model, &settings, &eos)?;
            (model, tokenizer)
        } else {
            return Err(Error::weights(dir, "no T5 tokenizer: expected tokenizer.json or spiece.model"));
        };
        Ready::new(path, tokenizer, None, &eos, &pad).map(T5Tokenizer)
    }

    /// The ids of `text` and an end token, padded to `max_len` (256 for FLUX.1-schnell). Text that does not fit is
    /// cut and counted; the end token always stays.
    ///
    /// # Errors
    /// [`Error::Input`] when `max_len` is 0.
    pub fn encode(&self, text: &str, max_len: usize) -> Result<Tokens> {
        self.0.encode(text, max_len)
    }

    /// The largest id plus one: what the embedding table must have rows for.
    pub fn vocab_size(&self) -> usize {
        self.0.vocab_size()
    }
}

/// A tokenizer whose special tokens are known and which has been seen to add them.
#[derive(Debug)]
struct Ready {
    tokenizer: Tokenizer,
    path: PathBuf,
    num_special: usize,
    eos: u32,
    pad: u32,
}

impl Ready {
    fn new(path: PathBuf, mut tokenizer: Tokenizer, bos: Option<&str>, eos: &str, pad: &str) -> Result<Self> {
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(|e| Error::weights(&path, format!("{e}")))?;
        let id = |token: &str| {
            tokenizer.token_to_id(token).ok_or_else(|| {
                Error::weights(&path, format!("special token {token} is not in the vocabulary"))
            })
        };
        let frame: Vec<u32> = bos.into_iter().chain([eos]).map(id).collect::<Result<_>>()?;
        let (eos, pad) = (id(eos)?, id(pad)?);
        let ready = Ready { num_special: frame.len(), eos, pad, tokenizer, path };
        let empty = ready.raw("")?;
        if empty != frame {
            return Err(Error::weights(
                ready.path,
                format!("gives ids {empty:?} for an empty prompt: expected the special tokens {frame:?}"),
            ));
        }
        Ok(ready)
    }

    fn raw(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self
            .tokenizer
            .encode_fast(text, true)
            .map_err(|e| Error::weights(&self.path, format!("cannot tokenize {text:?}: {e}")))?;
        Ok(encoding.get_ids().to_vec())
    }

    fn encode(&self, text: &str, max_len: usize) -> Result<Tokens> {
        if max_len < self.num_special {
            return Err(Error::Input(format!(
                "{max_len} tokens have no room for a prompt: expected at least {}",
                self.num_special
            )));
        }
        let mut ids = self.raw(text)?;
        let dropped = ids.len().saturating_sub(max_len);
        if dropped > 0 {
            ids.truncate(max_len - 1);
            ids.push(self.eos);
        }
        let len = ids.len();
        let eos_index = ids.iter().position(|&id| id == self.eos).unwrap_or(len - 1);
        ids.resize(max_len, self.pad);
        Ok(Tokens { ids, len, eos_index, dropped })
    }

    fn vocab_size(&self) -> usize {
        let ids = self.tokenizer.get_vocab(true).into_values();
        ids.max().map_or(0, |id| id as usize + 1)
    }
}

fn read_tokenizer(path: &Path) -> Result<Tokenizer> {
    let bytes = std::fs::read(path).map_err(Error::io("read", path))?;
    Tokenizer::from_bytes(bytes).map_err(|e| Error::weights(path, format!("malformed tokenizer: {e}")))
}

// ---- what the files beside the vocabulary say ------------------------------------------------------------

/// `tokenizer_config.json` and `special_tokens_map.json`; either may be absent.
struct Settings {
    path: PathBuf,
    config: Value,
    map: Value,
}

impl Settings {
    fn read(dir: &Path) -> Result<Self> {
        let path = dir.join("tokenizer_config.json");
        let optional = |path: &Path| if path.exists() { read_json(path) } else { Ok(Value::Null) };
        Ok(Settings { config: optional(&path)?, map: optional(&dir.join("special_tokens_map.json"))?, path })
    }

    /// The text of a special token, written as a string or as an object with `content`.
    fn special(&self, key: &str) -> Option<String> {
        [&self.config, &self.map].into_iter().find_map(|file| {
            let token = &file[key];
            token.as_str().or_else(|| token["content"].as_str()).map(str::to_string)
        })
    }

    /// The special tokens with their ids and how they are matched, ascending by id; empty when the files do not
    /// say.
    fn added_tokens(&self) -> Result<Vec<(u32, AddedToken)>> {
        let Some(entries) = self.config["added_tokens_decoder"].as_object() else {
            return Ok(Vec::new());
        };
        let mut tokens = Vec::with_capacity(entries.len());
        for (id, entry) in entries {
            let (Ok(id), Some(content)) = (id.parse(), entry["content"].as_str()) else {
                return Err(Error::weights(
                    &self.path,
                    format!("added_tokens_decoder entry {id:?}: expected an id with a content"),
                ));
            };
            let flag = |key: &str, default: bool| entry[key].as_bool().unwrap_or(default);
            let special = flag("special", false);
            let token = AddedToken::from(content, special)
                .single_word(flag("single_word", false))
                .lstrip(flag("lstrip", false))
                .rstrip(flag("rstrip", false))
                .normalized(flag("normalized", !special));
            tokens.push((id, token));
        }
        tokens.sort_by_key(|(id, _)| *id);
        Ok(tokens)
    }

    /// Adds the tokens of `added_tokens_decoder`, or else `defaults`.
    fn add_to(&self, tokenizer: &mut Tokenizer, defaults: Vec<AddedToken>) -> Result<()> {
        let listed = self.added_tokens()?;
        if listed.is_empty() {
            tokenizer.add_tokens(&defaults);
            return Ok(());
        }
        for (id, token) in listed {
            tokenizer.add_tokens(std::slice::from_ref(&token));
            let got = tokenizer.token_to_id(&token.content);
            if got != Some(id) {
                return Err(Error::weights(
                    &self.path,
                    format!("special token {} has id {id}, but {got:?} by the vocabulary", token.content),
                ));
            }
        }
        Ok(())
    }
}

// ---- tokenizers from their parts -------------------------------------------------------------------------

/// Source: transformers `CLIPConverter`.
fn clip_from_files(
    vocab: &Path,
    merges: &Path,
    settings: &Settings,
    [bos, eos, unk, pad]: [&String; 4],
) -> Result<Tokenizer> {
    let wrong = |e: tokenizers::Error| Error::weights(vocab, format!("with merges.txt: {e}"));
    let text = |path: &Path| {
        path.to_str()
            .map(str::to_string)
            .ok_or_else(|| Error::weights(path, "the path is no Unicode: expected UTF-8"))
    };
    let model = BPE::from_file(&text(vocab)?, &text(merges)?)
        .end_of_word_suffix("</w>".to_string())
        .unk_token(unk.clone())
        .build()
        .map_err(wrong)?;
    let mut tokenizer = Tokenizer::new(model);
    tokenizer.with_normalizer(Some(Normalizers::new(vec![
        NFC.into(),
        Replace::new(regex(r"\s+"), " ").map_err(wrong)?.into(),
        Lowercase.into(),
    ])));
    // Contractions, words, single digits, runs of anything else; white space falls out.
    let pieces =
        SplitPattern::Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+".to_string());
    tokenizer.with_pre_tokenizer(Some(PreTokenizers::new(vec![
        Split::new(pieces, SplitDelimiterBehavior::Removed, true).map_err(wrong)?.into(),
        ByteLevel::default().add_prefix_space(false).into(),
    ])));
    // Matched in the prompt as written: `<|ENDOFTEXT|>` is just characters.
    let defaults = [bos, eos, unk, pad].map(|token| AddedToken::from(token.as_str(), true).normalized(false));
    settings.add_to(&mut tokenizer, defaults.to_vec())?;
    let with_id = |token: &str| {
        let id = tokenizer.token_to_id(token);
        id.map(|id| (token.to_string(), id))
            .ok_or_else(|| Error::weights(vocab, format!("special token {token} is not in the vocabulary")))
    };
    let frame =
        RobertaProcessing::new(with_id(eos)?, with_id(bos)?).trim_offsets(false).add_prefix_space(false);
    tokenizer.with_post_processor(Some(frame));
    Ok(tokenizer)
}

/// Source: transformers 4 `SpmConverter` and `T5Converter`, which made the published tokenizer.json.
fn t5_from_file(path: &Path, settings: &Settings, eos: &str) -> Result<Tokenizer> {
    let wrong = |e: tokenizers::Error| Error::weights(path, format!("{e}"));
    let bytes = std::fs::read(path).map_err(Error::io("read", path))?;
    let model = spiece::parse(path, &bytes)?;

    let mut special: Vec<AddedToken> = model
        .pieces
        .iter()
        .filter(|piece| piece.kind != spiece::Kind::Normal)
        .map(|piece| {
            let control = piece.kind != spiece::Kind::UserDefined;
            AddedToken::from(piece.text.as_str(), control).normalized(false)
        })
        .collect();
    let mut vocab: Vec<(String, f64)> =
        model.pieces.into_iter().map(|piece| (piece.text, f64::from(piece.score))).collect();
    // The sentinels of T5's training task are not in the SentencePiece model: 99 comes first, 0 last.
    let extra_ids = settings.config["extra_ids"].as_u64().unwrap_or(100).min(1 << 16);
    for k in (0..extra_ids).rev() {
        let sentinel = format!("<extra_id_{k}>");
        special.push(AddedToken::from(sentinel.as_str(), true).normalized(false));
        vocab.push((sentinel, 0.0));
    }
    let unigram =
        tokenizers::models::unigram::Unigram::from(vocab, Some(model.unk_id), false).map_err(wrong)?;

    let mut tokenizer = Tokenizer::new(unigram);
    let mut normalizers: Vec<NormalizerWrapper> = Vec::new();
    normalizers.extend(model.charsmap.map(Into::into));
    normalizers.push(Strip::new(false, true).into());
    normalizers.push(Replace::new(regex(" {2,}"), "\u{2581}").map_err(wrong)?.into());
    tokenizer.with_normalizer(Some(Normalizers::new(normalizers)));
    // "First" as in the published tokenizer.json: a word right after a special token inside the prompt gets no space
    // before it. Newer converters say "always"; without special tokens in prompts there is no difference.
    let metaspace = Metaspace::new('\u{2581}', PrependScheme::First, true);
    tokenizer.with_pre_tokenizer(Some(PreTokenizerWrapper::from(metaspace)));
    settings.add_to(&mut tokenizer, special)?;
    let eos_id = tokenizer
        .token_to_id(eos)
        .ok_or_else(|| Error::weights(path, format!("special token {eos} is not in the vocabulary")))?;
    let frame = TemplateProcessing::builder()
        .try_single(format!("$A {eos}"))
        .map_err(|e| Error::weights(path, e))?
        .special_tokens(vec![(eos, eos_id)])
        .build()
        .map_err(|e| Error::weights(path, format!("{e}")))?;
    tokenizer.with_post_processor(Some(frame));
    Ok(tokenizer)
}

fn regex(pattern: &str) -> tokenizers::normalizers::replace::ReplacePattern {
    tokenizers::normalizers::replace::ReplacePattern::Regex(pattern.to_string())
}
