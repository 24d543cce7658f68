//! What the files beside the vocabulary say: special tokens, added tokens and the longest prompt.
//!
//! As transformers reads them: `added_tokens_decoder` of `tokenizer_config.json` says which tokens were added; without
//! one, `added_tokens.json` does, and `special_tokens_map.json` comes before `tokenizer_config.json`. What neither the
//! vocabulary nor these files list, but `additional_special_tokens` names, comes last.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tokenizers::{AddedToken, Tokenizer};

use super::bounds::{MOST_ADDED_TOKENS, check_piece, short};
use crate::files::{self, Kind};
use crate::{Error, Result};

/// A token to be matched in the prompt before it is split, and the id that a file claims for it.
pub(super) type Added = (Option<u32>, AddedToken);

/// `tokenizer_config.json`, `special_tokens_map.json` and `added_tokens.json`; each may be absent.
pub(super) struct Settings {
    path: PathBuf,
    config: Value,
    map: Value,
    /// From whichever file lists them, with the ids that it gives; ascending by id.
    added: Vec<Added>,
}

/// Tokens with a meaning of their own, one each.
const SPECIAL: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];
/// Those that stand around a prompt or for what the vocabulary lacks.
const FRAME: [&str; 4] = ["bos_token", "eos_token", "unk_token", "pad_token"];
/// The same, any number each.
const MORE_SPECIAL: [&str; 2] = ["additional_special_tokens", "extra_special_tokens"];

impl Settings {
    pub fn read(dir: &Path) -> Result<Self> {
        let [path, map, added] = ["tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"]
            .map(|name| dir.join(name));
        let mut settings =
            Settings { config: read_object(&path)?, map: read_object(&map)?, path, added: Vec::new() };
        settings.added = if settings.config["added_tokens_decoder"].is_null() {
            settings.of_added_tokens(&added)?
        } else {
            settings.of_decoder()?
        };
        settings.added.sort_by_key(|(id, _)| *id);
        Ok(settings)
    }

    /// The text of a special token, written as a string or as an object with `content`.
    pub fn special(&self, key: &str) -> Result<Option<String>> {
        let files = if self.config["added_tokens_decoder"].is_null() {
            [&self.map, &self.config]
        } else {
            [&self.config, &self.map]
        };
        let Some(token) = files.into_iter().map(|file| &file[key]).find(|token| !token.is_null()) else {
            return Ok(None);
        };
        let text = content(token).ok_or_else(|| self.wrong(format!("{key} is no token: expected a text")))?;
        check_piece(&self.path, text)?;
        Ok(Some(text.to_string()))
    }

    /// A yes or no of `tokenizer_config.json`, if it says.
    pub fn flag(&self, key: &str) -> Result<Option<bool>> {
        match &self.config[key] {
            Value::Null => Ok(None),
            Value::Bool(flag) => Ok(Some(*flag)),
            other => {
                Err(self.wrong(format!("{key} is {}: expected true or false", short(&other.to_string()))))
            }
        }
    }

    /// A count of `tokenizer_config.json`, if it says.
    pub fn count(&self, key: &str) -> Result<Option<u64>> {
        let value = &self.config[key];
        if value.is_null() {
            return Ok(None);
        }
        let count = value.as_u64().ok_or_else(|| {
            self.wrong(format!("{key} is {}: expected a whole number", short(&value.to_string())))
        })?;
        Ok(Some(count))
    }

    /// The longest prompt in tokens, the special ones included; `usize::MAX` when there is no limit, for which
    /// transformers writes 10^30.
    pub fn longest(&self, num_special: usize) -> Result<usize> {
        match &self.config["model_max_length"] {
            Value::Null => Ok(usize::MAX),
            value => match value.as_f64() {
                Some(length) if length >= num_special as f64 => Ok(length as usize),
                _ => Err(self.wrong(format!(
                    "model_max_length is {}: expected {num_special} or more",
                    short(&value.to_string())
                ))),
            },
        }
    }

