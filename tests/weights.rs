//! Weights: inventories counted, containers broken in every way, sources checked, quantized tensors read.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use half::{bf16, f16};
use schnell::Error;
use schnell::config::PipelineConfig;
use schnell::weights::convert::to_f32;
use schnell::weights::layouts::diffusers;
use schnell::weights::nf4;
use schnell::weights::{Component, Dtype, First, Part, SafeTensors, Source, TensorInfo, bitsandbytes};
use serde_json::{Value, json};

// ---- what networks ask for -------------------------------------------------------------------------------

#[test]
fn networks_name_no_tensor_twice() {
    for part in Part::ALL {
        let list = part.needed(&PipelineConfig::schnell()).unwrap();
        let mut names: Vec<&String> = list.iter().flat_map(|n| n.aliases.iter().chain([&n.name])).collect();
        let all = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), all, "{part}");
    }
}

/// The manifests list every tensor that diffusers and transformers made for the golden pipelines: the networks
/// must ask for those and no others (but for encoders of the VAE).
#[test]
fn networks_ask_for_what_diffusers_saves() {
    for pipeline in ["a", "b"] {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(pipeline);
        let config = PipelineConfig::open(dir.join("pipeline")).unwrap();
        let manifest: Value = serde_json::from_slice(&fs::read(dir.join("manifest.json")).unwrap()).unwrap();
        for part in Part::ALL {
            let stored: Vec<(&str, Vec<usize>)> = manifest["tensors"]
                .as_array()
                .unwrap()
                .iter()
                .filter(|row| {
                    row["file"].as_str().unwrap().split('/').next() == Some(diffusers::folder(part))
                })
                .map(|row| {
                    let shape = row["shape"].as_array().unwrap().iter();
                    let shape = shape.map(|n| n.as_u64().unwrap() as usize).collect();
                    (row["name"].as_str().unwrap(), shape)
                })
                .filter(|(name, _)| !(part == Part::Vae && name.starts_with("encoder.")))
                .collect();
            let list = part.needed(&config).unwrap();
            assert_eq!(stored.len(), list.len(), "{pipeline}, {part}");
            for needed in list {
                let names: Vec<&String> = needed.aliases.iter().chain([&needed.name]).collect();
                let found = stored.iter().find(|(name, _)| names.iter().any(|n| n == name));
                let (_, shape) = found.unwrap_or_else(|| panic!("{pipeline}, {part}: no {names:?}"));
                assert_eq!(*shape, needed.shape, "{pipeline}, {part}: {names:?}");
            }
        }
    }
}

// ---- the container ---------------------------------------------------------------------------------------

fn file(header: &str, data: &[u8]) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend(data);
    bytes
}

/// A well-formed file of f32 tensors, every element the tensor's index plus its own over 1000.
fn write_tensors(path: &Path, tensors: &[(String, Vec<usize>, Dtype)]) {
    let mut header = serde_json::Map::new();
    let mut data = Vec::new();
    for (i, (name, shape, dtype)) in tensors.iter().enumerate() {
        let begin = data.len();
        for k in 0..shape.iter().product::<usize>() {
            let value = i as f32 + k as f32 / 1000.0;
            match dtype {
                Dtype::F32 => data.extend(value.to_le_bytes()),
                Dtype::BF16 => data.extend(bf16::from_f32(value).to_le_bytes()),
                Dtype::F16 => data.extend(f16::from_f32(value).to_le_bytes()),
                Dtype::U8 => data.push(k as u8),
                other => panic!("{other}"),
            }
        }
        let info = json!({"dtype": dtype.to_string(), "shape": shape, "data_offsets": [begin, data.len()]});
        header.insert(name.clone(), info);
    }
    fs::write(path, file(&Value::Object(header).to_string(), &data)).unwrap();
}

