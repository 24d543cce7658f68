//! What is known of FLUX.1 from outside, against what the networks record: name, shape and bytes of every published tensor,
//! operations counted by hand from the architecture, and every tensor's name written once in the sources.
//!
//! `tests/published/README.md` says what the lists hold and where they are from.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use schnell::config::{FluxConfig, PipelineConfig};
use schnell::pipeline::{Plan, Quantize, Shape, Work};
use schnell::weights::layouts::diffusers;
use schnell::weights::{Part, parameters};
use serde_json::json;
use sha2::{Digest, Sha256};

// ---- the lists -------------------------------------------------------------------------------------------

const SCHNELL: &str = include_str!("published/schnell.txt");
const DEV: &str = include_str!("published/dev.txt");

/// What a list says.
#[derive(Default)]
struct Published {
    indices: Vec<Index>,
    files: Vec<File>,
}

struct Index {
    part: Part,
    total_bytes: u64,
    sha256: Option<String>,
}

struct File {
    part: Part,
    name: String,
    bytes: u64,
    tensors: BTreeMap<String, Vec<usize>>,
}

impl Published {
    fn schnell() -> Published {
        let mut published = Published::default();
        let mut part = None;
        for line in SCHNELL.lines().filter(|line| !line.is_empty()) {
            published.take(line, &mut part);
        }
        published
    }

    /// schnell's transformer but for what the list of dev says.
    fn dev() -> Published {
        let (mut dev, mut part) = (Published::default(), None);
        for line in DEV.lines().filter(|line| !line.is_empty()) {
            dev.take(line, &mut part);
        }
        for mut file in Published::schnell().files {
            match dev.files.iter_mut().find(|own| own.part == file.part && own.name == file.name) {
                Some(own) => own.tensors.append(&mut file.tensors),
                None => dev.files.push(file),
            }
        }
        dev
    }

    fn take(&mut self, line: &str, part: &mut Option<Part>) {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["part", folder] => *part = Part::ALL.into_iter().find(|part| diffusers::folder(*part) == folder),
            ["index", _, bytes, ref sha256 @ ..] => self.indices.push(Index {
                part: part.unwrap(),
                total_bytes: bytes.parse().unwrap(),
                sha256: sha256.first().map(|text| text.to_string()),
            }),
            ["file", name, bytes] => self.files.push(File {
                part: part.unwrap(),
                name: name.to_string(),
                bytes: bytes.parse().unwrap(),
                tensors: BTreeMap::new(),
            }),
            [shape, names] => {
                let shape: Vec<usize> = shape.split('x').map(|n| n.parse().unwrap()).collect();
                for name in alternatives(names) {
                    let shape = if name.ends_with(".bias") { shape[..1].to_vec() } else { shape.clone() };
                    let again = self.files.last_mut().unwrap().tensors.insert(name, shape);
                    assert!(again.is_none(), "twice: {line}");
                }
            }
            _ => panic!("{line}"),
        }
    }

    /// All tensors of `part`.
    fn tensors(&self, part: Part) -> BTreeMap<String, Vec<usize>> {
        let files = self.files.iter().filter(|file| file.part == part);
        files.flat_map(|file| file.tensors.clone()).collect()
    }
}

/// `x.{a,b}.{0..2}` is `x.a.0`, `x.a.1`, and so on.
fn alternatives(names: &str) -> Vec<String> {
    let Some((before, rest)) = names.split_once('{') else { return vec![names.to_string()] };
    let (inside, after) = rest.split_once('}').unwrap();
    let each: Vec<String> = match inside.split_once("..") {
        Some((first, last)) => {
            (first.parse().unwrap()..=last.parse::<usize>().unwrap()).map(|i| i.to_string()).collect()
        }
        None => inside.split(',').map(str::to_string).collect(),
    };
    each.iter().flat_map(|one| alternatives(&format!("{before}{one}{after}"))).collect()
}

fn elements(tensors: &BTreeMap<String, Vec<usize>>) -> u64 {
    tensors.values().map(|shape| shape.iter().product::<usize>() as u64).sum()
}

