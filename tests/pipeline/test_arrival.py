"""Outputs from the device: bytes that are diffusers' own, made there, and a copy that nobody waits for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.video_processor import VideoProcessor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cache_dit_serving.errors import InternalError
from cache_dit_serving.media.images import check_finite, pixels_of
from cache_dit_serving.media.values import Array, ImageOutput, MediaKind, VideoOutput
from cache_dit_serving.pipeline import arrival
from cache_dit_serving.pipeline.arrival import bytes_of, on_its_way
from cache_dit_serving.pipeline.output import OutputFields, arriving
from cache_dit_serving.pipeline.protocol import Unwatched
from cache_dit_serving.planning.plan import plan
from cache_dit_serving.planning.resolve import resolve
from tests.support.conformance import request_of, settings_of
from tests.support.families import save_family
from tests.support.in_process import load

pytestmark = pytest.mark.slow

HALVES = (torch.arange(256, dtype=torch.float64) + 0.5) / 255


def edges(dtype: torch.dtype) -> torch.Tensor:
    """Decoded values, -1 to 1, at and beside each border of two bytes, and beyond: (frames, 3, height, width)."""
    borders = HALVES.to(dtype)
    beside = [torch.nextafter(borders.float(), torch.tensor(to)).to(dtype) for to in (0.0, 1.0)]
    noise = torch.randn(64 * 12 - 3 * 256, generator=torch.Generator().manual_seed(1)).to(dtype)
    unit = torch.cat([borders, *beside, noise])
    return (unit * 2 - 1).reshape(2, 3, 8, 16) * 1.01


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_the_bytes_of_images_are_diffusers_own(dtype: torch.dtype) -> None:
    processor, decoded = VaeImageProcessor(), edges(dtype)
    pixels, finite = bytes_of(processor.postprocess(decoded, output_type="pt"))
    expected = [np.asarray(image) for image in processor.postprocess(decoded, output_type="pil")]
    assert np.array_equal(pixels.numpy(), np.stack(expected))
    assert pixels.is_contiguous(), "the encoder would bring the planes together"
    assert bool(finite)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_the_bytes_of_a_clip_are_diffusers_own(dtype: torch.dtype) -> None:
    processor, decoded = VideoProcessor(), edges(dtype).movedim(0, 1)[None]
    (clip,) = processor.postprocess_video(decoded, output_type="pt")
    (expected,) = processor.postprocess_video(decoded, output_type="pil")
    assert np.array_equal(bytes_of(clip)[0].numpy(), np.stack([np.asarray(frame) for frame in expected]))


def test_values_beyond_the_range_are_those_of_diffusers() -> None:
    processor = VaeImageProcessor(do_normalize=False)
    decoded = torch.linspace(-2, 3, 3 * 8 * 8).reshape(1, 3, 8, 8)
    (expected,) = processor.postprocess(decoded, output_type="pil")
    assert np.array_equal(bytes_of(decoded[0])[0].numpy(), np.asarray(expected))


class Output(NamedTuple):
    frames: list[torch.Tensor]


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(("kind", "frames"), [(MediaKind.IMAGE, ()), (MediaKind.VIDEO, (3,))], ids=["image", "video"])
def test_a_value_that_is_not_a_number_is_refused_though_bytes_cannot_show_it(
    broken: float, kind: MediaKind, frames: tuple[int, ...]
) -> None:
    fields = OutputFields(kind, "frames", None)
    decoded = torch.full((*frames, 3, 8, 8), 0.5, dtype=torch.bfloat16)
    media = arriving(Output([decoded]), fields, fps=8.0, audio_rate=None).arrived()
    assert isinstance(media, ImageOutput | VideoOutput)
    check_finite(media)
    decoded[..., -1, 4, 7] = broken
    with pytest.raises(InternalError, match="not numbers"):
        check_finite(arriving(Output([decoded]), fields, fps=8.0, audio_rate=None).arrived())


class Crossing(NamedTuple):
    """A copy between the device and the host."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    waits: bool
    stream: str


