"""Searches on tiny models of other kinds: two transformers that make a video, and one that makes a sound."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from cache_dit_serving.caching.settings import CacheSettings
from cache_dit_serving.config.reading import load_settings
from cache_dit_serving.config.variables import CONFIG_VARIABLE
from cache_dit_serving.measure.search.in_process import InProcess, for_measuring
from cache_dit_serving.measure.search.outcome import Outcome
from cache_dit_serving.measure.search.points import Case, Point
from cache_dit_serving.measure.search.samples import Samples
from cache_dit_serving.measure.search.session import Options, Session
from tests.support.conformance import settings_of
from tests.support.families import save_audio, save_family
from tests.support.in_process import load

pytestmark = pytest.mark.verified

STEPS = 8
PROMPTS = [f"a ship, number {number}" for number in range(6)]


class Searched(NamedTuple):
    drawer: InProcess
    folder: Path
    outcome: Outcome


def searched(name: str, folder: Path, save: Callable[[Path], Path], ratio: str) -> Searched:
    """A search of eight points, which the sampler draws by its seed alone, with floors that any point holds."""
    floors = [f"{speed}:{ratio}=-1000" for speed in ("high", "balanced", "fast")]
    settings = settings_of(name, save(folder / "model"))
    drawer = InProcess(load(for_measuring(settings)), {"num_inference_steps": STEPS}, lambda: False)
    options = Options(folder / "tuned", PROMPTS, outputs=2, unseen=2, trials=8, floors=floors)
    return Searched(drawer, options.folder, Session(drawer, options, settings).run())


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Searched:
    return searched("Wan-2.2", tmp_path_factory.mktemp("video"), partial(save_family, "Wan-2.2"), "psnr_db")


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Searched:
    return searched("StableAudio", tmp_path_factory.mktemp("sound"), save_audio, "snr_db")


def points_of(found: Searched) -> list[Point]:
    return [result.point for result in Samples(found.folder / "samples.jsonl").complete(2)]


def test_two_transformers_are_searched_with_settings_of_their_own(video: Searched) -> None:
    assert video.drawer.subject.transformers == ["transformer", "transformer_2"]
    own = [point.settings.per_transformer for point in points_of(video) if point.settings is not None]
    assert any(parts.keys() == {"transformer_2"} for parts in own)


@pytest.mark.parametrize("kind", ["video", "sound"])
def test_no_suggested_point_computes_every_block(kind: str, request: pytest.FixtureRequest) -> None:
    found: Searched = request.getfixturevalue(kind)
    assert found.outcome.trials["cannot be drawn"] <= 2, "masks that do not fit the steps"
    assert sum(found.outcome.trials.values()) == 8


def test_settings_of_the_second_transformer_take_effect_there(video: Searched) -> None:
    def reused(threshold: float) -> int:
        fields = {"residual_diff_threshold": threshold, "max_warmup_steps": 1}
        settings = CacheSettings.model_validate(
            {"Fn_compute_blocks": 1, "residual_diff_threshold": 0.02, "per_transformer": {"transformer_2": fields}}
        )
        return video.drawer.draw(Case(PROMPTS[0], 0), Point(STEPS, settings)).cached_steps

    assert reused(0.9) > reused(0.001) == 0


@pytest.mark.parametrize(
    ("kind", "measures"), [("video", ["flip", "ssim", "psnr_db", "flicker"]), ("sound", ["spectral_db", "snr_db"])]
)
def test_outputs_are_measured_by_their_kind(kind: str, measures: list[str], request: pytest.FixtureRequest) -> None:
    found: Searched = request.getfixturevalue(kind)
    assert found.outcome.measure.name == measures[0]
    for result in found.outcome.results:
        assert all(list(sample.distances) == measures for sample in result.samples.values())
    front = json.loads((found.folder / "front.json").read_text())
    assert all(name in point for point in front["points"] for name in measures)
    report = (found.folder / "report.md").read_text()
    assert report.splitlines()[0] == found.outcome.headline()
    assert ("flicker" in report, "log-spectral distance, dB" in report) == (kind == "video", kind == "sound")
    page = (found.folder / "report.html").read_text()
    assert ("data:image/webp" in page) == (kind == "video"), "the middle frame of a video, and nothing of a sound"


@pytest.mark.parametrize("kind", ["video", "sound"])
def test_the_server_loads_the_speeds(kind: str, request: pytest.FixtureRequest) -> None:
    found: Searched = request.getfixturevalue(kind)
    holding = [each for each in found.outcome.checked if each.holds]
    assert holding, found.outcome.headline()
    settings = load_settings({CONFIG_VARIABLE: str(found.folder / "tuned.yaml")})
    for each in holding:
        assert each.named is not None
        section = getattr(settings.speeds, each.choice.speed)
        assert (section.cache or settings.cache) is not None
        assert section.num_inference_steps in (each.named.point.steps, None)
        assert (section.measured is not None) == (kind == "video"), "figures of pictures"
        file = yaml.safe_load((found.folder / f"cache-dit-{each.choice.speed}.yaml").read_text())
        assert "per_transformer" not in file["cache_config"]
