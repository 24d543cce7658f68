//! What a repository holds, and which of its files a model is made of: those that the loader reads, and no others.
//!
//! Everything here comes from a server. A name is taken only where it is one that the loader would look for, or a plain one
//! in a part's own folder; a digest is hexadecimal; sizes are bounded by what the loader reads, or by the disk.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use serde::Deserialize;

use super::http::{Asked, Client, Failure};
use crate::weights::layouts::diffusers;
use crate::weights::{First, Part, safetensors};
use crate::{Error, Result, files, json};

/// Of the repository's description: FLUX.1-schnell's has 10 KB.
const MOST_LISTING_BYTES: u64 = 16 << 20;
/// Of one weight file: the hub itself allows 500 GB.
const MOST_WEIGHT_BYTES: u64 = 1 << 40;
const LISTING: json::Limits = json::Limits { names: 1 << 12, values: 1 << 17, name_bytes: 1 << 12 };

/// How a file is known: its name in the cache, and what its bytes are checked against.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Digest {
    /// Of large files.
    Sha256(String),
    /// Of small ones: SHA-1 over a header and the content, as Git names its blobs.
    GitBlob(String),
}

impl Digest {
    /// From hexadecimal; nothing for what is none. It becomes a file's name.
    pub(super) fn new(hex: &str) -> Option<Digest> {
        let hex = hex.to_ascii_lowercase();
        match hex.bytes().all(|byte| byte.is_ascii_hexdigit()).then_some(hex.len()) {
            Some(64) => Some(Digest::Sha256(hex)),
            Some(40) => Some(Digest::GitBlob(hex)),
            _ => None,
        }
    }

    pub(super) fn hex(&self) -> &str {
        match self {
            Digest::Sha256(hex) | Digest::GitBlob(hex) => hex,
        }
    }
}

/// A file that the model needs.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    pub path: String,
    pub bytes: u64,
    pub digest: Digest,
}

/// A repository at a commit.
pub(super) struct Listing {
    pub commit: String,
    files: BTreeMap<String, Sibling>,
}

#[derive(Deserialize)]
struct Described {
    sha: String,
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    blob_id: Option<String>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    #[serde(alias = "oid")]
    sha256: Option<String>,
    size: Option<u64>,
}

impl Listing {
    /// Asks the hub.
    pub(super) fn ask(client: &Client, asked: Asked) -> Result<Listing, Failure> {
        let Asked { id, revision } = asked;
        let path = format!("/api/models/{id}/revision/{}?blobs=true", escaped(revision));
        let bytes = client.read(asked, &path, MOST_LISTING_BYTES)?;
        let malformed = |e: serde_json::Error| {
            Error::network(format!("the list of {id}'s files is not what a hub sends: {e}"))
        };
        json::check(&bytes, &LISTING).map_err(malformed)?;
        let described: Described = serde_json::from_slice(&bytes).map_err(malformed)?;
        match Digest::new(&described.sha) {
            Some(Digest::GitBlob(commit)) => {
                let files =
                    described.siblings.into_iter().map(|file| (file.rfilename.clone(), file)).collect();
                Ok(Listing { commit, files })
            }
            _ => Err(Error::network(format!(
                "the hub gives {id} the commit {:?}, which is none",
                described.sha
            ))
            .into()),
        }
    }

    /// Config files, tokenizers and indices of shards.
    pub(super) fn small(&self, id: &str) -> Result<Vec<(String, files::Kind)>> {
        let has = |name: &str| self.files.contains_key(name);
        if !has("model_index.json") {
            return Err(Error::Unsupported(format!(
                "{id} has no model_index.json: only models in the diffusers layout can be fetched, such as \
                 black-forest-labs/FLUX.1-schnell"
            )));
        }
        let mut small = vec![("model_index.json".to_string(), files::Kind::Config)];
        let configs = Part::ALL.map(|part| format!("{}/config.json", diffusers::folder(part)));
        let configs = configs.into_iter().chain(["scheduler/scheduler_config.json".to_string()]);
        for config in configs {
            if !has(&config) {
                return Err(Error::weights(within(id, &config), "is not there; this model is not whole"));
            }
            small.push((config, files::Kind::Config));
        }
        // Of what is a tokenizer in two forms, the one that is read.
        for (folder, older) in
            [("tokenizer", &["vocab.json", "merges.txt"][..]), ("tokenizer_2", &["spiece.model"])]
        {
            let newer = has(&format!("{folder}/tokenizer.json"));
            let vocabulary = if newer { &["tokenizer.json"][..] } else { older };
            for name in vocabulary {
                let path = format!("{folder}/{name}");
                if !has(&path) {
                    return Err(Error::weights(within(id, &path), "is not there; this model is not whole"));
                }
                small.push((path, files::Kind::Tokenizer));
            }
            let beside = ["tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"];
            let beside = beside.map(|name| format!("{folder}/{name}")).into_iter().filter(|path| has(path));
            small.extend(beside.map(|path| (path, files::Kind::Config)));
        }
        for part in Part::ALL {
            if let Weights::Index(path) = self.weights(id, part)? {
                small.push((path, files::Kind::Index));
            }
        }
        Ok(small)
    }

