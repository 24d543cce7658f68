//! How fast weights load beside reading the same files into nothing, all of them in the disk's cache: `cargo bench --bench
//! loading`. On the emulator, which counts kernels here instead of carrying them out, and leaves out copies to the device: what the
//! host does is timed. With these copies, which on a GPU are not its work, it is timed, too.
//!
//! Rounds take turns, and the best of each kind counts. Ends with an error when a kind falls below `LEAST`.

use std::fs::File;
use std::hint::black_box;
use std::io::{BufWriter, Read, Write};
use std::path::Path;
use std::time::Instant;

use schnell::config::{FluxConfig, PipelineConfig, T5Config};
use schnell::device::{Device, EmulatorOptions};
use schnell::pipeline::{Model, Pipeline, Plan, Quantize, Shape};
use schnell::weights::{InNf4, ModelFiles, Needed, Part, nf4};
use serde_json::{Map, Value, json};

const ROUNDS: usize = 7;
/// Of the rate of reading into nothing.
const LEAST: f64 = 0.8;

/// FLUX.1-schnell with fewer layers: 2 GB in NF4.
fn config() -> PipelineConfig {
    let schnell = PipelineConfig::schnell();
    PipelineConfig {
        flux: FluxConfig { layers: 6, single_layers: 8, ..schnell.flux.clone() },
        t5: T5Config { layers: 3, ..schnell.t5.clone() },
        ..schnell
    }
}

/// A safetensors file of `needed`, its Linears' weights as bitsandbytes saves them, where `holds` says so; else bf16.
fn write(path: &Path, needed: &[Needed], holds: impl Fn(&Needed) -> bool) {
    let (mut header, mut end) = (Map::new(), 0u64);
    let mut contents: Vec<(u64, Vec<u8>)> = Vec::new();
    let mut put = |name: String, dtype: &str, shape: Value, bytes: u64, pattern: Vec<u8>| {
        header.insert(name, json!({"dtype": dtype, "shape": shape, "data_offsets": [end, end + bytes]}));
        end += bytes;
        contents.push((bytes, pattern));
    };
    for tensor in needed {
        let (name, elements) = (&tensor.name, tensor.elements());
        if !holds(tensor) {
            put(name.clone(), "BF16", json!(tensor.shape), 2 * elements, vec![0x80, 0x3c]);
            continue;
        }
        let book: Vec<u8> = nf4::CODE_BOOK.iter().flat_map(|v| v.to_le_bytes()).collect();
        let state = json!({"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": tensor.shape});
        let state = state.to_string().into_bytes();
        put(name.clone(), "U8", json!([elements / 2, 1]), elements / 2, vec![0x17, 0xe8, 0x3c]);
        put(
            format!("{name}.absmax"),
            "F32",
            json!([elements / 64]),
            elements / 16,
            0.1f32.to_le_bytes().to_vec(),
        );
        put(format!("{name}.quant_map"), "F32", json!([16]), 64, book);
        let length = state.len() as u64;
        put(format!("{name}.quant_state.bitsandbytes__nf4"), "U8", json!([length]), length, state);
    }
    let json = serde_json::to_vec(&header).unwrap();
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let mut file = BufWriter::with_capacity(1 << 20, File::create(path).unwrap());
    file.write_all(&(json.len() as u64).to_le_bytes()).unwrap();
    file.write_all(&json).unwrap();
    for (bytes, pattern) in contents {
        let many = pattern.repeat((1 << 20) / pattern.len() + 1);
        let whole = many.len() / pattern.len() * pattern.len();
        let mut left = bytes as usize;
        while left > 0 {
            let now = left.min(whole);
            file.write_all(&many[..now]).unwrap();
            left -= now;
        }
    }
    file.into_inner().unwrap().sync_all().unwrap();
}

