"""Small pictures of what a pipeline is drawing, from its latents between two steps.

By the autoencoder itself, or by a linear map from a latent pixel's channels to RGB. The map is fitted to what the
loaded autoencoder decodes, so that no family needs numbers of its own.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

from cache_dit_serving.media.images import pixels_of
from cache_dit_serving.pipeline.memory import is_out_of_memory

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from cache_dit_serving.config.settings import PreviewSettings
    from cache_dit_serving.media.values import Array
    from cache_dit_serving.pipeline.protocol import Watch
    from cache_dit_serving.planning.call import ImageCall

logger = logging.getLogger(__name__)

SAMPLES = 8
SIDE = 16
"""Of the latents that the map is fitted to: noise at these scales, from one colour to single pixels."""
SCALES = (1, 2, 4, 8, 16)
RIDGE = 1e-2


NO_AUTOENCODER = "there are no previews of this model: it has no autoencoder of pictures or clips that is known here"
UNDECODED = "there are no previews of this model: its autoencoder does not decode its latents apart"
UNKNOWN_LATENTS = "there are no previews of this model: its latents have a layout that is not known here"


class NotUnderstood(Exception):
    """The latents have a layout that is not known here."""


class Previewer:
    """Makes previews of the pipelines of one model, which share an autoencoder.

    Nothing is decoded before somebody wants a preview.
    """

    def __init__(self, pipe: DiffusionPipeline, settings: PreviewSettings) -> None:
        self._settings = settings
        vae: Any = getattr(pipe, "vae", None)
        self._vae = vae
        config = getattr(vae, "config", {})
        self._channels = int(config.get("latent_channels") or config.get("z_dim") or 0)
        dimensions = {weight.ndim for weight in vae.decoder.parameters()} if hasattr(vae, "decoder") else set()
        self._of_clips = 5 in dimensions
        self._why_none = None if self._channels and {4, 5} & dimensions else NO_AUTOENCODER
        self._why_not: dict[str, str | None] = {}
        """By the classes of pipelines whose latents were seen; None: they are understood."""
        self._warned = False
        self._fit: tuple[Array, int] | None = None

    def why_none(self, pipeline_class: str) -> str | None:
        """Why there are no previews of what a pipeline draws; None where there are, or may be."""
        return self._why_none or self._why_not.get(pipeline_class)

    def showing(self, pipe: Any, call: ImageCall, watch: Watch) -> Callable[[int, Any], None]:
        """What is told of the latents after each step of a call, and offers previews to the watch."""
        before: torch.Tensor | None = None
        name = type(pipe).__name__

        def show(done: int, latents: Any) -> None:
            nonlocal before
            if name not in self._why_not:
                self._learn(pipe, call.arguments, latents)
            # The last step is followed by the picture itself.
            if done < call.num_inference_steps:
                watch.preview(done, partial(self._take, pipe, call.arguments, before, latents))
            before = latents

        return show

    def _learn(self, pipe: Any, arguments: Mapping[str, Any], latents: Any) -> None:
        """Note whether the latents of a pipeline are understood, so that a request which comes later can be told."""
        name, why = type(pipe).__name__, None
        if self._why_none is None:
            try:
                self._frame(pipe, arguments, latents)
            except Exception as error:  # noqa: BLE001 (families lay out their latents in many ways)
                logger.info("there are no previews of %s: %s", name, error)
                why = UNKNOWN_LATENTS
        self._why_not[name] = why

    def _take(
        self, pipe: Any, arguments: Mapping[str, Any], before: torch.Tensor | None, latents: torch.Tensor
    ) -> Callable[[], Image.Image] | None:
        """What makes a preview, on any thread; None where the latents are not understood, which the log says once.

        For the pipeline's thread, which alone runs the autoencoder. A projection does not wait for the device.

        Args:
            arguments: of the pipeline's call.
            before: the latents before the step.
        """
        if self.why_none(type(pipe).__name__) is not None:
            return None
        try:
            frame = self._frame(pipe, arguments, _foreseen(pipe.scheduler, before, latents))
            if self._settings.by == "vae":
                decoded = self._decoded(frame)
                size = self._size(decoded)
                frame = functional.interpolate(decoded, (size[1], size[0]), mode="area")
                factors = None
            else:
                factors, scale = self._fitted(frame.device)
                size = self._size(frame, scale)
            pixels = _on_its_way(frame[0].float())
        except Exception:  # whatever it is, the picture itself is not affected
            if not self._warned:
                self._warned = True
                logger.warning("there are no previews of these latents", exc_info=True)
            return None

        def make() -> Image.Image:
            array = np.moveaxis(pixels(), 0, -1)
            if factors is not None:
                array = array @ factors[:-1] + factors[-1]
            image = Image.fromarray(pixels_of(np.nan_to_num(array.clip(0, 1))))
            return image.resize(size, Image.Resampling.BICUBIC)

        return make

    def _size(self, frame: torch.Tensor, scale: int = 1) -> tuple[int, int]:
        """(width, height) of a preview.

        Args:
            frame: (1, channels, height, width).
            scale: pixels of the picture for each of its own.
        """
        height, width = (side * scale for side in frame.shape[-2:])
        shrink = min(1.0, self._settings.side / max(height, width))
        return max(1, round(width * shrink)), max(1, round(height * shrink))

    def _frame(self, pipe: Any, arguments: Mapping[str, Any], latents: torch.Tensor) -> torch.Tensor:
        """(1, channels, height, width): of a clip the middle one."""
        latents = latents[:1].detach()
        if latents.ndim == 3:
            unpack = getattr(pipe, "_unpack_latents", None)
            if unpack is None or list(inspect.signature(unpack).parameters) != [
                *("latents", "height", "width", "vae_scale_factor"),
            ]:
                raise NotUnderstood(f"{type(pipe).__name__} packs its latents in a way of its own")
            latents = unpack(latents, arguments["height"], arguments["width"], pipe.vae_scale_factor)
        if latents.ndim == 5:
            time = 2 if latents.shape[1] == self._channels else 1  # CogVideoX has the frames first
            latents = latents.select(time, latents.shape[time] // 2)
        if latents.ndim != 4 or latents.shape[1] != self._channels:
            raise NotUnderstood(f"latents of {tuple(latents.shape)} with {self._channels} channels")
        return latents

    def _decoded(self, frames: torch.Tensor) -> torch.Tensor:
        """RGB from 0 to 1, as the pipelines of diffusers decode their latents."""
        config, vae = self._vae.config, self._vae
        with torch.no_grad(), _upcast(vae):
            latents = frames.to(vae.dtype)
            latents = latents / (config.get("scaling_factor") or 1.0)
            if config.get("latents_mean") is not None and config.get("latents_std") is not None:
                mean, deviation = (
                    torch.tensor(config[key]).to(latents).view(1, -1, 1, 1) for key in ("latents_mean", "latents_std")
                )
                latents = latents * deviation + mean
            else:
                latents = latents + (config.get("shift_factor") or 0.0)
            if self._of_clips:
                latents = latents.unsqueeze(2)
            pixels = vae.decode(latents, return_dict=False)[0]
        if pixels.ndim == 5:
            pixels = pixels[:, :, pixels.shape[2] // 2]
        return (pixels.float() / 2 + 0.5).clamp(0, 1)

    def _fitted(self, device: torch.device) -> tuple[Array, int]:
        """The map: factors from channels to RGB with an offset below them, and pixels for each latent pixel.

        Made when the first preview is.

        Raises:
            NotUnderstood: the autoencoder decodes to values that are not numbers.
            Exception: whatever the autoencoder raises. Unless memory ran out, it is not tried again.
        """
        if self._fit is None:
            try:
                with torch.random.fork_rng([device] if device.type == "cuda" else []):
                    self._fit = self._fit_to_decoded(device)
            except Exception as error:
                if not is_out_of_memory(error):
                    self._why_none = UNDECODED
                raise
        return self._fit

    def _fit_to_decoded(self, device: torch.device) -> tuple[Array, int]:
        generator = torch.Generator().manual_seed(0)
        latents = torch.zeros(SAMPLES, self._channels, SIDE, SIDE)
        for scale in SCALES:
            noise = torch.randn(SAMPLES, self._channels, scale, scale, generator=generator)
            latents += functional.interpolate(noise, (SIDE, SIDE), mode="bilinear", align_corners=False)
        latents /= latents.std()
        pixels = torch.cat([self._decoded(sample.unsqueeze(0).to(device)) for sample in latents])
        target = functional.interpolate(pixels, (SIDE, SIDE), mode="area").cpu().double().movedim(1, -1).reshape(-1, 3)
        given = latents.double().movedim(1, -1).reshape(-1, self._channels)
        given = torch.cat([given, torch.ones(len(given), 1, dtype=given.dtype)], dim=1)
        ridge = RIDGE * len(given) * torch.eye(given.shape[1], dtype=given.dtype)
        ridge[-1, -1] = 0.0
        factors = torch.linalg.solve(given.T @ given + ridge, given.T @ target)
        if not torch.isfinite(factors).all():
            raise NotUnderstood("the autoencoder decodes to values that are not numbers")
        return factors.float().numpy(), pixels.shape[-1] // SIDE


def _foreseen(scheduler: Any, before: torch.Tensor | None, latents: torch.Tensor) -> torch.Tensor:
    """Where the last step was heading: of Euler's method on a flow, the latents without the noise that is left.

    Of other methods the latents as they are.
    """
    index = getattr(scheduler, "step_index", None)
    if before is None or before.shape != latents.shape or not index:
        return latents
    if type(scheduler).__name__ != "FlowMatchEulerDiscreteScheduler" or scheduler.config.stochastic_sampling:
        return latents
    from_sigma, sigma = scheduler.sigmas[index - 1], scheduler.sigmas[index]
    return latents + (latents - before) * (sigma / (from_sigma - sigma)).to(latents)


@contextmanager
def _upcast(vae: Any) -> Iterator[None]:
    """Have an autoencoder that overflows in float16 (SDXL's) in float32 meanwhile."""
    if vae.dtype != torch.float16 or not vae.config.get("force_upcast"):
        yield
        return
    vae.to(dtype=torch.float32)
    try:
        yield
    finally:
        vae.to(dtype=torch.float16)


def _on_its_way(pixels: torch.Tensor) -> Callable[[], Array]:
    """A copy that another thread waits for, where the device runs behind Python."""
    if pixels.device.type != "cuda":
        array: Array = pixels.cpu().numpy().copy()
        return lambda: array
    held = torch.empty(pixels.shape, dtype=pixels.dtype, pin_memory=True)
    held.copy_(pixels, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record(torch.cuda.current_stream(pixels.device))

    def arrived() -> Array:
        copied.synchronize()
        result: Array = held.numpy()
        return result

    return arrived
