//! GGUF: the container and its blocks as the package `gguf` writes and reads them, files that are not sound, and models that
//! draw what their numbers draw.

#[path = "common/checkpoint.rs"]
mod checkpoint;
mod common;
#[path = "common/gguf.rs"]
mod gguf;

use std::path::Path;

use checkpoint::*;
use common::emulator;
use gguf::{
    BF16, F16, F32, Header, Q4_0, Q4_K, Q8_0, Tensor, divided, quantize, sound, split, string, t5_name,
};
use schnell::weights::gguf::Gguf;
use schnell::weights::{Component, Dtype, Part};
use schnell::{Error, Model, ModelFolder, Pipeline, Quantize, Request, Shape};

const TYPES: [&str; 10] = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"];

fn golden() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/gguf.gguf")
}

// ---- as the package has it -------------------------------------------------------------------------------

#[test]
fn blocks_mean_what_the_package_computes() {
    let file = Gguf::open(&golden()).unwrap();
    assert_eq!(file.tensors.len(), 2 * TYPES.len() + 3);
    for name in TYPES {
        let (blocks, values) = (&file.tensors[name], &file.tensors[&format!("{name}.values")]);
        assert_eq!((&blocks.shape, blocks.stored_as()), (&values.shape, name.to_string()));
        assert_eq!(blocks.shape, [10, 256], "{name}");
        let (mut got, mut want) = (vec![0; blocks.bytes as usize], vec![0; values.bytes as usize]);
        blocks.read_at(0, &mut got).unwrap();
        values.read_at(0, &mut want).unwrap();
        assert!(want.iter().any(|byte| *byte != 0));
        assert!(got == want, "{name}");
        // A piece that begins and ends within blocks.
        let mut piece = vec![0; 4 * 301];
        blocks.read_at(4 * 77, &mut piece).unwrap();
        assert!(piece == want[4 * 77..4 * 378], "{name}");
        assert!(matches!(blocks.read_at(2, &mut piece), Err(Error::Input(_))));
    }
}

#[test]
fn the_container_is_what_the_package_writes() {
    let file = Gguf::open(&golden()).unwrap();
    assert_eq!(file.version, 3);
    for (key, value) in [
        ("architecture", "flux"),
        ("alignment", "64"),
        ("quantization_version", "2"),
        ("kind_uint8", "255"),
        ("kind_int8", "-128"),
        ("kind_uint16", "65535"),
        ("kind_int16", "-32768"),
        ("kind_uint32", "4294967295"),
        ("kind_int32", "-2147483648"),
        ("kind_float32", "0.5"),
        ("kind_bool", "true"),
        ("kind_string", "ééé"),
        ("kind_uint64", "18446744073709551615"),
        ("kind_int64", "-9223372036854775808"),
        ("kind_float64", "0.25"),
    ] {
        assert_eq!(file.metadata[&format!("general.{key}")], value, "{key}");
    }
    assert!(!file.metadata.contains_key("general.strings"));
    let read = |name: &str| (file.tensors[name].shape.clone(), file.tensors[name].read_f32().unwrap());
    let (shape, wide) = read("F32");
    assert_eq!(shape, [3, 5]);
    let half = |value: &f32| half::f16::from_f32(*value).to_f32();
    assert_eq!(read("F16").1, wide.iter().map(half).collect::<Vec<_>>());
    let brain = |value: &f32| half::bf16::from_f32(*value).to_f32();
    assert_eq!(read("BF16").1, wide.iter().map(brain).collect::<Vec<_>>());
}