#[test]
fn tensors_are_found_and_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.safetensors");
    // An odd number of bytes first, so that what follows is unaligned; an empty one and a scalar.
    let header = r#"{"__metadata__":{"format":"pt"},
        "odd":{"dtype":"U8","shape":[3],"data_offsets":[0,3]},
        "m":{"dtype":"F32","shape":[2,2],"data_offsets":[3,19]},
        "none":{"dtype":"F32","shape":[0,4],"data_offsets":[19,19]},
        "one":{"dtype":"BF16","shape":[],"data_offsets":[19,21]}}   "#;
    let mut data = vec![7, 8, 9];
    for value in [1.0f32, -2.0, 3.5, 1e-30] {
        data.extend(value.to_le_bytes());
    }
    data.extend(bf16::from_f32(0.5).to_le_bytes());
    fs::write(&path, file(header, &data)).unwrap();

    let tensors = SafeTensors::open(&path).unwrap();
    assert_eq!((tensors.iter().count(), tensors.path()), (4, path.as_path()));
    let matrix = tensors.get("m").unwrap();
    assert_eq!((matrix.shape.as_slice(), matrix.dtype, matrix.bytes), (&[2, 2][..], Dtype::F32, 16));
    assert_eq!((matrix.elements(), matrix.row_bytes()), (4, 8));
    assert_eq!(matrix.read_f32().unwrap(), [1.0, -2.0, 3.5, 1e-30]);
    let mut row = [0; 8];
    matrix.read_at(8, &mut row).unwrap();
    assert_eq!(row[..4], 3.5f32.to_le_bytes());
    assert_eq!(tensors.get("one").unwrap().read_f32().unwrap(), [0.5]);
    assert_eq!(tensors.get("none").unwrap().read_f32().unwrap(), [0.0; 0]);
    assert!(tensors.get("two").is_none());

    for (start, len) in [(9, 8), (16, 1), (u64::MAX, 2)] {
        let error = matrix.read_at(start, &mut vec![0; len]).unwrap_err();
        assert!(matches!(&error, Error::Weights { what, .. } if what.contains("tensor m")), "{error}");
    }
}

/// Rows of a tensor, some of them in another order, read in pieces of all lengths.
#[test]
fn rows_of_a_tensor_are_a_tensor() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.safetensors");
    write_tensors(&path, &[("before".into(), vec![3], Dtype::U8), ("m".into(), vec![7, 5], Dtype::F32)]);
    let tensors = SafeTensors::open(&path).unwrap();
    let whole = tensors.get("m").unwrap();
    let values = whole.read_f32().unwrap();
    let cut = whole.cut(vec![4..7, 0..1, 1..1, 2..3]).unwrap();
    assert_eq!((&cut.shape[..], cut.bytes, cut.row_bytes()), (&[5, 5][..], 100, 20));
    let rows = [4, 5, 6, 0, 2];
    let want: Vec<f32> = rows.iter().flat_map(|row| values[5 * row..5 * row + 5].to_vec()).collect();
    assert_eq!(cut.read_f32().unwrap(), want);
    let want: Vec<u8> = want.iter().flat_map(|value| value.to_le_bytes()).collect();
    for start in 0..=100 {
        for end in start..=100 {
            let mut piece = vec![0; end - start];
            cut.read_at(start as u64, &mut piece).unwrap();
            assert_eq!(piece, want[start..end]);
        }
    }
    assert!(matches!(cut.read_at(99, &mut [0; 2]), Err(Error::Weights { .. })));
    for (start, end) in [(6, 8), (5, 4)] {
        let run = std::ops::Range { start, end };
        assert!(matches!(whole.cut(vec![run]), Err(Error::Internal(_))), "{start}..{end}");
    }
    assert!(matches!(cut.cut(vec![0..1, 1..2]), Err(Error::Internal(_))));
}

#[track_caller]
fn expect_weights_error<T: std::fmt::Debug>(result: schnell::Result<T>, words: &[&str]) {
    let error = result.unwrap_err();
    assert!(matches!(error, Error::Weights { .. }), "{error:?}");
    for word in words {
        assert!(error.to_string().contains(word), "{:?} does not name {word:?}", error.to_string());
    }
}

