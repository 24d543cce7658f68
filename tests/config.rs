//! Config files: what a folder says, what it leaves to defaults, and every way to contradict itself.

use std::fs;
use std::path::Path;

use schnell::config::{ClipActivation, ClipPooling, PipelineConfig};
use schnell::{Error, Plan, Quantize, Result, Shape};
use serde_json::{Value, json};

const FILES: [&str; 6] = [
    "model_index.json",
    "transformer/config.json",
    "text_encoder/config.json",
    "text_encoder_2/config.json",
    "vae/config.json",
    "scheduler/scheduler_config.json",
];

/// The six files of FLUX.1-schnell, as published but for what does not matter here.
fn published() -> [Value; 6] {
    [
        json!({
            "_class_name": "FluxPipeline", "_diffusers_version": "0.30.0.dev0",
            "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
            "text_encoder": ["transformers", "CLIPTextModel"],
            "text_encoder_2": ["transformers", "T5EncoderModel"],
            "tokenizer": ["transformers", "CLIPTokenizer"],
            "tokenizer_2": ["transformers", "T5TokenizerFast"],
            "transformer": ["diffusers", "FluxTransformer2DModel"],
            "vae": ["diffusers", "AutoencoderKL"]
        }),
        json!({
            "_class_name": "FluxTransformer2DModel", "attention_head_dim": 128, "guidance_embeds": false,
            "in_channels": 64, "joint_attention_dim": 4096, "num_attention_heads": 24, "num_layers": 19,
            "num_single_layers": 38, "patch_size": 1, "pooled_projection_dim": 768
        }),
        json!({
            "architectures": ["CLIPTextModel"], "model_type": "clip_text_model", "bos_token_id": 0,
            "eos_token_id": 2, "hidden_act": "quick_gelu", "hidden_size": 768, "intermediate_size": 3072,
            "layer_norm_eps": 1e-05, "max_position_embeddings": 77, "num_attention_heads": 12,
            "num_hidden_layers": 12, "pad_token_id": 1, "projection_dim": 768, "vocab_size": 49408
        }),
        json!({
            "architectures": ["T5EncoderModel"], "model_type": "t5", "d_ff": 10240, "d_kv": 64, "d_model": 4096,
            "dense_act_fn": "gelu_new", "feed_forward_proj": "gated-gelu", "is_gated_act": true,
            "layer_norm_epsilon": 1e-06, "num_heads": 64, "num_layers": 24,
            "relative_attention_max_distance": 128, "relative_attention_num_buckets": 32, "vocab_size": 32128
        }),
        json!({
            "_class_name": "AutoencoderKL", "act_fn": "silu", "block_out_channels": [128, 256, 512, 512],
            "force_upcast": true, "latent_channels": 16, "layers_per_block": 2, "mid_block_add_attention": true,
            "norm_num_groups": 32, "out_channels": 3, "scaling_factor": 0.3611, "shift_factor": 0.1159,
            "up_block_types": ["UpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D"],
            "use_post_quant_conv": false, "use_quant_conv": false
        }),
        json!({
            "_class_name": "FlowMatchEulerDiscreteScheduler", "base_image_seq_len": 256, "base_shift": 0.5,
            "max_image_seq_len": 4096, "max_shift": 1.15, "num_train_timesteps": 1000, "shift": 1.0,
            "use_dynamic_shifting": false
        }),
    ]
}

fn write(files: &[Value; 6]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, value) in FILES.iter().zip(files) {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, value.to_string()).unwrap();
    }
    dir
}

fn open(files: &[Value; 6]) -> Result<PipelineConfig> {
    PipelineConfig::open(write(files).path())
}

/// Opens the published files with `file`'s `field` set to `value`, or taken away by null.
fn with(file: usize, field: &str, value: Value) -> Result<PipelineConfig> {
    let mut files = published();
    let object = files[file].as_object_mut().unwrap();
    match value {
        Value::Null => drop(object.remove(field)),
        value => drop(object.insert(field.to_string(), value)),
    }
    open(&files)
}

const INDEX: usize = 0;
const FLUX: usize = 1;
const CLIP: usize = 2;
const T5: usize = 3;
const VAE: usize = 4;
const SCHEDULER: usize = 5;

