//! Prompts as token ids, exactly as transformers' fast CLIP and T5 tokenizers give them, and all of transformers 5. The slow CLIP
//! tokenizer of transformers 4 differs: with ftfy for curly quotes, HTML entities and full-width letters, without it for CJK and
//! emoji that are joined.
//!
//! Both are the `tokenizers` crate underneath, which is also what transformers' fast tokenizers are. Where a folder
//! has a `tokenizer.json` it decides; where it has only the older files (FLUX.1 ships CLIP's that way), the same
//! tokenizer is put together from them as transformers' converter does.
//!
//! Truncation and padding are done here rather than there, so that what was cut off is counted: a prompt that
//! silently loses its end is a bug report.

//!
//! The `tokenizers` crate trusts its files, so that only tokenizers of exactly these two kinds are put together
//! (`parts.rs`, from `json.rs` or the older files, with what `settings.rs` read beside them), within bounds, and on a
//! thread of their own (`bounds.rs`).

mod bounds;
mod charsmap;
mod json;
mod parts;
mod settings;
mod spiece;

use std::path::{Path, PathBuf};

use tokenizers::pre_tokenizers::metaspace::PrependScheme;
use tokenizers::{AddedToken, Tokenizer};

use crate::config::ClipPooling;
use crate::files::Kind;
use crate::{Error, Result};
use bounds::{LARGEST_PROMPT_BYTES, guarded, read_file, short};
use parts::{Bpe, CLIP_SPLIT, Ids, Unigram};
use settings::Settings;

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
    /// `merges.txt`; either with `tokenizer_config.json`, `special_tokens_map.json` or `added_tokens.json` beside it, if
    /// there are other special tokens than CLIP's own.
    ///
    /// # Errors
    /// [`Error::Weights`] when files are missing, malformed or describe a tokenizer of another kind, [`Error::Io`] when
    /// they cannot be read.
    pub fn open(dir: &Path) -> Result<Self> {
        guarded(dir, || clip(dir))?.map(ClipTokenizer)
    }

    /// The ids of `text`: start token, text, end token, padded to `max_len` (77 for CLIP). Text that does not fit, or
    /// that is longer than the files allow (`model_max_length`), is cut and counted; the end token always stays.
    ///
    /// # Errors
    /// [`Error::Input`] when `max_len` has no room for the start and end tokens or the text is longer than a megabyte.
    pub fn encode(&self, text: &str, max_len: usize) -> Result<Tokens> {
        self.0.encode(text, max_len)
    }

    /// The largest id plus one: what the token table must have rows for.
    pub fn vocab_size(&self) -> usize {
        self.0.vocab_size
    }

    /// The end token's id, by which its encoder finds the position to pool.
    pub fn eos_id(&self) -> u32 {
        self.0.eos
    }
}

/// T5's unigram tokenizer.
#[derive(Debug)]
pub struct T5Tokenizer(Ready);

impl T5Tokenizer {
    /// Opens the folder `dir` (in the diffusers layout, `tokenizer_2`): `tokenizer.json`, or else `spiece.model`; either
    /// with the files beside it that [`ClipTokenizer::open`] reads.
    ///
    /// # Errors
    /// [`Error::Weights`] when files are missing, malformed or describe a tokenizer of another kind, [`Error::Io`] when
    /// they cannot be read, [`Error::Unsupported`] for a SentencePiece model that is not unigram.
    pub fn open(dir: &Path) -> Result<Self> {
        guarded(dir, || t5(dir))?.map(T5Tokenizer)
    }

    /// The ids of `text` and an end token, padded to `max_len` (256 for FLUX.1-schnell). Text that does not fit is
    /// cut and counted; the end token always stays. `model_max_length` of the files is no limit here, as it is none
    /// in diffusers: it is the default of `max_len`.
    ///
    /// # Errors
    /// [`Error::Input`] when `max_len` is 0 or the text is longer than a megabyte.
    pub fn encode(&self, text: &str, max_len: usize) -> Result<Tokens> {
        self.0.encode(text, max_len)
    }

    /// The largest id plus one: what the embedding table must have rows for.
    pub fn vocab_size(&self) -> usize {
        self.0.vocab_size
    }
}

/// A tokenizer and the special tokens around a prompt.
#[derive(Debug)]
struct Ready {
    /// Gone only while this is dropped.
    tokenizer: Option<Tokenizer>,
    path: PathBuf,
    start: Vec<u32>,
    eos: u32,
    pad: u32,
    vocab_size: usize,
    /// The longest prompt in tokens, the special ones included.
    longest: usize,
}