/// The length of a safetensors file of bf16 tensors: eight bytes, a header that spells names, shapes and offsets, the numbers.
fn file_bytes(tensors: &BTreeMap<String, Vec<usize>>) -> u64 {
    let mut header = r#"{"__metadata__":{"format":"pt"}"#.to_string();
    let mut offset = 0;
    for (name, shape) in tensors {
        let end = offset + 2 * shape.iter().product::<usize>();
        let info = json!({"dtype": "BF16", "shape": shape, "data_offsets": [offset, end]});
        header += &format!(",\"{name}\":{info}");
        offset = end;
    }
    header.push('}');
    8 + header.len().next_multiple_of(8) as u64 + offset as u64
}

#[test]
fn the_lists_are_what_is_published() {
    for (model, published) in [("schnell", Published::schnell()), ("dev", Published::dev())] {
        assert_eq!(published.files.len(), 7, "{model}");
        for file in &published.files {
            assert_eq!(file_bytes(&file.tensors), file.bytes, "{model}: {}", file.name);
        }
        for index in &published.indices {
            assert_eq!(2 * elements(&published.tensors(index.part)), index.total_bytes, "{model}");
        }
    }
    let schnell = Published::schnell();
    let digests = schnell.indices.iter().map(|index| {
        let files = schnell.files.iter().filter(|file| file.part == index.part);
        let map: BTreeMap<&String, &String> =
            files.flat_map(|file| file.tensors.keys().map(|name| (name, &file.name))).collect();
        let text = json!({"metadata": {"total_size": index.total_bytes}, "weight_map": map});
        let digest = Sha256::digest(format!("{text:#}\n"));
        digest.iter().map(|byte| format!("{byte:02x}")).collect::<String>()
    });
    let digests: Vec<String> = digests.collect();
    let expected: Vec<String> = schnell.indices.iter().map(|index| index.sha256.clone().unwrap()).collect();
    assert_eq!((digests.len(), digests), (2, expected));
}

// ---- what networks ask for -------------------------------------------------------------------------------

fn dev() -> PipelineConfig {
    let schnell = PipelineConfig::schnell();
    PipelineConfig { flux: FluxConfig { guidance: true, ..schnell.flux.clone() }, ..schnell }
}

/// Published, and not needed to make a picture from a prompt: the VAE's encoder. All else is.
fn is_needed(part: Part, name: &str) -> bool {
    !(part == Part::Vae && name.starts_with("encoder."))
}

#[test]
fn networks_ask_for_every_published_tensor() {
    for (model, config, published) in
        [("schnell", PipelineConfig::schnell(), Published::schnell()), ("dev", dev(), Published::dev())]
    {
        for part in Part::ALL {
            let mut expected = published.tensors(part);
            expected.retain(|name, _| is_needed(part, name));
            let list = part.needed(&config).unwrap();
            assert_eq!(list.len(), expected.len(), "{model}, {part}");
            let needed: BTreeMap<String, Vec<usize>> =
                list.iter().map(|needed| (needed.name.clone(), needed.shape.clone())).collect();
            let missing: Vec<_> = expected.iter().filter(|row| needed.get(row.0) != Some(row.1)).collect();
            let unknown: Vec<_> = needed.iter().filter(|row| expected.get(row.0) != Some(row.1)).collect();
            assert!(
                missing.is_empty() && unknown.is_empty(),
                "{model}, {part}: {} not asked for as published, {:?} first; {} unknown, {:?} first",
                missing.len(),
                missing.first(),
                unknown.len(),
                unknown.first()
            );
            // An index states the bytes of all its tensors: all are needed.
            if let Some(index) = published.indices.iter().find(|index| index.part == part) {
                assert_eq!(2 * parameters(&list), index.total_bytes, "{model}, {part}");
            }
        }
    }
}

