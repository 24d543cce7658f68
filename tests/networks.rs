//! The four networks against candle-transformers in f32, with the same generated weights and the same inputs: each is
//! fed what ours was fed, so that an error belongs to the network that made it.
//!
//! Ours multiplies bf16 by bf16, candle f32 by f32, so the results differ by rounding. candle's own bf16 is no yardstick
//! for that, since its CPU matmul has none; candle with weights rounded to bf16 is the part of it that can be had, and
//! the bound is twice that error or 2 %, whichever is more. `mistakes_are_seen` plants errors that a network could have
//! and asks for several times the bound.
//!
//! Where candle differs from diffusers, and what follows here:
//! - T5 and FLUX: nothing in f32. (In bf16, candle forms RoPE's angles in the ids' dtype; ids are f32 here.)
//! - FLUX takes the original checkpoint's names and row order: see `original_names`.
//! - CLIP: its pooled row is the argmax of the ids, of which padding repeats the largest; the first is picked here, as
//!   diffusers does.
//! - VAE: the original FLUX autoencoder has 32 groups built in; the one for Stable Diffusion is the same network and
//!   takes any. It wants encoder weights too, which the generated files have.

mod common;
#[path = "common/golden.rs"]
mod golden;
#[path = "common/loras.rs"]
mod loras;

use std::collections::HashMap;
use std::path::Path;
use std::sync::LazyLock;