impl Ready {
    /// `start`, `eos` and `pad` are tokens; `frame` is what the file says stands around a prompt, if it does.
    fn new(
        path: PathBuf,
        tokenizer: Tokenizer,
        [start, eos, pad]: [Option<&str>; 3],
        frame: Option<[Vec<u32>; 2]>,
    ) -> Result<Self> {
        let id = |token: &str| {
            tokenizer.token_to_id(token).ok_or_else(|| {
                Error::weights(&path, format!("special token {token} is not in the vocabulary"))
            })
        };
        let start: Vec<u32> = start.into_iter().map(id).collect::<Result<_>>()?;
        let end: Vec<u32> = eos.into_iter().map(id).collect::<Result<_>>()?;
        let (&[eos], Some(pad)) = (&end[..], pad.map(id).transpose()?) else {
            return Err(Error::weights(path, "has no end token or no padding"));
        };
        let expected = [start.clone(), end];
        if let Some(frame) = frame.filter(|frame| *frame != expected) {
            let [got, expected] = [frame.concat(), expected.concat()];
            let text =
                format!("gives ids {got:?} for an empty prompt: expected the special tokens {expected:?}");
            return Err(Error::weights(path, text));
        }
        let largest = tokenizer.get_vocab(true).into_values().max();
        let vocab_size = largest.map_or(0, |id| id as usize + 1);
        let longest = usize::MAX;
        Ok(Ready { tokenizer: Some(tokenizer), path, start, eos, pad, vocab_size, longest })
    }

    fn raw(&self, text: &str) -> Result<Vec<u32>> {
        let Some(tokenizer) = &self.tokenizer else { return Ok(Vec::new()) };
        let encoding = guarded(&self.path, || tokenizer.encode_fast(text, false))?;
        let encoding = encoding.map_err(|e| {
            Error::weights(&self.path, format!("cannot tokenize {:?}: {e}", short(text))).because(e)
        })?;
        Ok(encoding.get_ids().to_vec())
    }

    fn encode(&self, text: &str, max_len: usize) -> Result<Tokens> {
        let num_special = self.start.len() + 1;
        if max_len < num_special {
            return Err(Error::Input(format!(
                "{max_len} tokens have no room for a prompt: expected at least {num_special}"
            )));
        }
        if text.len() > LARGEST_PROMPT_BYTES {
            return Err(Error::Input(format!(
                "the prompt has {} bytes: expected at most {LARGEST_PROMPT_BYTES}",
                text.len()
            )));
        }
        let mut ids = self.start.clone();
        ids.extend(self.raw(text)?);
        let kept = ids.len().min(max_len.min(self.longest) - 1);
        let dropped = ids.len() - kept;
        ids.truncate(kept);
        ids.push(self.eos);
        let len = ids.len();
        let eos_index = ids.iter().position(|&id| id == self.eos).unwrap_or(len - 1);
        ids.resize(max_len, self.pad);
        Ok(Tokens { ids, len, eos_index, dropped })
    }
}

impl Drop for Ready {
    fn drop(&mut self) {
        let tokenizer = self.tokenizer.take();
        // Whatever becomes of it, nobody waits for the memory.
        let _ = guarded(&self.path, || drop(tokenizer));
    }
}

// ---- from their files ------------------------------------------------------------------------------------

fn clip(dir: &Path) -> Result<Ready> {
    let settings = Settings::read(dir)?;
    let special = |key: &str, default: &str| {
        settings.special(key).map(|token| token.unwrap_or_else(|| default.to_string()))
    };
    let bos = special("bos_token", "<|startoftext|>")?;
    let eos = special("eos_token", "<|endoftext|>")?;
    let pad = special("pad_token", &eos)?;
    let (path, merges) = (dir.join("tokenizer.json"), dir.join("merges.txt"));
    let (path, tokenizer, frame) = if let Some(bytes) = read_file(&path, Kind::Tokenizer)? {
        let json::Contents { parts, added, frame } = json::clip(&path, &bytes)?;
        let mut tokenizer = parts::clip(&path, parts)?;
        settings.add_to(&mut tokenizer, &path, added, [])?;
        (path, tokenizer, Some(frame))
    } else {
        let path = dir.join("vocab.json");
        let vocab = read_file(&path, Kind::Tokenizer)?;
        let Some((vocab, pairs)) = vocab.zip(read_file(&merges, Kind::Tokenizer)?) else {
            return Err(Error::weights(
                dir,
                "no CLIP tokenizer: expected tokenizer.json, or vocab.json and merges.txt",
            ));
        };
        let vocab: Ids = serde_json::from_slice(&vocab)
            .map_err(|e| Error::weights(&path, format!("malformed vocabulary: {e}")).because(e))?;
        let merges = read_merges(&merges, &pairs)?;
        let unk = special("unk_token", &eos)?;
        let parts = Bpe { vocab, merges, unk: Some(unk.clone()), split: CLIP_SPLIT.to_string() };
        let mut tokenizer = parts::clip(&path, parts)?;
        // Matched in the prompt as written: `<|ENDOFTEXT|>` is just characters.
        let defaults =
            [&bos, &eos, &unk, &pad].map(|token| AddedToken::from(token.as_str(), true).normalized(false));
        settings.add_to(&mut tokenizer, &path, Vec::new(), defaults)?;
        (path, tokenizer, None)
    };
    let mut ready = Ready::new(path, tokenizer, [Some(&bos), Some(&eos), Some(&pad)], frame)?;
    ready.longest = settings.longest(2)?;
    Ok(ready)
}

