"""Tables of request fields and settings in docs/. `python -m tools.schema_tables` writes them from the schemas.

A page marks the place of a table by two comments, and may name some of the schema's fields:

    <!-- generated: Limits -->
    <!-- generated: ModelSettings only offload device_map -->
    <!-- generated: ModelSettings except loras -->
    ...
    <!-- end -->
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic_core import to_jsonable_python

from cache_dit_serving.caching.settings import CacheOptions, CacheSettings
from cache_dit_serving.caching.speed_settings import FloorSettings, MeasuredSpeed, SpeedSettings, SpeedsSettings
from cache_dit_serving.config.acceleration import (
    CompileSettings,
    ParallelismSettings,
    ProfilingSettings,
    QuantizeSettings,
)
from cache_dit_serving.config.c2pa import C2paSettings
from cache_dit_serving.config.model_entry import ModelEntry
from cache_dit_serving.config.residency import ResidencySettings
from cache_dit_serving.config.safety import SafetySettings
from cache_dit_serving.config.settings import (
    AboutSettings,
    InputSettings,
    JobsSettings,
    Limits,
    LoraSettings,
    ModelSettings,
    OutputSettings,
    PreviewSettings,
    RequestDefaults,
    ServerSettings,
    WebhookSettings,
)
from cache_dit_serving.config.shadow import ShadowSettings
from cache_dit_serving.schemas.request import MAX_SEED, GenerateRequest, JobRequest
from tests.support.server import ROOT

PAGES = (ROOT / "docs" / "api.md", ROOT / "docs" / "configuration.md")
REQUESTS: tuple[type[BaseModel], ...] = (GenerateRequest, JobRequest, CacheOptions)
"""Schemas of requests. Their defaults are the model's, and stand in the descriptions."""
SETTINGS: tuple[type[BaseModel], ...] = (
    AboutSettings,
    ModelSettings,
    LoraSettings,
    CacheSettings,
    SpeedsSettings,
    SpeedSettings,
    FloorSettings,
    MeasuredSpeed,
    QuantizeSettings,
    ParallelismSettings,
    CompileSettings,
    RequestDefaults,
    Limits,
    InputSettings,
    OutputSettings,
    C2paSettings,
    JobsSettings,
    WebhookSettings,
    PreviewSettings,
    SafetySettings,
    ShadowSettings,
    ProfilingSettings,
    ModelEntry,
    ResidencySettings,
    ServerSettings,
)
SCHEMAS = {schema.__name__: schema for schema in (*REQUESTS, *SETTINGS)}
SEE = {
    "GenerateRequest.scheduler": "[Samplers](#samplers)",
    "GenerateRequest.shift": "[Samplers](#samplers)",
    "ModelSettings.schedulers": "[Samplers](api.md#samplers)",
    "GenerateRequest.loras": "[LoRA](#lora)",
    "GenerateRequest.image_urls": "[Pictures and videos in](#pictures-and-videos-in)",
    "GenerateRequest.fit": "[Pictures and videos in](#pictures-and-videos-in)",
    "GenerateRequest.speed": "[Speeds](#speeds)",
    "GenerateRequest.cache": "[Cache settings](#cache-settings)",
    "GenerateRequest.priority": "[Who is next](#who-is-next)",
    "GenerateRequest.deadline_s": "[Deadlines](#deadlines)",
    "GenerateRequest.profile": "[Profiling](configuration.md#profiling)",
    "JobRequest.webhook_url": "[Webhooks](configuration.md#webhooks)",
    "CompileSettings.mode": "[Measured](benchmarks/compile.md)",
    "Limits.max_priority": "[Who is next](api.md#who-is-next)",
    "Limits.max_step_s": "[A pipeline that stands still](operations.md#a-pipeline-that-stands-still)",
    "Limits.prompt_cache_bytes": "[What it saves](benchmarks/prompt-cache.md)",
    "OutputSettings.store_options": "[obstore](https://developmentseed.org/obstore/latest/api/store/aws/)",
    "JobsSettings.database": "[SQLAlchemy](https://docs.sqlalchemy.org/en/21/core/engines.html#database-urls)",
    "WebhookSettings.hosts": "[Webhooks](api.md#webhooks)",
    "ServerSettings.gpus_per_worker": "[Memory](#memory)",
    "ServerSettings.model_names": "[OpenAI's API](openai.md)",
    "ServerSettings.api_keys": "[Keys](api.md#keys)",
    "ServerSettings.cors_origins": "[Pages of other sites](api.md#pages-of-other-sites)",
    "ServerSettings.queue_order": "[Who is next](api.md#who-is-next)",
    "ServerSettings.switch_after_s": "[Several models](#several-models)",
    "ServerSettings.sleep_after_s": "[Sleep and wake](sleep.md)",
    "ServerSettings.log_level": "[The log](operations.md#the-log)",
    "ServerSettings.on_load_failure": "[Start](operations.md#start)",
}
"""Links after a description, by schema and field. A description itself has none: OpenAPI and `--help` show it too."""
PART = re.compile(
    r"(?P<mark><!-- generated: (?P<schema>\w+)(?: (?P<how>only|except) (?P<names>[\w ]+?))? -->\n).*?(?=<!-- end -->)",
    re.DOTALL,
)


