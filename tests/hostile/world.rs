//! Where a case happens: a folder with a model of hard links in it, a folder to run in, one for temporary files; and a dice,
//! so that a case is its seed.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use schnell::PipelineConfig;
use schnell::weights::Part;
use serde_json::Value;

use crate::command::DEMO;
use crate::golden::Golden;
use crate::rng::Rng;

/// Decides what there is to decide.
pub struct Dice(Rng);

impl Dice {
    pub fn new(seed: u64, index: usize) -> Dice {
        let first = Rng(seed).bits();
        Dice(Rng(first ^ (index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)))
    }

    pub fn bits(&mut self) -> u64 {
        self.0.bits()
    }

    /// 0 to `n - 1`; 0 for `n` = 0.
    pub fn below(&mut self, n: usize) -> usize {
        if n == 0 { 0 } else { (self.bits() % n as u64) as usize }
    }

    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    pub fn of<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len())]
    }

    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.bits() as u8).collect()
    }
}

/// A sound model.
pub struct Base {
    pub name: &'static str,
    pub dir: PathBuf,
    /// Its files, by their place in it.
    pub files: Vec<String>,
    /// The names that its files have for what the networks need, by file; the tables, of which only some rows count, are not
    /// among them.
    pub needed: BTreeMap<String, Vec<String>>,
    /// The pixels of `PICTURE`.
    pub pixels: std::sync::OnceLock<Vec<u8>>,
}

impl Base {
    fn new(name: &'static str, dir: &Path) -> Base {
        let mut files = Vec::new();
        list(dir, dir, &mut files);
        files.sort();
        let config = PipelineConfig::open(dir).unwrap();
        let mut needed = BTreeMap::new();
        for part in Part::ALL {
            let (folder, wanted) =
                (schnell::weights::layouts::diffusers::folder(part), part.needed(&config).unwrap());
            for file in files.iter().filter(|f| f.starts_with(folder) && f.ends_with(".safetensors")) {
                let there = split(&std::fs::read(dir.join(file)).unwrap()).0;
                let names = wanted.iter().flat_map(|w| [&w.name].into_iter().chain(&w.aliases));
                let tables = ["shared.", "embed_tokens.", "token_embedding."];
                let counts = |name: &&String| tables.iter().all(|table| !name.contains(table));
                let names = names.filter(counts).filter(|name| !there[name.as_str()].is_null());
                needed.insert(file.clone(), names.cloned().collect());
            }
        }
        Base { name, dir: dir.to_path_buf(), files, needed, pixels: Default::default() }
    }

    /// A file with tensors that count.
    pub fn weights(&self, dice: &mut Dice) -> String {
        let files: Vec<&String> = self.needed.keys().filter(|file| !self.needed[*file].is_empty()).collect();
        dice.of(&files).to_string()
    }
}

fn list(root: &Path, dir: &Path, files: &mut Vec<String>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            list(root, &path, files);
        } else {
            files.push(path.strip_prefix(root).unwrap().to_str().unwrap().to_string());
        }
    }
}

/// The bundled model (4-bit transformer, `tokenizer.json` twice) and the two golden ones: one with the older files of CLIP's
/// tokenizer, one with T5's and with shards.
pub struct Bases {
    pub all: [Base; 3],
    _golden: [Golden; 2],
}

impl Bases {
    pub fn new() -> Bases {
        let (a, b) = (Golden::open("a"), Golden::open("b"));
        let all = [Base::new("demo", DEMO.path()), Base::new("a", a.dir()), Base::new("b", b.dir())];
        Bases { all, _golden: [a, b] }
    }
}

/// The folder of one case.
pub struct World<'a> {
    dir: tempfile::TempDir,
    pub base: &'a Base,
}

impl<'a> World<'a> {
    pub fn new(base: &'a Base) -> World<'a> {
        let dir = tempfile::tempdir().unwrap();
        for folder in ["work", "tmp", "model"] {
            std::fs::create_dir(dir.path().join(folder)).unwrap();
        }
        let world = World { dir, base };
        for file in &base.files {
            let path = world.model(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            let from = base.dir.join(file);
            std::fs::hard_link(&from, &path).or_else(|_| std::fs::copy(&from, &path).map(|_| ())).unwrap();
        }
        world
    }

    pub fn root(&self) -> &Path {
        self.dir.path()
    }

    /// A file of the model.
    pub fn model(&self, file: &str) -> PathBuf {
        self.root().join("model").join(file)
    }

    /// A file where the command runs.
    pub fn work(&self, file: &str) -> PathBuf {
        self.root().join("work").join(file)
    }

    pub fn read(&self, file: &str) -> Vec<u8> {
        std::fs::read(self.model(file)).unwrap()
    }

    /// Another content for a file of the model, whose links elsewhere keep the old one.
    pub fn replace(&self, file: &str, content: &[u8]) {
        self.remove(file);
        std::fs::write(self.model(file), content).unwrap();
    }

    pub fn remove(&self, file: &str) {
        let path = self.model(file);
        if path.symlink_metadata().is_ok() {
            std::fs::remove_file(path).unwrap();
        }
    }

    /// Everything in the world, and what would tell that it was written.
    pub fn snapshot(&self) -> BTreeMap<String, String> {
        let mut entries = BTreeMap::new();
        look(self.root(), self.root(), &mut entries);
        entries
    }
}

fn look(root: &Path, dir: &Path, entries: &mut BTreeMap<String, String>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.strip_prefix(root).unwrap().to_string_lossy().into_owned();
        let metadata = path.symlink_metadata().unwrap();
        let kind = metadata.file_type();
        let mark = if kind.is_dir() {
            look(root, &path, entries);
            "folder".to_string()
        } else if kind.is_symlink() {
            format!("link to {}", path.read_link().unwrap().display())
        } else {
            let (time, nanoseconds) = (metadata.mtime(), metadata.mtime_nsec());
            format!("{:?} {} {} {time}.{nanoseconds}", kind, metadata.ino(), metadata.len())
        };
        entries.insert(name, mark);
    }
}

/// The header of a safetensors file, and the data behind it.
pub fn split(file: &[u8]) -> (Value, Vec<u8>) {
    let end = 8 + u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    (serde_json::from_slice(&file[8..end]).unwrap(), file[end..].to_vec())
}

/// The other way round.
pub fn join(header: &[u8], data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header, data].concat()
}
