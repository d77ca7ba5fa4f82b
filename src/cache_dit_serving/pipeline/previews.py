"""Previews: small images of an unfinished output, from the latents between two steps.

Latents are decoded by the autoencoder, or by a linear map from a latent pixel's channels to RGB. The map is fitted to
outputs of the loaded autoencoder, so no family needs constants of its own.
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
from cache_dit_serving.pipeline.arrival import on_its_way
from cache_dit_serving.pipeline.memory import is_out_of_memory

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from cache_dit_serving.config.settings import PreviewSettings
    from cache_dit_serving.media.values import Array
    from cache_dit_serving.pipeline.protocol import Watch
    from cache_dit_serving.planning.call import ImageCall

logger = logging.getLogger(__name__)

SAMPLES = 8
"""Number of random latents that the map is fitted to."""
SIDE = 16
"""Width and height of these latents."""
SCALES = (1, 2, 4, 8, 16)
"""Sides of the noise images that each latent is the sum of, from one colour to single pixels."""
RIDGE = 1e-2
"""Ridge penalty of the fit, per latent pixel."""


NO_AUTOENCODER = "there are no previews of this model: it has no autoencoder of pictures or clips that is known here"
UNDECODED = "there are no previews of this model: its autoencoder does not decode its latents apart"
UNKNOWN_LATENTS = "there are no previews of this model: its latents have a layout that is not known here"


class NotUnderstood(Exception):
    """Error for latents of an unknown layout."""


class Previewer:
    """Maker of previews for the pipelines of one model, which share an autoencoder.

    Nothing is decoded before the first preview is requested.
    """

    def __init__(self, pipe: DiffusionPipeline, settings: PreviewSettings) -> None:
        self._settings = settings
        vae: Any = getattr(pipe, "vae", None)
        self._vae = vae
        config = getattr(vae, "config", {})
        self._channels = int(config.get("latent_channels") or config.get("z_dim") or 0)
        dimensions = {weight.ndim for weight in vae.decoder.parameters()} if hasattr(vae, "decoder") else set()
        self._of_videos = 5 in dimensions
        self._why_none = None if self._channels and {4, 5} & dimensions else NO_AUTOENCODER
        self._why_not: dict[str, str | None] = {}
        """Reason that a pipeline's latents give no previews, by class, once seen; None: they do."""
        self._warned = False
        self._fit: tuple[Array, int] | None = None

    def why_none(self, pipeline_class: str) -> str | None:
        """Return the reason that a pipeline class has no previews; None if it has, or may have."""
        return self._why_none or self._why_not.get(pipeline_class)

    def forget(self) -> None:
        """Fit the map anew at the next preview: the autoencoder may have other weights."""
        self._fit = None

    def showing(self, pipe: Any, call: ImageCall, watch: Watch) -> Callable[[int, Any], None]:
        """Return a function to call after each step with (steps done, latents); it offers previews to the watch."""
        before: torch.Tensor | None = None
        name = type(pipe).__name__

        def show(done: int, latents: Any) -> None:
            nonlocal before
            if name not in self._why_not:
                self._learn(pipe, call.arguments, latents)
            # No preview after the last step: the image itself follows.
            if done < call.num_inference_steps:
                watch.preview(done, partial(self._take, pipe, call.arguments, before, latents))
            before = latents

        return show

    def _learn(self, pipe: Any, arguments: Mapping[str, Any], latents: Any) -> None:
        """Record whether the layout of a pipeline's latents is known; if not, later requests can be refused."""
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
        """Return a function that makes the preview, on any thread; None if it cannot be made, which is logged once.

        To be called on the pipeline's thread, the only one that may run the autoencoder. A projection does not wait
        for the device.

        Args:
            arguments: arguments of the pipeline's call.
            before: latents before the step; None for the first step.
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
            pixels = on_its_way(frame[0].to(torch.float32, copy=True))  # schedulers may write into their latents
        except Exception:  # no failure of a preview affects the image
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
        """Return (width, height) of a preview, px.

        Args:
            frame: array of shape (1, channels, height, width).
            scale: pixels of the image per pixel of `frame`.
        """
        height, width = (side * scale for side in frame.shape[-2:])
        shrink = min(1.0, self._settings.side / max(height, width))
        return max(1, round(width * shrink)), max(1, round(height * shrink))

    def _frame(self, pipe: Any, arguments: Mapping[str, Any], latents: torch.Tensor) -> torch.Tensor:
        """Return latents as (1, channels, height, width); of a video, its middle frame.

        Raises:
            NotUnderstood: the layout is not known here.
        """
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
        """Return latents decoded to RGB, 0 to 1, (n, 3, height, width), with the scaling of diffusers' pipelines."""
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
            if self._of_videos:
                latents = latents.unsqueeze(2)
            pixels = vae.decode(latents, return_dict=False)[0]
        if pixels.ndim == 5:
            pixels = pixels[:, :, pixels.shape[2] // 2]
        return (pixels.float() / 2 + 0.5).clamp(0, 1)

    def _fitted(self, device: torch.device) -> tuple[Array, int]:
        """Return the map and the pixels per latent pixel. Fits the map at the first call.

        The map has shape (channels + 1, 3): factors from channels to RGB, and in the last row the offset.

        Raises:
            NotUnderstood: the autoencoder decodes to NaN or infinity.
            Exception: any error of the autoencoder. Unless memory ran out, the fit is not tried again.
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
    """Return the final latents predicted by the last step, for Euler's method on a flow.

    For other methods, and before the second step, return the latents as they are.
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
    """Hold an autoencoder that overflows in float16 (SDXL's) in float32 during the body."""
    if vae.dtype != torch.float16 or not vae.config.get("force_upcast"):
        yield
        return
    vae.to(dtype=torch.float32)
    try:
        yield
    finally:
        vae.to(dtype=torch.float16)