/// In NF4 a weight has 4 bits, and 64 of them an f32. Of the derived model with 8 double blocks ("lite", Flex.1-alpha) nothing
/// is listed here but its config and this.
#[test]
fn linear_layers_have_the_known_bytes_in_nf4() {
    let lite = {
        let dev = dev();
        PipelineConfig { flux: FluxConfig { layers: 8, ..dev.flux.clone() }, ..dev }
    };
    for (model, config, num_parameters, nf4_bytes) in [
        ("schnell", PipelineConfig::schnell(), 11_888_099_328, 6_687_055_872),
        ("dev", dev(), 11_898_322_944, 6_692_806_656),
        ("lite", lite, 8_161_198_080, 4_590_673_920),
    ] {
        let mut matrices = Part::Transformer.needed(&config).unwrap();
        matrices.retain(|needed| needed.shape.len() == 2);
        assert_eq!(parameters(&matrices), num_parameters, "{model}");
        let bytes = |quantize| Plan::new(&config, Shape::default(), quantize).unwrap().nf4_bytes();
        assert_eq!(bytes(Quantize::Nf4All), (nf4_bytes, 2_604_662_784), "{model}");
        // 24 matrices of 4096 x 10240, which bitsandbytes leaves wide.
        let wo = 24 * 4096 * 10240 / 64 * 36;
        assert_eq!(bytes(Quantize::Nf4), (nf4_bytes, 2_604_662_784 - wo), "{model}");
    }
}

// ---- work ------------------------------------------------------------------------------------------------

/// Multiply-adds times two.
fn linear(rows: f64, parameters: f64) -> f64 {
    2.0 * rows * parameters
}

/// Scores and their weighted sums, for every pair of tokens.
fn attention(tokens: f64, width: f64) -> f64 {
    4.0 * tokens * tokens * width
}

/// A convolution of a map of `side` x `side` with 3 x 3 taps.
fn conv(side: f64, channels: f64, out_channels: f64) -> f64 {
    linear(side * side, 9.0 * channels * out_channels)
}

/// `count` resnets of a map of `side` x `side`, the first of which changes the channels.
fn resnets(count: f64, side: f64, channels: f64, out_channels: f64) -> f64 {
    let shortcut = if channels == out_channels { 0.0 } else { channels * out_channels };
    conv(side, channels, out_channels)
        + linear(side * side, shortcut)
        + (2.0 * count - 1.0) * conv(side, out_channels, out_channels)
}

/// A count of operations, and its figure in TFLOP to as many digits as are known.
#[track_caller]
fn is_figure(flops: f64, figure: &str) {
    let decimals = figure.split_once('.').unwrap().1.len();
    assert_eq!(format!("{:.decimals$}", flops * 1e-12), figure);
}

/// What was recorded is what was counted, within 0.1 %, and prints as the figure.
#[track_caller]
fn is_counted(recorded: f64, counted: f64, figure: &str) {
    assert!((recorded / counted - 1.0).abs() < 1e-3, "recorded {recorded:e}, counted {counted:e}");
    is_figure(recorded, figure);
    is_figure(counted, figure);
}

fn work(side: usize) -> Work {
    let shape = Shape { width: side, height: side, ..Shape::default() };
    assert_eq!((shape.steps, shape.t5_length), (4, 256));
    Plan::new(&PipelineConfig::schnell(), shape, Quantize::Nf4).unwrap().work()
}