use candle_core::{DType, Device as Cpu, IndexOp, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::clip::text_model::{Activation, ClipTextConfig, ClipTextTransformer};
use candle_transformers::models::flux::{self, WithForward};
use candle_transformers::models::stable_diffusion::vae::{AutoEncoderKL, AutoEncoderKLConfig};
use candle_transformers::models::t5;
use common::*;
use schnell::Lora;
use schnell::config::{FluxConfig, PipelineConfig};
use schnell::pipeline::{DumpValues, Model, Pipeline, Plan, Quantize, Request, Shape};
use schnell::weights::generated::{self, Manifest};
use schnell::weights::{Part, SafeTensors, Source, nf4};
use serde_json::{Value, json};

type Weights = HashMap<String, Tensor>;

/// One generation of ours, every stage kept, and the weights that it ran on.
struct Drawn {
    dir: tempfile::TempDir,
    config: PipelineConfig,
    shape: Shape,
    stages: HashMap<String, (Vec<usize>, Vec<f32>)>,
}

/// Not 3.5, so that a default cannot stand in for it.
const GUIDANCE: f32 = 2.5;

impl Drawn {
    fn new(dir: tempfile::TempDir, shape: Shape, quantize: Quantize) -> Drawn {
        let model = Model::open(dir.path()).unwrap();
        Drawn::of(dir, model, shape, quantize)
    }

    /// The model of that folder, with what may have been added to it.
    fn of(dir: tempfile::TempDir, model: Model, shape: Shape, quantize: Quantize) -> Drawn {
        let plan = Plan::new(model.config(), shape, quantize).unwrap();
        let mut pipeline =
            Pipeline::builder(&model).with_plan(plan).device(&emulator()).dumps().load().unwrap();
        let prompt = "an oil painting of a quiet lighthouse and two misty ships at night";
        let request = Request { dump: true, guidance: Some(GUIDANCE), ..Request::new(prompt).seed(11) };
        let output = pipeline.generate(&request).unwrap();
        let stages = output.dumps.into_iter().map(|dump| {
            let values = match dump.values {
                DumpValues::Ids(ids) => ids.iter().map(|id| *id as f32).collect(),
                DumpValues::F32(values) => values,
            };
            (dump.stage, (dump.shape, values))
        });
        let config = PipelineConfig::open(dir.path()).unwrap();
        Drawn { config, shape, stages: stages.collect(), dir }
    }

    fn values(&self, stage: &str) -> &[f32] {
        &self.stages[stage].1
    }

    fn tensor(&self, stage: &str) -> Tensor {
        let (shape, values) = &self.stages[stage];
        Tensor::from_slice(values, shape.clone(), &Cpu::Cpu).unwrap()
    }

    fn ids(&self, stage: &str) -> Vec<u32> {
        self.values(stage).iter().map(|id| *id as u32).collect()
    }

    /// Under the names of diffusers, in f32.
    fn weights(&self, part: Part) -> Weights {
        let source = Source::open(self.dir.path(), &self.config).unwrap();
        let all = source.tensors(part).map(|(name, info)| {
            let values = info.read_f32().unwrap();
            (name.to_string(), Tensor::from_vec(values, info.shape.clone(), &Cpu::Cpu).unwrap())
        });
        all.collect()
    }
}

/// Different heads, depths and widths; neither size is square; texts beyond T5's last bucket boundary at 91, and short.
static A: LazyLock<Drawn> = LazyLock::new(|| golden_model("a", SHAPE_A, Quantize::None));
static B: LazyLock<Drawn> = LazyLock::new(|| golden_model("b", SHAPE_B, Quantize::None));
static A_NF4: LazyLock<Drawn> = LazyLock::new(|| golden_model("a", SHAPE_A, Quantize::Nf4));
static B_NF4: LazyLock<Drawn> = LazyLock::new(|| golden_model("b", SHAPE_B, Quantize::Nf4));
const SHAPE_A: Shape = Shape { width: 96, height: 64, steps: 2, t5_length: 100, true_cfg: false };
const SHAPE_B: Shape = Shape { width: 64, height: 112, steps: 2, t5_length: 24, true_cfg: false };

fn golden_model(name: &str, shape: Shape, quantize: Quantize) -> Drawn {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    let dir = tempfile::tempdir().unwrap();
    golden::copy_tree(&folder.join("pipeline"), dir.path());
    manifest(name).write_weights(dir.path()).unwrap();
    Drawn::new(dir, shape, quantize)
}

fn manifest(name: &str) -> Manifest {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    Manifest::parse(&std::fs::read_to_string(folder.join("manifest.json")).unwrap()).unwrap()
}

/// Pipeline `a` with another transformer: `changes` to its config, weights as it needs them, each scaled like the
/// tensor of that kind in `a`, for its own row length.
fn with_transformer(changes: Value, shape: Shape, quantize: Quantize) -> Drawn {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/a/pipeline");
    let dir = tempfile::tempdir().unwrap();
    golden::copy_tree(&folder, dir.path());
    let path = dir.path().join("transformer/config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    for (key, value) in changes.as_object().unwrap() {
        config[key] = value.clone();
    }
    std::fs::write(&path, config.to_string()).unwrap();
    let config = PipelineConfig::open(dir.path()).unwrap();

    let mut manifest = manifest("a");
    let (models, mut tensors): (Vec<_>, Vec<_>) =
        manifest.tensors.into_iter().partition(|t| t.file.starts_with("transformer/"));
    for needed in Part::Transformer.needed(&config).unwrap() {
        let model = needed.name.replace("guidance_embedder", "timestep_embedder");
        let model = models.iter().find(|t| t.name == model).unwrap();
        let scale = match (&model.shape[..], &needed.shape[..]) {
            ([_, k], [_, wanted]) => model.scale * (*k as f32 / *wanted as f32).sqrt(),
            _ => model.scale,
        };
        tensors.push(generated::Tensor {
            file: model.file.clone(),
            name: needed.name,
            shape: needed.shape,
            dtype: "F32".to_string(),
            scale,
            mean: model.mean,
        });
    }
    manifest.tensors = tensors;
    manifest.write_weights(dir.path()).unwrap();
    Drawn::new(dir, shape, quantize)
}

fn map(weights: &Weights, change: impl Fn(&str, Vec<f32>) -> Vec<f32>) -> Weights {
    let changed = weights.iter().map(|(name, tensor)| {
        let values = change(name, flat(tensor));
        (name.clone(), Tensor::from_vec(values, tensor.shape(), &Cpu::Cpu).unwrap())
    });
    changed.collect()
}

fn in_bf16(weights: &Weights) -> Weights {
    map(weights, |_, values| rounded(&values))
}

/// What NF4 keeps of the Linears; embeddings, norms, biases and what bitsandbytes leaves wide as they are.
fn in_nf4(weights: &Weights) -> Weights {
    map(weights, |name, values| {
        let linear = weights[name].rank() == 2
            && !["shared", "relative", "DenseReluDense.wo"].iter().any(|n| name.contains(n));
        if linear { to_f32(&nf4::quantize(&values).dequantize_bf16().unwrap()) } else { values }
    })
}

fn builder(weights: &Weights) -> VarBuilder<'static> {
    VarBuilder::from_tensors(weights.clone(), DType::F32, &Cpu::Cpu)
}

