"""From a request to a pipeline call: one pure function, and everything it refuses."""

from __future__ import annotations

import math
import re
import secrets
from dataclasses import dataclass, replace
from typing import Any

from cache_dit_serving.caching.speeds import WITHOUT_CACHE, CacheChoice, SpeedLadder
from cache_dit_serving.config import Limits, RequestDefaults, Settings
from cache_dit_serving.errors import CacheNotEngaged, InvalidRequest
from cache_dit_serving.pipeline.evidence import Record, report_of
from cache_dit_serving.pipeline.traits import PipelineTraits
from cache_dit_serving.schemas import MAX_SEED, CacheReport, GenerateRequest

RANDOM_SEEDS = 2**32
# Fields of a request that go to the pipeline under the same name, where it takes them.
PIPELINE_FIELDS = (
    "prompt",
    "negative_prompt",
    "width",
    "height",
    "num_inference_steps",
    "guidance_scale",
    "true_cfg_scale",
    "sigmas",
)
# Fields that the server honours itself, whatever the pipeline.
SERVER_FIELDS = (
    "seed",
    "num_images",
    "include_stats",
    "output_format",
    "output_dir",
    "image_format",
    "image_quality",
    "speed",
    "cache",
    "deadline_s",
)
FOLDER = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Drawing:
    """One image of a generation."""

    seed: int
    cache: CacheChoice


@dataclass(frozen=True)
class GenerationCall:
    """A request that can run: what reaches the queue."""

    arguments: dict[str, Any]
    """Of the pipeline's call, but for the generator, the callback and the output type."""
    drawings: tuple[Drawing, ...]
    """The images to draw, one after the other."""
    num_inference_steps: int
    separate_cfg: bool
    """Whether each step takes a second forward pass, for guidance."""
    pixels: int
    """width x height of an image."""

    @property
    def passes(self) -> int:
        """Forward passes a step."""
        return 2 if self.separate_cfg else 1

    @property
    def cache(self) -> CacheChoice:
        """What the cache may do to the first image: to all but those of a comparison."""
        return self.drawings[0].cache

    def parameters(self, drawing: Drawing) -> dict[str, Any]:
        """The request that draws an image again when it is asked for alone; stored in its PNG."""
        settings = drawing.cache.settings
        cache = {"enabled": True, **settings.effective()} if settings else {"enabled": False}
        asked = {name: value for name, value in self.arguments.items() if name in PIPELINE_FIELDS}
        return {**asked, "seed": drawing.seed, "cache": cache}

    def compared(self) -> GenerationCall:
        """The same image twice: as asked for, then without the cache.

        Raises:
            InvalidRequest: it asks for several images or for no cache, so that there is nothing to compare.
        """
        if len(self.drawings) > 1:
            raise InvalidRequest("a comparison draws one image; leave num_images out", param="num_images")
        if self.cache.settings is None:
            raise InvalidRequest(
                "there is nothing to compare without a cache "
                f"({self.cache.off.sentence}); send a speed other than lossless, or cache settings",
                param="speed",
            )
        return replace(self, drawings=(self.drawings[0], Drawing(self.drawings[0].seed, WITHOUT_CACHE)))


def plan(request: GenerateRequest, traits: PipelineTraits, settings: Settings, speeds: SpeedLadder) -> GenerationCall:
    """The call that answers `request` on a pipeline with these traits.

    Raises:
        InvalidRequest: a field the pipeline cannot honour, a value out of bounds, or two fields that contradict.
        CacheNotEngaged: `cache.strict`, and it is certain beforehand that no step will be reused.
    """
    defaults, limits = settings.defaults, settings.limits
    _check_supported(request, traits)
    count = _step_count(request, traits, settings)
    arguments: dict[str, Any] = {"prompt": _prompt(request, limits)}
    arguments |= _size(request, traits, settings)
    if traits.takes("num_inference_steps"):
        arguments["num_inference_steps"] = count
    if request.sigmas is not None:
        arguments["sigmas"] = list(request.sigmas)
    arguments |= _guidance(request, traits, defaults)
    arguments |= defaults.pipeline_arguments
    width, height = arguments.get("width", 0), arguments.get("height", 0)
    seeds = _seeds(request, limits)
    pixels = max(1, width * height)
    pixel_steps = pixels * count * len(seeds)
    if pixel_steps > limits.max_pixel_steps:
        raise InvalidRequest(
            f"width x height x num_inference_steps x num_images is {pixel_steps:,}; this server takes at most "
            f"{limits.max_pixel_steps:,} in one request: ask for fewer images or steps, or a smaller size",
            param="num_images" if len(seeds) > 1 else "num_inference_steps",
            code="request_too_large",
        )
    _check_output(request)
    two_passes = separate_cfg(arguments, traits)
    choice = speeds.choose(request.speed, request.cache, num_inference_steps=count, separate_cfg=two_passes)
    call = GenerationCall(
        arguments=arguments,
        drawings=tuple(Drawing(seed, choice) for seed in seeds),
        num_inference_steps=count,
        separate_cfg=two_passes,
        pixels=pixels,
    )
    if choice.strict and choice.settings and choice.settings.cannot_engage(count, passes=call.passes):
        raise not_engaged(report_of(choice, Record(choice.settings, call.passes, {}, []), count))
    return call


