"""Runs FluxPipeline on a case and records what passes between its stages.

Everything is recorded with hooks on the pipeline's own components during one ordinary `pipe(...)` call, so
the goldens are the reference's values and not those of a second implementation of its loop.
"""

import contextlib
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from diffusers import FluxPipeline
from PIL import Image


@dataclass(frozen=True)
class Case:
    name: str
    prompt: str
    width: int
    height: int
    steps: int
    seed: int
    t5_length: int
    prompt_2: str | None = None
    # Both or neither: true CFG, a second pass whose stages are called "neg_...".
    negative_prompt: str | None = None
    true_cfg_scale: float | None = None
    # "plain": weights as stored. "nf4": Linear weights of transformer and T5 after an NF4 round trip.
    weights: str = "plain"
    # "exact": 1000 * sigma in f32. "bf16": rounded to bf16 first, as a bf16 reference pipeline does.
    timesteps: str = "exact"
    # Of models that embed one.
    guidance_scale: float | None = None

    def to_json(self) -> dict:
        return {k: v for k, v in asdict(self).items() if v is not None}


def nf4(case: Case) -> Case:
    return replace(case, name=f"{case.name}-nf4", weights="nf4")


@contextlib.contextmanager
def hooks(*handles):
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def run(pipe: FluxPipeline, case: Case) -> tuple[dict[str, torch.Tensor], Image.Image]:
    """One call of the pipeline; returns its stages in order, by --dump name, and the image."""
    stages: dict[str, torch.Tensor] = {}

    def put(name, tensor):
        if case.negative_prompt is not None and name in stages:
            name = f"neg_{name}"  # the pipeline runs the prompt first everywhere
        assert name not in stages, name
        stages[name] = tensor.detach().clone()

    def before_clip(module, args, kwargs):
        put("tokens_clip", args[0].to(torch.int32))

    def before_t5(module, args, kwargs):
        put("tokens_t5", args[0].to(torch.int32))

    def before_transformer(module, args, kwargs):
        if "noise" not in stages:
            put("noise", kwargs["hidden_states"])
            put("sigmas", pipe.scheduler.sigmas)

    def after_transformer(module, args, kwargs, output):
        put(f"noise_pred_{pipe.scheduler.step_index or 0}", output[0])

    def before_time_proj(module, args):
        # The sinusoid sees the scheduler's f32 timestep or its bf16 rounding; the dtype of the rest of the
        # pipeline has no say. (In f32 "exact" is what diffusers does by itself.) The guidance scale, which
        # takes the same way, is over 1000, and exact.
        if float(args[0]) > 1001:
            return (torch.tensor([1000 * case.guidance_scale]),)
        timestep = pipe._current_timestep.to(torch.float32).reshape(args[0].shape)
        if case.timesteps == "bf16":
            timestep = timestep.to(torch.bfloat16).to(torch.float32)
        elif args[0].dtype == torch.float32:
            assert torch.equal(args[0], timestep)
        return (timestep,)

    def after_step(pipe, index, timestep, state):
        put(f"latents_{index}", state["latents"])
        return state

    with torch.no_grad(), hooks(
        pipe.text_encoder.register_forward_pre_hook(before_clip, with_kwargs=True),
        pipe.text_encoder.register_forward_hook(lambda m, a, out: put("clip_pooled", out.pooler_output)),
        pipe.text_encoder_2.register_forward_pre_hook(before_t5, with_kwargs=True),
        pipe.text_encoder_2.register_forward_hook(lambda m, a, out: put("t5_embeds", out[0])),
        pipe.transformer.register_forward_pre_hook(before_transformer, with_kwargs=True),
        pipe.transformer.register_forward_hook(after_transformer, with_kwargs=True),
        pipe.transformer.time_text_embed.time_proj.register_forward_pre_hook(before_time_proj),
        pipe.vae.decoder.register_forward_hook(lambda m, a, out: put("vae_out", out)),
    ):
        image = pipe(
            prompt=case.prompt,
            prompt_2=case.prompt_2,
            negative_prompt=case.negative_prompt,
            true_cfg_scale=case.true_cfg_scale or 1.0,
            width=case.width,
            height=case.height,
            num_inference_steps=case.steps,
            guidance_scale=case.guidance_scale or 0.0,
            max_sequence_length=case.t5_length,
            generator=torch.Generator("cpu").manual_seed(case.seed),
            callback_on_step_end=after_step,
        ).images[0]

    # The PNG must be the rounding of vae_out that README.md states.
    rgb = (stages["vae_out"][0].float() * 0.5 + 0.5).clamp(0, 1).permute(1, 2, 0).numpy()
    if stages["vae_out"].dtype == torch.float32:
        assert np.array_equal(np.asarray(image), np.round(rgb * 255).astype(np.uint8))
    return stages, image


def rel_l2(value: torch.Tensor, golden: torch.Tensor) -> float:
    value, golden = value.double(), golden.double()
    return float((value - golden).norm() / golden.norm())


def stagewise(pipe: FluxPipeline, case: Case, golden: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Each network of `pipe` alone, on the golden inputs of its stage."""
    dtype = pipe.transformer.dtype
    out = {}

    def before_time_proj(module, args):
        return (timestep.to(torch.bfloat16).float() if case.timesteps == "bf16" else timestep,)

    embeds, pooled = golden["t5_embeds"].to(dtype), golden["clip_pooled"].to(dtype)
    image_ids = pipe._prepare_latent_image_ids(1, case.height // 16, case.width // 16, "cpu", dtype)
    with torch.no_grad(), hooks(pipe.transformer.time_text_embed.time_proj.register_forward_pre_hook(before_time_proj)):
        for i in range(case.steps):
            timestep = golden["sigmas"][i].reshape(1) * 1000
            latents = golden[f"latents_{i - 1}" if i else "noise"]
            out[f"noise_pred_{i}"] = pipe.transformer(
                hidden_states=latents.to(dtype),
                timestep=(timestep / 1000).to(dtype),
                pooled_projections=pooled,
                encoder_hidden_states=embeds,
                txt_ids=torch.zeros(embeds.shape[1], 3, dtype=dtype),
                img_ids=image_ids,
                return_dict=False,
            )[0]
        latents = golden[f"latents_{case.steps - 1}"].to(dtype)
        latents = pipe._unpack_latents(latents, case.height, case.width, pipe.vae_scale_factor)
        latents = latents / pipe.vae.config.scaling_factor + pipe.vae.config.shift_factor
        out["vae_out"] = pipe.vae.decode(latents, return_dict=False)[0]
    return out


def psnr_db(image: Image.Image, golden: Image.Image) -> float:
    difference = np.asarray(image, dtype=np.float64) - np.asarray(golden, dtype=np.float64)
    return float(10 * np.log10(255**2 / (difference**2).mean()))


@dataclass(frozen=True)
class Bf16Errors:
    """torch's own bf16 error: of the pipeline end to end, of each network on golden inputs, of the image."""

    whole: dict[str, float]
    alone: dict[str, float]
    image_psnr_db: float


def bf16_errors(pipe16: FluxPipeline, case: Case, golden: dict, golden_image: Image.Image) -> Bf16Errors:
    stages, image = run(pipe16, case)
    skip = ("tokens_clip", "tokens_t5", "neg_tokens_clip", "neg_tokens_t5", "sigmas")
    return Bf16Errors(
        whole={name: rel_l2(stages[name], golden[name]) for name in golden if name not in skip},
        alone={name: rel_l2(value, golden[name]) for name, value in stagewise(pipe16, case, golden).items()},
        image_psnr_db=psnr_db(image, golden_image),
    )
