"""`GET /capabilities`: what this server accepts, with the bounds of the loaded model and the operator's limits."""

from __future__ import annotations

import functools
from typing import Any, Literal

from pydantic import BaseModel

from cache_dit_serving.caching.parts import PARTS
from cache_dit_serving.caching.settings import CACHE_TYPES, CacheOptions, CacheSettings
from cache_dit_serving.caching.speed_settings import Speed
from cache_dit_serving.caching.speeds import SpeedLadder
from cache_dit_serving.engine.quality import Quality
from cache_dit_serving.engine.quality_report import live_figures
from cache_dit_serving.errors import InvalidRequest
from cache_dit_serving.jobs.rates import Estimate, Rates
from cache_dit_serving.pipeline.protocol import Loaded
from cache_dit_serving.planning.example import example_of
from cache_dit_serving.planning.fields import offered_fields
from cache_dit_serving.planning.model import PlannedModel
from cache_dit_serving.planning.plan import plan
from cache_dit_serving.planning.resolve import resolve
from cache_dit_serving.schemas.answers import CacheCapability, Capabilities, SpeedCapability
from cache_dit_serving.schemas.request import GenerateRequest

Schema = dict[str, Any]


def capabilities_of(loaded: Loaded, rates: Rates, quality: Quality | None = None) -> Capabilities:
    """Return the answer for a loaded model.

    Args:
        quality: evidence of live traffic; None: there is none.
    """
    model = loaded.model
    return Capabilities(
        model=loaded.runner.facts.name,
        pipeline_class=model.traits.pipeline_class,
        tasks=[str(task) for task in model.tasks],
        fields=_fields(model),
        size_multiple=None if model.traits.audio else model.traits.sizes.multiple,
        limits=model.limits.model_dump(mode="json") | {"max_pixel_steps": model.max_pixel_steps},
        speeds=_speeds(model, rates, quality),
        measured_on=model.speeds.measured_on,
        cache=_cache(model.speeds),
        attention_backends=list(loaded.runner.facts.usable.attention_backends),
        quant_types=list(loaded.runner.facts.usable.quant_types),
        rates=rates.by_shape(),
    )


def _fields(model: PlannedModel) -> dict[str, Schema]:
    properties = _document(GenerateRequest)["properties"]
    schemas: dict[str, Schema] = {}
    for field, variant in offered_fields(model):
        described = properties[field.name]
        if field.name == "cache":
            # Its fields stand in the section `cache`.
            schemas[field.name] = {"type": "object", "description": described["description"]}
            continue
        schema = _without_null(described) | field.schema(variant)
        if "enum" in schema:  # it says it all
            schema.pop("minimum", None)
        if (default := field.default(variant)) is not None:
            schema["default"] = default
        schemas[field.name] = schema
    return schemas


def _speeds(model: PlannedModel, rates: Rates, quality: Quality | None) -> list[SpeedCapability]:
    speeds = model.speeds
    answers = []
    for name, rung in speeds.rungs.items():
        allowed = name in speeds.allowed
        estimate = _estimate(name, model, rates) if allowed else None
        seconds = round(estimate.seconds, 4) if estimate and estimate.known and estimate.seconds else None
        answers.append(
            SpeedCapability(
                name=name,
                allowed=allowed,
                default=speeds.default_speed == name,
                settings=rung.settings.effective() if rung.settings else None,
                settings_hash=rung.settings.digest() if rung.settings else None,
                num_inference_steps=model.step_count_at(name, None),
                measured=rung.measured,
                live=live_figures(quality, name) if quality else None,
                lowered_to=quality.lowered.get(name) if quality else None,
                seconds=seconds,
                seconds_from=None if seconds is None else _source(rates, rung.settings),
            )
        )
    return answers


def _source(rates: Rates, settings: CacheSettings | None) -> Literal["warm_up", "traffic"]:
    return "traffic" if rates.knows_requests(settings) else "warm_up"


def _estimate(speed: Speed, model: PlannedModel, rates: Rates) -> Estimate | None:
    """Return the estimate of a request with the defaults; None where a speed's settings do not go with those."""
    try:
        request, inputs = example_of(model, speed=speed)
        return rates.estimate(plan(resolve(request, model), inputs))
    except InvalidRequest:
        return None


def _cache(speeds: SpeedLadder) -> CacheCapability:
    support = speeds.support
    fields: dict[str, Schema] = {}
    if support.refusal is None:
        document = _document(CacheOptions)
        fields = {
            name: _without_null(_inlined(schema, document.get("$defs", {})))
            for name, schema in document["properties"].items()
        }
        least = min(support.block_lists.values())
        longest = max(support.block_lists.values())
        fields["Fn_compute_blocks"]["maximum"] = min(least, longest - 1)  # one block is left to reuse
        fields["Bn_compute_blocks"]["maximum"] = min(least - 1, longest - 2)  # and one decides
        fields["non_prune_block_ids"]["items"]["maximum"] = longest - 1
        for name in PARTS:
            fields[name]["propertyNames"] = {"enum": support.names(name)}
        base = speeds.base
        for name, value in base.effective().items():
            fields[name]["default"] = value
    return CacheCapability(
        supported=support.refusal is None,
        reason=support.refusal,
        types={name: name not in support.refusals for name in CACHE_TYPES},
        block_lists=dict(support.block_lists),
        default=speeds.default.effective() if speeds.default else None,
        fields=fields,
    )


@functools.cache
def _document(model: type[BaseModel]) -> Schema:
    return model.model_json_schema()


def _inlined(schema: Any, definitions: dict[str, Schema]) -> Any:
    """A schema that stands by itself: what it refers to put in its place."""
    if isinstance(schema, list):
        return [_inlined(item, definitions) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _inlined(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    return {key: _inlined(value, definitions) for key, value in schema.items()}


def _without_null(schema: Schema) -> Schema:
    """A field's schema without the null that stands for left out."""
    shown = {key: value for key, value in schema.items() if key not in ("anyOf", "title") and value is not None}
    choices = [choice for choice in schema.get("anyOf", ()) if choice != {"type": "null"}]
    if len(choices) == 1:
        return {**choices[0], **shown}
    return {**shown, "anyOf": choices} if choices else shown