/// A pair of tokens a line, the best first; beginning with a comment.
fn read_merges(path: &Path, bytes: &[u8]) -> Result<Vec<(String, String)>> {
    let text = std::str::from_utf8(bytes)
        .map_err(|e| Error::weights(path, format!("malformed merges beside vocab.json: {e}")).because(e))?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.starts_with("#version"));
    lines
        .map(|(at, line)| {
            json::pair(line).ok_or_else(|| {
                let (at, line) = (at + 1, short(line));
                let text = format!("line {at}, {line:?}: expected two tokens that vocab.json has");
                Error::weights(path, text)
            })
        })
        .collect()
}

fn t5(dir: &Path) -> Result<Ready> {
    let settings = Settings::read(dir)?;
    let eos = settings.special("eos_token")?.unwrap_or_else(|| "</s>".to_string());
    let pad = settings.special("pad_token")?.unwrap_or_else(|| "<pad>".to_string());
    let (path, model) = (dir.join("tokenizer.json"), dir.join("spiece.model"));
    let (path, tokenizer, frame) = if let Some(bytes) = read_file(&path, Kind::Tokenizer)? {
        let json::Contents { parts, added, frame } = json::t5(&path, &bytes)?;
        let mut tokenizer = parts::t5(&path, parts)?;
        settings.add_to(&mut tokenizer, &path, added, [])?;
        (path, tokenizer, Some(frame))
    } else if let Some(bytes) = read_file(&model, Kind::Tokenizer)? {
        let tokenizer = t5_from_pieces(&model, &bytes, &settings)?;
        (model, tokenizer, None)
    } else {
        return Err(Error::weights(dir, "no T5 tokenizer: expected tokenizer.json or spiece.model"));
    };
    Ready::new(path, tokenizer, [None, Some(&eos), Some(&pad)], frame)
}

/// Source: transformers 4 `T5Converter` and `_get_prepend_scheme`.
fn t5_from_pieces(path: &Path, bytes: &[u8], settings: &Settings) -> Result<Tokenizer> {
    let model = spiece::parse(path, bytes)?;
    let mut special: Vec<AddedToken> = model
        .pieces
        .iter()
        .filter(|piece| piece.kind != spiece::Kind::Normal)
        .map(|piece| {
            let control = piece.kind != spiece::Kind::UserDefined;
            AddedToken::from(piece.text.as_str(), control).normalized(false)
        })
        .collect();
    let mut pieces: Vec<(String, f64)> =
        model.pieces.into_iter().map(|piece| (piece.text, f64::from(piece.score))).collect();
    // The sentinels of T5's training task are not in the SentencePiece model: 99 comes first, 0 last.
    let extra_ids = settings.count("extra_ids")?.unwrap_or(100);
    if extra_ids > bounds::MOST_ADDED_TOKENS as u64 {
        let most = bounds::MOST_ADDED_TOKENS;
        return Err(Error::weights(path, format!("with {extra_ids} extra_ids: expected at most {most}")));
    }
    for k in (0..extra_ids).rev() {
        let sentinel = format!("<extra_id_{k}>");
        special.push(AddedToken::from(sentinel.as_str(), true).normalized(false));
        pieces.push((sentinel, 0.0));
    }
    // "First" leaves a word right after a special token inside the prompt without a space before it.
    let prepend = match (settings.flag("add_prefix_space")?, settings.flag("legacy")?) {
        (Some(false), _) => PrependScheme::Never,
        (_, Some(false)) => PrependScheme::First,
        _ => PrependScheme::Always,
    };
    let parts = Unigram {
        pieces,
        unk_id: model.unk_id,
        charsmap: model.charsmap,
        strip: true,
        squeeze: true,
        split_white: false,
        prepend,
    };
    let mut tokenizer = parts::t5(path, parts)?;
    settings.add_to(&mut tokenizer, path, Vec::new(), special)?;
    Ok(tokenizer)
}
