"""The page on a floor that trips: the bad family is bad by the cache alone, and the course of a watch is read right."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.drifting_lora import save_drifting_lora
from benchmarks.live_quality import FLOOR, watched
from benchmarks.live_quality_traffic import BAD, DRIFTING, WORDS, Family
from cache_dit_serving.config.settings import LoraSettings
from cache_dit_serving.measure.distances.outputs import distance
from cache_dit_serving.measure.evidence.floor_watch import FloorWatch
from tests.support.evidence import IN_A_ROW, sample
from tests.support.in_process import EMBEDDED, draw, load, unwarmed
from tests.support.loras import with_loras


def test_the_bad_family_is_bad_with_the_cache_alone(tmp_path: Path) -> None:
    file = tmp_path / f"{DRIFTING}.safetensors"
    save_drifting_lora(file)
    loaded = load(unwarmed(with_loras(EMBEDDED, LoraSettings(name=DRIFTING, path=str(file), scale=0.0))))

    def likeness(family: Family, **fields: object) -> float:
        asked = {"num_inference_steps": None, **family.fields}
        reference = draw(loaded, **{**asked, "speed": "lossless"})
        ssim = distance(draw(loaded, **{**asked, **fields}).media, reference.media).ssim
        assert ssim is not None
        return ssim

    assert likeness(BAD) < 0.9 < FLOOR
    assert likeness(WORDS) > 0.99
    assert likeness(BAD, speed="balanced") > FLOOR, "the speed that callers get instead"
    assert likeness(BAD, speed="lossless", num_inference_steps=10) > 0.98, "as many steps, without the cache"


def test_the_course_of_a_watch_is_read_from_its_samples() -> None:
    ssims = [0.99] * 4 + [0.5] * 6 + [0.99] * 2 * IN_A_ROW
    samples = [sample(number, values={"ssim": ssim}) for number, ssim in enumerate(ssims)]
    watch = FloorWatch("ssim", FLOOR)
    course = watched(samples, frozenset({samples[4].request}), watch)
    assert (course.first_bad, course.alarm) == (4, 7)
    assert course.proof - course.alarm > IN_A_ROW
    assert course.beyond(watch, course.first_bad, course.alarm + 1) == 4
    assert course.beyond(watch, course.alarm + 1, course.proof + 1) == 2
    with pytest.raises(ValueError, match="no proof"):
        watched(samples[:20], frozenset(), watch)