class Crossings(TorchDispatchMode):
    """Record of the operations on tensors of two devices."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Crossing] = []
        self.stream = "the kernels'"

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = [each for each in tree_leaves((args, kwargs, result)) if isinstance(each, torch.Tensor)]
        if len({each.device for each in tensors}) > 1 or func.overloadpacket.__name__ == "_local_scalar_dense":
            source = next((each for each in tensors if each.device.type == "cuda"), tensors[0])
            waits = not (kwargs or {}).get("non_blocking", args[2] if len(args) > 2 else False)
            self.seen.append(Crossing(source.dtype, tuple(source.shape), waits, self.stream))
        return result


@contextmanager
def gpu_without_data(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Crossings, list[str]]]:
    """Tensors of a GPU that is not there: shapes, dtypes and devices. Streams and events note what is done by them."""
    crossings, order = Crossings(), []

    class Stream:
        def __init__(self, name: str) -> None:
            self.name = name

        def wait_stream(self, other: Stream) -> None:
            order.append(f"{self.name} waits for {other.name}")

    class Event:
        def record(self, stream: Stream) -> None:
            order.append(f"recorded in {stream.name}")

        def synchronize(self) -> None:
            order.append("waited")

    @contextmanager
    def on(stream: Stream) -> Iterator[None]:
        before, crossings.stream = crossings.stream, stream.name
        yield
        crossings.stream = before

    copying = Stream("the copies'")
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream("the kernels'"))
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "stream", on)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: order.append(f"kept for {stream.name}"))
    monkeypatch.setattr(arrival, "copying_stream", lambda device: copying)
    with FakeTensorMode(), crossings:
        yield crossings, order


def test_only_bytes_cross_from_the_device_and_the_pipelines_thread_waits_for_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with gpu_without_data(monkeypatch) as (crossings, order):
        decoded = torch.empty(1, 81, 3, 720, 1280, dtype=torch.bfloat16, device="cuda")
        fields = OutputFields(MediaKind.VIDEO, "frames", None)
        made = arriving(Output(list(decoded)), fields, fps=16.0, audio_rate=None)
    assert made.shape == (81, 720, 1280, 3)
    assert crossings.seen == [
        Crossing(torch.uint8, (81, 720, 1280, 3), waits=False, stream="the copies'"),
        Crossing(torch.bool, (), waits=False, stream="the copies'"),
    ]
    assert (
        order
        == [
            "the copies' waits for the kernels'",
            "recorded in the copies'",
            "kept for the copies'",
        ]
        * 2
    )


def test_a_copy_is_waited_for_before_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    with gpu_without_data(monkeypatch) as (_, order):
        arrived = on_its_way(torch.empty(4, dtype=torch.uint8, device="cuda"))
    assert order == ["recorded in the kernels'"]
    with nullcontext() if torch.cuda.is_available() else pytest.raises(RuntimeError):  # there is no data
        arrived()
    assert order[-1] == "waited"


FAMILIES = [
    ("Flux", "float32", True),
    ("StableDiffusion3", "float16", True),
    ("Wan", "bfloat16", True),
    ("CogVideoX", "float32", True),
    ("DiT", "float32", False),  # its call asks for an output type of its own
]
"""Entry, dtype, and whether it gives tensors."""


@pytest.mark.parametrize(("name", "dtype", "tensors"), FAMILIES)
def test_a_family_gives_the_bytes_of_its_floats(name: str, dtype: str, tensors: bool, tmp_path: Path) -> None:
    settings = settings_of(name, save_family(name, tmp_path))
    settings = settings.model_copy(update={"cache": None, "model": settings.model.model_copy(update={"dtype": dtype})})
    loaded = load(settings)
    request, inputs = request_of(name, loaded)
    call = plan(resolve(request, loaded.model), inputs).fitted().call
    floats = loaded.runner.sample(replace(call, keep_floats=True), Unwatched())
    drawn = loaded.runner.sample(call, Unwatched())
    assert (floats.media.array.dtype.kind, drawn.media.array.dtype == np.uint8) == ("f", tensors)
    assert np.array_equal(_bytes(drawn.media.array), _bytes(floats.media.array))
    assert (drawn.record.size, drawn.record.num_frames) == (floats.record.size, floats.record.num_frames)


def _bytes(array: Array) -> Array:
    """Return an image or a clip as bytes."""
    return np.stack([pixels_of(frame) for frame in array.reshape(-1, *array.shape[-3:])])
