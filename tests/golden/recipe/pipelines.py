"""The two fixture pipelines: their configurations, their weight scales, and how they are saved.

`a`  f32, one file per component, laid out as the published FLUX.1-schnell repository: CLIP as vocab.json +
     merges.txt with `text_model.` tensor names and the legacy eos id 2, T5 as the older tokenizer.json.
`b`  bf16, transformer and T5 sharded, every width and depth different, laid out as today's
     `save_pretrained` does it, except that T5 comes as spiece.model only.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from . import text
from .weights import DTYPES, Rules, fill, generate, manifest, rename_saved

# Scales. What they must achieve is asserted in checks.py: every block matters, attention is far from uniform.
TRANSFORMER = Rules(
    (r"norm_(added_)?[qk]\.weight$", 0.4, 1.3),
    (r"^x_embedder\.weight$", 1.0, 0.0),
    (r"^context_embedder\.weight$", 1.0, 0.0),
    (r"linear_1\.weight$", 1.5, 0.0),
    (r"linear_2\.weight$", 1.5, 0.0),
    (r"norm(1|1_context|_out)?\.linear\.weight$", 0.5, 0.0),
    (r"norm(1|1_context|_out)?\.linear\.bias$", 0.5, 0.0),
    (r"to_[qkv]\.weight$|add_[qkv]_proj\.weight$", 0.7, 0.0),
    (r"to_out\.0\.weight$|to_add_out\.weight$", 1.2, 0.0),
    (r"ff.*net\.2\.weight$", 1.5, 0.0),
    (r"single_transformer_blocks\.\d+\.proj_out\.weight$", 1.5, 0.0),
    (r"^proj_out\.weight$", 0.8, 0.0),
    (r"\.weight$", 1.0, 0.0),
    (r"\.bias$", 0.2, 0.0),
)
T5 = Rules(
    (r"layer_norm\.weight$", 0.3, 1.0),
    (r"relative_attention_bias\.weight$", 2.0, 0.0),
    (r"^shared\.weight$", 1.7, 0.0),
    (r"SelfAttention\.[qk]\.weight$", 0.45, 0.0),
    (r"SelfAttention\.o\.weight$", 1.3, 0.0),
    (r"DenseReluDense\.wo\.weight$", 1.3, 0.0),
    (r"\.weight$", 1.0, 0.0),
    tables=(r"^shared\.weight$", r"relative_attention_bias"),
)
CLIP = Rules(
    (r"layer_?norm\d?\.weight$", 0.3, 1.0),
    (r"layer_?norm\d?\.bias$", 0.2, 0.0),
    (r"token_embedding\.weight$", 1.0, 0.0),
    (r"position_embedding\.weight$", 0.5, 0.0),
    (r"self_attn\.[qk]_proj\.weight$", 1.4, 0.0),
    (r"\.weight$", 1.2, 0.0),
    (r"\.bias$", 0.2, 0.0),
    tables=(r"embedding\.weight$",),
)
# conv_in has a mean: it turns the constant shift_factor into a signal that group norms do not cancel.
VAE = Rules(
    (r"(norm\d?|group_norm|norm_out)\.weight$", 0.3, 1.0),
    (r"(norm\d?|group_norm|norm_out)\.bias$", 0.2, 0.0),
    (r"^decoder\.conv_in\.weight$", 0.5, 0.05),
    (r"to_[qk]\.weight$", 1.3, 0.0),
    (r"to_(v|out\.0)\.weight$", 1.3, 0.0),
    (r"conv_out\.weight$", 0.45, 0.0),
    (r"\.weight$", 1.0, 0.0),
    (r"\.bias$", 0.1, 0.0),
)


@dataclass(frozen=True)
class Spec:
    """One pipeline: configurations, storage, tokenizer layout."""

    name: str
    dtype: torch.dtype
    transformer: dict
    t5: dict
    clip: dict
    vae: dict
    corpus_seed: int
    clip_merges: int
    t5_pieces: int
    t5_rows: int
    published_layout: bool
    # component -> shard size; absent means one file.
    shards: dict


A = Spec(
    name="a",
    dtype=torch.float32,
    transformer=dict(num_attention_heads=2, num_layers=2, num_single_layers=2),
    t5=dict(d_model=64, d_kv=32, num_heads=4, d_ff=128, num_layers=2),
    clip=dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2, eos_token_id=2),
    vae=dict(block_out_channels=(16, 32, 32, 32), norm_num_groups=8, layers_per_block=1),
    corpus_seed=1,
    clip_merges=486,
    t5_pieces=700,
    t5_rows=832,  # more rows than ids, as the real table (32128 for 32100)
    published_layout=True,
    shards={},
)
B = Spec(
    name="b",
    dtype=torch.bfloat16,
    transformer=dict(num_attention_heads=3, num_layers=1, num_single_layers=2),
    t5=dict(d_model=128, d_kv=64, num_heads=3, d_ff=192, num_layers=3),
    clip=dict(hidden_size=128, intermediate_size=192, num_hidden_layers=3, num_attention_heads=4),
    vae=dict(block_out_channels=(32, 32, 64, 64), norm_num_groups=16, layers_per_block=2),
    corpus_seed=2,
    clip_merges=400,
    t5_pieces=860,
    t5_rows=960,
    published_layout=False,
    shards={"transformer": "8MB", "text_encoder_2": "400KB"},
)

SPECS = {spec.name: spec for spec in (A, B)}


def build(spec: Spec, folder: Path) -> list[dict]:
    """Writes the pipeline with all its weights to `folder`; returns the manifest entries."""
    lines = text.corpus(spec.corpus_seed)
    tokenizer = text.clip_tokenizer(lines, spec.clip_merges)
    spiece = text.train_t5(lines, spec.t5_pieces)
    tokenizer_2 = text.t5_tokenizer(spiece)

    clip_ids = dict(bos_token_id=tokenizer.bos_token_id, pad_token_id=1)
    clip_ids["eos_token_id"] = spec.clip.get("eos_token_id", tokenizer.eos_token_id)
    if spec.published_layout:
        clip_ids["bos_token_id"] = 0
    pipe = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(
            num_train_timesteps=1000,
            shift=1.0,
            use_dynamic_shifting=False,
            base_shift=0.5,
            max_shift=1.15,
            base_image_seq_len=256,
            max_image_seq_len=4096,
        ),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer_2,
        text_encoder=CLIPTextModel(
            CLIPTextConfig(
                **{k: v for k, v in spec.clip.items() if k != "eos_token_id"},
                **clip_ids,
                vocab_size=len(tokenizer),
                max_position_embeddings=77,
                hidden_act="quick_gelu",
                projection_dim=spec.clip["hidden_size"],
            )
        ),
        text_encoder_2=T5EncoderModel(
            T5Config(
                **spec.t5,
                vocab_size=spec.t5_rows,
                feed_forward_proj="gated-gelu",
                relative_attention_num_buckets=32,
                relative_attention_max_distance=128,
                tie_word_embeddings=False,
            )
        ),
        transformer=FluxTransformer2DModel(
            patch_size=1,
            in_channels=64,
            attention_head_dim=128,
            axes_dims_rope=(16, 56, 56),
            guidance_embeds=False,
            joint_attention_dim=spec.t5["d_model"],
            pooled_projection_dim=spec.clip["hidden_size"],
            **spec.transformer,
        ),
        vae=AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            latent_channels=16,
            act_fn="silu",
            sample_size=1024,
            scaling_factor=0.3611,
            shift_factor=0.1159,
            use_quant_conv=False,
            use_post_quant_conv=False,
            mid_block_add_attention=True,
            force_upcast=True,
            **spec.vae,
        ),
    ).to(spec.dtype)

    def published_clip_name(name):
        return f"text_model.{name}" if spec.published_layout else name

    recipes = {
        "transformer": fill(pipe.transformer, f"{spec.name}/transformer", TRANSFORMER),
        "text_encoder": fill(pipe.text_encoder, f"{spec.name}/text_encoder", CLIP, published_clip_name),
        "text_encoder_2": fill(pipe.text_encoder_2, f"{spec.name}/text_encoder_2", T5),
        "vae": fill(pipe.vae, f"{spec.name}/vae", VAE),
    }

    shutil.rmtree(folder, ignore_errors=True)
    pipe.save_pretrained(folder)
    for component, size in spec.shards.items():
        shutil.rmtree(folder / component)
        getattr(pipe, component).save_pretrained(folder / component, max_shard_size=size)
    if spec.published_layout:
        rename_saved(folder / "text_encoder" / "model.safetensors", published_clip_name)
        text.use_published_clip_layout(folder / "tokenizer")
        text.use_published_t5_layout(folder / "tokenizer_2", spiece)
    else:
        text.use_sentencepiece_layout(folder / "tokenizer_2", spiece)
    return manifest(spec.name, folder, recipes)


def load(folder: Path, dtype: torch.dtype) -> FluxPipeline:
    pipe = FluxPipeline.from_pretrained(folder, torch_dtype=dtype)
    pipe.set_progress_bar_config(disable=True)
    for component in (pipe.transformer, pipe.text_encoder, pipe.text_encoder_2, pipe.vae):
        # Not the module's `.dtype`, which looks at one parameter only.
        assert {p.dtype for p in component.parameters()} == {dtype}, type(component)
    return pipe


def check_loaded(folder: Path, entries: list[dict]) -> None:
    """The reference must really compute with the generated values, whatever names the files use."""
    pipe = load(folder, torch.float32)
    for entry in entries:
        component = entry["file"].split("/")[0]
        dtype = {name: dtype for dtype, name in DTYPES.items()}[entry["dtype"]]
        key = f"{folder.name}/{component}/{entry['name']}"
        expected = generate(key, entry["shape"], dtype, entry["scale"], entry["mean"]).float()
        parameter = getattr(pipe, component).get_parameter(entry["name"].removeprefix("text_model."))
        assert torch.equal(parameter, expected), entry["name"]
