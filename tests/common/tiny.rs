//! The bundled model as a repository of the hub, its transformer in two shards, beside files that nothing reads; and whether
//! a cache holds it.

#![allow(dead_code)]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::LazyLock;

use safetensors::SafeTensors;
use schnell::Model;
use serde_json::json;

use crate::hub::{Hub, digest};

pub const LARGEST: &str = "transformer/diffusion_pytorch_model-00001-of-00002.safetensors";
pub const INDEX: &str = "transformer/diffusion_pytorch_model.safetensors.index.json";

/// What the loader does not read.
pub const NEVER: [&str; 6] = [
    "README.md",
    "tiny.safetensors",
    "grid.jpeg",
    "transformer/diffusion_pytorch_model.bin",
    "vae/diffusion_pytorch_model.fp16.safetensors",
    "tokenizer_2/spiece.model",
];

static FILES: LazyLock<BTreeMap<String, Vec<u8>>> = LazyLock::new(|| {
    let dir = tempfile::tempdir().unwrap();
    schnell::demo::write(dir.path()).unwrap();
    let mut files = BTreeMap::new();
    for folder in
        ["", "scheduler", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "transformer", "vae"]
    {
        for entry in std::fs::read_dir(dir.path().join(folder)).unwrap() {
            let path = entry.unwrap().path();
            if path.is_file() {
                let name = path.strip_prefix(dir.path()).unwrap().to_str().unwrap().to_string();
                files.insert(name, std::fs::read(path).unwrap());
            }
        }
    }
    let whole = files.remove("transformer/diffusion_pytorch_model.safetensors").unwrap();
    let whole = SafeTensors::deserialize(&whole).unwrap();
    let mut tensors = whole.tensors();
    tensors.sort_by(|a, b| a.0.cmp(&b.0));
    let rest = tensors.split_off(tensors.len() / 3 * 2);
    let mut map = BTreeMap::new();
    for (i, shard) in [tensors, rest].into_iter().enumerate() {
        let name = format!("diffusion_pytorch_model-0000{}-of-00002.safetensors", i + 1);
        map.extend(shard.iter().map(|(tensor, _)| (tensor.clone(), name.clone())));
        files.insert(format!("transformer/{name}"), safetensors::serialize(shard, None).unwrap());
    }
    files.insert(INDEX.to_string(), json!({"metadata": {}, "weight_map": map}).to_string().into());
    files.extend(NEVER.map(|name| (name.to_string(), name.as_bytes().to_vec())));
    files
});

pub fn files() -> &'static BTreeMap<String, Vec<u8>> {
    &FILES
}

pub fn hub() -> Hub {
    Hub::new(files().clone())
}

/// Nothing in the cache is other than it claims: blobs are whole and are what their names say, links lead to them, and
/// what opens as a model is all of it.
#[track_caller]
pub fn check_cache(cache: &Path) {
    let repo = cache.join("models--org--tiny");
    let by_digest: BTreeMap<String, &Vec<u8>> =
        files().iter().map(|(name, b)| (digest(name, b), b)).collect();
    for entry in std::fs::read_dir(repo.join("blobs")).into_iter().flatten() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if !name.ends_with(".incomplete") && by_digest.contains_key(name) {
            assert!(
                std::fs::read(&path).unwrap() == *by_digest[name],
                "{} is not what it claims",
                path.display()
            );
        }
    }
    for snapshot in std::fs::read_dir(repo.join("snapshots")).into_iter().flatten() {
        let snapshot = snapshot.unwrap().path();
        for (name, bytes) in files() {
            let link = snapshot.join(name);
            if link.symlink_metadata().is_ok() {
                assert!(std::fs::read(&link).unwrap() == *bytes, "{}", link.display());
            }
        }
        if Model::open(&snapshot).is_ok() {
            check_whole(cache, &snapshot);
        }
    }
    if repo.join("refs/main").exists() {
        let commit = std::fs::read_to_string(repo.join("refs/main")).unwrap();
        check_whole(cache, &repo.join("snapshots").join(commit));
    }
}

/// All files that the loader reads are there, byte by byte, and nothing is left of how they came.
#[track_caller]
pub fn check_whole(cache: &Path, snapshot: &Path) {
    for (name, bytes) in files() {
        let found = std::fs::read(snapshot.join(name)).ok();
        let expected = (!NEVER.contains(&name.as_str())).then_some(bytes);
        assert!(found.as_ref() == expected, "{name} in {}", snapshot.display());
    }
    let blobs = std::fs::read_dir(cache.join("models--org--tiny/blobs")).unwrap();
    let left: Vec<_> = blobs.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert!(!left.iter().any(|name| name.ends_with(".incomplete")), "{left:?}");
    Model::open(snapshot).unwrap();
}
