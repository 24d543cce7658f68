//! LoRA files: one change of a model, written as each trainer writes it, is read as that change; and what is malformed, or of
//! another kind, is refused by name.

#[path = "common/checkpoint.rs"]
mod checkpoint;
mod common;
#[path = "lora_files/malformed.rs"]
mod malformed;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use checkpoint::{Tensors, bfl_names, le};
use common::Rng;
use half::{bf16, f16};
use safetensors::tensor::TensorView;
use schnell::config::PipelineConfig;
use schnell::weights::lora::Lora;
use schnell::weights::{Dtype, Part};
use schnell::{Error, ModelFolder};
use serde_json::json;

/// Of the bundled model.
const BLOCKS: (usize, usize) = (1, 4);

/// What of a matrix changes: the plain product, row by row.
type Change = BTreeMap<(Part, String), Vec<f32>>;

/// Factors of one module: all numbers are small and whole, so that products are exact in any order.
#[derive(Clone)]
struct Pair {
    rank: usize,
    /// `[rank, k]`
    down: Vec<f32>,
    /// `[rows, rank]`
    up: Vec<f32>,
    alpha: f32,
}

/// A module by its published name, and the matrices that its rows are of, in their order.
struct Module {
    part: Part,
    name: String,
    ours: Vec<String>,
    pair: Pair,
}

fn config() -> PipelineConfig {
    ModelFolder::demo().unwrap().config().unwrap()
}

fn shapes(config: &PipelineConfig) -> HashMap<(Part, String), (usize, usize)> {
    let parts = [Part::Transformer, Part::Clip].into_iter();
    let of =
        parts.flat_map(|part| part.needed(config).unwrap().into_iter().map(move |needed| (part, needed)));
    let matrices = of.filter(|(_, needed)| needed.shape.len() == 2);
    matrices
        .filter_map(|(part, needed)| {
            let name = needed.name.strip_suffix(".weight")?;
            Some(((part, name.to_string()), (needed.shape[0], needed.shape[1])))
        })
        .collect()
}

/// A change of every Linear of the transformer and of CLIP, by Black Forest Labs' modules and CLIP's own.
fn modules(config: &PipelineConfig) -> Vec<Module> {
    let shapes = shapes(config);
    let mut rng = Rng(9);
    let mut made = Vec::new();
    let mut add = |part: Part, name: String, ours: Vec<String>| {
        let rows: usize = ours.iter().map(|name| shapes[&(part, name.clone())].0).sum();
        let k = shapes[&(part, ours[0].clone())].1;
        let rank = 1 + made.len() % 5;
        let mut numbers =
            |count: usize| (0..count).map(|_| (rng.bits() % 7) as f32 - 3.0).collect::<Vec<_>>();
        let (down, up) = (numbers(rank * k), numbers(rows * rank));
        let alpha = rank as f32 * [0.25, 1.0, 2.0][made.len() % 3];
        made.push(Module { part, name, ours, pair: Pair { rank, down, up, alpha } });
    };
    for (theirs, ours) in bfl_names(BLOCKS.0, BLOCKS.1, false) {
        let stem = |name: &String| name.strip_suffix(".weight").map(str::to_string);
        let (Some(name), false) = (stem(&theirs), theirs.contains("norm.")) else { continue };
        add(Part::Transformer, name, ours.iter().filter_map(stem).collect());
    }
    for layer in 0..config.clip.layers {
        for module in [
            "self_attn.q_proj",
            "self_attn.k_proj",
            "self_attn.v_proj",
            "self_attn.out_proj",
            "mlp.fc1",
            "mlp.fc2",
        ] {
            let name = format!("text_model.encoder.layers.{layer}.{module}");
            add(Part::Clip, name.clone(), vec![name]);
        }
    }
    made
}

