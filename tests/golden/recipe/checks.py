"""Asserts that the random networks are demanding: each part moves the result far enough to be missed."""

import contextlib

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import FluxPipeline

from .reference import Case, hooks, run


def report(pipe: FluxPipeline, case: Case) -> dict[str, float]:
    """Measures one run: gated contributions, attention peaks (max weight over uniform), modulation sizes."""
    found: dict[str, list[float]] = {}

    def note(name, value):
        found.setdefault(name, []).append(float(value))

    def ratio(part, whole):
        return part.norm() / whole.norm()

    def watch_double(name, block):
        state = {}

        def on_norm(stream):
            def hook(module, args, out):
                state[stream] = (args[0], out[1].unsqueeze(1), out[4].unsqueeze(1))
                note(f"{name}.{stream}.mlp shift", out[2].std())
                note(f"{name}.{stream}.mlp scale", out[3].std())
            return hook

        def on_attn(module, args, out):
            for stream, part in zip(("image", "text"), out):
                residual, gate, _ = state[stream]
                note(f"gated {name}.{stream}.attn", ratio(gate * part, residual))

        def on_ff(stream):
            def hook(module, args, out):
                residual, _, gate = state[stream]
                note(f"gated {name}.{stream}.mlp", ratio(gate * out, residual))
            return hook

        return [
            block.norm1.register_forward_hook(on_norm("image")),
            block.norm1_context.register_forward_hook(on_norm("text")),
            block.attn.register_forward_hook(on_attn),
            block.ff.register_forward_hook(on_ff("image")),
            block.ff_context.register_forward_hook(on_ff("text")),
        ]

    def watch_single(name, block):
        state = {}

        def on_norm(module, args, out):
            state["residual"], state["gate"] = args[0], out[1].unsqueeze(1)

        def on_out(module, args, out):
            note(f"gated {name}", ratio(state["gate"] * out, state["residual"]))

        return [block.norm.register_forward_hook(on_norm), block.proj_out.register_forward_hook(on_out)]

    def on_vae_attention(module, args, out):
        note("gated vae.mid_attention", ratio(out - args[0], args[0]))

    handles = [pipe.vae.decoder.mid_block.attentions[0].register_forward_hook(on_vae_attention)]
    for i, block in enumerate(pipe.transformer.transformer_blocks):
        handles += watch_double(f"double {i}", block)
    for i, block in enumerate(pipe.transformer.single_transformer_blocks):
        handles += watch_single(f"single {i}", block)

    attend = F.scaled_dot_product_attention

    def spy(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, **kwargs):
        out = attend(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, **kwargs)
        if attn_mask is None and not is_causal:
            logits = query @ key.transpose(-1, -2) * (scale or query.shape[-1] ** -0.5)
            note(f"peak attention head_dim {query.shape[-1]}", logits.softmax(-1).amax(-1).mean() * key.shape[-2])
        return out

    with hooks(*handles), patched(F, "scaled_dot_product_attention", spy):
        stages, image = run(pipe, case)

    with torch.no_grad():
        pipe.text_encoder_2.set_attn_implementation("eager")
        weights = pipe.text_encoder_2(stages["tokens_t5"].long(), output_attentions=True).attentions
        note("peak attention t5", min(w.amax(-1).mean() * w.shape[-1] for w in weights))
        pipe.text_encoder_2.set_attn_implementation("sdpa")
        pipe.text_encoder.set_attn_implementation("eager")
        end = int((stages["tokens_clip"][0] == stages["tokens_clip"].max()).int().argmax())
        weights = pipe.text_encoder(stages["tokens_clip"].long(), output_attentions=True).attentions
        if end > 3:  # one or two tokens have no room for a peak
            note("peak attention clip", min(w[0, :, end].amax(-1).mean() * (end + 1) for w in weights))
        pipe.text_encoder.set_attn_implementation("sdpa")

    note("std image", np.asarray(image, dtype=np.float64).std())
    for name in ("t5_embeds", "clip_pooled", "noise_pred_0", f"latents_{case.steps - 1}"):
        note(f"rms {name}", stages[name].square().mean().sqrt())
    return {name: min(values) for name, values in found.items()}


def demand(found: dict[str, float]) -> None:
    for name, value in found.items():
        low, high = {"gated": (0.1, 3), "peak": (2, 1e3), "std": (20, 100), "rms": (0.3, 5)}.get(
            name.split()[0], (0.15, 3)
        )
        assert low <= value <= high, f"{name}: {value:.3f} outside [{low}, {high}]"


@contextlib.contextmanager
def patched(owner, name, value):
    """Sets an attribute for a while. Restores what `owner` itself held (a staticmethod stays one)."""
    held = vars(owner).get(name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if held is None:
            delattr(owner, name)
        else:
            setattr(owner, name, held)