/// A folder with weights of `config` in NF4 where bitsandbytes would have them so.
fn model(dir: &Path, config: &PipelineConfig) -> Model {
    schnell::demo::write(dir).unwrap();
    for (part, file) in [
        (Part::Transformer, "transformer/diffusion_pytorch_model.safetensors"),
        (Part::T5, "text_encoder_2/model.safetensors"),
        (Part::Clip, "text_encoder/model.safetensors"),
        (Part::Vae, "vae/diffusion_pytorch_model.safetensors"),
    ] {
        for entry in std::fs::read_dir(dir.join(file).parent().unwrap()).unwrap() {
            let path = entry.unwrap().path();
            if path.to_string_lossy().contains(".safetensors") {
                std::fs::remove_file(path).unwrap();
            }
        }
        write(&dir.join(file), &part.needed(config).unwrap(), |tensor| {
            let is_linear = tensor.name.ends_with(".weight") && tensor.shape.len() == 2;
            let stays = ["shared", "wo.weight", "relative", "embed_tokens"];
            [Part::Transformer, Part::T5].contains(&part)
                && is_linear
                && tensor.elements() % 64 == 0
                && !stays.iter().any(|name| tensor.name.contains(name))
        });
    }
    let config =
        PipelineConfig { in_nf4: InNf4::find(&ModelFiles::folder(dir), config).unwrap(), ..config.clone() };
    Model::open_as(config, dir).unwrap()
}

/// Seconds that it takes, and bytes.
fn read_into_nothing(files: &[std::path::PathBuf]) -> (f64, u64) {
    let mut buffer = vec![0; 8 << 20];
    let (begun, mut bytes) = (Instant::now(), 0);
    for file in files {
        let mut file = File::open(file).unwrap();
        loop {
            let read = file.read(&mut buffer).unwrap();
            black_box(&buffer);
            bytes += read as u64;
            if read == 0 {
                break;
            }
        }
    }
    (begun.elapsed().as_secs_f64(), bytes)
}

fn main() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let (folder, cache) = (dir.path().join("model"), dir.path().join("cache"));
    let model = model(&folder, &config());
    let plan = Plan::new(model.config(), Shape::square(64), Quantize::Nf4).unwrap();
    // `None` for the files, else the packed cache.
    let load = |cache: Option<&Path>, copies_nothing: bool| {
        let device = Device::emulator(EmulatorOptions {
            launches_nothing: true,
            copies_nothing,
            ..EmulatorOptions::default()
        });
        // As a GPU does: before anything is read. The emulator's memory is the host's, which comes when it is first touched.
        let mut builder = Pipeline::builder(&model).with_plan(plan.clone()).device(&device);
        if let Some(cache) = cache {
            builder = builder.cache(cache);
        }
        let (mut begun, mut done) = (None, Instant::now());
        let mut bytes = 0;
        let pipeline = builder.load_with(&mut |progress| {
            if let schnell::Progress::Loading { done: read, total } = progress {
                begun.get_or_insert_with(Instant::now);
                if read == total {
                    done = Instant::now();
                }
                bytes = total;
            }
            std::ops::ControlFlow::Continue(())
        });
        drop(pipeline.unwrap());
        ((done - begun.unwrap()).as_secs_f64(), bytes)
    };
    load(Some(&cache), false);
    let files = |folder: &Path| -> Vec<std::path::PathBuf> {
        let mut files: Vec<_> =
            std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.retain(|path| path.extension().is_some_and(|ending| ending == "safetensors"));
        files
    };
    let of_model: Vec<_> = ["transformer", "text_encoder_2", "text_encoder", "vae"]
        .iter()
        .flat_map(|name| files(&folder.join(name)))
        .collect();
    let mut best = [(f64::INFINITY, 0); 6];
    for _ in 0..ROUNDS {
        let round = [
            read_into_nothing(&of_model),
            load(None, true),
            load(None, false),
            read_into_nothing(&files(&cache)),
            load(Some(&cache), true),
            load(Some(&cache), false),
        ];
        for (best, now) in best.iter_mut().zip(round) {
            if now.0 < best.0 {
                *best = now;
            }
        }
    }
    let rate = |(seconds, bytes): (f64, u64)| bytes as f64 / seconds * 1e-9;
    let mut is_fast = true;
    for (what, kinds) in [("NF4 files", &best[..3]), ("packed cache", &best[3..])] {
        let [nothing, loaded, copied] = [0, 1, 2].map(|i| rate(kinds[i]));
        is_fast &= loaded >= LEAST * nothing;
        println!(
            "{what}: {:.2} GB, read into nothing {nothing:.2} GB/s, loaded {loaded:.2} GB/s, ratio {:.2}; with copies by the CPU \
             {copied:.2} GB/s, ratio {:.2}",
            kinds[0].1 as f64 * 1e-9,
            loaded / nothing,
            copied / nothing
        );
    }
    assert!(is_fast, "below {LEAST}");
}