#[test]
fn published_files_are_schnell() {
    assert_eq!(open(&published()).unwrap(), PipelineConfig::schnell());
}

#[test]
fn steps_and_t5_length_are_the_familys_or_what_the_tokenizer_allows() {
    let usual = |config: &PipelineConfig| (config.steps, config.t5_length);
    assert_eq!(usual(&PipelineConfig::schnell()), (4, 256));
    let with = |guidance: bool, length: Option<&str>| {
        let mut files = published();
        files[FLUX]["guidance_embeds"] = json!(guidance);
        let dir = write(&files);
        if let Some(length) = length {
            fs::create_dir(dir.path().join("tokenizer_2")).unwrap();
            let text = format!("{{\"model_max_length\": {length}}}");
            fs::write(dir.path().join("tokenizer_2/tokenizer_config.json"), text).unwrap();
        }
        PipelineConfig::open(dir.path()).map(|config| usual(&config))
    };
    let expected =
        [(None, 256), (Some("512"), 256), (Some("256"), 256), (Some("24"), 24), (Some("null"), 256)];
    for (length, tokens) in expected {
        assert_eq!(with(false, length).unwrap(), (4, tokens), "{length:?}");
    }
    // transformers' "no limit" is 10^30.
    assert_eq!(with(false, Some("1000000000000000019884624838656")).unwrap(), (4, 256));
    for (length, tokens) in [(None, 512), (Some("512"), 512), (Some("77"), 77), (Some("1024"), 512)] {
        assert_eq!(with(true, length).unwrap(), (28, tokens), "{length:?}");
    }
    for length in ["0", "-5"] {
        let refused = with(false, Some(length));
        assert!(
            matches!(&refused, Err(Error::Weights { what, .. }) if what.contains("model_max_length")),
            "{refused:?}"
        );
    }
}

#[test]
fn golden_pipelines_open() {
    let golden = |name: &str| {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name).join("pipeline");
        PipelineConfig::open(&dir).unwrap()
    };
    let (a, b) = (golden("a"), golden("b"));
    assert_eq!((a.flux.width(), a.flux.layers, a.flux.single_layers), (256, 2, 2));
    assert_eq!((a.t5.inner(), a.t5.vocab_rows, a.clip.head_dim()), (128, 832, 32));
    assert_eq!(a.clip.pooling, ClipPooling::LargestId);
    assert_eq!((a.vae.top_channels(), a.vae.groups, a.vae.pixels_per_latent()), (32, 8, 8));
    assert_eq!((b.flux.width(), b.t5.inner(), b.t5.width), (384, 192, 128));
    assert_eq!(b.clip.pooling, ClipPooling::FirstOf(913));
    assert_eq!(a.scheduler, PipelineConfig::schnell().scheduler);
}

#[test]
fn absent_fields_take_the_libraries_defaults() {
    let schnell = PipelineConfig::schnell();
    for field in published()[FLUX].as_object().unwrap().keys() {
        assert_eq!(with(FLUX, field, Value::Null).unwrap(), schnell, "{field}");
    }
    for field in published()[SCHEDULER].as_object().unwrap().keys() {
        assert_eq!(with(SCHEDULER, field, Value::Null).unwrap(), schnell, "{field}");
    }
    // Where the default is not FLUX's value it shows, as it would in the reference.
    assert_eq!(with(T5, "num_layers", Value::Null).unwrap().t5.layers, 6);
    assert_eq!(with(T5, "d_ff", Value::Null).unwrap().t5.ff, 2048);
    assert_eq!(with(T5, "num_heads", Value::Null).unwrap().t5.heads, 8);
    assert_eq!(with(T5, "dense_act_fn", Value::Null).unwrap(), schnell);
    assert_eq!(with(T5, "relative_attention_max_distance", Value::Null).unwrap(), schnell);
    assert_eq!(with(CLIP, "num_attention_heads", Value::Null).unwrap().clip.heads, 8);
    assert_eq!(with(CLIP, "eos_token_id", Value::Null).unwrap().clip.pooling, ClipPooling::FirstOf(49407));
    assert_eq!(with(VAE, "layers_per_block", Value::Null).unwrap().vae.layers_per_block, 1);
    assert!(with(VAE, "use_post_quant_conv", Value::Null).unwrap().vae.use_post_quant_conv);
    assert_eq!(with(VAE, "scaling_factor", Value::Null).unwrap().vae.scaling, 0.18215);
}

