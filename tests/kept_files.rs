//! Models whose files hold Linears in fp8 or in types of GGUF: they stay so, and draw what bf16 of the same numbers draws.

#[path = "common/checkpoint.rs"]
mod checkpoint;
mod common;
#[path = "common/gguf.rs"]
mod gguf;
#[path = "common/kept.rs"]
mod kept;

use std::path::Path;
use std::sync::Arc;

use checkpoint::*;
use common::{emulator, rel_l2};
use gguf::{BF16, F32, Header, sound, t5_name};
use half::bf16;
use schnell::config::PipelineConfig;
use schnell::kernels::kept::Format;
use schnell::weights::{Component, Dtype, InFormats, ModelFiles, Part, PartFiles};
use schnell::{DumpValues, Error, Model, ModelFolder, Output, Pipeline, Plan, Quantize, Request, Shape};

/// What a test does with a tensor's numbers: the format that they go into, where they do.
type Choose<'a> = &'a dyn Fn(&str, &[usize]) -> Option<Format>;

fn values(tensor: &(Dtype, Vec<usize>, Vec<u8>)) -> Vec<f32> {
    let (dtype, shape, bytes) = tensor;
    let mut values = vec![0.0; shape.iter().product()];
    schnell::weights::convert::to_f32(*dtype, bytes, &mut values).unwrap();
    values
}

fn decode(format: Format, bytes: &[u8], scale: f32) -> Vec<f32> {
    let mut values = vec![0.0; bytes.len() / format.bytes() * format.values()];
    format.decode(bytes, &mut values);
    values.iter().map(|value| value * scale).collect()
}

/// A GGUF file of `tensors`, and one of safetensors with bf16 of what it means.
fn write_gguf(tensors: &Tensors, rename: &dyn Fn(&str) -> String, choose: Choose, [file, meant]: [&Path; 2]) {
    let (mut stored, mut means) = (Vec::new(), Tensors::new());
    for (name, tensor) in tensors {
        let (shape, numbers) = (&tensor.1, values(tensor));
        let format = choose(name, shape).filter(|format| shape[shape.len() - 1] % format.values() == 0);
        let (kind, bytes, mean) = match format {
            Some(format) => {
                let bytes = kept::encode(format, &numbers);
                let mean = decode(format, &bytes, 1.0);
                (kept::ggml_type(format), bytes, mean)
            }
            None if shape.len() < 2 => (F32, le(&numbers), numbers),
            None => (BF16, gguf::quantize(BF16, &numbers), numbers),
        };
        stored.push((rename(name), shape.iter().rev().map(|size| *size as u64).collect(), kind, bytes));
        let mean = match shape.len() {
            0 | 1 => (Dtype::F32, shape.clone(), le(&mean)),
            _ => {
                (Dtype::BF16, shape.clone(), le(&mean.iter().map(|v| bf16::from_f32(*v)).collect::<Vec<_>>()))
            }
        };
        means.insert(name.clone(), mean);
    }
    std::fs::write(file, sound(&Header::default(), &stored)).unwrap();
    save(meant, &means);
}

/// Embeddings are read as f32, and are the same in both files.
fn is_linear(name: &str, shape: &[usize]) -> bool {
    shape.len() == 2 && !name.contains("shared") && !name.contains("relative")
}

/// The same in fp8, with a scale beside every other matrix.
fn write_fp8(tensors: &Tensors, format: Format, which: &dyn Fn(&str) -> bool, [file, meant]: [&Path; 2]) {
    let dtype = if format == Format::F8E4M3 { Dtype::F8_E4M3 } else { Dtype::F8_E5M2 };
    let (mut stored, mut means) = (Tensors::new(), Tensors::new());
    for (i, (name, tensor)) in tensors.iter().enumerate() {
        let (shape, numbers) = (&tensor.1, values(tensor));
        let Some(stem) = name.strip_suffix("weight").filter(|_| is_linear(name, shape) && which(name)) else {
            stored.insert(name.clone(), tensor.clone());
            means.insert(name.clone(), tensor.clone());
            continue;
        };
        let scale = if i % 2 == 0 { 1.0 } else { 0.013 };
        let bytes: Vec<u8> = numbers.iter().flat_map(|v| kept::encode(format, &[v / scale])).collect();
        let mean: Vec<bf16> = decode(format, &bytes, scale).into_iter().map(bf16::from_f32).collect();
        stored.insert(name.clone(), (dtype, shape.clone(), bytes));
        if i % 2 != 0 {
            stored.insert(format!("{stem}scale_weight"), (Dtype::F32, vec![], le(&[scale])));
        }
        means.insert(name.clone(), (Dtype::BF16, shape.clone(), le(&mean)));
    }
    save(file, &stored);
    save(meant, &means);
}