#[test]
fn malformed_files_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("broken.safetensors");
    let tensor = |shape: &str, begin: u64, end: u64| {
        format!(r#"{{"dtype":"F32","shape":{shape},"data_offsets":[{begin},{end}]}}"#)
    };
    let one = |info: String| format!(r#"{{"t":{info}}}"#);
    let two = |a: String, b: String| format!(r#"{{"t":{a},"u":{b}}}"#);
    for (bytes, word) in [
        (vec![], "0 bytes"),
        (vec![1, 2, 3], "3 bytes"),
        (5u64.to_le_bytes().to_vec(), "truncated"),
        (u64::MAX.to_le_bytes().to_vec(), "truncated"),
        ([&200_000_000u64.to_le_bytes()[..], &[b' '; 64]].concat(), "truncated"),
        (file("", &[]), "header"),
        (file("not json", &[]), "header"),
        (file("[]", &[]), "header"),
        (file("{\"t\":{\"dtype\":\"F31\",\"shape\":[1],\"data_offsets\":[0,4]}}", &[0; 4]), "F31"),
        (file("{\"t\":{\"dtype\":\"F32\",\"shape\":[-1],\"data_offsets\":[0,4]}}", &[0; 4]), "header"),
        (file(&one(tensor("[2]", 0, 4)), &[0; 4]), "header"),
        (file(&one(tensor("[1]", 4, 0)), &[0; 4]), "header"),
        (file(&one(tensor("[18446744073709551615,2]", 0, 4)), &[0; 4]), "header"),
        (file(&one(tensor("[1]", 4, 8)), &[0; 8]), "header"),
        (file(&two(tensor("[1]", 0, 4), tensor("[1]", 0, 4)), &[0; 8]), "header"),
        (file(&two(tensor("[1]", 0, 4), tensor("[1]", 5, 9)), &[0; 9]), "header"),
        (file(&one(tensor("[2]", 0, 8)), &[0; 7]), "truncated"),
        (file(&one(tensor("[2]", 0, 8)), &[0; 9]), "after the tensors"),
        (file(&one(tensor("[1]", u64::MAX - 3, u64::MAX)), &[0; 4]), "header"),
        (file("{\"t\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]", &[0; 4]), "header"),
        ([&4u64.to_le_bytes()[..], &[0xff; 4]].concat(), "header"),
    ] {
        fs::write(&path, &bytes).unwrap();
        expect_weights_error(SafeTensors::open(&path), &["broken.safetensors", word]);
    }
    let missing = SafeTensors::open(&dir.path().join("missing.safetensors")).unwrap_err();
    assert!(matches!(missing, Error::Io { .. }));
}

#[test]
fn a_file_that_shrinks_after_opening_is_an_io_error() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.safetensors");
    write_tensors(&path, &[("t".to_string(), vec![100], Dtype::F32)]);
    let tensors = SafeTensors::open(&path).unwrap();
    fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(100).unwrap();
    let error = tensors.get("t").unwrap().read_f32().unwrap_err();
    assert!(matches!(&error, Error::Io { path, .. } if path.ends_with("x.safetensors")), "{error}");
}

// ---- shards ----------------------------------------------------------------------------------------------

fn write_index(dir: &Path, map: &[(&str, &str)]) {
    let map: serde_json::Map<String, Value> = map.iter().map(|(k, v)| (k.to_string(), json!(v))).collect();
    let index = json!({"metadata": {"total_size": 1}, "weight_map": map});
    fs::write(dir.join("model.safetensors.index.json"), index.to_string()).unwrap();
}

#[test]
fn shards_are_resolved_through_the_index() {
    let dir = tempfile::tempdir().unwrap();
    let shard = |name: &str, tensors: &[&str]| {
        let tensors: Vec<_> = tensors.iter().map(|t| (t.to_string(), vec![2], Dtype::F32)).collect();
        write_tensors(&dir.path().join(name), &tensors);
    };
    // "b" lies in both: the index decides. "c" is stored but not listed.
    shard("one.safetensors", &["a", "b"]);
    shard("two.safetensors", &["b", "c"]);
    write_index(dir.path(), &[("a", "one.safetensors"), ("b", "two.safetensors")]);
    let component = Component::open(dir.path(), "model", First::Single).unwrap();
    assert!(component.path().ends_with("model.safetensors.index.json"));
    assert_eq!(component.get("b").unwrap().file.path(), dir.path().join("two.safetensors"));
    assert_eq!(component.get("b").unwrap().read_f32().unwrap(), [0.0, 0.001]);
    assert!(component.get("c").is_none());
    assert_eq!(component.iter().count(), 2);

    // A single file beside it comes first, as in transformers.
    shard("model.safetensors", &["z"]);
    assert!(Component::open(dir.path(), "model", First::Single).unwrap().get("z").is_some());
}

#[test]
fn broken_indices_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    expect_weights_error(
        Component::open(dir.path(), "model", First::Single),
        &["model.safetensors.index.json"],
    );
    write_tensors(&dir.path().join("one.safetensors"), &[("a".to_string(), vec![2], Dtype::F32)]);
    write_index(dir.path(), &[("a", "two.safetensors")]);
    expect_weights_error(
        Component::open(dir.path(), "model", First::Single),
        &["two.safetensors", "missing"],
    );
    write_index(dir.path(), &[("b", "one.safetensors")]);
    expect_weights_error(
        Component::open(dir.path(), "model", First::Single),
        &["tensor b", "one.safetensors"],
    );
    for outside in ["../one.safetensors", "/etc/passwd", "x/one.safetensors", "..", ""] {
        write_index(dir.path(), &[("a", outside)]);
        expect_weights_error(
            Component::open(dir.path(), "model", First::Single),
            &["index.json", "same folder"],
        );
    }
    fs::write(dir.path().join("model.safetensors.index.json"), "{}").unwrap();
    expect_weights_error(Component::open(dir.path(), "model", First::Single), &["index.json", "weight_map"]);
}

