"""Interface of a runner to the rest of the server: its protocol, arguments and results. No torch here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from PIL import Image

from cache_dit_serving.caching.report import BlockListStats, CacheReport
from cache_dit_serving.caching.settings import CacheType
from cache_dit_serving.media.values import Media
from cache_dit_serving.planning.call import ImageCall
from cache_dit_serving.planning.loras import LoraContents
from cache_dit_serving.planning.model import PlannedModel

TakePreview = Callable[[], Callable[[], Image.Image] | None]
"""Function that takes the latents, on the runner's thread. Returns a function that makes an image of them on any
thread, or None if there is no preview."""


class Watch(Protocol):
    """Receiver of a runner's progress and previews, and source of its cancellation."""

    @property
    def cancelled(self) -> bool:
        """True to stop the generation; read after each step, and by a runner in this process at each block of
        the networks that run before and after the steps."""
        ...

    def progress(self, done: int, cached: int) -> None:
        """Report the number of finished denoising steps of the image, and of those among them that reused blocks."""
        ...

    def preview(self, done: int, take: TakePreview) -> None:
        """Offer a preview of the latents after `done` steps of the image. `take` must be called before the return."""
        ...


class Unwatched:
    """Watch that ignores progress and previews, and never cancels."""

    cancelled = False

    def progress(self, done: int, cached: int) -> None:
        pass

    def preview(self, done: int, take: TakePreview) -> None:
        pass


class Stopped(Exception):
    """Exception by which an image ends after its watch was cancelled: between two steps, or before or after
    them."""


class QuantizedComponent(NamedTuple):
    """A component whose weights have fewer bits than the model's dtype."""

    name: str
    type: str
    """Quantisation type, or the name of the library that quantised the component before or during loading."""
    layers: int
    """Number of quantised linear layers."""
    bytes_before: int | None
    """Bytes of the component before quantisation; None if it was loaded quantised."""
    bytes: int
    """Bytes of the component now."""


class LoadedComponent(NamedTuple):
    """A network of the pipeline, and the place that its weights came from."""

    name: str
    file: str
    """Name of the file, folder or hub id, without its path on the server."""
    format: str
    """`folder`, or the format of the file, such as `GGUF Q4_K`."""
    dtype: str
    """Type with the most bytes of its weights in memory: torch's name, or GGML's."""
    bytes: int
    """Bytes of its weights in memory."""
    weights: str | None = None
    """Name of its weights, the same in two models that share them; None: no other model can use them."""


class Freed(NamedTuple):
    """Freed bytes, by kind."""

    activations: int
    """Activations held by the cache."""
    prompts: int
    """Prompt embeddings."""


class WeightsChoice(NamedTuple):
    """Weights that are to take the place of a model's."""

    folder: str
    """Folder below that of the operator."""
    sha256: str | None
    """Digest that they must have; None: any."""


class Reloaded(NamedTuple):
    """Change of a model's weights."""

    version: str
    """SHA-256 of the new weights, hexadecimal."""
    components: tuple[str, ...]
    """Names of the components that have new weights."""


class Usable(NamedTuple):
    """Attention backends and quantisation types that run on the device with the installed packages."""

    attention_backends: tuple[str, ...]
    quant_types: tuple[str, ...]


@dataclass(frozen=True)
class Facts:
    """Facts about a loaded pipeline, which hold until another one is loaded, or other weights."""

    name: str
    """Name of the model, without its path on the server."""
    weights: str
    """`saved`, or `random`; with random weights outputs mean nothing."""
    variant: str | None
    """Variant of the loaded files, such as `fp16`; None: files without one."""
    dtype: str
    device: str
    generator_device: str
    """Device that draws the noise."""
    attention_backend: str
    versions: dict[str, str]
    parallelism: dict[str, int | bool | list[str]] | None
    """Number of ranks and the settings by which they share a forward pass; None: one process alone."""
    offload: str | None
    """Kind of offload to host memory; None: all components lie on the device."""
    quantized: tuple[QuantizedComponent, ...]
    components: tuple[LoadedComponent, ...]
    usable: Usable
    weights_version: str | None = None
    """SHA-256 of weights that took the place of the loaded ones; None: those of the start."""


class Cut(NamedTuple):
    """End of a prompt that a tokenizer cut off."""

    param: str
    """Field of the request."""
    component: str
    """Name of the tokenizer's component in the pipeline."""
    tokens: int
    """Number of tokens kept, special ones included."""
    lost: str
    """Text that was cut off."""
    read_by: tuple[str, ...] = ()
    """Other tokenizers of the pipeline that read all of it."""


