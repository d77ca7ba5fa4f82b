"""A family's entry twice: as this server runs it, and as diffusers runs it alone.

What of an entry's call a request can say goes through the request's fields and the configuration's defaults, the rest
through `defaults.pipeline_arguments`. `tools.models_table` writes what is found of each.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
from cache_dit import DBCacheConfig

from cache_dit_serving.caching.report import CacheReport
from cache_dit_serving.caching.settings import CacheSettings
from cache_dit_serving.config.settings import Limits, ModelSettings, RequestDefaults, ServerSettings, Settings
from cache_dit_serving.engine.capabilities import capabilities_of
from cache_dit_serving.engine.model_info import model_info
from cache_dit_serving.errors import InvalidRequest, LoadError
from cache_dit_serving.jobs.rates import Rates
from cache_dit_serving.media.inputs import InputImage, Inputs
from cache_dit_serving.media.video_input import InputVideo
from cache_dit_serving.pipeline.failure import summary
from cache_dit_serving.pipeline.lora import lora_components
from cache_dit_serving.pipeline.protocol import Loaded, Sampled, Stopped, Unwatched
from cache_dit_serving.planning.plan import plan
from cache_dit_serving.planning.resolve import resolve
from cache_dit_serving.planning.tasks import PARAMETERS, SERVED_TASKS, SOUND_LENGTHS, Input
from cache_dit_serving.schemas.request import GenerateRequest
from tests.support.alone import (
    SEED,
    arguments_of,
    by_diffusers,
    cached_by_diffusers,
    drawn_by_diffusers,
    loaded_by_diffusers,
)
from tests.support.families import ENTRIES, save_family
from tests.support.in_process import Watch, load
from tests.support.loras import write_lora

CACHE = {"Fn_compute_blocks": 1, "Bn_compute_blocks": 0, "max_warmup_steps": 1, "residual_diff_threshold": 0.96}
DEFAULTS = frozenset(RequestDefaults.model_fields) - {"pipeline_arguments"}
SERVERS_OWN = frozenset({"output_type", "prompt", "max_area", "class_labels"})
INPUT_NAMES = {name: each for each, names in PARAMETERS.items() for name in names} | {"control_mask": Input.MASK}
FIELDS = {"mask": Input.MASK, "control": Input.CONTROL, "last_image": Input.LAST_IMAGE, "video": Input.VIDEO}


@dataclass(frozen=True)
class Finding:
    """What became of one entry."""

    state: str
    """cached, uncached (with the reason), broken (in diffusers) or not served (by what the loader says)."""
    tasks: tuple[str, ...] = ()
    reason: str | None = None
    cached_steps: int = 0
    steps: int = 0
    lora: bool = False
    """Whether it draws with a LoRA."""


def settings_of(name: str, folder: Path) -> Settings:
    """The configuration that an operator would write for an entry."""
    entry = ENTRIES[name]
    call = arguments_of(name)
    renamed = {"frames": "num_frames", "frame_rate": "fps"} | dict.fromkeys(SOUND_LENGTHS, "audio_length_s")
    defaults = {renamed.get(key, key): value for key, value in call.items() if renamed.get(key, key) in DEFAULTS}
    others = {
        key: value
        for key, value in call.items()
        if renamed.get(key, key) not in DEFAULTS and key not in SERVERS_OWN and key not in INPUT_NAMES
    }
    known = RequestDefaults.model_validate(
        {key: value for key, value in defaults.items() if value is not None and value != ""}
    )
    dtype = (entry.get("load") or {}).get("torch_dtype", "float32")
    return Settings(
        model=ModelSettings(path=str(folder), dtype=dtype),
        cache=CacheSettings.model_validate(CACHE),
        # Arguments that YAML could not hold: here they need not come from it.
        defaults=RequestDefaults.model_construct(**known.model_dump() | {"pipeline_arguments": others}),
        limits=Limits(min_side=4),
        server=ServerSettings(warm_up=False),
    )


def request_of(name: str, loaded: Loaded, **fields: Any) -> tuple[GenerateRequest, Inputs]:
    """A client's request for what an entry's call asks."""
    call = arguments_of(name)
    given = {INPUT_NAMES[key]: value for key, value in call.items() if key in INPUT_NAMES and value is not None}
    if Input.MASK in given and Input.IMAGE not in given and Input.CONTROL in given:
        given[Input.IMAGE] = given.pop(Input.CONTROL)  # the picture that a ControlNet for inpaint draws anew
    asked: dict[str, Any] = {"seed": SEED} | fields
    if "prompt" in loaded.model.traits.parameters and "class_label" not in asked:
        asked["prompt"] = call.get("prompt") or "an apple"
    if call.get("negative_prompt") == "":  # a configuration's default would be the server's own nothing
        asked["negative_prompt"] = ""
    if Input.CLASS_LABELS in given:
        asked["class_label"] = given.pop(Input.CLASS_LABELS)[0]
    given.pop(Input.PROMPT, None)
    images = given.pop(Input.IMAGE, [])
    images = images if isinstance(images, list) else [images]
    asked["image_urls"] = ["a file"] * len(images) or None
    parts: dict[str, Any] = {"images": tuple(InputImage(image, "") for image in images)}
    for field, each in FIELDS.items():
        if each in given:
            asked[f"{field}_url"] = "a file"
            parts[field] = (
                InputVideo(tuple(given[each]), 16.0, more=False, digest="")
                if each is Input.VIDEO
                else InputImage(given[each], "")
            )
    return GenerateRequest.model_validate(asked), Inputs(**parts)


def draw(name: str, loaded: Loaded, watch: Any = None, **fields: Any) -> Sampled:
    request, inputs = request_of(name, loaded, **fields)
    call = plan(resolve(request, loaded.model), inputs).fitted().call
    return loaded.runner.sample(replace(call, keep_floats=True), watch or Unwatched())


def _save(name: str, folder: Path) -> Path:
    """As far as the class can be built here: what the loader says of one that needs a package is a finding too."""
    try:
        return save_family(name, folder)
    except ImportError:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "model_index.json").write_text(json.dumps({"_class_name": ENTRIES[name]["class"]}), encoding="utf-8")
        return folder


def find(name: str, folder: Path) -> Finding:
    """Hold an entry to what every family must do.

    Raises:
        AssertionError: it does something else.
    """
    saved = _save(name, folder)
    settings, file = settings_of(name, saved), folder / "loras" / "one.safetensors"
    takes_loras = lora_components(getattr(diffusers, ENTRIES[name]["class"]), ENTRIES[name]["components"]) != []
    if takes_loras:
        file.parent.mkdir()
        file.touch()
        settings = settings.model_copy(update={"model": settings.model.model_copy(update={"lora_folder": file.parent})})
    try:
        loaded = load(settings)
    except LoadError as error:
        missing = re.search(r"needs the package (\w+)", str(error))
        return Finding("not served", reason=missing[0] if missing else str(error))
    model = loaded.model
    tasks = tuple(str(task) for task in sorted(model.traits.tasks & SERVED_TASKS))
    try:
        uncached = draw(name, loaded, speed="lossless")
    except Exception as error:  # noqa: BLE001 (whatever it is, diffusers alone must raise the same)
        with pytest.raises(type(error)):
            by_diffusers(name, saved)
        return Finding("broken", tasks, summary(error))
    assert _array(uncached).dtype.kind == "f"
    assert np.isfinite(_array(uncached)).all()
    plain = loaded_by_diffusers(name, saved)
    assert np.array_equal(_array(uncached), drawn_by_diffusers(name, plain)), "not as diffusers makes it"
    with_refusal(name, loaded)
    described(loaded)
    cancelled_within(name, loaded)
    report = cached_as_by_cache_dit(name, loaded, saved, plain, _array(uncached))
    if takes_loras:
        assert not np.array_equal(with_lora(name, loaded, plain, file), _array(uncached)), "a LoRA changes nothing"
        # Of Mochi and Sana not to the last bit on a CPU: a matrix product picks its kernel by where in memory it lies.
        after = _array(draw(name, loaded, speed="lossless"))
        assert np.allclose(after, _array(uncached), rtol=0, atol=1e-5), "the LoRA stays"
    state = "cached" if report.engaged else "uncached"
    reason = None if report.engaged else model.speeds.unfulfilled or report.reason
    return Finding(state, tasks, reason, report.cached_steps, report.steps, lora=takes_loras)


def cached_as_by_cache_dit(
    name: str, loaded: Loaded, folder: Path, plain: Any, uncached: np.ndarray[Any, Any]
) -> CacheReport:
    """Through a cache that reuses nothing it draws as without one, and right after that as cache-dit by itself does.

    Args:
        plain: the pipeline by diffusers, without a cache.
    """
    if loaded.model.speeds.support.refusal is None:
        through = draw(name, loaded, cache={"residual_diff_threshold": 0.0})
        assert np.array_equal(_array(through), uncached), "not as without a cache, though nothing is reused"
    cached = draw(name, loaded)
    report = cached.record.cache
    assert not report.redrawn, "passes were paired wrongly"
    if not report.engaged:
        assert np.array_equal(_array(cached), uncached), "not repeatable"
        return report
    config = DBCacheConfig(**CACHE, enable_separate_cfg=cached.record.passes == 2)
    expected = cached_by_diffusers(name, folder, plain, config)
    assert np.array_equal(_array(cached), expected), "not as cache-dit makes it"
    return report


def with_refusal(name: str, loaded: Loaded) -> None:
    """A field that the model does not honour is refused by name."""
    takes = loaded.model.traits
    fields: dict[str, Any] = {"class_label": 0} if takes.classes is None else {"num_frames": 9}
    with pytest.raises(InvalidRequest) as refused:
        draw(name, loaded, **fields)
    assert refused.value.param in fields, refused.value.message


def with_lora(name: str, loaded: Loaded, plain: Any, file: Path) -> np.ndarray[Any, Any]:
    """A LoRA draws as diffusers has it; returns that.

    Args:
        plain: the pipeline by diffusers, which keeps the LoRA.
        file: in the LoRA folder of `loaded`, and not read yet.
    """
    write_lora(plain, file)
    plain.load_lora_weights(file.parent, weight_name=file.name, adapter_name=file.stem)
    plain.set_adapters([file.stem], [0.8])
    chosen = {"loras": [{"name": file.stem, "scale": 0.8}]}
    expected = drawn_by_diffusers(name, plain)
    assert np.array_equal(_array(draw(name, loaded, speed="lossless", **chosen)), expected), "LoRA: not as diffusers"
    assert np.isfinite(_array(draw(name, loaded, **chosen))).all()
    return expected


def described(loaded: Loaded) -> None:
    """The model's description and its capabilities name what it does."""
    info, able = model_info(loaded), capabilities_of(loaded, Rates())
    assert info.tasks == able.tasks == [str(task) for task in loaded.model.tasks]
    assert info.pipeline_class == able.pipeline_class == loaded.model.traits.pipeline_class
    assert able.cache.supported == (loaded.model.speeds.support.refusal is None)
    assert able.cache.block_lists or not able.cache.supported


def cancelled_within(name: str, loaded: Loaded) -> None:
    """A cancellation stops it after the step it is at."""
    steps: list[int] = []

    class Cancelled(Watch):
        @property
        def cancelled(self) -> bool:  # type: ignore[override]
            return len(steps) >= 2

    with pytest.raises(Stopped):
        draw(name, loaded, Cancelled(steps.append), speed="lossless")
    assert len(steps) <= 3, f"stopped after {len(steps)} steps"


def _array(drawn: Sampled) -> np.ndarray[Any, Any]:
    return drawn.media.array


def gone_wrong(error: Exception) -> str:
    """What stands in the way of a class, in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