// ---- sources ---------------------------------------------------------------------------------------------

/// A model small enough to write in a test.
fn tiny() -> PipelineConfig {
    let mut config = PipelineConfig::schnell();
    (config.flux.heads, config.flux.head_dim, config.flux.axes) = (1, 8, [2, 2, 4]);
    (config.flux.layers, config.flux.single_layers) = (1, 1);
    (config.flux.in_channels, config.flux.out_channels) = (8, 8);
    (config.flux.joint_width, config.flux.pooled_width) = (8, 8);
    (config.t5.width, config.t5.heads, config.t5.head_dim, config.t5.ff) = (8, 1, 8, 5);
    (config.t5.layers, config.t5.vocab_rows) = (2, 9);
    (config.clip.width, config.clip.heads, config.clip.ff) = (8, 1, 7);
    (config.clip.layers, config.clip.vocab_rows) = (1, 11);
    (config.vae.latent_channels, config.vae.block_channels, config.vae.groups) = (2, vec![8, 16], 2);
    config
}

type Stored = Vec<(String, Vec<usize>, Dtype)>;

fn stored(part: Part, dtype: Dtype) -> Stored {
    part.needed(&tiny()).unwrap().into_iter().map(|needed| (needed.name, needed.shape, dtype)).collect()
}

/// The folder of a tiny model, each part's tensors after `change`.
fn folder(change: impl Fn(Part, &mut Stored)) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for part in Part::ALL {
        let dtype = if part == Part::T5 { Dtype::BF16 } else { Dtype::F32 };
        let mut tensors = stored(part, dtype);
        change(part, &mut tensors);
        let path = dir.path().join(diffusers::folder(part));
        fs::create_dir(&path).unwrap();
        write_tensors(&path.join(format!("{}.safetensors", diffusers::stem(part))), &tensors);
    }
    dir
}

#[test]
fn sources_find_every_tensor() {
    let dir = folder(|_, _| ());
    let source = Source::open(dir.path(), &tiny()).unwrap();
    assert_eq!(source.dir(), dir.path());
    for part in Part::ALL {
        let list = part.needed(&tiny()).unwrap();
        assert_eq!(source.tensors(part).count(), list.len());
        for needed in list {
            assert_eq!(source.tensor(part, &needed.name).unwrap().shape, needed.shape);
        }
    }
    let info: &TensorInfo = source.tensor(Part::T5, "shared.weight").unwrap();
    assert_eq!((info.dtype, info.elements()), (Dtype::BF16, 72));
    assert_eq!(info.read_f32().unwrap()[71], bf16::from_f32(0.071).to_f32());
    expect_weights_error(source.tensor(Part::Clip, "shared.weight"), &["text_encoder", "shared.weight"]);
}