fn flat(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// `plain`: candle's result on weights rounded to bf16.
#[track_caller]
fn assert_near(what: &str, got: &[f32], want: &[f32], plain: &[f32]) {
    assert!(got.iter().all(|v| v.is_finite()), "{what}: not finite");
    let (error, plain) = (rel_l2(got, want), rel_l2(plain, want));
    let allowed = bound(plain);
    println!("{what}: relative L2 error {error:.2e}; candle on bf16 weights {plain:.2e}");
    assert!(error <= allowed, "{what}: relative L2 error {error:.3e}, allowed {allowed:.3e}");
}

fn bound(plain: f64) -> f64 {
    (2.0 * plain).max(2e-2)
}

// ---- CLIP --------------------------------------------------------------------------------------------------

fn clip_pooled(drawn: &Drawn, weights: &Weights) -> Vec<f32> {
    let clip = &drawn.config.clip;
    let config = ClipTextConfig {
        vocab_size: clip.vocab_rows,
        embed_dim: clip.width,
        activation: Activation::QuickGelu,
        intermediate_size: clip.ff,
        max_position_embeddings: clip.positions,
        pad_with: None,
        num_hidden_layers: clip.layers,
        num_attention_heads: clip.heads,
        projection_dim: clip.width,
    };
    let model = ClipTextTransformer::new(builder(weights).pp("text_model"), &config).unwrap();
    let ids = drawn.ids("tokens_clip");
    let end = ids.iter().max().unwrap();
    let end = ids.iter().position(|id| id == end).unwrap();
    let ids = Tensor::from_slice(&ids, (1, ids.len()), &Cpu::Cpu).unwrap();
    let hidden = model.forward_with_mask(&ids, usize::MAX).unwrap();
    flat(&hidden.i((0, end)).unwrap())
}

fn check_clip(name: &str, drawn: &Drawn) {
    let weights = drawn.weights(Part::Clip);
    let (want, plain) = (clip_pooled(drawn, &weights), clip_pooled(drawn, &in_bf16(&weights)));
    assert_near(&format!("clip of {name}"), drawn.values("clip_pooled"), &want, &plain);
}

#[test]
fn clip_pools_what_candle_does() {
    check_clip("a", &A);
    check_clip("b", &B);
}

// ---- T5 ----------------------------------------------------------------------------------------------------

fn t5_embeds(drawn: &Drawn, weights: &Weights) -> Vec<f32> {
    // candle reads the very config file.
    let config = std::fs::read(drawn.dir.path().join("text_encoder_2/config.json")).unwrap();
    let config: t5::Config = serde_json::from_slice(&config).unwrap();
    let mut model = t5::T5EncoderModel::load(builder(weights), &config).unwrap();
    let ids = drawn.ids("tokens_t5");
    let ids = Tensor::from_slice(&ids, (1, ids.len()), &Cpu::Cpu).unwrap();
    flat(&model.forward(&ids).unwrap())
}

fn check_t5(name: &str, drawn: &Drawn, weights: &Weights) {
    let (want, plain) = (t5_embeds(drawn, weights), t5_embeds(drawn, &in_bf16(weights)));
    assert_near(&format!("t5 of {name}"), drawn.values("t5_embeds"), &want, &plain);
}

#[test]
fn t5_encodes_what_candle_does() {
    check_t5("a", &A, &A.weights(Part::T5));
    check_t5("b", &B, &B.weights(Part::T5));
}

#[test]
fn t5_in_nf4_is_candle_on_the_dequantized_weights() {
    check_t5("a in nf4", &A_NF4, &in_nf4(&A_NF4.weights(Part::T5)));
    check_t5("b in nf4", &B_NF4, &in_nf4(&B_NF4.weights(Part::T5)));
}

// ---- the transformer ---------------------------------------------------------------------------------------

/// diffusers' tensors as the original checkpoint has them: q, k, v (and the MLP of single blocks) are one Linear, and
/// the last modulation yields shift, then scale.
fn original_names(weights: &Weights, config: &FluxConfig) -> Weights {
    let mut out = Weights::new();
    let mut put = |to: &str, kind: &str, parts: &[String]| {
        let parts: Vec<&Tensor> = parts.iter().map(|from| &weights[&format!("{from}.{kind}")]).collect();
        out.insert(to.to_string(), Tensor::cat(&parts, 0).unwrap());
    };
    let mut linear = |to: &str, from: &[String]| {
        for kind in ["weight", "bias"] {
            put(&format!("{to}.{kind}"), kind, from);
        }
    };
    let one = |name: &str| [name.to_string()];
    linear("img_in", &one("x_embedder"));
    linear("txt_in", &one("context_embedder"));
    let mut embedders = vec![("time_in", "timestep_embedder"), ("vector_in", "text_embedder")];
    embedders.extend(config.guidance.then_some(("guidance_in", "guidance_embedder")));
    for (to, from) in embedders {
        linear(&format!("{to}.in_layer"), &one(&format!("time_text_embed.{from}.linear_1")));
        linear(&format!("{to}.out_layer"), &one(&format!("time_text_embed.{from}.linear_2")));
    }
    for i in 0..config.layers {
        let (to, from) = (format!("double_blocks.{i}"), format!("transformer_blocks.{i}"));
        for (side, norm, qkv, out, ff) in [
            ("img", "norm1", ["to_q", "to_k", "to_v"], "to_out.0", "ff"),
            ("txt", "norm1_context", ["add_q_proj", "add_k_proj", "add_v_proj"], "to_add_out", "ff_context"),
        ] {
            linear(&format!("{to}.{side}_mod.lin"), &one(&format!("{from}.{norm}.linear")));
            linear(&format!("{to}.{side}_attn.qkv"), &qkv.map(|part| format!("{from}.attn.{part}")));
            linear(&format!("{to}.{side}_attn.proj"), &one(&format!("{from}.attn.{out}")));
            linear(&format!("{to}.{side}_mlp.0"), &one(&format!("{from}.{ff}.net.0.proj")));
            linear(&format!("{to}.{side}_mlp.2"), &one(&format!("{from}.{ff}.net.2")));
        }
    }
    for i in 0..config.single_layers {
        let (to, from) = (format!("single_blocks.{i}"), format!("single_transformer_blocks.{i}"));
        linear(&format!("{to}.modulation.lin"), &one(&format!("{from}.norm.linear")));
        let parts = ["attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"].map(|part| format!("{from}.{part}"));
        linear(&format!("{to}.linear1"), &parts);
        linear(&format!("{to}.linear2"), &one(&format!("{from}.proj_out")));
    }
    linear("final_layer.linear", &one("proj_out"));
    linear("final_layer.adaLN_modulation.1", &one("norm_out.linear"));

    let mut scale =
        |to: String, from: String| put(&format!("{to}.scale"), "weight", std::slice::from_ref(&from));
    for i in 0..config.layers {
        let (to, from) = (format!("double_blocks.{i}"), format!("transformer_blocks.{i}.attn"));
        for (side, added) in [("img", ""), ("txt", "added_")] {
            scale(format!("{to}.{side}_attn.norm.query_norm"), format!("{from}.norm_{added}q"));
            scale(format!("{to}.{side}_attn.norm.key_norm"), format!("{from}.norm_{added}k"));
        }
    }
    for i in 0..config.single_layers {
        let (to, from) = (format!("single_blocks.{i}"), format!("single_transformer_blocks.{i}.attn"));
        scale(format!("{to}.norm.query_norm"), format!("{from}.norm_q"));
        scale(format!("{to}.norm.key_norm"), format!("{from}.norm_k"));
    }
    swap_rows(&mut out, "final_layer.adaLN_modulation.1", 2, 0, 1);
    out
}

/// Swaps chunks `a` and `b` of the `chunks` that a Linear's rows consist of.
fn swap_rows(weights: &mut Weights, name: &str, chunks: usize, a: usize, b: usize) {
    for kind in ["weight", "bias"] {
        let tensor = weights.get_mut(&format!("{name}.{kind}")).unwrap();
        let mut parts = tensor.chunk(chunks, 0).unwrap();
        parts.swap(a, b);
        *tensor = Tensor::cat(&parts, 0).unwrap();
    }
}

/// What the transformer is given beside text and latents.
#[derive(Clone, Copy)]
struct Given {
    step: usize,
    guidance: f32,
    /// Columns where rows belong and the other way round.
    transposed: bool,
}

impl Given {
    fn step(step: usize) -> Given {
        Given { step, guidance: GUIDANCE, transposed: false }
    }
}

/// The velocity by candle, `weights` under the original names.
fn velocity(drawn: &Drawn, weights: &Weights, given: Given) -> Vec<f32> {
    let flux = &drawn.config.flux;
    let config = flux::model::Config {
        in_channels: flux.in_channels,
        vec_in_dim: flux.pooled_width,
        context_in_dim: flux.joint_width,
        hidden_size: flux.width(),
        mlp_ratio: flux.ff() as f64 / flux.width() as f64,
        num_heads: flux.heads,
        depth: flux.layers,
        depth_single_blocks: flux.single_layers,
        axes_dim: flux.axes.to_vec(),
        theta: flux.theta as usize,
        qkv_bias: true,
        guidance_embed: flux.guidance,
    };
    let model = flux::model::Flux::new(&config, builder(weights)).unwrap();
    let latents = match given.step {
        0 => drawn.tensor("noise"),
        step => drawn.tensor(&format!("latents_{}", step - 1)),
    };
    let (height, width) = drawn.shape.token_grid(&drawn.config);
    let ids: Vec<f32> = (0..height * width)
        .map(|token| ((token / width) as f32, (token % width) as f32))
        .flat_map(|(row, column)| if given.transposed { [0.0, column, row] } else { [0.0, row, column] })
        .collect();
    let ids = Tensor::from_vec(ids, (1, height * width, 3), &Cpu::Cpu).unwrap();
    let text = drawn.tensor("t5_embeds");
    let text_ids = Tensor::zeros((1, drawn.shape.t5_length, 3), DType::F32, &Cpu::Cpu).unwrap();
    let time = Tensor::new(&[drawn.values("sigmas")[given.step]], &Cpu::Cpu).unwrap();
    let guidance = Tensor::new(&[given.guidance], &Cpu::Cpu).unwrap();
    let pooled = drawn.tensor("clip_pooled");
    flat(&model.forward(&latents, &ids, &text, &text_ids, &time, &pooled, Some(&guidance)).unwrap())
}

/// Every step's velocity, `weights` under diffusers' names.
fn check_flux(name: &str, drawn: &Drawn, weights: &Weights) {
    let weights = original_names(weights, &drawn.config.flux);
    for step in 0..drawn.shape.steps {
        let given = Given::step(step);
        let (want, plain) = (velocity(drawn, &weights, given), velocity(drawn, &in_bf16(&weights), given));
        let got = drawn.values(&format!("noise_pred_{step}"));
        assert_near(&format!("transformer of {name}, step {step}"), got, &want, &plain);
    }
}

#[test]
fn the_transformer_predicts_what_candle_does() {
    check_flux("a", &A, &A.weights(Part::Transformer));
    check_flux("b", &B, &B.weights(Part::Transformer));
}

#[test]
fn the_transformer_in_nf4_is_candle_on_the_dequantized_weights() {
    check_flux("a in nf4", &A_NF4, &in_nf4(&A_NF4.weights(Part::Transformer)));
    check_flux("b in nf4", &B_NF4, &in_nf4(&B_NF4.weights(Part::Transformer)));
}

/// Two LoRAs, of all matrices and of some, in pipeline `name` with heads of its own; and what they were.
fn with_loras(name: &str, shape: Shape, quantize: Quantize) -> (Drawn, [(Vec<loras::Change>, f32); 2]) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    let dir = tempfile::tempdir().unwrap();
    golden::copy_tree(&folder.join("pipeline"), dir.path());
    manifest(name).write_weights(dir.path()).unwrap();
    let model = Model::open(dir.path()).unwrap();
    let all = loras::changes(model.config(), (4, 1.0), 1, |_, _| true);
    let some = loras::changes(model.config(), (72, 1.0), 2, |_, name| {
        ["to_q", "proj_mlp", "add_v_proj", "norm1.linear", "fc1", "v_proj"]
            .iter()
            .any(|end| name.ends_with(end))
    });
    let open =
        |name, changes: &[_]| Lora::open(loras::write(dir.path(), name, changes), model.config()).unwrap();
    let opened = [(open("all.safetensors", &all), 0.75), (open("some.safetensors", &some), -0.5)];
    let model = model.with_loras(&opened).unwrap();
    (Drawn::of(dir, model, shape, quantize), [(all, 0.75), (some, -0.5)])
}

