"""The classes that every run draws reach each work-around, task, block pattern and class that the code names."""

from __future__ import annotations

import ast
import dataclasses
from pathlib import Path
from typing import Any

import diffusers
import pytest
from cache_dit import BlockAdapter, ForwardPattern
from cache_dit.caching.block_adapters import BlockAdapterRegister

import cache_dit_serving
from cache_dit_serving.pipeline import workarounds
from cache_dit_serving.planning.families import COMPONENTS, FAMILIES, Family
from cache_dit_serving.planning.tasks import SERVED_TASKS
from tests.support.families import ENTRIES, build_pipeline
from tests.support.sample import SAMPLE
from tools.models_table import names_of, rows

# Tiny weights and old families warn of much, none of it this project's.
pytestmark = pytest.mark.filterwarnings("default")
ROOMS = Path(str(cache_dit_serving.__file__)).parent
UNREACHED = {ForwardPattern.Pattern_4, ForwardPattern.Pattern_5}
"""Those of no class of the table."""
BASES = {"DiffusionPipeline", "ModelMixin"}
ALLOWED = {
    "planning/families.py": FAMILIES.keys() | COMPONENTS.keys(),
    "checkpoints/families.py": set(dir(diffusers)),
    "pipeline/workarounds.py": {"Bria", "Sana", "StableDiffusion3"},
}
"""Names of classes and families by module."""
SHARED: dict[str, Any] = {"needs_input": True, "several_images": True, "needs_negative_prompt": True}
"""Facts of several classes each."""
CLASSES = {ENTRIES[name]["class"] for name in SAMPLE}


def literals(file: str) -> set[str]:
    """Texts in a module of the package."""
    tree = ast.parse((ROOMS / file).read_text(encoding="utf-8"))
    return {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}


@pytest.fixture(scope="module")
def adapters() -> dict[str, BlockAdapter]:
    """cache-dit's of each class of the sample that it supports and this process can build."""
    workarounds.install()
    found = {}
    for name in sorted(SAMPLE - set(names_of("apart"))):
        pipe = build_pipeline(name)
        if BlockAdapterRegister.is_supported(pipe):
            found[name] = BlockAdapter.normalize(BlockAdapterRegister.get_adapter(pipe))
    return found


def test_every_class_of_it_has_an_entry() -> None:
    assert ENTRIES.keys() >= SAMPLE


def test_it_has_every_task_and_finding_of_the_table() -> None:
    found = [rows()[name] for name in SAMPLE]
    assert {task for row in found for task in row.tasks.split(", ") if task} == {str(task) for task in SERVED_TASKS}
    assert {row.state for row in found} == {row.state for row in rows().values()}


def test_it_has_every_block_pattern(adapters: dict[str, BlockAdapter]) -> None:
    patterns = {
        pattern for adapter in adapters.values() for each in adapter.forward_pattern for pattern in _listed(each)
    }
    assert patterns == set(ForwardPattern) - UNREACHED


def test_it_has_every_family_with_a_forward_of_its_own(adapters: dict[str, BlockAdapter]) -> None:
    workarounds.install()
    functors = {type(adapter.patch_functor) for adapter in adapters.values() if adapter.patch_functor}
    assert {key for key in workarounds._shipped if not isinstance(key, str)} <= functors
    families = {key for key in workarounds._shipped if isinstance(key, str)}
    # Not BriaFibo, which is a family of its own.
    endings = ("Pipeline", "ControlNetPipeline")
    assert [family for family in families if not {family + ending for ending in endings} & CLASSES] == []


def test_each_way_of_adding_a_controlnets_residuals_is_drawn() -> None:
    # SPREAD, FROM_THE_SECOND and SPREAD_EVENLY
    for family in ("Flux", "QwenImage", "Sana", "StableDiffusion3"):
        assert any(name.startswith(f"{family}ControlNet") for name in SAMPLE), family


def test_it_has_every_later_class_and_every_unfit_one() -> None:
    transformers = {(ENTRIES[name]["components"].get("transformer") or {}).get("class") for name in SAMPLE}
    assert transformers >= {name for name, facts in COMPONENTS.items() if facts.later_than_cache_dit}
    assert {name for name, facts in FAMILIES.items() if facts.no_cache_reason} <= CLASSES


@pytest.mark.parametrize("fact", [each.name for each in dataclasses.fields(Family)])
def test_it_has_a_class_of_each_fact(fact: str) -> None:
    assert any(getattr(FAMILIES[name], fact) != getattr(Family(), fact) for name in CLASSES & FAMILIES.keys())


def test_it_has_every_class_with_facts_that_it_hardly_shares() -> None:
    """Of the classes that share one of `SHARED`, the sample has one."""
    entries = {entry["class"] for entry in ENTRIES.values()}
    own = {name for name, facts in FAMILIES.items() if dataclasses.replace(facts, **SHARED) != Family(**SHARED)}
    assert own & entries <= CLASSES


@pytest.mark.parametrize("name", sorted(FAMILIES | COMPONENTS))
def test_a_class_of_the_tables_is_one_of_diffusers(name: str) -> None:
    assert isinstance(getattr(diffusers, name, None), type)


@pytest.mark.parametrize("file", [str(file.relative_to(ROOMS)) for file in ROOMS.rglob("*.py")])
def test_a_module_names_no_class_of_diffusers(file: str) -> None:
    """`planning/families.py` has their facts, `checkpoints/families.py` those of files.

    The registry of cache-dit that a work-around patches is by family.
    """
    named = {text for text in literals(file) if is_a_model(text) or is_a_model(f"{text}Pipeline")}
    assert named <= ALLOWED.get(file, set())


def is_a_model(name: str) -> bool:
    cls = getattr(diffusers, name, None) if name.isidentifier() else None
    return (
        isinstance(cls, type)
        and issubclass(cls, diffusers.DiffusionPipeline | diffusers.ModelMixin)
        and name not in BASES
    )


def _listed(patterns: ForwardPattern | list[ForwardPattern]) -> list[ForwardPattern]:
    return patterns if isinstance(patterns, list) else [patterns]