/// h is the width, 3072; N the tokens, text and image.
#[test]
fn a_step_does_the_work_that_the_architecture_counts() {
    let (h, text) = (3072.0, 256.0);
    for (side, [double, single, attend, ends, step, four_steps]) in [
        (512, ["5.508", "11.017", "1.148", "0.014", "17.69", "70.7"]),
        (1024, ["18.728", "37.456", "13.266", "0.016", "69.47", "277.9"]),
    ] {
        let image = (side as f64 / 16.0).powi(2);
        let n = text + image;
        // q, k, v, out, and an MLP of four times the width: 12 h^2 for a token.
        let doubles = 19.0 * linear(n, 12.0 * h * h);
        // The same, in two products.
        let singles = 38.0 * (linear(n, 7.0 * h * h) + linear(n, 5.0 * h * h));
        let attended = (19.0 + 38.0) * attention(n, h);
        // Of a double block six vectors for either stream, of a single one three, of the last norm two: a row for a step.
        let modulation = linear(1.0, (19.0 * 12.0 + 38.0 * 3.0 + 2.0) * h * h);
        let (of_text, of_image) = (linear(text, 4096.0 * h), 2.0 * linear(image, 64.0 * h));
        is_figure(doubles, double);
        is_figure(singles, single);
        is_figure(attended, attend);
        is_figure(of_text + of_image + modulation, ends);

        let work = work(side);
        let counted = doubles + singles + attended + of_image;
        let recorded = work.step as f64;
        assert!((recorded / counted - 1.0).abs() < 1e-3, "{recorded:e}, counted {counted:e}");
        // What steps share is computed once, for all: the text's embedding, modulation, and what embeds time and the prompt for it.
        let embedders = 4.0 * linear(1.0, 256.0 * h + h * h) + linear(1.0, 768.0 * h + h * h);
        let shared = work.modulation as f64;
        let counted_shared = of_text + 4.0 * modulation + embedders;
        assert!((shared / counted_shared - 1.0).abs() < 1e-3, "{shared:e}, counted {counted_shared:e}");
        // Published figures have the text's in every step.
        let (recorded, shared) = (recorded + of_text, shared - of_text);
        let counted = counted + of_text;
        is_counted(recorded + shared / 4.0, counted + modulation, step);
        is_counted(4.0 * recorded + shared, 4.0 * (counted + modulation), four_steps);
    }
}

#[test]
fn text_encoders_do_the_work_that_the_architecture_counts() {
    let t5 =
        24.0 * (linear(256.0, 4.0 * 4096.0 * 4096.0 + 3.0 * 4096.0 * 10240.0) + attention(256.0, 4096.0));
    let clip = 12.0 * (linear(77.0, 4.0 * 768.0 * 768.0 + 2.0 * 768.0 * 3072.0) + attention(77.0, 768.0));
    for side in [512, 1024] {
        let work = work(side);
        is_counted(work.t5 as f64, t5, "2.397");
        is_counted(work.clip as f64, clip, "0.013");
    }
}

/// Levels as the original autoencoder counts them: `up3` is the coarsest.
#[test]
fn the_vae_does_the_work_that_the_architecture_counts() {
    for (side, [mid, up3, up2, up1, up0, upsample, all]) in [
        (512, ["0.12", "0.12", "0.46", "0.56", "0.56", "0.70", "2.13"]),
        (1024, ["0.90", "0.46", "1.86", "2.23", "2.23", "2.78", "8.93"]),
    ] {
        let coarse = side as f64 / 8.0;
        let pixels = coarse * coarse;
        let parts = [
            (
                conv(coarse, 16.0, 512.0)
                    + 2.0 * resnets(1.0, coarse, 512.0, 512.0)
                    + linear(pixels, 4.0 * 512.0 * 512.0)
                    + attention(pixels, 512.0),
                mid,
            ),
            (resnets(3.0, coarse, 512.0, 512.0), up3),
            (resnets(3.0, 2.0 * coarse, 512.0, 512.0), up2),
            (resnets(3.0, 4.0 * coarse, 512.0, 256.0), up1),
            (resnets(3.0, 8.0 * coarse, 256.0, 128.0), up0),
            // On the map that is twice as high and wide already.
            (
                conv(2.0 * coarse, 512.0, 512.0)
                    + conv(4.0 * coarse, 512.0, 512.0)
                    + conv(8.0 * coarse, 256.0, 256.0),
                upsample,
            ),
        ];
        for (flops, figure) in parts {
            is_figure(flops, figure);
        }
        let last = conv(8.0 * coarse, 128.0, 3.0);
        // Of the nine taps on an enlarged map's pixel several fall on one pixel of the map: four products are enough.
        let spared = parts[5].0 * 5.0 / 9.0;
        let counted = parts.iter().map(|part| part.0).sum::<f64>() + last - spared;
        is_counted(work(side).decode as f64, counted, all);
    }
}

