"""Variant of a model's weights, such as fp16: the setting's, or the only one that its files are there in."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from cache_dit_serving.config import hub
from cache_dit_serving.config.folder import INDEX
from cache_dit_serving.config.settings import ModelSettings
from cache_dit_serving.config.sources import Sources
from cache_dit_serving.model_folder.broken import BrokenFolder
from cache_dit_serving.model_folder.weights import AGAIN, PLAIN, variants_of

VARIANT_OF_DTYPE = {"float16": "fp16", "bfloat16": "bf16", "float32": "fp32"}


def variant_on_hub(hub_id: str, model: ModelSettings, sources: Sources) -> str | None:
    """Return the variant of a hub id's weights to load; None: files without one, or nothing is read from there.

    Offline, the files in the local cache are those of the model.

    Args:
        sources: places of the model; weights that come from elsewhere are not looked for on the hub.

    Raises:
        BrokenFolder: the wanted variant is not there, or none is common to the components.
    """
    if model.weights != "saved" or sources.whole is not None:
        return model.variant
    try:
        names: Collection[str] = hub.listing(hub_id, model.revision)
    except hub.NotOnHub:
        names = hub.cached_names(hub_id, model.revision)
    index = hub.on_hub(hub_id, model.revision)(INDEX) or {}
    there = {
        name: variants_of([each.removeprefix(f"{name}/") for each in names if each.startswith(f"{name}/")], entry[0])
        for name, entry in index.items()
        if isinstance(entry, list) and len(entry) > 0 and isinstance(entry[0], str) and name not in sources.replaced
    }
    return chosen_variant(there, model.variant, model.dtype)


def chosen_variant(there: Mapping[str, frozenset[str]], wanted: str | None, dtype: str) -> str | None:
    """Return the variant to load; None: files without one.

    Args:
        there: variants by component.

    Raises:
        BrokenFolder: the wanted variant is not there, or none is common to the components.
    """
    every = sorted(frozenset().union(*there.values()) - {PLAIN})
    if wanted is not None:
        if wanted not in every:
            others = f"there is {' and '.join(every)}" if every else "its files have none: leave model.variant out"
            raise BrokenFolder(f"the model has no weights of the variant {wanted!r} (model.variant); {others}")
        return wanted
    lacking = {name: variants for name, variants in there.items() if variants and PLAIN not in variants}
    if not lacking:
        return None
    common = frozenset.intersection(*lacking.values())
    if len(common) == 1:
        return next(iter(common))
    if (preferred := VARIANT_OF_DTYPE[dtype]) in common:
        return preferred
    if common:
        raise BrokenFolder(f"the weights have the variants {' and '.join(sorted(common))}; choose one by model.variant")
    forms = "; ".join(f"{name} has {' and '.join(sorted(variants))}" for name, variants in sorted(lacking.items()))
    raise BrokenFolder(f"the components' weights have no variant in common: {forms}; {AGAIN}")