def not_engaged(report: CacheReport) -> CacheNotEngaged:
    """What `cache.strict` answers where the cache reused nothing."""
    return CacheNotEngaged(
        f"the cache reused no step: {report.reason}; loosen its settings, or leave cache.strict out",
        param="cache.strict",
        details={"cache": report.model_dump(mode="json")},
    )


def accepted_fields(traits: PipelineTraits) -> list[str]:
    """The fields of a request that a pipeline with these traits honours."""
    fields = [name for name in PIPELINE_FIELDS if traits.takes(name)]
    if not traits.honours_guidance_scale:
        fields = [name for name in fields if name != "guidance_scale"]
    return fields + list(SERVER_FIELDS)


def separate_cfg(arguments: dict[str, Any], traits: PipelineTraits) -> bool:
    """Whether a call makes two forward passes a step, so that the cache must pair them.

    Pipelines with `true_cfg_scale` do so when it is above 1 and there is a negative prompt; other families that
    separate the passes do so unless guidance is off.
    """
    if traits.takes("true_cfg_scale"):
        return _true_cfg_scale(arguments, traits) > 1 and arguments.get("negative_prompt") is not None
    scale = _guidance_scale(arguments, traits)
    return traits.separate_cfg and (scale is None or scale > traits.guides_above)


def _true_cfg_scale(arguments: dict[str, Any], traits: PipelineTraits) -> float:
    return arguments.get("true_cfg_scale", traits.default_true_cfg_scale) or 0.0


def _guidance_scale(arguments: dict[str, Any], traits: PipelineTraits) -> float | None:
    return arguments.get("guidance_scale", traits.default_guidance_scale)


def _check_supported(request: GenerateRequest, traits: PipelineTraits) -> None:
    """Refuse by name what the pipeline does not take, or would take and ignore."""
    accepted = accepted_fields(traits)
    for name in PIPELINE_FIELDS:
        if getattr(request, name) is not None and name not in accepted:
            # The only field that a call can take and ignore is guidance_scale.
            raise _not_honoured(name, traits, " (its weights have no guidance embedding)" if traits.takes(name) else "")


def _prompt(request: GenerateRequest, limits: Limits) -> str:
    for name in ("prompt", "negative_prompt"):
        text = getattr(request, name) or ""
        if len(text) > limits.max_prompt_characters:
            raise InvalidRequest(
                f"{name} has {len(text):,} characters; this server takes at most {limits.max_prompt_characters:,}",
                param=name,
                code="too_long",
            )
    if not request.prompt.strip():
        raise InvalidRequest("prompt is empty; say what to draw", param="prompt")
    return request.prompt


def _size(request: GenerateRequest, traits: PipelineTraits, settings: Settings) -> dict[str, int]:
    sides = {}
    for name in filter(traits.takes, ("width", "height")):
        asked: int | None = getattr(request, name)
        side = asked or getattr(settings.defaults, name) or traits.default_side
        if asked is not None and not _takes_side(side, traits, settings.limits):
            raise InvalidRequest(
                f"{name} {side} is not a size this model takes; it takes {sizes_in_words(traits, settings.limits)}",
                param=name,
            )
        sides[name] = side
    return sides


def _takes_side(side: int, traits: PipelineTraits, limits: Limits) -> bool:
    if limits.sizes is not None:
        return side in limits.sizes
    return limits.min_side <= side <= limits.max_side and side % traits.size_multiple == 0


def sizes_in_words(traits: PipelineTraits, limits: Limits) -> str:
    if limits.sizes is not None:
        return ", ".join(str(side) for side in limits.sizes)
    return f"multiples of {traits.size_multiple} from {limits.min_side} to {limits.max_side}"