/// The weights with the LoRAs added in f32.
fn merged(weights: &Weights, part: Part, loras: &[(Vec<loras::Change>, f32)]) -> Weights {
    map(weights, |name, mut values| {
        for (changes, strength) in loras {
            let own =
                |change: &&loras::Change| change.part == part && name == format!("{}.weight", change.target);
            for change in changes.iter().filter(own) {
                values.iter_mut().zip(change.delta()).for_each(|(sum, delta)| *sum += strength * delta);
            }
        }
        values
    })
}

#[test]
fn loras_are_candle_on_merged_weights() {
    for (name, shape) in [("a", SHAPE_A), ("b", SHAPE_B)] {
        let (drawn, loras) = with_loras(name, shape, Quantize::None);
        let (own, clip) = (drawn.weights(Part::Transformer), drawn.weights(Part::Clip));
        let weights = merged(&own, Part::Transformer, &loras);
        check_flux(&format!("{name} with LoRAs"), &drawn, &weights);
        let want = clip_pooled(&drawn, &merged(&clip, Part::Clip, &loras));
        let plain = clip_pooled(&drawn, &in_bf16(&merged(&clip, Part::Clip, &loras)));
        assert_near(&format!("clip of {name} with LoRAs"), drawn.values("clip_pooled"), &want, &plain);
        // Each is seen.
        for missing in 0..2 {
            let some = merged(&own, Part::Transformer, &loras[1 - missing..2 - missing]);
            let other = velocity(&drawn, &original_names(&some, &drawn.config.flux), Given::step(0));
            let error = rel_l2(drawn.values("noise_pred_0"), &other);
            assert!(error > 4.0 * bound(0.0), "{name}: LoRA {missing} makes no difference: {error:.2e}");
        }
        let (drawn, loras) = with_loras(name, shape, Quantize::Nf4);
        let weights = merged(&in_nf4(&drawn.weights(Part::Transformer)), Part::Transformer, &loras);
        check_flux(&format!("{name} in nf4 with LoRAs"), &drawn, &weights);
    }
}