def parts(page: str) -> Iterator[tuple[str, list[str]]]:
    """Yield the schema and the fields of each table that a page marks."""
    for found in PART.finditer(page):
        yield found["schema"], _fields(found)


def with_tables(page: str) -> str:
    """Return the page with each of its tables written anew."""
    return PART.sub(lambda found: f"{found['mark']}{_table(SCHEMAS[found['schema']], _fields(found))}", page)


def _fields(found: re.Match[str]) -> list[str]:
    every, named = list(SCHEMAS[found["schema"]].model_fields), (found["names"] or "").split()
    if unknown := set(named) - set(every):
        raise ValueError(f"{found['schema']} has no {', '.join(sorted(unknown))}")
    if found["how"] == "only":
        return named
    return [name for name in every if name not in named]


def _table(schema: type[BaseModel], names: list[str]) -> str:
    described = schema.model_json_schema()
    request = schema in REQUESTS
    head = ("field", "value", "") if request else ("key", "value", "default", "")
    lines = [_row(head), "|---" * len(head) + "|"]
    for name in names:
        property_ = described["properties"][name]
        text = " ".join(filter(None, (property_.get("description", ""), SEE.get(f"{schema.__name__}.{name}", ""))))
        cells = [f"`{name}`", value_text(property_, described.get("$defs", {}))]
        if not request:
            cells.append(_default(schema, name))
        lines.append(_row((*cells, text)))
    return "\n".join(lines) + "\n"


def _row(cells: Iterable[str]) -> str:
    return "|" + "".join(f" {cell.replace('|', chr(92) + '|')} |" if cell else " |" for cell in cells)


def value_text(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    """Return the type and the bounds of a JSON schema in words: `integer, 1 to 100`."""
    if "$ref" in schema:
        return value_text(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    if several := schema.get("anyOf") or schema.get("oneOf"):
        words = (value_text(each, definitions) for each in several if each.get("type") != "null")
        return "; or ".join(dict.fromkeys(filter(None, words)))
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{value}`" for value in schema.get("enum") or [schema["const"]])
    kind = schema.get("type")
    if kind == "array":
        items = schema.get("items", {})
        size = schema.get("maxItems")
        if "prefixItems" in schema:
            return f"[{', '.join(each['type'] for each in schema['prefixItems'])}]"
        inner = value_text(items, definitions)
        return (f"list of {inner}" if inner else "list") + (f"; at most {size} of them" if size else "")
    return ", ".join(filter(None, (str(kind) if kind else "", _bounds(schema))))


def _bounds(schema: Mapping[str, Any]) -> str:
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is not None and high is not None:
        return f"{_number(low)} to {_number(high)}"
    words = [
        f"{word} {_number(schema[key])}"
        for key, word in (
            ("minimum", "at least"),
            ("exclusiveMinimum", "above"),
            ("maximum", "at most"),
            ("exclusiveMaximum", "below"),
        )
        if key in schema
    ]
    if "maxLength" in schema:
        words.append(f"at most {schema['maxLength']} characters")
    return ", ".join(words)


def _number(value: float) -> str:
    if value == MAX_SEED:
        return "2^53 - 1"
    return f"{value:g}" if isinstance(value, float) and not value.is_integer() else str(int(value))


def _default(schema: type[BaseModel], name: str) -> str:
    """Return a setting's default as YAML; empty if it is required, null or a section."""
    field = schema.model_fields[name]
    if field.is_required():
        return ""
    value = to_jsonable_python(field.get_default(call_default_factory=True))
    if value is None or (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)):
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"`[{', '.join(map(str, value))}]`"
    if isinstance(value, dict):
        return "`{}`"
    if isinstance(value, int) and "bytes" in name:
        return f"{value} ({value // 2**20} MiB)" if value < 2**30 else f"{value} ({value // 2**30} GiB)"
    return f"`{value}`" if isinstance(value, str) else f"{value:g}" if isinstance(value, float) else str(value)


def write(pages: tuple[Path, ...] = PAGES) -> None:
    for page in pages:
        page.write_text(with_tables(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    write()