fn shape() -> Shape {
    Shape::square(64).steps(2).t5_length(32)
}

fn draw_with(folder: &ModelFolder, quantize: Option<Quantize>, edit: impl Fn(Plan) -> Plan) -> Output {
    let model = Model::open_folder(folder).unwrap();
    let quantize = quantize.unwrap_or_else(|| Quantize::usual(model.config()));
    let plan = edit(Plan::new(model.config(), shape(), quantize).unwrap());
    let builder = Pipeline::builder(&model).with_plan(plan).dumps().device(&emulator());
    let request = Request::new("a small red star left of a large blue circle").seed(5).dump();
    builder.load().unwrap().generate(&request).unwrap()
}

fn draw(folder: &ModelFolder, quantize: Option<Quantize>) -> Output {
    draw_with(folder, quantize, |plan| plan)
}

fn stage(output: &Output, name: &str) -> Vec<f32> {
    let dump = output.dumps.iter().find(|dump| dump.stage == name).unwrap();
    let DumpValues::F32(values) = &dump.values else { panic!("{name} is f32") };
    values.clone()
}

/// Files of a transformer and T5, and the same in bf16.
struct Files {
    dir: tempfile::TempDir,
}

impl Files {
    fn new(write: impl Fn(Part, &Tensors, [&Path; 2])) -> Files {
        let dir = demo(true);
        let wide = bfl(&stored(dir.path(), Part::Transformer), 1, 4);
        for (part, tensors) in [(Part::Transformer, wide), (Part::T5, stored(dir.path(), Part::T5))] {
            let paths = Files::paths(dir.path(), part);
            write(part, &tensors, [&paths[0], &paths[1]]);
        }
        Files { dir }
    }

    fn paths(dir: &Path, part: Part) -> [std::path::PathBuf; 2] {
        ["kept", "meant"].map(|what| dir.join(format!("{part}.{what}")))
    }

    /// With the kept files, or those that they mean.
    fn folder(&self, meant: bool) -> ModelFolder {
        let dir = self.dir.path();
        let [transformer, t5] =
            [Part::Transformer, Part::T5].map(|part| Files::paths(dir, part)[usize::from(meant)].clone());
        ModelFolder::find(dir).unwrap().transformer(&transformer).unwrap().t5(&t5).unwrap()
    }

    /// T5 has the same bits. In the transformer sums are made in another order: those of few rows, and those of tiles that are split along k,
    /// as more CTAs fit an SM than of bf16. A last bit of a sum turns one of a bf16, and that the others'. The products alone are bit-equal:
    /// tests/kept_gemm.rs.
    fn check(&self, what: &str) {
        let got = draw(&self.folder(false), None);
        let want = draw(&self.folder(true), Some(Quantize::None));
        assert!(stage(&got, "t5_embeds") == stage(&want, "t5_embeds"), "{what}");
        for name in ["noise_pred_0", "noise_pred_1", "latents_1"] {
            let error = rel_l2(&stage(&got, name), &stage(&want, name));
            assert!(error < 1.5e-2, "{what} {name}: {error:.2e}");
        }
    }
}

/// What `Network::gemv` multiplies with, under Black Forest Labs' names.
fn is_of_few_rows(name: &str) -> bool {
    ["mod", "_in."].iter().any(|part| name.contains(part))
        && !name.starts_with("img_in")
        && !name.starts_with("txt_in")
}

/// In types of GGUF by turns, other ones for T5's query, key and value.
fn in_types(types: &[Format], modulations: bool) -> Files {
    let of_name = |name: &str, shape: &[usize]| {
        let is_block = name.contains("block") && is_linear(name, shape);
        let at = name.bytes().fold(7usize, |sum, byte| sum * 31 % 1009 + usize::from(byte));
        (is_block && (modulations || !is_of_few_rows(name))).then(|| types[at % types.len()])
    };
    Files::new(|part, tensors, paths| {
        let rename = |name: &str| if part == Part::T5 { t5_name(name) } else { name.to_string() };
        write_gguf(tensors, &rename, &of_name, paths);
    })
}

fn mixed() -> Files {
    let types: Vec<Format> = Format::ALL.into_iter().filter(|format| !format.is_fp8()).collect();
    in_types(&types, true)
}