// ---- where names are written -----------------------------------------------------------------------------

/// A string literal of a source, cut at its dots; what is filled in is `{}`.
struct Literal {
    place: String,
    words: Vec<String>,
}

/// All string literals of a Rust source but those in comments.
fn literals(file: &str, source: &str) -> Vec<Literal> {
    let (mut list, mut rest) = (Vec::new(), source);
    while let Some(at) = rest.find(['"', '/', '\'']) {
        rest = &rest[at..];
        if rest.starts_with("//") {
            rest = rest.split_once('\n').map_or("", |lines| lines.1);
        } else if let Some(after) = rest.strip_prefix("'\"'") {
            rest = after;
        } else if let Some(inside) = rest.strip_prefix('"') {
            let line = 1 + source[..source.len() - inside.len()].matches('\n').count();
            let mut end = inside.find(['"', '\\']).unwrap();
            while inside[end..].starts_with('\\') {
                end += 2;
                end += inside[end..].find(['"', '\\']).unwrap();
            }
            let text = &inside[..end];
            let filled = |word: &str| word.starts_with('{') && word.ends_with('}');
            let words = text.split('.').map(|word| if filled(word) { "{}" } else { word }.to_string());
            list.push(Literal { place: format!("{file}:{line}: \"{text}\""), words: words.collect() });
            rest = &inside[end + 1..];
        } else {
            rest = &rest[1..];
        }
    }
    list
}

fn is_number(word: &str) -> bool {
    word.bytes().all(|c| c.is_ascii_digit())
}

/// All ways to spell `name`: by one literal, whose `{}` are numbers, or by a literal that begins with `{}` and follows on a way
/// to spell what comes before. A way is the literals' places in the list.
fn spellings(literals: &[Literal], name: &[&str]) -> Vec<Vec<usize>> {
    let same = |words: &[String], name: &[&str]| {
        words.len() == name.len()
            && words.iter().zip(name).all(|(w, n)| w == n || (w == "{}" && is_number(n)))
    };
    let mut ways = Vec::new();
    for (i, literal) in literals.iter().enumerate() {
        match &literal.words[..] {
            [first, end @ ..] if first == "{}" && !end.is_empty() && end.len() < name.len() => {
                let (begin, rest) = name.split_at(name.len() - end.len());
                if same(end, rest) {
                    let before = spellings(literals, begin).into_iter();
                    ways.extend(before.map(|way| [way, vec![i]].concat()));
                }
            }
            whole if same(whole, name) => ways.push(vec![i]),
            _ => {}
        }
    }
    ways
}

/// `x` of `x.weight` and `x.bias`.
fn without_ending(name: &str) -> &str {
    name.strip_suffix(".weight").or(name.strip_suffix(".bias")).unwrap_or(name)
}

/// What is wrong with how `sources`, by path, write the tensors' `names`.
fn faults(sources: &BTreeMap<String, String>, names: &BTreeSet<String>) -> Vec<String> {
    let mut list: Vec<Literal> = sources.iter().flat_map(|(file, source)| literals(file, source)).collect();
    // The two endings, which `Network` adds to what it is asked for.
    list.retain(|literal| {
        let ending = matches!(&literal.words[..], [a, b] if a == "{}" && (b == "weight" || b == "bias"));
        !(ending && literal.place.starts_with("layers.rs"))
    });
    let (mut wrong, mut used) = (BTreeMap::new(), BTreeSet::new());
    for name in names {
        let cut = |name: &str| spellings(&list, &name.split('.').collect::<Vec<_>>());
        let mut ways = cut(name);
        if without_ending(name) != name {
            ways.extend(cut(without_ending(name)));
        }
        used.extend(ways.iter().flatten().copied());
        if ways.len() != 1 {
            // One fault for all blocks.
            let family: Vec<&str> = without_ending(name)
                .split('.')
                .map(|word| if is_number(word) { "{}" } else { word })
                .collect();
            wrong.entry((family.join("."), ways)).or_insert(name);
        }
    }
    let places = |way: &Vec<usize>| way.iter().map(|&i| list[i].place.clone()).collect::<Vec<_>>().join(", ");
    let mut faults: Vec<String> = wrong
        .into_iter()
        .map(|((_, ways), name)| {
            let all: Vec<String> = ways.iter().map(places).collect();
            format!("{name} is written {} times: {}", ways.len(), all.join("; "))
        })
        .collect();
    // What serves no name, and yet has a word of one: a second list in other pieces. Buffers may be called by one letter.
    let cut = || names.iter().map(|name| without_ending(name).split('.'));
    let words: BTreeSet<&str> = cut().flatten().filter(|word| !is_number(word)).collect();
    let last: BTreeSet<&str> =
        cut().filter_map(|mut name| name.next_back()).filter(|word| word.len() > 1).collect();
    for (i, literal) in list.iter().enumerate() {
        let of_a_name = match &literal.words[..] {
            [word] => last.contains(&word[..]),
            several => several.iter().any(|word| words.contains(&word[..])),
        };
        if of_a_name && !used.contains(&i) {
            faults.push(format!("part of a tensor's name that names none: {}", literal.place));
        }
    }
    faults
}