#[test]
fn any_file_of_a_divided_one_stands_for_all() {
    for no in 1..=3 {
        let path = golden().with_file_name(format!("divided-{no:05}-of-00003.gguf"));
        let file = Gguf::open(&path).unwrap();
        assert_eq!((file.files, file.version, file.tensors.len()), (3, 3, 4), "{no}");
        assert_eq!(file.metadata["general.architecture"], "flux", "{no}");
        for i in 0..4 {
            let tensor = &file.tensors[&format!("tensor.{i}")];
            let want: Vec<f32> = (32 * i..32 * (i + 1)).map(|n| n as f32).collect();
            assert_eq!((&tensor.shape[..], tensor.read_f32().unwrap()), (&[2, 16][..], want), "{no}, {i}");
        }
        assert_eq!(Component::file(&path).unwrap().num_files(), 3);
    }
    assert_eq!(Gguf::open(&golden()).unwrap().files, 1);
}

// ---- what is not sound -----------------------------------------------------------------------------------

fn tensor(name: &str, sizes: &[u64], kind: u32, bytes: usize) -> Tensor {
    (name.to_string(), sizes.to_vec(), kind, vec![1; bytes])
}

fn two() -> Vec<Tensor> {
    vec![tensor("a", &[32, 2], Q8_0, 68), tensor("b", &[4], F32, 16)]
}

fn with(edit: impl Fn(&mut Header)) -> Header {
    let mut header = Header::default();
    edit(&mut header);
    header
}

#[test]
fn versions_and_alignments_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.gguf");
    for version in [2, 3] {
        for alignment in [1u32, 8, 32, 4096] {
            let header = with(|header| {
                (header.version, header.alignment) = (version, alignment.into());
                let value = ("general.alignment".to_string(), 4, alignment.to_le_bytes().to_vec());
                header.metadata.push(value);
                // Arrays of strings and, though nobody writes them, of arrays.
                let nested = [9u32.to_le_bytes().to_vec(), 1u64.to_le_bytes().to_vec()].concat();
                let inner = [5u32.to_le_bytes().to_vec(), 2u64.to_le_bytes().to_vec(), vec![7; 8]].concat();
                header.metadata.push(("x".to_string(), 9, [nested, inner].concat()));
            });
            std::fs::write(&path, sound(&header, &two())).unwrap();
            let file = Component::file(&path).unwrap();
            assert_eq!((file.gguf_version(), file.iter().count()), (Some(version), 2));
            let a = file.get("a").unwrap();
            // Every code is 1, every scale the f16 of bytes 1, 1.
            let value = half::f16::from_le_bytes([1, 1]).to_f32();
            assert_eq!(
                (a.shape.clone(), a.dtype, a.read_f32().unwrap()),
                (vec![2, 32], Dtype::F32, vec![value; 64])
            );
            assert_eq!((a.bytes, a.stored_bytes()), (256, 68));
        }
    }
}

