"""A request that can run: what reaches the queue."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from PIL import Image

from cache_dit_serving.caching.evidence import Record, report_of
from cache_dit_serving.caching.report import CacheReport
from cache_dit_serving.caching.speeds import WITHOUT_CACHE, CacheChoice
from cache_dit_serving.errors import CacheNotEngaged, InvalidRequest
from cache_dit_serving.media.formats import OutputSpec
from cache_dit_serving.media.inputs import NO_INPUTS, Inputs
from cache_dit_serving.media.values import MediaKind
from cache_dit_serving.planning.fields import PIPELINE_FIELDS
from cache_dit_serving.planning.fitting import Fitting, Resize
from cache_dit_serving.planning.loras import LoraChoice
from cache_dit_serving.planning.model import AskedToProfile
from cache_dit_serving.schemas.answers import RequestWarning


@dataclass(frozen=True)
class Drawing:
    """One image of a generation."""

    seed: int
    cache: CacheChoice


@dataclass(frozen=True)
class ClipSpec:
    num_frames: int
    fps: float
    """At which the clip is to be shown."""


@dataclass(frozen=True)
class GenerationCall:
    """A request that can run."""

    arguments: dict[str, Any]
    """Of the pipeline's call, but for the generator, the callback and the output type."""
    drawings: tuple[Drawing, ...]
    """The images to draw, one after the other."""
    num_inference_steps: int
    """Denoising steps that run; a call with a strength leaves some of those of its arguments out."""
    passes: int
    """Forward passes a step: 2 where guidance takes one of its own."""
    pipeline_class: str
    """Of the pipeline that runs it: the loaded one's, or a sibling's of the same weights."""
    pixels: int
    """width x height of an image; of a clip, times its frames; of a sound, its samples."""
    loras: tuple[LoraChoice, ...] = ()
    """Those that it draws with, in the order in which they are added; but for fused ones."""
    recorded: dict[str, Any] = field(default_factory=dict)
    """Fields of the request as they were used, of which the arguments have other names."""
    clip: ClipSpec | None = None
    """Where the call makes a clip."""
    profile: AskedToProfile = AskedToProfile.NO
    makes: MediaKind = MediaKind.PICTURE
    inputs: Inputs = NO_INPUTS
    """The pictures and videos among the arguments."""
    fittings: tuple[Fitting, ...] = ()
    """What becomes of those that have another size than the one that is drawn."""
    output: OutputSpec = field(default_factory=OutputSpec)
    warnings: tuple[RequestWarning, ...] = ()
    """Parts of the request that had no effect."""
    caller: str = ""
    """Name of the sender. Embeddings of one caller's prompts are kept apart from another's."""

    @property
    def to_resize(self) -> tuple[Fitting, ...]:
        """The fittings that are not left to the pipeline."""
        return tuple(fitting for fitting in self.fittings if not fitting.by_pipeline)

    def fitted(self, resize: Resize = Fitting.resized) -> GenerationCall:
        """The same call with its pictures and frames as the pipeline is to be given them; once more changes nothing."""
        images: dict[int, Image.Image] = {}
        for fitting in self.to_resize:
            for image in self.inputs.images_of(fitting.field):
                if id(image) not in images:  # a video's frame may stand there several times
                    images[id(image)] = resize(fitting, image)
        if not images:
            return self
        arguments = {name: _exchanged(value, images) for name, value in self.arguments.items()}
        return replace(self, arguments=arguments, inputs=self.inputs.exchanged(images), fittings=())

    @property
    def cache(self) -> CacheChoice:
        """What the cache may do to the first image: to all but those of a comparison."""
        return self.drawings[0].cache

    def parameters(self, drawing: Drawing) -> dict[str, Any]:
        """The request that draws an image again when it is sent alone; stored in its file.

        Pictures and videos that it brought stand there by the SHA-256 of their files.
        """
        settings = drawing.cache.settings
        cache = {"enabled": True, **settings.effective()} if settings else {"enabled": False}
        fields = {name: value for name, value in self.arguments.items() if name in PIPELINE_FIELDS}
        pictures: dict[str, Any] = {}
        if self.inputs.images:
            pictures["image_urls"] = [f"sha256:{picture.digest}" for picture in self.inputs.images]
        for name in ("mask", "control", "last_image", "video"):
            brought = getattr(self.inputs, name)
            if brought is not None:
                pictures[f"{name}_url"] = f"sha256:{brought.digest}"
        return {**fields, **self.recorded, **pictures, "seed": drawing.seed, "cache": cache}

    def compared(self) -> GenerationCall:
        """The same image twice: as asked for, then without the cache.

        Raises:
            InvalidRequest: it is for several images or without a cache, so that there is nothing to compare.
        """
        if len(self.drawings) > 1:
            raise InvalidRequest("a comparison draws one image; leave num_images out", param="num_images")
        if self.cache.settings is None:
            raise InvalidRequest(
                "there is nothing to compare without a cache "
                f"({self.cache.no_cache_reason.sentence}); send a speed other than lossless, or cache settings",
                param="speed",
            )
        uncached = Drawing(self.drawings[0].seed, WITHOUT_CACHE)
        return replace(self, drawings=(self.drawings[0], uncached), output=replace(self.output, keep_media=True))

    def check_engages(self) -> None:
        """Refuse a strict request of which it is certain beforehand that no step will be reused.

        Raises:
            CacheNotEngaged: with the evidence.
        """
        choice, steps = self.cache, self.num_inference_steps
        if choice.strict and choice.settings and choice.settings.cannot_engage(steps, passes=self.passes):
            raise not_engaged(report_of(choice, Record(choice.settings, self.passes, {}, []), steps))


def _exchanged(value: Any, images: Mapping[int, Image.Image]) -> Any:
    """An argument with images in the place of those that they replace, by their identity."""
    if isinstance(value, list):
        return [_exchanged(each, images) for each in value]
    return images.get(id(value), value)


def not_engaged(report: CacheReport) -> CacheNotEngaged:
    """What `cache.strict` answers where the cache reused nothing."""
    return CacheNotEngaged(
        f"the cache reused no step: {report.reason}; loosen its settings, or leave cache.strict out",
        param="cache.strict",
        details={"cache": report.model_dump(mode="json")},
    )