/// Heads that are no GEMM tile wide are normalized and rotated by a kernel of their own.
#[test]
fn narrow_heads_predict_what_candle_does() {
    let narrow = json!({
        "attention_head_dim": 64, "num_attention_heads": 3, "axes_dims_rope": [8, 28, 28], "num_single_layers": 1,
    });
    let shape = Shape { steps: 1, ..SHAPE_B };
    let drawn = with_transformer(narrow.clone(), shape, Quantize::None);
    assert_eq!((drawn.config.flux.head_dim, drawn.config.flux.width()), (64, 192));
    check_flux("heads of 64", &drawn, &drawn.weights(Part::Transformer));
    let drawn = with_transformer(narrow, shape, Quantize::Nf4);
    check_flux("heads of 64 in nf4", &drawn, &in_nf4(&drawn.weights(Part::Transformer)));
}

#[test]
fn guidance_enters_as_in_candle() {
    let drawn = with_transformer(
        json!({"guidance_embeds": true, "num_layers": 1, "num_single_layers": 1}),
        Shape { t5_length: 16, ..SHAPE_A },
        Quantize::None,
    );
    let weights = drawn.weights(Part::Transformer);
    check_flux("a with guidance", &drawn, &weights);
    let weights = original_names(&weights, &drawn.config.flux);
    let other = velocity(&drawn, &weights, Given { guidance: 3.5, ..Given::step(0) });
    let error = rel_l2(drawn.values("noise_pred_0"), &other);
    assert!(error > 4.0 * bound(0.0), "another guidance scale makes no difference: {error:.2e}");
}