#[test]
fn malformed_files_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.gguf");
    let check = |bytes: &[u8], word: &str| {
        std::fs::write(&path, bytes).unwrap();
        let Err(error) = Gguf::open(&path) else { panic!("{word}: it was opened") };
        assert!(matches!(error, Error::Weights { .. } | Error::Unsupported(_)), "{error:?}");
        assert!(error.to_string().contains(word), "{error} does not say {word:?}");
    };
    let whole = sound(&Header::default(), &two());
    for cut in [0, 3, 7, 20, 40, 60, 100, 130] {
        check(&whole[..cut.min(whole.len())], "truncated");
    }
    check(&whole[..whole.len() - 17], "beyond the file");
    let metadata =
        |kind: u32, value: Vec<u8>| with(|header| header.metadata.push(("k".into(), kind, value.clone())));
    let aligned = |alignment: u32| {
        with(|header| {
            let value = ("general.alignment".to_string(), 4, alignment.to_le_bytes().to_vec());
            header.metadata.push(value);
        })
    };
    let array = |kind: u32, count: u64| [kind.to_le_bytes().to_vec(), count.to_le_bytes().to_vec()].concat();
    let deep: Vec<u8> = std::iter::repeat_n(array(9, 1), 6).flatten().collect();
    for (header, word) in [
        (with(|header| header.magic = *b"GGML"), "does not begin with GGUF"),
        (with(|header| header.version = 1), "version 1"),
        (with(|header| header.version = 4), "version 4"),
        (with(|header| header.version = 3u32.swap_bytes()), "big-endian"),
        (with(|header| header.tensors = Some(u64::MAX)), "tensors: expected at most"),
        (with(|header| header.tensors = Some(1 << 18)), "a tensor's name of"),
        (metadata(13, vec![]), "metadata of type 13"),
        (metadata(8, u64::MAX.to_le_bytes().to_vec()), "truncated"),
        (metadata(9, array(4, u64::MAX)), "an array of"),
        (metadata(9, array(4, 1 << 40)), "truncated"),
        (metadata(9, array(99, 1)), "an array of type 99"),
        (metadata(9, deep), "arrays in arrays"),
        (aligned(0), "power of two"),
        (aligned(48), "power of two"),
        (aligned(1 << 30), "power of two"),
        (with(|header| header.metadata.push(("general.alignment".into(), 8, string("x")))), "power of two"),
        (with(|header| header.metadata.push(("k".repeat(70_000), 0, vec![0]))), "a key of 70000 bytes"),
    ] {
        check(&sound(&header, &two()), word);
    }
    let usual = Header::default();
    for (tensors, word) in [
        (vec![tensor("a", &[33], Q8_0, 34)], "whole number of blocks of 32"),
        (vec![tensor("a", &[u64::MAX, u64::MAX], F32, 4)], "has the sizes"),
        (vec![tensor("a", &[1 << 62], F32, 4)], "has the sizes"),
        (vec![tensor("a", &[1 << 40], F32, 4)], "beyond the file"),
        (vec![tensor("a", &[1; 5], F32, 4)], "5 dimensions"),
        (vec![tensor("a", &[4], F32, 16), tensor("a", &[4], F32, 16)], "twice"),
        (vec![tensor(&"n".repeat(5000), &[4], F32, 16)], "a tensor's name of 5000 bytes"),
        (vec![tensor("a", &[256], 23, 136)], "IQ4_XS"),
        (vec![tensor("a", &[32], 20, 18)], "IQ4_NL"),
        (vec![tensor("a", &[32], 29, 18)], "IQ1_M"),
        (vec![tensor("a", &[32], 4000, 18)], "4000, which is not known"),
    ] {
        check(&sound(&usual, &tensors), word);
    }
    check(&gguf::file(&usual, &two(), |_, _| 0), "overlap");
    check(&gguf::file(&usual, &two(), |i, offset| offset + 8 * i as u64), "no multiple of 32");
    check(&gguf::file(&usual, &two(), |_, offset| offset.wrapping_sub(32)), "beyond the file");
    let mut name = whole;
    let at = name.windows(9).position(|bytes| bytes[..8] == 1u64.to_le_bytes() && bytes[8] == b'a').unwrap();
    name[at + 8] = 0xff;
    check(&name, "no UTF-8");
}

type Metadata = Vec<(String, u32, Vec<u8>)>;
/// Names and bytes.
type Files = [(String, Vec<u8>)];

/// `two()` in two files, of which `edit` makes others; what is said when the second is opened.
fn refusal_of_divided(edit: impl Fn(&Path, &mut Files)) -> String {
    let folder = tempfile::tempdir().unwrap();
    let mut files = divided("x", &two(), 2);
    edit(folder.path(), &mut files);
    files.iter().for_each(|(name, bytes)| std::fs::write(folder.path().join(name), bytes).unwrap());
    let Err(error) = Gguf::open(&folder.path().join(&files[1].0)) else { return "opened".to_string() };
    assert!(matches!(error, Error::Weights { .. }), "{error:?}");
    error.to_string()
}

