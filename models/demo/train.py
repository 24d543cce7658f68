"""Trains the demo model, stage by stage. See README.md beside this file.

    python train.py vae  --work DIR         # each stage resumes where it was stopped
    python train.py text --work DIR
    python train.py flow --work DIR
    python train.py export --work DIR       # writes pipeline/ from the trained stages
"""

import argparse
import json
import os
import random
import shutil
import sys
import time
from pathlib import Path

import bitsandbytes
import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

import evaluate
import group_norm
import scenes
from optimizer import Optimizer

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parents[1] / "tests/golden"))
from recipe import text as tokenizers  # noqa: E402  the two real kinds of tokenizer, as the golden pipelines have them

BF16 = torch.bfloat16


def seeded(stage: str, step: int) -> random.Random:
    """The random numbers of one step: a resumed run draws what an uninterrupted one would have."""
    torch.manual_seed(hash_of(f"{stage} {step}"))
    return random.Random(f"{stage} {step}")


def hash_of(text: str) -> int:
    return random.Random(text).getrandbits(48)


def load(path: Path) -> dict:
    return torch.load(path, map_location=torch.get_default_device(), weights_only=False)


def save(path: Path, value) -> None:
    torch.save(value, path.with_suffix(".new"))
    os.replace(path.with_suffix(".new"), path)


def train(stage: str, work: Path, steps: int, optimizer: Optimizer, rate, step, report_every: int = 50) -> None:
    """Runs `step(number) -> dict of losses` up to `steps` times, from the last checkpoint on."""
    path = work / f"{stage}.pt"
    first, spent = 0, 0.0
    if path.exists():
        state = load(path)
        optimizer.load_state_dict(state["optimizer"])
        first, spent = state["step"], state["seconds"]
    started, saved, sums, log = time.time(), time.time(), {}, work / f"{stage}.log"
    for number in range(first, steps):
        losses = step(number)
        losses["gradient"] = optimizer.step(rate(number))
        for name, value in losses.items():
            sums.setdefault(name, []).append(float(value.detach() if torch.is_tensor(value) else value))
        done = number + 1
        if done % report_every == 0:
            line = " ".join(f"{name} {np.mean(values):.5g}" for name, values in sums.items())
            with log.open("a") as out:
                print(f"{stage} {done}/{steps} {spent + time.time() - started:.0f} s {line}", file=out, flush=True)
            sums = {}
        if time.time() - saved > 60 or done == steps:
            seconds = spent + time.time() - started
            save(path, {"optimizer": optimizer.state_dict(), "step": done, "seconds": seconds})
            saved = time.time()


def warm_then_linear(steps: int, warm: int, end: float = 0.0):
    return lambda n: min(1.0, (n + 1) / warm) * (end + (1 - end) * (1 - n / steps))


# VAE ----------------------------------------------------------------------------------------------------------------

VAE_STEPS, VAE_FULL_STEPS = 3000, 1000  # the last ones on whole pictures
VAE_KL = 2e-3


def new_vae() -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 16, 32, 64),
        layers_per_block=1,
        latent_channels=16,
        norm_num_groups=8,
        sample_size=scenes.SIDE,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def on_device(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array).to(torch.get_default_device())


def pictures(rng: random.Random, count: int, side: int = scenes.SIDE) -> torch.Tensor:
    """Pictures of training scenes, or crops of them, as the VAE takes them: -1 to 1, channels last."""
    out = []
    for _ in range(count):
        picture = scenes.draw(rng, scenes.draw_scene(rng, pair=rng.random() < 0.6, held_out=False))
        x, y = rng.randint(0, scenes.SIDE - side), rng.randint(0, scenes.SIDE - side)
        out.append(picture[y : y + side, x : x + side])
    return on_device(np.stack(out)).permute(0, 3, 1, 2) / 127.5 - 1


