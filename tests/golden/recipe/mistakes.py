"""Mistakes an implementer makes, planted in the reference one at a time.

Each entry changes the f32 reference in one place and names the stage where that must first show. A test
suite whose tolerance would accept one of these tensors as the golden is too loose.
"""

import contextlib
import copy

import torch
from diffusers import FluxPipeline
from diffusers.models.transformers import transformer_flux
from transformers.models.t5.modeling_t5 import T5Attention

from .checks import patched
from .reference import Case, hooks, run


@contextlib.contextmanager
def reordered_rows(linears, order):
    """Permutes the equal row chunks of modulation Linears, as if their output were unpacked in that order."""
    saved = [(linear, linear.weight.data, linear.bias.data) for linear in linears]
    for linear, weight, bias in saved:
        linear.weight.data = torch.cat([weight.chunk(len(order))[i] for i in order])
        linear.bias.data = torch.cat([bias.chunk(len(order))[i] for i in order])
    try:
        yield
    finally:
        for linear, weight, bias in saved:
            linear.weight.data, linear.bias.data = weight, bias


@contextlib.contextmanager
def all_of(*contexts):
    with contextlib.ExitStack() as stack:
        for context in contexts:
            stack.enter_context(context)
        yield


def shift_scale_swapped(pipe):
    """AdaLN chunks read as scale, shift, gate in every block (the final norm stays right)."""
    double = [n.linear for b in pipe.transformer.transformer_blocks for n in (b.norm1, b.norm1_context)]
    single = [b.norm.linear for b in pipe.transformer.single_transformer_blocks]
    return all_of(reordered_rows(double, (1, 0, 2, 4, 3, 5)), reordered_rows(single, (1, 0, 2)))


def final_norm_not_swapped(pipe):
    """norm_out read in BFL's order (shift, scale) although diffusers stores (scale, shift)."""
    return reordered_rows([pipe.transformer.norm_out.linear], (1, 0))


def image_before_text(pipe):
    """Double blocks join the streams as image, text, and split them so, under text-first RoPE tables."""

    class Processor(transformer_flux.FluxAttnProcessor):
        def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, image_rotary_emb=None):
            if encoder_hidden_states is None:
                return super().__call__(attn, hidden_states, None, attention_mask, image_rotary_emb)
            image_tokens = hidden_states.shape[1]

            def heads(linear, x, norm=lambda x: x):
                return norm(linear(x).unflatten(-1, (-1, attn.head_dim)))

            image, context = hidden_states, encoder_hidden_states
            query = [heads(attn.to_q, image, attn.norm_q), heads(attn.add_q_proj, context, attn.norm_added_q)]
            key = [heads(attn.to_k, image, attn.norm_k), heads(attn.add_k_proj, context, attn.norm_added_k)]
            value = [heads(attn.to_v, image), heads(attn.add_v_proj, context)]
            query, key, value = (torch.cat(x, dim=1) for x in (query, key, value))
            query = transformer_flux.apply_rotary_emb(query, image_rotary_emb, sequence_dim=1)
            key = transformer_flux.apply_rotary_emb(key, image_rotary_emb, sequence_dim=1)
            out = transformer_flux.dispatch_attention_fn(query, key, value).flatten(2, 3)
            return attn.to_out[0](out[:, :image_tokens]), attn.to_add_out(out[:, image_tokens:])

    blocks = pipe.transformer.transformer_blocks
    return all_of(*(patched(b.attn, "processor", Processor()) for b in blocks))


def rope_rotate_half(pipe):
    """RoPE pairs channel p with p + 64 instead of 2p with 2p + 1."""

    def apply(x, freqs, sequence_dim=2, **_):
        cos, sin = (torch.cat([f[:, ::2], f[:, ::2]], dim=-1)[None, :, None, :] for f in freqs)
        first, second = x.chunk(2, dim=-1)
        return x * cos + torch.cat([-second, first], dim=-1) * sin

    return patched(transformer_flux, "apply_rotary_emb", apply)