#[test]
fn files_that_are_not_all_of_a_divided_one_are_refused() {
    let with = |metadata: Metadata, tensors: &[Tensor]| {
        sound(&with(|header| header.metadata.extend(metadata.clone())), tensors)
    };
    let u16s = |key: &str, value: u16| (format!("split.{key}"), 2, value.to_le_bytes().to_vec());
    let check = |word: &str, edit: &dyn Fn(&Path, &mut Files)| {
        let said = refusal_of_divided(edit);
        assert!(said.contains(word), "{said:?} does not say {word:?}");
    };
    check("opened", &|_, _| ());
    check("its name must end in -00002-of-00002.gguf", &|_, files| files[1].0 = "x.gguf".into());
    check("its name must end in -00002-of-00002.gguf", &|_, files| {
        files[1].0 = "x-00003-of-00002.gguf".into()
    });
    check("x-00001-of-00002.gguf is missing beside it", &|_, files| {
        files[0].0 = "y-00001-of-00002.gguf".into()
    });
    check("of 2000 into which", &|_, files| {
        files[1] = ("x-00002-of-02000.gguf".into(), with(split(1, 2000, 2), &two()[1..]));
    });
    check(
        "x-00001-of-02000.gguf, x-00003-of-02000.gguf, x-00004-of-02000.gguf and 1996 more are",
        &|_, files| {
            files[1] = ("x-00002-of-02000.gguf".into(), with(split(1, 2000, 2), &two()[1..]));
        },
    );
    for no in [2, 65535] {
        check(&format!("split.no is {no} of 2"), &|_, files| files[1].1 = with(split(no, 2, 2), &two()[1..]));
    }
    check("lacks split.no", &|_, files| files[1].1 = with(vec![u16s("count", 2)], &two()[1..]));
    check("split.count is many: expected a number", &|_, files| {
        files[1].1 = with(vec![("split.count".into(), 8, string("many"))], &two()[1..]);
    });
    check("split.count is 4294967295: expected at most 65535", &|_, files| {
        files[1].1 = with(vec![("split.count".into(), 4, u32::MAX.to_le_bytes().to_vec())], &two()[1..]);
    });
    // The first is no file of a divided one, another of them, or of another number.
    for metadata in [vec![], split(1, 2, 2), split(0, 3, 2)] {
        check("does not say that it is file 1 of 2", &|_, files| {
            files[0].1 = with(metadata.clone(), &two()[..1]);
        });
    }
    check("tensor b is in", &|_, files| files[0].1 = with(split(0, 2, 2), &two()));
    check("3 tensors were divided into files that hold 2", &|_, files| {
        files[0].1 = with(split(0, 2, 3), &two()[..1]);
    });
    check("split.tensors.count is -1: expected a number", &|_, files| {
        files[0].1 = with(split(0, 2, -1), &two()[..1]);
    });
    check("truncated", &|_, files| files[0].1.truncate(70));
    check("this is a folder", &|folder, files| {
        files[0].0 = "y".into();
        std::fs::create_dir(folder.join("x-00001-of-00002.gguf")).unwrap();
    });
}

#[test]
fn a_count_of_one_is_a_whole_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.gguf");
    for count in [0, 1] {
        let header = with(|header| header.metadata.extend(split(0, count, 2)));
        std::fs::write(&path, sound(&header, &two())).unwrap();
        assert_eq!(Gguf::open(&path).unwrap().tensors.len(), 2);
    }
}

// ---- models ----------------------------------------------------------------------------------------------

fn draw(folder: &ModelFolder, quantize: Quantize) -> Vec<u8> {
    let model = Model::open_folder(folder).unwrap();
    assert_eq!(model.warnings(), [] as [String; 0]);
    let shape = Shape::square(64).steps(1).t5_length(32);
    let builder = Pipeline::builder(&model).quantize(quantize).warm_up([shape]).device(&emulator());
    let request = Request::new("a small red star left of a large blue circle").seed(5);
    builder.load().unwrap().generate(&request).unwrap().rgb
}