/// `src/models`, by path in it.
fn sources() -> BTreeMap<String, String> {
    fn walk(root: &Path, dir: &Path, sources: &mut BTreeMap<String, String>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(root, &path, sources);
            } else {
                let name = path.strip_prefix(root).unwrap().display().to_string();
                sources.insert(name, fs::read_to_string(&path).unwrap());
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/models");
    let mut sources = BTreeMap::new();
    walk(&root, &root, &mut sources);
    sources
}

/// What any model may need: dev's, and the one convolution that FLUX.1 lacks.
fn names() -> BTreeSet<String> {
    let mut config = dev();
    config.vae.use_post_quant_conv = true;
    let names = Part::ALL.into_iter().flat_map(|part| part.needed(&config).unwrap());
    names.map(|needed| needed.name).collect()
}

/// Who looks for a tensor's name finds it, numbers left out, at one place; who renames it changes one place.
#[test]
fn every_tensors_name_is_written_once() {
    let (sources, names) = (sources(), names());
    assert!(sources.len() >= 7 && names.len() > 1700, "{} sources, {} names", sources.len(), names.len());
    let faults = faults(&sources, &names);
    assert!(faults.is_empty(), "{} faults: {:#?}", faults.len(), &faults[..faults.len().min(8)]);
}

#[test]
fn a_name_written_again_is_noticed() {
    let (sources, names) = (sources(), names());
    let with = |file: &str, line: &str| {
        let mut sources = sources.clone();
        sources.entry(file.to_string()).or_default().push_str(line);
        faults(&sources, &names)
    };
    for (line, noticed) in [
        ("// \"shared.weight\", '\"' and \"x\", \"t5.weights\", \"what {name}.{part} is\"", 0),
        ("'\"', \"shared.weight\"", 1),
        ("\"{block}.attn.to_add_out\"", 1),
        ("\"{x}.proj_out\"", 1),
        ("\"proj_out\"", 1),
        ("\"transformer_blocks.{i}\"", 18),
        ("\"transformer_blocks.{i}.norm1.linear.weight\"", 1),
        ("\"transformer_blocks.{i}.{part}\"", 1),
        ("[\"wi_0\", \"wi_1\", \"wo\"]", 3),
        ("\"SelfAttention.{part}\"", 1),
        ("\"encoder.final_layer_norm\"", 1),
    ] {
        let faults = with("flux/lora.rs", &format!("{line}\n"));
        assert_eq!(faults.len(), noticed, "{line}: {faults:#?}");
    }
    let mut renamed = sources.clone();
    let t5 = renamed.get_mut("flux/t5.rs").unwrap();
    *t5 = t5.replace("DenseReluDense.wo", "DenseReluDense.w_o");
    // The name that is not there, and the literal that is of none.
    assert_eq!(faults(&renamed, &names).len(), 2);
}