/// `scale * up down`, `[n, k]`.
fn product(up: &[f32], down: &[f32], rank: usize, scale: f32) -> Vec<f32> {
    let k = down.len() / rank;
    let mut out = vec![0.0; up.len() / rank * k];
    for (row, out) in out.chunks_mut(k).enumerate() {
        for (r, down) in down.chunks(k).enumerate() {
            let by = scale * up[row * rank + r];
            out.iter_mut().zip(down).for_each(|(out, down)| *out += by * down);
        }
    }
    out
}

/// The rows of `up` that each of a module's matrices is, in that matrix's order.
fn split(module: &Module, shapes: &HashMap<(Part, String), (usize, usize)>) -> Vec<(String, Vec<f32>)> {
    let mut at = 0;
    let parts = module.ours.iter().map(|name| {
        let len = shapes[&(module.part, name.clone())].0 * module.pair.rank;
        let mut up = module.pair.up[at..at + len].to_vec();
        at += len;
        if name == "norm_out.linear" {
            // Shift, then scale there; here scale, then shift.
            up.rotate_left(len / 2);
        }
        (name.clone(), up)
    });
    parts.collect()
}

/// What all of `modules` change.
fn change<'a>(config: &PipelineConfig, modules: impl IntoIterator<Item = &'a Module>) -> Change {
    let shapes = shapes(config);
    let mut change = Change::new();
    for module in modules {
        let Pair { rank, down, alpha, .. } = &module.pair;
        for (name, up) in split(module, &shapes) {
            let delta = product(&up, down, *rank, alpha / *rank as f32);
            assert!(change.insert((module.part, name), delta).is_none());
        }
    }
    change
}

/// What a file changes.
fn read(lora: &Lora) -> Change {
    let mut change = Change::new();
    for factor in lora.factors() {
        let (down, up) = (factor.down.read_f32().unwrap(), factor.up.read_f32().unwrap());
        let [rank, _] = factor.down.shape[..] else { panic!("{:?}", factor.down.shape) };
        assert_eq!(factor.up.shape[1], rank);
        let delta = product(&up, &down, rank, factor.scale);
        assert!(
            change.insert((factor.part, factor.target.clone()), delta).is_none(),
            "{} twice",
            factor.target
        );
    }
    change
}

#[track_caller]
fn assert_same(what: &str, got: &Change, want: &Change) {
    let names = |change: &Change| change.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(got), names(want), "{what}");
    for (name, want) in want {
        assert!(got[name] == *want, "{what}: another change of {name:?}");
        assert!(want.iter().any(|value| *value != 0.0), "{what}: no change of {name:?}");
    }
}

fn save(path: &Path, tensors: &Tensors, metadata: Option<HashMap<String, String>>) {
    let views = tensors
        .iter()
        .map(|(name, (dtype, shape, bytes))| (name, TensorView::new(*dtype, shape.clone(), bytes).unwrap()));
    std::fs::write(path, safetensors::serialize(views, metadata).unwrap()).unwrap();
}

fn numbers(dtype: Dtype, values: &[f32]) -> Vec<u8> {
    match dtype {
        Dtype::F32 => le(values),
        Dtype::BF16 => le(&values.iter().map(|value| bf16::from_f32(*value)).collect::<Vec<_>>()),
        _ => le(&values.iter().map(|value| f16::from_f32(*value)).collect::<Vec<_>>()),
    }
}

/// How a trainer writes.
struct Style<'a> {
    /// Prefix and separator of modules, of the transformer and of CLIP.
    transformer: (&'a str, &'a str),
    clip: (&'a str, &'a str),
    ends: [&'a str; 2],
    dtype: Dtype,
    /// Whether there are alphas; else they are in `up`.
    alphas: bool,
    /// Whether modules are those of diffusers.
    is_split: bool,
}