/// `tensors` as a GGUF file, and what that means in f32. As in published files, what is no matrix is in f32.
fn both(
    tensors: &Tensors,
    kind: &dyn Fn(&str) -> u32,
    rename: &dyn Fn(&str) -> String,
) -> (Vec<u8>, Tensors) {
    let mut file = Vec::new();
    for (name, (dtype, shape, bytes)) in tensors {
        let mut values = vec![0.0; shape.iter().product()];
        schnell::weights::convert::to_f32(*dtype, bytes, &mut values).unwrap();
        let kind = if shape.len() < 2 { F32 } else { kind(name) };
        let sizes = shape.iter().rev().map(|size| *size as u64).collect();
        file.push((rename(name), sizes, kind, quantize(kind, &values)));
    }
    let bytes = sound(&Header::default(), &file);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.gguf");
    std::fs::write(&path, &bytes).unwrap();
    let read = Gguf::open(&path).unwrap();
    let meant = tensors.iter().map(|(name, (_, shape, _))| {
        let values = read.tensors[&rename(name)].read_f32().unwrap();
        (name.clone(), (Dtype::F32, shape.clone(), le(&values)))
    });
    (bytes, meant.collect())
}

/// A transformer of mixed types under Black Forest Labs' names draws what its numbers draw in f32.
#[test]
fn a_transformer_is_what_it_means() {
    let dir = demo(true);
    let (file, meant) = (dir.path().join("flux.gguf"), dir.path().join("flux.safetensors"));
    let kinds = [Q8_0, Q4_0, Q4_K, BF16, F16];
    let kind = |name: &str| match name.contains("blocks") {
        true => kinds[name.bytes().map(usize::from).sum::<usize>() % kinds.len()],
        false => BF16,
    };
    let wide = bfl(&stored(dir.path(), Part::Transformer), 1, 4);
    let rows_of_256 = |name: &str| if wide[name].1[1] % 256 == 0 { kind(name) } else { Q8_0 };
    let (bytes, values) = both(&wide, &rows_of_256, &str::to_string);
    std::fs::write(&file, bytes).unwrap();
    save(&meant, &values);
    for how in [Quantize::None, Quantize::Nf4] {
        let [got, want] = [&file, &meant]
            .map(|file| draw(&ModelFolder::find(dir.path()).unwrap().transformer(file).unwrap(), how));
        assert!(got == want, "{how}");
    }
}

/// A transformer in three files is the one in one.
#[test]
fn a_divided_transformer_is_the_whole_one() {
    let dir = demo(true);
    let tensors = bfl(&stored(dir.path(), Part::Transformer), 1, 4);
    let tensors = tensors.into_iter().map(|(name, (_, shape, bytes))| {
        (name, shape.iter().rev().map(|size| *size as u64).collect(), BF16, bytes)
    });
    let tensors: Vec<Tensor> = tensors.collect();
    let whole = dir.path().join("flux.gguf");
    std::fs::write(&whole, sound(&Header::default(), &tensors)).unwrap();
    for (name, bytes) in divided("flux", &tensors, 3) {
        std::fs::write(dir.path().join(name), bytes).unwrap();
    }
    let drawn =
        |file: &Path| draw(&ModelFolder::find(dir.path()).unwrap().transformer(file).unwrap(), Quantize::Nf4);
    assert!(drawn(&dir.path().join("flux-00002-of-00003.gguf")) == drawn(&whole));
}

/// T5 under llama.cpp's names.
#[test]
fn a_t5_encoder_is_what_it_means() {
    let dir = demo(false);
    let (file, meant) = (dir.path().join("t5.gguf"), dir.path().join("t5.safetensors"));
    let kind = |name: &str| if name.contains("relative") { F16 } else { Q8_0 };
    let (bytes, values) = both(&stored(dir.path(), Part::T5), &kind, &t5_name);
    std::fs::write(&file, bytes).unwrap();
    save(&meant, &values);
    for how in [Quantize::None, Quantize::Nf4, Quantize::Nf4All] {
        let [got, want] =
            [&file, &meant].map(|file| draw(&ModelFolder::find(dir.path()).unwrap().t5(file).unwrap(), how));
        assert!(got == want, "{how}");
    }
}
