"""A runner as the rest of the server sees it: its protocol, and the values it takes and returns. No torch here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from PIL import Image

from cache_dit_serving.caching.report import BlockListStats, CacheReport
from cache_dit_serving.media.values import Media
from cache_dit_serving.planning.call import ImageCall
from cache_dit_serving.planning.loras import LoraContents
from cache_dit_serving.planning.model import PlannedModel

TakePreview = Callable[[], Callable[[], Image.Image] | None]
"""Takes the latents, on the runner's thread; returns what makes a picture of them on any thread, or None."""


class Watch(Protocol):
    """Carries progress and previews out of a runner, and a cancellation in."""

    @property
    def cancelled(self) -> bool:
        """Whether to stop; read after each step."""
        ...

    def progress(self, done: int, cached: int) -> None:
        """Denoising steps of the image that are done, and those among them that reused blocks."""
        ...

    def preview(self, done: int, take: TakePreview) -> None:
        """A preview may be made of the latents after that step of the image. `take` is called now or never."""
        ...


class Unwatched:
    """A watch that nobody reads and that never stops."""

    cancelled = False

    def progress(self, done: int, cached: int) -> None:
        pass

    def preview(self, done: int, take: TakePreview) -> None:
        pass


class Stopped(Exception):
    """The image was given up between two steps, as its watch said."""


class QuantizedComponent(NamedTuple):
    """A component whose weights have fewer bits than the model's dtype."""

    name: str
    type: str
    """How, or the library that did it before or as it was loaded."""
    layers: int
    """Linear layers that are quantised."""
    bytes_before: int | None
    """Of its weights; None where it was loaded as it is."""
    bytes: int


class Freed(NamedTuple):
    """Bytes that were freed."""

    activations: int
    prompts: int
    """Embeddings of prompts."""


class Usable(NamedTuple):
    """What can be had on the device with the packages installed here."""

    attention_backends: tuple[str, ...]
    quant_types: tuple[str, ...]


@dataclass(frozen=True)
class Facts:
    """A loaded pipeline: values that hold until another one is loaded."""

    name: str
    """The model's, without where on the server it lies."""
    weights: str
    """`saved`, or `random`: outputs mean nothing."""
    dtype: str
    device: str
    generator_device: str
    """Where noise is drawn."""
    attention_backend: str
    versions: dict[str, str]
    parallelism: dict[str, int | bool | list[str]] | None
    """How ranks share a forward pass; None: one does it alone."""
    offload: str | None
    """How components are kept in the computer's memory; None: all lie on the device."""
    quantized: tuple[QuantizedComponent, ...]
    usable: Usable


class Cut(NamedTuple):
    """The end of a prompt that a tokenizer cut off."""

    param: str
    """The request's field."""
    component: str
    """The tokenizer, as the pipeline names it."""
    tokens: int
    """Kept, special ones among them."""
    lost: str
    read_by: tuple[str, ...] = ()
    """Other tokenizers of the pipeline that read all of it."""


@dataclass(frozen=True)
class DrawRecord:
    """How one output came about: values that JSON can hold, of which rates, metrics and answers are made."""

    seed: int
    cache: CacheReport
    stats: list[BlockListStats]
    encode_prompt_s: float
    denoise_s: float
    decode_s: float
    cached_steps_s: float | None
    """Seconds of `denoise_s` in steps that reused something; None where steps could not be told apart."""
    diffs: list[float]
    """Every residual difference that the cache compared, NaN among them."""
    passes: int
    """Forward passes that each step took."""
    transition: str
    """What the cache needed to change for it: none, override or exchange."""
    num_frames: int | None = None
    """Of the clip that was made; None of other kinds."""
    peak_memory_bytes: int | None = None
    """The most that was allocated on the device meanwhile; on a CPU, that the process had resident. None: not known."""
    profile: str | None = None
    """The trace's file, in the operator's folder."""
    prompt_hits: int = 0
    """Prompts whose embeddings were kept from before."""
    prompt_misses: int = 0
    """Prompts that were encoded, and whose embeddings can be kept."""
    compiled_graphs: int = 0
    """Graphs that torch.compile had to compile for it."""
    cuts: tuple[Cut, ...] = ()
    """What tokenizers cut off."""
    size: tuple[int, int] | None = None
    """(width, height) of what was made, in pixels; None of sound."""

    @property
    def seconds(self) -> float:
        """From the prompt to the picture."""
        return self.encode_prompt_s + self.denoise_s + self.decode_s

    def corrected(self, model: PlannedModel) -> PlannedModel:
        """The model with the forward passes that this image was found to make, where its plan had them wrong."""
        return model.corrected(self.passes) if self.cache.redrawn else model


@dataclass(frozen=True)
class Drawn:
    """One image of a call as the runner returns it."""

    media: Media
    record: DrawRecord


class Runner(Protocol):
    """Runs the images of calls, one at a time, on one thread."""

    @property
    def lost(self) -> str | None:
        """What befell it, where it can run nothing any more and the model must be loaded anew."""
        ...

    @property
    def ended(self) -> bool:
        """Whether a process of it has ended. `lost` says soon after what befell it."""
        ...

    def close(self) -> None:
        """End what it holds beside this process."""
        ...

    @property
    def facts(self) -> Facts: ...

    def sample(self, call: ImageCall, watch: Watch) -> Drawn:
        """The image at `index` of a call.

        Raises:
            Stopped: the watch said so.
            ServingError: OutOfMemory, InternalError.
        """
        ...

    def no_previews(self, pipeline_class: str) -> str | None:
        """Why there are no previews of what a pipeline draws; None where there are, or may be. From any thread."""
        ...

    def flush(self) -> Freed:
        """Free the cached activations and the prompts' embeddings."""
        ...

    def loras(self) -> Mapping[str, LoraContents]:
        """The LoRAs that are loaded beside the weights; from any thread."""
        ...

    def load_lora(self, name: str) -> None:
        """Load a LoRA of the folder, if it is not loaded.

        Raises:
            InvalidRequest: its file cannot be.
        """
        ...

    def unload_lora(self, name: str) -> None:
        """Free a LoRA of the folder, if it is loaded."""
        ...

    def memory(self) -> dict[str, int]:
        """Bytes by what holds them; from any thread."""
        ...


@dataclass(frozen=True)
class Loaded:
    """A model that is loaded, tried and warmed up."""

    runner: Runner
    model: PlannedModel
    warm_up: tuple[tuple[ImageCall, DrawRecord], ...] = ()
    """Calls of the warm-up with their records: the first measurements of how long things take."""