fn written(modules: &[Module], config: &PipelineConfig, style: &Style<'_>) -> Tensors {
    let shapes = shapes(config);
    let mut tensors = Tensors::new();
    for module in modules {
        let Pair { rank, down, up, alpha } = &module.pair;
        let (prefix, dot) = if module.part == Part::Clip { style.clip } else { style.transformer };
        let parts = match style.is_split {
            true => split(module, &shapes),
            false => vec![(module.name.clone(), up.clone())],
        };
        for (name, mut up) in parts {
            if !style.alphas {
                up.iter_mut().for_each(|value| *value *= alpha / *rank as f32);
            }
            let stem = format!("{prefix}{}", name.replace('.', dot));
            let [a, b] = style.ends;
            let shape = vec![*rank, down.len() / rank];
            tensors.insert(format!("{stem}{a}"), (style.dtype, shape, numbers(style.dtype, down)));
            let shape = vec![up.len() / rank, *rank];
            tensors.insert(format!("{stem}{b}"), (style.dtype, shape, numbers(style.dtype, &up)));
            if style.alphas {
                tensors
                    .insert(format!("{stem}.alpha"), (style.dtype, vec![], numbers(style.dtype, &[*alpha])));
            }
        }
    }
    tensors
}

const PEFT: [&str; 2] = [".lora_A.weight", ".lora_B.weight"];
const KOHYA: [&str; 2] = [".lora_down.weight", ".lora_up.weight"];

/// As the trainers write: name, style, whose names they are.
fn styles() -> Vec<(&'static str, Style<'static>, &'static str)> {
    let kohya = |transformer, is_split| Style {
        transformer: (transformer, "_"),
        clip: ("lora_te1_", "_"),
        ends: KOHYA,
        dtype: Dtype::BF16,
        alphas: true,
        is_split,
    };
    let dotted = |transformer, clip, ends, is_split| Style {
        transformer: (transformer, "."),
        clip: (clip, "."),
        ends,
        dtype: Dtype::F16,
        alphas: true,
        is_split,
    };
    let comfy = "text_encoders.clip_l.transformer.";
    let bfl = "Black Forest Labs' names";
    let prefixes = "diffusers' names with kohya's prefixes";
    vec![
        ("kohya", kohya("lora_unet_", false), "kohya's names"),
        ("kohya, te", Style { clip: ("lora_te_", "_"), ..kohya("lora_unet_", false) }, "kohya's names"),
        ("OneTrainer", kohya("lora_transformer_", true), prefixes),
        ("SimpleTuner", kohya("lycoris_", true), prefixes),
        ("diffusers", dotted("transformer.", "text_encoder.", PEFT, true), "diffusers' names"),
        (
            "diffusers without alphas",
            Style { alphas: false, dtype: Dtype::F32, ..dotted("transformer.", "text_encoder.", PEFT, true) },
            "diffusers' names",
        ),
        (
            "diffusers, before PEFT",
            dotted("transformer.", "text_encoder.", [".lora.down.weight", ".lora.up.weight"], true),
            "diffusers' names",
        ),
        (
            "diffusers, an adapter's name",
            dotted(
                "transformer.",
                "text_encoder.",
                [".lora_A.default.weight", ".lora_B.default.weight"],
                true,
            ),
            "diffusers' names",
        ),
        (
            "diffusers, CLIP before PEFT",
            dotted(
                "transformer.",
                "text_encoder.",
                [".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"],
                true,
            ),
            "diffusers' names",
        ),
        ("ComfyUI", dotted("diffusion_model.", comfy, PEFT, false), bfl),
        ("ComfyUI, lora_down", dotted("diffusion_model.", comfy, KOHYA, false), bfl),
        ("ComfyUI, diffusers' modules", dotted("diffusion_model.", comfy, PEFT, true), "diffusers' names"),
        ("ComfyUI, whole", dotted("model.diffusion_model.", "text_encoders.clip_l.", PEFT, false), bfl),
        ("fal", Style { alphas: false, ..dotted("base_model.model.", comfy, PEFT, false) }, bfl),
        ("bare", Style { alphas: false, ..dotted("", comfy, PEFT, false) }, bfl),
    ]
}

fn opened(dir: &Path, tensors: &Tensors, config: &PipelineConfig) -> schnell::Result<Lora> {
    let path = dir.join("lora.safetensors");
    save(&path, tensors, None);
    Lora::open(&path, config)
}