#[test]
fn other_names_of_the_same_tensor_serve() {
    let dir = folder(|_, tensors| {
        for (name, shape, dtype) in tensors {
            *name = match name.as_str() {
                "shared.weight" => "encoder.embed_tokens.weight".to_string(),
                other => other.strip_prefix("text_model.").unwrap_or(other).to_string(),
            };
            for (new, old) in
                [("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")]
            {
                if name.starts_with("decoder.mid_block.attentions") && name.contains(new) {
                    *name = name.replace(new, old);
                    // Then also stored as 1x1 convolutions.
                    if name.ends_with("weight") {
                        shape.extend([1, 1]);
                    }
                }
            }
            *dtype = Dtype::F16;
        }
    });
    let source = Source::open(dir.path(), &tiny()).unwrap();
    assert_eq!(source.tensor(Part::T5, "shared.weight").unwrap().name, "encoder.embed_tokens.weight");
    let name = "decoder.mid_block.attentions.0.to_out.0.weight";
    let info = source.tensor(Part::Vae, name).unwrap();
    assert_eq!(info.name, "decoder.mid_block.attentions.0.proj_attn.weight");
    // As the network asks for it.
    assert_eq!(info.shape, [16, 16]);
    let info = source.tensor(Part::Clip, "text_model.final_layer_norm.bias").unwrap();
    assert_eq!(info.name, "final_layer_norm.bias");
}

#[test]
fn what_is_wrong_is_named_and_counted() {
    let target = "transformer_blocks.0.attn.to_q.weight";
    let change_one = |change: fn(&mut Stored, usize)| {
        let dir = folder(|_, tensors| {
            if let Some(i) = tensors.iter().position(|(name, ..)| name == target) {
                change(tensors, i);
            }
        });
        Source::open(dir.path(), &tiny())
    };
    let missing = change_one(|tensors, i| drop(tensors.remove(i)));
    expect_weights_error(missing, &["diffusion_pytorch_model.safetensors", target, "missing", "[8, 8]"]);
    let shape = change_one(|tensors, i| tensors[i].1 = vec![8, 9]);
    expect_weights_error(shape, &["diffusion_pytorch_model.safetensors", target, "[8, 9]", "[8, 8]"]);
    let dtype = change_one(|tensors, i| tensors[i].2 = Dtype::U8);
    expect_weights_error(dtype, &[target, "U8", "BF16"]);
    fn halve(tensors: &mut Stored, i: usize, beside: &str) {
        tensors[i] = (tensors[i].0.clone(), vec![32, 1], Dtype::U8);
        tensors.push((format!("{}.{beside}", tensors[i].0), vec![16], Dtype::F32));
    }
    let fp4 = change_one(|tensors, i| halve(tensors, i, "quant_state.bitsandbytes__fp4"));
    assert!(
        matches!(&fp4, Err(Error::Unsupported(what)) if what.contains(target) && what.contains("FP4")),
        "{fp4:?}"
    );
    let bare = change_one(|tensors, i| halve(tensors, i, "quant_map"));
    expect_weights_error(bare, &[target, "without quant_state.bitsandbytes__nf4"]);

    // The first of several, with the number of the others; a missing folder counts once.
    let dir = folder(|part, tensors| {
        if part == Part::Clip {
            tensors.truncate(tensors.len() - 3);
        }
    });
    expect_weights_error(Source::open(dir.path(), &tiny()), &["text_encoder", "and 2 more such errors"]);
    fs::remove_dir_all(dir.path().join("vae")).unwrap();
    expect_weights_error(Source::open(dir.path(), &tiny()), &["and 3 more such errors"]);
}

// ---- tensors that bitsandbytes quantized ----------------------------------------------------------------

