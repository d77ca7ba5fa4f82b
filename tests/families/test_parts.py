"""Settings for one transformer or block list: as cache-dit's own `params_modifiers` make them, and in the evidence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cache_dit import DBCacheConfig, ParamsModifier

from cache_dit_serving.errors import InvalidRequest
from tests.support.alone import by_diffusers
from tests.support.conformance import CACHE, draw, settings_of
from tests.support.families import save_family
from tests.support.in_process import load

pytestmark = pytest.mark.filterwarnings("default")


@pytest.mark.parametrize(
    ("name", "field", "parts"),
    [
        ("Flux2", "per_block_list", ("transformer_blocks", "single_transformer_blocks")),
        ("Wan-2.2", "per_transformer", ("transformer", "transformer_2")),
    ],
)
def test_each_part_has_its_own_settings(name: str, field: str, parts: tuple[str, str], tmp_path: Path) -> None:
    folder = save_family(name, tmp_path)
    loaded = load(settings_of(name, folder))
    same = draw(name, loaded)
    own: list[dict[str, Any]] = [{"residual_diff_threshold": 0.0}, {"max_cached_steps": 1}]
    drawn = draw(name, loaded, cache={field: dict(zip(parts, own, strict=True))})
    passes = drawn.record.passes
    modifiers = [
        ParamsModifier(cache_config=DBCacheConfig(**CACHE | changes, enable_separate_cfg=passes == 2))
        for changes in own
    ]
    config = DBCacheConfig(**CACHE, enable_separate_cfg=passes == 2)
    assert np.array_equal(drawn.media.array, by_diffusers(name, folder, config, modifiers))
    by_part = {
        part: [record for record in drawn.record.stats if part in (record.transformer, record.block_list)]
        for part in parts
    }
    assert [[len(record.cached_steps) for record in by_part[part]] for part in parts] == [[0], [1]]
    assert drawn.record.cache.settings is not None
    assert drawn.record.cache.settings[field] == dict(zip(parts, own, strict=True))
    # Nothing of it is left for the next request.
    assert np.array_equal(draw(name, loaded).media.array, same.media.array)
    with pytest.raises(InvalidRequest, match=f"there is: {', '.join(sorted(parts))}"):
        draw(name, loaded, cache={field: {"decoder": {"max_cached_steps": 1}}})