// ---- the VAE -----------------------------------------------------------------------------------------------

/// All of the file's, encoder included.
fn vae_weights(drawn: &Drawn) -> Weights {
    let file = SafeTensors::open(&drawn.dir.path().join("vae/diffusion_pytorch_model.safetensors")).unwrap();
    let all = file.iter().map(|info| {
        let values = info.read_f32().unwrap();
        (info.name.clone(), Tensor::from_vec(values, info.shape.clone(), &Cpu::Cpu).unwrap())
    });
    all.collect()
}

fn decoded(drawn: &Drawn, weights: &Weights) -> Vec<f32> {
    let vae = &drawn.config.vae;
    let config = AutoEncoderKLConfig {
        block_out_channels: vae.block_channels.clone(),
        layers_per_block: vae.layers_per_block,
        latent_channels: vae.latent_channels,
        norm_num_groups: vae.groups,
        use_quant_conv: false,
        use_post_quant_conv: vae.use_post_quant_conv,
    };
    let model = AutoEncoderKL::new(builder(weights), 3, vae.out_channels, config).unwrap();
    // [1, h w, c 2 2] to [1, c, 2h, 2w]: channel c*4 + dy*2 + dx of a token is pixel (dy, dx) of its square.
    let (h, w) = drawn.shape.token_grid(&drawn.config);
    let c = vae.latent_channels;
    let packed = drawn.tensor(&format!("latents_{}", drawn.shape.steps - 1));
    let latents = packed
        .reshape(vec![h, w, c, 2, 2])
        .and_then(|x| x.permute(vec![2, 0, 3, 1, 4]))
        .and_then(|x| x.reshape((1, c, 2 * h, 2 * w)))
        .and_then(|x| x.affine(1.0 / f64::from(vae.scaling), f64::from(vae.shift)))
        .unwrap();
    flat(&model.decode(&latents).unwrap())
}