#[test]
fn one_change_is_read_from_every_trainers_file() {
    let (dir, config) = (tempfile::tempdir().unwrap(), config());
    let modules = modules(&config);
    let want = change(&config, &modules);
    for (what, style, family) in styles() {
        let lora = opened(dir.path(), &written(&modules, &config, &style), &config);
        let lora = lora.unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_same(what, &read(&lora), &want);
        assert_eq!(lora.warnings(), [""; 0], "{what}");
        let file = lora.file();
        let modules = if style.is_split { want.len() } else { modules.len() };
        assert_eq!(
            (file.kind, file.targets, &file.ranks[..]),
            ("LoRA", modules, &[1, 2, 3, 4, 5][..]),
            "{what}"
        );
        assert_eq!(file.family, family, "{what}");
    }
}

/// In the order in which the networks ask, whatever the order of the file; factors of fused modules share `down`.
#[test]
fn factors_are_in_the_networks_order() {
    let (dir, config) = (tempfile::tempdir().unwrap(), config());
    let modules = modules(&config);
    let (_, kohya, _) = &styles()[0];
    let lora = opened(dir.path(), &written(&modules, &config, kohya), &config).unwrap();
    let needed = [Part::Clip, Part::Transformer].into_iter().flat_map(|part| {
        let needed = part.needed(&config).unwrap().into_iter();
        needed.map(move |needed| (part, needed.name.trim_end_matches(".weight").to_string()))
    });
    let got: Vec<_> = lora.factors().iter().map(|factor| (factor.part, factor.target.clone())).collect();
    let want: Vec<_> = needed.filter(|name| got.contains(name)).collect();
    assert_eq!(got, want);
    let qkv = "lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight";
    let shared = lora.factors().iter().filter(|factor| factor.down.name == qkv);
    let targets: Vec<&str> = shared.map(|factor| &factor.target[..]).collect();
    assert_eq!(targets, ["to_q", "to_k", "to_v"].map(|name| format!("transformer_blocks.0.attn.{name}")));
    fn is_shared<T: Send + Sync + Clone + std::fmt::Debug>(_: &T) {}
    is_shared(&lora);
}

/// XLabs' processors: attention alone, and of single blocks query, key and value without the MLP.
#[test]
fn xlabs_processors_are_read() {
    let (dir, config) = (tempfile::tempdir().unwrap(), config());
    let shapes = shapes(&config);
    let (mut tensors, mut kept) = (Tensors::new(), Vec::new());
    for mut module in modules(&config) {
        let Some((block, rest)) = module.name.rsplit_once("s.").and_then(|(_, rest)| rest.split_once('.'))
        else {
            continue;
        };
        let name = match rest {
            "img_attn.qkv" => "qkv_lora1",
            "txt_attn.qkv" => "qkv_lora2",
            "img_attn.proj" => "proj_lora1",
            "txt_attn.proj" => "proj_lora2",
            "linear1" => "qkv_lora",
            "linear2" => "proj_lora",
            _ => continue,
        };
        let kind = if name.ends_with("lora") { "single" } else { "double" };
        let stem = format!("{kind}_blocks.{block}.processor.{name}");
        let Pair { rank, down, up, alpha } = &mut module.pair;
        *alpha = *rank as f32;
        if name == "qkv_lora" {
            assert_eq!(module.ours.pop().unwrap(), format!("single_transformer_blocks.{block}.proj_mlp"));
            up.truncate(3 * shapes[&(Part::Transformer, module.ours[0].clone())].0 * *rank);
        }
        let (k, n) = (down.len() / *rank, up.len() / *rank);
        tensors.insert(format!("{stem}.down.weight"), (Dtype::F32, vec![*rank, k], le(down)));
        tensors.insert(format!("{stem}.up.weight"), (Dtype::F32, vec![n, *rank], le(up)));
        kept.push(module);
    }
    assert_eq!(kept.len(), 4 * BLOCKS.0 + 2 * BLOCKS.1);
    let lora = opened(dir.path(), &tensors, &config).unwrap();
    assert_same("XLabs", &read(&lora), &change(&config, &kept));
    assert_eq!((lora.file().family, lora.warnings().len()), ("XLabs' names", 0));
    // As some save them again.
    let again = checkpoint::prefixed("diffusion_model.", tensors);
    assert_same("XLabs again", &read(&opened(dir.path(), &again, &config).unwrap()), &change(&config, &kept));
}

