"""A planned request: the calls of its outputs, and all that its answer and its files say beside."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from PIL import Image

from cache_dit_serving.caching.evidence import Record, report_of
from cache_dit_serving.caching.report import CacheReport
from cache_dit_serving.caching.speeds import WITHOUT_CACHE, CacheChoice
from cache_dit_serving.errors import CacheNotEngaged, InvalidRequest
from cache_dit_serving.media.inputs import NO_INPUTS, Inputs
from cache_dit_serving.media.kinds import OutputSpec
from cache_dit_serving.planning.call import ImageCall
from cache_dit_serving.planning.fields import PIPELINE_FIELDS
from cache_dit_serving.planning.fitting import Fitting, Resize
from cache_dit_serving.planning.shadow import ShadowCalls
from cache_dit_serving.schemas.answers import RequestWarning

PNG = OutputSpec("png")


@dataclass(frozen=True)
class Planned:
    """A request that can run."""

    calls: tuple[ImageCall, ...]
    """One call for each output, in order. They differ in seed and cache choice alone."""
    output: OutputSpec = PNG
    recorded: Mapping[str, Any] = field(default_factory=dict)
    """Effective values of request fields that the arguments hold under other names."""
    inputs: Inputs = NO_INPUTS
    """Images and videos among the arguments."""
    fittings: tuple[Fitting, ...] = ()
    """Resizing of the inputs whose size differs from the output's; empty once it is done."""
    warnings: tuple[RequestWarning, ...] = ()
    shadow: ShadowCalls | None = None
    """Calls to compare once nothing waits; None: the request is not drawn again."""

    @property
    def call(self) -> ImageCall:
        """The call of the first output."""
        return self.calls[0]

    @property
    def cache(self) -> CacheChoice:
        """Cache choice of the first output. Only a comparison's outputs differ in it."""
        return self.call.cache

    @property
    def steps(self) -> int:
        """Denoising steps of all outputs."""
        return sum(call.num_inference_steps for call in self.calls)

    @property
    def to_resize(self) -> tuple[Fitting, ...]:
        """Fittings that this server does before the call, not the pipeline."""
        return tuple(fitting for fitting in self.fittings if not fitting.by_pipeline)

    def fitted(self, resize: Resize = Fitting.resized) -> Planned:
        """Return the request with its images and frames resized. Idempotent."""
        images: dict[int, Image.Image] = {}
        for fitting in self.to_resize:
            for image in self.inputs.images_of(fitting.field):
                if id(image) not in images:  # a frame may appear several times in a video
                    images[id(image)] = resize(fitting, image)
        if not images:
            return self
        arguments = {name: _exchanged(value, images) for name, value in self.call.arguments.items()}
        calls = tuple(replace(call, arguments=arguments) for call in self.calls)
        return replace(self, calls=calls, inputs=self.inputs.exchanged(images), fittings=())

    def for_caller(self, name: str) -> Planned:
        """The same request of a named sender."""
        return replace(self, calls=tuple(replace(call, caller=name) for call in self.calls))

    def parameters(self, call: ImageCall) -> dict[str, Any]:
        """Return the request that redraws one output alone, as stored in its file.

        Input images and videos are given by the SHA-256 of their files.
        """
        settings = call.cache.settings
        cache = {"enabled": True, **settings.effective()} if settings else {"enabled": False}
        fields = {name: value for name, value in call.arguments.items() if name in PIPELINE_FIELDS}
        return {**fields, **self.recorded, **self.inputs.digests, "seed": call.seed, "cache": cache}

    def compared(self) -> Planned:
        """Return the request that draws its output twice: with the requested cache, then without.

        Raises:
            InvalidRequest: it is for several outputs, or runs no cache.
        """
        if len(self.calls) > 1:
            raise InvalidRequest("a comparison draws one image; leave num_images out", param="num_images")
        if self.cache.settings is None:
            raise InvalidRequest(
                "there is nothing to compare without a cache "
                f"({self.cache.no_cache_reason.sentence}); send a speed other than lossless, or cache settings",
                param="speed",
            )
        cached = replace(self.call, keep_floats=True)
        uncached = replace(cached, cache=WITHOUT_CACHE)
        return replace(self, calls=(cached, uncached), output=replace(self.output, keep_media=True))

    def check_engages(self) -> None:
        """Refuse a request with `cache.strict` if its settings can reuse no step.

        Raises:
            CacheNotEngaged: no step can be reused; the error holds the cache report.
        """
        choice, steps, passes = self.cache, self.call.num_inference_steps, self.call.passes
        if choice.strict and choice.settings and choice.settings.cannot_engage(steps, passes=passes):
            raise not_engaged(report_of(choice, Record(choice.settings, passes, {}, []), steps))


def _exchanged(value: Any, images: Mapping[int, Image.Image]) -> Any:
    """Return an argument with images replaced, by identity."""
    if isinstance(value, list):
        return [_exchanged(each, images) for each in value]
    return images.get(id(value), value)


def not_engaged(report: CacheReport) -> CacheNotEngaged:
    """The error of `cache.strict` for a cache that reused nothing."""
    return CacheNotEngaged(
        f"the cache reused no step: {report.reason}; loosen its settings, or leave cache.strict out",
        param="cache.strict",
        details={"cache": report.model_dump(mode="json")},
    )
