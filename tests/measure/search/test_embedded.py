"""A whole search on the embedded model, small: its files are what the server and cache-dit load."""

from __future__ import annotations

import json
from pathlib import Path

import cache_dit
import pytest
import yaml

from cache_dit_serving.caching.settings import CacheSettings
from cache_dit_serving.config.reading import load_settings
from cache_dit_serving.config.variables import CONFIG_VARIABLE
from cache_dit_serving.errors import ConfigError
from cache_dit_serving.measure.search.drawer import CannotDraw
from cache_dit_serving.measure.search.in_process import InProcess, for_measuring
from cache_dit_serving.measure.search.outcome import Outcome
from cache_dit_serving.measure.search.points import Case, Point
from cache_dit_serving.measure.search.prompt_lists import own_prompts
from cache_dit_serving.measure.search.session import Options, Session
from cache_dit_serving.pipeline.protocol import Loaded
from tests.support.in_process import EMBEDDED, load

STEPS = 8
FLOORS = ("high:ssim=.5", "balanced:ssim=.4", "fast:ssim=.3")


def never() -> bool:
    return False


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    return load(for_measuring(EMBEDDED))


@pytest.fixture(scope="module")
def drawer(loaded: Loaded) -> InProcess:
    return InProcess(loaded, {"num_inference_steps": STEPS, "width": 80, "height": 80}, never)


@pytest.fixture(scope="module")
def searched(drawer: InProcess, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    folder = tmp_path_factory.mktemp("tuned")
    options = Options(folder, own_prompts()[:12], outputs=3, unseen=8, trials=6, floors=FLOORS, measure="ssim")
    return folder, Session(drawer, options, EMBEDDED).run()


@pytest.mark.verified
def test_a_search_chooses_speeds_that_the_server_loads(searched: tuple[Path, Outcome]) -> None:
    folder, outcome = searched
    assert all(each.holds for each in outcome.checked), outcome.headline()
    settings = load_settings({CONFIG_VARIABLE: str(folder / "tuned.yaml")})
    for each in outcome.checked:
        assert each.named is not None
        assert each.named.point.settings is not None
        measured = getattr(settings.speeds, each.choice.speed).measured
        assert measured.settings_hash == each.named.point.settings.digest()
        steps = getattr(settings.speeds, each.choice.speed).num_inference_steps
        assert measured.num_inference_steps == each.named.point.steps == steps, "28 are usual, so 8 are written too"
        assert measured.speedup == pytest.approx(1 / each.named.median_ratio, rel=0.5)
    own = settings.speeds.fast.cache
    assert own is not None
    assert settings.cache is not None
    assert settings.model == EMBEDDED.model
    assert settings.speeds.measured_on is not None
    assert "torch 2" in settings.speeds.measured_on


@pytest.mark.verified
def test_cache_dit_loads_each_speed(searched: tuple[Path, Outcome]) -> None:
    folder, outcome = searched
    for each in outcome.checked:
        assert each.named is not None
        settings = each.named.point.settings
        assert settings is not None
        config = cache_dit.load_configs(str(folder / f"cache-dit-{each.choice.speed}.yaml"))["cache_config"]
        assert config.Fn_compute_blocks == settings.Fn_compute_blocks
        if (mask := settings.mask(each.named.point.steps)) is not None:
            assert config.steps_computation_mask == mask
        else:
            assert config.residual_diff_threshold == settings.residual_diff_threshold
    tree = yaml.safe_load((folder / "tuned.yaml").read_text())
    if "steps_computation_mask" not in tree["cache"]:
        assert cache_dit.load_configs({"cache_config": tree["cache"]})["cache_config"] is not None


@pytest.mark.verified
def test_the_report_stands_alone_and_says_the_outcome_first(searched: tuple[Path, Outcome]) -> None:
    folder, outcome = searched
    text = (folder / "report.md").read_text()
    assert text.splitlines()[0] == outcome.headline()
    assert all(f"no cache, {steps} steps" in text for steps in (4, 7))
    assert "cache-dit's command line" in text
    assert "prompts: the user's" in text
    page = (folder / "report.html").read_text()
    assert page.count("<img ") >= 4
    assert 'src="data:image/webp;base64,' in page
    assert "http://" not in page.replace("http://www.w3.org", "").replace("http://gpu-1", "")
    points = json.loads((folder / "front.json").read_text())["points"]
    assert {point["on_front"] for point in points} == {True, False}


@pytest.mark.verified
def test_the_same_folder_goes_on_and_other_conditions_are_refused(
    drawer: InProcess, searched: tuple[Path, Outcome]
) -> None:
    folder, _ = searched
    before = (folder / "samples.jsonl").read_text()
    options = Options(folder, own_prompts()[:12], outputs=3, unseen=8, trials=6, floors=FLOORS, measure="ssim")
    Session(drawer, options, EMBEDDED).run()
    assert (folder / "samples.jsonl").read_text() == before, "nothing was left to measure"
    page = (folder / "report.html").read_text()
    assert page.count("<img ") >= 4
    named = [each.named.point.settings for each in searched[1].checked if each.named is not None]
    asks = any(settings is not None and not settings.reuses_without_asking for settings in named)
    assert ("Residual difference by step" in page) == asks
    other = Options(folder, own_prompts()[10:20], outputs=3, unseen=8, trials=6, measure="flip")
    with pytest.raises(ConfigError, match=r"other conditions \(distance, outputs, unseen outputs\)"):
        Session(drawer, other, EMBEDDED)


@pytest.mark.verified
def test_an_interruption_writes_the_report_of_what_there_is(loaded: Loaded, tmp_path: Path) -> None:
    asked = iter([False] * 60)
    stopping = lambda: next(asked, None) is not False  # noqa: E731
    drawer = InProcess(loaded, {"num_inference_steps": STEPS, "width": 80, "height": 80}, stopping)
    options = Options(tmp_path, own_prompts()[:4], outputs=2, unseen=1, trials=4)
    outcome = Session(drawer, options, EMBEDDED, interrupted=stopping).run()
    assert outcome.interrupted
    assert "Run the same command again" in (tmp_path / "report.md").read_text()


def test_settings_that_the_model_cannot_hold_are_said(drawer: InProcess) -> None:
    case = Case(own_prompts()[0], 0)
    with pytest.raises(CannotDraw, match="more than the 12 blocks"):
        drawer.draw(case, Point(STEPS, CacheSettings(Fn_compute_blocks=99)))
    with pytest.raises(CannotDraw, match="no more than the 8 of the warm-up"):
        drawer.draw(case, Point(STEPS, CacheSettings(Fn_compute_blocks=1)))


def test_seconds_and_differences_are_the_pipelines_own(drawer: InProcess) -> None:
    settings = CacheSettings(Fn_compute_blocks=1, max_warmup_steps=2, residual_diff_threshold=0.5)
    drawn = drawer.draw(Case(own_prompts()[0], 0), Point(STEPS, settings))
    assert 0 < drawn.seconds < 60
    assert drawn.cached_steps > 0
    [(name, diffs)] = drawn.diffs.items()
    assert name == "transformer.transformer_blocks"
    assert set(diffs) <= set(range(STEPS))
    assert all(diff >= 0 for diff in diffs.values())


def test_a_field_that_cannot_be_is_refused_by_its_name(loaded: Loaded) -> None:
    with pytest.raises(ConfigError, match="--field width"):
        InProcess(loaded, {"width": "wide"}, never)