#[test]
fn quantized_tensors_read_as_bitsandbytes_dequantizes_them() {
    let golden = Component::open("tests/golden".as_ref(), "nf4_linears", First::Single).unwrap();
    for name in ["plain", "nested"] {
        let stored = golden.get(&format!("{name}.weight")).unwrap();
        let tensor = bitsandbytes::open(&golden, stored).unwrap().expect("it is quantized");
        assert_eq!((tensor.dtype, &tensor.shape[..]), (Dtype::F32, &[192, 128][..]));
        let values = tensor.read_f32().unwrap();
        let expected = golden.get(&format!("{name}.dequantized")).unwrap();
        let rounded: Vec<u8> = values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect();
        let mut bytes = vec![0; expected.bytes as usize];
        expected.read_at(0, &mut bytes).unwrap();
        assert!(rounded == bytes, "{name}: other bf16 values than bitsandbytes'");

        // Quantizing what was read gives back what was stored.
        let again = nf4::quantize(&values);
        let mut codes = vec![0; stored.bytes as usize];
        stored.read_at(0, &mut codes).unwrap();
        assert!(again.packed == codes, "{name}: other codes");
        if name == "plain" {
            assert_eq!(again.absmax, golden.get("plain.weight.absmax").unwrap().read_f32().unwrap());
        }

        // Any stretch of it, also one that begins and ends inside a byte and a block.
        for (first, count) in [(0, 1), (1, 1), (63, 2), (127, 1), (5000, 333), (192 * 128 - 1, 1)] {
            let mut bytes = vec![0; 4 * count];
            tensor.read_at(4 * first as u64, &mut bytes).unwrap();
            let mut part = vec![0.0; count];
            to_f32(Dtype::F32, &bytes, &mut part).unwrap();
            assert_eq!(part, values[first..first + count], "{name} {first}..+{count}");
        }
        assert!(matches!(tensor.read_at(2, &mut [0; 4]), Err(Error::Input(_))));
        expect_weights_error(tensor.read_at(4 * 192 * 128, &mut [0; 4]), &["weight"]);
        assert!(bitsandbytes::open(&golden, expected).unwrap().is_none(), "bf16 is no 4-bit tensor");
    }
}

/// Tensors by name: dtype, shape, bytes.
type Parts = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