def train_vae(work: Path) -> None:
    torch.manual_seed(0)
    vae = new_vae().to(BF16).to(memory_format=torch.channels_last)
    group_norm.use_in(vae)
    # Muon for all but the layers at the network's ends.
    ends = ("encoder.conv_in", "decoder.conv_in", "encoder.conv_out", "decoder.conv_out")
    optimizer = Optimizer(
        vae, lambda n, p: p.ndim > 1 and not n.startswith(ends), muon_lr=0.03, adam_lr=2e-3, ema=0.995
    )

    def step(number: int) -> dict:
        whole = number >= VAE_STEPS - VAE_FULL_STEPS
        rng = seeded("vae", number)
        exact = pictures(rng, 12, scenes.SIDE) if whole else pictures(rng, 32, 64)
        x = exact.to(BF16).to(memory_format=torch.channels_last)
        posterior = vae.encode(x).latent_dist
        out = vae.decode(posterior.sample()).sample
        error = out.float() - exact
        ground = exact.flatten(2).median(2).values[..., None, None]
        weight = 1 + 2 * ((exact - ground).abs().amax(1, keepdim=True) > 0.1)
        loss = (weight * (error.abs() + 2 * error.square())).mean()
        mean, logvar = posterior.mean.float(), posterior.logvar.float()
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        (loss + VAE_KL * kl).backward()
        return {"loss": loss, "l1": error.abs().mean(), "kl": kl}

    train("vae", work, VAE_STEPS, optimizer, warm_then_linear(VAE_STEPS, 50, 0.01), step)


def trained_vae(work: Path) -> AutoencoderKL:
    vae = new_vae()
    optimizer = Optimizer(vae, lambda n, p: False, 0, 0, 0)
    optimizer.load_state_dict(load(work / "vae.pt")["optimizer"] | {"second": {}})
    optimizer.copy_mean_to(vae)
    return vae.eval()


# Text encoders ------------------------------------------------------------------------------------------------------
#
# Which color belongs to which shape is only in the order of the words. The encoders learn it first, by themselves: from
# every T5 token, and from CLIP's pooled one, linear heads must read the whole scene. The heads are then thrown away.

T5_LENGTH = 24  # tokens, padding included; the longest prompt of the grammar has 21
CLIP_LENGTH = 28  # while training; what comes after the end token does not reach it (causal attention)
WIDTH = 128
TEXT_STEPS, TEXT_BATCH = 700, 128


def corpus() -> list[str]:
    """What the tokenizers are made from: the prompts themselves, and enough else that any prompt can be spelt."""
    rng = random.Random("corpus")
    lines = [scenes.prompt(rng, scenes.random_scene(rng, pair=rng.random() < 0.5)) for _ in range(3000)]
    printable = "".join(chr(c) for c in range(33, 127))
    return lines + tokenizers.corpus(3)[:300] + [" ".join(printable)] * 3


def new_tokenizers():
    lines = corpus()
    clip, t5 = tokenizers.clip_tokenizer(lines, 220), tokenizers.t5_tokenizer(tokenizers.train_t5(lines, 460))
    t5.model_max_length = T5_LENGTH  # what `schnell` uses unless told otherwise
    return clip, t5