    /// Adds tokens: those that come `with` the vocabulary, those of the files, `defaults` that neither has, and last
    /// what is only named. The first to name a token says how it is matched; every id must come out as claimed.
    pub fn add_to(
        &self,
        tokenizer: &mut Tokenizer,
        path: &Path,
        with: Vec<Added>,
        defaults: impl IntoIterator<Item = AddedToken>,
    ) -> Result<()> {
        // One that frames prompts and is in no list must be in the vocabulary: an id of its own would mean nothing.
        let mut named = self.named()?;
        for key in FRAME {
            let token = self.special(key)?.filter(|token| tokenizer.token_to_id(token).is_none());
            named.retain(|text| Some(text) != token.as_ref());
        }
        let named = named.into_iter().map(|text| AddedToken::from(text, true).normalized(false));
        let all: Vec<Added> = with
            .into_iter()
            .chain(self.added.iter().cloned())
            .chain(defaults.into_iter().chain(named).map(|token| (None, token)))
            .collect();
        let mut seen = HashSet::new();
        let mut tokens = Vec::new();
        for (_, token) in &all {
            check_piece(path, &token.content)?;
            if seen.insert(token.content.as_str()) {
                tokens.push(token.clone());
            }
        }
        if tokens.len() > MOST_ADDED_TOKENS {
            let text = format!("{} added tokens: expected at most {MOST_ADDED_TOKENS}", tokens.len());
            return Err(Error::weights(path, text));
        }
        tokenizer.add_tokens(&tokens);
        for (id, token) in all {
            let got = tokenizer.token_to_id(&token.content);
            if id.is_some() && got != id {
                let [id, got] = [id, got].map(|id| id.map_or("none".to_string(), |id| id.to_string()));
                let text = format!(
                    "added token {} has id {id}, but the vocabulary gives it {got}",
                    short(&token.content)
                );
                return Err(Error::weights(&self.path, text));
            }
        }
        Ok(())
    }

    /// Every special token that the files name.
    fn named(&self) -> Result<Vec<String>> {
        let mut texts = Vec::new();
        for key in SPECIAL {
            texts.extend(self.special(key)?);
        }
        for file in [&self.config, &self.map] {
            for key in MORE_SPECIAL {
                let tokens: Vec<&Value> = match &file[key] {
                    Value::Null => continue,
                    Value::Array(tokens) => tokens.iter().collect(),
                    // transformers 4 gives some of them names.
                    Value::Object(tokens) => tokens.values().collect(),
                    _ => return Err(self.wrong(format!("{key} is no list of tokens"))),
                };
                for token in tokens {
                    let text = content(token).ok_or_else(|| self.wrong(format!("{key} lists no token")))?;
                    texts.push(text.to_string());
                }
            }
        }
        Ok(texts)
    }

    fn of_decoder(&self) -> Result<Vec<Added>> {
        let entries = self.config["added_tokens_decoder"].as_object();
        let entries =
            entries.ok_or_else(|| self.wrong("added_tokens_decoder is no object of tokens by id"))?;
        entries
            .iter()
            .map(|(id, entry)| {
                let token = id.parse().ok().zip(added_token(entry));
                let (id, token) = token.ok_or_else(|| {
                    let id = short(id);
                    self.wrong(format!("added_tokens_decoder entry {id:?}: expected an id with a token"))
                })?;
                Ok((Some(id), token))
            })
            .collect()
    }

    fn of_added_tokens(&self, path: &Path) -> Result<Vec<Added>> {
        let entries = read_object(path)?;
        let Some(entries) = entries.as_object() else { return Ok(Vec::new()) };
        let special: HashSet<String> = self.named()?.into_iter().collect();
        entries
            .iter()
            .map(|(text, id)| {
                let id = id.as_u64().and_then(|id| u32::try_from(id).ok()).ok_or_else(|| {
                    let (text, id) = (short(text), id.to_string());
                    Error::weights(path, format!("token {text:?} has id {}: expected a number", short(&id)))
                })?;
                let special = special.contains(text);
                Ok((Some(id), AddedToken::from(text.as_str(), special).normalized(!special)))
            })
            .collect()
    }

    fn wrong(&self, what: impl Into<String>) -> Error {
        Error::weights(&self.path, what)
    }
}

/// An added token as files write it, with how it is matched.
pub(super) fn added_token(entry: &Value) -> Option<AddedToken> {
    let flag = |key: &str, default: bool| match &entry[key] {
        Value::Null => Some(default),
        value => value.as_bool(),
    };
    let special = flag("special", false)?;
    let token = AddedToken::from(entry["content"].as_str()?, special)
        .single_word(flag("single_word", false)?)
        .lstrip(flag("lstrip", false)?)
        .rstrip(flag("rstrip", false)?)
        .normalized(flag("normalized", !special)?);
    Some(token)
}

fn content(token: &Value) -> Option<&str> {
    token.as_str().or_else(|| token["content"].as_str())
}

/// The JSON object in a file; null when there is no file.
fn read_object(path: &Path) -> Result<Value> {
    if !files::exists(path)? {
        return Ok(Value::Null);
    }
    let value: Value = files::read_json(path, Kind::Config)?;
    if value.is_object() {
        Ok(value)
    } else {
        Err(Error::weights(path, "malformed JSON: expected an object"))
    }
}