#[test]
fn types_of_gguf_draw_what_they_mean() {
    in_types(&[Format::Q8_0], false).check("Q8_0");
    let files = mixed();
    files.check("mixed");
    let config = files.folder(false).config().unwrap();
    assert_eq!(Quantize::usual(&config), Quantize::Keep);
    let plan = Plan::new(&config, shape(), Quantize::Keep).unwrap();
    let (transformer, t5) = plan.kept_bytes();
    assert!(transformer > 0 && t5 > 0 && plan.nf4_bytes() == (0, 0));
    // They are what `nf4` quantizes anew, and `none` widens.
    let bytes = |how| Plan::new(&config, shape(), how).unwrap().arena_bytes();
    assert!(bytes(Quantize::Keep) < bytes(Quantize::None) && bytes(Quantize::Nf4) < bytes(Quantize::None));
    assert_eq!(Plan::new(&config, shape(), Quantize::Nf4).unwrap().kept_bytes(), (0, 0));
}

#[test]
fn fp8_draws_what_it_means() {
    for format in [Format::F8E4M3, Format::F8E5M2] {
        for modulations in [false, true] {
            let which = |name: &str| modulations || !is_of_few_rows(name);
            let files = Files::new(|_, tensors, paths| write_fp8(tensors, format, &which, paths));
            files.check(&format.to_string());
        }
    }
}

/// A part in few bits beside one that is not: that one becomes NF4, as without.
#[test]
fn other_parts_are_kept_as_ever() {
    let files = mixed();
    let dir = files.dir.path();
    let t5 = &Files::paths(dir, Part::T5)[0];
    let config = ModelFolder::find(dir).unwrap().t5(t5).unwrap().config().unwrap();
    let plan = |how| Plan::new(&config, shape(), how).unwrap();
    let (keep, nf4) = (plan(Quantize::Keep), plan(Quantize::Nf4));
    assert_eq!((keep.nf4_bytes().0, keep.nf4_bytes().1), (nf4.nf4_bytes().0, 0));
    assert!(keep.kept_bytes().0 == 0 && keep.kept_bytes().1 > 0);
}

/// Streamed, from the cache or from disk, it is the same picture.
#[test]
fn budgets_and_the_cache_do_not_change_a_byte() {
    let files = mixed();
    let folder = files.folder(false);
    let want = draw(&folder, None).rgb;
    let streamed = |plan: Plan| {
        let least = plan.least_bytes().unwrap();
        plan.within(least).unwrap()
    };
    assert!(draw_with(&folder, None, streamed).rgb == want, "streamed");
    let model = Model::open_folder(&folder).unwrap();
    let cache = files.dir.path().join("cache");
    let mut made = None;
    for what in ["written", "read"] {
        let plan = Plan::new(model.config(), shape(), Quantize::Keep).unwrap();
        let builder = Pipeline::builder(&model).with_plan(plan).cache(&cache).device(&emulator());
        let request = Request::new("a small red star left of a large blue circle").seed(5);
        assert!(builder.load().unwrap().generate(&request).unwrap().rgb == want, "{what}");
        let packed = |entry: std::fs::DirEntry| (entry.path(), entry.metadata().unwrap().modified().unwrap());
        let now: Vec<_> = std::fs::read_dir(&cache).unwrap().map(|entry| packed(entry.unwrap())).collect();
        assert!(now.len() == 1 && *made.get_or_insert(now.clone()) == now, "{what}: not made again");
    }
}

#[test]
fn what_cannot_be_kept_is_refused() {
    let dir = demo(true);
    let t5 = stored(dir.path(), Part::T5);
    let refused = |file: &Path| {
        let model = Model::open_folder(&ModelFolder::find(dir.path()).unwrap().t5(file).unwrap()).unwrap();
        Pipeline::builder(&model).warm_up([shape()]).device(&emulator()).load().unwrap_err()
    };
    let [file, meant] = Files::paths(dir.path(), Part::T5);
    // A scale that its kernels have no room for.
    write_fp8(&t5, Format::F8E4M3, &|_| true, [&file, &meant]);
    let mut stored: Tensors = checkpoint_of(&file);
    let scale = stored.keys().find(|name| name.ends_with("scale_weight")).unwrap().clone();
    stored.insert(scale, (Dtype::F32, vec![], le(&[300f32])));
    save(&file, &stored);
    let error = refused(&file);
    assert!(matches!(error, Error::Weights { .. }) && error.to_string().contains("the scale 300"), "{error}");
    // Numbers that are none, in both families, and a matrix that was not filled.
    let name = "encoder.block.0.layer.1.DenseReluDense.wi_0.weight";
    for (byte, word) in [(0x7f, "not finite"), (0, "is 0")] {
        write_fp8(&t5, Format::F8E4M3, &|_| true, [&file, &meant]);
        let mut stored: Tensors = checkpoint_of(&file);
        stored.get_mut(name).unwrap().2.fill(byte);
        save(&file, &stored);
        let error = refused(&file);
        assert!(matches!(error, Error::Weights { .. }) && error.to_string().contains(word), "{error}");
    }
    write_gguf(&t5, &t5_name, &|of, _| (of == name).then_some(Format::Q4_1), [&file, &meant]);
    let mut bytes = std::fs::read(&file).unwrap();
    let of_block = kept::encode(Format::Q4_1, &values(&t5[name])[..32]);
    let at = bytes.windows(20).position(|window| window == of_block).unwrap();
    bytes[at + 3] = 0x7c;
    std::fs::write(&file, bytes).unwrap();
    assert!(refused(&file).to_string().contains("32 of the numbers"), "{}", refused(&file));
}