    /// Which of the sets of weights of a part the loader would take.
    pub(super) fn weights(&self, id: &str, part: Part) -> Result<Weights> {
        let (folder, stem) = (diffusers::folder(part), diffusers::stem(part));
        let (single, index) =
            (format!("{folder}/{stem}.safetensors"), format!("{folder}/{stem}.safetensors.index.json"));
        match (self.files.contains_key(&single), self.files.contains_key(&index), diffusers::first(part)) {
            (true, false, _) | (true, true, First::Single) => return Ok(Weights::Single(single)),
            (false, true, _) | (true, true, First::Index) => return Ok(Weights::Index(index)),
            (false, false, _) => {}
        }
        let in_folder = self.files.keys().filter_map(|path| path.strip_prefix(folder)?.strip_prefix('/'));
        let variants: Vec<&str> =
            in_folder.filter(|name| is_plain(name) && safetensors::is_variant(stem, name)).collect();
        match variants[..] {
            [one] if one.ends_with(".json") => Ok(Weights::Index(format!("{folder}/{one}"))),
            [one] => Ok(Weights::Single(format!("{folder}/{one}"))),
            [] => Err(Error::weights(
                within(id, folder),
                "holds no safetensors files; other formats are not read",
            )),
            [first, second, ..] => {
                let what =
                    format!("holds several sets of weights, {first} and {second}, and none that comes first");
                Err(Error::weights(within(id, folder), what))
            }
        }
    }

    /// The shards that the index at `path` names; `bytes` is what it holds.
    pub(super) fn shards(&self, id: &str, path: &str, bytes: &[u8]) -> Result<Vec<String>> {
        #[derive(Deserialize)]
        struct Index {
            weight_map: BTreeMap<String, String>,
        }
        let wrong = |what: String| Error::weights(within(id, path), what);
        let malformed = |e: serde_json::Error| wrong(format!("malformed JSON: {e}")).because(e);
        json::check(bytes, &json::CONFIG).map_err(malformed)?;
        let index: Index = serde_json::from_slice(bytes).map_err(malformed)?;
        let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
        let names: BTreeSet<&String> = index.weight_map.values().collect();
        let shard = |name: &String| {
            let shard = format!("{folder}/{name}");
            if !is_plain(name) || !name.ends_with(".safetensors") {
                return Err(wrong(format!(
                    "names shard {name:?}: expected a safetensors file in the same folder"
                )));
            }
            match self.files.contains_key(&shard) {
                true => Ok(shard),
                false => Err(wrong(format!("names shard {name}, which the repository does not hold"))),
            }
        };
        names.into_iter().map(shard).collect()
    }

    /// Size and digest of a file of the list, asked for where the list does not say. `kind` is of those that have a limit.
    pub(super) fn wanted(
        &self,
        client: &Client,
        asked: Asked,
        path: &str,
        kind: Option<files::Kind>,
    ) -> Result<Wanted, Failure> {
        let (mut bytes, mut digest) = (None, None);
        if let Some(file) = self.files.get(path) {
            bytes = file.lfs.as_ref().and_then(|lfs| lfs.size).or(file.size);
            digest = match &file.lfs {
                Some(lfs) => lfs.sha256.as_deref(),
                None => file.blob_id.as_deref(),
            };
        }
        let asked_for;
        if bytes.is_none() || digest.and_then(Digest::new).is_none() {
            asked_for = client.head(asked, &self.url(asked.id, path))?;
            (bytes, digest) = (asked_for.bytes.or(bytes), Some(asked_for.etag.as_str()));
        }
        let unknown = |what: &str| {
            Error::network(format!(
                "the hub does not say which {what} {} has",
                within(asked.id, path).display()
            ))
        };
        let digest = digest.and_then(Digest::new).ok_or_else(|| unknown("digest"))?;
        let bytes = bytes.ok_or_else(|| unknown("size"))?;
        let most = kind.map_or(MOST_WEIGHT_BYTES, files::Kind::limit_bytes);
        if bytes > most {
            let what = format!("{bytes} bytes; expected at most {most}");
            return Err(Error::weights(within(asked.id, path), what).into());
        }
        Ok(Wanted { path: path.to_string(), bytes, digest })
    }

    /// Where a file's bytes are asked for, below the endpoint. By commit, so that all files are of one.
    pub(super) fn url(&self, id: &str, path: &str) -> String {
        format!("/{id}/resolve/{}/{path}", self.commit)
    }
}

/// A part's weights: one file, or shards behind an index.
pub(super) enum Weights {
    Single(String),
    Index(String),
}

/// A file of a repository, for messages.
pub(super) fn within(id: &str, path: &str) -> PathBuf {
    PathBuf::from(format!("{id}/{path}"))
}

/// Names that weights have. They become part of paths and URLs.
fn is_plain(name: &str) -> bool {
    let is_usual = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    name.len() <= 200 && !name.starts_with('.') && name.bytes().all(is_usual)
}