#[test]
fn fields_are_read_not_assumed() {
    assert!(with(FLUX, "guidance_embeds", json!(true)).unwrap().flux.guidance);
    assert_eq!(with(FLUX, "axes_dims_rope", json!([32, 48, 48])).unwrap().flux.axes, [32, 48, 48]);
    assert_eq!(with(CLIP, "hidden_act", json!("gelu")).unwrap().clip.activation, ClipActivation::Gelu);
    assert_eq!(with(T5, "dense_act_fn", json!("gelu_pytorch_tanh")).unwrap(), PipelineConfig::schnell());
    // As ComfyUI and Forge write it.
    let mut files = published();
    let t5 = files[T5].as_object_mut().unwrap();
    t5.remove("feed_forward_proj");
    t5.insert("dense_act_fn".to_string(), json!("gelu_pytorch_tanh"));
    assert_eq!(open(&files).unwrap(), PipelineConfig::schnell());
    assert!(!with(VAE, "mid_block_add_attention", json!(false)).unwrap().vae.mid_attention);
    assert_eq!(with(SCHEDULER, "shift", json!(3.0)).unwrap().scheduler.shift, 3.0);
    assert!(with(SCHEDULER, "use_dynamic_shifting", json!(true)).unwrap().scheduler.dynamic_shifting);
    assert_eq!(with(FLUX, "out_channels", Value::Null).unwrap().flux.out_channels, 64);
}

/// Each breaks its folder: the error names the file and the numbers.
#[test]
fn contradictions_are_errors_about_the_file() {
    for (file, field, value, words) in [
        (INDEX, "_class_name", Value::Null, &["_class_name"][..]),
        (INDEX, "vae", json!([null, null]), &["vae", "absent", "AutoencoderKL"]),
        (INDEX, "transformer", Value::Null, &["transformer", "absent"]),
        (FLUX, "attention_head_dim", json!(64), &["axes_dims_rope", "128", "64"]),
        (FLUX, "axes_dims_rope", json!([16, 56]), &["axes_dims_rope", "2", "3"]),
        (FLUX, "axes_dims_rope", json!([16, 55, 57]), &["axes_dims_rope", "odd"]),
        (FLUX, "in_channels", json!(63), &["63", "64"]),
        (FLUX, "out_channels", json!(32), &["out_channels", "32", "64"]),
        (FLUX, "joint_attention_dim", json!(2048), &["joint_attention_dim", "2048", "4096"]),
        (FLUX, "pooled_projection_dim", json!(1280), &["pooled_projection_dim", "1280", "768"]),
        (FLUX, "num_attention_heads", json!(0), &["num_attention_heads", "0"]),
        (FLUX, "num_layers", json!(u64::MAX), &["num_layers"]),
        (FLUX, "num_layers", json!(-1), &["malformed"]),
        (FLUX, "num_layers", json!("nineteen"), &["malformed"]),
        (T5, "d_model", json!(2048), &["joint_attention_dim", "2048", "4096", "google/t5-v1_1-xxl"]),
        // OpenCLIP's bigG, as far as it matters.
        (CLIP, "hidden_size", json!(1248), &["768", "1248", "openai/clip-vit-large-patch14"]),
        (T5, "relative_attention_num_buckets", json!(30), &["relative_attention_num_buckets", "30"]),
        (T5, "relative_attention_max_distance", json!(8), &["relative_attention_max_distance", "8"]),
        (T5, "layer_norm_epsilon", json!(-1e-6), &["layer_norm_epsilon"]),
        (CLIP, "num_attention_heads", json!(11), &["hidden_size", "768", "11"]),
        (CLIP, "max_position_embeddings", json!(1), &["max_position_embeddings"]),
        (VAE, "block_out_channels", json!([]), &["block_out_channels"]),
        (VAE, "block_out_channels", json!([128, 256, 512]), &["up_block_types", "4", "3"]),
        (VAE, "norm_num_groups", json!(48), &["norm_num_groups", "48", "128"]),
        (VAE, "shift_factor", Value::Null, &["shift_factor"]),
        (VAE, "scaling_factor", json!(0.0), &["scaling_factor"]),
        (VAE, "latent_channels", json!(4), &["latent_channels", "4", "16"]),
        (SCHEDULER, "shift", json!(0), &["shift"]),
    ] {
        let error = with(file, field, value.clone()).unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, Error::Weights { .. }), "{field} {value}: {error:?}");
        for word in words.iter().chain([&".json"]) {
            assert!(text.contains(word), "{field} {value}: {text:?} does not name {word:?}");
        }
    }
}