def rope_axes_swapped(pipe):
    """Image tokens carry (0, column, row)."""
    original = transformer_flux.FluxPosEmbed.forward
    return patched(transformer_flux.FluxPosEmbed, "forward", lambda self, ids: original(self, ids[:, [0, 2, 1]]))


def t5_padding_masked(pipe):
    """T5 does not attend to padding."""

    def mask(module, args, kwargs):
        return args, kwargs | {"attention_mask": (args[0] != 0).long()}

    return hooks(pipe.text_encoder_2.register_forward_pre_hook(mask, with_kwargs=True))


def t5_causal_buckets(pipe):
    """Relative positions bucketed as for a decoder: every key to the right shares bucket 0."""
    original = T5Attention._relative_position_bucket

    def bucket(relative_position, bidirectional=True, **kwargs):
        return original(relative_position, bidirectional=False, **kwargs)

    return patched(T5Attention, "_relative_position_bucket", staticmethod(bucket))


def clip_last_token_pooled(pipe):
    """CLIP pools position 76 (the last end token) instead of the first end token."""

    def pool(module, args, output):
        output.pooler_output = output.last_hidden_state[:, -1]
        return output

    # Prepended, so that it acts before the recording hook.
    return hooks(pipe.text_encoder.register_forward_hook(pool, prepend=True))


def clip_not_causal(pipe):
    """CLIP attends in both directions."""
    attend = torch.nn.functional.scaled_dot_product_attention

    def bidirectional(*args, is_causal=False, **kwargs):
        return attend(*args, **kwargs)

    # No other network of the pipeline asks for causal attention.
    return patched(torch.nn.functional, "scaled_dot_product_attention", bidirectional)


def qk_norm_missing(pipe):
    """Queries and keys enter attention without RMS norm (and without its scales)."""
    blocks = [*pipe.transformer.transformer_blocks, *pipe.transformer.single_transformer_blocks]
    names = ("norm_q", "norm_k", "norm_added_q", "norm_added_k")
    norms = [getattr(b.attn, n) for b in blocks for n in names if hasattr(b.attn, n)]
    return all_of(*(patched(norm, "forward", lambda x: x) for norm in norms))


def vae_shift_ignored(pipe):
    """z = latent / scaling_factor, without + shift_factor."""
    config = copy.copy(pipe.vae.config)
    config = type(config)({**config, "shift_factor": 0.0})
    return patched(pipe.vae, "_internal_dict", config)


def vae_attention_missing(pipe):
    """The decoder's middle block skips its attention."""
    attention = pipe.vae.decoder.mid_block.attentions[0]
    return patched(attention, "forward", lambda hidden_states, **_: hidden_states)


# mistake -> the stages to record: the first that goes wrong.
MISTAKES = {
    shift_scale_swapped: ("noise_pred_0",),
    final_norm_not_swapped: ("noise_pred_0",),
    image_before_text: ("noise_pred_0",),
    rope_rotate_half: ("noise_pred_0",),
    rope_axes_swapped: ("noise_pred_0",),
    t5_padding_masked: ("t5_embeds", "noise_pred_0"),
    t5_causal_buckets: ("t5_embeds", "noise_pred_0"),
    clip_last_token_pooled: ("clip_pooled", "noise_pred_0"),
    clip_not_causal: ("clip_pooled", "noise_pred_0"),
    qk_norm_missing: ("noise_pred_0",),
    vae_shift_ignored: ("vae_out",),
    vae_attention_missing: ("vae_out",),
}


def plant(pipe: FluxPipeline, case: Case):
    """Yields (name, what it is, {stage: mutated tensor}) for each mistake."""
    for mistake, stages in MISTAKES.items():
        with mistake(pipe):
            tensors, _ = run(pipe, case)
        yield mistake.__name__, mistake.__doc__, {stage: tensors[stage] for stage in stages}