/// CLIP as diffusers wrote it first: `to_q_lora` beside `q_proj`.
#[test]
fn the_oldest_names_of_clip_are_read() {
    let (dir, config) = (tempfile::tempdir().unwrap(), config());
    let modules: Vec<Module> =
        modules(&config).into_iter().filter(|module| module.name.contains("self_attn")).collect();
    let style = Style {
        transformer: ("", "."),
        clip: ("text_encoder.", "."),
        ends: [".down.weight", ".up.weight"],
        dtype: Dtype::F32,
        alphas: false,
        is_split: false,
    };
    let mut tensors = Tensors::new();
    for (name, tensor) in written(&modules, &config, &style) {
        let old = [
            ("q_proj", "to_q_lora"),
            ("k_proj", "to_k_lora"),
            ("v_proj", "to_v_lora"),
            ("out_proj", "to_out_lora"),
        ];
        let (new, old) = old.into_iter().find(|(new, _)| name.contains(new)).unwrap();
        tensors.insert(name.replace(new, old), tensor);
    }
    let lora = opened(dir.path(), &tensors, &config).unwrap();
    assert_same("CLIP", &read(&lora), &change(&config, &modules));
}

/// Alphas as settings: in the metadata as diffusers has them, and in PEFT's own file beside it.
#[test]
fn alphas_are_read_from_settings() {
    let (dir, config) = (tempfile::tempdir().unwrap(), config());
    let modules = modules(&config);
    let want = change(&config, &modules);
    let shapes = shapes(&config);
    let (_, diffusers, _) = &styles()[4];
    let mut tensors = written(&modules, &config, diffusers);
    tensors.retain(|name, _| !name.ends_with(".alpha"));
    let pattern = |part: Part| -> serde_json::Map<String, serde_json::Value> {
        let of_part = modules.iter().filter(|module| module.part == part);
        let each = of_part.flat_map(|module| {
            split(module, &shapes).into_iter().map(|(name, _)| (format!("^{name}"), json!(module.pair.alpha)))
        });
        each.collect()
    };
    let settings = json!({
        "transformer.r": 4, "transformer.lora_alpha": 100, "transformer.alpha_pattern": pattern(Part::Transformer),
        "text_encoder.r": 4, "text_encoder.lora_alpha": 100, "text_encoder.alpha_pattern": pattern(Part::Clip),
    });
    let path = dir.path().join("pytorch_lora_weights.safetensors");
    let metadata = |settings: String| Some(HashMap::from([("lora_adapter_metadata".to_string(), settings)]));
    save(&path, &tensors, metadata(settings.to_string()));
    assert_same("metadata", &read(&Lora::open(&path, &config).unwrap()), &want);

    // PEFT's own, of the transformer.
    let only = |module: &&Module| module.part == Part::Transformer;
    let want = change(&config, modules.iter().filter(only));
    let own: Tensors = tensors
        .iter()
        .filter_map(|(name, tensor)| {
            Some((format!("base_model.model.{}", name.strip_prefix("transformer.")?), tensor.clone()))
        })
        .collect();
    let path = dir.path().join("adapter_model.safetensors");
    save(&path, &own, None);
    let beside = dir.path().join("adapter_config.json");
    std::fs::write(
        &beside,
        json!({"lora_alpha": 64, "alpha_pattern": pattern(Part::Transformer)}).to_string(),
    )
    .unwrap();
    assert_same("adapter_config.json", &read(&Lora::open(&path, &config).unwrap()), &want);
    std::fs::write(&beside, "{").unwrap();
    let error = Lora::open(&path, &config).unwrap_err();
    assert!(
        matches!(error, Error::Weights { .. }) && error.to_string().contains("adapter_config.json"),
        "{error}"
    );

    // A tensor and a setting of one module must agree.
    let name = "transformer.proj_out";
    let alpha = settings["transformer.alpha_pattern"]["^proj_out"].as_f64().unwrap() as f32;
    let path = dir.path().join("both.safetensors");
    for (value, is_well) in [(alpha, true), (alpha + 1.0, false)] {
        tensors.insert(format!("{name}.alpha"), (Dtype::F32, vec![1], le(&[value])));
        save(&path, &tensors, metadata(settings.to_string()));
        match Lora::open(&path, &config) {
            Ok(_) => assert!(is_well),
            Err(error) => assert!(!is_well && error.to_string().contains("two alphas"), "{error}"),
        }
    }
    for (text, words) in [("{", "malformed"), ("[1]", "malformed"), (r#"{"a":1,"a":2}"#, "twice")] {
        save(&path, &tensors, metadata(text.to_string()));
        let error = Lora::open(&path, &config).unwrap_err().to_string();
        assert!(error.contains("lora_adapter_metadata") && error.contains(words), "{error}");
    }
}

/// What of a sound file is left out is said.
#[test]
fn nothing_is_left_out_without_a_word() {
    let (dir, config) = (tempfile::tempdir().unwrap(), config());
    let modules = modules(&config);
    let want = change(&config, &modules);
    let styles = styles();
    let of = |index: usize| written(&modules, &config, &styles[index].1);
    let open = |tensors: &Tensors, words: &[&str]| {
        let lora = opened(dir.path(), tensors, &config).unwrap();
        assert_eq!(lora.warnings().len(), 1, "{:?}", lora.warnings());
        for word in words {
            assert!(lora.warnings()[0].contains(word), "{:?} does not say {word:?}", lora.warnings());
        }
        assert_same("what is left", &read(&lora), &want);
    };
    let number = || (Dtype::F32, vec![1, 1], le(&[1f32]));
    let pair =
        |stem: &str, [a, b]: [&str; 2]| [(format!("{stem}{a}"), number()), (format!("{stem}{b}"), number())];

    // T5's.
    for (prefix, ends) in [("lora_te3_encoder_block_0", KOHYA), ("text_encoders.t5xxl.transformer.a", PEFT)] {
        let mut tensors = of(0);
        tensors.extend(pair(prefix, ends));
        open(&tensors, &["2 of its tensors are of T5", prefix]);
    }
    // A second copy.
    let mut tensors = of(4);
    tensors.extend(of(0));
    open(&tensors, &["a second copy under other names", "lora_te1_"]);
    let mut tensors = of(2);
    tensors.extend(of(0).into_iter().filter(|(name, _)| name.starts_with("lora_unet_")));
    open(&tensors, &["a second copy under other names", "lora_unet_"]);
    let mut tensors = of(4);
    tensors.extend(of(9).into_iter().filter(|(name, _)| name.starts_with("diffusion_model.")));
    open(&tensors, &["a second copy under other names", "diffusion_model."]);
    // Of dev, and of a larger model: whatever the shape.
    for (stem, words) in [
        ("lora_unet_guidance_in_in_layer", "FLUX.1-dev"),
        (
            "lora_unet_double_blocks_18_img_mlp_0",
            "1 of its changes are of matrices that this model does not have",
        ),
        ("lora_te1_text_projection", "1 of its changes are of matrices that this model does not have"),
    ] {
        let mut tensors = of(0);
        tensors.extend(pair(stem, KOHYA));
        open(&tensors, &[words, stem]);
    }
    // Many: some of them, and how many.
    let mut tensors = of(0);
    for block in 10..90 {
        tensors.extend(pair(&format!("lora_unet_single_blocks_{block}_linear1"), KOHYA));
    }
    open(&tensors, &["80 of its changes", "single_blocks_10", "and 77 more"]);
    // Zeros, an alpha of nothing, and what is not known.
    let zero = || (Dtype::F32, vec![1, 1], vec![0; 4]);
    for (name, words) in [
        ("lora_unet_double_blocks_0_img_mlp_0.diff_b", "zero and change nothing"),
        ("lora_unet_double_blocks_0_img_mlp_0.lora_up.bias", "zero and change nothing"),
        ("diffusion_model.double_blocks.0.img_attn.norm.key_norm.diff", "zero and change nothing"),
        ("lora_te1_text_model_encoder_layers_0_mlp_fc1.diff", "zero and change nothing"),
        ("lora_unet_img_in.alphabet", "not known"),
        ("lora_unet_guidance_in_in_layer.diff_b", "not known"),
        ("\u{fc}ber", "not known"),
        ("lora_te1_text_projection.alpha", "without effect"),
    ] {
        let mut tensors = of(0);
        tensors.insert(name.to_string(), zero());
        open(&tensors, &[words, name]);
    }
    let mut tensors = of(0);
    let table = "lora_te1_text_model_embeddings_position_embedding";
    tensors.insert(format!("{table}.lora_down.weight"), number());
    tensors.insert(format!("{table}.lora_up.weight"), zero());
    open(&tensors, &["without effect", table]);
}

/// Matrices that are written as convolutions of 1x1, and alphas of any type, are what they are elsewhere.
#[test]
fn other_ways_to_write_the_same_are_read() {
    let (dir, config) = (tempfile::tempdir().unwrap(), config());
    let modules = modules(&config);
    let want = change(&config, &modules);
    let (_, kohya, _) = &styles()[0];
    let mut tensors = written(&modules, &config, kohya);
    for (i, (name, (dtype, shape, bytes))) in tensors.iter_mut().enumerate() {
        if !name.ends_with(".alpha") {
            shape.extend([1, 1]);
            continue;
        }
        let value = bf16::from_le_bytes([bytes[0], bytes[1]]).to_f32();
        let is_whole = value.fract() == 0.0;
        (*dtype, *shape, *bytes) = match i % 4 {
            0 => (Dtype::F64, vec![1], le(&[f64::from(value)])),
            1 => (Dtype::F16, vec![1, 1], le(&[f16::from_f32(value)])),
            2 if is_whole => (Dtype::I64, vec![], le(&[value as i64])),
            3 if is_whole => (Dtype::I32, vec![], le(&[value as i32])),
            _ => (Dtype::F32, vec![], le(&[value])),
        };
    }
    assert_same("written otherwise", &read(&opened(dir.path(), &tensors, &config).unwrap()), &want);
}

/// At the published sizes.
#[test]
fn published_shapes_fit() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = PipelineConfig::schnell();
    config.flux.guidance = true;
    let path: PathBuf = dir.path().join("lora.safetensors");
    let mut tensors = Tensors::new();
    let mut add = |name: &str, rank: usize, n: usize, k: usize| {
        tensors
            .insert(format!("{name}.lora_down.weight"), (Dtype::BF16, vec![rank, k], vec![0; 2 * rank * k]));
        tensors.insert(format!("{name}.lora_up.weight"), (Dtype::BF16, vec![n, rank], vec![0; 2 * n * rank]));
    };
    add("lora_unet_double_blocks_18_txt_attn_qkv", 16, 9216, 3072);
    add("lora_unet_single_blocks_37_linear1", 4, 21504, 3072);
    add("lora_unet_single_blocks_37_linear2", 512, 3072, 15360);
    add("lora_unet_guidance_in_in_layer", 1, 3072, 256);
    add("lora_te1_text_model_encoder_layers_11_mlp_fc1", 8, 3072, 768);
    save(&path, &tensors, None);
    let lora = Lora::open(&path, &config).unwrap();
    assert_eq!((lora.factors().len(), lora.warnings().len()), (3 + 4 + 1 + 1 + 1, 0));
    let mlp = lora.factors().iter().find(|factor| factor.target.ends_with("proj_mlp")).unwrap();
    assert_eq!((&mlp.up.shape[..], &mlp.down.shape[..], mlp.scale), (&[12288, 4][..], &[4, 3072][..], 1.0));
}