/// Each is sound, but has no code here: the error names the file and the value.
#[test]
fn sound_but_unknown_is_unsupported() {
    for (file, field, value) in [
        (INDEX, "_class_name", json!("FluxFillPipeline")),
        (INDEX, "transformer", json!(["diffusers", "SD3Transformer2DModel"])),
        (FLUX, "_class_name", json!("SD3Transformer2DModel")),
        (INDEX, "_class_name", json!(["pipeline", "Flex2Pipeline"])),
        (INDEX, "_class_name", json!(["pipeline", "FluxPipeline"])),
        (VAE, "_class_name", json!(["autoencoder", "AutoencoderKL"])),
        (FLUX, "patch_size", json!(2)),
        // Fill.
        (FLUX, "in_channels", json!(384)),
        (T5, "is_gated_act", json!(false)),
        (T5, "dense_act_fn", json!("gelu")),
        (
            FLUX,
            "quantization_config",
            json!({"quant_method": "bitsandbytes", "load_in_8bit": true, "load_in_4bit": false}),
        ),
        (T5, "quantization_config", json!({"load_in_4bit": true, "bnb_4bit_quant_type": "fp4"})),
        (CLIP, "quantization_config", json!({"quant_method": "torchao", "quant_type": "int8wo"})),
        (VAE, "quantization_config", json!({"quant_method": "quanto", "weights_dtype": "float8"})),
        (FLUX, "quantization_config", json!({"quant_method": "gguf", "compute_dtype": "bfloat16"})),
        (T5, "dense_act_fn", json!("silu")),
        (T5, "model_type", json!("umt5")),
        (CLIP, "hidden_act", json!("relu")),
        (CLIP, "model_type", json!("siglip_text_model")),
        (VAE, "act_fn", json!("relu")),
        (VAE, "out_channels", json!(4)),
        (VAE, "up_block_types", json!(["AttnUpDecoderBlock2D"])),
        (SCHEDULER, "_class_name", json!("DDIMScheduler")),
        (SCHEDULER, "use_karras_sigmas", json!(true)),
        (SCHEDULER, "use_exponential_sigmas", json!(true)),
        (SCHEDULER, "use_beta_sigmas", json!(true)),
        (SCHEDULER, "invert_sigmas", json!(true)),
        (SCHEDULER, "stochastic_sampling", json!(true)),
        (SCHEDULER, "shift_terminal", json!(0.1)),
        (SCHEDULER, "time_shift_type", json!("linear")),
        (SCHEDULER, "num_train_timesteps", json!(500)),
    ] {
        let error = with(file, field, value.clone()).unwrap_err();
        assert!(matches!(error, Error::Unsupported(_)), "{field} {value}: {error:?}");
        let text = error.to_string();
        assert!(text.contains(".json"), "{field} {value}: {text:?} names no file");
    }
    // A conditioned model: twice the input channels, the usual output.
    let mut files = published();
    files[FLUX]["in_channels"] = json!(128);
    files[FLUX]["out_channels"] = json!(64);
    assert!(matches!(open(&files), Err(Error::Unsupported(what)) if what.contains("in_channels")));
    // transformers' default.
    let mut files = published();
    for field in ["feed_forward_proj", "dense_act_fn", "is_gated_act"] {
        files[T5].as_object_mut().unwrap().remove(field);
    }
    assert!(matches!(open(&files), Err(Error::Unsupported(what)) if what.contains("ungated relu")));
    let flex = with(INDEX, "_class_name", json!(["pipeline", "Flex2Pipeline"])).unwrap_err();
    assert!(flex.to_string().contains("pipeline.Flex2Pipeline"), "{flex}");
    // What bitsandbytes writes into the config of an NF4 model, and of one that it left alone.
    for (bits, kind) in [(true, "nf4"), (false, "fp4")] {
        let quantization = json!({
            "_load_in_4bit": bits, "_load_in_8bit": false, "bnb_4bit_compute_dtype": "bfloat16",
            "bnb_4bit_quant_type": kind, "bnb_4bit_use_double_quant": false, "load_in_4bit": bits,
            "load_in_8bit": false, "quant_method": "bitsandbytes"
        });
        assert_eq!(with(FLUX, "quantization_config", quantization).unwrap(), PipelineConfig::schnell());
    }
}