def _step_count(request: GenerateRequest, traits: PipelineTraits, settings: Settings) -> int:
    """How many steps run: given sigmas decide, and must agree with a given number."""
    asked = request.num_inference_steps
    if request.sigmas is not None:
        if asked is not None and asked != len(request.sigmas):
            raise InvalidRequest(
                f"sigmas holds {len(request.sigmas)} noise levels but num_inference_steps is {asked}; "
                "leave one of them out or make them agree",
                param="sigmas",
            )
        if any(later >= earlier for earlier, later in zip(request.sigmas, request.sigmas[1:], strict=False)):
            raise InvalidRequest("sigmas must decrease from each noise level to the next", param="sigmas")
        if traits.flow_matching and not (request.sigmas[0] <= 1 and request.sigmas[-1] > 0):
            raise InvalidRequest("sigmas of this model lie above 0 and at most at 1", param="sigmas")
        asked = len(request.sigmas)
    count = asked or settings.defaults.num_inference_steps or traits.default_num_inference_steps
    param = "num_inference_steps" if request.sigmas is None else "sigmas"
    if count > settings.limits.max_num_inference_steps:
        raise InvalidRequest(
            f"{count:,} steps are more than the {settings.limits.max_num_inference_steps:,} this server takes",
            param=param,
        )
    if count < traits.least_num_inference_steps:
        raise InvalidRequest(
            f"this model's scheduler needs at least {traits.least_num_inference_steps} steps",
            param=param,
        )
    return count


def _guidance(request: GenerateRequest, traits: PipelineTraits, defaults: RequestDefaults) -> dict[str, Any]:
    """Guidance arguments, none of which the pipeline would silently ignore."""
    arguments: dict[str, Any] = {}
    for name in ("guidance_scale", "true_cfg_scale", "negative_prompt"):
        asked = getattr(request, name)
        value = asked if asked is not None else getattr(defaults, name)
        if value is not None and traits.takes(name):
            arguments[name] = value
    if traits.takes("true_cfg_scale"):
        true_cfg_scale = _true_cfg_scale(arguments, traits)
        if request.negative_prompt and true_cfg_scale <= 1:
            raise InvalidRequest(
                "negative_prompt has no effect on this model without true_cfg_scale above 1; send both",
                param="negative_prompt",
            )
        if request.true_cfg_scale is not None and true_cfg_scale > 1 and "negative_prompt" not in arguments:
            raise InvalidRequest(
                "true_cfg_scale above 1 has no effect on this model without negative_prompt; send both "
                '("negative_prompt": " " for none in particular)',
                param="true_cfg_scale",
            )
        if request.true_cfg_scale is not None and request.true_cfg_scale < 1:
            raise InvalidRequest(
                "true_cfg_scale below 1 has no effect on this model; leave it out, or send 1 for no guidance",
                param="true_cfg_scale",
            )
    elif request.negative_prompt:
        scale = _guidance_scale(arguments, traits)
        if math.isinf(traits.guides_above):
            raise _not_honoured("negative_prompt", traits, " (it never guides)")
        if scale is not None and scale <= traits.guides_above:
            raise InvalidRequest(
                f"negative_prompt has no effect with guidance_scale {scale:g}; "
                f"send a guidance_scale above {traits.guides_above:g} with it",
                param="negative_prompt",
            )
    return arguments


def _seeds(request: GenerateRequest, limits: Limits) -> tuple[int, ...]:
    count = request.num_images or 1
    if count > limits.max_num_images:
        raise InvalidRequest(
            f"num_images is {count:,}; this server draws at most {limits.max_num_images} in one request",
            param="num_images",
        )
    first = secrets.randbelow(RANDOM_SEEDS) if request.seed is None else request.seed
    if first + count - 1 > MAX_SEED:
        raise InvalidRequest(f"seed + num_images - 1 must not pass {MAX_SEED}", param="seed")
    return tuple(range(first, first + count))


def _check_output(request: GenerateRequest) -> None:
    if request.image_quality is not None and request.encoding == "png":
        raise InvalidRequest(
            'image_quality has no effect on png, which is lossless; send "image_format": "jpeg" or "webp" with it',
            param="image_quality",
        )
    if request.output_dir is None:
        return
    if not request.wants_files:
        raise InvalidRequest(
            'output_dir has no effect with output_format base64; send "output_format": "path" or "url" with it',
            param="output_dir",
        )
    if not all(FOLDER.fullmatch(part) for part in request.output_dir.split("/")):
        raise InvalidRequest(
            "output_dir must be a folder relative to the server's output folder: names of letters, digits, "
            "'.', '_' and '-', with '/' between them, none beginning with '.'",
            param="output_dir",
        )


def _not_honoured(name: str, traits: PipelineTraits, detail: str = "") -> InvalidRequest:
    return InvalidRequest(
        f"{traits.pipeline_class} as loaded does not take {name}{detail}; it takes: "
        f"{', '.join(accepted_fields(traits))}",
        param=name,
        code="unsupported_field",
    )