fn checkpoint_of(path: &Path) -> Tensors {
    let file = schnell::weights::Component::file(path).unwrap();
    let read = |info: &schnell::weights::TensorInfo| {
        let mut bytes = vec![0; info.bytes as usize];
        info.read_at(0, &mut bytes).unwrap();
        (info.name.clone(), (info.dtype, info.shape.clone(), bytes))
    };
    file.iter().map(read).collect()
}

/// A header of FLUX.1-schnell's transformer under Black Forest Labs' names, in a file of its full length that has no bytes.
fn full_size(path: &Path, choose: Choose) -> u64 {
    let config = PipelineConfig::schnell();
    let needed = Part::Transformer.needed(&config).unwrap();
    let shape_of = |name: &String| needed.iter().find(|needed| needed.name == *name).unwrap().shape.clone();
    let (mut tensors, mut offsets, mut data, mut kept) = (Vec::new(), Vec::new(), 0u64, 0);
    for (theirs, ours) in bfl_names(19, 38, false) {
        let mut shape = shape_of(&ours[0]);
        shape[0] = ours.iter().map(|name| shape_of(name)[0]).sum();
        let elements = shape.iter().product::<usize>() as u64;
        let format = choose(&theirs, &shape);
        let (kind, bytes) = match format {
            Some(format) => {
                (kept::ggml_type(format), elements / format.values() as u64 * format.bytes() as u64)
            }
            None if shape.len() < 2 => (F32, 4 * elements),
            None => (BF16, 2 * elements),
        };
        kept += if format.is_some() { bytes } else { 0 };
        tensors.push((theirs, shape.iter().rev().map(|size| *size as u64).collect(), kind, vec![]));
        offsets.push(data);
        data += bytes.next_multiple_of(32);
    }
    let header = gguf::file(&Header::default(), &tensors, |i, _| offsets[i]);
    std::fs::write(path, &header).unwrap();
    std::fs::OpenOptions::new().write(true).open(path).unwrap().set_len(header.len() as u64 + data).unwrap();
    kept
}

/// What FLUX.1-schnell takes on the card is what its file has, and scales of 6 bits are bytes: 4 more for 256 numbers of `Q4_K`,
/// `Q5_K` and `Q3_K`.
#[test]
fn the_card_holds_what_full_size_files_hold() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("flux1-schnell.gguf");
    let linears = 11_834_228_736u64;
    let mix = |name: &str| if name.contains("attn") { Format::Q5K } else { Format::Q4K };
    let of_mix = [Format::Q5K, Format::Q4K];
    for (what, which, more) in [
        ("Q8_0", None, 0),
        ("Q6_K", None, 0),
        ("Q5_1", None, 0),
        ("Q4_0", None, 0),
        ("Q2_K", None, 0),
        ("Q4_K", None, 4),
        ("Q3_K", None, 4),
        ("a mix as Q4_K_M has it", Some(of_mix), 4),
    ] {
        let format = Format::ALL.into_iter().find(|format| format.to_string() == what);
        let of_name = |name: &str, shape: &[usize]| {
            let is = name.contains("block") && shape.len() == 2;
            is.then(|| if which.is_some() { mix(name) } else { format.unwrap() })
        };
        let in_file = full_size(&path, &of_name);
        let component = Arc::new(Component::file(&path).unwrap());
        let mut files = ModelFiles::folder(dir.path());
        PartFiles::all(&component).into_iter().for_each(|part| files.set(part));
        let config = PipelineConfig::schnell();
        let config = PipelineConfig { in_formats: InFormats::find(&files, &config).unwrap(), ..config };
        let plan = Plan::new(&config, Shape::square(1024), Quantize::Keep).unwrap();
        let (kept, t5) = plan.kept_bytes();
        println!("{what}: {in_file} in the file, {kept} on the card, {} in all", plan.arena_bytes());
        assert_eq!((kept, t5), (in_file + more * linears / 256, 0), "{what}");
        // Beside it a T5 in NF4, and what is wide in both.
        assert!(plan.arena_bytes() < kept + (6 << 30), "{what}");
    }
}