fn check_vae(name: &str, drawn: &Drawn) {
    let weights = vae_weights(drawn);
    let (want, plain) = (decoded(drawn, &weights), decoded(drawn, &in_bf16(&weights)));
    assert_near(&format!("vae of {name}"), drawn.values("vae_out"), &want, &plain);
}

#[test]
fn the_vae_decodes_what_candle_does() {
    check_vae("a", &A);
    check_vae("b", &B);
}

// ---- the bound -----------------------------------------------------------------------------------------------

#[test]
fn mistakes_are_seen() {
    let seen = |what: &str, got: &[f32], mistaken: &[f32]| {
        let error = rel_l2(got, mistaken);
        println!("{what}: relative L2 error {error:.2e}");
        assert!(error > 2.0 * bound(0.0), "{what} goes unseen: relative L2 error {error:.3e}");
    };
    let right = original_names(&A.weights(Part::Transformer), &A.config.flux);
    let predicted = A.values("noise_pred_0");
    let first = Given::step(0);
    // Linear, chunks of its rows, the two that change places
    for (what, linear, chunks, a, b) in [
        ("shift and scale of the last norm", "final_layer.adaLN_modulation.1", 2, 0, 1),
        ("shift and scale of an image norm", "double_blocks.0.img_mod.lin", 6, 0, 1),
        ("shift and scale of a text norm", "double_blocks.0.txt_mod.lin", 6, 3, 4),
        ("the gates of an image side", "double_blocks.1.img_mod.lin", 6, 2, 5),
        ("the gates of a text side", "double_blocks.0.txt_mod.lin", 6, 2, 5),
        ("shift and scale of a single block", "single_blocks.1.modulation.lin", 3, 0, 1),
        ("q and k of an image side", "double_blocks.0.img_attn.qkv", 3, 0, 1),
        ("k and v of a text side", "double_blocks.0.txt_attn.qkv", 3, 1, 2),
        ("two quarters of an MLP", "single_blocks.0.linear1", 7, 4, 6),
    ] {
        let mut weights = right.clone();
        swap_rows(&mut weights, linear, chunks, a, b);
        seen(&format!("{what} swapped"), predicted, &velocity(&A, &weights, first));
    }
    let mut weights = right.clone();
    let (image, text) = ("double_blocks.0.img_attn.norm", "double_blocks.0.txt_attn.norm");
    for norm in ["query_norm.scale", "key_norm.scale"] {
        let (image, text) = (format!("{image}.{norm}"), format!("{text}.{norm}"));
        weights.insert(image.clone(), right[&text].clone());
        weights.insert(text, right[&image].clone());
    }
    seen("norms of text and image swapped", predicted, &velocity(&A, &weights, first));
    let transposed = Given { transposed: true, ..first };
    seen("rows and columns swapped", predicted, &velocity(&A, &right, transposed));

    let swapped = |weights: &Weights, a: &str, b: &str| -> Weights {
        let mut out = weights.clone();
        out.insert(a.to_string(), weights[b].clone());
        out.insert(b.to_string(), weights[a].clone());
        out
    };
    let clip = A.weights(Part::Clip);
    let layer = "text_model.encoder.layers.1";
    for (a, b) in
        [("layer_norm1.weight", "layer_norm2.weight"), ("self_attn.q_proj.bias", "self_attn.v_proj.bias")]
    {
        let mistaken = swapped(&clip, &format!("{layer}.{a}"), &format!("{layer}.{b}"));
        seen(&format!("clip: {a} and {b} swapped"), A.values("clip_pooled"), &clip_pooled(&A, &mistaken));
    }
    let t5 = A.weights(Part::T5);
    let gated = "encoder.block.1.layer.1.DenseReluDense";
    let mistaken = swapped(&t5, &format!("{gated}.wi_0.weight"), &format!("{gated}.wi_1.weight"));
    seen("t5: wi_0 and wi_1 swapped", A.values("t5_embeds"), &t5_embeds(&A, &mistaken));
    let half = A.config.t5.buckets / 2 * A.config.t5.heads;
    let mistaken = map(&t5, |name, mut values| {
        if name.contains("relative") {
            values.rotate_left(half);
        }
        values
    });
    seen("t5: before and behind swapped", A.values("t5_embeds"), &t5_embeds(&A, &mistaken));
    let vae = vae_weights(&A);
    for (a, b) in [
        ("decoder.mid_block.attentions.0.to_k.weight", "decoder.mid_block.attentions.0.to_v.weight"),
        ("decoder.up_blocks.0.resnets.1.norm1.weight", "decoder.up_blocks.0.resnets.1.norm2.weight"),
        ("decoder.up_blocks.1.upsamplers.0.conv.weight", "decoder.up_blocks.2.upsamplers.0.conv.weight"),
    ] {
        seen(&format!("vae: {a} and {b} swapped"), A.values("vae_out"), &decoded(&A, &swapped(&vae, a, b)));
    }
}
