from collections.abc import Callable, Sequence
from os import PathLike
from typing import Any, Literal

__version__: str

Progress = Callable[[str, int, int], bool | None]
"""Called with a stage ("fetching", "loading", "text_encoding", "step", "decoding", "done"), how much of it is done, and of how much. What is false
but not None stops: `Stopped` is raised within one step, and the pipeline can draw again."""

class Request:
    """What to draw: a prompt, and what differs from the pipeline's defaults.

    size: width and height in pixels. deadline: seconds from the call on. late: what becomes of a picture that would be late: "fail" at once,
    "fewer_steps", or "estimate", the picture as far as it is known when time is up. Same seed, same bytes; its lowest 32 bits count.
    """

    def __init__(
        self,
        prompt: str,
        *,
        prompt_2: str | None = None,
        negative_prompt: str | None = None,
        true_cfg_scale: float = 1.0,
        size: tuple[int, int] | None = None,
        steps: int | None = None,
        t5_length: int | None = None,
        seed: int = 0,
        guidance: float | None = None,
        deadline: float | None = None,
        late: Literal["fail", "fewer_steps", "estimate"] = "fail",
    ) -> None: ...
    @property
    def prompt(self) -> str: ...
    @property
    def seed(self) -> int: ...
    @property
    def steps(self) -> int | None: ...
    @property
    def size(self) -> tuple[int, int] | None: ...

class Image:
    """A picture and what is known of it."""

    @property
    def width(self) -> int: ...
    @property
    def height(self) -> int: ...
    @property
    def rgb(self) -> bytes:
        """u8 [height, width, 3]; InputError where the pixels went to the caller's output."""
    @property
    def warnings(self) -> list[str]: ...
    @property
    def tokens_dropped(self) -> dict[str, int]:
        """How many tokens of the prompt "clip" and "t5" did not see."""
    @property
    def timings(self) -> dict[str, float]:
        """Milliseconds of each stage, by the device's clock."""
    @property
    def total_ms(self) -> float: ...
    @property
    def device(self) -> str: ...
    @property
    def estimate(self) -> int | None:
        """Steps that were done, where the picture is an estimate."""
    @property
    def notes(self) -> dict[str, str]:
        """How it was made, the receipt included; what `save` writes into the file."""
    def save(self, path: str | PathLike[str]) -> None:
        """As .png, .jpg or .webp, with `notes`; `schnell reproduce` reads them."""

class Pipeline:
    """A model on a device, in one allocation of `device_bytes`.

    model: "demo" (bundled, small), a folder or file, or org/name of the Hugging Face cache (`cache_dir`: another one), fetched with `fetch`.
    device: "auto", "cuda:N", "emulator". quantize: "nf4", "nf4-all", "keep" (as the file has it), "none". budget, host_budget: bytes of
    device memory and of pinned memory. cache: a folder for weights as the device holds them. loras: files and strengths; lora_rank: room for others
    later. prompt_cache: encodings to remember. calibrate: a file for what pictures take here, which deadlines are held against. float_output: room to
    fetch floats (12 bytes a pixel).

    Calls may come from any thread; they draw one after the other, and other threads of Python go on meanwhile. Ctrl-C stops within a step.
    """

    def __init__(
        self,
        model: str = "demo",
        *,
        device: str = "auto",
        width: int | None = None,
        height: int | None = None,
        steps: int | None = None,
        t5_length: int | None = None,
        true_cfg: bool = False,
        quantize: Literal["nf4", "nf4-all", "keep", "none"] | None = None,
        precision: Literal["full", "fast"] = "full",
        budget: int | None = None,
        host_budget: int | None = None,
        cache: str | PathLike[str] | None = None,
        cache_dir: str | PathLike[str] | None = None,
        fetch: bool = False,
        loras: Sequence[tuple[str | PathLike[str], float]] = (),
        lora_rank: int | None = None,
        prompt_cache: int | None = None,
        calibrate: str | PathLike[str] | None = None,
        graphs: bool = True,
        float_output: bool = True,
        progress: Progress | None = None,
    ) -> None: ...
    def generate(self, request: Request, output: Any = None, progress: Progress | None = None) -> Image:
        """Draws. `output`, if given, gets the pixels: a contiguous, writable buffer of uint8 or float32, [height, width, 3] or
        [3, height, width], or an object with __cuda_array_interface__ or __dlpack__, of the host or of the pipeline's GPU, on whose other
        streams nothing uses it meanwhile; when the call returns, work on any stream sees the picture."""
    def set_loras(self, loras: Sequence[tuple[str | PathLike[str], float]]) -> int:
        """Other LoRAs, within the room that there is; how many bytes were copied."""
    def expected(self, request: Request, again: bool = False) -> float | None:
        """Seconds that it would take, where that is known; `again`: its prompt is remembered."""
    def recover(self) -> None:
        """After a `PoisonedError`: opens the device again and loads the weights anew. Nothing where nothing is wrong."""
    @property
    def is_poisoned(self) -> bool: ...
    @property
    def device(self) -> str: ...
    @property
    def width(self) -> int: ...
    @property
    def height(self) -> int: ...
    @property
    def steps(self) -> int: ...
    @property
    def device_bytes(self) -> int: ...
    @property
    def warnings(self) -> list[str]: ...

class Error(Exception):
    """What `schnell` refuses or fails at. Files that are not there are FileNotFoundError."""

class InputError(Error): ...

class WeightsError(Error):
    path: str

class CapacityError(Error):
    needed_bytes: int
    available_bytes: int

class UnsupportedError(Error): ...

class DeviceError(Error):
    operation: str

class PoisonedError(Error):
    """Until `Pipeline.recover`."""

class Stopped(Error): ...

class DeadlineError(Error):
    needed_s: float
    deadline_s: float

class NotFiniteError(Error):
    place: str

class MismatchError(Error): ...
class NetworkError(Error): ...
class InternalError(Error): ...