@dataclass(frozen=True)
class SampleRecord:
    """Record of one output: JSON values, the source of rates, metrics and answers."""

    seed: int
    cache: CacheReport
    stats: list[BlockListStats]
    encode_prompt_s: float
    denoise_s: float
    decode_s: float
    cached_steps_s: float | None
    """Seconds of `denoise_s` in steps that reused blocks; None if the times could not be matched to steps."""
    diffs: list[float]
    """Every residual difference that the cache compared, NaN included."""
    passes: int
    """Forward passes a step."""
    transition: str
    """Change of the cache for this output: none, override or exchange."""
    num_frames: int | None = None
    """Frames of a video; None for other kinds of output."""
    peak_memory_bytes: int | None = None
    """Peak of the device's allocated bytes, or on a CPU of the process's resident bytes; None if not known."""
    profile: str | None = None
    """Name of the trace's file in the operator's folder; None without a trace."""
    prompt_hits: int = 0
    """Calls of `encode_prompt` that were answered from the prompt cache."""
    prompt_misses: int = 0
    """Calls of `encode_prompt` that encoded, and whose result can be cached."""
    compiled_graphs: int = 0
    """Number of graphs that torch.compile compiled for this output."""
    cuts: tuple[Cut, ...] = ()
    """Ends of prompts that tokenizers cut off."""
    size: tuple[int, int] | None = None
    """(width, height) of the output, px; None for a sound."""
    began: float = 0.0
    """Time at which its drawing began, seconds since the epoch."""
    step_s: tuple[float, ...] = ()
    """Seconds of each step that the clock saw."""
    weights_version: str | None = None
    """Version of the weights that drew it; None: those of the start."""

    @property
    def seconds(self) -> float:
        """Seconds from the prompt to the image: encoding, denoising and decoding."""
        return self.encode_prompt_s + self.denoise_s + self.decode_s

    def corrected(self, model: PlannedModel) -> PlannedModel:
        """Return the model, with this image's counted forward passes if the plan had another number."""
        return model.corrected(self.passes) if self.cache.redrawn else model


@dataclass(frozen=True)
class Sampled:
    """One output of a call, with its record."""

    arrived: Callable[[], Media]
    """Function that waits until the output has arrived from the device, on any thread, and returns it."""
    record: SampleRecord

    @property
    def media(self) -> Media:
        """The output. Waits for its arrival."""
        return self.arrived()


class Runner(Protocol):
    """Runner of calls: draws their images, one at a time, on one thread."""

    @property
    def lost(self) -> str | None:
        """Reason that the runner cannot run any more and the model must be loaded anew; None while it can."""
        ...

    @property
    def ended(self) -> bool:
        """True once a process of the runner has ended. `lost` has the reason soon after."""
        ...

    def close(self) -> None:
        """End the runner's other processes."""
        ...

    @property
    def facts(self) -> Facts: ...

    def sample(self, call: ImageCall, watch: Watch) -> Sampled:
        """Draw the output of a call.

        Raises:
            Stopped: the watch was cancelled.
            ServingError: OutOfMemory or InternalError.
        """
        ...

    def no_previews(self, pipeline_class: str) -> str | None:
        """Return the reason that a pipeline class has no previews; None if it has, or may have. Any thread may call."""
        ...

    def flush(self) -> Freed:
        """Free the cached activations and the prompt embeddings; return their bytes."""
        ...

    def loras(self) -> Mapping[str, LoraContents]:
        """Return the LoRAs that are loaded beside the weights, by name. Any thread may call."""
        ...

    def load_lora(self, name: str) -> None:
        """Load a LoRA of the folder, if it is not loaded.

        Raises:
            InvalidRequest: its file cannot be loaded.
        """
        ...

    def unload_lora(self, name: str) -> None:
        """Free a LoRA of the folder, if it is loaded."""
        ...

    def memory(self) -> dict[str, int]:
        """Return bytes in use, by holder. Any thread may call."""
        ...

    def sleep(self, stop: Callable[[], bool]) -> int | None:
        """Free all that :meth:`flush` does, and move the weights to host memory; return the freed bytes of the device.

        Args:
            stop: called again and again meanwhile; True: undo it, and return None.

        Raises:
            InvalidRequest: the weights cannot be moved there.
        """
        ...

    def will_wake(self) -> None:
        """Have weights on the device that other models share with this one stay there. :meth:`wake` must follow."""
        ...

    def wake(self, sign: Callable[[], None]) -> None:
        """Put the weights back on the device. Does nothing to a model that is awake.

        Args:
            sign: called again and again meanwhile.

        Raises:
            OutOfMemory: the device has too little free memory. The model is asleep as before.
        """
        ...

    def reload(self, choice: WeightsChoice, sign: Callable[[], None]) -> Reloaded:
        """Put other weights of the same shapes in the place of the model's.

        Args:
            sign: called again and again meanwhile.

        Raises:
            InvalidRequest: they are not there, or do not fit the model.
            Exception: the change failed. The weights are those of before.
        """
        ...

    def drop(self) -> int:
        """Free all memory and end the other processes; return the freed bytes. Nothing runs on it afterwards."""
        ...


@dataclass(frozen=True)
class Loaded:
    """Loaded model, tried and warmed up."""

    runner: Runner
    model: PlannedModel
    warm_up: tuple[tuple[ImageCall, SampleRecord], ...] = ()
    """Calls of the warm-up with their records: the first measured times."""
    refused: Mapping[CacheType, str] = field(default_factory=dict)
    """Reason for each cache type that failed its trial."""
