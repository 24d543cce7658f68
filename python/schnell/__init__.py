"""FLUX.1-schnell text-to-image on CUDA kernels of its own.

    import schnell

    model = schnell.load_flux_schnell(device="cuda:0")
    image = model.generate("a red circle on a blue background", seed=42)  # float32 [512, 512, 3] in [0, 1]

`Pipeline` and `Request` are the library's own terms, which say more: budgets, deadlines, LoRAs, progress, receipts.
"""

from __future__ import annotations

import warnings as _warnings
from collections.abc import Callable
from os import PathLike
from typing import Any

import numpy as _numpy

from ._schnell import (
    CapacityError,
    DeadlineError,
    DeviceError,
    Error,
    Image,
    InputError,
    InternalError,
    MismatchError,
    NetworkError,
    NotFiniteError,
    Pipeline,
    PoisonedError,
    Request,
    Stopped,
    UnsupportedError,
    WeightsError,
    __version__,
)

__all__ = [
    "CapacityError",
    "DeadlineError",
    "DeviceError",
    "Error",
    "FluxModel",
    "Image",
    "InputError",
    "InternalError",
    "MismatchError",
    "NetworkError",
    "NotFiniteError",
    "Pipeline",
    "PoisonedError",
    "Request",
    "Stopped",
    "UnsupportedError",
    "WeightsError",
    "__version__",
    "load_flux_schnell",
]

MODEL_ID = "black-forest-labs/FLUX.1-schnell"


def load_flux_schnell(
    device: str = "cuda:0",
    quantization: str = "nf4",
    cache_dir: str | PathLike[str] | None = None,
    budget: int | None = None,
    *,
    model: str = MODEL_ID,
    **options: Any,
) -> FluxModel:
    """A model on a device, ready to draw 512 x 512 in four steps.

    The weights are looked for in the Hugging Face cache, or in `cache_dir` if one is named, and fetched if they are not there: 34 GB.
    `device` is a GPU ("cuda:0"), "emulator" (small models only), or "auto". `budget` is how many bytes of device memory may be used, all of
    them allocated here, once. `options` are those of `Pipeline`: another `model`, `width`, `height`, `loras`, ...
    """
    options.setdefault("fetch", True)
    return FluxModel(Pipeline(model, device=device, quantize=quantization, cache_dir=cache_dir, budget=budget, **options))


class FluxModel:
    """`Pipeline` by the names and types of the earlier Python system: floats out. `last` is the `Image` of the last picture: times, receipt."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline
        for said in pipeline.warnings:
            _warnings.warn(said, stacklevel=3)

    def generate(
        self,
        prompt: str,
        negative_prompt: str | None = None,
        num_inference_steps: int = 4,
        guidance_scale: float = 0.0,
        output: Any = None,
        seed: int | None = None,
        *,
        true_cfg_scale: float = 1.0,
        progress: Callable[[str, int, int], bool | None] | None = None,
    ) -> Any:
        """Draws a picture: float32 `[height, width, 3]` in [0, 1], a new numpy array or `output`, which is returned.

        `output` is anything that lies in one piece and can be written: a numpy array, a torch tensor on the CPU or on the pipeline's GPU, any
        buffer; of uint8 or float32, `[height, width, 3]` or `[3, height, width]`. Nothing is copied on the way.

        `seed` None draws another picture each time. `guidance_scale` is an input of dev's network, 3.5 where it is 0; schnell's network
        has no such input, and its prompt conditions at any value. `negative_prompt` has an effect from a `true_cfg_scale` above 1 on, which takes
        twice the time; without, a warning says so. A prompt may be longer than 77 tokens: that is CLIP's limit, T5 reads 256 (dev's: 512), and a warning says
        what neither of them sees.
        """
        if seed is None:
            seed = int(_numpy.random.default_rng().integers(2**32))
        if output is None:
            output = _numpy.empty((self.pipeline.height, self.pipeline.width, 3), _numpy.float32)
        request = Request(
            prompt,
            negative_prompt=negative_prompt,
            true_cfg_scale=true_cfg_scale,
            steps=num_inference_steps,
            guidance=guidance_scale or None,
            seed=seed,
        )
        self.last = self.pipeline.generate(request, output, progress)
        for said in self.last.warnings:
            _warnings.warn(said, stacklevel=2)
        return output