/// A quantized 2 x 64 Linear with its parts, some of them replaced, opened.
fn quantized(change: &dyn Fn(&mut Parts)) -> schnell::Result<Option<TensorInfo>> {
    let bytes = |values: &[f32]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
    let state = json!({"blocksize": 64, "quant_type": "nf4", "dtype": "float32", "shape": [2, 64],
                       "nested_blocksize": 256, "nested_offset": 0.5});
    let mut parts: Parts = [
        ("", Dtype::U8, vec![64, 1], vec![0x70; 64]),
        (".absmax", Dtype::U8, vec![2], vec![3, 255]),
        (".quant_map", Dtype::F32, vec![16], bytes(&nf4::CODE_BOOK)),
        (".nested_absmax", Dtype::F32, vec![1], bytes(&[2.0])),
        (".nested_quant_map", Dtype::F32, vec![256], bytes(&(0..256).map(|i| i as f32).collect::<Vec<_>>())),
        (
            ".quant_state.bitsandbytes__nf4",
            Dtype::U8,
            vec![state.to_string().len()],
            state.to_string().into_bytes(),
        ),
    ]
    .map(|(suffix, dtype, shape, bytes)| (format!("p.weight{suffix}"), (dtype, shape, bytes)))
    .into();
    change(&mut parts);
    let views = parts.iter().map(|(name, (dtype, shape, bytes))| {
        (name, safetensors::tensor::TensorView::new(*dtype, shape.clone(), bytes).unwrap())
    });
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("m.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
    let component = Component::open(dir.path(), "m", First::Single).unwrap();
    let opened = bitsandbytes::open(&component, component.get("p.weight").unwrap());
    // The values of the sound one, while its file is there: code 7 is 0, code 0 is -1.
    if let Ok(Some(tensor)) = &opened {
        let absmax = [3.0 * 2.0 + 0.5, 255.0 * 2.0 + 0.5];
        let expected: Vec<f32> = (0..128).map(|i| if i % 2 == 0 { 0.0 } else { -absmax[i / 64] }).collect();
        assert_eq!(tensor.read_f32().unwrap(), expected);
    }
    opened
}

#[test]
fn quantized_tensors_that_are_not_whole_are_refused() {
    let opened = quantized(&|_| {});
    assert_eq!(opened.unwrap().unwrap().shape, [2, 64]);
    let state = |field: &'static str, value: Value| {
        quantized(&move |parts| {
            let (_, shape, bytes) = parts.get_mut("p.weight.quant_state.bitsandbytes__nf4").unwrap();
            let mut json: Value = serde_json::from_slice(bytes).unwrap();
            json[field] = value.clone();
            *bytes = json.to_string().into_bytes();
            *shape = vec![bytes.len()];
        })
    };
    let part = |name: &'static str, dtype: Dtype, count: usize| {
        quantized(&move |parts| {
            let bytes = vec![0; count * dtype.bitsize() / 8];
            parts.insert(format!("p.weight{name}"), (dtype, vec![count], bytes));
        })
    };
    let without =
        |name: &'static str| quantized(&move |parts| drop(parts.remove(&format!("p.weight{name}"))));

    let unsupported = |refused: schnell::Result<Option<TensorInfo>>, word: &str| {
        assert!(
            matches!(&refused, Err(Error::Unsupported(what)) if what.contains(word)),
            "{word}: {refused:?}"
        );
    };
    unsupported(state("blocksize", json!(128)), "blocks of 128");
    unsupported(part(".quant_map", Dtype::F32, 16), "code book");
    unsupported(part(".quant_state.bitsandbytes__fp4", Dtype::U8, 1), "FP4");
    unsupported(
        quantized(&|parts| drop(parts.insert("p.SCB".to_string(), (Dtype::F32, vec![1], vec![0; 4])))),
        "8-bit",
    );
    expect_weights_error(
        state("shape", json!([2, 66])),
        &["p.weight", "does not hold the 4-bit codes of [2, 66]"],
    );
    expect_weights_error(state("shape", json!([0])), &["does not hold"]);
    expect_weights_error(state("shape", json!("two")), &["malformed quant_state"]);
    // As many elements as there are, but for what 64 bits hold.
    expect_weights_error(state("shape", json!([1u64 << 63, 4, 64])), &["does not hold"]);
    expect_weights_error(state("padding", json!("x".repeat(1 << 15))), &["malformed quant_state"]);
    let cut = quantized(&|parts| {
        let (_, shape, bytes) = parts.get_mut("p.weight.quant_state.bitsandbytes__nf4").unwrap();
        bytes.pop();
        *shape = vec![bytes.len()];
    });
    expect_weights_error(cut, &["malformed quant_state", "EOF"]);
    unsupported(part(".quant_map", Dtype::F32, 15), "code book");
    expect_weights_error(part(".quant_map", Dtype::F16, 16), &["quant_map has dtype F16"]);
    let infinite = quantized(&|parts| {
        let (_, _, scales) = parts.get_mut("p.weight.nested_absmax").unwrap();
        scales.copy_from_slice(&f32::INFINITY.to_le_bytes());
    });
    expect_weights_error(infinite, &["nested_absmax", "not finite"]);
    expect_weights_error(state("nested_blocksize", json!(0)), &["nested_blocksize"]);
    expect_weights_error(state("nested_offset", Value::Null), &["nested_offset"]);
    expect_weights_error(part("", Dtype::F32, 16), &["does not hold the 4-bit codes"]);
    expect_weights_error(part(".absmax", Dtype::U8, 3), &["3 absmax", "expected 2"]);
    expect_weights_error(part(".absmax", Dtype::BF16, 2), &["absmax has dtype BF16"]);
    expect_weights_error(part(".nested_absmax", Dtype::F32, 2), &["2 nested_absmax", "expected 1"]);
    expect_weights_error(part(".nested_quant_map", Dtype::F32, 16), &["nested_quant_map", "expected 256"]);
    for name in [".absmax", ".nested_absmax", ".nested_quant_map", ".quant_state.bitsandbytes__nf4"] {
        expect_weights_error(without(name), &["p.weight", &format!("without {}", &name[1..])]);
    }
}
