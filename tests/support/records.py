"""Calls, and the records of a machine with known rates."""

from __future__ import annotations

from cache_dit_serving.caching.evidence import Record, report_of
from cache_dit_serving.caching.report import BlockListStats
from cache_dit_serving.caching.settings import CacheSettings
from cache_dit_serving.caching.speeds import CacheChoice
from cache_dit_serving.jobs.rates import Rates
from cache_dit_serving.pipeline.protocol import SampleRecord
from cache_dit_serving.planning.call import ImageCall
from cache_dit_serving.planning.planned import Planned

FAST = CacheChoice(CacheSettings(residual_diff_threshold=0.3, max_warmup_steps=4), "fast")
COMPUTED_S, REUSED_S, FIXED_S = 0.1, 0.02, 0.5


def call(cache: CacheChoice, steps: int = 20, pixels: int = 9216, images: int = 1, passes: int = 1) -> Planned:
    return Planned((ImageCall({}, 0, cache, steps, passes, "FluxPipeline", pixels),) * images)


def record_of(of: ImageCall, reused: int = 0, slowness: float = 1.0) -> SampleRecord:
    """What a machine with the rates above draws, `reused` of its steps from the cache."""
    steps, cache = of.num_inference_steps, of.cache
    record = None
    if cache.settings is not None:
        stats = BlockListStats(
            transformer="t",
            block_list="b",
            cached_steps=list(range(steps - reused, steps)),
            diffs={},
            cfg_cached_steps=[],
            cfg_diffs={},
            blocks=0,
            reused_blocks=reused,
        )
        record = Record(cache.settings, 1, {"t": steps}, [stats])
    cached_s = reused * REUSED_S * slowness
    return SampleRecord(
        seed=0,
        cache=report_of(cache, record, steps),
        stats=[],
        encode_prompt_s=FIXED_S / 2,
        denoise_s=(steps - reused) * COMPUTED_S * slowness + cached_s,
        decode_s=FIXED_S / 2,
        cached_steps_s=cached_s,
        diffs=[],
        passes=of.passes,
        transition="none",
    )


def learn(rates: Rates, of: Planned, reused: int = 0, slowness: float = 1.0) -> None:
    rates.learn(of.call, record_of(of.call, reused, slowness))