#[test]
fn missing_and_malformed_files_are_named() {
    let dir = tempfile::tempdir().unwrap();
    for (i, name) in FILES.iter().enumerate() {
        let error = PipelineConfig::open(dir.path()).unwrap_err();
        match i {
            0 => assert!(
                error.to_string().contains("an empty folder; a model is a folder with model_index.json"),
                "{error}"
            ),
            _ => assert!(matches!(&error, Error::Io { path, .. } if path.ends_with(name)), "{error:?}"),
        }
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        for text in ["", "{", "[]", "null", "{\"a\": 1} x"] {
            fs::write(&path, text).unwrap();
            let error = PipelineConfig::open(dir.path()).unwrap_err();
            assert!(
                matches!(&error, Error::Weights { path, .. } if path.ends_with(name)),
                "{text:?}: {error:?}"
            );
        }
        fs::write(&path, published()[i].to_string()).unwrap();
    }
    assert!(PipelineConfig::open(dir.path()).is_ok());
}

/// FLUX's published kin, by what their files say otherwise than FLUX.1-schnell's: planned with their own defaults, or refused by name.
#[test]
fn published_kin_are_planned_or_refused() {
    let guided = json!({"guidance_embeds": true});
    let shifted = json!({"shift": 3.0, "use_dynamic_shifting": true});
    let few = json!({
        "guidance_embeds": true, "num_layers": 8, "out_channels": null, "axes_dims_rope": [16, 56, 56]
    });
    let class = |name: &str| json!({ "_class_name": name });
    let chroma = json!({
        "_class_name": "ChromaPipeline", "transformer": ["diffusers", "ChromaTransformer2DModel"]
    });
    type Patches<'a> = &'a [(usize, &'a Value)];
    let patched = |patches: Patches<'_>| {
        let mut files = published();
        for (file, patch) in patches {
            for (field, value) in patch.as_object().unwrap() {
                files[*file][field] = value.clone();
            }
        }
        open(&files)
    };
    for (name, patches, (layers, steps, t5_length)) in [
        ("FLUX.1-dev, Krea-dev", &[(FLUX, &guided), (SCHEDULER, &shifted)] as Patches<'_>, (19, 28, 512)),
        ("lite-8B, Flex.1-alpha", &[(FLUX, &few), (SCHEDULER, &shifted)], (8, 28, 512)),
        ("OpenFLUX.1, shuttle-3", &[(SCHEDULER, &shifted)], (19, 4, 256)),
    ] {
        let config = patched(patches).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(
            (config.flux.layers, config.steps, config.t5_length),
            (layers, steps, t5_length),
            "{name}"
        );
        assert!(config.scheduler.dynamic_shifting, "{name}");
        let shape = Shape { t5_length, ..Shape::default() };
        Plan::new(&config, shape.steps(steps), Quantize::Nf4)
            .unwrap_or_else(|error| panic!("{name}: {error}"));
    }
    let inputs =
        |channels: u64| json!({"guidance_embeds": true, "in_channels": channels, "out_channels": 64});
    for (name, patches, word) in [
        (
            "Fill",
            &[(INDEX, &class("FluxFillPipeline")), (FLUX, &inputs(384))] as Patches<'_>,
            "FluxFillPipeline",
        ),
        (
            "Canny, Depth",
            &[(INDEX, &class("FluxControlPipeline")), (FLUX, &inputs(128))],
            "FluxControlPipeline",
        ),
        ("Kontext", &[(INDEX, &class("FluxKontextPipeline")), (FLUX, &guided)], "FluxKontextPipeline"),
        ("Chroma", &[(INDEX, &chroma), (FLUX, &class("ChromaTransformer2DModel"))], "Chroma"),
    ] {
        let error = patched(patches).unwrap_err();
        assert!(matches!(&error, Error::Unsupported(said) if said.contains(word)), "{name}: {error:?}");
    }
}