/// A revision as one part of a URL's path.
fn escaped(text: &str) -> String {
    let escape = |byte: u8| match byte {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => char::from(byte).to_string(),
        other => format!("%{other:02X}"),
    };
    text.bytes().map(escape).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listing(names: &[&str]) -> Listing {
        let file = |name: &&str| {
            let rfilename = name.to_string();
            (rfilename.clone(), Sibling { rfilename, size: None, blob_id: None, lfs: None })
        };
        Listing { commit: "0".repeat(40), files: names.iter().map(file).collect() }
    }

    /// The file names of the real repository.
    const SCHNELL: [&str; 31] = [
        ".gitattributes",
        "LICENSE.md",
        "README.md",
        "ae.safetensors",
        "flux1-schnell.safetensors",
        "model_index.json",
        "scheduler/scheduler_config.json",
        "schnell_grid.jpeg",
        "text_encoder/config.json",
        "text_encoder/model.safetensors",
        "text_encoder_2/config.json",
        "text_encoder_2/model-00001-of-00002.safetensors",
        "text_encoder_2/model-00002-of-00002.safetensors",
        "text_encoder_2/model.safetensors.index.json",
        "tokenizer/merges.txt",
        "tokenizer/special_tokens_map.json",
        "tokenizer/tokenizer_config.json",
        "tokenizer/vocab.json",
        "tokenizer_2/special_tokens_map.json",
        "tokenizer_2/spiece.model",
        "tokenizer_2/tokenizer.json",
        "tokenizer_2/tokenizer_config.json",
        "transformer/config.json",
        "transformer/diffusion_pytorch_model-00001-of-00003.safetensors",
        "transformer/diffusion_pytorch_model-00002-of-00003.safetensors",
        "transformer/diffusion_pytorch_model-00003-of-00003.safetensors",
        "transformer/diffusion_pytorch_model.safetensors.index.json",
        "transformer/pytorch_model.bin",
        "transformer/model.onnx",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
    ];

    #[test]
    fn of_schnells_files_those_that_are_read() {
        let listing = listing(&SCHNELL);
        let small: Vec<String> = listing.small("o/n").unwrap().into_iter().map(|(path, _)| path).collect();
        assert_eq!(small.len(), 15, "{small:?}");
        for never in ["spiece", "README", "flux1-schnell", "ae.", "jpeg", ".bin", ".onnx"] {
            assert!(!small.iter().any(|path| path.contains(never)), "{small:?}");
        }
        assert!(
            matches!(listing.weights("o/n", Part::Vae).unwrap(), Weights::Single(path) if path.starts_with("vae/"))
        );
        let Weights::Index(index) = listing.weights("o/n", Part::Transformer).unwrap() else {
            panic!("one file")
        };
        let shard = |i| format!("diffusion_pytorch_model-0000{i}-of-00003.safetensors");
        let map =
            serde_json::json!({"weight_map": {"a": shard(1), "b": shard(3), "c": shard(1)}}).to_string();
        let shards = listing.shards("o/n", &index, map.as_bytes()).unwrap();
        assert_eq!(shards, [1, 3].map(|i| format!("transformer/{}", shard(i))));
    }

    #[test]
    fn indices_lead_nowhere_else() {
        let evil = [
            "transformer/../../evil.safetensors",
            "/etc/evil.safetensors",
            "evil.safetensors",
            "transformer/x",
        ];
        let listing = listing(&evil);
        for name in
            ["../../evil.safetensors", "/etc/evil.safetensors", "../evil.safetensors", "x", "a.safetensors"]
        {
            let map = serde_json::json!({"weight_map": {"a": name}}).to_string();
            let refusal =
                listing.shards("o/n", "transformer/i.json", map.as_bytes()).unwrap_err().to_string();
            assert!(refusal.contains("names shard"), "{name}: {refusal}");
        }
    }

    #[test]
    fn variants_count_where_there_is_nothing_else() {
        let set = |names: &[&str]| match listing(names).weights("o/n", Part::Vae) {
            Ok(Weights::Single(path) | Weights::Index(path)) => path,
            Err(error) => error.to_string(),
        };
        let (plain, half) =
            ("vae/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.fp16.safetensors");
        assert_eq!(set(&[plain, half]), plain);
        assert_eq!(set(&[half]), half);
        assert!(set(&[half, "vae/diffusion_pytorch_model.bf16.safetensors"]).contains("several sets"));
        assert!(set(&["vae/diffusion_pytorch_model.bin"]).contains("no safetensors"));
        assert!(set(&["vae/diffusion_pytorch_model.../../x.safetensors"]).contains("no safetensors"));
    }

    #[test]
    fn digests_are_hexadecimal() {
        assert!(matches!(Digest::new(&"aB".repeat(32)), Some(Digest::Sha256(hex)) if hex == "ab".repeat(32)));
        assert!(matches!(Digest::new(&"0".repeat(40)), Some(Digest::GitBlob(_))));
        for wrong in ["", "../../../../../../../../../../../../../../", &"g".repeat(64), &"0".repeat(63)] {
            assert_eq!(Digest::new(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn revisions_are_one_part_of_a_path() {
        assert_eq!(escaped("refs/pr/1?x#"), "refs%2Fpr%2F1%3Fx%23");
    }
}
