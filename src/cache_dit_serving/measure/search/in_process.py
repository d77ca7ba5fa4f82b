"""Drawer that loads the model into this process."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from pydantic import ValidationError

from cache_dit_serving.caching.checks import check_model, check_request
from cache_dit_serving.caching.settings import CACHE_TYPES, CacheSettings
from cache_dit_serving.caching.speeds import WITHOUT_CACHE, CacheChoice
from cache_dit_serving.config.settings import Settings
from cache_dit_serving.errors import ConfigError, InvalidRequest, LoadError, OutOfMemory
from cache_dit_serving.findings import findings_of
from cache_dit_serving.measure.search.drawer import CannotDraw, Drawn, Interrupted, Subject, diffs_of
from cache_dit_serving.measure.search.points import Case, Point
from cache_dit_serving.media.values import AudioOutput
from cache_dit_serving.pipeline.protocol import Loaded, Sampled, Stopped, TakePreview
from cache_dit_serving.planning.call import ImageCall
from cache_dit_serving.planning.model import usual_steps
from cache_dit_serving.planning.plan import plan
from cache_dit_serving.planning.resolve import resolve
from cache_dit_serving.schemas.request import GenerateRequest


class _Watch:
    """Watch that stops an output once the user has interrupted."""

    def __init__(self, interrupted: Callable[[], bool]) -> None:
        self._interrupted = interrupted

    @property
    def cancelled(self) -> bool:
        return self._interrupted()

    def progress(self, done: int, cached: int) -> None:
        pass

    def preview(self, done: int, take: TakePreview) -> None:
        pass


class InProcess:
    """Drawer of a loaded model. Seconds are the pipeline's own, by the device's clock where it has one."""

    def __init__(self, loaded: Loaded, fields: Mapping[str, Any], interrupted: Callable[[], bool]) -> None:
        """
        Args:
            fields: fields of every request beside the prompt and the seed; `num_inference_steps` is the reference's.

        Raises:
            ConfigError: a request with these fields cannot be planned.
        """
        self._loaded = loaded
        self._fields = {name: value for name, value in fields.items() if name != "num_inference_steps"}
        self._watch = _Watch(interrupted)
        steps = fields.get("num_inference_steps") or loaded.model.usual_steps
        call = self._planned(Case("a test", 0), steps)
        self._subject = _subject(loaded, steps, call, self._fields)

    @classmethod
    def load(
        cls,
        settings: Settings,
        fields: Mapping[str, Any],
        interrupted: Callable[[], bool],
        progress: Callable[[str], None],
    ) -> InProcess:
        """Load the model of a configuration, and draw one output that is not measured.

        Raises:
            LoadError: the model cannot be loaded, or draws nothing.
            ConfigError: a request with these fields cannot be planned.
            Interrupted: the user has interrupted.
        """
        from cache_dit_serving.pipeline.assemble import assemble
        from cache_dit_serving.ranks.ranked import RankedRunner

        start = RankedRunner.start if settings.parallelism else assemble
        drawer = cls(start(for_measuring(settings), progress), fields, interrupted)
        progress("drawing one output that is not measured")
        try:
            drawer.draw(Case("a test", 0), Point(drawer.subject.steps))
        except Interrupted:
            drawer.close()
            raise
        except CannotDraw as error:
            drawer.close()
            raise LoadError(f"an output without a cache cannot be drawn: {error}") from error
        return drawer

    @property
    def subject(self) -> Subject:
        return self._subject

    def draw(self, case: Case, point: Point) -> Drawn:
        """Draw; see :class:`Drawer`. An output for which torch compiled graphs is drawn a second time."""
        call = replace(self._planned(case, point.steps), cache=self._choice(point), keep_floats=True)
        sampled = self._sample(call)
        if sampled.record.compiled_graphs:
            sampled = self._sample(call)
        record = sampled.record
        media = sampled.media
        if (not isinstance(media, AudioOutput) and not media.finite) or _has_nan(media.array):
            raise CannotDraw("the output is not finite")
        return Drawn(media, record.seconds, record.cache.cached_steps, diffs_of(record.stats))

    def close(self) -> None:
        self._loaded.runner.close()

    def _sample(self, call: ImageCall) -> Sampled:
        try:
            return self._loaded.runner.sample(call, self._watch)
        except Stopped:
            raise Interrupted from None
        except OutOfMemory as error:
            raise CannotDraw("the device has too little memory") from error

    def _choice(self, point: Point) -> CacheChoice:
        return (
            WITHOUT_CACHE
            if point.settings is None
            else CacheChoice(self._checked(point.steps, point.settings), "custom")
        )

    @functools.lru_cache(maxsize=256)  # noqa: B019 (one drawer lives as long as its process)
    def _checked(self, steps: int, settings: CacheSettings) -> CacheSettings:
        try:
            check_model(settings, self._loaded.model.speeds.support)
            check_request(settings, steps, self._passes, set())
        except InvalidRequest as error:
            raise CannotDraw(error.message) from error
        if (reason := settings.cannot_engage(steps, passes=self._passes)) is not None:
            raise CannotDraw(reason.sentence)
        return settings

    def _planned(self, case: Case, steps: int) -> ImageCall:
        given = {**self._fields, "prompt": case.prompt, "seed": case.seed, "num_inference_steps": steps}
        try:
            request = GenerateRequest.model_validate({**given, "speed": "lossless"})
            call = plan(resolve(request, self._loaded.model)).fitted().call
        except ValidationError as error:
            finding = findings_of(error)[0]
            raise ConfigError(f"--field {finding.field}: {finding.message}") from error
        except InvalidRequest as error:
            raise ConfigError(
                f"a request with a prompt alone cannot be drawn by this model: {error.message}"
            ) from error
        self._passes = call.passes
        return replace(call, seed=case.seed)


def for_measuring(settings: Settings) -> Settings:
    """Return the settings without all that would change the times: warm-up, previews, prompt cache, traces."""
    return settings.model_copy(
        update={
            "server": settings.server.model_copy(update={"warm_up": settings.compile is not None}),
            "speeds": settings.speeds.model_copy(update={"warm_up": False, "ceiling": None}),
            "previews": settings.previews.model_copy(update={"allow": False}),
            "limits": settings.limits.model_copy(update={"prompt_cache_bytes": 0}),
            "profiling": type(settings.profiling)(),
        }
    )


def _subject(loaded: Loaded, steps: int, call: ImageCall, fields: Mapping[str, Any]) -> Subject:
    model, facts = loaded.model, loaded.runner.facts
    support = model.speeds.support
    usual = usual_steps(model.traits, model.defaults)
    rungs: dict[str, Point] = {
        name: Point(rung.steps or steps, rung.settings)
        for name, rung in model.speeds.rungs.items()
        if rung.settings is not None
    }
    facts_shown = {
        "device": device_name(facts.device),
        "dtype": facts.dtype,
        "attention": facts.attention_backend,
        "quantised": ", ".join(part.name for part in facts.quantized) or "nothing",
        "versions": ", ".join(f"{name} {version}" for name, version in facts.versions.items()),
        "request": ", ".join(f"{name} {value}" for name, value in sorted(_plain(call, fields).items())),
    }
    if not facts_shown["request"]:
        del facts_shown["request"]
    return Subject(
        name=facts.name,
        kind=model.traits.makes,
        steps=steps,
        least_steps=model.traits.steps.least,
        block_lists=support.block_lists,
        cache_types=tuple(each for each in CACHE_TYPES if each not in support.refusals),
        usual_steps=usual,
        configured=rungs,
        conditions=facts_shown,
    )


def _plain(call: ImageCall, fields: Mapping[str, Any]) -> dict[str, Any]:
    names = ("width", "height", "num_frames")
    sizes: dict[str, Any] = {name: call.arguments[name] for name in names if name in call.arguments}
    return {**sizes, **fields}


def device_name(device: str) -> str:
    """Return the accelerator's or the processor's name."""
    import os
    import platform

    import torch

    if device.startswith("cuda"):
        return str(torch.cuda.get_device_name(device))
    return f"{device}, {os.cpu_count()} cores, {platform.machine()}"


def _has_nan(array: Any) -> bool:
    import numpy as np

    return bool(array.dtype.kind == "f" and not np.isfinite(array).all())