class TextEncoders(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.clip_tokenizer, self.t5_tokenizer = new_tokenizers()
        end = self.clip_tokenizer.eos_token_id
        self.clip = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(self.clip_tokenizer),
                hidden_size=WIDTH,
                intermediate_size=2 * WIDTH,
                projection_dim=WIDTH,
                num_hidden_layers=3,
                num_attention_heads=2,
                max_position_embeddings=77,
                hidden_act="quick_gelu",
                bos_token_id=self.clip_tokenizer.bos_token_id,
                eos_token_id=end,
                pad_token_id=end,
            )
        )
        self.t5 = T5EncoderModel(
            T5Config(
                vocab_size=len(self.t5_tokenizer),
                d_model=WIDTH,
                d_kv=32,
                num_heads=4,
                d_ff=2 * WIDTH,
                num_layers=3,
                feed_forward_proj="gated-gelu",
                relative_attention_num_buckets=32,
                relative_attention_max_distance=128,
                tie_word_embeddings=False,
                dropout_rate=0.0,
            )
        )
        # Word order reaches T5 through this table alone, [buckets, heads], which all layers share. The heads begin with
        # an eye on the word before (bucket 1), the word after (bucket 17), all that came before (below 17), and everything.
        bias = self.t5.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight
        with torch.no_grad():
            bias.normal_(std=0.5)
            bias[1, 0] += 4
            bias[17, 1] += 4
            bias[17:, 2] -= 4

    def forward(self, prompts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Every token of T5 (N, 24, 128) and CLIP's pooled one (N, 128)."""
        def ids(tokenizer, length: int) -> torch.Tensor:
            return torch.tensor(tokenizer(prompts, padding="max_length", max_length=length, truncation=True).input_ids)

        pooled = self.clip(ids(self.clip_tokenizer, CLIP_LENGTH)).pooler_output
        return self.t5(ids(self.t5_tokenizer, T5_LENGTH)).last_hidden_state, pooled


SLOTS = {"background": len(scenes.BACKGROUNDS), "place": len(scenes.POSITIONS) + len(scenes.RELATIONS)}
for _which in ("first", "second"):
    SLOTS |= {f"{_which} size": 3, f"{_which} color": len(scenes.COLORS), f"{_which} shape": len(scenes.SHAPES)}


def slots(scene: scenes.Scene) -> list[int]:
    """The scene as one class per slot; -100 (ignored) for what it does not have."""
    places = [*scenes.POSITIONS, *scenes.RELATIONS]
    out = [list(scenes.BACKGROUNDS).index(scene.background), places.index(scene.place)]
    for o in scene.objects:
        out += [list(scenes.SIZES).index(o.size), list(scenes.COLORS).index(o.color), scenes.SHAPES.index(o.shape)]
    return out + [-100] * (len(SLOTS) - len(out))


class Heads(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.t5, self.clip = (torch.nn.Linear(WIDTH, sum(SLOTS.values())) for _ in range(2))

    def losses(self, t5, pooled, wanted: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Losses from T5 and from CLIP; per prompt, whether both read every slot right (T5: averaged over tokens)."""
        of_t5 = self.t5(t5).float().split(list(SLOTS.values()), -1)
        of_clip = self.clip(pooled).float().split(list(SLOTS.values()), -1)
        loss_t5 = loss_clip = 0.0
        right = torch.ones(len(wanted), 2, dtype=torch.bool)
        for n, (a, b) in enumerate(zip(of_t5, of_clip)):
            target = wanted[:, n]
            loss_t5 += F.cross_entropy(a.flatten(0, 1), target.repeat_interleave(T5_LENGTH))
            loss_clip += F.cross_entropy(b, target)
            known = target >= 0
            right[:, 0] &= (a.mean(1).argmax(1) == target) | ~known
            right[:, 1] &= (b.argmax(1) == target) | ~known
        return loss_t5, loss_clip, right


def worded(rng: random.Random, count: int, held_out: bool = False):
    drawn = [scenes.draw_scene(rng, rng.random() < 0.6, held_out) for _ in range(count)]
    return drawn, [scenes.prompt(rng, scene) for scene in drawn]


def hidden_matrix(name: str, p: torch.nn.Parameter) -> bool:
    """Whether Muon moves it: a matrix between hidden layers, no table and no end of the network."""
    if name.startswith("single_transformer_blocks.") and name.endswith(".proj_out.weight"):
        return True  # a block's, not the network's, which has the same name
    ends = ("embedding", "shared", "relative_attention_bias", "heads", "embed", "norm", "proj_out.", "time_")
    return p.ndim == 2 and not any(end in name for end in ends)


def train_text(work: Path) -> None:
    torch.manual_seed(1)
    network = torch.nn.Module()
    network.encoders, network.heads = TextEncoders(), Heads()
    network.to(BF16)
    optimizer = Optimizer(network, hidden_matrix, muon_lr=0.02, adam_lr=2e-3, ema=0.995)
    # T5 does not divide q k by the root of the head's width: its q must move that much less.
    optimizer.scale |= {n: 32**-0.5 for n in optimizer.matrix if n.endswith("SelfAttention.q.weight")}

    def step(number: int) -> dict:
        rng = seeded("text", number)
        drawn, prompts = worded(rng, TEXT_BATCH)
        wanted = torch.tensor([slots(scene) for scene in drawn])
        loss_t5, loss_clip, right = network.heads.losses(*network.encoders(prompts), wanted)
        (loss_t5 + loss_clip).backward()
        shares = right.float().mean(0)
        return {"t5": loss_t5, "clip": loss_clip, "t5 right": shares[0], "clip right": shares[1]}

    train("text", work, TEXT_STEPS, optimizer, warm_then_linear(TEXT_STEPS, 100, 0.01), step)
    optimizer.copy_mean_to(network)
    drawn, prompts = worded(random.Random("text test"), 2000, held_out=True)
    with torch.no_grad():
        *_, right = network.heads.losses(*network.encoders(prompts), torch.tensor([slots(s) for s in drawn]))
    print("held-out prompts read right by T5 and by CLIP:", right.float().mean(0).tolist())


def trained_text(work: Path) -> TextEncoders:
    network = torch.nn.Module()
    network.encoders, network.heads = TextEncoders(), Heads()
    optimizer = Optimizer(network, lambda n, p: False, 0, 0, 0)
    optimizer.load_state_dict(load(work / "text.pt")["optimizer"] | {"second": {}})
    optimizer.copy_mean_to(network)
    return network.encoders.eval()


# Transformer --------------------------------------------------------------------------------------------------------

FLOW_STEPS, FLOW_BATCH, BANK = 4400, 96, 32_000
SIGMAS = [1.0, 0.75, 0.5, 0.25]  # where sampling in four steps asks for the velocity
SIGMA_WEIGHTS = [0.28, 0.22, 0.15, 0.12]  # the rest of the training times is uniform in 0 to 1
TOKENS = scenes.SIDE // 16  # per side


class Attention:
    """diffusers' attention with plain matrix products: for so few tokens faster, on a CPU, than its flash kernel."""

    _attention_backend = _parallel_config = None

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, image_rotary_emb=None):
        def heads(linears, norm_q, norm_k, x):
            q, k, v = (linear(x).unflatten(-1, (attn.heads, -1)).transpose(1, 2) for linear in linears)
            return norm_q(q), norm_k(k), v

        q, k, v = heads((attn.to_q, attn.to_k, attn.to_v), attn.norm_q, attn.norm_k, hidden_states)
        if encoder_hidden_states is not None:
            text = heads(
                (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj),
                attn.norm_added_q, attn.norm_added_k, encoder_hidden_states,
            )  # fmt: skip
            q, k, v = (torch.cat(parts, 2) for parts in zip(text, (q, k, v)))
        cos, sin = (t.to(q.dtype) for t in image_rotary_emb)

        def turn(x):
            pairs = x.unflatten(-1, (-1, 2))
            return x * cos + torch.stack([-pairs[..., 1], pairs[..., 0]], -1).flatten(-2) * sin

        q, k = turn(q), turn(k)
        out = ((q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)).softmax(-1) @ v
        out = out.transpose(1, 2).flatten(2)
        if encoder_hidden_states is None:
            return out
        text, image = out.split_with_sizes([encoder_hidden_states.shape[1], hidden_states.shape[1]], 1)
        return attn.to_out[0](image), attn.to_add_out(text)


def new_transformer() -> FluxTransformer2DModel:
    network = FluxTransformer2DModel(
        patch_size=1,
        in_channels=64,
        num_layers=1,
        num_single_layers=4,
        attention_head_dim=128,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        guidance_embeds=False,
        axes_dims_rope=(16, 56, 56),
    )
    # Every block starts as the identity, and the whole as zero.
    for name, p in network.named_parameters():
        if (".norm" in name and ".linear." in name) or name.startswith(("norm_out.linear", "proj_out")):
            torch.nn.init.zeros_(p)
    return network


class Flow:
    """The transformer with its text encoders. Latents are packed, (N, 64 tokens, 64 channels), of mean 0 and deviation 1."""

    def __init__(self, network: FluxTransformer2DModel, encoders: TextEncoders):
        self.network, self.encoders = network, encoders
        self.dtype = network.dtype
        text = torch.zeros(T5_LENGTH, 3)
        image = torch.cartesian_prod(torch.zeros(1), *[torch.arange(TOKENS).float()] * 2)
        self.rope = network.pos_embed(torch.cat([text, image]))

    @torch.no_grad()
    def condition(self, prompts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        return tuple(t.to(self.dtype) for t in self.encoders(prompts))

    def velocity(self, x: torch.Tensor, sigma: torch.Tensor, condition) -> torch.Tensor:
        """diffusers' forward, with the time embedding in f32 (its bf16 makes 752 of 750)."""
        network, (text, pooled) = self.network, condition
        time = network.time_text_embed.time_proj(1000 * sigma).to(self.dtype)
        temb = network.time_text_embed.timestep_embedder(time) + network.time_text_embed.text_embedder(pooled)
        image, text = network.x_embedder(x.to(self.dtype)), network.context_embedder(text)
        for block in network.transformer_blocks:
            text, image = block(image, text, temb, image_rotary_emb=self.rope)
        for block in network.single_transformer_blocks:
            text, image = block(image, text, temb, image_rotary_emb=self.rope)
        return network.proj_out(network.norm_out(image, temb)).float()

    @torch.no_grad()
    def sample(self, prompts: list[str], seed: int, steps: int = 4) -> torch.Tensor:
        noise = torch.Generator("cpu").manual_seed(seed)
        x = torch.randn(len(prompts), TOKENS**2, 64, generator=noise, device="cpu").to(torch.get_default_device())
        condition = self.condition(prompts)
        for n in range(steps):
            sigma = 1 - n / steps
            x = x - self.velocity(x, torch.full((len(prompts),), sigma), condition) / steps
        return x


def pack(latents: torch.Tensor) -> torch.Tensor:
    n, c, h, w = latents.shape
    return latents.view(n, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(n, h * w // 4, 4 * c)


def unpack(tokens: torch.Tensor) -> torch.Tensor:
    return tokens.view(-1, TOKENS, TOKENS, 16, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(-1, 16, 2 * TOKENS, 2 * TOKENS)


def bank(work: Path) -> dict:
    """Training scenes with their pictures' latents, made once."""
    path = work / "bank.pt"
    if not path.exists():
        rng = random.Random("bank")
        vae = trained_vae(work).to(BF16).to(memory_format=torch.channels_last)
        drawn, latents, objects = [], [], []
        for first in range(0, BANK, 64):
            batch = [scenes.draw_scene(rng, rng.random() < 0.6, held_out=False) for _ in range(64)]
            exact = on_device(np.stack([scenes.draw(rng, scene) for scene in batch])).permute(0, 3, 1, 2)
            x = (exact / 127.5 - 1).to(BF16).to(memory_format=torch.channels_last)
            with torch.no_grad():
                latents.append(pack(vae.encode(x).latent_dist.mean.contiguous()).to(BF16))
            differs = (exact - exact[:, :, :1, :1]).abs().amax(1) > 13
            objects.append(differs.view(-1, TOKENS, 16, TOKENS, 16).any(4).any(2).flatten(1))
            drawn += batch
        latents = torch.cat(latents)
        sample = latents[:4096].float()
        save(path, {
            "scenes": drawn, "latents": latents, "objects": torch.cat(objects),
            "mean": sample.mean().item(), "deviation": sample.std().item(),
        })  # fmt: skip
    return load(path)


def render(flow: Flow, vae: AutoencoderKL, stats: dict, prompts: list[str], seed: int = 0) -> np.ndarray:
    """(N, 128, 128, 3) bytes."""
    out = []
    for first in range(0, len(prompts), FLOW_BATCH):
        part = prompts[first : first + FLOW_BATCH]
        x = flow.sample(part + [""] * (FLOW_BATCH - len(part)), seed + first)[: len(part)]  # one compiled shape
        with torch.no_grad():
            pixels = vae.decode(unpack(x) * stats["deviation"] + stats["mean"]).sample
        out.append(((pixels.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy())
    return np.concatenate(out)


def train_flow(work: Path, steps: int = FLOW_STEPS) -> None:
    stored = bank(work)
    vae = trained_vae(work)
    torch.manual_seed(2)
    network = new_transformer().to(BF16)
    for module in network.modules():
        if hasattr(module, "processor"):
            module.processor = Attention()
    flow = Flow(network, trained_text(work).to(BF16))
    for block in [*network.transformer_blocks, *network.single_transformer_blocks]:
        block.compile(dynamic=False)
    optimizer = Optimizer(network, hidden_matrix, muon_lr=0.02, adam_lr=2e-3, ema=0.998)
    watched = scenes.evaluation(seed=2026)[::3]  # held out, but not the list that the model is judged by
    # Stars, above all small ones, are learnt last: they are seen more often.
    stars = [[o.size for o in scene.objects if o.shape == "star"] for scene in stored["scenes"]]
    frequency = torch.tensor([1.0 + len(sizes) + sizes.count("small") for sizes in stars])

    def step(number: int) -> dict:
        if number % 500 == 0 and number > 0:
            optimizer.copy_mean_to(network)
            images = render(flow, vae, stored, [words for words, _ in watched])
            optimizer.copy_master_to(network)
            shares, _ = evaluate.scores([image.tobytes() for image in images], [scene for _, scene in watched])
            with (work / "scores.log").open("a") as out:
                print(number, {name: round(share, 3) for name, share in shares.items()}, file=out, flush=True)
        rng = seeded("flow", number)
        chosen = torch.multinomial(frequency, FLOW_BATCH, replacement=True)
        x = (stored["latents"][chosen].float() - stored["mean"]) / stored["deviation"]
        prompts = [scenes.prompt(rng, stored["scenes"][n]) for n in chosen.tolist()]
        kind = torch.tensor(rng.choices(range(5), [*SIGMA_WEIGHTS, 1 - sum(SIGMA_WEIGHTS)], k=FLOW_BATCH))
        sigma = torch.where(kind < 4, torch.tensor([*SIGMAS, 0.0])[kind], torch.rand(FLOW_BATCH))
        noise = torch.randn_like(x)
        noisy = x + sigma[:, None, None] * (noise - x)
        error = (flow.velocity(noisy, sigma, flow.condition(prompts)) - (noise - x)).square().mean(2)
        loss = (error * (1 + 2 * stored["objects"][chosen])).mean()
        loss.backward()
        per_sample = error.detach().mean(1)
        by_sigma = {f"at {s}": per_sample[kind == n].mean() for n, s in enumerate(SIGMAS) if (kind == n).any()}
        return {"loss": loss, **by_sigma}

    def rate(number: int) -> float:
        return min(1.0, (number + 1) / 100, max(0.01, 2 * (1 - number / steps)))

    train("flow", work, steps, optimizer, rate, step)


# Export -------------------------------------------------------------------------------------------------------------


def trained_transformer(work: Path) -> FluxTransformer2DModel:
    network = new_transformer()
    optimizer = Optimizer(network, lambda n, p: False, 0, 0, 0)
    optimizer.load_state_dict(load(work / "flow.pt")["optimizer"] | {"second": {}})
    optimizer.copy_mean_to(network)
    return network.eval()


def nf4_file(folder: Path) -> None:
    """Replaces the Linears of a saved transformer by their NF4 codes, as bitsandbytes stores them."""
    file = folder / "diffusion_pytorch_model.safetensors"
    stored = {}
    for name, tensor in load_file(file).items():
        if tensor.ndim != 2:
            stored[name] = tensor
            continue
        packed, state = bitsandbytes.functional.quantize_4bit(tensor, quant_type="nf4", compress_statistics=False)
        stored[name] = packed
        stored |= {f"{name}.{key}": value for key, value in state.as_dict(packed=True).items()}
    save_file(stored, file, metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False, "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": False, "bnb_4bit_compute_dtype": "bfloat16", "bnb_4bit_quant_storage": "uint8",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def export(work: Path) -> None:
    """The pipeline with bf16 weights to DIR/bf16, and with the transformer in NF4 to DIR/nf4, which replaces pipeline/."""
    stats = bank(work)
    text, vae = trained_text(work), trained_vae(work)
    vae.register_to_config(scaling_factor=1 / stats["deviation"], shift_factor=stats["mean"])
    pipeline = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=1.0, use_dynamic_shifting=False),
        tokenizer=text.clip_tokenizer,
        tokenizer_2=text.t5_tokenizer,
        text_encoder=text.clip,
        text_encoder_2=text.t5,
        transformer=trained_transformer(work),
        vae=vae,
    ).to(BF16)
    shutil.rmtree(work / "bf16", ignore_errors=True)
    pipeline.save_pretrained(work / "bf16")
    shutil.rmtree(work / "nf4", ignore_errors=True)
    shutil.copytree(work / "bf16", work / "nf4")
    nf4_file(work / "nf4" / "transformer")
    for file in (work / "nf4").rglob("*.safetensors"):
        file.chmod(0o644)
    out = HERE / "pipeline"
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(work / "nf4", out)
    print(sum(file.stat().st_size for file in out.rglob("*") if file.is_file()), "bytes in", out)


STAGES = {"vae": train_vae, "text": train_text, "flow": train_flow, "export": export}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--work", type=Path, required=True, help="folder of the checkpoints")
    parser.add_argument("--steps", type=int, help="of training, if not the usual number (flow only)")
    parser.add_argument("--device", default="cpu", help="where to train: cpu or cuda")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.set_default_device(arguments.device)
    arguments.work.mkdir(parents=True, exist_ok=True)
    if arguments.steps and arguments.stage != "flow":
        parser.error("--steps is for the flow stage")
    options = {"steps": arguments.steps} if arguments.steps else {}
    STAGES[arguments.stage](arguments.work, **options)


if __name__ == "__main__":
    main()
