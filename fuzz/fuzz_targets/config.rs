//! A config file of one component among the sound ones of the bundled model; what is taken is planned.
#![no_main]

use std::path::PathBuf;
use std::sync::LazyLock;

use libfuzzer_sys::{Corpus, fuzz_target};
use schnell::{PipelineConfig, Plan, Quantize, Shape};

mod folder;

/// By the first byte.
const FILES: [&str; 7] = [
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder_2/config.json",
    "tokenizer_2/tokenizer_config.json",
    "transformer/config.json",
    "vae/config.json",
];

struct Model {
    dir: PathBuf,
    sound: Vec<Vec<u8>>,
}

static MODEL: LazyLock<Model> = LazyLock::new(|| {
    let dir = folder::new();
    schnell::demo::write(&dir).unwrap();
    let sound = FILES.map(|file| std::fs::read(dir.join(file)).unwrap()).into();
    Model { dir, sound }
});

fuzz_target!(|data: &[u8]| -> Corpus {
    let Some((&which, json)) = data.split_first() else { return Corpus::Reject };
    let which = usize::from(which) % FILES.len();
    let path = MODEL.dir.join(FILES[which]);
    std::fs::write(&path, json).unwrap();
    if let Ok(config) = PipelineConfig::open(&MODEL.dir) {
        let _ = Plan::new(&config, Shape::square(64), Quantize::Nf4).map(|plan| plan.to_string());
    }
    std::fs::write(&path, &MODEL.sound[which]).unwrap();
    Corpus::Keep
});
